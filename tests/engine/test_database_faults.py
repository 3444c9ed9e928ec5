"""P1, P2 and P4 where the database fails: constraints, lost connections, conflicts, full disks.

What each driver does instead of what events say is in ``test_endings.py``; its engines of every
driver are used here as well.
"""

from __future__ import annotations

import gc as garbage
import logging
import os
import sqlite3
import threading
import traceback
import warnings

import pytest
from asyncpg import InternalClientError
from sqlalchemy import create_engine, delete, event, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, registry
from sqlalchemy.pool import _AdhocProxiedConnection
from sqlalchemy.util import await_only
from support.conflicts import in_threads
from support.drivers import ALL, ASYNC, KINDS, POSTGRESQL, SQLITE, SYNC, keyed, put
from support.exactness import urls_of
from support.models import Base, Counter, Keyed, Project, Run

from sqla_datastore import DataStore, DataStoreError, bind_storage
from sqla_datastore.engine import observed_transaction
from sqla_datastore.maintenance import check, gc
from sqla_datastore.storage.urls import ObjectURL
from sqla_datastore.unitofwork.outcome import ROLLED_BACK

SERVERS = [driver for driver, kind in KINDS.items() if kind != "sqlite"]
LEGACY = [driver for driver in SQLITE if driver.endswith("legacy")]


def value(n=0):
    return DataStore(n=n, items=[n] * 3)


def replace(connection, key, n=5):
    connection.execute(update(keyed).where(keyed.c.id == key).values(data=DataStore(n=n)))


def collect(engine, metadata=keyed.metadata):
    """Collect garbage; a second look finds nothing."""
    gc(engine, metadata, apply=True, grace_seconds=0)
    report = check(engine, metadata, deep=True)
    assert report.is_clean, report


def assert_whole(engine, stored, metadata=Base.metadata):
    """Assert that every row has its object, whatever else there is."""
    paths = {ObjectURL.parse(url).path for url in urls_of(engine, metadata)}
    assert paths <= stored.files(), "a committed row is dangling"
    return paths


# -- at flush ------------------------------------------------------------------------------------


def violations():
    yield "primary key", lambda data: Keyed(id=2, data=data), lambda row: setattr(row, "id", 3)
    yield "unique", lambda data: Counter(name="x", data=data), lambda row: setattr(row, "name", "y")
    yield (
        "foreign key",
        lambda data: Run(id_project=9, data=data),
        (lambda row: setattr(row, "id_project", 1)),
    )
    yield "not null", lambda data: Run(data=data), lambda row: setattr(row, "id_project", 1)


@pytest.mark.parametrize(
    ("make", "mend"), [case[1:] for case in violations()], ids=[case[0] for case in violations()]
)
def test_a_flush_that_a_constraint_refuses_leaves_all_as_it_was(engine, stored, exact, make, mend):
    with Session(engine) as session:
        session.add_all([Keyed(id=n) for n in (1, 2)] + [Counter(name="x"), Project(id=1)])
        session.commit()
    before = stored.files()
    with Session(engine) as session:
        new = value(5)
        session.get(Keyed, 1).data = replacement = value(6)
        bad = make(new)
        session.add(bad)
        with pytest.raises(DBAPIError):
            session.flush()
        session.rollback()
        assert stored.files() == before
        assert (new.url, replacement.url) == (None, None)
        # the same value objects serve the retry
        mend(bad)
        session.add(bad)
        session.get(Keyed, 1).data = replacement
        session.commit()
        assert (bad.data["items"], session.get(Keyed, 1).data.n) == ([5] * 3, 6)
    exact(2)


def test_a_flush_whose_statement_fails_has_written_nothing(engine, stored, exact, monkeypatch):
    """All rows of a flush see ``before_insert`` before the first INSERT; writing waits longer."""
    from sqla_datastore.storage.local import LocalStorage

    written = []
    create = LocalStorage.create
    monkeypatch.setattr(
        LocalStorage, "create", lambda self, path: written.append(path) or create(self, path)
    )
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2, 3)])
        session.commit()
    assert len(written) == 3
    written.clear()
    with Session(engine) as session:
        session.add_all([Counter(name="a", data=value()), Keyed(id=1, data=value())])
        with pytest.raises(DBAPIError):
            session.flush()
        assert not written
    exact(3)


# -- at COMMIT, by the database --------------------------------------------------------------------


