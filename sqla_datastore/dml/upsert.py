"""The existing rows that an INSERT may meet: ON CONFLICT, ON DUPLICATE KEY, OR REPLACE, IGNORE.

They are selected beforehand by every unique key that the new values tell. Whichever branch of the
statement runs for them, the question before COMMIT finds out what they hold then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, UniqueConstraint, and_, or_
from sqlalchemy.sql import operators

from sqla_datastore.dml.parameters import MISSING, Assignments
from sqla_datastore.dml.row_queries import CHUNK, Row, batched, select_rows
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredTable
from sqla_datastore.schema.sqlalchemy_compat import conflict_clause, is_sql

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def refuse_expressions(insert: Any) -> None:
    """Refuse an upsert whose existing rows cannot be found beforehand.

    Raises:
        RefusedStatementError: it meets rows by an expression.
    """
    targets = getattr(conflict_clause(insert), "inferred_target_elements", None) or ()
    if any(not isinstance(target, (str, Column)) for target in targets):
        raise RefusedStatementError(
            f"the row that this INSERT into {insert.table.name!r} meets cannot be found by an "
            "expression beforehand; name columns in index_elements, or look the row up and update "
            "it"
        )


def rows_met(
    connection: Connection, declared: DeclaredTable, assignments: Assignments
) -> dict[tuple[Any, ...], Row]:
    """Select the existing rows that an INSERT may meet, locked, by their primary keys."""
    found: dict[tuple[Any, ...], Row] = {}
    for batch in batched(list(_key_criteria(declared, assignments)), CHUNK):
        for row in select_rows(connection, declared, declared.columns, [or_(*batch)]):
            found[row.key(declared.table)] = row
    return found


def _key_criteria(declared: DeclaredTable, assignments: Assignments) -> Iterator[Any]:
    """Yield a criterion for each unique key of each new row."""
    unique = list(_unique_keys(declared.table))
    for given in assignments.context.compiled_parameters:
        for group in range(len(assignments.groups)):
            for columns in unique:
                values = [assignments.lookup(c, group, given) for c in columns]
                if not any(v is MISSING or v is None or is_sql(v) for v in values):
                    yield and_(*map(operators.eq, columns, values))


def _unique_keys(table: Table) -> Iterator[list[Column[Any]]]:
    if table.primary_key:
        yield list(table.primary_key)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield list(constraint.columns)
    for index in table.indexes:
        if index.unique and all(isinstance(c, Column) for c in index.expressions):
            yield [c for c in index.expressions if isinstance(c, Column)]
