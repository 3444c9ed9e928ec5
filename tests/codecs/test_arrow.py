"""pyarrow values come back exactly, and damaged streams are damage, never a crash."""

from __future__ import annotations

import datetime
import decimal
import json
import subprocess
import sys
import textwrap
import time
import uuid

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toys import MemoryReader, MemoryWriter

from sqla_datastore import register_arrow_type
from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import (
    DamagedObjectError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.format import Container, plan
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

DAY = datetime.datetime(2024, 1, 1)


def extension(arrow_type, storage):
    return pa.ExtensionArray.from_storage(arrow_type, pa.array(storage, arrow_type.storage_type))


ARRAYS = {
    **{
        str(arrow_type): pa.array(values, arrow_type)
        for arrow_type, values in [
            (pa.null(), [None, None]),
            (pa.bool_(), [True, None, False]),
            (pa.int8(), [1, None]),
            (pa.uint64(), [2**64 - 1, None]),
            (pa.float32(), [1.5, None, float("nan")]),
            (pa.string(), ["a", None, "ß"]),
            (pa.large_string(), ["a", None]),
            (pa.binary(), [b"a", None]),
            (pa.large_binary(), [b"a", None]),
            (pa.binary(2), [b"ab", None]),
            (pa.decimal128(10, 2), [decimal.Decimal("1.25"), None]),
            (pa.decimal256(50, 2), [decimal.Decimal("1.25"), None]),
            (pa.date32(), [DAY.date(), None]),
            (pa.date64(), [DAY.date(), None]),
            (pa.time32("s"), [DAY.time(), None]),
            (pa.time64("ns"), [DAY.time(), None]),
            (pa.timestamp("ns"), [DAY, None]),
            (pa.timestamp("ms", "Europe/Berlin"), [DAY, None]),
            (pa.duration("us"), [datetime.timedelta(1), None]),
            (pa.month_day_nano_interval(), [pa.MonthDayNano([1, 2, 3]), None]),
            (pa.list_(pa.int64()), [[1, None], None, []]),
            (pa.large_list(pa.string()), [["a"], None]),
            (pa.list_(pa.int8(), 2), [[1, 2], None]),
            (pa.struct([("a", pa.int8()), ("b", pa.string())]), [{"a": 1, "b": "x"}, None]),
            (pa.map_(pa.string(), pa.int8()), [[("a", 1)], None]),
            (pa.list_(pa.struct([("a", pa.list_(pa.int8()))])), [[{"a": [1]}], None]),
            (pa.dictionary(pa.int8(), pa.string()), ["x", "y", None, "x"]),
            (pa.dictionary(pa.int32(), pa.int64(), ordered=True), [5, 6, 5]),
            (pa.struct([]), [{}, None]),
        ]
    },
    "empty": pa.array([], pa.int64()),
    "run ends": pc.run_end_encode(pa.array(["a", "a", "b"])),
    "sparse union": pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]
    ),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()),
        pa.array([0, 0], pa.int32()),
        [pa.array([1]), pa.array(["a"])],
    ),
    "string view": pa.array(["a", None, "b" * 40], pa.string_view()),
    "binary view": pa.array([b"a", None, b"b" * 40], pa.binary_view()),
    "list of string view": pa.array([["b" * 40], None], pa.list_(pa.string_view())),
    "struct of view": pa.array([{"a": "b" * 40}], pa.struct([("a", pa.string_view())])),
    "list view": pa.ListViewArray.from_arrays(
        pa.array([1, 0], pa.int32()), pa.array([1, 2], pa.int32()), pa.array([1, 2])
    ),
    "tensor": extension(pa.fixed_shape_tensor(pa.int32(), [2]), [[1, 2], None]),
}
for name, storage in (("uuid", b"0" * 16), ("json_", "{}"), ("bool8", 1)):
    if hasattr(pa, name):
        ARRAYS[name] = extension(getattr(pa, name)(), [storage, None])
METADATA = {"k": "v", b"\xff": b"\x00"}


def stored(value):
    return decode_value(*encode_value(value))


def assert_same(new, old):
    assert type(new) is type(old)
    if isinstance(old, pa.Table | pa.RecordBatch):
        assert new.schema.equals(old.schema, check_metadata=True)
        assert all(map(_same_column, new.columns, old.columns))
    elif isinstance(old, pa.Schema | pa.Field | pa.DataType):
        assert new.equals(old, check_metadata=True)
    else:
        assert new.type.equals(old.type, check_metadata=True)
        assert _same_column(new, old)


