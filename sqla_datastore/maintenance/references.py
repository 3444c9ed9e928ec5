"""What rows refer to: the URLs of declared columns as raw text, sorted as storages list.

The URLs of a storage are read in one short transaction by a server-side cursor and spooled to a
temporary file. So no snapshot, lock or cursor stays open while a storage is listed for hours, and
one connection at a time is enough.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import sqlalchemy as sa
from sqlalchemy import Integer, LargeBinary, MetaData, String, literal_column, select, type_coerce
from sqlalchemy.util import concurrency

from sqla_datastore.dml.rows import batch_size, batched, held_urls
from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.maintenance.reports import DanglingRow
from sqla_datastore.removals.table import Removals, removals_of
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable
from sqla_datastore.schema.declarations import check_metadata, declared_tables, present
from sqla_datastore.schema.folders import OwnedFolders, Schemas
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.local import LocalStorage
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import OBJECT_NAME, ObjectURL

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["PENDING", "Declared", "Odd", "Reference", "References", "stem_of"]

_FETCHED = 10_000


PENDING = -1
"""The source of a URL that waits for its removal: no row holds it any more."""


class Reference(NamedTuple):
    """A URL in a row: the column's number, or `PENDING`, and the path."""

    source: int
    path: str


class Odd(NamedTuple):
    """A URL in a row that names no object of this library: why, or "" where it may be read."""

    source: int
    url: str
    reason: str


def stem_of(path: str) -> str:
    """Return what the paths of a family have in common: all before ``zip``, or ``<i>.zip``.

    Families stay together, and in their order, when paths are sorted.
    """
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}."


