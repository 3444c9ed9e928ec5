"""Storages: the protocol and the local folder."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.storage.local import LocalStorage
from sqla_datastore.storage.protocol import (
    KeepsLeftovers,
    ObjectReader,
    ObjectWriter,
    Storage,
    StoredObject,
)

__all__ = [
    "KeepsLeftovers",
    "LocalStorage",
    "ObjectReader",
    "ObjectWriter",
    "Storage",
    "StoredObject",
    "base_exists",
    "open_storage",
]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)


def base_exists(storage: Storage) -> bool:
    """Return whether a storage is there; a local folder may not be mounted, or not be made yet."""
    return not isinstance(storage, LocalStorage) or os.path.isdir(storage.base)


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """Return the storage that a path or URL names; nothing is created or contacted yet.

    Args:
        url: a path (``~`` is expanded, a relative one is taken from the working directory), or a
            ``file:///absolute/path`` URL, percent-encoded.

    Raises:
        ConfigurationError: for an unknown scheme, an authority, a query, or an empty path.
    """
    text = os.fspath(url)
    if not isinstance(text, str):
        raise ConfigurationError(f"a storage is a str or a path of str, not {text!r}")
    match = _URL.fullmatch(text)
    path = text if match is None else _path_of_url(text, match["scheme"], match["rest"])
    if not path or "\0" in path:
        raise ConfigurationError(f"{text!r} names no folder; give a path or 'file:///path'")
    return LocalStorage(os.path.expanduser(path))


def _path_of_url(url: str, scheme: str, rest: str) -> str:
    if scheme.lower() != "file":
        raise ConfigurationError(
            f"no storage serves {scheme + '://'!r} (of {url!r}); supported are a path and "
            "'file:///absolute/path'"
        )
    if not rest.startswith("/"):
        raise ConfigurationError(
            f"{url!r} has an authority; a local folder is 'file:///absolute/path'"
        )
    if "?" in rest or "#" in rest:
        raise ConfigurationError(f"{url!r} has a query or fragment, which a local folder cannot")
    path = unquote(rest)
    return path[1:] if path.startswith("/~") else path
