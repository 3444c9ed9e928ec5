"""A pydantic field takes a value or a mapping, and its JSON is metadata."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine
from support.exactness import assert_exact

from sqla_datastore import DataStore, DataStoreType, File, inspect, prefetch
from sqla_datastore.typed import Shape

pydantic = pytest.importorskip("pydantic")
pydantic_core = pytest.importorskip("pydantic_core")
pytestmark = pytest.mark.libraries


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "pydantic_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())
    small: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=4_000))


class RunOut(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(from_attributes=True)
    data: DataStore
    small: DataStore | None = None


@pytest.fixture
def engine(tmp_path, stored):
    engine = make_engine(f"sqlite:///{tmp_path / 'runs.db'}", stored.base)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def row(engine):
    """A row as it was fetched: nothing of its values is read."""
    with Session(engine) as session, session.begin():
        value = DataStore(
            a=np.zeros((2, 3)), frame=pd.DataFrame({"x": [1]}), note="ok", inner=DataStore(k=1)
        )
        session.add(Run(id=1, data=value, small={"n": 1}))
    with Session(engine) as session:
        yield session.get(Run, 1)


def described(type_name, nbytes, dtype=None, shape=None):
    return {"type": type_name, "dtype": dtype, "shape": shape, "nbytes": nbytes}


def test_a_value_is_kept_and_a_mapping_becomes_one():
    value = DataStore(x=1)
    assert RunOut(data=value).data is value
    made = RunOut(data={"x": 1, "a": np.zeros(2)}).data
    assert type(made) is DataStore
    assert list(made) == ["x", "a"]
    assert RunOut.model_validate_json('{"data": {"x": [1, 2]}}').data == {"x": [1, 2]}


def test_python_mode_keeps_the_value():
    model = RunOut(data={"x": 1})
    assert model.model_dump()["data"] is model.data


def test_a_row_is_read_from_its_attributes(row):
    model = RunOut.model_validate(row)
    assert model.data is row.data


def test_json_is_metadata_and_reads_no_payload(row):
    dumped = json.loads(RunOut.model_validate(row).model_dump_json())
    assert dumped["data"]["url"] == row.data.url
    entries = dumped["data"]["entries"]
    assert entries["a"] == described("numpy.ndarray", 48, "float64", [2, 3])
    assert entries["note"] == described("str", 2)
    assert entries["frame"]["type"] == "pandas.DataFrame"
    assert entries["inner"]["type"] == "DataStore"
    assert inspect(row.data).loaded == ()


def test_a_file_is_told_by_name_content_type_and_size():
    file = File(io.BytesIO(b"a,b"), "../loss.csv")
    dumped = RunOut(data=DataStore(f=file)).model_dump(mode="json")["data"]["entries"]
    assert dumped == {"f": {**described("File", 3, "text/csv"), "file_name": "loss.csv"}}


def test_a_value_in_its_row_does_not_show_itself_as_its_url(row):
    assert row.small.url.startswith("data:")
    dumped = RunOut.model_validate(row).model_dump(mode="json")
    assert dumped["small"]["url"] is None
    assert dumped["small"]["entries"]["n"]["type"] == "int"


def test_a_value_that_is_not_stored_has_metadata_too():
    dumped = RunOut(data={"a": np.zeros(2)}).model_dump(mode="json")["data"]
    assert dumped == {"url": None, "entries": {"a": described("numpy.ndarray", 16, "float64", [2])}}


def test_names_of_any_kind_become_json():
    # the first one is refused when it is stored
    dumped = RunOut(data=DataStore({"\udc80": 1, "<b>": 2, "{x}": 3})).model_dump_json()
    assert list(json.loads(dumped)["data"]["entries"]) == ["\\udc80", "<b>", "{x}"]


def test_the_json_schemas_say_what_goes_in_and_what_comes_out():
    goes_in = RunOut.model_json_schema(mode="validation")["properties"]["data"]
    assert goes_in["type"] == "object"
    comes_out = RunOut.model_json_schema(mode="serialization")
    assert comes_out["properties"]["data"]["$ref"] == "#/$defs/DataStoreMetadata"
    assert list(comes_out["$defs"]["EntryMetadata"]["properties"]) == [
        "type",
        "dtype",
        "shape",
        "nbytes",
        "file_name",
    ]
    assert "file_name" not in comes_out["$defs"]["EntryMetadata"]["required"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"{b}": [object()]}}, r"entry .*\{b\}.* cannot be stored"),
        ({1: 2}, "the name of an entry is a str, not 'int'"),
        (None, "a DataStore or a mapping is needed here, not 'NoneType'"),
        ("text", "a DataStore or a mapping is needed here, not 'str'"),
    ],
)
def test_what_cannot_be_stored_is_a_validation_error_with_our_message(value, message):
    with pytest.raises(pydantic.ValidationError, match=message) as caught:
        RunOut(data=value)
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"]) == ("datastore", ("data",))


@dataclass
class Features:
    weights: Annotated[npt.NDArray[np.float64], Shape(None, 3)]
    note: str = ""


class TypedOut(pydantic.BaseModel):
    data: DataStore[Features]


def test_a_mapping_is_checked_by_the_schema_of_its_field():
    value = TypedOut(data={"weights": np.zeros((2, 3))}).data
    assert value.weights.shape == (2, 3)
    with pytest.raises(pydantic.ValidationError, match=r"entry 'weights' .* shape is \(3,\)"):
        TypedOut(data={"weights": np.zeros(3)})
    with pytest.raises(pydantic.ValidationError, match="Features has no entry 'bias'"):
        TypedOut(data={"weights": np.zeros((2, 3)), "bias": 1})


def test_a_value_is_checked_by_the_schema_of_its_field_until_it_is_stored(row):
    with pytest.raises(pydantic.ValidationError, match="type str, not numpy"):
        TypedOut(data=DataStore(weights="heavy"))
    row.data.note  # noqa: B018 - what is loaded is not looked at either
    assert TypedOut(data=row.data).data is row.data


def test_json_that_is_no_object_is_refused():
    with pytest.raises(pydantic.ValidationError, match=r"valid dictionary|an object"):
        RunOut.model_validate_json('{"data": [1]}')


def test_a_missing_object_is_said(row, stored):
    (stored.base / row.data.url.removeprefix("file:///")).unlink()
    with pytest.raises(
        pydantic_core.PydanticSerializationError, match=r"MissingObjectError: .*no object"
    ):
        RunOut.model_validate(row).model_dump_json()


def test_what_was_validated_can_be_stored(engine, stored):
    model = RunOut(data={"x": 1})
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=model.data))
    with Session(engine) as session:
        assert session.get(Run, 1).data == {"x": 1}
    assert_exact(engine, Base.metadata, stored, 1)


def test_no_keys_prefetch_names_and_sizes_alone(row):
    prefetch([row], Run.data, [])
    assert row.data._entries is not None
    assert inspect(row.data).loaded == ()


def test_pydantic_is_imported_when_it_asks():
    script = "import sqla_datastore.types, sys; print('pydantic_core' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