@pytest.mark.parametrize("driver", [d for d in ALL if KINDS[d] != "mariadb"])
def test_a_commit_that_a_deferred_constraint_refuses(run, driver):
    """MariaDB has none. What was replaced and deleted is as before, the values serve a retry."""
    first, second = value(2), value(3)

    def work(connection):
        connection.execute(insert(keyed).values(id=2, data=first))
        connection.execute(update(keyed).where(keyed.c.id == 1).values(data=second))

    def scenario(engine):
        with engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE TABLE deferred (id integer REFERENCES keyed (id) "
                    "DEFERRABLE INITIALLY DEFERRED)"
                )
            )
        with engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.connection.cursor().execute("PRAGMA foreign_keys=ON")
            work(connection)
            connection.execute(text("INSERT INTO deferred VALUES (77)"))
            with pytest.raises(DBAPIError):
                connection.commit()
            connection.rollback()
            connection.connection.rollback()
        with engine.connect() as connection:
            kept = connection.execute(select(keyed.c.data)).scalar_one()
            assert list(kept.a) == [0, 1, 2]
            connection.rollback()
            work(connection)
            connection.commit()
            found = dict(connection.execute(select(keyed.c.id, keyed.c.data)).all())
            assert {key: each.n for key, each in found.items()} == {1: 3, 2: 2}
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE deferred"))

    run(driver, scenario)
    run.exact(2)


def test_a_session_whose_commit_a_deferred_constraint_refuses(engine, stored, exact):
    if engine.dialect.name == "mysql":
        pytest.skip("MariaDB has no deferred constraints")
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE deferred (id integer REFERENCES keyed (id) "
                "DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    try:
        with Session(engine) as session:
            session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2)])
            session.commit()
            new, replacement = value(5), value(6)
            for refused in (True, False):
                session.add(Keyed(id=3, data=new))
                session.get(Keyed, 1).data = replacement
                session.delete(session.get(Keyed, 2))
                if refused:
                    session.execute(text("INSERT INTO deferred VALUES (77)"))
                    with pytest.raises(DBAPIError):
                        session.commit()
                    session.rollback()
                    assert (new.url, replacement.url) == (None, None)
                    exact(2)
            session.commit()
            assert {row.id: row.data.n for row in session.query(Keyed)} == {1: 6, 3: 5}
        exact(2)
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE deferred"))


# -- at COMMIT, by a lost connection ---------------------------------------------------------------


def kill(engine, raw):
    """Have the server end a connection, and return once it is gone."""
    postgresql = engine.dialect.name == "postgresql"
    cursor = raw.cursor()
    cursor.execute("SELECT pg_backend_pid()" if postgresql else "SELECT connection_id()")
    (pid,) = cursor.fetchone()
    cursor.close()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
        if postgresql:
            other.execute(text(f"SELECT pg_terminate_backend({pid}, 10000)"))
            alive = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
        else:
            other.execute(text(f"KILL CONNECTION {pid}"))
            alive = f"SELECT count(*) FROM information_schema.processlist WHERE id = {pid}"
        for _ in range(3000):
            if not other.scalar(text(alive)):
                return
            threading.Event().wait(0.01)
    pytest.fail("the server does not end the connection")


def invalidate_if_unnoticed(driver, connection):
    """Tell SQLAlchemy that a connection is lost, where it does not know the driver's number."""
    if driver == "mysqlconnector":
        connection.invalidate()


def lose_at_commit(engine, commit, proxied, when):
    """Lose a connection before its COMMIT reaches the server, or before the answer comes back.

    The driver's own error for it is raised in both cases.
    """
    if when == "after":
        commit()
    kill(engine, proxied.dbapi_connection)
    proxied.cursor().execute("SELECT 1")
    pytest.fail("the connection is still there")


@pytest.fixture
def at_commit(monkeypatch):
    """Replace a driver's COMMIT, below everything that observes it, once armed with a function."""
    armed = []

    def patch(driver):
        name, kind = driver.partition("-")[0], KINDS[driver]
        dialect = {"mariadb": "mysql"}.get(kind, kind)
        cls = make_url(f"{dialect}+{name}://").get_dialect()
        original = cls.do_commit

        def do_commit(self, proxied):
            if armed:
                return armed.pop()(lambda: original(self, proxied), proxied)
            return original(self, proxied)

        monkeypatch.setattr(cls, "do_commit", do_commit)
        return armed

    return patch


