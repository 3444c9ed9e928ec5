"""The unit of work of objects: what one database transaction wrote to the storage and will remove.

Plain bookkeeping, without SQLAlchemy and without opinions on how a transaction ends: its caller,
`sqla_datastore.engine.listeners`, observes the database connection and calls each phase.

The ledger keeps one log. A row that comes to refer to an object *adopts* it, a row that no longer
does *drops* it; a name seen in a folder that is to be emptied is *listed*. Replaying the log gives
what the rows refer to at the end, so that binding a dropped URL again needs no special case, and
rolling back to a savepoint is cutting the log's end off. What was *written* is never cut off: an
object that a rolled back savepoint wrote is still there and has to go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TypeAlias

from sqla_datastore.storage.names import Name
from sqla_datastore.storage.protocol import Storage

__all__ = ["Ledger", "Undo"]

logger = logging.getLogger("sqla_datastore")

Undo: TypeAlias = Callable[[], None]


class _Kind(Enum):
    ADOPT = "a row refers to it"
    DROP = "a row does not refer to it any more"
    LIST = "it lies in a folder that is to be emptied"


class Ledger:
    """What one database transaction has written and will remove.

    Phases, in order: any number of `adopt`, `drop`, `listed`, `write`, `begin_savepoint`,
    `release`, `rollback_to`; then either `prepare` (may fail) and, once COMMIT has certainly
    succeeded, `finish` (never fails), or `abort` (never fails), or, when nobody can tell, `forget`.
    Not thread-safe: a database connection serves one thread at a time.
    """

    def __init__(self) -> None:
        self._log: list[tuple[_Kind, Name]] = []
        self._replayed: tuple[int, set[Name], set[Name]] = (0, set(), set())
        self._savepoints: list[tuple[str, int, int]] = []
        self._written: dict[Name, None] = {}
        self._complete: set[Name] = set()
        self._durable: set[Name] = set()
        self._undos: list[tuple[Name, Undo]] = []
        self._doomed: list[Name] | None = None

    # -- during the transaction ------------------------------------------------------------------

    def adopt(self, names: Iterable[Name]) -> None:
        """Note that a row refers to these objects from now on. Called after its statement ran."""
        self._log.extend((_Kind.ADOPT, name) for name in names)

    def drop(self, names: Iterable[Name]) -> None:
        """Note that a row does not refer to these any more. Called after its statement ran."""
        self._log.extend((_Kind.DROP, name) for name in names)

    def listed(self, names: Iterable[Name]) -> None:
        """Note names found in a folder that is to be emptied. Called under the row's lock."""
        self._log.extend((_Kind.LIST, name) for name in names)

    def write(self, names: Iterable[Name]) -> None:
        """Note objects that are about to be written. Called before their first byte."""
        self._written.update(dict.fromkeys(names))

    def wrote(self, names: Iterable[Name]) -> None:
        """Note objects that are written whole. Called after their last byte."""
        self._complete.update(names)

    def incomplete(self) -> set[Name]:
        """Return the objects that rows refer to and whose writing failed."""
        return (self.live() & self._written.keys()) - self._complete

    def make_durable(self, names: Iterable[Name]) -> None:
        """Make written objects durable; may fail. Called before COMMIT, by `prepare` as well."""
        wanted = set(names) - self._durable
        todo = [name for name in self._written if name in wanted]
        for storage, paths in _by_storage(todo):
            storage.make_durable(paths)
        self._durable.update(todo)

    def on_rollback(self, name: Name, undo: Undo) -> None:
        """Keep a callable that puts the value of an object back as it was before it was stored.

        It is called, newest first, when the transaction or the savepoint around it is rolled back,
        and dropped when the transaction commits. It must not fail.
        """
        self._undos.append((name, undo))

    def undo(self, names: Iterable[Name]) -> None:
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
            del self._savepoints[level:]

    def rollback_to(self, name: str) -> None:
        """Undo what happened since a savepoint. Called once the database has done so.

        The savepoint stays, as in SQL. A name that is not known was set before this ledger was
        opened, so everything is undone. Never fails.
        """
        level = self._level(name)
        log_size, undo_size = self._savepoints[level][1:] if level is not None else (0, 0)
        del self._savepoints[0 if level is None else level + 1 :]
        del self._log[log_size:]
        self._replayed = (0, set(), set())
        self._undo(undo_size)

    def _level(self, name: str) -> int | None:
        levels = range(len(self._savepoints) - 1, -1, -1)
        return next((level for level in levels if self._savepoints[level][0] == name), None)

    # -- its end ---------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether committing or rolling back would change nothing in a storage."""
        return not (self._log or self._written or self._undos)

    @property
    def size(self) -> int:
        """The length of the log: it grows with statements, and shrinks with a savepoint."""
        return len(self._log)

    def live(self) -> set[Name]:
        """Return the objects that rows refer to by this transaction's doing."""
        return set(self._replay()[0])

    def _replay(self) -> tuple[set[Name], set[Name]]:
        """Return what is live and what was ever dropped; goes on from where it was last asked."""
        size, live, dropped = self._replayed
        for kind, name in self._log[size:]:
            if kind is _Kind.ADOPT:
                live.add(name)
            elif kind is _Kind.DROP:
                live.discard(name)
                dropped.add(name)
        self._replayed = (len(self._log), live, dropped)
        return live, dropped

    def is_superseded(self, name: Name) -> bool:
        """Return whether a row held the object until this transaction, so that it may again."""
        live, dropped = self._replay()
        return name in dropped and name not in live

    def candidates(self) -> set[Name]:
        """Return the names of which listing is the last that is known, and that may be referred to.

        Among them may be objects of this transaction, whose rows a cascade has deleted since.
        """
        live, dropped = self._replay()
        last = {name: kind for kind, name in self._log}
        listed = {name for name, kind in last.items() if kind is _Kind.LIST}
        return listed - ((dropped | self._written.keys()) - live)

    def prepare(self, referenced: Callable[[set[Name]], set[Name]]) -> None:
        """Make everything durable and decide what goes. Called right before COMMIT; may fail.

        After a failure the caller rolls the database back and calls `abort`.

        Args:
            referenced: given the `candidates` and what rows held until this transaction, returns
                those that some row refers to, asked in the same transaction. Called only when
                there are such names.

        Raises:
            Exception: whatever the storage or the question raised.
        """
        candidates = self.candidates()
        live, dropped = self._replay()
        doubtful = candidates | (dropped - live)
        held = referenced(doubtful) if doubtful else set()
        self.make_durable(live)
        gone = (dropped | self._written.keys()) - (live | candidates)
        self._doomed = sorted((gone | candidates) - held, key=lambda name: name.path)

    @property
    def doomed(self) -> list[Name]:
        """What `finish` will remove, once `prepare` has decided."""
        return list(self._doomed or ())

    def finish(self, kept: Iterable[Name] = ()) -> list[Name]:
        """Remove what the transaction superseded. Called once COMMIT has succeeded; never fails.

        A removal that fails is logged; the object stays findable as an orphan.

        Args:
            kept: what somebody else will remove.

        Returns:
            What was removed.
        """
        # what this transaction wrote and superseded itself nobody else has ever seen
        kept = set(kept) - self._written.keys()
        doomed = [name for name in self.doomed if name not in kept]
        self._clear()
        return _remove(doomed, "superseded by a committed transaction")

    def abort(self) -> None:
        """Undo what was written. Called once ROLLBACK is certain; never fails.

        Puts values back as they were and removes the objects.

        A removal that fails is logged; the object stays findable as an orphan.
        """
        self._undo(0)
        written = list(self._written)
        self._clear()
        _remove(written, "written by a transaction that was rolled back")

    def forget(self, reason: str) -> None:
        """Keep both sides. Called when nobody can tell how the transaction ended; never fails."""
        doubtful = sorted({*self._written, *(name for _, name in self._log)}, key=lambda n: n.path)
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
        self._replayed = (0, set(), set())
        self._savepoints.clear()
        self._written.clear()
        self._complete.clear()
        self._durable.clear()
        self._undos.clear()
        self._doomed = None


def _by_storage(names: Iterable[Name]) -> list[tuple[Storage, list[str]]]:
    grouped: dict[int, tuple[Storage, list[str]]] = {}
    for storage, path in names:
        grouped.setdefault(id(storage), (storage, []))[1].append(path)
    return list(grouped.values())


def _run(undo: Undo) -> None:
    try:
        undo()
    except Exception:
        logger.exception("a value could not be put back after a rollback")


def _remove(names: Iterable[Name], why: str) -> list[Name]:
    removed: list[Name] = []
    for storage, paths in _by_storage(names):
        try:
            storage.remove(paths)
        except Exception:
            logger.exception("could not remove %d objects %s: %r", len(paths), why, paths[:3])
        else:
            removed += [Name(storage, path) for path in paths]
    return removed
