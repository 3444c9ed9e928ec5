"""`collect` and its kin: one entry of many rows as one table, batch by batch, or as one array."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import gc
import hashlib
import io
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sqlalchemy import ForeignKey, Numeric, create_engine, event, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
)
from sqlalchemy.types import NullType
from support.watched import Watched

from sqla_datastore import (
    CollectError,
    DamagedObjectError,
    DataStore,
    DataStoreType,
    File,
    MissingObjectError,
    acollect,
    acollect_array,
    acollect_batches,
    bind_storage,
    collect,
    collect_array,
    collect_batches,
)
from sqla_datastore.format import Container, StoredBlob
from sqla_datastore.storage import LocalStorage


class Base(DeclarativeBase):
    """The tables of this module."""


class Model(enum.Enum):
    TREE = 1
    NET = 2


class Group(Base):
    __tablename__ = "collected_groups"
    id: Mapped[int] = mapped_column(primary_key=True)
    runs: Mapped[list[Run]] = relationship(back_populates="group")


class Run(Base):
    """A row with columns of many types."""

    __tablename__ = "collected_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id_group: Mapped[int | None] = mapped_column(ForeignKey("collected_groups.id"))
    group: Mapped[Group | None] = relationship(back_populates="runs")
    rate: Mapped[float | None]
    model: Mapped[Model | None]
    key: Mapped[uuid.UUID | None]
    begun: Mapped[dt.datetime | None]
    price: Mapped[decimal.Decimal | None] = mapped_column(Numeric(8, 2))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


@pytest.fixture(scope="module")
def model_metadata():
    return Base.metadata


def add(session, *values, entry="e"):
    """Insert a row for each value of an entry; None stands for a row without a value."""
    for number, value in enumerate(values, 1):
        data = None if value is None else DataStore({entry: value, "other": number})
        session.add(Run(id=number, rate=number / 2, data=data))
    session.commit()
    session.expunge_all()


RUNS = select(Run).order_by(Run.id)


def entries(session, statement=RUNS, **options):
    return collect(session, statement, Run.data, "e", **options)


# -- what becomes what -----------------------------------------------------------------------------


def test_frames_stand_one_below_the_other_with_the_key_of_their_rows(session):
    add(
        session, pd.DataFrame({"a": [1, 2], "t": ["x", "y"]}), pd.DataFrame({"a": [3], "t": [None]})
    )
    found = entries(session)
    assert found.to_pydict() == {"id": [1, 1, 2], "a": [1, 2, 3], "t": ["x", "y", None]}
    assert found.schema.metadata is None
    pd.testing.assert_frame_equal(
        found.to_pandas()[["id", "a"]], pd.DataFrame({"id": [1, 1, 2], "a": [1, 2, 3]})
    )


def test_of_files_all_is_told_but_their_bytes(session, monkeypatch):
    add(session, File(io.BytesIO(b"a,b"), "x.csv"), File(io.BytesIO(b""), "y", "text/z"), None)
    monkeypatch.setattr(StoredBlob, "verified_pieces", None)
    assert entries(session).drop_columns("sha256").to_pylist() == [
        {"id": 1, "name": "x.csv", "content_type": "text/csv", "size_bytes": 3},
        {"id": 2, "name": "y", "content_type": "text/z", "size_bytes": 0},
    ]
    assert entries(session)["sha256"][0].as_py() == hashlib.sha256(b"a,b").hexdigest()
    with pytest.raises(CollectError, match="File values are no NumPy arrays"):
        collect_array(session, RUNS, Run.data, "e")
    session.add(Run(id=4, data=DataStore(e=1)))
    with pytest.raises(CollectError, match=r"id=4.* a File"):
        entries(session)


FRAMES = {
    "numbers": pd.DataFrame(
        {
            "i": np.arange(3, dtype=np.int8),
            "u": np.arange(3, dtype=np.uint64),
            "f": np.array([1.5, np.nan, np.inf], np.float32),
            "b": [True, False, True],
            "when": pd.to_datetime(["2020-01-01", None, "2021-01-01"]),
            "long": pd.to_timedelta([1, None, 3], unit="s"),
        }
    ),
    "by row": pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"]),
    "texts": pd.DataFrame({"t": ["ä", None, "c"], "o": pd.Series(["a", None, "b"], dtype=object)}),
    "many texts": pd.DataFrame({"t": [f"text {n}" for n in range(300)]}),
    "numbered columns": pd.DataFrame(np.arange(4).reshape(2, 2)),
    "no rows": pd.DataFrame({"a": np.arange(0), "t": pd.Series([], dtype=object)}),
    "categories": pd.DataFrame({"c": pd.Categorical(["x", "y", "x"])}),
    "zoned": pd.DataFrame({"z": pd.to_datetime(["2020-01-01"]).tz_localize("Europe/Berlin")}),
    "masked": pd.DataFrame({"m": pd.array([1, None], "Int64")}),
    "big-endian": pd.DataFrame({"a": np.arange(2, dtype=">i4"), "b": [1, 2]}).astype({"a": "i4"}),
    "objects": pd.DataFrame({"o": [[1], [2, 3]]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_becomes_what_pyarrow_makes_of_it(session, name):
    frame = FRAMES[name]
    add(session, frame)
    found = entries(session, columns=[])
    expected = pa.Table.from_pandas(frame, preserve_index=False)
    assert found.to_pydict() == expected.to_pydict()
    for field in found.schema:
        told = str(expected.schema.field(field.name).type)
        assert str(field.type).removeprefix("large_") == told.removeprefix("large_")


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (pd.RangeIndex(5, 7, name="step"), ["step"]),
        (pd.Index(["a", "b"]), ["index"]),
        (pd.MultiIndex.from_tuples([(1, "a"), (1, "b")], names=["run", None]), ["run", "level_1"]),
    ],
)
def test_an_index_comes_first_unless_it_only_numbers_the_rows(session, index, names):
    frame = pd.DataFrame({"v": [0.5, 1.5]}, index=index)
    add(session, frame)
    found = entries(session, columns=[])
    assert found.column_names == [*names, "v"]
    assert found.to_pylist() == frame.reset_index().to_dict("records")


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (pd.Series([1, 2], name="s"), [{"s": 1}, {"s": 2}]),
        (pd.Series([1, 2]), [{"e": 1}, {"e": 2}]),
        (pa.table({"x": [1, 2]}), [{"x": 1}, {"x": 2}]),
        (pa.record_batch({"x": [1, 2]}), [{"x": 1}, {"x": 2}]),
        (pa.array([1, None]), [{"e": 1}, {"e": None}]),
        (pl.DataFrame({"x": [1, 2], "t": ["a", "b"]}), [{"x": 1, "t": "a"}, {"x": 2, "t": "b"}]),
        (0.5, [{"e": 0.5}]),
        (float("inf"), [{"e": float("inf")}]),
        ("text", [{"e": "text"}]),
        (True, [{"e": True}]),
        (np.float32(0.5), [{"e": 0.5}]),
        (pd.Timestamp("2020-01-01"), [{"e": dt.datetime(2020, 1, 1)}]),
        (pd.NaT, [{"e": None}]),
        (np.array(3), [{"e": 3}]),
        (pa.scalar(3), [{"e": 3}]),
        ({"loss": 0.5, "ok": True, "why": None}, [{"loss": 0.5, "ok": True, "why": None}]),
        (np.arange(3), [{"e": [0, 1, 2]}]),
        (np.arange(4.0).reshape(2, 2), [{"e": [[0.0, 1.0], [2.0, 3.0]]}]),
        (np.array(["2020-01-01"], "M8[D]"), [{"e": [dt.date(2020, 1, 1)]}]),
    ],
)
def test_what_becomes_what(session, value, rows):
    add(session, value, value)
    assert entries(session, columns=[]).to_pylist() == rows * 2


def test_arrays_of_one_shape_are_fixed_size_lists(session):
    add(session, np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert entries(session)["e"].type == pa.list_(pa.list_(pa.float32(), 3), 2)


def test_arrays_become_one_array_with_the_rows_that_it_is_of(session):
    arrays = [np.arange(6.0).reshape(2, 3) * n for n in range(300)]
    add(session, *arrays[:2], None, *arrays[3:])
    found, rows = collect_array(session, RUNS, Run.data, "e", columns=[Run.id, Run.rate])
    np.testing.assert_array_equal(found, np.stack([*arrays[:2], *arrays[3:]]))
    assert rows["id"].to_pylist() == [1, 2, *range(4, 301)]
    assert rows["rate"].to_pylist()[2] == 2.0
    numbers, _ = collect_array(session, RUNS, Run.data, "other")
    assert numbers.tolist() == rows["id"].to_pylist()
    none = RUNS.where(Run.id > 900)
    nothing, rows = collect_array(session, none, Run.data, "no such entry")
    assert len(nothing) == rows.num_rows == 0


# -- which rows, and what of them ------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        RUNS.where(Run.rate > 0.5).limit(2),
        select(Run.id).where(Run.id > 1).order_by(Run.id).limit(2),
        select(func.count()).select_from(Run).where(Run.id.in_([2, 3])).order_by(Run.id),
        select(Run).join(Run.group).order_by(Run.id),
        select(Run).options(joinedload(Run.group)).where(Run.id_group == 7).order_by(Run.id),
        select(Run).distinct().where(Run.id > 1).order_by(Run.id).limit(2),
    ],
    ids=["entity", "column", "other columns", "join", "loader options", "distinct"],
)
def test_the_statement_says_which_rows(session, statement):
    add(session, 1, 2, 3, 4)
    session.add(Group(id=7))
    session.flush()
    session.execute(update(Run).where(Run.id.in_([2, 3])).values(id_group=7))
    assert entries(session, statement).to_pydict() == {"id": [2, 3], "e": [2, 3]}


def test_rows_come_in_the_order_of_the_statement(session):
    add(session, *range(300))
    found = entries(session, select(Run).order_by(Run.id.desc()))
    assert found["e"].to_pylist() == [*reversed(range(300))]


def test_an_alias_and_core_do_as_well(session):
    add(session, 1, 2)
    other = aliased(Run)
    statement = select(other).where(other.id == 2)
    assert collect(session, statement, other.data, "e").to_pydict() == {"id": [2], "e": [2]}
    runs = Run.__table__
    found = collect(session.connection(), select(runs).order_by(runs.c.id), runs.c.data, "e")
    assert found.to_pydict() == {"id": [1, 2], "e": [1, 2]}


def test_columns_have_the_types_of_the_database_even_without_rows(tables, engine):
    columns = [Run.id, Run.rate.label("lr"), Run.model, Run.key, Run.begun, Run.price]
    begun, key = dt.datetime(2024, 5, 1, 12), uuid.uuid4()
    values = {"rate": 0.5, "model": Model.NET, "key": key, "begun": begun, "price": "1.25"}
    with Session(engine) as session:
        empty = entries(session, columns=columns)
        session.add(Run(id=1, data=DataStore(e=1), **{**values, "price": decimal.Decimal("1.25")}))
        session.add(Run(id=2, data=DataStore(e=2)))
        session.commit()
        found = entries(session, columns=columns)
        batches = collect_batches(session, RUNS, Run.data, "e", columns=columns, batch_rows=1)
        assert batches.read_all().equals(found)
    assert empty.num_rows == 0
    assert empty.schema == found.drop_columns(["e"]).schema
    row, nulls = found.to_pylist()
    assert row == {
        "id": 1,
        "lr": 0.5,
        "model": "NET",
        "key": str(key),
        "begun": begun,
        "price": decimal.Decimal("1.25"),
        "e": 1,
    }
    assert {name for name, value in nulls.items() if value is None} == {*row} - {"id", "e"}


def test_rows_without_the_entry_are_left_out_or_null(session):
    add(session, 1, None, 3)
    session.add(Run(id=4, data=DataStore(another=1)))
    session.commit()
    assert entries(session).to_pydict() == {"id": [1, 3], "e": [1, 3]}
    found = entries(session, missing="null")
    assert found.to_pydict() == {"id": [1, 2, 3, 4], "e": [1, None, 3, None]}
    only = entries(session, RUNS.where(Run.id == 2), missing="null")
    assert only.to_pydict() == {"id": [2]}


def test_a_name_that_no_value_has_is_refused_with_those_that_there_are(session):
    add(session, None, 1, 2)
    message = r"no row has an entry 'typo'; those of the row id=2 .* are 'e'"
    for call in (collect, collect_batches, collect_array):
        with pytest.raises(CollectError, match=message) as caught:
            call(session, RUNS, Run.data, "typo")
        assert caught.value.entry == "typo"
    nulls = collect(session, RUNS, Run.data, "typo", missing="null")
    assert nulls.to_pydict() == {"id": [1, 2, 3]}
    schema = pa.schema([("typo", pa.int8())])
    assert collect(session, RUNS, Run.data, "typo", schema=schema).num_rows == 0
    # there is no value that could tell
    assert collect(session, RUNS.where(Run.id == 1), Run.data, "typo").num_rows == 0


def test_an_empty_dict_is_a_row_that_lacks_everything(session):
    add(session, {"loss": 1.0}, {}, {"loss": 3.0})
    assert entries(session).to_pydict() == {"id": [1, 3], "loss": [1.0, 3.0]}
    found = entries(session, missing="null")
    assert found.to_pydict() == {"id": [1, 2, 3], "loss": [1.0, None, 3.0]}


def test_the_session_holds_and_flushes_nothing_of_it(session):
    add(session, pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}))
    row = session.get(Run, 1)
    before = row.data.url
    entries(session)
    assert [*session.identity_map.values()] == [row]
    assert not session.dirty
    assert row.data._entries is None, "its own value is not loaded either"
    session.commit()
    assert row.data.url == before


def test_what_is_not_flushed_is_flushed_as_before_any_query(session):
    add(session, 1)
    session.add(Run(id=2, data=DataStore(e=2)))
    assert entries(session)["e"].to_pylist() == [1, 2]


def test_an_expression_without_a_type_has_that_of_its_values(session):
    add(session, 1, 2, 3)
    first = func.nullif(Run.id, 1, type_=NullType()).label("x")
    batches = collect_batches(session, RUNS, Run.data, "e", columns=[first], batch_rows=1)
    with pytest.raises(CollectError, match=r"sqlalchemy\.cast"):
        batches.read_all()
    assert entries(session, columns=[first])["x"].to_pylist() == [None, 2, 3]


# -- schemas ---------------------------------------------------------------------------------------


def categories(*texts):
    return pd.DataFrame({"x": pd.Categorical(texts)})


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2.5, None, np.int8(3)], [1.0, 2.5, None, 3.0]),
        ([{"x": 1}, {"y": "a"}], [{"x": 1, "y": None}, {"x": None, "y": "a"}]),
        (
            [pa.table({"x": ["a"]}), pa.table({"x": pa.array(["b"], pa.large_string())})],
            [{"x": "a"}, {"x": "b"}],
        ),
        ([categories("a"), pd.DataFrame({"x": ["b"]})], [{"x": "a"}, {"x": "b"}]),
        ([categories("a"), categories("b", "c")], [{"x": "a"}, {"x": "b"}, {"x": "c"}]),
        ([pd.DataFrame({"x": [None]}), pd.DataFrame({"x": [1.5]})], [{"x": None}, {"x": 1.5}]),
        (
            [pl.DataFrame({"x": ["a"]}), pd.DataFrame({"x": ["b"], "z": [1]})],
            [{"x": "a", "z": None}, {"x": "b", "z": 1}],
        ),
    ],
    ids=["numbers", "keys", "texts", "category and text", "categories", "null", "libraries"],
)
def test_schemas_are_unified(session, values, found):
    session.add_all([Run(id=n, data=DataStore(e=value)) for n, value in enumerate(values)])
    session.commit()
    rows = entries(session, columns=[]).to_pylist()
    assert rows == [row if isinstance(row, dict) else {"e": row} for row in found]


def test_categories_stay_categories_where_all_are(session):
    add(session, categories("a", "b"), categories("c"))
    column = entries(session)["x"]
    assert pa.types.is_dictionary(column.type)
    assert column.to_pylist() == ["a", "b", "c"]
    assert pl.from_arrow(entries(session))["x"].to_list() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, pd.DataFrame({"e": [2]})], "is a table, that of the row id=1 .* is a scalar"),
        ([1, "2"], "does not agree with those before"),
        ([np.zeros(2), np.zeros(3)], r"is an array of shape \(3,\), that of the row id=1"),
        ([1, [1, 2]], "list values make no table"),
        ([1, DataStore(n=1)], "DataStore values make no table"),
        ([1, 2**70], "too large"),
        ([1, 1 + 2j], "cannot be collected"),
        ([{"a": 1}, {1: "a"}], "keys are no names"),
        ([pa.table({"x": [1]}), pa.table([[1], [2]], names=["x", "x"])], "two columns .* 'x'"),
        ([2**60 + 1, 0.5], "does not fit the types of all"),
    ],
)
def test_what_cannot_be_unified_is_refused_with_the_row(session, values, message):
    add(session, *values)
    with pytest.raises(CollectError, match=message) as caught:
        entries(session)
    named = "id=1" if "types of all" in message else "id=2"
    assert caught.value.row == f"the row {named} of 'collected_runs'"
    assert caught.value.entry == "e"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        pa.table({"a": pa.nulls(1 << 21)}).select([]),
        pa.table({"a": pa.RunEndEncodedArray.from_arrays([1 << 21], [1.5])}),
        pa.RunEndEncodedArray.from_arrays([1 << 30], [1.5]),
    ],
    ids=["no columns", "a run", "an array of one run"],
)
def test_rows_that_take_no_bytes_are_refused_with_their_row(session, value):
    add(session, pa.table({"a": [1.5]}), value)
    with pytest.raises(CollectError, match=r"id=2.*rows take next to no bytes") as caught:
        entries(session)
    assert caught.value.row == "the row id=2 of 'collected_runs'"


def test_a_given_schema_chooses_and_casts_columns(session):
    add(session, pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"a": [3]}))
    schema = pa.schema([("b", pa.float64()), ("a", pa.string())])
    found = entries(session, schema=schema)
    assert found.to_pydict() == {"id": [1, 2], "b": [2.0, None], "a": ["1", "3"]}
    with pytest.raises(CollectError, match=r"the row id=2 .* does not fit"):
        entries(session, schema=pa.schema([("a", pa.date32())]), statement=RUNS.where(Run.id == 2))


def test_two_columns_of_one_name_are_refused_with_advice(session):
    add(session, pd.DataFrame({"id": [1], "a": [2]}))
    with pytest.raises(CollectError, match=r"both have a column 'id'.*\.label\('row_id'\)"):
        entries(session)
    assert entries(session, columns=[Run.id.label("run")]).column_names == ["run", "id", "a"]
    with pytest.raises(CollectError, match="two of the columns are called 'id'"):
        entries(session, columns=[Run.id, Run.rate.label("id")])
    with pytest.raises(CollectError, match=r"has no name.*\.label"):
        entries(session, columns=[Run.id + 1])
    with pytest.raises(CollectError, match="'data' holds values"):
        entries(session, columns=[Run.data])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((update(Run), Run.data, "e"), "a select"),
        ((RUNS, Run.rate, "e"), "no column of DataStoreType"),
        ((RUNS, "data", "e"), "no column of DataStoreType"),
    ],
)
def test_what_is_no_statement_or_attribute_is_refused(session, arguments, message):
    with pytest.raises(TypeError, match=message):
        collect(session, *arguments)
    with pytest.raises(ValueError, match="'skip' or 'null'"):
        entries(session, missing="drop")
    with pytest.raises(ValueError, match="batch_rows is 1 or more"):
        collect_batches(session, RUNS, Run.data, "e", batch_rows=0)


def test_what_does_not_execute_the_statement_is_refused(session):
    with pytest.raises(TypeError, match="a Session or Connection is needed here, not 'Engine'"):
        collect(session.get_bind(), RUNS, Run.data, "e")
    with pytest.raises(TypeError, match="not 'AsyncSession'; acollect"):
        collect(AsyncSession(), RUNS, Run.data, "e")
    with pytest.raises(TypeError, match="not 'Session'; collect"):
        asyncio.run(acollect(session, RUNS, Run.data, "e"))


# -- storage ---------------------------------------------------------------------------------------


def test_a_damaged_or_missing_object_is_an_error_that_names_the_row(session, stored):
    add(session, pd.DataFrame({"a": np.arange(100)}), pd.DataFrame({"a": np.arange(100)}))
    (path,) = stored.base.glob("collected_runs/2/*.zip")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(np.arange(100).tobytes(), np.arange(100)[::-1].tobytes()))
    with pytest.raises(DamagedObjectError, match="'e'") as caught:
        entries(session)
    assert caught.value.__notes__ == ["it is the value of the row id=2 of 'collected_runs'"]
    path.unlink()
    with pytest.raises(MissingObjectError) as caught:
        entries(session)
    assert caught.value.__notes__ == ["it is the value of the row id=2 of 'collected_runs'"]


def test_other_entries_are_not_loaded(session, stored):
    add(session, 1)
    (path,) = stored.base.glob("collected_runs/1/*.zip")
    session.get(Run, 1).data.large = np.zeros(100_000)
    session.commit()
    (path,) = stored.base.glob("collected_runs/1/*.zip")
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\1" * 1000)  # in the array
    assert entries(session)["e"].to_pylist() == [1]


def test_values_in_rows_and_compressed_ones(tmp_path):
    class Inline(DeclarativeBase):
        pass

    class Small(Inline):
        __tablename__ = "collected_small"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore] = mapped_column(DataStoreType(inline_bytes=4000, compression=True))

    engine = create_engine("sqlite://")
    bind_storage(engine, tmp_path / "storage")
    Inline.metadata.create_all(engine)
    frames = [pd.DataFrame({"a": np.zeros(rows), "t": "text"}) for rows in (2, 100, 20_000)]
    with Session(engine) as session:
        session.add_all([Small(id=n, data={"e": frame}) for n, frame in enumerate(frames)])
        session.commit()
        found = collect(session, select(Small).order_by(Small.id), Small.data, "e")
        urls = session.scalars(select(Small.data.label("url"))).all()
    assert [value.url[:5] for value in urls] == ["data:", "data:", "file:"]
    expected = pd.concat(frames, ignore_index=True)
    pd.testing.assert_frame_equal(found.to_pandas()[["a", "t"]], expected, check_dtype=False)
    engine.dispose()


def test_large_local_entries_are_not_copied(session):
    add(session, *(pd.DataFrame({"a": np.arange(100_000.0) + n}) for n in range(5)))
    before = pa.total_allocated_bytes()
    found = entries(session)
    assert pa.total_allocated_bytes() - before < 2 * found["id"].nbytes
    assert found["a"].num_chunks == 5
    assert found["a"][-1].as_py() == 100_003.0


def test_entries_are_read_at_the_same_time_where_that_takes_long(session, stored):
    add(session, *range(12))
    threads = set()

    def at(name, when):
        if name == "open":
            threads.add(threading.get_ident())
            time.sleep(0.005)

    bind_storage(session.get_bind(), Watched(LocalStorage(stored.base), at))
    assert entries(session)["e"].to_pylist() == [*range(12)]
    assert len(threads) > 1


# -- batches ---------------------------------------------------------------------------------------


def test_batches_hold_the_entries_of_some_rows(session, stored):
    add(session, *(pd.DataFrame({"a": [n, n]}) for n in range(7)))
    opened = []
    place = Watched(LocalStorage(stored.base), lambda name, _: opened.append(name))
    bind_storage(session.get_bind(), place)
    reader = collect_batches(session, RUNS, Run.data, "e", batch_rows=3)
    assert isinstance(reader, pa.RecordBatchReader)
    assert reader.schema.names == ["id", "a"]
    assert opened.count("open") == 3
    batches = [*reader]
    assert [batch.num_rows for batch in batches] == [6, 6, 2]
    assert opened.count("open") == 7
    assert pa.Table.from_batches(batches).equals(entries(session).combine_chunks())


def test_values_go_with_their_batch(session):
    add(session, *(pd.DataFrame({"a": [n]}) for n in range(40)))
    # other tests may have left some, which stay while this list holds them
    before = [each for each in gc.get_objects() if isinstance(each, Container)]
    known = set(map(id, before))
    reader = collect_batches(session, RUNS, Run.data, "e", batch_rows=4)
    for _ in reader:
        alive = (each for each in gc.get_objects() if isinstance(each, Container))
        assert sum(id(each) not in known for each in alive) <= 2 * 4


def test_the_stream_needs_no_session_and_is_read_in_any_thread(session):
    add(session, *(pd.DataFrame({"a": [n]}) for n in range(9)))
    batches = collect_batches(session, RUNS, Run.data, "e", batch_rows=2)
    session.close()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(batches.read_all).result()["a"].to_pylist() == [*range(9)]


def test_batches_wait_for_the_first_entry(session):
    add(session, None, None, 3, None)
    batches = collect_batches(session, RUNS, Run.data, "e", missing="null", batch_rows=1)
    assert batches.read_all().to_pydict() == {"id": [1, 2, 3, 4], "e": [None, None, 3, None]}
    skipped = collect_batches(session, RUNS, Run.data, "e", batch_rows=1)
    assert skipped.read_all().to_pydict() == {"id": [3], "e": [3]}
    none = collect_batches(session, RUNS.where(Run.id > 9), Run.data, "e")
    assert none.read_all().schema == pa.schema([("id", pa.int64())])


def test_later_rows_fit_the_first_or_the_given_schema(session):
    add(session, {"x": 1.5}, {"x": 2}, {"y": 3})
    reader = collect_batches(session, RUNS, Run.data, "e", batch_rows=1)
    assert reader.read_next_batch().to_pydict() == {"id": [1], "x": [1.5]}
    assert reader.read_next_batch().to_pydict() == {"id": [2], "x": [2.0]}
    with pytest.raises(CollectError, match=r"the row id=3 .* columns .* 'y'; give the schema"):
        reader.read_next_batch()
    schema = pa.schema([("x", pa.float64()), ("y", pa.int8())])
    found = collect_batches(session, RUNS, Run.data, "e", batch_rows=1, schema=schema).read_all()
    assert found["y"].to_pylist() == [None, None, 3]
    assert found.schema.field("y").type == pa.int8()


# -- what it costs ---------------------------------------------------------------------------------


def test_one_statement_and_one_opened_object_for_each_row(session, stored):
    add(session, *(pa.table({"a": [n]}) for n in range(50)))
    opened, statements = [], []
    place = Watched(LocalStorage(stored.base), lambda name, when: opened.append((name, when)))
    bind_storage(session.get_bind(), place)
    event.listen(
        session.get_bind(), "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    entries(session)
    assert opened.count(("open", "before")) == 50
    assert len(statements) == 1


def test_a_storage_in_front_of_another_opens_each_in_its_own_way(session, stored):
    class Front:
        def __init__(self, storage):
            self.storage, self.opened = storage, []

        def __getattr__(self, name):
            return getattr(self.storage, name)

        def open(self, path):
            self.opened.append(path)
            return self.storage.open(path)

    add(session, *(pa.table({"a": [n]}) for n in range(3)))
    front = Front(LocalStorage(stored.base))
    bind_storage(session.get_bind(), front)
    assert entries(session)["a"].to_pylist() == [0, 1, 2]
    assert len(front.opened) == 3


def test_small_tables_take_a_few_times_what_pyarrow_takes_for_files(session, tmp_path):
    tables = [pa.table({"step": range(100), "loss": [n / 7] * 100}) for n in range(200)]
    add(session, *tables)
    for number, table in enumerate(tables):
        with pa.ipc.new_file(str(tmp_path / f"{number}.arrow"), table.schema) as writer:
            writer.write_table(table)

    def by_pyarrow():
        paths = [str(tmp_path / f"{number}.arrow") for number in range(200)]
        pa.concat_tables([pa.ipc.open_file(pa.memory_map(path)).read_all() for path in paths])

    def seconds(call):
        begin = time.process_time()
        call()
        return time.process_time() - begin

    entries(session)
    times = [(seconds(lambda: entries(session)), seconds(by_pyarrow)) for _ in range(5)]
    ours, alone = map(min, zip(*times, strict=True))
    assert ours < 4 * alone


# -- under an event loop ---------------------------------------------------------------------------


def test_coroutines_read_in_threads(session, stored, tmp_path):
    add(session, *(pd.DataFrame({"a": [n, n]}) for n in range(5)), None)
    expected = entries(session)
    threads = set()
    place = Watched(LocalStorage(stored.base), lambda *_: threads.add(threading.get_ident()))

    async def work():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'runs.db'}")
        bind_storage(engine, place)
        async with AsyncSession(engine) as session:
            found = await acollect(session, RUNS, Run.data, "e")
            batches = [
                batch
                async for batch in acollect_batches(session, RUNS, Run.data, "e", batch_rows=2)
            ]
            numbers, _ = await acollect_array(session, RUNS, Run.data, "other")
            by_greenlet = await session.run_sync(collect, RUNS, Run.data, "e")
        await engine.dispose()
        return found, batches, numbers.tolist(), by_greenlet

    found, batches, numbers, by_greenlet = asyncio.run(work())
    assert found.equals(expected)
    assert by_greenlet.equals(expected)
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert numbers == [1, 2, 3, 4, 5]
    assert threads
    assert threading.get_ident() not in threads
