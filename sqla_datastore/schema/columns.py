"""Declared columns: which tables hold values, and in which folders.

A column's type declares its folder; `__datastore_folder__` on a mapped class declares that its rows
own a folder without having such a column.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, Table, TypeDecorator, inspect
from sqlalchemy.orm import Mapper, registry

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.schema.folders import (
    FolderTemplate,
    can_meet,
    check_template,
    fields_of,
    is_child,
    meets,
)
from sqla_datastore.schema.sqlalchemy_compat import variants
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.protocol import Storage

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

__all__ = [
    "DeclaredColumn",
    "DeclaredTable",
    "check_registries",
    "declared",
    "is_declared",
    "note_mapper",
    "present",
    "present_columns",
    "refuse_owned_prefix",
    "declared_table",
]

_lock = threading.Lock()
_registries: weakref.WeakSet[registry] = weakref.WeakSet()
_metadatas: weakref.WeakSet[MetaData] = weakref.WeakSet()
_tables: weakref.WeakKeyDictionary[Table, DeclaredTable] = weakref.WeakKeyDictionary()
_checked: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class DeclaredType(TypeDecorator[Any]):
    """The column type as tables declare it: `DataStoreType` is the one that values know.

    Attributes:
        url: the storage of the column, None for the engine's or the process's.
        folder: the template of its rows' folders.
    """

    url: str | None
    folder: str


@dataclass(frozen=True, eq=False)
class DeclaredColumn:
    """A declared column: the `Column`, its type and its folder."""

    column: Column[Any]
    type: DeclaredType
    folder: FolderTemplate

    @property
    def label(self) -> str:
        """``table.column``, for messages."""
        return f"{self.column.table.name}.{self.column.name}"


@dataclass(frozen=True, eq=False)
class DeclaredTable:
    """What one table has to do with storages.

    Attributes:
        columns: its declared columns.
        class_folder: the template of a `__datastore_folder__`, or None.
    """

    table: Table
    columns: tuple[DeclaredColumn, ...]
    class_folder: FolderTemplate | None

    @property
    def plain_columns(self) -> list[Column[Any]]:
        """The declared columns as SQLAlchemy's."""
        return [column.column for column in self.columns]

    @property
    def needs(self) -> list[Column[Any]]:
        """The columns of this table that templates and the primary key need."""
        return [c for c in self._all_needs if c.table is self.table]

    @property
    def inherited_needs(self) -> list[Column[Any]]:
        """The columns that templates need of the tables that this one inherits from."""
        return [c for c in self._all_needs if c.table is not self.table]

    @cached_property
    def _all_needs(self) -> list[Column[Any]]:
        owners = [column.folder for column in self.columns]
        owners += [self.class_folder] if self.class_folder else []
        wanted = [*self.table.primary_key, *(c for owner in owners for c in owner.needs)]
        return list(dict.fromkeys(wanted))


def note_mapper(mapper: Mapper[Any], *_: Any) -> None:
    """Remember where mappers are found. Called when one is constructed."""
    with _lock:
        _registries.add(mapper.registry)
        _tables.clear()


def note_column(column: Column[Any], table: Any) -> None:
    """Remember which MetaData declares values. Called when a column is attached to its table.

    Raises:
        ConfigurationError: the column type is inside another type.
    """
    if not isinstance(table, Table):
        return
    if is_declared(column):
        with _lock:
            _metadatas.add(table.metadata)
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
    for each in _seen():
        # a registry that was disposed of has no mappers any more
        if any(each.mappers):
            check_metadata(each.metadata)


def _seen() -> list[registry]:
    with _lock:
        return list(_registries)


def _mappers(table: Table) -> list[Mapper[Any]]:
    return [m for each in _seen() for m in each.mappers if table in m.tables]


def declared_table(table: Any) -> DeclaredTable | None:
    """Return what a table has to do with storages, or None if nothing.

    Raises:
        ConfigurationError: a template names an attribute that rows do not have, or the templates of
            two tables can meet.
    """
    if not isinstance(table, Table):
        return None
    declared = _declared(table)
    if not (declared.columns or declared.class_folder):
        return None
    check_metadata(table.metadata)
    return declared


def declared_tables(metadata: Any) -> Iterator[DeclaredTable]:
    """Yield every table of a MetaData that has to do with storages."""
    for table in list(metadata.tables.values()):
        declared = _declared(table)
        if declared.columns or declared.class_folder:
            yield declared


def present(
    connection: Connection, metadata: Any, schemas: Mapping[str | None, str | None]
) -> list[DeclaredTable]:
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
        if inspector.has_table(
            declared.table.name, schema=schemas.get(declared.table.schema, declared.table.schema)
        )
    ]


def present_columns(
    connection: Connection, declared: DeclaredTable, schemas: Mapping[str | None, str | None]
) -> list[Column[Any]]:
    """Return the declared columns of a table that the database has.

    Args:
        connection: a connection to it.
        declared: the table.
        schemas: a ``schema_translate_map``.
    """
    inspector = inspect(connection)
    table, schema = declared.table.name, schemas.get(declared.table.schema, declared.table.schema)
    if not inspector.has_table(table, schema=schema):
        return []
    names = {column["name"] for column in inspector.get_columns(table, schema=schema)}
    return [column for column in declared.plain_columns if column.name in names]


def _declared(table: Table) -> DeclaredTable:
    declared = _tables.get(table)
    if declared is None:
        declared = _tables[table] = _resolve(table)
    return declared


