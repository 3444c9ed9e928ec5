"""A database and a storage that many examples share, and what goes wrong with the storage."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, event

from sqla_datastore import StorageError
from sqla_datastore.storage.protocol import ObjectWriter, Storage
from support.databases import Stored
from support.exactness import delete_rows
from support.machine.model import Model
from support.machine.models import Base
from support.object_stores import StoredInBucket


class AttackedStorage:
    """A storage that fails when it is told to, and lets others in just before it removes.

    Args:
        storage: what does the work.

    Attributes:
        failing: the method that raises, if any.
        before_remove: called with the paths before they are removed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.failing: str | None = None
        self.before_remove: Callable[[list[str]], None] = lambda paths: None
        # from Python 3.12 on, a protocol is looked for without __getattr__
        for name in {"leftovers", "remove_leftovers"} & set(dir(storage)):
            setattr(self, name, getattr(storage, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def _strike(self, method: str) -> None:
        if self.failing == method:
            raise StorageError(f"{method} was made to fail")

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        self._strike("create")
        with self._storage.create(path) as writer:
            yield writer

    def make_durable(self, paths: Iterable[str]) -> None:
        self._strike("make_durable")
        self._storage.make_durable(paths)

    def remove(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        self.before_remove(paths)
        self._strike("remove")
        self._storage.remove(paths)


class World:
    """A database and a storage for many examples; tells the model what the database is told.

    Args:
        engine: the database, its tables made.
        other: another engine on it, for those who come between.
        storage: bound to the first engine.
        stored: what lies there, seen without the library.
    """

    def __init__(
        self,
        engine: Engine,
        other: Engine,
        storage: AttackedStorage,
        stored: Stored | StoredInBucket,
    ) -> None:
        self.engine = engine
        self.other = other
        self.storage = storage
        self.stored = stored
        self.model = Model()
        self.aside = False
        self.steps: Counter[str] = Counter()
        self.ends = 0
        self.collected = 0
        # the event `savepoint` does not tell the name that SQLAlchemy gives it
        event.listen(engine, "before_cursor_execute", self._savepoint)
        for name in ("release_savepoint", "rollback_savepoint", "commit", "rollback"):
            event.listen(engine, name, getattr(self, f"_{name}"))

    @contextlib.contextmanager
    def unobserved(self) -> Iterator[None]:
        """Keep transactions of the block from the model."""
        self.aside = True
        try:
            yield
        finally:
            self.aside = False

    def reset(self) -> None:
        """Empty the tables and the storage."""
        self.model = Model()
        self.storage.failing = None
        self.storage.before_remove = lambda paths: None
        with self.unobserved():
            delete_rows(self.engine, Base.metadata)
        self.stored.put_back({})

    def _savepoint(
        self, connection: Connection, _cursor: object, statement: str, *_: object
    ) -> None:
        if self.aside or not statement.startswith("SAVEPOINT"):
            return
        name = statement.split()[1]
        self.model.savepoint(name)
        raw: Any = connection.connection.dbapi_connection
        if connection.dialect.name == "sqlite" and not raw.in_transaction:
            # it begins the transaction, so releasing it will commit
            self.model.root_savepoint = name

    def _release_savepoint(self, _connection: object, name: str, _context: object) -> None:
        if not self.aside:
            self.model.release(name)

    def _rollback_savepoint(self, _connection: object, name: str, _context: object) -> None:
        if not self.aside:
            self.model.rollback_to(name)

    def _commit(self, _connection: object) -> None:
        if not self.aside:
            self.model.commit()

    def _rollback(self, connection: Connection) -> None:
        # one that is detached asks for the reason why an object is missing, and writes nothing
        if not self.aside and not connection.connection.is_detached:
            self.model.rollback()
