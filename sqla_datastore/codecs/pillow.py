"""Images of Pillow.

====================================  ====================================================
an image as it was opened             the bytes of its file: PNG, JPEG or GIF
``Image``, and what was edited since  mode, palette, info, and a PNG of the pixels
====================================  ====================================================

Modes that PNG lacks are the PNG of one with as many bytes a pixel, bit for bit. What was opened
from a file and edited since comes back as ``PIL.Image.Image``, as does what was loaded when its
file is out of reach. Pixels come back read-only: Pillow's methods copy them before they edit.

Images whose pixels take more than eight times the bytes of their file, and with others of the entry
more than 24 MiB, come back not decoded: Pillow decodes them when they are first touched, up to its
own limit ``PIL.Image.MAX_IMAGE_PIXELS``. Files of more parts than Pillow should read (scans and
segments, chunks, texts that are large when they are decompressed) are stored as their pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, Final

from PIL import Image, ImagePalette
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ._base import BytesPayload, ExactCodec, field, text_in
from ._budget import Budget
from ._image_files import cleared_pixels, jpeg_scans, refusal
from ._stream import refused_as_damage
from .protocol import JSON, Codec, Decoder, Description, Encoder

# Only these are ever decoded: of Pillow's others, some run programs.
_FORMATS: Final[dict[str, Any]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "GIF": GifImageFile,
}
# mode -> the one of PNG that has its bytes
_PNG_MODES: Final = {
    **{mode: mode for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16")},
    "P": "L",
    **dict.fromkeys(("PA", "La", "I;16L", "I;16B", "I;16N"), "LA"),
    **dict.fromkeys(("YCbCr", "LAB", "HSV"), "RGB"),
    **dict.fromkeys(("I", "F", "CMYK", "RGBX", "RGBa"), "RGBA"),
}
# of a pixel in memory, where two bands and three take as much as four
_BYTES: Final = {"1": 1, "L": 1, "P": 1, "LA": 4, "I;16": 2, "RGB": 4, "RGBA": 4}
_PALETTES: Final = {"RGB": 3, "RGBA": 4}
_MAX_SIDE: Final = (1 << 31) - 1
_FREE_BYTES: Final = 24 << 20
_MAX_RATIO: Final = 8
_DECODED: Final = Budget(_FREE_BYTES)
"""Pixels that an entry's files decode to, beyond what their bytes back."""
_CLEARED: Final = Budget(_FREE_BYTES)
"""Pixels that Pillow makes when it opens an entry's GIFs, beyond what their bytes back."""
_PNG_RATIO: Final = 4
_FREE_PNG: Final = 1 << 12
_STRIP_BYTES: Final = 1 << 20


class _ImageCodec(ExactCodec):
    """Images, in whatever mode."""

    name = "pillow.image"
    mutable = True
    described = "PIL.Image"

    def types(self) -> tuple[type, ...]:
        return (Image.Image, *_FORMATS.values())

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        form = next((name for name, cls in _FORMATS.items() if cls is type(value)), None)
        data = None if form is None else _file_of(value, form, encoder)
        if data is not None:
            file = encoder.blob(BytesPayload(data))
            return {"format": form, "mode": value.mode, "size": [*value.size], "file": file}
        try:
            value.load()
        except Exception as err:  # whatever the decoders of Pillow raise
            raise encoder.unsupported(value, f"Pillow cannot decode it: {err}") from err
        return _pixels_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        with refused_as_damage(decoder, "an image"):
            try:
                return _read_file(node, decoder) if "file" in node else _read_pixels(node, decoder)
            except Image.DecompressionBombWarning as err:  # made an error by a filter
                raise decoder.damaged(str(err)) from err

    def describe(self, node: Any) -> Description:
        about = node if isinstance(node, dict) else {}
        form, mode, size = (about.get(key) for key in ("format", "mode", "size"))
        cls = _FORMATS.get(form, Image.Image) if isinstance(form, str) else Image.Image
        known = isinstance(size, list) and all(type(side) is int for side in size)
        return Description(
            f"PIL.{cls.__name__}" if cls is not Image.Image else "PIL.Image",
            mode if isinstance(mode, str) else None,
            tuple(reversed(size)) if known else None,  # type: ignore[arg-type]
        )


