"""Folder templates: where a row's objects go, and which rows' folders could be the same.

A template has ``{attribute}`` fields over a row; ``{table}`` is its table, ``{pk}`` the whole
primary key. A template that holds the whole primary key makes the row the folder's owner.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any, TypeAlias

from sqlalchemy import Column, ForeignKey, Table, types

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.storage.urls import check_path, quote_segment

__all__ = [
    "FolderTemplate",
    "Schemas",
    "can_meet",
    "check_template",
    "fields_of",
    "is_child",
    "meets",
]

_ATTRIBUTE = re.compile(r"[^\W\d]\w*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# quote_segment never leaves these as they are, so they keep two fields of one segment apart
_SEPARATORS = ",;=+@:!"

Schemas: TypeAlias = Mapping[str | None, str | None]
"""A ``schema_translate_map``."""

_AS_DECLARED: Schemas = {}

Segment: TypeAlias = tuple[tuple[str, str | None], ...]
"""The literal and field parts of one path segment."""


@lru_cache(maxsize=1024)
def _segments(template: str) -> tuple[Segment, ...]:
    """Parse a template into segments of (literal, field) parts."""
    segments: list[list[tuple[str, str | None]]] = [[]]
    for literal, field, spec, conversion in Formatter().parse(template):
        first, *others = literal.split("/")
        segments[-1].append((first, None))
        segments.extend([(text, None)] for text in others)
        if field is not None:
            if spec or conversion or not _ATTRIBUTE.fullmatch(field):
                raise ValueError(f"field {field!r} is not the plain name of an attribute")
            segments[-1].append(("", field))
    return tuple(tuple(part for part in segment if part[0] or part[1]) for segment in segments)


def check_template(template: str) -> str:
    """Return a folder template after refusing what cannot become a path below the base.

    Args:
        template: for example ``"{table}/{pk}"`` or ``"runs/{id_experiment}"``.

    Raises:
        ConfigurationError: bad syntax, an empty segment, ``..``, or two fields of one segment
            without one of ``, ; = + @ : !`` between them, so that different rows could meet.
    """
    try:
        for segment in _segments(template):
            _check_segment(segment)
    except (ValueError, RefusedURLError) as err:
        raise ConfigurationError(
            f"folder={template!r}: {err}; expected something like '{{table}}/{{pk}}'"
        ) from err
    return template


def _check_segment(segment: Segment) -> None:
    check_path("".join(literal or "x" for literal, _ in segment))
    before = ","
    for literal, field in segment:
        if field is not None:
            if not set(before) & set(_SEPARATORS):
                raise ValueError(f"put one of '{_SEPARATORS}' before {{{field}}}")
            before = ""
        else:
            before = literal if before == "" else before + literal


def fields_of(template: str) -> list[str]:
    """Return the names of a template's fields, in order."""
    return [field for segment in _segments(template) for _, field in segment if field]


@dataclass(frozen=True, eq=False)
class FolderTemplate:
    """A folder template resolved against one table.

    Attributes:
        table: the table whose rows render it.
        template: the text.
        columns: the columns that its fields need, by field; ``pk`` is left out.
        owns: whether it holds the whole primary key.
    """

    table: Table
    template: str
    columns: Mapping[str, Column[Any]]
    owns: bool

    def render(self, row: Mapping[Column[Any], Any], schemas: Schemas = _AS_DECLARED) -> str | None:
        """Return the folder of a row, or None where a field's value is missing or None.

        Args:
            row: the values by column, at least those that `needs` names.
            schemas: the ``schema_translate_map`` of the statement; rows of another schema never
                share a folder.
        """
        return self._rendered(row, schemas, None)

    def fresh(
        self,
        row: Mapping[Column[Any], Any],
        token: str,
        schemas: Schemas = _AS_DECLARED,
    ) -> str:
        """Return the folder of a row, a token standing for what is not known yet.

        Args:
            row: the values by column, as far as they are known.
            token: a fresh UUID, the same for all columns of the row.
            schemas: as for `render`.
        """
        folder = self._rendered(row, schemas, token)
        assert folder is not None
        return folder

    def _rendered(
        self,
        row: Mapping[Column[Any], Any],
        schemas: Schemas,
        token: str | None,
    ) -> str | None:
        segments = []
        for segment in _segments(self.template):
            texts = [
                literal if field is None else self._text(field, row, schemas) or token
                for literal, field in segment
            ]
            if None in texts:
                return None
            segments.append("".join(text for text in texts if text is not None))
        schema = schemas.get(self.table.schema, self.table.schema)
        if (
            schema is not None
            and schema != self.table.schema
            and "table" not in fields_of(self.template)
        ):
            segments.insert(0, quote_segment(schema))
        return check_path("/".join(segments))

    def is_fresh(self, folder: str) -> bool:
        """Return whether a folder bears a fresh UUID where a row's key can be none."""
        # a translated schema may come before
        texts = folder.split("/")[-len(_segments(self.template)) :]
        for segment, text in zip(_segments(self.template), texts, strict=False):
            columns = self.columns_of(segment[0][1]) if len(segment) == 1 else []
            are_numbers = all(isinstance(column.type, types.Integer) for column in columns)
            if columns and are_numbers and _UUID.fullmatch(text):
                return True
        return False

    @property
    def needs(self) -> list[Column[Any]]:
        """The columns whose values `render` uses."""
        fields = fields_of(self.template)
        key = list(self.table.primary_key) if "pk" in fields else []
        return list(dict.fromkeys([*key, *self.columns.values()]))

    def columns_of(self, field: str | None) -> list[Column[Any]]:
        """Return the columns that a field shows; none for a literal and for ``table``."""
        if field == "pk":
            return list(self.table.primary_key)
        return [self.columns[field]] if field is not None and field in self.columns else []

    def _text(
        self,
        field: str,
        row: Mapping[Column[Any], Any],
        schemas: Schemas,
    ) -> str | None:
        if field == "table":
            schema = schemas.get(self.table.schema, self.table.schema)
            return quote_segment(f"{schema}.{self.table.name}" if schema else self.table.name)
        values = [row.get(column) for column in self.columns_of(field)]
        if any(value is None for value in values):
            return None
        return ",".join(quote_segment(value) for value in values)


