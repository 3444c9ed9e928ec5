"""The declared columns of one table: those that hold values, and the folders of its rows.

A column's type declares its folder; `__datastore_folder__` on a mapped class declares that its rows
own a folder without having such a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from sqlalchemy import Column, Select, Table, TypeDecorator
from sqlalchemy.orm import Mapper

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.schema.folder_templates import check_template
from sqla_datastore.schema.folders import FolderTemplate
from sqla_datastore.schema.sqlalchemy_compat import variants
from sqla_datastore.typed.annotations import annotated_schema
from sqla_datastore.typed.entry_schema import EntrySchema


class DeclaredType(TypeDecorator[Any]):
    """The base of `DataStoreType`: what a table declares, without what values are.

    Attributes:
        url: the storage of the column, None for the engine's or the process's.
        folder: the template of its rows' folders.
        inline_bytes: how many bytes a value takes at most that is kept in the row; 0 for none.
        compression: whether new objects are compressed; None leaves it to the process.
        entries: a class that lists the entries of its values, or None.
    """

    entries: type | None
    url: str | None
    folder: str
    inline_bytes: int
    compression: bool | str | None


# by identity: to compare two columns with `==` makes SQL of them
@dataclass(frozen=True, eq=False)
class DeclaredColumn:
    """A declared column: the `Column`, its type, its folder, and the attributes that map it."""

    column: Column[Any]
    type: DeclaredType
    folder: FolderTemplate
    mapped_as: Sequence[tuple[Any, str]] = ()

    @cached_property
    def schema(self) -> EntrySchema | None:
        """What its values' entries are, by the type or by the annotation of a mapped class.

        Raises:
            ConfigurationError: the class that is named is no schema.
        """
        annotated = (annotated_schema(cls, key) for cls, key in self.mapped_as)
        found = self.type.entries or next(filter(None, annotated), None)
        return None if found is None else EntrySchema.of(found)

    @cached_property
    def label(self) -> str:
        """``table.column``, for messages."""
        return f"{self.column.table.name}.{self.column.name}"


@dataclass(frozen=True, eq=False)
class DeclaredTable:
    """What one table has to do with storages.

    Attributes:
        table: the table.
        columns: its declared columns.
        class_folder: the template of a `__datastore_folder__`, or None.
        queries: SELECTs about its rows, each built once.
    """

    table: Table
    columns: tuple[DeclaredColumn, ...]
    class_folder: FolderTemplate | None
    queries: dict[Any, Select[Any]] = field(default_factory=dict)

    @classmethod
    def resolve(cls, table: Table, mappers: Sequence[Mapper[Any]]) -> DeclaredTable:
        """Find the declared columns of a table and the columns that their folders need.

        Args:
            table: any table; one that declares nothing has no `templates`.
            mappers: those of the table.

        Raises:
            ConfigurationError: a template names an attribute that rows do not have, or a
                `__datastore_folder__` is bad, not the only one, or lacks the primary key.
        """
        columns = tuple(
            _declared_column(column, table, mappers)
            for column in table.columns
            if is_declared(column)
        )
        return cls(table, columns, _class_folder(table, mappers))

    @cached_property
    def templates(self) -> tuple[FolderTemplate, ...]:
        """All its folder templates: those of its columns, and that of its class."""
        of_class = [self.class_folder] if self.class_folder else []
        return (*(column.folder for column in self.columns), *of_class)

    @cached_property
    def plain_columns(self) -> list[Column[Any]]:
        """The declared columns as SQLAlchemy's."""
        return [column.column for column in self.columns]

    @cached_property
    def needs(self) -> list[Column[Any]]:
        """The columns of this table that templates and the primary key need."""
        return [c for c in self._all_needs if c.table is self.table]

    @cached_property
    def inherited_needs(self) -> list[Column[Any]]:
        """The columns that templates need of the tables that this one inherits from."""
        return [c for c in self._all_needs if c.table is not self.table]

    @cached_property
    def _all_needs(self) -> list[Column[Any]]:
        shown = (column for template in self.templates for column in template.needs)
        return list(dict.fromkeys([*self.table.primary_key, *shown]))


def is_declared(column: Column[Any]) -> bool:
    """Return whether a column holds values."""
    return isinstance(column.type, DeclaredType)


def holds_values(type_: Any) -> bool:
    """Return whether a type is the column type, or has it inside, where it cannot be followed."""
    # of an ARRAY, of a type with variants, of a TypeDecorator around it
    inner = [getattr(type_, "item_type", None), *variants(type_)]
    if isinstance(type_, TypeDecorator):
        inner.append(type_.impl_instance)
    return isinstance(type_, DeclaredType) or any(map(holds_values, filter(None, inner)))


def _declared_column(
    column: Column[Any], table: Table, mappers: Sequence[Mapper[Any]]
) -> DeclaredColumn:
    type_ = cast("DeclaredType", column.type)
    folder = FolderTemplate.resolve(table, mappers, type_.folder, str(column))
    return DeclaredColumn(column, type_, folder, tuple(_mapped_as(column, mappers)))


def _mapped_as(column: Column[Any], mappers: Sequence[Mapper[Any]]) -> Iterator[tuple[Any, str]]:
    for mapper in mappers:
        for attribute in mapper.column_attrs:
            if column in attribute.columns:
                yield mapper.class_, attribute.key


def _class_folder(table: Table, mappers: Sequence[Mapper[Any]]) -> FolderTemplate | None:
    # `vars`: a subclass with its own table inherits the attribute; the base's row owns the folder
    classes = {
        vars(mapper.class_)["__datastore_folder__"]: mapper.class_
        for mapper in mappers
        if mapper.local_table is table and "__datastore_folder__" in vars(mapper.class_)
    }
    if len(classes) > 1:
        raise ConfigurationError(
            f"table {table.name!r} has several __datastore_folder__: {sorted(classes)}"
        )
    for template, class_ in classes.items():
        place = f"{class_.__name__}.__datastore_folder__"
        folder = FolderTemplate.resolve(table, mappers, check_template(template), place)
        if not folder.owns:
            raise ConfigurationError(
                f"{place} = {template!r} does not hold the primary key, so no row owns the folder"
            )
        return folder
    return None
