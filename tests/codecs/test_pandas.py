"""pandas values come back exactly: dtypes, index classes, names, missing values, flags."""

from __future__ import annotations

import datetime
import decimal
import json
import warnings
import zoneinfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dateutil.relativedelta import MO
from dateutil.tz import tzlocal
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import (
    assert_extension_array_equal,
    assert_frame_equal,
    assert_index_equal,
    assert_series_equal,
)
from support.toys import MemoryReader, MemoryWriter

from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.format import Container, plan
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def words(text):
    return text.split()


def stored(value):
    return decode_value(*encode_value(value))


def assert_same(new, old):
    assert type(new) is type(old)
    if isinstance(old, pd.DataFrame):
        assert_frame_equal(new, old, check_exact=True, check_freq=True, check_flags=True)
        assert new.attrs == old.attrs
        assert_same(new.columns, old.columns)
        assert_same(new.index, old.index)
        for position in range(old.shape[1]):
            assert_same(new.iloc[:, position].array, old.iloc[:, position].array)
    elif isinstance(old, pd.Series):
        assert_series_equal(new, old, check_exact=True, check_freq=True, check_flags=True)
        assert new.attrs == old.attrs
        assert_same(new.index, old.index)
        assert_same(new.array, old.array)
    elif isinstance(old, pd.MultiIndex):
        assert_index_equal(new, old, exact=True, check_exact=True)
        assert len(new.levels) == len(old.levels)
        for new_level, old_level in zip(new.levels, old.levels, strict=True):
            assert_same(new_level, old_level)
        for new_codes, old_codes in zip(new.codes, old.codes, strict=True):
            assert new_codes.dtype == old_codes.dtype
            np.testing.assert_array_equal(new_codes, old_codes)
        assert new.sortorder == old.sortorder
        assert [*map(type, new.names)] == [*map(type, old.names)]
    elif isinstance(old, pd.Index):
        assert_index_equal(new, old, exact=True, check_exact=True)
        assert new.dtype == old.dtype
        assert type(new.name) is type(old.name)
        assert getattr(new, "freq", None) == getattr(old, "freq", None)
        if not isinstance(old, pd.RangeIndex):
            assert_same(new.array, old.array)
    else:
        assert_same_array(new, old)


def assert_same_array(new, old):
    assert new.dtype == old.dtype
    if isinstance(old.dtype, pd.SparseDtype):
        np.testing.assert_array_equal(new.sp_values, old.sp_values)
        np.testing.assert_array_equal(
            new.sp_index.to_int_index().indices, old.sp_index.to_int_index().indices
        )
        assert new.kind == old.kind
    if isinstance(old, pd.Categorical):
        assert_same(new.categories, old.categories)
        assert new.codes.dtype == old.codes.dtype
    if isinstance(old.dtype, pd.StringDtype):
        assert new.dtype.storage == old.dtype.storage
        assert repr(new.dtype.na_value) == repr(old.dtype.na_value)
    if isinstance(old.dtype, pd.DatetimeTZDtype):
        assert type(new.dtype.tz) is type(old.dtype.tz)
        assert new.dtype.tz == old.dtype.tz
        np.testing.assert_array_equal(new.asi8, old.asi8)
        return
    if old.dtype == object:
        assert [*map(type, new)] == [*map(type, old)]
        assert [*map(repr, new)] == [*map(repr, old)]
        return
    if isinstance(old, pd.arrays.NumpyExtensionArray) and np.asarray(old).dtype.kind in "c":
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
        return
    assert_extension_array_equal(new, old, check_exact=True)


def numbers(dtype, n=4):
    return np.arange(n).astype(dtype)


