"""What INSERT, UPDATE and DELETE statements do to objects.

`effects_of` looks at a statement before it runs: it gives every value in its parameters a URL,
selects the URLs that the affected rows hold, under their locks, and refuses what cannot be
followed. No storage is touched. Once the statement has run, `Effects.settle` finds out what it
really did.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, UniqueConstraint, and_, or_
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Insert, Update, UpdateBase

from sqla_datastore.dml.parameters import MISSING, Assignments, Reservation, is_sql, items_of, take
from sqla_datastore.dml.rows import (
    CHUNK,
    AffectedRows,
    Row,
    batched,
    held_urls,
    inherited_values,
    select_rows,
    urls_of_rows,
)
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.orm.edits import RowLink
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable, holds_values
from sqla_datastore.schema.declarations import declared_table, declared_tables
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.names import Name, names_behind, names_of, row_url
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectURL, new_object_name
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

__all__ = ["Effects", "Folder", "binds_values", "effects_of", "follows"]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is to be emptied."""

    storage: Storage
    path: str


@dataclass
class Effects:
    """What one statement does to objects, once it has run.

    Attributes:
        declared: the table.
        reserved: values with a URL that the statement will put into rows.
        dropped: names that rows held and will not hold.
        sources: the primary keys of these rows, where the table has one.
        folders: folders to be emptied.
        destinations: the keys of the rows that values are meant for, where the criteria could
            find another row than a moment before.
        expected_rows: how many rows an UPDATE or DELETE has to match for all this to be true.
        upsert: asks the database what an INSERT that may meet existing rows did.
    """

    declared: DeclaredTable
    reserved: list[Reservation] = field(default_factory=list)
    dropped: list[Name] = field(default_factory=list)
    sources: dict[Name, tuple[Any, ...]] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)
    destinations: list[tuple[Reservation, tuple[Any, ...]]] = field(default_factory=list)
    expected_rows: int | None = None
    upsert: Upsert | None = None

    def drop(self, row: Row, names: Iterable[Name]) -> None:
        """Note what a row held and will not hold."""
        names = list(names)
        self.dropped += names
        if self.declared.table.primary_key:
            self.sources.update(dict.fromkeys(names, row.key(self.declared.table)))

    def settle(self, connection: Connection, rowcount: int) -> None:
        """Keep only what the statement really did. Called right after it ran.

        Args:
            connection: the connection that ran it.
            rowcount: the driver's count of matched rows, -1 where it does not know.

        Raises:
            RefusedStatementError: it put a value into several rows, or into another one, which
                nobody could foresee.
        """
        if self.upsert is not None:
            self.upsert.settle(self, connection)
        elif self.expected_rows is not None and rowcount != self.expected_rows:
            if self.reserved and rowcount > self.expected_rows:
                raise RefusedStatementError(
                    f"rows of {self.declared.table.name!r} appeared while they were updated, and one "
                    "value can be only one row's; roll the transaction back and try again"
                )
            self.keep(self.held(connection))
        if self.destinations and rowcount:
            self._refuse_strays(connection)

    def _refuse_strays(self, connection: Connection) -> None:
        """Refuse values that other rows got than those that were selected for them."""
        keys = [key for _, key in self.destinations]
        held = urls_of_rows(connection, self.declared, keys)
        if any(str(reservation.url) not in held for reservation, _ in self.destinations):
            raise RefusedStatementError(
                f"the criteria of an UPDATE of {self.declared.table.name!r} found another row than a "
                "moment before; roll the transaction back, select the row, and update it by its key"
            )

    def keep(self, held: set[str]) -> None:
        """Keep what is true where rows hold these URLs and no others of its."""
        self.reserved = [r for r in self.reserved if str(r.url) in held]
        self.dropped = [name for name in self.dropped if row_url(name) not in held]

    def held(self, connection: Connection) -> set[str]:
        """Return which of its URLs, put or dropped, rows of the table hold now."""
        urls = [str(r.url) for r in self.reserved] + [row_url(name) for name in self.dropped]
        return held_urls(connection, self.declared.plain_columns, list(dict.fromkeys(urls)))


# -- entry ---------------------------------------------------------------------------------------


