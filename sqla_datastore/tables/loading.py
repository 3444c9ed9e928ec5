"""Load one entry of many rows, several at the same time; errors name the row."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sqla_datastore.exceptions import CollectError, DataStoreError
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.tables.row_query import Row, RowQuery

_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class EntryLoader:
    """Loads an entry of rows, and keeps neither their values nor other entries.

    Args:
        query: what was selected.
        entry: the entry's name.
        make: makes what is wanted of the loaded entry and its name. Raises TypeError, ValueError
            or an error of Arrow where that is not possible.
        as_arrow: an Arrow table will do for `make`.
    """

    def __init__(
        self,
        query: RowQuery,
        entry: str,
        make: Callable[[Any, str], Any],
        *,
        as_arrow: bool = False,
    ) -> None:
        self._query = query
        self._entry = entry
        self._make = make
        self._as_arrow = as_arrow
        self._is_found = False
        # a row whose value lacks the entry, and what it has instead
        self._lacking: tuple[Row, list[str]] | None = None

    def load(self, rows: Sequence[Row], stopped: threading.Event | None = None) -> list[Any]:
        """Return what was made of each row's entry, None where it has none; blocks.

        Raises:
            CollectError: nothing can be made of an entry.
            MissingObjectError: an object is not there; a note names the row.
            DataStoreError: it cannot be read.
        """
        loaded: list[Any] = [None] * len(rows)

        def load(place: int) -> None:
            loaded[place] = self._loaded(rows[place])

        # what waits for nothing is the interpreter's work, and threads make that slower
        values = map(self._query.value_of, rows)
        threads = 1 if all(value is None or value._is_near() for value in values) else None
        places = range(len(rows))
        for err in call_for_each(
            load, places, threads=threads, stopped=stopped, until_failure=True
        ):
            raise err
        return loaded

    def _loaded(self, row: Row) -> Any:
        value = self._query.value_of(row)
        source = None if value is None else value._source
        try:
            container = None if source is None else source.container()
            if container is None or self._entry not in container:
                if container is not None and self._lacking is None:
                    self._lacking = row[:-1], list(container.names)
                return None
            self._is_found = True
            loaded = container.load(self._entry, as_arrow=self._as_arrow)
        except DataStoreError as err:
            err.add_note(f"it is the value of {self._query.label(row)}")
            raise
        try:
            return self._make(loaded, self._entry)
        except _ERRORS as err:
            raise self.refused(row, err) from err

    def check_found(self) -> None:
        """Refuse a name that no value has, though there are some: it may be misspelt.

        Raises:
            CollectError: names what a value has instead.
        """
        if self._is_found or self._lacking is None:
            return
        row, names = self._lacking
        label, shown = self._query.label(row), ", ".join(map(repr, names[:20])) or "none at all"
        raise CollectError(
            f"no row has an entry {self._entry!r}; those of {label} are {shown}; where none may "
            "have it yet, give missing='null' or schema=...",
            row=label,
            entry=self._entry,
        )

    def refused(self, row: Row, err: BaseException) -> CollectError:
        """Return (not raise) the error of an entry of which nothing can be made."""
        label = self._query.label(row)
        return CollectError(
            f"the entry {self._entry!r} of {label} cannot be collected: {err}; leave the row out "
            "by a where(), or store the entry as numbers, text or a frame of them",
            row=label,
            entry=self._entry,
        )
