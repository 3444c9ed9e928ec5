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

# DuckDB has no FOR UPDATE; `overlaps` says what its transactions may do to each other. For SQLite
# and SQL Server SQLAlchemy leaves the clause out: one has a single writer, the other hints.
_WITHOUT_ROW_LOCKS = frozenset({"duckdb"})

# A rollback there leaves rows as they are, and the objects that it removes would be theirs.
_WITHOUT_TRANSACTIONS = frozenset(
    {
        *("awsathena", "bigquery", "clickhouse", "clickhousedb", "databricks", "druid", "hive"),
        *("impala", "presto", "trino"),
    }
)
_MYSQL = ("mysql", "mariadb")
_DDL_COMMITS = (*_MYSQL, "oracle")
_WITHOUT_WAITING = {
    "sqlite": "PRAGMA busy_timeout = 0",
    "postgresql": "SET lock_timeout = '1s'",
    "mysql": "SET SESSION lock_wait_timeout = 1",
    "mariadb": "SET SESSION lock_wait_timeout = 1",
}


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


def refuse_removals(dialect: Dialect) -> None:
    """Refuse durable removals where other transactions can bring back what rows have lost.

    Whoever carries them out later would have to know that none is open that was at work then.

    Raises:
        ConfigurationError: they can.
    """
    if dialect.name in _WITHOUT_ROW_LOCKS:
        raise ConfigurationError(
            f"{dialect.name!r} has no row locks, so durable removals are not for it; leave "
            "enable_removals() out: gc removes what a transaction has to leave"
        )


def has_one_writer(dialect: Dialect) -> bool:
    """Return whether a writer waits for every other one, whatever their rows."""
    return dialect.name == "sqlite"


def begins_late(dialect: Dialect) -> bool:
    """Return whether a driver begins a transaction only with a change, or with a savepoint.

    Stock ``sqlite3`` does: a SELECT begins none, and releasing an outermost savepoint commits.
    """
    return dialect.name == "sqlite"


def counts_returned_rows_late(dialect: Dialect) -> bool:
    """Return whether rows of RETURNING are counted while they are fetched, as by ``sqlite3``."""
    return dialect.name == "sqlite"


def ddl_commits(dialect: Dialect) -> bool:
    """Return whether DDL commits the transaction around it."""
    return dialect.name in _DDL_COMMITS


def statement_against_waiting(dialect: Dialect) -> str | None:
    """Return what has a connection fail soon where it would wait for others, None if unknown."""
    return _WITHOUT_WAITING.get(dialect.name)


def takes_read_committed(dialect: Dialect) -> bool:
    """Return whether an engine can be asked for READ COMMITTED, and may have another level.

    SQLite reads uncommitted rows only in a shared cache that is told to.
    """
    return dialect.name in (*_MYSQL, "postgresql")


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
    if connection.dialect.name != "postgresql":
        return False
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
