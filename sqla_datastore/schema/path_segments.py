"""One path segment of a folder template, with the columns that its fields show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Column, ForeignKey, types

from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.storage.urls import quote_segment

_SURROGATE = re.compile("[\ud800-\udfff]")
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# a Uuid without `as_uuid` is text, which may come without hyphens
_TEXTS: dict[type[Any], str] = {types.Integer: r"-?[0-9]+", types.Uuid: r"[0-9a-f-]{32,36}"}
"""What values of a column's type look like, where that can be told. Any other may be any text."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a segment: a literal, the table's name, or a field that shows columns.

    Attributes:
        text: the literal or the table's name; empty for a field.
        columns: the columns whose values a field shows, with commas between them.
        is_table: whether the text is the table's name.
    """

    text: str
    columns: tuple[Column[Any], ...] = ()
    is_table: bool = False

    def render(self, row: Mapping[Column[Any], Any]) -> str | None:
        """Return the text for a row, or None where a value is missing or None."""
        if not self.columns:
            return self.text
        values = [row.get(column) for column in self.columns]
        if any(value is None for value in values):
            return None
        for column, value in zip(self.columns, values, strict=True):
            _refuse_surrogate(column, value)
        # `quote_segment` encodes commas, so that two composite keys never render alike
        return ",".join(map(quote_segment, values))

    def refers_to(self, parent: Part) -> bool:
        """Return whether this is the other part with foreign keys to its columns in their place."""
        is_same = self.text == parent.text or (self.is_table and parent.is_table)
        return is_same and _point_at(self.columns, parent.columns)


@dataclass(frozen=True, eq=False)
class Segment:
    """One path segment of a template: literals, the table's name and fields.

    Two fields of a segment always have a separator between them, see `check_template`.
    """

    parts: tuple[Part, ...]

    @classmethod
    def constant(cls, text: str) -> Segment:
        """Return a segment that is the same text for all rows."""
        return cls((Part(text),))

    @cached_property
    def columns(self) -> tuple[Column[Any], ...]:
        """The columns whose values it shows."""
        return tuple(column for part in self.parts for column in part.columns)

    @cached_property
    def text(self) -> str | None:
        """The text that it has for all rows, or None if that depends on the row."""
        return None if self.columns else "".join(part.text for part in self.parts)

    @cached_property
    def names_table(self) -> bool:
        """Whether the table's name is in it."""
        return any(part.is_table for part in self.parts)

    def renamed(self, table: str) -> Segment:
        """Return this segment with another text for the table's name."""
        if not self.names_table:
            return self
        name = Part(table, is_table=True)
        return Segment(tuple(name if part.is_table else part for part in self.parts))

    # -- render

    def render(self, row: Mapping[Column[Any], Any], token: str | None = None) -> str | None:
        """Return the text for a row.

        Args:
            row: the values by column.
            token: a fresh UUID that stands for each field whose value is not known.

        Returns:
            None where a value is not known and there is no token.
        """
        if self.text is not None:
            return self.text
        texts = [part.render(row) or token for part in self.parts]
        known = [text for text in texts if text is not None]
        return "".join(known) if len(known) == len(texts) else None

    # -- match

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The texts that `render` returns, with or without a token.

        A field alone shows what its column's type can hold, or the fresh UUID of a row whose key
        the database makes. Any other field can show any text.
        """
        if self._type is not None:
            return re.compile(f"{_TEXTS[self._type]}|{_UUID}")
        return re.compile(
            "".join("[^/]+" if part.columns else re.escape(part.text) for part in self.parts)
        )

    def matches(self, text: str) -> bool:
        """Return whether `render` could have returned the text."""
        return self.pattern.fullmatch(text) is not None

    def shows_fresh(self, text: str) -> bool:
        """Return whether the text is a fresh UUID, where the values of rows are numbers."""
        # where a value is text, the key of another row could be such a UUID, and its folder go
        are_numbers = all(isinstance(column.type, types.Integer) for column in self.columns)
        is_alone = len(self.parts) == 1 and bool(self.columns)
        return is_alone and are_numbers and re.fullmatch(_UUID, text) is not None

    # -- compare

    def meets(self, other: Segment) -> bool:
        """Return whether values of rows can give both segments the same text.

        Fresh UUIDs are left out, because no two are equal. A field that does not stand alone is
        taken to show any text.
        """
        if self.text is not None:
            return other._can_show(self.text)
        if other.text is not None:
            return self._can_show(other.text)
        # a number of 64 bits has at most 20 characters, a UUID at least 32
        return self._type is None or other._type is None or self._type is other._type

    def _can_show(self, text: str) -> bool:
        if self.text is not None:
            return self.text == text
        return self._type is None or re.fullmatch(_TEXTS[self._type], text) is not None

    def refers_to(self, parent: Segment) -> bool:
        """Return whether it shows what the other one shows for the row that foreign keys name."""
        if parent.text is not None:
            return self.text == parent.text
        return len(self.parts) == len(parent.parts) and all(
            mine.refers_to(theirs) for mine, theirs in zip(self.parts, parent.parts, strict=True)
        )

    @cached_property
    def _type(self) -> type[Any] | None:
        """The type of the column that stands alone, if it is one of `_TEXTS`."""
        if len(self.parts) != 1 or len(self.columns) != 1:
            return None
        return next((kind for kind in _TEXTS if isinstance(self.columns[0].type, kind)), None)


def _refuse_surrogate(column: Column[Any], value: Any) -> None:
    """Refuse text that is none: a driver would, too, in its own words and too late to name it."""
    if isinstance(value, str) and _SURROGATE.search(value):
        raise RefusedURLError(
            value,
            f"a row's folder shows its {column.key!r}, and a lone surrogate is no text that a "
            "database or a URL can hold; give the row another one",
        )


def _point_at(children: Sequence[Column[Any]], parents: Sequence[Column[Any]]) -> bool:
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
