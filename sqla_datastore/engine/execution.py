"""What a statement does to objects, before and after it runs.

Every dialect that is used gets an execution context of its own kind (see `observed`), which is
told of each statement by SQLAlchemy:

==========================  =====================================================================
``pre_exec``                values in the parameters get their URLs; the URLs that affected rows
                            hold are selected
``_setup_result_proxy``     the statement ran: its objects are written and its folders listed; those
                            of a flush wait for the flush's end
``handle_dbapi_exception``  the driver raised: what the statement may have done is noted
==========================  =====================================================================

A listener of `Engine` would be told, too. But one listener makes SQLAlchemy look for listeners at
every step of every statement: 25 % more instructions for a text, 15 % for an INSERT with COMMIT.
And an application's listener of ``handle_error`` that raises keeps the error from all after it. So
ours only hears of what no context is told: errors that are not the driver's, such as a cancelled
task's.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, ExceptionContext, ExecutionContext
from sqlalchemy.engine.default import DefaultExecutionContext

from sqla_datastore.dml.concern import CONCERNS_NOTHING, Concern, concern_of
from sqla_datastore.dml.dialects import begins_late, counts_returned_rows_late
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.insert_update_delete import effects_of, stands_for_urls
from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.dml.row_queries import OWN
from sqla_datastore.dml.statement import TransactionView
from sqla_datastore.engine import transaction_control
from sqla_datastore.engine.drivers import DriverState, autocommits, driver_state
from sqla_datastore.engine.observed_transaction import (
    ObservedTransaction,
    found_on,
    open_transactions,
    transaction_of,
)
from sqla_datastore.schema.declarations import DECLARATIONS
from sqla_datastore.unitofwork import writing
from sqla_datastore.unitofwork.outcome import COMMITTED, ROLLED_BACK, Phase, Unknown
from sqla_datastore.unitofwork.values_of_rows import expire_met

logger = logging.getLogger("sqla_datastore")

_HEARS = "_sqla_datastore_hears_of_errors"


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


@cache
def observed(kind: type[ExecutionContext]) -> type[ExecutionContext]:
    """Return the kind of execution context that a dialect is given in place of its own."""
    # not ``super()``, and not the default that does nothing: every statement pays for it
    does_nothing = kind.pre_exec is DefaultExecutionContext.pre_exec
    own_pre_exec = None if does_nothing else kind.pre_exec

    def pre_exec(self: Any) -> None:
        nothing = getattr(self.compiled, CONCERNS_NOTHING, None) == DECLARATIONS.version
        if open_transactions or not nothing:
            try:
                _before(self)
            except BaseException:
                _close_cursor(self)
                raise
        # last: that of SQL Server sends a setting, which a statement that is refused would leave on
        if own_pre_exec is not None:
            own_pre_exec(self)

    def handle_dbapi_exception(self: Any, err: BaseException) -> None:
        _failed(self)
        kind.handle_dbapi_exception(self, err)

    added = {
        "__module__": kind.__module__,
        "datastore_run": None,
        "pre_exec": pre_exec,
        "handle_dbapi_exception": handle_dbapi_exception,
    }
    return type(kind.__name__, (kind,), added)


def is_observed(kind: type[ExecutionContext]) -> bool:
    """Return whether a kind of execution context is one of `observed`, or made of one."""
    return hasattr(kind, "datastore_run")


# -- before a statement ----------------------------------------------------------------------------


def _before(context: Any) -> None:
    compiled, connection = context.compiled, context.root_connection
    if compiled is not None and OWN in context.execution_options:
        # asked about rows for a statement, or a COMMIT, that was looked at already
        if stands_for_urls(context):
            context.parameters = _with_urls(context.parameters)
        return
    transaction = _going_on(connection)
    is_text = compiled is None or context.isddl or context.is_text
    if is_text and transaction is not None:
        _note_text(transaction, context.statement)
    concern = None if compiled is None else concern_of(compiled)
    if concern is not None:
        _look_ahead(connection, context, concern, transaction)
        if concern.binds_values:
            context.parameters = _with_urls(context.parameters)


def _close_cursor(context: Any) -> None:
    """Close the cursor of a statement that is not run; SQLAlchemy does so for those that are."""
    # after a cancelled task the connection may be gone, and that error would hide the cancellation
    with suppress(Exception):
        context.cursor.close()


def _going_on(connection: Connection) -> ObservedTransaction | None:
    """Return the transaction that a statement runs in, if any; one that is over ends here."""
    transaction = found_on(connection)
    if transaction is None:
        return None
    if not connection.in_transaction():
        # a listener of `begin` sends a BEGIN by hand, as is recommended for SQLite
        transaction.end_if_begun_again()
        return None
    return None if transaction.end_if_out_of_sight() else transaction


def _note_text(transaction: ObservedTransaction, statement: str) -> None:
    """Note transaction control that SQLAlchemy does not see; nobody can tell its effect."""
    if transaction.ledger.is_empty:
        return
    transaction.rows.ran_ddl |= transaction_control.drops_things(statement)
    if transaction_control.controls_transaction(statement, transaction.dialect):
        transaction.doubt = Unknown(f"{statement.strip()[:60]!r} was executed as text")


def _look_ahead(
    connection: Connection,
    context: Any,
    concern: Concern,
    transaction: ObservedTransaction | None,
) -> None:
    """Find out what a statement will do."""
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
    _hear_of_errors(connection.dialect)
    context.datastore_run = _Run(transaction, effects, autocommit)
    # of this one alone, so that other statements do not pay for it
    context._setup_result_proxy = partial(_result, context)
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
    if begins_late(dialect):
        state = driver_state(dialect.driver, connection.connection.dbapi_connection)
        if state is DriverState.IDLE:
            connection.exec_driver_sql("BEGIN IMMEDIATE")


# -- after a statement -----------------------------------------------------------------------------


def _result(context: Any) -> Any:
    """Return the result of a statement, once its effects were looked after."""
    del context._setup_result_proxy
    result = context._setup_result_proxy()
    # only now: where the result cannot be had, the statement ran all the same
    run = _taken_run(context)
    assert run is not None
    _after(context.root_connection, run, _rowcount(context, result))
    return result


def _taken_run(context: Any) -> _Run | None:
    """Return what was noted of a statement before it ran, once."""
    run: _Run | None = context.datastore_run
    if run is not None:
        context.datastore_run = None
        # a statement that failed has come to no result; its context would hold itself
        vars(context).pop("_setup_result_proxy", None)
    return run


def _rowcount(context: Any, result: Any) -> int:
    """Return how many rows an UPDATE or DELETE matched, -1 where the driver does not know yet."""
    if context.isinsert or (result.returns_rows and counts_returned_rows_late(context.dialect)):
        return -1
    return int(result.rowcount)


def _after(connection: Connection, run: _Run, rowcount: int) -> None:
    transaction, effects = run.transaction, run.effects
    try:
        with transaction.own_calls():
            effects.settle(connection, rowcount)
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


# -- after an error --------------------------------------------------------------------------------


def _hear_of_errors(dialect: Any) -> None:
    """Hear of other errors than the driver's, from the first statement on that concerns objects.

    A dialect that has a listener looks for others at each statement.
    """
    if _HEARS not in vars(dialect):
        # first of those that the engine has: one that raises keeps the error from the rest
        event.listen(dialect, "handle_error", _other_error, insert=True)
        vars(dialect)[_HEARS] = True


def _other_error(error: ExceptionContext) -> None:
    context = error.execution_context
    is_drivers = error.sqlalchemy_exception is not None
    if context is not None and not is_drivers:
        _failed(context)


def _failed(context: Any) -> None:
    """Note what a statement that failed may have done all the same."""
    connection = context.root_connection
    if connection.closed or connection.invalidated:
        return
    transaction = found_on(connection)
    if transaction is None or transaction.is_busy:
        return
    transaction.statement_failed = True
    run = _taken_run(context)
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