ARRAYS = {
    **{
        f"numpy {dtype}": numbers(dtype)
        for dtype in words("bool i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 >i4 >f8 longdouble")
    },
    **{f"datetime {unit}": numbers("i8").astype(f"M8[{unit}]") for unit in ("s", "ms", "us", "ns")},
    **{f"timedelta {unit}": numbers("i8").view(f"m8[{unit}]") for unit in ("s", "ms", "us", "ns")},
    "float nan": np.array([1.5, np.nan, -0.0, np.inf]),
    "datetime NaT": pd.to_datetime(["2024-01-01", None]),
    "datetime zoneinfo": pd.date_range("2024-10-27", periods=4, freq="h", tz=BERLIN).array,
    "datetime zoneinfo s": pd.date_range(
        "2024-10-27", periods=4, freq="h", tz=BERLIN, unit="s"
    ).array,
    "datetime text zone": pd.date_range(
        "2024-10-27", periods=4, freq="h", tz="Europe/Berlin"
    ).array,
    "datetime utc": pd.date_range("2024-10-27", periods=4, tz="UTC").array,
    "datetime fixed": pd.date_range(
        "2024", periods=3, tz=datetime.timezone(datetime.timedelta(hours=-3.5))
    ).array,
    "datetime named": pd.date_range(
        "2024", periods=3, tz=datetime.timezone(datetime.timedelta(hours=1), "X")
    ).array,
    "period M": pd.period_range("2024", periods=3, freq="M").array,
    "period Q": pd.period_range("2024", periods=3, freq="Q-NOV").array,
    "period 2D": pd.period_range("2024", periods=3, freq="2D").array,
    "period NaT": pd.PeriodIndex(["2024-01", None], freq="M").array,
    "interval int": pd.interval_range(0, 3, closed="both").array,
    "interval float": pd.arrays.IntervalArray.from_tuples(
        [(0.5, 1), None, (2, 3)], closed="neither"
    ),
    "interval datetime": pd.interval_range(pd.Timestamp("2024"), periods=3, freq="D").array,
    "interval zoned": pd.interval_range(
        pd.Timestamp("2024", tz=BERLIN), periods=3, freq="D", closed="left"
    ).array,
    "interval timedelta": pd.interval_range(pd.Timedelta(0), periods=3, freq="h").array,
    "categorical": pd.Categorical(["a", None, "b"], categories=["b", "a", "unused"]),
    "categorical ordered": pd.Categorical([1, 2, 1], ordered=True),
    "categorical dates": pd.Categorical(pd.date_range("2024", periods=3)),
    "categorical intervals": pd.cut(np.arange(5), 3),
    "categorical mixed": pd.Categorical(["a", 1, None, (1, 2)]),
    "categorical range": pd.Categorical.from_codes([0, 2], categories=pd.RangeIndex(3)),
    "categorical empty": pd.Categorical([]),
    "categorical wide": pd.Categorical(np.arange(300)),
    "categorical named": pd.Categorical(["x"], categories=pd.Index(["x", "y"], name="n")),
    **{
        f"masked {name}": pd.array([1, None, 0], dtype=name)
        for name in words(
            "Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float32 Float64 boolean"
        )
    },
    "sparse float": pd.arrays.SparseArray([0, 1.5, np.nan, 0], fill_value=0),
    "sparse nan": pd.arrays.SparseArray([np.nan, 1.5, np.nan]),
    "sparse int block": pd.arrays.SparseArray([0, 0, 3, 4], kind="block"),
    "sparse bool": pd.arrays.SparseArray([True, False, False]),
    "sparse dates": pd.arrays.SparseArray(np.array(["2024", "NaT"], "M8[ns]")),
    "sparse object": pd.arrays.SparseArray(np.array(["a", None, "b"], object), fill_value=None),
    "sparse empty": pd.arrays.SparseArray(np.array([], "f8")),
    "string python": pd.array(["a", None, "ß\0"], dtype="string[python]"),
    "string pyarrow": pd.array(["a", None, "ß\0"], dtype="string[pyarrow]"),
    "string long": pd.array(["a" * 100, None] * 100, dtype="string[pyarrow]"),
    "string python long": pd.array(["a" * 100, None] * 100, dtype="string[python]"),
    "string surrogate": pd.array(["\ud800", None], dtype="string[python]"),
    "string empty": pd.array([], dtype="string[pyarrow]"),
    **{
        f"arrow {arrow_type}": pd.array(values, dtype=pd.ArrowDtype(arrow_type))
        for arrow_type, values in [
            (pa.int64(), [1, None]),
            (pa.string(), ["a", None]),
            (pa.large_string(), ["a", None]),
            (pa.bool_(), [True, None]),
            (pa.decimal128(5, 2), [decimal.Decimal("1.25"), None]),
            (pa.date32(), [datetime.date(2024, 1, 1), None]),
            (pa.timestamp("us", "Europe/Berlin"), [datetime.datetime(2024, 1, 1), None]),
            (pa.list_(pa.int64()), [[1, None], None, []]),
            (pa.struct([("a", pa.int8())]), [{"a": 1}, None]),
            (pa.dictionary(pa.int8(), pa.string()), ["x", "y", "x"]),
            (pa.map_(pa.string(), pa.int8()), [[("a", 1)]]),
            (pa.null(), [None, None]),
        ]
    },
    "object texts": np.array(["a", "b"], object),
    "object None": np.array(["a", None], object),
    "object NaN": np.array(["a", np.nan], object),
    "object None and NaN": np.array(["a", np.nan, None, pd.NA, pd.NaT], object),
    "object mixed": np.array([1, True, 1.0, "1", b"1", None, (1, 2)], object),
    "object long": np.array(["a" * 100, None] * 100, object),
    "object surrogate": np.array(["\ud800"], object),
    "object timestamps": np.array([pd.Timestamp("2024", tz=BERLIN), pd.Timedelta(1), None], object),
    "object dates": np.array([datetime.date(2024, 1, 1), decimal.Decimal("1.0")], object),
    "object booleans": np.array([True, False, None], object),
    "object empty": np.array([], object),
}
ARRAYS["object nested"] = np.empty(3, object)
ARRAYS["object nested"][:] = [[1, [2]], {"a": {3}}, (4,)]
ARRAYS["object lists of one length"] = np.empty(2, object)
ARRAYS["object lists of one length"][:] = [[1, 2], [3, 4]]
if PANDAS_3:
    ARRAYS["str"] = pd.array(["a", None], dtype="str")
    ARRAYS["str python"] = pd.array(["a", None], dtype=pd.StringDtype("python", na_value=np.nan))
