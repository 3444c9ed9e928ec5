"""The listeners of engines: what a statement does to objects, before and after it runs.

==========================  =====================================================================
``before_cursor_execute``   values in the parameters get their URLs; the URLs that affected rows
                            hold are selected
``after_execute``           the statement ran: its objects are written and its folders listed; those
                            of a flush wait for the flush's end
``handle_error``            the statement failed: what it may have done all the same is noted
==========================  =====================================================================
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExecutionContext
from sqlalchemy.pool import Pool

from sqla_datastore.dml.concern import Concern, concern_of
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.insert_update_delete import effects_of, stands_for_urls
from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.dml.row_queries import OWN
from sqla_datastore.dml.statement import TransactionView
from sqla_datastore.engine import dialect_observer, transaction_control
from sqla_datastore.engine.dialect_observer import transaction_of
from sqla_datastore.engine.drivers import DriverState, autocommits, driver_state
from sqla_datastore.engine.observed_transaction import ObservedTransaction, found_on
from sqla_datastore.unitofwork import writing
from sqla_datastore.unitofwork.outcome import COMMITTED, ROLLED_BACK, Phase, Unknown
from sqla_datastore.unitofwork.values_of_rows import expire_met

logger = logging.getLogger("sqla_datastore")

_RUN = "_sqla_datastore_run"


@dataclass(frozen=True, slots=True)
class _Run:
    """One execution of a statement that does something to objects; kept on its context.

    Attributes:
        transaction: the one that it runs in.
        effects: what it does.
        autocommit: whether it is a transaction of its own.
    """

    transaction: ObservedTransaction
    effects: Effects
    autocommit: bool


def install() -> None:
    """Listen to all engines."""
    event.listen(Engine, "before_cursor_execute", _before_cursor_execute, retval=True)
    event.listen(Engine, "after_execute", _after_execute)
    event.listen(Engine, "handle_error", _handle_error)
    event.listen(Engine, "begin", _begin)
    event.listen(Engine, "begin_twophase", _begin)
    event.listen(Pool, "reset", dialect_observer.forgotten)


def _begin(connection: Connection, *_: Any) -> None:
    dialect_observer.observe(connection)
    transaction = found_on(connection)
    if transaction is not None:
        transaction.end_if_begun_again()


# -- before a statement ----------------------------------------------------------------------------


def _before_cursor_execute(
    connection: Connection,
    _cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext | None,
    _executemany: bool,
) -> tuple[str, Any]:
    compiled: Any = getattr(context, "compiled", None)
    if compiled is not None and OWN in context.execution_options:  # type: ignore[union-attr]
        # asked about rows for a statement, or a COMMIT, that was looked at already
        return statement, _with_urls(parameters) if stands_for_urls(context) else parameters
    transaction = found_on(connection)
    # the next batch of a statement that is a transaction of its own goes on in it
    if transaction is not None and not hasattr(context, _RUN):
        transaction = None if transaction.end_if_out_of_sight() else transaction
    is_text = compiled is None or context.isddl or context.is_text  # type: ignore[union-attr]
    if is_text and transaction is not None:
        _note_text(transaction, statement)
    if compiled is None or context.isddl:  # type: ignore[union-attr]
        return statement, parameters
    concern = concern_of(compiled)
    if concern is not None:
        _look_ahead(connection, context, concern, transaction)
        if concern.binds_values:
            parameters = _with_urls(parameters)
    return statement, parameters


def _note_text(transaction: ObservedTransaction, statement: str) -> None:
    """Note transaction control that SQLAlchemy does not see; nobody can tell its effect."""
    if transaction.ledger.is_empty:
        return
    transaction.rows.ran_ddl |= transaction_control.drops_things(statement)
    if transaction_control.controls_transaction(statement, transaction.dialect.name):
        transaction.doubt = Unknown(f"{statement.strip()[:60]!r} was executed as text")


def _look_ahead(
    connection: Connection,
    context: Any,
    concern: Concern,
    transaction: ObservedTransaction | None,
) -> None:
    """Find out what a statement will do, once per execution: each batch calls this."""
    if hasattr(context, _RUN):
        return
    setattr(context, _RUN, None)
    autocommit = context.is_crud and is_autocommit(connection)
    if concern.declared is not None and not autocommit:
        _begin_immediately(connection)
    view = _NO_TRANSACTION[autocommit]
    if transaction is not None:
        view = transaction.view(autocommit=autocommit)
    effects = effects_of(connection, context, concern, view)
    if effects is None:
        return
    if transaction is None or transaction.phase is Phase.ENDED:
        # what was asked about its rows may have shown that it had ended
        transaction = transaction_of(connection)
    else:
        transaction.used_by(connection)
    setattr(context, _RUN, _Run(transaction, effects, autocommit))
    schemas = frozenset((context.execution_options.get("schema_translate_map") or {}).items())
    transaction.rows.metadatas[effects.declared.table.metadata, schemas] = None
    if autocommit:
        _write_ahead(transaction, effects)


_NO_TRANSACTION = {
    autocommit: TransactionView(
        flushing=False,
        autocommit=autocommit,
        pending=set(),
        superseded=lambda _: False,
        is_pending=lambda _: False,
    )
    for autocommit in (False, True)
}
"""What a statement sees where no transaction is open on its connection."""


def _write_ahead(transaction: ObservedTransaction, effects: Effects) -> None:
    """Write objects before a statement under AUTOCOMMIT, which commits itself."""
    try:
        writing.write(transaction, effects.reserved)
        transaction.ledger.make_durable(effects.names)
    except BaseException:
        transaction.end(ROLLED_BACK)
        raise


def _with_urls(parameters: Any) -> Any:
    if isinstance(parameters, Reservation):
        return str(parameters.url)
    if isinstance(parameters, dict):
        return {key: _with_urls(value) for key, value in parameters.items()}
    if isinstance(parameters, (list, tuple)):
        return type(parameters)([_with_urls(item) for item in parameters])
    return parameters


def is_autocommit(connection: Connection) -> bool:
    """Return whether the next statement of a connection is a transaction of its own."""
    driver, raw = connection.dialect.driver, connection.connection.dbapi_connection
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        # a BEGIN that a listener sends, as recommended for SQLite, is a transaction all the same
        return driver_state(driver, raw) is not DriverState.ACTIVE
    return autocommits(driver, raw)


def _begin_immediately(connection: Connection) -> None:
    """Begin the transaction that stock ``sqlite3`` would begin only with the statement itself.

    It begins late, so that what is asked before a statement would be asked outside its
    transaction, and another one could change it in between.
    """
    dialect = connection.dialect
    if dialect.name == "sqlite":
        state = driver_state(dialect.driver, connection.connection.dbapi_connection)
        if state is DriverState.IDLE:
            connection.exec_driver_sql("BEGIN IMMEDIATE")


# -- after a statement -----------------------------------------------------------------------------


def _taken_run(context: Any) -> _Run | None:
    """Return what was noted of a statement before it ran, once."""
    run: _Run | None = getattr(context, _RUN, None)
    if run is not None:
        setattr(context, _RUN, None)
    return run


def _rowcount(context: Any, result: Any) -> int:
    """Return how many rows an UPDATE or DELETE matched, -1 where the driver does not know yet."""
    if context.isinsert or (result.returns_rows and context.dialect.name == "sqlite"):
        # sqlite3 counts the rows of RETURNING while they are fetched
        return -1
    return int(result.rowcount)


def _after_execute(
    connection: Connection, _clause: Any, _multi: Any, _params: Any, _options: Any, result: Any
) -> None:
    context = getattr(result, "context", None)
    run = _taken_run(context)
    if run is None:
        return
    transaction, effects = run.transaction, run.effects
    try:
        with transaction.own_calls():
            effects.settle(connection, _rowcount(context, result))
    except BaseException:
        transaction.log_failed(effects)
        raise
    # a driver that commits by itself may not have said so before
    if run.autocommit or transaction.driver_state is DriverState.IDLE:
        writing.write(transaction, effects.reserved)
        _end_own_transaction(transaction, effects)
    elif transaction.flushing is not None:
        transaction.defer(effects)
    else:
        writing.carry_out(transaction, [effects])
    if effects.upsert is not None:
        expire_met(connection, effects.declared)


def _end_own_transaction(transaction: ObservedTransaction, effects: Effects) -> None:
    """After a statement under AUTOCOMMIT, remove what it superseded; failures are logged."""
    try:
        with transaction.own_calls():
            writing.carry_out(transaction, [effects])
            transaction.decide(refuses_strays=False)
    except BaseException as err:
        transaction.end(Unknown("looking after a statement that was its own transaction failed"))
        if not isinstance(err, Exception):
            raise
        logger.exception("what a committed statement superseded could not be found out")
    else:
        transaction.end(COMMITTED)


def _handle_error(context: Any) -> None:
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    transaction = found_on(connection)
    if transaction is None or transaction.is_busy:
        return
    transaction.statement_failed = True
    run = _taken_run(context.execution_context)
    if run is not None and run.autocommit:
        _end_failed_autocommit(transaction, run.effects)
    elif transaction.state_after_error() is DriverState.IDLE:
        # no database commits because of an error, so this one has rolled back all of it
        # (SQLITE_FULL, INSERT OR ROLLBACK, a deadlock on MySQL); what follows is another one
        transaction.end(ROLLED_BACK)
    elif run is not None:
        transaction.log_failed(run.effects)


def _end_failed_autocommit(transaction: ObservedTransaction, effects: Effects) -> None:
    """Ask which rows a failed executemany under AUTOCOMMIT has committed all the same."""
    try:
        with transaction.own_calls():
            transaction.log_failed(effects)
            transaction.decide(refuses_strays=False)
    except Exception as err:
        reason = f"a statement failed under AUTOCOMMIT, and so did asking: {err!r}"
        transaction.end(Unknown(reason))
    else:
        transaction.end(COMMITTED)
