"""Small entries that are alike are read together, and become what they become one by one."""

from __future__ import annotations

import gc
import json
import random
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.forging import forged_blobs, opened
from support.toys import MemoryReader, MemoryWriter

from sqla_datastore import (
    DamagedObjectError,
    DataStore,
    DataStoreError,
    DataStoreType,
    collect,
    collect_batches,
)
from sqla_datastore.codecs._base import BytesPayload
from sqla_datastore.format import Container, EncodedEntry, ObjectPlan, joining, plan
from sqla_datastore.tables import loading
from sqla_datastore.testing.codec_suite import encode_value


class Base(DeclarativeBase):
    """The table of this module."""


class Row(Base):
    __tablename__ = "joined"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


@pytest.fixture(scope="module")
def model_metadata():
    return Base.metadata


def add(session, values):
    for number, value in enumerate(values, 1):
        session.add(Row(id=number, data=DataStore(e=value, other=number)))
    session.commit()
    session.expunge_all()


def together(session, **options):
    return collect(session, select(Row).order_by(Row.id), Row.data, "e", **options)


@pytest.fixture
def alone(monkeypatch):
    """Collect once more, each entry by itself."""

    def collected(session, **options):
        with monkeypatch.context() as patch:
            patch.setattr(loading, "piece_of", lambda container, name, blobs: None)
            return together(session, **options)

    return collected


@pytest.fixture
def joins(monkeypatch):
    """Return how many entries were joined at a time."""
    counts, join = [], joining.joined

    def noted(pieces):
        table = join(pieces)
        counts.append(len(pieces) if table is not None else None)
        return table

    monkeypatch.setattr("sqla_datastore.tables.pages.joined", noted)
    return counts


def frame(rows, **columns):
    return pd.DataFrame({"step": np.arange(rows), "loss": np.arange(rows) / 7, **columns})


TEXTS = ["a", None, "b" * 30]
RANDOM = np.random.default_rng(1)
ALIKE = {
    "frames": [frame(3), frame(3), frame(3)],
    "frames of several lengths": [frame(3), frame(1), frame(200)],
    "with missing numbers": [
        pd.DataFrame({"x": [1.0, np.nan], "t": pd.to_datetime(["2020-01-01", None])})
    ]
    * 3,
    "of many dtypes": [
        pd.DataFrame(
            {
                **{str(np.dtype(each)): np.arange(3).astype(each) for each in "bBhHiIlLefd?"},
                "d": np.arange(3).astype("m8[s]"),
            }
        )
    ]
    * 2,
    "one array by row": [pd.DataFrame(RANDOM.random((4, 3)), columns=[*"abc"]) for _ in range(3)],
    "columns of one dtype between others": [
        pd.DataFrame({"a": [n], "x": [0.5], "b": [n + 1], "t": ["u"]}) for n in range(3)
    ],
    "short texts": [frame(3, text=TEXTS), frame(3, text=TEXTS[::-1])],
    "long texts": [frame(150, text=[f"{n} {k}" for k in range(150)]) for n in range(3)],
    "texts of two lengths": [frame(2, text=["a", "b"]), frame(150, text=["c"] * 150)],
    "objects": [frame(3, text=pd.Series(TEXTS, dtype=object))] * 2,
    "many names": [pd.DataFrame(np.zeros((2, 150)), columns=[*map(str, range(150))])] * 2,
    "names that are numbers": [pd.DataFrame(np.zeros((2, 2)))] * 2,
    "names and numbers in one block": [
        pd.DataFrame(np.arange(9).reshape(3, 3) + n, columns=[10, 20, 35]) for n in range(3)
    ],
    "names in a block of their own": [
        pd.DataFrame({0.5: np.arange(n), 1.5: np.arange(n), 7: "t"}) for n in (2, 4)
    ],
    "tables": [pa.table({"a": [n, n + 1], "b": [0.5, None], "c": TEXTS[:2]}) for n in range(4)],
    "tables of several lengths": [
        pa.table({"a": [*range(n)]}, pa.schema([("a", "i8")])) for n in (3, 1, 70)
    ],
    "tables of chunks": [
        pa.table({"a": pa.chunked_array([[1, 2], [3], []], pa.int64())}),
        pa.table({"a": pa.chunked_array([[4]], pa.int64())}),
    ],
    "tables of times": [
        pa.table(
            {
                "t": pa.array([n, None], pa.timestamp("ms", "Europe/Berlin")),
                "d": pa.array([n, 1], pa.date32()),
                "m": pa.array(["1.50", None], pa.string()).cast(pa.decimal128(9, 2)),
            }
        )
        for n in range(3)
    ],
    "slices": [pa.table({"a": [1, 2, 3, None], "b": [*"abcd"]}).slice(n, 2) for n in range(3)],
}


