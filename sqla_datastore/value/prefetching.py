"""Loading entries before they are touched: those of many rows at once, and for coroutines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sqla_datastore.storage.off_loop import in_thread
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.orm import QueryableAttribute


def prefetch(
    rows: Iterable[object],
    attribute: QueryableAttribute[Any] | str,
    keys: Iterable[str] | None = None,
) -> None:
    """Load entries of many rows' values, several at the same time, so that touching reads nothing.

    Blocks. An entry stays loaded as long as its value does.

    Args:
        rows: mapped instances; a row without a value is passed over.
        attribute: the attribute of theirs, for example ``Run.data``, or its name.
        keys: the entries; those that a value does not have are passed over. None for all, an empty
            list for what `inspect` tells alone.

    Raises:
        MissingObjectError: an object is not there. All others are loaded.
        DataStoreError: it cannot be read.
    """
    _prefetch(_values_of(rows, attribute), None if keys is None else [*keys], None)


async def aprefetch(
    rows: Iterable[object],
    attribute: QueryableAttribute[Any] | str,
    keys: Iterable[str] | None = None,
) -> None:
    """As `prefetch`, in threads: the event loop goes on meanwhile."""
    values, stopped = _values_of(rows, attribute), threading.Event()
    names = None if keys is None else [*keys]
    await in_thread(partial(_prefetch, values, names, stopped), stopped)


async def aload(value: DataStore, *names: str) -> dict[str, Any]:
    """Load entries in a thread: the event loop goes on meanwhile.

    With the values that are nested in them. Touching these entries reads nothing afterwards.

    Args:
        value: a value, of a row or not.
        names: the entries; none for all.

    Returns:
        The entries by name.

    Raises:
        KeyError: there is no entry of that name.
        MissingObjectError: the object is not there.
        DataStoreError: it cannot be read.
    """
    await in_thread(partial(_load, value, names or None))
    return {name: value[name] for name in names or list(value)}


def _values_of(rows: Iterable[object], attribute: QueryableAttribute[Any] | str) -> list[DataStore]:
    key = attribute if isinstance(attribute, str) else attribute.key
    # here, since an attribute that was expired is read from the database
    values = (getattr(row, key) for row in rows)
    return [value for value in values if isinstance(value, DataStore)]


def _prefetch(
    values: list[DataStore], keys: Sequence[str] | None, stopped: threading.Event | None
) -> None:
    def load(value: DataStore) -> None:
        names = value._index()  # read without any keys, too
        _load(value, keys if keys is None else [name for name in keys if name in names])

    for err in call_for_each(load, values, stopped=stopped):
        raise err


def _load(value: DataStore, names: Sequence[str] | None) -> None:
    for name in list(value) if names is None else names:
        entry = value._reading(partial(value._loaded, name), name)
        for child in entry.children:
            assert isinstance(child, DataStore)
            _load(child, None)
