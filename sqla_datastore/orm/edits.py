"""Edits in place: what was handed out is looked at again before a flush and before COMMIT.

A Session sees an assignment to an attribute; it does not see ``row.data.items.append(1)``. So a
value that hands out something editable, or is edited itself, is noted here with its row, which is
held until the transaction ends. A row that was garbage collected before its value was edited, as in
``session.get(Experiment, key).data.items.append(1)``, is fetched again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column
from sqlalchemy.orm import InstanceState, Mapper, Session, attributes, object_session

from sqla_datastore.exceptions import StaleValueError
from sqla_datastore.schema.columns import is_declared
from sqla_datastore.value.datastore import DataStore

__all__ = [
    "RowLink",
    "arm",
    "check_unsaved",
    "discard",
    "discard_rolled_back",
    "end_transaction",
    "expire",
    "expire_unchanged",
    "relink",
    "scan",
    "declared_attributes",
    "values_of",
]

_GONE = (
    "the value of {url!r} was edited, but the row that it was loaded for is gone or holds another "
    "value now; edit the value of a row that is in the Session, or a value.copy()"
)
_LATE = (
    "the value of {url!r} was edited after its row was flushed; commit the Session, or flush it "
    "after the edit, before its connection is committed"
)

_BEFORE_SAVEPOINT = (
    "the value of {url!r} was edited after its row was flushed, and rolling back to the savepoint "
    "that begins here would lose the edit; get the entry from the row again, which flushes it, "
    "before begin_nested()"
)

_attributes: weakref.WeakKeyDictionary[Mapper[Any], tuple[str, ...]] = weakref.WeakKeyDictionary()
# by the identity of their rows (of None for one that is gone), held until the transaction ends
_armed: weakref.WeakKeyDictionary[Session, dict[int, dict[int, tuple[Any, DataStore]]]] = (
    weakref.WeakKeyDictionary()
)
# for one transaction more: what was handed out before a COMMIT may be edited after it
_lingering: weakref.WeakKeyDictionary[Session, list[tuple[Any, DataStore]]] = (
    weakref.WeakKeyDictionary()
)
# then only while somebody else holds them
_watched: weakref.WeakKeyDictionary[Session, list[tuple[Any, weakref.ref[DataStore]]]] = (
    weakref.WeakKeyDictionary()
)


class RowLink:
    """Ties a value to the row that it was stored for or loaded from.

    Args:
        state: the row's state.
        key: the attribute.
    """

    __slots__ = ("_identities", "_identity", "_key", "_row", "_session")

    def __init__(self, state: InstanceState[Any], key: str) -> None:
        self._key = key
        self._row = weakref.ref(state)
        self._identity = state.key
        session = state.session
        self._session = None if session is None else weakref.ref(session)
        # a Session that is closed gets another one, which tells that this row was detached
        self._identities = None if session is None else session.identity_map

    def is_for(self, state: InstanceState[Any], key: str) -> bool:
        """Whether this is the attribute of that row."""
        return self._row() is state and self._key == key

    def is_of(self, table: Any, key: tuple[Any, ...] | None) -> bool:
        """Whether the row is, or will be, the one of a table that has this primary key.

        Args:
            table: the table.
            key: the key as the database has it, None where it is not known yet.
        """
        state = self._row()
        if state is None or table not in state.mapper.tables:
            return False
        if state.key is None:
            return True
        # a database may compare without regard to case
        texts = [str(part).casefold() for part in state.key[1]]
        return key is not None and texts == [str(part).casefold() for part in key]

    @property
    def is_dead(self) -> bool:
        """Whether the row's instance is gone."""
        state = self._row()
        return state is None or state.obj() is None

    @property
    def session(self) -> Session | None:
        """The Session that the row is, or was when it went away, attached to."""
        session = self._session() if self._session else None
        if session is None or session.identity_map is not self._identities:
            return None
        return session

    def identify(self) -> None:
        """Note the key of a row that was just inserted."""
        state = self._row()
        row = state.obj() if state is not None else None
        if state is not None and row is not None:
            self._identity = state.mapper.identity_key_from_instance(row)

    def arm(self, value: DataStore) -> None:
        """Have a value looked at again before COMMIT: something editable was handed out."""
        for row in _rows(value):
            session = object_session(row)
            if session is not None:
                # dirty, so that the Session has something to flush
                attributes.flag_dirty(row)
        self.check_edit(value)

    def check_edit(self, value: DataStore) -> None:
        """Have a value looked at before COMMIT: it is about to be edited."""
        for row in _rows(value):
            arm(object_session(row), row, value)
        if self.is_dead and not _rows(value):
            arm(self.session, None, value)

    def bring_back(self, session: Session, row: Any, value: DataStore) -> None:
        """Make an edited value the row's again, whose attribute or instance went away meanwhile.

        Args:
            session: where the row is.
            row: the row, or None to fetch it.
            value: the value.

        Raises:
            StaleValueError: the row is gone, or holds another value.
        """
        with session.no_autoflush:
            if row is None and self._identity is not None:
                class_, key, token = self._identity[:3]
                row = session.get(class_, key, identity_token=token)
            held = getattr(row, self._key, None)
        if held is None or held.url != value.url or _is_edited(held):
            raise StaleValueError(_GONE.format(url=value.url))
        setattr(row, self._key, value)


