"""Pages are read one after the other, and become one table or a stream of batches."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from sqla_datastore.storage.off_loop import in_thread, off_loop
from sqla_datastore.tables.pages import Page, PageReader
from sqla_datastore.tables.row_query import Row, RowQuery
from sqla_datastore.tables.schemas import Agreement

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
        self._pages: list[Page] = []

    def add(self, page: Page) -> None:
        """Take in a page; raises `CollectError` where it does not agree with those before."""
        self._agreement.add(page.forms)
        self._pages.append(page)

    def table(self) -> Any:
        """Return the table."""
        pages, schema = self._pages or [self._reader.empty()], self._agreement.schema
        return pa.concat_tables([self._reader.whole(page, schema) for page in pages])


class Stream:
    """Pages that become batches of one schema, as soon as one is known.

    Args:
        reader: has read them.
        schema: of the entries, where the user gives it.
    """

    def __init__(self, reader: PageReader, schema: Any) -> None:
        self._reader = reader
        self._agreement = Agreement(reader.entry, schema)
        self._waiting: list[Page] = []

    @property
    def schema(self) -> Any:
        """The schema of the batches, attached columns included, as far as it is known."""
        return self._reader.whole(self._reader.empty(), self._agreement.schema).schema

    @property
    def is_known(self) -> bool:
        """Whether the schema is known."""
        return self._agreement.schema is not None

    def batches(self, page: Page) -> list[Any]:
        """Return the batches of a page and of those that waited for a schema, once it is known.

        Raises:
            CollectError: the page does not fit the schema.
        """
        self._agreement.add(page.forms)
        self._waiting.append(page)
        return self.rest() if self.is_known else []

    def rest(self) -> list[Any]:
        """Return the batches of the pages that are waiting; no other schema comes after this."""
        self._agreement.is_fixed = True
        pages, self._waiting = self._waiting, []
        tables = (self._reader.whole(page, self._agreement.schema) for page in pages)
        return [batch for table in tables for batch in table.to_batches() if batch.num_rows]

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


def read(session: Any, query: RowQuery, call: Read[T], rows: int) -> Iterator[T]:
    """Select some rows at a time, and yield what a call reads of them.

    Args:
        session: a Session or a Connection.
        query: what is selected.
        call: reads; blocks.
        rows: how many at a time.
    """
    result = session.execute(query.statement, execution_options={"yield_per": rows})
    try:
        for found in result.partitions(rows):
            # an event, to end early where a task of an asynchronous engine is cancelled
            stopped = threading.Event()
            yield off_loop(partial(call, found, stopped), stopped)
    finally:
        result.close()


async def aread(session: Any, query: RowQuery, call: Read[T], rows: int) -> AsyncIterator[T]:
    """As `read`, for asynchronous sessions and connections."""
    result = await session.stream(query.statement, execution_options={"yield_per": rows})
    try:
        async for found in result.partitions(rows):
            stopped = threading.Event()
            yield await in_thread(partial(call, found, stopped), stopped)
    finally:
        await result.close()