# -- files -----------------------------------------------------------------------------------------


def _file_of(value: Any, form: str, encoder: Encoder) -> bytes | None:
    """Return the file that an image was opened from, if it is there and still what the image is."""
    if value.tell() != 0:
        return None
    try:
        data = _bytes_of(value)
        if data is None or not _is_file_of(data, value, form):
            return None
        with Image.open(io.BytesIO(data), formats=[form]) as opened:
            is_animated = getattr(opened, "is_animated", False)
    except Exception:  # whatever files and decoders raise: then the pixels are stored
        return None
    if (reason := _refusal(data, form, encoder)) is None:
        return data
    if is_animated:  # pixels are those of one frame
        raise encoder.unsupported(value, f"{reason}; store the bytes of its file, or value.copy()")
    return None


def _refusal(data: bytes, form: str, owner: Encoder | Decoder) -> str | None:
    """Return why an entry's file is not opened."""
    area = cleared_pixels(data) if form == "GIF" else 0
    if area > _MAX_RATIO * len(data) and not _CLEARED.takes(owner, area):
        return "a frame of a GIF is too large for so few bytes"
    return refusal(data, form)


def _bytes_of(value: Any) -> bytes | None:
    if (file := value.fp) is not None:
        position = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(position)
        return bytes(data)
    if not value.filename:
        return None
    with open(os.fspath(value.filename), "rb") as opened:
        return opened.read()


def _is_file_of(data: bytes, value: Any, form: str) -> bool:
    is_loaded = not value.tile
    with Image.open(io.BytesIO(data), formats=[form]) as opened:
        if type(opened) is not type(value) or _about(opened) != _about(value):
            return False
        if is_loaded:
            return _has_pixels_of(opened, value)
        if _decoded_bytes(opened, data) <= max(_FREE_BYTES, _MAX_RATIO * len(data)):
            opened.load()  # what cannot be decoded could not be read again
        return True


def _about(image: Any) -> tuple[object, ...]:
    return image.mode, image.size, image.info


def _has_pixels_of(image: Any, other: Any) -> bool:
    """Return whether two images of one mode and size look the same, without a copy of either."""
    image.load()
    return image.getpalette() == other.getpalette() and all(
        image.crop(box).tobytes() == other.crop(box).tobytes() for box in _strips(image)
    )


def _strips(image: Any) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of few bytes that make up an image."""
    width, height = image.size
    rows = max(1, _STRIP_BYTES // (4 * max(1, width)))
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _pixel_bytes(image: Any) -> int:
    width, height = image.size
    return int(width * height * _BYTES.get(image.mode, 4))


def _decoded_bytes(image: Any, data: bytes) -> int:
    """Return what it takes to decode a file's pixels."""
    pixels = _pixel_bytes(image)
    if type(image) is JpegImageFile and ("progressive" in image.info or jpeg_scans(data) > 1):
        return 3 * pixels  # two bytes for each coefficient, until all scans are read
    return pixels


def _read_file(node: Any, decoder: Decoder) -> Any:
    form = text_in(field(node, "format", decoder), decoder)
    if form not in _FORMATS:
        raise decoder.damaged(f"no image is stored in the format {form[:40]!r}")
    data = bytes(decoder.blob(node["file"]))
    if (reason := _refusal(data, form, decoder)) is not None:
        raise decoder.damaged(reason)
    file = io.BytesIO(data)
    image: Any = Image.open(file, formats=[form])
    if type(image) is not _FORMATS[form] or (image.mode, [*image.size]) != (
        node["mode"],
        node["size"],
    ):
        raise decoder.damaged("an image is not what its node says")
    taken = _decoded_bytes(image, data)
    if taken <= _MAX_RATIO * len(data) or _DECODED.takes(decoder, taken):
        image.load()
        image.readonly = 1
        image.fp = file  # so that the same bytes are stored for it
    return image


