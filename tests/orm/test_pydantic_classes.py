"""A mapped class of SQLModel behaves as one of SQLAlchemy alone."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Column
from sqlalchemy.orm import registry
from support.databases import make_engine
from support.exactness import assert_exact

from sqla_datastore import DataStore, DataStoreType, UnsupportedTypeError

sqlmodel = pytest.importorskip("sqlmodel")
pytestmark = pytest.mark.libraries


class Model(sqlmodel.SQLModel, registry=registry()):
    pass


class RunBase(Model):
    title: str = ""
    data: DataStore = sqlmodel.Field(sa_type=DataStoreType)


class Run(RunBase, table=True):
    __tablename__ = "sqlmodel_runs"
    id: int | None = sqlmodel.Field(default=None, primary_key=True)
    more: DataStore | None = sqlmodel.Field(
        default=None, sa_column=Column(DataStoreType(folder="{table}/{pk}"), nullable=True)
    )


class RunOut(RunBase):
    id: int


@pytest.fixture
def engine(tmp_path, stored):
    engine = make_engine(f"sqlite:///{tmp_path / 'runs.db'}", stored.base)
    Model.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine):
    with sqlmodel.Session(engine) as session:
        yield session


@pytest.mark.parametrize("make", [lambda fields: Run(**fields), Run.model_validate])
def test_a_mapping_is_a_value_at_once(session, make):
    run = make({"data": {"x": [1]}})
    assert type(run.data) is DataStore
    run.data.y = 2
    session.add(run)
    session.commit()
    assert run.data == {"x": [1], "y": 2}


def test_an_assigned_mapping_is_a_value_at_once_and_its_edits_are_saved(engine, session, stored):
    run = Run(data={"x": 1}, more={"a": np.zeros(3)})
    session.add(run)
    session.commit()
    run.data = {"y": [1]}
    assert type(run.data) is DataStore
    run.data["z"] = 3
    session.flush()
    run.data.y.append(2)
    session.commit()
    assert run.data == {"y": [1, 2], "z": 3}
    assert_exact(engine, Model.metadata, stored, 2)
    run.sqlmodel_update({"data": {"k": 1}})
    assert type(run.data) is DataStore
    run.more = None
    session.commit()
    assert (run.data, run.more) == ({"k": 1}, None)
    assert_exact(engine, Model.metadata, stored, 1)


def test_a_rollback_restores_the_value(engine, session, stored):
    run = Run(data={"x": 1})
    session.add(run)
    session.commit()
    run.data = {"x": 2}
    session.flush()
    session.rollback()
    assert run.data == {"x": 1}
    assert_exact(engine, Model.metadata, stored, 1)


def test_what_is_no_value_is_refused_and_leaves_the_attribute(session):
    run = Run(data={"x": 1})
    with pytest.raises(UnsupportedTypeError, match="'data' takes a DataStore, a dict or None"):
        run.data = 5
    assert run.data == {"x": 1}


def test_rows_go_out_as_metadata(session):
    session.add(Run(title="first", data={"x": 1}))
    session.commit()
    run = session.exec(sqlmodel.select(Run)).one()
    out = RunOut.model_validate(run).model_dump(mode="json")
    assert out["data"]["url"] == run.data.url
    assert out["data"]["entries"]["x"]["type"] == "int"
    assert run.model_dump()["data"] is run.data
