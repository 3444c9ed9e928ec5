"""What a hostile object of optional libraries may cost: as `tests/format/test_hostile_costs.py`."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.forging import allowed_seconds, cost, forged_blobs, opened, used

from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import decode_value, encode_value

gpd = pytest.importorskip("geopandas", reason="geopandas is not installed")
sp = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
import pyproj  # noqa: E402
import shapely  # noqa: E402

pytestmark = pytest.mark.libraries

MB = 1024**2
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is told by /proc")


# -- geopandas -------------------------------------------------------------------------------------


def _series(wkb, crs=None):
    text, (blob,) = encode_value(pd.Series(pd.array(wkb, dtype=pd.ArrowDtype(pa.large_binary()))))
    series = json.loads(text)
    node = json.dumps(["geopandas.series", 1, {"series": series, "shape": [len(wkb)], "crs": crs}])
    return node, blob


def _in_system(crs):
    return forged_blobs(*_series([], crs))


def _wgs84(members):
    node = pyproj.CRS("EPSG:4326").to_json_dict()
    node.pop("id")
    node["datum_ensemble"]["members"] = members
    return {"projjson": node}


def _bound(depth):
    system = json.dumps(pyproj.CRS("EPSG:4326").to_json_dict())
    begin, end = '{"type":"BoundCRS","source_crs":', ',"target_crs":{},"transformation":{}}'
    return begin * depth + system + end * depth


def _bound_series(depth):
    text, blob = _series([], {"projjson": "?"})
    return forged_blobs(text.replace('"?"', _bound(depth)), blob)


def _frame_in_systems(count):
    codes = [each.code for each in pyproj.database.query_crs_info(auth_name="EPSG")][:count]
    empty = pa.array([], pa.large_binary())
    columns = {str(n): pd.Series(empty, dtype=pd.ArrowDtype(empty.type)) for n in range(count)}
    text, blobs = encode_value(pd.DataFrame(columns))
    about = [{"position": n, "crs": f"EPSG:{code}"} for n, code in enumerate(codes)]
    parts = {"frame": json.loads(text), "geometries": about, "active": 0, "shape": [0, count]}
    return forged_blobs(["geopandas.frame", 1, parts], *blobs)


GEOPANDAS = {
    "members of an ensemble": lambda: _in_system(_wgs84([{"name": f"m{n}"} for n in range(400)])),
    "members without a code": lambda: _in_system(_wgs84([{"name": f"m{n}"} for n in range(60)])),
    "members of unknown codes": lambda: _in_system(
        _wgs84([{"name": f"m{n}", "id": {"authority": "EPSG", "code": 10**8}} for n in range(60)])
    ),
    "members of inner systems": lambda: _in_system(
        {
            "projjson": {
                "type": "CompoundCRS",
                "name": "x",
                "components": [_wgs84([{"name": f"m{n}"} for n in range(30)])["projjson"]] * 20,
            }
        }
    ),
    "a text of PROJJSON": lambda: _in_system({"projjson": {"type": "x", "name": "y" * 100_000}}),
    "systems in systems": lambda: _bound_series(400),
    "a system for each column": lambda: _frame_in_systems(4_000),
    "empty polygons": lambda: forged_blobs(*_series([struct.pack("<BII", 1, 3, 0)] * 1_000_000)),
    "polygons of an empty ring": lambda: forged_blobs(
        *_series([struct.pack("<BIII", 1, 3, 1, 0)] * 1_000_000)
    ),
}


def test_systems_that_are_usual_are_stored():
    systems = [pyproj.CRS(f"+proj=utm +zone={zone} +ellps=GRS80") for zone in range(1, 61)]
    frame = gpd.GeoDataFrame(
        {f"g{zone}": gpd.GeoSeries([], crs=crs) for zone, crs in enumerate(systems)}
    )
    back = decode_value(*encode_value(frame))
    assert [back[name].crs for name in back] == systems
    text = json.dumps(_wgs84(pyproj.CRS("EPSG:4326").to_json_dict()["datum_ensemble"]["members"]))
    system = pyproj.CRS.from_json(json.dumps(json.loads(text)["projjson"]))
    many = [gpd.GeoSeries([], crs=system) for _ in range(20)]
    assert [each.crs for each in decode_value(*encode_value(many))] == [system] * 20


def test_empty_polygons_among_others_are_stored():
    box = shapely.box(0, 0, 1, 1)
    series = gpd.GeoSeries([box, shapely.Polygon()] * 60_000)
    assert decode_value(*encode_value(series)).equals(series)


def _many_systems():
    codes = [each.code for each in pyproj.database.query_crs_info(auth_name="EPSG")][:257]
    return gpd.GeoDataFrame({code: gpd.GeoSeries([], crs=f"EPSG:{code}") for code in codes})


# -- SciPy -----------------------------------------------------------------------------------------


def _dok(count, dtype, narrow="<i8"):
    rows, columns = np.divmod(np.arange(count), 1_500)
    parts = {
        "data": np.ones(count, dtype),
        "coords.0": rows.astype(narrow),
        "coords.1": (columns + 300).astype(narrow),
    }
    nodes = {
        name: {
            "dtype": part.dtype.str,
            "shape": [count],
            "order": "C",
            "start": 0,
            "blob": number,
        }
        for number, (name, part) in enumerate(parts.items())
    }
    shape = [count // 1_500 + 1, 1_800]
    return forged_blobs(
        ["scipy.sparse", 1, {"type": "dok_array", "shape": shape, "parts": nodes}],
        *(part.tobytes() for part in parts.values()),
    )


SCIPY = {
    "items of narrow coordinates": lambda: _dok(2**21, "|i1", "<i4"),
    "items of narrow numbers": lambda: _dok(2**20, "|i1"),
    "items of numbers": lambda: _dok(600_000, "<f8"),
}


def _dok_of_bytes(count):
    rows, columns = np.divmod(np.arange(count), 1_000)
    shape = (count // 1_000 + 1, 1_000)
    return sp.coo_array((np.ones(count, "i1"), (rows, columns)), shape=shape).todok()


def test_many_small_items_are_stored_otherwise():
    with pytest.raises(UnsupportedTypeError, match=r"value\.tocsr\(\)"):
        encode_value(_dok_of_bytes(700_000))
    some = _dok_of_bytes(200_000)
    assert dict(decode_value(*encode_value(some)).items()) == dict(some.items())


# -- Pillow ----------------------------------------------------------------------------------------


def _saved(form, mode="L", side=8, **options):
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, form, **options)
    return file.getvalue()


def _file(form, mode, side, data):
    node = {"format": form, "mode": mode, "size": [side, side], "file": 0}
    return forged_blobs(["pillow.image", 1, node], data)


def _pixels(mode, side, png):
    info = ["plain.dict", 1, {"json": {}}]
    return forged_blobs(
        ["pillow.image", 1, {"mode": mode, "size": [side, side], "info": info, "png": 0}], png
    )


def _scans(side, count, mode="L"):
    """Return a progressive JPEG whose last scan follows once more, so many times."""
    data = _saved("JPEG", mode, side, progressive=True)
    tables = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    return data[:-2] + data[tables:-2] * count + data[-2:]


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_texts(png, count, text, kind=b"zTXt", head=b"\0\0"):
    packed = zlib.compress(text, 9)
    texts = b"".join(_chunk(kind, b"k%d" % number + head + packed) for number in range(count))
    return png[:33] + texts + png[33:]


def _segments(count):
    data, exif = _saved("JPEG"), b"Exif\0\0" + b"A" * 10
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif) * count + data[2:]


def _behind_ends(count):
    """Return a JPEG with segments behind ends of it, and behind what has no length."""
    segments = _segments(count)
    return segments[:2] + b"\xff\xd9\xff\xf0\xff\xc8" + segments[2:]


def _with_markers(count):
    data = _saved("JPEG")
    return data[:2] + b"\xff\xc8" * count + data[2:]


def _gif(width, height, middle):
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0;"
    colours = bytes(3) + b"\xff\0\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + colours + middle + frame


def _eight_files():
    png = _saved("PNG", side=8_192, compress_level=9)
    about = {"format": "PNG", "mode": "L", "size": [8_192, 8_192]}
    items = [["pillow.image", 1, {**about, "file": number}] for number in range(8)]
    return forged_blobs(["plain.list", 1, {"items": items}], *[png] * 8)


PILLOW = {
    "scans of a large JPEG": lambda: _file("JPEG", "L", 8_192, _scans(8_192, 1_000)),
    "scans of a JPEG": lambda: _file("JPEG", "L", 2_000, _scans(2_000, 1_000)),
    "coefficients of a JPEG": lambda: _file("JPEG", "RGB", 4_096, _scans(4_096, 0, "RGB")),
    "segments of a JPEG": lambda: _file("JPEG", "L", 8, _segments(200_000)),
    "segments behind an end": lambda: _file("JPEG", "L", 8, _behind_ends(200_000)),
    "markers of a JPEG": lambda: _file("JPEG", "L", 8, _with_markers(2_000_000)),
    "eight files in a list": _eight_files,
    "pixels that are copied": lambda: _pixels("RGBA", 4_096, _saved("PNG", "RGBA", 4_096)),
    "pixels of another mode": lambda: _pixels("CMYK", 4_096, _saved("PNG", "RGBA", 4_096)),
    "texts in a file": lambda: _file(
        "PNG", "RGBA", 4_096, _with_texts(_saved("PNG", "RGBA", 4_096), 63, bytes(MB))
    ),
    "international texts": lambda: _file(
        *("PNG", "L", 8),
        _with_texts(
            _saved("PNG"), 30, b"a" * (MB - 4) + "\U0001f600".encode(), b"iTXt", b"\0\1\0\0\0"
        ),
    ),
    "texts behind the pixels": lambda: _file(
        "PNG", "L", 8, _behind_pixels(_saved("PNG"), _chunk(b"tEXt", b"k\0v") * 100_000)
    ),
    "texts in pixels": lambda: _pixels("L", 8, _with_texts(_saved("PNG"), 63, bytes(MB))),
    "comments of a GIF": lambda: _file(
        "GIF", "P", 1, _gif(1, 1, b"\x21\xfe" + b"\1A" * 1_500_000 + b"\0")
    ),
    "what follows a frame of a GIF": lambda: _file(
        "GIF", "P", 13_000, _gif(13_000, 13_000, b"\x21\xf9\4\x09\0\0\0\0")
    ),
}


def _behind_pixels(png, chunks):
    return png[:-12] + chunks + png[-12:]


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("JPEG", _scans(64, 30)),
        ("JPEG", _segments(2_000)),
        ("PNG", _with_texts(_saved("PNG"), 3, bytes(MB))),
        ("GIF", _gif(1, 1, b"\x21\xfe" + b"\1A" * 2_000 + b"\0")),
    ],
    ids=["scans", "segments", "texts", "comments"],
)
def test_files_that_are_not_read_are_stored_as_pixels(form, data):
    value = Image.open(io.BytesIO(data))
    assert value.format == form
    back = decode_value(*encode_value(value))
    assert type(back) is Image.Image
    assert (back.mode, back.info, back.tobytes()) == (value.mode, value.info, value.tobytes())


def _animation(side, count):
    file = io.BytesIO()
    frames = [Image.new("L", (side, side), 50 * level) for level in range(count)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], disposal=2)
    return file.getvalue()


def test_an_animation_is_kept_or_refused():
    values = [Image.open(io.BytesIO(_animation(500, 3))) for _ in range(4)]
    assert [each.n_frames for each in decode_value(*encode_value(values))] == [3] * 4
    large = Image.open(io.BytesIO(_animation(6_000, 2)))
    with pytest.raises(UnsupportedTypeError, match=r"store the bytes of its file, or value\.copy"):
        encode_value(large)
    assert decode_value(*encode_value(large.copy())) == large.copy()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_usual_progressive_file_is_kept(mode):
    value = Image.open(io.BytesIO(_saved("JPEG", mode, 300, progressive=True)))
    back = decode_value(*encode_value(value))
    assert type(back) is type(value)
    assert not back.tile
    assert back == value


def test_even_images_are_filled_up_to_what_backs_them():
    value = Image.new("RGB", (1_000, 1_000), "red")
    text, (blob,) = encode_value(value)
    assert len(blob) * 4 <= 4_000_000
    assert decode_value(text, [blob]) == value


CORPUS = {**GEOPANDAS, **SCIPY, **PILLOW}
VALUES = {"items of numbers", "coefficients of a JPEG", "eight files in a list"}
"""Those that are values, and only large."""


@pytest.mark.parametrize("name", [name for name in CORPUS if name not in VALUES])
def test_a_forged_object_is_refused(name):
    with pytest.raises(DamagedObjectError):
        opened(CORPUS[name]()).load("x")


@linux
@pytest.mark.parametrize("name", CORPUS)
def test_a_forged_object_costs_little(name):
    data = CORPUS[name]()
    systems = gpd.GeoSeries([shapely.Point(1, 2)], crs=4326)
    for value in (systems, sp.eye_array(3).todok(), Image.new("L", (4, 4))):
        used(forged_blobs(*_text_and_blobs(value)))  # what is imported at the first time
    seconds, peak = cost(lambda: used(data))
    assert peak < 64 * MB + 10 * len(data), f"{peak / MB:.0f} MB for {len(data)} bytes"
    assert seconds < allowed_seconds(len(data)), f"{seconds:.1f} s for {len(data)} bytes"


def _text_and_blobs(value):
    text, blobs = encode_value(value)
    return text, *blobs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_many_systems, r"too many systems; store value\.to_crs"),
        (
            lambda: gpd.GeoSeries(
                [], crs=json.dumps(_wgs84([{"name": f"m{n}"} for n in range(60)])["projjson"])
            ),
            r"too many members; store value\.to_crs",
        ),
    ],
    ids=["systems", "members"],
)
def test_what_could_not_be_read_is_not_written(make, message):
    with pytest.raises(UnsupportedTypeError, match=message):
        encode_value(make())
