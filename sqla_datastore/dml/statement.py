"""One execution of a statement on a table with declared columns: what INSERT, UPDATE, DELETE share.

Each of the three finds out, before it runs, what it will do to objects. Every value in its
parameters gets a URL, and the URLs that affected rows hold are selected, under the rows' locks. No
storage is touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column

from sqla_datastore.dml.concern import Concern
from sqla_datastore.dml.effects import Effects, Folder
from sqla_datastore.dml.parameters import MISSING, Assignments
from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.dml.row_queries import Row, inherited_values
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.options import compression_level
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable
from sqla_datastore.schema.declarations import declared_tables
from sqla_datastore.schema.sqlalchemy_compat import is_sql
from sqla_datastore.storage.binding import is_default, storage_for, warn_of_default
from sqla_datastore.storage.in_row import encoded, is_tried
from sqla_datastore.storage.off_loop import off_loop
from sqla_datastore.storage.protocol import Storage, is_there
from sqla_datastore.storage.urls import (
    DataURL,
    ObjectName,
    ObjectURL,
    names_behind,
    new_object_name,
    row_url,
)
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from sqla_datastore.schema.folders import FolderTemplate, Schemas

UNCHECKED = "sqla_datastore_unchecked"
"""An execution option: values are stored whatever the schema of their column says."""


@dataclass(frozen=True)
class TransactionView:
    """What a statement needs of the transaction that it runs in.

    Attributes:
        flushing: whether it runs within an ORM flush.
        autocommit: whether it is a transaction of its own, so that its objects are written before
            it runs, without its rows' locks.
        pending: the identities of values that have a URL already, but are not stored yet.
        superseded: whether an object lost its row in this transaction, so that it may be its row's
            again.
        is_pending: whether an object is that of a pending value, so that it is not there yet.
    """

    flushing: bool
    autocommit: bool
    pending: set[int]
    superseded: Callable[[ObjectName], bool]
    is_pending: Callable[[ObjectName], bool]


@dataclass(frozen=True)
class Statement(ABC):
    """One execution of an INSERT, UPDATE or DELETE.

    Args:
        connection: the connection that is about to run it.
        context: its execution context, parameters bound.
        dml: the statement.
        concern: what it has to do with storages: it changes a declared table.
        transaction: what it needs of its transaction.

    Attributes:
        by_default: the columns whose storage nobody has named, of those that it needed.
    """

    connection: Connection
    context: Any
    dml: Any
    concern: Concern
    transaction: TransactionView
    placed: set[int] = field(default_factory=set)
    by_default: set[DeclaredColumn] = field(default_factory=set)
    _storages: dict[DeclaredColumn, Storage] = field(default_factory=dict)

    @abstractmethod
    def effects(self) -> Effects | None:
        """Find out what it will do, or None if nothing."""

    @cached_property
    def declared(self) -> DeclaredTable:
        """Its table."""
        assert self.concern.declared is not None
        return self.concern.declared

    @cached_property
    def assignments(self) -> Assignments:
        """What it assigns to columns."""
        return Assignments(self.context, self.context.compiled, self.declared)

    @property
    def schemas(self) -> Schemas:
        """Its ``schema_translate_map``."""
        return self.context.execution_options.get("schema_translate_map") or {}

    # -- values and their URLs

    def place(
        self,
        effects: Effects,
        column: DeclaredColumn,
        reservation: Reservation,
        values: Mapping[Column[Any], Any],
        token: str,
        *,
        own: bool,
    ) -> None:
        """Give a value its URL and encode it; a value that is another row's is copied.

        Args:
            effects: take the reservation.
            column: the column that it goes to.
            reservation: the value.
            values: what is known of its row, by column.
            token: a fresh UUID for what is not known of the row.
            own: whether the value may become the row's own though it is stored already.
        """
        value = reservation.value
        # a value has no `url` before it is written: until then its identity tells of it
        taken = id(value) in self.transaction.pending or id(value) in self.placed
        if taken or (value.url is not None and not own):
            value = reservation.value = value.copy()
        self.placed.add(id(value))
        storage = self.storage(column)
        url = off_loop(partial(self._encode, column, reservation))
        if url is None:
            if column in self.by_default:
                warn_of_default(storage)
            # the name tells how many nested values there are
            assert reservation.plan is not None
            name = new_object_name(len(reservation.plan.objects) - 1)
            folder = self._new_folder(column, values, token)
            url = ObjectURL.of(storage.scheme, f"{folder}/{name}")
        reservation.place(storage, url)
        effects.reserve(reservation, self.key(values))

    def _encode(self, column: DeclaredColumn, reservation: Reservation) -> ObjectURL | None:
        """Plan a value, and return its URL if it is small enough to stay in the row, else None."""
        if column.schema is not None and UNCHECKED not in self.context.execution_options:
            reservation.value._check_entries(column.schema, column.label)
        limit = column.type.inline_bytes
        level = compression_level(column.type.compression)
        plan = reservation.plan = reservation.value._plan(column.label, level)
        nbytes = sum(each.nbytes for each in plan.objects)
        if not is_tried(nbytes, limit, is_compressed=level is not None):
            return None
        objects = encoded(plan.objects, limit)
        if objects is None:
            # it was used up
            reservation.plan = reservation.value._plan(column.label, level)
            return None
        return DataURL.holding(objects)

    def _new_folder(
        self, column: DeclaredColumn, values: Mapping[Column[Any], Any], token: str
    ) -> str:
        """Return where a new object goes: where its row's attributes say, not where an old one is.

        So an object that is not committed yet lies in no folder that another row's owner empties:
        that owner waits for this row's key or foreign key. Under AUTOCOMMIT nobody waits, so such
        an object goes to a folder that no other row can name.
        """
        if self.transaction.autocommit:
            key = set(self.declared.table.primary_key)
            values = {c: value for c, value in values.items() if c not in key}
        return column.folder.fresh(values, token, self.schemas)

    def is_flushed(self, value: DataStore, key: tuple[Any, ...] | None) -> bool:
        """Whether a flush puts a value into the row of this key that it belongs to.

        Not what a listener of the flush puts elsewhere, such as a history of changes.
        """
        row = value._row
        return self.transaction.flushing and row is not None and row.is_of(self.declared.table, key)

    def known(self, group: int, given: Mapping[str, Any]) -> dict[Column[Any], Any]:
        """Return the plain values that the statement gives to the columns that templates need.

        Args:
            group: which row of a multi-row VALUES, else 0.
            given: the set of parameters.
        """
        found = {c: self.assignments.lookup(c, group, given) for c in self.declared.needs}
        return {c: v for c, v in found.items() if v is not MISSING and not is_sql(v)}

    # -- rows and their folders

    def key(self, values: Mapping[Column[Any], Any]) -> tuple[Any, ...] | None:
        """Return a row's primary key, where it is known."""
        key = tuple([values.get(column) for column in self.declared.table.primary_key])
        return None if not key or None in key else key

    def inherited(self, values: Mapping[Column[Any], Any]) -> dict[Column[Any], Any]:
        """Return a row's values with those of the tables that its table inherits from."""
        if not self.declared.inherited_needs:
            return dict(values)
        return inherited_values(self.connection, self.declared, values)

    def storage(self, column: DeclaredColumn) -> Storage:
        """Return the storage of a declared column on this connection."""
        found = self._storages.get(column)
        if found is None:
            found = storage_for(column.type.url, self.connection.dialect)
            self._storages[column] = found
            if is_default(column.type.url, self.connection.dialect):
                self.by_default.add(column)
        return found

    def names(self, column: DeclaredColumn, row: Row) -> list[ObjectName]:
        """Return the names behind a row's URL; none for NULL or what the storage cannot hold."""
        found: list[ObjectName] | None = row.known.get(column)
        if found is None:
            url, is_pending = row.urls.get(column), self.transaction.is_pending
            found = row.known[column] = names_behind(self.storage(column), url, is_pending)
        return found

    def drop(self, effects: Effects, column: DeclaredColumn, row: Row) -> None:
        """Note that a row will not hold any more what it holds in a column."""
        names = self.names(column, row)
        if names and column in self.by_default:
            self._refuse_lost(row, names[0])
        effects.drop(row, names)
        folder = names[0].path.rpartition("/")[0] if names else None
        if folder is not None and folder != self._rendered(column.folder, row):
            # as of a row whose key the database has made, or that had another key or template
            is_of_table = column.folder.could_be(folder, self.schemas)
            effects.unproven.update(dict.fromkeys(names, is_of_table))

    def _refuse_lost(self, row: Row, name: ObjectName) -> None:
        """Refuse to lose what was written by a program that has bound another storage."""
        if self.transaction.is_pending(name) or off_loop(partial(is_there, *name)):
            return
        table = self.declared.table
        raise ConfigurationError(
            f"the row {row.key(table)} of {table.name!r} holds {row_url(name)!r}, which is not in "
            f"{name.storage.url!r}, the default as no storage is bound; call "
            "bind_storage(engine, …) with the storage that it lies in. If the object is lost, bind "
            "this folder, and the row can be replaced or deleted"
        )

    def folder(self, column: DeclaredColumn, row: Row) -> str | None:
        """Return the folder in a row's URL, else the one that its attributes render."""
        remembered = self._remembered(column, row)
        if remembered is not None:
            return remembered
        return self._rendered(column.folder, row)

    def _rendered(self, template: FolderTemplate, row: Row) -> str | None:
        if template not in row.known:
            row.known[template] = template.render(self.inherited(row.values), self.schemas)
        folder: str | None = row.known[template]
        return folder

    def _remembered(self, column: DeclaredColumn, row: Row) -> str | None:
        """Return the folder of a row's URL; None without one, or for an object at the base."""
        names = self.names(column, row)
        return names[0].path.rpartition("/")[0] or None if names else None

    def owned_folders(self, row: Row) -> Iterator[Folder]:
        """Yield the folders of a row that are safe to empty.

        The one that its attributes render is guarded by the row's key: whoever puts something there
        waits for it. The one in its URL may be another row's by now, unless it bears a fresh UUID.
        """
        for column in self.declared.columns:
            if column.folder.owns:
                folders = {self._rendered(column.folder, row)}
                remembered = self._remembered(column, row)
                if remembered is not None and column.folder.is_fresh(remembered):
                    folders.add(remembered)
                # None where a value is not known or NULL: such a folder bears a fresh UUID, so that
                # nothing of an older row lies in it
                for path in sorted(filter(None, folders)):
                    yield Folder(self.storage(column), path)
        template = self.declared.class_folder
        folder = self._rendered(template, row) if template else None
        if folder is not None:
            yield from (Folder(storage, folder) for storage in self._all_storages())

    def _all_storages(self) -> list[Storage]:
        # rows of other tables write into a class's folder, each into the storage of its own column
        tables = declared_tables(self.declared.table.metadata)
        storages = [self.storage(column) for each in tables for column in each.columns]
        return list(dict.fromkeys(storages))
