"""Labelled arrays come back with dimensions, coordinates, indexes, attributes and names."""

from __future__ import annotations

import datetime
import json
import re

import numpy as np
import pandas as pd
import pytest
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

pytestmark = pytest.mark.libraries

xr = pytest.importorskip("xarray", reason="xarray is not installed")

LEVELS = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=("letter", "number"))
COORDINATES = {
    "texts": {"x": ["p", "qq", "r"]},
    "bytes": {"x": np.array([b"p", b"q", b"r"])},
    "objects": {"x": pd.Index(["p", "q", "r"], dtype=object)},
    "ints": {"x": [3, 1, 2]},
    "small floats": {"x": np.array([1, 2, np.nan], "f4")},
    "days": {"x": pd.date_range("2024", periods=3, freq="D")},
    "zoned": {"x": pd.date_range("2024", periods=3, tz="Europe/Berlin")},
    "durations": {"x": pd.timedelta_range("1h", periods=3)},
    "categories": {"x": pd.CategoricalIndex(["u", "v", "u"], categories=["v", "u", "w"])},
    "intervals": {"x": pd.interval_range(0, 3)},
    "periods": {"x": pd.period_range("2024", periods=3, freq="M")},
    "range": {"x": pd.RangeIndex(3)},
    "no index": xr.Coordinates({"x": ("x", [1, 2, 3])}, indexes={}),
    "beside": {"y": ("x", [1.0, 2.0, 3.0], {"unit": "m"}), "z": 5},
    "none": {},
    "levels": xr.Coordinates.from_pandas_multiindex(LEVELS[:3], "x"),
    "two levels more": xr.Coordinates.from_pandas_multiindex(LEVELS[[2, 0, 3]], "x").assign(
        k=("x", [1, 2, 3])
    ),
}


def stored(value):
    return decode_value(*encode_value(value))


def dataset(coordinates=None):
    return xr.Dataset(
        {
            "b": (("x", "t"), np.arange(6.0).reshape(3, 2), {"unit": "K", "range": [0, 1]}),
            "a": ("x", np.array(["u", None, "w"], object)),
            "s": ((), np.datetime64("2024-01-01")),
            "c": ("x", pd.Categorical(["u", "v", "u"])),
            "m": ("x", pd.array([1, None, 3], dtype="Int64")),
            "width": ("x", np.array(["u", "vv", ""])),
        },
        coords=COORDINATES["texts"] if coordinates is None else coordinates,
        attrs={"title": "test", "when": datetime.date(2024, 1, 1), "scale": np.float32(2)},
    )


def assert_same(new, old):
    assert type(new) is type(old)
    xr.testing.assert_identical(new, old)
    arrays = (new, old) if isinstance(old, xr.Dataset) else (new.to_dataset(name="_"),) * 0
    pairs = zip(new.coords.variables.items(), old.coords.variables.items(), strict=True)
    if arrays:
        assert [*new.data_vars] == [*old.data_vars]
        assert [each.dtype for each in new.data_vars.values()] == [
            each.dtype for each in old.data_vars.values()
        ]
    for (new_name, mine), (old_name, its) in pairs:
        assert (new_name, mine.dtype, mine.dims) == (old_name, its.dtype, its.dims)
        assert type(mine) is type(its)
    assert [*new.xindexes] == [*old.xindexes]
    for name, index in old.xindexes.items():
        assert type(new.xindexes[name]) is type(index)
        pd.testing.assert_index_equal(new.xindexes[name].index, index.index, exact=True)
        assert getattr(new.xindexes[name].index, "freq", 0) == getattr(index.index, "freq", 0)


class TestDataArrayCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("xarray.data_array")

    @pytest.fixture
    def values(self):
        return [dataset()["b"], xr.DataArray(5), xr.DataArray(np.zeros((0, 2)), name=("a", 1))]

    def assert_same(self, back, value):
        assert_same(back, value)


class TestDatasetCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("xarray.dataset")

    @pytest.fixture
    def values(self):
        one = xr.Dataset({"a": ("x", [1.0, 2.0, 3.0])}, coords=COORDINATES["levels"])
        return [one, xr.Dataset(), dataset()[["a", "s"]]]

    def assert_same(self, back, value):
        assert_same(back, value)


