"""The names of objects: which objects a row's URL stands for, and which URL a row holds for one.

This is the only place that maps one to the other.
"""

from __future__ import annotations

from typing import NamedTuple

from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectURL


class Name(NamedTuple):
    """An object: its storage and its path there."""

    storage: Storage
    path: str


def names_of(storage: Storage, url: ObjectURL) -> list[Name]:
    """Return the objects that a row's URL stands for: a value's and those nested in it."""
    return [Name(storage, member.path) for member in url.family()]


def names_behind(storage: Storage, url: str | None) -> list[Name]:
    """Return the objects behind a column's text; none for NULL or what the storage cannot hold."""
    if url is None:
        return []
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return []
    return names_of(storage, parsed) if parsed.scheme == storage.scheme else []


def row_url(name: Name) -> str:
    """Return the URL that a row holds for an object: its own, or its family's first."""
    return str(ObjectURL(name.storage.scheme, name.path).root())
