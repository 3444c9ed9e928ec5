"""The link of a value to the row that it was stored for or loaded from."""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy.orm import InstanceState, Session, class_mapper, object_session
from sqlalchemy.orm.attributes import set_committed_value

from sqla_datastore.exceptions import StaleValueError
from sqla_datastore.orm import missing_objects
from sqla_datastore.orm.edits_in_place import SessionWatch, rows_of, unlink
from sqla_datastore.schema.declarations import declared_table
from sqla_datastore.storage.off_loop import can_await
from sqla_datastore.typed.entry_schema import EntrySchema
from sqla_datastore.unitofwork.values_of_rows import is_edited
from sqla_datastore.value.datastore import DataStore

_GONE = (
    "{edited} was edited, but the row that it was loaded for is gone or holds another value now; "
    "edit the value of a row that is in the Session, or a value.copy()"
)


class Home:
    """Where the values of one attribute were loaded by one query: what their links share.

    A query makes a value for each row, and most are never touched. So the listener gives each only
    its row's state and this; the link is made once it is needed.

    Args:
        key: the attribute.
        session: the Session, or None.

    Attributes:
        is_async: whether an asynchronous engine is used.
    """

    __slots__ = ("identities", "is_async", "key", "session")

    is_made = False

    def __init__(self, key: str, session: Session | None) -> None:
        self.key = key
        self.is_async = can_await()
        self.session = None if session is None else weakref.ref(session)
        # Session.close() makes a new identity map, so another one means that the row was detached
        self.identities = None if session is None else session.identity_map

    def link(self, value: DataStore) -> RowLink:
        """Return the link of a value to the row that it was loaded for; note that it holds it."""
        value._hold(value._state, self.key)
        return RowLink(value._state, self.key, self)


class RowLink:
    """Ties a value to a row.

    Args:
        state: the row's state.
        key: the attribute.
        home: where it was loaded; by default the Session that the row is in now.
    """

    __slots__ = (
        *("_identities", "_identity", "_key", "_row", "_session", "_state_id"),
        "is_async",
        "was_displaced",
    )

    is_made = True

    def __init__(self, state: InstanceState[Any], key: str, home: Home | None = None) -> None:
        # by another value of the same row, which was edited while it was gone
        self.was_displaced = False
        self._key = key
        self._row = weakref.ref(state)
        self._state_id = id(state)
        self._identity = state.key
        home = home or Home(key, state.session)
        self._session, self._identities = home.session, home.identities
        self.is_async = home.is_async

    @property
    def label(self) -> str:
        """The attribute and the row, for messages."""
        if self._identity is None:
            return f"{self._key!r} of a new row"
        class_, key = self._identity[:2]
        return f"{self._key!r} of {class_.__name__} {', '.join(map(repr, key))}"

    @property
    def state_id(self) -> int:
        """The identity of the row's state, while that lives."""
        return self._state_id

    @property
    def identity(self) -> Any:
        """The row's identity key, None while it has none."""
        return self._identity

    def put(self, state: InstanceState[Any], value: DataStore) -> None:
        """Make a value the attribute of a row that was loaded anew, unless it has another one."""
        row = state.obj()
        held = state.dict.get(self._key)
        if row is None or not isinstance(held, DataStore) or held.url != value.url:
            return
        if held._row is not None:
            held._row.was_displaced = True
        set_committed_value(row, self._key, value)
        value._hold(state, self._key)
        value._row = RowLink(state, self._key)

    def note_parent(self, value: DataStore) -> None:
        """Have edits of a value flag this row's attribute, while it holds the value.

        SQLAlchemy knows one attribute of a row for a value, and forgets it when the value leaves
        another attribute of the row, to which it was assigned as well.
        """
        state = self._row()
        if state is not None and state.obj() is not None and state.dict.get(self._key) is value:
            value._hold(state, self._key)

    def has_lost(self, value: DataStore) -> bool:
        """Whether the row holds another value in its place now, which its user has assigned."""
        state = self._row()
        if state is None or self.was_displaced or self._key not in state.dict:
            return False
        # an assignment takes the parent away, a refresh leaves it
        return state.dict[self._key] is not value and state not in dict(value._held_by())

    def is_for(self, state: InstanceState[Any], key: str) -> bool:
        """Whether this is the attribute of that row."""
        return self._row() is state and self._key == key

    def may_be_of(self, state: InstanceState[Any], key: str) -> bool:
        """Whether this is the attribute of that row or of one that was never inserted."""
        if self._identity is None:
            return True
        return self._identity == state.key and self._key == key

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
    def schema(self) -> EntrySchema | None:
        """What the row's column says of the entries of its values; None where it says nothing."""
        if self._identity is not None:
            mapper = class_mapper(self._identity[0])
        else:
            state = self._row()
            if state is None:
                return None
            mapper = state.mapper
        (column,) = mapper.attrs[self._key].columns
        declared = declared_table(column.table)
        assert declared is not None
        return next(each.schema for each in declared.columns if each.column is column)

    def why_missing(self, url: str) -> str | None:
        """Say why the row's object may be missing; None where only the storage can be wrong."""
        return missing_objects.reason(self.session, self._identity, self._key, self.label, url)

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
        """Have a value looked at again before COMMIT: something editable was handed out.

        Leaves no trace in the Session: its row is neither dirty nor held.
        """
        rows = rows_of(value)
        # merge(load=False) shares a value with a row that is in no Session
        sessions = [object_session(row) for row in rows] if rows else [self.session]
        for session in sessions:
            if session is not None:
                SessionWatch.of(session).track(value)
                return

    def check_edit(self, value: DataStore) -> None:
        """Have a value looked at before COMMIT: it is about to be edited."""
        self.arm(value)

    def restored(self, value: DataStore) -> None:
        """Note the rows that may hold a value wrongly, since a rollback has put it back."""
        states = [state for state, _ in value._held_by() if state.session is not None]
        for state in states:
            SessionWatch.of(state.session).restored.append((state, value))
        if not states:
            unlink(value)

    def bring_back(self, session: Session, row: Any, value: DataStore) -> None:
        """Make an edited value the row's again, after its attribute or instance has gone.

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
        if held is value:
            # loading the row has given it back
            value.changed()
            return
        if held is None or held.url != value.url or is_edited(held):
            raise StaleValueError(_GONE.format(edited=value._edited_text()))
        if held._row is not None:
            held._row.was_displaced = True
        setattr(row, self._key, value)
