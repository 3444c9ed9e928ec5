"""The existing rows that an INSERT may meet: ON CONFLICT, ON DUPLICATE KEY, OR REPLACE, IGNORE.

They are selected before and after by every unique key that the new values tell. The difference says
which branch of the statement ran for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, UniqueConstraint, and_, or_
from sqlalchemy.sql import operators

from sqla_datastore.dml.dialects import rows_at_once
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.parameters import MISSING, Assignments
from sqla_datastore.dml.row_queries import Row, batched, held_urls, rows_query, select_rows
from sqla_datastore.dml.statement import Statement
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredTable
from sqla_datastore.schema.sqlalchemy_compat import conflict_targets, is_sql

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def refuse_expressions(insert: Any) -> None:
    """Refuse an upsert whose existing rows cannot be found beforehand.

    Raises:
        RefusedStatementError: it meets rows by an expression.
    """
    targets = conflict_targets(insert)
    if any(not isinstance(target, (str, Column)) for target in targets):
        raise RefusedStatementError(
            f"the row that this INSERT into {insert.table.name!r} meets cannot be found by an "
            "expression beforehand; name columns in index_elements, or look the row up and update "
            "it"
        )


@dataclass
class RowsMet:
    """The existing rows that an INSERT may meet.

    Attributes:
        statement: the INSERT.
        criteria: one for each unique key of each new row.
        before: the rows that were there, locked, by their primary keys, or numbered without one.
    """

    statement: Statement
    criteria: list[Any]
    before: dict[tuple[Any, ...], Row]

    @classmethod
    def find(cls, statement: Statement) -> RowsMet:
        """Select the rows that an INSERT may meet; called before it runs."""
        self = cls(statement, list(_key_criteria(statement.declared, statement.assignments)), {})
        self.before = self._select(statement.connection)
        return self

    def settle(self, effects: Effects, connection: Connection) -> None:
        """Compare the rows before and after: what they lost is dropped, what none got is not kept.

        Asked right after the statement, so that what no row got need not be written at all.
        """
        held = {
            url for row in self._select(connection).values() for url in row.urls.values() if url
        }
        before = {url for row in self.before.values() for url in row.urls.values() if url}
        # rows whose keys the values did not tell, or that got other keys, are found by their URLs
        missing = {*before, *(each.url_in_row_queries for each in effects.reserved)} - held
        held |= held_urls(connection, effects.declared.plain_columns, sorted(missing))
        self._drop(effects, held)
        lost = [each for each in effects.reserved if each.url_in_row_queries not in held]
        effects.discard(lost)

    def drop_all(self, effects: Effects) -> None:
        """Note that all rows that it may meet may have lost what they held."""
        self._drop(effects, set())

    def _drop(self, effects: Effects, held: set[str]) -> None:
        for row in self.before.values():
            for column, url in row.urls.items():
                if url not in held:
                    self.statement.drop(effects, column, row)

    def _widest_key(self) -> int:
        return max(map(len, _unique_keys(self.statement.declared.table)), default=1)

    def _select(self, connection: Connection) -> dict[tuple[Any, ...], Row]:
        declared = self.statement.declared
        # in chunks: one long OR would be deeper than the 1,000 levels that SQLite takes
        found: dict[tuple[Any, ...], Row] = {}
        for batch in batched(self.criteria, rows_at_once(self._widest_key())):
            query = rows_query(declared, declared.columns, [or_(*batch)], connection.dialect)
            for row in select_rows(connection, declared, declared.columns, query):
                # without a primary key a row counts for each batch that finds it: no harm
                found[row.key(declared.table) or (len(found),)] = row
        return found


def _key_criteria(declared: DeclaredTable, assignments: Assignments) -> Iterator[Any]:
    """Yield a criterion for each unique key of each new row."""
    unique = list(_unique_keys(declared.table))
    for given in assignments.context.compiled_parameters:
        for group in range(len(assignments.rows)):
            for columns in unique:
                values = [assignments.lookup(c, group, given) for c in columns]
                # NULL meets no row, unless a key says NULLS NOT DISTINCT; and what the database
                # makes is not known yet. A row that is missed leaves an orphan at worst
                if not any(v is MISSING or v is None or is_sql(v) for v in values):
                    yield and_(*map(operators.eq, columns, values))


def _unique_keys(table: Table) -> Iterator[list[Column[Any]]]:
    if table.primary_key:
        yield list(table.primary_key)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield list(constraint.columns)
    for index in table.indexes:
        # what an index over an expression holds is the database's to compute
        if index.unique and all(isinstance(c, Column) for c in index.expressions):
            yield [c for c in index.expressions if isinstance(c, Column)]
