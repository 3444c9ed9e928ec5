"""Objects outside of transactions: written whole and durable, read in ranges, removed by name."""

from __future__ import annotations

import io
import itertools
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.values import store
from support.watched import Watched

from sqla_datastore import (
    DamagedObjectError,
    DataStore,
    DataStoreIO,
    MissingObjectError,
    RefusedURLError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedTypeError,
    bind_storage,
    options,
)
from sqla_datastore.storage import LocalStorage
from sqla_datastore.value import batch as datastore_batch
from sqla_datastore.value import io as datastore_io


@pytest.fixture
def base(tmp_path):
    return tmp_path / "storage"


@pytest.fixture(autouse=True)
def _default_storage(base):
    options.url = base
    yield
    options.url = None


def files(base):
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


class Endless:
    """A stream of so many bytes, which remembers the largest piece that was asked for."""

    def __init__(self, size: int, fail_at: int | None = None) -> None:
        self.left, self.largest, self.fail_at = size, 0, fail_at

    def read(self, size: int) -> bytes:
        self.largest = max(self.largest, size)
        if self.fail_at is not None and self.left <= self.fail_at:
            raise ConnectionError("the peer went away")
        piece = b"x" * min(size, self.left)
        self.left -= len(piece)
        return piece


class TestWrite:
    @pytest.mark.parametrize(
        ("data", "wanted"),
        [
            (b"abc", b"abc"),
            (bytearray(b"abc"), b"abc"),
            (memoryview(b"abcdef")[::2], b"ace"),
            (b"", b""),
            (np.arange(3, dtype="<i2"), b"\0\0\1\0\2\0"),
            (np.arange(4, dtype="<i2").reshape(2, 2).T, b"\0\0\2\0\1\0\3\0"),
            (np.ones(1, "<c8"), np.ones(1, "<c8").tobytes()),
            (np.ones((0, 3)), b""),
            (io.BytesIO(b"abc"), b"abc"),
            (io.BytesIO(), b""),
        ],
    )
    def test_bytes_and_streams(self, data, wanted):
        written = DataStoreIO.write(data, relative_path_prefix="p")
        assert written.read() == wanted
        assert written.size_bytes == len(wanted)
        assert DataStoreIO(written.url).read() == wanted

    def test_streams_are_read_in_pieces(self):
        stream = Endless(5_000_000)
        assert DataStoreIO.write(stream, "p").size_bytes == 5_000_000
        assert stream.largest <= 2**20

    def test_a_stream_is_read_from_where_it_stands(self):
        stream = io.BytesIO(b"abcdef")
        stream.seek(4)
        assert DataStoreIO.write(stream, "p").read() == b"ef"

    def test_a_stream_that_fails_leaves_nothing(self, base):
        with pytest.raises(ConnectionError):
            DataStoreIO.write(Endless(5_000_000, fail_at=1_000_000), "p")
        assert not base.exists() or files(base) == []

    @pytest.mark.parametrize("data", ["text", 1, None, [1], io.StringIO("text")])
    def test_text_and_values_are_refused(self, data, base):
        with pytest.raises(TypeError):
            DataStoreIO.write(data, "p")
        assert not base.exists() or files(base) == []

    def test_every_object_is_new(self, base):
        urls = {DataStoreIO.write(b"a", "p").url for _ in range(3)}
        assert len(urls) == 3
        assert all(re.fullmatch(r"file:///p/[0-9a-f]{32}\.bin", url) for url in urls)

    def test_durable_before_it_returns(self, base):
        class Recording(LocalStorage):
            durable: list[str] = []

            def make_durable(self, paths):
                self.durable += paths

        storage = Recording(base)
        written = [
            DataStoreIO.write(b"a", "p", storage),
            DataStoreIO.serialize_write(DataStore(n=DataStore()), "p", storage),
        ]
        assert len(storage.durable) == 3
        assert all(each.url.removeprefix("file:///") in storage.durable for each in written)

    def test_what_cannot_be_made_durable_is_removed(self, base):
        class Failing(LocalStorage):
            def make_durable(self, paths):
                raise StorageError("disk on fire")

        with pytest.raises(StorageError, match="fire"):
            DataStoreIO.serialize_write(DataStore(n=DataStore()), "p", Failing(base))
        assert files(base) == []

    def test_another_storage(self, base, tmp_path):
        other = tmp_path / "other"
        for storage in (other, str(other), LocalStorage(other)):
            written = DataStoreIO.write(b"a", "p", storage=storage)
            assert written.read() == b"a"
            assert not DataStoreIO(written.url).exists()
            assert DataStoreIO(written.url, storage=storage).exists()
        assert len(files(other)) == 3

    @pytest.mark.parametrize("way", ["engine", "connection", "session", "scoped"])
    def test_the_storage_of_an_engine(self, base, tmp_path, way):
        engine = create_engine("sqlite://")
        bind_storage(engine, tmp_path / "bound")
        with engine.connect() as connection, Session(engine) as session:
            scoped = scoped_session(sessionmaker(engine))
            given = {
                "engine": engine.execution_options(),
                "connection": connection,
                "session": session,
                "scoped": scoped,
            }[way]
            check_bound(given, tmp_path / "bound")
        engine.dispose()
        assert not base.exists()

    def test_the_storage_of_an_async_engine(self, base, tmp_path):
        engine = create_async_engine("sqlite+aiosqlite://")
        bind_storage(engine, tmp_path / "bound")
        for given in (engine, engine.connect(), AsyncSession(engine)):
            check_bound(given, tmp_path / "bound")
        assert not base.exists()

    def test_an_engine_without_a_binding_means_the_default(self, base):
        engine = create_engine("sqlite://")
        assert DataStoreIO.write(b"a", "p", engine).exists()
        assert len(files(base)) == 1
        engine.dispose()

    @pytest.mark.parametrize("storage", [1, object(), b"x", ["s"]])
    def test_what_is_no_storage_is_refused(self, storage):
        url = f"file:///p/{'0' * 32}.bin"
        for act in (
            lambda: DataStoreIO(url, storage=storage),
            lambda: DataStoreIO.write(b"a", "p", storage),
            lambda: DataStoreIO.serialize_write(1, "p", storage),
            lambda: DataStoreIO.delete("p", storage),
            lambda: DataStoreIO.batch(storage),
            lambda: DataStore.from_url(url, storage=storage),
        ):
            with pytest.raises(TypeError):
                act()


