"""Statements are seen where they run, and others pay nothing for it."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
import weakref
from contextlib import suppress

import pytest
from sqlalchemy import create_engine, delete, event, insert, select, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from support.drivers import ASYNC, KINDS, SYNC, keyed
from support.models import Keyed

from sqla_datastore import ConfigurationError, DataStore, RefusedStatementError, bind_storage
from sqla_datastore.engine.dialect_observer import observe


def _run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )


def test_no_listener_of_engines_is_left_to_statements_elsewhere():
    program = (
        "import sqla_datastore\n"
        "from sqlalchemy import create_engine, text\n"
        "from sqlalchemy.engine import Connection, Engine\n"
        "engine = create_engine('sqlite://')\n"
        "with engine.begin() as connection:\n"
        "    connection.execute(text('SELECT 1'))\n"
        "    print(engine._has_events, connection._has_events, engine.dialect._has_events)\n"
    )
    ended = _run(program)
    assert ended.stdout.split() == ["False"] * 3


def test_listeners_of_the_application_see_urls(engine, exact, stored):
    seen = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection, _cursor, _statement, parameters, _context, _many):
        seen.append(parameters)

    with Session(engine) as session, session.begin():
        session.add_all([Keyed(id=number, data=DataStore(n=number)) for number in (1, 2)])
    with engine.begin() as connection:
        connection.execute(insert(Keyed).values(id=3, data=DataStore(n=3)))
    exact(3)
    texts = repr(seen)
    assert all(f"'file:///{path}'" in texts for path in stored.files())


def test_an_engine_that_was_connected_before_the_import(tmp_path):
    program = f"""
import os
from sqlalchemy import create_engine, delete, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
engine = create_engine("sqlite:///{tmp_path}/old.db")
with engine.connect():
    pass
from sqla_datastore import DataStore, DataStoreType
class Base(DeclarativeBase): pass
class Row(Base):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType("{tmp_path}/objects"))
def files():
    return sum(len(names) for _, _, names in os.walk("{tmp_path}/objects"))
Base.metadata.create_all(engine)
with engine.begin() as connection:
    connection.execute(Row.__table__.insert().values(id=1, data=DataStore(n=1)))
print(files())
engine = create_engine("sqlite://", pool=engine.pool)
with Session(engine) as session, session.begin():
    session.execute(delete(Row))
print(files())
"""
    ended = _run(program)
    assert ended.stdout.split() == ["1", "0"]


@pytest.mark.parametrize("kind", [Session, Connection])
def test_a_locked_commit_under_the_recommended_begin(tmp_path, stored, caplog, kind):
    """The BEGIN that follows is no transaction control out of sight."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/locked.db", connect_args={"isolation_level": None, "timeout": 0}
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    bind_storage(engine, stored.base)
    Keyed.__table__.create(engine)
    reader = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM keyed").fetchone()
    with kind(engine) as first:
        first.execute(insert(Keyed).values(id=1, data=DataStore(n=1)))
        with pytest.raises(OperationalError, match="database is locked"):
            first.commit()
        # without it SQLAlchemy hands the connection to the next one as it is
        first.rollback()
    reader.execute("ROLLBACK")
    with kind(engine) as second:
        second.execute(insert(Keyed).values(id=2, data=DataStore(n=2)))
        second.commit()
        urls = set(second.scalars(text("SELECT data FROM keyed")))
    assert {f"file:///{path}" for path in stored.files()} == urls
    assert len(urls) == 1
    assert not caplog.records
    reader.close()
    engine.dispose()


# -- what applications and extensions do to engines ------------------------------------------------


@pytest.mark.parametrize("listened", ["its engine", "all engines", "an option"])
@pytest.mark.parametrize("driver", [*SYNC, *ASYNC])
def test_an_error_that_a_listener_keeps_from_others(run, driver, listened):
    """Databases without a failed state keep the rows of before the error."""

    def refuse(_context):
        raise RuntimeError("the application's own")

    def scenario(engine):
        target = {"its engine": engine, "all engines": Engine}.get(listened)
        if target:
            event.listen(target, "handle_error", refuse)
        options = {} if target else {"skip_user_error_events": True}
        try:
            with engine.connect().execution_options(**options) as connection:
                rows = [{"id": 2, "data": DataStore(n=2)}, {"id": 2, "data": DataStore(n=3)}]
                with pytest.raises(Exception, match=r"own|(?i:unique|duplicate)"):
                    connection.execute(insert(keyed), rows)
                with suppress(Exception):
                    connection.commit()
        finally:
            if target:
                event.remove(target, "handle_error", refuse)

    # it finds no row without its object
    run(driver, scenario)
    run.exact(len(run.rows))


CONTEXT = SQLiteDialect_pysqlite.execution_ctx_cls


def _engine_with(methods, tmp_path, stored):
    """Return an engine whose dialect was given an execution context of an extension's."""
    engine = create_engine(f"sqlite:///{tmp_path}/extended.db")
    engine.dialect.execution_ctx_cls = type("Extended", (CONTEXT,), methods)
    bind_storage(engine, stored.base)
    Keyed.__table__.create(engine)
    return engine


def _urls(engine):
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT data FROM keyed")))


