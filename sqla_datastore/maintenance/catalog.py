"""The declared columns as one database has them, and what their rows hold.

URLs are read as raw text: no value is loaded. The questions are asked at READ COMMITTED, each in a
transaction of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Integer, LargeBinary, MetaData, String, literal_column, select, type_coerce
from sqlalchemy.util import concurrency

from sqla_datastore.dml.dialects import batch_size, takes_read_committed
from sqla_datastore.dml.row_queries import batched, held_urls
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.maintenance.references import PENDING, References, stem_of
from sqla_datastore.maintenance.reports import DanglingRow
from sqla_datastore.removals.table import Removals, removals_of
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable
from sqla_datastore.schema.declarations import check_metadata, declared_tables, present
from sqla_datastore.schema.folders import OwnedFolders, Schemas
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import DATA_PREFIX, ObjectURL

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

FETCHED_ROWS = 10_000


@dataclass(frozen=True)
class Catalog:
    """The declared columns of a MetaData in one database.

    Attributes:
        engine: the database.
        schemas: its ``schema_translate_map``.
        tables: the declared tables.
        columns: the columns of those that the database has; a column's number is its place here.
        missing: the names of declared tables that the database lacks.
        removals: the table of removals, where removals are enabled and the database has it.
    """

    engine: Engine
    schemas: Schemas
    tables: tuple[DeclaredTable, ...]
    columns: tuple[DeclaredColumn, ...]
    missing: tuple[str, ...]
    removals: Removals | None

    @classmethod
    def of(cls, engine: Any, metadata: MetaData, *, force: bool = False) -> Catalog:
        """Look the declared tables up in the database.

        Args:
            engine: the database.
            metadata: the declared tables.
            force: go on where a declared table is missing.

        Raises:
            ConfigurationError: the engine is asynchronous and no greenlet of SQLAlchemy's is
                running; the MetaData declares no column; or a declared table is missing.
        """
        catalog = cls._look_up(_reading_committed(_synchronous(engine)), metadata)
        if catalog.missing and not force:
            names = ", ".join(map(repr, catalog.missing))
            raise ConfigurationError(
                f"the database lacks the declared tables {names}; give the right database, or "
                "create them (metadata.create_all(engine), or alembic upgrade head)"
            )
        return catalog

    @classmethod
    def _look_up(cls, engine: Engine, metadata: MetaData) -> Catalog:
        check_metadata(metadata)
        tables = list(declared_tables(metadata))
        if not any(declared.columns for declared in tables):
            raise ConfigurationError(
                "the metadata has no DataStoreType column; name the Base of the models, and import "
                "the modules that define them"
            )
        schemas: Schemas = engine.get_execution_options().get("schema_translate_map") or {}
        removals = removals_of(metadata)
        with engine.connect() as connection:
            there = present(connection, metadata, schemas)
            has_removals = removals is not None and removals.is_there(connection, schemas)
        missing = [declared.table.fullname for declared in tables if declared not in there]
        if removals is not None and not has_removals:
            missing.append(removals.table.fullname)
        return cls(
            engine,
            schemas,
            tuple(tables),
            tuple(column for declared in there for column in declared.columns),
            tuple(missing),
            removals if has_removals else None,
        )

    # -- storages ----------------------------------------------------------------------------------

    def storages(self) -> list[Storage]:
        """Return the storages of the columns, one for each base."""
        # of missing tables as well: what lies in their storages has to be looked at with `force`
        columns = (column for declared in self.tables for column in declared.columns)
        return list({s.place: s for s in map(self.storage_of, columns)}.values())

    def storage_of(self, column: DeclaredColumn) -> Storage:
        """Return the storage of a column on this engine."""
        return storage_for(column.type.url, self.engine.dialect)

    def owned(self, storage: Storage) -> OwnedFolders:
        """Return the folders of a storage that belong to declared columns."""
        templates = [declared.class_folder for declared in self.tables if declared.class_folder]
        for column in (column for declared in self.tables for column in declared.columns):
            if self.storage_of(column).place == storage.place:
                templates.append(column.folder)
        return OwnedFolders(templates, self.schemas)

    # -- rows --------------------------------------------------------------------------------------

    @contextmanager
    def references(
        self, storage: Storage, owned: OwnedFolders, count_url: Callable[[], None]
    ) -> Iterator[References]:
        """Read the URLs of all columns that keep their objects in a storage.

        Args:
            storage: one of `storages`.
            owned: learns the folders that URLs of owning rows remember.
            count_url: called for every URL.

        Raises:
            ConfigurationError: the database does not sort as its storage lists.
        """
        numbers = [
            number
            for number, column in enumerate(self.columns)
            if self.storage_of(column).place == storage.place
        ]
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as spool,
            tempfile.TemporaryFile("w+", encoding="utf-8") as unmanaged,
        ):
            references = References(spool, unmanaged)
            if numbers:
                for source, url in self._sorted_urls(numbers):
                    column = None if source == PENDING else self.columns[source]
                    references.add(source, url, storage, column, owned)
                    count_url()
            yield references

    def _sorted_urls(self, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Yield the URLs of some columns with their sources, by a server-side cursor."""
        rows = sa.union_all(*self._selects_of_urls(numbers)).subquery("datastore_urls")
        query = select(rows.c.source, rows.c.url).order_by(_bytewise(self.engine, rows.c.url))
        with self.engine.connect() as connection:
            # without `yield_per` most drivers fetch all rows before the first is seen
            found = connection.execution_options(yield_per=FETCHED_ROWS).execute(query)
            yield from ((row.source, row.url) for row in found)

    def _selects_of_urls(self, numbers: Sequence[int]) -> Iterator[sa.SelectBase]:
        for number in numbers:
            url = type_coerce(self.columns[number].column, String())
            source = literal_column(str(number), Integer()).label("source")
            # NULL is like nothing, and what lies in the row has no object
            yield select(source, url.label("url")).where(url.not_like(f"{DATA_PREFIX}%"))
        if self.removals is not None:
            pending = literal_column(str(PENDING), Integer()).label("source")
            table = self.removals.table
            # the table also has removals of other storages, and of other models
            labels = [self.columns[number].label for number in numbers]
            yield select(pending, table.c.url).where(table.c.source.in_(labels))

    def held(self, urls: Sequence[str]) -> set[str]:
        """Return those of the URLs that rows hold now, or that wait for their removal.

        All columns are asked, whatever their storage: two storages can be one place.
        """
        columns = [column.column for column in self.columns]
        if self.removals is not None:
            columns.append(self.removals.table.c.url)
        with self.engine.connect() as connection:
            return held_urls(connection, columns, urls)

    def held_stems(self, storage: Storage, paths: Sequence[str]) -> set[str]:
        """Return the stems of those families that rows refer to now, by any member's URL.

        A storage that lies within another one has other URLs for the same objects: all count.

        Args:
            storage: where the objects are.
            paths: some or all members of each family.
        """
        bases = [(other.scheme, _prefix(other)) for other in self.storages()]
        base = _prefix(storage)
        near = [each for each in bases if each[1].startswith(base) or base.startswith(each[1])]
        stems: dict[str, str] = {}
        for path in paths:
            for scheme, other in {(storage.scheme, base), *near}:
                if f"{base}{path}".startswith(other):
                    url = ObjectURL(scheme, f"{base}{path}".removeprefix(other))
                    # a row has the first one's URL, but raw SQL may have put a nested one's there
                    stems[str(url)] = stems[str(url.root())] = stem_of(path)
        return {stems[url] for url in self.held(list(stems)) if url in stems}

    def dangling(self, source: int, reasons: dict[str, str]) -> Iterator[DanglingRow]:
        """Yield the rows that hold one of the URLs now.

        Args:
            source: the column's number.
            reasons: what is wrong, by URL.
        """
        column = self.columns[source]
        table = column.column.table
        url = type_coerce(column.column, String())
        storage = self.storage_of(column).url
        names = [each.name for each in table.primary_key]
        with self.engine.connect() as connection:
            for batch in batched(list(reasons), batch_size(self.engine.dialect)):
                query = select(url, *table.primary_key).where(url.in_(batch))
                for text, *key in connection.execute(query):
                    # a database may compare without regard to case
                    if text in reasons:
                        yield DanglingRow(
                            table.fullname,
                            dict(zip(names, key, strict=True)),
                            column.column.name,
                            text,
                            storage,
                            reasons[text],
                        )