@pytest.fixture
def tolerant(caplog):
    """Pass over what drivers leave when their connection is killed."""
    with (
        caplog.at_level(logging.CRITICAL, "sqlalchemy.pool"),
        caplog.at_level(logging.WARNING, "sqla_datastore"),
        warnings.catch_warnings(),
    ):
        # pg8000 fails to close the broken connection and leaves its socket to the collector
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        yield caplog
        garbage.collect()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("driver", SERVERS)
def test_a_connection_lost_at_commit_keeps_both_sides(
    run, driver, when, at_commit, tolerant, stored
):
    """Nobody can tell whether it was executed: all is kept, a retry works, gc makes it exact."""
    armed = at_commit(driver)
    new = value(2)

    def scenario(engine):
        with engine.connect() as connection:
            connection.execute(insert(keyed).values(id=2, data=new))
            replace(connection, 1)
            armed.append(lambda commit, proxied: lose_at_commit(engine, commit, proxied, when))
            # asyncpg may still be reading why it was killed, and says so in an error of its own
            # pg8000 lets the error of its socket through
            with pytest.raises((DBAPIError, InternalClientError, OSError)):
                connection.commit()
            invalidate_if_unnoticed(driver, connection)
        assert not armed
        assert len(stored.files()) == 3
        with engine.connect() as connection:
            found = connection.scalar(select(keyed.c.id).where(keyed.c.id == 2))
            assert (found == 2) is (when == "after")
            if found is None:
                connection.execute(insert(keyed).values(id=2, data=new))
            replace(connection, 1, n=7)
            connection.commit()
        collect(engine)
        with engine.connect() as connection:
            one, two = connection.scalars(select(keyed.c.data).order_by(keyed.c.id))
            assert (one.n, two.n, two["items"]) == (7, 2, [2] * 3)

    run(driver, scenario)
    assert "nobody can tell how a transaction ended" in tolerant.text
    run.exact(2)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("driver", ALL)
