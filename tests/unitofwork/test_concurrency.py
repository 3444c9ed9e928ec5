"""P4 and P2 among threads and processes that use the same few keys and folders at the same time.

Run as a script, this module is one worker process: it says ``ready``, waits for a line, and works.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter as Tally
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from support.conflicts import TIMEOUT, in_threads, resolve_soon, wait_for_a_waiter
from support.databases import make_engine
from support.exactness import assert_exact, urls_of
from support.models import Base, Counter, Keyed, Project, Run
from support.processes import environment

from sqla_datastore import DataStore, DataStoreError, MissingObjectError, bind_storage
from sqla_datastore.engine import observed_transaction
from sqla_datastore.maintenance import check, gc
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.urls import ObjectName, ObjectURL
from sqla_datastore.unitofwork.ledger import Ledger

pytestmark = [
    pytest.mark.usefixtures("tables"),
    # SQLAlchemy says so when another transaction was first to delete a row
    pytest.mark.filterwarnings("ignore:DELETE statement on table"),
]

HERE = Path(__file__).parent
KEYS = (1, 2, 3)
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
WORKERS = 3
OPERATIONS = 40
DEADLINE_SECONDS = 40
"""No worker begins another operation after this; a busy machine does fewer of them."""


# -- values that show when they are mixed ----------------------------------------------------------


def value(key, token):
    """Return a value each of whose entries tells the key and the token."""
    return DataStore(
        key=key,
        token=token,
        array=np.full(64, token),
        name=f"{key}/{token}",
        inner=DataStore(key=key, token=token),
        log=[],
    )


def assert_consistent(data, key):
    token = data.token
    assert (data.key, data["name"]) == (key, f"{key}/{token}")
    assert (data.array == token).all()
    assert (data.inner.key, data.inner.token) == (key, token)
    assert all(isinstance(each, int) for each in data.log)


def key_of(row):
    """Return the key that the value of a row has to tell."""
    if isinstance(row, Counter):
        return int(row.name)
    return row.id_project if isinstance(row, Run) else row.id


# -- operations, each within a transaction that its worker begins and ends -------------------------


def insert_row(session, key, token):
    session.add(Keyed(id=key, data=value(key, token)))


def replace_row(session, key, token):
    row = session.get(Keyed, key)
    if row is None:
        insert_row(session, key, token)
    else:
        row.data = value(key, token)


def delete_row(session, key, token):
    row = session.get(Keyed, key)
    if row is not None:
        session.delete(row)


def recreate_row(session, key, token):
    delete_row(session, key, token)
    session.flush()
    session.expunge_all()
    insert_row(session, key, token)


def edit_row(session, key, token):
    row = session.get(Keyed, key)
    if row is not None and row.data is not None:
        row.data.log.append(token)


def switch_row(session, key, token):
    """Delete and add the same key within one flush."""
    delete_row(session, key, token)
    insert_row(session, key, token)


def update_by_statement(session, key, token):
    session.execute(update(Keyed).where(Keyed.id == key).values(data=value(key, token)))


def delete_by_statement(session, key, token):
    session.execute(delete(Keyed).where(Keyed.id.in_([key, KEYS[0]])))


def insert_by_statement(session, key, token):
    rows = [{"id": each, "data": value(each, token)} for each in sorted({key, KEYS[-1]})]
    session.execute(insert(Keyed), rows)


def by_core(session, key, token):
    table, connection = Keyed.__table__, session.connection()
    if not connection.execute(
        update(table).where(table.c.id == key).values(data=value(key, token))
    ).rowcount:
        connection.execute(insert(table).values(id=key, data=value(key, token)))


def upsert(session, key, token):
    statement = upsert_into(session.get_bind().dialect.name)
    statement = statement.values(name=str(key), data=value(key, token))
    if hasattr(statement, "on_duplicate_key_update"):
        statement = statement.on_duplicate_key_update(data=statement.inserted.data)
    else:
        statement = statement.on_conflict_do_update(
            index_elements=["name"], set_={"data": statement.excluded.data}
        )
    session.connection().execute(statement)


def upsert_into(dialect):
    if dialect == "mysql":
        from sqlalchemy.dialects.mysql import insert as dialect_insert
    elif dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as dialect_insert
    else:
        from sqlalchemy.dialects.sqlite import insert as dialect_insert
    return dialect_insert(Counter.__table__)


def delete_counter(session, key, token):
    session.execute(delete(Counter).where(Counter.name == str(key)))


def insert_child(session, key, token):
    """Write into the parent's folder; the parent is made where there is none."""
    if session.get(Project, key) is None:
        session.add(Project(id=key))
        session.flush()
    session.add(Run(id_project=key, data=value(key, token), more=value(key, token)))