else:
    ARRAYS["str"] = pd.array(["a", None], dtype="string[pyarrow_numpy]")

INDEXES = {
    "range": pd.RangeIndex(3),
    "range named": pd.RangeIndex(5, -7, -2, name="r"),
    "range empty": pd.RangeIndex(0),
    "range large": pd.RangeIndex(2**60, 2**60 + 4),
    "int": pd.Index([3, 1, 3], name=0),
    "uint8": pd.Index([1, 2], dtype="uint8"),
    "float": pd.Index([1.5, np.nan]),
    "bool": pd.Index([True, False]),
    "texts": pd.Index(["a", "b", "a"]),
    "texts as object": pd.Index(["a", None], dtype=object),
    "mixed": pd.Index(["a", 1, (1, 2), None], dtype=object, name=("n", 1)),
    "empty object": pd.Index([], dtype=object),
    "string": pd.Index(["a", None], dtype="string"),
    "masked": pd.Index([1, None], dtype="Int8"),
    "arrow": pd.Index([1, None], dtype=pd.ArrowDtype(pa.int8())),
    "categorical": pd.CategoricalIndex(["a", "b", "a"], ordered=True, name="c"),
    "interval": pd.interval_range(0, 3, name="i"),
    "dates": pd.DatetimeIndex(["2024-01-01", "2023-01-01", None]),
    **{
        f"freq {freq}": pd.date_range("2024", periods=4, freq=freq, name=freq)
        for freq in words("D h 2h ME B W-WED QS-FEB YE-MAR BME 15min ns")
    },
    "freq unit": pd.date_range("2024", periods=4, freq="D", unit="s"),
    "freq zoned": pd.date_range("2024-03-30", periods=4, freq="D", tz=BERLIN),
    "freq empty": pd.date_range("2024", periods=0, freq="D"),
    "freq one": pd.date_range("2024", periods=1, freq="W"),
    "timedeltas": pd.timedelta_range("1h", periods=3, freq="2h"),
    "timedeltas no freq": pd.TimedeltaIndex(["1h", "3h", None]),
    "periods": pd.period_range("2024", periods=3, freq="Q"),
    "name tuple": pd.Index([1], name=("a", 1)),
    "name timestamp": pd.Index([1], name=pd.Timestamp("2024")),
    "name float": pd.Index([1], name=1.5),
    "multi": pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", "y"]),
    "multi no names": pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
    "multi one name": pd.MultiIndex.from_tuples([("a", 1)], names=[None, 7]),
    "multi same names": pd.MultiIndex.from_arrays([[1, 2], [3, 4]], names=["n", "n"]),
    "multi missing": pd.MultiIndex.from_arrays([["a", None], [np.nan, 1.5]]),
    "multi unused": pd.MultiIndex.from_product([["a", "b"], [1, 2]])[:1],
    "multi dates": pd.MultiIndex.from_product([pd.date_range("2024", periods=2, tz=BERLIN), [1]]),
    "multi categorical": pd.MultiIndex.from_arrays(
        [pd.Categorical(["a", "b"], ordered=True), [1, 2]]
    ),
    "multi one level": pd.MultiIndex.from_arrays([[1, 2, 3]]),
    "multi empty": pd.MultiIndex.from_arrays([[], []], names=["a", "b"]),
    "multi wide": pd.MultiIndex.from_arrays([np.arange(300), np.arange(300)]),
    "multi sorted": pd.MultiIndex(levels=[["a", "b"], [1]], codes=[[0, 1], [0, 0]], sortorder=1),
    "multi duplicates": pd.MultiIndex.from_tuples([("a", 1), ("a", 1)]),
}


def mixed():
    return pd.DataFrame(
        {
            "i": [1, 2, 3],
            "s": ["a", None, "c"],
            "f": [1.5, np.nan, 2],
            "d": pd.date_range("2024", periods=3),
            "j": [4, 5, 6],
            "z": pd.date_range("2024", periods=3, tz=BERLIN),
            "c": pd.Categorical(["a", "b", "a"]),
            "I": pd.array([1, None, 3], dtype="Int64"),
            "o": np.array(["x", 1, None], object),
            "t": pd.to_timedelta([1, 2, None], unit="h"),
        }
    )


def with_attrs(value, attrs):
    value.attrs = attrs
    return value


def renamed(frame, names):
    frame.columns = names
    return frame


