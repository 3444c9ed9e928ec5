"""A blob as a stream; its bytes may be deflated."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, cast

from typing_extensions import Buffer

from sqla_datastore.format import StoredBlob, crc32
from sqla_datastore.storage.off_loop import off_loop as away


def stream_of_blob(blob: StoredBlob, *, off_loop: bool) -> BinaryIO:
    """Return a blob as a binary stream for reading, with random access and a small buffer.

    Args:
        blob: the blob.
        off_loop: whether reading waits for a network, in a greenlet of SQLAlchemy's perhaps.
    """
    stream = _BlobStream(blob, off_loop=off_loop)
    return cast("BinaryIO", io.BufferedReader(stream, blob.source.piece_bytes // 8))


class _BlobStream(io.RawIOBase):
    """A blob's bytes with random access; verified at its end where it is read in order.

    What is deflated is inflated from the start again where a reader goes back.
    """

    def __init__(self, blob: StoredBlob, *, off_loop: bool) -> None:
        self._blob = blob
        self._off_loop = off_loop
        self._position = 0
        self._inflated: _Inflated | None = None
        # of the bytes from the start, as far as they were read in order
        self._crc = self._summed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self._blob.nbytes,
        }[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), max(self._blob.nbytes - self._position, 0))
        if not size:
            return 0
        read = partial(self._read, size)
        data = away(read) if self._off_loop else read()
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes | memoryview:
        at = self._position
        if self._blob.is_deflated:
            if self._inflated is None or self._inflated.position > at:
                self._inflated = _Inflated(self._blob)
            return self._inflated.read(at, size)
        data = self._blob.copy(at, size)
        if at == self._summed:
            self._crc = crc32(data, self._crc)
            self._summed += size
            if self._summed == self._blob.nbytes and self._crc != self._blob.crc:
                self._blob.refuse(self._crc, self._blob.crc)
        return data


class _Inflated:
    """The bytes of a deflated blob, from its start on."""

    def __init__(self, blob: StoredBlob) -> None:
        self._nbytes = blob.nbytes
        self._pieces: Iterator[bytes] = blob.verified_pieces()
        self._rest = memoryview(b"")
        self.position = 0

    def read(self, at: int, size: int) -> memoryview:
        """Return at most so many bytes of a position that lies ahead, and at least one."""
        while not self._rest or self.position < at:
            self._skip(min(at - self.position, len(self._rest)))
            if not self._rest:
                self._rest = memoryview(next(self._pieces))
        found = self._rest[:size]
        self._skip(len(found))
        if self.position == self._nbytes:
            next(self._pieces, None)  # compares the checksum
        return found

    def _skip(self, size: int) -> None:
        self._rest = self._rest[size:]
        self.position += size