def effects_of(
    connection: Connection,
    context: Any,
    *,
    flushing: bool,
    autocommit: bool,
    pending: set[int],
    superseded: Callable[[Name], bool],
) -> Effects | None:
    """Return what a compiled statement will do to objects, or None if nothing.

    Gives every `Reservation` in the context's parameters its URL. Runs SELECTs on the same
    connection for the rows that an UPDATE, DELETE or upsert will affect.

    Args:
        connection: the connection that is about to run it.
        context: its execution context, parameters bound.
        flushing: whether it runs within an ORM flush.
        autocommit: whether its objects are written before it runs, without its rows' locks.
        pending: the identities of values that have a URL already, but are not stored yet.
        superseded: whether an object lost its row in this transaction, so that it may be its
            row's again.

    Raises:
        RefusedStatementError: its effect cannot be followed.
        UnsupportedTypeError: a value cannot be encoded.
        MissingObjectError: a value to be copied has lost its object.
    """
    compiled = context.compiled
    _refuse_inner_dml(compiled)
    effects = None
    declared = follows(context)
    if declared is not None:
        _refuse_own_schemas(connection, context)
        dml = compiled.compile_state.statement
        run = _Run(connection, context, dml, declared, flushing, autocommit, pending, superseded)
        effects = run.effects()
    if binds_values(compiled):
        _refuse_elsewhere(context, effects.reserved if effects else ())
    return effects


def follows(context: Any) -> DeclaredTable | None:
    """Return what a statement's table has to do with storages, if it changes one that has."""
    if not (context.isinsert or context.isupdate or context.isdelete):
        return None
    table = context.compiled.compile_state.statement.table
    if not isinstance(table, Table):
        # a lightweight `table()`, as migrations use it, declares nothing
        return None
    # it may be an annotated copy
    return declared_table(table.metadata.tables.get(table.key, table))


def binds_values(compiled: Any) -> bool:
    """Return whether a compiled statement has parameters of the column type; kept with it."""
    known = compiled.__dict__.get("_sqla_datastore_binds")
    if known is None:
        known = any(holds_values(bind.type) for bind in compiled.bind_names)
        compiled.__dict__["_sqla_datastore_binds"] = known
    return bool(known)


def _refuse_inner_dml(compiled: Any) -> None:
    for cte in compiled.ctes or ():
        inner = getattr(cte, "element", None)
        if isinstance(inner, UpdateBase) and declared_table(inner.table) is not None:
            raise RefusedStatementError(
                f"a CTE changes table {inner.table.description!r}, which has DataStore columns; "
                "run it as a statement of its own, so that its objects can be followed"
            )


def _refuse_own_schemas(connection: Connection, context: Any) -> None:
    """Refuse a translation that only the statement has: what is asked about its rows lacks it."""
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
    if value.url is None or value._scan() or value._changed:
        raise RefusedStatementError(
            "a DataStore that is not stored can only be assigned to its column by INSERT or "
            "UPDATE; flush its row first, or use its URL"
        )
    return ObjectURL.parse(value.url)