FRAMES = {
    "mixed": mixed(),
    "mixed sliced": mixed().iloc[1:, ::2],
    "mixed reversed": mixed().iloc[::-1, ::-1],
    "no columns": pd.DataFrame(index=pd.date_range("2024", periods=3)),
    "no rows": mixed().iloc[:0],
    "nothing": pd.DataFrame(),
    "columns only": pd.DataFrame(columns=["a", "b"]),
    "same names": renamed(pd.DataFrame(np.eye(3)), ["a", "a", "b"]),
    "names of any type": renamed(
        pd.DataFrame(np.eye(4)), pd.Index([1, "1", None, (1,)], dtype=object)
    ),
    "names are dates": renamed(pd.DataFrame(np.eye(3)), pd.date_range("2024", periods=3)),
    "names are a range": pd.DataFrame(np.eye(3)),
    "names are two levels": renamed(mixed().iloc[:, :4], INDEXES["multi"]),
    "names have a name": renamed(pd.DataFrame(np.eye(2)), pd.Index(["a", "b"], name="n")),
    "C order": pd.DataFrame(np.arange(12.0).reshape(4, 3), copy=False),
    "F order": pd.DataFrame(np.asfortranarray(np.arange(12.0).reshape(4, 3)), copy=False),
    "strided": pd.DataFrame(np.arange(48.0).reshape(8, 6)[::2, ::3], copy=False),
    "one row": pd.DataFrame([[1, 2.5, "a"]]),
    "dates only": pd.DataFrame(np.arange(6).reshape(3, 2).astype("M8[ns]")),
    "booleans": pd.DataFrame(np.eye(3, dtype=bool)),
    "objects": pd.DataFrame({"a": ["x", 1], "b": [None, {}]}, dtype=object),
    "wide": pd.DataFrame(np.arange(600, dtype="f4").reshape(2, 300)),
    "alternating": pd.DataFrame({k: [k] if k % 2 else [str(k)] for k in range(40)}),
    "attrs": with_attrs(mixed(), {"unit": "m", 1: [2, {"x": None}]}),
    "unique labels": mixed().set_flags(allows_duplicate_labels=False),
    "multi index": pd.DataFrame({"a": range(4)}, index=INDEXES["multi"]),
    "range index": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(10, 14, 2, name="r")),
    "grouped": mixed().groupby("c", observed=True)[["i", "f"]].agg(["sum", "mean"]),
    "all masked": pd.DataFrame({k: pd.array([1, None], dtype="Float32") for k in "abc"}),
    "text columns": pd.DataFrame({"a": ["x" * 50] * 200, "b": ["y" * 50] * 200}),
    "same text columns": renamed(
        pd.DataFrame({"a": ["x" * 50] * 200, "b": ["y" * 50] * 200}), ["a", "a"]
    ),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_series_are_exact(array):
    dtype = array.dtype
    assert_same(
        stored(pd.Series(array, dtype=dtype, name="n")), pd.Series(array, dtype=dtype, name="n")
    )


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_columns_are_exact(array):
    series = pd.Series(array, dtype=array.dtype)
    frame = pd.concat([series, series, pd.Series(range(len(series)))], axis=1, keys=["a", "b", "c"])
    assert_same(stored(frame), frame)
    assert_same(stored(frame.iloc[1:]), frame.iloc[1:])
    assert_same(stored(frame.iloc[:0]), frame.iloc[:0])


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_by_themselves_are_exact(array):
    array = pd.Series(array, dtype=array.dtype).array
    assert_same(stored(array), array)


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_indexes_are_exact(index):
    assert_same(stored(index), index)
    series = pd.Series(np.arange(len(index)), index=index)
    assert_same(stored(series), series)
    frame = pd.DataFrame({"a": np.arange(len(index)), "b": "x"}, index=index)
    assert_same(stored(frame), frame)


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_any_index_names_columns(index):
    frame = pd.DataFrame(np.ones((2, len(index))), columns=index)
    assert_same(stored(frame), frame)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_frames_are_exact(frame):
    assert_same(stored(frame), frame)


@pytest.mark.parametrize("name", ["n", None, 0, ("a", 1), pd.Timestamp("2024"), 1.5, False, b"x"])
def test_names_of_series_are_exact(name):
    series = pd.Series([1, 2], name=name)
    assert_same(stored(series), series)
    assert type(stored(series).name) is type(name)


def test_attrs_and_flags_of_series():
    series = with_attrs(pd.Series([1, 2]).set_flags(allows_duplicate_labels=False), {"a": (1,)})
    assert_same(stored(series), series)


SCALARS = [
    pd.Timestamp("2024-01-01 12:34:56.123456789"),
    pd.Timestamp("2024-01-01").as_unit("s"),
    pd.Timestamp("2024-01-01", tz=BERLIN).as_unit("ms"),
    pd.Timestamp("2024-01-01", tz="UTC"),
    pd.Timestamp("2024-01-01", tz=datetime.timezone(datetime.timedelta(minutes=-90))),
    pd.Timestamp.min,
    pd.Timestamp("2024-01-01").replace(fold=1),
    pd.Timestamp("2024-10-27 00:30", tz="UTC").tz_convert(BERLIN),
    pd.Timestamp("2024-10-27 01:30", tz="UTC").tz_convert(BERLIN),
    pd.Timedelta(5, "ns"),
    pd.Timedelta(days=-3, hours=1).as_unit("s"),
    pd.Timedelta.max,
    pd.Period("2024-03", freq="M"),
    pd.Period("2024Q1", freq="Q-NOV"),
    pd.Period("2024-01-01 10:00", freq="2h"),
    pd.Interval(1, 2, "both"),
    pd.Interval(pd.Timestamp("2024", tz=BERLIN), pd.Timestamp("2025", tz=BERLIN)),
    pd.NaT,
    pd.NA,
]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_scalars_are_exact(value):
    new = stored(value)
    assert type(new) is type(value)
    assert repr(new) == repr(value)
    for attribute in ("unit", "fold", "tz", "freq", "closed", "ordinal"):
        assert getattr(new, attribute, None) == getattr(value, attribute, None)