def _rows(value: DataStore) -> list[Any]:
    """Return the rows that a value is an attribute of."""
    rows = [state.obj() for state in list(value._parents)]
    return [row for row in rows if row is not None]


def declared_attributes(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the names of a mapper's attributes that hold values."""
    known = _attributes.get(mapper)
    if known is None:
        known = _attributes[mapper] = tuple(
            prop.key
            for prop in mapper.column_attrs
            if isinstance(prop.columns[0], Column) and is_declared(prop.columns[0])
        )
    return known


def values_of(state: InstanceState[Any]) -> Iterator[tuple[str, DataStore]]:
    """Yield a row's loaded values, by attribute."""
    row = state.dict
    for key in declared_attributes(state.mapper):
        value = row.get(key)
        if isinstance(value, DataStore):
            yield key, value


def arm(session: Session | None, row: Any, value: DataStore) -> None:
    """Look after a value until the Session's transaction ends.

    Args:
        session: the Session; nothing is done without one.
        row: the row to hold on to, or None if its instance is gone.
        value: the value.
    """
    if session is not None:
        _armed.setdefault(session, {}).setdefault(id(row), {})[id(value)] = (row, value)


def relink(state: InstanceState[Any]) -> None:
    """Tie a row's values to it anew, and look after them. Called when it is attached again."""
    for key, value in values_of(state):
        value._row = RowLink(state, key)
        if value._handed_out or value._changed:
            arm(state.session, state.obj(), value)


def scan(session: Session) -> None:
    """Look again at what was handed out; edits make their rows dirty.

    Raises:
        StaleValueError: an edit that no row could save.
    """
    for row, value in _looked_after(session):
        gone = not _rows(value) if row is None else not _is_current(row, value)
        if _is_edited(value) and gone and isinstance(value._row, RowLink):
            value._row.bring_back(session, row, value)


def check_unsaved(session: Session, *, savepoint: bool = False) -> None:
    """Refuse what would leave edits behind that no flush has saved.

    Args:
        session: the Session.
        savepoint: whether a savepoint begins; else a COMMIT that no Session's commit came before.

    Raises:
        StaleValueError: a value was edited after the last flush.
    """
    for _, value in _looked_after(session):
        if value._scan() or value._changed:
            why = _BEFORE_SAVEPOINT if savepoint else _LATE
            raise StaleValueError(why.format(url=value.url))


def expire_unchanged(row: Any, *, others_only: bool) -> None:
    """Expire a row's values that have no changes.

    Args:
        row: a row of a Session.
        others_only: leave alone those that the row loaded or stored itself.
    """
    state: InstanceState[Any] = attributes.instance_state(row)
    for key, value in list(values_of(state)):
        own = value._row is not None and value._row.is_for(state, key)
        if key in state.committed_state or (own and others_only) or _is_edited(value):
            continue
        if state.session is not None:
            state.session.expire(row, [key])


def discard(state: InstanceState[Any]) -> None:
    """Forget edits of values that a row's expiry or a rollback has discarded, as meant.

    What was not edited by then is looked after still: an edit that comes later is refused.
    """
    row, session = state.obj(), state.session
    if row is None or session is None:
        return
    armed = _armed.get(session, {}).get(id(row), {})
    for _, value in list(armed.values()):
        if not _is_current(row, value) and _is_edited(value):
            del armed[id(value)]


def discard_rolled_back(session: Session) -> None:
    """Forget edits that were not flushed. Called after a rollback of all or to a savepoint.

    An edit that was made before the savepoint was flushed before it. SQLAlchemy expires what it
    knows to be modified, which an edit in place may not be.
    """
    for row, value in _looked_after(session):
        if row is not None and _is_edited(value):
            expire(session, attributes.instance_state(row), value)
    for armed in list(_armed.get(session, {}).values()):
        for row, value in list(armed.values()):
            if _is_rolled_back(row, value):
                del armed[id(value)]
    if session in _watched:
        _lingering[session] = [pair for pair in _lingering[session] if not _is_rolled_back(*pair)]
        _watched[session] = [
            (None if row is None else weakref.ref(row), weakref.ref(value))
            for row, value in _still_watched(session)
            if not _is_rolled_back(row, value)
        ]


def expire(session: Session, state: InstanceState[Any], value: DataStore) -> None:
    """Have a value read again, where a persistent row of the Session holds it."""
    for key, held in list(values_of(state)):
        if held is value and session.identity_map.contains_state(state):
            session.expire(state.obj(), [key])


def _is_rolled_back(row: Any, value: DataStore) -> bool:
    return _is_edited(value) and (row is None or not _is_current(row, value))


def _is_edited(value: DataStore) -> bool:
    try:
        return value._changed or value._scan()
    except StaleValueError:
        # edited, and told so to a row that does not have it any more
        return True


def end_transaction(session: Session) -> None:
    """Let go of rows, one transaction later. Called when the outermost transaction has ended."""
    watched = [
        (None if row is None else weakref.ref(row), weakref.ref(value))
        for row, value in _looked_after(session)
    ]
    armed = _all_armed(session)
    lingering = [(row, value) for row, value in armed if _belongs(session, row, value)]
    _armed.pop(session, None)
    _watched.pop(session, None)
    _lingering.pop(session, None)
    if watched:
        _watched[session], _lingering[session] = watched, lingering


def _looked_after(session: Session) -> list[tuple[Any, DataStore]]:
    """Return the rows and values to look at: those that still belong together."""
    found = {id(value): (row, value) for row, value in _still_watched(session)}
    found |= {id(value): (row, value) for row, value in _lingering.get(session, ())}
    found |= {id(value): (row, value) for row, value in _all_armed(session)}
    return [(row, value) for row, value in found.values() if _belongs(session, row, value)]


def _all_armed(session: Session) -> list[tuple[Any, DataStore]]:
    by_row = list(_armed.get(session, {}).values())
    return [pair for armed in by_row for pair in list(armed.values())]


def _still_watched(session: Session) -> Iterator[tuple[Any, DataStore]]:
    for row_ref, value_ref in _watched.get(session, ()):
        row, value = row_ref and row_ref(), value_ref()
        if value is not None:
            yield row, value


def _belongs(session: Session, row: Any, value: DataStore) -> bool:
    """Whether a value is still a row's: one that was replaced belongs to its user."""
    if row is None:
        return isinstance(value._row, RowLink) and value._row.session is session
    return row in session and attributes.instance_state(row) in value._parents


def _is_current(row: Any, value: DataStore) -> bool:
    return any(held is value for _, held in values_of(attributes.instance_state(row)))
