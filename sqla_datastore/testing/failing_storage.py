"""A storage that works until it is told to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from typing_extensions import Buffer

from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage.protocol import ObjectReader, ObjectWriter, Storage, StoredObject

Rule: TypeAlias = Callable[[str, tuple[str, ...]], Exception | None]
"""Given a call's method and paths, the error that it raises, or None."""

METHODS = frozenset(
    ("create", "exists", "list", "make_durable", "open", "read", "remove", "size_bytes", "write")
)
"""What can fail: the methods of `Storage`, of its writers ``write``, of its readers ``read``."""
# what some storages have and others have not, and what a storage is asked for by its name
_BESIDE = ("is_local", "leftovers", "remove_leftovers", "sign")


class FailingStorage:
    """A `Storage` that does what another one does, and fails where it is told to.

    A call that fails has done nothing. Thread-safe.

    Args:
        storage: what does the work.

    Attributes:
        calls: the calls so far, each with its method and its paths.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        for name in _BESIDE:
            if hasattr(storage, name):
                setattr(self, name, getattr(storage, name))

    def fail(self, method: str, *, call: int | None = None, error: Exception | None = None) -> None:
        """Have a method fail, until `mend`.

        Args:
            method: ``create``, ``write``, ``open``, ``read``, ``size_bytes``, ``list``, ``remove``,
                ``make_durable`` or ``exists``.
            call: the number of the call that fails, counted from 1 and from now; None for each.
            error: what is raised; None for a `StorageError` that names the method. Use an `OSError`
                for what a system says, as in ``OSError(errno.ENOSPC, "no space left")``.

        Raises:
            ValueError: there is no such method, or no such call.
        """
        if method not in METHODS:
            names = ", ".join(sorted(METHODS))
            raise ValueError(f"a storage has no method {method!r} that can fail; it has {names}")
        if call is not None and call < 1:
            raise ValueError(f"calls are counted from 1, so there is none of the number {call!r}")
        count = 0

        def rule(called: str, paths: tuple[str, ...]) -> Exception | None:
            nonlocal count
            count += called == method
            if called != method or call not in (None, count):
                return None
            return error or StorageError(f"{method} of {', '.join(paths) or 'it'} was made to fail")

        self.fail_when(rule)

    def fail_when(self, rule: Rule) -> None:
        """Have calls fail by a rule, until `mend`.

        Args:
            rule: called before each call with its method and its paths, one call at a time; returns
                the error that is raised instead, or None.
        """
        with self._lock:
            self._rules.append(rule)

    def mend(self) -> None:
        """Have nothing fail any more, and forget the calls."""
        with self._lock:
            self._rules.clear()
            self.calls.clear()

    def _call(self, method: str, *paths: str) -> None:
        with self._lock:
            self.calls.append((method, paths))
            # each of them counts, also where another one fails the call
            errors = [rule(method, paths) for rule in self._rules]
        for error in filter(None, errors):
            raise error

    # -- the protocol ------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FailingStorage):
            return self._storage == other._storage
        return self._storage == other

    def __hash__(self) -> int:
        return hash(self._storage)

    def __repr__(self) -> str:
        return f"FailingStorage({self._storage!r})"

    @property
    def scheme(self) -> str:
        """See `Storage.scheme`."""
        return self._storage.scheme

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return self._storage.url

    @property
    def place(self) -> str:
        """See `Storage.place`."""
        return self._storage.place

    def exists(self) -> bool:
        """See `Storage.exists`."""
        self._call("exists")
        return self._storage.exists()

    @contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        """See `Storage.create`."""
        self._call("create", path)
        with self._storage.create(path) as writer:
            yield _Writer(writer, lambda: self._call("write", path))

    def open(self, path: str) -> ObjectReader:
        """See `Storage.open`."""
        self._call("open", path)
        return _Reader(self._storage.open(path), lambda: self._call("read", path))

    def size_bytes(self, path: str) -> int:
        """See `Storage.size_bytes`."""
        self._call("size_bytes", path)
        return self._storage.size_bytes(path)

    def list(self, folder: str) -> Iterator[StoredObject]:
        """See `Storage.list`."""
        self._call("list", folder)
        return self._storage.list(folder)

    def remove(self, paths: Iterable[str]) -> None:
        """See `Storage.remove`."""
        paths = tuple(paths)
        self._call("remove", *paths)
        self._storage.remove(paths)

    def make_durable(self, paths: Iterable[str]) -> None:
        """See `Storage.make_durable`."""
        paths = tuple(paths)
        self._call("make_durable", *paths)
        self._storage.make_durable(paths)


class _Writer:
    def __init__(self, writer: ObjectWriter, call: Callable[[], None]) -> None:
        self._writer = writer
        self._call = call

    def write(self, data: Buffer, /) -> object:
        self._call()
        return self._writer.write(data)


class _Reader:
    def __init__(self, reader: ObjectReader, call: Callable[[], None]) -> None:
        self._reader = reader
        self._call = call

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def maps(self) -> bool:
        return self._reader.maps

    def read(self, offset: int, size_bytes: int) -> bytes:
        self._call()
        return self._reader.read(offset, size_bytes)

    def view(self, offset: int, size_bytes: int) -> memoryview:
        self._call()
        return self._reader.view(offset, size_bytes)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self._call()
        return self._reader.read_many(ranges)