def test_pytz_zones_keep_their_library():
    pytz = pytest.importorskip("pytz")
    for zone in (pytz.timezone("America/New_York"), pytz.utc, pytz.FixedOffset(90)):
        series = pd.Series(pd.date_range("2024", periods=2, tz=zone))
        assert_same(stored(series), series)


class Special(pd.DataFrame):
    pass


class SpecialSeries(pd.Series):
    pass


class Odd:
    pass


def labelled(*names, **kwargs):
    return pd.DataFrame(
        [["a" * 100] * len(names)] * 200, columns=pd.Index(names, dtype=object), **kwargs
    )


@pytest.mark.parametrize("dtype", ["string[pyarrow]", "string[python]", object])
def test_names_with_surrogates_are_kept(dtype):
    frame = labelled("\ud800", "b", dtype=dtype)
    back = stored(frame)
    assert list(back.columns) == ["\ud800", "b"]
    assert back.iloc[:, 0].tolist() == frame.iloc[:, 0].tolist()
    series = pd.Series(frame.iloc[:, 0].array, name="\udfff")
    assert stored(series).name == "\udfff"


REFUSED = {
    "frame subclass": (Special({"a": [1]}), "pandas.DataFrame"),
    "series subclass": (SpecialSeries([1]), "pandas.Series"),
    "foreign element": (pd.Series([Odd()]), "Odd"),
    "foreign attrs": (with_attrs(pd.DataFrame(), {"a": Odd()}), "Odd"),
    "foreign name": (pd.Series([1], name=Odd()), "Odd"),
    "custom freq": (
        pd.date_range("2024", periods=3, freq=pd.offsets.CDay(holidays=["2024-01-01"])),
        "freq",
    ),
    "month offset": (
        pd.date_range("2024", periods=3, freq=pd.DateOffset(months=1, days=1)),
        "freq",
    ),
    "unused level": (
        pd.MultiIndex([pd.RangeIndex(2**21)], [[0]], verify_integrity=False),
        "items and uses a few",
    ),
    "zone of the machine": (pd.date_range("2024", periods=2, tz=tzlocal()), "time zone"),
}


def test_a_frequency_that_does_not_fit_is_refused_when_it_is_stored():
    new_york = pd.date_range("2024-03-09", periods=4, freq="D", tz="US/Eastern")
    index = new_york.tz_convert("UTC")  # pandas 2.2 keeps the frequency over the change of clocks
    if PANDAS_3:
        assert_same(stored(index), index)
    else:
        with pytest.raises(UnsupportedTypeError, match=r"index\.freq = None"):
            encode_value(index)


@pytest.mark.parametrize(("value", "word"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_what_to_do(value, word):
    with pytest.raises(UnsupportedTypeError, match=word):
        encode_value(value)


def test_ten_thousand_columns_are_one_blob():
    frame = pd.DataFrame(np.ones((3, 10_000)))
    frame["text"] = "x"
    text, blobs = encode_value(frame)
    assert len(blobs) <= 3
    assert len(text) < 2_000
    assert_frame_equal(decode_value(text, blobs), frame)


def test_masked_and_categorical_columns_share_blobs():
    frame = pd.DataFrame({k: pd.array([1, None], dtype="Int64") for k in range(200)})
    frame["c"] = pd.Categorical(["a", "b"])
    assert len(encode_value(frame)[1]) <= 4


@pytest.mark.parametrize(
    "frame", [FRAMES["C order"], FRAMES["F order"], pd.DataFrame({"a": [1.5], "b": [2.5]})]
)
def test_numbers_are_views_of_the_blob_and_read_only(frame):
    writer = MemoryWriter()
    plan({"entry": frame}, nested_entries=dict).objects[0].write(writer)
    container = Container.open(MemoryReader(writer.data), "file:///a.zip", nested=int)
    (stored_blob,) = container.blobs("entry")
    blob = np.frombuffer(stored_blob.load(), np.uint8)
    new = container.load("entry")
    values = new.to_numpy()
    assert np.shares_memory(values, blob)
    assert not values.flags.writeable
    assert not new.iloc[:, 0].to_numpy().flags.writeable


def test_other_tools_read_the_blobs(tmp_path):
    frame = pd.DataFrame({"a": ["x" * 80] * 100, "b": ["y" * 80] * 100, "n": np.arange(100.0)})
    _, blobs = encode_value(frame)
    npy, stream = sorted(blobs, key=lambda each: not each.startswith(b"\x93NUMPY"))
    (tmp_path / "n.npy").write_bytes(npy)
    assert np.load(tmp_path / "n.npy").tolist() == frame[["n"]].to_numpy().tolist()
    assert pa.ipc.open_stream(stream).read_all().column_names == ["a", "b"]


def test_a_slice_stores_its_rows_only():
    frame = pd.DataFrame(
        {"a": np.arange(1e6), "s": pd.array(["x" * 20] * 10**6, "string[pyarrow]")}
    )
    assert sum(map(len, encode_value(frame.iloc[5:15])[1])) < 5_000


def describe(value):
    (name, _, node) = json.loads(encode_value(value)[0])
    return codec_named(name).describe(node)


def test_description():
    about = describe(pd.DataFrame({"a": [1, 2], "b": [1.5, 2]}))
    assert (about.type, about.dtype, about.shape) == ("pandas.DataFrame", "int64, float64", (2, 2))
    about = describe(pd.Series([1.5], name="x"))
    assert (about.type, about.dtype, about.shape) == ("pandas.Series", "float64", (1,))
    about = describe(INDEXES["multi"])
    assert (about.type, about.shape) == ("pandas.MultiIndex", (4,))
    about = describe(pd.Categorical(["a"]))
    assert (about.type, about.dtype) == ("pandas.arrays.Categorical", "category")
    assert describe(pd.Timestamp("2024")).type == "pandas.Timestamp"
    assert describe(pd.NaT).type == "pandas.NaT"


@pytest.mark.parametrize("name", ["frame", "series", "index", "array", "timestamp"])
@pytest.mark.parametrize("node", [None, 1, "x", [], {}, {"shape": 1, "dtype": 2, "type": 3}])
def test_description_tolerates_any_node(name, node):
    assert codec_named(f"pandas.{name}").describe(node).type.startswith("pandas.")


def numeric():
    dtypes = st.sampled_from(["i1", "u8", "f4", "f8", "c16", "?", "M8[ns]", "m8[s]"])
    return st.tuples(dtypes, st.integers(0, 2**16))


NATIVE = [name for name in ARRAYS if ">" not in name]  # pandas cannot take from the others


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(numeric(), st.sampled_from(NATIVE)),
        max_size=6,
    ),
    st.integers(0, 5),
    st.sampled_from(sorted(INDEXES)),
)
def test_any_mixture_of_columns_is_exact(columns, rows, index):
    series = [column(each, rows) for each in columns]
    frame = pd.concat(series, axis=1) if series else pd.DataFrame(index=range(rows))
    places = np.arange(rows) % max(len(INDEXES[index]), 1)
    if len(INDEXES[index]):
        frame.index = INDEXES[index].take(places)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(stored(frame), frame)


