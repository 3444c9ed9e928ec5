"""Opening an object to read what it holds: in the storage or, with a local cache, in its copy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqla_datastore.options import options
from sqla_datastore.storage.urls import RAW_SUFFIX, ObjectURL

if TYPE_CHECKING:
    from sqla_datastore.storage.protocol import ObjectReader, Storage


def open_object(storage: Storage, url: ObjectURL) -> ObjectReader:
    """Open an object for reading, through the cache where `options.cache_folder` is set.

    Who looks after a storage opens objects by the storage itself.

    Args:
        storage: the storage that serves the URL.
        url: the object's.

    Raises:
        MissingObjectError: it is not there.
        StorageError: the storage failed.
    """
    folder = options.cache_folder
    if folder is None or getattr(storage, "is_local", False):
        return storage.open(url.path)
    from sqla_datastore.storage.cache import open_cached

    return open_cached(storage, folder, url.path, partial(_verify, url))


def _verify(url: ObjectURL, reader: ObjectReader) -> None:
    """Compare the checksums that are in an object; bytes of the user's own have none.

    Raises:
        DamagedObjectError: its bytes are not what was written.
        UnsupportedFormatError: it was written by a newer version.
    """
    from sqla_datastore.format import Container

    if not url.name.endswith(RAW_SUFFIX):
        Container.open(reader, str(url), nested=int).verify()
