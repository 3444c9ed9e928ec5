"""A blob as a stream; its bytes may be deflated."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from typing_extensions import Buffer

from sqla_datastore.format import StoredBlob, crc32
from sqla_datastore.storage.off_loop import off_loop as away
from sqla_datastore.value.byte_streams import seekable_stream


def stream_of_blob(blob: StoredBlob, *, off_loop: bool) -> BinaryIO:
    """Return a blob as a binary stream for reading, with random access and a small buffer.

    Args:
        blob: the blob.
        off_loop: whether reading waits for a network, in a greenlet of SQLAlchemy's perhaps.
    """
    read = _BlobReader(blob).read
    return seekable_stream(
        (lambda at, size: away(partial(read, at, size))) if off_loop else read,
        blob.nbytes,
        blob.source.piece_bytes // 8,
    )


class _BlobReader:
    """Ranges of a blob; verified at its end where it is read in order.

    What is deflated is inflated from the start again where a reader goes back.
    """

    def __init__(self, blob: StoredBlob) -> None:
        self._blob = blob
        self._inflated: _Inflated | None = None
        # of the bytes from the start, as far as they were read in order
        self._crc = self._summed = 0

    def read(self, at: int, size: int) -> Buffer:
        """Return at most so many bytes of a position, and at least one."""
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
