"""Units of work over rows that are there already, each all or nothing.

Every scenario begins with the rows of `BEFORE` and says which of them it takes away and what it
adds. Rows are told by tuples; a value is told by its number, once all of it was read and compared.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    delete,
    insert,
    update,
)
from sqlalchemy.orm import Session

from sqla_datastore import DataStore
from support.databases import DATABASES
from support.models import Base, Compact, Counter, Experiment, Keyed, Project, Run

Row = tuple[Any, ...]
"""A table's name, and what tells the row."""

Failed = Callable[[Exception], None]
Work = Callable[[Any, Any], None]

KEYED, COUNTERS = (Base.metadata.tables[cls.__tablename__] for cls in (Keyed, Counter))
A, B, NEW = (uuid.UUID(int=number) for number in (1, 2, 3))

BEFORE: frozenset[Row] = frozenset(
    {
        *(("keyed", number, f"k{number}", number) for number in (1, 2, 3, 4)),
        ("experiments", "a", 10, 11),
        ("experiments", "b", 12, None),
        ("counters", "c", 20),
        ("counters", "d", 21),
        *(("compacts", number, number) for number in (40, 1041, 42)),
        ("projects", 1),
        ("projects", 2),
        ("runs", 1, 30, 31),
        ("runs", 1, 32, None),
        ("runs", 2, 33, None),
    }
)


def value(number: int) -> DataStore:
    """Return a value of which each entry tells the number; from 1000 on a large one, mapped."""
    return DataStore(
        n=number,
        items=[number, [number]],
        a=np.arange(number, number + (20_000 if number >= 1000 else 3)),
        inner=DataStore(n=number, b=np.full(2, number)),
    )


def number_of(found: DataStore | None) -> int | None:
    """Return the number of a value, once every entry was read and is right."""
    if found is None:
        return None
    assert _plain(found) == _plain(value(found.n))
    number: int = found.n
    return number


def _plain(value: DataStore) -> dict[str, Any]:
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

    work: Work
    make: Callable[[], Any]
    after: frozenset[Row]
    databases: tuple[str, ...]
    in_session: bool
    stock: bool

    @property
    def name(self) -> str:
        return self.work.__name__

    def run(self, engine: Engine, things: Any, failed: Failed | None = None) -> None:
        """Do it; where it fails roll back, tell `failed`, and try once more in the same session."""
        if not self.in_session:
            _attempt(lambda: self.work(engine, things), lambda: None, failed)
            return
        with Session(engine) as session:

            def work() -> None:
                self.work(session, things)
                session.commit()

            _attempt(work, session.rollback, failed)


def _attempt(
    work: Callable[[], None], roll_back: Callable[[], None], failed: Failed | None
) -> None:
    try:
        work()
    except Exception as err:
        roll_back()
        if failed is None:
            raise
        failed(err)
        work()


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *,
    make: Callable[[], Any] = list,
    removes: Iterable[Row] = (),
    adds: Iterable[Row] = (),
    databases: tuple[str, ...] = DATABASES,
    in_session: bool = True,
    stock: bool = False,
) -> Callable[[Work], Work]:
    """Make a function a scenario."""
    assert BEFORE.issuperset(removes)

    def register(work: Work) -> Work:
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
def insert_rows(session: Session, rows: list[Base]) -> None:
    session.add_all(rows)


@scenario(
    make=lambda: [value(101), value(102)],
    removes={K1, EXPERIMENT_A},
    adds={("keyed", 1, "k1", 101), ("experiments", "a", 102, None)},
)
def replace(session: Session, values: list[DataStore]) -> None:
    session.get_one(Keyed, 1).data = values[0]
    session.get_one(Experiment, A).data = values[1]
    session.get_one(Experiment, A).more = None


