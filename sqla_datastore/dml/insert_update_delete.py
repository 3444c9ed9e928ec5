"""What INSERT, UPDATE and DELETE do to objects; `effects_of` is the entry to this room."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column
from typing_extensions import override

from sqla_datastore.dml.affected_rows import AffectedRows
from sqla_datastore.dml.concern import Concern, concern_of
from sqla_datastore.dml.dialects import refuse_without_transactions
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.parameters import items_of
from sqla_datastore.dml.reservation import Reservation, take
from sqla_datastore.dml.row_queries import Row
from sqla_datastore.dml.statement import Statement, TransactionView
from sqla_datastore.dml.upsert import RowsMet, refuse_expressions
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredColumn
from sqla_datastore.schema.sqlalchemy_compat import (
    conflict_keys,
    may_meet_rows,
    selected_names,
    statement_of,
)
from sqla_datastore.storage.urls import ObjectName, ObjectURL, head_of, is_in_row
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


IN_ROW_COMPARED = (
    "a DataStore that lies in its row has no URL that other rows could be compared with; compare "
    "the primary key, or ask whether there is one: column.is_(None)"
)


def effects_of(
    connection: Connection,
    context: Any,
    concern: Concern,
    transaction: TransactionView,
) -> Effects | None:
    """Return what a compiled statement will do to objects, or None if nothing.

    Gives every `Reservation` in the context's parameters its URL. Runs SELECTs on the same
    connection for the rows that an UPDATE, DELETE or upsert will affect.

    Args:
        connection: the connection that is about to run it.
        context: its execution context, parameters bound.
        concern: what it has to do with storages.
        transaction: what the statement needs of its transaction.

    Raises:
        RefusedStatementError: its effect cannot be followed.
        UnsupportedTypeError: a value cannot be encoded.
        MissingObjectError: a value to be copied has lost its object.
    """
    # in any statement: on PostgreSQL even the CTE of a SELECT can change rows
    if concern.inner is not None:
        raise RefusedStatementError(
            f"a CTE changes table {concern.inner!r}, which has DataStore columns; run it as a "
            "statement of its own, so that its objects can be followed"
        )
    effects = None
    if concern.declared is not None:
        refuse_without_transactions(connection.dialect)
        _refuse_own_schemas(connection, context)
        effects = _statement(connection, context, concern, transaction).effects()
    if concern.binds_values:
        _refuse_elsewhere(context, effects.reserved if effects else ())
    return effects


def stands_for_urls(context: Any) -> bool:
    """Return whether a SELECT of our own compares with values; each gets the URL it stands for.

    Raises:
        RefusedStatementError: a value that is not stored stands for none.
    """
    concern = concern_of(context.compiled)
    if concern is None or not concern.binds_values:
        return False
    _refuse_elsewhere(context, ())
    return True


def _statement(
    connection: Connection, context: Any, concern: Concern, transaction: TransactionView
) -> Statement:
    kind: type[Statement] = DeleteStatement
    if context.isinsert:
        kind = InsertStatement
    elif context.isupdate:
        kind = UpdateStatement
    return kind(connection, context, statement_of(context.compiled), concern, transaction)


def _refuse_own_schemas(connection: Connection, context: Any) -> None:
    """Refuse a translation of the statement alone: our SELECTs would run without it."""
    name = "schema_translate_map"
    if context.execution_options.get(name) != connection.get_execution_options().get(name):
        raise RefusedStatementError(
            "a schema_translate_map of one statement is not followed; give it to the engine or the "
            "connection: engine.execution_options(schema_translate_map=...)"
        )


def _refuse_elsewhere(context: Any, placed: Sequence[Reservation]) -> None:
    """Refuse values anywhere but in VALUES and SET; a stored one stands for its URL."""
    known = {id(reservation) for reservation in placed}
    for parameters in context.parameters:
        for item in items_of(parameters):
            for each in item if isinstance(item, (list, tuple)) else (item,):
                if isinstance(each, Reservation) and id(each) not in known and each.url is None:
                    each.url = _comparable(each.value)


def _comparable(value: DataStore) -> ObjectURL:
    url = value._unchanged_url()
    if url is None:
        raise RefusedStatementError(
            "a DataStore that is not stored can only be assigned to its column by INSERT or "
            "UPDATE; flush its row first, or use its URL"
        )
    if is_in_row(url):
        raise RefusedStatementError(IN_ROW_COMPARED)
    return ObjectURL.parse(url)


# -- the three statements --------------------------------------------------------------------------


@dataclass(frozen=True)
class InsertStatement(Statement):
    """One execution of an INSERT, which may meet existing rows."""

    _left_over: list[Reservation] = field(default_factory=list)

    @override
    def effects(self) -> Effects:
        effects = Effects(self.declared)
        if self.dml.select is not None:
            self._refuse_select()
            return effects
        rows = list(self._rows())
        met: Mapping[Any, Row] = {}
        if may_meet_rows(self.dml):
            refuse_expressions(self.dml)
            upsert = effects.upsert = RowsMet.find(self)
            met = upsert.before
        for values, reserved in rows:
            token = str(uuid.uuid4())
            for column, reservation in reserved:
                own = self.is_flushed(reservation.value, self.key(values))
                self.place(effects, column, reservation, values, token, own=own)
            # what lies in the folder of a row that was there is its own, and is dropped by name
            if self.key(values) not in met:
                effects.folders.extend(self.owned_folders(Row(values, {})))
        if effects.upsert is not None:
            self._place_conflict_values(effects, met)
        return effects

    def _place_conflict_values(self, effects: Effects, met: Mapping[Any, Row]) -> None:
        """Give the values that the conflict clause sets their URLs; one value is for one row."""
        declared = {column.column.key: column for column in self.declared.columns}
        columns = [declared[key] for key in conflict_keys(self.dml) if key in declared]
        bound = self.assignments.beyond_rows(self.context.compiled_parameters[0])
        if len(bound) != len(columns):
            raise RefusedStatementError(
                f"the conflict clause of this INSERT into {self.declared.table.name!r} compares "
                "with a DataStore; compare with a URL string"
            )
        row = next(iter(met.values()), Row({}, {}))
        # a column that is set to None has no reservation, so these are not paired by position
        for column, value in zip(columns, bound, strict=True):
            if value is None:
                continue
            reservation = take(self._left_over, value)
            # rows of one VALUES may meet each other, too
            if max(len(met), len(self.context.parameters), len(self.assignments.rows)) > 1:
                raise RefusedStatementError(
                    f"the conflict clause of this INSERT would put one value of {column.label} "
                    "into several rows; set it from the new row (excluded, inserted), or run the "
                    "statement for each row"
                )
            self.place(effects, column, reservation, row.values, str(uuid.uuid4()), own=False)

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
            for group in range(len(self.assignments.rows)):
                values = self.inherited(self.known(group, given))
                yield values, list(self._reserved(bound, group, given))
            self._left_over.extend(bound)

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


@dataclass(frozen=True)
class _Matching(Statement):
    """One execution of a statement that matches rows by its criteria."""

    @cached_property
    def affected(self) -> AffectedRows:
        """The rows that it will find."""
        return AffectedRows(
            self.connection,
            self.context,
            self.context.compiled,
            self.dml.whereclause,
            self.declared,
            self.concern.queries,
        )


@dataclass(frozen=True)
class UpdateStatement(_Matching):
    """One execution of an UPDATE, perhaps with many sets of parameters."""

    @override
    def effects(self) -> Effects | None:
        columns = self.assignments.columns_set()
        if not columns:
            return None
        effects = Effects(self.declared)
        met: set[tuple[Any, ...]] = set()
        for index, rows in self.affected.by_parameters(self.declared.columns):
            effects.find(rows)
            effects.values_without_row += not rows
            bound = self.assignments.reservations(index)
            for column in columns:
                self._assign(effects, column, index, bound, rows)
            keys = {row.key(self.declared.table) for row in rows}
            if met & keys:
                # the later value stays only if its execution still matches the row
                effects.is_certain = False
            met |= keys
        return effects

    def _assign(
        self,
        effects: Effects,
        column: DeclaredColumn,
        index: int,
        bound: list[Reservation],
        rows: list[Row],
    ) -> None:
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
            # the criteria may match another row than was found a moment before
            effects.is_certain = effects.is_by_key = False
        # where the criteria may match another row, only a fresh name tells which row got it
        if reservation is not None and by_key and _keeps(reservation, row.urls.get(column)):
            return
        for each in rows:
            self.drop(effects, column, each)
        if reservation is not None:
            self._replace(effects, column, reservation, row, index)

    def _replace(
        self,
        effects: Effects,
        column: DeclaredColumn,
        reservation: Reservation,
        row: Row,
        index: int,
    ) -> None:
        if self._may_return(column, reservation, row):
            effects.reserve(reservation, self.key(row.values))
            return
        # the row's own value that was edited, and what a flush puts into the row that it belongs
        # to, need no copy; any other stored value is some other row's
        url = row.urls.get(column)
        held = reservation.value.url
        own = url is not None and held is not None and head_of(held) == url
        own = own or self.is_flushed(reservation.value, self.key(row.values))
        # SET comes last: the object goes where the row will be, perhaps to another parent
        values = {**row.values, **self.known(0, self.context.compiled_parameters[index])}
        token = str(uuid.uuid4())
        self.place(effects, column, reservation, self.inherited(values), token, own=own)

    def _may_return(self, column: DeclaredColumn, reservation: Reservation, row: Row) -> bool:
        """Whether the row may hold its earlier, unchanged object again."""
        unchanged = reservation.value._unchanged_url()
        if unchanged is None:
            return False
        if is_in_row(unchanged):
            return False
        url, storage = ObjectURL.parse(unchanged), self.storage(column)
        flushed = self.is_flushed(reservation.value, self.key(row.values))
        is_its_own = flushed or url.folder == self.folder(column, row)
        if url.scheme != storage.scheme or not is_its_own:
            return False
        # what this transaction superseded is there until COMMIT; anything else may be gone
        if not self.transaction.superseded(ObjectName(storage, url.path)):
            return False
        reservation.place(storage, url)
        return True


def _keeps(reservation: Reservation, url: str | None) -> bool:
    """Whether a row already holds the value's own, unchanged object."""
    own = reservation.value.url
    if own is None or head_of(own) != url or reservation.value._unchanged_url() is None:
        return False
    reservation.url = ObjectURL.parse(own)
    return True


class DeleteStatement(_Matching):
    """One execution of a DELETE: the rows' objects go, and the folders that they own."""

    @override
    def effects(self) -> Effects:
        effects = Effects(self.declared)
        for _, rows in self.affected.by_parameters(self.declared.columns):
            effects.find(rows)
            for row in rows:
                for column in row.urls:
                    # it may lie outside the folder: of an older template, or in a parent's
                    self.drop(effects, column, row)
                effects.folders.extend(self.owned_folders(row))
        return effects