def replace_child(session, key, token):
    row = session.scalars(select(Run).where(Run.id_project == key).limit(1)).first()
    if row is not None:
        row.data = value(key, token)


def delete_child(session, key, token):
    row = session.scalars(select(Run).where(Run.id_project == key).limit(1)).first()
    if row is not None:
        session.delete(row)


def delete_parent(session, key, token):
    """The database deletes its children."""
    row = session.get(Project, key)
    if row is not None:
        session.delete(row)


PLAIN = (insert_row, replace_row, delete_row, recreate_row)
MIXED = (
    *PLAIN,
    edit_row,
    switch_row,
    update_by_statement,
    delete_by_statement,
    insert_by_statement,
    by_core,
    upsert,
    delete_counter,
    insert_child,
    insert_child,
    replace_child,
    delete_child,
    delete_parent,
)
CONFLICTS = (DBAPIError, DataStoreError, StaleDataError)


# -- workers ---------------------------------------------------------------------------------------


def work(engine, seed, operations):
    """Do operations on random keys, each tried again after a conflict; return what happened."""
    chance, tally = random.Random(seed), Tally()
    end = time.monotonic() + DEADLINE_SECONDS
    for number in range(OPERATIONS):
        if time.monotonic() > end:
            break
        operation, key = chance.choice(operations), chance.choice(KEYS)
        rolls_back, nested = chance.random() < 0.15, chance.random() < 0.2
        for attempt in range(4):
            token = seed * 10_000 + number * 10 + attempt
            try:
                with Session(engine) as session:
                    with session.begin_nested() if nested else contextlib.nullcontext():
                        operation(session, key, token)
                    session.flush()
                    if rolls_back:
                        session.rollback()
                    session.commit()
            except CONFLICTS as err:
                tally[type(err).__name__] += 1
            else:
                tally["done"] += 1
                break
    return tally


def worker_engine(url, base, level):
    arguments = {"connect_args": {"timeout": 10}} if url.startswith("sqlite") else {}
    if level in LEVELS:
        arguments["isolation_level"] = level
    engine = make_engine(url, base, **arguments)
    resolve_soon(engine)
    return engine


def main():
    url, base, level, seed, kind = sys.argv[1:]
    engine = worker_engine(url, base, level)
    with engine.connect():
        print("ready", flush=True)
    sys.stdin.readline()
    print(dict(work(engine, int(seed), PLAIN if kind == "plain" else MIXED)), flush=True)
    engine.dispose()


