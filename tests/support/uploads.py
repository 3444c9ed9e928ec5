"""What every store does that takes large objects in parts, and is sent requests twice."""

from __future__ import annotations

import threading

import pytest

from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage import ObjectStorage
from sqla_datastore.testing import StorageSuite
from support.object_stores import Fault, FaultProxy, Seen

Proxied = tuple[ObjectStorage, FaultProxy]

LARGE = bytes(20 << 20)


class UploadSuite(StorageSuite):
    """The suite for storages, with objects that are uploaded in parts.

    `raw_paths` also returns what has begun and is not finished.
    """

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_aborts_an_upload(
        self, storage: ObjectStorage, error: type[BaseException]
    ) -> None:
        """Nothing is there, nor parts of it."""
        with pytest.raises(error):
            self.write(storage, "runs/a.zip", LARGE, error)
        assert self.raw_paths(storage) == set()

    def test_a_large_object_never_overwrites(self, storage: ObjectStorage) -> None:
        """The name is looked up before."""
        self.raw_write(storage, "a.zip", b"first")
        with pytest.raises(StorageError, match="already exists"):
            self.write(storage, "a.zip", LARGE)
        assert self.raw_read(storage, "a.zip") == b"first"
        assert self.raw_paths(storage) == {"a.zip"}


class LostAnswerSuite:
    """What comes of requests that a store has carried out, and whose answer is lost.

    The fixture `proxied` returns an empty storage and the proxy in front of it.
    """

    @pytest.mark.parametrize("data", [b"", b"data"])
    def test_a_create_that_was_sent_twice(self, proxied: Proxied, data: bytes) -> None:
        """The second request meets the object that the first one has made."""
        storage, proxy = proxied
        _lose_first(proxy, "PUT")
        write(storage, "a.zip", data)
        assert [seen.method for seen in proxy.seen] == ["PUT", "PUT", "HEAD", "GET"]
        assert storage.open("a.zip").read(0, 9) == data

    @pytest.mark.parametrize("data", [b"other", b"date", b""])
    def test_a_collision_is_told_from_it(self, proxied: Proxied, data: bytes) -> None:
        storage, proxy = proxied
        write(storage, "a.zip", data)
        _lose_first(proxy, "PUT")
        with pytest.raises(StorageError, match="already exists"):
            write(storage, "a.zip", b"data")
        assert storage.open("a.zip").read(0, 9) == data

    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_other_requests_are_sent_again(self, proxied: Proxied, method: str) -> None:
        storage, proxy = proxied
        write(storage, "a.zip", b"data")
        _lose_first(proxy, method)
        assert storage.open("a.zip").read(0, 9) == b"data"
        storage.remove(["a.zip"])
        assert list(storage.list("")) == []

    def test_an_upload_whose_end_was_sent_twice(self, proxied: Proxied) -> None:
        """The parts that the second request names are an object already."""
        storage, proxy = proxied
        data = bytes(range(256)) * (9 << 12)
        write(storage, "a.zip", data)
        last = len(proxy.seen)
        proxy.seen.clear()
        proxy.rule = lambda seen: Fault(drop=True) if len(proxy.seen) == last else None
        write(storage, "b.zip", data)
        # it was sent again
        assert [seen.target for seen in proxy.seen].count(proxy.seen[last - 1].target) > 1
        assert storage.open("b.zip").read(0, len(data) + 1) == data


def write(storage: ObjectStorage, path: str, data: bytes) -> None:
    """Make an object."""
    with storage.create(path) as writer:
        writer.write(data)


def _lose_first(proxy: FaultProxy, method: str) -> None:
    """Lose the answer to the first request of a method."""
    lost = threading.Lock()

    def rule(seen: Seen) -> Fault | None:
        is_first = seen.method == method and lost.acquire(blocking=False)
        return Fault(drop=True) if is_first else None

    proxy.rule = rule
