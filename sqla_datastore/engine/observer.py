"""How a database transaction ends: the observer of dialects.

Events cannot tell. The engine's ``commit`` event fires before the DBAPI's commit and nothing
follows it; after a failed COMMIT no rollback event fires; a Session's ``after_commit`` also fires
where only a savepoint was released. So the dialect's own methods are observed, as instance
attributes, and the driver is asked what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from sqla_datastore.engine.drivers import (
    TransactionState,
    transaction_state,
)
from sqla_datastore.unitofwork.transaction import (
    Transaction,
    commit_checks,
    found_on,
    open_transaction,
    opened,
    unwrap,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


__all__ = ["begun", "end_if_out_of_sight", "forgotten", "observe", "transaction_of"]


def transaction_of(connection: Connection) -> Transaction:
    """Return the transaction of a connection, opened now if it is the first time."""
    found = found_on(connection)
    if found is None:
        observe(connection)
        found = opened(connection)
    found.used_by(connection)
    return found


def end_if_out_of_sight(connection: Connection) -> None:
    """End a transaction that is over though nobody saw it; called before a statement runs.

    The driver's own ``commit()``, a procedure, text that is not recognized: the statement begins
    another transaction, after which the driver could not tell any more.
    """
    found = found_on(connection)
    if found is None or found.busy or found.ledger.is_empty:
        return
    if found.state is TransactionState.IDLE:
        found.end("it ended out of sight before a statement")


def begun(connection: Connection) -> None:
    """Note that a new transaction begins: one that is still open is dead, or goes on.

    After an error in a listener of ``commit`` SQLAlchemy sends neither COMMIT nor ROLLBACK, so the
    next transaction of the connection is the same one to the database.
    """
    found = found_on(connection)
    if found is None or found.busy or found.state is TransactionState.ACTIVE:
        return
    found.end("rollback" if found.commit_failed else "its connection began another one")


# -- observing a dialect -------------------------------------------------------------------------

_MARK = "_sqla_datastore_observed"


def forgotten(raw: Any, _record: Any, state: Any) -> None:
    """End the transaction of a connection that was garbage collected and is only dropped.

    Called by the pool's ``reset``. Nothing is called on an asynchronous driver that cannot
    terminate, and nobody can send a COMMIT any more: the server rolls back, once we let go of it.
    """
    transaction = open_transaction(raw) if state.terminate_only else None
    if transaction is not None and not state.asyncio_safe:
        transaction.end(transaction.lost())


def observe(connection: Connection) -> None:
    """Observe the dialect of a connection's engine, and its pool's; once each."""
    engine = connection.engine
    for dialect in (engine.dialect, getattr(engine.pool, "_dialect", None)):
        if dialect is not None and _MARK not in vars(dialect):
            vars(dialect)[_MARK] = True
            _observe(dialect)


def _observe(dialect: Any) -> None:
    for name, around in _OBSERVED.items():
        original = getattr(dialect, name)
        setattr(dialect, name, _wrapped(dialect, original, around))


def _wrapped(dialect: Any, original: Callable[..., Any], around: Callable[..., Any]) -> Any:
    @wraps(original)
    def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
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
        if transaction.busy:
            # the dialect's own nested calls, such as asyncpg's ROLLBACK after COMMIT PREPARED
            transaction.closed_inside |= around is _around_close
            return proceed()
        with transaction.inside():
            return around(transaction, dialect, connection, proceed, *args)

    return call


def _raw_of(connection: Any) -> Any:
    """Return the driver's connection of a `Connection`, a pool's proxy or itself."""
    if hasattr(connection, "get_execution_options"):
        connection = connection.connection
    return unwrap(connection)


def _commit_without_ledger(
    dialect: Any, connection: Any, raw: Any, proceed: Callable[[], Any]
) -> Any:
    try:
        for check in commit_checks:
            check(raw)
    except BaseException:
        dialect.do_rollback(connection)
        raise
    return proceed()


def _around_commit(
    transaction: Transaction, dialect: Any, connection: Any, proceed: Callable[[], Any]
) -> Any:
    if transaction.prepared:
        return proceed()
    return transaction.commit(proceed, lambda: dialect.do_rollback(connection))


def _around_rollback(
    transaction: Transaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any]
) -> Any:
    return proceed() if transaction.prepared else transaction.rollback(proceed)


def _around_close(
    transaction: Transaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any]
) -> Any:
    try:
        return proceed()
    finally:
        transaction.end(transaction.lost())


def _first_savepoint(connection: Any, raw: Any, name: str, proceed: Callable[[], Any]) -> Any:
    """Watch a savepoint that starts the transaction: releasing it will commit (SQLite)."""
    starts = (
        connection.dialect.name == "sqlite"
        and transaction_state(connection.dialect.driver, raw) is TransactionState.IDLE
    )
    result = proceed()
    if starts:
        transaction_of(connection).root_savepoint = name
    return result


def _around_savepoint(
    transaction: Transaction,
    _dialect: Any,
    _connection: Any,
    proceed: Callable[[], Any],
    name: str,
) -> Any:
    starts = (
        transaction.dialect.name == "sqlite"
        and transaction.ledger.is_empty
        and transaction.state is TransactionState.IDLE
    )
    result = proceed()
    transaction.ledger.begin_savepoint(name)
    if starts:
        transaction.root_savepoint = name
    return result


def _around_release(
    transaction: Transaction, dialect: Any, connection: Any, proceed: Callable[[], Any], name: str
) -> Any:
    if transaction.root_savepoint == name:
        return transaction.commit(proceed, lambda: dialect.do_rollback(connection.connection))
    result = proceed()
    transaction.ledger.release(name)
    return result


def _around_rollback_to(
    transaction: Transaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any], name: str
) -> Any:
    result = proceed()
    transaction.take_pending()
    transaction.statement_failed = False
    transaction.ledger.rollback_to(name)
    kept = transaction.ledger.size
    transaction.failed = [(size, failed) for size, failed in transaction.failed if size <= kept]
    return result


def _around_prepare(
    transaction: Transaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any], _xid: Any
) -> Any:
    if transaction.has_failed():
        # PostgreSQL answers PREPARE with a rollback, and no error
        transaction.end("rollback")
        return proceed()
    # if this fails nothing was sent: SQLAlchemy's rollback follows, and may be sent only once
    transaction.prepare()
    # from now on only the second phase decides, unless the database itself refuses to prepare
    transaction.prepared = True
    try:
        return proceed()
    except BaseException as err:
        transaction.prepared = not transaction.is_definite(err)
        raise


def _around_commit_twophase(
    transaction: Transaction,
    dialect: Any,
    connection: Any,
    proceed: Callable[[], Any],
    xid: Any,
    *_: Any,
) -> Any:
    if not transaction.prepared:
        return transaction.commit(
            proceed, lambda: dialect.do_rollback_twophase(connection, xid, is_prepared=False)
        )
    try:
        result = proceed()
    except BaseException as err:
        transaction.end(f"COMMIT PREPARED was sent and raised {type(err).__name__}")
        raise
    transaction.end("commit")
    return result


def _around_rollback_twophase(
    transaction: Transaction, _dialect: Any, _connection: Any, proceed: Callable[[], Any], *_: Any
) -> Any:
    try:
        result = proceed()
    except BaseException as err:
        if transaction.prepared:
            transaction.end(f"ROLLBACK PREPARED was sent and raised {type(err).__name__}")
        else:
            transaction.end("rollback")
        raise
    transaction.end("rollback")
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
