"""A database transaction that has something to do with storages: its ledger, and its questions.

What it writes and supersedes is the ledger's business, when it ends that of
`sqla_datastore.engine.observer`. This module knows what has to be asked of the driver and the database in
between: whether the transaction is still what it seems, and what rows refer to.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sqla_datastore.dml.rows import held_urls, urls_of_rows
from sqla_datastore.engine.drivers import (
    TransactionState,
    autocommits,
    state_after_error,
    transaction_state,
)
from sqla_datastore.exceptions import StorageError
from sqla_datastore.removals.drain import look, strike_off
from sqla_datastore.removals.table import Noted, SchemaItems, note_removals, removals_of
from sqla_datastore.schema.declarations import present, present_columns
from sqla_datastore.storage.names import Name, row_url
from sqla_datastore.unitofwork.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.schema import MetaData

    from sqla_datastore.dml.effects import Effects
    from sqla_datastore.schema.columns import DeclaredTable
    from sqla_datastore.schema.folders import Schemas

__all__ = [
    "Transaction",
    "begin_immediately",
    "commit_checks",
    "flushed_by",
    "found_on",
    "is_autocommit",
    "open_transaction",
    "opened",
    "unwrap",
]

logger = logging.getLogger("sqla_datastore")

# SQLSTATEs that leave open whether a COMMIT succeeded: transaction resolution unknown, and
# statement completion unknown (ISO/IEC 9075-2, PostgreSQL appendix A)
_UNKNOWN_OUTCOME = {"08007", "40003"}

_open: dict[int, Transaction] = {}

commit_checks: list[Callable[[Any], None]] = []
"""Called with the driver's connection before each COMMIT; may refuse it by raising."""


