"""What opening an image file costs, told from its parts: Pillow reads them all before it limits.

The parts are walked as Pillow and libjpeg walk them, so that none is hidden from one of them.
"""

from __future__ import annotations

import io
import re
import zlib
from typing import Final

_MAX_PARTS: Final = 1024
"""Chunks of PNG without pixels, segments of JPEG: Pillow keeps each, and joins those of Exif."""
_MAX_SCANS: Final = 20
"""Of JPEG: each goes through all pixels. libjpeg itself writes 18 at most."""
_MAX_TEXT: Final = 1 << 20
"""Decompressed bytes of a text or profile of PNG, as in Pillow."""
_TEXT_RATIO: Final = 5
_FREE_TEXT: Final = 1 << 13
_COMMENT_BLOCK: Final = 32

_MARKER: Final = re.compile(b"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
_BARE_MARKERS: Final = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
"""JPEG markers that Pillow takes to have no segment; libjpeg refuses files with them."""
_END, _SCAN = 0xD9, 0xDA


def refusal(data: bytes, form: str) -> str | None:
    """Return why a file is not opened, if that could take too long or too much memory.

    Args:
        data: the file.
        form: ``"PNG"``, ``"JPEG"`` or ``"GIF"``.
    """
    if form == "PNG":
        return _refusal_of_png(data)
    return _refusal_of_jpeg(data) if form == "JPEG" else _refusal_of_gif(data)


# -- PNG -------------------------------------------------------------------------------------------


def _refusal_of_png(data: bytes) -> str | None:
    at, parts, taken = 8, 0, 0
    while (kind := data[at + 4 : at + 8]) and kind != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        parts += kind not in (b"IDAT", b"fdAT", b"fcTL")
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            taken += _text_bytes(kind, data[at + 8 : at + 8 + length])
        if parts > _MAX_PARTS:
            return "a PNG has too many chunks"
        if taken > _TEXT_RATIO * len(data) + _FREE_TEXT:
            return "the texts of a PNG are too large for so few bytes"
        at += length + 12
    return None


def _text_bytes(kind: bytes, chunk: bytes) -> int:
    """Return what a chunk takes in memory, where it is compressed."""
    _, _, rest = chunk.partition(b"\0")
    if kind == b"iTXt":
        if not rest[:1].strip(b"\0"):
            return 0
        # bytes, and characters of up to four
        return 5 * _decompressed(rest[2:].split(b"\0", 2)[-1])
    return 2 * _decompressed(rest[1:])


def _decompressed(packed: bytes) -> int:
    try:
        return len(zlib.decompressobj().decompress(packed, _MAX_TEXT))
    except zlib.error:
        return 0


# -- JPEG ------------------------------------------------------------------------------------------


def _refusal_of_jpeg(data: bytes) -> str | None:
    segments, scans = _jpeg_parts(data)
    if segments > _MAX_PARTS:
        return "a JPEG has too many segments"
    return "a JPEG has too many scans" if scans > _MAX_SCANS else None


def jpeg_scans(data: bytes) -> int:
    """Return how many times a JPEG goes through its pixels."""
    return _jpeg_parts(data)[1]


def _jpeg_parts(data: bytes) -> tuple[int, int]:
    """Return how many segments and scans a JPEG has; no further than there are too many."""
    at, segments, scans = 2, 0, 0
    while segments <= _MAX_PARTS and (found := _MARKER.search(data, at)):
        code, at = data[found.end() - 1], found.end()
        # Pillow reads on behind an end, up to the first scan
        if code == _END and scans:
            break
        segments += 1
        if code not in _BARE_MARKERS:
            scans += code == _SCAN
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return segments, scans


# -- GIF -------------------------------------------------------------------------------------------


def _refusal_of_gif(data: bytes) -> str | None:
    comments, _ = _gif_parts(data)
    many = comments > _MAX_PARTS + len(data) // _COMMENT_BLOCK
    return "the comments of a GIF have too many parts" if many else None


def cleared_pixels(data: bytes) -> int:
    """Return how many pixels Pillow makes when it opens a GIF, to clear its first frame."""
    return _gif_parts(data)[1]


def _gif_parts(data: bytes) -> tuple[int, int]:
    """Return the parts of comments, and the pixels to clear, of a GIF's first frame."""
    file = io.BytesIO(data)
    flags = file.read(13)[10:11]
    if flags and flags[0] & 128:
        file.read(3 << (flags[0] & 7) + 1)
    comments, clears = 0, False
    while (kind := file.read(1)) not in (b"", b";", b","):
        if kind != b"!":
            continue
        label, block = file.read(1), _gif_block(file)
        if label == b"\xfe":
            while block:
                comments += 1
                block = _gif_block(file)
            continue
        clears |= label == b"\xf9" and bool(block) and bool(block[0] & 0b11000)
        if label == b"\xff" and block.startswith(b"NETSCAPE2.0"):
            _gif_block(file)
        while _gif_block(file):
            pass
    frame = file.read(9)
    area = int.from_bytes(frame[4:6], "little") * int.from_bytes(frame[6:8], "little")
    return comments, area if clears else 0


def _gif_block(file: io.BytesIO) -> bytes:
    length = file.read(1)
    return file.read(length[0]) if length else b""
