"""What databases can do: the one place that knows of locks, transactions and batches.

A dialect that is not named here is taken for one with transactions that locks rows as SQL has it.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sqla_datastore.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

CHUNK = 500
"""Rows asked for in one SELECT; older SQLite versions take 999 parameters at most."""

# PostgreSQL's protocol takes 65,535 parameters, asyncpg 32,767, SQLite 32,766 from 3.32 on
_BATCHES = {"postgresql": 10_000, "mysql": 10_000, "mariadb": 10_000, "sqlite": 10_000}

# DuckDB has no FOR UPDATE. Of two transactions that update one row the second fails; where one
# updates and one deletes it, both succeed and the row is gone, which leaves an orphan.
# SQLite and SQL Server need no entry: SQLAlchemy leaves the clause out for them.
_WITHOUT_ROW_LOCKS = frozenset({"duckdb"})

# A rollback there leaves rows as they are, and the objects that it removes would be theirs.
_WITHOUT_TRANSACTIONS = frozenset(
    {
        *("awsathena", "bigquery", "clickhouse", "clickhousedb", "databricks", "druid", "hive"),
        *("impala", "presto", "trino"),
    }
)
_MYSQL = ("mysql", "mariadb")


def has_row_locks(dialect: Dialect) -> bool:
    """Return whether a SELECT may ask for locks on rows."""
    return dialect.name not in _WITHOUT_ROW_LOCKS


def refuse_without_transactions(dialect: Dialect) -> None:
    """Refuse a database whose rollback leaves rows as they are.

    Raises:
        ConfigurationError: it is one.
    """
    if dialect.name in _WITHOUT_TRANSACTIONS:
        raise ConfigurationError(
            f"{dialect.name!r} has no transactions, so a rollback would leave rows whose objects "
            "it removes; keep these rows in a database with transactions"
        )


def batch_size(dialect: Dialect) -> int:
    """Return how many URLs one SELECT asks for: without an index each reads the whole table."""
    if dialect.name == "sqlite" and sqlite3.sqlite_version_info < (3, 32):
        return CHUNK
    return _BATCHES.get(dialect.name, CHUNK)


def reads_old_rows_without_lock(dialect: Dialect) -> bool:
    """Return whether a SELECT without a lock may show rows as before others have committed.

    Though the transaction has locked these rows since.
    """
    return dialect.name in _MYSQL


def reads_old_rows_with_lock(connection: Connection) -> bool:
    """Return whether even a locking SELECT leaves out what others have committed since it began."""
    # MySQL's locking reads see what was committed last; SQLite has one writer at a time
    if connection.dialect.name not in ("postgresql", "duckdb"):
        return False
    if connection.dialect.name == "duckdb":
        return True
    return connection.get_isolation_level() in ("REPEATABLE READ", "SERIALIZABLE")


def reads_uncommitted_rows(connection: Connection) -> bool:
    """Return whether rows may be read that are rolled back later: no reason to remove anything."""
    # PostgreSQL has no such level, SQLite only in a shared cache that is told to
    if connection.dialect.name not in _MYSQL:
        return False
    return connection.get_isolation_level() == "READ UNCOMMITTED"


def cuts_text_off(connection: Connection) -> bool:
    """Return whether the database shortens a text that is too long, and only warns."""
    if connection.dialect.name not in _MYSQL:
        return False
    mode: Any = connection.exec_driver_sql("SELECT @@SESSION.sql_mode").scalar() or ""
    return not {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"} & set(mode.split(","))
