"""P1, P2 and P4 with two-phase commit: PREPARE makes durable, only the second phase removes.

PostgreSQL keeps a prepared transaction until someone ends it, and so does MariaDB: the fixtures
here end what a test leaves, since its locks outlive every connection.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import uuid
import warnings
import zipfile

import pytest
from sqlalchemy import delete, event, insert, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine, private_database
from support.drivers import KINDS, POSTGRESQL, keyed, put
from support.exactness import delete_rows, urls_of
from support.models import Base, Keyed
from support.processes import environment

from sqla_datastore import DataStore, DataStoreError, DataStoreType, StorageError, bind_storage
from sqla_datastore.maintenance import check, gc
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.urls import ObjectURL

DRIVERS = [*POSTGRESQL, "pymysql"]


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def database_url(request, server_url):
    """The URL of a private database of each kind that can prepare."""
    with private_database(preparing_server(server_url, request.param)) as url:
        yield url


def preparing_server(server_url, kind):
    """Return the URL of a server, or skip the test where it cannot prepare."""
    url = server_url(kind)
    if kind == "postgresql":
        engine = make_engine(url)
        with engine.connect() as connection:
            allowed = int(connection.scalar(text("SHOW max_prepared_transactions")))
        engine.dispose()
        if not allowed:
            pytest.skip("this server has max_prepared_transactions = 0")
    return url


class Watched(LocalStorage):
    """A storage that tells what is made durable and removed, and can fail at it."""

    def __init__(self, base):
        super().__init__(base)
        self.log = []
        self.fails = False

    def make_durable(self, paths):
        paths = list(paths)
        self.log += [("durable", path) for path in paths]
        if self.fails:
            raise StorageError("no space left")
        super().make_durable(paths)

    def remove(self, paths):
        paths = list(paths)
        self.log += [("removed", path) for path in paths]
        super().remove(paths)


@pytest.fixture
def storage(stored):
    return Watched(stored.base)


@pytest.fixture
def engine(schema, database_url, storage):
    """An engine on each database; what its test leaves is rolled back, and rows are deleted."""
    with preparing(database_url, storage) as engine:
        yield engine
        leave_nothing(engine)
        delete_rows(engine, Base.metadata)


@pytest.fixture
def tables(engine):
    """Have the tables; `engine` empties them, as no row can be deleted that is still locked."""


@contextlib.contextmanager
def preparing(url, storage):
    """Make an engine that knows its connections and what they prepared."""
    engine = make_engine(url)
    bind_storage(engine, storage)
    engine.xids, engine.raws = [], []
    event.listen(engine, "prepare_twophase", lambda _, xid: engine.xids.append(str(xid)))
    event.listen(engine, "connect", lambda raw, _: engine.raws.append(raw))
    event.listen(engine, "connect", _impatient)
    try:
        yield engine
    finally:
        engine.dispose()


def _impatient(raw, _record):
    """Have a lock that is left be an error, not a test that hangs."""
    cursor = raw.cursor()
    if hasattr(raw, "thread_id"):
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 10, lock_wait_timeout = 10")
    else:
        cursor.execute("SET lock_timeout = '10s'")
        raw.commit()
    cursor.close()


def recoverable(connection):
    """Return the names of all transactions that are prepared; PyMySQL returns them as bytes."""
    found = connection.recover_twophase()
    return [xid.decode() if isinstance(xid, bytes) else str(xid) for xid in found]


def pending(engine):
    """Return the transactions of a test that are prepared; servers list those of all databases."""
    with engine.connect() as connection:
        return [xid for xid in recoverable(connection) if xid in engine.xids]


def resolve(engine, outcome):
    """End what is prepared as a recovering process does; return how many there were."""
    found = pending(engine)
    for xid in found:
        end_prepared(engine, xid, outcome)
    return len(found)


def leave_nothing(engine):
    """Close what a test that failed left open, and end what it left prepared."""
    engine.dispose()
    for raw in engine.raws:
        with contextlib.suppress(Exception):
            raw.close()
    resolve(engine, "rollback")


def end_prepared(engine, xid, outcome):
    """End a transaction that is prepared; MariaDB allows it only with autocommit."""
    for _ in range(300):
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            try:
                getattr(connection, f"{outcome}_prepared")(xid, recover=True)
            except DBAPIError as err:
                # MariaDB hands it over once it has seen that its connection is gone
                failure = err
                connection.rollback()
                threading.Event().wait(0.01)
            else:
                return
    raise failure


@pytest.fixture
def exact(exact, engine):
    """Assert also that nothing is prepared any more."""

    def exact_and_none_prepared(count=None):
        assert not pending(engine)
        exact(count)

    return exact_and_none_prepared


def collect(engine):
    gc(engine, Base.metadata, apply=True, grace_seconds=0)
    assert check(engine, Base.metadata, deep=True).is_clean


def assert_whole(engine, stored):
    paths = {ObjectURL.parse(url).path for url in urls_of(engine, Base.metadata)}
    assert paths <= stored.files(), "a committed row is dangling"


def value(n=0):
    return DataStore(n=n, list=[n] * 3)


def three_rows(engine):
    """Commit rows 1, 2 and 3; a two-phase transaction replaces, deletes and keeps them."""
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2, 3)])
        session.commit()


def change(session, new=None, replacement=None):
    session.add(Keyed(id=4, data=new or value(4)))
    session.get(Keyed, 1).data = replacement or value(10)
    session.delete(session.get(Keyed, 2))
    session.flush()


BEFORE = {1: 1, 2: 2, 3: 3}
AFTER = {1: 10, 3: 3, 4: 4}


def found(engine):
    with Session(engine) as session:
        return {row.id: row.data.n for row in session.query(Keyed) if row.data["list"]}


def files_of(stored, table="keyed"):
    return {file for file in stored.files() if file.startswith(f"{table}/")}


# -- the two phases --------------------------------------------------------------------------------


def test_objects_are_complete_and_durable_before_prepare_is_sent(engine, storage, stored, exact):
    sent = []
    original = engine.dialect.do_prepare_twophase

    def do_prepare_twophase(connection, xid):
        sent.append(list(storage.log))
        for file in stored.files():
            assert zipfile.ZipFile(stored.base / file).testzip() is None
        original(connection, xid)

    engine.dialect.do_prepare_twophase = do_prepare_twophase
    three_rows(engine)
    old = stored.files()
    storage.log.clear()
    with Session(engine, twophase=True) as session:
        change(session)
        new = stored.files() - old
        session.prepare()
        assert sent == [storage.log]
        assert set(storage.log) == {("durable", file) for file in new}
        assert len(new) == 2
        session.commit()
    exact(3)
    assert found(engine) == AFTER


@pytest.mark.parametrize("prepares", [True, False])
def test_commit_removes_and_not_before(engine, storage, stored, exact, prepares):
    three_rows(engine)
    old = stored.files()
    with Session(engine, twophase=True) as session:
        change(session)
        if prepares:
            session.prepare()
            assert old < stored.files()
            assert len(pending(engine)) == 1
        session.commit()
    exact(3)
    assert found(engine) == AFTER
    # by COMMIT PREPARED, whoever sent PREPARE
    kinds = [kind for kind, _ in storage.log[3:]]
    assert kinds == ["durable", "durable", "removed", "removed"]


@pytest.mark.parametrize("how", ["rollback", "close"])
@pytest.mark.parametrize("prepares", [True, False])
def test_rollback_undoes(engine, stored, exact, how, prepares):
    three_rows(engine)
    old = stored.files()
    new, replacement = value(4), value(10)
    with Session(engine, twophase=True) as session:
        change(session, new, replacement)
        if prepares:
            session.prepare()
        getattr(session, how)()
        assert stored.files() == old
        assert (new.url, replacement.url) == (None, None)
        exact(3)
        assert found(engine) == BEFORE
        change(session, new, replacement)
        session.commit()
    exact(3)
    assert found(engine) == AFTER


@pytest.mark.parametrize("inner", ["commit", "rollback"])
def test_savepoints_inside(engine, exact, inner):
    three_rows(engine)
    with Session(engine, twophase=True) as session:
        session.add(Keyed(id=5, data=value(5)))
        nested = session.begin_nested()
        change(session)
        getattr(nested, inner)()
        session.prepare()
        session.commit()
    assert found(engine) == (AFTER if inner == "commit" else BEFORE) | {5: 5}
    exact(4)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
@pytest.mark.parametrize("prepares", [True, False])
def test_a_connection_of_every_driver(run, server_url, driver, outcome, prepares, stored):
    """asyncpg's second phase calls ``do_rollback`` after COMMIT PREPARED, among other things."""
    preparing_server(server_url, KINDS[driver])

    def scenario(engine):
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            put(connection, 2)
            connection.execute(update(keyed).values(data=value(9)).where(keyed.c.id == 1))
            if prepares:
                transaction.prepare()
            assert len(stored.files()) == 3
            getattr(transaction, outcome)()

    run(driver, scenario)
    run.exact(2 if outcome == "commit" else 1)


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["prepare", "commit"])
def test_a_storage_that_cannot_make_durable_fails_prepare(engine, storage, stored, exact, how):
    three_rows(engine)
    old = stored.files()
    new, replacement = value(4), value(10)
    with Session(engine, twophase=True) as session:
        change(session, new, replacement)
        storage.fails = True
        with pytest.raises(StorageError, match="no space left"):
            getattr(session, how)()
        storage.fails = False
        session.rollback()
        assert stored.files() == old
        exact(3)
        # no lock is left either
        change(session, new, replacement)
        session.commit()
    exact(3)
    assert found(engine) == AFTER


