"""One database transaction that has something to do with storages.

What it writes and supersedes is the ledger's business. How it ends is found out by the engine's
room, which observes its connection. ``unitofwork/__init__.py`` lists the phases.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sqla_datastore.dml.dialects import has_row_locks
from sqla_datastore.dml.statement import TransactionView
from sqla_datastore.exceptions import StorageError
from sqla_datastore.printable import printable
from sqla_datastore.removals.due import look, strike_off
from sqla_datastore.removals.table import Noted, note_removals, removals_of
from sqla_datastore.storage.off_loop import handed_over, off_loop
from sqla_datastore.storage.urls import ObjectName
from sqla_datastore.unitofwork.commit_checks import watches_of
from sqla_datastore.unitofwork.cut_off import CutOffValues
from sqla_datastore.unitofwork.ledger import Ledger
from sqla_datastore.unitofwork.outcome import Committed, Outcome, Phase, RolledBack
from sqla_datastore.unitofwork.referring_rows import ReferringRows

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

    from sqla_datastore.dml.effects import Effects

logger = logging.getLogger("sqla_datastore")


class Transaction:
    """A database transaction that has something to do with storages.

    Belongs to the DBAPI connection, which it holds strongly while it is open: some drivers'
    connections can be neither weakly referenced nor given attributes.

    Attributes:
        raw: the DBAPI connection.
        dialect: the dialect of its engine.
        phase: how far it has come.
        ledger: its objects.
        rows: the rows to ask about them.
        flushing: the Session whose flush runs in it now, if any.
    """

    def __init__(self, connection: Connection, raw: Any) -> None:
        self.raw = raw
        self.dialect: Dialect = connection.dialect
        self.phase = Phase.OPEN
        self.ledger = Ledger()
        self.rows = ReferringRows(are_locked=has_row_locks(self.dialect))
        self._cut_off = CutOffValues()
        self.flushing: Any = None
        # weakly: a Session that is forgotten with its Connection must reach the pool's reset
        self._connection = weakref.ref(connection)
        self._pending: list[Effects] = []
        self._pending_values: set[int] = set()
        self._noted: list[Noted] = []

    @property
    def is_empty(self) -> bool:
        """Whether its end would change nothing in a storage."""
        return self.ledger.is_empty and not self._pending

    @property
    def connection(self) -> Connection | None:
        """The `Connection` that last ran a statement in it, while it is open."""
        connection = self._connection()
        if connection is None or connection.closed or connection.invalidated:
            return None
        # a Connection that was invalidated goes on with another connection of the driver
        return connection if connection.connection.dbapi_connection is self.raw else None

    def used_by(self, connection: Connection) -> None:
        """Note which `Connection` runs its statements."""
        self._connection = weakref.ref(connection)

    # -- statements --------------------------------------------------------------------------------

    def view(self, *, autocommit: bool) -> TransactionView:
        """Return what a statement has to know of it."""
        return TransactionView(
            flushing=self.flushing is not None,
            autocommit=autocommit,
            pending=self._pending_values,
            superseded=self.ledger.is_superseded,
            is_pending=self._is_pending,
        )

    def _is_pending(self, name: ObjectName) -> bool:
        reserved = (each for effects in self._pending for each in effects.reserved)
        return any(each.names[:1] == [name] for each in reserved)

    def defer(self, effects: Effects) -> None:
        """Keep what a statement of a running flush did until the flush's end."""
        self._pending.append(effects)
        # these values have a URL, but are not stored yet
        # no other value can get their ids meanwhile: the effects hold them
        self._pending_values.update(id(reserved.value) for reserved in effects.reserved)

    def take_pending(self) -> list[Effects]:
        """Return what was kept, and keep it no longer."""
        pending, self._pending = self._pending, []
        self._pending_values.clear()
        return pending

    def log(self, effects: Effects) -> None:
        """Note in the ledger what a statement did to rows."""
        certain = effects.is_certain
        if effects.dropped or not certain:
            self.rows.note(effects)
            self.ledger.drop(effects.dropped, certain=certain)
        self.ledger.adopt(effects.names, certain=certain)
        self._cut_off.note(effects)

    def log_failed(self, effects: Effects) -> None:
        """Note what a failed statement may have done: databases may keep its first rows.

        Its objects were not written, unless it is a transaction of its own. Where rows turn out to
        refer to them, `prepare` refuses.
        """
        effects.fail()
        self.log(effects)
        # what lies in the row itself came there with it
        outside = (each for each in effects.reserved if not each.is_in_row)
        unwritten = [each for each in outside if each.plan is not None]
        self.ledger.refuse_if_held(name for each in unwritten for name in each.names)

    # -- before COMMIT -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Refuse what no flush has saved, then `decide`. Called right before COMMIT; may fail.

        Raises:
            StaleValueError: an entry was edited in place after the last flush.
            StorageError: as `decide`; or a flush has not written its objects.
        """
        for watch in watches_of(self.raw):
            watch.refuse_unsaved()
        # a flush that failed on its way never came to write what its statements had put into rows
        if self._pending:
            raise StorageError(
                "an object of this transaction could not be written, so it cannot be committed; "
                "roll it back and try again"
            )
        self.decide()

    def decide(self, *, refuses_strays: bool = True) -> None:
        """Ask which rows hold what, make objects durable, and write down what goes; may fail.

        Args:
            refuses_strays: as for `ReferringRows.referenced`; nothing can be refused any more where
                a statement was a transaction of its own.
        """
        self.ledger.prepare(
            partial(self.rows.referenced, self.connection, refuses_strays=refuses_strays)
        )
        self._cut_off.refuse(self.connection, self.ledger.live())
        # after the decision, but in the same transaction: written down if and only if it commits
        self._noted = note_removals(
            self.connection, self.dialect, self.rows.metadatas, self.ledger.doomed
        )

    # -- the end -----------------------------------------------------------------------------------

    def end(self, outcome: Outcome) -> None:
        """Close it. Called once; never fails."""
        self.phase = Phase.ENDED
        self.flushing = None
        self.take_pending()
        if isinstance(outcome, Committed):
            self._finish()
        elif isinstance(outcome, RolledBack):
            # a connection of an asynchronous engine that nobody has any more is reset by the loop
            self.ledger.abort(handed_over if self.dialect.is_async else off_loop)
        else:
            self.ledger.forget(outcome.reason)

    def _finish(self) -> None:
        """Remove what the committed transaction superseded, now or later; never fails."""
        kept = {name for each in self._noted if each.removals.keep_seconds for name in each.names}
        kept |= self.rows.referenced_after_commit(self.connection)
        removed = set(self.ledger.finish(kept))
        connection = self.connection
        if connection is None or not any(removals_of(m) for m, _ in self.rows.metadatas):
            return
        # unobserved: it is no transaction of the application's
        stock = getattr(self.dialect.do_commit, "__wrapped__", self.dialect.do_commit)
        try:
            self._carry_out_removals(connection, partial(stock, connection.connection), removed)
        except Exception as err:
            logger.warning(
                "removals wait for the next look: %s; if the table is missing or may not be used, "
                "see enable_removals",
                # one line, or none: some errors say nothing
                printable(str(err).partition("\n")[0]),
            )
            with suppress(Exception):
                self.dialect.do_rollback(connection.connection)

    def _carry_out_removals(
        self, connection: Connection, commit: Callable[[], None], removed: set[ObjectName]
    ) -> None:
        """Strike off durable removals that were carried out, and carry out others that are due."""
        strike_off(connection, commit, self._noted, removed)
        for metadata, items in self.rows.metadatas:
            removals = removals_of(metadata)
            if removals is not None:
                look(connection, commit, removals, dict(items))
