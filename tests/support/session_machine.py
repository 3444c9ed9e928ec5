"""A state machine over real Sessions, Connections, a database and a storage.

Its model is plain Python: rows as dictionaries, and copies of them for the open savepoints. What
the database is told (SAVEPOINT, COMMIT and so on) reaches the model by SQLAlchemy's own events, so
it follows every mode of joining a transaction without knowing one. Whether the events told the
truth is found out in the end: after each outermost one, all rows are read back and compared.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from sqlalchemy import bindparam, delete, event, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, attributes, make_transient

from sqla_datastore import DataStore, MissingObjectError, StaleValueError, StorageError
from sqla_datastore.maintenance import gc
from sqla_datastore.storage.local import LocalStorage
from sqla_datastore.storage.urls import ObjectURL
from support.exactness import assert_exact, delete_rows
from support.machine_models import Auto, Base, Item, Leaf, Parent, Project, Run

KEYS = (1, 2, 3, 4)
CLASSES = {cls.__name__: cls for cls in (Item, Auto, Project, Run, Parent, Leaf)}
COLUMNS = {"Item": ("data", "more"), "Auto": ("data",), "Run": ("data",), "Leaf": ("data",)}
OWNERS = {"Run": "Project", "Leaf": "Parent"}
CHILDREN = {owner: child for child, owner in OWNERS.items()}
EXISTS = {"Project": "machine_projects", "Leaf": "machine_leaves"}
_FIRST = (("Item", 1, "plain"), ("Item", 2, "nested"), ("Run", 1, "plain"), ("Leaf", 1, "frame"))
JOIN_MODES = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")

numbers = st.integers(0, 11)
shapes = st.sampled_from(["plain", "plain", "small", "nested", "frame", "array"])
troubles = st.sampled_from([None, None, "Item", "Project", "remove"])
worlds = st.sampled_from(["session", "session", "session that expires nothing", "connection"]) | (
    st.tuples(st.sampled_from(JOIN_MODES), st.booleans())
)
valued = st.sampled_from(["Item", "Item", "Item", "Auto", "Run", "Leaf"])


class Violation(AssertionError):
    """A promise of the library is broken: *dangling*, *orphans*, *wrong value*."""


# -- values as plain Python ----------------------------------------------------------------------


def payload(n, shape="plain"):
    """Return what a value is to hold, as plain Python."""
    if shape == "small":
        return {"n": n}
    found = {"n": n, "l": [n], "d": {"x": n}}
    if shape == "nested":
        found["c"] = {"n": n, "l": [n], "c": {"l": [n]}}
    elif shape == "frame":
        found["f"] = [n, n + 1]
    elif shape == "array":
        found["a"] = [n, n + 1, n + 2]
    return found


def value_of(plain):
    """Make a value that holds this."""
    made = copy.deepcopy(plain)
    if "c" in made:
        made["c"] = value_of(made["c"])
    if "f" in made:
        made["f"] = pd.DataFrame({"x": made["f"]})
    if "a" in made:
        made["a"] = np.array(made["a"])
    return DataStore(made)


def plain_of(value):
    """Return what a value holds; loads every entry."""
    if isinstance(value, DataStore):
        return {name: plain_of(entry) for name, entry in value.items()}
    if isinstance(value, pd.DataFrame):
        return value["x"].tolist()
    return value.tolist() if isinstance(value, np.ndarray) else value


def editable(plain):
    """Return the names of the entries that can be edited in place."""
    return [name for name in ("l", "d", "f", "c") if name in (plain or {})]


def edit_entry(entry, name, plain, n):
    """Edit an entry in place; return what its value holds then."""
    plain = copy.deepcopy(plain)
    if name == "l":
        entry.append(n)
        plain["l"].append(n)
    elif name == "d":
        entry[f"k{n % 3}"] = n
        plain["d"][f"k{n % 3}"] = n
    elif name == "f":
        entry.loc[0, "x"] = n
        plain["f"][0] = n
    else:
        inner = entry["c"] if n % 2 and "c" in entry else entry
        held = plain["c"]["c"] if n % 2 and "c" in entry else plain["c"]
        inner["l"].append(n)
        held["l"].append(n)
    return plain


def assign_entry(value, plain, n):
    """Assign or delete an entry; return what the value holds then."""
    plain = copy.deepcopy(plain)
    if n % 4 == 0 and len(plain) > 1 and "d" in plain:
        del value["d"], plain["d"]
    elif "a" in plain and n % 2:
        array = value.a.copy()
        array[0] = n
        value.a = array
        plain["a"][0] = n
    else:
        value.n = plain["n"] = n
    return plain


# -- the model -----------------------------------------------------------------------------------


@dataclass
class State:
    """What a transaction sees: rows by class and key, and objects that no row refers to.

    Attributes:
        rows: their columns; values as plain Python.
        orphans: paths of objects whose rows a cascade of the database has deleted.
        listed: paths that lay in folders when these were to be emptied.
    """

    rows: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    orphans: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()

    def copy(self):
        return State({k: dict(row) for k, row in self.rows.items()}, self.orphans, self.listed)


class Model:
    """The committed state, the transaction's, and copies for its savepoints."""

    def __init__(self):
        self.committed = State()
        self.previous = State()
        self.state = State()
        self.savepoints: list[tuple[str, State]] = []
        self.root_savepoint = None
        self.ended = False

    def savepoint(self, name):
        self.savepoints.append((name, self.state.copy()))

    def _level(self, name):
        return [known for known, _ in self.savepoints].index(name)

    def release(self, name):
        del self.savepoints[self._level(name) :]
        if name == self.root_savepoint:
            self.commit()

    def rollback_to(self, name):
        level = self._level(name)
        self.state = self.savepoints[level][1].copy()
        del self.savepoints[level + 1 :]

    def commit(self):
        self.previous, self.committed = self.committed, self.state.copy()
        self._end()

    def commit_failed(self):
        self.committed = self.previous
        self._end()

    def rollback(self):
        self.previous = self.committed
        self._end()

    def _end(self):
        self.state = self.committed.copy()
        self.savepoints.clear()
        self.root_savepoint = None
        self.ended = True


