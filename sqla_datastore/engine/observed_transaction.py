"""How a database transaction ends, as its connection and its driver show it.

Events cannot tell. The engine's ``commit`` event fires before the DBAPI's commit and nothing
follows it. After a failed COMMIT no rollback event fires. A COMMIT that returns may have rolled
back: PostgreSQL does so after a failed statement. So the driver is asked, before and after.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from typing_extensions import override

from sqla_datastore.engine import drivers
from sqla_datastore.engine.drivers import DriverState
from sqla_datastore.unitofwork.outcome import COMMITTED, ROLLED_BACK, Outcome, Phase, Unknown
from sqla_datastore.unitofwork.transaction import Transaction

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

logger = logging.getLogger("sqla_datastore")

# SQLSTATEs that leave open whether a COMMIT succeeded: transaction resolution unknown, and
# statement completion unknown (ISO/IEC 9075-2, PostgreSQL appendix A)
_UNKNOWN_OUTCOME = {"08007", "40003"}

open_transactions: dict[int, ObservedTransaction] = {}
"""The open transactions by the id of the driver's connection; mostly none."""


class ObservedTransaction(Transaction):
    """A transaction whose connection is observed.

    Attributes:
        doubt: set once text or implicit DDL may have ended it: then nobody can tell.
        root_savepoint: the savepoint that began it (stock ``sqlite3``): releasing it commits.
        statement_failed: whether a statement failed since the last savepoint was rolled back to.
    """

    def __init__(self, connection: Connection, raw: Any) -> None:
        super().__init__(connection, raw)
        self.doubt: Unknown | None = None
        self.root_savepoint: str | None = None
        self.statement_failed = False
        self._own_calls = 0
        self._closed_inside = False
        self._process = os.getpid()

    # -- what the driver says ----------------------------------------------------------------------

    @property
    def driver_state(self) -> DriverState:
        """What the driver says of its transaction."""
        return drivers.driver_state(self.dialect.driver, self.raw)

    def state_after_error(self) -> DriverState:
        """What the driver says after a statement failed; may ask the server."""
        return drivers.state_after_error(self.dialect.driver, self.raw)

    def has_failed(self) -> bool:
        """Return whether it can only be rolled back, although COMMIT would raise no error."""
        return self.driver_state is DriverState.FAILED or self._server_says_failed()

    def _server_says_failed(self) -> bool:
        """Ask the server, where a statement failed and the driver cannot tell what that did."""
        if self.dialect.driver != "asyncpg" or not self.statement_failed:
            return False
        cursor = self.raw.cursor()
        try:
            cursor.execute("SELECT 1")
        except Exception:
            return True
        finally:
            cursor.close()
        return False

    def is_definite(self, err: BaseException) -> bool:
        """Whether the database itself refused a COMMIT or PREPARE."""
        dbapi: Any = self.dialect.loaded_dbapi
        if isinstance(err, DBAPIError) and err.orig is not None:
            # RELEASE of a savepoint is a statement, so SQLAlchemy has wrapped its error
            err = err.orig
        if not isinstance(err, dbapi.Error):
            return False
        original = getattr(err, "orig", err)
        sqlstate = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
        if sqlstate in _UNKNOWN_OUTCOME:
            return False
        if self.dialect.name in ("mysql", "mariadb") and not _is_of_mysql_server(original):
            return False
        return not self.dialect.is_disconnect(err, self.raw, None)

    # -- calls of our own --------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether calls to the connection are this library's own, or the dialect's nested ones."""
        return self._own_calls > 0

    @contextmanager
    def own_calls(self) -> Iterator[None]:
        """Have observers pass over the calls inside.

        But a connection that is closed inside is lost, and nothing else will tell.
        """
        self._own_calls += 1
        try:
            yield
        finally:
            self._own_calls -= 1
            if self._closed_inside and not self.is_busy and self.phase is not Phase.ENDED:
                self.end(self.lost())

    def closed_inside(self) -> None:
        """Note that the connection was closed by one of these calls."""
        self._closed_inside = True

    # -- its end -----------------------------------------------------------------------------------

    def commit(self, commit: Callable[[], Any], rollback: Callable[[], Any]) -> Any:
        """Run the driver's COMMIT with the phases around it.

        Args:
            commit: the dialect's own method.
            rollback: rolls the driver back, if the objects could not be made durable.
        """
        outcome = self._outcome_before_commit()
        if outcome is not None:
            try:
                return commit()
            finally:
                self.end(outcome)
        try:
            self.prepare()
        except BaseException:
            self._roll_back_now(rollback)
            raise
        try:
            result = commit()
        except BaseException as err:
            self._commit_raised(err)
            raise
        self.end(COMMITTED)
        return result

    def _outcome_before_commit(self) -> Outcome | None:
        """Return how it is known to end, whatever COMMIT answers; None if COMMIT decides."""
        if self.is_empty:
            return None
        if self.has_failed():
            return ROLLED_BACK
        if self.driver_state is DriverState.IDLE:
            return Unknown("it ended out of sight before COMMIT")
        return self.doubt

    def _roll_back_now(self, rollback: Callable[[], Any]) -> None:
        try:
            rollback()
        except Exception as err:
            # without a COMMIT the server drops the transaction with the connection
            logger.warning("ROLLBACK failed after a refused COMMIT: %r", err)
        self.end(ROLLED_BACK)

    def _commit_raised(self, err: BaseException) -> None:
        if not self.is_definite(err):
            self.end(Unknown(f"COMMIT was sent and raised {type(err).__name__}"))
            return
        self.phase = Phase.REFUSED
        if self.driver_state is DriverState.IDLE:
            self.end(ROLLED_BACK)

    def rollback(self, rollback: Callable[[], Any]) -> Any:
        """Run the driver's ROLLBACK and undo what was written."""
        idle = self.driver_state is DriverState.IDLE
        known = self.phase is Phase.REFUSED or self.ledger.is_empty
        out_of_sight = (
            Unknown("it ended out of sight before ROLLBACK") if idle and not known else None
        )
        try:
            return rollback()
        finally:
            self.end(self.doubt or out_of_sight or ROLLED_BACK)

    def lost(self) -> Outcome:
        """Return how it ends with its connection: without a COMMIT it is rolled back."""
        if self.doubt is None and self.phase is Phase.PREPARED:
            return Unknown("its connection was closed after PREPARE")
        return self.doubt or ROLLED_BACK

    def end_if_out_of_sight(self) -> bool:
        """End it if it is over though nobody saw it. Called before a statement runs.

        The driver's own ``commit()``, a procedure, text that is not recognized: the statement
        begins another transaction, after which the driver could not tell any more.

        Returns:
            Whether it was over.
        """
        over = (
            not self.is_busy and not self.ledger.is_empty and self.driver_state is DriverState.IDLE
        )
        if over:
            self.end(Unknown("it ended out of sight before a statement"))
        return over

    def end_if_begun_again(self) -> None:
        """End it if its connection begins another one, unless the driver still reports it as open.

        After an error in a listener of ``commit`` SQLAlchemy sends neither COMMIT nor ROLLBACK, so
        the next transaction of the connection is the same one to the database.
        """
        if self.is_busy or self.driver_state is DriverState.ACTIVE:
            return
        refused = self.phase is Phase.REFUSED
        self.end(ROLLED_BACK if refused else Unknown("its connection began another one"))

    @override
    def end(self, outcome: Outcome) -> None:
        if open_transactions.get(id(self.raw)) is self:
            del open_transactions[id(self.raw)]
        # a child that was forked amid one of its calls, or by a hook before ours, leaves it alone
        if self._process == os.getpid():
            super().end(outcome)


