"""Storages: the protocol that each one keeps, and the local folder.

`protocol` is what a storage does, `urls` how objects are named, `binding` which storage an engine
has. `local` is the storage in a folder: `draft` writes one object, `listing` finds them, `posix`
and `linux` are its system calls. `object_storage` is the storage in a bucket, which `buckets`
names and reaches; `object_errors` says what went wrong there. `fsspec_storage` is the storage in a
file system of fsspec. `cache` reads remote objects from copies, which `cache_folder` keeps.
`schemes` knows which of them a URL names. `parallel` makes calls at the same time where they are
slow, `off_loop` away from a running event loop.

For authors of storages. `sqla_datastore.testing` has the suite that proves one, and
`sqla_datastore.bind_storage` takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqla_datastore.storage.local import LocalStorage
from sqla_datastore.storage.protocol import (
    KeepsLeftovers,
    ObjectReader,
    ObjectWriter,
    Storage,
    StoredObject,
)

if TYPE_CHECKING:
    from sqla_datastore.storage.fsspec_storage import FsspecStorage
    from sqla_datastore.storage.object_storage import ObjectStorage

__all__ = [
    "FsspecStorage",
    "KeepsLeftovers",
    "LocalStorage",
    "ObjectReader",
    "ObjectStorage",
    "ObjectWriter",
    "Storage",
    "StoredObject",
]

# imported when first asked for: most programs keep their objects in a folder
_MODULES = {"FsspecStorage": "fsspec_storage", "ObjectStorage": "object_storage"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
