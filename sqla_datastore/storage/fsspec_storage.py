"""The storage in any file system that fsspec reaches: SFTP, HDFS, WebDAV and others.

A new object is held here, up to 8 MiB in memory and else in a temporary file, and sent when it is
complete. It is not sent piece by piece while it is made: where a block of fsspec's own is left by
an exception, the object stays.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final, Self

from typing_extensions import Buffer

from sqla_datastore.exceptions import (
    ConfigurationError,
    DataStoreError,
    MissingObjectError,
    RefusedURLError,
    StorageError,
)
from sqla_datastore.options import options
from sqla_datastore.storage.parallel import call_for_each, raise_first
from sqla_datastore.storage.protocol import ObjectReader, ObjectWriter, StoredObject
from sqla_datastore.storage.urls import ObjectURL, check_path

_HELD: Final = 8 * 1024 * 1024
_PIECE = 1024 * 1024
_REMOVERS = 8
_ATTEMPTS = 20
_PASSWORD = re.compile(r"//[^/@]*:[^/@]*@")
# what file systems call the time at which a file was written last
_TIMES = ("mtime", "modified", "LastModified", "last_modified", "updated", "created")


class FsspecStorage:
    """A `Storage` in a file system of fsspec.

    Two of them are equal where they are one place. Calls of a file system block for as long as its
    own options say. What it has acknowledged counts as durable.

    Args:
        file_system: a ready file system. Such a storage cannot be pickled, since the file system
            may hold credentials.
        base: the folder in it.

    Raises:
        TypeError: it is no file system of fsspec.
    """

    def __init__(self, file_system: Any, base: str) -> None:
        if not hasattr(file_system, "pipe_file"):
            raise TypeError(f"not a file system of fsspec: {type(file_system).__name__!r}")
        self._files = file_system
        self._base = str(file_system._strip_protocol(base)).rstrip("/")
        protocol = file_system.protocol
        self.scheme = protocol if isinstance(protocol, str) else protocol[0]
        host = str(getattr(file_system, "host", None) or "")
        self.url = f"{self.scheme}://{host}/{self._base.lstrip('/')}"
        self.place = self.url
        self._given: str | None = None
        self._lock = threading.Lock()
        self._publishing: set[str] = set()

    @classmethod
    def at(cls, url: str) -> Self:
        """Return the storage of a URL, with `options.storage_options` for its file system.

        Some file systems connect now: ``ftp`` and ``sftp`` do.

        Args:
            url: as fsspec takes it, for example ``sftp://host/folder``.

        Raises:
            ConfigurationError: fsspec or what it needs is not installed, an option is refused, or
                the URL has a password.
        """
        if _PASSWORD.search(url):
            raise ConfigurationError(
                f"{_PASSWORD.sub('//…@', url)!r} has a password, which messages would show; "
                "set it in options.storage_options"
            )
        try:
            from fsspec.core import url_to_fs

            file_system, base = url_to_fs(url, **options.storage_options)
        except Exception as err:
            raise ConfigurationError(
                f"no file system for {url!r}: {_first_line(err)}; see options.storage_options, "
                "whose names are those of fsspec's file system, and pip install "
                "'sqla_datastore[fsspec]'"
            ) from None
        storage = cls(file_system, base)
        storage.scheme = url.partition("://")[0].lower()
        storage.url = storage.place = storage._given = url.rstrip("/")
        return storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FsspecStorage) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    def __repr__(self) -> str:
        return f"FsspecStorage({self.url!r})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        if self._given is None:
            raise TypeError(
                f"the storage {self.url!r} was made of a ready file system, which may hold "
                "credentials and is not pickled; name it by its URL"
            )
        return type(self).at, (self._given,)

    def exists(self) -> bool:
        """Return True: a missing base is made by the first write."""
        return True

    def _key(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def _url(self, path: str) -> str:
        return str(ObjectURL(self.scheme, check_path(path)))

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        """Turn what a file system raises into this library's errors."""
        try:
            yield
        except (DataStoreError, MemoryError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingObjectError(url, f"the storage {self.url!r}") from None
        except Exception as err:
            raise StorageError(
                f"{url!r} in {self.url!r}: {_first_line(err)}; are address and credentials right, "
                "and may they do this? see options.storage_options",
                url=url,
            ) from err

    @contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        """Write a new object: leaving the block publishes it, an exception leaves nothing."""
        check_path(path)
        with tempfile.SpooledTemporaryFile(_HELD) as held:
            yield _Writer(held)
            with self._claimed(path), self._errors(self._url(path)):
                self._publish(path, held)

    @contextmanager
    def _claimed(self, path: str) -> Iterator[None]:
        """Have one writer publish a name: file systems look and write in two steps."""
        with self._lock:
            taken = path in self._publishing
            self._publishing.add(path)
        if taken:
            raise StorageError(f"{self._url(path)!r} is being written", url=self._url(path))
        try:
            yield
        finally:
            with self._lock:
                self._publishing.discard(path)

    def _publish(self, path: str, held: Any) -> None:
        key = self._key(path)
        if self._files.exists(key):
            raise StorageError(
                f"{self._url(path)!r} already exists in {self.url!r}; no object is overwritten",
                url=self._url(path),
            )
        try:
            self._send_to_folder(key, held)
        except BaseException:
            # nobody knows the name yet; what cannot be removed is left to garbage collection
            with suppress(Exception):
                self._files.rm_file(key)
            raise

    def _send_to_folder(self, key: str, held: Any) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                # os.makedirs says that a folder exists which has gone since
                with suppress(NotImplementedError, FileExistsError):
                    self._files.makedirs(key.rpartition("/")[0], exist_ok=True)
                self._send(key, held)
            except FileNotFoundError:
                # another one's removal may have emptied the folder meanwhile, and taken it along
                if not left:
                    raise
            else:
                return

    def _send(self, key: str, held: Any) -> None:
        size = held.seek(0, os.SEEK_END)
        held.seek(0)
        if size <= _HELD:
            self._files.pipe_file(key, held.read())
            return
        with self._files.open(key, "wb") as file:
            shutil.copyfileobj(held, file, _PIECE)

    def open(self, path: str) -> ObjectReader:
        """Open an object for reading; asks for its size."""
        return _Reader(self, path, self.size_bytes(path))

    def size_bytes(self, path: str) -> int:
        """Return an object's size."""
        with self._errors(self._url(path)):
            found = self._files.info(self._key(path))
            if found.get("type") == "directory":
                raise FileNotFoundError
            return int(found["size"])

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Yield the objects below a folder, at any depth, in any order."""
        for path, each in self._found(folder).items():
            with suppress(RefusedURLError):
                if not folder or path.startswith(f"{folder}/"):
                    check_path(path)
                    yield StoredObject(path, int(each.get("size") or 0), _modified(each))

    def _found(self, folder: str, **options: Any) -> dict[str, Any]:
        """Return what a file system knows of all that it finds below a folder, by path."""
        base = self._base + "/"
        with self._errors(self._url(folder) if folder else self.url):
            try:
                self._files.invalidate_cache()
                found = self._files.find(self._key(folder), detail=True, **options)
            except FileNotFoundError:
                return {}
        named = ((str(key).rstrip("/"), each) for key, each in found.items())
        return {key.removeprefix(base): each for key, each in named if key != self._base}

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects, and folders that became empty; what is already gone is no error."""

        def remove(path: str) -> None:
            with suppress(MissingObjectError), self._errors(self._url(path)):
                self._files.rm_file(self._key(path))
            # not every file system has folders; those that stay are leftovers
            with suppress(Exception):
                self._remove_empty_folders(path.rpartition("/")[0])

        raise_first(call_for_each(remove, paths, threads=_REMOVERS), "objects")

    def leftovers(self) -> Iterator[StoredObject]:
        """Yield empty folders: what a killed process left before it wrote, or once it had removed.

        See `KeepsLeftovers`.
        """
        found = self._found("", withdirs=True)
        filled = {path.rpartition("/")[0] for path in found}
        for path in sorted(found.keys() - filled):
            if found[path].get("type") == "directory":
                with suppress(RefusedURLError):
                    yield StoredObject(f"{check_path(path)}/", 0, _modified(found[path]))

    def remove_leftovers(self, paths: Iterable[str]) -> None:
        """Remove empty folders, and those above that became empty; see `KeepsLeftovers`."""

        def remove(path: str) -> None:
            folder = path.rstrip("/")
            with suppress(MissingObjectError), self._errors(self._url(folder)):
                self._remove_empty_folders(folder)

        raise_first(call_for_each(remove, paths, threads=_REMOVERS), "folders")

    def _remove_empty_folders(self, folder: str) -> None:
        while folder and self._is_empty(folder):
            try:
                self._files.rmdir(self._key(folder))
            except Exception:
                # somebody may have written into it meanwhile
                if self._is_empty(folder):
                    raise
                return
            folder = folder.rpartition("/")[0]

    def _is_empty(self, folder: str) -> bool:
        self._files.invalidate_cache()
        return not self._files.ls(self._key(folder), detail=False)

    def make_durable(self, paths: Iterable[str]) -> None:
        """Do nothing but ask: what a file system has acknowledged is as durable as it can be told.

        Raises:
            MissingObjectError: an object is not there.
        """
        for path in paths:
            self.size_bytes(path)


class _Writer:
    """A new object, held until it is complete."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def write(self, data: Buffer, /) -> None:
        """See `ObjectWriter.write`."""
        self._held.write(memoryview(data).cast("B"))


class _Reader:
    """An object's path and size."""

    maps = False

    def __init__(self, storage: FsspecStorage, path: str, size_bytes: int) -> None:
        self._storage = storage
        self._path = path
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        storage = self._storage
        end = min(offset + size_bytes, self._size_bytes)
        if offset >= end:
            return b""
        with storage._errors(storage._url(self._path)):
            return bytes(storage._files.cat_file(storage._key(self._path), offset, end))

    def view(self, offset: int, size_bytes: int) -> memoryview:
        return memoryview(self.read(offset, size_bytes))

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [self.view(offset, size) for offset, size in ranges]


def _modified(found: Any) -> float:
    """Return when a file was written; now where it is not told, so that it counts as young."""
    told = next((found[name] for name in _TIMES if found.get(name) is not None), None)
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, (int, float)) else time.time()


def _first_line(err: BaseException) -> str:
    return f"{type(err).__name__}: {str(err).partition(chr(10))[0][:200]}"
