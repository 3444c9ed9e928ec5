"""Servers of object stores that refuse, or list in an order of their own."""

from __future__ import annotations

import time
import uuid

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from support.databases import make_engine
from support.models import Base, Keyed, Texts
from support.object_stores import StoredInBucket

from sqla_datastore import DataStore, options
from sqla_datastore.exceptions import StorageError
from sqla_datastore.maintenance import check, gc

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def bucket(request, new_bucket):
    return new_bucket(request.param)


@pytest.fixture
def stored(bucket):
    """The bucket, empty, seen without the library."""
    stored = StoredInBucket(bucket.base, bucket.client)
    stored.put_back({})
    return stored


@pytest.fixture
def engine(bucket, stored, tmp_path, monkeypatch):
    """An engine that is bound to the bucket."""
    monkeypatch.setattr(options, "storage_options", bucket.storage_options)
    engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", bucket.base)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("bucket", ["seaweedfs", "azurite"], indirect=True)
def test_a_wrong_secret_fails_the_flush(bucket, engine, stored, monkeypatch):
    with Session(engine) as session:
        monkeypatch.setattr(options, "storage_options", bucket.wrong_options)
        session.add(Keyed(id=1, data=DataStore(a=1)))
        begin = time.monotonic()
        with pytest.raises(StorageError, match="credentials"):
            session.flush()
        assert time.monotonic() - begin < 10  # request_seconds are 30: it was not tried again
        session.rollback()
        assert session.scalars(select(Keyed)).all() == []
        assert stored.files() == set()

        monkeypatch.setattr(options, "storage_options", bucket.storage_options)
        session.add(Keyed(id=1, data=DataStore(a=1)))
        session.commit()
        assert session.get(Keyed, 1).data.a == 1
        assert len(stored.files()) == 1


@pytest.mark.parametrize("bucket", ["seaweedfs"], indirect=True)
def test_a_store_that_lists_folder_by_folder(bucket, engine, stored):
    """SeaweedFS has all of ``a/`` before ``a-b/``."""
    with Session(engine) as session, session.begin():
        session.add_all(Texts(id=name, data=DataStore(a=1)) for name in ("a", "a-b", "a.b", "a0"))
    assert check(engine, Base.metadata, deep=True).is_clean
    kept = stored.files()
    orphan = f"texts/a/{uuid.uuid4().hex}.zip"
    stored.put_back({**stored.tree(), orphan: b"x"})
    assert [each.path for each in check(engine, Base.metadata).orphans] == [orphan]
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 1
    assert stored.files() == kept