@dataclass(frozen=True)
class Declared:
    """The declared columns of a MetaData in one database.

    Attributes:
        engine: the database.
        schemas: its ``schema_translate_map``.
        tables: the declared tables.
        columns: the columns of those that are there; a column's number is its place here.
        missing: the names of declared tables that the database lacks.
        removals: the table of durable removals, where they are enabled and it is there.
    """

    engine: Engine
    schemas: Schemas
    tables: tuple[DeclaredTable, ...]
    columns: tuple[DeclaredColumn, ...]
    missing: tuple[str, ...]
    removals: Removals | None

    @classmethod
    def of(cls, engine: Any, metadata: MetaData) -> Declared:
        """Look the declared tables up in the database.

        Raises:
            ConfigurationError: the engine is asynchronous and this is no greenlet of SQLAlchemy's,
                or the MetaData declares no column.
        """
        engine = _of_committed_rows(_synchronous(engine))
        check_metadata(metadata)
        tables = list(declared_tables(metadata))
        if not any(declared.columns for declared in tables):
            raise ConfigurationError(
                "the metadata has no DataStoreType column; name the Base of the models, and import "
                "the modules that define them"
            )
        schemas: Schemas = engine.get_execution_options().get("schema_translate_map") or {}
        with engine.connect() as connection:
            there = present(connection, metadata, schemas)
            removals = removals_of(metadata)
            noted = removals is not None and removals.is_there(connection, schemas)
        missing = [declared.table.fullname for declared in tables if declared not in there]
        if removals is not None and not noted:
            missing.append(removals.table.fullname)
        return cls(
            engine,
            schemas,
            tuple(tables),
            tuple(column for declared in there for column in declared.columns),
            tuple(missing),
            removals if noted else None,
        )

    def storages(self) -> list[Storage]:
        """Return the storages of the columns, one for each base."""
        columns = (column for declared in self.tables for column in declared.columns)
        return list({_place(s): s for s in map(self.storage_of, columns)}.values())

    def owned(self, storage: Storage) -> OwnedFolders:
        """Return the folders of a storage that belong to declared columns."""
        templates = [declared.class_folder for declared in self.tables if declared.class_folder]
        for column in (column for declared in self.tables for column in declared.columns):
            if _place(self.storage_of(column)) == _place(storage):
                templates.append(column.folder)
        return OwnedFolders(templates, self.schemas)

    def held_stems(self, storage: Storage, paths: Sequence[str]) -> set[str]:
        """Return the families of these objects that rows refer to now.

        A storage that lies in another one has other names for the same objects: all count.
        """
        bases = [(other.scheme, _place(other)[1].rstrip("/") + "/") for other in self.storages()]
        base = _place(storage)[1].rstrip("/") + "/"
        near = [each for each in bases if each[1].startswith(base) or base.startswith(each[1])]
        stems: dict[str, str] = {}
        for path in paths:
            for scheme, other in {(storage.scheme, base), *near}:
                if f"{base}{path}".startswith(other):
                    url = ObjectURL(scheme, f"{base}{path}".removeprefix(other))
                    stems[str(url)] = stems[str(url.root())] = stem_of(path)
        return {stems[url] for url in self.held(list(stems)) if url in stems}

    def storage_of(self, column: DeclaredColumn) -> Storage:
        """Return the storage of a column on this engine."""
        return storage_for(column.type.url, self.engine.dialect)

    @contextmanager
    def references(
        self, storage: Storage, owned: OwnedFolders, tick: Callable[[], None]
    ) -> Iterator[References]:
        """Read the URLs of all columns that keep their objects in a storage.

        Args:
            storage: one of `storages`.
            owned: learns the folders that URLs of owning rows remember.
            tick: called for every URL.

        Raises:
            ConfigurationError: the database does not sort as its storage lists.
        """
        numbers = [
            number
            for number, column in enumerate(self.columns)
            if _place(self.storage_of(column)) == _place(storage)
        ]
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as spool,
            tempfile.TemporaryFile("w+", encoding="utf-8") as odd,
        ):
            references = References(spool, odd)
            if numbers:
                for source, url in self._sorted_urls(numbers):
                    column = None if source == PENDING else self.columns[source]
                    references.add(source, url, storage, column, owned)
                    tick()
            yield references

    def _sorted_urls(self, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        selects = []
        for number in numbers:
            url = type_coerce(self.columns[number].column, String())
            source = literal_column(str(number), Integer()).label("source")
            selects.append(select(source, url.label("url")).where(url.is_not(None)))
        if self.removals is not None:
            pending = literal_column(str(PENDING), Integer()).label("source")
            table = self.removals.table
            labels = [self.columns[number].label for number in numbers]
            selects.append(select(pending, table.c.url).where(table.c.source.in_(labels)))
        rows = sa.union_all(*selects).subquery("datastore_urls")
        query = select(rows.c.source, rows.c.url).order_by(_bytewise(self.engine, rows.c.url))
        with self.engine.connect() as connection:
            found = connection.execution_options(yield_per=_FETCHED).execute(query)
            for source, text in found:
                yield source, text

    def held(self, urls: Sequence[str]) -> set[str]:
        """Return those of the URLs that rows hold now, or that wait for their removal.

        Asked in a transaction of its own. All columns are asked, whatever their storage: two
        storages can be one place.
        """
        columns = [column.column for column in self.columns]
        if self.removals is not None:
            columns.append(self.removals.table.c.url)
        with self.engine.connect() as connection:
            return held_urls(connection, columns, urls)

    def dangling(self, source: int, reasons: dict[str, str]) -> Iterator[DanglingRow]:
        """Yield the rows that hold one of the URLs now.

        Args:
            source: the column's number.
            reasons: what is wrong, by URL.
        """
        column = self.columns[source]
        table = column.column.table
        text = type_coerce(column.column, String())
        storage = self.storage_of(column).url
        with self.engine.connect() as connection:
            for batch in batched(list(reasons), batch_size(self.engine.dialect)):
                query = select(text, *table.primary_key).where(text.in_(batch))
                for url, *key in connection.execute(query):
                    # a database may compare without regard to case
                    if url in reasons:
                        names = [each.name for each in table.primary_key]
                        named = dict(zip(names, key, strict=True))
                        name = column.column.name
                        yield DanglingRow(table.fullname, named, name, url, storage, reasons[url])


class References:
    """The URLs that rows keep in one storage, spooled.

    Attributes:
        rows: how many there are.
        objects: how many objects they stand for.
    """

    def __init__(self, spool: TextIO, odd: TextIO) -> None:
        self._spool = spool
        self._odd = odd
        self.rows = 0
        self.objects = 0
        self._last = ""

    def add(
        self,
        source: int,
        url: str,
        storage: Storage,
        column: DeclaredColumn | None,
        owned: OwnedFolders,
    ) -> None:
        """Spool a URL; one that names no object of this library is kept apart.

        Args:
            source: the column's number, or `PENDING`.
            url: the URL.
            storage: where its object should be.
            column: the column, or None for a URL that waits for its removal.
            owned: learns the folders that URLs of owning rows remember.

        Raises:
            ConfigurationError: the URL before it should have come after it.
        """
        self.rows += column is not None
        try:
            parsed = ObjectURL.parse(url)
        except RefusedURLError as err:
            self._note_odd(source, url, str(err))
            return
        if parsed.scheme != storage.scheme:
            self._note_odd(source, url, f"{storage.url!r} serves {storage.scheme}: URLs")
        elif not OBJECT_NAME.fullmatch(parsed.name):
            self._note_odd(source, url, "")
        else:
            if parsed.path < self._last:
                raise ConfigurationError(
                    f"the database ({url!r}) does not sort URLs byte by byte: "
                    f"{self._last!r} came before {parsed.path!r}"
                )
            self._last = parsed.path
            self.objects += 1 + parsed.nested_count
            self._spool.write(f"{source} {parsed.path}\n")
            if column is not None and column.folder.owns:
                owned.remember(parsed.folder)

    def _note_odd(self, source: int, url: str, reason: str) -> None:
        if source != PENDING:
            self._odd.write(json.dumps([source, url, reason]) + "\n")

    def __iter__(self) -> Iterator[Reference]:
        self._spool.seek(0)
        for line in self._spool:
            source, _, path = line.rstrip("\n").partition(" ")
            yield Reference(int(source), path)

    def odd(self) -> Iterator[Odd]:
        """Yield the URLs that name no object of this library."""
        self._odd.seek(0)
        for line in self._odd:
            yield Odd(*json.loads(line))


def _place(storage: Storage) -> tuple[str, str]:
    """Return what two storages share whose objects are the same: two names of a folder are one."""
    if isinstance(storage, LocalStorage):
        return storage.scheme, os.path.realpath(storage.base)
    return storage.scheme, storage.url


def _bytewise(engine: Engine, url: Any) -> Any:
    """Return what sorts texts as Python does, whatever the column's collation."""
    name = engine.dialect.name
    if name == "postgresql":
        return sa.collate(url, "C")
    if name in ("mysql", "mariadb"):
        return sa.cast(url, LargeBinary())
    return sa.collate(url, "BINARY") if name == "sqlite" else url


def _of_committed_rows(engine: Engine) -> Engine:
    """Return an engine that does not read what may be rolled back yet, whatever its level."""
    if engine.dialect.name in ("mysql", "mariadb", "postgresql"):
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine


def _synchronous(engine: Any) -> Engine:
    sync = getattr(engine, "sync_engine", engine)
    if not isinstance(sync, sa.Engine):
        raise TypeError(f"maintenance takes an Engine, not {type(engine).__name__!r}")
    if sync.dialect.is_async and not concurrency.in_greenlet():
        raise ConfigurationError(
            f"the engine {sync.url.drivername!r} is asynchronous; give an Engine of a synchronous "
            "driver, or call from connection.run_sync()"
        )
    return sync