# -- pixels ----------------------------------------------------------------------------------------


def _pixels_node(image: Any, encoder: Encoder) -> JSON:
    if image.mode not in _PNG_MODES:
        raise encoder.unsupported(image, f"no rule for its mode {image.mode!r}; convert it")
    node: dict[str, JSON] = {
        "mode": image.mode,
        "size": [*image.size],
        "info": encoder.encode(dict(image.info), ".info"),
    }
    if image.mode in ("P", "PA"):
        mode = image.palette.mode if image.palette else "RGB"
        if mode not in _PALETTES:
            raise encoder.unsupported(image, f"its palette has the mode {mode!r}; convert it")
        node["palette"] = [mode, bytes(image.getpalette(mode) or b"").hex()]
    if 0 not in image.size:
        node["png"] = encoder.blob(BytesPayload(_png_of(image)))
    return node


def _png_of(image: Any) -> bytes:
    mode = _PNG_MODES[image.mode]
    plain = image if mode == image.mode else Image.frombytes(mode, image.size, image.tobytes())
    data = _saved(plain)
    # what few bytes stand for would be refused by readers; they read no further than its end
    missing = -(-(_pixel_bytes(plain) - _FREE_PNG) // _PNG_RATIO) - len(data)
    return data + bytes(max(0, missing))


def _saved(image: Any) -> bytes:
    # of pixels alone: Pillow would write notes of `info`, too
    bare = image.copy()
    bare.info = {}
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _read_pixels(node: Any, decoder: Decoder) -> Any:
    mode, size = text_in(node["mode"], decoder), node["size"]
    if mode not in _PNG_MODES or not _is_size(size):
        raise decoder.damaged("an image has no mode or size")
    if 0 in size:
        image: Any = Image.frombytes(mode, tuple(size), b"")
    else:
        image = _read_png(decoder.blob(node["png"]), mode, tuple(size), decoder)
    if "palette" in node:
        _read_palette(image, node["palette"], decoder)
    image.info = decoder.decode(node["info"])
    if type(image.info) is not dict:
        raise decoder.damaged("the info of an image is no dict")
    image.readonly = 1
    return image


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 <= side <= _MAX_SIDE for side in size)
    )


def _read_png(data: memoryview, mode: str, size: tuple[int, ...], decoder: Decoder) -> Any:
    # not by `Image.open`, whose limit is for files of strangers: the size is bounded here
    png = bytes(data)
    if (reason := refusal(png, "PNG")) is not None:
        raise decoder.damaged(reason)
    plain = PngImageFile(io.BytesIO(png))
    if plain.mode != _PNG_MODES[mode] or plain.size != size or plain.info:
        raise decoder.damaged("the pixels of an image are not what its node says")
    if _pixel_bytes(plain) > _PNG_RATIO * len(png) + _FREE_PNG:
        raise decoder.damaged("an image is too large for so few bytes")
    plain.load()
    if plain.mode == mode:
        return plain._new(plain.im)  # shares the pixels
    image = Image.new(mode, size)
    for box in _strips(plain):
        strip = plain.crop(box)
        image.paste(Image.frombytes(mode, strip.size, strip.tobytes()), box)
    return image


def _read_palette(image: Any, node: Any, decoder: Decoder) -> None:
    mode, text = node
    colours = bytes.fromhex(text)
    if image.mode not in ("P", "PA") or len(colours) > 256 * _PALETTES[mode]:
        raise decoder.damaged("a palette has too many colours, or its image none")
    if colours:
        image.putpalette(colours, mode)
    else:
        image.palette = ImagePalette.ImagePalette(mode)


CODECS: tuple[Codec, ...] = (_ImageCodec(),)