def column(which, rows):
    if isinstance(which, tuple):
        dtype, seed = which
        return pd.Series(np.random.default_rng(seed).integers(0, 100, rows).astype(dtype))
    array = ARRAYS[which]
    if not len(array):
        return pd.Series([None] * rows, dtype=object)
    series = pd.Series(array, dtype=array.dtype)
    return series.take(np.arange(rows) % len(series)).reset_index(drop=True)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.text(),
            st.integers(),
            st.floats(),
            st.booleans(),
            st.binary(),
            st.datetimes(),
            st.decimals(allow_nan=False),
        ),
        max_size=8,
    )
)
def test_any_object_column_is_exact(values):
    array = np.fromiter(values, dtype=object, count=len(values))
    assert_same(stored(pd.Series(array, dtype=object)), pd.Series(array, dtype=object))


def edited(value, change):
    """Return text and blobs with a change made to the node of the outermost codec."""
    text, blobs = encode_value(value)
    tagged = json.loads(text)
    blobs = [bytearray(each) for each in blobs]
    change(tagged[2], blobs)
    return json.dumps(tagged), blobs


def set_path(*path):
    *keys, value = path

    def change(node, blobs):
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def set_bytes(position, data):
    def change(node, blobs):
        blobs[0][position : position + len(data)] = data

    return change


