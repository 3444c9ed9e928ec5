"""What people see of a value: right numbers, bounded, harmless; plots and pictures."""

from __future__ import annotations

import io
import math
import struct
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.lab import HOSTILE, gradient
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.browsing.pictures import picture
from sqla_datastore.browsing.plots import histogram, line_plot
from sqla_datastore.browsing.views import View, view_of


def texts(view: View) -> list[str]:
    facts = [text for fact in view.facts for text in fact]
    cells = [cell for row in view.rows for cell in row]
    return [*facts, *view.columns, *view.dtypes, *cells, *view.lines, *view.notes]


def test_statistics_of_an_array():
    view = view_of(np.array([1.0, 2.0, 3.0, np.nan, np.inf]))
    assert dict(view.facts) == {
        "dtype": "float64",
        "shape": "(5,)",
        "min": "1",
        "max": "3",
        "mean": "2",
        "standard deviation": "0.8165",
        "NaN": "1",
        "infinite": "1",
    }
    assert [title for title, _ in view.plots] == ["values by position", "distribution"]


def test_a_large_array_is_sampled():
    view = view_of(np.arange(5_000_000.0).reshape(5, -1))
    assert "sample of 999424 of 5000000" in view.notes[0]
    facts = dict(view.facts)
    assert float(facts["mean"]) == pytest.approx(2_500_000, rel=0.01)
    assert (facts["min"], facts["max"]) == ("0", "5e+06")
    assert len(view.lines) < 20


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3)),
        np.array(1.5),
        np.array(["a", "b"]),
        np.array(["2024-01-01", "NaT"], "M8[D]"),
        np.array([1 + 1j, 2]),
        np.array([True, False]),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.full(5, np.nan),
        np.full(5, 7),
        np.array([1e308, -1e308]),
        np.array([1.0, np.nextafter(1.0, 2.0)]),
        np.zeros((2, 2, 2, 2)),
        np.float32(1),
        np.dtype("i4"),
        pd.DataFrame(),
        pd.DataFrame({"a": [None, "x"]}),
        pd.DataFrame({("a", 1): [1]}, index=pd.MultiIndex.from_tuples([("x", 1)])),
        pd.DataFrame([[1, 2]], columns=["same", "same"]),
        pd.Series([1, None], dtype="Int64"),
        pd.Index([1, 2]),
        pd.Timestamp(0),
        pa.array([[1, 2], None]),
        pa.chunked_array([[1], [2]]),
        pa.schema([("a", "int32")]),
        pa.record_batch({"a": [1]}),
        pl.DataFrame({"a": [1, 2]}),
        pl.Series("s", ["x"]),
        None,
        10**5000,
        {1: {2: {3: {4: {5: {6: {7: 8}}}}}}},
        {"k": {1, 2}, (1, 2): frozenset([3])},
        [np.zeros(3), DataStore(a=1), b"x" * 100],
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("error")
def test_every_kind_of_value_has_a_view(value):
    view = view_of(value)
    assert texts(view) or view.is_picture
    assert all(text.isprintable() for text in texts(view))
    for _, svg in view.plots:
        ET.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg


def test_a_frame_shows_its_first_rows():
    frame = pd.DataFrame({"a": range(1000), "b": ["x"] * 1000})
    view = view_of(frame)
    assert view.columns == ["", "a", "b"]
    assert view.dtypes[1] == "int64"
    assert (len(view.rows), view.rows[3]) == (50, ["3", "3", "x"])
    assert view.notes == ["the first 50 of 1000 rows"]
    assert [title for title, _ in view.plots] == ["a"]


@pytest.mark.parametrize("make", [pa.table, pl.DataFrame])
def test_a_table_shows_its_first_rows(make):
    view = view_of(make({"a": list(range(1000))}))
    assert dict(view.facts)["rows"] == "1000"
    assert (view.columns, len(view.rows), view.rows[3]) == (["a"], 50, ["3"])
    assert view.notes == ["the first 50 of 1000 rows"]


def test_text_and_collections():
    assert view_of("one\ntwo").lines == ["one", "two"]
    assert view_of({"a": [1, 2], "b": "x"}).lines == ["{'a': [1, 2], 'b': 'x'}"]
    assert view_of(b"\x00A").lines == ["0000  00 41" + " " * 44 + ".A"]
    assert view_of([DataStore(a=1), np.zeros((2, 3))]).lines == ["[<DataStore>, <ndarray (2, 3)>]"]