class Counting(LocalStorage):
    """Remembers what each call of `make_durable` got."""

    def __init__(self, base):
        super().__init__(base)
        self.calls = []

    def make_durable(self, paths):
        self.calls.append(list(paths))
        super().make_durable(self.calls[-1])


class TestBatch:
    def test_all_are_durable_at_the_end_by_one_call(self, base):
        storage = Counting(base)
        with DataStoreIO.batch(storage=storage) as batch:
            written = [batch.write(b"%d" % n, relative_path_prefix=f"p/{n % 3}") for n in range(20)]
            written.append(batch.serialize_write(DataStore(n=DataStore(k=1)), "v"))
            assert storage.calls == []
        (durable,) = storage.calls
        assert sorted(durable) == files(base)
        assert len(durable) == 22
        assert [each.read() for each in written[:20]] == [b"%d" % n for n in range(20)]
        assert written[20].read_deserialize() == DataStore(n=DataStore(k=1))

    def test_objects_can_be_read_inside_the_block(self):
        with DataStoreIO.batch() as batch:
            raw, value = batch.write(io.BytesIO(b"abc"), "p"), batch.serialize_write([1, (2,)], "p")
            assert raw.read() == DataStoreIO(raw.url).read() == b"abc"
            assert raw.open().read(2) == b"ab"
            assert value.read_deserialize(list) == [1, (2,)]
            assert raw.exists()

    def test_the_urls_are_those_of_single_writes(self):
        with DataStoreIO.batch() as batch:
            raw = batch.write(b"a", "p q")
            value = batch.serialize_write(DataStore(n=DataStore()), "p")
        assert re.fullmatch(r"file:///p%20q/[0-9a-f]{32}\.bin", raw.url)
        assert re.fullmatch(r"file:///p/[0-9a-f]{32}-1\.io\.zip", value.url)
        assert type(raw) is DataStoreIO

    def test_a_subclass_writes_objects_of_its_own(self):
        class Mine(DataStoreIO):
            pass

        with Mine.batch() as batch:
            assert type(batch.write(b"a", "p")) is Mine
        assert type(Mine.serialize_write(1, "p")) is Mine

    def test_an_empty_block_asks_nothing_of_the_storage(self, base):
        storage = Counting(base)
        with DataStoreIO.batch(storage):
            pass
        assert storage.calls == []
        assert not base.exists()

    @pytest.mark.parametrize(
        "error", [ValueError("mine"), StorageError("full"), KeyboardInterrupt(), GeneratorExit()]
    )
    def test_an_exception_in_the_block_removes_what_it_wrote(self, base, error):
        kept = DataStoreIO.write(b"a", "p")

        def block():
            with DataStoreIO.batch() as batch:
                batch.write(b"b", "p")
                batch.serialize_write(DataStore(n=DataStore()), "q/r")
                raise error

        with pytest.raises(type(error)) as caught:
            block()
        assert caught.value is error
        assert files(base) == [kept.url.removeprefix("file:///")]
        assert not (base / "q").exists()

    def test_a_call_that_fails_leaves_nothing_and_the_block_goes_on(self, base):
        with DataStoreIO.batch() as batch:
            first = batch.write(b"a", "p")
            for act, error in (
                (lambda: batch.write(Endless(5_000_000, fail_at=1), "p"), ConnectionError),
                (lambda: batch.write("text", "p"), TypeError),
                (lambda: batch.serialize_write(object(), "p"), UnsupportedTypeError),
                (lambda: batch.write(b"a", "../p"), RefusedURLError),
                (lambda: batch.write(b"a", "/".join(["p" * 100] * 10)), RefusedURLError),
            ):
                with pytest.raises(error):
                    act()
            last = batch.write(b"b", "p")
            assert len(files(base)) == 2
        assert [first.read(), last.read()] == [b"a", b"b"]

    def test_owned_folders_are_refused(self, base, monkeypatch):
        def refuse(path):
            raise RefusedURLError(path, "rows own it")

        monkeypatch.setattr(datastore_batch, "refuse_owned_prefix", refuse)
        with pytest.raises(RefusedURLError, match="own"), DataStoreIO.batch() as batch:
            batch.write(b"a", "rows/1")
        assert not base.exists()

    def test_a_batch_is_used_for_one_block(self, base):
        batch = DataStoreIO.batch()
        with pytest.raises(RuntimeError, match="not entered yet"):
            batch.write(b"a", "p")
        with batch:
            with pytest.raises(RuntimeError, match=r"open; call DataStoreIO\.batch\(\)"), batch:
                pytest.fail("it was entered twice")
            batch.write(b"a", "p")
        for act in (
            lambda: batch.write(b"a", "p"),
            lambda: batch.serialize_write(1, "p"),
            batch.__enter__,
        ):
            with pytest.raises(RuntimeError, match="over"):
                act()
        assert len(files(base)) == 1

    def test_nested_batches_decide_about_their_own_objects(self, base):
        kept = []

        def inner_block(error=None):
            with DataStoreIO.batch() as inner:
                kept.append(inner.write(b"inner", "p"))
                if error is not None:
                    raise error

        def outer_block():
            with DataStoreIO.batch() as outer:
                outer.write(b"outer", "p")
                inner_block()
                with pytest.raises(ValueError, match="inner"):
                    inner_block(ValueError("inner"))
                assert len(files(base)) == 2
                raise ValueError("outer")

        with pytest.raises(ValueError, match="outer"):
            outer_block()
        assert files(base) == [kept[0].url.removeprefix("file:///")]

    def test_threads_write_to_one_batch(self, base):
        storage = Counting(base)
        with DataStoreIO.batch(storage) as batch, ThreadPoolExecutor(8) as pool:
            written = list(pool.map(lambda n: batch.write(b"%d" % n, "p"), range(200)))
        assert [each.read() for each in written] == [b"%d" % n for n in range(200)]
        assert sorted(*storage.calls) == files(base)

    def test_a_call_at_work_when_the_block_ends_leaves_nothing(self, base):
        begun, ended = threading.Event(), threading.Event()

        class Late:
            def read(self, size):
                begun.set()
                assert ended.wait(10)
                return b""

        def block(pool):
            with DataStoreIO.batch() as batch:
                batch.write(b"a", "p")
                late.append(pool.submit(batch.write, Late(), "p"))
                assert begun.wait(10)

        late = []
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(MissingObjectError):
                block(pool)
            ended.set()
            with pytest.raises(RuntimeError, match="over"):
                late[0].result()
        assert files(base) == []


