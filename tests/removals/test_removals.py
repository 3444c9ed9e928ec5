"""Durable removals: what a commit supersedes is in the database until it is gone."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine
from support.drivers import ALL, keyed
from support.drivers import metadata as metadata_without
from support.exactness import assert_exact, delete_rows, tables_of, urls_of
from support.watched import Watched

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    StorageError,
    bind_storage,
    enable_removals,
)
from sqla_datastore.maintenance import check, drain, gc
from sqla_datastore.removals.table import removals_of
from sqla_datastore.storage.local import LocalStorage


class Base(DeclarativeBase):
    pass


class Result(Base):
    __tablename__ = "results"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class KeptBase(DeclarativeBase):
    pass


class Kept(KeptBase):
    __tablename__ = "kept_results"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


noted = enable_removals(Base.metadata)
kept = enable_removals(KeptBase.metadata, keep_seconds=3600)


@contextmanager
def make_other(engine, base=None):
    """Give another engine, as another process has one."""
    other = make_engine(engine.url.render_as_string(hide_password=False), base)
    try:
        yield other
    finally:
        other.dispose()


def note(engine, *urls, source="results.data"):
    """Write removals down as a trigger would."""
    with engine.begin() as connection:
        rows = [{"url": url, "source": source, "superseded_at": 0} for url in urls]
        connection.execute(insert(noted), rows)


def age(engine, table, seconds):
    """Have removals been written down earlier."""
    with engine.begin() as connection:
        earlier = table.c.superseded_at - seconds
        connection.execute(update(table).values(superseded_at=earlier))


@pytest.fixture(scope="module")
def model_metadata():
    return Base.metadata


@pytest.fixture(scope="module")
def kept_schema(database_url):
    with tables_of(KeptBase.metadata, database_url):
        yield


@pytest.fixture(autouse=True)
def kept_tables(tables, kept_schema, engine):
    """Have the tables of both bases, and empty them after the test."""
    yield
    delete_rows(engine, KeptBase.metadata)


@pytest.fixture
def exact(exact, engine):
    """Assert also how many removals wait."""

    def exact_and_waiting(count=None, *, waiting=0):
        exact(count)
        assert pending(engine) == waiting

    return exact_and_waiting


def pending(engine, table=noted):
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table))


def add(engine, *keys, cls=Result):
    with Session(engine) as session:
        session.add_all(cls(id=key, data=DataStore(n=key)) for key in keys)
        session.commit()


def replace(engine, key=1, cls=Result):
    with Session(engine) as session:
        session.get(cls, key).data = DataStore(n=-key)
        session.commit()


@contextmanager
def storage_doing(engine, stored, at):
    """Tell a callable before and after everything that the storage does."""
    bind_storage(engine, Watched(LocalStorage(stored.base), at))
    try:
        yield
    finally:
        bind_storage(engine, stored.base)


class Killed(BaseException):
    """Stands for the end of the process: nobody handles it."""


def killed_before_removal(call, moment):
    if (call, moment) == ("remove", "before"):
        raise Killed


def failing_removal(call, moment):
    if (call, moment) == ("remove", "before"):
        raise StorageError("no permission", url="file:///")


# -- the transaction -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_removals_are_committed_with_the_transaction_and_struck_off(engine, stored, exact, ending):
    add(engine, 1, 2)
    seen = []
    with make_other(engine) as other:

        def look(call, moment):
            if (call, moment) == ("remove", "before"):
                seen.append(pending(other))

        with storage_doing(engine, stored, look), Session(engine) as session:
            session.get(Result, 1).data = DataStore(n=5)
            session.delete(session.get(Result, 2))
            session.flush()
            getattr(session, ending)()
    assert seen == ([2] if ending == "commit" else [0])
    exact(1 if ending == "commit" else 2)


def test_what_a_savepoint_wrote_and_a_core_statement_replaced(engine, exact):
    add(engine, 1, 2)
    with engine.begin() as connection:
        savepoint = connection.begin_nested()
        connection.execute(insert(Result).values(id=3, data=DataStore(n=3)))
        savepoint.rollback()
        connection.execute(update(Result).where(Result.id == 1).values(data=DataStore(n=4)))
        connection.execute(delete(Result).where(Result.id == 2))
    exact(1)


def test_a_value_goes_with_its_nested_ones(engine, stored, exact):
    with Session(engine) as session:
        session.add(Result(id=1, data=DataStore(inner=DataStore(n=1), other=DataStore(n=2))))
        session.commit()
    with storage_doing(engine, stored, killed_before_removal), pytest.raises(Killed):
        replace(engine)
    assert pending(engine) == 1
    assert drain(engine, Base.metadata).carried_out == 1
    exact(1)


@pytest.mark.parametrize("driver", ALL)
def test_every_driver_strikes_off(run, driver):
    own = MetaData()
    table, removed = keyed.to_metadata(own), enable_removals(own)

    def scenario(engine):
        own.drop_all(engine, [removed])
        own.create_all(engine)
        with engine.begin() as connection:
            connection.execute(update(table).values(data=DataStore(n=2)))
            connection.execute(insert(table).values(id=2, data=DataStore(n=2)))
        with Session(engine) as session:
            session.execute(delete(table).where(table.c.id == 2))
            session.commit()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(update(table).values(data=DataStore(n=3)))
            left = connection.scalar(select(func.count()).select_from(removed))
        own.drop_all(engine, [removed])
        return left

    assert run(driver, scenario) == 0
    run.exact(1)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000", "pymysql", "asyncpg"])
def test_two_phase(run, driver):
    own = MetaData()
    table, removed = keyed.to_metadata(own), enable_removals(own)

    def scenario(engine):
        own.drop_all(engine, [removed])
        own.create_all(engine)
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            connection.execute(update(table).values(data=DataStore(n=2)))
            transaction.prepare()
            transaction.commit()
            left = connection.scalar(select(func.count()).select_from(removed))
        own.drop_all(engine, [removed])
        return left

    assert run(driver, scenario) == 0
    run.exact(1)


# -- what is left is carried out -------------------------------------------------------------------


@pytest.mark.parametrize("by", ["drain", "next process"])
def test_what_a_killed_process_left_is_carried_out(engine, stored, exact, by):
    add(engine, 1, 2)
    with storage_doing(engine, stored, killed_before_removal), pytest.raises(Killed):
        replace(engine)
    assert len(stored.files()) == 3
    assert pending(engine) == 1
    if by == "drain":
        report = drain(engine, Base.metadata)
        assert (report.carried_out, report.is_clean) == (1, True)
    else:
        with make_other(engine, stored.base) as other:
            replace(other, 2)
    exact(2)


def test_a_removal_that_fails_is_carried_out_later(engine, stored, exact, caplog):
    add(engine, 1)
    with storage_doing(engine, stored, failing_removal):
        replace(engine)
        assert "could not remove 1 objects" in caplog.text
        report = drain(engine, Base.metadata)
        assert (report.carried_out, report.is_clean) == (0, False)
        assert "no permission" in report.failures[0]
        assert pending(engine) == 1
    assert drain(engine, Base.metadata).carried_out == 1
    exact(1)


def test_what_a_commit_of_unknown_outcome_superseded_goes_if_it_happened(engine, stored, exact):
    add(engine, 1)
    with make_other(engine, stored.base) as other:
        original = other.dialect.do_commit

        def committed_without_an_answer(connection):
            original(connection)
            raise TimeoutError

        other.dialect.do_commit = committed_without_an_answer
        with pytest.raises(TimeoutError):
            replace(other)
    assert len(stored.files()) == 2
    assert drain(engine, Base.metadata).carried_out == 1
    exact(1)


@pytest.mark.parametrize("message", ["the network is gone", ""])
def test_a_failure_to_strike_off_is_quiet_and_made_good(engine, exact, caplog, message):
    add(engine, 1)

    def fail(_connection, _cursor, statement, *_):
        if statement.startswith("DELETE FROM sqla_datastore_removals"):
            raise RuntimeError(message)

    event.listen(engine, "before_cursor_execute", fail)
    try:
        replace(engine)
    finally:
        event.remove(engine, "before_cursor_execute", fail)
    assert "removals wait for the next look" in caplog.text
    exact(1, waiting=1)
    assert drain(engine, Base.metadata).carried_out == 1
    exact(1)


def test_many_are_carried_out_in_batches_and_after_an_interruption(engine, stored, monkeypatch):
    monkeypatch.setattr("sqla_datastore.dml.dialects._BATCHES", {})
    monkeypatch.setattr("sqla_datastore.dml.dialects.CHUNK", 3)
    add(engine, *range(20))
    killed = storage_doing(engine, stored, killed_before_removal)
    with killed, pytest.raises(Killed), engine.begin() as connection:
        connection.execute(delete(Result).where(Result.id > 0))

    def interrupted(_call, moment):
        if moment == "after" and pending(engine) < 13:
            raise KeyboardInterrupt

    with storage_doing(engine, stored, interrupted), pytest.raises(KeyboardInterrupt):
        drain(engine, Base.metadata)
    assert 0 < pending(engine) < 19
    told = []
    left = pending(engine)
    report = drain(engine, Base.metadata, progress=lambda *step: told.append(step))
    assert report.carried_out == left
    assert told[-1] == ("removing", left, left)
    assert_exact(engine, Base.metadata, stored, 1)


# -- the grace period ------------------------------------------------------------------------------


def test_kept_objects_serve_older_readers_and_are_neither_orphans_nor_garbage(engine, stored):
    add(engine, 1, cls=Kept)
    with Session(engine) as reader:
        older = reader.get(Kept, 1).data
    replace(engine, cls=Kept)
    assert older.n == 1
    report = check(engine, KeptBase.metadata)
    assert (report.is_clean, report.pending) == (True, 1)
    report = gc(engine, KeptBase.metadata, apply=True, grace_seconds=0)
    assert (report.removed, report.pending) == (0, 1)
    report = drain(engine, KeptBase.metadata)
    assert (report.carried_out, report.waiting) == (0, 1)
    assert len(stored.files()) == 2
    report = drain(engine, KeptBase.metadata, keep_seconds=0)
    assert (report.carried_out, report.waiting) == (1, 0)
    assert_exact(engine, KeptBase.metadata, stored, 1)


def test_kept_objects_go_with_a_later_commit_once_they_are_due(engine, stored):
    add(engine, 1, 2, cls=Kept)
    replace(engine, 1, cls=Kept)
    age(engine, kept, 3601)
    with make_other(engine, stored.base) as other:
        replace(other, 2, cls=Kept)
    assert pending(engine, kept) == 1  # of the second one
    assert len(stored.files()) == 3


def test_a_process_looks_once_a_minute(engine, stored):
    add(engine, 1, cls=Kept)
    looks = []

    def note(_connection, _cursor, statement, *_):
        if statement.startswith("SELECT sqla_datastore_removals"):
            looks.append(statement)

    with make_other(engine, stored.base) as other:
        event.listen(other, "before_cursor_execute", note)
        for _ in range(5):
            replace(other, cls=Kept)
        assert len(looks) == 1


# -- what is not removed ---------------------------------------------------------------------------


def test_an_object_that_a_row_holds_again_stays(engine, stored, exact):
    add(engine, 1)
    [url] = urls_of(engine, Base.metadata)
    note(engine, url)
    report = drain(engine, Base.metadata)
    assert (report.carried_out, report.referenced) == (0, 1)
    exact(1)


@pytest.mark.parametrize("managed", [False, True])
def test_what_is_not_of_this_librarys_rows_stays(engine, stored, managed):
    if managed:
        url = DataStoreIO.serialize_write(DataStore(n=1), "exports", stored.base).url
    else:
        (stored.base / "results").mkdir()
        (stored.base / "results" / "notes.txt").write_text("mine")
        url = "file:///results/notes.txt"
    before = stored.files()
    note(engine, url, "file:///../outside.zip", "s3:///results/1/a.zip", "no url")
    assert drain(engine, Base.metadata).foreign == 4
    assert stored.files() == before
    assert pending(engine) == 0


# -- refusals --------------------------------------------------------------------------------------


def test_without_the_table_nothing_is_committed(tmp_path, stored):
    engine = make_engine(f"sqlite:///{tmp_path / 'other.db'}", stored.base)
    Base.metadata.create_all(engine, [Result.__table__])
    add(engine, 1)
    with pytest.raises(DatabaseError, match="sqla_datastore_removals") as raised:
        replace(engine)
    assert "alembic upgrade head" in raised.value.__notes__[0]
    with Session(engine) as session:
        assert session.get(Result, 1).data.n == 1
    assert len(stored.files()) == 1
    with pytest.raises(ConfigurationError, match="lacks the table 'sqla_datastore_removals'"):
        drain(engine, Base.metadata)
    engine.dispose()


def test_drain_needs_enabled_removals(engine):
    with pytest.raises(ConfigurationError, match="enable_removals"):
        drain(engine, metadata_without)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "3600", timedelta(hours=1)])
def test_a_period_that_is_none_is_refused(engine, seconds):
    with pytest.raises(ConfigurationError, match="keep_seconds"):
        enable_removals(MetaData(), keep_seconds=seconds)
    with pytest.raises(ConfigurationError, match="keep_seconds"):
        drain(engine, Base.metadata, keep_seconds=seconds)


def test_enabling_twice_is_once():
    metadata = MetaData()
    assert enable_removals(metadata) is enable_removals(metadata)
    with pytest.raises(ConfigurationError, match="already"):
        enable_removals(metadata, keep_seconds=1)


# -- Alembic ---------------------------------------------------------------------------------------


def differences(engine):
    with engine.connect() as connection:
        opts = {"include_name": lambda name, kind, _: kind != "table" or name == noted.name}
        context = MigrationContext.configure(connection, opts=opts)
        metadata = MetaData()
        enable_removals(metadata)
        return compare_metadata(context, metadata)


def test_autogenerate_creates_the_table_and_is_content_with_it(engine):
    assert differences(engine) == []
    noted.drop(engine)
    try:
        kinds = [each[0] for each in differences(engine)]
    finally:
        noted.create(engine)
    assert kinds == ["add_table", "add_index"]


def test_models_without_removals_in_another_storage(engine, stored, tmp_path, exact):
    elsewhere = tmp_path / "elsewhere"
    metadata = MetaData()
    table = Table(
        "neighbours",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("data", DataStoreType(str(elsewhere))),
    )
    metadata.create_all(engine)
    try:
        add(engine, 1, cls=Kept)
        with engine.begin() as connection:
            connection.execute(insert(table).values(id=1, data=DataStore(n=1)))
        with engine.begin() as connection:
            connection.execute(update(Kept).values(data=DataStore(n=2)))
            connection.execute(update(table).values(data=DataStore(n=2)))
        assert pending(engine, kept) == 1
        assert len(stored.files()) == 2
        assert len(list(elsewhere.rglob("*.zip"))) == 1
    finally:
        metadata.drop_all(engine)


# -- what goes wrong while removals are carried out ------------------------------------------------


class Stubborn(LocalStorage):
    """Cannot remove one object, whose path it is told."""

    def remove(self, paths):
        paths = list(paths)
        super().remove(path for path in paths if path != self.stays)
        if self.stays in paths:
            raise StorageError("busy", url=f"file:///{self.stays}")


def test_one_object_that_cannot_be_removed_is_in_nobodys_way(engine, stored, monkeypatch, caplog):
    monkeypatch.setattr("sqla_datastore.removals.due.LOOK_ROWS", 2)
    monkeypatch.setattr("sqla_datastore.removals.due.LOOK_SECONDS", 0)
    add(engine, *range(5))
    urls = urls_of(engine, Base.metadata)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM results"))
    note(engine, *urls)
    storage = Stubborn(stored.base)
    storage.stays = urls[0].removeprefix("file:///")
    bind_storage(engine, storage)
    for key in (10, 11):
        add(engine, key)
    assert "busy" in caplog.text
    assert pending(engine) == 2  # the one that stays, and the fifth
    report = drain(engine, Base.metadata)
    assert (report.carried_out, report.is_clean) == (1, False)
    bind_storage(engine, stored.base)
    assert drain(engine, Base.metadata).carried_out == 1
    assert_exact(engine, Base.metadata, stored, 2)


def test_a_base_that_is_not_mounted_is_not_an_empty_one(engine, stored, exact):
    add(engine, 1, 2)
    with storage_doing(engine, stored, killed_before_removal), pytest.raises(Killed):
        replace(engine)
    away = stored.base.rename(stored.base.with_name("unmounted"))
    with pytest.raises(ConfigurationError, match="does not exist"):
        drain(engine, Base.metadata)
    with make_other(engine, stored.base) as other, other.begin() as connection:
        connection.execute(delete(Result).where(Result.id == 2))
    assert pending(engine) == 2
    away.rename(stored.base)
    assert drain(engine, Base.metadata).carried_out == 2
    exact(1)


def test_two_processes_that_strike_off_at_once(engine, stored, exact):
    add(engine, 1, 2)
    first, second = urls_of(engine, Base.metadata)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM results WHERE id = 1"))
    note(engine, first)

    def another_drain(call, moment):
        if (call, moment) == ("remove", "before"):
            bind_storage(engine, stored.base)
            assert drain(engine, Base.metadata).carried_out == 1
            with engine.begin() as connection:
                connection.execute(text("DELETE FROM results WHERE id = 2"))
            note(engine, second)

    # in its stock mode SQLite holds no lock between a SELECT and what follows
    other = create_engine(engine.url)
    with storage_doing(other, stored, another_drain):
        drain(other, Base.metadata)
    other.dispose()
    assert drain(engine, Base.metadata).carried_out == 1
    exact(0)


def test_what_may_be_rolled_back_yet_is_not_carried_out(engine, stored, exact):
    if engine.dialect.name not in ("mysql", "mariadb"):
        pytest.skip("only MySQL and MariaDB read uncommitted rows")
    add(engine, 1, 2)
    url = next(url for url in urls_of(engine, Base.metadata) if "/1/" in url)
    dirty = engine.execution_options(isolation_level="READ UNCOMMITTED")
    with engine.connect() as connection:
        connection.execute(text("UPDATE results SET data = NULL WHERE id = 1"))
        row = {"url": url, "source": "results.data", "superseded_at": 0}
        connection.execute(insert(noted), [row])
        assert drain(dirty, Base.metadata).carried_out == 0
        with make_other(engine, stored.base) as other:
            replace(other.execution_options(isolation_level="READ UNCOMMITTED"), 2)
        connection.rollback()
    exact(2)


def test_a_commit_does_not_wait_for_another_writer_on_sqlite(engine, stored, exact):
    if engine.dialect.name != "sqlite":
        pytest.skip("only SQLite has one writer")
    add(engine, 1)
    with make_other(engine) as other, other.connect() as connection:

        def block(call, moment):
            if (call, moment) == ("remove", "after"):
                connection.execute(text("INSERT INTO results (id) VALUES (7)"))

        before = time.monotonic()
        with storage_doing(engine, stored, block):
            replace(engine)
        assert time.monotonic() - before < 4  # of the five seconds that sqlite3 waits
        connection.rollback()
    assert pending(engine) == 1
    assert drain(engine, Base.metadata).carried_out == 1
    exact(1)


# -- several models, schemas, and kinds of names ---------------------------------------------------


def test_models_that_share_the_table_leave_each_other_alone(engine, stored):
    other = MetaData()
    table = Table(
        "neighbours",
        other,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("data", DataStoreType()),
    )
    assert enable_removals(other, keep_seconds=60).name == noted.name
    other.create_all(engine)
    try:
        with engine.begin() as connection:
            connection.execute(insert(table).values(id=1, data=DataStore(n=1)))
        [url] = urls_of(engine, other)
        note(engine, url, source="neighbours.data")
        report = drain(engine, Base.metadata)
        assert (report.carried_out, report.others) == (0, 1)
        assert len(stored.files()) == 1
        assert drain(engine, other, keep_seconds=0).referenced == 1
        assert_exact(engine, other, stored, 1)
    finally:
        table.drop(engine)


def test_each_tenant_is_looked_after(tmp_path, stored):
    engine = make_engine(f"sqlite:///{tmp_path / 'main.db'}", stored.base)
    schemas = ("one", "two")

    @event.listens_for(engine, "connect")
    def attach(connection, _record):
        for schema in schemas:
            connection.execute(f"ATTACH '{tmp_path / schema}.db' AS {schema}")

    tenants = [engine.execution_options(schema_translate_map={None: schema}) for schema in schemas]
    for tenant in tenants:
        Base.metadata.create_all(tenant)
        add(tenant, 1)
        with storage_doing(tenant, stored, killed_before_removal), pytest.raises(Killed):
            replace(tenant)
    removals_of(Base.metadata).looks.clear()
    for tenant in tenants:
        add(tenant, 2)
        assert pending(tenant) == 0
    assert len(stored.files()) == 4
    engine.dispose()


def test_only_what_others_can_have_seen_is_kept(engine, stored):
    add(engine, 1, cls=Kept)
    with Session(engine) as session:
        row = session.get(Kept, 1)
        for n in range(3):
            row.data = DataStore(n=n)
            session.flush()
        savepoint = session.begin_nested()
        row.data = DataStore(n=9)
        session.flush()
        savepoint.rollback()
        session.commit()
    assert len(stored.files()) == 2
    assert pending(engine, kept) == 1


def test_a_foreign_file_in_a_rows_folder_goes_with_the_row(engine, stored, exact):
    add(engine, 1, cls=Kept)
    [folder] = stored.base.glob("kept_results/1")
    (folder / ("x" * 200)).write_text("long")
    deep = folder.joinpath(*["y" * 150] * 8)
    deep.mkdir(parents=True)
    (deep / "notes.txt").write_text("deep")
    with Session(engine) as session:
        session.delete(session.get(Kept, 1))
        session.commit()
    assert pending(engine, kept) == 1
    assert len(stored.files()) == 1


def test_a_period_holds_for_what_a_failing_statement_did_under_autocommit(engine, stored):
    add(engine, 1, 2, cls=Kept)
    before = set(urls_of(engine, KeptBase.metadata))
    rows = [{"key": 1, "to": 1, "data": DataStore(n=5)}, {"key": 2, "to": 1, "data": DataStore()}]
    values = {"id": bindparam("to"), "data": bindparam("data")}
    statement = update(Kept.__table__).where(Kept.id == bindparam("key")).values(values)
    # without the events that have SQLite begin a transaction all the same
    plain = create_engine(engine.url)
    bind_storage(plain, stored.base)
    with (
        plain.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(IntegrityError),
    ):
        connection.execute(statement, rows)
    plain.dispose()
    replaced = before.difference(urls_of(engine, KeptBase.metadata))
    assert pending(engine, kept) == len(replaced)
    assert len(stored.files()) == 2 + len(replaced)


def test_a_table_that_was_reflected_before(engine):
    metadata = MetaData()
    metadata.reflect(engine, only=[noted.name])
    table = enable_removals(metadata)
    assert metadata.tables[noted.name] is table
