"""Durable removals: what a commit supersedes is in the database until it is gone."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from conftest import make_engine
from exactness import assert_exact, delete_rows, tables_of, urls_of
from sqlalchemy import Column, Integer, MetaData, Table, delete, event, func, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from test_endings import ALL, keyed
from test_endings import metadata as metadata_without
from test_endings import run as run
from test_endings import server as server
from watched import Watched

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
    __tablename__ = "kept"
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


def note(engine, url):
    with engine.begin() as connection:
        connection.execute(insert(noted).values(url=url, superseded_at=0))


def age(engine, table, seconds):
    """Have removals been written down earlier."""
    with engine.begin() as connection:
        earlier = table.c.superseded_at - seconds
        connection.execute(update(table).values(superseded_at=earlier))


@pytest.fixture(scope="module", autouse=True)
def schema(database_url):
    with tables_of(Base.metadata, database_url), tables_of(KeptBase.metadata, database_url):
        yield


@pytest.fixture(autouse=True)
def empty(engine, schema):
    yield
    delete_rows(engine, Base.metadata)
    delete_rows(engine, KeptBase.metadata)


@pytest.fixture
def exact(engine, stored):
    def exact(count=None, *, waiting=0):
        assert_exact(engine, Base.metadata, stored, count)
        assert pending(engine) == waiting

    return exact


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


def test_a_failure_to_strike_off_is_quiet_and_made_good(engine, exact, caplog):
    add(engine, 1)

    def fail(_connection, _cursor, statement, *_):
        if statement.startswith("DELETE FROM sqla_datastore_removals"):
            raise RuntimeError("the network is gone")

    event.listen(engine, "before_cursor_execute", fail)
    try:
        replace(engine)
    finally:
        event.remove(engine, "before_cursor_execute", fail)
    assert "could not be struck off" in caplog.text
    exact(1, waiting=1)
    assert drain(engine, Base.metadata).carried_out == 1
    exact(1)


def test_many_are_carried_out_in_batches_and_after_an_interruption(engine, stored, monkeypatch):
    monkeypatch.setattr("sqla_datastore.rows._BATCHES", {})
    monkeypatch.setattr("sqla_datastore.rows.CHUNK", 3)
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
    for each in (url, "file:///../outside.zip", "s3:///results/1/a.zip", "no url"):
        note(engine, each)
    assert drain(engine, Base.metadata).foreign == 4
    assert stored.files() == before
    assert pending(engine) == 0


# -- refusals --------------------------------------------------------------------------------------


def test_without_the_table_nothing_is_committed(tmp_path, stored):
    engine = make_engine(f"sqlite:///{tmp_path / 'other.db'}", stored.base)
    Base.metadata.create_all(engine, [Result.__table__])
    add(engine, 1)
    with pytest.raises(OperationalError, match="sqla_datastore_removals"):
        replace(engine)
    with Session(engine) as session:
        assert session.get(Result, 1).data.n == 1
    assert len(stored.files()) == 1
    with pytest.raises(ConfigurationError, match="lacks the declared tables"):
        drain(engine, Base.metadata)
    engine.dispose()


def test_drain_needs_enabled_removals(engine):
    with pytest.raises(ConfigurationError, match="enable_removals"):
        drain(engine, metadata_without)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
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
        "others",
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
