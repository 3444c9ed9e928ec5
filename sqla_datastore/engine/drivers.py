"""What database drivers know of their transaction.

Events and return values cannot tell how a transaction ended: PostgreSQL answers COMMIT of a failed
transaction without an error, stock ``sqlite3`` commits when an outermost savepoint is released.
So the driver is asked. Each function takes the driver's own connection, never a pool's proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any


class DriverState(Enum):
    """What a driver says of its connection."""

    IDLE = "no transaction is open"
    ACTIVE = "a transaction is open"
    FAILED = "the transaction can only be rolled back"
    UNKNOWN = "the driver cannot say"


def _sqlite(raw: Any) -> DriverState:
    return DriverState.ACTIVE if raw.in_transaction else DriverState.IDLE


def _aiosqlite(raw: Any) -> DriverState:
    return _sqlite(raw._connection)


# libpq's PQTRANS_IDLE, ACTIVE, INTRANS, INERROR; UNKNOWN (4) means that the connection is broken
_LIBPQ = {
    0: DriverState.IDLE,
    1: DriverState.ACTIVE,
    2: DriverState.ACTIVE,
    3: DriverState.FAILED,
}


def _psycopg(raw: Any) -> DriverState:
    # SQLAlchemy's adapter of the async connection has an `info` of its own
    connection = getattr(raw, "_connection", raw)
    return _LIBPQ.get(int(connection.info.transaction_status), DriverState.UNKNOWN)


def _psycopg2(raw: Any) -> DriverState:
    if raw.closed:
        return DriverState.UNKNOWN
    return _LIBPQ.get(raw.get_transaction_status(), DriverState.UNKNOWN)


def _asyncpg(raw: Any) -> DriverState:
    # it cannot say that the transaction failed: `Transaction.has_failed` asks the server for that
    active = raw._connection.is_in_transaction()
    return DriverState.ACTIVE if active else DriverState.IDLE


# what PostgreSQL says of the transaction whenever it is ready for a query
_READY_FOR_QUERY = {
    b"I": DriverState.IDLE,
    b"T": DriverState.ACTIVE,
    b"E": DriverState.FAILED,
}


def _pg8000(raw: Any) -> DriverState:
    return _READY_FOR_QUERY.get(raw._transaction_status, DriverState.UNKNOWN)


_SERVER_STATUS_IN_TRANS = 1


def _pymysql(raw: Any) -> DriverState:
    result = raw._result
    if result is not None and result.server_status is None:
        # it reads the server's status from an OK packet only, not from the end of a result set
        return DriverState.UNKNOWN
    return _pymysql_status(raw)


def _pymysql_status(raw: Any) -> DriverState:
    return _mysql_status(raw.server_status)


def _mysql_status(flags: int) -> DriverState:
    return DriverState.ACTIVE if flags & _SERVER_STATUS_IN_TRANS else DriverState.IDLE


def _aiomysql(raw: Any) -> DriverState:
    # made of PyMySQL; SQLAlchemy's adapter holds its connection
    return _pymysql(raw._connection)


def _asyncmy(raw: Any) -> DriverState:
    # its `server_status` is that of an earlier statement after a ROLLBACK
    result = raw._connection._result
    if result is None or (result.field_count and not result.server_status):
        # rows bring a status with their end, or none (without CLIENT_DEPRECATE_EOF); 0 until then
        return DriverState.UNKNOWN
    return _mysql_status(result.server_status)


def _mysqlconnector(raw: Any) -> DriverState:
    # a lost connection has no socket any more, and the flags of before
    if getattr(getattr(raw, "_socket", None), "_sock", raw) is None:
        return DriverState.UNKNOWN
    return DriverState.ACTIVE if raw.in_transaction else DriverState.IDLE


_STATES: dict[str, Callable[[Any], DriverState]] = {
    "pysqlite": _sqlite,
    "aiosqlite": _aiosqlite,
    "psycopg": _psycopg,
    "psycopg_async": _psycopg,
    "psycopg2": _psycopg2,
    "asyncpg": _asyncpg,
    "pg8000": _pg8000,
    "pymysql": _pymysql,
    "aiomysql": _aiomysql,
    "asyncmy": _asyncmy,
    "mysqlconnector": _mysqlconnector,
}
_OF_MYSQL = {
    "pymysql": _pymysql_status,
    "aiomysql": lambda raw: _pymysql_status(raw._connection),
    "asyncmy": lambda raw: _pymysql_status(raw._connection),
    "mysqlconnector": _mysqlconnector,
}
"""What they say right after a ping."""


def driver_state(driver: str, raw: Any) -> DriverState:
    """Ask a driver for the state of its transaction; no round trip to the server.

    Args:
        driver: the dialect's driver, for example ``psycopg``.
        raw: the driver's connection.

    Returns:
        UNKNOWN for a driver without a rule, and for a connection that is closed or broken.
    """
    ask = _STATES.get(driver)
    if ask is None:
        return DriverState.UNKNOWN
    try:
        return ask(raw)
    except Exception:
        # a closed or lost connection; every driver raises another kind of error for it
        return DriverState.UNKNOWN


def state_after_error(driver: str, raw: Any) -> DriverState:
    """As `driver_state`, right after a statement failed; a round trip on MySQL.

    MySQL and MariaDB roll back the whole transaction on a deadlock, and the packet that tells of
    the error does not say so.
    """
    return _asked_mysql(driver, raw) if driver in _OF_MYSQL else driver_state(driver, raw)


def _asked_mysql(driver: str, raw: Any) -> DriverState:
    try:
        # the server's answer is an OK packet, so it tells the status
        raw.ping(reconnect=False)
    except Exception:
        return DriverState.UNKNOWN
    return _OF_MYSQL[driver](raw)


def autocommits(driver: str, raw: Any) -> bool:
    """Return whether each statement would be a transaction of its own, as far as one can see.

    A round trip on MySQL where autocommit is on and the last statement was a SELECT.
    """
    try:
        if driver in ("pysqlite", "aiosqlite"):
            connection = raw._connection if driver == "aiosqlite" else raw
            # SQLAlchemy's recipe for SQLite sets it to None, too, and sends BEGIN itself
            by_hand = connection.isolation_level is None
            # `is True`: LEGACY_TRANSACTION_CONTROL, the default from Python 3.12 on, is -1
            by_mode = getattr(connection, "autocommit", False) is True
            return (by_hand or by_mode) and not connection.in_transaction
        if driver in _OF_MYSQL:
            state = driver_state(driver, raw)
            # the state first: one of them asks the server for its mode
            if state is DriverState.ACTIVE or not _mysql_autocommits(driver, raw):
                return False
            if state is DriverState.UNKNOWN:
                state = _asked_mysql(driver, raw)
            return state is DriverState.IDLE
        connection = getattr(raw, "_connection", raw) if driver == "psycopg_async" else raw
        # `is True`: with some drivers it is a method
        return getattr(connection, "autocommit", False) is True
    except Exception:
        return False


def _mysql_autocommits(driver: str, raw: Any) -> bool:
    if driver == "mysqlconnector":
        return raw.autocommit is True
    connection = raw if driver == "pymysql" else raw._connection
    return bool(connection.get_autocommit())
