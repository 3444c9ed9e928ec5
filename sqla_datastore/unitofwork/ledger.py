"""The ledger: what one database transaction has written to the storage and will remove from it.

Plain bookkeeping without SQLAlchemy. `Transaction` calls its phases and decides how it ends.

The ledger keeps one log. A row that comes to refer to an object *adopts* it. A row that ceases to
*drops* it. A name seen in a folder that is to be emptied is *listed*. Replaying the log gives what
rows refer to at the end: so binding a dropped URL again needs no special case, and a rollback to a
savepoint cuts the end of the log off. What was *written* is never cut off: the object that a rolled
back savepoint wrote is still there and has to go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TypeAlias

from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage.in_row import IN_ROW
from sqla_datastore.storage.off_loop import off_loop
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectName

logger = logging.getLogger("sqla_datastore")

Undo: TypeAlias = Callable[[], None]


class _Kind(Enum):
    ADOPT = "a row refers to it"
    MAY_ADOPT = "a row may refer to it: what its statement did is not certain"
    DROP = "a row does not refer to it any more"
    MAY_DROP = "a row may not refer to it any more"
    LIST = "it lies in a folder that is to be emptied"


@dataclass
class _Replayed:
    """What the log says at its end.

    Attributes:
        size: how many entries were replayed.
        live: the names that rows refer to, as far as the log knows.
        uncertain: the names that go unless the database says, before COMMIT, that a row has them.
        dropped: the names that rows ceased to refer to, whether they came back or not.
    """

    size: int = 0
    live: set[ObjectName] = field(default_factory=set)
    uncertain: set[ObjectName] = field(default_factory=set)
    dropped: set[ObjectName] = field(default_factory=set)

    def take(self, kind: _Kind, name: ObjectName) -> None:
        # the last word counts: what is certain settles what a statement before it left open
        if kind in (_Kind.MAY_ADOPT, _Kind.MAY_DROP):
            self.uncertain.add(name)
        elif kind is not _Kind.LIST:
            self.uncertain.discard(name)
        # MAY_DROP leaves it live: the row may have it yet, so it has to be made durable
        if kind in (_Kind.ADOPT, _Kind.MAY_ADOPT):
            self.live.add(name)
        elif kind is _Kind.DROP:
            self.live.discard(name)
            self.dropped.add(name)


class Ledger:
    """What one database transaction has written and will remove.

    `sqla_datastore.unitofwork` lists its phases, who calls them, and which of them may fail. Not
    thread-safe: a database connection serves one thread at a time.
    """

    def __init__(self) -> None:
        self._log: list[tuple[_Kind, ObjectName]] = []
        self._replayed = _Replayed()
        # its name, and how long the log and the undos were when it was set
        self._savepoints: list[tuple[str, int, int]] = []
        self._written: dict[ObjectName, None] = {}
        self._complete: set[ObjectName] = set()
        self._unwritten: set[ObjectName] = set()
        self._durable: set[ObjectName] = set()
        self._undos: list[tuple[ObjectName, Undo]] = []
        self._doomed: list[ObjectName] = []
        self._unadopted: set[ObjectName] = set()

    # -- during the transaction --------------------------------------------------------------------

    def adopt(self, names: Iterable[ObjectName], *, certain: bool = True) -> None:
        """Note that a row refers to these objects from now on. Called after its statement ran.

        Args:
            names: the objects.
            certain: False where the statement may have left the row alone: it failed, or counted
                other rows than were found. `prepare` asks about these.
        """
        kind = _Kind.ADOPT if certain else _Kind.MAY_ADOPT
        self._log.extend((kind, name) for name in names)

    def drop(self, names: Iterable[ObjectName], *, certain: bool = True) -> None:
        """Note that a row does not refer to these any more. Called after its statement ran.

        Args:
            names: the objects.
            certain: as for `adopt`. Until `prepare` knows, the row counts as referring to them.
        """
        kind = _Kind.DROP if certain else _Kind.MAY_DROP
        self._log.extend((kind, name) for name in names)

    def refuse_if_held(self, names: Iterable[ObjectName]) -> None:
        """Note objects that are not and will not be written, though a row may refer to them."""
        self._unwritten.update(names)

    def listed(self, names: Iterable[ObjectName]) -> None:
        """Note names found in a folder that is to be emptied. Called under the row's lock."""
        self._log.extend((_Kind.LIST, name) for name in names)

    def write(self, names: Iterable[ObjectName]) -> None:
        """Note objects that are about to be written. Called before their first byte."""
        self._written.update(dict.fromkeys(names))

    def wrote(self, names: Iterable[ObjectName]) -> None:
        """Note objects that are written whole. Called after their last byte."""
        self._complete.update(names)

    def incomplete(self) -> set[ObjectName]:
        """Return the objects that rows refer to and whose writing failed."""
        return (self.live() & (self._written.keys() | self._unwritten)) - self._complete

    def make_durable(self, names: Iterable[ObjectName]) -> None:
        """Make written objects durable; may fail. Called before COMMIT, by `prepare` as well."""
        wanted = set(names) - self._durable
        # what other transactions wrote was made durable before their COMMIT
        todo = [name for name in self._written if name in wanted]
        for storage, paths in _by_storage(todo):
            off_loop(partial(storage.make_durable, paths))
        self._durable.update(todo)

    def on_rollback(self, name: ObjectName, undo: Undo) -> None:
        """Keep a callable that puts the value of an object back as it was before it was stored.

        It is called, newest first, when the transaction or the savepoint around it is rolled back,
        and dropped when the transaction commits. It must not fail.
        """
        self._undos.append((name, undo))

    def undo(self, names: Iterable[ObjectName]) -> None:
        """Put the values of these objects back: no row got them. Never fails."""
        unused = set(names)
        for _, undo in reversed([each for each in self._undos if each[0] in unused]):
            _run(undo)
        self._undos = [each for each in self._undos if each[0] not in unused]

    def begin_savepoint(self, name: str) -> None:
        """Remember a savepoint. Called once the database has set it."""
        self._savepoints.append((name, len(self._log), len(self._undos)))

    def release(self, name: str) -> None:
        """Merge a savepoint into what surrounds it. Called once the database has released it.

        A name that is not known was set before this ledger was opened: nothing to merge.
        """
        level = self._level(name)
        if level is not None:
            # SQL releases the savepoints within it as well
            del self._savepoints[level:]

    def rollback_to(self, name: str) -> None:
        """Undo what happened since a savepoint. Called once the database has done so.

        The savepoint stays, as in SQL. A name that is not known was set before this ledger was
        opened, so everything is undone. Never fails.
        """
        level = self._level(name)
        log_size, undo_size = self._savepoints[level][1:] if level is not None else (0, 0)
        del self._savepoints[0 if level is None else level + 1 :]
        # `_written` is not cut: the storage does not roll back, and what no row has goes at the end
        del self._log[log_size:]
        # it may have replayed what is cut off
        self._replayed = _Replayed()
        self._undo(undo_size)

    def _level(self, name: str) -> int | None:
        # from the newest: of two savepoints with one name SQL means the later one
        levels = range(len(self._savepoints) - 1, -1, -1)
        return next((level for level in levels if self._savepoints[level][0] == name), None)

    # -- its end -----------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether committing or rolling back would change nothing in a storage."""
        return not (self._log or self._written or self._undos)

    def live(self) -> set[ObjectName]:
        """Return the objects that rows refer to by this transaction's doing, certain or not."""
        return set(self._replay().live)

    def _replay(self) -> _Replayed:
        """Replay the log, from where it was last asked on."""
        found = self._replayed
        for kind, name in self._log[found.size :]:
            found.take(kind, name)
        found.size = len(self._log)
        return found

    def is_superseded(self, name: ObjectName) -> bool:
        """Return whether a row held the object until this transaction, so that it may again."""
        found = self._replay()
        return name in found.dropped and name not in found.live

    def candidates(self) -> set[ObjectName]:
        """Return the names whose latest log entry is LIST, and that a row may refer to.

        Among them may be objects of this transaction, whose rows a cascade has deleted since.
        """
        found = self._replay()
        last = {name: kind for kind, name in self._log}
        # what the log gives up is asked about as such, if at all, and not as a listed name
        listed = {name for name, kind in last.items() if kind is _Kind.LIST}
        return listed - ((found.dropped | self._written.keys()) - found.live)

    def prepare(
        self, referenced: Callable[[set[ObjectName], set[ObjectName]], set[ObjectName]]
    ) -> None:
        """Decide what goes, and make the rest durable. Called right before COMMIT; may fail.

        After a failure the caller rolls the database back and calls `abort`.

        Args:
            referenced: given the names of which the log is not sure (what rows held until this
                transaction, the `candidates`, what was adopted without certainty), and the
                `candidates` alone, which any row may have, returns those that some row refers to,
                asked in the same transaction. Not called without names.

        Raises:
            StorageError: a row refers to an object that was not written whole.
            Exception: whatever the storage or the question raised.
        """
        found, candidates = self._replay(), self.candidates()
        doubtful = candidates | found.uncertain | (found.dropped - found.live)
        held = referenced(doubtful, candidates) if doubtful else set()
        lost = found.uncertain - held
        self._unadopted = lost & self._tried()
        if self.incomplete() - lost:
            raise StorageError(
                "rows refer to objects of this transaction that could not be written, so it cannot "
                "be committed; roll it back and try again"
            )
        live = found.live - lost
        # only now: what no row has need not wait for the disk, and a row may have something in
        # spite of the log, as where a trigger put it back
        self.make_durable(live | held)
        gone = (found.dropped | lost | self._written.keys()) - (live | candidates)
        # what was only reserved, for a statement that failed, is not there to be removed
        doomed = (gone | candidates) - held - (self._unwritten - self._written.keys())
        self._doomed = sorted(doomed, key=lambda name: name.path)

    def _tried(self) -> set[ObjectName]:
        """Return the names that a statement was to give to a row without certainty."""
        return {name for kind, name in self._log if kind is _Kind.MAY_ADOPT}

    @property
    def doomed(self) -> list[ObjectName]:
        """What `finish` will remove, once `prepare` has decided."""
        return list(self._doomed)

    def finish(self, kept: Iterable[ObjectName] = ()) -> list[ObjectName]:
        """Remove what the transaction superseded. Called once COMMIT has succeeded; never fails.

        Values that no row got are put back as they were. A removal that fails is logged; the object
        stays findable as an orphan.

        Args:
            kept: objects that stay: durable removals in their grace period, and names that rows of
                other transactions hold.

        Returns:
            What was removed.
        """
        self.undo(self._unadopted)
        # what this transaction wrote and superseded itself nobody else has ever seen
        kept = set(kept) - self._written.keys()
        doomed = [name for name in self.doomed if name not in kept]
        self._clear()
        return off_loop(partial(_remove, doomed, "superseded by a committed transaction"))

    def abort(self, run: Callable[[Callable[[], object]], object] = off_loop) -> None:
        """Undo what was written. Called once ROLLBACK is certain; never fails.

        Puts values back as they were and removes the objects.

        A removal that fails is logged; the object stays findable as an orphan.

        Args:
            run: makes the call that removes.
        """
        self._undo(0)
        written = list(self._written)
        self._clear()
        run(partial(_remove, written, "written by a transaction that was rolled back"))

    def forget(self, reason: str) -> None:
        """Keep both sides. Called when nobody can tell how the transaction ended; never fails."""
        # listed names, too: a folder was to be emptied, and its objects stay now
        names = {*self._written, *(name for _, name in self._log)}
        names = {name for name in names - self._unwritten if name.storage is not IN_ROW}
        doubtful = sorted(names, key=lambda name: name.path)
        self._clear()
        if doubtful:
            logger.warning(
                "nobody can tell how a transaction ended (%s): %d objects are kept, orphans among "
                "them are left to garbage collection; the first is %r",
                reason,
                len(doubtful),
                doubtful[0].path,
            )

    def _undo(self, size: int) -> None:
        while len(self._undos) > size:
            _run(self._undos.pop()[1])

    def _clear(self) -> None:
        self._log.clear()
        self._replayed = _Replayed()
        self._savepoints.clear()
        self._written.clear()
        self._complete.clear()
        self._unwritten.clear()
        self._durable.clear()
        self._undos.clear()
        self._doomed = []
        self._unadopted = set()


def _by_storage(names: Iterable[ObjectName]) -> list[tuple[Storage, list[str]]]:
    grouped: dict[Storage, list[str]] = {}
    for storage, path in names:
        grouped.setdefault(storage, []).append(path)
    return list(grouped.items())


def _run(undo: Undo) -> None:
    try:
        undo()
    except Exception:
        logger.exception("a value could not be put back after a rollback")


def _remove(names: Iterable[ObjectName], why: str) -> list[ObjectName]:
    removed: list[ObjectName] = []
    # each by itself: one that fails must not keep the objects of the others
    for storage, paths in _by_storage(names):
        try:
            storage.remove(paths)
        except Exception:
            logger.exception("could not remove %d objects %s: %r", len(paths), why, paths[:3])
        else:
            removed += [ObjectName(storage, path) for path in paths]
    return removed
