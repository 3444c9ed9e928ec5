"""What databases can do: the one place that knows of locks, transactions and batches.

A dialect that is not named here is taken for one with transactions that locks rows as SQL has it.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sqla_datastore.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import FromClause, Select, Table
    from sqlalchemy.engine import Connection, Dialect

CHUNK = 500
"""Rows asked for in one SELECT: SQLite takes 1,000 levels of OR."""

# SQLite before 3.32 takes 999, SQL Server 2,100
_PARAMETERS = 999

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
_SNAPSHOTS = {"postgresql": ("REPEATABLE READ", "SERIALIZABLE"), "mssql": ("SNAPSHOT",)}
"""Levels at which even a locking SELECT reads as of the transaction's start."""

_WITHOUT_WAITING = {
    "sqlite": "PRAGMA busy_timeout = 0",
    "postgresql": "SET lock_timeout = '1s'",
    "mysql": "SET SESSION lock_wait_timeout = 1",
    "mariadb": "SET SESSION lock_wait_timeout = 1",
}


def has_row_locks(dialect: Dialect) -> bool:
    """Return whether a SELECT may ask for locks on rows."""
    return dialect.name not in _WITHOUT_ROW_LOCKS


def locked_for_update(query: Select[Any], table: Table, dialect: Dialect) -> Select[Any]:
    """Return a SELECT that locks a table's rows, where the database has such locks.

    Rows of other tables that it joins stay free.
    """
    if not has_row_locks(dialect):
        return query
    # a column, as Oracle has it: the others name its table
    locked = query.with_for_update(of=next(iter(table.primary_key or table.c)))
    # SQL Server has hints instead, and SQLAlchemy leaves the clause out there
    return locked.with_hint(table, "WITH (UPDLOCK, ROWLOCK)", "mssql")


def locked_for_reading(query: Select[Any], table: FromClause) -> Select[Any]:
    """Return a SELECT that waits for who is changing its rows."""
    # SQL Server might read a snapshot instead
    return query.with_for_update(read=True).with_hint(table, "WITH (READCOMMITTEDLOCK)", "mssql")


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
    return dialect.name in (*_MYSQL, "mssql", "postgresql")


def rows_at_once(key_columns: int) -> int:
    """Return how many rows one SELECT asks for by keys of so many columns."""
    return max(1, min(CHUNK, _PARAMETERS // max(1, key_columns)))


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
    name = connection.dialect.name
    if name == "oracle":
        # SERIALIZABLE does, and to ask for the level takes a right that few users have
        return True
    if name not in _SNAPSHOTS:
        return False
    return connection.get_isolation_level() in _SNAPSHOTS[name]


def reads_uncommitted_rows(connection: Connection) -> bool:
    """Return whether rows may be read that are rolled back later: no reason to remove anything."""
    # PostgreSQL has no such level, SQLite only in a shared cache that is told to
    if connection.dialect.name not in (*_MYSQL, "mssql"):
        return False
    return connection.get_isolation_level() == "READ UNCOMMITTED"


def cuts_text_off(connection: Connection) -> bool:
    """Return whether the database shortens a text that is too long, and only warns."""
    if connection.dialect.name not in _MYSQL:
        return False
    mode: Any = connection.exec_driver_sql("SELECT @@SESSION.sql_mode").scalar() or ""
    return not {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"} & set(mode.split(","))
