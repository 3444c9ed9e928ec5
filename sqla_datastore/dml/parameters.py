"""What a compiled statement assigns to columns, whichever way its parameters were given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column
from sqlalchemy.sql.elements import BindParameter, Null

from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable, holds_values
from sqla_datastore.schema.declarations import declared_table
from sqla_datastore.schema.sqlalchemy_compat import (
    assigned,
    defaulted_keys,
    is_sql,
    parameter_names,
)

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

MISSING: Any = object()
"""A column that the statement does not assign a parameter to."""


def items_of(parameters: Any) -> Iterable[Any]:
    """Return the values of one set of bound parameters, positional or by name."""
    return parameters.values() if isinstance(parameters, Mapping) else parameters


@dataclass(frozen=True)
class Assignments:
    """The VALUES or SET of a statement.

    Args:
        context: the execution context, parameters bound.
        compiled: the compiled statement.
        declared: its table.
    """

    context: Any
    compiled: SQLCompiler
    declared: DeclaredTable

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The assignments by column key; one dict for each row of a multi-row VALUES."""
        return [
            {getattr(key, "key", key): value for key, value in group.items()}
            for group in self._assigned
        ]

    @cached_property
    def _assigned(self) -> list[dict[Any, Any]]:
        return assigned(self.compiled)

    def lookup(self, column: Column[Any], group: int, given: Mapping[str, Any]) -> Any:
        """Return what a row gets for a column: a value, an SQL expression, or `MISSING`.

        Args:
            column: a column of the table.
            group: which row of a multi-row VALUES, else 0.
            given: the set of parameters, unprocessed, by SQLAlchemy's names.
        """
        said = self.rows[group].get(column.key, MISSING)
        if said is not MISSING and is_sql(said) and not isinstance(said, BindParameter):
            return said
        names = self._candidates(column, group)
        return next((given[name] for name in names if name in given), MISSING)

    def _candidates(self, column: Column[Any], group: int) -> list[str]:
        """Return the names that a row's parameter for a column may have, the likeliest first."""
        said = self.rows[group].get(column.key)
        names = self._names(column, group)
        if isinstance(said, BindParameter):
            # `bindparam("new")` bears the caller's name, and not the column's
            names = [self.compiled.bind_names.get(said, said.key), *names]
        return names

    def beyond_rows(self, given: Mapping[str, Any]) -> list[Any]:
        """Return what is bound to the column type outside of VALUES, in order; NULL is None.

        Args:
            given: the set of parameters, unprocessed, by SQLAlchemy's names.
        """
        of_rows = {
            name
            for group in range(len(self.rows))
            for column in self.declared.columns
            for name in self._candidates(column.column, group)
        }
        names = self.compiled.bind_names
        return [
            given[name]
            for bind, name in names.items()
            if holds_values(bind.type) and name not in of_rows
        ]

    def _names(self, column: Column[Any], group: int) -> list[str]:
        return parameter_names(column, group, len(self.rows))

    def value(
        self, column: DeclaredColumn, group: int, given: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return the value, or plain mapping, that a row gets for a declared column, or None.

        Raises:
            RefusedStatementError: it gets something that is neither.
        """
        raw = self.lookup(column.column, group, given)
        if isinstance(raw, Mapping):
            return raw
        if raw is None or raw is MISSING or isinstance(raw, Null):
            return None
        raise RefusedStatementError(
            f"{column.label} can only be set to a DataStore or None, not to {raw!r:.80}; for a URL "
            "use DataStore.from_url(url), which stores a copy"
        )

    def is_default(self, column: Column[Any], group: int) -> bool:
        """Return whether a row gets what the column's default made, perhaps for every row."""
        return bool(self._defaults) and not self._defaults.isdisjoint(self._names(column, group))

    @cached_property
    def _defaults(self) -> set[str]:
        """The names of the parameters that defaults made."""
        return defaulted_keys(self.compiled)

    def reservations(self, index: int) -> list[Reservation]:
        """Return the values bound in one set of parameters, in order."""
        bound = items_of(self.context.parameters[index])
        return [item for item in bound if isinstance(item, Reservation)]

    def columns_set(self) -> list[DeclaredColumn]:
        """Return the declared columns that an UPDATE assigns.

        Raises:
            RefusedStatementError: it also assigns a declared column of another table.
        """
        self._refuse_other_tables()
        # SET is what values(), the parameters of execute() and `onupdate` say together
        keys = {*self.rows[0], *(self.compiled.column_keys or ())}
        keys |= {column.key for column in self.compiled.update_prefetch}
        return [column for column in self.declared.columns if column.column.key in keys]

    def _refuse_other_tables(self) -> None:
        # MySQL and MariaDB can update several tables by one statement
        for key in self._assigned[0]:
            table = getattr(key, "table", None)
            if table is None or table == self.declared.table:
                continue
            other = declared_table(table)
            if other and any(column.column is key for column in other.columns):
                raise RefusedStatementError(
                    f"this UPDATE of {self.declared.table.name!r} also sets {key}; update that "
                    "table in a statement of its own"
                )
