"""The values that rows hold in memory, and what statements make wrong of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column
from sqlalchemy.orm import InstanceState, Mapper

from sqla_datastore.exceptions import StaleValueError
from sqla_datastore.schema.columns import DeclaredTable, is_declared
from sqla_datastore.schema.sqlalchemy_compat import sessions_using
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_attributes: weakref.WeakKeyDictionary[Mapper[Any], tuple[str, ...]] = weakref.WeakKeyDictionary()


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


def is_edited(value: DataStore) -> bool:
    """Return whether a value has edits that are not stored."""
    try:
        return value._changed or value._scan()
    except StaleValueError:
        # it is edited: `changed` raised because the attribute was expired
        return True


def expire_unchanged(state: InstanceState[Any], *, others_only: bool) -> None:
    """Expire a row's values that have no changes, so that they are read again.

    Args:
        state: the state of a row of a Session.
        others_only: leave alone those that the row loaded or stored itself.
    """
    row, session = state.obj(), state.session
    for key, value in list(values_of(state)):
        link = value._row
        own = link is not None and link.is_for(state, key)
        if key in state.committed_state or (own and others_only) or is_edited(value):
            continue
        if row is not None and session is not None:
            session.expire(row, [key])


def expire_met(connection: Connection, declared: DeclaredTable) -> None:
    """Expire values of a table's rows after an upsert, which may have replaced what they hold.

    Rows with changes of their own keep them.

    Args:
        connection: ran it; the rows of the Sessions that use it are looked at.
        declared: its table.
    """
    for session in sessions_using(connection):
        for state in session.identity_map.all_states():
            if declared.table in state.mapper.tables:
                expire_unchanged(state, others_only=False)
