"""Write a blob as a member of its own, compressed where this is worth its while."""

from __future__ import annotations

from typing import Any, NamedTuple

from typing_extensions import Buffer

from sqla_datastore.codecs.protocol import Payload
from sqla_datastore.exceptions import UnsupportedTypeError
from sqla_datastore.format.archive import WrongSizeError, ZipWriter, bytes_of, crc32
from sqla_datastore.format.compression import (
    ARROW,
    DEFLATED,
    MAX_RATIO,
    PIECE,
    SAMPLE,
    SMALLEST,
    STORED,
    Deflater,
    Level,
    is_claimed,
    shrinks_deflated,
)

_WHOLE = 4096
"""Up to so many bytes are copied before they are written: two calls instead of some twelve."""


class Written(NamedTuple):
    """Where a blob lies and how, its size and checksum, and those of what lies there."""

    offset: int
    method: int
    size: int
    crc: int
    stored_size: int
    stored_crc: int


def write_payload(out: ZipWriter, name: str, payload: Payload, level: Level | None) -> Written:
    """Write a blob as a member.

    Raises:
        WrongSizeError: it has another size than it announced.
        UnsupportedTypeError: it shrinks so much that a reader would take it for a bomb.
    """
    if level is None or 0 <= payload.nbytes < SMALLEST:
        if 0 <= payload.nbytes <= _WHOLE:
            return _write_whole(out, name, payload)
        offset = _begin_plain(out, name, payload.nbytes)
        payload.write_to(out.write)
        return _as_it_is(offset, out.position - offset, out.end())
    # only a stream that Arrow knows can be compressed by it
    compressed = getattr(payload, "compressed", None)
    if compressed is not None:
        return _write_stream(out, name, payload, compressed(level))
    sink = _DeflatingSink(out, name, payload.nbytes, level)
    payload.write_to(sink.write)
    return sink.end()


def _write_whole(out: ZipWriter, name: str, payload: Payload) -> Written:
    """Write a small blob, copied first, so that its checksum is that of what is written."""
    data = bytearray()
    payload.write_to(lambda piece: data.extend(bytes_of(piece)))
    size = len(data)
    if size != payload.nbytes:
        raise WrongSizeError(f"{size} instead of the {payload.nbytes} bytes announced")
    offset, crc = out.add(name, data)
    return _as_it_is(offset, size, crc)


def _begin_plain(out: ZipWriter, name: str, nbytes: int) -> int:
    if nbytes < 0:
        return out.begin_compressed(name, None, is_deflated=False)
    return out.begin(name, nbytes)


def _as_it_is(offset: int, nbytes: int, crc: int) -> Written:
    return Written(offset, STORED, nbytes, crc, nbytes, crc)


def _write_stream(out: ZipWriter, name: str, payload: Payload, compressed: Any) -> Written:
    """Write a stream as Arrow compresses it, or as it is where that is None."""
    if compressed is None:
        return write_payload(out, name, payload, None)
    offset = out.begin_compressed(name, payload.nbytes, is_deflated=False)
    compressed.write_to(out.write)
    stored = out.position - offset
    stored_crc = out.end()
    if is_claimed(payload.nbytes, stored):
        raise UnsupportedTypeError(
            f"{payload.nbytes} bytes shrink to {stored}, and readers refuse more than {MAX_RATIO} "
            "times; store it in a column with compression='fast'"
        )
    return Written(offset, ARROW, payload.nbytes, crc_of(payload), stored, stored_crc)


def crc_of(payload: Payload) -> int:
    """Return the checksum of a blob that is not compressed."""
    crc = 0

    def take(data: Buffer) -> None:
        nonlocal crc
        crc = crc32(data, crc)

    payload.write_to(take)
    return crc


class _DeflatingSink:
    """Takes a blob's bytes; the first large piece of them decides whether they are deflated.

    Args:
        out: gets a member.
        name: the member's name.
        nbytes: how many bytes will come, -1 where their end will tell.
        level: how hard to try.
    """

    def __init__(self, out: ZipWriter, name: str, nbytes: int, level: Level) -> None:
        self._out = out
        self._name = name
        self._nbytes = nbytes
        self._level = level
        self._head = bytearray()
        self._is_decided = False
        self._deflater: Deflater | None = None
        self._offset = self._taken = self._crc = 0

    def write(self, data: Buffer) -> None:
        """Take a piece; the buffer may be reused afterwards."""
        piece = bytes_of(data)
        if not self._is_decided:
            if len(self._head) + len(piece) < SAMPLE:
                self._head += piece
                return
            self._decide(piece)
        self._take(piece)

    def _decide(self, piece: memoryview) -> None:
        """Begin the member, and write what came before this piece."""
        self._is_decided = True
        head = memoryview(self._head)
        sample = piece if len(piece) >= len(head) else head
        if len(sample) >= SMALLEST and shrinks_deflated(sample, self._level):
            self._deflater = Deflater(self._level)
            nbytes = self._nbytes if self._nbytes >= 0 else None
            self._offset = self._out.begin_compressed(self._name, nbytes, is_deflated=True)
        else:
            self._offset = _begin_plain(self._out, self._name, self._nbytes)
        self._take(head)

    def _take(self, piece: memoryview) -> None:
        if self._deflater is None:
            self._out.write(piece)
            return
        for start in range(0, len(piece), PIECE):
            # a copy: another thread may change the caller's memory between checksum and deflating
            part = bytes(piece[start : start + PIECE])
            self._crc = crc32(part, self._crc)
            self._taken += len(part)
            self._out.write(self._deflater.deflate(part))

    def end(self) -> Written:
        """Finish the member."""
        if not self._is_decided:
            self._decide(memoryview(b""))
        if self._deflater is None:
            return _as_it_is(self._offset, self._out.position - self._offset, self._out.end())
        self._out.write(self._deflater.finish())
        if self._nbytes not in (self._taken, -1):
            raise WrongSizeError(f"{self._taken} instead of the {self._nbytes} bytes announced")
        stored = self._out.position - self._offset
        stored_crc = self._out.end_deflated(self._taken, self._crc)
        return Written(self._offset, DEFLATED, self._taken, self._crc, stored, stored_crc)
