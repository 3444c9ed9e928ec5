"""The calls that collect: into one table, batch by batch, or into one array.

They import what they need when they are called: their names are public, and importing those costs
nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from sqlalchemy import Connection, Select
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    from sqla_datastore.tables.pages import Missing, PageReader
    from sqla_datastore.tables.row_query import Attribute


def collect(
    session: Session | scoped_session[Any] | Connection,
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    *,
    columns: Sequence[Attribute] | None = None,
    missing: Missing = "skip",
    schema: pa.Schema | None = None,
) -> pa.Table:
    """Return one entry of many rows as one Arrow table.

    ::

        metrics = collect(session, select(Run).where(Run.ok), Run.data, "metrics")

    An entry is a frame or table, whose rows stand below those of the row before; or a scalar, a
    dict of scalars or a NumPy array, which is one row. Entries may lack columns of others, which
    are null then, and have types that Arrow casts without loss. Blocks; reads this entry alone, of
    several rows at the same time. No row is loaded into the Session: what is not flushed is, as
    before any query.

    Args:
        session: where the rows are selected.
        statement: a SELECT; says which rows and in which order. What it selects of them does not
            matter.
        attribute: the column of values, for example ``Run.data``.
        entry: the entry's name.
        columns: columns of the rows that come first in the table, repeated for each row of their
            entry; ``Run.rate.label("lr")`` under another name. By default the primary key.
        missing: ``"skip"`` leaves out rows that lack the entry or have no value, ``"null"`` gives
            each of them one row of nulls.
        schema: the columns of the entry and their types, to which all are cast. Others are left
            out. By default those that suit all entries.

    Returns:
        The attached columns, and those of the entry. Without metadata; NaN of frames is null.

    Raises:
        CollectError: the entries make no table, for example as their types do not agree; names the
            row. Or no row has the entry, of those that have a value, and neither `schema` nor
            ``missing="null"`` says that this may be.
        TypeError: the statement is no SELECT, `attribute` no column of values, or `session`
            nothing that executes it, or only in coroutines.
        MissingObjectError: an object is not there; a note names the row.
        DataStoreError: it cannot be read.
    """
    from sqla_datastore.tables import gathering

    reader = _reader(statement, attribute, entry, columns, missing, schema)
    gathered = gathering.Gathered(reader, schema)
    for page in gathering.read(session, reader.query, reader.read):
        gathered.add(page)
    return gathered.table()


def collect_batches(
    session: Session | scoped_session[Any] | Connection,
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    *,
    columns: Sequence[Attribute] | None = None,
    missing: Missing = "skip",
    schema: pa.Schema | None = None,
    batch_rows: int = 256,
) -> pa.RecordBatchReader:
    """Do what `collect` does batch by batch, for more than fits the memory.

    The rows are selected at once, and take about half a kilobyte each. The entries of the first
    ones are read at once, too: they make the schema where none is given. What comes later has to
    fit it, and may lack columns. Then the Session is not needed any more, and any thread may read.

    Args:
        session: as for `collect`.
        statement: as for `collect`.
        attribute: as for `collect`.
        entry: as for `collect`.
        columns: as for `collect`.
        missing: as for `collect`.
        schema: as for `collect`.
        batch_rows: how many rows' entries are in memory at the same time.

    Returns:
        A reader, which iterates over record batches, and which DuckDB and others read by
        themselves. Reading it raises what `collect` raises.

    Raises:
        Exception: as for `collect`.
    """
    from sqla_datastore.tables import gathering

    reader = _reader(statement, attribute, entry, columns, missing, schema)
    stream = gathering.Stream(reader, schema)
    return stream.reader(gathering.read(session, reader.query, reader.read, batch_rows))


async def acollect(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    *,
    columns: Sequence[Attribute] | None = None,
    missing: Missing = "skip",
    schema: pa.Schema | None = None,
) -> pa.Table:
    """As `collect`; files are read in threads, and the event loop goes on meanwhile."""
    from sqla_datastore.tables import gathering

    reader = _reader(statement, attribute, entry, columns, missing, schema)
    gathered = gathering.Gathered(reader, schema)
    async for page in gathering.aread(session, reader.query, reader.read):
        gathered.add(page)
    return gathered.table()


async def acollect_batches(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    *,
    columns: Sequence[Attribute] | None = None,
    missing: Missing = "skip",
    schema: pa.Schema | None = None,
    batch_rows: int = 256,
) -> AsyncIterator[pa.RecordBatch]:
    """As `collect_batches`, for ``async for``: yields record batches of one schema."""
    from sqla_datastore.tables import gathering

    reader = _reader(statement, attribute, entry, columns, missing, schema)
    stream = gathering.Stream(reader, schema)
    async for page in gathering.aread(session, reader.query, reader.read, batch_rows):
        for batch in stream.batches(page):
            yield batch
    for batch in stream.rest():
        yield batch


def collect_array(
    session: Session | scoped_session[Any] | Connection,
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    *,
    columns: Sequence[Attribute] | None = None,
) -> tuple[np.ndarray[Any, Any], pa.Table]:
    """Return one array of many rows as one NumPy array, and the rows that it is of.

    ::

        weights, rows = collect_array(session, select(Run), Run.data, "weights")

    Blocks; rows that lack the entry are left out. Otherwise as `collect`.

    Args:
        session: as for `collect`.
        statement: as for `collect`.
        attribute: as for `collect`.
        entry: the entry's name; NumPy arrays of one shape, or numbers.
        columns: as for `collect`.

    Returns:
        The array: its first axis is the rows, the others are those of the entry. And a table with
        the attached columns of these rows, in the same order.

    Raises:
        CollectError: an entry is no array, or of another shape; names the row. Or no row has the
            entry, of those that have a value.
        TypeError: the statement is no SELECT, `attribute` no column of values, or `session`
            nothing that executes it, or only in coroutines.
        MissingObjectError: an object is not there; a note names the row.
        DataStoreError: it cannot be read.
    """
    from sqla_datastore.tables import gathering
    from sqla_datastore.tables.stacking import Stack

    stack = Stack(statement, attribute, entry, columns)
    for found in gathering.read(session, stack.query, stack.read):
        stack.add(found)
    return stack.array()


async def acollect_array(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    *,
    columns: Sequence[Attribute] | None = None,
) -> tuple[np.ndarray[Any, Any], pa.Table]:
    """As `collect_array`; files are read in threads, and the event loop goes on meanwhile."""
    from sqla_datastore.tables import gathering
    from sqla_datastore.tables.stacking import Stack

    stack = Stack(statement, attribute, entry, columns)
    async for found in gathering.aread(session, stack.query, stack.read):
        stack.add(found)
    return stack.array()


def _reader(
    statement: Select[Any],
    attribute: Attribute,
    entry: str,
    columns: Sequence[Attribute] | None,
    missing: Missing,
    schema: pa.Schema | None,
) -> PageReader:
    from sqla_datastore.tables.pages import PageReader
    from sqla_datastore.tables.row_query import RowQuery

    return PageReader(RowQuery.of(statement, attribute, columns), entry, missing, schema)
