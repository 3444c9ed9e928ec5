"""SELECTs about rows: the URLs that they hold, as text, and what folders need of them.

A URL is selected as text because what a row held is a name to drop, not a value to load. Of a value
that lies in the row only what `head_of` returns is selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    String,
    Table,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.sql import operators

from sqla_datastore.dml.dialects import (
    batch_size,
    has_row_locks,
    locked_for_reading,
    locked_for_update,
    reads_old_rows_without_lock,
    rows_at_once,
)
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable, DeclaredType
from sqla_datastore.schema.declarations import declared_table
from sqla_datastore.storage.urls import DATA_PREFIX, HEAD_LENGTH, is_in_row

if TYPE_CHECKING:
    from sqlalchemy import FromClause
    from sqlalchemy.engine import Connection, Dialect

    from sqla_datastore.schema.folders import Schemas

OWN = "sqla_datastore_own"
"""The execution option of these SELECTs: a listener need not look at them."""

_OWN = {OWN: True}
_ASKED = "sqla_datastore_asked"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """An existing row: the values of its columns, and its URLs as text by declared column.

    `known` is what a statement has found out of it, so that it is found out once.
    """

    values: Mapping[Column[Any], Any]
    urls: Mapping[DeclaredColumn, str | None]
    known: dict[Any, Any] = field(default_factory=dict, compare=False)

    def key(self, table: Table) -> tuple[Any, ...]:
        """Return the row's primary key."""
        return tuple([self.values[column] for column in table.primary_key])


def url_text(column: Column[Any]) -> ColumnElement[str]:
    """Return what a column holds as text: a URL, or of a value in the row the head of its URL."""
    text: ColumnElement[str] = type_coerce(column, String())
    if not may_hold_values_in_rows(column):
        return text
    return case((text.startswith(DATA_PREFIX), _head(text)), else_=text)


def may_hold_values_in_rows(column: Column[Any]) -> bool:
    """Return whether a column's type keeps small values in the row."""
    return isinstance(column.type, DeclaredType) and column.type.inline_bytes > 0


def _head(text: ColumnElement[str]) -> ColumnElement[str]:
    return func.substr(text, 1, HEAD_LENGTH)


def rows_query(
    declared: DeclaredTable,
    columns: Sequence[DeclaredColumn],
    criteria: Iterable[Any],
    dialect: Dialect,
) -> Select[Any]:
    """Return the SELECT of rows with the raw text of their URLs, locked for update.

    It costs more to build than to run, so it is kept where it is needed again.
    """
    query = (
        select(*declared.needs, *(url_text(c.column).label(None) for c in columns))
        .select_from(declared.table)
        .where(*criteria)
    )
    return locked_for_update(query, declared.table, dialect)


