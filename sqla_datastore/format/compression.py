"""How blobs are compressed: numbers and bytes by deflate, Arrow streams by Arrow itself.

A blob is compressed where a sample of it shrinks by a tenth or more. What a manifest says of its
size bounds what reading it may take, and no blob may claim more than `MAX_RATIO` times its bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from typing_extensions import Buffer

from sqla_datastore.options import Level as Level

fast_zlib: Any = zlib
try:
    # several times zlib's speed at about its ratio; what it writes any inflater reads
    from isal import isal_zlib
except ImportError:
    pass
else:
    fast_zlib = isal_zlib

LEVELS: Final[tuple[Level, ...]] = ("fast", "default", "small")

STORED, DEFLATED, ARROW = 0, 1, 2
"""How a blob lies in its member: as it is, deflated, or as a stream that Arrow compressed."""

SMALLEST: Final = 1024
"""Smaller blobs are left as they are."""

MAX_RATIO: Final = 1_100
"""Deflate makes 1,032 bytes of one at most."""

PIECE: Final = 256 * 1024
SAMPLE: Final = 64 * 1024
_ERRORS: Final[tuple[type[Exception], ...]] = (zlib.error, fast_zlib.error)
_RAW: Final = -15  # the largest window, and no header around it: what ZIP has
_DEFLATE: Final[dict[Level, tuple[Any, int]]] = {
    "fast": (fast_zlib, 1),
    "default": (fast_zlib, 2),
    "small": (zlib, 6),
}


def shrinks(before: int, after: int) -> bool:
    """Return whether compression is worth its while: it takes away a tenth or more."""
    return 10 * after <= 9 * before


def is_claimed(nbytes: int, stored: int) -> bool:
    """Return whether a blob claims more bytes than compression can make of those that it has."""
    return nbytes > MAX_RATIO * stored


def shrinks_deflated(data: memoryview, level: Level) -> bool:
    """Return whether a sample of bytes shrinks: of their begin, middle and end."""
    size = len(data)
    starts = {0, max(0, size - SAMPLE) // 2, max(0, size - SAMPLE)}
    sample = b"".join(data[start : start + SAMPLE] for start in sorted(starts))
    deflater = Deflater(level)
    return shrinks(len(sample), len(deflater.deflate(sample)) + len(deflater.finish()))


class Deflater:
    """Makes one deflate stream (RFC 1951) of pieces."""

    def __init__(self, level: Level) -> None:
        module, number = _DEFLATE[level]
        self._compressor: Any = module.compressobj(number, zlib.DEFLATED, _RAW)

    def deflate(self, piece: Buffer) -> bytes:
        """Take a piece, and return what there is of the stream by now."""
        return self._compressor.compress(piece)  # type: ignore[no-any-return]

    def finish(self) -> bytes:
        """Return the rest of the stream."""
        return self._compressor.flush()  # type: ignore[no-any-return]


def inflated(pieces: Iterable[Buffer], nbytes: int) -> Iterator[bytes]:
    """Yield what was deflated, in pieces of 256 KiB at most; no more than was announced.

    Args:
        pieces: a deflate stream.
        nbytes: how many bytes it must make.

    Raises:
        ValueError: it is damaged or cut off, makes more or fewer bytes, or has bytes behind it.
    """
    inflater = fast_zlib.decompressobj(_RAW)
    left = nbytes
    for piece in pieces:
        for found in _inflated_piece(inflater, piece):
            left -= len(found)
            if left < 0:
                raise ValueError(f"it makes more than {nbytes} bytes")
            yield found
    if not inflater.eof or left:
        raise ValueError(f"it is cut off, or makes fewer than {nbytes} bytes")


def _inflated_piece(inflater: Any, piece: Any) -> Iterator[bytes]:
    """Yield all that a piece of a stream makes, by calls that are bounded."""
    while True:
        if inflater.eof and len(piece):
            raise ValueError("there are bytes behind what was compressed")
        try:
            found = inflater.decompress(piece, PIECE)
        except _ERRORS as err:
            raise ValueError(f"it cannot be inflated ({err})") from err
        if found:
            yield found
        piece = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        # a full buffer may have left something behind in the inflater
        if not len(piece) and len(found) < PIECE:
            return
        if not found and not inflater.eof:
            raise ValueError("it cannot be inflated any further")
