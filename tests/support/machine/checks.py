"""What is in the database and the storage, to be compared with the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from sqla_datastore.storage.urls import ObjectURL, is_in_row
from support.machine.model import Rows
from support.machine.models import CLASSES, COLUMNS, OWNERS
from support.machine.values import plain_of

_EVERY_URL = " UNION ALL ".join(
    f"SELECT {column} FROM {CLASSES[name].__tablename__} WHERE {column} IS NOT NULL"
    for name, columns in COLUMNS.items()
    for column in columns
)


class Violation(AssertionError):
    """A promise of the library is broken: *dangling*, *orphans*, *wrong value*."""


def urls_in(connection: Connection) -> list[str]:
    """Return the URLs that rows hold, asked behind the Session's back."""
    return [url for (url,) in connection.exec_driver_sql(_EVERY_URL)]


def paths_of(urls: Iterable[str]) -> set[str]:
    """Return the paths of values' objects."""
    outside = (url for url in urls if not is_in_row(url))
    return {member.path for url in outside for member in ObjectURL.parse(url).family()}


def check_dangling(urls: Iterable[str], files: set[str]) -> None:
    """Refuse a row that has lost its object."""
    lost = paths_of(urls) - files
    if lost:
        raise Violation(f"dangling: {sorted(lost)}")


def plain_row(name: str, row: Any) -> dict[str, Any]:
    """Return a row as the model has it."""
    found = {"name": row.name}
    if name in OWNERS:
        found["id_parent"] = row.id_parent
    for column in COLUMNS.get(name, ()):
        value = getattr(row, column)
        found[column] = None if value is None else plain_of(value)
    return found


def difference(rows: Rows, expected: Rows) -> dict[Any, Any]:
    """Return rows that are not as expected, with both sides."""
    return {
        key: (rows.get(key), expected.get(key))
        for key in rows | expected
        if rows.get(key) != expected.get(key)
    }
