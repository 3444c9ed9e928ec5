"""A storage whose every call can be made to fail, to hang, or to be the last of its process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from typing_extensions import Buffer

from sqla_datastore.storage.protocol import ObjectReader, ObjectWriter, Storage, StoredObject

At = Callable[[str, str], object]


class Watched:
    """A storage that tells a callable before, amid and after everything it does.

    Args:
        storage: what does the work.
        at: called with the call's name and ``before``, ``amid`` or ``after``. What it raises is
            the call's failure: half done if it was told ``amid``, done if ``after``.
    """

    def __init__(self, storage: Storage, at: At) -> None:
        self._storage = storage
        self._at = at
        self.scheme = storage.scheme
        self.url = storage.url
        self.place = storage.place

    def exists(self) -> bool:
        self._at("exists", "before")
        return self._storage.exists()

    @contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        self._at("create", "before")
        with self._storage.create(path) as writer:
            self._at("create", "after")
            yield _Writer(writer, self._at)
            self._at("publish", "before")
        self._at("publish", "after")

    def open(self, path: str) -> ObjectReader:
        self._at("open", "before")
        return _Reader(self._storage.open(path), self._at)

    def size_bytes(self, path: str) -> int:
        self._at("size_bytes", "before")
        return self._storage.size_bytes(path)

    def list(self, folder: str) -> Iterator[StoredObject]:
        self._at("list", "before")
        for found in self._storage.list(folder):
            yield found
            self._at("list", "amid")
        self._at("list", "after")

    def remove(self, paths: Iterable[str]) -> None:
        self._by_halves("remove", self._storage.remove, [*paths])

    def make_durable(self, paths: Iterable[str]) -> None:
        self._by_halves("make_durable", self._storage.make_durable, [*paths])

    def _by_halves(
        self, name: str, do: Callable[[Iterable[str]], None], paths: Sequence[str]
    ) -> None:
        self._at(name, "before")
        if len(paths) > 1:
            do(paths[: len(paths) // 2])
            self._at(name, "amid")
        do(paths)
        self._at(name, "after")


class _Writer:
    def __init__(self, writer: ObjectWriter, at: At) -> None:
        self._writer = writer
        self._at = at

    def write(self, data: Buffer) -> None:
        data = memoryview(data).cast("B")
        self._at("write", "before")
        self._writer.write(data[: len(data) // 2])
        self._at("write", "amid")
        self._writer.write(data[len(data) // 2 :])


class _Reader:
    def __init__(self, reader: ObjectReader, at: At) -> None:
        self._reader = reader
        self._at = at
        self.size_bytes = reader.size_bytes
        self.maps = reader.maps

    def read(self, offset: int, size_bytes: int) -> bytes:
        self._at("read", "before")
        return self._reader.read(offset, size_bytes)

    def view(self, offset: int, size_bytes: int) -> memoryview:
        self._at("view", "before")
        return self._reader.view(offset, size_bytes)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self._at("read_many", "before")
        return self._reader.read_many(ranges)