class AttackedStorage(LocalStorage):
    """A folder that fails when it is told to, and lets others in just before it removes.

    Attributes:
        failing: the method that raises, if any.
        before_remove: called with the paths before they are removed.
    """

    failing: str | None = None

    def __init__(self, base):
        super().__init__(base)
        self.before_remove = lambda paths: None

    def _strike(self, method):
        if self.failing == method:
            raise StorageError(f"{method} was made to fail")

    def create(self, path):
        self._strike("create")
        return super().create(path)

    def make_durable(self, paths):
        self._strike("make_durable")
        super().make_durable(paths)

    def remove(self, paths):
        paths = list(paths)
        self.before_remove(paths)
        self._strike("remove")
        super().remove(paths)


class World:
    """A database and a storage for many examples; tells the model what the database is told.

    Args:
        engine: the database, its tables made.
        other: another engine on it, for those who come between.
        storage: bound to the first engine.
        stored: its folder, seen without the library.
    """

    def __init__(self, engine, other, storage, stored):
        self.engine = engine
        self.other = other
        self.storage = storage
        self.stored = stored
        self.model = Model()
        self.aside = False
        self.steps = Counter()
        self.ends = 0
        self.collected = 0
        # the event `savepoint` does not tell the name that SQLAlchemy gives it
        event.listen(engine, "before_cursor_execute", self._savepoint)
        for name in ("release_savepoint", "rollback_savepoint", "commit", "rollback"):
            event.listen(engine, name, getattr(self, f"_{name}"))

    @contextlib.contextmanager
    def unobserved(self):
        """Keep transactions of the block from the model."""
        self.aside = True
        try:
            yield
        finally:
            self.aside = False

    def reset(self):
        """Empty the tables and the folder."""
        self.model = Model()
        self.storage.failing = None
        self.storage.before_remove = lambda paths: None
        with self.unobserved():
            delete_rows(self.engine, Base.metadata)
        for path in sorted(self.stored.base.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def _savepoint(self, connection, _cursor, statement, *_):
        if self.aside or not statement.startswith("SAVEPOINT"):
            return
        name = statement.split()[1]
        self.model.savepoint(name)
        raw = connection.connection.dbapi_connection
        if connection.dialect.name == "sqlite" and not raw.in_transaction:
            # it begins the transaction, so releasing it will commit
            self.model.root_savepoint = name

    def _release_savepoint(self, _connection, name, _context):
        if not self.aside:
            self.model.release(name)

    def _rollback_savepoint(self, _connection, name, _context):
        if not self.aside:
            self.model.rollback_to(name)

    def _commit(self, _connection):
        if not self.aside:
            self.model.commit()

    def _rollback(self, _connection):
        if not self.aside:
            self.model.rollback()


@dataclass
class Hold:
    """An entry that its user still has."""

    key: tuple[str, int]
    column: str
    name: str
    entry: Any
    value: weakref.ref
    age: int = 0


# -- the machine ---------------------------------------------------------------------------------


class SessionMachine(RuleBasedStateMachine):
    """Rules do something to rows by one of many ways, and say so to the model.

    A subclass has the attribute ``world``. A rule that finds nothing to work on does nothing, and
    is not counted as a step.
    """

    world: World

    def __init__(self):
        super().__init__()
        self.world.reset()
        self.storage = self.world.storage
        self.storage.before_remove = self._before_remove
        self.connection = None
        self.session = None
        self.outer = []
        self.nested = []
        self.holds = []
        self.olds = []
        self.late = set()
        self.switched = set()
        self.pins = []
        self.detached = []
        self.trouble = None
        self.errors = []
        self.unremoved = set()
        self.kept = set()
        self.count = 0

    @property
    def model(self):
        return self.world.model

    @property
    def rows(self):
        return self.model.state.rows

    def step(self, name):
        """Count a rule that found something to do."""
        self.world.steps[name] += 1

    def number(self):
        """Return a number that no value has yet."""
        self.count += 1
        return self.count

    def fresh(self, shape="plain"):
        """Return a new value and what it holds."""
        plain = payload(self.number(), shape)
        return value_of(plain), plain

    def flush_late_edits(self):
        """Leave it to the autoflush, but for edits of what was got before an earlier flush."""
        if self.late:
            self.flush()

    # -- looking at rows

    def existing(self, *names):
        """Return the keys of rows of these classes, of all that have values if none is named."""
        return sorted(key for key in self.rows if key[0] in (names or COLUMNS))

    def missing(self, name):
        """Return keys that no row has."""
        return [key for key in KEYS if (name, key) not in self.rows]

    def row(self, key):
        """Return a row of the Session, held until `forget`."""
        found = self.session.get(CLASSES[key[0]], key[1])
        if found is None:
            raise Violation(f"wrong value: the row {key} is not there")
        self.pins.append(found)
        return found

    def can_be_expunged(self):
        """Return keys of items that were not changed by this transaction.

        SQLAlchemy brings the others back into the Session when it rolls back, though detached.
        """
        return [key for key in self.existing("Item") if key not in self.switched]

    def any_value(self, n):
        """Return the key and column of a row that has a value, or None."""
        found = [
            (key, column)
            for key in self.existing()
            for column in COLUMNS[key[0]]
            if self.rows[key][column] is not None
        ]
        return found[n % len(found)] if found else None

    def begin(self):
        """Have the Session begin now, before anything that it will flush later."""
        if self.session is not None:
            return self.session.connection()
        if not self.connection.in_transaction():
            self.outer = [self.connection.begin()]
        return self.connection

    def flush(self):
        """Flush everything, with edits of what was got before an earlier flush."""
        if self.session is None:
            return
        for key, column in self.late:
            if key in self.rows and self.rows[key][column] is not None:
                value = getattr(self.row(key), column)
                for name in editable(self.rows[key][column]):
                    value[name]
        self.session.flush()
        self.late.clear()

    def stale(self, *keys):
        """Have the Session forget rows that were changed or deleted behind its back."""
        self.drop_holds(*keys)
        if self.session is None:
            return
        for row in list(self.session.identity_map.values()):
            identity = attributes.instance_state(row).key[1][0]
            if (type(row).__name__, identity) in keys:
                self.session.expire(row)
                # finds out that it is gone
                self.session.get(type(row), identity)

    def vacate(self, name, *keys):
        """Have the Session find out that rows are gone, before others take their keys."""
        self.stale(*((name, key) for key in keys))

    def drop_holds(self, *keys, column=None, but=None):
        """Let go of entries whose edits the library does not promise to see any more."""
        self.holds = [
            hold
            for hold in self.holds
            if hold.key not in keys
            or column not in (None, hold.column)
            or (but is not None and hold.value() is but)
        ]

    # -- telling the model

    def put(self, name, key, /, **columns):
        """Note a new row."""
        row = dict.fromkeys(COLUMNS.get(name, ())) | {"name": None} | columns
        self.rows[name, key] = row
        self.empty(name, key)

    def note(self, key, column, plain, but=None):
        """Note a row's new value."""
        self.drop_holds(key, column=column, but=but)
        self.rows[key][column] = plain

    def remove(self, name, key):
        """Note that a row is gone."""
        del self.rows[name, key]
        self.drop_holds((name, key))
        self.empty(name, key)

    def empty(self, name, key):
        """Note that an owner's folder is to be emptied: what lies there is no orphan any more."""
        if name in EXISTS:
            folder = f"{EXISTS[name]}/{key}/"
            lying = {path for path in self.world.stored.files() if path.startswith(folder)}
            state = self.model.state
            state.listed |= lying
            state.orphans -= lying

    def cascade(self, owner, key, paths):
        """Note that the database deletes the rows of an owner; some leave orphans."""
        child = CHILDREN[owner]
        children = [k for k, row in self.rows.items() if k[0] == child and row["id_parent"] == key]
        for each in children:
            del self.rows[each]
        self.stale(*children)
        self.model.state.orphans |= paths - self.model.state.listed
        self.remove(owner, key)

    def child_paths(self, owner, key):
        """Return the objects of an owner's rows, asked from the database."""
        table = CLASSES[CHILDREN[owner]].__tablename__
        query = f"SELECT data FROM {table} WHERE id_parent = {key} AND data IS NOT NULL"
        return _paths(url for (url,) in self.begin().exec_driver_sql(query))

    # -- where transactions start --------------------------------------------------------------

    @initialize(world=worlds)
    def start(self, world):
        """Commit a row of each class, so that every rule finds something to do."""
        self.open("session")
        self.session.add_all([Project(id=1), Parent(id=1)])
        self.put("Project", 1)
        self.put("Parent", 1)
        for name, key, shape in _FIRST:
            value, plain = self.fresh(shape)
            row, columns = self.new_row(name, key, plain, value)
            self.session.add(row)
            self.session.flush()
            self.put(name, row.id, **columns)
        self.session.commit()
        self.leave_session()
        self.settle()
        self.open(world)

    def open(self, world):
        """Begin with a Session, or with a Connection that one may join."""
        if world in ("session", "session that expires nothing"):
            self.session = Session(self.world.engine, expire_on_commit=world == "session")
            self.step(f"open a {world}")
            return
        self.connection = self.world.engine.connect()
        self.outer = [self.connection.begin()]
        self.step("open a connection")
        if world != "connection":
            mode, inside = world
            if inside:
                self.outer_savepoint()
            self.join(mode=mode, expire=True)

    @precondition(lambda self: self.connection is not None and self.session is None)
    @rule(mode=st.sampled_from(JOIN_MODES), expire=st.booleans())
    def join(self, mode, expire):
        self.session = Session(
            bind=self.connection, join_transaction_mode=mode, expire_on_commit=expire
        )
        self.begin()
        inside = "savepoint" if len(self.outer) > 1 else "transaction"
        self.step(f"join {mode} in {inside}")

    @precondition(
        lambda self: self.connection is not None and self.session is None and len(self.outer) < 3
    )
    @rule()
    def outer_savepoint(self):
        self.begin()
        self.outer.append(self.connection.begin_nested())
        self.step("outer_savepoint")

    @precondition(lambda self: self.session is None and len(self.outer) > 1)
    @rule(n=numbers, commits=st.booleans())
    def end_outer_savepoint(self, n, commits):
        for savepoint in self.outer[: n % (len(self.outer) - 1) : -1]:
            # a Session that took control may have ended it already
            if savepoint.is_active:
                savepoint.commit() if commits else savepoint.rollback()
                self.step("end_outer_savepoint")
            self.outer.pop()
        self.settle()

    @precondition(lambda self: self.connection is not None)
    @rule(commits=st.sampled_from([True, True, False]), trouble=troubles, world=worlds)
    def end_connection(self, commits, trouble, world):
        """End the outer transaction, innermost savepoint first, or just close the connection."""
        self.trouble = trouble
        if self.session is not None:
            self.flush()
            self.leave_session()
        self._end_outer(commits)
        self.connection.close()
        self.connection, self.outer = None, []
        self.settle()
        self.step("end_connection")
        self.open(world)

    def _end_outer(self, commits):
        for transaction in reversed(self.outer):
            if transaction.is_active:
                transaction.commit() if commits else transaction.rollback()
                self.settle()
        # a Session that took control may have begun another one since
        if commits and self.connection.in_transaction():
            self.connection.commit()

    def leave_session(self):
        self.session.close()
        self.session = None
        self.let_go()

    def let_go(self):
        """Let go of what a rollback or a closed Session makes worthless."""
        self.nested.clear()
        self.holds.clear()
        self.late.clear()

    # -- where they end ------------------------------------------------------------------------

    @precondition(lambda self: self.session is not None)
    @rule(trouble=troubles, forget=st.booleans())
    def commit(self, trouble, forget):
        self.trouble = trouble
        self.session.commit()
        if forget:
            self.pins.clear()
        self.nested.clear()
        self.late.clear()
        for hold in self.holds:
            hold.age += 1
        self.holds = [hold for hold in self.holds if hold.age < 2]
        self.settle()
        self.step("commit")

    @precondition(lambda self: self.session is not None)
    @rule(trouble=troubles)
    def rollback(self, trouble):
        self.trouble = trouble
        self.begin()
        self.session.rollback()
        self.let_go()
        self.settle()
        self.step("rollback")

    @precondition(lambda self: self.session is not None)
    @rule(trouble=troubles, world=worlds)
    def close(self, trouble, world):
        """Close the Session without a commit; a joined one may leave its changes behind."""
        self.trouble = trouble
        self.begin()
        if self.connection is not None:
            self.flush()
        self.leave_session()
        self.settle()
        self.step("close")
        if self.connection is None:
            self.open(world)

    @precondition(lambda self: self.session is not None and len(self.nested) < 4)
    @rule(twice=st.booleans())
    def begin_nested(self, twice):
        self._begin_nested()
        if twice and len(self.nested) < 4:
            self._begin_nested()

    def _begin_nested(self):
        self.begin()
        try:
            self.nested.append(self.session.begin_nested())
        except StaleValueError:
            if not self.late:
                raise
            self.flush()
            self.nested.append(self.session.begin_nested())
            self.step("begin_nested after a refusal")
        self.late.clear()
        self.step(f"begin_nested to depth {len(self.nested)}")

    @precondition(lambda self: self.nested)
    @rule(n=numbers, commits=st.booleans())
    def end_nested(self, n, commits):
        """End any of the open savepoints; those inside it end with it."""
        level = n % len(self.nested)
        if commits:
            self.nested[level].commit()
        else:
            self.nested[level].rollback()
            if level < len(self.nested) - 1:
                # SQLAlchemy expires what changed in this savepoint, not in those inside it
                self.session.expire_all()
            self.holds.clear()
            self.late.clear()
        del self.nested[level:]
        self.settle()
        self.step("release" if commits else "rollback_to")

    @precondition(lambda self: self.session is not None and len(self.nested) < 4)
    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from(["replace", "edit", "delete", "insert", "bulk"]), numbers),
            min_size=1,
            max_size=4,
        ),
        ends=st.lists(st.tuples(numbers, st.booleans()), max_size=4),
    )
    def change_in_savepoints(self, changes, ends):
        """Change something in each of some savepoints, then end them in any order."""
        for what, n in changes:
            if len(self.nested) < 4:
                self._begin_nested()
            if what == "replace":
                self.replace(n=n, shape="plain", flush=True, null=0, restore=n % 2)
            elif what == "edit":
                self.edit_in_place(n=n, flushes=n % 4, again=False)
            elif what == "delete":
                self.delete(n=n)
            elif what == "insert":
                self.insert(name="Item", n=n, shape="plain", flush=n % 2, null=0)
            else:
                self.bulk_update(n=n, shape="plain", sync="auto")
        for n, commits in ends:
            if self.nested:
                self.end_nested(n=n, commits=commits)

    # -- rows by the ORM -----------------------------------------------------------------------

    def new_row(self, name, key, plain, value):
        """Make a row, with its owner if there is none; return it and what the model has of it."""
        columns = {"data": plain}
        row = CLASSES[name](data=value) if key is None else CLASSES[name](id=key, data=value)
        if name in OWNERS:
            owners = self.existing(OWNERS[name])
            row.id_parent = columns["id_parent"] = owners[0][1] if owners else 1
            if not owners:
                self.vacate(OWNERS[name], 1)
                self.session.add(CLASSES[OWNERS[name]](id=1))
                self.put(OWNERS[name], 1)
        return row, columns

    @precondition(lambda self: self.session is not None)
    @rule(
        name=valued, n=numbers, shape=shapes, flush=st.booleans(), null=st.sampled_from([0, 0, 1])
    )
    def insert(self, name, n, shape, flush, null):
        self.begin()
        missing = self.missing(name)
        if name == "Auto":
            if len(self.existing("Auto")) >= len(KEYS):
                return
            key = None
        elif not missing:
            return
        else:
            key = missing[n % len(missing)]
        if key is not None:
            self.vacate(name, key)
        value, plain = (None, None) if null else self.fresh(shape)
        row, columns = self.new_row(name, key, plain, value)
        self.session.add(row)
        self.pins.append(row)
        if flush or key is None:
            self.session.flush()
        self.put(name, row.id, **columns)
        self.step("insert")

    @precondition(lambda self: self.session is not None)
    @rule(name=st.sampled_from(["Project", "Parent"]))
    def insert_owner(self, name):
        missing = [key for key in (1, 2) if (name, key) not in self.rows]
        if not missing:
            return
        self.begin()
        self.vacate(name, missing[0])
        self.session.add(CLASSES[name](id=missing[0]))
        self.session.flush()
        self.put(name, missing[0])
        self.step("insert_owner")

    @precondition(lambda self: self.session is not None)
    @rule(
        n=numbers,
        shape=shapes,
        flush=st.booleans(),
        null=st.sampled_from([0, 0, 0, 1]),
        restore=st.sampled_from([0, 0, 1]),
    )
    def replace(self, n, shape, flush, null, restore):
        keys = self.existing()
        if not keys:
            return
        self.begin()
        key = keys[n % len(keys)]
        column = COLUMNS[key[0]][n % len(COLUMNS[key[0]])]
        row = self.row(key)
        old = getattr(row, column)
        if old is not None and self.rows[key][column] is not None:
            self.olds = [*self.olds[-3:], (key, column, old, self.rows[key][column])]
        value, plain = (None, None) if null else self.fresh(shape)
        setattr(row, column, value)
        self.note(key, column, plain)
        if flush:
            self.session.flush()
        self.step("replace")
        if restore and self.olds:
            self.assign_old_value(n=len(self.olds) - 1)

    @precondition(lambda self: self.session is not None and self.olds)
    @rule(n=numbers)
    def assign_old_value(self, n):
        """Assign what a row had before; its object may be superseded, never written, or gone."""
        key, column, value, plain = self.olds.pop(n % len(self.olds))
        if key not in self.rows:
            return
        self.begin()
        self.flush()
        row = self.row(key)
        if getattr(row, column) is value:
            return
        if self.is_gone(value):
            self.fails(MissingObjectError, lambda: setattr(row, column, value))
            self.step("assign_lost_value")
            return
        setattr(row, column, value)
        self.session.flush()
        self.note(key, column, plain)
        self.step("assign_old_value")

    def is_gone(self, value):
        """Whether a stored value has lost its objects: its row got another one, and committed."""
        return value.url is not None and not (_paths([value.url]) <= self.world.stored.files())

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, flushes=st.integers(0, 3), again=st.booleans())
    def edit_in_place(self, n, flushes, again):
        found = self.any_value(n)
        if found is None:
            return
        self.begin()
        key, column = found
        value = getattr(self.row(key), column)
        plain = self.rows[key][column]
        names = editable(plain)
        if n % 3 == 0 or not names:
            plain = assign_entry(value, plain, self.number())
        else:
            name = names[n % len(names)]
            if name == "f":
                # one that was assigned is its user's again after the flush
                self.session.flush()
            entry = value[name]
            if flushes & 1:
                self.session.flush()
            plain = edit_entry(entry, name, plain, self.number())
            if again:
                self.session.flush()
                plain = edit_entry(entry, name, plain, self.number())
        self.note(key, column, plain, but=value)
        if flushes & 1 or again:
            self.late.add(found)
        if n % 3 == 0:
            # an entry that was replaced is its user's
            self.holds = [h for h in self.holds if (h.key, h.column) != (key, column)]
        self.olds = [old for old in self.olds if old[2] is not value]
        if flushes & 2:
            self.session.flush()
        self.step("edit_in_place")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, forget=st.booleans())
    def hold_entry(self, n, forget):
        """Get an entry from a row and keep it, to edit it later; perhaps without the row."""
        found = self.any_value(n)
        names = editable(self.rows[found[0]][found[1]]) if found else ()
        if not names:
            return
        self.begin()
        self.flush()
        key, column = found
        value = getattr(self.row(key), column)
        name = names[n % len(names)]
        self.holds.append(Hold(key, column, name, value[name], weakref.ref(value)))
        if forget:
            self.pins.clear()
        self.step("hold_entry")

    @precondition(lambda self: self.session is not None and self.holds)
    @rule(n=numbers, flush=st.booleans())
    def edit_held_entry(self, n, flush):
        hold = self.holds[n % len(self.holds)]
        self.begin()
        value = hold.value()
        plain = edit_entry(hold.entry, hold.name, self.rows[hold.key][hold.column], self.number())
        self.note(hold.key, hold.column, plain, but=value)
        self.late.add((hold.key, hold.column))
        hold.value = weakref.ref(value) if value is not None else hold.value
        self.olds = [old for old in self.olds if old[:2] != (hold.key, hold.column)]
        if flush:
            self.session.flush()
        self.step(f"edit_held_entry after {hold.age} commits")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers)
    def delete(self, n):
        keys = self.existing()
        if not keys:
            return
        self.begin()
        key = keys[n % len(keys)]
        self.session.delete(self.row(key))
        self.session.flush()
        self.remove(*key)
        self.step("delete")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, shape=shapes, kind=st.sampled_from(["new", "old", "stored"]))
    def assign_one_value_to_two_rows(self, n, shape, kind):
        keys = self.existing("Item", "Auto")
        self.begin()
        self.flush()
        if kind == "new" and len(self.missing("Item")) > 1:
            value, plain = self.fresh(shape)
            for key in self.missing("Item")[:2]:
                self.vacate("Item", key)
                self.session.add(Item(id=key, data=value, more=value if n % 2 else None))
                self.put("Item", key, data=plain, more=plain if n % 2 else None)
        elif kind == "old" and len(keys) > 1:
            value, plain = self.fresh(shape)
            for key in (keys[n % len(keys)], keys[(n + 1) % len(keys)]):
                self.row(key).data = value
                self.note(key, "data", plain)
        elif kind == "stored" and len(keys) > 1 and self.rows[keys[n % len(keys)]]["data"]:
            first, second = keys[n % len(keys)], keys[(n + 1) % len(keys)]
            self.row(second).data = self.row(first).data
            self.note(second, "data", self.rows[first]["data"])
        else:
            return
        self.session.flush()
        # until then the two share the lists that were assigned
        self.session.expire_all()
        self.holds.clear()
        self.step("assign_one_value_to_two_rows")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, assigns=st.booleans())
    def row_switch(self, n, assigns):
        keys = self.existing("Item")
        if not keys:
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)]
        self.session.delete(self.row(key))
        row = Item(id=key[1], name="switched")
        columns = {"name": "switched"}
        if assigns:
            row.data, columns["data"] = self.fresh()
        self.session.add(row)
        self.session.flush()
        # SQLAlchemy takes what was not assigned for None, and leaves it alone in the database
        self.session.expire(row)
        self.drop_holds(key)
        self.rows[key] |= columns
        self.step("row_switch")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, refill=st.booleans())
    def change_key(self, n, refill):
        """Change a row's key; perhaps another row takes the old one, and with it the folder."""
        keys, missing = self.existing("Item"), self.missing("Item")
        if not keys or not missing:
            return
        self.begin()
        self.flush()
        old, new = keys[n % len(keys)], ("Item", missing[n % len(missing)])
        self.vacate(*new)
        self.row(old).id = new[1]
        self.session.flush()
        self.rows[new] = self.rows.pop(old)
        self.switched |= {old, new}
        self.drop_holds(old)
        if refill:
            value, plain = self.fresh()
            self.session.add(Item(id=old[1], data=value))
            self.session.flush()
            self.put("Item", old[1], data=plain)
        self.step("change_key")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, replace=st.booleans())
    def change_owner(self, n, replace):
        keys = self.existing("Run", "Leaf")
        if not keys:
            return
        key = keys[n % len(keys)]
        others = [
            k[1] for k in self.existing(OWNERS[key[0]]) if k[1] != self.rows[key]["id_parent"]
        ]
        if not others:
            return
        self.begin()
        row = self.row(key)
        row.id_parent = self.rows[key]["id_parent"] = others[0]
        if replace:
            row.data, plain = self.fresh()
            self.note(key, "data", plain)
        self.session.flush()
        self.step("change_owner")

    # -- the Session's own doing ---------------------------------------------------------------

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, all_rows=st.booleans())
    def expire(self, n, all_rows):
        keys = self.existing()
        if not keys:
            return
        self.begin()
        self.flush()
        if all_rows:
            self.session.expire_all()
            self.holds.clear()
        else:
            self.session.expire(self.row(keys[n % len(keys)]))
            self.drop_holds(keys[n % len(keys)])
        self.step("expire")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, how=st.sampled_from(["refresh", "expire", "expire one"]))
    def discard_an_edit(self, n, how):
        """Edit in place, then have the row read again: the edit is discarded, as meant."""
        found = self.any_value(n)
        if found is None:
            return
        self.begin()
        self.flush()
        key, column = found
        row = self.row(key)
        value = getattr(row, column)
        names = editable(self.rows[key][column])
        if names:
            edit_entry(value[names[0]], names[0], self.rows[key][column], self.number())
        else:
            value.n = self.number()
        if how == "refresh":
            self.session.refresh(row)
        else:
            self.session.expire(row, [column] if how == "expire one" else None)
        self.drop_holds(key)
        self.olds = [old for old in self.olds if old[2] is not value]
        self.step("discard_an_edit")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers)
    def expunge(self, n):
        """Detach a row, to merge it later."""
        keys = self.can_be_expunged()
        if not keys:
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)]
        row = self.row(key)
        self.session.refresh(row)
        self.session.expunge(row)
        self.drop_holds(key)
        self.detached = [*self.detached[-2:], (key, row, dict(self.rows[key]))]
        self.step("expunge")

    @precondition(lambda self: self.session is not None and self.detached)
    @rule(n=numbers, change=st.sampled_from(["nothing", "edit", "replace"]))
    def merge(self, n, change):
        """Merge a detached row: what it says counts, if its objects are still there."""
        key, row, columns = self.detached.pop(n % len(self.detached))
        if not {"data", "more"} <= row.__dict__.keys():
            # a rollback has expired it
            return
        self.begin()
        self.flush()
        if change == "replace":
            row.data, columns["data"] = self.fresh()
        elif change == "edit" and columns["data"] is not None and not self.is_gone(row.data):
            columns["data"] = assign_entry(row.data, columns["data"], self.number())
        lost = [v for v in (row.data, row.more) if v is not None and self.is_gone(v)]
        if lost:
            self.fails(MissingObjectError, lambda: self.session.merge(row))
            self.step("merge_lost_value")
            return
        if key not in self.rows:
            self.vacate(*key)
        self.pins.append(self.session.merge(row))
        self.session.flush()
        self.drop_holds(key)
        if key in self.rows:
            self.rows[key] |= columns
        else:
            self.put("Item", key[1], **columns)
        self.step("merge")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, how=st.sampled_from(["other key", "deleted"]))
    def make_transient(self, n, how):
        keys, missing = self.can_be_expunged(), self.missing("Item")
        if not keys or (how == "other key" and not missing):
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)]
        row, columns = self.row(key), dict(self.rows[key])
        self.session.refresh(row)
        self.drop_holds(key)
        if how == "deleted":
            self.session.delete(row)
            self.session.flush()
            self.remove(*key)
        make_transient(row)
        if how == "other key":
            self.vacate("Item", missing[n % len(missing)])
            row.id = missing[n % len(missing)]
        self.session.add(row)
        self.session.flush()
        self.put("Item", row.id, **columns)
        self.step(f"make_transient with {how}")

    # -- bulk and Core statements --------------------------------------------------------------

    def execute(self, statement, *args, orm=False):
        """Execute by the Session, or by its connection behind the Session's back."""
        if orm and self.session is not None:
            return self.session.execute(statement, *args)
        return self.begin().execute(statement, *args)

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, shape=shapes, sync=st.sampled_from(["auto", "fetch", False]))
    def bulk_update(self, n, shape, sync):
        keys = self.existing()
        if not keys:
            return
        self.begin()
        self.flush_late_edits()
        cls, key = CLASSES[keys[n % len(keys)][0]], keys[n % len(keys)]
        value, plain = self.fresh(shape)
        statement = update(cls).where(cls.id == key[1]).values(data=value)
        self.session.execute(statement.execution_options(synchronize_session=sync))
        self.note(key, "data", plain)
        if sync is False:
            self.stale(key)
        self.step("bulk_update")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers)
    def bulk_update_by_key(self, n):
        keys = self.existing("Item")[: 1 + n % 3]
        if not keys:
            return
        self.begin()
        self.flush()
        given = [(key, *self.fresh()) for key in keys]
        self.session.execute(
            update(Item), [{"id": key[1], "data": value} for key, value, _ in given]
        )
        for key, _, plain in given:
            self.note(key, "data", plain)
        self.stale(*keys)
        self.step("bulk_update_by_key")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, column=st.sampled_from(["data", "more"]))
    def bulk_update_to_null(self, n, column):
        keys = self.existing("Item")[: 1 + n % 4]
        if not keys:
            return
        self.begin()
        self.flush_late_edits()
        ids = [key[1] for key in keys]
        self.session.execute(update(Item).where(Item.id.in_(ids)).values({column: None}))
        for key in keys:
            self.note(key, column, None)
        self.step("bulk_update_to_null")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, name=valued, sync=st.sampled_from(["auto", "fetch", False]))
    def bulk_delete(self, n, name, sync):
        keys = self.existing(name)[: 1 + n % 2]
        if not keys:
            return
        self.begin()
        self.flush_late_edits()
        cls, ids = CLASSES[name], [key[1] for key in keys]
        statement = delete(cls).where(cls.id.in_(ids))
        self.session.execute(statement.execution_options(synchronize_session=sync))
        for key in keys:
            self.remove(*key)
        if sync is False:
            self.stale(*keys)
        self.step("bulk_delete")

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers, how=st.sampled_from(["one", "many", "rows", "orm", "shared"]), shape=shapes)
    def core_insert(self, n, how, shape):
        keys = self.missing("Item")[: 1 if how == "one" else 1 + n % 3]
        if not keys:
            return
        self.begin()
        self.flush()
        shared = self.fresh(shape)
        given = [(key, *(shared if how == "shared" else self.fresh(shape))) for key in keys]
        rows = [{"id": key, "data": value} for key, value, _ in given]
        if how == "one":
            self.execute(insert(Item.__table__).values(rows[0]))
        elif how == "rows":
            self.execute(insert(Item.__table__).values(rows))
        else:
            self.execute(insert(Item), rows, orm=how == "orm")
        for key, _, plain in given:
            self.put("Item", key, data=plain)
        self.step(f"core_insert {how}")

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers, how=st.sampled_from(["one", "many", "twice"]), shape=shapes)
    def core_update(self, n, how, shape):
        keys = self.existing("Item")[: 1 if how == "one" else 1 + n % 3]
        if not keys:
            return
        self.begin()
        self.flush()
        table = Item.__table__
        given = [(key, *self.fresh(shape)) for key in keys * (1 + (how == "twice"))]
        if how == "one":
            statement = update(table).where(table.c.id == keys[0][1])
            self.execute(statement.values(data=given[0][1]))
        else:
            statement = update(table).where(table.c.id == bindparam("key"))
            new = bindparam("new", type_=table.c.data.type)
            self.execute(
                statement.values(data=new), [{"key": key[1], "new": v} for key, v, _ in given]
            )
        for key, _, plain in given:
            self.note(key, "data", plain)
        self.stale(*keys)
        self.step(f"core_update {how}")

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers, name=valued)
    def core_delete(self, n, name):
        keys = self.existing(name)[: 1 + n % 2]
        if not keys:
            return
        self.begin()
        self.flush()
        table = CLASSES[name].__table__
        self.execute(delete(table).where(table.c.id.in_([key[1] for key in keys])))
        self.stale(*keys)
        for key in keys:
            self.remove(*key)
        self.step("core_delete")

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers, updates=st.booleans())
    def upsert(self, n, updates):
        """Insert two rows that may be there already."""
        self.begin()
        self.flush()
        keys = [KEYS[n % 4], KEYS[(n + 1) % 4]]
        given = [(key, *self.fresh()) for key in keys]
        statement = _upsert(self.world.engine.dialect.name, updates)
        for key, value, plain in given:
            self.execute(statement.values(id=key, data=value))
            if ("Item", key) not in self.rows:
                self.put("Item", key, data=plain)
            elif updates:
                self.note(("Item", key), "data", plain)
        self.stale(*(("Item", key) for key in keys))
        self.step("upsert")

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers, owner=st.sampled_from(["Project", "Parent"]), by=st.sampled_from("adcb"))
    def delete_owner(self, n, owner, by):
        """Delete an owner of rows: the ORM or the database deletes these."""
        keys = self.existing(owner)
        if not keys or (self.session is None and by != "c"):
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)][1]
        cls = CLASSES[owner]
        paths = self.child_paths(owner, key)
        if by == "a":
            row = self.row((owner, key))
            self.session.expire(row, ["children"])
            for child in row.children:
                self.drop_holds((CHILDREN[owner], child.id))
            self.session.delete(row)
            self.session.flush()
            paths = set()
        elif by == "d":
            row = self.row((owner, key))
            self.session.expire(row, ["children"])
            self.session.delete(row)
            self.session.flush()
        elif by == "b":
            self.session.execute(delete(cls).where(cls.id == key))
        else:
            self.execute(delete(cls.__table__).where(cls.__table__.c.id == key))
            self.stale((owner, key))
        if owner == "Project":
            paths = {p for p in paths if not p.startswith(f"machine_projects/{key}/")}
        self.cascade(owner, key, paths)
        self.step({"a": "cascade by the ORM"}.get(by, "cascade by the database"))

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers, commits=st.booleans())
    def core_savepoint(self, n, commits):
        """Put a savepoint of the Connection around Core statements."""
        self.begin()
        self.flush()
        nested = self.begin().begin_nested()
        self.core_insert(n=n, how="one", shape="plain")
        self.core_update(n=n, how="many", shape="plain")
        nested.commit() if commits else nested.rollback()
        self.stale(*self.existing("Item"), *(("Item", key) for key in KEYS))
        self.settle()
        self.step("core_savepoint")

    # -- failures and retries ------------------------------------------------------------------

    def fails(self, error, change):
        """Have a change fail at flush, and roll back the innermost transaction."""
        with pytest.raises(error):  # noqa: PT012 - either may fail
            change()
            self.session.flush()
        if self.nested:
            self.nested.pop().rollback()
            self.holds.clear()
            self.late.clear()
        else:
            self.session.rollback()
            self.let_go()
        self.settle()

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, shape=shapes, why=st.sampled_from(["database", "storage"]))
    def retry_an_insert(self, n, shape, why):
        keys = self.can_be_expunged()
        if not self.missing("Item") or not keys:
            return
        self.begin()
        self.flush()
        new = self.missing("Item")[n % len(self.missing("Item"))]
        self.vacate("Item", new)
        value, plain = self.fresh(shape)
        row = Item(id=new, data=value)
        self.session.add(row)
        if why == "database":
            taken = keys[n % len(keys)]
            self.session.expunge(self.row(taken))
            self.drop_holds(taken)
            bad = Item(id=taken[1], data=self.fresh()[0])
            self.fails(IntegrityError, lambda: self.session.add(bad))
        else:
            self.storage.failing = "create"
            self.fails(StorageError, lambda: None)
            self.storage.failing = None
        if ("Item", new) in self.rows:
            return
        self.begin()
        self.session.add(row)
        self.session.flush()
        self.put("Item", new, data=plain)
        self.step(f"retry_an_insert that the {why} refused")

    @precondition(lambda self: self.session is not None)
    @rule(n=numbers, edits=st.booleans())
    def retry_an_update(self, n, edits):
        found = self.any_value(n)
        if found is None:
            return
        self.begin()
        self.flush()
        key, column = found
        row = self.row(key)
        value, plain = self.fresh()
        if edits:
            value = getattr(row, column)
            assign_entry(value, self.rows[key][column], self.number())
        else:
            setattr(row, column, value)
        self.olds = [old for old in self.olds if old[2] is not value]
        self.storage.failing = "create"
        self.fails(StorageError, lambda: None)
        self.storage.failing = None
        if key not in self.rows:
            return
        self.begin()
        if edits:
            plain = copy.deepcopy(self.rows[key][column])
            if plain is None:
                return
            plain["n"] = self.number()
            value = getattr(self.row(key), column)
            value.n = plain["n"]
        else:
            setattr(self.row(key), column, value)
        self.session.flush()
        self.note(key, column, plain, but=value)
        self.step("retry_an_update")

    @precondition(lambda self: self.session or self.connection)
    @rule(n=numbers)
    def a_failing_statement_in_a_savepoint(self, n):
        keys, missing = self.existing("Item"), self.missing("Item")
        if not keys or not missing:
            return
        self.begin()
        self.flush()
        ids = [missing[n % len(missing)], keys[n % len(keys)][1]]
        nested = self.begin().begin_nested()
        with pytest.raises(IntegrityError):
            self.execute(insert(Item), [{"id": key, "data": self.fresh()[0]} for key in ids])
        nested.rollback()
        self.settle()
        self.step("a_failing_statement_in_a_savepoint")

    @precondition(lambda self: self.session is not None and self.connection is None)
    @rule(n=numbers)
    def retry_a_commit(self, n):
        """Have the objects' durability fail: COMMIT is not sent."""
        missing = self.missing("Item")
        if not missing:
            return
        self.begin()
        key = missing[n % len(missing)]
        self.vacate("Item", key)
        value, plain = self.fresh()
        row = Item(id=key, data=value)
        self.session.add(row)
        self.storage.failing = "make_durable"
        with pytest.raises(StorageError):
            self.session.commit()
        self.storage.failing = None
        self.model.commit_failed()
        self.session.rollback()
        self.let_go()
        self.settle()
        if ("Item", key) in self.rows:
            return
        self.begin()
        self.session.add(row)
        self.session.flush()
        self.put("Item", key, data=plain)
        self.step("retry_a_commit")

    # -- what others do ------------------------------------------------------------------------

    def _before_remove(self, paths):
        """Make the trouble that a rule wants; errors are kept, as the library only logs them."""
        if not self.model.ended:
            return
        try:
            if self.trouble == "remove":
                self.unremoved |= set(paths) & self.world.stored.files()
                self.storage.failing = "remove"
                self.step("a removal that fails")
            elif self.trouble in CLASSES:
                self.interlope(self.trouble)
        except BaseException as err:
            self.errors.append(err)
        self.trouble = None

    def interlope(self, name):
        model = self.model
        gone = [k for k in model.previous.rows if k[0] == name and k not in model.committed.rows]
        if not gone:
            return
        key = gone[0][1]
        value, plain = self.fresh()
        new = {(name, key): {"name": "interloper"}}
        with self.world.unobserved(), Session(self.world.other) as session:
            if name == "Item":
                session.add(Item(id=key, name="interloper", data=value))
                new[name, key] |= {"data": plain, "more": None}
            else:
                session.add(Project(id=key, name="interloper"))
                run = next((k for k in KEYS if ("Run", k) not in model.committed.rows), None)
                if run is not None:
                    session.add(Run(id=run, id_parent=key, data=value))
                    new["Run", run] = {"name": None, "data": plain, "id_parent": key}
            session.commit()
        model.committed.rows |= new
        model.state = model.committed.copy()
        self.step(f"interlope {name}")

    # -- checks --------------------------------------------------------------------------------

    def settle(self):
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

    def check_rows_and_objects(self):
        world, rows = self.world, {}
        with world.engine.connect() as connection:
            urls = _urls(connection)
        files = world.stored.files()
        _check_dangling(urls, files)
        with Session(world.engine) as session:
            for name, cls in CLASSES.items():
                for row in session.scalars(select(cls)):
                    rows[name, row.id] = _plain_row(name, row)
        if rows != self.model.committed.rows:
            raise Violation(f"wrong value: {_difference(rows, self.model.committed.rows)}")
        orphans, expected = files - _paths(urls), self.model.committed.orphans | self.unremoved
        if orphans != expected - _paths(urls):
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

    @invariant()
    def nothing_is_lost_meanwhile(self):
        self.settle()
        files = self.world.stored.files()
        if not self.kept <= files:
            raise Violation(f"dangling: removed before COMMIT: {sorted(self.kept - files)}")
        connection = self.connection
        if self.session is not None:
            connection = self.session.connection() if self.session.in_transaction() else None
        if connection is not None and connection.in_transaction():
            _check_dangling(_urls(connection), files)

    def teardown(self):
        """Commit what is open and look once more, unless something failed."""
        failed = sys.exc_info()[0] is not None
        self.storage.failing = self.trouble = None
        with contextlib.ExitStack() as stack:
            if failed:
                stack.enter_context(contextlib.suppress(Exception))
                stack.enter_context(self.world.unobserved())
            if self.connection is not None:
                stack.callback(self.connection.close)
            session = self.session
            if session is not None:
                stack.callback(session.close)
            if not failed:
                self._commit_all()
        if not failed:
            self.settle()

    def _commit_all(self):
        if self.session is not None:
            self.commit(trouble=None, forget=True)
            self.leave_session()
        if self.connection is not None:
            self._end_outer(commits=True)


