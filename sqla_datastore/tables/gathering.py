"""Pages are read one after the other, and become one table or a stream of batches."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from sqla_datastore.exceptions import CollectError
from sqla_datastore.storage.off_loop import in_thread, off_loop
from sqla_datastore.tables.pages import OTHER_TYPE, Page, PageReader
from sqla_datastore.tables.row_query import Row, RowQuery
from sqla_datastore.tables.schemas import Agreement, merged

_ROWS = 256
"""Whose entries are read before they are put together."""

T = TypeVar("T")
Read: TypeAlias = Callable[[Sequence[Row], threading.Event], T]


class Gathered:
    """Pages that become one table at the end.

    Args:
        reader: has read them.
        schema: of the entries, where the user gives it.
    """

    def __init__(self, reader: PageReader, schema: Any) -> None:
        self._reader = reader
        self._agreement = Agreement(reader.entry, schema)
        self._rows = reader.empty().attached.schema
        self._pages: list[Page] = []

    def add(self, page: Page) -> None:
        """Take in a page; raises `CollectError` where it does not agree with those before."""
        self._agreement.add(page.forms)
        try:
            self._rows = merged(self._rows, page.attached.schema)
        except pa.ArrowException as err:
            raise CollectError(f"{err}; {OTHER_TYPE}") from err
        self._pages.append(page)

    def table(self) -> Any:
        """Return the table; raises `CollectError` where no row has the entry."""
        if self._agreement.schema is None:
            self._reader.check_found()
        return pa.concat_tables(self.tables(self._pages or [self._reader.empty()]))

    def tables(self, pages: list[Page]) -> list[Any]:
        """Return pages as tables of the schema that is known."""
        return [self._reader.whole(page, self._rows, self._agreement.schema) for page in pages]


class Stream(Gathered):
    """Pages that become batches of one schema, as soon as one is known."""

    @property
    def schema(self) -> Any:
        """The schema of the batches, attached columns included, as far as it is known."""
        return self.tables([self._reader.empty()])[0].schema

    @property
    def is_known(self) -> bool:
        """Whether the schema is known."""
        return self._agreement.schema is not None

    def batches(self, page: Page) -> list[Any]:
        """Return the batches of a page and of those that waited for a schema, once it is known.

        Raises:
            CollectError: the page does not fit the schema.
        """
        if self._agreement.is_fixed:
            self._agreement.add(page.forms)
            self._pages.append(page)
        else:
            self.add(page)
        return self.rest() if self.is_known else []

    def rest(self) -> list[Any]:
        """Return the batches of the pages that are waiting; no other schema comes after this.

        Raises:
            CollectError: no row has the entry.
        """
        if not self.is_known:
            self._reader.check_found()
        self._agreement.is_fixed = True
        pages, self._pages = self._pages, []
        return [batch for table in self.tables(pages) for batch in table.to_batches()]

    def reader(self, pages: Iterator[Page]) -> Any:
        """Return the `pyarrow.RecordBatchReader` of all pages; reads until the schema is known."""
        first = []
        for page in pages:
            first += self.batches(page)
            if self.is_known:
                break
        else:
            first += self.rest()

        def batches() -> Iterator[Any]:
            while first:
                yield first.pop(0)
            for page in pages:
                yield from self.batches(page)

        return pa.RecordBatchReader.from_batches(self.schema, batches())


def read(session: Any, query: RowQuery, call: Read[T], rows: int = _ROWS) -> Iterator[T]:
    """Select rows at once, and yield later what a call reads of some of them at a time.

    Rows are short, and entries are not. So no cursor stays open, and whoever reads the stream may
    do so in another thread than the one that the Session belongs to, as DuckDB does.

    Args:
        session: a Session or a Connection.
        query: what is selected.
        call: reads; blocks.
        rows: how many at a time.

    Raises:
        TypeError: the session is asynchronous, or no session.
    """
    _check_session(session, is_awaited=False)
    found = _some(session.execute(query.statement).all(), rows)
    return (off_loop(partial(call, each, stopped), stopped) for each, stopped in found)


async def aread(
    session: Any, query: RowQuery, call: Read[T], rows: int = _ROWS
) -> AsyncIterator[T]:
    """As `read`, for asynchronous sessions and connections."""
    _check_session(session, is_awaited=True)
    for each, stopped in _some((await session.execute(query.statement)).all(), rows):
        yield await in_thread(partial(call, each, stopped), stopped)


def _check_session(session: Any, *, is_awaited: bool) -> None:
    execute = getattr(session, "execute", None)
    if execute is None or iscoroutinefunction(execute) is not is_awaited:
        needed = "an AsyncSession or AsyncConnection" if is_awaited else "a Session or Connection"
        names = "collect, collect_array and collect_batches"
        others = names if is_awaited else names.replace("collect", "acollect")
        raise TypeError(
            f"{needed} is needed here, not {type(session).__name__!r}; {others} take the others"
        )


def _some(rows: Sequence[Row], count: int) -> Iterator[tuple[list[Row], threading.Event]]:
    """Yield some rows at a time, and forget them: their values hold what was loaded.

    Each with an event, to end early where a task of an event loop is cancelled.
    """
    if count < 1:
        raise ValueError(f"batch_rows is 1 or more, not {count!r}")
    left = [*rows]
    left.reverse()
    del rows
    while left:
        yield [left.pop() for _ in range(min(count, len(left)))], threading.Event()
