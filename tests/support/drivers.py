"""Engines of every driver, and one table that scenarios run on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from sqlalchemy import (
    Column,
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
from sqla_datastore.engine import endings
from support.databases import explicit_begin, private_database

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
}
ASYNC = {
    "aiosqlite": "sqlite",
    "aiosqlite-legacy": "sqlite",
    "psycopg_async": "postgresql",
    "asyncpg": "postgresql",
}
POSTGRESQL = [d for d, kind in {**SYNC, **ASYNC}.items() if kind == "postgresql"]
SQLITE = [d for d, kind in {**SYNC, **ASYNC}.items() if kind == "sqlite"]
ALL = [*SYNC, *ASYNC]


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    """The URL of a private database for each kind, made on first need."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        urls = {}

        def url_for(kind):
            if kind == "sqlite":
                return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'test.db'}"
            if kind not in urls:
                given = make_url(request.getfixturevalue(f"{kind}_url"))
                name = "postgresql+psycopg" if kind == "postgresql" else "mysql+pymysql"
                url = given.set(drivername=name).render_as_string(hide_password=False)
                urls[kind] = stack.enter_context(private_database(url))
            return urls[kind]

        yield url_for


@pytest.fixture
def run(server, stored):
    """Run a function with an engine of a driver, with one committed row of key 1."""
    engines = []

    def go(driver, scenario, **kwargs):
        name, _, mode = driver.partition("-")
        kind = {**SYNC, **ASYNC}[driver]
        dialect = {"sqlite": "sqlite", "postgresql": "postgresql", "mariadb": "mysql"}[kind]
        url = make_url(server(kind)).set(drivername=f"{dialect}+{name}")
        if name == "pg8000" and "host" in url.query:
            kwargs.setdefault("connect_args", {})["unix_sock"] = (
                f"{url.query['host']}/.s.PGSQL.5432"
            )
            url = url.set(query={}, host=None)
        if driver in ASYNC:
            engine = create_async_engine(url, **kwargs).sync_engine
        else:
            engine = create_engine(url, **kwargs)
        if kind == "sqlite" and mode != "legacy":
            explicit_begin(engine)
        bind_storage(engine, stored.base)

        def body():
            try:
                prepare(engine)
                result = scenario(engine)
                check(engine)
                return result
            finally:
                engine.dispose()

        if driver in ASYNC:
            return asyncio.run(greenlet_spawn(body))
        return body()

    def prepare(engine):
        metadata.drop_all(engine)
        metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(insert(keyed).values(id=1, data=DataStore(a=np.arange(3))))

    def check(engine):
        """No committed row may be dangling, whatever happened."""
        with engine.connect() as connection:
            urls = set(connection.scalars(select(type_coerce(keyed.c.data, String()))))
            urls.discard(None)
        go.rows = urls
        go.files = {f"file:///{path}" for path in stored.files()}
        assert urls <= go.files, "a committed row is dangling"
        assert not endings._open, "a ledger was left open"

    def exact(count):
        assert go.rows == go.files
        assert len(go.rows) == count

    go.exact = exact
    yield go
    del engines


def put(connection, key, **kwargs):
    connection.execute(insert(keyed).values(id=key, data=DataStore(n=key, **kwargs)))