class Transaction:
    """A database transaction that has something to do with storages.

    Belongs to the DBAPI connection, which it holds strongly while it is open: some drivers'
    connections can be neither weakly referenced nor given attributes.

    Attributes:
        ledger: its objects.
        flushing: the Session whose flush runs in it now, if any.
        pending: what statements of a running flush did, not yet carried out.
        pending_values: the identities of the values in it: they have a URL, but are not stored.
        metadatas: the MetaData collections whose tables it touched, each with the items of the
            ``schema_translate_map`` that it did so by.
        failed: what statements that failed would have done, with the ledger's size then: some
            rows may have it all the same.
        sources: the rows that held what they do not hold any more.
        ran_ddl: whether tables or columns may be gone that were there.
        asked_in_snapshot: listed names, where rows may refer to them that it cannot see.
        noted: what goes and was written down as a durable removal.
    """

    def __init__(self, connection: Connection, raw: Any) -> None:
        self.ledger = Ledger()
        # weakly: a Session that is forgotten with its Connection must reach the pool's reset
        self._connection = weakref.ref(connection)
        self.raw = raw
        self.flushing: Any = None
        self.dialect: Dialect = connection.dialect
        self.pending: list[Effects] = []
        self.pending_values: set[int] = set()
        self.metadatas: dict[tuple[MetaData, SchemaItems], None] = {}
        self.failed: list[tuple[int, Effects]] = []
        self.sources: dict[Name, tuple[DeclaredTable, tuple[Any, ...]]] = {}
        self.ran_ddl = False
        self.asked_in_snapshot: set[Name] = set()
        self.noted: list[Noted] = []
        self.root_savepoint: str | None = None
        self.doubt: str | None = None
        self.statement_failed = False
        self.commit_failed = False
        self.prepared = False
        self.busy = False
        self.closed_inside = False
        self._process = os.getpid()

    @property
    def is_inert(self) -> bool:
        """Whether this is a forked child's copy: the parent's transaction is not ours to end."""
        return self._process != os.getpid()

    @property
    def state(self) -> TransactionState:
        """What the driver says of its transaction."""
        return transaction_state(self.dialect.driver, self.raw)

    def state_after_error(self) -> TransactionState:
        """What the driver says after a statement failed; may ask the server."""
        return state_after_error(self.dialect.driver, self.raw)

    @property
    def connection(self) -> Connection | None:
        """The `Connection` that last ran a statement in it, while it is open."""
        connection = self._connection()
        if connection is None or connection.closed or connection.invalidated:
            return None
        return connection if unwrap(connection.connection) is self.raw else None

    def used_by(self, connection: Connection) -> None:
        """Note which `Connection` runs its statements."""
        self._connection = weakref.ref(connection)

    def defer(self, effects: Effects) -> None:
        """Keep what a statement of a running flush did until the flush's end."""
        self.pending.append(effects)
        self.pending_values.update(id(reserved.value) for reserved in effects.reserved)

    def take_pending(self) -> list[Effects]:
        """Return what was kept, and keep it no longer."""
        pending, self.pending = self.pending, []
        self.pending_values.clear()
        return pending

    def note_failed(self, effects: Effects) -> None:
        """Note what a statement that failed would have done."""
        self.failed.append((self.ledger.size, effects))

    def close(self) -> None:
        """Take it off the list of open transactions."""
        if _open.get(id(self.raw)) is self:
            del _open[id(self.raw)]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Pass over what happens to the connection inside: it is ours, or the dialect's own.

        But a connection that is closed inside is lost, and nothing else will tell.
        """
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before
            if self.closed_inside and not before and _open.get(id(self.raw)) is self:
                self.end(self.lost())

    # -- before COMMIT ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Refuse what is not saved, then `decide`; may fail, nothing is committed then."""
        for check in commit_checks:
            check(self.raw)
        if self.pending or self.ledger.incomplete():
            raise StorageError(
                "an object of this transaction could not be written, so it cannot be committed; "
                "roll it back and try again"
            )
        for _, effects in self.failed:
            self._account_for(effects)
        self.decide()

    def decide(self) -> None:
        """Make objects durable and decide what goes, without looking for what is unsaved."""
        self.ledger.prepare(self._referenced)
        doomed = self.ledger.doomed
        self.noted = note_removals(self.connection, self.dialect, self.metadatas, doomed)

    def _account_for(self, effects: Effects) -> None:
        """Find out what a failed statement did all the same: a database may keep its first rows."""
        held = effects.held(self.connection) if self.connection is not None else set()
        if self.connection is None or held & {str(r.url) for r in effects.reserved}:
            raise StorageError(
                f"a statement on {effects.declared.table.name!r} failed half-way, and rows that it "
                "left have no objects; roll the transaction back and try again"
            )
        effects.keep(held)
        self.drop(effects)

    def drop(self, effects: Effects) -> None:
        """Note what rows do not refer to any more."""
        self.ledger.drop(effects.dropped)
        for name in effects.dropped:
            if name in effects.sources:
                self.sources[name] = effects.declared, effects.sources[name]

    def _referenced(self, names: set[Name]) -> set[Name]:
        """Return those of the names that a row refers to, asked in this transaction.

        What a row held is asked by its key: a statement may have left the row alone (a trigger,
        UPDATE IGNORE, criteria that found other rows than before), or been undone out of sight.
        """
        listed = names - self.sources.keys()
        connection = self.connection
        if connection is None:
            return listed
        self.asked_in_snapshot = listed if listed and _reads_a_snapshot(connection) else set()
        return self._held_by_url(connection, listed) | self._held_by_key(connection, names - listed)

    def _held_by_key(self, connection: Connection, names: set[Name]) -> set[Name]:
        keys: dict[DeclaredTable, set[tuple[Any, ...]]] = {}
        for name in names:
            declared, key = self.sources[name]
            keys.setdefault(declared, set()).add(key)
        held: set[str] = set()
        for declared, found in keys.items():
            for metadata, items in self.metadatas:
                if metadata is declared.table.metadata:
                    schemas = dict(items)
                    columns = self._columns(connection, declared, schemas)
                    if columns:
                        held |= urls_of_rows(
                            connection, declared, found, schemas=schemas, columns=columns
                        )
        return {name for name in names if row_url(name) in held}

    def _columns(
        self, connection: Connection, declared: DeclaredTable, schemas: Schemas
    ) -> list[Column[Any]]:
        """Return a table's columns with URLs; a migration may have dropped some by now."""
        if not self.ran_ddl:
            return declared.plain_columns
        return present_columns(connection, declared, schemas)

    def _held_by_url(
        self, connection: Connection, names: set[Name], *, locked: bool = True
    ) -> set[Name]:
        if not names:
            return set()
        urls = {name: row_url(name) for name in names}
        held: set[str] = set()
        for metadata, items in self.metadatas:
            schemas = dict(items)
            there = present(connection, metadata, schemas)
            columns = [
                c for declared in there for c in self._columns(connection, declared, schemas)
            ]
            asked = sorted(set(urls.values()))
            held |= held_urls(connection, columns, asked, locked=locked, schemas=schemas)
        return {name for name, url in urls.items() if url in held}

    # -- the end ---------------------------------------------------------------------------------

    def commit(self, commit: Callable[[], Any], rollback: Callable[[], Any]) -> Any:
        """Run the driver's COMMIT with the ledger's phases around it.

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
        self.end("commit")
        return result

    def _outcome_before_commit(self) -> str | None:
        """Return how the transaction is known to end, whatever COMMIT answers; None if by it."""
        if self.ledger.is_empty and not (self.pending or self.failed):
            return None
        if self.has_failed():
            return "rollback"
        state = self.state
        if state is TransactionState.IDLE:
            return "it ended out of sight before COMMIT"
        return self.doubt

    def has_failed(self) -> bool:
        """Return whether it can only be rolled back, although COMMIT would answer politely."""
        return self.state is TransactionState.FAILED or self._server_says_failed()

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

    def _roll_back_now(self, rollback: Callable[[], Any]) -> None:
        try:
            rollback()
        except Exception as err:
            # without a COMMIT the server drops the transaction with the connection
            logger.warning("ROLLBACK failed after a refused COMMIT: %r", err)
        self.end("rollback")

    def _commit_raised(self, err: BaseException) -> None:
        if self.is_definite(err):
            self.commit_failed = True
            if self.state is TransactionState.IDLE:
                self.end("rollback")
        else:
            self.end(f"COMMIT was sent and raised {type(err).__name__}")

    def is_definite(self, err: BaseException) -> bool:
        """Whether the database itself refused a COMMIT or PREPARE."""
        dbapi: Any = self.dialect.loaded_dbapi
        if not isinstance(err, dbapi.Error):
            return False
        original = getattr(err, "orig", err)
        sqlstate = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
        if sqlstate in _UNKNOWN_OUTCOME:
            return False
        return not self.dialect.is_disconnect(err, self.raw, None)

    def rollback(self, rollback: Callable[[], Any]) -> Any:
        """Run the driver's ROLLBACK and undo what was written."""
        idle = self.state is TransactionState.IDLE
        known = self.commit_failed or self.ledger.is_empty
        outcome = "it ended out of sight before ROLLBACK" if idle and not known else "rollback"
        try:
            return rollback()
        finally:
            self.end(self.doubt or outcome)

    def lost(self) -> str:
        """Return how it ends with its connection: without a COMMIT it is rolled back."""
        if self.doubt is None and self.prepared:
            return "its connection was closed after PREPARE"
        return self.doubt or "rollback"

    def _referenced_after_all(self) -> set[Name]:
        """Return the listed names that rows refer to which the transaction could not see."""
        listed, connection = self.asked_in_snapshot, self.connection
        if not listed or connection is None:
            return listed
        try:
            # after COMMIT nothing is waited for; what others change now lies elsewhere
            return self._held_by_url(connection, listed, locked=False)
        except Exception as err:
            logger.warning("what lay in a folder stays, the database failed to tell: %s", err)
            return listed
        finally:
            with suppress(Exception):
                self.dialect.do_rollback(connection.connection)

    def _finish(self) -> None:
        """Remove what the committed transaction superseded, now or later; never fails."""
        kept = {n for each in self.noted if each.removals.keep_seconds for n in each.names}
        kept |= self._referenced_after_all()
        removed = set(self.ledger.finish(kept))
        found = [(removals_of(metadata), dict(items)) for metadata, items in self.metadatas]
        connection = self.connection
        if connection is None or not any(removals for removals, _ in found):
            return
        # unobserved: it is no transaction of the application's
        stock = getattr(self.dialect.do_commit, "__wrapped__", self.dialect.do_commit)
        commit = partial(stock, connection.connection)
        try:
            strike_off(connection, commit, self.noted, removed)
            for removals, schemas in found:
                if removals is not None:
                    look(connection, commit, removals, schemas)
        except Exception as err:
            logger.warning(
                "removals wait for the next look: %s; if the table is missing or may not be used, "
                "see enable_removals",
                # one line, or none: some errors say nothing
                str(err).partition("\n")[0],
            )
            with suppress(Exception):
                self.dialect.do_rollback(connection.connection)

    def end(self, outcome: str) -> None:
        """Close the ledger: ``commit``, ``rollback``, or the reason why nobody can tell."""
        self.close()
        self.flushing = None
        self.take_pending()
        self.failed.clear()
        if outcome == "commit":
            self._finish()
        elif outcome == "rollback":
            self.ledger.abort()
        else:
            self.ledger.forget(outcome)


