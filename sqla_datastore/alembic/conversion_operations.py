"""Alembic operations that convert a column with its data.

`sqla_datastore.alembic` imports this module, which adds them to ``op``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError
from sqlalchemy import (
    Column,
    String,
    Table,
    Text,
    column,
    inspect,
    null,
    select,
    table,
    text,
    update,
)
from sqlalchemy.types import TypeEngine

from sqla_datastore.alembic.conversion import BATCH_SIZE, convert_column, reflected_table
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.removals.triggers.statements import has_removal_triggers, trigger_statements
from sqla_datastore.storage.urls import DATA_PREFIX, URL_LENGTH

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy.engine import Connection

    from sqla_datastore.types import DataStoreType

ColumnTypes: TypeAlias = Mapping[str, TypeEngine[Any] | type[TypeEngine[Any]]]


class _ConvertOp(MigrateOperation):
    """What both directions have in common: the column and its new type."""

    def __init__(
        self,
        table_name: str,
        column_name: str,
        *,
        type_: TypeEngine[Any],
        nullable: bool | None,
        schema: str | None,
        column_types: ColumnTypes,
        batch_size: int,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.type_ = type_
        self.nullable = nullable
        self.schema = schema
        self.column_types = column_types
        self.batch_size = batch_size

    @property
    def temporary_name(self) -> str:
        """The name of the new column until the old one is dropped."""
        return f"{self.column_name}_converted"


@Operations.register_operation("convert_to_datastore")
class ConvertToDataStoreOp(_ConvertOp):
    """Turn a column that holds pickles, or other bytes, into a `DataStoreType` column."""

    loads: Callable[[Any], Any]

    @classmethod
    def convert_to_datastore(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        loads: Callable[[Any], Any],
        type_: DataStoreType | None = None,
        nullable: bool | None = None,
        schema: str | None = None,
        column_types: ColumnTypes | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Turn a column into a `DataStoreType` column with its data.

        Adds a column ``<column>_converted``, fills it batch by batch, drops the old column and
        renames the new one. Where the database rolls DDL back, all of it and the objects belong
        to the migration's transaction. Where it does not (MySQL, MariaDB, SQLite), each step and
        batch is committed; run the migration again after a failure, and it goes on where it was.

        Args:
            operations: ``op``.
            table_name: the table, which needs a primary key.
            column_name: the column.
            loads: turns what the column holds, for a `PickleType` its bytes, into a mapping, a
                `DataStore`, or None for a row without a value. ``pickle.loads`` runs code that
                the bytes name, so it has to be asked for: use it only on data that you trust.
            type_: the new type, by default ``DataStoreType()``.
            nullable: whether the new column takes NULL, by default as the old one.
            schema: the table's schema.
            column_types: types of columns that a folder template needs and that reflection
                cannot tell, for example ``{"id": sa.Uuid()}``.
            batch_size: rows in one batch, which memory has to hold.

        Raises:
            UnsupportedTypeError: `loads` returned no mapping, or an entry cannot be stored.
            ConfigurationError: `column_types` lacks a column; SQLite would cascade (see
                ``docs/alembic.md``).
            CommandError: in offline mode (``--sql``).
        """
        # late: Alembic loads this module whatever it is going to do
        from sqla_datastore.types import DataStoreType

        self = cls(
            table_name,
            column_name,
            type_=DataStoreType() if type_ is None else type_,
            nullable=nullable,
            schema=schema,
            column_types=column_types or {},
            batch_size=batch_size,
        )
        self.loads = loads
        operations.invoke(self)


