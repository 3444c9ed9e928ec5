"""P2 and P4 at the driver: what events do not tell, and what each driver does instead."""

from __future__ import annotations

import gc
import logging
import warnings

import pytest
from asyncpg import InternalClientError
from sqlalchemy import (
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from support.drivers import ALL, POSTGRESQL, SQLITE, SYNC, keyed, put

from sqla_datastore import DataStore, StorageError


@pytest.mark.parametrize("driver", ALL)
def test_commit_and_rollback(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(update(keyed).where(keyed.c.id == 1).values(data=DataStore(n=9)))
            connection.commit()
            put(connection, 3)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            connection.rollback()

    run(driver, scenario)
    run.exact(2)


@pytest.mark.parametrize("driver", ALL)
def test_savepoints(run, driver):
    def scenario(engine):
        with engine.connect() as connection, connection.begin():
            with connection.begin_nested():
                put(connection, 2)
            inner = connection.begin_nested()
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            put(connection, 3)
            inner.rollback()

    run(driver, scenario)
    run.exact(2)


@pytest.mark.parametrize("driver", ALL)
def test_a_savepoint_first_then_outer_rollback(run, driver):
    """Stock SQLite: releasing the outermost savepoint commits, the rollback undoes nothing."""

    def scenario(engine):
        with engine.connect() as connection:
            outer = connection.begin()
            with connection.begin_nested():
                put(connection, 2)
                connection.execute(delete(keyed).where(keyed.c.id == 1))
            outer.rollback()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_commit_of_a_failed_transaction_is_a_rollback(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT nothing FROM nowhere"))
            try:
                connection.commit()
            except DBAPIError:
                connection.rollback()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_a_failed_savepoint_then_commit(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            nested = connection.begin_nested()
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT nothing FROM nowhere"))
            nested.rollback()
            connection.commit()

    run(driver, scenario)
    run.exact(2)


@pytest.mark.parametrize("driver", SQLITE)
def test_insert_or_rollback(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            put(connection, 1)
            with pytest.raises(DBAPIError):
                connection.execute(text("INSERT OR ROLLBACK INTO keyed (id) VALUES (2)"))
            connection.commit()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", ALL)
@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("by_text", ["COMMIT", "ROLLBACK"])
def test_transaction_control_by_text_keeps_both_sides(run, driver, ending, by_text):
    """Nobody can tell, so at worst too much is kept; nothing may dangle."""

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            try:
                connection.execute(text(by_text))
                getattr(connection, ending)()
            except DBAPIError:
                connection.rollback()

    run(driver, scenario)


@pytest.mark.parametrize("driver", [*SYNC, "aiosqlite", "psycopg_async"])
def test_commit_by_hand_then_rollback(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            connection.connection.commit()
            connection.rollback()

    run(driver, scenario)


@pytest.mark.parametrize("driver", ALL)
def test_autocommit_isolation_level(run, driver):
    def scenario(engine):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            put(connection, 2)
            connection.execute(update(keyed).where(keyed.c.id == 1).values(data=DataStore(n=5)))
            with pytest.raises(DBAPIError):
                put(connection, 2)
            connection.execute(update(keyed).where(keyed.c.id == 99).values(data=DataStore(n=5)))
            put(connection, 3)
            connection.execute(delete(keyed).where(keyed.c.id == 3))
            connection.rollback()

    run(driver, scenario)
    # a BEGIN that a listener sends is a transaction all the same
    run.exact(1 if driver in ("pysqlite", "aiosqlite") else 2)


@pytest.mark.parametrize("driver", ["psycopg", "pysqlite-legacy", "pymysql", "psycopg2", "pg8000"])
def test_autocommit_set_on_the_driver(run, driver):
    arguments = {"pysqlite-legacy": {"isolation_level": None}, "psycopg": {"autocommit": True}}

    def scenario(engine):
        with engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            if driver == "pymysql":
                raw.autocommit(True)
            elif driver in ("psycopg2", "pg8000"):
                raw.autocommit = True
            put(connection, 2)
            connection.execute(update(keyed).where(keyed.c.id == 1).values(data=DataStore(n=5)))
            connection.execute(delete(keyed).where(keyed.c.id == 2))
            connection.rollback()
            connection.invalidate()

    run(driver, scenario, connect_args=dict(arguments.get(driver, {})))
    run.exact(1)


@pytest.mark.parametrize("driver", ALL)
def test_closing_the_connection_is_a_rollback(run, driver):
    def scenario(engine):
        connection = engine.connect()
        put(connection, 2)
        connection.execute(delete(keyed).where(keyed.c.id == 1))
        connection.close()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", list(SYNC))
def test_a_forgotten_session_is_a_rollback(run, driver):
    def scenario(engine):
        session = Session(engine)
        put(session.connection(), 2)
        session.execute(delete(keyed).where(keyed.c.id == 1))
        del session
        gc.collect()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", ALL)
def test_invalidating_the_connection_is_a_rollback(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            connection.invalidate()
            connection.rollback()

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", ALL)
def test_pool_reset_on_return_commits(run, driver):
    def scenario(engine):
        proxied = engine.raw_connection()
        proxied.close()
        connection = engine.connect()
        put(connection, 2)
        # what a Connection does not end, the pool's reset does
        connection._transaction.is_active = False
        connection._transaction = None
        connection.close()

    run(driver, scenario, pool_reset_on_return="commit")
    run.exact(2)


@pytest.mark.parametrize("driver", ["pysqlite", "psycopg", "pymysql"])
def test_another_listener_of_commit_fails(run, driver):
    """Neither COMMIT nor ROLLBACK is sent; the next commit of the connection commits the row."""

    def scenario(engine):
        fail = []

        @event.listens_for(engine, "commit")
        def commit(_connection):
            if fail:
                raise RuntimeError(fail.pop())

        with engine.connect() as connection:
            put(connection, 2)
            fail.append("listener")
            with pytest.raises(RuntimeError, match="listener"):
                connection.commit()
            connection.rollback()
            connection.execute(select(1))
            connection.commit()

    # explicit BEGIN inside the transaction that goes on is an error of its own on SQLite
    run("pysqlite-legacy" if driver == "pysqlite" else driver, scenario)
    run.exact(len(run.rows))


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_a_deferred_constraint_fails_the_commit(run, driver):
    def scenario(engine):
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS later"))
            connection.execute(
                text(
                    "CREATE TABLE later (id integer REFERENCES keyed (id) "
                    "DEFERRABLE INITIALLY DEFERRED)"
                )
            )
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(text("INSERT INTO later VALUES (77)"))
            with pytest.raises(DBAPIError):
                connection.commit()
            connection.rollback()
            put(connection, 3)
            connection.commit()
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE later"))

    run(driver, scenario)
    run.exact(2)


@pytest.mark.parametrize("driver", SQLITE)
def test_a_deferred_constraint_on_sqlite_leaves_the_transaction_open(run, driver):
    def scenario(engine):
        with engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE TABLE later (id integer REFERENCES keyed (id) "
                    "DEFERRABLE INITIALLY DEFERRED)"
                )
            )
        with engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA foreign_keys=ON")
            connection.commit()
            put(connection, 2)
            connection.execute(text("INSERT INTO later VALUES (77)"))
            with pytest.raises(DBAPIError):
                connection.commit()
            connection.rollback()
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE later"))

    run(driver, scenario)
    run.exact(1)


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_the_backend_is_killed_before_commit(run, driver, caplog):
    """It shows at the question before COMMIT, so that none is sent."""

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(update(keyed).where(keyed.c.id == 1).values(data=DataStore(n=5)))
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            with engine.connect() as other:
                other.execute(text(f"SELECT pg_terminate_backend({pid}, 10000)"))
                other.commit()
            # asyncpg may still be reading why it was killed, and says so in an error of its own;
            # pg8000 lets the socket's error through
            with pytest.raises((DBAPIError, InternalClientError, OSError)):
                connection.commit()

    # pg8000 fails to close the broken connection and leaves its socket to the garbage collector;
    # the pool's log would keep the error, and with it the connection, until some later test
    with (
        caplog.at_level(logging.CRITICAL, "sqlalchemy.pool"),
        caplog.at_level(logging.WARNING, "sqla_datastore"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        run(driver, scenario)
        gc.collect()
    # there is no connection any more that a ROLLBACK could be sent to
    assert "AttributeError" not in caplog.text
    run.exact(1)


@pytest.mark.parametrize("driver", ALL)
def test_a_write_that_fails_cannot_be_committed(run, driver, stored, monkeypatch):
    from sqla_datastore.unitofwork import writing

    def scenario(engine):
        with engine.connect() as connection:
            connection.execute(select(1))
            original = writing._write_object
            monkeypatch.setattr(writing, "_write_object", _fail)
            with pytest.raises(StorageError):
                put(connection, 2)
            monkeypatch.setattr(writing, "_write_object", original)
            with pytest.raises(StorageError):
                connection.commit()
            connection.rollback()
            put(connection, 3)
            connection.commit()

    run(driver, scenario)
    run.exact(2)


def _fail(*_):
    raise StorageError("full")


@pytest.mark.parametrize("driver", ALL)
def test_a_barrier_that_fails_rolls_back(run, driver, monkeypatch):
    from sqla_datastore.storage.local import LocalStorage

    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            with monkeypatch.context() as patch:
                patch.setattr(LocalStorage, "make_durable", _fail)
                with pytest.raises(StorageError):
                    connection.commit()
            connection.rollback()
            put(connection, 3)
            connection.commit()

    run(driver, scenario)
    run.exact(2)


@pytest.mark.parametrize("driver", ["pysqlite", "psycopg", "pymysql"])
def test_a_removal_that_fails_after_commit_is_logged(run, driver, monkeypatch, caplog):
    from sqla_datastore.storage.local import LocalStorage

    def scenario(engine):
        with monkeypatch.context() as patch, engine.connect() as connection:
            patch.setattr(LocalStorage, "remove", _fail)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            connection.commit()

    with caplog.at_level(logging.ERROR, "sqla_datastore"):
        run(driver, scenario)
    assert "could not remove" in caplog.text
    assert not run.rows
    assert len(run.files) == 1


@pytest.mark.parametrize("driver", ["pysqlite", "pymysql"])
def test_an_executemany_that_fails_half_way_and_is_caught(run, driver):
    """These databases keep the rows before the failing one."""

    def scenario(engine):
        with engine.connect() as connection:
            with pytest.raises(DBAPIError):
                connection.execute(
                    insert(keyed), [{"id": n, "data": DataStore(n=n)} for n in (5, 6, 1, 7)]
                )
            try:
                connection.commit()
            except StorageError:
                connection.rollback()

    run(driver, scenario)
    run.exact(len(run.rows))


@pytest.mark.parametrize("driver", ["pymysql"])
def test_ddl_that_commits_implicitly(run, driver):
    def scenario(engine):
        with engine.connect() as connection:
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            connection.execute(text("CREATE TABLE IF NOT EXISTS another (id integer)"))
            connection.rollback()
            connection.execute(text("DROP TABLE another"))

    run(driver, scenario)


@pytest.mark.parametrize("driver", ["psycopg", "pymysql"])
@pytest.mark.parametrize("outcome", ["commit", "rollback", "rollback unprepared"])
def test_two_phase(run, driver, outcome):
    def scenario(engine):
        with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                allowed = int(connection.scalar(text("SHOW max_prepared_transactions")))
                if not allowed:
                    pytest.skip("this server has max_prepared_transactions = 0")
            connection.rollback()
            transaction = connection.begin_twophase()
            put(connection, 2)
            connection.execute(delete(keyed).where(keyed.c.id == 1))
            if outcome != "rollback unprepared":
                transaction.prepare()
            getattr(transaction, outcome.split()[0])()

    run(driver, scenario)
    run.exact(1)