def in_processes(url, base, level, kind="mixed"):
    """Run workers in processes of their own that begin together."""
    command = [sys.executable, "-W", "ignore", __file__, url, str(base), level]
    workers = [
        subprocess.Popen(
            [*command, str(seed), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(HERE),
        )
        for seed in range(1, WORKERS + 1)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.stderr.read()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            out, err = worker.communicate(timeout=TIMEOUT)
            assert worker.returncode == 0, err
            assert "'done'" in out
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()


# -- afterwards ------------------------------------------------------------------------------------


def assert_whole(engine, stored):
    """Assert that no committed row is dangling; return what no row refers to."""
    urls = urls_of(engine, Base.metadata)
    paths = {member.path for url in urls for member in ObjectURL.parse(url).family()}
    files = stored.files()
    assert paths <= files, "a committed row is dangling"
    assert len(set(urls)) == len(urls), "two rows share an object"
    return files - paths


def assert_consistent_rows(engine):
    with Session(engine) as session:
        for cls in (Keyed, Counter, Run):
            for row in session.query(cls):
                for data in (row.data, getattr(row, "more", None)):
                    if data is not None:
                        assert_consistent(data, key_of(row))


def assert_well(engine, stored, record_property=None):
    """Assert what holds after any concurrent work; return how many orphans there were."""
    assert not observed_transaction.open_transactions, "a ledger was left open"
    orphans = assert_whole(engine, stored)
    assert_consistent_rows(engine)
    gc(engine, Base.metadata, apply=True, grace_seconds=0)
    report = check(engine, Base.metadata, deep=True)
    assert report.is_clean, report
    assert_exact(engine, Base.metadata, stored)
    if record_property is not None:
        record_property("orphans", len(orphans))
    return len(orphans)


# -- many at the same time -------------------------------------------------------------------------


@pytest.fixture(params=[*LEVELS, "WAL"])
def level(request, engine):
    """Each isolation level of the servers, and both journals of SQLite."""
    sqlite = engine.dialect.name == "sqlite"
    if request.param not in (("SERIALIZABLE", "WAL") if sqlite else LEVELS):
        pytest.skip("SQLite is always serializable")
    if sqlite:
        mode = "WAL" if request.param == "WAL" else "DELETE"
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.connection.cursor().execute(f"PRAGMA journal_mode={mode}")
    return request.param


def threads_of(engine, stored, level, operations, *others):
    """Run workers in threads, and others beside them until they are done."""
    engines = [worker_engine(url_of(engine), stored.base, level) for _ in range(WORKERS)]
    tallies, done = [], threading.Event()

    def workers():
        try:
            in_threads(
                *(
                    lambda seed=seed, each=each: tallies.append(work(each, seed, operations))
                    for seed, each in enumerate(engines, 1)
                )
            )
        finally:
            done.set()

    in_threads(workers, *(lambda other=other: other(done) for other in others))
    for each in engines:
        each.dispose()
    total = sum(tallies, Tally())
    assert total["done"] > WORKERS
    return total


def url_of(engine):
    return engine.url.render_as_string(hide_password=False)


@pytest.mark.slow
def test_threads_that_do_anything(engine, stored, level, record_property):
    tally = threads_of(engine, stored, level, MIXED)
    record_property("tally", str(tally))
    assert_well(engine, stored, record_property)


@pytest.mark.slow
def test_threads_that_insert_replace_and_delete_leave_no_orphan(engine, stored, level):
    tally = threads_of(engine, stored, level, PLAIN)
    assert assert_well(engine, stored) == 0, tally


@pytest.mark.slow
def test_processes_that_do_anything(engine, stored, level, record_property):
    # the most that can go wrong, and what each server does unless told
    if (engine.dialect.name, level) not in {
        ("postgresql", "READ COMMITTED"),
        ("postgresql", "SERIALIZABLE"),
        ("mysql", "READ COMMITTED"),
        ("mysql", "REPEATABLE READ"),
    }:
        pytest.skip("threads show it")
    in_processes(url_of(engine), stored.base, level)
    assert_well(engine, stored, record_property)


@pytest.mark.slow
def test_processes_that_insert_replace_and_delete_leave_no_orphan(engine, stored, level):
    if level != "READ COMMITTED":
        pytest.skip("threads show it at the other levels")
    in_processes(url_of(engine), stored.base, level, "plain")
    assert assert_well(engine, stored) == 0


@pytest.mark.slow
def test_readers_get_a_whole_value_or_none(engine, stored, level):
    """What was replaced meanwhile may be gone, and says so with its URL; it is never garbage."""
    if level == "SERIALIZABLE":
        pytest.skip("it makes a difference to writers")
    reading = worker_engine(url_of(engine), stored.base, level)
    tally = Tally()

    def read(done):
        while not done.is_set():
            with contextlib.suppress(DBAPIError), Session(reading) as session:
                for row in session.query(Keyed).all() + session.query(Run).limit(5).all():
                    if row.data is not None:
                        tally[look_at(row)] += 1

    def look_at(row):
        url = row.data.url
        try:
            assert_consistent(row.data, key_of(row))
        except MissingObjectError as err:
            # a nested value's URL goes on where its parent's ends
            return "missing" if url.removesuffix(".zip") in str(err) else f"wrong: {err}"
        return "whole"

    threads_of(engine, stored, level, (*PLAIN, by_core, insert_child, delete_parent), read)
    reading.dispose()
    assert tally["whole"], tally
    assert set(tally) <= {"whole", "missing"}
    assert_well(engine, stored)


# -- P4 attacked: everything that is slow, step by step --------------------------------------------


class Gated(LocalStorage):
    """A storage of which one call, the next of its kind, waits at a gate."""

    def __init__(self, base):
        super().__init__(base)
        self.closed = ()
        self.reached, self.opened = threading.Event(), threading.Event()

    def close(self, *calls):
        """Have the next of these calls wait until the gate is `opened`."""
        self.closed = calls

    def _pass(self, call):
        if call in self.closed:
            self.closed = ()
            self.reached.set()
            assert self.opened.wait(TIMEOUT), f"nobody opened the gate of {call}"

    @contextlib.contextmanager
    def create(self, path):
        with super().create(path) as writer:
            yield writer
            self._pass("create")

    def list(self, folder):
        self._pass("list")
        listed = list(super().list(folder))
        self._pass("listed")
        return iter(listed)

    def remove(self, paths):
        self._pass("remove")
        super().remove(paths)

    def make_durable(self, paths):
        self._pass("make_durable")
        super().make_durable(paths)


@pytest.fixture
def gated(engine, stored):
    """An engine whose storage has a gate; the fixture's own engine has the bare storage."""
    other = make_engine(engine.url)
    resolve_soon(other)
    other.storage = Gated(stored.base)
    bind_storage(other, other.storage)
    yield other
    other.storage.opened.set()
    other.dispose()


@pytest.fixture
def family(engine):
    """Commit a row, and a parent with a child in its folder."""
    with Session(engine) as session:
        session.add_all([Keyed(id=1, data=value(1, 1)), Project(id=1)])
        session.flush()
        session.add(Run(id_project=1, data=value(1, 1)))
        session.add(Counter(name="1", data=value(1, 1)))
        session.commit()


def recreate(session):
    session.add(Keyed(id=1, data=value(1, 2)))
    # first the row that is deleted first, so that this waits instead of failing
    session.flush()
    session.add_all([Project(id=1), Counter(name="1", data=value(1, 2))])
    session.flush()
    session.add(Run(id_project=1, data=value(1, 2)))


def remove_all(session):
    with session.no_autoflush:
        for cls in (Keyed, Project, Counter):
            for row in session.query(cls):
                session.delete(row)


def remove_all_by_statements(session):
    for cls in (Keyed, Project, Counter):
        session.execute(delete(cls))


def recreate_in_a_process(engine, stored):
    script = (
        "import sys; from test_concurrency import *\n"
        "engine = make_engine(*sys.argv[1:])\n"
        "with Session(engine) as session:\n    recreate(session)\n    session.commit()\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, url_of(engine), str(stored.base)],
        env=environment(HERE),
        check=True,
        timeout=TIMEOUT,
    )


def attack_a_slow_remover(engine, gated, stored, *, deletes, process=False):
    """Stop the one who deletes at its first step after COMMIT, while all keys are made anew."""

    def remover():
        with Session(gated) as session:
            deletes(session)
            session.flush()
            # listing has been done, so this is after COMMIT
            gated.storage.close("list", "remove")
            session.commit()

    def attacker():
        assert gated.storage.reached.wait(TIMEOUT)
        try:
            if process:
                recreate_in_a_process(engine, stored)
            else:
                with Session(engine) as session:
                    recreate(session)
                    session.commit()
        finally:
            gated.storage.opened.set()

    in_threads(remover, attacker)


@pytest.mark.parametrize("deletes", [remove_all, remove_all_by_statements])
def test_a_slow_remover_against_rows_made_anew(engine, gated, stored, family, deletes):
    attack_a_slow_remover(engine, gated, stored, deletes=deletes)
    assert_exact(engine, Base.metadata, stored, 3)
    assert_consistent_rows(engine)


@pytest.mark.slow
def test_a_slow_remover_against_another_process(engine, gated, stored, family):
    attack_a_slow_remover(engine, gated, stored, deletes=remove_all, process=True)
    assert_exact(engine, Base.metadata, stored, 3)
    assert_consistent_rows(engine)


def test_the_attack_shows_a_listing_after_commit(engine, gated, stored, family, monkeypatch):
    """A mutation check: were folders listed after COMMIT, the rows made anew would dangle."""
    finish = Ledger.finish

    def faulty(self, kept=()):
        folders = {(name.storage, name.path.rpartition("/")[0]) for name in self._doomed or ()}
        self._doomed = [
            ObjectName(storage, found.path)
            for storage, folder in folders
            for found in storage.list(folder)
        ]
        return finish(self)

    monkeypatch.setattr(Ledger, "finish", faulty)
    attack_a_slow_remover(engine, gated, stored, deletes=remove_all)
    with pytest.raises(AssertionError, match="dangling"):
        assert_whole(engine, stored)


@pytest.mark.parametrize("call", ["list", "listed", "make_durable"])
@pytest.mark.parametrize("deletes", [remove_all, remove_all_by_statements])
def test_a_slow_lister_before_commit(engine, gated, stored, family, deletes, call):
    """Who makes the keys anew waits for the lock of the one who deletes; nobody loses anything."""
    done = threading.Event()

    def lister():
        with Session(gated) as session:
            gated.storage.close(call)
            deletes(session)
            # something to make durable
            session.add(Keyed(id=2, data=value(2, 1)))
            session.commit()

    def attacker():
        assert gated.storage.reached.wait(TIMEOUT)
        try:
            again_and_again(engine, recreate)
        finally:
            done.set()

    def opener():
        assert gated.storage.reached.wait(TIMEOUT)
        wait_for_a_waiter(engine, done)
        gated.storage.opened.set()

    in_threads(lister, attacker, opener)
    assert_exact(engine, Base.metadata, stored, 4)
    assert_consistent_rows(engine)


@pytest.mark.parametrize("deletes", [remove_all, remove_all_by_statements])
def test_a_slow_writer_of_a_child_against_who_deletes_the_parent(
    engine, gated, stored, family, deletes
):
    """The object lies in the parent's folder before its row can be seen."""
    done = threading.Event()

    def writer():
        with Session(gated) as session:
            gated.storage.close("create")
            session.add(Run(id_project=1, data=value(1, 5)))
            session.commit()

    def attacker():
        assert gated.storage.reached.wait(TIMEOUT)
        try:
            again_and_again(engine, deletes)
        finally:
            done.set()

    def opener():
        assert gated.storage.reached.wait(TIMEOUT)
        wait_for_a_waiter(engine, done)
        gated.storage.opened.set()

    in_threads(writer, attacker, opener)
    assert_exact(engine, Base.metadata, stored, 0)


@pytest.mark.parametrize("call", ["create", "make_durable"])
def test_a_slow_writer_of_a_key_against_who_deletes_it(engine, gated, stored, family, call):
    """The new object lies in the folder that is emptied, and its row has waited for nobody."""
    done = threading.Event()

    def writer():
        with Session(gated) as session:
            gated.storage.close(call)
            session.get(Keyed, 1).data = value(1, 5)
            session.commit()

    def attacker():
        assert gated.storage.reached.wait(TIMEOUT)
        try:
            again_and_again(engine, remove_all)
            again_and_again(engine, recreate)
        finally:
            done.set()

    def opener():
        assert gated.storage.reached.wait(TIMEOUT)
        wait_for_a_waiter(engine, done)
        gated.storage.opened.set()

    in_threads(writer, attacker, opener)
    assert_exact(engine, Base.metadata, stored, 3)
    assert_consistent_rows(engine)


def test_a_row_made_anew_while_its_deleter_waits(engine, gated, stored, family):
    """PostgreSQL: the deleter's question finds the old row gone, its DELETE finds the new one."""
    done, waits = threading.Event(), threading.Event()

    def renewer():
        with Session(gated) as session:
            recreate_row(session, 1, 7)
            session.flush()
            waits.set()
            wait_for_a_waiter(engine, done)
            session.commit()

    def deleter():
        assert waits.wait(TIMEOUT)
        try:
            again_and_again(engine, lambda session: delete_row(session, 1, 0))
        finally:
            done.set()

    in_threads(renewer, deleter)
    assert_exact(engine, Base.metadata, stored, 2)


def again_and_again(engine, work):
    """Do it in a transaction that is tried again after a conflict."""
    for _ in range(2000):
        try:
            with Session(engine) as session:
                work(session)
                session.commit()
        except (DBAPIError, StaleDataError):
            # SQLite does not wait for a transaction that would have to be rolled back
            threading.Event().wait(0.01)
        else:
            return
    pytest.fail("it never works")


DIES = """
import os, signal, sys
from test_concurrency import *

class Dying(LocalStorage):
    def remove(self, paths):
        super().remove(list(paths)[:1])
        os.kill(os.getpid(), signal.SIGKILL)

url, base = sys.argv[1:]
engine = make_engine(url)
bind_storage(engine, Dying(base))
with Session(engine) as session:
    remove_all(session)
    session.commit()
"""


@pytest.mark.slow
def test_a_remover_that_dies_half_way(engine, stored, family):
    """What it left lies in the folders of the rows made anew; gc tells them apart."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIES, url_of(engine), str(stored.base)],
        env=environment(HERE),
        timeout=TIMEOUT,
    )
    assert done.returncode == -signal.SIGKILL
    assert urls_of(engine, Base.metadata) == []
    assert stored.files()
    with Session(engine) as session:
        recreate(session)
        session.commit()
    # owners of a folder find it as they are inserted
    assert assert_well(engine, stored) >= 0
    assert len(urls_of(engine, Base.metadata)) == 3


if __name__ == "__main__":
    main()
