"""polars frames and series come back exactly, other capsules are refused with what to do."""

from __future__ import annotations

import datetime
import decimal
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

pl = pytest.importorskip("polars")

DAY = datetime.datetime(2024, 1, 1, 12)
SERIES = {
    **{
        name: pl.Series([1, None, 0], dtype=getattr(pl, name))
        for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt64", "Float32", "Float64")
    },
    "Boolean": pl.Series([True, None, False]),
    "nan": pl.Series([float("nan"), None, -0.0]),
    "String": pl.Series(["a", None, "b" * 50]),
    "Binary": pl.Series([b"a", None, b""]),
    "Date": pl.Series([DAY.date(), None]),
    "Time": pl.Series([datetime.time(1, 2, 3, 4), None]),
    "Datetime us": pl.Series([DAY, None]),
    "Datetime ms zone": pl.Series([DAY, None], dtype=pl.Datetime("ms", "Europe/Berlin")),
    "Datetime ns": pl.Series([DAY, None], dtype=pl.Datetime("ns")),
    "Duration ms": pl.Series([datetime.timedelta(1), None], dtype=pl.Duration("ms")),
    "Duration ns": pl.Series([datetime.timedelta(1), None], dtype=pl.Duration("ns")),
    "Decimal": pl.Series([decimal.Decimal("1.50"), None], dtype=pl.Decimal(10, 2)),
    "Categorical": pl.Series(["u", "v", None], dtype=pl.Categorical()),
    "Enum": pl.Series(["u", "v", None], dtype=pl.Enum(["v", "u", "unused"])),
    "Enum empty": pl.Series([], dtype=pl.Enum(["v", "u"])),
    "List": pl.Series([[1, None], None, []]),
    "List of List": pl.Series([[["a"], None], None]),
    "List of Enum": pl.Series([["a"], None], dtype=pl.List(pl.Enum(["b", "a"]))),
    "List of Categorical": pl.Series([["a"], None], dtype=pl.List(pl.Categorical())),
    "Array": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int8, 2)),
    "Array 2-D": pl.Series([[[1, 2], [3, 4]]], dtype=pl.Array(pl.Int8, (2, 2))),
    "Struct": pl.Series([{"a": 1, "b": "x"}, None]),
    "Struct of Enum": pl.Series([{"a": "x"}], dtype=pl.Struct({"a": pl.Enum(["y", "x"])})),
    "Null": pl.Series([None, None]),
    "empty": pl.Series([], dtype=pl.Int16),
}
if hasattr(pl, "Categories"):
    SERIES["Categorical named"] = pl.Series(["u"], dtype=pl.Categorical(pl.Categories("mine")))


def stored(value):
    return decode_value(*encode_value(value))


def assert_same(new, old):
    assert type(new) is type(old)
    assert new.equals(old, null_equal=True)
    if isinstance(old, pl.DataFrame):
        assert new.schema == old.schema
    else:
        assert (new.dtype, new.name) == (old.dtype, old.name)


@pytest.mark.parametrize("series", SERIES.values(), ids=SERIES)
def test_series_are_exact(series):
    assert_same(stored(series.alias("n")), series.alias("n"))


@pytest.mark.parametrize("series", SERIES.values(), ids=SERIES)
def test_columns_are_exact(series):
    frame = series.alias("a").to_frame().with_columns(b=series, c=pl.lit(1))
    assert_same(stored(frame), frame)
    assert_same(stored(frame[1:]), frame[1:])
    assert_same(stored(pl.concat([frame, frame], rechunk=False)), pl.concat([frame, frame]))


@pytest.mark.parametrize(
    "frame", [pl.DataFrame(), pl.DataFrame({"": [1]}), pl.DataFrame(schema={"a": pl.Int8})]
)
def test_empty_frames_are_exact(frame):
    assert_same(stored(frame), frame)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(sorted(SERIES)), max_size=5), st.integers(0, 4))
def test_any_mixture_is_exact(names, rows):
    columns = [
        SERIES[name].alias(str(at)).extend_constant(None, 4)[:rows] for at, name in enumerate(names)
    ]
    assert_same(stored(pl.DataFrame(columns)), pl.DataFrame(columns))


def test_a_slice_stores_its_rows_only():
    frame = pl.DataFrame({"a": np.arange(10**5), "s": ["x" * 40] * 10**5})
    assert sum(map(len, encode_value(frame[5:15])[1])) < 5_000


def test_edits_leave_the_blob_alone():
    text, blobs = encode_value(pl.DataFrame({"a": [1, 2, 3]}))
    frame = decode_value(text, blobs)
    frame[0, "a"] = 9
    assert frame["a"].to_list() == [9, 2, 3]
    assert decode_value(text, blobs)["a"].to_list() == [1, 2, 3]


class Speaks:
    def __arrow_c_stream__(self, requested_schema=None):
        raise NotImplementedError


REFUSED = {
    "lazy": (pl.LazyFrame({"a": [1]}), r"collect\(\)"),
    "object": (pl.Series([object()], dtype=pl.Object), "Object"),
    "128 bits": (pl.Series([1], dtype=pl.Int128), "Int128"),
    "other library": (Speaks(), r"pyarrow\.table"),
}


@pytest.mark.parametrize(("value", "word"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_what_to_do(value, word):
    with pytest.raises(UnsupportedTypeError, match=word):
        encode_value(value)


def test_pandas_subclasses_are_not_taken_for_capsules():
    encode_value(pl.DataFrame())
    with pytest.raises(UnsupportedTypeError, match=r"pandas\.DataFrame"):
        encode_value(type("Special", (pd.DataFrame,), {})())


def test_description():
    _, _, node = json.loads(encode_value(pl.DataFrame({"a": [1], "b": ["x"]}))[0])
    about = codec_named("capsule.polars_frame").describe(node)
    assert (about.type, about.dtype, about.shape) == ("polars.DataFrame", "Int64, String", (1, 2))
    assert codec_named("capsule.polars_series").describe(None).type == "polars.Series"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("types", ["Int8", "Nonsense"]),
        ("types", ["Int8"]),
        ("types", [{"Array": ["Int8", -1]}, "String"]),
        ("types", [{"Enum": [1]}, "String"]),
        ("types", [{"Enum": ["a", "a"]}, "String"]),
        ("types", ["Date", "Struct"]),
        ("types", None),
        ("names", ["a", "a"]),
        ("names", ["a"]),
        ("shape", [2, 2]),
        ("stream", 1),
        ("stream", None),
    ],
)
def test_hostile_nodes_are_damage(key, value):
    text, blobs = encode_value(pl.DataFrame({"a": [1], "b": ["x"]}))
    tagged = json.loads(text)
    tagged[2][key] = value
    with pytest.raises(DamagedObjectError):
        decode_value(json.dumps(tagged), blobs)


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
    name = "capsule.polars_frame"
    examples = [pl.DataFrame({"a": series}) for series in list(SERIES.values())[::3]]


class TestSeriesCodec(Suite):
    name = "capsule.polars_series"
    examples = list(SERIES.values())[::4]
