"""MLtraq's tables become rows of one's own, and nothing of them is run or changed."""

from __future__ import annotations

import datetime
import os
import pickle
import shutil
import sqlite3
import tarfile
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine

from sqla_datastore import DamagedObjectError, DataStore, MissingObjectError, UnsupportedFormatError
from sqla_datastore.mltraq import read_experiments

GOLDEN = Path(__file__).parent / "golden"
ID = uuid.UUID(int=1)


class _Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


HOSTILE = pickle.dumps(_Runs(), protocol=5)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A copy of the golden database and its data store, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "mltraq.db", tmp_path)
    shutil.copytree(GOLDEN / "mltraq.datastore", tmp_path / "mltraq.datastore")
    return tmp_path


@pytest.fixture
def engine(lab):
    engine = create_engine("sqlite:///mltraq.db")
    yield engine
    engine.dispose()


def changed(statement: str, *parameters: object) -> None:
    with sqlite3.connect("mltraq.db") as connection:
        connection.execute(statement, parameters)
    connection.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_experiments_and_their_fields(engine):
    digits, empty = read_experiments(engine, "mltraq.datastore")
    assert (digits.id, digits.name) == (ID, "Digits 8x8")
    assert digits.fields["note"] == "first try"
    np.testing.assert_array_equal(digits.fields["shared"].grid, np.eye(2))
    with digits.fields["notes"].open() as stream, tarfile.open(fileobj=stream) as archive:
        assert archive.getnames() == ["notes.txt"]
    assert (empty.name, empty.fields) == ("empty", {})
    assert [run.fields for run in empty.runs()] == [{}]


def test_runs_and_their_fields(engine):
    digits, _ = read_experiments(engine, "mltraq.datastore")
    runs = list(digits.runs())
    assert [run.id for run in runs] == [uuid.UUID(int=2), uuid.UUID(int=5)]
    assert [run.fields["rate"] for run in runs] == [0.1, 0.2]
    assert [run.fields["is_good"] for run in runs] == [True, False]
    for run in runs:
        assert run.fields["begin"] == datetime.datetime(2024, 1, 2, 3, 4, 5)
        assert run.fields["tags"] == ["a", "b"]
        assert run.fields["ds2"] == DataStore(c=123)
        np.testing.assert_array_equal(run.fields["ds"].a, np.zeros(10))
        pd.testing.assert_series_equal(run.fields["ds"].b, pd.Series([1, 2, 3]))
        assert run.fields["url_b"].startswith(f"file:///self_managed/{ID}/")


def test_nothing_is_written(engine, lab):
    before = contents(lab)
    for experiment in read_experiments(engine, "mltraq.datastore"):
        list(experiment.runs())
    assert contents(lab) == before


def test_the_unsafe_pickle_is_not_read(engine, lab):
    changed("UPDATE experiments SET unsafe_pickle = ?", HOSTILE)
    assert len(list(read_experiments(engine, "mltraq.datastore"))) == 2
    assert not (lab / "ran").exists()


@pytest.mark.parametrize("column", ["meta", "fields"])
def test_a_hostile_pickle_in_an_experiment(engine, lab, column):
    changed(f"UPDATE experiments SET {column} = ?", HOSTILE)
    with pytest.raises(UnsupportedFormatError, match=f"{column}' of experiment 'Digits 8x8'"):
        list(read_experiments(engine, "mltraq.datastore"))
    assert not (lab / "ran").exists()


def test_a_hostile_pickle_in_a_run_names_run_and_field(engine, lab):
    changed("UPDATE experiment_digits_8x8 SET tags = ? WHERE rate > 0.15", HOSTILE)
    digits, _ = read_experiments(engine, "mltraq.datastore")
    runs = digits.runs()
    assert next(runs).fields["tags"] == ["a", "b"]
    with pytest.raises(UnsupportedFormatError, match=r"posix\.system") as caught:
        next(runs)
    assert f"'tags' of run {uuid.UUID(int=5)}" in str(caught.value)
    assert not (lab / "ran").exists()


def test_a_hostile_object_names_the_run_in_a_note(engine, lab):
    (path,) = (lab / "mltraq.datastore").rglob("*c")
    path.write_bytes(HOSTILE)
    digits, _ = read_experiments(engine, "mltraq.datastore")
    with pytest.raises(UnsupportedFormatError, match="file:///") as caught:
        list(digits.runs())
    assert any("experiment 'Digits 8x8'" in note for note in caught.value.__notes__)
    assert not (lab / "ran").exists()


def test_a_missing_object(engine, lab):
    shutil.rmtree(lab / "mltraq.datastore" / str(ID))
    with pytest.raises(MissingObjectError, match=r"datastore\.url"):
        list(read_experiments(engine, "mltraq.datastore"))


def test_a_missing_table(engine):
    changed("DROP TABLE experiment_digits_8x8")
    digits, _ = read_experiments(engine, "mltraq.datastore")
    with pytest.raises(UnsupportedFormatError, match="'experiment_digits_8x8' is missing"):
        list(digits.runs())


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {"runs": 1},
        {"runs": {"table_name": "t", "columns": {"serialized": [[]], "non_serialized": []}}},
        {
            "runs": {
                "table_name": "experiments",
                "columns": {"serialized": [], "non_serialized": ["unsafe_pickle"]},
            }
        },
    ],
)
def test_metadata_that_do_not_fit(engine, meta):
    data = None if meta is None else pickle.dumps(meta, protocol=5)
    changed("UPDATE experiments SET meta = ?", data)
    digits, _ = read_experiments(engine, "mltraq.datastore")
    with pytest.raises(UnsupportedFormatError, match="Digits 8x8"):
        list(digits.runs())


def test_fields_that_are_no_fields(engine):
    changed("UPDATE experiments SET fields = ?", pickle.dumps([1], protocol=5))
    with pytest.raises(DamagedObjectError, match="Digits 8x8"):
        list(read_experiments(engine, "mltraq.datastore"))
