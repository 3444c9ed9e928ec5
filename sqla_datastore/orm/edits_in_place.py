"""Edits in place: what one Session looks at again before a flush of one's own, and before COMMIT.

A Session sees an assignment to an attribute; it does not see ``row.data.items.append(1)``. So a
value that hands out something editable is noted here, weakly: reading leaves no trace in the
Session. It is looked at when its row is flushed anyway, in `Session.flush` of one's own, before a
savepoint, and before COMMIT.

A value that nobody holds any more is looked at. It is kept only while it may have been edited, or
something that it has handed out is held elsewhere, as in
``tags = session.get(Run, 1).data.tags``. An edited value is given to its row again: when the row is
loaded anew, at the latest before COMMIT.
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Session

from sqla_datastore.exceptions import StaleValueError
from sqla_datastore.schema.sqlalchemy_compat import observe_flush
from sqla_datastore.storage.off_loop import off_loop
from sqla_datastore.unitofwork.commit_checks import unwatch_connection, watch_connection
from sqla_datastore.unitofwork.values_of_rows import is_edited, values_of
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.holding import is_held_elsewhere, may_be_edited

_LATE = (
    "{edited} was edited after its row was flushed; commit the Session, or flush it after the "
    "edit, before its connection is committed"
)

WATCH = "_sqla_datastore_watch"
"""The attribute of a Session with its watch; every one that flushes or commits is asked for it."""


def watch_of(session: Session | None) -> SessionWatch | None:
    """Return the watch of a Session that has one."""
    return None if session is None else vars(session).get(WATCH)


class SessionWatch:
    """What one Session looks after.

    Attributes:
        restored: values that a rollback has made unstored, with the states that held them; the next
            ``after_soft_rollback`` expires them.
        to_expire: rows with values that column defaults made, and the attributes, until the
            flush ends.
    """

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)
        self.restored: list[tuple[InstanceState[Any], DataStore]] = []
        self.to_expire: list[tuple[Any, set[str]]] = []
        # by the id of the row's state, then by that of the value
        self._tracked: dict[int, dict[int, weakref.ref[DataStore]]] = {}
        # the same by the row's identity key: where a value is nested, the two hold each other until
        # garbage is collected, and their row may be loaded anew before
        self._by_identity: dict[Any, dict[int, weakref.ref[DataStore]]] = {}
        # values that nobody else holds, and that are edited or have something held elsewhere, by
        # the row's identity key, then by the value's id
        self._kept: dict[Any, dict[int, DataStore]] = {}
        # the same, in the order in which they are looked at again
        self._gone: deque[DataStore] = deque()
        # values that were looked after, of rows that were deleted, with their links to these, until
        # the transaction ends
        self._of_deleted: list[tuple[DataStore, Any]] = []
        self._connections: set[int] = set()
        observe_flush(session, self.scan)
        vars(session)[WATCH] = self

    @classmethod
    def of(cls, session: Session) -> SessionWatch:
        """Return the watch of a Session, made at the first time."""
        return watch_of(session) or cls(session)

    # -- what is looked after ----------------------------------------------------------------------

    def track(self, value: DataStore) -> None:
        """Look after a value while somebody holds it, or something that it has handed out."""
        self._look_at_gone()
        if value._row is None or value._watch is self:
            return
        if gc.is_finalized(value):
            # it went away before, and was given back to its row: its finalizer runs only once
            self._keep(value)
        else:
            value._watch = self
            ref = weakref.ref(value)
            self._tracked.setdefault(value._row.state_id, {})[id(value)] = ref
            self._by_identity.setdefault(value._row.identity, {})[id(value)] = ref

    def going(self, value: DataStore) -> None:
        """Look at a value that nobody holds any more; keep it where an edit could be lost.

        Reads no object. Garbage may be collected on an event loop, or while a lock is held that a
        reading thread waits for.
        """
        # another thread may collect garbage while the Session is in use, hence plain dict calls
        self.forget(value)
        try:
            keeps = self._belongs(value) and (is_held_elsewhere(value) or may_be_edited(value))
        except Exception:  # the process ends
            keeps = True
        if keeps:
            self._keep(value)

    def _keep(self, value: DataStore) -> None:
        value._watch = self
        assert value._row is not None
        self._kept.setdefault(value._row.identity, {})[id(value)] = value
        self._gone.append(value)

    def _look_at_gone(self) -> None:
        """Let go of values that went away, and are not needed any more.

        In ``for id in ids: frame = session.get(Run, id).data.frame`` each frame is held a moment
        longer than its value, and there may be no room for all. Two are looked at: one more than
        can have gone since the last time, and not all that are held.
        """
        for _ in range(min(2, len(self._gone))):
            try:
                value = self._gone.popleft()
            except IndexError:
                # another thread, that touches a value as well, looks at the last one
                return
            if value._would_block_a_loop() or self._is_needed(value, _is_edited_off_loop):
                self._gone.append(value)
            else:
                self.forget(value)

    def _is_needed(self, value: DataStore, look: Callable[[DataStore], bool]) -> bool:
        """Return whether an edit could be lost with a value that nobody holds.

        Args:
            value: the value.
            look: tells whether it has edits that are not stored; may read.
        """
        return self._belongs(value) and (is_held_elsewhere(value) or look(value))

    def _all(self) -> list[DataStore]:
        """Return the values that are looked after, of rows of this Session."""
        return [value for value in self._looked_after() if self._belongs(value)]

    def _looked_after(self) -> list[DataStore]:
        found = [ref() for refs in list(self._tracked.values()) for ref in list(refs.values())]
        return [value for value in (*found, *self._held()) if value is not None]

    def _held(self) -> list[DataStore]:
        """Return the values that nobody else holds."""
        return [value for values in list(self._kept.values()) for value in list(values.values())]

    def _of_row(self, state: InstanceState[Any]) -> list[DataStore]:
        found = [ref() for ref in list(self._tracked.get(id(state), {}).values())]
        return [v for v in (*found, *self._kept.get(state.key, {}).values()) if v is not None]

    def _belongs(self, value: DataStore) -> bool:
        """Whether a value is still a row's; one that was replaced is not checked any more."""
        session, link = self._session(), value._row
        if session is None or link is None:
            return False
        rows = rows_of(value)
        if rows:
            return any(row in session for row in rows)
        # what is stored nowhere went with the rollback that took its row
        is_stored = value.url is not None
        return is_stored and (link.is_dead or link.was_displaced) and link.session is session

    def forget(self, value: DataStore) -> None:
        """Look after a value no more, until it hands out something again."""
        value._watch = None
        link = value._row
        if link is not None:
            _pop(self._tracked, link.state_id, value)
            _pop(self._by_identity, link.identity, value)
            _pop(self._by_identity, None, value)
            _pop(self._kept, link.identity, value)

    def forget_row(self, state: InstanceState[Any]) -> None:
        """Look after no value of a row any more: it was deleted."""
        for value in self._of_row(state):
            self.forget(value)
            self._of_deleted.append((value, value._row))
            value._row = None

    def remember_rows(self) -> None:
        """Look after the values of deleted rows again. Called after a rollback.

        A row that was deleted before the savepoint is still gone: edits of its values are refused.
        """
        of_deleted, self._of_deleted = self._of_deleted, []
        for value, link in of_deleted:
            if value._row is None:
                value._row = link
                # its finalizer runs only once, and may have run before
                self.going(value)
                self.track(value)

    # -- looking again -----------------------------------------------------------------------------

    def scan(self) -> None:
        """Look at everything that somebody may have edited; edits make their rows dirty.

        What was not edited, and nobody can edit any more, is let go.

        Raises:
            StaleValueError: an edit that no row could save.
        """
        session = self._session()
        assert session is not None
        found = self._looked_after()
        self._forget_replaced(found)
        found = [each for each in found if self._belongs(each)]
        for value, edited in zip(found, _are_edited(found), strict=True):
            if edited:
                self._flag(session, value)
            elif not is_held_elsewhere(value):
                self.forget(value)
        self._gone = deque(self._held())

    def _flag(self, session: Session, value: DataStore) -> None:
        """Have the row of an edited value flushed; it may have lost the value, or be gone."""
        rows = rows_of(value)
        current = [row for row in rows if _is_current(row, value)]
        if current:
            value.changed()
            self._save_in_former_row(session, value, current)
        elif value._row is not None:
            value._row.bring_back(session, rows[0] if rows else None, value)

    def _save_in_former_row(self, session: Session, value: DataStore, current: list[Any]) -> None:
        """Make an edited value its former row's again; the rows that it was assigned to get copies.

        As long as the former row's instance lives, it holds the value anyway.
        """
        link = value._row
        if link is None or not link.is_dead or link.session is not session:
            return
        if not any(
            link.may_be_of(inspect(row), key) for row in current for key in _keys(row, value)
        ):
            # without the row there is nothing to save it in but where it was assigned to
            with suppress(StaleValueError):
                link.bring_back(session, None, value)

    def _forget_replaced(self, values: list[DataStore]) -> None:
        """Let go of values in whose place their rows hold others, while the rows can tell.

        A value that was assigned to another row is looked at for that one.
        """
        for value in values:
            if value._row is not None and value._row.has_lost(value) and not rows_of(value):
                unlink(value)

    def scan_flushed(self) -> None:
        """Look at the values of the rows that a flush takes anyway."""
        session = self._session()
        if session is None or not (self._tracked or self._kept):
            return
        found: list[DataStore] = []
        for row in session.dirty:
            values = self._of_row(inspect(row))
            self._forget_replaced(values)
            found += values
        _are_edited(found)

    def refuse_unsaved(self) -> None:
        """Refuse a COMMIT that would leave edits behind: one that no Session's commit came before.

        Raises:
            StaleValueError: a value was edited after the last flush.
        """
        found = self._all()
        for value, edited in zip(found, _are_edited(found), strict=True):
            if edited:
                raise StaleValueError(_LATE.format(edited=value._edited_text()))

    def watch_connection(self, raw: Any) -> None:
        """Be asked before each COMMIT of a driver's connection that the Session uses."""
        self._connections.add(watch_connection(raw, self))

    def give_back(self, state: InstanceState[Any]) -> None:
        """Give a row that was loaded anew the values that were edited while it was gone."""
        found = [ref() for ref in list(self._by_identity.get(state.key, {}).values())]
        tracked = [value for value in found if value is not None and self._is_rowless(value)]
        values = [*tracked, *self._kept.get(state.key, {}).values()]
        for value, edited in zip(values, _are_edited(values), strict=True):
            if edited and value._row is not None:
                value._row.put(state, value)

    def _is_rowless(self, value: DataStore) -> bool:
        """Whether a value is one of a row of this Session whose instance is gone."""
        link = value._row
        return link is not None and link.is_dead and self._belongs(value) and not rows_of(value)

    # -- forgetting --------------------------------------------------------------------------------

    def discard(self, state: InstanceState[Any]) -> None:
        """Forget edits of a row's values that were discarded on purpose, by expiry or rollback.

        What was not edited by then is looked after still: an edit that comes later is refused.
        """
        row = state.obj()
        for value in self._of_row(state):
            if (row is None or not _is_current(row, value)) and is_edited(value):
                unlink(value)

    def discard_rolled_back(self) -> None:
        """Forget edits that were not flushed. Called after a rollback of all or to a savepoint.

        An edit that was made before the savepoint was flushed before it. SQLAlchemy expires what it
        knows to be modified, which an edit in place may not be.
        """
        self._take_restored()
        found = self._all()
        for value, edited in zip(found, _are_edited(found), strict=True):
            if edited:
                for row in rows_of(value):
                    self._expire(inspect(row), value)
                unlink(value)

    def _take_restored(self) -> None:
        """Take values from their rows that a rollback has put back as they were."""
        restored, self.restored = self.restored, []
        for state, value in restored:
            # SQLAlchemy expires what was changed in the savepoint itself, but not in one within it
            self._expire(state, value)
            if all(held is not value for _, held in values_of(state)):
                value._release_from(state)
            unlink(value)

    def _expire(self, state: InstanceState[Any], value: DataStore) -> None:
        """Have a value read again, where a persistent row of the Session holds it."""
        session = self._session()
        row = state.obj()
        for key, held in list(values_of(state)):
            if held is value and state.persistent and session is not None and row in session:
                session.expire(row, [key])

    def end_transaction(self) -> None:
        """Let go of what nobody can edit any more. Called when the outermost one has ended."""
        self._of_deleted.clear()
        self._take_restored()
        for value in self._held():
            # no thread: who was cancelled meanwhile would leave the rest undone
            if not self._is_needed(value, is_edited):
                self.forget(value)
        self._gone = deque(self._held())
        for number in self._connections:
            unwatch_connection(number, self)
        self._connections.clear()


def _are_edited(values: list[DataStore]) -> list[bool]:
    """Return of each value whether it has edits that are not stored; large ones are hashed."""
    return off_loop(lambda: [is_edited(value) for value in values]) if values else []


def _is_edited_off_loop(value: DataStore) -> bool:
    return _are_edited([value])[0]


def _pop(found: dict[Any, dict[int, Any]], key: Any, value: DataStore) -> None:
    values = found.get(key)
    if values is not None and values.pop(id(value), None) is not None and not values:
        found.pop(key, None)


def _is_current(row: Any, value: DataStore) -> bool:
    return bool(_keys(row, value))


def _keys(row: Any, value: DataStore) -> list[str]:
    return [key for key, held in values_of(inspect(row)) if held is value]


def unlink(value: DataStore) -> None:
    """Have a value belong to no row any more, and not looked after."""
    if value._watch is not None:
        value._watch.forget(value)
    value._row = None


def rows_of(value: DataStore) -> list[Any]:
    """Return the rows that a value is an attribute of."""
    if value._row is not None:
        value._row.note_parent(value)
    return [row for state, _ in value._held_by() if (row := state.obj()) is not None]