class TestBatchFaults:
    """A storage that fails, or a process that is interrupted, at any of a batch's calls."""

    @staticmethod
    def batch(storage):
        with DataStoreIO.batch(storage) as batch:
            batch.write(b"a", "p")
            batch.serialize_write(DataStore(a=1, n=DataStore(m=DataStore())), "q/r")
            batch.write(io.BytesIO(b"b" * 3_000_000), "p")

    @staticmethod
    def single(storage):
        DataStoreIO.serialize_write(DataStore(a=1, n=DataStore(m=DataStore())), "q/r", storage)

    @pytest.mark.parametrize("scenario", ["batch", "single"])
    @pytest.mark.parametrize("error", [StorageError("disk on fire"), KeyboardInterrupt()])
    def test_a_failure_at_the_nth_call_leaves_nothing(self, base, scenario, error):
        failed_at = []
        for number in itertools.count():
            calls = []

            def at(call, moment, number=number, calls=calls):
                calls.append((call, moment))
                if len(calls) == number + 1:
                    raise error

            caught = None
            try:
                getattr(self, scenario)(Watched(LocalStorage(base), at))
            except type(error) as err:
                caught = err
            if caught is None:
                break
            assert caught is error
            assert not base.exists() or [*base.iterdir()] == []
            failed_at.append(calls[number])
        objects = 5 if scenario == "batch" else 3
        assert failed_at.count(("create", "before")) == objects
        assert failed_at.count(("publish", "after")) == objects
        assert failed_at.count(("make_durable", "amid")) == 1
        assert len(files(base)) == objects

    def test_what_cannot_be_removed_again_is_a_note_of_the_first_error(self, base):
        class Stuck(LocalStorage):
            def remove(self, paths):
                raise StorageError("read-only now")

        def block():
            with DataStoreIO.batch(Stuck(base)) as batch:
                batch.write(b"a", "p")
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            block()
        (note,) = caught.value.__notes__
        assert note.startswith("not all that was written could be removed again: read-only now")

    def test_a_foreign_storage_may_raise_anything(self, base):
        class Odd(LocalStorage):
            def make_durable(self, paths):
                raise OSError("first")

            def remove(self, paths):
                super().remove(paths)
                raise ZeroDivisionError("second")

        with pytest.raises(OSError, match="first"), DataStoreIO.batch(Odd(base)) as batch:
            batch.write(b"a", "p")
        assert files(base) == []

    def test_an_object_that_was_removed_meanwhile_fails_the_block(self, base):
        def block():
            with DataStoreIO.batch() as batch:
                batch.write(b"a", "p")
                batch.write(b"b", "p").remove()

        with pytest.raises(MissingObjectError):
            block()
        assert files(base) == []