def select_rows(
    connection: Connection,
    declared: DeclaredTable,
    columns: Sequence[DeclaredColumn],
    query: Select[Any],
    parameters: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Select rows of a table by what `rows_query` returned."""
    needs = declared.needs
    if not needs and not columns:
        return []
    rows = [
        Row(
            dict(zip(needs, found[: len(needs)], strict=True)),
            dict(zip(columns, found[len(needs) :], strict=True)),
        )
        for found in connection.execute(query, parameters, execution_options=_OWN)
    ]
    if not declared.table.primary_key:
        return rows
    # criteria that join another table can find a row several times
    return list({row.key(declared.table): row for row in rows}.values())


def held_urls(
    connection: Connection,
    columns: Iterable[Column[Any]],
    urls: Sequence[str],
    *,
    locked: bool = False,
    schemas: Schemas | None = None,
) -> set[str]:
    """Return those of the URLs that rows hold.

    Args:
        connection: asks in its transaction.
        columns: columns with URLs, of tables that are there.
        urls: as the columns hold them; of values in rows the heads.
        locked: lock the rows that are found, so that one that another transaction is changing is
            waited for. On MySQL a locking read also sees what others committed since this
            transaction's snapshot; on PostgreSQL it does not.
        schemas: a ``schema_translate_map``, by default the connection's own.
    """
    options = {**_OWN, **in_schemas(schemas)}
    held: set[str] = set()
    locked = locked and has_row_locks(connection.dialect)
    for column in columns:
        in_rows = [url for url in urls if is_in_row(url)]
        # apart: what cuts the text off would keep the others from an index
        for asked, heads in ((in_rows, True), ([url for url in urls if not is_in_row(url)], False)):
            if heads and not may_hold_values_in_rows(column):
                continue
            query = _held_query(column, heads=heads, locked=locked)
            for batch in batched(asked, batch_size(connection.dialect)):
                held.update(connection.scalars(query, {_ASKED: batch}, execution_options=options))
    return held


def _held_query(column: Column[Any], *, heads: bool, locked: bool) -> Select[Any]:
    def build() -> Select[Any]:
        text: ColumnElement[str] = type_coerce(column, String())
        if heads:
            text = _head(text)
        return select(text).where(text.in_(bindparam(_ASKED, expanding=True)))

    declared = declared_table(column.table)
    kept = {} if declared is None else declared.queries
    return _built_once(kept, ("by url", column, heads), build, table=column.table, locked=locked)


def _built_once(
    kept: dict[Any, Select[Any]],
    key: Any,
    build: Callable[[], Select[Any]],
    *,
    table: FromClause,
    locked: bool,
) -> Select[Any]:
    """Return a SELECT that is kept, with a share lock or without; built at the first time."""
    query = kept.get((key, locked))
    if query is None:
        query = locked_for_reading(build(), table) if locked else build()
        kept[key, locked] = query
    return query


def urls_of_rows(
    connection: Connection,
    declared: DeclaredTable,
    keys: Iterable[tuple[Any, ...]],
    *,
    schemas: Schemas | None = None,
    columns: Sequence[Column[Any]] | None = None,
) -> set[str]:
    """Return the URLs that rows of a table hold.

    Args:
        connection: asks in its transaction.
        declared: the table, which has a primary key.
        keys: the rows' primary keys; rows that are gone hold none.
        schemas: as for `held_urls`.
        columns: the columns to look at, by default all that are declared.
    """
    options = {**_OWN, **in_schemas(schemas)}
    columns = declared.plain_columns if columns is None else columns
    key = list(declared.table.primary_key)
    # the rows were selected for update, which sees what others have committed since the snapshot;
    # without a lock MySQL would read a row that was then left alone from before
    locked = reads_old_rows_without_lock(connection.dialect)
    held: set[str] = set()
    # SQLite takes 1,000 levels of an expression, and keys of several columns are joined by OR
    size = batch_size(connection.dialect) if len(key) == 1 else rows_at_once(len(key))
    for batch in batched(list(keys), size):
        query, parameters = _of_keys(declared, columns, batch, locked=locked)
        for urls in connection.execute(query, parameters, execution_options=options):
            held.update(url for url in urls if url is not None)
    return held


def _of_keys(
    declared: DeclaredTable,
    columns: Sequence[Column[Any]],
    keys: Sequence[tuple[Any, ...]],
    *,
    locked: bool,
) -> tuple[Select[Any], dict[str, Any]]:
    criterion, parameters = any_key(list(declared.table.primary_key), keys)

    def build() -> Select[Any]:
        texts: list[Any] = [url_text(column).label(None) for column in columns]
        return select(*texts).where(criterion)

    # keys of several columns are written into the criterion
    kept = declared.queries if parameters else {}
    query = _built_once(kept, ("by key", *columns), build, table=declared.table, locked=locked)
    return query, parameters


def lengths_in_rows(
    connection: Connection, declared: DeclaredTable, heads: Sequence[str]
) -> Iterator[tuple[str, str, int]]:
    """Yield the column, the head and the length in characters of values that lie in rows.

    Args:
        connection: asks in its transaction.
        declared: the table.
        heads: what tells the values from others.
    """
    for column in filter(may_hold_values_in_rows, declared.plain_columns):
        text: ColumnElement[str] = type_coerce(column, String())
        query = select(_head(text), func.char_length(text))
        for batch in batched(heads, batch_size(connection.dialect)):
            found = query.where(_head(text).in_(batch))
            for head, length in connection.execute(found, execution_options=_OWN):
                yield column.name, head, length


def in_schemas(schemas: Schemas | None) -> dict[str, Any]:
    """Return the execution options for a ``schema_translate_map``, if there is one."""
    return {"schema_translate_map": schemas} if schemas else {}


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield slices of a sequence."""
    return (items[start : start + size] for start in range(0, len(items), size))


def inherited_values(
    connection: Connection, declared: DeclaredTable, values: Mapping[Column[Any], Any]
) -> dict[Column[Any], Any]:
    """Return a row's values and what templates need of the tables that its table inherits from."""
    complete = dict(values)
    for column in declared.inherited_needs:
        # the other row is there: the ORM inserts it before this one, and deletes it after this one
        link = _inherited_key(declared.table, column.table)
        if link and all(values.get(own) is not None for own in link):
            criteria = [other == values[own] for own, other in link.items()]
            complete[column] = connection.scalar(
                select(column).where(*criteria), execution_options=_OWN
            )
    return complete


def _inherited_key(table: Table, base: Any) -> dict[Column[Any], Column[Any]]:
    """Return how a table's key points at the key of a table that it inherits from."""
    link: dict[Column[Any], Column[Any]] = {}
    for own in table.primary_key:
        for key in own.foreign_keys:
            if key.column.table is base:
                link[own] = key.column
            elif key.column.table is not table:
                above = _inherited_key(key.column.table, base)
                link |= {own: above[key.column]} if key.column in above else {}
    return link


def any_key(
    columns: list[Column[Any]], keys: Sequence[tuple[Any, ...]]
) -> tuple[Any, dict[str, Any]]:
    """Return the criterion that the columns have one of the keys, and its parameters.

    That of a single column is the same for any keys.
    """
    if len(columns) == 1:
        criterion = columns[0].in_(bindparam(_ASKED, expanding=True))
        return criterion, {_ASKED: [key[0] for key in keys]}
    return or_(*(and_(*map(operators.eq, columns, key)) for key in keys)), {}
