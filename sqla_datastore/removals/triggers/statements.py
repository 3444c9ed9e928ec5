"""Create and drop the triggers of columns, after a look at what the database has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, Text, inspect, text

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.removals.table import TABLE_NAME
from sqla_datastore.removals.triggers.base import INSERTED_COLUMNS, RemovalTriggers
from sqla_datastore.removals.triggers.mysql import MySQLTriggers
from sqla_datastore.removals.triggers.postgresql import PostgreSQLTriggers
from sqla_datastore.removals.triggers.sqlite import SQLiteTriggers
from sqla_datastore.storage.urls import URL_LENGTH

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.engine import Connection, Dialect

_BY_DIALECT: dict[str, type[RemovalTriggers]] = {
    "sqlite": SQLiteTriggers,
    "postgresql": PostgreSQLTriggers,
    "mysql": MySQLTriggers,
    "mariadb": MySQLTriggers,
}

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_OWN_STEP = "name tables and columns as the database does, and create them before the triggers"
_REMOVALS_STEP = (
    "before the triggers create it (enable_removals(metadata), then metadata.create_all(engine) or "
    "alembic upgrade head), or name its schema with removals_schema="
)


def create_removal_triggers(
    connection: Connection,
    table_name: str,
    *column_names: str,
    schema: str | None = None,
    removals_schema: str | None = None,
) -> None:
    """Create the triggers of `DataStoreType` columns, or renew those that are there.

    Renew them when a foreign key with ON DELETE CASCADE comes or goes (MySQL, MariaDB), and after
    Alembic's batch mode has made a table anew (SQLite). Drop them before a column is renamed,
    converted or dropped, or the table of removals is dropped. The operation of Alembic is
    ``op.create_removal_triggers(table_name, *column_names)``.

    On SQLite and PostgreSQL the statements belong to the caller's transaction. MySQL and MariaDB
    commit at each of them, what the transaction did before included; so renewing leaves a moment
    without triggers there, and a failure can leave some of them.

    Args:
        connection: a connection to SQLite, PostgreSQL, MySQL or MariaDB.
        table_name: the table.
        column_names: its `DataStoreType` columns.
        schema: the table's schema.
        removals_schema: the schema of the table of removals, by default the one that the
            ``search_path`` leads to (PostgreSQL) or the table's (MySQL, MariaDB). On SQLite it is
            always the table's.

    Raises:
        ConfigurationError: no column is named; the table, a column or the table of removals is
            missing; another database; a cascade comes from another schema (MySQL, MariaDB) or
            goes round in a circle over several tables. No statement was run.
        sqlalchemy.exc.SQLAlchemyError: the database refused a statement, as without the right to
            create triggers.
    """
    for statement in trigger_statements(
        connection.dialect,
        connection,
        table_name,
        column_names,
        schema,
        removals_schema,
        creates=True,
    ):
        connection.execute(statement)


def drop_removal_triggers(
    connection: Connection, table_name: str, *column_names: str, schema: str | None = None
) -> None:
    """Drop the triggers of `DataStoreType` columns; those that do not exist are no error.

    The operation of Alembic is ``op.drop_removal_triggers(table_name, *column_names)``. The
    transaction is the caller's, but for MySQL and MariaDB, which commit at each statement.

    Args:
        connection: as for `create_removal_triggers`.
        table_name: the table, which may be gone.
        column_names: its columns, which may be gone.
        schema: the table's schema.

    Raises:
        ConfigurationError: no column is named; another database.
        sqlalchemy.exc.SQLAlchemyError: the database refused a statement.
    """
    for statement in trigger_statements(
        connection.dialect, connection, table_name, column_names, schema, creates=False
    ):
        connection.execute(statement)


def trigger_statements(
    dialect: Dialect,
    connection: Connection | None,
    table_name: str,
    column_names: Sequence[str],
    schema: str | None = None,
    removals_schema: str | None = None,
    *,
    creates: bool,
) -> list[TextClause]:
    """Return the statements that drop the triggers of columns and, if asked to, create them.

    All of them are known before the first is run.

    Args:
        dialect: the database's.
        connection: tells what the database has; without one (``--sql``) nothing is checked.
        table_name: the table.
        column_names: its `DataStoreType` columns.
        schema: the table's schema.
        removals_schema: as for `create_removal_triggers`.
        creates: whether to create them after they were dropped.

    Raises:
        ConfigurationError: as `create_removal_triggers`; no connection on MySQL or MariaDB; a name
            with a NUL or a lone surrogate.
        sqlalchemy.exc.SQLAlchemyError: the database could not be asked.
    """
    if not column_names:
        raise ConfigurationError(f"name the DataStoreType columns of table {table_name!r}")
    for name in filter(None, (table_name, *column_names, schema, removals_schema)):
        _refuse_no_text(name)
    columns = [
        removal_triggers(dialect, table_name, column, schema, removals_schema)
        for column in column_names
    ]
    created: list[str] = []
    if creates:
        if connection is not None:
            # SQLite and PL/pgSQL take a body that names a missing table, and fail when it fires
            _refuse_missing(connection, table_name, column_names, schema)
            _refuse_missing(connection, TABLE_NAME, INSERTED_COLUMNS, columns[0].schema_of_removals)
        created = [sql for column in columns for sql in column.creates(connection)]
    dropped = [sql for column in columns for sql in column.drops(connection)]
    return [_escaped(sql) for sql in (*dropped, *created)]


def removal_triggers(
    dialect: Dialect,
    table: str,
    column: str,
    schema: str | None = None,
    removals_schema: str | None = None,
) -> RemovalTriggers:
    """Return the triggers of a column.

    Raises:
        ConfigurationError: the database is none of SQLite, PostgreSQL, MySQL and MariaDB.
    """
    if not has_removal_triggers(dialect):
        raise ConfigurationError(
            f"there are no removal triggers for {dialect.name!r}, only for SQLite, PostgreSQL, "
            "MySQL and MariaDB"
        )
    return _BY_DIALECT[dialect.name](dialect, table, column, schema, removals_schema)


def has_removal_triggers(dialect: Dialect) -> bool:
    """Return whether there are triggers for a database."""
    return dialect.name in _BY_DIALECT


def _escaped(statement: str) -> TextClause:
    """Return a statement without parameters as `text` takes it: its colons are no parameters."""
    return text(statement.replace(":", r"\:"))


def _refuse_no_text(name: str) -> None:
    """Refuse a name that would end a script early, or cannot be written into one."""
    if _NO_TEXT.search(name):
        raise ConfigurationError(
            f"the name {name!r} has a NUL or a lone surrogate, which no database takes; {_OWN_STEP}"
        )


def _refuse_missing(
    connection: Connection, table: str, columns: Sequence[str], schema: str | None
) -> None:
    """Refuse what would create triggers at which every DELETE fails.

    Raises:
        ConfigurationError: the database lacks the table or one of the columns, or a column of the
            application's cannot hold URLs.
    """
    next_step = _REMOVALS_STEP if table == TABLE_NAME else _OWN_STEP
    inspector = inspect(connection)
    name = f"{schema}.{table}" if schema else table
    if not inspector.has_table(table, schema=schema):
        raise ConfigurationError(f"the database lacks table {name!r}; {next_step}")
    found = inspector.get_columns(table, schema=schema)
    types = {column["name"]: column["type"] for column in found}
    missing = [column for column in columns if column not in types]
    if missing:
        raise ConfigurationError(
            f"table {name!r} lacks {', '.join(map(repr, missing))}; {next_step}"
        )
    others = [column for column in columns if not _can_hold_urls(types[column])]
    if others and table != TABLE_NAME:
        raise ConfigurationError(
            f"{', '.join(map(repr, others))} of table {name!r} can be no DataStoreType column, "
            f"which is a VARCHAR({URL_LENGTH}), or a TEXT where it keeps values in the row; "
            f"{next_step}"
        )


def _can_hold_urls(type_: Any) -> bool:
    return isinstance(type_, Text) or (isinstance(type_, String) and type_.length == URL_LENGTH)
