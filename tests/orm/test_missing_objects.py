"""An error about a missing object says what became of its row, where that can be asked."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from sqlalchemy import delete, event, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool, StaticPool
from support.databases import make_engine
from support.drivers import SQLALCHEMY
from support.models import Base, Keyed

from sqla_datastore import DataStore, MissingObjectError, bind_storage

pytestmark = pytest.mark.usefixtures("tables")


def add(engine, **entries):
    with Session(engine) as session:
        session.add(Keyed(id=1, data=DataStore(entries or {"n": 1})))
        session.commit()


def replace(engine, value=None):
    """Replace the value in another transaction, and return the new URL."""
    with Session(engine) as session:
        session.get(Keyed, 1).data = value or DataStore(n=2)
        session.commit()
        return session.get(Keyed, 1).data.url


def assert_replaced(message, old, new):
    assert repr(old) in message
    assert f"'data' of Keyed 1 holds {new!r} now" in message
    assert "session.refresh(row)" in message
    assert "keep_seconds" in message
    assert "storage bound" not in message


def assert_both(message):
    assert "session.refresh(row)" in message
    assert "keep_seconds" in message
    assert "bind_storage" in message
    assert "Keyed 1" in message


def failing(read):
    with pytest.raises(MissingObjectError) as caught:
        read()
    return caught.value.message


@pytest.mark.parametrize("read", [lambda d: d.n, list, len, dict], ids=["n", "list", "len", "dict"])
def test_a_row_that_another_transaction_has_replaced(engine, read):
    add(engine)
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        session.commit()
        old, new = row.data.url, replace(engine)
        assert_replaced(failing(lambda: read(row.data)), old, new)
        assert not session.in_transaction()
        # what it says to do works
        session.refresh(row)
        assert row.data.n == 2


def test_an_entry_when_the_names_are_known_and_a_nested_value(engine):
    add(engine, big=bytes(300_000), inner=DataStore(deep=DataStore(k=1)))
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        inner = row.data.inner
        session.commit()
        old, new = row.data.url, replace(engine)
        assert_replaced(failing(lambda: row.data.big), old, new)
        message = failing(lambda: inner.deep)
        assert f"'data' of Keyed 1 holds {new!r} now" in message


def test_an_edit_that_copies_what_is_gone(engine, exact):
    add(engine, n=1, big=bytes(300_000))
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        assert list(row.data)
        session.commit()
        new = replace(engine)
        row.data["n"] = 5
        assert f"'data' of Keyed 1 holds {new!r} now" in failing(session.flush)
        session.rollback()
    exact(1)


@pytest.mark.parametrize("change", [update(Keyed).values(data=None), delete(Keyed)], ids=str)
def test_a_row_without_a_value_any_more(engine, change):
    add(engine)
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        session.commit()
        with engine.begin() as connection:
            connection.execute(change)
        assert "'data' of Keyed 1 holds no value now" in failing(lambda: row.data.n)


def test_within_a_transaction(engine):
    if engine.dialect.name == "sqlite":
        pytest.skip("nobody can commit while another one reads")
    add(engine)
    with Session(engine) as session:
        row = session.get(Keyed, 1)
        old, new = row.data.url, replace(engine)
        # also on MariaDB, where the transaction's own snapshot has the old URL
        assert_replaced(failing(lambda: row.data.n), old, new)
        assert session.in_transaction()
        session.rollback()
        assert row.data.n == 2


def test_the_storage_where_the_row_still_refers_to_the_object(engine, stored):
    add(engine)
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        session.commit()
        shutil.rmtree(stored.base / "keyed")
        message = failing(lambda: row.data.n)
    assert message.endswith("is the right storage bound?")
    assert "refresh" not in message


def test_both_causes_where_a_transaction_may_hide_the_answer(engine, stored):
    add(engine)
    with Session(engine) as session:
        row = session.get(Keyed, 1)
        shutil.rmtree(stored.base / "keyed")
        assert_both(failing(lambda: row.data.n))


def test_both_causes_of_a_detached_row(engine):
    add(engine)
    with Session(engine) as session:
        row = session.get(Keyed, 1)
    replace(engine)
    assert_both(failing(lambda: row.data.n))


def test_a_value_that_no_row_has(engine, stored):
    value = DataStore.from_url(f"file:///keyed/1/{'0' * 32}.zip", storage=stored.base)
    assert failing(lambda: value.n).endswith("is the right storage bound?")


@pytest.mark.parametrize(
    ("pool", "answers"),
    [
        ({"poolclass": NullPool}, True),
        ({"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}, False),
        ({"poolclass": StaticPool}, False),
    ],
    ids=["none", "one", "static"],
)
def test_pools_with_nothing_to_spare_are_not_asked(database_url, engine, stored, pool, answers):
    add(engine)
    other = make_engine(database_url, stored.base, **pool)
    checkouts = []
    with Session(other, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        session.commit()
        new = replace(engine)
        with other.connect():  # somebody else is at work
            event.listen(other, "checkout", lambda *_: checkouts.append(1))
            message = failing(lambda: row.data.n)
    if answers:
        assert f"holds {new!r} now" in message
    else:
        assert_both(message)
        assert checkouts == []
    other.dispose()


def test_a_database_that_fails_hides_nothing(engine, monkeypatch):
    add(engine)
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        session.commit()
        replace(engine)

        def fail(*_):
            raise RuntimeError("down")

        event.listen(engine, "before_cursor_execute", fail)
        try:
            assert_both(failing(lambda: row.data.n))
        finally:
            event.remove(engine, "before_cursor_execute", fail)


def test_asking_leaves_no_setting_and_no_connection_behind(engine):
    add(engine)
    with Session(engine, expire_on_commit=False) as session:
        row = session.get(Keyed, 1)
        session.commit()
        replace(engine)
        failing(lambda: row.data.n)
        assert engine.pool.checkedout() == 0
    queries = {
        "sqlite": "PRAGMA busy_timeout",
        "postgresql": "SHOW lock_timeout",
        "mysql": "SELECT @@lock_wait_timeout",
    }
    with engine.connect() as connection:
        setting = connection.exec_driver_sql(queries[engine.dialect.name]).scalar()
    assert str(setting) not in ({"0"} if engine.dialect.name == "sqlite" else {"1s", "1"})


@pytest.mark.parametrize("within", ["the greenlet", "outside"])
def test_an_async_session(tmp_path, within):
    if SQLALCHEMY < (2, 0, 40) and within == "the greenlet":
        pytest.skip("this SQLAlchemy does not close a detached connection of aiosqlite")

    async def run():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
        bind_storage(engine, tmp_path / "storage")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add(Keyed(id=1, data=DataStore(n=1)))
            await session.commit()
        async with AsyncSession(engine, expire_on_commit=False) as session:
            row = await session.get(Keyed, 1)
            await session.commit()
            async with AsyncSession(engine) as other:
                (await other.get(Keyed, 1)).data = DataStore(n=2)
                await other.commit()
            if within == "the greenlet":
                message = await session.run_sync(lambda _: failing(lambda: row.data.n))
            else:
                message = failing(lambda: row.data.n)
            await session.refresh(row)
            found = row.data.n
        await engine.dispose()
        return message, found

    message, found = asyncio.run(run())
    assert found == 2
    if within == "the greenlet":
        assert "'data' of Keyed 1 holds 'file:///keyed/1/" in message
    else:
        assert_both(message)
