"""Streams of bytes: what there is to write, piece by piece, and a stored object to read from."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, cast

from typing_extensions import Buffer

from sqla_datastore.storage.protocol import ObjectReader

_PIECE = 1024 * 1024
_BUFFER = 64 * 1024


def pieces_of(data: Any) -> Iterable[Buffer]:
    """Return what there is to write, piece by piece.

    Args:
        data: bytes-like, or a binary stream, which is read from where it stands.

    Raises:
        TypeError: it is neither; of a stream that gives text, when its first piece is taken.
    """
    if not hasattr(data, "read"):
        return [_bytes(data)]
    return _stream_pieces(data)


def _bytes(data: Any) -> Buffer:
    try:
        view = memoryview(data)
    except TypeError:
        reason = "use serialize_write() for values, or encode text"
        raise TypeError(f"{type(data).__name__!r} is not bytes-like; {reason}") from None
    return pickle.PickleBuffer(view).raw() if view.c_contiguous else bytes(view)


def _stream_pieces(stream: Any) -> Iterable[Buffer]:
    while piece := stream.read(_PIECE):
        if isinstance(piece, str):
            raise TypeError("the stream gives text; open it in binary mode")
        yield piece


def stream_of(reader: ObjectReader) -> BinaryIO:
    """Return an object as a binary stream for reading, with random access and a small buffer."""
    return seekable_stream(reader.read, reader.size_bytes, _BUFFER)


def seekable_stream(
    read: Callable[[int, int], Buffer], size_bytes: int, buffer_bytes: int
) -> BinaryIO:
    """Return bytes that can be read from any position as a binary stream.

    Args:
        read: takes a position before the end and a number of bytes that are there, and returns at
            most so many, at least one.
        size_bytes: how many there are.
        buffer_bytes: how many are read at once where less is asked for.
    """
    return cast("BinaryIO", io.BufferedReader(_Stream(read, size_bytes), buffer_bytes))


class _Stream(io.RawIOBase):
    """A raw stream over a function that reads ranges."""

    def __init__(self, read: Callable[[int, int], Buffer], size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes
        self._position = 0

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
            os.SEEK_END: self._size_bytes,
        }[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), max(self._size_bytes - self._position, 0))
        if not size:
            return 0
        data = memoryview(self._read(self._position, size))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