# -- one statement -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One execution of a statement on a table with declared columns."""

    connection: Connection
    context: Any
    dml: Any
    declared: DeclaredTable
    flushing: bool
    autocommit: bool
    pending: set[int]
    superseded: Callable[[Name], bool]
    placed: set[int] = field(default_factory=set)

    @cached_property
    def assignments(self) -> Assignments:
        return Assignments(self.context, self.context.compiled, self.declared)

    @cached_property
    def affected(self) -> AffectedRows:
        criteria = tuple(self.dml._where_criteria)
        return AffectedRows(
            self.connection, self.context, self.context.compiled, criteria, self.declared
        )

    @property
    def schemas(self) -> Mapping[str | None, str | None]:
        return self.context.execution_options.get("schema_translate_map") or {}

    def effects(self) -> Effects | None:
        if isinstance(self.dml, Insert):
            return self.insert()
        if isinstance(self.dml, Update):
            columns = self.assignments.columns_set()
            return self.update(columns) if columns else None
        return self.delete()

    # -- INSERT

    def insert(self) -> Effects:
        effects = Effects(self.declared)
        if self.dml.select is not None:
            self._refuse_select()
            return effects
        rows = list(self._inserted())
        if self.dml._post_values_clause is not None or self.dml._prefixes:
            self._refuse_conflict_on_expressions()
            effects.upsert = Upsert.of(self)
        for values, reserved in rows:
            token = str(uuid.uuid4())
            for column, reservation in reserved:
                folder = self._new_folder(column, values, token)
                own = self._is_flushed(reservation.value, self._key(values))
                self._place(effects, column, reservation, folder, own=own)
            if not (effects.upsert and effects.upsert.met(values)):
                effects.folders.extend(self._owned(Row(values, {})))
        return effects

    def _refuse_conflict_on_expressions(self) -> None:
        clause = self.dml._post_values_clause
        targets = getattr(clause, "inferred_target_elements", None) or ()
        if any(not isinstance(target, (str, Column)) for target in targets):
            raise RefusedStatementError(
                f"the row that this INSERT into {self.declared.table.name!r} meets cannot be found by "
                "an expression beforehand; name columns in index_elements, or look the row up and "
                "update it"
            )

    def _refuse_select(self) -> None:
        names = {getattr(name, "key", name) for name in self.dml._select_names or ()}
        for column in self.declared.columns:
            if column.column.key in names:
                raise RefusedStatementError(
                    f"INSERT .. FROM SELECT into {column.label} would put one object into two "
                    "rows; select the rows and insert their values"
                )

    def _inserted(
        self,
    ) -> Iterator[tuple[dict[Column[Any], Any], list[tuple[DeclaredColumn, Reservation]]]]:
        """Yield what is known of each new row, and its values."""
        assignments = self.assignments
        for index, given in enumerate(self.context.compiled_parameters):
            bound = assignments.reservations(index)
            for group in range(len(assignments.groups)):
                known = self._known(group, given)
                values = inherited_values(self.connection, self.declared, known)
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

    def _place(
        self,
        effects: Effects,
        column: DeclaredColumn,
        reservation: Reservation,
        folder: str,
        *,
        own: bool,
    ) -> None:
        """Give a value its URL and encode it; a value that has a home elsewhere is copied."""
        value = reservation.value
        taken = id(value) in self.pending or id(value) in self.placed
        if taken or (value.url is not None and not own):
            value = reservation.value = value.copy()
        self.placed.add(id(value))
        reservation.storage = self.storage(column)
        reservation.plan = value._plan(column.label)
        name = new_object_name(len(reservation.plan.objects) - 1)
        url = ObjectURL(reservation.storage.scheme, f"{folder}/{name}")
        reservation.url = ObjectURL.parse(str(url))
        effects.reserved.append(reservation)

    def _is_flushed(self, value: DataStore, key: tuple[Any, ...] | None) -> bool:
        """Whether a flush puts a value into the row of this key that it belongs to.

        Not what a listener of the flush puts elsewhere, such as a history of changes.
        """
        link = value._row
        return self.flushing and isinstance(link, RowLink) and link.is_of(self.declared.table, key)

    # -- UPDATE

    def update(self, columns: list[DeclaredColumn]) -> Effects:
        effects = Effects(self.declared, expected_rows=0)
        last: dict[tuple[Any, ...], Reservation | None] = {}
        for index, rows in self.affected.by_parameters(self.declared.columns):
            # a value whose row was not found counts as one, so that `settle` asks about it
            effects.expected_rows += len(rows) or 1  # type: ignore[operator]
            bound = self.assignments.reservations(index)
            for column in columns:
                reservation = self._assign(effects, column, index, bound, rows)
                if len(rows) == 1 and self.declared.table.primary_key:
                    # the same row again: only its last value stays
                    key = (column, *rows[0].key(self.declared.table))
                    earlier = last.get(key)
                    if earlier is not None:
                        effects.reserved = [r for r in effects.reserved if r is not earlier]
                    last[key] = reservation
        return effects

    def _assign(
        self,
        effects: Effects,
        column: DeclaredColumn,
        index: int,
        bound: list[Reservation],
        rows: list[Row],
    ) -> Reservation | None:
        value = self.assignments.value(column, 0, self.context.compiled_parameters[index])
        if value is not None and len(rows) > 1:
            raise RefusedStatementError(
                f"this UPDATE would put one value of {column.label} into {len(rows)} rows; update "
                "each row with a value of its own"
            )
        row = rows[0] if rows else Row({}, {})
        reservation = take(bound, value) if value is not None else None
        key = self._key(row.values)
        by_key = self.affected.key_parameters is not None
        if reservation is not None and key is not None and not by_key:
            effects.destinations.append((reservation, key))
        # where another row could be found, a new name shows which one was
        if reservation is not None and by_key and self._keeps(reservation, row.urls.get(column)):
            return reservation
        for each in rows:
            effects.drop(each, self.names(column, each.urls[column]))
        if reservation is not None:
            self._replace(effects, column, reservation, row, index)
        return reservation

    @staticmethod
    def _keeps(reservation: Reservation, url: str | None) -> bool:
        """Whether a row already holds the value's own, unchanged object."""
        value = reservation.value
        if url is None or value.url != url or value._scan() or value._changed:
            return False
        reservation.url = ObjectURL.parse(url)
        return True

    def _replace(
        self,
        effects: Effects,
        column: DeclaredColumn,
        reservation: Reservation,
        row: Row,
        index: int,
    ) -> None:
        if self._revives(column, reservation, row):
            effects.reserved.append(reservation)
            return
        url = row.urls.get(column)
        own = url is not None and reservation.value.url == url
        own = own or self._is_flushed(reservation.value, self._key(row.values))
        values = {**row.values, **self._known(0, self.context.compiled_parameters[index])}
        folder = self._new_folder(
            column, inherited_values(self.connection, self.declared, values), str(uuid.uuid4())
        )
        self._place(effects, column, reservation, folder, own=own)

    def _new_folder(
        self, column: DeclaredColumn, values: Mapping[Column[Any], Any], token: str
    ) -> str:
        """Return where a new object goes: where its row's attributes say, not where an old one is.

        So an object that is not committed yet lies in no folder that another row's owner empties:
        that owner waits for this row's key or foreign key. Under AUTOCOMMIT nobody waits, so such
        an object goes to a folder that no other row can name.
        """
        if self.autocommit:
            key = set(self.declared.table.primary_key)
            values = {c: value for c, value in values.items() if c not in key}
        return column.folder.fresh(values, token, self.schemas)

    def _key(self, values: Mapping[Column[Any], Any]) -> tuple[Any, ...] | None:
        """Return a row's primary key, where it is known."""
        key = tuple(values.get(column) for column in self.declared.table.primary_key)
        return None if not key or None in key else key

    def _known(self, group: int, given: Mapping[str, Any]) -> dict[Column[Any], Any]:
        """Return the plain values that the statement gives to the columns that templates need."""
        found = {c: self.assignments.lookup(c, group, given) for c in self.declared.needs}
        return {c: v for c, v in found.items() if v is not MISSING and not is_sql(v)}

    def _revives(self, column: DeclaredColumn, reservation: Reservation, row: Row) -> bool:
        """Whether an unchanged value comes back to the row that it left in this transaction."""
        value = reservation.value
        if value.url is None or value._scan() or value._changed:
            return False
        url, storage = ObjectURL.parse(value.url), self.storage(column)
        flushed = self._is_flushed(value, self._key(row.values))
        near = flushed or url.folder == self.folder(column, row)
        if url.scheme != storage.scheme or not near:
            return False
        if not self.superseded(Name(storage, url.path)):
            return False
        reservation.url, reservation.storage = url, storage
        return True

    # -- DELETE

    def delete(self) -> Effects:
        effects = Effects(self.declared, expected_rows=0)
        for _, rows in self.affected.by_parameters(self.declared.columns):
            effects.expected_rows += len(rows)  # type: ignore[operator]
            for row in rows:
                for column, url in row.urls.items():
                    effects.drop(row, self.names(column, url))
                effects.folders.extend(self._owned(row))
        return effects

    # -- rows and their folders

    def storage(self, column: DeclaredColumn) -> Storage:
        """Return the storage of a declared column on this connection."""
        return storage_for(column.type.url, self.connection.dialect)

    def names(self, column: DeclaredColumn, url: str | None) -> list[Name]:
        """Return the names behind a URL; none for NULL or what the storage cannot hold."""
        return names_behind(self.storage(column), url)

    def folder(self, column: DeclaredColumn, row: Row) -> str | None:
        """Return the folder that a row's URL remembers, else what its attributes say."""
        names = self.names(column, row.urls.get(column))
        if names and "/" in names[0].path:
            return names[0].path.rpartition("/")[0]
        values = inherited_values(self.connection, self.declared, row.values)
        return column.folder.render(values, self.schemas)

    def _owned(self, row: Row) -> Iterator[Folder]:
        """Yield the folders that a row owns, and no other row can be putting an object into.

        That is the one that its attributes say: who puts something there has to wait for its key.
        One that only its URL remembers may be another row's by now, unless no key renders it.
        """
        values = inherited_values(self.connection, self.declared, row.values)
        for column in self.declared.columns:
            if column.folder.owns:
                folders = {column.folder.render(values, self.schemas)}
                remembered = self.folder(column, row)
                if remembered is not None and column.folder.is_fresh(remembered):
                    folders.add(remembered)
                for path in sorted(filter(None, folders)):
                    yield Folder(self.storage(column), path)
        owner = self.declared.class_folder
        folder = owner.render(row.values, self.schemas) if owner else None
        if folder is not None:
            yield from (Folder(storage, folder) for storage in self._all_storages())

    def _all_storages(self) -> list[Storage]:
        tables = declared_tables(self.declared.table.metadata)
        storages = [self.storage(column) for declared in tables for column in declared.columns]
        return list({id(storage): storage for storage in storages}.values())