def _is_of_mysql_server(err: Any) -> bool:
    """Return whether an error of a driver is the server's, and not of a connection that was lost.

    Numbers of the client are 2000 to 2999 (MySQL's "Client Error Message Reference"); SQLAlchemy
    does not know all of those that mysql-connector-python gives to a lost connection.
    """
    number = getattr(err, "errno", None) or (err.args[0] if err.args else None)
    return isinstance(number, int) and (1000 <= number < 2000 or number >= 3000)


# -- the open transactions -------------------------------------------------------------------------


def open_transaction(raw: Any) -> ObservedTransaction | None:
    """Return the open transaction of a driver's connection, if any; a forked child has none."""
    return open_transactions.get(id(raw))


def _leave_to_parent() -> None:
    """Forget the transactions of the process that was forked: they are not the child's to end."""
    # kept, since a driver's connection that is collected may say goodbye on the parent's socket
    _of_parent.extend(open_transactions.values())
    open_transactions.clear()


_of_parent: list[ObservedTransaction] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def found_on(connection: Connection) -> ObservedTransaction | None:
    """Return the open transaction of a connection, if any."""
    # most processes have none open when a statement runs on a table without values
    return open_transaction(connection.connection.dbapi_connection) if open_transactions else None


def transaction_of(connection: Connection) -> ObservedTransaction:
    """Return the transaction of a connection, opened now if it is the first time."""
    found = found_on(connection)
    if found is None:
        raw = connection.connection.dbapi_connection
        found = open_transactions[id(raw)] = ObservedTransaction(connection, raw)
    found.used_by(connection)
    return found


def flushed_by(session: Any) -> list[ObservedTransaction]:
    """Return the transactions that a Session's running flush has used."""
    return (
        [found for found in list(open_transactions.values()) if found.flushing is session]
        if open_transactions
        else []
    )