def check_bound(given, bound):
    """Check that all that takes a storage takes an engine, and means the storage bound to it."""
    raw = DataStoreIO.write(b"a", "p", given)
    value = DataStoreIO.serialize_write(DataStore(x=1), "p", given)
    assert len(files(bound)) == 2
    assert DataStoreIO(raw.url, storage=given).read() == b"a"
    assert DataStore.from_url(value.url, storage=given).x == 1
    assert pickle.loads(pickle.dumps(DataStoreIO(raw.url, storage=given))).read() == b"a"
    DataStoreIO.delete("p", given)
    assert files(bound) == []


class TestPrefix:
    @pytest.mark.parametrize(
        ("prefix", "path"),
        [
            ("models", "models/"),
            ("models/", "models/"),
            ("models/run 1", "models/run%201/"),
            ("mödels/50%", "m%C3%B6dels/50%25/"),
            ("a?b#c", "a%3Fb%23c/"),
        ],
    )
    def test_plain_text_becomes_a_path(self, prefix, path):
        written = DataStoreIO.write(b"a", prefix)
        assert written.url.startswith(f"file:///{path}")
        assert DataStoreIO(written.url).read() == b"a"
        DataStoreIO.delete(prefix)
        assert not written.exists()

    @pytest.mark.parametrize(
        "prefix",
        ["", "/", "/etc", "a//b", "..", "a/../b", ".", "a/.", "a\\b", "a\0b", "\udc80", None, 1],
    )
    def test_what_could_leave_the_base_is_refused(self, prefix, base):
        for act in (
            lambda: DataStoreIO.write(b"a", prefix),
            lambda: DataStoreIO.serialize_write(1, prefix),
            lambda: DataStoreIO.delete(prefix),
        ):
            with pytest.raises(RefusedURLError):
                act()
        assert not base.exists()

    def test_owned_folders_are_refused(self, base, monkeypatch):
        written = DataStoreIO.write(b"a", "rows/1")
        asked = []

        def refuse(path):
            asked.append(path)
            raise RefusedURLError(path, "rows own it")

        monkeypatch.setattr(datastore_batch, "refuse_owned_prefix", refuse)
        monkeypatch.setattr(datastore_io, "refuse_owned_prefix", refuse)
        for act in (
            lambda: DataStoreIO.write(b"a", "rows/1"),
            lambda: DataStoreIO.serialize_write(1, "rows/1"),
            lambda: DataStoreIO.delete("rows/1"),
            written.remove,
        ):
            with pytest.raises(RefusedURLError, match="own"):
                act()
        assert asked == ["rows/1"] * 4
        assert written.read() == b"a"
        assert len(files(base)) == 1


