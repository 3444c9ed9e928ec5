"""Geometries come back with systems, names and all, and WKB cannot take the process down."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

gpd = pytest.importorskip("geopandas", reason="geopandas is not installed")
import pyproj  # noqa: E402
import shapely  # noqa: E402
from shapely.geometry import LinearRing, Point, box  # noqa: E402

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("copy_on_write")]

WKB = pa.large_binary()
HAS_M = hasattr(shapely, "has_m")
TEXTS = [
    *("POINT (1 2)", "POINT Z (1 2 3)", "POINT EMPTY", "POINT Z EMPTY", "LINESTRING EMPTY"),
    *("LINESTRING (0 0, 1 1)", "LINESTRING Z (0 0 NaN, 1 1 2)", "POLYGON EMPTY"),
    *("POLYGON ((0 0, 1 0, 1 1, 0 0))", "POLYGON Z ((0 0 1, 1 0 1, 1 1 1, 0 0 1))"),
    "POLYGON ((0 0, 9 0, 9 9, 0 0), (1 0.5, 2 0.5, 2 1, 1 0.5))",
    *("MULTIPOINT (EMPTY, (1 1))", "MULTIPOINT EMPTY", "MULTILINESTRING ((0 0, 1 1), EMPTY)"),
    *("MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)), EMPTY)", "GEOMETRYCOLLECTION EMPTY"),
    "GEOMETRYCOLLECTION (POINT (1 2), GEOMETRYCOLLECTION (LINESTRING (0 0, 1 1)))",
    *("LINEARRING (0 0, 1 0, 1 1, 0 0)", "LINEARRING Z (0 0 1, 1 0 2, 1 1 3, 0 0 1)"),
    "LINEARRING EMPTY",
    *(["POINT M (1 2 3)", "POINT ZM (1 2 3 4)", "LINESTRING M (0 0 1, 1 1 2)"] if HAS_M else []),
]
GEOMETRIES = {text: shapely.from_wkt(text) for text in TEXTS} | {
    "SRID": shapely.set_srid(Point(1, 2), 4326),
    "SRID of a ring": shapely.set_srid(LinearRing([(0, 0), (1, 0), (1, 1)]), 4326),
    "SRID of a polygon": shapely.set_srid(box(0, 0, 1, 1), 4326),
    "missing": None,
}
SYSTEMS = {
    "none": None,
    "code": "EPSG:4326",
    "another authority": "OGC:CRS84",
    "number": 3857,
    "parameters": "+proj=utm +zone=33 +datum=WGS84",
    "compound": "EPSG:4326+5773",
    "bound": "+proj=longlat +ellps=bessel +towgs84=1,2,3 +no_defs",
    "text": pyproj.CRS("EPSG:31467").to_wkt(),
}


def stored(value):
    return decode_value(*encode_value(value))


def assert_arrays(new, old):
    assert type(new) is type(old)
    assert new.crs == old.crs
    assert str(new.crs) == str(old.crs) or old.crs.to_authority() == new.crs.to_authority()
    mine, its = np.asarray(new), np.asarray(old)
    np.testing.assert_array_equal(shapely.get_type_id(mine), shapely.get_type_id(its))
    np.testing.assert_array_equal(shapely.get_srid(mine), shapely.get_srid(its))
    options = {"output_dimension": 4, "include_srid": True}
    assert [*shapely.to_wkb(mine, **options)] == [*shapely.to_wkb(its, **options)]


def assert_same(new, old):
    assert type(new) is type(old)
    pd.testing.assert_index_equal(new.index, old.index, exact=True)
    assert new.attrs == old.attrs
    assert new.flags.allows_duplicate_labels == old.flags.allows_duplicate_labels
    if isinstance(old, gpd.GeoSeries):
        assert new.name == old.name
        assert_arrays(new.array, old.array)
        return
    pd.testing.assert_index_equal(new.columns, old.columns, exact=True)
    assert new._geometry_column_name == old._geometry_column_name
    for position, dtype in enumerate(old.dtypes):
        mine, its = new.iloc[:, position], old.iloc[:, position]
        if dtype == "geometry":
            assert_arrays(mine.array, its.array)
        else:
            assert type(mine) is type(its)
            pd.testing.assert_series_equal(mine, its)


def frame():
    made = gpd.GeoDataFrame(
        {
            "name": ["a", "b", None],
            "value": [1.5, np.nan, 3],
            "geometry": [Point(1, 2), None, box(0, 0, 1, 1)],
            "other": gpd.GeoSeries([Point(0, 0)] * 3, crs=3857),
            "kind": pd.Categorical(["u", "v", "u"]),
        },
        crs="EPSG:4326",
        index=pd.Index([3, 1, 2], name="key"),
    )
    made.attrs = {"source": ["test"]}
    return made


class TestGeoSeriesCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("geopandas.series")

    @pytest.fixture
    def values(self):
        some = [GEOMETRIES[text] for text in TEXTS[:12]]
        return [gpd.GeoSeries(some, crs=4326, name="g"), gpd.GeoSeries([])]

    def assert_same(self, back, value):
        assert_same(back, value)


class TestGeoDataFrameCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("geopandas.frame")

    @pytest.fixture
    def values(self):
        return [frame()[["name", "geometry", "other"]], gpd.GeoDataFrame()]

    def assert_same(self, back, value):
        assert_same(back, value)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_every_geometry_is_exact(kind):
    value = gpd.GeoSeries([GEOMETRIES[kind], None, Point(1, 2)])
    assert_same(stored(value), value)


def test_all_geometries_together_are_exact():
    value = gpd.GeoSeries([*GEOMETRIES.values()])
    assert_same(stored(value), value)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(GEOMETRIES)), max_size=6),
    st.floats(-1e9, 1e9),
    st.floats(-1e9, 1e9),
)
def test_any_mixture_is_exact(kinds, x, y):
    value = gpd.GeoSeries([*(GEOMETRIES[kind] for kind in kinds), Point(x, y)])
    assert_same(stored(value), value)


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_every_system_is_exact(system):
    value = gpd.GeoSeries([Point(1, 2)], crs=system)
    assert_same(stored(value), value)


FRAMES = {
    "ordinary": frame,
    "another active column": lambda: frame().set_geometry("other"),
    "no active column": lambda: gpd.GeoDataFrame({"a": [1, 2]}),
    "geometries, none active": lambda: gpd.GeoDataFrame(
        {"a": [1], "g": gpd.GeoSeries([Point(1, 1)])}
    ),
    "no rows": lambda: frame().iloc[:0],
    "a slice": lambda: frame().iloc[1:],
    "levels of names": lambda: gpd.GeoDataFrame(
        {("a", 1): [1], ("g", 2): [Point(1, 1)]}, geometry=("g", 2)
    ),
    "names that occur twice": lambda: gpd.GeoDataFrame(
        pd.DataFrame([[1, 2, Point(1, 1)]], columns=["a", "a", "geometry"])
    ),
    "dates": lambda: frame().assign(when=pd.date_range("2024", periods=3, tz="UTC")),
    "unique labels": lambda: frame().set_flags(allows_duplicate_labels=False),
}


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_every_frame_is_exact(make):
    value = make()
    before = value.copy()
    assert_same(stored(value), value)
    assert_same(value, before)


def test_columns_are_wkb_that_arrow_reads():
    _, blobs = encode_value(frame())
    stream = next(blob for blob in blobs if b"geometry" in blob)
    table = pa.ipc.open_stream(stream).read_all()
    assert shapely.from_wkb(table.column("geometry")[0].as_py()) == Point(1, 2)


EDITS = {
    "geometry": lambda df: df.loc.__setitem__((3, "geometry"), Point(9, 9)),
    "column": lambda df: df.__setitem__("new", 1),
    "number": lambda df: df.loc.__setitem__((3, "value"), 7),
    "system": lambda df: df.set_crs(3857, allow_override=True, inplace=True),
    "active": lambda df: df.set_geometry("other", inplace=True),
    "name": lambda df: df.rename_geometry("shape", inplace=True),
    "attrs": lambda df: df.attrs["source"].append(1),
    "array": lambda df: df["geometry"].array.__setitem__(0, Point(9, 9)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_is_noticed_or_refused(storage, edit):
    ds = DataStore(d=frame())
    store(ds, storage)
    fresh = reloaded(ds, storage)
    assert not (len(fresh.d.cx[0:1, 0:1]) and fresh._scan())
    before = fresh.d.copy()
    try:
        edit(fresh.d)
    except ValueError as err:
        assert "read-only" in str(err)  # noqa: PT017
        return
    if DataStore(d=fresh.d) == DataStore(d=before):  # a view that pandas copied
        return
    assert fresh._scan()
    after = fresh.d.copy()
    store(fresh, storage)
    assert_same(reloaded(fresh, storage).d, after)


def test_looking_for_edits_does_not_look_into_geometries(storage):
    ds = DataStore(d=gpd.GeoSeries(shapely.points(np.random.default_rng(1).random((200_000, 2)))))
    store(ds, storage)
    fresh = reloaded(ds, storage)
    held = fresh.d
    start = time.perf_counter()
    assert not fresh._scan()
    assert time.perf_counter() - start < 0.2
    assert len(held) == 200_000


def test_equality_is_that_of_content():
    assert DataStore(v=frame()) == DataStore(v=frame())
    assert DataStore(v=frame()) != DataStore(v=frame().to_crs(3857))
    assert DataStore(v=frame()) != DataStore(v=frame().set_crs(4258, allow_override=True))
    assert DataStore(v=frame()) != DataStore(v=frame().set_geometry("other"))
    assert DataStore(v=frame().geometry) == DataStore(v=frame().geometry)
    assert DataStore(v=frame().geometry) != DataStore(v=frame().other)


def nested(depth, kind=7):
    return struct.pack("<BII", 1, kind, 1) * depth + struct.pack("<BII", 1, 7, 0)


REFUSED = {
    "a point at NaN": Point(float("nan"), float("nan")),
    "a point at NaN inside": shapely.from_wkt("GEOMETRYCOLLECTION (POINT (NaN NaN))"),
    "a ring inside": shapely.geometrycollections([LinearRing([(0, 0), (1, 0), (1, 1)])]),
    "too deep": shapely.from_wkb(nested(40)),
    "too many empty parts": shapely.from_wkt("MULTIPOLYGON (" + ", ".join(["EMPTY"] * 2**18) + ")"),
}


@pytest.mark.parametrize("geometry", REFUSED.values(), ids=REFUSED)
def test_what_wkb_cannot_hold_is_refused(geometry):
    with pytest.raises(UnsupportedTypeError, match=r"WKB has no|deeper than|empty parts"):
        encode_value(gpd.GeoSeries([geometry]))


def forged(*wkb, dtype=WKB, **parts):
    """Return node and blobs of a series with any bytes for geometries."""
    text, blobs = encode_value(pd.Series(pd.array([*wkb], dtype=pd.ArrowDtype(dtype))))
    node = {"series": json.loads(text), "shape": [len(wkb)], "crs": None, **parts}
    return json.dumps(["geopandas.series", 1, node]), blobs


HEADS = {
    "collections": nested(10_000, 7),
    "polygons of polygons": nested(10_000, 6),
    "lines of lines": nested(10_000, 5),
    "points of points": nested(10_000, 4),
    "in big endian": struct.pack(">BII", 0, 7, 1) * 10_000,
    "with SRID": struct.pack("<BIII", 1, 0x20000007, 5, 1) * 10_000,
    "with Z and M": struct.pack("<BII", 1, 0xC0000007, 1) * 10_000,
    "numbered by ISO": struct.pack("<BII", 1, 1007, 1) * 10_000,
    "behind a point": struct.pack("<BIIBIdd", 1, 7, 2, 1, 1, 0.0, 0.0) + nested(10_000),
    "a curve": struct.pack("<BII", 1, 9, 1) * 10_000,
    "points that are not there": struct.pack("<BII", 1, 2, 2**32 - 1),
    "rings that are not there": struct.pack("<BII", 1, 3, 2**32 - 1),
    "parts that are not there": struct.pack("<BII", 1, 7, 2**32 - 1),
    "a ring that ends beyond": struct.pack("<BIII", 1, 3, 1, 2**31),
    "an open ring": struct.pack("<BIII6d", 1, 3, 1, 3, 0, 0, 1, 0, 1, 1),
    "nothing": b"",
    "a byte": b"\1",
    "text": b"POINT (1 2)",
    "hexadecimal": b"0101000000000000000000F03F0000000000000040",
    "empty rings": struct.pack("<BII", 1, 3, 10**6) + bytes(4 * 10**6),
    "empty parts": struct.pack("<BII", 1, 7, 10**6) + struct.pack("<BII", 1, 7, 0) * 10**6,
}


@pytest.mark.parametrize("wkb", HEADS.values(), ids=HEADS)
def test_wkb_that_lies_is_damage(wkb):
    with pytest.raises(DamagedObjectError):
        decode_value(*forged(struct.pack("<BIdd", 1, 1, 1, 2), wkb))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(GEOMETRIES)), st.data())
def test_changed_wkb_is_a_value_or_damage(kind, data):
    if GEOMETRIES[kind] is None:
        return
    wkb = bytearray(shapely.to_wkb(GEOMETRIES[kind], output_dimension=4))
    for _ in range(data.draw(st.integers(1, 3))):
        wkb[data.draw(st.integers(0, len(wkb) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_value(*forged(bytes(wkb)))
    except DamagedObjectError:
        return


POINT = struct.pack("<BIdd", 1, 1, 1, 2)
HOSTILE = {
    "text": lambda: forged("POINT (1 2)", dtype=pa.large_string()),
    "a file of PROJ": lambda: forged(POINT, crs="+init=/etc/passwd:x"),
    "parameters": lambda: forged(POINT, crs="+proj=utm +zone=33"),
    "an unknown code": lambda: forged(POINT, crs="EPSG:999999"),
    "a system that is a list": lambda: forged(POINT, crs=[]),
    "a system that is none": lambda: forged(POINT, crs={"projjson": {"type": "x"}}),
    "a system that is text": lambda: forged(POINT, crs={"projjson": "EPSG:4326"}),
    "a system that is long": lambda: forged(POINT, crs={"projjson": {"x": "y" * 10**6}}),
    "a ring of a point": lambda: with_rings([0]),
    "a ring beyond": lambda: with_rings([5]),
    "a ring before": lambda: with_rings([-1]),
}


def with_rings(positions):
    text, blobs = encode_value(np.array(positions))
    rings = json.loads(text)
    rings[2]["blob"] = 1
    series, its_blobs = forged(POINT, rings=rings)
    assert len(its_blobs) == 1
    return series, [*its_blobs, *blobs]


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_fit_is_damage(make):
    with pytest.raises(DamagedObjectError):
        decode_value(*make())


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["geometries"][0].update(position=9),
        lambda node: node["geometries"][1].update(position=node["geometries"][0]["position"]),
        lambda node: node.update(active=0),
        lambda node: node.update(active=None),
        lambda node: node.update(active={"name": ["plain.list", 1, {"json": []}]}),
    ],
)
def test_a_frame_has_the_columns_that_its_node_names(change):
    text, blobs = encode_value(frame())
    node = json.loads(text)
    change(node[2])
    with pytest.raises(DamagedObjectError):
        decode_value(json.dumps(node), blobs)


def test_a_subclass_is_refused_with_advice_that_works():
    class Special(gpd.GeoDataFrame):
        pass

    value = Special(frame())
    with pytest.raises(UnsupportedTypeError, match=r"geopandas\.GeoDataFrame") as caught:
        encode_value(value)
    assert "geopandas.GeoDataFrame(value)" in str(caught.value)
    made = gpd.GeoDataFrame(value)
    assert_same(stored(made), made)


def test_geometries_in_plain_pandas_are_refused_with_advice_that_works():
    for value in (pd.DataFrame(frame()), pd.Series(frame().geometry), frame().geometry.array):
        kind = "GeoDataFrame" if isinstance(value, pd.DataFrame) else "GeoSeries"
        with pytest.raises(UnsupportedTypeError, match=rf"geopandas\.{kind}\(value\)"):
            encode_value(value)
        made = getattr(gpd, kind)(value)
        assert_same(stored(made), made)


def test_description():
    about = codec_named("geopandas.frame").describe(json.loads(encode_value(frame())[0])[2])
    assert (about.type, about.shape) == ("geopandas.GeoDataFrame", (3, 5))