@pytest.mark.parametrize("kind", COORDINATES)
def test_coordinates_and_indexes_are_exact(kind):
    value = dataset(COORDINATES[kind])
    assert_same(stored(value), value)
    assert_same(stored(value["b"]), value["b"])
    assert_same(stored(value.isel(x=slice(0))), value.isel(x=slice(0)))
    assert_same(stored(value.isel(x=[2, 0])), value.isel(x=[2, 0]))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.array(5),
        np.array(None),
        np.array(["a", None, 1.5, [1]], object),
        np.array([[True, False]]),
        np.arange(6).reshape(2, 3).T,
        np.array(["2024", "NaT"], "M8[s]"),
        np.array([1 + 2j], "c8"),
    ],
)
def test_arrays_are_exact(array):
    value = xr.DataArray(array)
    back = stored(value)
    assert_same(back, value)
    assert back.dtype == value.dtype


def test_names_are_whatever_can_be_stored():
    value = xr.Dataset({("a", 1): (("x", None), np.zeros((1, 1)))}, coords={2: 5})
    assert_same(stored(value), value)
    assert stored(xr.DataArray([1], name=3)).name == 3
    assert stored(xr.DataArray([1])).name is None


def test_order_of_variables_is_kept():
    value = xr.Dataset({"b": 1, "a": 2}, coords={"y": 3, "x": [4]})
    assert [*stored(value).data_vars] == ["b", "a"]
    assert [*stored(value).coords] == ["y", "x"]


def test_what_other_files_were_written_with_is_not_kept():
    value = xr.DataArray([1.0])
    value.encoding["zlib"] = True
    assert stored(value).encoding == {}