class TestSerialize:
    @pytest.mark.parametrize(
        "value",
        [
            1,
            None,
            "text",
            {"a": [1, (2, 3)], 4: {5}},
            {"__value__": 1},
            np.arange(6.0).reshape(2, 3),
            pd.DataFrame({"x": [1, 2]}),
            [np.ones(2), DataStore(a=1)],
        ],
    )
    def test_values_come_back(self, value):
        written = DataStoreIO.serialize_write(value, relative_path_prefix="p")
        back = DataStoreIO(written.url).read_deserialize(type(value))
        assert type(back) is type(value)
        assert DataStore(v=back) == DataStore(v=value)

    def test_a_datastore_comes_back_lazily(self, base):
        ds = DataStore(array=np.ones(3), n=DataStore(k=1))
        written = DataStoreIO.serialize_write(ds, "p")
        assert len(files(base)) == 2
        assert (ds.url, ds._changed) == (None, True)
        back = written.read_deserialize(DataStore)
        assert back == ds
        assert back.url == written.url == DataStore.from_url(written.url).url

    def test_a_name_that_would_mislead_is_refused(self):
        with pytest.raises(UnsupportedTypeError, match="rename"):
            DataStoreIO.serialize_write(DataStore({"__value__": 1}), "p")

    def test_another_type_than_expected(self):
        written = DataStoreIO.serialize_write(np.ones(2), "p")
        with pytest.raises(UnsupportedTypeError, match=r"'numpy.ndarray', not 'builtins.dict'"):
            written.read_deserialize(dict)
        assert written.read_deserialize(object).shape == (2,)

    def test_unsupported_values_write_nothing(self, base):
        with pytest.raises(UnsupportedTypeError):
            DataStoreIO.serialize_write(object(), "p")
        assert not base.exists() or files(base) == []

    def test_raw_bytes_are_no_value(self, base):
        written = DataStoreIO.write(b"abc", "p")
        with pytest.raises(UnsupportedFormatError, match=r"use read\(\)"):
            written.read_deserialize()
        (base / "p" / "x.zip").write_bytes(b"abc")  # whoever wrote it, it may be read
        with pytest.raises(DamagedObjectError):
            DataStoreIO("file:///p/x.zip").read_deserialize()


class TestReading:
    def test_open_is_a_seekable_stream(self):
        data = bytes(range(256)) * 1000
        stream = DataStoreIO.write(data, "p").open()
        with stream:
            assert stream.readable()
            assert stream.seekable()
            assert not stream.writable()
            assert stream.read(3) == data[:3]
            assert stream.tell() == 3
            assert stream.seek(-5, io.SEEK_END) == len(data) - 5
            assert stream.read() == data[-5:]
            assert stream.read() == b""
            stream.seek(1000)
            stream.seek(24, io.SEEK_CUR)
            assert stream.read(100_000) == data[1024:101_024]
            assert stream.seek(len(data) + 10) == len(data) + 10
            assert stream.read(1) == b""
            with pytest.raises((ValueError, OSError)):
                stream.seek(-1)
        with pytest.raises(ValueError, match="closed"):
            stream.read()

    def test_other_libraries_read_the_stream(self):
        written = DataStoreIO.write(b"a,b\n1,2\n", "p")
        with written.open() as stream:
            assert pd.read_csv(stream).to_dict("list") == {"a": [1], "b": [2]}

    def test_a_missing_object(self):
        gone = DataStoreIO(f"file:///p/{'0' * 32}.bin")
        assert not gone.exists()
        for ask in (gone.read, gone.open, lambda: gone.size_bytes):
            with pytest.raises(MissingObjectError):
                ask()
        with pytest.raises(MissingObjectError):
            DataStoreIO(f"file:///p/{'0' * 32}.zip").read_deserialize()

    def test_urls_are_checked(self):
        with pytest.raises(RefusedURLError):
            DataStoreIO("file:///../x")
        with pytest.raises(RefusedURLError, match="file:"):
            DataStoreIO("s3:///a/b.bin").read()