def test_a_commit_that_is_interrupted_keeps_both_sides(
    run, driver, error, when, at_commit, tolerant, stored
):
    """As a cancelled task or a signal does: no database has refused it."""
    armed = at_commit(driver)

    def interrupt(commit, _proxied):
        if when == "after":
            commit()
        raise error("interrupted")

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            replace(connection, 1)
            armed.append(interrupt)
            with pytest.raises(error):
                connection.commit()
            assert len(stored.files()) == 3
            connection.invalidate()
        collect(engine)

    run(driver, scenario)
    assert "nobody can tell how a transaction ended" in tolerant.text
    run.exact(2 if when == "after" else 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_session_that_loses_its_connection_at_commit(engine, exact, stored, when, tolerant):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no connection to lose")
    armed = []
    original = engine.dialect.do_commit

    def do_commit(proxied):
        if armed:
            armed.clear()
            lose_at_commit(engine, lambda: original(proxied), proxied, when)
        original(proxied)

    engine.dialect.do_commit = do_commit
    new = value(2)
    with Session(engine) as session:
        session.add_all([Keyed(id=1, data=value(1)), Keyed(id=3, data=value(3))])
        session.commit()
        session.add(Keyed(id=2, data=new))
        session.get(Keyed, 1).data = value(5)
        session.delete(session.get(Keyed, 3))
        armed.append(True)
        with pytest.raises(DBAPIError):
            session.commit()
        session.rollback()
        assert len(stored.files()) == 4
        assert_whole(engine, stored)
        assert (session.get(Keyed, 3) is None) is (when == "after")
        if session.get(Keyed, 2) is None:
            session.add(Keyed(id=2, data=new))
        session.commit()
        assert session.get(Keyed, 2).data.n == 2
        assert session.get(Keyed, 1).data.n == (5 if when == "after" else 1)
    assert "nobody can tell how a transaction ended" in tolerant.text
    collect(engine, Base.metadata)
    exact(2 if when == "after" else 3)


@pytest.mark.parametrize("driver", SERVERS)
def test_a_connection_lost_before_commit_is_a_rollback_where_it_shows(
    run, driver, stored, tolerant
):
    """A statement says so, and no COMMIT was sent: the server has dropped the transaction."""

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            replace(connection, 1)
            kill(engine, connection.connection.dbapi_connection)
            with pytest.raises((DBAPIError, InternalClientError)):
                put(connection, 3)
            invalidate_if_unnoticed(driver, connection)
            connection.rollback()
        with engine.begin() as connection:
            put(connection, 3)
        if driver == "asyncpg":
            # its own error does not tell SQLAlchemy that the connection is lost
            collect(engine)

    run(driver, scenario)
    run.exact(2)


# -- conflicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("driver", POSTGRESQL)
def test_a_serialization_failure_of_a_statement(run, driver, level, stored):
    new, replacement = value(2), value(9)

    def scenario(engine):
        with engine.connect() as one, engine.connect() as two:
            for attempt in range(2):
                one.execute(insert(keyed).values(id=2, data=new))
                if attempt == 0:
                    replace(two, 1)
                    two.commit()
                statement = update(keyed).where(keyed.c.id == 1).values(data=replacement)
                if attempt == 0:
                    with pytest.raises(DBAPIError) as caught:
                        one.execute(statement)
                    assert "could not serialize" in str(caught.value)
                    one.rollback()
                    assert (new.url, replacement.url) == (None, None)
                    assert len(stored.files()) == 1
                else:
                    one.execute(statement)
            one.commit()
            one_, two_ = one.scalars(select(keyed.c.data).order_by(keyed.c.id))
            assert (one_.n, two_.n) == (9, 2)

    run(driver, scenario, isolation_level=level)
    run.exact(2)


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_a_serialization_failure_of_commit(run, driver, stored):
    """Two transactions that each missed what the other wrote; COMMIT itself is refused."""
    new = value(2)

    def scenario(engine):
        with engine.connect() as one, engine.connect() as two:
            one.execute(select(keyed.c.id)).all()
            two.execute(select(keyed.c.id)).all()
            one.execute(insert(keyed).values(id=2, data=new))
            replace(one, 1)
            put(two, 3)
            two.commit()
            with pytest.raises(DBAPIError, match="could not serialize"):
                one.commit()
            one.rollback()
            assert len(stored.files()) == 2
            one.execute(insert(keyed).values(id=2, data=new))
            replace(one, 1)
            one.commit()

    run(driver, scenario, isolation_level="SERIALIZABLE")
    run.exact(3)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_row_that_changed_since_mariadbs_snapshot(run, ending):
    """Error 1020, where MariaDB is told to keep to its snapshot; caught, the rest committed."""
    replacement = value(9)

    def scenario(engine):
        with engine.begin() as connection:
            put(connection, 3)
        with engine.connect() as one, engine.connect() as two:
            one.execute(text("SET SESSION innodb_snapshot_isolation = ON"))
            one.commit()
            one.execute(select(keyed.c.id)).all()
            replace(one, 1)
            put(one, 4)
            replace(two, 3)
            two.commit()
            statement = update(keyed).where(keyed.c.id == 3).values(data=replacement)
            with pytest.raises(DBAPIError, match="1020"):
                one.execute(statement)
            getattr(one, ending)()
            one.execute(statement)
            one.commit()
            assert one.scalar(select(keyed.c.data).where(keyed.c.id == 3)).n == 9

    run("pymysql", scenario)
    run.exact(len(run.rows))
    assert len(run.rows) == 2 or ending == "commit"


def test_deadlocks_are_tried_again_with_the_same_values(engine, stored, exact):
    """The database chooses whom it rolls back; both get through, one after the other."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(0)) for n in (1, 2)])
        session.commit()
    both, errors = threading.Barrier(2, timeout=60), []

    def exchange(keys, token):
        values = {key: value(token) for key in (*keys, token)}
        with Session(engine) as session:
            for attempt in range(10):
                try:
                    session.add(Keyed(id=token, data=values[token]))
                    for key in keys:
                        session.get(Keyed, key).data = values[key]
                        session.flush()
                        if (attempt, key) == (0, keys[0]):
                            both.wait()
                    session.commit()
                except DBAPIError as err:
                    errors.append(err)
                    session.rollback()
                    assert [each.url for each in values.values()] == [None] * 3
                else:
                    return

    in_threads(lambda: exchange((1, 2), 11), lambda: exchange((2, 1), 12))
    assert any(word in str(errors) for word in ("deadlock", "Deadlock")), errors
    with Session(engine) as session:
        assert session.get(Keyed, 1).data.n == session.get(Keyed, 2).data.n
        assert [session.get(Keyed, n).data.n for n in (11, 12)] == [11, 12]
    exact(4)


@pytest.mark.parametrize("how", ["commit", "go on"])
def test_a_deadlock_that_is_caught_and_committed_all_the_same(engine, stored, exact, how):
    """MariaDB has rolled the whole transaction back then, and COMMIT says nothing of it."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(0)) for n in (1, 2, 3, 4)])
        session.commit()
    both, errors = threading.Barrier(2, timeout=60), []

    def exchange(own, other, token):
        with Session(engine) as session:
            # one more row, that nobody waits for
            for key in (own + 2, own):
                session.get(Keyed, key).data = value(token)
                session.flush()
            both.wait()
            try:
                session.execute(update(Keyed).where(Keyed.id == other).values(data=value(token)))
            except DBAPIError as err:
                errors.append(err)
            try:
                if how == "go on":
                    session.add(Keyed(id=token, data=value(token)))
                session.commit()
            except (DBAPIError, DataStoreError, InvalidRequestError):
                session.rollback()

    in_threads(lambda: exchange(1, 2, 11), lambda: exchange(2, 1, 12))
    assert len(errors) == 1
    assert_whole(engine, stored)
    exact()


def test_a_deadlock_inside_a_savepoint(engine, stored, exact):
    """The savepoint is gone with the transaction, so rolling back to it is an error of its own."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(0)) for n in (1, 2, 3, 4)])
        session.commit()
    both, errors = threading.Barrier(2, timeout=60), []

    def exchange(own, other, token):
        with Session(engine) as session:
            session.get(Keyed, own + 2).data = value(token)
            try:
                with session.begin_nested():
                    session.get(Keyed, own).data = value(token)
                    session.flush()
                    both.wait()
                    session.get(Keyed, other).data = value(token)
            except DBAPIError as err:
                errors.append(err)
            try:
                session.commit()
            except (DBAPIError, DataStoreError, InvalidRequestError):
                session.rollback()

    in_threads(lambda: exchange(1, 2, 11), lambda: exchange(2, 1, 12))
    assert len(errors) == 1
    assert_whole(engine, stored)
    exact(4)


def test_a_lock_timeout_loses_its_statement_only(run, stored):
    """MariaDB's 1205: what the transaction did before and does after it is committed."""
    late = value(9)

    def scenario(engine):
        with engine.begin() as connection:
            put(connection, 3)
        with engine.connect() as one, engine.connect() as two:
            one.execute(text("SET SESSION innodb_lock_wait_timeout = 0"))
            one.commit()
            replace(two, 3)
            put(one, 2)
            replace(one, 1)
            statement = update(keyed).where(keyed.c.id == 3).values(data=late)
            with pytest.raises(DBAPIError, match="1205"):
                one.execute(statement)
            put(one, 4)
            one.commit()
            two.commit()
            one.execute(statement)
            one.commit()
            found = dict(one.execute(select(keyed.c.id, keyed.c.data)).all())
            assert {key: each.n for key, each in found.items()} == {1: 5, 2: 2, 3: 9, 4: 4}

    run("pymysql", scenario)
    run.exact(4)


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_a_lock_timeout_inside_a_savepoint(run, driver):
    late = value(9)

    def scenario(engine):
        with engine.begin() as connection:
            put(connection, 3)
        with engine.connect() as one, engine.connect() as two:
            one.execute(text("SET lock_timeout = '1ms'"))
            one.commit()
            replace(two, 3)
            put(one, 2)
            replace(one, 1)
            statement = update(keyed).where(keyed.c.id == 3).values(data=late)
            with pytest.raises(DBAPIError, match="lock timeout"), one.begin_nested():
                one.execute(statement)
            put(one, 4)
            two.commit()
            one.execute(statement)
            one.commit()
            found = dict(one.execute(select(keyed.c.id, keyed.c.data)).all())
            assert {key: each.n for key, each in found.items()} == {1: 5, 2: 2, 3: 9, 4: 4}

    run(driver, scenario)
    run.exact(4)


# -- SQLite: busy and full -------------------------------------------------------------------------


@pytest.fixture
def blocker():
    """Open another connection to an SQLite file, to hold locks with."""
    opened = []

    def open_one(engine):
        opened.append(sqlite3.connect(engine.url.database, isolation_level=None))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("driver", SQLITE)
def test_sqlite_is_busy_when_a_transaction_wants_to_write(run, driver, blocker, stored):
    new = value(2)

    def scenario(engine):
        other = blocker(engine)
        other.execute("BEGIN IMMEDIATE")
        with engine.connect() as connection:
            with pytest.raises(DBAPIError, match="locked"):
                connection.execute(insert(keyed).values(id=2, data=new))
            with pytest.raises(DBAPIError, match="locked"):
                replace(connection, 1)
            connection.rollback()
            assert len(stored.files()) == 1
            assert new.url is None
            other.execute("ROLLBACK")
            connection.execute(insert(keyed).values(id=2, data=new))
            replace(connection, 1)
            connection.commit()

    run(driver, scenario, connect_args={"timeout": 0})
    run.exact(2)


@pytest.mark.parametrize("how", ["rollback", "close", "go on", "go on and roll back"])
@pytest.mark.parametrize("driver", SQLITE)
def test_sqlite_is_busy_at_commit(run, driver, blocker, how, tolerant):
    """Someone reads: COMMIT is refused, and the transaction is still open in the database."""
    new = value(2)

    def scenario(engine):
        other = blocker(engine)
        with engine.connect() as connection:
            connection.execute(insert(keyed).values(id=2, data=new))
            replace(connection, 1)
            other.execute("BEGIN")
            other.execute("SELECT * FROM keyed").fetchall()
            with pytest.raises(DBAPIError, match="locked"):
                connection.commit()
            other.execute("ROLLBACK")
            if how == "close":
                # it goes back to the pool as it is, so the pool has to go
                connection.close()
                engine.dispose()
            elif how == "rollback":
                connection.rollback()
                connection.connection.rollback()
            else:
                go_on(connection, "rollback" if "roll" in how else "commit")
        with engine.connect() as connection:
            if not connection.scalar(select(keyed.c.id).where(keyed.c.id == 2)):
                connection.execute(insert(keyed).values(id=2, data=new))
            replace(connection, 1)
            connection.commit()
            assert connection.scalar(select(keyed.c.data).where(keyed.c.id == 2)).n == 2
        if driver not in LEGACY:
            collect(engine)

    def go_on(connection, ending):
        connection.rollback()
        try:
            put(connection, 3)
            getattr(connection, ending)()
        except DBAPIError:
            # an explicit BEGIN, while a transaction is open: nobody can tell what it did
            connection.rollback()
            connection.connection.rollback()

    run(driver, scenario, connect_args={"timeout": 0})
    run.exact(len(run.rows))


@pytest.mark.parametrize("driver", SQLITE)
def test_sqlites_snapshot_is_too_old_to_write(run, driver, blocker):
    """WAL: someone else wrote since this transaction has read."""
    new = value(2)

    def scenario(engine):
        other = blocker(engine)
        other.execute("PRAGMA journal_mode=WAL")
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN") if driver in LEGACY else None
            connection.execute(select(keyed.c.id)).all()
            other.execute("INSERT INTO keyed (id) VALUES (7)")
            with pytest.raises(DBAPIError, match="locked"):
                connection.execute(insert(keyed).values(id=2, data=new))
            connection.rollback()
            connection.execute(insert(keyed).values(id=2, data=new))
            replace(connection, 1)
            connection.commit()

    run(driver, scenario, connect_args={"timeout": 0})
    run.exact(2)


@pytest.mark.parametrize("how", ["commit", "rollback", "go on", "go on and roll back"])
@pytest.mark.parametrize("driver", SQLITE)
def test_sqlite_is_full(run, driver, how, stored, tolerant):
    """It may roll the whole transaction back, without a word but the error of one statement."""

    def scenario(engine):
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS filler (data BLOB)"))
        with engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA page_count")
            (pages,) = cursor.fetchone()
            cursor.execute(f"PRAGMA max_page_count = {pages + 3}")
            put(connection, 2)
            replace(connection, 1)
            with pytest.raises(DBAPIError, match="full"):
                connection.execute(text("INSERT INTO filler VALUES (zeroblob(100000))"))
            if "go on" in how:
                put(connection, 3)
            getattr(connection, "rollback" if "roll" in how else "commit")()
            connection.connection.cursor().execute("PRAGMA max_page_count = 1000000")
            connection.rollback()
            put(connection, 4)
            connection.commit()

    run(driver, scenario)
    run.exact(len(run.rows))


@pytest.mark.parametrize("how", ["commit", "rollback"])
@pytest.mark.parametrize("driver", SQLITE)
def test_sqlite_rolled_back_and_the_transaction_goes_on(run, driver, how):
    """INSERT OR ROLLBACK: what follows the error that was caught is another transaction."""

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            replace(connection, 1)
            with pytest.raises(DBAPIError):
                connection.execute(text("INSERT OR ROLLBACK INTO keyed (id) VALUES (2)"))
            put(connection, 3)
            getattr(connection, how)()

    run(driver, scenario)
    # with an explicit BEGIN there is none any more, so the last INSERT commits itself
    run.exact(1 if how == "rollback" and driver in LEGACY else 2)


# -- what each driver does instead: the rest of the facts -----------------------------------------


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("driver", ALL)
def test_savepoints_by_text_keep_both_sides(run, driver, ending):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(text("SAVEPOINT by_hand"))
            replace(connection, 1)
            put(connection, 3)
            connection.execute(text("ROLLBACK TO SAVEPOINT by_hand"))
            getattr(connection, ending)()
        collect(engine)

    run(driver, scenario)
    run.exact(2 if ending == "commit" else 1)


@pytest.mark.parametrize("driver", ["asyncpg", "aiosqlite-legacy"])
def test_a_commit_by_hand_on_an_asynchronous_driver(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            connection.connection.commit()
            connection.rollback()
        collect(engine)

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg", "aiosqlite-legacy"])
def test_autocommit_set_on_an_asynchronous_driver(run, driver):
    arguments = {
        "aiosqlite-legacy": {"isolation_level": None},
        "psycopg_async": {"autocommit": True},
    }

    def scenario(engine):
        with engine.connect() as connection:
            if driver == "asyncpg":
                connection.connection.dbapi_connection.autocommit = True
            put(connection, 2)
            replace(connection, 1)
            connection.execute(delete(keyed).where(keyed.c.id == 2))
            connection.rollback()
            connection.invalidate()

    run(driver, scenario, connect_args=dict(arguments.get(driver, {})))
    run.exact(1)


@pytest.mark.parametrize("ending", ["commit", "rollback", "close"])
@pytest.mark.parametrize("driver", [*(d for d in ALL if d not in ("pysqlite", "aiosqlite"))])
def test_a_listener_of_commit_fails_on_every_driver(run, driver, ending):
    """SQLAlchemy sends neither COMMIT nor ROLLBACK; the connection's next transaction decides."""

    def scenario(engine):
        fail = []

        @event.listens_for(engine, "commit")
        def commit(_connection):
            if fail:
                raise RuntimeError(fail.pop())

        with engine.connect() as connection:
            put(connection, 2)
            replace(connection, 1)
            fail.append("listener")
            with pytest.raises(RuntimeError, match="listener"):
                connection.commit()
            connection.rollback()
            if ending != "close":
                put(connection, 3)
                getattr(connection, ending)()

    run(driver, scenario)
    run.exact({"commit": 3, "rollback": 1, "close": 1}[ending])


@pytest.mark.parametrize("driver", [driver for driver in SYNC if driver != "pysqlite"])
def test_an_engine_on_the_pool_of_another(run, driver, stored):
    """The pool's dialect and the engine's are two then; each of them may end a transaction."""

    def scenario(engine):
        other = create_engine(engine.url, pool=engine.pool)
        bind_storage(other, stored.base)
        for each in (other, engine, other):
            with each.connect() as connection:
                connection.execute(select(1))
                connection.rollback()
            with Session(each) as session:
                session.execute(insert(keyed).values(id=2, data=value(2)))
                session.execute(delete(keyed).where(keyed.c.id == 1))
            connection = each.connect()
            connection.execute(insert(keyed).values(id=2, data=value(2)))
            connection.invalidate()
            connection.close()
            with each.begin() as connection:
                replace(connection, 1)
                put(connection, 2)
                connection.execute(delete(keyed).where(keyed.c.id == 2))

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", ALL)
def test_option_engines_and_a_pool_made_anew(run, driver):
    """Both keep the dialect that is observed."""

    def scenario(engine):
        options = engine.execution_options(logging_token="other")
        with options.begin() as connection:
            put(connection, 2)
        engine.dispose()
        with options.connect() as connection:
            replace(connection, 1)
            connection.execute(delete(keyed).where(keyed.c.id == 2))
            connection.rollback()
        with engine.begin() as connection:
            replace(connection, 1)

    run(driver, scenario)
    run.exact(2)


@pytest.mark.parametrize("driver", ALL)
def test_a_dialect_that_initializes_itself_ends_no_transaction(run, driver, stored):
    """It calls ``do_rollback`` with a stand-in for the connection, of which ``info`` raises."""

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            replace(connection, 1)
            with engine.connect() as other:
                raw = other.connection.dbapi_connection
                engine.dialect.do_rollback(_AdhocProxiedConnection(raw, None))
            assert len(stored.files()) == 3
            connection.commit()

    run(driver, scenario)
    run.exact(2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", list(ASYNC))
def test_a_forgotten_session_on_an_asynchronous_driver(run, driver, tolerant):
    """Some drivers are terminated, others only dropped: the ledger lets go of all of them."""

    def scenario(engine):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The garbage collector is trying to clean up")
            warnings.filterwarnings("ignore", category=ResourceWarning)
            forget(engine)
            garbage.collect()
        assert not observed_transaction.open_transactions, "the ledger holds the connection"
        if driver == "psycopg_async":
            end_idle(engine)
        with engine.begin() as connection:
            replace(connection, 1)

    def end_idle(engine):
        """Be the server's timeout: what else holds the driver's connection is not ours."""
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                    "datname = current_database() AND state = 'idle in transaction' "
                    "AND pid <> pg_backend_pid()"
                )
            )

    def forget(engine):
        session = Session(engine)
        put(session.connection(), 2)
        session.connection().execute(delete(keyed).where(keyed.c.id == 1))

    # a lock that is still held is an error, not a test that hangs
    patient = {"psycopg_async": {"options": "-c lock_timeout=5000"}}
    run(driver, scenario, connect_args=dict(patient.get(driver, {})))
    run.exact(1)


@pytest.mark.parametrize("driver", ["psycopg", "pg8000", "pymysql", "pysqlite", "pysqlite-legacy"])
def test_a_forked_child_leaves_its_parents_transaction_alone(run, driver, stored):
    """Whatever it closes: rolled back or forgotten there, it would be ended here."""

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            replace(connection, 1)
            raw = connection.connection.dbapi_connection
            theirs = observed_transaction.open_transaction(raw)

            def nothing_is_open():
                assert not observed_transaction.open_transactions

            def child():
                engine.dispose(close=False)
                nothing_is_open()
                # the driver itself is not called, since its socket is the parent's too
                begun = observed_transaction.transaction_of(connection)
                in_a_fork(nothing_is_open)
                begun.end(ROLLED_BACK)
                theirs.end(ROLLED_BACK)  # by who was forked amid a call of it

            in_a_fork(child)
            assert observed_transaction.open_transaction(raw) is theirs
            assert len(stored.files()) == 3, "the child removed what its parent wrote"
            connection.commit()

    run(driver, scenario)
    run.exact(2)


def in_a_fork(call):
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.parametrize("what", ["commit", "rollback"])
def test_a_listener_of_the_session_that_fails_after_the_end(engine, exact, what):
    """COMMIT has happened, or ROLLBACK: an error that comes later changes nothing."""
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2)])
        session.commit()

        @event.listens_for(session, "after_commit" if what == "commit" else "after_soft_rollback")
        def fail(*_):
            raise RuntimeError("listener")

        session.get(Keyed, 1).data = value(5)
        session.delete(session.get(Keyed, 2))
        session.add(Keyed(id=3, data=value(3)))
        session.flush()
        with pytest.raises(RuntimeError, match="listener"):
            getattr(session, what)()
        event.remove(session, "after_commit" if what == "commit" else "after_soft_rollback", fail)
    exact(2)
    with Session(engine) as session:
        keys = {row.id: row.data.n for row in session.query(Keyed)}
        assert keys == ({1: 5, 3: 3} if what == "commit" else {1: 1, 2: 2})


