"""Load one entry of many rows, several at the same time; errors name the row."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sqla_datastore.exceptions import CollectError, DataStoreError
from sqla_datastore.format.joining import piece_of
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.tables.row_query import Row, RowQuery
from sqla_datastore.value.opening_many import each_opened

if TYPE_CHECKING:
    from sqla_datastore.format import Container, StoredBlob
    from sqla_datastore.value.entry import Source

_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class EntryLoader:
    """Loads an entry of rows, and keeps neither their values nor other entries.

    Args:
        query: what was selected.
        entry: the entry's name.
        make: makes what is wanted of the loaded entry and its name. Raises TypeError, ValueError
            or an error of Arrow where that is not possible.
        as_arrow: an Arrow table will do for `make`, or a `Piece` of one instead of what it makes.
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
        """Return what was made of each row's entry, or its `Piece`; None where it has none; blocks.

        Raises:
            CollectError: nothing can be made of an entry.
            MissingObjectError: an object is not there; a note names the row.
            DataStoreError: it cannot be read.
        """
        loaded: list[Any] = [None] * len(rows)
        sources = [self._source_of(row) for row in rows]
        if all(source is None or source.is_near for source in sources):
            # what waits for nothing is the interpreter's work, and threads make that slower
            for place, source in enumerate(each_opened(sources)):
                if stopped is not None and stopped.is_set():
                    break
                sources[place] = None  # so that the object goes when the entry has been taken
                loaded[place] = self._loaded(rows[place], source)
            return loaded

        def load(place: int) -> None:
            source, sources[place] = sources[place], None
            loaded[place] = self._loaded(rows[place], source)

        for err in call_for_each(load, range(len(rows)), stopped=stopped, until_failure=True):
            raise err
        return loaded

    def _source_of(self, row: Row) -> Source | None:
        value = self._query.value_of(row)
        return None if value is None else value._source_apart()

    def _loaded(self, row: Row, source: Source | None) -> Any:
        try:
            container = None if source is None else source.container()
            if container is None or self._entry not in container:
                if container is not None and self._lacking is None:
                    self._lacking = row[:-1], list(container.names)
                return None
            blobs = container.fetched(self._entry)
        except DataStoreError as err:
            self._note(err, row)
            raise
        self._is_found = True
        piece = piece_of(container, self._entry, blobs) if self._as_arrow else None
        return self._alone(row, container, blobs) if piece is None else piece

    def alone(self, row: Row) -> Any:
        """Return what is made of a row's entry, which it has, without its `Piece`; blocks.

        Raises:
            CollectError: nothing can be made of it.
            DataStoreError: it cannot be read.
        """
        source = self._source_of(row)
        assert source is not None
        try:
            container = source.container()
        except DataStoreError as err:
            self._note(err, row)
            raise
        return self._alone(row, container)

    def _alone(self, row: Row, container: Container, blobs: list[StoredBlob] | None = None) -> Any:
        try:
            loaded = container.load(self._entry, as_arrow=self._as_arrow, blobs=blobs)
        except DataStoreError as err:
            self._note(err, row)
            raise
        try:
            return self._make(loaded, self._entry)
        except _ERRORS as err:
            raise self.refused(row, err) from err

    def _note(self, err: DataStoreError, row: Row) -> None:
        err.add_note(f"it is the value of {self._query.label(row)}")

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
