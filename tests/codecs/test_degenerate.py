"""What has no items, no fields, no columns or no width is stored, read and checked as all else is.

Every supported type is built in its degenerate shapes, alone and inside others: what commits has to
come back, and a reader's checks must not refuse what a writer has let through.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import pathlib
import uuid

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sqlalchemy.orm import Session
from support.models import Base, Keyed

from sqla_datastore import DataStore, UnsupportedTypeError
from sqla_datastore.maintenance import check
from sqla_datastore.testing import decode_value, encode_value
from sqla_datastore.value.equality import equal

pytestmark = [
    pytest.mark.usefixtures("tables"),
    # what is stored has nothing to do with the database
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


def plain():
    yield from (0, 0.0, -0.0, 0j, "", b"", bytearray(), False, None)
    yield from ([], (), {}, set(), frozenset(), range(0), slice(None))
    yield from (collections.OrderedDict(), collections.Counter(), collections.defaultdict(None))
    yield from (collections.deque(), collections.deque(maxlen=0), collections.defaultdict(list))
    yield from (decimal.Decimal(0), uuid.UUID(int=0), datetime.timedelta(0), datetime.time())
    yield from (datetime.datetime.min, datetime.date.min, datetime.timezone(datetime.timedelta(0)))
    yield from (pathlib.PurePosixPath(), pathlib.PureWindowsPath(), pathlib.Path())
    yield from ([[]], ((),), {"": {}}, [{}, [], ()], {(): frozenset()}, [[[]], [[], []]])


DTYPES = [
    *("?", "i1", "f2", "f8", "c16", "S0", "S3", "U0", "U3", "V0", "V4", "M8[ns]", "M8", "m8[s]"),
    [],
    [("a", "i4")],
    [("a", "i4", (0,))],
    [("a", "S0"), ("b", [])],
    {"names": [], "formats": [], "itemsize": 8},
    "longdouble",
]
SHAPES = [(), (0,), (1,), (3,), (0, 3), (3, 0), (0, 0), (1, 0, 2**40)]


def numpy_():
    for dtype in map(np.dtype, DTYPES):
        yield dtype
        for shape in SHAPES:
            for order in "CF":
                yield np.zeros(shape, dtype, order=order)
            if len(shape) < 3:
                yield np.zeros(shape, dtype).view(np.recarray)
                yield np.ma.MaskedArray(np.zeros(shape, dtype))
                yield np.ma.MaskedArray(np.zeros(shape, dtype), mask=True)
        if dtype.str != "<M8":  # NumPy shows none that is not NaT
            yield np.zeros((), dtype)[()]
    if hasattr(np.dtypes, "StringDType"):
        for dtype in (np.dtypes.StringDType(), np.dtypes.StringDType(na_object=None)):
            yield from (np.zeros(shape, dtype) for shape in SHAPES[:-1])
    yield from (np.str_(""), np.bytes_(b""), np.void(b""))


def indexes():
    yield from (pd.RangeIndex(0), pd.RangeIndex(3), pd.Index([], dtype=object))
    yield from (pd.Index([None], dtype=object), pd.Index([np.nan]), pd.Index([], dtype=bool))
    for dtype in ("f8", "c16", "Int8", "string[python]", "string[pyarrow]"):
        yield pd.Index([], dtype=dtype)
    yield pd.Index([], dtype=pd.ArrowDtype(pa.int8()))
    yield pd.Index(pd.arrays.SparseArray([]))
    yield from (pd.DatetimeIndex([]), pd.DatetimeIndex([], tz="UTC"), pd.TimedeltaIndex([]))
    yield from (pd.PeriodIndex([], freq="D"), pd.date_range("2024", periods=0, freq="D"))
    yield from (pd.IntervalIndex([]), pd.interval_range(0, 0), pd.CategoricalIndex([]))
    yield from (pd.CategoricalIndex([], categories=["a"]), pd.CategoricalIndex([None, None]))
    yield from (pd.MultiIndex.from_arrays([[]]), pd.MultiIndex.from_arrays([[], []]))
    yield pd.MultiIndex(levels=[[], []], codes=[[-1], [-1]])


SERIES_DTYPES = [
    *("?", "i1", "f2", "f8", "c8", "M8[s]", "m8[us]", "Int8", "boolean", "Float32", object),
    *("string[python]", "string[pyarrow]", "category", "period[D]", "interval", "Sparse[int]"),
    *("datetime64[ns, UTC]", "longdouble"),
    *map(pd.ArrowDtype, (pa.null(), pa.struct([]), pa.list_(pa.int8(), 0), pa.binary(0))),
]


def pandas_():
    for index in indexes():
        yield index
        yield from (pd.DataFrame(index=index), pd.DataFrame(columns=index))
        yield pd.DataFrame(index=index, columns=index)
        yield from (pd.Series(index=index, dtype=float), pd.Series(index=index, dtype=object))
        if not isinstance(index, pd.MultiIndex):
            yield index.array
            yield pd.Series(index.array)
    for dtype in SERIES_DTYPES:
        series = pd.Series([], dtype=dtype)
        yield from (series, series.array, series.dtype)
        yield pd.DataFrame({"a": series, "b": series})
        yield pd.DataFrame({"a": series}).iloc[:, [0, 0, 0]]
    yield pd.DataFrame({"a": [{}, [], ()]})
    yield pd.CategoricalDtype()


ARROW_TYPES = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.binary(0), pa.binary(3), pa.list_(pa.int8()), pa.list_(pa.int8(), 0)),
    *(pa.list_(pa.null(), 0), pa.list_(pa.list_(pa.null(), 0), 3), pa.struct([])),
    *(pa.struct([("a", pa.null())]), pa.struct([("a", pa.struct([]))])),
    *(pa.map_(pa.string(), pa.null()), pa.dictionary(pa.int8(), pa.string())),
    *(pa.dictionary(pa.int8(), pa.null()), pa.sparse_union([pa.field("a", pa.int8())])),
    *(pa.run_end_encoded(pa.int32(), pa.string()), pa.run_end_encoded(pa.int16(), pa.null())),
    *(pa.list_view(pa.int8()), pa.fixed_shape_tensor(pa.int8(), [0])),
]


def arrow():
    for arrow_type in ARROW_TYPES:
        yield from (arrow_type, pa.field("", arrow_type), pa.schema([pa.field("", arrow_type)] * 2))
        yield pa.chunked_array([], arrow_type)
        for length in (0, 1, 3):
            array = pa.nulls(length, arrow_type)
            yield from (array, pa.chunked_array([array, array[:0], array]))
            yield pa.Table.from_arrays([array, array], names=["", ""])
            yield pa.RecordBatch.from_arrays([array], names=["a"])
    yield from (pa.sparse_union([]), pa.dense_union([]), pa.schema([]), pa.table({}))
    yield pa.table({"a": [1, 2]}).select([])
    yield pa.RecordBatch.from_pydict({"a": [1, 2]}).select([])
    yield pa.RecordBatch.from_arrays([], names=[])


POLARS_TYPES = [
    *(pl.Int8, pl.Float64, pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Null),
    *(pl.Datetime("ns", "UTC"), pl.Duration("ms"), pl.Decimal(5, 2), pl.Categorical()),
    *(pl.List(pl.Int8), pl.List(pl.Null), pl.Array(pl.Int8, 0), pl.Array(pl.Int8, 2)),
    *(pl.Array(pl.Null, 0), pl.Array(pl.Int8, (0, 2)), pl.Array(pl.Int8, (2, 0))),
    *(pl.Struct([]), pl.Struct({"a": pl.Null}), pl.Struct({"a": pl.Struct([])})),
    *(
        pl.Struct({"a": pl.Array(pl.Int8, 0)}),
        pl.Struct({"a": pl.Array(pl.Int8, 0), "b": pl.Array(pl.Int8, 2)}),
        pl.List(pl.Struct([])),
        pl.List(pl.Array(pl.Int8, 0)),
    ),
    *(pl.Array(pl.Categorical(), 0), pl.Enum([]), pl.Enum(["a"]), pl.List(pl.Enum([]))),
]
POLARS_ROWS = [
    (pl.Array(pl.Int8, 0), [[], []]),
    (pl.Array(pl.Int8, 0), [[], None]),
    (pl.Array(pl.Int8, (2, 0)), [[[], []]]),
    (pl.Struct([]), [{}, None]),
    (pl.Struct({"a": pl.Array(pl.Int8, 0)}), [{"a": []}]),
    (pl.List(pl.List(pl.Null)), [[[]]]),
]


def polars():
    for dtype in POLARS_TYPES:
        for values in ([], [None], [None] * 3):
            yield pl.Series("", values, dtype=dtype)
            yield pl.DataFrame({"": pl.Series("", values, dtype=dtype)})
    for dtype, values in POLARS_ROWS:
        yield pl.Series("x", values, dtype=dtype)
    yield pl.DataFrame()
    # how a frame without columns keeps its rows
    yield pl.DataFrame({"a": [1, 2]}).drop("a")


LIBRARIES = {"plain": plain, "numpy": numpy_, "pandas": pandas_, "arrow": arrow, "polars": polars}


def in_list(value):
    return [value, [value]]


def in_dict(value):
    return {"": value, (): {1: value}}


def in_deque(value):
    return collections.deque([(value,)])


def in_value(value):
    return DataStore(x=value, y=DataStore(z=[value]))


def alone(value):
    return value


def assert_same(new, old):
    assert type(new) is type(old)
    assert equal(new, old), (new, old)
    for attribute in ("dtype", "shape", "type", "schema", "maxlen", "default_factory"):
        if not isinstance(old, DataStore):
            assert getattr(new, attribute, None) == getattr(old, attribute, None)


@pytest.mark.parametrize("place", [alone, in_list, in_dict, in_deque, in_value])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_commits_comes_back(engine, exact, library, place):
    values = {f"{number}": value for number, value in enumerate(LIBRARIES[library]())}
    with Session(engine) as session:
        kept = DataStore({name: place(value) for name, value in values.items()})
        session.add(Keyed(id=1, data=kept))
        session.commit()
    with Session(engine) as session:
        found = session.get(Keyed, 1).data
        assert list(found) == list(values)
        for name, value in values.items():
            assert_same(found[name], place(value))
    assert check(engine, Base.metadata, deep=True).is_clean
    with Session(engine) as session:
        session.delete(session.get(Keyed, 1))
        session.commit()
    exact(0)


def test_the_height_of_a_frame_without_columns_is_kept(engine, exact):
    frame = pl.DataFrame({"a": range(1000)}).drop("a")
    with Session(engine) as session:
        session.add(Keyed(id=1, data=DataStore(frame=frame, inner=[frame])))
        session.commit()
    with Session(engine) as session:
        found = session.get(Keyed, 1).data
        assert (found.frame.shape, found["inner"][0].shape) == ((1000, 0), (1000, 0))
        assert found.frame.with_columns(b=1)["b"].sum() == 1000
    exact(1)


BY_VIEW = {
    "a bool of 2": np.array([2, 1], "u1").view(bool),
    "text beyond Unicode": np.array([2**31], "u4").view("U1"),
    "a field": np.array([(2, 1)], "u1,u1").view("?,u1"),
    "masked": np.ma.MaskedArray(np.array([2], "u1").view(bool)),
    "strided": np.array([2, 1, 2, 1], "u1").view(bool)[::2],
}


@pytest.mark.parametrize("array", BY_VIEW.values(), ids=BY_VIEW)
def test_what_a_reader_would_refuse_is_refused_when_it_is_stored(engine, exact, array):
    with Session(engine) as session:
        session.add(Keyed(id=1, data=DataStore(a=array)))
        with pytest.raises(UnsupportedTypeError, match=r"entry 'a'.*tobytes"):
            session.commit()
    exact(0)


def test_a_mask_of_other_bytes_than_0_and_1_is_refused_when_it_is_stored():
    flags = np.array([2, 0], "u1").view(bool)
    array = pd.arrays.BooleanArray(np.zeros(2, bool), flags)
    with pytest.raises(UnsupportedTypeError, match="neither 0 nor 1"):
        encode_value(array)


def test_no_memory_of_the_process_is_stored_as_a_fill_value():
    dtype = np.dtype({"names": [], "formats": [], "itemsize": 8})
    array = np.ma.MaskedArray(np.zeros(3, dtype))
    encoded = encode_value(array)
    assert encode_value(decode_value(*encoded)) == encoded
