"""Convert a column's data into another column of the same rows, batch by batch.

`conversion_operations` is built on it. It imports no Alembic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    CHAR,
    Column,
    MetaData,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    types,
    update,
)

from sqla_datastore.dml.dialects import locked_for_update
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.printable import printable
from sqla_datastore.schema.columns import is_declared
from sqla_datastore.schema.declarations import declared_table
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.sql.elements import ColumnElement
    from sqlalchemy.types import TypeEngine

    from sqla_datastore.maintenance.progress import Progress

BATCH_SIZE = 50
"""Rows that are read, converted and written together."""

_LOG_SECONDS = 5.0

# a name below "alembic", since the alembic.ini that `alembic init` writes shows those loggers
_log = logging.getLogger("alembic.runtime.sqla_datastore")


def convert_column(
    connection: Connection,
    table: Table,
    source: str,
    target: str,
    convert: Callable[[Any], Any],
    *,
    batch_size: int = BATCH_SIZE,
    commit: Callable[[], object] | None = None,
) -> int:
    """Fill a column with what another one holds, converted, wherever it is still NULL.

    Rows are read by primary key, `batch_size` at a time, so that memory holds one batch. Objects
    of a `DataStoreType` column follow the connection's transaction like those of any UPDATE. Rows
    that are filled already are left alone: after a failure, run it again. Reports its progress
    with a bar where tqdm is installed and stderr is a terminal, with log lines otherwise.

    Args:
        connection: runs the statements; blocks until all rows are done.
        table: with the types of both columns, for example from `reflected_table`.
        source: the column to read.
        target: the column to fill.
        convert: turns one value into the other, for a `DataStoreType` column into a mapping or a
            `DataStore`; None leaves the row as it is.
        batch_size: rows in one batch.
        commit: called after each batch, for example ``connection.commit``; by default all rows
            belong to the transaction that is open.

    Returns:
        The number of rows that were filled.

    Raises:
        ConfigurationError: the table has no primary key.
        UnsupportedTypeError: `convert` returned no mapping, or an entry cannot be stored.
        Exception: whatever `convert` raises, with a note that names the row.
    """
    keys = list(table.primary_key)
    if not keys:
        raise ConfigurationError(f"table {table.name!r} has no primary key to find its rows by")
    pending = and_(table.c[source].is_not(None), table.c[target].is_(None))
    query = select(*keys, table.c[source]).where(pending).order_by(*keys).limit(batch_size)
    statement = (
        update(table)
        .where(*(key == bindparam(f"key_{i}") for i, key in enumerate(keys)))
        .values({target: bindparam("converted", type_=table.c[target].type)})
    )
    total = connection.scalar(select(func.count()).select_from(table).where(pending)) or 0
    what = f"{table.name}.{source}"
    filled = done = 0
    page = query
    with _shown_progress() as progress:
        progress(what, done, total)
        # locked: what another transaction sets in the source meanwhile would be lost
        while rows := connection.execute(locked_for_update(page, table, connection.dialect)).all():
            given = list(_parameters(rows, convert, table.c[source], table.c[target]))
            if given:
                connection.execute(statement, given)
            # behind the last key: a row that `convert` leaves as it is would come again and again
            page = query.where(_after(keys, rows[-1][:-1]))
            filled += len(given)
            done += len(rows)
            progress(what, done, total)
            if commit is not None:
                # filled rows are not pending any more, so that a second run goes on from here
                commit()
    return filled


def _parameters(
    rows: Sequence[Any], convert: Callable[[Any], Any], source: Column[Any], target: Column[Any]
) -> Iterator[dict[str, Any]]:
    for *key, value in rows:
        try:
            converted = convert(value)
            # now, so that the error names the row, and not only at the statement
            if is_declared(target):
                converted = DataStore.coerce(source.name, converted)
        except Exception as err:
            note = f"while converting {source} of the row with the key {tuple(key)!r}"
            err.add_note(printable(note))
            raise
        if converted is not None:
            yield {"converted": converted} | {f"key_{i}": part for i, part in enumerate(key)}


def _after(keys: Sequence[Column[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    """Return the criterion of rows behind a key, without tuples: not every database has them."""
    return or_(
        *(
            and_(*(a == b for a, b in zip(keys[:i], last, strict=False)), keys[i] > last[i])
            for i in range(len(keys))
        )
    )


def reflected_table(
    connection: Connection,
    name: str,
    column_types: Mapping[str, TypeEngine[Any] | type[TypeEngine[Any]]],
    *,
    schema: str | None = None,
) -> Table:
    """Return a table as the database has it, with the types that reflection cannot tell.

    Args:
        connection: to reflect it from.
        name: the table.
        column_types: types by column: `DataStoreType`, and for example `Uuid`, which SQLite and
            MySQL keep as ``CHAR(32)``.
        schema: the table's schema, or None for the default one.

    Returns:
        A `Table` in a `MetaData` of its own.

    Raises:
        ConfigurationError: a folder needs a column of type ``CHAR(32)``, which could hold the key
            of an ORM class as a `Uuid`; its type has to be given.
        sqlalchemy.exc.NoSuchTableError: there is no such table.
        KeyError: it has no column that `column_types` names.
    """
    # a migration must not depend on the models, which may be newer than the database
    table = Table(name, MetaData(), schema=schema, autoload_with=connection, resolve_fks=False)
    for column, type_ in column_types.items():
        table.c[column].type = types.to_instance(type_)
    declared = declared_table(table)
    for folder in [column.folder for column in declared.columns] if declared else []:
        for needed in folder.needs:
            if needed.name not in column_types and _could_be_uuid(needed.type):
                raise ConfigurationError(
                    f"folder={folder.template!r} needs {name}.{needed.name}, which is a CHAR(32); "
                    f"say what it holds: column_types={{{needed.name!r}: sa.Uuid()}} or sa.CHAR(32)"
                )
    return table


def _could_be_uuid(type_: TypeEngine[Any]) -> bool:
    return isinstance(type_, CHAR) and type_.length == 32


@contextmanager
def _shown_progress() -> Iterator[Progress]:
    # imported late, since Alembic loads this module whatever it is going to do
    from sqla_datastore.maintenance.progress import ProgressLines, bars_or_lines

    lines = ProgressLines(_log_rows, every_seconds=_LOG_SECONDS, shows_end=True)
    with bars_or_lines(lines, unit="row") as progress:
        yield progress


def _log_rows(what: str, done: int, total: int | None, _seconds: float) -> None:
    _log.info("%s: %s of %s rows converted", printable(what), f"{done:,}", f"{total:,}")