def _same_column(new, old):
    new.validate(full=True)
    return (
        repr(new.to_pylist()) == repr(old.to_pylist()) if hasattr(new, "to_pylist") else new == old
    )


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_exact(array):
    assert_same(stored(array), array)
    assert_same(stored(array[1:]), array[1:])
    assert_same(stored(array[:0]), array[:0])


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_chunks_are_kept(array):
    for chunks in ([], [array], [array, array[:0], array[1:]]):
        chunked = pa.chunked_array(chunks, array.type)
        assert_same(stored(chunked), chunked)
        assert [*map(len, stored(chunked).chunks)] == [*map(len, chunks)]


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_tables_and_batches_are_exact(array):
    fields = [pa.field("a", array.type, metadata=METADATA), pa.field("a", array.type)]
    schema = pa.schema(fields, metadata=METADATA)
    assert_same(stored(schema), schema)
    batch = pa.RecordBatch.from_arrays([array, array], schema=schema)
    assert_same(stored(batch), batch)
    for table in (pa.Table.from_batches([batch, batch]), pa.Table.from_batches([], schema)):
        assert_same(stored(table), table)
    table = pa.Table.from_batches([batch, batch])
    assert stored(table).column(0).num_chunks == 2


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_types_fields_and_scalars_are_exact(array):
    field = pa.field("f", array.type, nullable=array.type == pa.null(), metadata=METADATA)
    assert_same(stored(array.type), array.type)
    assert_same(stored(field), field)
    for scalar in list(array)[:3] if not pa.types.is_run_end_encoded(array.type) else []:
        assert stored(scalar).type == scalar.type
        assert repr(stored(scalar).as_py()) == repr(scalar.as_py())


@pytest.mark.parametrize("rows", [0, 3])
def test_tables_without_columns_keep_their_rows(rows):
    table = pa.table({"a": range(rows)}).select([])
    assert stored(table).shape == table.shape


def test_dictionaries_of_chunks_may_differ():
    chunks = [pa.array(each).dictionary_encode() for each in (["a", "b"], ["c"], ["b", "a", "d"])]
    assert stored(pa.chunked_array(chunks)).to_pylist() == ["a", "b", "c", "b", "a", "d"]
    nested = [
        pa.ListArray.from_arrays(pa.array([0, len(each)], pa.int32()), each) for each in chunks
    ]
    assert stored(pa.chunked_array(nested)).to_pylist() == [["a", "b"], ["c"], ["b", "a", "d"]]


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.string_view(), pa.list_(pa.string_view())])
def test_a_slice_stores_its_rows_only(arrow_type):
    element = ["x" * 40] if pa.types.is_list(arrow_type) else "x" * 40
    array = pa.array([element] * 10_000, arrow_type)
    assert sum(map(len, encode_value(array[5:15])[1])) < 3_000
    assert sum(map(len, encode_value(pa.table({"a": array})[5:15])[1])) < 3_000


def test_numbers_are_views_of_the_blob():
    writer = MemoryWriter()
    table = pa.table({"a": pa.array(range(10_000))})
    plan({"entry": table}, nested_entries=dict).objects[0].write(writer)
    container = Container.open(MemoryReader(writer.data), "file:///a.zip", nested=int)
    (blob,) = container.blobs("entry")
    start = pa.py_buffer(writer.data).address + blob.offset
    where = container.load("entry").column(0).chunk(0).buffers()[1].address
    assert start < where < start + blob.nbytes


class Foreign(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.int8(), "tests.foreign")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


def test_extension_types_that_nobody_has_allowed_are_refused():
    array = extension(Foreign(), [1])
    for value in (array, pa.table({"a": array}), Foreign(), pa.list_(Foreign())):
        with pytest.raises(UnsupportedTypeError, match=r"register_arrow_type\(Foreign\)"):
            encode_value(value)


@register_arrow_type
class Tagged(pa.ExtensionType):
    """A type with a parameter."""

    def __init__(self, tag="t"):
        self.tag = tag
        super().__init__(pa.int8(), f"tests.tagged.{uuid.getnode():x}")

    def __arrow_ext_serialize__(self):
        return self.tag.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(serialized.decode())


@pytest.fixture
def registered():
    pa.register_extension_type(Tagged())
    yield
    pa.unregister_extension_type(Tagged().extension_name)


