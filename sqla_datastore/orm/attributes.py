"""The attributes of mapped classes that hold values."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column
from sqlalchemy.orm import InstanceState, Mapper

from sqla_datastore.schema.columns import is_declared
from sqla_datastore.value.datastore import DataStore

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


def rows_of(value: DataStore) -> list[Any]:
    """Return the rows that a value is an attribute of."""
    rows = [state.obj() for state in list(value._parents)]
    return [row for row in rows if row is not None]