def holds_values(type_: Any) -> bool:
    """Return whether a type is the column type, or has it inside, where it cannot be followed."""
    inner = [getattr(type_, "item_type", None), *variants(type_)]
    if isinstance(type_, TypeDecorator):
        inner.append(type_.impl_instance)
    return isinstance(type_, DeclaredType) or any(map(holds_values, filter(None, inner)))


def is_declared(column: Column[Any]) -> bool:
    """Return whether a column holds values."""
    return isinstance(column.type, DeclaredType)


def _resolve(table: Table) -> DeclaredTable:
    columns = tuple(
        DeclaredColumn(
            column, column.type, _folder_template(table, column.type.folder, str(column))
        )  # type: ignore[arg-type, attr-defined]
        for column in table.columns
        if is_declared(column)
    )
    folders = {
        vars(mapper.class_)["__datastore_folder__"]: mapper
        for mapper in _mappers(table)
        if mapper.local_table is table and "__datastore_folder__" in vars(mapper.class_)
    }
    if len(folders) > 1:
        raise ConfigurationError(
            f"table {table.name!r} has several __datastore_folder__: {sorted(folders)}"
        )
    class_folder = None
    for template, mapper in folders.items():
        place = f"{mapper.class_.__name__}.__datastore_folder__"
        class_folder = _folder_template(table, check_template(template), place)
        if not class_folder.owns:
            raise ConfigurationError(
                f"{place} = {template!r} does not hold the primary key, so no row owns the folder"
            )
    return DeclaredTable(table, columns, class_folder)


def _folder_template(table: Table, template: str, place: str) -> FolderTemplate:
    fields = [field for field in fields_of(template) if field not in ("table", "pk")]
    columns = {field: _column(table, field, template, place) for field in fields}
    key = set(table.primary_key)
    owns = bool(key) and ("pk" in fields_of(template) or key <= set(columns.values()))
    if "pk" in fields_of(template) and not key:
        raise ConfigurationError(f"{place}: folder={template!r} needs a primary key")
    return FolderTemplate(table, template, columns, owns)


def _column(table: Table, field: str, template: str, place: str) -> Column[Any]:
    for mapper in _mappers(table):
        column = mapper.columns.get(field)
        if isinstance(column, Column):
            return _own_column(table, column)
    if field in table.c:
        return table.c[field]
    raise ConfigurationError(
        f"{place}: folder={template!r} names {field!r}, which is no attribute of its rows"
    )


def _own_column(table: Table, column: Column[Any]) -> Column[Any]:
    """Return a table's own copy of a column, where joined inheritance gives it one."""
    if column.table is not table:
        for own in table.c:
            if any(key.column is column for key in own.foreign_keys):
                return own
    return column


# -- templates that can meet -----------------------------------------------------------------------


def check_metadata(metadata: Any) -> None:
    """Refuse templates of different tables that can meet; cached until tables are added.

    Raises:
        ConfigurationError: the rows of one table could own what rows of another put there.
    """
    tables = len(metadata.tables)
    if _checked.get(metadata) == tables:
        return
    places = [
        (owner, url) for declared in declared_tables(metadata) for owner, url in _places(declared)
    ]
    for owner, storage in places:
        for other, other_storage in places:
            if owner.owns and owner.table is not other.table and storage is other_storage:
                _check_pair(owner, other)
    _checked[metadata] = tables


def _places(declared: DeclaredTable) -> list[tuple[FolderTemplate, Storage | None]]:
    """Return the folder templates of a table with their storages, None where the engine has it."""
    places = [(column.folder, _explicit(column)) for column in declared.columns]
    if declared.class_folder:
        columns = [column for s in declared_tables(declared.table.metadata) for column in s.columns]
        storages = dict.fromkeys(map(_explicit, columns)) or {None: None}
        places += [(declared.class_folder, storage) for storage in storages]
    return places


def _explicit(column: DeclaredColumn) -> Storage | None:
    return None if column.type.url is None else storage_for(column.type.url, None)


def _check_pair(owner: FolderTemplate, other: FolderTemplate) -> None:
    if not can_meet(owner, other) or is_child(owner, other):
        return
    raise ConfigurationError(
        f"the folders {owner.template!r} of table {owner.table.name!r} and {other.template!r} of "
        f"table {other.table.name!r} can be the same; start one of them with a name of its own, or "
        f"give {other.table.name!r} a foreign key, and no deferrable one, to the row that owns the "
        "folder"
    )


def refuse_owned_prefix(prefix: str, metadatas: Iterable[Any] | None = None) -> None:
    """Refuse a self-managed prefix that falls into folders that rows own.

    Args:
        prefix: a relative storage path.
        metadatas: the MetaData collections to look at, by default all that declare columns.

    Raises:
        RefusedURLError: the prefix could be, or lie in, or hold an owned folder.
    """
    segments = prefix.strip("/").split("/")
    if metadatas is None:
        with _lock:
            metadatas = list(_metadatas)
    for owner in _templates(metadatas):
        if meets(owner, segments):
            raise RefusedURLError(
                prefix,
                f"it meets the folders {owner.template!r} of table {owner.table.name!r}; choose a "
                "prefix with a name of its own",
            )


def _templates(metadatas: Iterable[Any]) -> Iterator[FolderTemplate]:
    for table in [table for metadata in metadatas for table in metadata.tables.values()]:
        # one that cannot be resolved, not mapped yet for instance, has no rows of ours yet
        with suppress(ConfigurationError):
            yield from [owner for owner, _ in _places(_declared(table))]
