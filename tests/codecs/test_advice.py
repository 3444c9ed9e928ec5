"""The advice of an error helps: what it says to store is stored, what it says to call is enough.

The code is taken out of the message and run, so that a message cannot go stale.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import ipaddress
import pathlib
import re
import types
import typing
import uuid
import warnings

import numpy
import numpy.ma.mrecords
import pandas
import polars
import pyarrow
import pytest
from dateutil import tz
from pandas.tests.extension.decimal.array import DecimalArray

import sqla_datastore
from sqla_datastore import DataStore, UnsupportedTypeError
from sqla_datastore.codecs.advice import _INSTEAD, _qualified
from sqla_datastore.testing import encode_value


class Celsius(float):
    pass


class Words(str):
    __slots__ = ()


class Numbers(list):
    pass


class Config(dict):
    pass


class Model:
    """Can be called, and has nothing but a name and weights."""

    def __init__(self):
        self.name, self.weights = "m", numpy.ones(2)

    def __call__(self):
        return self


class Module(Model):
    """As of torch: its weights come as a dict."""

    def state_dict(self):
        return collections.OrderedDict(weights=self.weights)


class Opaque:
    """Holds what cannot be stored."""

    def __init__(self):
        self.inner = object()


class Moment(datetime.datetime):
    pass


class Own(DataStore):
    pass


class Table:
    """Hands a table over through the Arrow PyCapsule interface."""

    data: typing.Any = pyarrow.table({"a": [1, 2]})

    def __arrow_c_stream__(self, requested_schema=None):
        return self.data.__arrow_c_stream__(requested_schema)


class Column(Table):
    """The same for one column, which says what it is."""

    data = pyarrow.chunked_array([[1, 2]])

    def __arrow_c_schema__(self):
        return self.data.type.__arrow_c_schema__()


class Kilograms(pyarrow.ExtensionType):
    def __init__(self):
        super().__init__(pyarrow.int8(), "tests.kilograms")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


class Frame(pandas.DataFrame):
    pass


class Special(pandas.Series):
    pass


class Numbered(pandas.RangeIndex):
    pass


Color = enum.Enum("Color", "RED")
Kept = enum.IntFlag("Kept", "A", boundary=enum.KEEP)
Point = collections.namedtuple("Point", "x y")
Run = dataclasses.make_dataclass("Run", ["n"])


def a_chararray():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5
        return numpy.array(["a"]).view(numpy.char.chararray)


def a_matrix(*rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return numpy.array(rows or [[1, 2]]).view(numpy.matrix)


def kilograms():
    return pyarrow.ExtensionArray.from_storage(Kilograms(), pyarrow.array([1], pyarrow.int8()))


def metadata_of_a_type(name):
    return pyarrow.field("x", pyarrow.int8(), metadata={"ARROW:extension:name": name})


def foreign_column():
    return pandas.DataFrame({"n": [1], "d": DecimalArray([decimal.Decimal(1)])})


def foreign_array():
    return DecimalArray([decimal.Decimal(1)])


def foreign_categories():
    return pandas.Categorical.from_codes([0], categories=pandas.Index(foreign_array()))


def foreign_levels():
    return pandas.MultiIndex.from_arrays([foreign_array(), [1]])


def index_with(freq):
    return pandas.date_range("2024", periods=3, freq=freq)


VALUES = {
    # Python
    "float": lambda: Celsius(1),
    "str": lambda: Words("a"),
    "list": lambda: Numbers([1]),
    "dict": lambda: Config(a=1),
    "set": lambda: type("Own", (set,), {})([1]),
    "frozenset": lambda: type("Own", (frozenset,), {})([1]),
    "bytes": lambda: type("Own", (bytes,), {})(b"a"),
    "bytearray": lambda: type("Own", (bytearray,), {})(b"a"),
    "complex": lambda: type("Own", (complex,), {})(1j),
    "int": lambda: type("Own", (int,), {})(1),
    "deque": lambda: type("Own", (collections.deque,), {})([1]),
    "date": lambda: type("Own", (datetime.date,), {})(2024, 1, 1),
    "timedelta": lambda: type("Own", (datetime.timedelta,), {})(1),
    "Decimal": lambda: type("Own", (decimal.Decimal,), {})(1),
    "Fraction": lambda: type("Own", (fractions.Fraction,), {})(1, 2),
    "UUID": lambda: type("Own", (uuid.UUID,), {})(int=1),
    "path": lambda: type("Own", (type(pathlib.Path()),), {})("a"),
    "open file": lambda: io.BufferedReader(io.BytesIO(b"a")),
    "datetime": lambda: Moment(2024, 1, 1, tzinfo=datetime.UTC),
    "namedtuple": lambda: Point(1, 2),
    "tuple": lambda: type("Three", (tuple,), {})((1, 2, 3)),
    "dataclass": lambda: Run(1),
    "enum": lambda: Color.RED,
    "flags beyond their names": lambda: Kept(9),
    "function": lambda: len,
    "lambda": lambda: lambda: 1,
    "method": lambda: [].append,
    "class": lambda: Opaque,
    "partial": lambda: functools.partial(int, "1", base=8),
    "module": lambda: types,
    "callable": Model,
    "weights": Module,
    "attributes": lambda: types.SimpleNamespace(a=1),
    "no attributes": object,
    "attributes that cannot be stored": Opaque,
    "pattern": lambda: re.compile("a+"),
    "address": lambda: ipaddress.ip_address("127.0.0.1"),
    "array": lambda: array.array("d", [1]),
    "text array": lambda: array.array("u", "ab"),
    "memoryview": lambda: memoryview(b"ab"),
    "generator": lambda: (number for number in [1]),
    "map": lambda: map(str, [1]),
    "keys": lambda: {1: 2}.keys(),
    "values": lambda: {1: 2}.values(),
    "items": lambda: {1: 2}.items(),
    "proxy": lambda: types.MappingProxyType({1: 2}),
    "chain": lambda: collections.ChainMap({1: 2}),
    "user dict": lambda: collections.UserDict(a=1),
    "user list": lambda: collections.UserList([1]),
    "bytes in memory": lambda: io.BytesIO(b"a"),
    "text in memory": lambda: io.StringIO("a"),
    "error": lambda: ValueError("x"),
    "ellipsis": lambda: ...,
    "factory": lambda: collections.defaultdict(lambda: 1, a=2),
    "zone of the machine": lambda: datetime.datetime(2024, 1, 1, tzinfo=tz.tzlocal()),
    "time in a zone of the machine": lambda: datetime.time(1, tzinfo=tz.tzlocal()),
    "subclass of DataStore": lambda: Own(a=1),
    # NumPy
    "matrix": a_matrix,
    "chararray": a_chararray,
    "memmap": lambda: numpy.ones(2).view(numpy.memmap),
    "masked matrix": lambda: numpy.ma.MaskedArray(a_matrix(), mask=[[0, 1]]),
    "masked records": lambda: numpy.ma.mrecords.fromarrays([[1, 2]], names="a"),
    "masked constant": lambda: numpy.ma.masked,
    "objects": lambda: numpy.array([1, None], object),
    "objects in a field": lambda: numpy.zeros(2, [("a", "O")]),
    "scalar of objects": lambda: numpy.zeros(2, [("a", "O")])[0],
    "dtype of objects": lambda: numpy.dtype([("a", "O")]),
    "metadata": lambda: numpy.zeros(2, numpy.dtype("i4", metadata={"a": object})),
    "title": lambda: numpy.zeros(1, [((1.5, "a"), "i4")]),
    "fields over an integer": lambda: numpy.zeros(
        1, numpy.dtype(("i4", [("a", "i2"), ("b", "i2")]))
    ),
    "a bool of 2": lambda: numpy.array([2], "u1").view(bool),
    "no bytes": lambda: numpy.zeros(2**21, "V0"),
    "large items": lambda: numpy.ma.array(numpy.zeros(0, [("a", "V2000000")])),
    "ufunc": lambda: numpy.add,
    "scalar type": lambda: numpy.float32,
    "polynomial": lambda: numpy.polynomial.Polynomial([1, 2]),
    "Chebyshev polynomial": lambda: numpy.polynomial.Chebyshev([1, 2]),
    "poly1d": lambda: numpy.poly1d([1, 2]),
    "generator of numbers": lambda: numpy.random.default_rng(1),
    "random state": lambda: numpy.random.RandomState(1),
    # pandas
    "frame": lambda: Frame({"a": [1]}),
    "series": lambda: Special([1]),
    "foreign column": foreign_column,
    "foreign column of a number": lambda: foreign_column().set_axis([1, 2], axis=1),
    "foreign columns of one name": lambda: foreign_column().set_axis(["n", "n"], axis=1),
    "foreign column of a tuple": lambda: foreign_column().set_axis([("a", 1), ("a", 2)], axis=1),
    "two foreign columns": lambda: foreign_column().assign(e=foreign_array()),
    "column that is called index": lambda: pandas.DataFrame({"index": foreign_array()}),
    "foreign categories": lambda: foreign_categories(),
    "foreign categories of a column": lambda: pandas.DataFrame({"c": foreign_categories()}),
    "foreign index": lambda: pandas.Index(foreign_array()),
    "foreign levels": lambda: foreign_levels(),
    "foreign index of a frame": lambda: pandas.DataFrame({"a": [1]}, index=foreign_array()),
    "foreign levels of a frame": lambda: pandas.DataFrame({"a": [1]}, index=foreign_levels()),
    "foreign columns of a frame": lambda: pandas.DataFrame([[1]], columns=foreign_array()),
    "foreign index of a series": lambda: pandas.Series([1], index=foreign_array()),
    "subclass of an index": lambda: Numbered(3),
    "frame with a subclass of an index": lambda: pandas.DataFrame({"a": [1]}, index=Numbered(1)),
    "columns of a subclass": lambda: pandas.DataFrame([[1]], columns=Numbered(1)),
    "series with a subclass of an index": lambda: pandas.Series([1], index=Numbered(1)),
    "foreign series": lambda: foreign_column()["d"],
    "foreign array": lambda: foreign_column()["d"].array,
    "foreign dtype": lambda: foreign_column()["d"].dtype,
    "calendar": lambda: pandas.offsets.CDay(calendar=numpy.busdaycalendar("1110000")),
    "group": lambda: foreign_column().groupby("n"),
    # pyarrow
    "extension array": kilograms,
    "extension in a table": lambda: pyarrow.table({"a": kilograms()}),
    "extension in a list": lambda: pyarrow.list_(Kilograms()),
    "extension in a frame": lambda: pandas.Series(pandas.arrays.ArrowExtensionArray(kilograms())),
    # polars
    "query": lambda: polars.LazyFrame({"a": [1]}),
    "128 bits": lambda: polars.Series([1], dtype=polars.Int128),
    "128 bits in a frame": lambda: polars.DataFrame({"a": [1]}, schema={"a": polars.Int128}),
    "polars schema": lambda: polars.Schema({"a": polars.Int8}),
    "polars dtype": lambda: polars.List(polars.Int8),
    "polars class of dtypes": lambda: polars.Int8,
    "expression": lambda: polars.col("a"),
    # others
    "other library's table": Table,
    "other library's column": Column,
}
ELSEWHERE = {
    *("geopandas.GeoDataFrame", "geopandas.GeoSeries", "PIL.Image", "torch.Module", "torch.Tensor"),
    *("xarray.DataArray", "xarray.DataTree", "xarray.Dataset", "xarray.Variable"),
}
"""Bases of optional libraries: the tests of their codecs follow their advice."""

if hasattr(numpy.dtypes, "StringDType"):
    VALUES["strings"] = lambda: numpy.array(["a"], numpy.dtypes.StringDType(na_object=0))
    VALUES["strings with a long text for none"] = lambda: numpy.array(
        ["a"], numpy.dtypes.StringDType(na_object="x" * 65)
    )


def code_in(message):
    """Return the calls and the expressions that a message advises."""
    found = re.findall(r"((?:register_\w+|pandas\.register)\([\w.]+\))", message)
    after = re.split(r"\bstore (?=its\b)|\bstore ", message)[1:]
    for text in after:
        text = re.split(r", or |, which |, where | \(|; ", text)[0]
        found.append(text)
    return [text for text in found if text not in ("", "its storage")]


def run(code, value):
    names = {name: getattr(sqla_datastore, name) for name in sqla_datastore.__all__}
    return eval(code, {**globals(), **names, "value": value})


@pytest.fixture(autouse=True)
def _registered_here():
    """Let what a test registers be known to it alone."""
    from sqla_datastore.codecs import _registered

    kinds = (_registered.ENUMS, _registered.NAMEDTUPLES)
    before = [(dict(kind._classes), dict(kind._names)) for kind in kinds]
    allowed = set(_registered.ARROW_TYPES)
    for kind in kinds:
        kind._classes, kind._names = {}, {}
    yield
    for kind, (classes, names) in zip(kinds, before, strict=True):
        kind._classes, kind._names = classes, names
    _registered.ARROW_TYPES.clear()
    _registered.ARROW_TYPES.update(allowed)


@pytest.mark.parametrize("kind", VALUES)
def test_the_advice_of_an_error_helps(kind):
    value = VALUES[kind]()
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(value)
    codes = code_in(caught.value.message)
    assert codes, caught.value.message
    for code in codes:
        result = run(code, value)
        if code.startswith("register_"):
            encode_value(value)
        else:
            DataStore(a=result)._plan("rows.data")


def test_every_base_with_advice_has_a_value_here():
    tried = {met for make in VALUES.values() if (met := first_base(type(make()))) is not None}
    assert set(_INSTEAD) - tried == ELSEWHERE


def first_base(cls):
    return next((name for name in map(_qualified, cls.__mro__) if name in _INSTEAD), None)


def test_a_name_that_is_no_str_is_told_what_a_dict_may_have():
    for make in (lambda v: DataStore(v), lambda v: DataStore.coerce("data", v)):
        with pytest.raises(UnsupportedTypeError, match="the name of an entry is a str") as caught:
            make({1: 2})
        (code,) = code_in(caught.value.message)
        run(code, {1: 2})._plan("rows.data")


@pytest.mark.parametrize("value", [numpy.ones(2), [1], "text", 1, Point(1, 2)._asdict().items()])
def test_what_is_assigned_to_a_column_gets_a_name(value):
    with pytest.raises(UnsupportedTypeError) as caught:
        DataStore.coerce("data", value)
    assert "DataStore(data=" in str(caught.value)
    DataStore(data=list(value) if isinstance(value, collections.abc.ItemsView) else value)._plan("")


FREQUENCIES = [
    pandas.offsets.CDay(holidays=["2024-01-01"]),
    pandas.DateOffset(months=1, days=1),
]


@pytest.mark.parametrize("freq", FREQUENCIES, ids=str)
def test_the_frequency_of_an_index_can_be_taken_away(freq):
    index = index_with(freq)
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(index)
    (statement,) = re.findall(r"set (index\.freq = None)", str(caught.value))
    exec(statement, {"index": index})
    encode_value(index)


@pytest.mark.parametrize(
    "value",
    [
        pandas.Timestamp("2024", tz=tz.tzlocal()),
        pandas.date_range("2024", periods=2, tz=tz.tzlocal()),
    ],
    ids=["stamp", "index"],
)
def test_a_zone_without_a_name_can_be_converted(value):
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(value)
    (method,) = re.findall(r"(\.tz_convert\('\w+'\))", str(caught.value))
    encode_value(run(f"value{method}", value))


def test_levels_that_are_unused_can_be_removed():
    index = pandas.MultiIndex([pandas.RangeIndex(2**21)], [[0]], verify_integrity=False)
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(index)
    (method,) = re.findall(r"(remove_unused_levels\(\))", str(caught.value))
    encode_value(run(f"value.{method}", index))


@pytest.mark.parametrize("name", ["arrow.fixed_shape_tensor", "pandas.period"])
def test_metadata_that_stand_for_a_type_can_be_removed(name):
    field = metadata_of_a_type(name)
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(field)
    (method,) = re.findall(r"Field\.(\w+)", str(caught.value))
    encode_value(getattr(field, method)())