EDITS = {
    "new variable": lambda ds: ds.__setitem__("new", 1),
    "attribute": lambda ds: ds.attrs.__setitem__("new", 1),
    "attribute inside": lambda ds: ds["b"].attrs["range"].append(2),
    "attribute of a coordinate": lambda ds: ds["x"].attrs.__setitem__("new", 1),
    "coordinate": lambda ds: ds.coords.__setitem__("x", [1, 2, 3]),
    "object": lambda ds: ds["a"].values.__setitem__(0, "edited"),
    "removed": lambda ds: ds.__delitem__("s"),
    "extension array": lambda ds: ds.variables["m"].data.__setitem__(0, 9),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_is_noticed_or_refused(storage, edit):
    ds = DataStore(d=dataset())
    store(ds, storage)
    fresh = reloaded(ds, storage)
    repr(fresh.d)
    assert not fresh._scan()
    try:
        edit(fresh.d)
    except ValueError as err:  # the memory of numbers is read-only
        assert "view" in str(err) or "read-only" in str(err)  # noqa: PT017
        return
    assert fresh._scan()
    after = fresh.d.copy(deep=True)
    store(fresh, storage)
    assert_same(reloaded(fresh, storage).d, after)


def test_numbers_are_read_only():
    with pytest.raises(ValueError, match="view"):
        stored(dataset())["b"][0, 0] = 1


def test_equality_is_that_of_content():
    assert DataStore(v=dataset()) == DataStore(v=dataset())
    assert DataStore(v=dataset()) != DataStore(v=dataset().assign_attrs(title="other"))
    assert DataStore(v=dataset()) != DataStore(v=dataset().assign_coords(x=[1, 2, 3]))
    assert DataStore(v=xr.DataArray([1.0, np.nan])) == DataStore(v=xr.DataArray([1.0, np.nan]))
    assert DataStore(v=xr.DataArray([1.0])) != DataStore(v=xr.DataArray(np.ones(1, "f4")))
    assert DataStore(v=xr.DataArray([1.0])) != DataStore(v=np.ones(1))


class Chunked:
    """Stands for an array of another library."""

    shape, dtype, ndim = (2,), np.dtype("f8"), 1

    def __array_function__(self, *_):
        raise NotImplementedError

    def __array_ufunc__(self, *_):
        raise NotImplementedError


def test_arrays_of_other_libraries_are_refused():
    with pytest.raises(UnsupportedTypeError, match=r"Chunked; store value\.as_numpy\(\)"):
        encode_value(xr.DataArray(Chunked(), dims="x"))


def test_other_indexes_are_refused_with_advice_that_works():
    index = pytest.importorskip("xarray.indexes").RangeIndex.arange(0, 1, 0.5, dim="x")
    value = xr.Dataset(coords=xr.Coordinates.from_xindex(index))
    with pytest.raises(UnsupportedTypeError, match=r"value\.drop_indexes\(\['x'\]\)"):
        encode_value(value)
    assert_same(stored(value.drop_indexes(["x"])), value.drop_indexes(["x"]))


class OwnArray(xr.DataArray):
    __slots__ = ()


class OwnDataset(xr.Dataset):
    __slots__ = ()


def tree():
    return xr.DataTree.from_dict({"/": dataset(), "/below": dataset().rename(x="z")})


REFUSED = {
    "subclass of DataArray": lambda: OwnArray([1.0], dims="x", attrs={"unit": "m"}),
    "subclass of Dataset": lambda: OwnDataset(dataset().data_vars, dataset().coords),
    "Variable": lambda: xr.Variable("x", [1.0], {"unit": "m"}),
    "IndexVariable": lambda: xr.IndexVariable("x", [1.0], {"unit": "m"}),
    "coordinates": lambda: dataset().coords,
    "indexes": lambda: dataset().indexes,
}
if hasattr(xr, "DataTree"):
    REFUSED["DataTree"] = tree


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_the_advice_for_what_is_refused_helps(make):
    value = make()
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(value)
    found = re.findall(r"; store (.+?\))(?: and what the subclass adds)?$", caught.value.message)
    assert found, caught.value.message
    (code,) = found
    instead = eval(code, {"value": value, "xarray": xr})
    back = stored(instead)
    if isinstance(instead, dict):
        assert list(back) == list(instead)
    else:
        assert_same(back, instead)


def test_a_range_that_nothing_backs_is_refused():
    value = xr.Dataset(coords={"x": pd.RangeIndex(2**40)})
    with pytest.raises(UnsupportedTypeError, match="longer than what is stored"):
        encode_value(value)
    text, blobs = encode_value(xr.Dataset(coords={"x": pd.RangeIndex(3)}))
    with pytest.raises(DamagedObjectError, match="longer than what is stored"):
        decode_value(text.replace("3", str(2**40)), blobs)


def test_long_texts_of_levels_are_refused():
    levels = pd.MultiIndex.from_product([["a" * 10_000, "b"], range(2_000)], names=("l", "n"))
    dtypes = {"l": np.dtype("<U10000"), "n": np.dtype("i8")}
    index = xr.indexes.PandasMultiIndex(levels, "x", level_coords_dtype=dtypes)
    value = xr.Dataset(coords=xr.Coordinates.from_xindex(index))
    with pytest.raises(UnsupportedTypeError, match="reset_index"):
        encode_value(value)


def test_a_width_of_levels_that_nothing_backs_is_damage():
    levels = pd.MultiIndex.from_product([["a", "b"], range(2_000)], names=("l", "n"))
    dtypes = {"l": np.dtype("<U1"), "n": np.dtype("i8")}
    index = xr.indexes.PandasMultiIndex(levels, "x", level_coords_dtype=dtypes)
    value = xr.Dataset(coords=xr.Coordinates.from_xindex(index))
    assert_same(stored(value), value)
    text, blobs = encode_value(value)
    with pytest.raises(DamagedObjectError, match="too long"):
        decode_value(text.replace("<U1", "<U500000000"), blobs)


def changed(value, change):
    text, blobs = encode_value(value)
    node = json.loads(text)
    change(node[2])
    return json.dumps(node), blobs


HOSTILE = {
    "one dimension for two": lambda node: node["data"][0][1].update(dims=["x"]),
    "a dimension twice": lambda node: node["data"][0][1].update(dims=["x", "x"]),
    "another length": lambda node: node["data"][0][1].update(dims=["t", "x"]),
    "attributes that are a list": lambda node: node.update(attrs=["plain.list", 1, {"json": []}]),
    "an unhashable name": lambda node: node["data"][0].__setitem__(
        0, ["plain.list", 1, {"json": []}]
    ),
    "a name twice": lambda node: node["data"][1].__setitem__(0, "b"),
    "a coordinate that is not there": lambda node: node["order"].append("y"),
    "values that are text": lambda node: node["data"][0][1].update(values={"array": "text"}),
    "objects of another shape": lambda node: node["data"][1][1]["values"].update(shape=[2**40]),
    "an index of another dimension": lambda node: node["indexes"][0].update(dim="t"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_fit_is_damage(change):
    with pytest.raises(DamagedObjectError):
        decode_value(*changed(dataset(), change))


def test_description():
    codec = codec_named("xarray.data_array")
    about = codec.describe(json.loads(encode_value(dataset()["b"])[0])[2])
    assert (about.type, about.dtype, about.shape) == ("xarray.DataArray", "float64", (3, 2))
    about = codec_named("xarray.dataset").describe(json.loads(encode_value(dataset())[0])[2])
    assert about.type == "xarray.Dataset"