@pytest.mark.parametrize("method", ["post_exec", "_setup_result_proxy"])
def test_a_statement_whose_result_cannot_be_had(tmp_path, stored, method):
    def fail(context):
        if context.isinsert:
            raise RuntimeError("not to be had")
        return getattr(CONTEXT, method)(context)

    engine = _engine_with({method: fail}, tmp_path, stored)
    with engine.connect() as connection:
        with pytest.raises(RuntimeError, match="not to be had"):
            connection.execute(insert(Keyed).values(id=1, data=DataStore(n=1)))
        # the row is there, its object was never written
        with pytest.raises(OSError, match="could not be written"):
            connection.commit()
    assert not _urls(engine)
    assert not stored.files()


def test_nothing_is_sent_for_a_statement_that_is_refused(tmp_path, stored):
    """SQL Server's own `pre_exec` turns IDENTITY_INSERT on, which only its statement turns off."""
    sent = []
    engine = _engine_with(
        {"pre_exec": lambda context: sent.append(context.statement)}, tmp_path, stored
    )
    sent.clear()
    with engine.connect() as connection:
        with pytest.raises(RefusedStatementError):
            connection.execute(
                insert(Keyed).from_select(["id", "data"], select(Keyed.id, Keyed.data))
            )
        assert not any(statement.startswith("INSERT") for statement in sent)
        connection.execute(insert(Keyed).values(id=1, data=DataStore(n=1)))
        assert any(statement.startswith("INSERT") for statement in sent)


def test_an_execution_context_that_is_put_in_place_of_ours(tmp_path, stored):
    engine = _engine_with({}, tmp_path, stored)
    with engine.begin() as connection:
        connection.execute(insert(Keyed).values(id=1, data=DataStore(n=1)))
    # SQLAlchemy has compiled the statement already, and the pool is connected
    engine.dialect.execution_ctx_cls = CONTEXT
    values = {"id": 2, "data": DataStore(n=2)}
    with pytest.raises(ConfigurationError, match="execution_ctx_cls"), engine.begin() as connection:
        connection.execute(insert(Keyed).values(values))
    with engine.begin() as connection:
        connection.execute(insert(Keyed).values(values))
    assert _urls(engine) == {f"file:///{path}" for path in stored.files()}
    assert len(stored.files()) == 2


def test_a_task_that_is_cancelled_while_rows_are_looked_at(run):
    """The error stays the cancellation, although the connection is gone and closes no cursor."""

    def cancel(_connection, _cursor, statement, *_):
        if statement.startswith("SELECT"):
            raise asyncio.CancelledError

    def scenario(engine):
        with engine.connect() as connection:
            event.listen(engine, "before_cursor_execute", cancel)
            with pytest.raises(asyncio.CancelledError):
                connection.execute(delete(keyed))
            event.remove(engine, "before_cursor_execute", cancel)

    run("aiosqlite", scenario)
    run.exact(1)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("read", ["all", "fetchone", "close"])
@pytest.mark.parametrize("driver", [name for name, kind in KINDS.items() if kind == "mariadb"])
@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
def test_rows_that_are_streamed_from_a_delete(run, driver, read, ending):
    """Until the last of them the driver has not heard that a transaction is open."""

    def scenario(engine):
        with engine.connect().execution_options(stream_results=True) as connection:
            result = connection.execute(delete(keyed).returning(keyed.c.id))
            getattr(result, read)()
            result.close()
            getattr(connection, ending)()

    run(driver, scenario)
    run.exact(0 if ending == "commit" else 1)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("read", ["all", "fetchone", "close"])
@pytest.mark.parametrize("driver", [*SYNC, *ASYNC])
@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
def test_rows_that_are_streamed_amid_a_transaction(run, driver, read, ending, caplog):
    def scenario(engine):
        with engine.connect() as connection:
            rows = [{"id": number, "data": DataStore(n=number)} for number in range(2, 6)]
            connection.execute(insert(keyed), rows)
            streamed = connection.execute(
                select(keyed.c.id), execution_options={"stream_results": True, "yield_per": 1}
            )
            getattr(streamed, read)()
            streamed.close()
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            getattr(connection, ending)()

    run(driver, scenario)
    run.exact(4 if ending == "commit" else 1)
    assert not caplog.records


def test_threads_that_use_a_dialect_for_the_first_time():
    """None of them goes on before all of the dialect is observed."""
    entered, passed = threading.Event(), threading.Event()

    class Slow(SQLiteDialect_pysqlite):
        @property
        def do_rollback(self):
            entered.set()
            passed.wait(0.3)
            return super().do_rollback

        @do_rollback.setter
        def do_rollback(self, method):
            self.seen = method

    dialect = Slow()
    first = threading.Thread(target=observe, args=(dialect,))
    first.start()
    entered.wait()
    observe(dialect)
    passed.set()
    assert dialect.seen
    assert dialect.execution_ctx_cls is not Slow.execution_ctx_cls
    first.join()


def test_engines_that_are_forgotten_leave_no_dialect(stored):
    dialects = []
    for _ in range(20):
        engine = create_engine("sqlite://")
        bind_storage(engine, stored.base)
        with engine.begin() as connection:
            Keyed.__table__.create(connection)
            connection.execute(insert(Keyed).values(id=1, data=None))
            connection.execute(delete(Keyed))
        dialects.append(weakref.ref(engine.dialect))
        engine.dispose()
    del engine, connection
    gc.collect()
    assert not any(dialect() for dialect in dialects)
