"""Exported files are what other programs read, with the same numbers."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqla_datastore import ConfigurationError, DataStore, DataStoreIO
from sqla_datastore.browsing.exports import export, file_name, jsonable

FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})


def exported(value, kind):
    out = io.BytesIO()
    export(value, kind, out)
    return out.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        FRAME,
        pa.Table.from_pandas(FRAME),
        pa.RecordBatch.from_pandas(FRAME),
        pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        np.array([(1, "x"), (2, "y")], [("a", "i8"), ("b", "U1")]),
        {"a": [1, 2], "b": ["x", "y"]},
        [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_a_table_as_parquet_and_csv(value):
    read = pq.read_table(io.BytesIO(exported(value, "parquet"))).to_pandas()
    assert read.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}
    read = pd.read_csv(io.BytesIO(exported(value, "csv")))
    assert read.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}


def test_columns_and_matrices_as_tables():
    for value in (pd.Series([1, 2]), np.array([1, 2]), pa.array([1, 2]), pl.Series([1, 2])):
        (column,) = pq.read_table(io.BytesIO(exported(value, "parquet"))).to_pydict().values()
        assert column == [1, 2]
    table = pq.read_table(io.BytesIO(exported(np.eye(2), "parquet")))
    assert table.to_pydict() == {"0": [1, 0], "1": [0, 1]}


def test_an_index_that_says_something_is_kept():
    frame = FRAME.set_index("b")
    assert exported(frame, "csv") == b"b,a\nx,1\ny,2\n"
    assert pq.read_table(io.BytesIO(exported(frame, "parquet"))).to_pandas().equals(frame)


@pytest.mark.parametrize("value", [np.eye(3), pd.Series([1.5, 2.5]), [1, 2], pa.array([1, 2])])
def test_numbers_as_npy(value):
    read = np.load(io.BytesIO(exported(value, "npy")), allow_pickle=False)
    assert read.tolist() == np.asarray(value).tolist()


def test_what_json_cannot_hold_is_named():
    value = DataStore(a=1, inner=DataStore(odd={1}, spectrum=[1j]))
    with pytest.raises(ConfigurationError, match="entry 'inner': entry 'spectrum': complex values"):
        exported(value, "json")


def test_json():
    value = {
        "frame": FRAME,
        "array": np.array([[1.5, np.nan]]),
        "bytes": b"\x00",
        "when": pd.Timestamp("2024-01-02"),
        "nested": DataStore(k=(1, {2})),
        "scalar": np.int8(3),
    }
    assert json.loads(exported(value, "json")) == {
        "frame": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        "array": [[1.5, None]],
        "bytes": "AA==",
        "when": "2024-01-02T00:00:00",
        "nested": {"k": [1, [2]]},
        "scalar": 3,
    }
    assert jsonable(pa.table({"a": [1]})) == [{"a": 1}]


@pytest.mark.parametrize(
    "value", [DataStore(a=np.arange(3), n=DataStore(k=1)), np.arange(3)], ids=["whole", "entry"]
)
def test_zip_is_an_object_of_this_library_and_of_other_tools(tmp_path, value):
    data = exported(value, "zip")
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    (array,) = [each for each in np.load(io.BytesIO(data)).values() if isinstance(each, np.ndarray)]
    assert array.tolist() == [0, 1, 2]
    name = f"{'0' * 32}.io.zip"
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / name).write_bytes(data)
    read = DataStoreIO(f"file:///p/{name}", storage=tmp_path).read_deserialize(DataStore)
    if isinstance(value, DataStore):
        assert read.n == {"k": 1}
    else:
        assert read.value.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros((2, 2, 2)), "csv"),
        ("text", "parquet"),
        (FRAME, "npy"),
        ({(1, 2): 3}, "json"),
        (object(), "json"),
        (pa.table({"a": [[1]]}), "csv"),
        ([DataStore(a=1)], "zip"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_a_format_cannot_hold_is_refused_with_a_way_out(value, kind):
    with pytest.raises(ConfigurationError, match=f"cannot be written as {kind}.*another"):
        exported(value, kind)


@pytest.mark.parametrize("part", ["../../etc/passwd", "a\x1b[2J", "", "-rf", "x" * 500, ".."])
def test_a_file_name_is_plain(part):
    name = file_name("csv", part)
    assert "/" not in name
    assert name.isprintable()
    assert not name.startswith((".", "-"))
    assert len(name) < 100
