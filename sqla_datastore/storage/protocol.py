"""What a storage does: the seam between transactions and bytes.

A storage knows paths below its base and nothing of rows, values or formats. Third parties prove
theirs with the suite in `sqla_datastore.testing`.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from typing_extensions import Buffer

from sqla_datastore.exceptions import MissingObjectError, StorageError
from sqla_datastore.storage.parallel import call_for_each


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One listed object: its path below the base, its size in bytes, and its modification time.

    Attributes:
        path: relative to the storage's base, percent-encoded, as in the URL.
        size_bytes: the object's size.
        modified: seconds since the epoch (UTC), as the storage tells it.
    """

    path: str
    size_bytes: int
    modified: float


class ObjectWriter(Protocol):
    """An object while it is written: what was appended is not changed any more."""

    def write(self, data: Buffer, /) -> object:
        """Append bytes; the buffer may be reused by the caller afterwards."""


class ObjectReader(Protocol):
    """One stored object, opened for reading; holds no file descriptor while nothing is read.

    Thread-safe. Reading raises `MissingObjectError` when the object went away and `StorageError`
    when the storage fails.
    """

    @property
    def size_bytes(self) -> int:
        """The object's size."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return a copy of a range; shorter only where the object has become shorter."""

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return a read-only view of a range: a memory map where the storage can, else a copy."""

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return ranges, each as `view` does, by few requests where a request takes long.

        Args:
            ranges: of each its offset and its size, in bytes.
        """

    @property
    def maps(self) -> bool:
        """Whether `view` maps the object, so that its pages may change or be read later."""


@runtime_checkable
class KeepsCopy(Protocol):
    """What an `ObjectReader` offers beside, where it reads a copy that may go bad on its own."""

    def renew(self) -> bool:
        """Drop the copy if its bytes are not those that were copied; reads all of it.

        Returns:
            Whether it did, so that what is read again comes from the storage.

        Raises:
            MissingObjectError: it did, and the object went away.
            StorageError: it did, and the storage failed.
        """


def renewed(reader: ObjectReader) -> bool:
    """Return whether reading again may give other bytes; see `KeepsCopy.renew`."""
    return isinstance(reader, KeepsCopy) and reader.renew()


_WEEK_SECONDS = 7 * 24 * 3600

TAIL_BYTES = 64 * 1024
"""How much of an object's end is read first: it tells what the object holds. A storage reads it
while it opens the object, where that saves a round."""


class Storage(Protocol):
    """A place that keeps immutable objects under relative paths.

    Every path was checked by `sqla_datastore.storage.urls.check_path`. All methods block; all raise
    `StorageError` when the storage fails, `MissingObjectError` where an object is asked for that
    is not there.

    One that waits for no network may have an attribute ``is_local`` that is True: then values of
    asynchronous engines may be read on the event loop.

    Storages are hashable. Where two of them are one place, they should be equal, so that neither
    removes what the other has just written for a row.
    """

    @property
    def scheme(self) -> str:
        """The scheme of its objects' URLs, for example ``file``."""

    @property
    def url(self) -> str:
        """Where the base is, for messages; without secrets."""

    @property
    def place(self) -> str:
        """What two storages share if, and only if, they have the same objects; without secrets.

        An object is at the place, ``/`` and its path: so the place of a storage within another one
        begins with that one's.
        """

    def exists(self) -> bool:
        """Return whether the base is there: a folder may not be mounted, or not be made yet.

        False only where other calls would take the missing base for an empty one, and not fail.
        """

    def create(self, path: str) -> AbstractContextManager[ObjectWriter]:
        """Write a new object: leaving the block publishes it, an exception leaves nothing.

        Never overwrites: an existing path is a `StorageError`. Published is not yet durable.
        """

    def open(self, path: str) -> ObjectReader:
        """Open an object for reading, and read its size and its last `TAIL_BYTES`.

        By one request where the storage can. The reader gives these bytes out again.
        """

    def size_bytes(self, path: str) -> int:
        """Return an object's size."""

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Yield the objects below a folder, at any depth, in any order.

        A folder that does not exist has none. An empty `folder` means the base. What is not an
        object (an unfinished write, a symbolic link) is not listed.
        """

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects, and folders that became empty; what is already gone is no error.

        Tries every path before it raises, unless the storage does not answer at all.
        """

    def make_durable(self, paths: Iterable[str]) -> None:
        """Return once these published objects, and the folders that name them, survive a crash.

        Does nothing where they do as soon as they are published.
        """


@runtime_checkable
class KeepsLeftovers(Protocol):
    """What a `Storage` offers beside, where a crash can leave what `Storage.list` does not show."""

    def leftovers(self) -> Iterator[StoredObject]:
        """Yield unfinished writes, and empty folders with a ``/`` at the end, at any depth.

        Some may belong to a writer that is at work: their age tells.
        """

    def remove_leftovers(self, paths: Iterable[str]) -> None:
        """Remove what `leftovers` yielded, and folders that became empty.

        A folder that has got a file meanwhile stays; what is already gone is no error. Tries every
        path before it raises.
        """


@runtime_checkable
class SignsURLs(Protocol):
    """What a `Storage` offers beside, where its objects can be fetched without it."""

    def sign(self, path: str, expires_seconds: float) -> str:
        """Return a URL from which anybody can download an object, for so many seconds; no request.

        Raises:
            StorageError: it cannot, for example for lack of a key.
        """


@runtime_checkable
class OpensMany(Protocol):
    """What a `Storage` offers beside, where to open many objects takes less than to open each."""

    def open_many(self, paths: Iterable[str]) -> Generator[ObjectReader]:
        """Open objects one after the other, as `Storage.open` does; raises at the first failure."""


def signed(storage: Storage, path: str, expires_seconds: float) -> str:
    """Return a signed URL of an object; see `SignsURLs.sign`.

    Raises:
        ValueError: the time is no positive number, or more than a week, which stores refuse.
        StorageError: the storage signs no URLs.
    """
    if not 0 < expires_seconds <= _WEEK_SECONDS:
        raise ValueError(f"expires_seconds is at most {_WEEK_SECONDS}, not {expires_seconds!r}")
    if isinstance(storage, SignsURLs):
        return storage.sign(path, expires_seconds)
    raise StorageError(
        f"{storage.url!r} has no signed URLs, S3, Google Cloud Storage and Azure have; send the "
        "bytes of DataStoreIO.open() or read() instead",
        url=path,
    )


def is_there(storage: Storage, path: str) -> bool:
    """Return whether a storage has an object, or cannot tell."""
    try:
        storage.size_bytes(path)
    except MissingObjectError:
        return False
    except StorageError:
        return True
    return True


def those_there(storage: Storage, paths: Iterable[str]) -> set[str]:
    """Return those of the objects that a storage has, or cannot tell.

    Asks for many at the same time, and for no more once it does not answer.
    """
    there, stopped = set(paths), threading.Event()

    def look(path: str) -> None:
        try:
            storage.size_bytes(path)
        except MissingObjectError:
            there.discard(path)
        except StorageError as err:
            if err.no_answer:
                stopped.set()

    for err in call_for_each(look, [*there], stopped=stopped):
        raise err
    return there
