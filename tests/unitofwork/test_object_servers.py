"""Transactions on servers of object stores: rows and objects agree, and nothing stays behind."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from support.buckets import BUCKETS
from support.databases import make_engine
from support.models import Base, Keyed
from support.object_stores import StoredInBucket
from support.scenarios import SCENARIOS
from support.stage import Stage

from sqla_datastore import DataStore, options
from sqla_datastore.exceptions import StorageError

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.servers
# the others run on moto's S3
SOME = [
    *("insert_rows", "replace", "delete_rows_that_own_folders", "savepoints", "edit_in_place"),
    *("bulk_statements", "cascade_to_a_declared_folder", "rolled_back"),
]


@pytest.fixture(scope="module", params=BUCKETS)
def bucket(request, new_bucket):
    return new_bucket(request.param)


@pytest.fixture(scope="module")
def stage(bucket, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "storage_options", bucket.storage_options)
        stored = StoredInBucket(bucket.base, bucket.client)
        stage = Stage(f"sqlite:///{tmp_path_factory.mktemp('db') / 'test.db'}", stored)
        yield stage
        stage.close()


@pytest.mark.parametrize("name", SOME)
def test_a_unit_of_work_is_exact(stage, name):
    stage.assert_does(SCENARIOS[name])


@pytest.mark.parametrize("bucket", ["seaweedfs", "azurite"], indirect=True)
def test_a_wrong_secret_fails_the_flush(bucket, tmp_path, monkeypatch):
    engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", bucket.base)
    Base.metadata.create_all(engine)
    stored = StoredInBucket(bucket.base, bucket.client)
    stored.put_back({})
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
    engine.dispose()
