"""Private databases, engines on them, and what lies in a storage's folder."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text

from sqla_datastore import bind_storage
from sqla_datastore.storage.protocol import Storage

DATABASES = ("sqlite", "postgresql", "mariadb")
ADMIN_DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}
STRIDE = int(os.environ.get("SQLA_DATASTORE_TEST_STRIDE", "1"))
"""Tests that try every call of a scenario try every call of this number."""


def with_driver(url: str, drivername: str) -> str:
    """Return the URL with another dialect and driver."""
    return make_url(url).set(drivername=drivername).render_as_string(hide_password=False)


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
    def connect(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA foreign_keys=ON")
        dbapi_connection.execute("PRAGMA synchronous=OFF")  # no test cuts the power

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def make_engine(
    url: str | URL, storage: Storage | Path | str | None = None, **kwargs: Any
) -> Engine:
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

    def tree(self) -> dict[str, bytes]:
        """The bytes of every file, and nothing for every folder, by path."""
        files = {path: (self.base / path).read_bytes() for path in self.files()}
        return files | {f"{folder}/": b"" for folder in self.folders()}

    def put_back(self, wanted: Mapping[str, bytes]) -> None:
        """Make the tree what it was."""
        tree = self.tree()
        for path in sorted(tree.keys() - wanted.keys(), reverse=True):
            (self.base / path).rmdir() if path.endswith("/") else (self.base / path).unlink()
        for path in sorted(wanted):
            if path.endswith("/"):
                (self.base / path).mkdir(exist_ok=True)
            elif tree.get(path) != wanted[path]:
                (self.base / path).write_bytes(wanted[path])
