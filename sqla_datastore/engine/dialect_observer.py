"""The observer of dialects: it sees what the DBAPI connection is really told to do.

A dialect is observed from the first connection of its pool on. One that is connected before this
library is imported is observed from the first time on that a Session uses it or that a column type
of this library is compiled for it. Its own methods are replaced, as instance attributes, and each
one tells the transaction of the connection, if one is open. So does its kind of execution context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from sqla_datastore.engine.drivers import DriverState, driver_state
from sqla_datastore.engine.execution import observed
from sqla_datastore.engine.observed_transaction import (
    ObservedTransaction,
    open_transaction,
    open_transactions,
    transaction_of,
)
from sqla_datastore.schema.sqlalchemy_compat import pool_dialect
from sqla_datastore.unitofwork import writing
from sqla_datastore.unitofwork.commit_checks import watched_connections, watches_of
from sqla_datastore.unitofwork.outcome import COMMITTED, ROLLED_BACK, Phase, Unknown

_MARK = "_sqla_datastore_observed"


def install() -> None:
    """Observe the dialect of every pool that connects."""
    event.listen(Pool, "connect", _connected)
    event.listen(Pool, "reset", _reset)


def observe(dialect: Any) -> None:
    """Observe a dialect: its methods and its kind of execution context; once."""
    if _MARK not in vars(dialect):
        vars(dialect)[_MARK] = True
        dialect.execution_ctx_cls = observed(dialect.execution_ctx_cls)
        for name, around in _OBSERVED.items():
            setattr(dialect, name, _wrapped(dialect, getattr(dialect, name), around))
        for name in ("do_begin", "do_begin_twophase"):
            setattr(dialect, name, _beginning(getattr(dialect, name)))


def _connected(_raw: Any, record: Any) -> None:
    dialect = pool_dialect(record)
    if dialect is not None:
        observe(dialect)


def _reset(raw: Any, _record: Any, state: Any) -> None:
    """End the transaction of a connection that was garbage collected and is only dropped.

    Nothing is called on an asynchronous driver that cannot terminate, and nobody can send a COMMIT
    any more: the server rolls back, once we let go of it.
    """
    transaction = open_transaction(raw) if state.terminate_only else None
    if transaction is not None and not state.asyncio_safe:
        transaction.end(transaction.lost())


def _beginning(original: Callable[..., Any]) -> Any:
    @wraps(original)
    def call(connection: Any, *args: Any) -> Any:
        transaction = open_transaction(_raw_of(connection)) if open_transactions else None
        if transaction is not None:
            transaction.end_if_begun_again()
        return original(connection, *args)

    return call


def _wrapped(dialect: Any, original: Callable[..., Any], around: Callable[..., Any]) -> Any:
    @wraps(original)
    def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
        if around is not _around_savepoint and not (open_transactions or watched_connections):
            return original(connection, *args, **kwargs)
        raw = _raw_of(connection)
        transaction = open_transaction(raw)

        def proceed() -> Any:
            return original(connection, *args, **kwargs)

        if transaction is None:
            if around is _around_savepoint:
                return _first_savepoint(connection, raw, args[0], proceed)
            if around is _around_commit:
                return _commit_without_ledger(dialect, connection, raw, proceed)
            return proceed()
        if transaction.is_busy:
            # the dialect's own nested calls, such as asyncpg's ROLLBACK after COMMIT PREPARED
            if around is _around_close:
                transaction.closed_inside()
            return proceed()
        with transaction.own_calls():
            return around(transaction, dialect, connection, proceed, *args)

    return call


def _raw_of(connection: Any) -> Any:
    """Return the driver's connection of a `Connection`, a pool's proxy or itself."""
    if hasattr(connection, "get_execution_options"):
        connection = connection.connection
    # a pool's proxy has the driver's connection behind it, until that is lost
    return getattr(connection, "dbapi_connection", connection)


def _commit_without_ledger(
    dialect: Any, connection: Any, raw: Any, proceed: Callable[[], Any]
) -> Any:
    try:
        for watch in watches_of(raw):
            watch.refuse_unsaved()
    except BaseException:
        _roll_back(dialect, connection)
        raise
    return proceed()


def _roll_back(dialect: Any, connection: Any) -> None:
    # a connection that was lost meanwhile has left its proxy: the server has rolled back
    if _raw_of(connection) is not None:
        dialect.do_rollback(connection)


def _around_commit(
    transaction: ObservedTransaction, dialect: Any, connection: Any, proceed: Callable[[], Any]
) -> Any:
    if transaction.phase is Phase.PREPARED:
        return proceed()
    return transaction.commit(proceed, lambda: _roll_back(dialect, connection))


def _around_rollback(
    transaction: ObservedTransaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any]
) -> Any:
    return proceed() if transaction.phase is Phase.PREPARED else transaction.rollback(proceed)


def _around_close(
    transaction: ObservedTransaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any]
) -> Any:
    try:
        return proceed()
    finally:
        transaction.end(transaction.lost())


# -- savepoints ------------------------------------------------------------------------------------


def _first_savepoint(connection: Any, raw: Any, name: str, proceed: Callable[[], Any]) -> Any:
    """Watch a savepoint that starts the transaction: releasing it will commit (SQLite)."""
    starts = _starts_transaction(connection.dialect, raw)
    result = proceed()
    if starts:
        transaction_of(connection).root_savepoint = name
    return result


def _starts_transaction(dialect: Any, raw: Any) -> bool:
    return dialect.name == "sqlite" and driver_state(dialect.driver, raw) is DriverState.IDLE


def _around_savepoint(
    transaction: ObservedTransaction,
    _dialect: Any,
    _connection: Any,
    proceed: Callable[[], Any],
    name: str,
) -> Any:
    starts = transaction.ledger.is_empty and _starts_transaction(
        transaction.dialect, transaction.raw
    )
    # what a running flush has kept for its end is not the savepoint's to roll back
    writing.carry_out(transaction, transaction.take_pending())
    result = proceed()
    transaction.ledger.begin_savepoint(name)
    if starts:
        transaction.root_savepoint = name
    return result


def _around_release(
    transaction: ObservedTransaction,
    dialect: Any,
    connection: Any,
    proceed: Callable[[], Any],
    name: str,
) -> Any:
    if transaction.root_savepoint == name:
        return transaction.commit(proceed, lambda: dialect.do_rollback(connection.connection))
    result = proceed()
    transaction.ledger.release(name)
    return result


def _around_rollback_to(
    transaction: ObservedTransaction,
    _dialect: Any,
    _connection: Any,
    proceed: Callable[[], Any],
    name: str,
) -> Any:
    result = proceed()
    transaction.take_pending()
    transaction.statement_failed = False
    transaction.ledger.rollback_to(name)
    return result


# -- two-phase commit ------------------------------------------------------------------------------


def _around_prepare(
    transaction: ObservedTransaction,
    _dialect: Any,
    _connection: Any,
    proceed: Callable[[], Any],
    _xid: Any,
) -> Any:
    if transaction.has_failed():
        # PostgreSQL answers PREPARE with a rollback, and no error
        transaction.end(ROLLED_BACK)
        return proceed()
    # if this fails nothing was sent: SQLAlchemy's rollback follows, and may be sent only once
    transaction.prepare()
    transaction.phase = Phase.PREPARED
    try:
        return proceed()
    except BaseException as err:
        if transaction.is_definite(err):
            transaction.phase = Phase.OPEN
        raise


def _around_commit_twophase(
    transaction: ObservedTransaction,
    dialect: Any,
    connection: Any,
    proceed: Callable[[], Any],
    xid: Any,
    *_: Any,
) -> Any:
    if transaction.phase is not Phase.PREPARED:
        return transaction.commit(
            proceed, lambda: dialect.do_rollback_twophase(connection, xid, is_prepared=False)
        )
    try:
        result = proceed()
    except BaseException as err:
        transaction.end(Unknown(f"COMMIT PREPARED was sent and raised {type(err).__name__}"))
        raise
    transaction.end(COMMITTED)
    return result


def _around_rollback_twophase(
    transaction: ObservedTransaction,
    _dialect: Any,
    _connection: Any,
    proceed: Callable[[], Any],
    *_: Any,
) -> Any:
    try:
        result = proceed()
    except BaseException as err:
        prepared = transaction.phase is Phase.PREPARED
        reason = f"ROLLBACK PREPARED was sent and raised {type(err).__name__}"
        transaction.end(Unknown(reason) if prepared else ROLLED_BACK)
        raise
    transaction.end(ROLLED_BACK)
    return result


_OBSERVED: dict[str, Callable[..., Any]] = {
    "do_commit": _around_commit,
    "do_rollback": _around_rollback,
    "do_close": _around_close,
    "do_terminate": _around_close,
    "do_savepoint": _around_savepoint,
    "do_release_savepoint": _around_release,
    "do_rollback_to_savepoint": _around_rollback_to,
    "do_prepare_twophase": _around_prepare,
    "do_commit_twophase": _around_commit_twophase,
    "do_rollback_twophase": _around_rollback_twophase,
}