def _reads_a_snapshot(connection: Connection) -> bool:
    """Whether even a locking SELECT leaves out what others have committed since it began."""
    if connection.dialect.name != "postgresql":
        return False
    return connection.get_isolation_level() in ("REPEATABLE READ", "SERIALIZABLE")


def unwrap(connection: Any) -> Any:
    """Return the driver's connection behind a pool's proxy."""
    return getattr(connection, "dbapi_connection", connection)


def opened(connection: Connection) -> Transaction:
    """Open the transaction of a connection."""
    raw = unwrap(connection.connection)
    found = _open[id(raw)] = Transaction(connection, raw)
    return found


def open_transaction(raw: Any) -> Transaction | None:
    """Return the open transaction of a driver's connection, if any; a forked child has none."""
    found = _open.get(id(raw))
    if found is not None and found.is_inert:
        found.close()
        return None
    return found


def found_on(connection: Connection) -> Transaction | None:
    """Return the open transaction of a connection, if any."""
    return open_transaction(unwrap(connection.connection))


def flushed_by(session: Any) -> list[Transaction]:
    """Return the transactions that a Session's running flush has used."""
    return [found for found in list(_open.values()) if found.flushing is session]


def begin_immediately(connection: Connection) -> None:
    """Begin the transaction that stock ``sqlite3`` would begin only with the statement itself.

    It begins late, so that what is asked before a statement would be asked outside its
    transaction, and another one could change it in between.
    """
    raw = unwrap(connection.connection)
    dialect = connection.dialect
    if dialect.name == "sqlite" and transaction_state(dialect.driver, raw) is TransactionState.IDLE:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def is_autocommit(connection: Connection) -> bool:
    """Return whether each statement of a connection is a transaction of its own."""
    driver, raw = connection.dialect.driver, unwrap(connection.connection)
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        # a BEGIN that a listener sends, as recommended for SQLite, is a transaction all the same
        return transaction_state(driver, raw) is not TransactionState.ACTIVE
    return autocommits(driver, raw)
