"""Values in the row itself: the storage that has nothing to do, and the reader of their bytes.

A small value lies in the column as a ``data:`` URL (see `DataURL`). So there is nothing to write,
make durable or remove; the ledger takes it for an object all the same, to know which row got it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, NoReturn, Protocol

from typing_extensions import Buffer

from sqla_datastore.exceptions import MissingObjectError, StorageError
from sqla_datastore.storage.protocol import ObjectReader, ObjectWriter, StoredObject


class RowStorage:
    """Stands for the rows themselves where a `Storage` is asked for."""

    scheme = "data"
    url = place = "data:"

    def __repr__(self) -> str:
        return "RowStorage()"

    def exists(self) -> bool:
        """Return True: where there is a row, there is the storage."""
        return True

    def create(self, path: str) -> AbstractContextManager[ObjectWriter]:
        """Refuse: the statement itself writes a row."""
        raise self._refused(path)

    def open(self, path: str) -> ObjectReader:
        """Refuse: what is in a row is read from its URL."""
        raise self._refused(path)

    def _refused(self, path: str) -> StorageError:
        return StorageError(f"{path!r} lies in a row, not in a storage", url=path)

    def size_bytes(self, path: str) -> NoReturn:
        """Refuse: no name stands for what is in a row."""
        raise MissingObjectError(path, "a row")

    def list(self, folder: str) -> Iterator[StoredObject]:  # noqa: ARG002
        """Yield nothing."""
        return iter(())

    def remove(self, paths: Iterable[str]) -> None:
        """Do nothing: the row has lost it already."""

    def make_durable(self, paths: Iterable[str]) -> None:
        """Do nothing: COMMIT does it."""


IN_ROW: Final = RowStorage()
"""The one `RowStorage`."""


_TRIED = 32


def is_tried(nbytes: int, limit: int, *, is_compressed: bool) -> bool:
    """Return whether a value may be small enough for a row, so that it is worth encoding it.

    What is compressed may take far less than its payloads. But whoever keeps large values must not
    have each of them compressed twice.

    Args:
        nbytes: of its payloads, without the index, which only writing tells.
        limit: how many bytes its objects may take.
        is_compressed: whether it is written compressed.
    """
    return nbytes < (limit * _TRIED if is_compressed else limit)


class BytesReader:
    """An `ObjectReader` of bytes in memory."""

    maps = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        """The object's size."""
        return len(self._data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """See `ObjectReader.read`."""
        return self._data[offset : offset + size_bytes]

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """See `ObjectReader.view`; no copy."""
        return memoryview(self._data)[offset : offset + size_bytes]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """See `ObjectReader.read_many`."""
        return [self.view(*each) for each in ranges]


class _Writable(Protocol):
    @property
    def nbytes(self) -> int: ...

    def write(self, writer: ObjectWriter) -> None: ...


class _BytesWriter:
    """An `ObjectWriter` into memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer, /) -> None:
        self.data += data


def encoded(objects: Sequence[_Writable], limit: int) -> str | None:
    """Return objects as base64, separated by commas; None where they take more than a limit.

    Args:
        objects: planned objects; those that were written are used up even where the limit is met.
        limit: of all their bytes together.
    """
    pieces: list[str] = []
    for each in objects:
        writer = _BytesWriter()
        each.write(writer)
        limit -= len(writer.data)
        if limit < 0:
            return None
        pieces.append(base64.b64encode(writer.data).decode("ascii"))
    return ",".join(pieces)


def decoded(piece: str) -> bytes:
    """Return the bytes of base64.

    Raises:
        ValueError: it is cut off, or no base64.
    """
    return binascii.a2b_base64(piece, strict_mode=True)