class Row:
    """A row of the table that every driver has here, mapped."""


registry().map_imperatively(Row, keyed)


@pytest.mark.parametrize("expires", [True, False])
@pytest.mark.parametrize("driver", list(ASYNC))
def test_a_value_is_replaced_without_loading_the_old_one(run, driver, expires):
    """With ``active_history`` the assignment would load it, which it cannot outside a greenlet."""

    def scenario(engine):
        await_only(replace_outside(engine))
        with engine.connect() as connection:
            assert connection.scalar(select(keyed.c.data)).n == 2

    async def replace_outside(engine):
        async with AsyncSession(AsyncEngine(engine)) as session:
            row = await session.get(Row, 1)
            if expires:
                session.expire(row)
            row.data = value(2)
            await session.commit()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", list(ASYNC))
def test_an_async_session_follows_its_transaction(run, driver):
    def scenario(engine):
        await_only(work(AsyncEngine(engine)))

    async def work(engine):
        async with AsyncSession(engine) as session:
            session.add(make_row(2))
            await session.flush()
            await session.rollback()
            async with session.begin_nested():
                session.add(make_row(3))
            await session.delete(await session.get(Row, 1))
            await session.commit()
        async with AsyncSession(engine) as session:
            session.add(make_row(4))
            await session.flush()

    run(driver, scenario)
    run.exact(1)


def make_row(key):
    row = Row()
    row.id, row.data = key, value(key)
    return row
