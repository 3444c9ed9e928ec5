"""Edits in place: what one Session looks at again before a flush, a savepoint and COMMIT.

A Session sees an assignment to an attribute; it does not see ``row.data.items.append(1)``. So a
value that hands out something editable, or is edited itself, is noted here with its row, which is
held until the transaction ends. A row that was garbage collected before its value was edited, as in
``session.get(Experiment, key).data.items.append(1)``, is fetched again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, inspect
from sqlalchemy.orm import InstanceState, Mapper, Session

from sqla_datastore.exceptions import StaleValueError
from sqla_datastore.schema.columns import is_declared
from sqla_datastore.unitofwork.commit_checks import unwatch_connection, watch_connection
from sqla_datastore.value.datastore import DataStore

_LATE = (
    "the value of {url!r} was edited after its row was flushed; commit the Session, or flush it "
    "after the edit, before its connection is committed"
)
_BEFORE_SAVEPOINT = (
    "the value of {url!r} was edited after its row was flushed, and rolling back to the savepoint "
    "that begins here would lose the edit; get the entry from the row again, which flushes it, "
    "before begin_nested()"
)

watches: weakref.WeakKeyDictionary[Session, SessionWatch] = weakref.WeakKeyDictionary()
"""The watches of Sessions that have one."""

_attributes: weakref.WeakKeyDictionary[Mapper[Any], tuple[str, ...]] = weakref.WeakKeyDictionary()


class SessionWatch:
    """What one Session looks after.

    Attributes:
        restored: values that a rollback put back, and rows that held them, until the Session has
            heard of it.
        to_expire: rows with values that column defaults made, and the attributes, until the
            flush ends.
    """

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)
        self.restored: list[tuple[InstanceState[Any], DataStore]] = []
        self.to_expire: list[tuple[Any, set[str]]] = []
        # by the identity of their rows (of None for one that is gone), held until the transaction
        # ends
        self._armed: dict[int, dict[int, tuple[Any, DataStore]]] = {}
        # for one transaction more: what was handed out before a COMMIT may be edited after it
        self._lingering: list[tuple[Any, DataStore]] = []
        # then only while somebody else holds them
        self._watched: list[tuple[Any, weakref.ref[DataStore]]] = []
        self._connections: set[int] = set()

    @classmethod
    def of(cls, session: Session) -> SessionWatch:
        """Return the watch of a Session, made at the first time."""
        found = watches.get(session)
        if found is None:
            found = watches[session] = cls(session)
        return found

    @classmethod
    def arm(cls, session: Session | None, row: Any, value: DataStore) -> None:
        """Look after a value until the Session's transaction ends.

        Args:
            session: the Session; nothing is done without one.
            row: the row to hold on to, or None if its instance is gone.
            value: the value.
        """
        if session is not None:
            cls.of(session)._armed.setdefault(id(row), {})[id(value)] = (row, value)

    # -- looking again -----------------------------------------------------------------------------

    def scan(self) -> None:
        """Look again at what was handed out; edits make their rows dirty.

        Raises:
            StaleValueError: an edit that no row could save.
        """
        session = self._session()
        assert session is not None
        for row, value in self._looked_after():
            gone = not rows_of(value) if row is None else not _is_current(row, value)
            if is_edited(value) and gone and value._row is not None:
                value._row.bring_back(session, row, value)

    def refuse_unsaved(self, *, savepoint: bool = False) -> None:
        """Refuse what would leave edits behind that no flush has saved.

        Args:
            savepoint: whether a savepoint begins; else a COMMIT without a Session's commit.

        Raises:
            StaleValueError: a value was edited after the last flush.
        """
        for _, value in self._looked_after():
            if value._scan() or value._changed:
                why = _BEFORE_SAVEPOINT if savepoint else _LATE
                raise StaleValueError(why.format(url=value.url))

    def watch_connection(self, raw: Any) -> None:
        """Be asked before each COMMIT of a driver's connection that the Session uses."""
        self._connections.add(watch_connection(raw, self))

    # -- forgetting --------------------------------------------------------------------------------

    def discard(self, state: InstanceState[Any]) -> None:
        """Forget edits of a row's values that were discarded on purpose, by expiry or rollback.

        What was not edited by then is looked after still: an edit that comes later is refused.
        """
        row = state.obj()
        armed = self._armed.get(id(row), {}) if row is not None else {}
        for _, value in list(armed.values()):
            if not _is_current(row, value) and is_edited(value):
                del armed[id(value)]

    def discard_rolled_back(self) -> None:
        """Forget edits that were not flushed. Called after a rollback of all or to a savepoint.

        An edit that was made before the savepoint was flushed before it. SQLAlchemy expires what it
        knows to be modified, which an edit in place may not be.
        """
        restored, self.restored = self.restored, []
        for state, value in restored:
            # SQLAlchemy expires what was changed in the savepoint itself, but not in one within it
            self._expire(state, value)
        for row, value in self._looked_after():
            if row is not None and is_edited(value):
                self._expire(inspect(row), value)
        for armed in list(self._armed.values()):
            for row, value in list(armed.values()):
                if _is_rolled_back(row, value):
                    del armed[id(value)]
        self._lingering = [pair for pair in self._lingering if not _is_rolled_back(*pair)]
        self._watched = [
            (None if row is None else weakref.ref(row), weakref.ref(value))
            for row, value in self._still_watched()
            if not _is_rolled_back(row, value)
        ]

    def _expire(self, state: InstanceState[Any], value: DataStore) -> None:
        """Have a value read again, where a persistent row of the Session holds it."""
        session = self._session()
        row = state.obj()
        for key, held in list(values_of(state)):
            if held is value and state.persistent and session is not None and row in session:
                session.expire(row, [key])

    def end_transaction(self) -> None:
        """Let go of rows, one transaction later. Called when the outermost one has ended."""
        self.restored.clear()
        watched = [
            (None if row is None else weakref.ref(row), weakref.ref(value))
            for row, value in self._looked_after()
        ]
        lingering = [(row, value) for row, value in self._all_armed() if self._belongs(row, value)]
        self._armed.clear()
        self._watched = watched
        self._lingering = lingering if watched else []
        for number in self._connections:
            unwatch_connection(number, self)
        self._connections.clear()

    # -- what is looked after ----------------------------------------------------------------------

    def _looked_after(self) -> list[tuple[Any, DataStore]]:
        """Return the rows and values to look at: those that still belong together."""
        found = {id(value): (row, value) for row, value in self._still_watched()}
        found |= {id(value): (row, value) for row, value in self._lingering}
        found |= {id(value): (row, value) for row, value in self._all_armed()}
        return [(row, value) for row, value in found.values() if self._belongs(row, value)]

    def _all_armed(self) -> list[tuple[Any, DataStore]]:
        by_row = list(self._armed.values())
        return [pair for armed in by_row for pair in list(armed.values())]

    def _still_watched(self) -> Iterator[tuple[Any, DataStore]]:
        for row_ref, value_ref in self._watched:
            row, value = row_ref and row_ref(), value_ref()
            if value is not None:
                yield row, value

    def _belongs(self, row: Any, value: DataStore) -> bool:
        """Whether a value is still a row's: one that was replaced belongs to its user."""
        session = self._session()
        if session is None:
            return False
        if row is None:
            return value._row is not None and value._row.session is session
        return row in session and inspect(row) in value._parents