@scenario(
    make=lambda: [value(number) for number in (1101, 102, 103, 1104)],
    removes={("compacts", number, number) for number in (40, 1041, 42)},
    adds={
        ("compacts", 40, 1101),
        ("compacts", 1041, 102),
        ("compacts", 43, 103),
        ("compacts", 44, 1104),
    },
)
def values_in_rows(session: Session, values: list[DataStore]) -> None:
    """One moves out of its row and one into it, one goes with its row, two are new."""
    session.get_one(Compact, 40).data = values[0]
    session.get_one(Compact, 1041).data = values[1]
    session.delete(session.get_one(Compact, 42))
    session.add_all([Compact(id=43, data=values[2]), Compact(id=44, data=values[3])])


@scenario(removes={K1, EXPERIMENT_A})
def delete_rows_that_own_folders(session: Session, _: object) -> None:
    session.delete(session.get_one(Keyed, 1))
    session.delete(session.get_one(Experiment, A))


@scenario(make=lambda: [value(101)], removes={K1}, adds={("keyed", 1, "again", 101)})
def delete_and_create_again(session: Session, values: list[DataStore]) -> None:
    session.delete(session.get_one(Keyed, 1))
    session.flush()
    session.add(Keyed(id=1, name="again", data=values[0]))


@scenario(make=lambda: [value(101)], removes={K1}, adds={("keyed", 1, "switched", 101)})
def row_switch(session: Session, values: list[DataStore]) -> None:
    session.delete(session.get_one(Keyed, 1))
    session.add(Keyed(id=1, name="switched", data=values[0]))


@scenario(
    make=lambda: [value(number) for number in (101, 102, 103, 104)],
    removes={K1, K3},
    adds={("keyed", 5, "released", 101), ("keyed", 1, "k1", 104)},
)
def savepoints(session: Session, values: list[DataStore]) -> None:
    with session.begin_nested():
        session.add(Keyed(id=5, name="released", data=values[0]))
        session.delete(session.get_one(Keyed, 3))
    nested = session.begin_nested()
    session.add(Keyed(id=6, name="rolled back", data=values[1]))
    session.get_one(Keyed, 2).data = values[2]
    session.delete(session.get_one(Keyed, 4))
    session.flush()
    nested.rollback()
    session.get_one(Keyed, 1).data = values[3]


@scenario(
    make=lambda: [value(101), value(102)],
    removes={K1, K2},
    adds={("keyed", 1, "k1", 101), ("keyed", 5, "joined", 102)},
    in_session=False,
)
def joined_session(engine: Engine, values: list[DataStore]) -> None:
    with (
        engine.begin() as connection,
        Session(connection, join_transaction_mode="create_savepoint") as session,
    ):
        session.get_one(Keyed, 1).data = values[0]
        session.delete(session.get_one(Keyed, 2))
        session.commit()
        session.add(Keyed(id=5, name="joined", data=values[1]))
        session.commit()
        session.delete(session.get_one(Keyed, 3))
        session.flush()
        session.rollback()


