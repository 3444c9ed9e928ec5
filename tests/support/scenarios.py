"""Units of work over rows that are there already, each all or nothing.

Every scenario begins with the rows of `BEFORE` and says which of them it takes away and what it
adds. Rows are told by tuples; a value is told by its number, once all of it was read and compared.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import (
    Column,
    Engine,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.orm import Session

from sqla_datastore import DataStore, DataStoreType, bind_storage
from sqla_datastore.maintenance import CheckReport, DrainReport, GcReport, check, drain, gc
from support.databases import DATABASES, Stored, make_engine
from support.exactness import assert_exact
from support.models import Base, Counter, Experiment, Keyed, Project, Run

A, B, NEW = (uuid.UUID(int=number) for number in (1, 2, 3))

BEFORE = frozenset(
    {
        *(("keyed", number, f"k{number}", number) for number in (1, 2, 3, 4)),
        ("experiments", "a", 10, 11),
        ("experiments", "b", 12, None),
        ("counters", "c", 20),
        ("counters", "d", 21),
        ("projects", 1),
        ("projects", 2),
        ("runs", 1, 30, 31),
        ("runs", 1, 32, None),
        ("runs", 2, 33, None),
    }
)


def value(number):
    """Return a value of which each entry tells the number; from 1000 on a large one, mapped."""
    return DataStore(
        n=number,
        items=[number, [number]],
        a=np.arange(number, number + (20_000 if number >= 1000 else 3)),
        inner=DataStore(n=number, b=np.full(2, number)),
    )


def number_of(found):
    """Return the number of a value, once every entry was read and is right."""
    if found is None:
        return None
    assert _plain(found) == _plain(value(found.n))
    return found.n


def _plain(value):
    return {
        name: _plain(entry)
        if isinstance(entry, DataStore)
        else (entry.dtype, entry.tobytes())
        if isinstance(entry, np.ndarray)
        else entry
        for name, entry in value.items()
    }


@dataclass(frozen=True)
class Scenario:
    """A unit of work.

    Attributes:
        work: does it, given an engine, or a session that is committed then, and what `make` made.
        make: makes the rows and values that it puts in.
        after: the rows that it commits.
        databases: those that can do it.
        in_session: whether `work` takes a session.
        stock: whether SQLite begins transactions as it does by itself.
    """

    work: Callable[[Any, Any], None]
    make: Callable[[], Any]
    after: frozenset
    databases: tuple[str, ...]
    in_session: bool
    stock: bool

    @property
    def name(self):
        return self.work.__name__

    def run(self, engine, things, failed=None):
        """Do it; where it fails roll back, tell `failed`, and try once more in the same session."""
        if not self.in_session:
            return _attempt(lambda: self.work(engine, things), lambda: None, failed)
        with Session(engine) as session:

            def work():
                self.work(session, things)
                session.commit()

            return _attempt(work, session.rollback, failed)


def _attempt(work, roll_back, failed):
    try:
        return work()
    except Exception as err:
        roll_back()
        if failed is None:
            raise
        failed(err)
    return work()


SCENARIOS: dict[str, Scenario] = {}


def scenario(*, make=list, removes=(), adds=(), databases=DATABASES, in_session=True, stock=False):
    """Make a function a scenario."""
    assert BEFORE.issuperset(removes)

    def register(work):
        after = (BEFORE - set(removes)) | set(adds)
        SCENARIOS[work.__name__] = Scenario(work, make, after, databases, in_session, stock)
        return work

    return register


K1, K2, K3 = (("keyed", number, f"k{number}", number) for number in (1, 2, 3))
EXPERIMENT_A = ("experiments", "a", 10, 11)


@scenario(
    make=lambda: [
        Experiment(id=NEW, name="new", data=value(1000), more=value(101)),
        Keyed(id=5, name="k5", data=value(102)),
        Counter(name="e", data=value(103)),
        Run(id_project=2, data=value(104)),
    ],
    adds={
        ("experiments", "new", 1000, 101),
        ("keyed", 5, "k5", 102),
        ("counters", "e", 103),
        ("runs", 2, 104, None),
    },
)
def insert_rows(session, rows):
    session.add_all(rows)


@scenario(
    make=lambda: [value(101), value(102)],
    removes={K1, EXPERIMENT_A},
    adds={("keyed", 1, "k1", 101), ("experiments", "a", 102, None)},
)
def replace(session, values):
    session.get(Keyed, 1).data = values[0]
    session.get(Experiment, A).data = values[1]
    session.get(Experiment, A).more = None


@scenario(removes={K1, EXPERIMENT_A})
def delete_rows_that_own_folders(session, _):
    session.delete(session.get(Keyed, 1))
    session.delete(session.get(Experiment, A))


@scenario(make=lambda: [value(101)], removes={K1}, adds={("keyed", 1, "again", 101)})
def delete_and_create_again(session, values):
    session.delete(session.get(Keyed, 1))
    session.flush()
    session.add(Keyed(id=1, name="again", data=values[0]))


@scenario(make=lambda: [value(101)], removes={K1}, adds={("keyed", 1, "switched", 101)})
def row_switch(session, values):
    session.delete(session.get(Keyed, 1))
    session.add(Keyed(id=1, name="switched", data=values[0]))


@scenario(
    make=lambda: [value(number) for number in (101, 102, 103, 104)],
    removes={K1, K3},
    adds={("keyed", 5, "released", 101), ("keyed", 1, "k1", 104)},
)
def savepoints(session, values):
    with session.begin_nested():
        session.add(Keyed(id=5, name="released", data=values[0]))
        session.delete(session.get(Keyed, 3))
    nested = session.begin_nested()
    session.add(Keyed(id=6, name="rolled back", data=values[1]))
    session.get(Keyed, 2).data = values[2]
    session.delete(session.get(Keyed, 4))
    session.flush()
    nested.rollback()
    session.get(Keyed, 1).data = values[3]


@scenario(
    make=lambda: [value(101), value(102)],
    removes={K1, K2},
    adds={("keyed", 1, "k1", 101), ("keyed", 5, "joined", 102)},
    in_session=False,
)
def joined_session(engine, values):
    with engine.begin() as connection:
        mode = "create_savepoint"
        with Session(connection, join_transaction_mode=mode) as session:
            session.get(Keyed, 1).data = values[0]
            session.delete(session.get(Keyed, 2))
            session.commit()
            session.add(Keyed(id=5, name="joined", data=values[1]))
            session.commit()
            session.delete(session.get(Keyed, 3))
            session.flush()
            session.rollback()


@scenario(removes={K1, K2}, adds={("keyed", 1, "k1", 101), ("keyed", 2, "k2", 102)})
def edit_in_place(session, _):
    for key in (1, 2):
        data, number = session.get(Keyed, key).data, 100 + key
        data["items"][0] = number
        data["items"][1].append(data["items"][1].pop() + 100)
        data.inner.b = np.full(2, number)
        data.inner.n = number
        data.a = np.arange(number, number + 3)
        data.n = number


@scenario(
    make=lambda: [value(number) for number in (101, 102, 103, 104)],
    removes={K1, K2},
    adds={
        ("keyed", 1, "k1", 101),
        ("keyed", 2, "k2", 102),
        ("keyed", 5, "k5", 103),
        ("keyed", 6, "k6", 104),
    },
    in_session=False,
)
def core_executemany(engine, values):
    keyed = Keyed.__table__
    change = update(keyed).where(keyed.c.id == bindparam("key")).values(data=bindparam("new"))
    with engine.begin() as connection:
        connection.execute(change, [{"key": 1, "new": values[0]}, {"key": 2, "new": values[1]}])
        connection.execute(
            insert(keyed),
            [
                {"id": 5, "name": "k5", "data": values[2]},
                {"id": 6, "name": "k6", "data": values[3]},
            ],
        )


@scenario(
    make=lambda: [value(101)],
    removes={K1, K2, K3, ("counters", "d", 21)},
    adds={("keyed", 1, "bulk", 101)},
)
def bulk_statements(session, values):
    session.execute(update(Keyed).where(Keyed.id == 1).values(data=values[0], name="bulk"))
    session.execute(delete(Keyed).where(Keyed.id.in_([2, 3])))
    session.execute(delete(Counter).where(Counter.name == "d"))


@scenario(
    make=lambda: [value(101), value(102)],
    removes={("counters", "c", 20)},
    adds={("counters", "c", 101), ("counters", "e", 102)},
)
def upsert(session, values):
    rows = [{"name": "c", "data": values[0]}, {"name": "e", "data": values[1]}]
    session.execute(_upsert(session.connection().dialect.name), rows)


def _upsert(dialect):
    if dialect in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import insert as insert_or_update

        statement = insert_or_update(Counter.__table__)
        return statement.on_duplicate_key_update(data=statement.inserted.data)
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_or_update
    else:
        from sqlalchemy.dialects.sqlite import insert as insert_or_update
    statement = insert_or_update(Counter.__table__)
    return statement.on_conflict_do_update(
        index_elements=["name"], set_={"data": statement.excluded.data}
    )


@scenario(removes={("projects", 1), ("runs", 1, 30, 31), ("runs", 1, 32, None)})
def cascade_to_a_declared_folder(session, _):
    session.delete(session.get(Project, 1))


@scenario(
    make=lambda: [value(101)],
    removes={K1},
    adds={("keyed", 7, "k1", 1), ("keyed", 1, "heir", 101)},
)
def key_change(session, values):
    session.get(Keyed, 1).id = 7
    session.flush()
    session.add(Keyed(id=1, name="heir", data=values[0]))


@scenario(removes={K1, K2}, adds={("keyed", 2, "k2", 1)})
def hand_over_a_stored_value(session, _):
    giver = session.get(Keyed, 1)
    session.get(Keyed, 2).data = giver.data
    session.delete(giver)


@scenario(
    make=lambda: [value(101), value(102)],
    removes={K1, K2},
    adds={("keyed", 1, "k1", 101), ("keyed", 5, "two-phase", 102)},
    databases=("postgresql", "mariadb"),
    in_session=False,
)
def two_phase(engine, values):
    with engine.connect() as connection:
        # the name tells whose it is, should it have to be resolved by somebody else
        transaction = connection.begin_twophase(f"{engine.url.database}_{uuid.uuid4().hex[:8]}")
        with Session(connection, join_transaction_mode="rollback_only") as session:
            session.get(Keyed, 1).data = values[0]
            session.delete(session.get(Keyed, 2))
            session.add(Keyed(id=5, name="two-phase", data=values[1]))
            session.commit()
        transaction.prepare()
        transaction.commit()


@scenario(make=lambda: [value(101), value(102)])
def rolled_back(session, values):
    session.get(Keyed, 1).data = values[0]
    session.delete(session.get(Keyed, 2))
    session.add(Keyed(id=5, data=values[1]))
    session.flush()
    session.rollback()


@scenario(
    make=lambda: [value(101)],
    adds={("keyed", 5, "autocommit", 101)},
    in_session=False,
    stock=True,
)
def autocommit_insert(engine, values):
    with _autocommit(engine) as connection:
        connection.execute(insert(Keyed).values(id=5, name="autocommit", data=values[0]))


@scenario(
    make=lambda: [value(101)],
    removes={K1},
    adds={("keyed", 1, "k1", 101)},
    in_session=False,
    stock=True,
)
def autocommit_update(engine, values):
    with _autocommit(engine) as connection:
        connection.execute(update(Keyed).where(Keyed.id == 1).values(data=values[0]))


@scenario(removes={K1}, in_session=False, stock=True)
def autocommit_delete(engine, _):
    with _autocommit(engine) as connection:
        connection.execute(delete(Keyed).where(Keyed.id == 1))


def _autocommit(engine):
    return engine.execution_options(isolation_level="AUTOCOMMIT").connect()


class Stage:
    """A database and a storage that are put back to `BEFORE` for every scenario.

    Args:
        url: an empty database.
        stored: the storage's empty folder, seen without the library.
    """

    def __init__(self, url: str, stored: Stored) -> None:
        self.url = url
        self.stored = stored
        self.engine = make_engine(url, stored.base)
        Base.metadata.create_all(self.engine)
        self._raw = [_raw(table) for table in Base.metadata.sorted_tables]
        with Session(self.engine) as session:
            session.add_all(_rows_before())
            session.commit()
        self._rows_before = self._raw_rows()
        self._tree_before = self._tree()
        assert self.rows() == BEFORE
        self.assert_exact()

    def close(self) -> None:
        """Drop the tables."""
        Base.metadata.drop_all(self.engine)
        self.engine.dispose()

    def can(self, scenario: Scenario) -> bool:
        """Whether this database can do the scenario."""
        return {"mysql": "mariadb"}.get(name := self.engine.dialect.name, name) in (
            scenario.databases
        )

    def engine_for(self, scenario: Scenario, storage: Any, **kwargs: Any) -> Engine:
        """Return an engine that does the scenario with this storage."""
        make = create_engine if scenario.stock else make_engine
        engine = make(self.url, **kwargs)
        bind_storage(engine, storage)
        return engine

    def reset(self) -> None:
        """Put rows and objects back, behind the library's back."""
        if self._raw_rows() != self._rows_before:
            self._reset_rows()
        if self._tree() != self._tree_before:
            self._reset_tree()

    def _reset_rows(self) -> None:
        with self.engine.begin() as connection:
            for table in reversed(self._raw):
                connection.execute(delete(table))
            for table, rows in zip(self._raw, self._rows_before, strict=True):
                if rows:
                    connection.execute(insert(table), rows)

    def _reset_tree(self) -> None:
        base, tree = self.stored.base, self._tree()
        for path in sorted(tree.keys() - self._tree_before.keys(), reverse=True):
            (base / path).rmdir() if path.endswith("/") else (base / path).unlink()
        for path in sorted(self._tree_before):
            if path.endswith("/"):
                (base / path).mkdir(exist_ok=True)
            elif tree.get(path) != self._tree_before[path]:
                (base / path).write_bytes(self._tree_before[path])

    def _raw_rows(self) -> list[list[dict[str, Any]]]:
        with self.engine.connect() as connection:
            return [
                [dict(row) for row in connection.execute(query).mappings()]
                for query in (select(table).order_by(table.c.id) for table in self._raw)
            ]

    def _tree(self) -> dict[str, bytes]:
        """Return the bytes of every file, and nothing for every folder, by path."""
        files = {path: (self.stored.base / path).read_bytes() for path in self.stored.files()}
        return files | {f"{folder}/": b"" for folder in self.stored.folders()}

    def is_untouched(self) -> bool:
        """Whether every row is as before and the storage holds the same bytes, nothing else."""
        return self.holds_rows_before() and self._tree() == self._tree_before

    def holds_rows_before(self) -> bool:
        """Whether every row is as before, and so are the bytes of its objects."""
        if self._raw_rows() != self._rows_before:
            return False
        tree = self._tree()
        assert self._tree_before.items() <= tree.items(), "a committed row is dangling"
        return True

    def rows(self) -> frozenset:
        """Return the committed rows; fails where a value is not readable or not whole."""
        with Session(self.engine) as session:

            def all_of(cls):
                return session.scalars(select(cls))

            rows = [
                *(("keyed", r.id, r.name, number_of(r.data)) for r in all_of(Keyed)),
                *(
                    ("experiments", r.name, number_of(r.data), number_of(r.more))
                    for r in all_of(Experiment)
                ),
                *(("counters", r.name, number_of(r.data)) for r in all_of(Counter)),
                *(("projects", r.id) for r in all_of(Project)),
                *(
                    ("runs", r.id_project, number_of(r.data), number_of(r.more))
                    for r in all_of(Run)
                ),
            ]
        assert len(set(rows)) == len(rows)
        return frozenset(rows)

    def assert_exact(self) -> None:
        """Assert that the storage holds what the rows refer to and nothing else."""
        assert_exact(self.engine, Base.metadata, self.stored)

    def is_exact(self) -> bool:
        """Whether the storage holds what the rows refer to and nothing else."""
        try:
            self.assert_exact()
        except AssertionError:
            return False
        return True

    def check(self) -> CheckReport:
        """Compare rows and objects, and read all of these."""
        return check(self.engine, Base.metadata, deep=True)

    def collect(self) -> GcReport:
        """Remove what no row refers to."""
        return gc(self.engine, Base.metadata, apply=True, grace_seconds=0)

    def drain(self) -> DrainReport:
        """Carry out the removals that were written down."""
        return drain(self.engine, Base.metadata)


def _raw(table):
    columns = [
        Column(c.name, String() if isinstance(c.type, DataStoreType) else c.type)
        for c in table.columns
    ]
    return Table(table.name, MetaData(), *columns)


def _rows_before():
    return [
        *(Keyed(id=number, name=f"k{number}", data=value(number)) for number in (1, 2, 3, 4)),
        Experiment(id=A, name="a", data=value(10), more=value(11)),
        Experiment(id=B, name="b", data=value(12)),
        Counter(name="c", data=value(20)),
        Counter(name="d", data=value(21)),
        Project(id=1, runs=[Run(data=value(30), more=value(31)), Run(data=value(32))]),
        Project(id=2, runs=[Run(data=value(33))]),
    ]