MULTI = INDEXES["multi"]
HOSTILE = {
    "categorical code": (pd.Categorical(["a", "b"]), set_bytes(-1, b"\x7f")),
    "categorical code below -1": (pd.Categorical(["a", "b"]), set_bytes(-1, b"\x80")),
    "categories repeated": (
        pd.Categorical(["a", "b"]),
        set_path("array", "categories", "array", "text", "list", ["a", "a"]),
    )
    if PANDAS_3
    else (pd.Categorical(["a"]), set_path("array", "categories", 1)),
    "multi code": (MULTI, set_bytes(-1, b"\x7f")),
    "multi levels": (MULTI, set_path("index", "codes", [[0, 0]])),
    "multi sortorder": (MULTI, set_path("index", "sortorder", 3)),
    "multi names": (MULTI, set_path("index", "names", ["x"])),
    "multi no levels": (MULTI, set_path("index", "levels", [])),
    "index step": (pd.RangeIndex(3), set_path("index", "range", [0, 1, 0])),
    "index range": (pd.RangeIndex(3), set_path("index", "range", [0, 1])),
    "index range of text": (pd.RangeIndex(3), set_path("index", "range", "abc")),
    "index name": (pd.RangeIndex(3), set_path("index", "name", ["plain.list", 1, [1]])),
    "freq": (INDEXES["freq D"], set_path("index", "freq", "h")),
    "freq text": (INDEXES["freq D"], set_path("index", "freq", "__import__")),
    "freq list": (INDEXES["freq D"], set_path("index", "freq", [])),
    "index missing": (pd.Series([1]), set_path("index", {})),
    "series length": (pd.Series([1, 2]), set_path("index", {"range": [0, 3, 1]})),
    "array kind": (pd.Series([1, 2]), set_path("array", "kind", "pickle")),
    "array kind list": (pd.Series([1, 2]), set_path("array", "kind", [])),
    "array reference": (pd.Series([1, 2]), set_path("array", "values", [0, 1])),
    "array reference below": (pd.Series([1, 2]), set_path("array", "values", [-1, 0])),
    "array reference of text": (pd.Series([1, 2]), set_path("array", "values", "00")),
    "block dtype": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "dtype", "O")),
    "block dtype text": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "dtype", "f8,f8")),
    "block shape": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "shape", [2, 1])),
    "block overflow": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "shape", [2**60, 16])),
    "block offset": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "offset", 120)),
    "block negative": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "shape", [-1, -2])),
    "block blob": (pd.Series([1, 2]), set_path("physical", "blocks", 0, "blob", 7)),
    "no blocks": (pd.Series([1, 2]), set_path("physical", "blocks", None)),
    "no physical": (pd.Series([1, 2]), set_path("physical", None)),
    "frame too few columns": (mixed(), set_path("data", [])),
    "frame run": (pd.DataFrame(np.eye(3)), set_path("data", 0, "count", 4)),
    "frame run below": (pd.DataFrame(np.eye(3)), set_path("data", 0, "row", -1)),
    "frame run of text": (pd.DataFrame(np.eye(3)), set_path("data", 0, "row", "0")),
    "frame rows": (pd.DataFrame(np.eye(3)), set_path("index", "range", [0, 4, 1])),
    "frame attrs": (pd.DataFrame(np.eye(3)), set_path("attrs", 1)),
    "frame labels": (FRAMES["same names"], set_path("unique_labels", True)),
    "period freq": (ARRAYS["period M"], set_path("array", "freq", "nonsense")),
    "zone": (
        ARRAYS["datetime zoneinfo"],
        set_path("array", "zone", {"zoneinfo": "../../etc/passwd"}),
    ),
    "zone kind": (ARRAYS["datetime zoneinfo"], set_path("array", "zone", {"eval": "1"})),
    "zone unit": (ARRAYS["datetime zoneinfo"], set_path("array", "unit", "D")),
    "interval sides": (ARRAYS["interval int"], set_path("array", "closed", "up")),
    "mask": (pd.array([1, None], dtype="Int8"), lambda node, blobs: blobs[1].__setitem__(-1, 9)),
    "mask for values": (pd.array([1, None], dtype="Int8"), set_path("array", "mask", [0, 0])),
    "sparse position": (ARRAYS["sparse float"], set_path("array", "length", 2)),
    "sparse length": (ARRAYS["sparse float"], set_path("array", "length", 2**40)),
    "string dtype": (ARRAYS["string pyarrow"], set_path("array", "storage", "pickle")),
    "string of numbers": (ARRAYS["string pyarrow"], set_path("array", "text", "list", [1])),
    "timestamp unit": (pd.Timestamp("2024"), set_path("unit", "Y")),
    "timestamp NaT": (pd.Timestamp("2024"), set_path("ticks", hex(-(2**63)))),
    "timestamp ticks": (pd.Timestamp("2024"), set_path("ticks", hex(2**63))),
    "timedelta NaT": (pd.Timedelta(1), set_path("ticks", hex(-(2**63)))),
    "period ordinal": (pd.Period("2024"), set_path("ordinal", hex(2**70))),
    "interval order": (pd.Interval(1, 2), set_path("left", 3)),
}


