"""All that the process has declared: the tables with declared columns, found as they are made.

Listeners note each mapper and each declared column; the tables are resolved when they are first
asked for, because a template may name an attribute that is mapped later.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import Column, MetaData, Table, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, registry

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.schema.columns import DeclaredTable, holds_values, is_declared
from sqla_datastore.schema.conflicts import refuse_conflicts, refuse_prefix
from sqla_datastore.schema.folders import FolderTemplate, Schemas

_UNKNOWN: Any = object()


class Declarations:
    """The registries, MetaData and tables that were seen, and what is known of them.

    Any thread may add to them: modules with mapped classes can be imported at any time.

    Attributes:
        version: grows with everything that is added.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.version = 0
        self._registries: weakref.WeakSet[registry] = weakref.WeakSet()
        self._metadatas: weakref.WeakSet[MetaData] = weakref.WeakSet()
        # None for a table that declares nothing: what it holds would keep the table alive
        self._tables: weakref.WeakKeyDictionary[Table, DeclaredTable | None] = (
            weakref.WeakKeyDictionary()
        )
        self._checked: weakref.WeakKeyDictionary[MetaData, int] = weakref.WeakKeyDictionary()

    @property
    def registries(self) -> list[registry]:
        """The registries of mappers."""
        with self._lock:
            return list(self._registries)

    @property
    def metadatas(self) -> list[MetaData]:
        """The MetaData collections that have a declared column."""
        with self._lock:
            return list(self._metadatas)

    def add_registry(self, found: registry) -> None:
        """Note a registry that has a new mapper, which templates may name an attribute of."""
        with self._lock:
            self._registries.add(found)
            self._tables.clear()
            self.version += 1

    def add_metadata(self, found: MetaData) -> None:
        """Note a MetaData that has a declared column."""
        with self._lock:
            self._metadatas.add(found)
            self._tables.clear()
            self.version += 1

    def resolve(self, table: Table) -> DeclaredTable | None:
        """Return what a table declares, None for nothing; remembered until there are more mappers.

        Raises:
            ConfigurationError: as `DeclaredTable.resolve`.
        """
        found: DeclaredTable | None = self._tables.get(table, _UNKNOWN)
        if found is _UNKNOWN:
            # of subclasses, too: a template may name an attribute that only they map
            mappers = [m for each in self.registries for m in each.mappers if table in m.tables]
            declared = DeclaredTable.resolve(table, mappers)
            found = self._tables[table] = declared if declared.templates else None
        return found

    def check(self, metadata: MetaData) -> None:
        """Refuse conflicts between the tables of a MetaData; once, until tables are added.

        Raises:
            ConfigurationError: as `DeclaredTable.resolve` and `refuse_conflicts`.
        """
        tables = len(metadata.tables)
        if self._checked.get(metadata) != tables:
            refuse_conflicts(list(declared_tables(metadata)))
            self._checked[metadata] = tables


DECLARATIONS = Declarations()


# -- listeners -----------------------------------------------------------------------------------


def note_mapper(mapper: Mapper[Any], *_: Any) -> None:
    """Remember where mappers are found. Called when one is constructed."""
    DECLARATIONS.add_registry(mapper.registry)


def note_column(column: Column[Any], table: Any) -> None:
    """Remember which MetaData declares values. Called when a column is attached to its table.

    Raises:
        ConfigurationError: the column type is inside another type.
    """
    if not isinstance(table, Table):
        return
    if is_declared(column):
        DECLARATIONS.add_metadata(table.metadata)
    elif holds_values(column.type):
        raise ConfigurationError(
            f"column {column} wraps DataStoreType in {column.type!r}, where its objects cannot be "
            "followed; use DataStoreType itself, or a subclass of it"
        )


def check_registries() -> None:
    """Refuse templates that contradict each other. Called once mappers are configured.

    Raises:
        ConfigurationError: as `declared_table`.
    """
    for each in DECLARATIONS.registries:
        # a registry that was disposed of has no mappers any more
        if any(each.mappers):
            check_metadata(each.metadata)


# -- look up -------------------------------------------------------------------------------------


def declared_table(table: Any) -> DeclaredTable | None:
    """Return what a table has to do with storages, or None if nothing.

    Raises:
        ConfigurationError: a template names an attribute that rows do not have, or the templates of
            two tables can meet.
    """
    if not isinstance(table, Table):
        return None
    declared = DECLARATIONS.resolve(table)
    if declared is not None:
        DECLARATIONS.check(table.metadata)
    return declared


def declared_tables(metadata: MetaData) -> Iterator[DeclaredTable]:
    """Yield every table of a MetaData that has to do with storages."""
    # a copy: another thread may import models meanwhile
    for table in list(metadata.tables.values()):
        declared = DECLARATIONS.resolve(table)
        if declared is not None:
            yield declared


def present(connection: Connection, metadata: MetaData, schemas: Schemas) -> list[DeclaredTable]:
    """Return the declared tables that the database has.

    Args:
        connection: a connection to it.
        metadata: declares the tables.
        schemas: a ``schema_translate_map``.
    """
    inspector = inspect(connection)
    return [
        declared
        for declared in declared_tables(metadata)
        if inspector.has_table(declared.table.name, schema=_schema(declared, schemas))
    ]


def present_columns(
    connection: Connection, declared: DeclaredTable, schemas: Schemas
) -> list[Column[Any]]:
    """Return the declared columns of a table that the database has.

    Args:
        connection: a connection to it.
        declared: the table.
        schemas: a ``schema_translate_map``.
    """
    inspector = inspect(connection)
    table, schema = declared.table.name, _schema(declared, schemas)
    if not inspector.has_table(table, schema=schema):
        return []
    names = {column["name"] for column in inspector.get_columns(table, schema=schema)}
    return [column for column in declared.plain_columns if column.name in names]


def _schema(declared: DeclaredTable, schemas: Schemas) -> str | None:
    return schemas.get(declared.table.schema, declared.table.schema)


# -- conflicts -----------------------------------------------------------------------------------


def check_metadata(metadata: MetaData) -> None:
    """Refuse templates of different tables that can meet; cached until tables are added.

    Raises:
        ConfigurationError: the rows of one table could own what rows of another put there.
    """
    DECLARATIONS.check(metadata)


def refuse_owned_prefix(prefix: str, metadatas: Iterable[MetaData] | None = None) -> None:
    """Refuse a self-managed prefix that falls into folders that rows own.

    Args:
        prefix: a relative storage path.
        metadatas: the MetaData collections to look at, by default all that declare columns.

    Raises:
        RefusedURLError: the prefix could be, or lie in, or hold an owned folder.
    """
    refuse_prefix(prefix, _templates(DECLARATIONS.metadatas if metadatas is None else metadatas))


def _templates(metadatas: Iterable[MetaData]) -> Iterator[FolderTemplate]:
    for table in [table for metadata in metadatas for table in metadata.tables.values()]:
        # one that cannot be resolved, not mapped yet for instance, has no rows of ours yet
        with suppress(ConfigurationError):
            declared = DECLARATIONS.resolve(table)
            yield from declared.templates if declared else ()