@pytest.mark.parametrize("values", ALIKE.values(), ids=ALIKE)
def test_those_that_are_alike_become_what_they_are_alone(session, alone, joins, values):
    add(session, values)
    found = together(session)
    assert joins == [len(values)]
    expected = alone(session)
    assert len(joins) == 1
    assert found.schema.equals(expected.schema)
    assert found.to_pylist() == expected.to_pylist() or found.equals(expected)
    found.validate(full=True)


NOT_ALIKE = {
    "columns differ": [frame(2), pd.DataFrame({"step": [1]}), frame(2)],
    "types differ": [pa.table({"a": [1]}), pa.table({"a": [1.5]}), pa.table({"a": [2]})],
    "frame and table": [frame(2), pa.table({"step": [1], "loss": [0.5]}), frame(1)],
    "texts of two types": [
        pa.table({"a": ["x"]}),
        pa.table({"a": pa.array(["y"], pa.large_string())}),
    ],
    "metadata differ": [
        pa.table({"a": [1]}),
        pa.table({"a": [2]}).replace_schema_metadata({"k": "v"}),
    ],
}


@pytest.mark.parametrize("values", NOT_ALIKE.values(), ids=NOT_ALIKE)
def test_those_that_are_not_alike_are_read_apart(session, alone, joins, values):
    add(session, values)
    found = together(session)
    assert len(joins) == len(values)
    assert found.equals(alone(session))