# -- templates that can meet -----------------------------------------------------------------------


def can_meet(owner: FolderTemplate, other: FolderTemplate) -> bool:
    """Return whether a folder of the other template could be, or lie in, an owned one."""
    mine, theirs = _segments(owner.template), _segments(other.template)
    return len(theirs) >= len(mine) and all(
        _segments_meet(owner, a, other, b) for a, b in zip(mine, theirs, strict=False)
    )


def _segments_meet(owner: FolderTemplate, a: Segment, other: FolderTemplate, b: Segment) -> bool:
    kinds = (_kinds(owner, a), _kinds(other, b))
    first, second = kinds
    if isinstance(first, str) and isinstance(second, str):
        return first == second
    if isinstance(first, str):
        return _could_be(second, first)
    if isinstance(second, str):
        return _could_be(first, second)
    return first is None or second is None or first == second


def _kinds(owner: FolderTemplate, segment: Segment) -> Any:
    """Return the text of a constant segment, the kind of a lone field, or None for anything."""
    if all(field in (None, "table") for _, field in segment):
        return "".join(lit or quote_segment(owner.table.fullname) for lit, _ in segment)
    if len(segment) > 1:
        return None
    field = segment[0][1]
    columns = owner.columns_of(field)
    if len(columns) != 1:
        return None
    if isinstance(columns[0].type, types.Integer):
        return int
    return uuid.UUID if isinstance(columns[0].type, types.Uuid) else None


def _could_be(kind: Any, text: str) -> bool:
    if kind is int:
        return re.fullmatch(r"-?[0-9]+", text) is not None
    if kind is uuid.UUID:
        return re.fullmatch(r"[0-9a-f-]{32,36}", text) is not None
    return True


def is_child(owner: FolderTemplate, other: FolderTemplate) -> bool:
    """Whether the other table's rows name, by foreign key, the row that owns the folder."""
    mine, theirs = _segments(owner.template), _segments(other.template)
    return all(_names_parent(owner, a, other, b) for a, b in zip(mine, theirs, strict=False))


def _names_parent(owner: FolderTemplate, a: Segment, other: FolderTemplate, b: Segment) -> bool:
    """Whether two segments have the same text, and foreign keys in place of the owner's fields."""
    if isinstance(_kinds(owner, a), str):
        return bool(_kinds(owner, a) == _kinds(other, b))
    if len(a) != len(b):
        return False
    return all(
        text == other_text and _points_at(other.columns_of(other_field), owner.columns_of(field))
        for (text, field), (other_text, other_field) in zip(a, b, strict=True)
    )


def _points_at(children: list[Column[Any]], parents: list[Column[Any]]) -> bool:
    return len(children) == len(parents) and all(
        any(key.column is parent and not _is_deferrable(key) for key in child.foreign_keys)
        for child, parent in zip(children, parents, strict=True)
    )


def _is_deferrable(key: ForeignKey) -> bool:
    """Whether a foreign key may lock its parent at COMMIT only, too late to keep its folder."""
    constraint = key.constraint
    return constraint is not None and bool(
        constraint.deferrable or (constraint.initially or "").upper() == "DEFERRED"
    )


def meets(owner: FolderTemplate, segments: list[str]) -> bool:
    """Return whether a rendered folder could be, lie in or hold the given one."""
    return all(
        kind == text if isinstance(kind, str) else _could_be(kind, text)
        for kind, text in zip(
            (_kinds(owner, segment) for segment in _segments(owner.template)),
            segments,
            strict=False,
        )
    )