def is_edited(value: DataStore) -> bool:
    """Return whether a value has edits that are not stored."""
    try:
        return value._changed or value._scan()
    except StaleValueError:
        # edited, and told so to a row that does not have it any more
        return True


def _is_rolled_back(row: Any, value: DataStore) -> bool:
    return is_edited(value) and (row is None or not _is_current(row, value))


def _is_current(row: Any, value: DataStore) -> bool:
    return any(held is value for _, held in values_of(inspect(row)))


# -- the attributes that hold values ---------------------------------------------------------------


def declared_attributes(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the names of a mapper's attributes that hold values."""
    known = _attributes.get(mapper)
    if known is None:
        known = _attributes[mapper] = tuple(
            prop.key
            for prop in mapper.column_attrs
            if isinstance(prop.columns[0], Column) and is_declared(prop.columns[0])
        )
    return known


def values_of(state: InstanceState[Any]) -> Iterator[tuple[str, DataStore]]:
    """Yield a row's loaded values, by attribute."""
    row = state.dict
    for key in declared_attributes(state.mapper):
        value = row.get(key)
        if isinstance(value, DataStore):
            yield key, value


def rows_of(value: DataStore) -> list[Any]:
    """Return the rows that a value is an attribute of."""
    rows = [state.obj() for state in list(value._parents)]
    return [row for row in rows if row is not None]
