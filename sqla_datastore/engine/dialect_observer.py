"""The observer of dialects: it sees what the DBAPI connection is really told to do.

A dialect is observed from the first connection of its pool on, and that of an engine which is older
than this module at once. One that pools do not show, as that of an engine whose pool was given to
another, is observed from the first time on that a Session uses it or that a column type of this
library is compiled for it. Its own methods are replaced, as instance attributes, and each one tells
the transaction of the connection, if one is open. So does its kind of execution context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from threading import Lock
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from sqla_datastore.dml import overlaps
from sqla_datastore.dml.dialects import begins_late, has_row_locks
from sqla_datastore.engine.drivers import DriverState, driver_state
from sqla_datastore.engine.execution import is_observed, observed
from sqla_datastore.engine.observed_transaction import (
    ObservedTransaction,
    open_transaction,
    open_transactions,
    transaction_of,
)
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.schema.sqlalchemy_compat import pool_dialect
from sqla_datastore.unitofwork import writing
from sqla_datastore.unitofwork.commit_checks import watched_connections, watches_of
from sqla_datastore.unitofwork.outcome import COMMITTED, ROLLED_BACK, Phase, Unknown

_MARK = "_sqla_datastore_observed"
_OBSERVING = Lock()


def install() -> None:
    """Observe the dialect of each engine that connects from now on."""
    event.listen(Pool, "connect", _connected)
    event.listen(Pool, "reset", _reset)


def observe(dialect: Any) -> None:
    """Observe a dialect: its methods and its kind of execution context; once."""
    if _MARK in vars(dialect) and is_observed(dialect.execution_ctx_cls):
        return
    # threads that use an engine for the first time: none may go on before all of it is observed
    with _OBSERVING:
        if _MARK not in vars(dialect):
            _replace_methods(dialect)
        if not is_observed(dialect.execution_ctx_cls):
            dialect.execution_ctx_cls = observed(dialect.execution_ctx_cls)
        vars(dialect)[_MARK] = True


def refuse_replaced(dialect: Any) -> None:
    """Refuse a value where another kind of execution context took the place of ours.

    Nothing would give the value its URL, and the row would hold what stands for it.

    Raises:
        ConfigurationError: it did. The next statement is observed again.
    """
    kind = dialect.execution_ctx_cls
    if is_observed(kind) or _MARK not in vars(dialect):
        return
    observe(dialect)
    raise ConfigurationError(
        f"the execution_ctx_cls of dialect {dialect.name!r} was set to {kind.__qualname__!r} after "
        "its engine had connected, so this statement is not seen; set it before the first "
        "connection, on the class of the dialect or in an engine plugin"
    )


def _replace_methods(dialect: Any) -> None:
    if not has_row_locks(dialect):
        _note_overlaps(dialect)
    for name, observed_method in _OBSERVED.items():
        setattr(dialect, name, _wrapped(dialect, getattr(dialect, name), observed_method))
    for name in ("do_begin", "do_begin_twophase"):
        setattr(dialect, name, _beginning(getattr(dialect, name)))


def _note_overlaps(dialect: Any) -> None:
    """Note which transactions are open, where no row locks keep them apart."""
    dialect.do_begin = _noting(dialect.do_begin, before=overlaps.begun)
    for name in ("do_commit", "do_rollback", "do_close", "do_terminate"):
        setattr(dialect, name, _noting(getattr(dialect, name), after=overlaps.ended))


def _noting(
    original: Callable[..., Any],
    before: Callable[[Any], None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> Any:
    @wraps(original)
    def call(connection: Any) -> Any:
        raw = _raw_of(connection)
        if before is not None:
            before(raw)
        result = original(connection)
        if after is not None:
            after(raw)
        return result

    return call


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


@dataclass(frozen=True, slots=True)
class _Method:
    """What is done around a method of a dialect.

    Attributes:
        around: where a transaction is open on the connection.
        without: where none is; by default nothing.
        may_begin: whether `without` is for any connection, also while nothing is open or watched.
    """

    around: Callable[..., Any]
    without: Callable[..., Any] | None = None
    may_begin: bool = False


def _wrapped(dialect: Any, original: Callable[..., Any], method: _Method) -> Any:
    @wraps(original)
    def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
        if not (open_transactions or watched_connections or method.may_begin):
            return original(connection, *args, **kwargs)
        proceed = partial(original, connection, *args, **kwargs)
        transaction = open_transaction(_raw_of(connection))
        if transaction is None:
            without = method.without
            return proceed() if without is None else without(dialect, connection, proceed, *args)
        if transaction.is_busy:
            # the dialect's own nested calls, such as asyncpg's ROLLBACK after COMMIT PREPARED
            if method.around is _around_close:
                transaction.closed_inside()
            return proceed()
        with transaction.own_calls():
            return method.around(transaction, dialect, connection, proceed, *args)

    return call


def _raw_of(connection: Any) -> Any:
    """Return the driver's connection of a `Connection`, a pool's proxy or itself."""
    if hasattr(connection, "get_execution_options"):
        connection = connection.connection
    # a pool's proxy has the driver's connection behind it, until that is lost
    return getattr(connection, "dbapi_connection", connection)


def _commit_watched(dialect: Any, connection: Any, proceed: Callable[[], Any]) -> Any:
    """Refuse edits in place that no flush has saved, where nothing else was done to objects."""
    try:
        for watch in watches_of(_raw_of(connection)):
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


def _first_savepoint(dialect: Any, connection: Any, proceed: Callable[[], Any], name: str) -> Any:
    """Watch a savepoint that starts the transaction: releasing it will commit (SQLite)."""
    starts = _starts_transaction(dialect, _raw_of(connection))
    result = proceed()
    if starts:
        transaction_of(connection).root_savepoint = name
    return result


def _starts_transaction(dialect: Any, raw: Any) -> bool:
    return begins_late(dialect) and driver_state(dialect.driver, raw) is DriverState.IDLE


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


_OBSERVED = {
    "do_commit": _Method(_around_commit, without=_commit_watched),
    "do_rollback": _Method(_around_rollback),
    "do_close": _Method(_around_close),
    "do_terminate": _Method(_around_close),
    "do_savepoint": _Method(_around_savepoint, without=_first_savepoint, may_begin=True),
    "do_release_savepoint": _Method(_around_release),
    "do_rollback_to_savepoint": _Method(_around_rollback_to),
    "do_prepare_twophase": _Method(_around_prepare),
    "do_commit_twophase": _Method(_around_commit_twophase),
    "do_rollback_twophase": _Method(_around_rollback_twophase),
}