NOT_PLAIN = {
    "categories": pd.DataFrame({"c": pd.Categorical(["a", "b"])}),
    "an index": pd.DataFrame({"a": [1, 2]}, index=["x", "y"]),
    "no columns": pd.DataFrame(index=range(3)),
    "dictionaries": pa.table({"a": pa.array(["x", "y"]).dictionary_encode()}),
    "lists": pa.table({"a": [[1], [2, 3]]}),
    "nulls": pa.table({"a": pa.nulls(3)}),
    "rows alone": pa.table({"a": [1, 2]}).select([]),
    "a batch": pa.record_batch({"a": [1, 2]}),
    "an array": np.arange(3),
    "a scalar": 3,
    "a large table": pa.table({"a": RANDOM.random(20_000)}),
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_is_not_small_and_plain_is_read_by_itself(session, joins, value):
    add(session, [value] * 2)
    found = together(session)
    assert not any(joins)
    assert found.num_rows % 2 == 0


NAMES = {
    "numbers": [10, 20, 35],
    "times": pd.DatetimeIndex(["2020-01-01", "2020-01-02", "2020-02-01"], tz="UTC"),
    "mixed": [1, "a", None],
    "levels": [("a", 1), ("a", 2), ("b", 1)],
    "tuples": pd.Index([("a", None), ("a", 2), ("b", 0.5)], tupleize_cols=False),
    "categories": pd.CategoricalIndex([*"abc"]),
    "bytes": [b"a", "b", "c"],
    "a missing text": pd.Index(["a", None, "b"], dtype="str"),
    "a missing object": pd.Index(["a", None, "b"], dtype=object),
    "missing among many": pd.Index([None, *map(str, range(150))], dtype=object),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("value", [1, 0.5, "t"])
def test_columns_are_called_what_arrow_calls_them(names, value):
    made = pd.DataFrame([[value] * len(names)], columns=names)
    table = stored_as(made).load("x", as_arrow=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of mixed type
        assert table.column_names == pa.Table.from_pandas(made).column_names


@given(
    st.lists(
        st.tuples(st.sampled_from(["f", "t"]), st.lists(st.floats() | st.none(), max_size=4)),
        min_size=1,
        max_size=6,
    )
)
def test_any_order_of_frames_and_tables(values):
    made = [
        pd.DataFrame({"x": pd.Series(numbers, dtype="f8")})
        if kind == "f"
        else pa.table({"x": pa.array(numbers, pa.float64())})
        for kind, numbers in values
    ]
    pieces = [piece_in(stored_as(value)) for value in made]
    for value, piece in zip(made, pieces, strict=True):
        table = joining.joined([piece])
        assert piece.rows == len(value)
        expected = pa.Table.from_pandas(value) if isinstance(value, pd.DataFrame) else value
        assert table.replace_schema_metadata(None).equals(
            expected.replace_schema_metadata(None)
        ) or (str(table.to_pylist()) == str(expected.to_pylist()))
    kinds = {piece.like for piece in pieces}
    assert len(kinds) <= len({kind for kind, _ in values})


def piece_in(container):
    return joining.piece_of(container, "x", container.fetched("x"))


def stored_as(value, change=None):
    """Return an object of a value, with another node perhaps."""
    text, blobs = encode_value(value)
    return opened(forged_exactly(text if change is None else change(json.loads(text)), blobs))


def forged_exactly(node, blobs):
    """Return an object of a node, or its text, and of blobs that keep their sizes."""
    text = node if isinstance(node, str) else json.dumps(node)
    writer = MemoryWriter()
    payloads = [BytesPayload(bytes(blob)) for blob in blobs]
    ObjectPlan([EncodedEntry("x", text, payloads)], []).write(writer)
    return bytes(writer.data)


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [frame(20), pa.table(frame(20)), frame(20, t=["text"] * 20)])
@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_is_told_as_of_one_object(session, stored, alone, value, seed):
    add(session, [value] * 3)
    expected = together(session)
    (path,) = stored.base.glob("joined/2/*.zip")
    whole, rng = path.read_bytes(), random.Random(seed)
    damaged = 0
    for at in rng.sample(range(len(whole)), 60):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        outcomes = [outcome(session, collected) for collected in (together, alone)]
        assert outcomes[0] == outcomes[1]
        if outcomes[0] is None:
            assert together(session).equals(expected)
        else:
            damaged += 1
            assert outcomes[0][2] == ["it is the value of the row id=2 of 'joined'"]
    assert damaged > 20


def outcome(session, collected):
    """Return what is told of the one object that is damaged, None where nothing is."""
    try:
        collected(session)
    except DataStoreError as err:
        return type(err), str(err), err.__notes__
    return None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("value", [frame(9), pa.table(frame(9, t=[*"abcdefghi"]))])
def test_what_is_joined_can_be_loaded(value, seed):
    """Of bytes with right checksums, too: joining checks all that loading does."""
    rng, joined = random.Random(seed), 0
    text, blobs = encode_value(value)
    good = piece_in(stored_as(value))
    for _ in range(300):
        flipped = [bytearray(blob) for blob in blobs]
        for _ in range(rng.choice([1, 2, 8])):
            blob = rng.choice(flipped)
            blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        container = opened(forged_exactly(text, flipped))
        piece = piece_in(container)
        table = None
        if piece is not None and piece.like == good.like:
            table = joining.joined([good, piece, good])
        if table is not None:
            joined += 1
            one = container.load("x", as_arrow=True)
            middle = table.slice(good.rows, piece.rows)
            assert str(middle.to_pydict()) == str(one.to_pydict())
    assert joined > 10


def damaged_nodes(node):
    """Yield nodes of a frame that are damaged in ways that only its parts tell."""
    for change in (
        lambda inner: inner["data"][0].update(block=9),
        lambda inner: inner["data"][0].update(block=-1),
        lambda inner: inner["data"][0].update(count=2),
        lambda inner: inner["data"][0].update(count=0),
        lambda inner: inner["data"][0].update(count=True),
        lambda inner: inner["data"][1].update(block=0),
        lambda inner: inner["index"].update(range=[0, 8, 1]),
        lambda inner: inner["index"].update(range=[0, 9]),
        lambda inner: inner["columns"]["array"]["text"].update(list=["a"]),
        lambda inner: inner.update(columns={"name": None, "range": [0, 1 << 50, 1]}),
        lambda inner: inner["physical"]["blocks"][0].update(dtype="|O"),
        lambda inner: inner["physical"]["blocks"][0].update(shape=[2, 9]),
        lambda inner: inner["physical"]["blocks"][0].update(offset=64),
        lambda inner: inner["physical"]["blocks"][1].update(blob=0),
        lambda inner: inner["physical"].update(blocks=[]),
        lambda inner: inner["physical"].update(streams=3),
        lambda inner: inner["physical"].pop("streams"),
    ):
        copy = json.loads(json.dumps(node))
        change(copy[2])
        yield copy


def test_nodes_of_frames_that_are_damaged_make_no_piece():
    text, blobs = encode_value(frame(9))
    for node in damaged_nodes(json.loads(text)):
        container = opened(forged_exactly(node, blobs))
        piece = piece_in(container)
        assert piece is None or joining.joined([piece]) is None, node
        with pytest.raises(DamagedObjectError):
            container.load("x", as_arrow=True)


def test_columns_without_rows_are_not_taken_for_many():
    text, _ = encode_value(frame(9))
    node = json.loads(text)
    node[2]["index"]["range"] = [0, 0, 1]
    node[2]["data"] = [{"kind": "run", "block": 0, "row": 0, "count": 1 << 50}]
    node[2]["physical"]["blocks"] = [
        {"blob": 0, "dtype": "<f8", "shape": [1 << 51, 0], "by_row": False, "offset": 0}
    ]
    container = opened(forged_blobs(node, b""))
    assert piece_in(container) is None
    with pytest.raises(DamagedObjectError, match="too many columns without rows"):
        container.load("x", as_arrow=True)


# -- what it costs ---------------------------------------------------------------------------------


def test_arrow_reads_one_stream_of_many(session, monkeypatch):
    add(session, [pa.table({"a": [n], "b": ["x"]}) for n in range(50)])
    together(session)
    read, open_stream = [], pa.ipc.open_stream
    monkeypatch.setattr(pa.ipc, "open_stream", lambda data: read.append(data) or open_stream(data))
    assert together(session)["a"].to_pylist() == [*range(50)]
    assert len(read) == 1


def test_objects_go_as_soon_as_their_entry_was_taken(session, monkeypatch):
    add(session, [frame(3) for n in range(20)])
    before = {id(each) for each in gc.get_objects() if isinstance(each, Container)}
    alive, piece_of = [], joining.piece_of

    def noted(container, name, blobs):
        found = (each for each in gc.get_objects() if isinstance(each, Container))
        alive.append(sum(id(each) not in before for each in found))
        return piece_of(container, name, blobs)

    monkeypatch.setattr(loading, "piece_of", noted)
    together(session)
    assert len(alive) == 20
    assert max(alive) == 1


def test_batches_are_joined_each_by_itself(session, joins):
    add(session, [frame(2) for _ in range(7)])
    reader = collect_batches(session, select(Row).order_by(Row.id), Row.data, "e", batch_rows=3)
    assert [batch.num_rows for batch in reader] == [6, 6, 2]
    assert joins == [3, 3, 1]


@pytest.mark.parametrize("value", [frame(3), pa.table({"a": pa.array(["x"]).dictionary_encode()})])
def test_what_was_fetched_is_not_requested_again(value):
    writer = MemoryWriter()
    rest = np.zeros(100_000)  # so that the entry does not come with the index
    plan({"x": value, "rest": rest}, nested_entries=dict).objects[0].write(writer)
    reader = MemoryReader(writer.data)
    container = Container.open(reader, "file:///a.zip", nested=int)
    blobs = container.fetched("x")
    count = len(reader.reads)
    piece = joining.piece_of(container, "x", blobs)
    assert (piece is None) is isinstance(value, pa.Table)
    assert container.load("x", as_arrow=True, blobs=blobs).num_rows == len(value)
    assert len(reader.reads) == count
