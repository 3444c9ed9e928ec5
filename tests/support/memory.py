"""A storage in memory, of a scheme of its own: nothing of it is a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqla_datastore.exceptions import MissingObjectError, StorageError
from sqla_datastore.storage.protocol import ObjectReader, ObjectWriter, StoredObject
from sqla_datastore.storage.urls import ObjectURL
from support.toys import MemoryReader, MemoryWriter

_numbers = itertools.count()


class MemoryStorage:
    """A `Storage` that keeps bytes by path.

    Attributes:
        objects: what it holds.
        durable: the paths that were made durable.
    """

    scheme = "toy"

    def __init__(self) -> None:
        self.url = f"toy://{next(_numbers)}"
        self.place = self.url
        self.objects: dict[str, bytes] = {}
        self.durable: set[str] = set()

    def exists(self) -> bool:
        return True

    @contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        writer = MemoryWriter()
        yield writer
        if path in self.objects:
            raise StorageError(f"{path!r} is there", url=self._url(path))
        self.objects[path] = bytes(writer.data)

    def open(self, path: str) -> ObjectReader:
        return MemoryReader(self._bytes(path))

    def size_bytes(self, path: str) -> int:
        return len(self._bytes(path))

    def list(self, folder: str) -> Iterator[StoredObject]:
        for path in sorted(self.objects):
            if not folder or path.startswith(f"{folder}/"):
                yield StoredObject(path, len(self.objects[path]), 0.0)

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.objects.pop(path, None)

    def make_durable(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._bytes(path)
            self.durable.add(path)

    def _bytes(self, path: str) -> bytes:
        try:
            return self.objects[path]
        except KeyError:
            raise MissingObjectError(self._url(path), self.url) from None

    def _url(self, path: str) -> str:
        return str(ObjectURL(self.scheme, path))