@Operations.register_operation("convert_from_datastore")
class ConvertFromDataStoreOp(_ConvertOp):
    """Turn a `DataStoreType` column into one that holds pickles, or other bytes."""

    dumps: Callable[[dict[str, Any]], Any]
    existing_type: DataStoreType

    @classmethod
    def convert_from_datastore(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        dumps: Callable[[dict[str, Any]], Any],
        type_: TypeEngine[Any],
        existing_type: DataStoreType | None = None,
        nullable: bool | None = None,
        schema: str | None = None,
        column_types: ColumnTypes | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Turn a `DataStoreType` column back into a column that holds its data.

        The steps are those of `convert_to_datastore`. Objects are removed when the migration
        commits, after all rows were converted. The column's removal triggers are dropped.

        Args:
            operations: ``op``.
            table_name: the table, which needs a primary key.
            column_name: the column.
            dumps: turns a dict with all entries, loaded, into what the column shall hold: for
                `PickleType` the pickled bytes, so ``pickle.dumps``.
            type_: the new type, wide enough: `LargeBinary` without a length takes 64 KiB on
                MySQL and MariaDB.
            existing_type: the type so far, by default ``DataStoreType()``; its `url` says where
                the objects are.
            nullable: whether the new column takes NULL, by default as the old one.
            schema: the table's schema.
            column_types: as for `convert_to_datastore`.
            batch_size: rows in one batch, which memory has to hold.

        Raises:
            MissingObjectError: a row's object is gone.
            ConfigurationError: as `convert_to_datastore`.
            CommandError: in offline mode (``--sql``).
        """
        from sqla_datastore.types import DataStoreType

        self = cls(
            table_name,
            column_name,
            type_=type_,
            nullable=nullable,
            schema=schema,
            column_types=column_types or {},
            batch_size=batch_size,
        )
        self.dumps = dumps
        self.existing_type = DataStoreType() if existing_type is None else existing_type
        operations.invoke(self)


@Operations.implementation_for(ConvertToDataStoreOp)
def _convert_to_datastore(operations: Operations, op: ConvertToDataStoreOp) -> None:
    types = {op.temporary_name: op.type_}
    conversion = _Conversion(operations, op)
    conversion.run(types, op.loads, is_done=conversion.holds_values)


@Operations.implementation_for(ConvertFromDataStoreOp)
def _convert_from_datastore(operations: Operations, op: ConvertFromDataStoreOp) -> None:
    conversion = _Conversion(operations, op)
    conversion.run(
        {op.column_name: op.existing_type},
        lambda value: op.dumps(value.to_dict()),
        is_done=lambda type_: not conversion.holds_values(type_),
    )


class _Conversion:
    """The steps of an operation; those that were done before a failure are left out.

    Args:
        operations: ``op``.
        op: the operation.
    """

    def __init__(self, operations: Operations, op: _ConvertOp) -> None:
        self.operations = operations
        self.op = op
        self.context: MigrationContext = operations.get_context()
        if self.context.as_sql:
            raise CommandError(
                f"{op.table_name}.{op.column_name} is converted with its data, which needs a "
                "connection: run this migration online, without --sql"
            )

    @property
    def connection(self) -> Connection:
        return self.operations.get_bind()

    def columns(self) -> dict[str, Any]:
        """Return the columns that the table has now, by name."""
        found = inspect(self.connection).get_columns(self.op.table_name, schema=self.op.schema)
        return {column["name"]: column for column in found}

    def holds_values(self, type_: TypeEngine[Any]) -> bool:
        """Return whether a column of this type, as the database has it, holds values.

        A text that is as long as a URL does. A longer one may hold values in rows, or anything
        else, so its rows tell.
        """
        if isinstance(type_, String) and type_.length == URL_LENGTH:
            return True
        if not isinstance(type_, Text):
            return False
        op = self.op
        url = column(op.column_name, Text)
        found = select(url).select_from(table(op.table_name, url, schema=op.schema))
        others = found.where(url.not_like(f"{DATA_PREFIX}%"), url.not_like("%:///%"))
        is_value = found.where(url.is_not(None)).limit(1)
        ask = self.connection.execute
        return ask(is_value).first() is not None and ask(others.limit(1)).first() is None

    def run(
        self,
        types: ColumnTypes,
        convert: Callable[[Any], Any],
        *,
        is_done: Callable[[TypeEngine[Any]], bool],
    ) -> None:
        """Carry out what is left to do.

        Args:
            types: the type of the column that holds values.
            convert: turns what the old column holds into what the new one shall hold.
            is_done: whether a column of this type has been converted.
        """
        op, columns = self.op, self.columns()
        old, new = op.column_name, op.temporary_name
        if new not in columns and is_done(columns[old]["type"]):
            return
        self._refuse_cascade()
        nullable = op.nullable
        if nullable is None:
            # a failed run may have made the old one nullable; the new one is NOT NULL by then
            nullable = all(columns[name]["nullable"] for name in (old, new) if name in columns)
        if new not in columns:
            # NULL marks the rows that are still to be converted
            added: Column[Any] = Column(new, op.type_, nullable=True)
            self.operations.add_column(op.table_name, added, schema=op.schema)
            self.commit()
        if old in columns:
            self._fill(types, convert)
            if not nullable:
                self._alter(new, nullable=False)
            self._drop(old, types)
        self._alter(new, name=old, nullable=nullable)

    def _reflected(self, types: ColumnTypes) -> Table:
        """Return the table as it is now, with the types of the columns that hold values."""
        op = self.op
        column_types = {**op.column_types, **types}
        return reflected_table(self.connection, op.table_name, column_types, schema=op.schema)

    def _fill(self, types: ColumnTypes, convert: Callable[[Any], Any]) -> None:
        convert_column(
            self.connection,
            self._reflected(types),
            self.op.column_name,
            self.op.temporary_name,
            convert,
            batch_size=self.op.batch_size,
            commit=self.commit,
        )
        self.commit()

    def _drop(self, name: str, types: ColumnTypes) -> None:
        """Drop the old column, with its triggers and the objects that it holds."""
        self._drop_triggers(name)
        # before it is dropped: DDL tells the ledger nothing of the objects that rows lose
        if name in types:
            self._empty(name, types)
        # only SQLite makes the table anew for it, others get an ALTER TABLE
        with self.operations.batch_alter_table(self.op.table_name, schema=self.op.schema) as batch:
            batch.drop_column(name)
        self.commit()

    def _drop_triggers(self, name: str) -> None:
        """Drop the removal triggers of a column: without it every DELETE would fail."""
        op, dialect = self.op, self.connection.dialect
        if not has_removal_triggers(dialect):
            return
        for statement in trigger_statements(
            dialect, self.connection, op.table_name, [name], op.schema, creates=False
        ):
            self.operations.execute(statement)

    def _empty(self, name: str, types: ColumnTypes) -> None:
        """Set a column of values to NULL, which removes its objects."""
        if not self.columns()[name]["nullable"]:
            self._alter(name, nullable=True)
        found = self._reflected(types)
        held = found.c[name].is_not(None)
        self.connection.execute(update(found).where(held).values({name: null()}))
        self.commit()

    def _alter(self, column: str, *, nullable: bool, name: str | None = None) -> None:
        op = self.op
        with self.operations.batch_alter_table(op.table_name, schema=op.schema) as batch:
            batch.alter_column(
                column,
                # as the database has it: for a TypeDecorator such as PickleType, batch mode on
                # SQLite would look for the constraint of a Boolean or an Enum
                existing_type=self.columns()[column]["type"],
                nullable=nullable,
                new_column_name=name,
            )
        self.commit()

    def commit(self) -> None:
        """Commit a step where the database would not roll its DDL back anyway."""
        # without a transaction of Alembic's the caller began one, and ends it
        if not self.context.impl.transactional_ddl and self.context._transaction is not None:
            # its beginning commits, its end begins the next transaction
            with self.context.autocommit_block():
                pass

    def _refuse_cascade(self) -> None:
        """Refuse to make a table anew on SQLite where that deletes the rows of other tables.

        Raises:
            ConfigurationError: foreign keys are enforced, and another table refers to this one.
        """
        if self.connection.dialect.name != "sqlite":
            return
        # DROP TABLE begins with a DELETE of all rows then (SQLite, "Foreign Key Support")
        if not self.connection.scalar(text("PRAGMA foreign_keys")):
            return
        inspector, op = inspect(self.connection), self.op
        for other in inspector.get_table_names(schema=op.schema):
            keys = inspector.get_foreign_keys(other, schema=op.schema)
            if other != op.table_name and any(k["referred_table"] == op.table_name for k in keys):
                raise ConfigurationError(
                    f"SQLite changes table {op.table_name!r} by dropping it, which with PRAGMA "
                    f"foreign_keys=ON reaches the rows of {other!r}; migrate with it OFF"
                )
