"""The text of a folder template, such as ``"{table}/{pk}"`` or ``"runs/{id_experiment}"``.

``{attribute}`` is an attribute of the row, ``{table}`` the name of its table and ``{pk}`` its whole
primary key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Formatter
from typing import TypeAlias

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.storage.urls import check_path

_ATTRIBUTE = re.compile(r"[^\W\d]\w*")
# quote_segment encodes these, so that the values of two fields cannot run into each other
_SEPARATORS = ",;=+@:!"

Piece: TypeAlias = tuple[str, str | None]
"""A literal and None, or an empty text and the name of a field."""


def parse_template(template: str) -> list[list[Piece]]:
    """Return the pieces of each segment of a template.

    Raises:
        ValueError: the syntax is bad, or a field is more than the name of an attribute.
    """
    segments: list[list[Piece]] = [[]]
    for literal, field, spec, conversion in Formatter().parse(template):
        first, *others = literal.split("/")
        segments[-1].append((first, None))
        segments.extend([(text, None)] for text in others)
        if field is not None:
            # a format could render two keys alike, and a dot or bracket reach into other objects
            if spec or conversion or not _ATTRIBUTE.fullmatch(field):
                raise ValueError(f"field {field!r} is not the plain name of an attribute")
            segments[-1].append(("", field))
    return [[piece for piece in segment if any(piece)] for segment in segments]


def fields_of(template: str) -> list[str]:
    """Return the names of a template's fields, in order."""
    return [field for segment in parse_template(template) for _, field in segment if field]


def check_template(template: str) -> str:
    """Return a folder template after refusing what cannot become a path below the base.

    Args:
        template: for example ``"{table}/{pk}"`` or ``"runs/{id_experiment}"``.

    Raises:
        ConfigurationError: bad syntax, an empty segment, ``..``, or two fields of one segment
            without one of ``, ; = + @ : !`` between them, so that two rows could get one folder.
    """
    try:
        for segment in parse_template(template):
            _check_segment(segment)
    except (ValueError, RefusedURLError) as err:
        raise ConfigurationError(
            f"folder={template!r}: {err}; expected something like '{{table}}/{{pk}}'"
        ) from err
    return template


def _check_segment(pieces: Sequence[Piece]) -> None:
    # "x" for a field, whatever its value: `quote_segment` makes a plain segment of any text
    check_path("".join(literal or "x" for literal, _ in pieces))
    before, since_field = None, ""
    for literal, field in pieces:
        if field is None:
            since_field += literal
            continue
        # the first field has none before it to be kept apart from
        if before is not None and not set(since_field) & set(_SEPARATORS):
            reason = (
                f"a value of {{{before}}} may contain {since_field!r} itself"
                if since_field
                else f"nothing tells where {{{before}}} ends"
            )
            raise ValueError(
                f"{reason}, so that two rows could share one folder, and one's files go with the "
                f"other; put one of '{_SEPARATORS}', which are escaped in values, between "
                f"{{{before}}} and {{{field}}}, or '/'"
            )
        before, since_field = field, ""
