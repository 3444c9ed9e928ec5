"""Engines of every driver, and one table that scenarios run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    make_url,
    select,
    type_coerce,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from sqla_datastore import DataStore, DataStoreType, bind_storage
from sqla_datastore.engine import observed_transaction
from support.databases import Stored, explicit_begin

metadata = MetaData()
keyed = Table(
    "keyed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("data", DataStoreType()),
)

SYNC = {
    "pysqlite": "sqlite",
    "pysqlite-legacy": "sqlite",
    "psycopg": "postgresql",
    "psycopg2": "postgresql",
    "pg8000": "postgresql",
    "pymysql": "mariadb",
    "mysqlconnector": "mariadb",
}
SQLALCHEMY = tuple(int(part) for part in version("sqlalchemy").split(".")[:3] if part.isdigit())
if SQLALCHEMY < (2, 0, 40):
    del SYNC["mysqlconnector"]  # SQLAlchemy does not know its AUTOCOMMIT

ASYNC = {
    "aiosqlite": "sqlite",
    "aiosqlite-legacy": "sqlite",
    "psycopg_async": "postgresql",
    "asyncpg": "postgresql",
    "aiomysql": "mariadb",
    "asyncmy": "mariadb",
}
KINDS = SYNC | ASYNC
"""The database of each driver."""

# mysqlclient, which has no wheel for Linux, tells no state of a transaction; nor does DuckDB
PLAIN = KINDS | {"mysqldb": "mariadb", "duckdb": "duckdb"}
"""The database of each driver that the plain matrix runs on."""

POSTGRESQL = [driver for driver, kind in KINDS.items() if kind == "postgresql"]
SQLITE = [driver for driver, kind in KINDS.items() if kind == "sqlite"]
ALL = [*KINDS]
DIALECTS = {"sqlite": "sqlite", "postgresql": "postgresql", "mariadb": "mysql", "duckdb": "duckdb"}
T = TypeVar("T")


class DriverRuns:
    """Runs functions with an engine of a driver, on a table with one committed row of key 1.

    Attributes:
        rows: the URLs that rows held after the last run.
        files: the URLs of what lay in the storage then.

    Args:
        database_for: returns the URL of a database by its kind.
        stored: the storage, seen without the library.
    """

    def __init__(self, database_for: Callable[[str], str], stored: Stored) -> None:
        self._database_for = database_for
        self._stored = stored
        self.rows: set[str] = set()
        self.files: set[str] = set()

    def __call__(self, driver: str, scenario: Callable[[Engine], T], **kwargs: Any) -> T:
        """Run a function, in a greenlet where the driver is asynchronous; return its result.

        Args:
            driver: one of `ALL`.
            scenario: is given the engine; afterwards no committed row may be dangling.
            **kwargs: for the engine.
        """
        engine = self.engine(driver, **kwargs)

        def body() -> T:
            try:
                prepare(engine)
                result = scenario(engine)
                self._check(engine)
                return result
            finally:
                engine.dispose()

        if driver in ASYNC:
            return asyncio.run(greenlet_spawn(body))
        return body()

    def engine(self, driver: str, **kwargs: Any) -> Engine:
        """Return an engine; that of an asynchronous driver is for greenlets."""
        return engine_of(driver, self._database_for(PLAIN[driver]), self._stored.base, **kwargs)

    def _check(self, engine: Engine) -> None:
        with engine.connect() as connection:
            urls = connection.scalars(select(type_coerce(keyed.c.data, String())))
            self.rows = {url for url in urls if url is not None}
        self.files = {f"file:///{path}" for path in self._stored.files()}
        assert self.rows <= self.files, "a committed row is dangling"
        assert not observed_transaction.open_transactions, "a ledger was left open"

    def exact(self, count: int) -> None:
        """Assert that after the last run the storage held what so many rows referred to."""
        assert self.rows == self.files
        assert len(self.rows) == count


def engine_of(driver: str, database: str, base: Path, **kwargs: Any) -> Engine:
    """Return an engine of a driver, with a folder bound as its storage.

    Args:
        driver: one of `PLAIN`.
        database: the URL of a database of its kind.
        base: the folder.
        **kwargs: for the engine.
    """
    name, _, mode = driver.partition("-")
    kind = PLAIN[driver]
    drivername = DIALECTS[kind] if kind == name else f"{DIALECTS[kind]}+{name}"
    url = make_url(database).set(drivername=drivername)
    if name == "pg8000" and "host" in url.query:
        socket = f"{url.query['host']}/.s.PGSQL.5432"
        kwargs.setdefault("connect_args", {})["unix_sock"] = socket
        url = url.set(query={}, host=None)
    if kind == "mariadb" and driver != "pymysql":
        url = url.set(query={})
    if driver in ASYNC:
        engine = create_async_engine(url, **kwargs).sync_engine
    else:
        engine = create_engine(url, **kwargs)
    if kind == "sqlite" and mode != "legacy":
        explicit_begin(engine)
    bind_storage(engine, base)
    return engine


def prepare(engine: Engine) -> None:
    """Make the table, with a row of key 1."""
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(keyed).values(id=1, data=DataStore(a=np.arange(3))))


def put(connection: Connection, key: int, **entries: Any) -> None:
    """Insert a row."""
    connection.execute(insert(keyed).values(id=key, data=DataStore(n=key, **entries)))
