"""Values as pictures that a browser shows: images, files of images, arrays of pixels or numbers."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Final

from sqla_datastore.files.file import File

_LARGEST_SIDE: Final = 640
_LARGEST_FILE: Final = 20 << 20
SMALL_FILE: Final = 4 << 20
"""Of a `File` that has more bytes nothing is shown but what is known of it."""

_SIGNATURES: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def picture(value: Any) -> tuple[bytes, str] | None:
    """Return a value as the bytes of an image file and their content type.

    Images and arrays are made smaller where they are large. An array of numbers is grey from its
    lowest to its highest one, one of bytes is shown as it is.

    Args:
        value: an image of Pillow, the bytes or a small `File` of a PNG, JPEG or GIF, or an array.

    Returns:
        The file, or None where it is no picture.
    """
    if isinstance(value, File):
        return picture(value.read()) if (value.size_bytes or 0) <= SMALL_FILE else None
    if isinstance(value, (bytes, bytearray)):
        kind = file_type(value)
        return (bytes(value), kind) if kind and len(value) <= _LARGEST_FILE else None
    if type(value).__module__.partition(".")[0] == "PIL":
        return _of_image(value), "image/png"
    if is_picture_like(value):
        return _png(_pixels(value)), "image/png"
    return None


def file_type(data: bytes | bytearray) -> str | None:
    """Return the content type of the image file that bytes begin as, None for others."""
    found = (kind for head, kind in _SIGNATURES.items() if data[: len(head)] == head)
    return next(found, None)


def is_picture_like(value: Any) -> bool:
    """Return whether an array is shown as a picture: a matrix, or bytes of two to four channels."""
    import numpy as np

    if type(value) is not np.ndarray or value.ndim not in (2, 3) or value.dtype.kind not in "uifb":
        return False
    if min(value.shape[:2]) < 2:
        return False
    return value.ndim == 2 or (value.dtype == np.uint8 and value.shape[2] in (3, 4))


def _of_image(image: Any) -> bytes:
    small = image.copy()
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    if small.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        small = small.convert("RGBA" if "A" in small.mode or "a" in small.mode else "RGB")
    out = io.BytesIO()
    small.save(out, "PNG")
    return out.getvalue()


def _pixels(array: Any) -> Any:
    """Return the bytes of an array's picture, of at most `_LARGEST_SIDE` rows and columns."""
    import numpy as np

    steps = [-(-length // _LARGEST_SIDE) for length in array.shape[:2]]
    small = array[:: steps[0], :: steps[1]]
    if small.dtype == np.uint8:
        return np.ascontiguousarray(small)
    numbers = small.astype(float)
    is_finite = np.isfinite(numbers)
    if not is_finite.any():
        return np.zeros(small.shape, np.uint8)
    low, high = numbers[is_finite].min(), numbers[is_finite].max()
    span = high / 2 - low / 2
    shades = (numbers / 2 - low / 2) / span * 255 if span > 0 else np.full(small.shape, 127.0)
    return np.where(is_finite, np.clip(shades, 0, 255), 0).astype(np.uint8)


def _png(pixels: Any) -> bytes:
    """Return a PNG of 8 bits a channel, see https://www.w3.org/TR/png-3/."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    # each line begins with its filter, here none
    lines = b"".join(b"\0" + pixels[line].tobytes() for line in range(height))
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)
