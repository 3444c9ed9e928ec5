"""`prefetch`, `aprefetch`, `aload` and the coroutines of `DataStoreIO`."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import Stored
from support.watched import Watched

from sqla_datastore import (
    DataStore,
    DataStoreIO,
    DataStoreType,
    MissingObjectError,
    StorageError,
    aload,
    aprefetch,
    bind_storage,
    prefetch,
)
from sqla_datastore.storage import LocalStorage

SECONDS = 20


class Base(DeclarativeBase):
    """The table of this module."""


class Run(Base):
    """A row with a value."""

    __tablename__ = "prefetched_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Calls:
    """Notes what a storage was asked for, and in which threads; `at` may do more."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.threads: set[int] = set()
        self.at = lambda _name, _when: None

    def __call__(self, name: str, when: str) -> None:
        self.made.append(name)
        self.threads.add(threading.get_ident())
        self.at(name, when)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def place(stored, calls) -> Watched:
    return Watched(LocalStorage(stored.base), calls)


@pytest.fixture
def url(tmp_path, place) -> str:
    """The URL of a database with three rows with values and one without."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    engine = create_engine(url)
    bind_storage(engine, place)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for n in range(3):
            extra = {} if n == 1 else {"frame": pd.DataFrame({"a": range(n)})}
            session.add(Run(data=DataStore(n=n, a=np.arange(n), inner=DataStore(k=n), **extra)))
        session.add(Run(data=None))
    engine.dispose()
    return url


@pytest.fixture
def session(url, place):
    engine = create_engine(url)
    bind_storage(engine, place)
    with Session(engine) as session:
        yield session
    engine.dispose()


def read_nothing(calls, look):
    calls.made.clear()
    look()
    assert calls.made == []


@pytest.mark.parametrize("attribute", [Run.data, "data"])
def test_entries_of_many_rows_are_loaded_once(session, calls, attribute):
    rows = session.scalars(select(Run)).all()
    assert "open" not in calls.made
    prefetch(rows, attribute, ["n", "frame", "inner"])
    read_nothing(
        calls, lambda: [(row.data.n, row.data.get("frame"), row.data.inner.k) for row in rows[:3]]
    )
    prefetch(iter(rows), attribute)
    read_nothing(calls, lambda: [row.data.to_dict() for row in rows[:3]])
    assert [row.data.n for row in rows[:3]] == [0, 1, 2]
    assert not session.dirty


def test_loading_does_not_make_a_row_dirty_and_edits_are_noticed(session, stored):
    rows = session.scalars(select(Run)).all()
    prefetch(rows, Run.data)
    session.commit()
    before = stored.files()
    prefetch(rows, Run.data)
    rows[2].data.frame["b"] = 1
    session.commit()
    assert len(stored.files() - before) == 2  # the value and what is nested in it
    assert list(rows[2].data.frame.columns) == ["a", "b"]


def test_values_are_loaded_at_the_same_time_where_that_takes_long(session, calls):
    rows = session.scalars(select(Run)).all()
    together = threading.Barrier(2, timeout=SECONDS)
    slow = threading.Event()

    def wait(name: str, _when: str) -> None:
        if name == "open" and not slow.is_set():
            slow.set()
            slow.wait(0.01)
            threading.Event().wait(0.02)
        elif name == "open":
            together.wait()

    calls.at = wait
    prefetch(rows, Run.data, ["n"])
    assert not together.broken


def test_a_missing_object_is_told_and_the_others_are_loaded(session, stored, calls):
    rows = session.scalars(select(Run)).all()
    (stored.base / rows[0].data.url.removeprefix("file:///")).unlink()
    with pytest.raises(MissingObjectError, match=rows[0].data.url):
        prefetch(rows, Run.data, ["n"])
    read_nothing(calls, lambda: [row.data.n for row in rows[1:3]])


def run_async(url, place, scenario):
    async def body():
        engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
        bind_storage(engine, place)
        try:
            async with AsyncSession(engine, expire_on_commit=False) as session:
                return await asyncio.wait_for(scenario(session), SECONDS)
        finally:
            await engine.dispose()

    return asyncio.run(body())


def test_coroutines_load_in_other_threads(url, place, calls):
    async def scenario(session):
        rows = (await session.scalars(select(Run))).all()
        calls.threads.clear()
        found = await aload(rows[0].data, "n", "frame")
        assert found["n"] == 0
        assert list(found) == ["n", "frame"]
        assert (await aload(rows[1].data))["inner"].k == 1
        await aprefetch(rows, Run.data, ["n"])
        await aprefetch(rows, Run.data)
        assert threading.get_ident() not in calls.threads
        read_nothing(calls, lambda: [row.data.to_dict() for row in rows[:3]])
        with pytest.raises(KeyError):
            await aload(rows[0].data, "no such entry")
        assert await aload(DataStore(a=1)) == {"a": 1}

    run_async(url, place, scenario)


def test_a_cancelled_prefetch_begins_no_more(url, place, calls):
    async def scenario(session):
        rows = (await session.scalars(select(Run))).all()
        begun, go = threading.Event(), threading.Event()
        calls.made.clear()

        def wait(_name: str, _when: str) -> None:
            begun.set()
            assert go.wait(SECONDS)

        calls.at = wait
        task = asyncio.create_task(aprefetch(rows, Run.data, ["n"]))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await asyncio.sleep(0.05)
        assert calls.made.count("open") == 1

    run_async(url, place, scenario)


# -- DataStoreIO -----------------------------------------------------------------------------------


def test_managed_objects_by_coroutines(place, calls, stored):
    async def scenario():
        data = await DataStoreIO.awrite(b"abc", "reports", place)
        frame = await DataStoreIO.aserialize_write(pd.DataFrame({"a": [1]}), "reports", place)
        assert await data.aread() == b"abc"
        assert (await frame.aread_deserialize(pd.DataFrame)).a.tolist() == [1]
        await data.aremove()
        assert len(stored.files()) == 1
        await DataStoreIO.adelete("reports", place)
        assert threading.get_ident() not in calls.threads

    asyncio.run(scenario())
    assert stored.files() == set()


@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("call", ["create", "write", "publish", "make_durable"])
def test_a_cancelled_write_leaves_nothing(place, calls, stored: Stored, call, cancels):
    async def scenario():
        begun, go = threading.Event(), threading.Event()

        def wait(name: str, _when: str) -> None:
            if name == call:
                begun.set()
                assert go.wait(SECONDS)

        calls.at = wait
        task = asyncio.create_task(DataStoreIO.awrite(b"abc", "reports", place))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.001)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert stored.files() == set()


def test_a_write_that_fails_raises(place, calls, stored):
    def full(name: str, _when: str) -> None:
        if name == "publish":
            raise StorageError("no space left")

    calls.at = full
    with pytest.raises(StorageError, match="no space left"):
        asyncio.run(DataStoreIO.awrite(b"abc", "reports", place))
    assert stored.files() == set()


# -- touching on the event loop --------------------------------------------------------------------


class Far(Watched):
    """A storage behind a network."""

    is_local = False


class Near(Watched):
    """A storage that waits for no network."""

    is_local = True


def test_a_far_object_is_not_read_on_the_loop(url, stored, calls):
    async def scenario(session):
        rows = (await session.scalars(select(Run))).all()
        calls.made.clear()
        repr(rows[0])
        for touch in (
            lambda: rows[0].data["n"],
            lambda: rows[0].data.n,
            lambda: list(rows[0].data),
            lambda: rows[0].data.to_dict(),
        ):
            with pytest.raises(StorageError, match=r"block the event loop.*await aload"):
                touch()
        assert calls.made == []
        await aload(rows[0].data)
        assert rows[0].data.to_dict()["n"] == 0
        assert rows[0].data.inner.k == 0
        # what is assigned was never read
        rows[1].data = DataStore(n=7)
        await session.commit()
        assert rows[1].data.n == 7
        rows[1].data["a"] = np.arange(3)
        await session.commit()
        with pytest.raises(StorageError, match=r"await aload\(value, 'a'\)"):
            rows[1].data["a"]
        # in a function of the greenlet a thread reads, and the loop goes on
        threads = calls.threads
        threads.clear()
        assert await session.run_sync(lambda _: rows[2].data.inner.k) == 2
        assert threading.get_ident() not in threads

    run_async(url, Far(LocalStorage(stored.base), calls), scenario)


def test_a_near_object_is_read_on_the_loop(url, stored, calls):
    async def scenario(session):
        rows = (await session.scalars(select(Run))).all()
        assert rows[2].data.inner.k == 2

    run_async(url, Near(LocalStorage(stored.base), calls), scenario)


def test_a_synchronous_session_reads_on_a_loop(url, stored, calls):
    """As in a notebook, whose cells run on a loop."""

    async def body():
        engine = create_engine(url)
        bind_storage(engine, Far(LocalStorage(stored.base), calls))
        with Session(engine) as session:
            rows = session.scalars(select(Run)).all()
            assert rows[2].data.inner.k == 2
        engine.dispose()

    asyncio.run(body())
