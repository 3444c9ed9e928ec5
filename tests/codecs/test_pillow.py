"""Images come back as the file that they were, or to the pixel, and bombs do not go off."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
from PIL import ImageDraw, PngImagePlugin  # noqa: E402

pytestmark = pytest.mark.libraries

MODES = [
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"),
    *("HSV", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"),
]
FORMATS = ["PNG", "JPEG", "GIF"]


def stored(value):
    return decode_value(*encode_value(value))


def picture(mode="RGB", size=(7, 5)):
    image = Image.new(mode, size)
    count = len(image.tobytes())
    noise = np.random.default_rng(1).integers(0, 256, count, "u1").tobytes()
    image = Image.frombytes(mode, size, noise)
    if mode in ("P", "PA"):
        image.putpalette(bytes(range(250)) * 3 + bytes(18))
    return image


def file_of(form, size=(40, 30), **options):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 5 % 256, y * 7 % 256, (x + y) % 256], axis=2).astype("u1")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def opened(form, **options):
    return Image.open(io.BytesIO(file_of(form, **options)))


def assert_same(new, old):
    assert type(new) is type(old)
    assert new.mode == old.mode
    assert new.info == old.info
    assert new.size == old.size
    assert new == old
    if old.mode in ("P", "PA"):
        assert new.getpalette("RGBA") == old.getpalette("RGBA")


class TestImageCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("pillow.image")

    @pytest.fixture(params=["pixels", "PNG", "JPEG", "GIF"])
    def values(self, request):
        if request.param == "pixels":
            return [picture(), picture("P"), Image.new("L", (0, 3)), picture("RGB", (600, 500))]
        return [opened(request.param)]

    def assert_same(self, back, value):
        assert_same(back, value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(7, 5), (1, 1), (0, 0), (3, 0)])
def test_every_mode_is_exact(mode, size):
    value = picture(mode, size)
    assert_same(stored(value), value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("colours", [0, 1, 2, 17, 256])
def test_palettes_are_exact(mode, colours):
    value = picture("P", (16, 16))
    value.putpalette(bytes(range(len(mode) * colours % 256)) or b"", mode)
    assert_same(stored(value), value)
    assert stored(value).convert("RGBA") == value.convert("RGBA")


def test_notes_are_kept():
    value = picture()
    value.info = {"dpi": (72, 72.5), "icc_profile": b"\0\1", "comment": "é", "transparency": 3}
    assert_same(stored(value), value)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("where", ["path", "memory"])
@pytest.mark.parametrize("loaded", [False, True])
def test_an_opened_image_keeps_its_bytes(form, where, loaded, tmp_path):
    data = file_of(form)
    (tmp_path / "image").write_bytes(data)
    value = Image.open(tmp_path / "image" if where == "path" else io.BytesIO(data))
    with value:
        if loaded:
            value.load()
        text, blobs = encode_value(value)
        back = decode_value(text, blobs)
        if where == "memory" and value.fp is None:
            # Pillow has let the file go
            assert type(back) is Image.Image
            assert_same(back, value.copy())
            return
        assert blobs == [data]
        assert_same(back, value)
        assert back.format == form
        assert encode_value(back) == (text, blobs)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_stays_where_it_was(form):
    value = opened(form)
    position = value.fp.tell()
    encode_value(value)
    assert value.fp.tell() == position
    assert value.tile, "storing an image has decoded it"


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_edited_since_it_was_opened_is_stored_by_its_pixels(form, tmp_path):
    (tmp_path / "image").write_bytes(file_of(form))
    with Image.open(tmp_path / "image") as value:
        value.putpixel((3, 3), 0 if value.mode == "P" else (1, 2, 3))
        assert_same(stored(value), value.copy())


def test_a_file_that_was_replaced_does_not_count(tmp_path):
    (tmp_path / "image").write_bytes(file_of("PNG"))
    value = Image.open(tmp_path / "image")
    value.load()
    (tmp_path / "image").write_bytes(file_of("PNG", size=(3, 3)))
    assert_same(stored(value), value.copy())
    (tmp_path / "image").unlink()
    assert_same(stored(value), value.copy())


def test_notes_that_were_edited_are_stored():
    value = opened("JPEG", dpi=(72, 72))
    value.info["dpi"] = (1, 1)
    assert stored(value).info["dpi"] == (1, 1)


def test_frames_behind_the_first_are_stored_by_their_pixels():
    frames = [Image.new("L", (4, 4), level) for level in (1, 2, 3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    value = Image.open(file)
    assert stored(value).n_frames == 3
    value.seek(1)
    assert_same(stored(value), value.copy())


EDITS = {
    "pixel": lambda im: im.putpixel((0, 0), 5),
    "paste": lambda im: im.paste(7, (0, 0, 2, 2)),
    "draw": lambda im: ImageDraw.Draw(im).line((0, 0, 3, 3), fill=9),
    "alpha": lambda im: im.putalpha(5),
    "notes": lambda im: im.info.__setitem__("new", 1),
    "thumbnail": lambda im: im.thumbnail((2, 2)),
    "access": lambda im: im.load().__setitem__((0, 0), 9),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("kind", ["pixels", "PNG"])
def test_an_edit_is_noticed_or_refused(storage, edit, kind):
    value = picture("L")
    if kind == "PNG":
        file = io.BytesIO()
        value.save(file, "PNG")
        value = Image.open(file)
    ds = DataStore(v=value)
    store(ds, storage)
    fresh = reloaded(ds, storage)
    fresh.v.convert("RGB").tobytes()
    assert not fresh._scan()
    try:
        edit(fresh.v)
    except ValueError as err:
        assert "readonly" in str(err)  # noqa: PT017
        return
    assert fresh._scan()
    after = fresh.v.copy()
    store(fresh, storage)
    assert_same(reloaded(fresh, storage).v, after)


@pytest.mark.parametrize("form", FORMATS)
def test_looking_at_an_opened_image_is_no_edit(storage, form):
    ds = DataStore(v=opened(form))
    store(ds, storage)
    fresh = reloaded(ds, storage)
    fresh.v.load()
    np.asarray(fresh.v)
    fresh.v.getexif()
    assert not fresh._scan()
    text = encode_value(fresh.v)
    assert encode_value(opened(form)) == text


def test_equality_is_that_of_content():
    assert DataStore(v=picture()) == DataStore(v=picture())
    assert DataStore(v=picture()) != DataStore(v=picture("L"))
    assert DataStore(v=opened("PNG")) == DataStore(v=opened("PNG"))
    assert DataStore(v=opened("PNG")) != DataStore(v=opened("PNG").copy())
    assert DataStore(v=picture()) != DataStore(v=1)


def test_other_formats_are_refused_with_advice_that_works():
    for form in ("BMP", "TIFF", "WEBP"):
        value = opened(form)
        with pytest.raises(UnsupportedTypeError, match=r"store value\.copy\(\)"):
            encode_value(value)
        value.info.pop("compression", None)
        assert_same(stored(value.copy()), value.copy())


def test_what_cannot_be_decoded_is_refused():
    file = io.BytesIO()
    picture("RGB", (100, 100)).save(file, "PNG")
    value = Image.open(io.BytesIO(file.getvalue()[:-200]))
    with pytest.raises(UnsupportedTypeError, match="cannot decode"):
        encode_value(value)


# -- strangers -------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height, *chunks):
    """Return a small PNG of many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def forged(data, **parts):
    node = {"format": "PNG", "mode": "L", "size": [10, 10], "file": 0, **parts}
    return json.dumps(["pillow.image", 1, node]), [data]