@scenario(removes={K1, K2}, adds={("keyed", 1, "k1", 101), ("keyed", 2, "k2", 102)})
def edit_in_place(session: Session, _: object) -> None:
    for key in (1, 2):
        data, number = session.get_one(Keyed, key).data, 100 + key
        assert data is not None
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
def core_executemany(engine: Engine, values: list[DataStore]) -> None:
    change = update(KEYED).where(KEYED.c.id == bindparam("key")).values(data=bindparam("new"))
    with engine.begin() as connection:
        connection.execute(change, [{"key": 1, "new": values[0]}, {"key": 2, "new": values[1]}])
        connection.execute(
            insert(KEYED),
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
def bulk_statements(session: Session, values: list[DataStore]) -> None:
    session.execute(update(Keyed).where(Keyed.id == 1).values(data=values[0], name="bulk"))
    session.execute(delete(Keyed).where(Keyed.id.in_([2, 3])))
    session.execute(delete(Counter).where(Counter.name == "d"))


@scenario(
    make=lambda: [value(101), value(102)],
    removes={("counters", "c", 20)},
    adds={("counters", "c", 101), ("counters", "e", 102)},
)
def upsert(session: Session, values: list[DataStore]) -> None:
    rows = [{"name": "c", "data": values[0]}, {"name": "e", "data": values[1]}]
    session.execute(_upsert(session.connection().dialect.name), rows)


def _upsert(dialect: str) -> Any:
    module = {"mariadb": "mysql"}.get(dialect, dialect)
    new = import_module(f"sqlalchemy.dialects.{module}").insert(COUNTERS)
    if module == "mysql":
        return new.on_duplicate_key_update(data=new.inserted.data)
    return new.on_conflict_do_update(index_elements=["name"], set_={"data": new.excluded.data})


@scenario(removes={("projects", 1), ("runs", 1, 30, 31), ("runs", 1, 32, None)})
def cascade_to_a_declared_folder(session: Session, _: object) -> None:
    session.delete(session.get_one(Project, 1))


@scenario(
    make=lambda: [value(101)],
    removes={K1},
    adds={("keyed", 7, "k1", 1), ("keyed", 1, "heir", 101)},
)
def key_change(session: Session, values: list[DataStore]) -> None:
    session.get_one(Keyed, 1).id = 7
    session.flush()
    session.add(Keyed(id=1, name="heir", data=values[0]))


@scenario(removes={K1, K2}, adds={("keyed", 2, "k2", 1)})
def hand_over_a_stored_value(session: Session, _: object) -> None:
    giver = session.get_one(Keyed, 1)
    session.get_one(Keyed, 2).data = giver.data
    session.delete(giver)


@scenario(
    make=lambda: [value(101), value(102)],
    removes={K1, K2},
    adds={("keyed", 1, "k1", 101), ("keyed", 5, "two-phase", 102)},
    databases=("postgresql", "mariadb"),
    in_session=False,
)
def two_phase(engine: Engine, values: list[DataStore]) -> None:
    with engine.connect() as connection:
        # the name tells whose it is, should it have to be resolved by somebody else
        transaction = connection.begin_twophase(f"{engine.url.database}_{uuid.uuid4().hex[:8]}")
        with Session(connection, join_transaction_mode="rollback_only") as session:
            session.get_one(Keyed, 1).data = values[0]
            session.delete(session.get_one(Keyed, 2))
            session.add(Keyed(id=5, name="two-phase", data=values[1]))
            session.commit()
        transaction.prepare()
        transaction.commit()


@scenario(make=lambda: [value(101), value(102)])
def rolled_back(session: Session, values: list[DataStore]) -> None:
    session.get_one(Keyed, 1).data = values[0]
    session.delete(session.get_one(Keyed, 2))
    session.add(Keyed(id=5, data=values[1]))
    session.flush()
    session.rollback()


@scenario(
    make=lambda: [value(101)],
    adds={("keyed", 5, "autocommit", 101)},
    in_session=False,
    stock=True,
)
def autocommit_insert(engine: Engine, values: list[DataStore]) -> None:
    with _autocommit(engine) as connection:
        connection.execute(insert(Keyed).values(id=5, name="autocommit", data=values[0]))


@scenario(
    make=lambda: [value(101)],
    removes={K1},
    adds={("keyed", 1, "k1", 101)},
    in_session=False,
    stock=True,
)
def autocommit_update(engine: Engine, values: list[DataStore]) -> None:
    with _autocommit(engine) as connection:
        connection.execute(update(Keyed).where(Keyed.id == 1).values(data=values[0]))


@scenario(removes={K1}, in_session=False, stock=True)
def autocommit_delete(engine: Engine, _: object) -> None:
    with _autocommit(engine) as connection:
        connection.execute(delete(Keyed).where(Keyed.id == 1))


def _autocommit(engine: Engine) -> Connection:
    return engine.execution_options(isolation_level="AUTOCOMMIT").connect()