def tagged_values():
    array = extension(Tagged("kg"), [1, None, 3])
    inner = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), array)
    nested = pa.StructArray.from_arrays([array, array], ["a", "b"])
    yield from (array, inner, nested, array[1:], array[:0], array[0], array[1])
    yield from (pa.chunked_array([array, array]), pa.table({"a": array, "b": array}))
    yield from (array.type, inner.type, pa.field("f", array.type), pa.schema([("f", array.type)]))


@pytest.mark.parametrize("number", range(13))
def test_extension_types_that_are_allowed_are_exact(registered, number):
    value = [*tagged_values()][number]
    if isinstance(value, pa.Scalar):
        assert stored(value).type == value.type
        assert stored(value).as_py() == value.as_py()
    else:
        assert_same(stored(value), value)


def test_one_that_arrow_does_not_know_comes_back_as_its_storage():
    array = extension(Tagged("kg"), [1, None])
    assert stored(array).equals(pa.array([1, None], pa.int8()))
    assert stored(array.type) == pa.int8()
    table = stored(pa.table({"a": array}))
    assert table.schema.field("a").metadata == {
        b"ARROW:extension:name": Tagged().extension_name.encode(),
        b"ARROW:extension:metadata": b"kg",
    }
    assert table.column("a").to_pylist() == [1, None]
    assert stored(table).equals(table)


def test_one_that_its_metadata_do_not_give_back_is_refused(registered):
    @register_arrow_type
    class Forgetful(Tagged):
        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type, serialized):
            if serialized != b"kg":
                raise ValueError(serialized)
            return cls("other")

    for tag in ("kg", "m"):
        with pytest.raises(UnsupportedTypeError, match="does not come back"):
            encode_value(extension(Forgetful(tag), [1]))


@pytest.mark.parametrize("value", [pa.int8(), int, "tests.tagged", None])
def test_what_is_no_class_of_extension_types_is_refused(value):
    with pytest.raises(UnsupportedTypeError, match="no class of extension types"):
        register_arrow_type(value)


def periods_and_intervals():
    yield pd.DataFrame({"p": pd.period_range("2024", periods=3, freq="Q-NOV")})
    yield pd.DataFrame({"p": pd.PeriodIndex(["2024-01", None], freq="M")})
    yield pd.DataFrame({"i": pd.interval_range(0, 3, closed="both")})
    yield pd.DataFrame({"i": pd.interval_range(pd.Timestamp("2024"), periods=2)})


@pytest.mark.parametrize("frame", [*periods_and_intervals()])
def test_periods_and_intervals_of_pandas_are_exact(frame):
    table = pa.Table.from_pandas(frame)
    assert_same(stored(table), table)
    assert stored(table).to_pandas().equals(frame)
    column = table.column(0)
    for value in (column, column.chunk(0), column.type, pa.field("f", column.type)):
        assert_same(stored(value), value)
    series = pd.Series(pd.arrays.ArrowExtensionArray(column))
    assert stored(series).dtype == series.dtype


def test_a_reader_imports_pandas_for_its_types():
    text, blobs = encode_value(pa.Table.from_pandas(next(periods_and_intervals())))
    code = (
        "import sys; from sqla_datastore.testing import decode_value\n"
        "assert 'pandas' not in sys.modules\n"
        f"print(decode_value({text!r}, {blobs!r}).schema.field('p').type)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pandas.period" in run.stdout


def hostile_stream(name, metadata, storage, values):
    fields = {"ARROW:extension:name": name, "ARROW:extension:metadata": metadata}
    schema = pa.schema([pa.field("x", storage, metadata=fields)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(values, storage)], schema=schema))
    return sink.getvalue()


SIDES = pa.struct([("left", pa.int8()), ("right", pa.string())])
HOSTILE_EXTENSIONS = {
    "shorter items": ("pandas.period", '{"freq": "M"}', pa.int8(), [1]),
    "texts for numbers": ("pandas.period", '{"freq": "M"}', pa.string(), ["a" * 99]),
    "another child": ("pandas.interval", '{"subtype": "int64", "closed": "right"}', SIDES, [None]),
    "no struct": ("pandas.interval", '{"subtype": "string", "closed": "right"}', pa.int8(), [1]),
    "an unknown side": ("pandas.interval", '{"subtype": "int64", "closed": "up"}', SIDES, [None]),
    "no frequency": ("pandas.period", '{"freq": "nonsense"}', pa.int64(), [1]),
    "a list for one": ("pandas.period", '{"freq": ["M"]}', pa.int64(), [1]),
    "a long one": ("pandas.period", '{"freq": "%s"}' % ("1" * 20_000), pa.int64(), [1]),
    "no JSON": ("pandas.period", "{", pa.int64(), [1]),
    "Arrow's own": ("arrow.fixed_shape_tensor", "", pa.int8(), [1]),
    "a pickle": ("arrow.py_extension_type", "x", pa.null(), [None]),
}


