"""The rows that an UPDATE or DELETE is about to affect, selected under their locks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TupleType

from sqla_datastore.dml.dialects import rows_at_once
from sqla_datastore.dml.row_queries import Row, any_key, batched, rows_query, select_rows
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema import sqlalchemy_compat
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable

if TYPE_CHECKING:
    from sqlalchemy import Select
    from sqlalchemy.engine import Connection
    from sqlalchemy.sql.compiler import SQLCompiler

    from sqla_datastore.dml.concern import RowsQueries


@dataclass(frozen=True)
class AffectedRows:
    """Finds the rows that an UPDATE or DELETE is about to affect.

    Args:
        connection: the connection that is about to run it.
        context: its execution context.
        compiled: the compiled statement, perhaps cached and first run with other parameters.
        criterion: its WHERE criterion, or None.
        declared: its table.
        queries: the SELECTs that were built for it, by the columns whose URLs they tell.
    """

    connection: Connection
    context: Any
    compiled: SQLCompiler
    criterion: Any
    declared: DeclaredTable
    queries: RowsQueries

    def by_parameters(self, columns: Sequence[DeclaredColumn]) -> Iterator[tuple[int, list[Row]]]:
        """Select the rows, locked; yield them with the index of the set of parameters.

        Args:
            columns: the declared columns whose URLs are wanted.
        """
        given = self.context.compiled_parameters
        keys = self.key_parameters
        # a flush of many rows can come as such an executemany: one SELECT serves many of them
        if keys is not None and len(given) > 1:
            yield from self._by_keys(columns, keys)
            return
        for index in range(len(given)):
            rows = self._of(columns, index)
            if not rows and keys is not None:
                # a SELECT that waited for a row that was deleted and inserted again returns
                # nothing; the next one under READ COMMITTED sees the new row, as the statement will
                rows = self._of(columns, index)
            yield index, rows

    def _of(self, columns: Sequence[DeclaredColumn], index: int) -> list[Row]:
        """Select the rows that one set of parameters affects."""
        query, binds = self._query(columns)
        parameters = {name: self._value_of(bind, index) for name, bind in binds.items()}
        return select_rows(self.connection, self.declared, columns, query, parameters)

    def _query(
        self, columns: Sequence[DeclaredColumn]
    ) -> tuple[Select[Any], dict[str, BindParameter[Any]]]:
        """Return the SELECT by the statement's criteria, and its parameters: kept with it."""
        kept = self.queries.get(tuple(columns))
        if kept is None:
            binds: dict[str, BindParameter[Any]] = {}
            criteria = [_with_own_names(each, binds) for each in _conjuncts(self.criterion)]
            query = rows_query(self.declared, columns, criteria, self.connection.dialect)
            kept = self.queries[tuple(columns)] = query, binds
        return kept

    def _by_keys(
        self, columns: Sequence[DeclaredColumn], keys: dict[Column[Any], str]
    ) -> Iterator[tuple[int, list[Row]]]:
        """Select the rows of an executemany by their keys, many at once."""
        given = self.context.compiled_parameters
        wanted = [tuple(parameters[name] for name in keys.values()) for parameters in given]
        found: dict[tuple[Any, ...], Row] = {}
        for batch in batched(wanted, rows_at_once(len(keys))):
            clause, asked = any_key(list(keys), batch)
            query = rows_query(self.declared, columns, [clause], self.connection.dialect)
            for row in select_rows(self.connection, self.declared, columns, query, asked):
                found[row.key(self.declared.table)] = row
        for index, key in enumerate(wanted):
            # the database may compare keys by a collation, or by another type
            yield index, [found[key]] if key in found else self._of(columns, index)

    @cached_property
    def key_parameters(self) -> dict[Column[Any], str] | None:
        """The parameter of each key column, where the criteria compare plain columns."""
        table = self.declared.table
        names: dict[Column[Any], str] = {}
        for clause in _conjuncts(self.criterion):
            if not (isinstance(clause, BinaryExpression) and clause.operator is operators.eq):
                return None
            # by key, since criteria of the ORM name annotated copies of the table's columns
            column = table.c.get(getattr(clause.left, "key", ""))
            if column is None or clause.left.table is not table:
                # another table's column, of an UPDATE .. FROM, tells nothing of this one's key
                return None
            if not isinstance(clause.right, BindParameter):
                return None
            names[column] = self.compiled.bind_names.get(clause.right, clause.right.key)
        if not table.primary_key or any(column not in names for column in table.primary_key):
            return None
        return {column: names[column] for column in table.primary_key}

    def _value_of(self, element: BindParameter[Any], index: int) -> Any:
        name = self.compiled.bind_names.get(element, element.key)
        given = self.context.compiled_parameters[index]
        if name in given:
            return given[name]
        # an expanding parameter: SQLAlchemy has replaced it by one parameter for each element
        expanded = sqlalchemy_compat.expanded_parameters(self.context, name)
        if expanded is not None:
            values = [given[part] for part in expanded]
            if not isinstance(element.type, TupleType):
                return values
            # of an IN of tuples the names are flat
            width = len(element.type.types)
            return [tuple(values[at : at + width]) for at in range(0, len(values), width)]
        if element.literal_execute and not element.unique:
            raise RefusedStatementError(
                f"the parameter {element.key!r} is written into the statement (literal_execute), "
                "so the rows that it affects cannot be found beforehand; give it as an ordinary "
                "parameter"
            )
        # what is the statement's own, and was compiled into it
        return sqlalchemy_compat.constructed_parameters(self.context)[name]


def _with_own_names(criterion: Any, binds: dict[str, BindParameter[Any]]) -> Any:
    """Return a criterion whose parameters are given by name, and note which they stand for.

    SQLAlchemy caches the statement, whose parameters keep the values of the execution that compiled
    it.
    """

    def rename(element: Any, **_: Any) -> Any:
        if not isinstance(element, BindParameter):
            return None
        name = f"sqla_datastore_{len(binds)}"
        binds[name] = element
        return BindParameter(
            name,
            type_=element.type,
            # without it the list of an IN would be bound as one value
            expanding=element.expanding,
            literal_execute=element.literal_execute,
        )

    return replacement_traverse(criterion, {}, rename)


def _conjuncts(criterion: Any) -> Iterator[Any]:
    """Yield the criteria that AND joins, none for a statement without WHERE."""
    if isinstance(criterion, BooleanClauseList) and criterion.operator is operators.and_:
        for each in criterion.clauses:
            yield from _conjuncts(each)
    elif criterion is not None:
        yield criterion