@pytest.mark.parametrize("why", ["temporary table", "deferred constraint"])
def test_a_prepare_that_postgresql_refuses(engine, stored, exact, why):
    if engine.dialect.name == "mysql":
        pytest.skip("MariaDB refuses when it has rolled back before; see the deadlock")
    three_rows(engine)
    old = stored.files()
    new, replacement = value(4), value(10)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE IF NOT EXISTS deferred (id integer REFERENCES keyed (id) "
                "DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    with Session(engine, twophase=True) as session:
        change(session, new, replacement)
        refused = {
            "temporary table": "CREATE TEMPORARY TABLE passing (id integer)",
            "deferred constraint": "INSERT INTO deferred VALUES (77)",
        }[why]
        session.execute(text(refused))
        with pytest.raises(DBAPIError):
            session.prepare()
        session.rollback()
        assert stored.files() == old
        assert (new.url, replacement.url) == (None, None)
        change(session, new, replacement)
        session.commit()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE deferred"))
    exact(3)
    assert found(engine) == AFTER


def test_a_name_that_is_already_prepared(engine, stored, exact, quiet):
    """MariaDB refuses it at the beginning. psycopg rolls back what has the name: the first one."""
    three_rows(engine)
    xid = f"twice_{uuid.uuid4().hex}"
    engine.xids.append(xid)
    with engine.connect() as one:
        first = one.begin_twophase(xid)
        one.execute(update(Keyed).where(Keyed.id == 1).values(data=value(10)))
        first.prepare()
        with engine.connect() as two:
            with pytest.raises(DBAPIError):
                prepare_another(two, xid)
            two.invalidate()
        with contextlib.suppress(DBAPIError):
            first.commit()
        one.invalidate()
    assert_whole(engine, stored)
    collect(engine)
    exact(3)


def prepare_another(connection, xid):
    transaction = connection.begin_twophase(xid)
    connection.execute(insert(Keyed).values(id=5, data=value(5)))
    transaction.prepare()


def test_a_deadlock_before_prepare(engine, stored, exact):
    """MariaDB has rolled back then, and refuses to prepare; PostgreSQL refuses every statement."""
    three_rows(engine)
    both, errors = threading.Barrier(2, timeout=60), []

    def exchange(own, other, token):
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            try:
                for key in (own, other):
                    changed = update(Keyed).where(Keyed.id == key).values(data=value(token))
                    try:
                        connection.execute(changed)
                    except DBAPIError as err:
                        errors.append(err)
                    if key == own:
                        both.wait()
                transaction.prepare()
                transaction.commit()
            except (DBAPIError, DataStoreError) as err:
                errors.append(err)
                with contextlib.suppress(DBAPIError):
                    transaction.rollback()
                connection.invalidate()

    threads = [
        threading.Thread(target=exchange, args=a, daemon=True) for a in ((1, 2, 7), (2, 1, 8))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(errors) == 2, errors
    exact(3)
    with Session(engine) as session:
        assert session.get(Keyed, 1).data.n == session.get(Keyed, 2).data.n


def kill(engine, connection):
    """Have the server end a connection, and return once it is gone."""
    postgresql = engine.dialect.name == "postgresql"
    raw = connection.connection.dbapi_connection
    pid = raw.info.backend_pid if postgresql else raw.thread_id()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
        other.execute(
            text(f"SELECT pg_terminate_backend({pid})" if postgresql else f"KILL CONNECTION {pid}")
        )
        alive = (
            f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
            if postgresql
            else f"SELECT count(*) FROM information_schema.processlist WHERE id = {pid}"
        )
        for _ in range(3000):
            if not other.scalar(text(alive)):
                return
            threading.Event().wait(0.01)
    pytest.fail("the server does not end the connection")


@pytest.fixture
def quiet(caplog):
    """Pass over what the pool says of connections that are killed."""
    with (
        caplog.at_level(logging.CRITICAL, "sqlalchemy.pool"),
        caplog.at_level(logging.WARNING, "sqla_datastore"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        warnings.filterwarnings("ignore", "Session's state has been changed|transaction already")
        yield caplog


PHASES = {"prepare": "do_prepare_twophase", "commit": "do_commit_twophase",
          "rollback": "do_rollback_twophase"}  # fmt: skip


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("phase", list(PHASES))
def test_a_connection_lost_in_a_phase(engine, stored, exact, quiet, phase, when, outcome):
    """Whether it was executed nobody can tell; what recovery decides is right in any case."""
    armed = []
    original = getattr(engine.dialect, PHASES[phase])

    def lossy(connection, *args, **kwargs):
        if not armed:
            return original(connection, *args, **kwargs)
        armed.clear()
        if when == "before":
            kill(engine, connection)
            return original(connection, *args, **kwargs)
        original(connection, *args, **kwargs)
        kill(engine, connection)
        # the driver's own error
        connection.connection.cursor().execute("SELECT 1")
        return pytest.fail("the connection is still there")

    setattr(engine.dialect, PHASES[phase], lossy)
    three_rows(engine)
    old = stored.files()
    session = Session(engine, twophase=True)
    change(session)
    if phase != "prepare":
        session.prepare()
    armed.append(phase)
    with pytest.raises(DBAPIError):
        getattr(session, phase)()
    assert not armed
    with contextlib.suppress(DBAPIError):
        session.rollback()
    session.close()
    assert_whole(engine, stored)
    prepared = resolve(engine, outcome)
    done = {("prepare", "before"), ("commit", "after"), ("rollback", "after")}
    assert prepared == ((phase, when) not in done)
    committed = outcome == "commit" if prepared else phase == "commit"
    assert_whole(engine, stored)
    assert found(engine) == (AFTER if committed else BEFORE)
    assert old <= stored.files() or committed
    assert "nobody can tell" in quiet.text
    collect(engine)
    exact(3)


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
@pytest.mark.parametrize("how", ["kill", "invalidate"])
def test_a_connection_lost_after_prepare(engine, stored, exact, quiet, how, outcome):
    three_rows(engine)
    connection = engine.connect()
    transaction = connection.begin_twophase(f"lost_{uuid.uuid4().hex}")
    connection.execute(insert(Keyed).values(id=4, data=value(4)))
    connection.execute(update(Keyed).where(Keyed.id == 1).values(data=value(10)))
    connection.execute(delete(Keyed).where(Keyed.id == 2))
    transaction.prepare()
    files = stored.files()
    assert len(files) == 5
    if how == "kill":
        kill(engine, connection)
        with pytest.raises(DBAPIError):
            transaction.commit()
    else:
        connection.invalidate()
    connection.close()
    assert stored.files() == files
    assert resolve(engine, outcome) == 1
    assert stored.files() == files
    assert found(engine) == (AFTER if outcome == "commit" else BEFORE)
    collect(engine)
    exact(3)


# -- recovery by another process -------------------------------------------------------------------

PREPARES = """
import os, signal, sys
from support.models import Keyed
from support.databases import make_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy import select
from sqla_datastore import DataStore

url, base, xid, end = sys.argv[1:]
engine = make_engine(url, base)
with engine.connect() as connection:
    transaction = connection.begin_twophase(xid)
    with Session(connection, join_transaction_mode="control_fully") as session:
        session.add(Keyed(id=4, data=DataStore(n=4, list=[4] * 3)))
        session.get(Keyed, 1).data = DataStore(n=10, list=[10] * 3)
        session.delete(session.get(Keyed, 2))
        session.flush()
        transaction.prepare()
        print("prepared", flush=True)
        if end == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
"""


def prepare_in_a_process(engine, stored, end):
    """Have another process prepare the changes and die; return the transaction's name."""
    xid = f"process_{uuid.uuid4().hex}"
    engine.xids.append(xid)
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", PREPARES, url, str(stored.base), xid, end],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "prepared\n", done.stderr
    assert done.returncode == (-signal.SIGKILL if end == "SIGKILL" else 0)
    return xid


@pytest.mark.slow
@pytest.mark.parametrize(("outcome", "end"), [("commit", "SIGKILL"), ("rollback", "exit")])
def test_another_process_recovers_what_a_dead_one_prepared(engine, stored, exact, outcome, end):
    three_rows(engine)
    old = stored.files()
    xid = prepare_in_a_process(engine, stored, end)
    everything = stored.files()
    assert len(everything - old) == 2
    assert found(engine) == BEFORE
    with engine.connect() as connection:
        assert xid in recoverable(connection)
    end_prepared(engine, xid, outcome)
    assert stored.files() == everything, "recovery knows of no ledger, so it removes nothing"
    assert found(engine) == (AFTER if outcome == "commit" else BEFORE)
    report = gc(engine, Base.metadata, grace_seconds=0)
    assert report.orphans.count == 2
    collect(engine)
    exact(3)


@pytest.mark.slow
def test_the_grace_period_protects_what_is_prepared(engine, stored, exact):
    """Its rows cannot be seen, so without a grace period its objects look like orphans."""
    three_rows(engine)
    old = stored.files()
    prepare_in_a_process(engine, stored, "exit")
    everything = stored.files()
    assert gc(engine, Base.metadata, apply=True).removed == 0
    assert stored.files() == everything
    report = gc(engine, Base.metadata, grace_seconds=0)
    assert {each.path for each in report.orphans} == everything - old
    assert resolve(engine, "commit") == 1
    assert found(engine) == AFTER
    collect(engine)
    exact(3)


# -- several databases -----------------------------------------------------------------------------


@pytest.fixture(params=["same kind", "other kind"])
def second(request, server_url, database_url, tmp_path):
    """An engine on another database, with a storage of its own."""
    kinds = ["postgresql", "mariadb"]
    kind = kinds["postgresql" not in database_url]
    if request.param == "other kind":
        kinds.remove(kind)
        kind = kinds[0]
    storage = Watched(tmp_path / "second")
    server = preparing_server(server_url, kind)
    with private_database(server) as url, preparing(url, storage) as engine:
        yield engine
        leave_nothing(engine)


class One(DeclarativeBase):
    pass


class Two(DeclarativeBase):
    pass


class First(One):
    __tablename__ = "firsts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Second(Two):
    """Has folders of its own, so that its storage can be that of the other database."""

    __tablename__ = "seconds"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


@pytest.fixture(params=["one storage", "two storages"])
def both(request, engine, second, storage):
    """Two engines by the class that has its rows there."""
    if request.param == "one storage":
        bind_storage(second, storage)
    engines = {First: engine, Second: second}
    for row, each in engines.items():
        row.metadata.create_all(each)
        with Session(each) as session:
            session.add_all([row(id=n, data=value(n)) for n in (1, 2)])
            session.commit()
    yield engines
    for row, each in engines.items():
        resolve(each, "rollback")
        with each.begin() as connection:
            connection.execute(delete(row.__table__))


def change_both(both):
    session = Session(binds=both, twophase=True)
    for row in both:
        session.add(row(id=3, data=value(3)))
        session.get(row, 1).data = value(10)
        session.delete(session.get(row, 2))
    session.flush()
    return session


def assert_both(both, stored, tmp_path, expected):
    """Assert what the rows hold, and that all storages together are exact."""
    urls = []
    for row, engine in both.items():
        assert not pending(engine)
        with Session(engine) as session:
            assert {each.id: each.data.n for each in session.query(row)} == expected
        urls += urls_of(engine, row.metadata)
    files = {
        str(path.relative_to(base))
        for base in (stored.base, tmp_path / "second")
        for path in base.rglob("*")
        if path.is_file()
    }
    assert files == {ObjectURL.parse(url).path for url in urls}


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_two_databases_end_together(both, stored, tmp_path, ending):
    session = change_both(both)
    session.prepare()
    getattr(session, ending)()
    session.close()
    committed = {1: 10, 3: 3}
    assert_both(both, stored, tmp_path, committed if ending == "commit" else {1: 1, 2: 2})


@pytest.mark.parametrize("fails", [First, Second])
@pytest.mark.parametrize("why", ["storage", "lost connection"])
def test_one_of_two_databases_fails_to_prepare(both, stored, tmp_path, fails, why, quiet):
    """Whichever was first: both are as before, and the retry is whole."""
    engine = both[fails]
    original = engine.dialect.do_prepare_twophase
    armed = [True]

    def do_prepare_twophase(connection, xid):
        if armed:
            armed.clear()
            if why == "lost connection":
                kill(engine, connection)
            else:
                raise StorageError("no space left")
        original(connection, xid)

    session = change_both(both)
    engine.dialect.do_prepare_twophase = do_prepare_twophase
    with pytest.raises((DBAPIError, StorageError)):
        session.commit()
    with contextlib.suppress(DBAPIError):
        session.rollback()
    session.close()
    for row, each in both.items():
        with Session(each) as reading:
            assert {found.id: found.data.n for found in reading.query(row)} == {1: 1, 2: 2}
    session = change_both(both)
    session.commit()
    session.close()
    for row, each in both.items():
        gc(each, row.metadata, apply=True, grace_seconds=0)
    assert_both(both, stored, tmp_path, {1: 10, 3: 3})


def test_the_second_of_two_databases_is_lost_at_its_commit(both, stored, tmp_path, quiet):
    """Both are prepared, so recovery commits what is left; nothing dangles in between."""
    sent = []
    for each in both.values():
        each.dialect.do_commit_twophase = losing_the_second(each, sent)
    session = change_both(both)
    session.prepare()
    with pytest.raises(DBAPIError):
        session.commit()
    with contextlib.suppress(DBAPIError):
        session.rollback()
    session.close()
    assert len(sent) == 2
    assert sum(resolve(each, "commit") for each in both.values()) == 1
    for row, each in both.items():
        gc(each, row.metadata, apply=True, grace_seconds=0)
    assert_both(both, stored, tmp_path, {1: 10, 3: 3})


def losing_the_second(engine, sent):
    original = engine.dialect.do_commit_twophase

    def do_commit_twophase(connection, xid, *args, **kwargs):
        sent.append(xid)
        if len(sent) == 2:
            kill(engine, connection)
        return original(connection, xid, *args, **kwargs)

    return do_commit_twophase


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_preparing_a_failed_transaction_is_a_rollback(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            put(connection, 2)
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT 1 / 0"))
            # some drivers say nothing, and then there is nothing to commit
            with contextlib.suppress(DBAPIError):
                transaction.prepare()
            with contextlib.suppress(DBAPIError):
                transaction.rollback()
            connection.invalidate()

    run(driver, scenario)
    run.exact(1)
