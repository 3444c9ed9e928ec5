"""The type of a column that keeps small values in the row, on each database."""

from __future__ import annotations

from sqlalchemy import Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.storage.urls import HEAD_LENGTH

# Of the smallest object, a container of no entries, so that nested values make no text longer.
_SMALLEST_OBJECT = 128

# What one statement can carry, as its default is: MariaDB's max_allowed_packet of 16 MiB, half of
# it for the rest. SQLite's SQLITE_MAX_LENGTH is 1,000,000,000 bytes, PostgreSQL takes 1 GB a field;
# both build the whole statement in memory.
_MOST_CHARACTERS = {
    "mysql": 8 * 1024**2,
    "mariadb": 8 * 1024**2,
    "sqlite": 500_000_000,
    "postgresql": 500_000_000,
}
_MOST_ELSEWHERE = 8 * 1024**2
_REFUSED = {
    "oracle": "which cannot compare a CLOB with a URL",
    "mssql": "which has no SUBSTR to cut values off",
}


def check_inline_bytes(inline_bytes: int) -> int:
    """Return a number of bytes that a type was given, after a look at it.

    Raises:
        ConfigurationError: it is no int from 0 on.
    """
    if type(inline_bytes) is not int or inline_bytes < 0:
        raise ConfigurationError(
            f"inline_bytes is a number of bytes from 0 on, not {inline_bytes!r}; 0 keeps all "
            "values outside"
        )
    return inline_bytes


def text_for_values_in_rows(dialect: Dialect, inline_bytes: int) -> TypeEngine[str]:
    """Return the text type that holds values of so many bytes in the row.

    Raises:
        ConfigurationError: the database cannot hold as much.
    """
    if reason := _REFUSED.get(dialect.name):
        raise ConfigurationError(f"inline_bytes is not for {dialect.name}, {reason}; leave it out")
    characters = _characters(inline_bytes)
    most = _MOST_CHARACTERS.get(dialect.name, _MOST_ELSEWHERE)
    if characters > most:
        raise ConfigurationError(
            f"inline_bytes={inline_bytes} is more than {dialect.name} can hold in a row, which is "
            f"{most // 4 * 3} bytes; larger values belong outside"
        )
    if dialect.name in ("mysql", "mariadb"):
        # they choose the smallest TEXT that takes so many characters (manual, "The String Types")
        return Text(characters)
    return Text()


def _characters(inline_bytes: int) -> int:
    """Return how long a URL is at most that holds objects of so many bytes together."""
    objects = inline_bytes // _SMALLEST_OBJECT + 1
    # base64 makes four characters of three bytes, and pads; a comma separates objects
    return HEAD_LENGTH + len(";base64,") + (inline_bytes + 2 * objects) // 3 * 4 + 5 * objects
