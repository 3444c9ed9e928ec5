"""The databases and storages that tests run on: names, private databases, engines, what lies on disk."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, create_engine, event, make_url, text

from sqla_datastore import bind_storage

DATABASES = ("sqlite", "postgresql", "mariadb")
REQUIRED = [
    name.strip()
    for name in os.environ.get("SQLA_DATASTORE_TEST_DATABASES", "").split(",")
    if name.strip()
]


STRIDE = int(os.environ.get("SQLA_DATASTORE_TEST_STRIDE", "1"))


@contextlib.contextmanager
def private_database(url: str) -> Iterator[str]:
    """Create a database of a random name on a server and drop it afterwards; yield its URL."""
    name = f"sqla_datastore_{uuid.uuid4().hex[:12]}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            forced = " WITH (FORCE)" if admin.dialect.name == "postgresql" else ""
            connection.execute(text(f"DROP DATABASE {name}{forced}"))
        admin.dispose()


def explicit_begin(engine: Engine) -> None:
    """Have SQLite begin transactions when SQLAlchemy does, as its documentation recommends."""

    @event.listens_for(engine, "connect")
    def connect(dbapi_connection, _record):
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA foreign_keys=ON")
        dbapi_connection.execute("PRAGMA synchronous=OFF")  # no test cuts the power

    @event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN")


def make_engine(url: str, storage: Path | None = None, **kwargs) -> Engine:
    """Create an engine with explicit transactions and, optionally, a bound storage."""
    engine = create_engine(url, **kwargs)
    if engine.dialect.name == "sqlite":
        explicit_begin(engine)
    if storage is not None:
        bind_storage(engine, storage)
    return engine


class Stored:
    """What lies in a storage's folder, seen without the library."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def files(self) -> set[str]:
        """Every file below the base, temporary ones included."""
        return {str(p.relative_to(self.base)) for p in self.base.rglob("*") if not p.is_dir()}

    def folders(self) -> set[str]:
        """Every folder below the base."""
        return {str(p.relative_to(self.base)) for p in self.base.rglob("*") if p.is_dir()}
