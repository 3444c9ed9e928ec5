"""Object stores on servers that are stricter than moto, and by the clients of other clouds."""

from __future__ import annotations

import time

import pytest
from support.buckets import BUCKETS, WRONG_SECRET
from support.object_stores import proxy_in_front
from support.servers import SECRET
from support.uploads import LostAnswerSuite, UploadSuite, write

from sqla_datastore import options
from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage import ObjectStorage

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.servers
MIB = 1024 * 1024


@pytest.fixture(params=BUCKETS)
def bucket(request, new_bucket, monkeypatch):
    """An empty bucket, and the options that reach it."""
    bucket = new_bucket(request.param)
    monkeypatch.setattr(options, "storage_options", bucket.storage_options)
    return bucket


class TestServers(UploadSuite):
    PREFIX = "base/"

    @pytest.fixture
    def storage(self, bucket):
        self.bucket = bucket
        return ObjectStorage.at(bucket.base)

    def raw_read(self, storage, path):
        try:
            return bytes(obstore.get(self.bucket.client, self.PREFIX + path).bytes())
        except FileNotFoundError:
            return None

    def raw_write(self, storage, path, data):
        obstore.put(self.bucket.client, self.PREFIX + path, data)

    def raw_paths(self, storage):
        keys = {found["path"] for page in obstore.list(self.bucket.client) for found in page}
        return {key.removeprefix(self.PREFIX) for key in keys | self.bucket.unfinished()}


class TestLostAnswers(LostAnswerSuite):
    @pytest.fixture
    def proxied(self, bucket):
        with proxy_in_front() as (proxy, reached), options.using(storage_options=reached):
            yield ObjectStorage.at(bucket.base), proxy


CALLS = {
    "create": lambda storage: write(storage, "runs/b.zip", b"data"),
    "upload": lambda storage: write(storage, "runs/b.zip", bytes(9 * MIB)),
    "open": lambda storage: storage.open("runs/a.zip"),
    "size_bytes": lambda storage: storage.size_bytes("runs/a.zip"),
    "list": lambda storage: list(storage.list("runs")),
    "remove": lambda storage: storage.remove(["runs/a.zip"]),
}


@pytest.mark.parametrize("bucket", ["seaweedfs", "azurite"], indirect=True)
class TestWrongSecrets:
    @pytest.fixture
    def storage(self, bucket):
        """A storage with one object."""
        storage = ObjectStorage.at(bucket.base)
        write(storage, "runs/a.zip", b"data")
        return storage

    def keys(self, bucket):
        return {found["path"] for page in obstore.list(bucket.client) for found in page}

    @pytest.mark.parametrize("call", CALLS)
    def test_they_are_our_error_at_once(self, bucket, storage, monkeypatch, call):
        monkeypatch.setattr(options, "storage_options", bucket.wrong_options)
        begin = time.monotonic()
        with pytest.raises(StorageError, match="credentials") as caught:
            CALLS[call](storage)
        assert time.monotonic() - begin < 10  # request_seconds are 30: it was not tried again
        text = str(caught.value)
        assert storage.url in text
        assert "\n" not in text
        assert SECRET not in text
        assert WRONG_SECRET not in text
        assert self.keys(bucket) == {"base/runs/a.zip"}
        assert bucket.unfinished() == set()

    def test_right_ones_work_again(self, bucket, storage, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(options, "storage_options", bucket.wrong_options)
            with pytest.raises(StorageError):
                storage.open("runs/a.zip")
        assert storage.open("runs/a.zip").read(0, 9) == b"data"
        storage.remove(["runs/a.zip"])
        assert self.keys(bucket) == set()


@pytest.mark.parametrize("bucket", ["seaweedfs"], indirect=True)
def test_folders_that_are_listed_one_after_another(bucket):
    """SeaweedFS has all of ``a/`` before ``a-b/``."""
    paths = {f"runs/{folder}/a.zip" for folder in ("a", "a-b", "a.b", "a0")}
    storage = ObjectStorage.at(bucket.base)
    for path in paths:
        write(storage, path, b"data")
    assert {found.path for found in storage.list("runs")} == paths
    assert [found.path for found in storage.list("runs/a")] == ["runs/a/a.zip"]


@pytest.mark.parametrize("call", ["create", "upload", "list", "remove"])
def test_a_missing_bucket(bucket, call):
    scheme, _, name = bucket.base.partition("://")
    with pytest.raises(StorageError, match="make it"):
        CALLS[call](ObjectStorage.at(f"{scheme}://nowhere-{name}"))
