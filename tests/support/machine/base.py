"""What the rules of the state machine share."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition
from sqlalchemy import Connection, Transaction, inspect, select
from sqlalchemy.orm import Session, SessionTransaction

from sqla_datastore import DataStore
from sqla_datastore.maintenance import gc
from support.exactness import assert_exact
from support.machine.checks import (
    Violation,
    check_dangling,
    difference,
    paths_of,
    plain_row,
    urls_in,
)
from support.machine.model import Key, Model, Rows
from support.machine.models import CHILDREN, CLASSES, COLUMNS, FOLDERS, Base
from support.machine.values import Plain, Shape, editable, payload, value_of
from support.machine.world import World

KEYS = (1, 2, 3, 4)

numbers = st.integers(0, 11)
shapes: st.SearchStrategy[Shape] = st.sampled_from(
    ["plain", "plain", "small", "nested", "frame", "array"]
)
valued = st.sampled_from(["Item", "Item", "Item", "Auto", "Run", "Leaf"])

in_session = precondition(lambda self: self.has_session)
in_session_or_connection = precondition(lambda self: self.has_session or self.has_connection)


@dataclass
class Hold:
    """An entry that its user still has."""

    key: Key
    column: str
    name: str
    entry: Any
    value: weakref.ref[DataStore]
    age: int = 0


class MachineBase(RuleBasedStateMachine):
    """What all rules share: looking at rows, telling the model, comparing both.

    A subclass has the attribute ``world``. A rule that finds nothing to work on does nothing, and
    is not counted as a step.
    """

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.reset()
        self.storage = self.world.storage
        self._connection: Connection | None = None
        self._session: Session | None = None
        self.outer: list[Transaction] = []
        self.nested: list[SessionTransaction] = []
        self.holds: list[Hold] = []
        self.olds: list[tuple[Key, str, DataStore, Plain]] = []
        self.late: set[tuple[Key, str]] = set()
        self.switched: set[Key] = set()
        self.pins: list[Any] = []
        self.detached: list[tuple[Key, Any, dict[str, Any]]] = []
        self.trouble: str | None = None
        self.errors: list[BaseException] = []
        self.unremoved: set[str] = set()
        self.kept: set[str] = set()
        self.count = 0

    @property
    def has_session(self) -> bool:
        """Whether a Session is open."""
        return self._session is not None

    @property
    def has_connection(self) -> bool:
        """Whether a Connection is open, which a Session may have joined."""
        return self._connection is not None

    @property
    def session(self) -> Session:
        """The open Session."""
        assert self._session is not None
        return self._session

    @property
    def connection(self) -> Connection:
        """The open Connection."""
        assert self._connection is not None
        return self._connection

    @property
    def model(self) -> Model:
        return self.world.model

    @property
    def rows(self) -> Rows:
        return self.model.state.rows

    def step(self, name: str) -> None:
        """Count a rule that found something to do."""
        self.world.steps[name] += 1

    def number(self) -> int:
        """Return a number that no value has yet."""
        self.count += 1
        return self.count

    def fresh(self, shape: Shape = "plain") -> tuple[DataStore, Plain]:
        """Return a new value and what it holds."""
        plain = payload(self.number(), shape)
        return value_of(plain), plain

    def existing(self, *names: str) -> list[Key]:
        """Return the keys of rows of these classes, of all that have values if none is named."""
        return sorted(key for key in self.rows if key[0] in (names or COLUMNS))

    def missing(self, name: str) -> list[int]:
        """Return keys that no row has."""
        return [key for key in KEYS if (name, key) not in self.rows]

    def row(self, key: Key) -> Any:
        """Return a row of the Session, held until `forget`."""
        found = self.session.get(CLASSES[key[0]], key[1])
        if found is None:
            raise Violation(f"wrong value: the row {key} is not there")
        self.pins.append(found)
        return found

    def can_be_expunged(self) -> list[Key]:
        """Return keys of items that were not changed by this transaction.

        SQLAlchemy brings the others back into the Session when it rolls back, though detached.
        """
        return [key for key in self.existing("Item") if key not in self.switched]

    def any_value(self, n: int) -> tuple[Key, str] | None:
        """Return the key and column of a row that has a value, or None."""
        found = [
            (key, column)
            for key in self.existing()
            for column in COLUMNS[key[0]]
            if self.rows[key][column] is not None
        ]
        return found[n % len(found)] if found else None

    def begin(self) -> Connection:
        """Have the Session begin now, before anything that it will flush later."""
        if self.has_session:
            return self.session.connection()
        if not self.connection.in_transaction():
            self.outer = [self.connection.begin()]
        return self.connection

    def flush(self) -> None:
        """Flush everything, with edits of what was got before an earlier flush."""
        if not self.has_session:
            return
        for key, column in self.late:
            if key in self.rows and self.rows[key][column] is not None:
                value = getattr(self.row(key), column)
                for name in editable(self.rows[key][column]):
                    value[name]
        self.session.flush()
        self.late.clear()

    def flush_late_edits(self) -> None:
        """Leave it to the autoflush, but for edits of what was got before an earlier flush."""
        if self.late:
            self.flush()

    def stale(self, *keys: Key) -> None:
        """Have the Session forget rows that were changed or deleted behind its back."""
        self.drop_holds(*keys)
        if not self.has_session:
            return
        for row in list(self.session.identity_map.values()):
            identity = inspect(row).identity[0]
            if (type(row).__name__, identity) in keys:
                self.session.expire(row)
                # finds out that it is gone
                self.session.get(type(row), identity)

    def vacate(self, name: str, *keys: int) -> None:
        """Have the Session find out that rows are gone, before others take their keys."""
        self.stale(*((name, key) for key in keys))

    def drop_holds(
        self, *keys: Key, column: str | None = None, but: DataStore | None = None
    ) -> None:
        """Let go of entries whose edits the library does not promise to see any more."""
        self.holds = [
            hold
            for hold in self.holds
            if hold.key not in keys
            or column not in (None, hold.column)
            or (but is not None and hold.value() is but)
        ]

    def put(self, name: str, key: int, /, **columns: Any) -> None:
        """Note a new row."""
        row = dict.fromkeys(COLUMNS.get(name, ())) | {"name": None} | columns
        self.rows[name, key] = row
        self.empty(name, key)

    def note(
        self, key: Key, column: str, plain: Plain | None, but: DataStore | None = None
    ) -> None:
        """Note a row's new value."""
        self.drop_holds(key, column=column, but=but)
        self.rows[key][column] = plain

    def remove(self, name: str, key: int) -> None:
        """Note that a row is gone."""
        del self.rows[name, key]
        self.drop_holds((name, key))
        self.empty(name, key)

    def empty(self, name: str, key: int) -> None:
        """Note that an owner's folder is to be emptied: what lies there is no orphan any more."""
        if name in FOLDERS:
            folder = f"{FOLDERS[name]}/{key}/"
            lying = {path for path in self.world.stored.files() if path.startswith(folder)}
            state = self.model.state
            state.listed |= lying
            state.orphans -= lying

    def cascade(self, owner: str, key: int, paths: set[str]) -> None:
        """Note that the database deletes the rows of an owner; some leave orphans."""
        child = CHILDREN[owner]
        children = [k for k, row in self.rows.items() if k[0] == child and row["id_parent"] == key]
        for each in children:
            del self.rows[each]
        self.stale(*children)
        self.model.state.orphans |= paths - self.model.state.listed
        self.remove(owner, key)

    def child_paths(self, owner: str, key: int) -> set[str]:
        """Return the objects of an owner's rows, asked from the database."""
        table = CLASSES[CHILDREN[owner]].__tablename__
        query = f"SELECT data FROM {table} WHERE id_parent = {key} AND data IS NOT NULL"
        return paths_of(url for (url,) in self.begin().exec_driver_sql(query))

    def is_gone(self, value: DataStore) -> bool:
        """Whether a stored value has lost its objects: its row got another one, and committed."""
        return value.url is not None and not (paths_of([value.url]) <= self.world.stored.files())

    def settle(self) -> None:
        """Check everything if the outermost transaction has just ended."""
        if self.errors:
            raise self.errors.pop()
        if not self.model.ended:
            return
        self.model.ended = False
        self.storage.failing = self.trouble = None
        with self.world.unobserved():
            self.check_rows_and_objects()
        self.unremoved.clear()
        self.switched.clear()
        for state in (self.model.committed, self.model.state):
            state.orphans = state.listed = frozenset()
        self.kept = self.world.stored.files()
        self.world.ends += 1

    def check_rows_and_objects(self) -> None:
        world, rows = self.world, {}
        with world.engine.connect() as connection:
            urls = urls_in(connection)
        files = world.stored.files()
        check_dangling(urls, files)
        with Session(world.engine) as session:
            for name, cls in CLASSES.items():
                for row in session.scalars(select(cls)):
                    rows[name, row.id] = plain_row(name, row)
        if rows != self.model.committed.rows:
            raise Violation(f"wrong value: {difference(rows, self.model.committed.rows)}")
        orphans, expected = files - paths_of(urls), self.model.committed.orphans | self.unremoved
        if orphans != expected - paths_of(urls):
            raise Violation(
                f"orphans: {sorted(orphans - expected)}, not there: {sorted(expected - orphans)}"
            )
        if orphans:
            gc(world.engine, Base.metadata, apply=True, grace_seconds=0, force=not urls)
            world.collected += len(orphans)
        try:
            assert_exact(world.engine, Base.metadata, world.stored)
        except AssertionError as err:
            raise Violation(f"not exact: {err}") from err