@pytest.mark.parametrize("stream", HOSTILE_EXTENSIONS.values(), ids=HOSTILE_EXTENSIONS)
def test_hostile_extension_types_are_damage(stream):
    node = json.dumps(["arrow.table", 1, {"stream": 0, "shape": [1, 1]}])
    started = time.perf_counter()
    with pytest.raises(DamagedObjectError):
        decode_value(node, [hostile_stream(*stream)])
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "name", ["arrow.py_extension_type", "arrow.fixed_shape_tensor", "pandas.period"]
)
def test_metadata_that_a_reader_would_take_for_a_type_are_refused_when_stored(name):
    fields = pa.field("x", pa.int8(), metadata=named(name))
    for value in (pa.schema([fields]), pa.schema([("a", pa.list_(fields))]), fields):
        with pytest.raises(UnsupportedTypeError, match="remove_metadata"):
            encode_value(value)


class Recording(pa.ExtensionType):
    """Notes that Arrow has made it of bytes."""

    made = 0

    def __init__(self, name="tests.recording"):
        super().__init__(pa.int64(), name)

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.made += 1
        return cls()


def named(name):
    return {"ARROW:extension:name": name, "ARROW:extension:metadata": ""}


@pytest.mark.parametrize(
    "nest",
    [
        lambda each: each,
        lambda each: pa.field("a", pa.list_(each)),
        lambda each: pa.field("a", pa.struct([pa.field("n", pa.int8()), each])),
        lambda each: pa.field("a", pa.map_(pa.int8(), each.with_name("value"))),
        lambda each: pa.field("a", pa.run_end_encoded(pa.int32(), pa.list_(each))),
        lambda each: each.with_type(pa.dictionary(pa.int8(), pa.int64())),
    ],
    ids=["itself", "list", "struct", "map", "run-end encoded", "dictionary"],
)
@pytest.mark.parametrize("as_table", [True, False])
def test_the_code_of_foreign_extension_types_never_runs(nest, as_table):
    # pyarrow's list keeps a name that was registered once
    name = f"tests.{uuid.uuid4().hex}"
    column = pa.field("x", pa.int64(), metadata=named(name))
    schema = pa.schema([("first", pa.int8()), nest(column)])
    # where nobody has registered it, the name is metadata
    value = pa.Table.from_batches([], schema) if as_table else schema
    text, blobs = encode_value(value)
    assert decode_value(text, blobs).equals(value, check_metadata=True)
    pa.register_extension_type(Recording(name))
    try:
        Recording.made = 0
        with pytest.raises(UnsupportedFormatError, match=r"register_arrow_type\(Recording\)"):
            decode_value(text, blobs)
    finally:
        pa.unregister_extension_type(name)
    assert Recording.made == 0


def test_without_the_list_of_registered_types_all_foreign_names_are_refused(monkeypatch):
    text, blobs = encode_value(pa.schema([pa.field("x", pa.int64(), metadata=named("tests.x"))]))
    periods = encode_value(pa.Table.from_pandas(next(periods_and_intervals())))
    monkeypatch.delattr(pa.lib, "_python_extension_types_registry")
    with pytest.raises(UnsupportedFormatError, match=r"tests\.x"):
        decode_value(text, blobs)
    assert decode_value(*periods).num_rows == 3


def test_deep_types_are_refused():
    arrow_type = pa.int8()
    for _ in range(200):
        arrow_type = pa.list_(arrow_type)
    with pytest.raises(UnsupportedTypeError):
        encode_value(pa.array([None], arrow_type))


def test_description():
    def about(value):
        name, _, node = json.loads(encode_value(value)[0])
        described = codec_named(name).describe(node)
        return described.type, described.dtype, described.shape

    assert about(pa.table({"a": [1, 2]})) == ("pyarrow.Table", None, (2, 1))
    assert about(pa.array(["a"])) == ("pyarrow.Array", "string", (1,))
    assert about(pa.int8()) == ("pyarrow.DataType", "int8", None)
    assert codec_named("arrow.table").describe([]).type == "pyarrow.Table"


values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.none(), st.lists(values, max_size=3)), max_size=4), max_size=4)
)
def test_any_chunks_are_exact(chunks):
    chunked = pa.chunked_array(chunks, pa.list_(pa.int64()))
    assert_same(stored(chunked), chunked)


