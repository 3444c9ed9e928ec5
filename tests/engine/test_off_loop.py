"""Under an asynchronous engine no storage call blocks the loop, and a cancel leaves no trace."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import numpy as np
import pytest
from sqlalchemy import select, type_coerce
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import String
from support.databases import make_engine
from support.drivers import ASYNC, PLAIN, engine_of
from support.watched import Watched

from sqla_datastore import DataStore, DataStoreType, StorageError, bind_storage
from sqla_datastore.engine import observed_transaction
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.off_loop import off_loop

DRIVERS = [driver for driver in ASYNC if not driver.endswith("-legacy")]
SECONDS = 20


class Base(DeclarativeBase):
    """The table of this module."""


class Item(Base):
    """A row with a value."""

    __tablename__ = "off_loop_items"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


class Near(Watched):
    """A storage that waits for no network, so that entries may be touched on the loop."""

    is_local = True


class Calls:
    """Notes in which threads a storage's calls are made, and can hold one until it is let go.

    Not one of the loop's own thread: touching an entry reads it there.
    """

    def __init__(self) -> None:
        self.own = threading.get_ident()
        self.made: list[tuple[str, str]] = []
        self.threads: dict[int, set[str]] = {}
        self.held: int | None = None
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self, name: str, when: str) -> None:
        thread = threading.get_ident()
        self.threads.setdefault(thread, set()).add(name)
        if thread == self.own:
            return
        self.made.append((name, when))
        if self.held == len(self.made):
            self.reached.set()
            assert self.released.wait(SECONDS)

    def hold(self, number: int | None) -> None:
        """Forget what was noted, and hold the call of a number, from 1 on."""
        self.made.clear()
        self.threads.clear()
        self.held = number
        self.reached.clear()
        self.released.clear()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def run(database_for, stored, calls) -> Iterator[Callable]:
    """Run a coroutine with an asynchronous engine; afterwards rows and files agree."""

    def run(driver: str, scenario: Callable[[AsyncEngine], Awaitable[None]], count: int) -> None:
        # of the run before
        shutil.rmtree(stored.base)
        engine = AsyncEngine(engine_of(driver, database_for(PLAIN[driver]), stored.base))
        bind_storage(engine, Near(LocalStorage(stored.base), calls))

        async def body() -> None:
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(Base.metadata.drop_all)
                    await connection.run_sync(Base.metadata.create_all)
                await asyncio.wait_for(scenario(engine), SECONDS)
                async with engine.connect() as connection:
                    urls = set(await connection.scalars(select(type_coerce(Item.data, String()))))
                assert {f"file:///{path}" for path in stored.files()} == urls
                assert len(urls) == count
                assert not observed_transaction.open_transactions
            finally:
                await engine.dispose()

        asyncio.run(body())

    return run


async def add(engine: AsyncEngine, *keys: int) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add_all([Item(id=key, data=DataStore(a=np.arange(key))) for key in keys])


async def change(engine: AsyncEngine) -> None:
    """Insert, replace, edit in place, and delete, in one transaction."""
    async with AsyncSession(engine) as session, session.begin():
        rows = {row.id: row for row in await session.scalars(select(Item))}
        session.add(Item(id=9, data=DataStore(a=9, inner=[1])))
        rows[1].data = DataStore(a=[1, 2])
        rows[2].data["l"] = [1]
        await session.flush()
        rows[2].data["l"].append(2)
        await session.delete(rows[3])


@pytest.mark.parametrize("driver", DRIVERS)
def test_storage_calls_are_made_in_other_threads(run, calls, driver):
    async def scenario(engine):
        await add(engine, 1, 2, 3)
        await change(engine)
        async with AsyncSession(engine) as session:
            session.add(Item(id=5, data=DataStore(a=5)))
            await session.flush()
            await session.rollback()
        async with engine.connect() as connection:
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.execute(Item.__table__.insert().values(id=7, data=DataStore(a=7)))
            # SQLite is sent a BEGIN all the same
            await autocommit.commit()
        names = {name for name, _ in calls.made}
        assert {"create", "write", "publish", "list", "make_durable", "remove"} <= names
        assert calls.threads.get(threading.get_ident(), set()) <= {"open", "read"}

    run(driver, scenario, 4)


async def reached(calls: Calls) -> None:
    """Wait on the loop until a call is held: it has to go on for that."""
    async with asyncio.timeout(SECONDS):
        while not calls.reached.is_set():
            await asyncio.sleep(0.001)


def _numbers(run, calls, driver, count) -> list[int]:
    """Return the numbers of all storage calls of `change`."""
    made: list[int] = []

    async def scenario(engine):
        await add(engine, 1, 2, 3)
        calls.hold(None)
        await change(engine)
        made.append(len(calls.made))

    run(driver, scenario, count)
    return [*range(1, made[0] + 1)]


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_loop_goes_on_during_each_call(run, calls, driver):
    async def scenario(number, engine):
        await add(engine, 1, 2, 3)
        calls.hold(number)
        task = asyncio.create_task(change(engine))
        await reached(calls)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        calls.released.set()
        await task

    for number in _numbers(run, calls, driver, 3)[::4]:
        run(driver, partial(scenario, number), 3)


@pytest.mark.slow
@pytest.mark.parametrize("cancels", [1, 5])
@pytest.mark.parametrize("driver", ["aiosqlite", "asyncpg", "psycopg_async"])
def test_a_task_that_is_cancelled_at_any_call(run, calls, driver, cancels):
    """What it began has ended before the task; it has committed, or nothing has happened."""
    counts = []

    async def scenario(number, engine):
        await add(engine, 1, 2, 3)
        calls.hold(number)
        task = asyncio.create_task(change(engine))
        await reached(calls)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.002)
        assert not task.done()
        calls.released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with AsyncSession(engine) as session:
            keys = {row.id for row in await session.scalars(select(Item))}
        assert keys in ({1, 2, 3}, {1, 2, 9})
        counts.append(keys)

    # often enough to meet a call of each kind
    for number in _numbers(run, calls, driver, 3)[:: 1 if cancels == 1 else 4]:
        run(driver, partial(scenario, number), 3)
    assert {1, 2, 3} in counts
    assert {1, 2, 9} in counts


def test_a_timeout_during_a_flush(run, calls):
    async def scenario(engine):
        await add(engine, 1)
        calls.hold(2)
        threading.Timer(0.2, calls.released.set).start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await add(engine, 2)

    run("aiosqlite", scenario, 1)


def test_a_call_that_fails_raises_in_the_task(run, stored):
    def full(name: str, _when: str) -> None:
        if name == "publish":
            raise StorageError("no space left")

    async def scenario(engine):
        await add(engine, 1)
        bind_storage(engine, Near(LocalStorage(stored.base), full))
        with pytest.raises(StorageError, match="no space left"):
            await add(engine, 2)

    run("aiosqlite", scenario, 1)


@pytest.mark.parametrize("driver", ["aiosqlite", "asyncpg", "psycopg_async"])
def test_a_connection_that_nobody_has_any_more(run, calls, driver):
    """Its objects go, though nothing can be awaited where it is reset."""

    async def scenario(engine):
        await add(engine, 1)
        calls.hold(None)
        session = AsyncSession(engine)
        session.add(Item(id=2, data=DataStore(a=2)))
        await session.flush()
        with warnings.catch_warnings():
            # SQLAlchemy's own: the connection should have been closed
            warnings.simplefilter("ignore")
            del session
            gc.collect()
        async with asyncio.timeout(SECONDS):
            while ("remove", "after") not in calls.made:
                await asyncio.sleep(0.005)
        assert threading.get_ident() not in calls.threads

    run(driver, scenario, 1)


def test_a_synchronous_session_on_a_loop_waits_itself(stored, tmp_path, calls):
    """As in a notebook: where nothing is awaited, files are gone when the call returns."""
    engine = make_engine(f"sqlite:///{tmp_path / 'sync.db'}", stored.base)
    bind_storage(engine, Near(LocalStorage(stored.base), calls))
    Base.metadata.create_all(engine)

    async def body() -> None:
        with Session(engine) as session:
            session.add(Item(id=1, data=DataStore(a=1)))
            session.flush()
            assert stored.files()
            session.rollback()
            assert not stored.files()
        assert {*calls.threads} == {threading.get_ident()}

    asyncio.run(body())
    engine.dispose()


def test_without_a_loop_a_call_is_just_made():
    threads = []
    assert off_loop(lambda: threads.append(threading.get_ident()) or 7) == 7
    assert threads == [threading.get_ident()]