def _prefix(storage: Storage) -> str:
    return storage.place.rstrip("/") + "/"


def is_one_place(one: Storage, other: Storage) -> bool:
    """Return whether two storages have the same objects."""
    return one.scheme == other.scheme and one.place == other.place


def are_apart(one: Storage, other: Storage) -> bool:
    """Return whether no object of two storages is the other one's too, under whatever path."""
    # whatever their schemes: storages of two kinds may be one folder
    bases = _prefix(one), _prefix(other)
    return not (
        bases[0].startswith(bases[1])
        or bases[1].startswith(bases[0])
        # a bind mount gives a folder a second name that is no link
        or (all(map(os.path.isdir, bases)) and os.path.samefile(*bases))
    )


def _bytewise(engine: Engine, url: Any) -> Any:
    """Return what sorts texts as Python does, whatever the column's collation."""
    name = engine.dialect.name
    if name == "postgresql":
        return sa.collate(url, "C")
    if name in ("mysql", "mariadb"):
        return sa.cast(url, LargeBinary())
    return sa.collate(url, "BINARY") if name == "sqlite" else url


def _reading_committed(engine: Engine) -> Engine:
    """Return an engine that reads only committed rows, whatever the given one's level."""
    if takes_read_committed(engine.dialect):
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine


def _synchronous(engine: Any) -> Engine:
    sync = getattr(engine, "sync_engine", engine)
    if not isinstance(sync, sa.Engine):
        raise TypeError(f"maintenance takes an Engine, not {type(engine).__name__!r}")
    # within `run_sync()` SQLAlchemy awaits the driver in its greenlet
    if sync.dialect.is_async and not concurrency.in_greenlet():
        raise ConfigurationError(
            f"the engine {sync.url.drivername!r} is asynchronous; give an Engine of a synchronous "
            "driver, or call from connection.run_sync()"
        )
    return sync
