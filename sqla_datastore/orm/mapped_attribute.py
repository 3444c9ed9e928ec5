"""The mapped attribute of a column with values: a value meets its row when it is taken from it.

A query makes a value for each row, and most are never touched. So no listener ties them to their
rows while they are loaded: taking one from its row does, ``row.data``. One that was taken another
way, from the row's ``__dict__`` for instance, is looked for before a flush or COMMIT once something
editable of it was handed out.
"""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, InstrumentedAttribute, Session
from typing_extensions import override

from sqla_datastore.orm.edits_in_place import SessionWatch, unlink, watch_of
from sqla_datastore.orm.row_link import RowLink
from sqla_datastore.unitofwork.values_of_rows import values_of
from sqla_datastore.value.datastore import DataStore


class ValueAttribute(InstrumentedAttribute[Any]):
    """A mapped attribute that ties the value of a row to it when somebody takes it."""

    __slots__ = ()
    inherit_cache = True

    @override
    def __get__(self, instance: Any, owner: Any) -> Any:
        value = InstrumentedAttribute.__get__(self, instance, owner)
        if isinstance(value, DataStore):
            return meet(value, inspect(instance), self.key)
        return value


def meet(value: DataStore, state: InstanceState[Any], key: str) -> DataStore:
    """Tie a value to the row that it is taken from, and return the one that the row has then.

    That is another one where somebody has edited an earlier value of the row, whose instance was
    gone then.
    """
    link = value._row
    if link is not None and link.is_for(state, key):
        return value
    value._hold(state, key)
    session = state.session
    if value._unmet is not None or (link is not None and link.session is None):
        # nobody has taken it yet, or merge() has shared it with a row that is in no Session
        unlink(value)
        value._unmet, value._row = None, RowLink(state, key)
        if session is not None and (value._handed_out or value._changed):
            SessionWatch.of(session).track(value)
    watch = watch_of(session) if link is None else None
    if watch is None:
        return value
    watch.give_back(state)
    return state.dict.get(key, value)  # type: ignore[no-any-return]


class _Unmet:
    """Looks after values that a query has made and nobody has taken from their rows.

    Attributes:
        armed: those that have handed out something editable, or were edited.
    """

    def __init__(self) -> None:
        self.armed: dict[int, weakref.ref[DataStore]] = {}

    def arm(self, value: DataStore) -> None:
        """Note a value; the next flush or COMMIT of a Session whose row holds it looks at it."""
        self.armed[id(value)] = weakref.ref(value)

    def introduce(self, session: Session) -> None:
        """Tie values that may have been edited to the rows of a Session that hold them.

        A value that no row holds, of a query for the column alone, is its user's own.
        """
        armed = {number: ref() for number, ref in list(self.armed.items())}
        for number, value in armed.items():
            if value is None or value._unmet is None:
                self.armed.pop(number, None)
        for state in session.identity_map.all_states():
            for key, value in list(values_of(state)):
                if armed.get(id(value)) is value:
                    meet(value, state, key)


UNMET = _Unmet()
