"""The local cache of remote objects: an object that was downloaded once is mapped from then on.

Only what reads values comes here. What asks what a storage has (`check`, `gc`, `move`, listings)
asks the storage. An object never changes and its name is never used again, so a copy is right for
ever, even after the object was removed.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sqla_datastore.exceptions import (
    DamagedObjectError,
    MissingObjectError,
    StorageError,
    UnsupportedFormatError,
)
from sqla_datastore.options import options
from sqla_datastore.storage.cache_folder import CacheFolder, Copy
from sqla_datastore.storage.protocol import TAIL_BYTES, ObjectReader, Storage

logger = logging.getLogger("sqla_datastore")

T = TypeVar("T")
Verify = Callable[[ObjectReader], None]

SHARE = 10
"""What the limit is divided by; an object that is larger than the result is not copied."""

_PIECE = 8 * 1024 * 1024
_warned: set[tuple[str, str]] = set()


def open_cached(storage: Storage, folder: str, path: str, verify: Verify) -> ObjectReader:
    """Open a remote object for reading: from its copy, else one that makes a copy when it is read.

    Opening it, and reading its last `TAIL_BYTES`, costs what it costs without a cache, so that an
    index is read without the rest. A smaller object is copied at once.

    Args:
        storage: the storage.
        folder: that of the cache.
        path: the object.
        verify: raises `DamagedObjectError` or `UnsupportedFormatError` for bytes that are not the
            object's; called with a whole copy before it is kept.

    Raises:
        MissingObjectError: there is neither a copy nor the object.
        StorageError: the storage failed.
    """
    reader = _Reader(storage, folder, path, verify)
    reader.open()
    return reader


class _Reader:
    """An object that is read from a copy or, where there is none, from its storage."""

    def __init__(self, storage: Storage, folder: str, path: str, verify: Verify) -> None:
        self._storage = storage
        self._path = path
        self._verify = verify
        self._place = folder
        self._folder = CacheFolder(folder, options.cache_bytes)
        # the place has no secrets in it
        self._digest = hashlib.sha256(f"{storage.place}/{path}".encode()).hexdigest()
        self._lock = threading.Lock()
        self._copy: Copy | None = None
        self._remote: ObjectReader | None = None
        self._may_copy = True
        self._was_damaged = False
        self.size_bytes = 0

    def open(self) -> None:
        self._copy = self._found()
        if self._copy is not None:
            self.size_bytes = len(self._copy.data)
            return
        self._remote = self._storage.open(self._path)
        self.size_bytes = self._remote.size_bytes
        self._may_copy = self.size_bytes <= options.cache_bytes // SHARE
        if self.size_bytes <= TAIL_BYTES:
            self._copied()

    @property
    def maps(self) -> bool:
        copy = self._copy
        return copy is not None and copy.is_mapped

    def read(self, offset: int, size_bytes: int) -> bytes:
        is_end = offset == self.size_bytes - TAIL_BYTES and size_bytes == TAIL_BYTES
        if self._copy is None and is_end:
            assert self._remote is not None
            return self._remote.read(offset, size_bytes)
        return bytes(self.view(offset, size_bytes))

    def view(self, offset: int, size_bytes: int) -> memoryview:
        return self.read_many([(offset, size_bytes)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        copy = self._copied()
        if copy is not None:
            return [copy.data[offset : offset + size] for offset, size in ranges]
        assert self._remote is not None
        if len(ranges) == 1:
            return [self._remote.view(*ranges[0])]
        return self._remote.read_many(ranges)

    def renew(self) -> bool:
        """See `KeepsCopy.renew`."""
        with self._lock:
            copy = self._copy
            if copy is None or copy.is_sound():
                return False
            logger.warning("the copy of %r in %r is damaged: dropped", self._path, self._place)
            self._unless_it_fails(lambda: self._folder.remove(self._digest))
            self._was_damaged = True  # where it cannot be removed, it must not be found again
            self._remote = self._storage.open(self._path)
            self._copy = None
            return True

    def _copied(self) -> Copy | None:
        """Return the copy, made now where there is none; None where it cannot be made."""
        copy = self._copy
        if copy is not None or not self._may_copy:
            return copy
        with self._lock:
            if self._copy is None and self._may_copy:
                # another process may have made it meanwhile
                self._copy = self._found() or self._made()
                self._may_copy = self._copy is not None
            return self._copy

    def _found(self) -> Copy | None:
        compared = self._was_damaged or options.verify == "always"
        return self._unless_it_fails(lambda: self._folder.find(self._digest, compared=compared))

    def _made(self) -> Copy | None:
        return self._unless_it_fails(
            lambda: self._folder.add(
                self._digest, self.size_bytes, self._downloaded(), self._verify_copy
            )
        )

    def _downloaded(self) -> Iterator[memoryview]:
        assert self._remote is not None
        for offset in range(0, self.size_bytes, _PIECE):
            yield self._remote.view(offset, min(_PIECE, self.size_bytes - offset))

    def _verify_copy(self, copy: Copy) -> None:
        self._verify(_CopyReader(copy))

    def _unless_it_fails(self, call: Callable[[], T]) -> T | None:
        """Return what the folder gives; None where it fails, or what arrived is not the object."""
        try:
            return call()
        except (MissingObjectError, StorageError):
            raise
        except (DamagedObjectError, UnsupportedFormatError, EOFError) as err:
            # who reads it from the storage is told, if it is not whole there either
            logger.info("%r is not copied to %r: %s", self._path, self._place, err)
        except OSError as err:
            self._warn(err.strerror or str(err))
        return None

    def _warn(self, reason: str) -> None:
        if (self._place, reason) not in _warned:
            _warned.add((self._place, reason))
            logger.warning(
                "options.cache_folder %r fails, objects are read without it: %s",
                self._place,
                reason,
            )


class _CopyReader:
    """A copy, before it is kept."""

    def __init__(self, copy: Copy) -> None:
        self._data = copy.data
        self.maps = copy.is_mapped

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self.view(offset, size_bytes))

    def view(self, offset: int, size_bytes: int) -> memoryview:
        return self._data[offset : offset + size_bytes]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [self.view(*each) for each in ranges]
