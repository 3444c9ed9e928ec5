"""What an INSERT does to objects."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Column
from typing_extensions import override

from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.parameters import Reservation, take
from sqla_datastore.dml.queries import Row
from sqla_datastore.dml.statement import Statement
from sqla_datastore.dml.upsert import may_meet_rows, refuse_expressions, rows_met
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredColumn
from sqla_datastore.schema.sqlalchemy_compat import selected_names


class InsertStatement(Statement):
    """One execution of an INSERT, which may meet existing rows."""

    @override
    def effects(self) -> Effects:
        effects = Effects(self.declared)
        if self.dml.select is not None:
            self._refuse_select()
            return effects
        rows = list(self._rows())
        met = self._meet(effects) if may_meet_rows(self.dml) else {}
        for values, reserved in rows:
            token = str(uuid.uuid4())
            for column, reservation in reserved:
                own = self.is_flushed(reservation.value, self.key(values))
                self.place(effects, column, reservation, values, token, own=own)
            if self.key(values) not in met:
                effects.folders.extend(self.owned_folders(Row(values, {})))
        return effects

    def _meet(self, effects: Effects) -> Mapping[Any, Row]:
        """Note what the rows that the INSERT may meet could lose; return them by their keys."""
        refuse_expressions(self.dml)
        effects.is_certain = False
        met = rows_met(self.connection, self.declared, self.assignments)
        for row in met.values():
            for column, url in row.urls.items():
                effects.drop(row, self.names(column, url))
        return met

    def _refuse_select(self) -> None:
        names = selected_names(self.dml)
        for column in self.declared.columns:
            if column.column.key in names:
                raise RefusedStatementError(
                    f"INSERT .. FROM SELECT into {column.label} would put one object into two "
                    "rows; select the rows and insert their values"
                )

    def _rows(
        self,
    ) -> Iterator[tuple[dict[Column[Any], Any], list[tuple[DeclaredColumn, Reservation]]]]:
        """Yield what is known of each new row, and its values."""
        for index, given in enumerate(self.context.compiled_parameters):
            bound = self.assignments.reservations(index)
            for group in range(len(self.assignments.groups)):
                values = self.inherited(self.known(group, given))
                yield values, list(self._reserved(bound, group, given))

    def _reserved(
        self, bound: list[Reservation], group: int, given: Mapping[str, Any]
    ) -> Iterator[tuple[DeclaredColumn, Reservation]]:
        for column in self.declared.columns:
            value = self.assignments.value(column, group, given)
            if value is not None:
                reservation = take(bound, value)
                if self.assignments.is_default(column.column, group):
                    # a default may be one value for all rows, so none of them may have it
                    reservation.value = reservation.value.copy()
                yield column, reservation