def forged_pixels(data, mode, size, **parts):
    node = {"mode": mode, "size": size, "info": ["plain.dict", 1, {"json": {}}], "png": 0, **parts}
    return json.dumps(["pillow.image", 1, node]), [data]


def test_a_bomb_of_pixels_is_damage():
    with pytest.raises(DamagedObjectError, match="too large for so few bytes"):
        decode_value(*forged_pixels(bomb(20_000, 20_000), "L", [20_000, 20_000]))


@pytest.mark.parametrize("side", [10_000, 12_000, 2**31 - 1])
def test_a_bomb_of_a_file_is_not_decoded(side):
    try:
        back = decode_value(*forged(bomb(side, side), size=[side, side]))
    except DamagedObjectError:
        assert side * side > Image.MAX_IMAGE_PIXELS
        return
    assert back.tile, "it was decoded"
    assert side * side <= 2 * Image.MAX_IMAGE_PIXELS


def test_large_even_images_stay_readable():
    value = Image.new("L", (9_000, 8_000))
    _, (blob,) = encode_value(value)
    assert len(blob) > value.width * value.height / 10
    assert_same(stored(value), value)


def test_an_image_between_the_limits_comes_back_not_decoded(tmp_path):
    Image.new("L", (9_000, 8_000)).save(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as value:
        back = stored(value)
    assert back.tile
    back.load()
    assert back.getextrema() == (0, 0)


TEXT = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))
HOSTILE = {
    "another format": lambda: forged(file_of("JPEG")),
    "another size": lambda: forged(bomb(10, 10), size=[10, 11]),
    "another mode": lambda: forged(bomb(10, 10), mode="RGB"),
    "a format that runs programs": lambda: forged(b"%!PS-Adobe", format="EPS"),
    "no format": lambda: forged(b"", format="XYZ"),
    "text that grows": lambda: forged(bomb(10, 10, TEXT)),
    "few pixels": lambda: forged(file_of("PNG")[:-300], mode="RGB", size=[40, 30]),
    "nothing": lambda: forged(b""),
    "pixels of another mode": lambda: forged_pixels(file_of("PNG"), "L", [40, 30]),
    "pixels of another size": lambda: forged_pixels(file_of("PNG"), "RGB", [30, 40]),
    "pixels that are JPEG": lambda: forged_pixels(file_of("JPEG"), "RGB", [40, 30]),
    "pixels with notes": lambda: forged_pixels(file_of("PNG", dpi=(1, 1)), "RGB", [40, 30]),
    "an unknown mode": lambda: forged_pixels(file_of("PNG"), "BGR;99", [40, 30]),
    "a size without pixels": lambda: forged_pixels(b"", "RGB", [2**31 - 1, 2**31 - 1]),
    "a size that is none": lambda: forged_pixels(file_of("PNG"), "RGB", [-1, 30]),
    "a palette for none": lambda: forged_pixels(
        file_of("PNG"), "RGB", [40, 30], palette=["RGB", ""]
    ),
    "a long palette": lambda: forged_pixels(
        encode_value(picture("P"))[1][0], "P", [7, 5], palette=["RGB", "00" * 769]
    ),
    "a palette of another mode": lambda: forged_pixels(
        encode_value(picture("P"))[1][0], "P", [7, 5], palette=["CMYK", "00"]
    ),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_fit_is_damage(make):
    with pytest.raises(DamagedObjectError):
        decode_value(*make())


@pytest.mark.parametrize("side", [2**31 - 1, 10**6])
def test_an_empty_image_of_any_size_takes_no_memory(side):
    text, blobs = forged_pixels(b"", "RGB", [0, side])
    node = json.loads(text)
    assert decode_value(json.dumps(node), blobs).size == (0, side)


@pytest.mark.parametrize("kind", ["pixels", "PNG"])
def test_description(kind):
    value = picture() if kind == "pixels" else opened("PNG")
    about = codec_named("pillow.image").describe(json.loads(encode_value(value)[0])[2])
    name = "PIL.Image" if kind == "pixels" else "PIL.PngImageFile"
    assert (about.type, about.dtype, about.shape) == (name, "RGB", value.size[::-1])
    assert PngImagePlugin.PngImageFile.__name__ == "PngImageFile"
