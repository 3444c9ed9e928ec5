"""One array of many rows as one NumPy array."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Select

from sqla_datastore.exceptions import CollectError
from sqla_datastore.storage.local import MAPPED_FROM_BYTES
from sqla_datastore.tables.loading import EntryLoader
from sqla_datastore.tables.row_query import Attribute, Row, RowQuery


class Stack:
    """Arrays of rows, which become one at the end.

    Args:
        statement: says which rows.
        attribute: the column of values.
        entry: the entry's name.
        columns: what is attached.

    Attributes:
        query: what is selected.
    """

    def __init__(
        self,
        statement: Select[Any],
        attribute: Attribute,
        entry: str,
        columns: Sequence[Attribute] | None,
    ) -> None:
        self.query = RowQuery.of(statement, attribute, columns)
        self._entry = entry
        self._entries = EntryLoader(self.query, entry, _array)
        self._rows: list[Row] = []
        self._arrays: list[Any] = []

    def read(self, rows: Sequence[Row], stopped: threading.Event) -> list[tuple[Row, Any]]:
        """Return the arrays of rows, each with its row, without those that have none; blocks."""
        loaded = zip(rows, self._entries.load(rows, stopped), strict=True)
        return [(row[:-1], array) for row, array in loaded if array is not None]

    def add(self, found: list[tuple[Row, Any]]) -> None:
        """Take in what was read.

        Raises:
            CollectError: an array is of another shape than the first one.
        """
        for row, array in found:
            if self._arrays and array.shape != self._arrays[0].shape:
                label, first = self.query.label(row), self.query.label(self._rows[0])
                raise CollectError(
                    f"the entry {self._entry!r} of {label} is an array of shape {array.shape}, "
                    f"that of {first} is one of shape {self._arrays[0].shape}; collect them apart, "
                    "by a where()",
                    row=label,
                    entry=self._entry,
                )
            self._rows.append(row)
            self._arrays.append(array)

    def array(self) -> tuple[Any, Any]:
        """Return the array, and the table of its rows.

        Raises:
            CollectError: no row has the entry.
        """
        self._entries.check_found()
        stacked = np.stack(self._arrays) if self._arrays else np.empty((0,))
        return stacked, self.query.table_of(self._rows)


def _array(value: Any, _: str) -> Any:
    """Return an entry as an array; one that is not mapped as a copy: it holds all of its object."""
    if type(value) is not np.ndarray and not isinstance(
        value, (bool, int, float, complex, np.generic)
    ):
        raise TypeError(f"{type(value).__name__} values are no NumPy arrays")
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError("it is too large a number for NumPy")
    return array.copy() if array.nbytes < MAPPED_FROM_BYTES else array
