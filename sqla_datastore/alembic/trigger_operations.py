"""Alembic operations that create and drop the triggers for durable removals.

`sqla_datastore.alembic` imports this module, which adds them to ``op``.
"""

from __future__ import annotations

from alembic.operations import MigrateOperation, Operations

from sqla_datastore.removals.triggers.statements import trigger_statements


class _TriggersOp(MigrateOperation):
    """What both operations have in common: the columns."""

    def __init__(
        self,
        table_name: str,
        column_names: tuple[str, ...],
        schema: str | None,
        removals_schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.column_names = column_names
        self.schema = schema
        self.removals_schema = removals_schema


@Operations.register_operation("create_removal_triggers")
class CreateRemovalTriggersOp(_TriggersOp):
    """Create triggers that write down removals for rows that go without SQLAlchemy."""

    @classmethod
    def create_removal_triggers(
        cls,
        operations: Operations,
        table_name: str,
        *column_names: str,
        schema: str | None = None,
        removals_schema: str | None = None,
    ) -> None:
        """Create the triggers of `DataStoreType` columns, or renew those that are there.

        As `sqla_datastore.maintenance.create_removal_triggers`, which says when to renew them, when
        to drop them, and what MySQL and MariaDB commit.

        Args:
            operations: ``op``.
            table_name: the table.
            column_names: its `DataStoreType` columns.
            schema: the table's schema.
            removals_schema: the schema of the table of removals, by default as there.

        Raises:
            ConfigurationError: as there; offline mode (``--sql``) on MySQL and MariaDB, whose
                triggers depend on foreign keys. Offline nothing else is checked.
            sqlalchemy.exc.SQLAlchemyError: the database refused a statement.
        """
        operations.invoke(cls(table_name, column_names, schema, removals_schema))


@Operations.register_operation("drop_removal_triggers")
class DropRemovalTriggersOp(_TriggersOp):
    """Drop the triggers that `CreateRemovalTriggersOp` created."""

    @classmethod
    def drop_removal_triggers(
        cls,
        operations: Operations,
        table_name: str,
        *column_names: str,
        schema: str | None = None,
    ) -> None:
        """Drop the triggers of `DataStoreType` columns; those that do not exist are no error.

        Args:
            operations: ``op``.
            table_name: the table.
            column_names: its `DataStoreType` columns.
            schema: the table's schema.

        Raises:
            ConfigurationError: no column is named; the database has no triggers; offline mode
                (``--sql``) on MySQL and MariaDB.
            sqlalchemy.exc.SQLAlchemyError: the database refused a statement.
        """
        operations.invoke(cls(table_name, column_names, schema))


@Operations.implementation_for(CreateRemovalTriggersOp)
def _create_removal_triggers(operations: Operations, op: CreateRemovalTriggersOp) -> None:
    _run_triggers(operations, op, creates=True)


@Operations.implementation_for(DropRemovalTriggersOp)
def _drop_removal_triggers(operations: Operations, op: DropRemovalTriggersOp) -> None:
    _run_triggers(operations, op, creates=False)


def _run_triggers(operations: Operations, op: _TriggersOp, *, creates: bool) -> None:
    context = operations.get_context()
    for statement in trigger_statements(
        context.dialect,
        None if context.as_sql else operations.get_bind(),
        op.table_name,
        op.column_names,
        op.schema,
        op.removals_schema,
        creates=creates,
    ):
        # by Alembic, which writes it into the script where there is no connection
        operations.execute(statement)
