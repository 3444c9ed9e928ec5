"""Primary keys as text, for people and URLs, and back.

One column is its plain text. Several are separated by commas; a comma or a percent sign in one of
them is percent-encoded, so that no two keys have one text.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import Column

_PARSERS: Final[dict[type, Callable[[str], Any]]] = {
    int: int,
    float: float,
    Decimal: Decimal,
    uuid.UUID: uuid.UUID,
    bool: {"True": True, "False": False}.__getitem__,
    bytes: bytes.fromhex,
    datetime.datetime: datetime.datetime.fromisoformat,
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
}


def key_text(values: Sequence[Any]) -> str:
    """Return the text of a key.

    Examples:
        >>> key_text([7]), key_text(["a,b", 1])
        ('7', 'a%2Cb,1')
    """
    texts = [_text(value) for value in values]
    if len(texts) == 1:
        return texts[0]
    return ",".join(text.replace("%", "%25").replace(",", "%2C") for text in texts)


def parsed_key(columns: Sequence[Column[Any]], text: str) -> list[Any]:
    """Return the values of a key's text.

    Args:
        columns: those of the primary key.
        text: as `key_text` returns it.

    Raises:
        ValueError: no row of the table can have it.
    """
    texts = [text] if len(columns) == 1 else [unquote(part) for part in text.split(",")]
    if len(texts) != len(columns):
        raise ValueError(f"a key has {len(columns)} parts, separated by commas")
    return [_parsed(column, part) for column, part in zip(columns, texts, strict=True)]


def _text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return bytes(value).hex() if isinstance(value, (bytes, memoryview)) else str(value)


def _parsed(column: Column[Any], text: str) -> Any:
    try:
        kind = column.type.python_type
    except NotImplementedError:  # a type that does not tell
        return text
    try:
        return kind[text] if issubclass(kind, enum.Enum) else _PARSERS.get(kind, str)(text)
    except (ValueError, ArithmeticError, KeyError) as err:
        raise ValueError(f"{text!r} is no {kind.__name__}") from err
