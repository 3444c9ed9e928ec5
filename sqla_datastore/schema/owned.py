"""Which folders belong to declared columns, told from paths alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from sqlalchemy import types

from sqla_datastore.schema.folders import FolderTemplate, Schemas, fields_of
from sqla_datastore.storage.urls import quote_segment

__all__ = ["OwnedFolders"]

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# check_template lets no brace through but those of a field
_FIELD = re.compile(r"\{(\w+)\}|([^{}]+)")
_MOST_REMEMBERED = 100_000


class OwnedFolders:
    """The folders that templates render, and those that the URLs of owning rows remember.

    Args:
        templates: those of the columns that use the storage, and of classes that own a folder.
        schemas: the engine's ``schema_translate_map``.
    """

    def __init__(self, templates: Iterable[FolderTemplate], schemas: Schemas) -> None:
        self._patterns = list({p: None for t in templates if (p := _pattern(t, schemas))})
        self._remembered: set[str] = set()

    def __contains__(self, folder: object) -> bool:
        return folder in self._remembered or self._renders(str(folder))

    def _renders(self, path: str) -> bool:
        segments = path.split("/")
        return any(len(segments) == len(p) and _matches(p, segments) for p in self._patterns)

    def are_below(self, folder: str) -> bool:
        """Return whether a folder could be an owned one or hold one."""
        segments = folder.split("/")
        return any(len(segments) <= len(p) and _matches(p, segments) for p in self._patterns)

    def remember(self, folder: str) -> None:
        """Note the folder of an owning row's URL: the template may have been another one then.

        Beyond 100,000 such folders the rest count as foreign, so that memory stays flat.
        """
        if folder and len(self._remembered) < _MOST_REMEMBERED and not self._renders(folder):
            self._remembered.add(folder)


Pattern: TypeAlias = tuple[re.Pattern[str], ...]


def _matches(pattern: Pattern, segments: list[str]) -> bool:
    return all(part.fullmatch(text) for part, text in zip(pattern, segments, strict=False))


def _pattern(template: FolderTemplate, schemas: Schemas) -> Pattern:
    """Return what the segments of a template's folders look like.

    A field stands for any text, or, where it is alone, for what its column's type can hold or the
    fresh UUID of a row whose key the database made.
    """
    table = template.table
    schema = schemas.get(table.schema, table.schema)
    parts = [_segment(template, text, schema) for text in template.template.split("/")]
    fields = fields_of(template.template)
    if schema is not None and schema != table.schema and "table" not in fields:
        parts.insert(0, re.escape(quote_segment(schema)))
    return tuple(map(re.compile, parts))


def _segment(template: FolderTemplate, text: str, schema: str | None) -> str:
    table, alone = template.table.name, re.fullmatch(r"\{\w+\}", text)
    pattern = ""
    for found in _FIELD.finditer(text):
        field, literal = found.groups()
        if field == "table":
            pattern += re.escape(quote_segment(f"{schema}.{table}" if schema else table))
        elif field is not None:
            pattern += _field(template, field) if alone else "[^/]+"
        else:
            pattern += re.escape(literal)
    return pattern


def _field(template: FolderTemplate, field: str) -> str:
    columns = template.columns_of(field)
    if len(columns) == 1 and isinstance(columns[0].type, types.Integer):
        return f"-?[0-9]+|{_UUID}"
    if len(columns) == 1 and isinstance(columns[0].type, types.Uuid):
        return "[0-9a-f-]{32,36}"
    return "[^/]+"