class TestRemoving:
    def test_remove_is_idempotent(self, base):
        written = DataStoreIO.serialize_write(DataStore(n=DataStore(a=1), m=DataStore()), "p")
        assert len(files(base)) == 3
        assert re.fullmatch(r"file:///p/[0-9a-f]{32}-2\.io\.zip", written.url)
        assert all(name.endswith(".io.zip") for name in files(base))
        assert written.read_deserialize().n.url == written.url.replace(".io.zip", ".1.io.zip")
        written.remove()
        written.remove()
        assert files(base) == []
        assert not written.exists()

    def test_lone_surrogates_are_our_errors_that_name_them(self, base):
        with pytest.raises(RefusedURLError, match=r"ud800.*plain text"):
            DataStoreIO.write(b"a", "p/\ud800")
        with pytest.raises(RefusedURLError, match="ud800"):
            DataStoreIO("file:///p/\ud800.bin")
        for value in (DataStore({"k\ud800": 1}), DataStore(inner=DataStore({"k\ud800": 1}))):
            with pytest.raises(UnsupportedTypeError, match=r"k\\ud800.*rename"):
                DataStoreIO.serialize_write(value, "p")
        assert files(base) == []

    def test_delete_removes_the_prefix_and_no_other(self, base):
        DataStoreIO.write(b"a", "models/1")
        DataStoreIO.write(b"a", "models/1/deep/er")
        kept = [DataStoreIO.write(b"a", "models/10"), DataStoreIO.write(b"a", "models")]
        DataStoreIO.delete("models/1")
        DataStoreIO.delete("models/1")
        DataStoreIO.delete("never")
        assert len(files(base)) == 2
        assert all(each.exists() for each in kept)

    @pytest.mark.parametrize(
        "name", [f"{'0' * 32}.zip", f"{'0' * 32}-1.zip", "notes.txt", f"{'0' * 32}.npy"]
    )
    def test_what_was_not_written_here_is_never_removed(self, base, name):
        DataStoreIO.write(b"a", "p/deep")
        DataStoreIO.serialize_write(1, "p")
        (base / "p" / name).write_bytes(b"somebody's")
        before = files(base)
        foreign = DataStoreIO(f"file:///p/{name}")
        assert foreign.read() == b"somebody's"
        for act in (foreign.remove, lambda: DataStoreIO.delete("p")):
            with pytest.raises(RefusedURLError, match=f"file:///p/{name}"):
                act()
        assert files(base) == before
        DataStoreIO.delete("p/deep")
        assert len(files(base)) == len(before) - 1

    def test_a_row_s_object_can_be_read_and_not_removed(self, base):
        ds = DataStore(a=1)
        store(ds, LocalStorage(base), "rows/1")
        assert DataStoreIO(ds.url).read_deserialize() == ds
        with pytest.raises(RefusedURLError):
            DataStoreIO(ds.url).remove()
        assert DataStoreIO(ds.url).exists()


def test_a_value_of_its_own():
    written = DataStoreIO.write(b"a", "p")
    same = DataStoreIO(written.url)
    assert same == written
    assert len({same, written}) == 1
    assert same != written.url
    assert repr(same) == f"DataStoreIO({written.url!r})"
    assert pickle.loads(pickle.dumps(written)).read() == b"a"
    assert b"sqla_datastore.value" not in pickle.dumps(written)
    assert pickle.loads(pickle.dumps(same)).read() == b"a"
    with pytest.raises(AttributeError):
        same.url = "x"