@pytest.mark.parametrize(("value", "change"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_nodes_are_damage(value, change):
    text, blobs = edited(value, change)
    with pytest.raises(DamagedObjectError):
        decode_value(text, blobs)


class Suite(CodecSuite):
    name = ""
    examples = ()

    @pytest.fixture
    def codec(self):
        return codec_named(self.name)

    @pytest.fixture
    def values(self):
        return self.examples

    def assert_same(self, back, value):
        assert_same(back, value)


class TestFrameCodec(Suite):
    name = "pandas.frame"
    examples = [FRAMES[k] for k in ("mixed", "C order", "nothing", "objects", "alternating")]


# pandas 2.2 warns of what a stranger may write there
@pytest.mark.filterwarnings("ignore:Allowing arbitrary scalar fill_value")
class TestSeriesCodec(Suite):
    name = "pandas.series"
    examples = [pd.Series(array, dtype=array.dtype) for array in list(ARRAYS.values())[::5]]


class TestIndexCodec(Suite):
    name = "pandas.index"
    examples = list(INDEXES.values())[::2]


# pandas 2.2 warns of what a stranger may write there
@pytest.mark.filterwarnings("ignore:Allowing arbitrary scalar fill_value")
class TestArrayCodec(Suite):
    name = "pandas.array"
    examples = [
        array
        for name, array in list(ARRAYS.items())[::2]
        if not isinstance(array, np.ndarray | pd.Index) and "object" not in name
    ]


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_encoding_again_after_reading_gives_the_same_bytes(array):
    series = pd.Series(array, dtype=array.dtype)
    frame = pd.DataFrame({"a": series, "b": series, "c": 1.5})[1:]
    encoded = encode_value(frame)
    assert encode_value(decode_value(*encoded)) == encoded


SUBTYPES = ["int64", "datetime64[ns]", "datetime64[us, UTC]", None, pd.Int64Dtype()]
DTYPES = [
    *{array.dtype for array in ARRAYS.values() if not isinstance(array.dtype, np.dtype)},
    *(pd.CategoricalDtype(), pd.CategoricalDtype(ordered=True), pd.CategoricalDtype(["a"], None)),
    *(pd.CategoricalDtype([]), pd.CategoricalDtype(pd.RangeIndex(2**20))),
    *(pd.IntervalDtype(each) for each in SUBTYPES),
    *(pd.IntervalDtype(each, "left") for each in SUBTYPES[:3]),
    *(pd.SparseDtype("f8", 0), pd.SparseDtype(object), pd.SparseDtype("M8[ns]")),
    *(pd.array(np.zeros(1)).dtype, pd.arrays.NumpyExtensionArray(np.zeros(1)).dtype),
    pd.arrays.NumpyExtensionArray(np.zeros(1, object)).dtype,
    pd.DatetimeTZDtype("us", BERLIN),
]


# pandas 2.2 warns of what a stranger may write there
@pytest.mark.filterwarnings("ignore:Allowing arbitrary scalar fill_value")
class TestDtypeCodec(Suite):
    name = "pandas.dtype"
    examples = DTYPES

    def assert_same(self, back, value):
        assert (back, repr(back)) == (value, repr(value))
        if isinstance(value, pd.CategoricalDtype) and value.categories is not None:
            assert_same(back.categories, value.categories)


def offsets():
    """Return offsets of every class there is."""
    for name in sorted(dir(pd.offsets)):
        cls = getattr(pd.offsets, name)
        if not isinstance(cls, type) or cls in (pd.offsets.BaseOffset, pd.offsets.Tick):
            continue
        yield from (cls(), cls(-3))
        if not issubclass(cls, pd.offsets.Tick | pd.offsets.Day):
            yield cls(normalize=True)


OFFSETS = [
    *offsets(),
    pd.offsets.CDay(holidays=["2024-01-01"], weekmask="Mon Tue"),
    pd.offsets.CustomBusinessHour(start=["09:00"], end=["10:00"], holidays=["2024-01-01"]),
    pd.offsets.BusinessHour(start=["10:00", "13:00"], end=["12:00", "17:30"]),
    *(pd.DateOffset(months=1, days=2), pd.DateOffset(weekday=1), pd.DateOffset(2, hour=5)),
    *(pd.offsets.Week(weekday=2), pd.offsets.Hour(0), pd.offsets.FY5253Quarter(weekday=4)),
]


def test_offsets_are_exact():
    assert len({type(each) for each in OFFSETS}) > 30
    for offset in OFFSETS:
        back = stored(offset)
        assert type(back) is type(offset)
        assert (back, back.freqstr, back.n) == (offset, offset.freqstr, offset.n)
        assert (back.normalize, repr(back)) == (offset.normalize, repr(offset))


@pytest.mark.parametrize(
    "offset",
    [
        pd.DateOffset(weekday=MO(1)),
        # equal to one without its calendar, for pandas
        pd.offsets.CDay(calendar=np.busdaycalendar("1110000")),
    ],
)
def test_offsets_that_are_more_than_their_arguments_are_refused(offset):
    with pytest.raises(UnsupportedTypeError):
        encode_value(offset)


class TestOffsetCodec(Suite):
    name = "pandas.offset"
    examples = OFFSETS[::3] + OFFSETS[-9:]

    def assert_same(self, back, value):
        assert (back, repr(back)) == (value, repr(value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "BaseOffset"),
        ("offset", "__doc__"),
        ("offset", ["Day"]),
        ("n", hex(2**70)),
        ("n", 1.5),
        ("kwds", {"json": []}),
        ("kwds", ["plain.dict", 1, {"json": {"nonsense": 1}}]),
        ("kwds", ["plain.dict", 1, {"json": {"n": 1}}]),
    ],
)
def test_hostile_offsets_are_damage(key, value):
    tagged = json.loads(encode_value(pd.offsets.MonthEnd(2))[0])
    tagged[2][key] = value
    with pytest.raises(DamagedObjectError):
        decode_value(json.dumps(tagged))


class ScalarSuite(Suite):
    def assert_same(self, back, value):
        assert repr(back) == repr(value)


for number, codec_name in enumerate(("timestamp", "timedelta", "period", "interval", "nat", "na")):
    kind = (pd.Timestamp, pd.Timedelta, pd.Period, pd.Interval, type(pd.NaT), type(pd.NA))[number]
    made = [value for value in SCALARS if type(value) is kind]
    name = f"Test{codec_name.title()}Codec"
    globals()[name] = type(
        name, (ScalarSuite,), {"name": f"pandas.{codec_name}", "examples": made, "__test__": True}
    )