@pytest.mark.parametrize(
    "value",
    [
        HOSTILE,
        {HOSTILE: HOSTILE},
        pd.DataFrame({HOSTILE: [HOSTILE]}, index=[HOSTILE]),
        pa.table({HOSTILE: [HOSTILE]}),
        np.array([HOSTILE]),
        np.zeros(2, [("<script>", "i4")]),
        pd.DataFrame({"<script>": [1.0, 2.0]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_hostile_is_shown_harmlessly(value):
    view = view_of(value)
    assert "script" in "".join(texts(view))
    assert all(text.isprintable() for text in texts(view))
    assert "<script" not in "".join(svg for _, svg in view.plots)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        "x\n" * 10**6,
        list(range(10**6)),
        {str(n): n for n in range(10**6)},
        [[[1] * 1000] * 1000] * 1000,
        b"x" * 10**7,
        pd.DataFrame(np.zeros((10, 10_000))),
        pd.DataFrame({"a": ["x" * 10**6] * 100}),
        np.array(["x" * 10**5] * 20),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_view_is_bounded(value):
    assert sum(map(len, texts(view_of(value)))) < 300_000


def test_a_stored_value_is_viewed_alike(storage):
    value = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})
    ds = DataStore(f=value, w=np.arange(20.0).reshape(4, 5))
    store(ds, storage)
    fresh = reloaded(ds, storage)
    assert view_of(fresh.f) == view_of(value)
    assert view_of(fresh.w) == view_of(np.arange(20.0).reshape(4, 5))


# -- plots -----------------------------------------------------------------------------------------


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ET.fromstring(svg).iter("polyline")
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]


def test_a_line_goes_through_its_numbers():
    ((left, middle, right),) = points(line_plot([0, 1, 0], "t"))
    assert left == (0, 120)
    assert middle == (240, 0)
    assert right == (480, 120)


def test_a_line_has_gaps_and_keeps_the_peaks_of_many_numbers():
    assert [len(run) for run in points(line_plot([1, 2, np.nan, 1, 3, 2], "t"))] == [2, 3]
    many = np.zeros(100_000)
    many[54_321] = 7
    (run,) = points(line_plot(many, "t"))
    assert len(run) <= 480
    assert min(down for _, down in run) == 0
    assert line_plot([1, np.nan], "t") == line_plot([], "t") == ""


def test_bars_are_as_high_as_their_counts():
    bars = list(ET.fromstring(histogram([0, 0, 0, 0, 1, 1], "t")).iter("rect"))
    assert [float(bar.get("height")) for bar in bars] == [120, 60]
    assert histogram([], "t") == histogram([3, 3], "t") == histogram([math.inf], "t") == ""


# -- pictures --------------------------------------------------------------------------------------


def pixels(png: bytes) -> np.ndarray:
    """Decode a PNG as `pictures` writes it, by the letter of the standard."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(png):
        (size,), name = struct.unpack(">I", png[place : place + 4]), png[place + 4 : place + 8]
        data = png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size :][:4])[0] == zlib.crc32(name + data)
        chunks[name] = data
        place += 12 + size
    width, height, depth, kind, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels = {0: 1, 2: 3, 6: 4}[kind]
    assert depth == 8
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape((height, width, channels) if channels > 1 else (height, width))


def test_arrays_of_bytes_are_shown_as_they_are():
    for array in (gradient(), gradient()[..., 0], np.zeros((3, 4, 4), np.uint8)):
        data, kind = picture(array)
        assert kind == "image/png"
        assert (pixels(data) == array).all()


def test_numbers_are_shades_of_grey_and_large_ones_are_made_smaller():
    data, _ = picture(np.array([[0.0, 0.5], [1.0, np.nan]]))
    assert pixels(data).tolist() == [[0, 127], [255, 0]]
    assert pixels(picture(np.ones((2000, 3)))[0]).shape == (500, 3)
    assert pixels(picture(np.full((2, 2), np.nan))[0]).tolist() == [[0, 0], [0, 0]]


def test_files_of_images_are_passed_on():
    png = picture(gradient())[0]
    assert picture(png) == (png, "image/png")
    assert picture(b"GIF89a...")[1] == "image/gif"
    assert picture(b"<svg onload=alert(1)>") is None
    assert picture(np.zeros(3)) is picture(np.zeros((3, 3), complex)) is picture({}) is None


@pytest.mark.libraries
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "LAB"])
def test_images_of_pillow(mode):
    from PIL import Image

    image = Image.new(mode, (1000, 10))
    assert view_of(image).is_picture
    data, kind = picture(image)
    shown = Image.open(io.BytesIO(data))
    assert (kind, shown.format, shown.size) == ("image/png", "PNG", (640, 6))


@pytest.mark.libraries
def test_values_of_other_libraries():
    import geopandas
    import scipy.sparse
    import shapely
    import xarray

    points = geopandas.GeoDataFrame({"n": [1]}, geometry=[shapely.Point(1, 2)])
    assert view_of(points).rows == [["0", "1", "POINT (1 2)"]]
    assert "3 stored elements" in view_of(scipy.sparse.eye_array(3)).lines[1]
    assert "xarray.DataArray" in view_of(xarray.DataArray([1.0, 2.0])).lines[0]


def test_sampling_costs_no_copy_of_a_large_array(tmp_path):
    import tracemalloc

    np.save(tmp_path / "large.npy", np.zeros((2000, 8000)))
    mapped = np.load(tmp_path / "large.npy", mmap_mode="r").view(np.ndarray)
    tracemalloc.start()
    try:
        view_of(mapped)
        assert tracemalloc.get_traced_memory()[1] < mapped.nbytes / 2
    finally:
        tracemalloc.stop()
