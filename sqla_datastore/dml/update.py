"""What an UPDATE does to objects."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from typing_extensions import override

from sqla_datastore.dml.affected import AffectedRows
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.parameters import Reservation, take
from sqla_datastore.dml.queries import Row
from sqla_datastore.dml.statement import Statement
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredColumn
from sqla_datastore.storage.names import Name
from sqla_datastore.storage.urls import ObjectURL


@dataclass(frozen=True)
class UpdateStatement(Statement):
    """One execution of an UPDATE, perhaps with many sets of parameters."""

    _latest: dict[tuple[Any, ...], Reservation | None] = field(default_factory=dict)

    @cached_property
    def affected(self) -> AffectedRows:
        """The rows that it will find."""
        return AffectedRows(
            self.connection,
            self.context,
            self.context.compiled,
            self.dml.whereclause,
            self.declared,
        )

    @override
    def effects(self) -> Effects | None:
        columns = self.assignments.columns_set()
        if not columns:
            return None
        effects = Effects(self.declared, found_rows=0)
        for index, rows in self.affected.by_parameters(self.declared.columns):
            effects.found_rows += len(rows)  # type: ignore[operator]
            effects.lone_values += not rows
            bound = self.assignments.reservations(index)
            for column in columns:
                reservation = self._assign(effects, column, index, bound, rows)
                self._forget_earlier(effects, column, reservation, rows)
        return effects

    def _forget_earlier(
        self,
        effects: Effects,
        column: DeclaredColumn,
        reservation: Reservation | None,
        rows: list[Row],
    ) -> None:
        """Keep only the latest value of a row that an executemany meets several times."""
        if len(rows) == 1 and self.declared.table.primary_key:
            key = (column, *rows[0].key(self.declared.table))
            earlier = self._latest.get(key)
            if earlier is not None:
                effects.reserved = [r for r in effects.reserved if r is not earlier]
            self._latest[key] = reservation

    def _assign(
        self,
        effects: Effects,
        column: DeclaredColumn,
        index: int,
        bound: list[Reservation],
        rows: list[Row],
    ) -> Reservation | None:
        """Find out what one set of parameters does to one column of the rows that it finds."""
        value = self.assignments.value(column, 0, self.context.compiled_parameters[index])
        if value is not None and len(rows) > 1:
            raise RefusedStatementError(
                f"this UPDATE would put one value of {column.label} into {len(rows)} rows; update "
                "each row with a value of its own"
            )
        row = rows[0] if rows else Row({}, {})
        reservation = take(bound, value) if value is not None else None
        by_key = self.affected.key_parameters is not None
        if reservation is not None and not by_key:
            # the criteria could find another row than a moment before
            effects.is_certain = False
        # where another row could be found, a new name shows which one was
        if reservation is not None and by_key and _keeps(reservation, row.urls.get(column)):
            return reservation
        for each in rows:
            effects.drop(each, self.names(column, each.urls[column]))
        if reservation is not None:
            self._replace(effects, column, reservation, row, index)
        return reservation

    def _replace(
        self,
        effects: Effects,
        column: DeclaredColumn,
        reservation: Reservation,
        row: Row,
        index: int,
    ) -> None:
        if self._revives(column, reservation, row):
            effects.reserve(reservation, self.key(row.values))
            return
        url = row.urls.get(column)
        own = url is not None and reservation.value.url == url
        own = own or self.is_flushed(reservation.value, self.key(row.values))
        values = {**row.values, **self.known(0, self.context.compiled_parameters[index])}
        token = str(uuid.uuid4())
        self.place(effects, column, reservation, self.inherited(values), token, own=own)

    def _revives(self, column: DeclaredColumn, reservation: Reservation, row: Row) -> bool:
        """Whether an unchanged value comes back to the row that it left in this transaction."""
        unchanged = reservation.value._unchanged_url()
        if unchanged is None:
            return False
        url, storage = ObjectURL.parse(unchanged), self.storage(column)
        flushed = self.is_flushed(reservation.value, self.key(row.values))
        near = flushed or url.folder == self.folder(column, row)
        if url.scheme != storage.scheme or not near:
            return False
        if not self.around.superseded(Name(storage, url.path)):
            return False
        reservation.url, reservation.storage = url, storage
        return True


def _keeps(reservation: Reservation, url: str | None) -> bool:
    """Whether a row already holds the value's own, unchanged object."""
    if url is None or reservation.value.url != url or reservation.value._unchanged_url() is None:
        return False
    reservation.url = ObjectURL.parse(url)
    return True
