"""The rows that a statement affects: selected in the same transaction, under their locks.

URLs are selected as text: what a row held is a name to drop, not a value to load.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, String, Table, and_, or_, select, type_coerce
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList
from sqlalchemy.sql.visitors import replacement_traverse

from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.sql.compiler import SQLCompiler

    from sqla_datastore.schema.folders import Schemas

__all__ = [
    "AffectedRows",
    "Row",
    "batch_size",
    "batched",
    "held_urls",
    "in_schemas",
    "inherited_values",
    "select_rows",
    "urls_of_rows",
]

CHUNK = 500
"""Rows asked for in one SELECT; older SQLite versions take 999 parameters at most."""

_BATCHES = {"postgresql": 10_000, "mysql": 10_000, "mariadb": 10_000, "sqlite": 10_000}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """An existing row: the values of its columns, and its URLs as text by declared column."""

    values: Mapping[Column[Any], Any]
    urls: Mapping[DeclaredColumn, str | None]

    def key(self, table: Table) -> tuple[Any, ...]:
        """Return the row's primary key."""
        return tuple(self.values[column] for column in table.primary_key)


def select_rows(
    connection: Connection,
    declared: DeclaredTable,
    columns: Sequence[DeclaredColumn],
    criteria: Iterable[Any],
) -> list[Row]:
    """Select rows of a table with the raw text of their URLs, locked for update."""
    needs = declared.needs
    if not needs and not columns:
        return []
    query = (
        select(*needs, *(type_coerce(c.column, String()).label(None) for c in columns))
        .select_from(declared.table)
        .where(*criteria)
        .with_for_update(of=declared.table)
    )
    rows = [
        Row(
            dict(zip(needs, found[: len(needs)], strict=True)),
            dict(zip(columns, found[len(needs) :], strict=True)),
        )
        for found in connection.execute(query)
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
        urls: as the columns hold them.
        locked: lock the rows that are found, so that one that another transaction is changing is
            waited for. On MySQL a locking read also sees what others committed since this
            transaction's snapshot; on PostgreSQL it does not.
        schemas: a ``schema_translate_map``, by default the connection's own.
    """
    options = in_schemas(schemas)
    held: set[str] = set()
    for column in columns:
        text = type_coerce(column, String())
        for batch in batched(urls, batch_size(connection.dialect)):
            query = select(text).where(text.in_(batch))
            if locked:
                query = query.with_for_update(read=True)
            held.update(connection.scalars(query, execution_options=options))
    return held


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
    options = in_schemas(schemas)
    columns = declared.plain_columns if columns is None else columns
    texts = [type_coerce(column, String()).label(None) for column in columns]
    key = list(declared.table.primary_key)
    held: set[str] = set()
    size = batch_size(connection.dialect) if len(key) == 1 else CHUNK
    for batch in batched(list(keys), size):
        query = select(*texts).where(_any_key(key, batch))
        for urls in connection.execute(query, execution_options=options):
            held.update(url for url in urls if url is not None)
    return held


def in_schemas(schemas: Schemas | None) -> dict[str, Any]:
    """Return the execution options for a ``schema_translate_map``, if there is one."""
    return {"schema_translate_map": schemas} if schemas else {}


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield slices of a sequence."""
    return (items[start : start + size] for start in range(0, len(items), size))


def batch_size(dialect: Dialect) -> int:
    """Return how many URLs one SELECT asks for: without an index each reads the whole table."""
    if dialect.name == "sqlite" and sqlite3.sqlite_version_info < (3, 32):
        return CHUNK
    return _BATCHES.get(dialect.name, CHUNK)


def inherited_values(
    connection: Connection, declared: DeclaredTable, values: Mapping[Column[Any], Any]
) -> dict[Column[Any], Any]:
    """Return a row's values and what templates need of the tables that its table inherits from."""
    complete = dict(values)
    for column in declared.inherited_needs:
        link = _inherited_key(declared.table, column.table)
        if link and all(values.get(own) is not None for own in link):
            criteria = [other == values[own] for own, other in link.items()]
            complete[column] = connection.scalar(select(column).where(*criteria))
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


@dataclass(frozen=True)
class AffectedRows:
    """Finds the rows that an UPDATE or DELETE is about to affect.

    Args:
        connection: the connection that is about to run it.
        context: its execution context.
        compiled: the compiled statement, perhaps cached and first run with other parameters.
        criteria: its WHERE criteria.
        declared: its table.
    """

    connection: Connection
    context: Any
    compiled: SQLCompiler
    criteria: tuple[Any, ...]
    declared: DeclaredTable

    def by_parameters(self, columns: Sequence[DeclaredColumn]) -> Iterator[tuple[int, list[Row]]]:
        """Select the rows, locked; yield them with the index of the set of parameters.

        Args:
            columns: the declared columns whose URLs are wanted.
        """
        given = self.context.compiled_parameters
        keys = self.key_parameters
        if keys is not None and len(given) > 1:
            yield from self._by_keys(columns, keys)
            return
        for index in range(len(given)):
            rows = self._of(columns, index)
            if not rows and keys is not None:
                # one that waited for a row that was deleted and made anew saw neither; the next
                # SELECT under READ COMMITTED sees what the statement will see
                rows = self._of(columns, index)
            yield index, rows

    def _of(self, columns: Sequence[DeclaredColumn], index: int) -> list[Row]:
        """Select the rows that one set of parameters affects."""
        criteria = [self._filled(criterion, index) for criterion in self.criteria]
        return select_rows(self.connection, self.declared, columns, criteria)

    def _by_keys(
        self, columns: Sequence[DeclaredColumn], keys: dict[Column[Any], str]
    ) -> Iterator[tuple[int, list[Row]]]:
        """Select the rows of an executemany by their keys, many at once."""
        given = self.context.compiled_parameters
        wanted = [tuple(parameters[name] for name in keys.values()) for parameters in given]
        found: dict[tuple[Any, ...], Row] = {}
        for batch in batched(wanted, CHUNK):
            clause = _any_key(list(keys), batch)
            for row in select_rows(self.connection, self.declared, columns, [clause]):
                found[row.key(self.declared.table)] = row
        for index, key in enumerate(wanted):
            # a key may equal the row's only in the eyes of the database (collation, type)
            yield index, [found[key]] if key in found else self._of(columns, index)

    @cached_property
    def key_parameters(self) -> dict[Column[Any], str] | None:
        """The parameter of each key column, where the criteria compare plain columns."""
        table = self.declared.table
        names: dict[Column[Any], str] = {}
        for clause in _conjuncts(self.criteria):
            if not (isinstance(clause, BinaryExpression) and clause.operator is operators.eq):
                return None
            column = table.c.get(getattr(clause.left, "key", ""))
            if column is None or not isinstance(clause.right, BindParameter):
                return None
            names[column] = self.compiled.bind_names.get(clause.right, clause.right.key)
        if not table.primary_key or any(column not in names for column in table.primary_key):
            return None
        return {column: names[column] for column in table.primary_key}

    def _filled(self, criterion: Any, index: int) -> Any:
        """Return a criterion with this execution's values in place of its parameters."""

        def fill(element: Any, **_: Any) -> Any:
            if not isinstance(element, BindParameter):
                return None
            return BindParameter(
                None,
                self._value_of(element, index),
                type_=element.type,
                unique=True,
                expanding=element.expanding,
                literal_execute=element.literal_execute,
            )

        return replacement_traverse(criterion, {}, fill)

    def _value_of(self, element: BindParameter[Any], index: int) -> Any:
        name = self.compiled.bind_names.get(element, element.key)
        given = self.context.compiled_parameters[index]
        if name in given:
            return given[name]
        # an expanding parameter: SQLAlchemy has replaced it by one parameter for each element
        expanded = getattr(self.context, "_expanded_parameters", {}).get(name)
        if expanded is not None and not getattr(element.type, "_is_tuple_type", False):
            return [given[part] for part in expanded]
        extracted = self.context.extracted_parameters
        return self.compiled.construct_params(extracted_parameters=extracted, _check=False)[name]


def _conjuncts(criteria: Iterable[Any]) -> Iterator[Any]:
    for criterion in criteria:
        if isinstance(criterion, BooleanClauseList) and criterion.operator is operators.and_:
            yield from _conjuncts(criterion.clauses)
        else:
            yield criterion


def _any_key(columns: list[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Any:
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return or_(*(and_(*map(operators.eq, columns, key)) for key in keys))