def _upsert(dialect, updates):
    module = {"mariadb": "mysql"}.get(dialect, dialect)
    new = __import__(f"sqlalchemy.dialects.{module}", fromlist=["insert"]).insert(Item.__table__)
    if module == "mysql":
        taken = {"data": new.inserted.data} if updates else {"id": new.inserted.id}
        return new.on_duplicate_key_update(**taken)
    if not updates:
        return new.on_conflict_do_nothing()
    return new.on_conflict_do_update(index_elements=["id"], set_={"data": new.excluded.data})


_EVERY_URL = " UNION ALL ".join(
    f"SELECT {column} FROM {CLASSES[name].__tablename__} WHERE {column} IS NOT NULL"
    for name, columns in COLUMNS.items()
    for column in columns
)


def _urls(connection):
    return [url for (url,) in connection.exec_driver_sql(_EVERY_URL)]


def _paths(urls):
    return {member.path for url in urls for member in ObjectURL.parse(url).family()}


def _check_dangling(urls, files):
    lost = _paths(urls) - files
    if lost:
        raise Violation(f"dangling: {sorted(lost)}")


def _plain_row(name, row):
    found = {"name": row.name}
    if name in OWNERS:
        found["id_parent"] = row.id_parent
    for column in COLUMNS.get(name, ()):
        value = getattr(row, column)
        found[column] = None if value is None else plain_of(value)
    return found


def _difference(rows, expected):
    return {
        key: (rows.get(key), expected.get(key))
        for key in rows | expected
        if rows.get(key) != expected.get(key)
    }