HOSTILE = [
    (pa.table({"a": [1]}), {"shape": [2, 1]}),
    (pa.table({"a": [1]}), {"shape": None}),
    (pa.table({"a": [1]}), {"stream": 1}),
    (pa.table({"a": [1]}), {"stream": "0"}),
    (pa.array([1]), {"type": "string"}),
    (pa.array([1]), {"shape": [0]}),
    (pa.array([1]), {"more": 1}),
    (pa.int8(), {"type": "int16"}),
]


@pytest.mark.parametrize(("value", "change"), HOSTILE)
def test_hostile_nodes_are_damage(value, change):
    text, blobs = encode_value(value)
    tagged = json.loads(text)
    tagged[2] |= change
    with pytest.raises(DamagedObjectError):
        decode_value(json.dumps(tagged), blobs)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"ARROW1\0\0", b"\xff\xff\xff\xff\0\0\0\x7f"])
def test_other_bytes_are_damage(data):
    text, _ = encode_value(pa.table({"a": [1]}))
    with pytest.raises(DamagedObjectError):
        decode_value(text, [data])


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_streams_are_refused_before_they_are_unpacked(compression):
    text, _ = encode_value(pa.table({"a": [1]}))
    sink = pa.BufferOutputStream()
    table = pa.table({"a": pa.array([1])})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(DamagedObjectError, match="compressed"):
        decode_value(text, [sink.getvalue()])


FLIPS = """
    import faulthandler, random, sys
    faulthandler.enable()
    import pyarrow as pa, pandas as pd
    from sqla_datastore.testing import decode_value, encode_value
    from sqla_datastore.exceptions import DamagedObjectError

    coded = lambda texts: pa.array(texts).dictionary_encode()
    texts = ["a", None, "bc" * 20] * 40
    values = [
        pa.table({"p": pa.array(pd.period_range("2024", periods=99, freq="M"))}),
        pa.table({"s": texts, "n": [[1, None], None, []] * 40, "d": coded(texts)}),
        pa.chunked_array([coded(texts), coded(["x"])]),
        pa.array([{"a": each, "b": [each]} for each in texts]),
        pa.array(texts, pa.string_view()),
        pd.DataFrame({"s": texts, "c": pd.Categorical(texts), "i": range(120)}),
        pd.Series(texts, dtype="string[pyarrow]"),
        pd.DataFrame({"a": range(120)}, index=pd.MultiIndex.from_product([range(60), ["x", "y"]])),
    ]
    try:
        import polars as pl
        values.append(pl.DataFrame({"s": texts, "c": pl.Series(texts, dtype=pl.Categorical)}))
    except ImportError:
        pass
    rng = random.Random(int(sys.argv[1]))
    outcomes = {"same type": 0, "damaged": 0}
    for value in values:
        text, blobs = encode_value(value)
        for _ in range(60):
            flipped = [bytearray(blob) for blob in blobs]
            for _ in range(rng.choice([1, 1, 2, 8])):
                blob = rng.choice(flipped)
                near = len(blob) if rng.random() < 0.5 else min(len(blob), 1500)
                blob[rng.randrange(near)] ^= 1 << rng.randrange(8)
            try:
                new = decode_value(text, [bytes(blob) for blob in flipped])
            except DamagedObjectError:
                outcomes["damaged"] += 1
                continue
            assert type(new) is type(value)
            outcomes["same type"] += 1
            try:
                repr(new.to_pylist() if hasattr(new, "to_pylist") else new)
                repr(new.to_pandas() if hasattr(new, "to_pandas") else new.copy())
            except (ValueError, OverflowError, pa.ArrowException):
                pass  # a date out of range, or text that is not UTF-8 any more
    print(outcomes)
    assert min(outcomes.values()) > 20
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_flipped_bits_never_crash(seed):
    script = textwrap.dedent(FLIPS)
    done = subprocess.run(
        [sys.executable, "-c", script, seed], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


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


class TestTableCodec(Suite):
    name = "arrow.table"
    examples = [pa.table({"a": array, "b": array}) for array in list(ARRAYS.values())[::4]]


class TestArrayCodec(Suite):
    name = "arrow.array"
    examples = list(ARRAYS.values())[::2]


class TestChunkedArrayCodec(Suite):
    name = "arrow.chunked"
    examples = [pa.chunked_array([ARRAYS["uint64"]] * 2)]


class TestSchemaCodec(Suite):
    name = "arrow.schema"
    examples = [pa.schema([("a", pa.int8())], metadata=METADATA)]
