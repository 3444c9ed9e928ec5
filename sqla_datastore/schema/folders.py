"""Folder templates resolved against a table: where the objects of a row go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.schema.folder_templates import fields_of, parse_template
from sqla_datastore.schema.path_segments import Part, Segment
from sqla_datastore.storage.urls import check_path, quote_segment

Schemas: TypeAlias = Mapping[str | None, str | None]
"""A ``schema_translate_map``."""

_AS_DECLARED: Schemas = {}
_MOST_REMEMBERED = 100_000


# by identity, as the columns that its segments show are
@dataclass(frozen=True, eq=False)
class FolderTemplate:
    """A folder template of one table.

    Attributes:
        table: the table whose rows render it.
        template: the text.
        segments: the segments of the path, with the schema that the table declares.
        owns: whether a row owns its folder: the template holds the whole primary key.
    """

    table: Table
    template: str
    segments: tuple[Segment, ...]
    owns: bool

    @classmethod
    def resolve(
        cls, table: Table, mappers: Sequence[Mapper[Any]], template: str, place: str
    ) -> FolderTemplate:
        """Find the columns of a template's fields.

        Args:
            table: the table whose rows render it.
            mappers: those of the table; their attributes come before the table's column names.
            template: the text, checked by `check_template`.
            place: what declares it, for messages.

        Raises:
            ConfigurationError: rows have no such attribute, or the table has no primary key.
        """
        key = tuple(table.primary_key)
        fields = fields_of(template)
        parts = {
            field: Part("", (_column(table, mappers, field, template, place),))
            for field in fields
            if field not in ("table", "pk")
        }
        shown = {column for part in parts.values() for column in part.columns}
        if "pk" in fields and not key:
            raise ConfigurationError(f"{place}: folder={template!r} needs a primary key")
        parts["pk"] = Part("", key)
        parts["table"] = Part(_name_in(table, table.schema), is_table=True)
        segments = tuple(
            Segment(tuple(parts[field] if field else Part(text) for text, field in pieces))
            for pieces in parse_template(template)
        )
        return cls(table, template, segments, bool(key) and ("pk" in fields or shown >= set(key)))

    @property
    def needs(self) -> list[Column[Any]]:
        """The columns whose values `render` uses."""
        return list(dict.fromkeys(column for each in self.segments for column in each.columns))

    def segments_in(self, schemas: Schemas) -> tuple[Segment, ...]:
        """Return the segments of the path in a translated schema.

        Where the template does not hold ``{table}``, the schema's name comes first, so that rows of
        two schemas never share a folder.
        """
        schema = schemas.get(self.table.schema, self.table.schema)
        if schema == self.table.schema:
            return self.segments
        if any(segment.names_table for segment in self.segments):
            name = _name_in(self.table, schema)
            return tuple(segment.renamed(name) for segment in self.segments)
        first = [] if schema is None else [Segment.constant(quote_segment(schema))]
        return (*first, *self.segments)

    def render(self, row: Mapping[Column[Any], Any], schemas: Schemas = _AS_DECLARED) -> str | None:
        """Return the folder of a row, or None where a field's value is missing or None.

        Args:
            row: the values by column, at least those that `needs` names.
            schemas: the ``schema_translate_map`` of the statement.
        """
        return self._rendered(row, schemas, None)

    def fresh(
        self, row: Mapping[Column[Any], Any], token: str, schemas: Schemas = _AS_DECLARED
    ) -> str:
        """Return the folder of a row, a token standing for what is not known yet.

        Args:
            row: the values by column, as far as they are known.
            token: a fresh UUID, the same for all columns of the row.
            schemas: as for `render`.
        """
        folder = self._rendered(row, schemas, token)
        # the token stands for every value that is missing
        assert folder is not None
        return folder

    def _rendered(
        self, row: Mapping[Column[Any], Any], schemas: Schemas, token: str | None
    ) -> str | None:
        texts = [segment.render(row, token) for segment in self.segments_in(schemas)]
        known = [text for text in texts if text is not None]
        return check_path("/".join(known)) if len(known) == len(texts) else None

    def could_be(self, folder: str, schemas: Schemas = _AS_DECLARED) -> bool:
        """Return whether a folder is one that some row of the table could have rendered."""
        texts, path = folder.split("/"), self.segments_in(schemas)
        return len(texts) == len(path) and _match(path, texts)

    def is_fresh(self, folder: str) -> bool:
        """Return whether a folder bears a fresh UUID where a row's key can be none."""
        # the name of a translated schema may come before
        texts = folder.split("/")[-len(self.segments) :]
        return any(
            segment.shows_fresh(text) for segment, text in zip(self.segments, texts, strict=False)
        )


class OwnedFolders:
    """The folders that belong to declared columns, told from their paths alone.

    They are those that templates render, and those that the URLs of owning rows remember.

    Args:
        templates: those of the columns that use the storage, and of classes that own a folder.
        schemas: the engine's ``schema_translate_map``.
    """

    def __init__(self, templates: Iterable[FolderTemplate], schemas: Schemas) -> None:
        paths = [template.segments_in(schemas) for template in templates]
        # many templates look the same from outside: one of each kind is enough
        self._paths = list({tuple(each.pattern for each in path): path for path in paths}.values())
        self._remembered: set[str] = set()

    def __contains__(self, folder: object) -> bool:
        return folder in self._remembered or self._are_rendered(str(folder))

    def _are_rendered(self, folder: str) -> bool:
        texts = folder.split("/")
        return any(len(texts) == len(path) and _match(path, texts) for path in self._paths)

    def are_below(self, folder: str) -> bool:
        """Return whether a folder could be an owned one or hold one."""
        texts = folder.split("/")
        return any(len(texts) <= len(path) and _match(path, texts) for path in self._paths)

    def remember(self, folder: str) -> None:
        """Note the folder of an owning row's URL: the template may have been another one then.

        Beyond 100,000 such folders the rest count as foreign, so that memory stays flat.
        """
        if folder and len(self._remembered) < _MOST_REMEMBERED and not self._are_rendered(folder):
            self._remembered.add(folder)


def _match(path: Sequence[Segment], texts: Sequence[str]) -> bool:
    return all(segment.matches(text) for segment, text in zip(path, texts, strict=False))


def _name_in(table: Table, schema: str | None) -> str:
    return quote_segment(f"{schema}.{table.name}" if schema else table.name)


def _column(
    table: Table, mappers: Sequence[Mapper[Any]], field: str, template: str, place: str
) -> Column[Any]:
    for mapper in mappers:
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
        # the table's row has the value without a SELECT on the table that it inherits from
        for own in table.c:
            if any(key.column is column for key in own.foreign_keys):
                return own
    return column
