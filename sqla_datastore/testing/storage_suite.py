"""The conformance suite of storages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sqla_datastore.exceptions import MissingObjectError, RefusedURLError, StorageError
from sqla_datastore.storage.protocol import TAIL_BYTES, ObjectReader, Storage, StoredObject

_MIB = 1024 * 1024
_PIECE = 1_000_003


class StorageSuite:
    """What every `Storage` keeps, one promise a test.

    The fixture ``storage`` gives a fresh, empty storage. The three ``raw_`` methods reach its
    objects without the code under test, so that two mistakes in it cannot hide each other.
    """

    @pytest.fixture
    def storage(self) -> Storage:
        """Return a fresh, empty storage."""
        raise NotImplementedError

    def raw_read(self, storage: Storage, path: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""
        raise NotImplementedError

    def raw_write(self, storage: Storage, path: str, data: bytes) -> None:
        """Make an object."""
        raise NotImplementedError

    def raw_paths(self, storage: Storage) -> set[str]:
        """Return the paths of everything that lies in the storage, unfinished writes included."""
        raise NotImplementedError

    def write(
        self, storage: Storage, path: str, data: bytes, error: type[BaseException] | None = None
    ) -> None:
        """Write an object through the storage; with an `error`, fail before it is published."""
        with storage.create(path) as writer:
            writer.write(data)
            if error is not None:
                raise error

    def test_what_is_written_can_be_read(self, storage: Storage) -> None:
        """An object holds the written pieces in their order."""
        with storage.create("runs/1/a.zip") as writer:
            writer.write(b"first ")
            writer.write(memoryview(b"second"))
        assert self.raw_read(storage, "runs/1/a.zip") == b"first second"

    def test_a_buffer_may_be_reused_after_write(self, storage: Storage) -> None:
        """`write` has taken what is in its buffer when it returns."""
        buffer = bytearray(b"aaaa")
        with storage.create("a.zip") as writer:
            writer.write(buffer)
            buffer[:] = b"bbbb"
            writer.write(buffer)
        assert self.raw_read(storage, "a.zip") == b"aaaabbbb"

    def test_large_objects_are_written_whole(self, storage: Storage) -> None:
        """An object larger than any buffer, of pieces that come in one that is used again."""
        data = b"".join(number.to_bytes(4, "big") for number in range(5 * _MIB))
        buffer = memoryview(bytearray(_PIECE))
        with storage.create("a.zip") as writer:
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                buffer[: len(piece)] = piece
                writer.write(buffer[: len(piece)])
            buffer[:] = bytes(_PIECE)
        assert self.raw_read(storage, "a.zip") == data

    def test_an_empty_object_is_one(self, storage: Storage) -> None:
        """Zero bytes are an object too."""
        self.write(storage, "a.zip", b"")
        assert self.raw_read(storage, "a.zip") == b""
        assert storage.open("a.zip").size_bytes == 0

    def test_nothing_is_seen_before_the_block_ends(self, storage: Storage) -> None:
        """An unfinished object is neither listed nor opened."""
        with storage.create("runs/a.zip") as writer:
            writer.write(b"data")
            assert list(storage.list("")) == []
            with pytest.raises(MissingObjectError):
                storage.open("runs/a.zip")

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_leaves_nothing(
        self, storage: Storage, error: type[BaseException]
    ) -> None:
        """An exception in the block passes through, and no byte stays."""
        with pytest.raises(error):
            self.write(storage, "runs/a.zip", b"data", error)
        assert self.raw_paths(storage) == set()

    def test_an_object_is_never_overwritten(self, storage: Storage) -> None:
        """A second object of the same path is an error, the first one stays."""
        self.raw_write(storage, "runs/a.zip", b"first")
        with pytest.raises(StorageError):
            self.write(storage, "runs/a.zip", b"second")
        assert self.raw_read(storage, "runs/a.zip") == b"first"
        assert self.raw_paths(storage) == {"runs/a.zip"}

    def test_one_of_many_concurrent_writers_wins(self, storage: Storage) -> None:
        """Of writers of one path exactly one succeeds, and its object is whole."""
        barrier = threading.Barrier(4)

        def attempt(number: int) -> int | None:
            try:
                with storage.create("runs/a.zip") as writer:
                    writer.write(bytes([number]) * 1000)
                    barrier.wait(timeout=30)
            except StorageError:
                return None
            return number

        with ThreadPoolExecutor(4) as pool:
            winners = [number for number in pool.map(attempt, range(4)) if number is not None]
        assert len(winners) == 1
        assert self.raw_read(storage, "runs/a.zip") == bytes(winners) * 1000

    def test_ranges_are_read(self, storage: Storage) -> None:
        """`read` and `view` return the range; at the end, what is there."""
        data = bytes(range(256)) * 2048
        self.raw_write(storage, "a.zip", data)
        reader = storage.open("a.zip")
        for get in _reads(reader):
            assert bytes(get(0, 10)) == data[:10]
            assert bytes(get(1000, 300_000)) == data[1000:301_000]
            assert bytes(get(len(data) - 5, 100)) == data[-5:]
            assert bytes(get(len(data) + 5, 100)) == b""
            assert bytes(get(7, 0)) == b""

    def test_a_lying_size_allocates_nothing(self, storage: Storage) -> None:
        """A range far beyond the end costs what is there."""
        self.raw_write(storage, "a.zip", b"data")
        for get in _reads(storage.open("a.zip")):
            assert bytes(get(0, 2**60)) == b"data"

    def test_many_ranges_are_read(self, storage: Storage) -> None:
        """`read_many` returns each range, near or far, in the order that was asked for."""
        data = bytes(range(256)) * (4 * _MIB // 256)
        self.raw_write(storage, "a.zip", data)
        ranges = [(7, 10), (17, 0), (3 * _MIB, 300_000), (0, 5), (len(data) - 5, 100)]
        found = storage.open("a.zip").read_many(ranges)
        assert [bytes(each) for each in found] == [data[at : at + size] for at, size in ranges]
        assert all(each.readonly for each in found)
        assert storage.open("a.zip").read_many([]) == []

    @pytest.mark.parametrize("size", [0, 10, TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, _MIB])
    def test_the_tail_is_read(self, storage: Storage, size: int) -> None:
        """What opening reads is given out once and again, whole and in parts."""
        data = bytes(number % 251 for number in range(size))
        self.raw_write(storage, "a.zip", data)
        reader = storage.open("a.zip")
        start = max(0, size - TAIL_BYTES)
        for _ in range(2):
            assert reader.size_bytes == size
            assert reader.read(start, TAIL_BYTES) == data[start:]
            assert reader.read(max(0, size - 7), 7) == data[-7:]
            assert bytes(reader.view(max(0, size - 7), 3)) == data[-7:][:3]

    def test_views_are_read_only(self, storage: Storage) -> None:
        """Nobody changes an object through a view of it."""
        self.raw_write(storage, "a.zip", bytes(_MIB))
        reader = storage.open("a.zip")
        assert reader.view(0, 10).readonly
        assert reader.view(0, _MIB).readonly

    def test_a_view_outlives_its_reader(self, storage: Storage) -> None:
        """A view stays readable without the reader, and after the object was removed."""
        data = bytes(range(256)) * 4096
        self.raw_write(storage, "a.zip", data)
        view = storage.open("a.zip").view(0, len(data))
        storage.remove(["a.zip"])
        assert bytes(view) == data

    def test_readers_are_thread_safe(self, storage: Storage) -> None:
        """Many threads read one reader."""
        data = bytes(range(256)) * 4096
        self.raw_write(storage, "a.zip", data)
        reader = storage.open("a.zip")

        def get(start: int) -> bool:
            return bytes(reader.view(start, 200_000)) == data[start : start + 200_000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(get, range(0, 800_000, 10_000)))

    def test_size_bytes(self, storage: Storage) -> None:
        """An object's size, with and without a reader."""
        self.raw_write(storage, "runs/a.zip", b"12345")
        assert storage.size_bytes("runs/a.zip") == 5
        assert storage.open("runs/a.zip").size_bytes == 5

    def test_a_missing_object_is_named(self, storage: Storage) -> None:
        """Opening and sizing what is not there names the URL."""
        self.raw_write(storage, "runs/a.zip", b"12345")
        for path in ("runs/b.zip", "other/a.zip", "runs/a.zip/b.zip"):
            for call in (storage.open, storage.size_bytes):
                with pytest.raises(MissingObjectError) as caught:
                    call(path)
                assert caught.value.url == f"{storage.scheme}:///{path}"

    def test_an_object_that_went_away_is_missing(self, storage: Storage) -> None:
        """A reader of a removed object says so, or still reads it."""
        self.raw_write(storage, "a.zip", b"12345")
        reader = storage.open("a.zip")
        storage.remove(["a.zip"])
        try:
            assert reader.read(0, 5) == b"12345"
        except MissingObjectError as err:
            assert err.url == f"{storage.scheme}:///a.zip"  # noqa: PT017 - both are right

    def test_a_listing_has_objects_at_any_depth(self, storage: Storage) -> None:
        """Each once, in any order."""
        paths = ["a-b/x.zip", "a/x.zip", "a.zip", "a0/y/z.zip", "a0/y.zip", "b.zip", "a/-.zip"]
        for number, path in enumerate(paths):
            self.raw_write(storage, path, bytes(number))
        listed = list(storage.list(""))
        assert sorted(found.path for found in listed) == sorted(paths)
        assert {found.path: found.size_bytes for found in listed} == {
            path: number for number, path in enumerate(paths)
        }

    def test_a_folder_is_no_prefix(self, storage: Storage) -> None:
        """The listing of ``runs/1`` holds nothing of ``runs/10``."""
        for path in ("runs/1/a.zip", "runs/10/a.zip", "runs/1.zip"):
            self.raw_write(storage, path, b"")
        assert [found.path for found in storage.list("runs/1")] == ["runs/1/a.zip"]

    def test_a_listing_tells_the_time(self, storage: Storage) -> None:
        """`modified` is in seconds since the epoch."""
        self.write(storage, "a.zip", b"")
        (found,) = storage.list("")
        assert isinstance(found, StoredObject)
        assert found.modified > 1_600_000_000

    @pytest.mark.parametrize("folder", ["", "runs", "runs/1"])
    def test_a_missing_folder_is_empty(self, storage: Storage, folder: str) -> None:
        """Listing what is not there is no error."""
        assert list(storage.list(folder)) == []

    def test_remove_takes_what_it_is_told(self, storage: Storage) -> None:
        """Named objects go, others stay, gone ones are no error."""
        for path in ("runs/1/a.zip", "runs/1/b.zip", "runs/2/a.zip"):
            self.raw_write(storage, path, b"")
        storage.remove(["runs/1/a.zip", "runs/3/x.zip", "runs/2/a.zip"])
        storage.remove(["runs/1/a.zip"])
        assert self.raw_paths(storage) == {"runs/1/b.zip"}

    def test_remove_nothing(self, storage: Storage) -> None:
        """No paths, nothing to do, nothing to make."""
        storage.remove([])
        storage.make_durable([])
        assert self.raw_paths(storage) == set()

    def test_a_base_that_holds_something_exists(self, storage: Storage) -> None:
        """`exists` sees what was written; asking makes nothing."""
        storage.exists()
        assert self.raw_paths(storage) == set()
        self.write(storage, "runs/a.zip", b"data")
        assert storage.exists()

    def test_a_storage_is_a_place(self, storage: Storage) -> None:
        """`place` is the same each time, and a storage equals itself."""
        assert storage.place == storage.place != ""
        assert {storage: 1}[storage] == 1  # its hash, and that it equals itself

    def test_make_durable_is_idempotent(self, storage: Storage) -> None:
        """Once, twice, many at once."""
        paths = [f"runs/{number}/a.zip" for number in range(20)]
        for path in paths:
            self.write(storage, path, b"data")
        storage.make_durable(paths)
        storage.make_durable(paths[:1])
        assert self.raw_paths(storage) == set(paths)

    @pytest.mark.parametrize(
        "path", ["../a.zip", "a/../../b.zip", "/etc/passwd", "", "a//b", "a%2Fb"]
    )
    def test_no_path_leaves_the_base(self, storage: Storage, path: str) -> None:
        """Every call refuses a path that could leave the base."""
        for call in (storage.open, storage.size_bytes, lambda p: storage.remove([p])):
            with pytest.raises(RefusedURLError):
                call(path)
        with pytest.raises(RefusedURLError):
            self.write(storage, path, b"data")
        assert self.raw_paths(storage) == set()

    def test_a_folder_that_empties_meanwhile_is_made_again(self, storage: Storage) -> None:
        """Writers and removers of one folder do not fail each other."""

        def churn(number: int) -> None:
            for turn in range(20):
                path = f"runs/1/{number}-{turn}.zip"
                self.write(storage, path, b"data")
                storage.remove([path])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(churn, range(4)))
        assert self.raw_paths(storage) == set()

    def test_url_has_the_scheme(self, storage: Storage) -> None:
        """`url` is for messages: it begins with the scheme."""
        assert storage.url.startswith(f"{storage.scheme}:")


def _reads(reader: ObjectReader) -> list[Callable[[int, int], bytes | memoryview]]:
    return [reader.read, reader.view]
