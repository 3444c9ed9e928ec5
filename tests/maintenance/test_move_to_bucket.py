"""`move` between a folder and a bucket of S3, and back."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.object_stores import request, s3_options

from sqla_datastore import DataStore, DataStoreType, bind_storage, options
from sqla_datastore.maintenance import check, move
from sqla_datastore.storage.binding import open_storage

pytest.importorskip("obstore")


class Base(DeclarativeBase):
    """The table of this module."""


class Run(Base):
    """A row with a value."""

    __tablename__ = "runs_to_a_bucket"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):
    """The URL of an empty bucket."""
    name = f"b-{uuid.uuid4().hex}"
    request(s3_endpoint, "PUT", f"/{name}")
    monkeypatch.setattr(options, "storage_options", s3_options(s3_endpoint))
    return f"s3://{name}/results"


def test_to_a_bucket_and_back(tmp_path, stored, bucket):
    engine = create_engine(f"sqlite:///{tmp_path / 'runs.db'}")
    bind_storage(engine, stored.base)
    Base.metadata.create_all(engine)
    values = {n: np.arange(n * 1_000) for n in range(6)}
    with Session(engine) as session, session.begin():
        session.add_all(
            Run(id=n, data=DataStore(a=a, inner=DataStore(n=n))) for n, a in values.items()
        )
    before = stored.files()

    def assert_moved(scheme):
        assert check(engine, Base.metadata, deep=True).is_clean
        with Session(engine) as session:
            rows = session.scalars(select(Run)).all()
            assert {row.data.url.partition(":")[0] for row in rows} == {scheme}
            assert all(np.array_equal(row.data.a, values[row.id]) for row in rows)
            assert all(row.data.inner.n == row.id for row in rows)

    there = move(engine, Base.metadata, stored.base, bucket, apply=True)
    assert there.copied == len(before) == 12
    bind_storage(engine, bucket)
    assert move(engine, Base.metadata, stored.base, bucket, apply=True, remove_source=True).is_clean
    assert stored.files() == set()
    assert_moved("s3")
    assert {found.path for found in open_storage(bucket).list("")} == before

    move(engine, Base.metadata, bucket, stored.base, apply=True)
    bind_storage(engine, stored.base)
    assert move(engine, Base.metadata, bucket, stored.base, apply=True, remove_source=True).is_clean
    assert list(open_storage(bucket).list("")) == []
    assert_moved("file")
    assert stored.files() == before
    engine.dispose()