# -- INSERT that may meet existing rows ----------------------------------------------------------


@dataclass
class Upsert:
    """The rows that an INSERT may meet, found by every unique key that its values tell.

    Attributes:
        declared: the table.
        criteria: one for each unique key of each new row.
        before: the rows that were there, by primary key.
    """

    declared: DeclaredTable
    criteria: list[Any]
    before: dict[tuple[Any, ...], Row] = field(default_factory=dict)

    @classmethod
    def of(cls, run: _Run) -> Upsert:
        """Find the rows that a statement may meet."""
        self = cls(run.declared, list(_key_criteria(run)))
        self.before = self._select(run.connection)
        return self

    def met(self, values: Mapping[Column[Any], Any]) -> bool:
        """Whether a row of this primary key was there before."""
        return tuple(values.get(c) for c in self.declared.table.primary_key) in self.before

    def settle(self, effects: Effects, connection: Connection) -> None:
        """Compare the rows before and after: what they hold now is adopted, the rest dropped."""
        before = {
            url: (row, storage_for(column.type.url, connection.dialect))
            for row in self.before.values()
            for column, url in row.urls.items()
            if url is not None
        }
        held = {u for row in self._select(connection).values() for u in row.urls.values() if u}
        # rows whose keys the values did not tell, or that got other keys, are found by their URLs
        missing = {*before, *(str(r.url) for r in effects.reserved)} - held
        held |= held_urls(connection, self.declared.plain_columns, sorted(missing))
        for url, (row, storage) in before.items():
            if url not in held:
                effects.drop(row, names_of(storage, ObjectURL.parse(url)))
        effects.reserved = [r for r in effects.reserved if str(r.url) in held]

    def _select(self, connection: Connection) -> dict[tuple[Any, ...], Row]:
        found: dict[tuple[Any, ...], Row] = {}
        for batch in batched(self.criteria, CHUNK):
            clause = or_(*batch)
            for row in select_rows(connection, self.declared, self.declared.columns, [clause]):
                found[row.key(self.declared.table)] = row
        return found


def _key_criteria(run: _Run) -> Iterator[Any]:
    unique = list(_unique_keys(run.declared.table))
    for given in run.context.compiled_parameters:
        for group in range(len(run.assignments.groups)):
            for columns in unique:
                values = [run.assignments.lookup(c, group, given) for c in columns]
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
