"""Files as entries: streamed in and out, lazy, verified, and never written where they are not."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from functools import partial

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.memory import MemoryStorage
from support.watched import Watched

from sqla_datastore import (
    DamagedObjectError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    File,
    MissingObjectError,
    RefusedURLError,
    StaleValueError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedTypeError,
    bind_storage,
    inspect,
    options,
)
from sqla_datastore.files.codec import CODECS
from sqla_datastore.files.names import base_name, is_content_type
from sqla_datastore.format import Container
from sqla_datastore.format import manifest as manifest_module
from sqla_datastore.maintenance import check, rewrite
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.in_row import BytesReader
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

TEXT = b"one,two\n" * 1_000
LARGE = os.urandom(3_000_000)


class Base(DeclarativeBase):
    """The tables of this module."""


class Run(Base):
    """A row with a value."""

    __tablename__ = "file_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Packed(Base):
    """A row with a value that is compressed."""

    __tablename__ = "file_packed"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(compression=True))


class Small(Base):
    """A row that holds small values itself."""

    __tablename__ = "file_small"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=2_000))


class Pipe:
    """A stream that cannot seek."""

    def __init__(self, data: bytes, fail_at: int | None = None) -> None:
        self._stream, self._fail_at = io.BytesIO(data), fail_at

    def read(self, size: int) -> bytes:
        if self._fail_at is not None and self._stream.tell() >= self._fail_at:
            raise ConnectionError("the peer went away")
        return self._stream.read(min(size, 100_000))


@pytest.fixture
def base(tmp_path):
    return tmp_path / "storage"


@pytest.fixture
def engine(tmp_path, base):
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    bind_storage(engine, base)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(TEXT)
    return path


def files(base):
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


def stored(engine, kind=Run, **entries):
    """Store entries in a row, and return the value of the row as it is read again."""
    with Session(engine) as session:
        session.add(kind(id=1, data=DataStore(**entries)))
        session.commit()
    with Session(engine) as session:
        return session.get_one(kind, 1).data


def opened(file):
    """Return all bytes of a file, read from its stream."""
    with file.open() as stream:
        return stream.read()


def object_of(base, value):
    return base / value.url.removeprefix("file:///")


class TestFileCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return CODECS[0]

    @pytest.fixture
    def values(self, path):
        empty = File(io.BytesIO(b""), "empty")
        return [empty, File(path), File(io.BytesIO(b"x" * 70_000), "a b.bin", "text/x-y; a=b")]

    def assert_same(self, back, value):
        assert (back.name, back.content_type) == (value.name, value.content_type)
        assert back.size_bytes == value.size_bytes
        if value.name == "table.csv":
            assert back.read() == value.read()


class TestStoring:
    @pytest.mark.parametrize("data", [b"", b"x", TEXT, LARGE], ids=len)
    @pytest.mark.parametrize("kind", [Run, Packed, Small])
    @pytest.mark.parametrize("source", ["path", "stream", "pipe"])
    def test_what_is_stored_is_read(self, engine, base, tmp_path, data, kind, source):
        path = tmp_path / "upload.txt"
        path.write_bytes(data)
        made = {"path": path, "stream": io.BytesIO(data), "pipe": Pipe(data)}[source]
        value = stored(engine, kind, f=File(made, "upload.txt"), n=1)
        file = value.f
        assert (file.name, file.content_type, file.size_bytes) == (
            *("upload.txt", "text/plain"),
            len(data),
        )
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert file.read() == b"".join(file.iter_bytes()) == opened(file) == data
        if base.exists():
            report = check(engine, Base.metadata, deep=True)
            assert report.is_clean, report

    def test_the_object_has_it_as_a_member(self, engine, base, path):
        value = stored(engine, table=File(path))
        with zipfile.ZipFile(object_of(base, value)) as archive:
            assert archive.namelist() == ["table.file", "manifest.json"]
            assert archive.read("table.file") == TEXT
            assert json.loads(archive.read("manifest.json"))["requires"] == ["files"]

    def test_older_versions_are_told_what_they_lack(self, engine, base, path, monkeypatch):
        value = stored(engine, table=File(path))
        # a reader that knows no files; the short way is for what this version writes
        monkeypatch.setattr(manifest_module, "_parts_of_dumped", lambda _: None)
        monkeypatch.setattr(manifest_module, "_FILES", "something else")
        with pytest.raises(UnsupportedFormatError, match="needs features 'files'"):
            list(value)

    def test_compression_shrinks_what_shrinks(self, engine, base, path):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("x", LARGE)
        value = stored(
            engine, Packed, csv=File(path), piped=File(Pipe(TEXT * 99), "t.csv"), z=File(archive)
        )
        with zipfile.ZipFile(object_of(base, value)) as opened:
            methods = {info.filename: info.compress_type for info in opened.infolist()}
            assert opened.testzip() is None
        assert methods["csv.file"] == methods["piped.file"] == zipfile.ZIP_DEFLATED
        assert methods["z.file"] == zipfile.ZIP_STORED
        stream = value.piped.open()
        stream.seek(8 * 50_000 + 4)
        assert stream.read(4) == b"two\n"
        stream.seek(-4, io.SEEK_END)
        assert stream.read() == b"two\n"
        assert stream.seek(4) == 4
        assert stream.read(3) == b"two"

    def test_small_ones_lie_in_the_row(self, engine, base):
        value = stored(engine, Small, f=File(io.BytesIO(b"x" * 100), "x.txt"))
        assert value.url.startswith("data:")
        assert pickle.loads(pickle.dumps(value.f)).read() == b"x" * 100

    def test_a_value_that_turns_out_too_large_for_the_row_reads_its_stream_again(self, engine):
        # payload below `inline_bytes`, and the object above
        assert stored(engine, Small, f=File(io.BytesIO(b"x" * 1_900))).f.read() == b"x" * 1_900

    def test_a_stream_is_stored_from_where_it_stood_when_it_was_given(self, engine):
        stream = io.BytesIO(b"head-body")
        stream.seek(5)
        file = File(stream)
        stream.read()  # who looks at an upload first
        assert stored(engine, f=file).f.read() == b"body"

    def test_lists_and_dicts_and_nested_values_have_them(self, engine, path):
        value = stored(
            engine,
            many=[File(path), {"x": File(io.BytesIO(b"1"))}, 5],
            inner=DataStore(f=File(io.BytesIO(b"2"))),
        )
        assert value.many[0].read() == TEXT
        assert value.many[1]["x"].read() == b"1"
        assert value.inner.f.read() == b"2"

    def test_a_container_reads_from_the_object_once_it_is_stored(self, engine, path):
        with Session(engine) as session:
            run = Run(id=1, data=DataStore(many=[File(path)]))
            session.add(run)
            session.commit()
            path.unlink()
            assert run.data.many[0].read() == TEXT
            run.data.many.append(File(io.BytesIO(b"more")))
            session.commit()
            assert [file.read() for file in run.data.many] == [TEXT, b"more"]

    def test_a_list_that_was_read_follows_its_value_from_object_to_object(self, engine, base):
        def contents(files):
            return [file.read() for file in files]

        with Session(engine, expire_on_commit=False) as session:
            run = Run(id=1, data=DataStore(files=[File(Pipe(LARGE))], n=1))
            session.add(run)
            session.commit()
            kept = run.data.files
            kept.append(File(Pipe(TEXT)))
            session.flush()
            kept.append(File(io.BytesIO(b"3")))
            session.flush()
            assert contents(kept) == [LARGE, TEXT, b"3"]
            session.commit()
            assert len(files(base)) == 1
            run.data.n = 2
            session.commit()
            assert len(files(base)) == 1
            assert contents(kept) == [LARGE, TEXT, b"3"]
            with session.begin_nested() as savepoint:
                kept.append(File(io.BytesIO(b"4")))
                session.flush()
                assert contents(kept) == [LARGE, TEXT, b"3", b"4"]
                savepoint.rollback()
            assert contents(kept[:3]) == contents(run.data.files) == [LARGE, TEXT, b"3"]
            assert kept[3].sha256 is None
            session.commit()
            assert contents(pickle.loads(pickle.dumps(kept[:3]))) == [LARGE, TEXT, b"3"]
        with Session(engine) as session:
            assert contents(session.get_one(Run, 1).data.files) == [LARGE, TEXT, b"3"]
        assert check(engine, Base.metadata, deep=True).is_clean

    def test_the_file_that_was_given_reads_from_the_object_then(self, engine, path):
        file, stream = File(path), File(Pipe(LARGE))
        with Session(engine) as session:
            session.add(Run(id=1, data=DataStore(f=file, s=stream, many=[stream])))
            with pytest.raises(StaleValueError, match="was read already"):
                session.flush()
            session.rollback()
            stream = File(Pipe(LARGE))
            session.add(Run(id=1, data=DataStore(f=file, s=stream)))
            session.flush()
            path.unlink()
            assert (file.read(), stream.read()) == (TEXT, LARGE)
            assert file.sha256 == hashlib.sha256(TEXT).hexdigest()
            session.add(Run(id=2, data=DataStore(again=[stream])))
            session.flush()
            session.rollback()
        assert file.sha256 is None
        with pytest.raises(StaleValueError, match="flush first"):
            stream.read()

    def test_many_small_ones_are_packed(self, engine, base):
        value = stored(engine, t={str(n): File(io.BytesIO(b"%d" % n)) for n in range(1_200)})
        with zipfile.ZipFile(object_of(base, value)) as archive:
            assert archive.namelist() == ["small-blobs.bin", "manifest.json"]
        assert value.t["1100"].read() == b"1100"
        assert value.t["7"].sha256 == hashlib.sha256(b"7").hexdigest()

    def test_entries_beside_it_are_replaced_without_its_source(self, engine, path):
        with Session(engine) as session:
            run = Run(id=1, data=DataStore(f=File(path), n=1))
            session.add(run)
            session.commit()
            path.unlink()
            run.data.n = 2
            session.commit()
            assert (run.data.f.read(), run.data.n) == (TEXT, 2)

    def test_a_stored_one_is_copied_to_another_row(self, engine, path):
        path.write_bytes(LARGE)
        value = stored(engine, f=File(path))
        left_behind = pickle.loads(pickle.dumps(value.f))
        assert left_behind.read() == LARGE
        with Session(engine) as session:
            session.add(Run(id=2, data=DataStore(f=value.f, many=[value.f])))
            session.add(Packed(id=2, data=DataStore(f=value.f)))
            session.delete(session.get_one(Run, 1))
            session.commit()
            for copied in (session.get_one(Run, 2).data, session.get_one(Packed, 2).data):
                assert copied.f.read() == LARGE
            assert session.get_one(Run, 2).data.many[0].read() == LARGE
        assert value.f.read() == LARGE  # it follows what it was stored as last
        with pytest.raises(MissingObjectError, match="get the File from the row again"):
            left_behind.read()
        with pytest.raises(MissingObjectError):
            left_behind.open()

    def test_it_is_read_and_written_outside_of_rows(self, base, path):
        made = DataStoreIO.serialize_write(File(path), "files", storage=base)
        assert made.read_deserialize(File).read() == TEXT

    def test_maintenance_takes_it_along(self, engine, base, path, tmp_path, monkeypatch):
        value = stored(engine, Packed, f=File(path), r=File(io.BytesIO(LARGE)))
        assert inspect(value).entries["f"].nbytes == len(TEXT)
        monkeypatch.setattr(Packed.__table__.c.data.type, "compression", False)
        rewrite(engine, Base.metadata, apply=True)
        with Session(engine) as session:
            value = session.get_one(Packed, 1).data
            assert value.f.read() == TEXT
            assert object_of(base, value).stat().st_size > len(TEXT) + len(LARGE)
            assert value.f.sha256 == hashlib.sha256(TEXT).hexdigest()


class TestLaziness:
    def test_touching_it_reads_nothing_of_its_bytes(self, tmp_path):
        read = []
        storage = MemoryStorage()
        engine = create_engine(f"sqlite:///{tmp_path}/test.db")
        bind_storage(engine, Watched(storage, lambda name, when: read.append(name)))
        Base.metadata.create_all(engine)
        value = stored(engine, f=File(io.BytesIO(LARGE), "x.bin"), many=[File(io.BytesIO(LARGE))])
        assert list(value) == ["f", "many"]
        read.clear()
        file, many = value.f, value.many
        assert repr(value).count("MiB") == 2
        assert repr(file).startswith("<File 'x.bin', application/octet-stream, 2.9 MiB, sha256 ")
        assert file.size_bytes == many[0].size_bytes == len(LARGE)
        assert file != many[0]
        assert pickle.loads(pickle.dumps(many))[0] == many[0]
        assert read == []
        stream = file.open()
        stream.seek(2_000_000)
        assert stream.read(10) == LARGE[2_000_000:2_000_010]
        assert file.read() == many[0].read() == LARGE
        assert "read" in read
        engine.dispose()

    def test_a_damaged_copy_in_the_local_cache_is_read_anew(self, tmp_path, monkeypatch):
        engine = create_engine(f"sqlite:///{tmp_path}/test.db")
        bind_storage(engine, MemoryStorage())
        Base.metadata.create_all(engine)
        options.cache_folder = tmp_path / "cache"
        try:
            file = stored(engine, f=File(io.BytesIO(LARGE))).f
            assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
            assert file.read() == LARGE
            kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
            copies = [path for path in kept if path.stat().st_size > len(LARGE)]
            assert len(copies) == 1
            with Session(engine) as session:
                file = session.get_one(Run, 1).data.f
                with copies[0].open("r+b") as changed:
                    changed.seek(1_000_000)
                    changed.write(bytes(100))
                assert opened(file) == LARGE
                assert file.read() == LARGE
        finally:
            options.cache_folder = None
            engine.dispose()

    def test_inspect_tells_size_and_content_type(self, engine, path):
        unsaved = inspect(DataStore(f=File(path), p=File(Pipe(b"123")))).entries
        assert (unsaved["f"].type, unsaved["f"].dtype, unsaved["f"].nbytes) == (
            *("File", "text/csv"),
            len(TEXT),
        )
        assert unsaved["p"].nbytes == 0
        assert inspect(stored(engine, f=File(path))).entries["f"] == unsaved["f"]
        path.unlink()
        assert "size unknown" in repr(File(path))
        assert inspect(DataStore(f=File(path))).entries["f"].nbytes == 0


class TestSourcesThatFail:
    """Our error names entry and path, the row is not there, and nothing stays of the object."""

    def refused(self, engine, base, file, match):
        with Session(engine) as session:
            session.add(Run(id=1, data=DataStore(n=[1], upload=[1, file])))
            with pytest.raises(StaleValueError, match=match) as caught:
                session.commit()
            session.rollback()
            assert session.scalars(select(Run)).all() == []
        assert "'upload" in str(caught.value)
        assert not base.exists() or files(base) == []

    def test_a_file_that_is_gone(self, engine, base, path):
        file = File(path)
        path.unlink()
        self.refused(engine, base, file, f"there is no file '{path}'")

    @pytest.mark.parametrize("change", ["grow", "shrink", "touch", "replace", "remove"])
    def test_a_file_that_changes_meanwhile(self, engine, base, path, change):
        path.write_bytes(LARGE)

        def act(name, when):
            if (name, when) != ("create", "after"):
                return
            if change == "replace":
                path.with_suffix(".new").write_bytes(LARGE)
                path.with_suffix(".new").replace(path)
            elif change == "remove":
                path.unlink()
            elif change == "touch":
                os.utime(path, (1, 1))
            else:
                path.write_bytes(LARGE[:-1] if change == "shrink" else LARGE + b"1")

        bind_storage(engine, Watched(LocalStorage(base), act))
        self.refused(engine, base, File(path), "no file" if change == "remove" else "changed")

    def test_a_file_that_changes_while_it_is_read(self, engine, base, path):
        path.write_bytes(LARGE)

        def act(name, when):
            if name == "write" and path.stat().st_size == len(LARGE):
                with path.open("ab") as file:
                    file.write(b"more")

        bind_storage(engine, Watched(LocalStorage(base), act))
        self.refused(engine, base, File(path), "was changed while it was stored")

    def test_what_is_no_file(self, engine, base, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        for bad in (tmp_path, tmp_path / "fifo"):
            with Session(engine) as session:
                session.add(Run(id=1, data=DataStore(f=File(bad))))
                with pytest.raises(UnsupportedTypeError, match="not a regular file"):
                    session.commit()

    def test_a_stream_that_breaks_off(self, engine, base):
        file = File(Pipe(LARGE, fail_at=1_500_000))
        self.refused(engine, base, file, "ConnectionError: the peer went away")
        self.refused(engine, base, file, "was read already")

    def test_a_stream_that_was_closed(self, engine, base):
        stream = io.BytesIO(b"x")
        file = File(stream)
        stream.close()
        self.refused(engine, base, file, "closed file")
        assert "size unknown" in repr(file)

    def test_a_stream_that_grows_or_is_read_by_others(self, engine, base):
        stream = io.BytesIO(LARGE)
        file = File(stream)

        def act(name, when):
            if (name, when) == ("create", "after"):
                stream.seek(0, io.SEEK_END)
                stream.write(b"more")

        bind_storage(engine, Watched(LocalStorage(base), act))
        self.refused(engine, base, file, "its stream was changed")

    def test_a_stream_of_text(self, engine, base):
        class Texts(Pipe):
            def read(self, size):
                return "text"

        self.refused(engine, base, File(Texts(b"")), "binary mode")
        with pytest.raises(TypeError, match="binary mode"):
            File(io.StringIO("x"))

    def test_other_things(self):
        class Upload:
            async def read(self, size):
                return b""

        with pytest.raises(TypeError, match="pass its binary stream"):
            File(Upload())
        with pytest.raises(TypeError, match="BytesIO"):
            File(b"x")
        with pytest.raises(TypeError, match="path or a binary stream"):
            File(1)

    def test_a_stream_that_seeks_can_be_stored_again_after_a_failure(self, engine, base):
        failures = [StorageError("full")]

        def act(name, when):
            if name == "publish" and failures:
                raise failures.pop()

        bind_storage(engine, Watched(LocalStorage(base), act))
        for source, again in ((io.BytesIO(TEXT), True), (Pipe(TEXT), False)):
            failures.append(StorageError("full"))
            del failures[1:]
            run = Run(id=int(again), data=DataStore(f=File(source)))
            for attempt in range(2):
                with Session(engine) as session:
                    session.add(run)
                    if attempt == 0:
                        with pytest.raises(StorageError):
                            session.commit()
                    elif again:
                        session.commit()
                        assert run.data.f.read() == TEXT
                    else:
                        with pytest.raises(StaleValueError, match="was read already"):
                            session.commit()
        assert len(files(base)) == 1

    def test_after_a_rollback_the_value_has_its_own_file_again(self, engine, path):
        file = File(path)
        with Session(engine) as session:
            run = Run(id=1, data=DataStore(f=file))
            session.add(run)
            session.flush()
            assert run.data.f is not file
            session.rollback()
            assert run.data.f is file
            session.add(run)
            session.commit()
            assert run.data.f.read() == TEXT


class TestReading:
    def test_save_writes_a_file_whole(self, engine, tmp_path, path):
        file = stored(engine, f=File(path, "name.csv")).f
        target = tmp_path / "out" / "copy.csv"
        target.parent.mkdir()
        assert file.save(target) == target
        assert target.read_bytes() == TEXT
        target.write_bytes(b"old")
        file.save(str(target))
        assert target.read_bytes() == TEXT
        assert target.stat().st_mode & 0o077 == stat.S_IMODE(path.stat().st_mode) & 0o077
        assert file.save(target.parent) == target.parent / "name.csv"
        with pytest.raises(FileExistsError):
            file.save(target.parent)
        assert sorted(os.listdir(target.parent)) == ["copy.csv", "name.csv"]
        with pytest.raises(FileNotFoundError):
            file.save(tmp_path / "none" / "x")

    def test_damage_is_noticed_by_every_way_of_reading(self, engine, base, tmp_path):
        value = stored(engine, f=File(io.BytesIO(LARGE)))
        found = object_of(base, value)
        data = bytearray(found.read_bytes())
        data[1_000_000] ^= 1
        found.write_bytes(data)
        for read in (
            value.f.read,
            lambda: value.f.save(tmp_path / "copy"),
            lambda: value.f.open().read(),
            lambda: DataStoreIO.serialize_write(value.f, "x", storage=tmp_path / "other"),
        ):
            with pytest.raises(DamagedObjectError, match="checksum differs"):
                read()
        assert not (tmp_path / "copy").exists()
        assert not (tmp_path / "other").exists() or files(tmp_path / "other") == []
        assert not check(engine, Base.metadata, deep=True).is_clean

    @pytest.mark.parametrize("kind", [Run, Packed])
    def test_changed_bytes_are_the_content_or_damage(self, engine, base, kind):
        # more than one piece; half of it shrinks, and no two parts of it are the same
        data = LARGE[:1_500_000].translate(bytes(number & 15 for number in range(256)))
        value = stored(engine, kind, f=File(io.BytesIO(data)))
        found = object_of(base, value)
        whole = found.read_bytes()
        blob = value.f._content._blob()
        damaged = 0
        for at in range(0, blob.stored_nbytes, blob.stored_nbytes // 8):
            changed = bytearray(whole)
            changed[blob.offset + at] ^= 0x10
            found.write_bytes(changed)
            with Session(engine) as session:
                file = session.get_one(kind, 1).data.f
                for read in (file.read, partial(opened, file)):
                    try:
                        assert read() == data
                    except DamagedObjectError:
                        damaged += 1
        # the last bits of a deflate stream may mean nothing
        assert damaged >= 16
        found.write_bytes(whole[: blob.offset + 10])
        for read in (value.f.read, partial(opened, value.f)):
            with pytest.raises(DamagedObjectError):
                read()

    def test_with_verify_always_the_hash_is_compared(self, monkeypatch):
        text, blobs = encode_value(File(io.BytesIO(TEXT), "x"))
        node = json.loads(text)
        node[2]["sha256"] = "0" * 64
        file = decode_value(json.dumps(node), blobs)
        assert file.read() == TEXT
        with pytest.raises(DamagedObjectError, match="SHA-256 differs"):
            encode_value(file)
        monkeypatch.setattr(type(file._content._blob().source), "verifies_always", True)
        with pytest.raises(DamagedObjectError, match="SHA-256 differs"):
            file.read()

    def test_a_file_that_is_not_stored_reads_its_path(self, path):
        file = File(path)
        assert file.read() == opened(file) == TEXT
        assert file.sha256 is None
        stream = File(io.BytesIO(TEXT))
        for read in (stream.read, stream.open):
            with pytest.raises(StaleValueError, match="flush first"):
                read()

    def test_equality_copies_and_pickles(self, engine, path, tmp_path):
        unsaved = File(path)
        value = stored(
            engine, a=File(path), b=File(io.BytesIO(TEXT), "table.csv"), c=File(path, "x")
        )
        assert value.a == value.b != value.c
        assert len({value.a, value.b, value.c}) == 2
        assert unsaved == File(path) != value.a
        assert unsaved != File(path, content_type="text/plain")
        assert unsaved != "table.csv"
        assert File(io.BytesIO(b"")) != File(io.BytesIO(b""))
        assert copy.copy(value.a) is copy.deepcopy(value.a) is value.a
        assert pickle.loads(pickle.dumps(unsaved)) == unsaved
        with pytest.raises(TypeError, match="cannot be pickled before it is stored"):
            pickle.dumps(File(io.BytesIO(b"")))
        sent = pickle.dumps(value.a)
        assert len(sent) < 500
        assert pickle.loads(sent) == value.a
        assert pickle.loads(pickle.dumps(pickle.loads(sent))).read() == TEXT
        code = "import pickle, sys; print(len(pickle.loads(sys.stdin.buffer.read()).read()))"
        done = subprocess.run(
            [sys.executable, "-c", code], input=sent, capture_output=True, check=True, cwd=tmp_path
        )
        assert int(done.stdout) == len(TEXT)


class TestNames:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("report.pdf", "report.pdf"),
            ("../../etc/passwd", "passwd"),
            ("/etc/cron.d/x", "x"),
            ("C:\\temp\\x.txt", "x.txt"),
            ("a/", "a"),
            ("a\x1b[2J\nb\u202e.txt", "a[2Jb.txt"),
            ("nul\0l", "null"),
            ("..", "file"),
            ("...", "..."),
            ("", "file"),
            ("\udcff", "file"),
            ("ä" * 300 + ".txt", "ä" * 125 + ".txt"),
            ("x." + "y" * 300, "x." + "y" * 253),
        ],
    )
    def test_only_a_base_name_is_kept(self, given, kept):
        assert File(io.BytesIO(b""), given).name == kept
        text, blobs = encode_value(File(io.BytesIO(b"x"), "honest"))
        node = json.loads(text)
        node[2]["name"] = given
        if given != "\udcff":
            assert decode_value(json.dumps(node), blobs).name == kept

    def test_names_and_types_by_default(self, path, tmp_path):
        assert (File(path).name, File(path).content_type) == ("table.csv", "text/csv")
        with open(path, "rb") as opened:
            assert File(opened).name == "table.csv"
        assert File(io.BytesIO(b"")).name == "file"
        kinds = {
            "x.tar.gz": "application/gzip",
            "x": "application/octet-stream",
            "x.PNG": "image/png",
        }
        for name, kind in kinds.items():
            assert File(io.BytesIO(b""), name).content_type == kind

    @pytest.mark.parametrize(
        "bad", ["text", "text/html\r\nSet-Cookie: x", "a/b;", "", "a/b; c=\x7f", "é/b", "a/b" * 999]
    )
    def test_a_content_type_is_one_line_of_a_header(self, bad):
        assert not is_content_type(bad)
        with pytest.raises(ValueError, match="content type"):
            File(io.BytesIO(b""), content_type=bad or "/")
        text, blobs = encode_value(File(io.BytesIO(b"x"), content_type='a/b; c="d e"; f=g'))
        node = json.loads(text)
        assert decode_value(text, blobs).content_type == 'a/b; c="d e"; f=g'
        node[2]["content_type"] = bad
        assert decode_value(json.dumps(node), blobs).content_type == "application/octet-stream"

    def test_a_hostile_name_stays_in_the_folder(self, tmp_path):
        text, blobs = encode_value(File(io.BytesIO(b"x"), "honest"))
        node = json.loads(text)
        folder = tmp_path / "folder"
        folder.mkdir()
        for number, name in enumerate(["../evil", "/tmp/../evil2", "..", "a/..", ".\0."]):
            node[2]["name"] = name
            saved = decode_value(json.dumps(node), blobs).save(folder)
            assert saved.parent == folder
            saved.rename(folder / f"{number}.seen")
        assert os.listdir(tmp_path) == ["folder"]

    def test_base_name_of_other_things(self):
        assert base_name(7) == base_name(None) == base_name(b"x") == "file"


class TestTrees:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "tree"
        (folder / "b" / "c").mkdir(parents=True)
        (folder / "empty").mkdir()
        (folder / "a.txt").write_bytes(b"a")
        (folder / "b" / "c" / "d.csv").write_bytes(TEXT)
        (folder / "b" / "line\nbreak").write_bytes(b"")
        return folder

    def test_a_folder_comes_back(self, engine, folder, tmp_path):
        tree = File.tree(folder)
        assert list(tree) == ["a.txt", "b/c/d.csv", "b/line\nbreak"]
        assert tree["b/c/d.csv"].name == "d.csv"
        back = stored(engine, tree=tree).tree
        File.save_tree(back, tmp_path / "out" / "deep")
        for place, file in tree.items():
            assert (tmp_path / "out" / "deep" / place).read_bytes() == file.read()
        with pytest.raises(FileExistsError):
            File.save_tree(back, tmp_path / "out" / "deep")
        assert list(File.tree(tmp_path / "out" / "deep")) == list(tree)

    def test_links_are_refused_or_followed(self, engine, folder, tmp_path):
        (tmp_path / "outside").write_bytes(b"outside")
        (folder / "link").symlink_to(tmp_path / "outside")
        with pytest.raises(UnsupportedTypeError, match="symbolic link"):
            File.tree(folder)
        followed = File.tree(folder, follow_symlinks=True)
        assert stored(engine, tree=followed).tree["link"].read() == b"outside"
        (folder / "b" / "up").symlink_to(folder)
        with pytest.raises(UnsupportedTypeError, match="lies in"):
            File.tree(folder, follow_symlinks=True)

    def test_a_file_that_becomes_a_link_is_not_followed(self, engine, folder, tmp_path):
        tree = File.tree(folder)
        (tmp_path / "secret").write_bytes(b"s")
        (folder / "a.txt").unlink()
        (folder / "a.txt").symlink_to(tmp_path / "secret")
        with pytest.raises((StaleValueError, UnsupportedTypeError)):
            stored(engine, tree=tree)

    def test_special_files_are_refused(self, folder):
        os.mkfifo(folder / "fifo")
        with pytest.raises(UnsupportedTypeError, match="neither a file nor a folder"):
            File.tree(folder)

    @pytest.mark.parametrize("place", ["../x", "/x", "a/../../x", "", "a//b", ".", "a/", "a\0b", 5])
    def test_nothing_leaves_the_folder(self, path, tmp_path, place):
        with pytest.raises(RefusedURLError):
            File.save_tree({"fine": File(path), place: File(path)}, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_links_in_the_folder_are_not_followed(self, path, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic link"):
            File.save_tree({"a": File(path), "sub/x": File(path)}, tmp_path / "out")
        assert os.listdir(tmp_path / "elsewhere") == []
        assert os.listdir(tmp_path / "out") == ["sub"]

    def test_other_values_are_refused(self, path, tmp_path):
        with pytest.raises(UnsupportedTypeError, match="no File"):
            File.save_tree({"a": File(path), "b": b"x"}, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestAsync:
    @pytest.fixture
    def scenario(self, tmp_path):
        """Run a coroutine with an asynchronous engine whose storage is far away."""

        def run(body, storage=None):
            async def all_of_it():
                engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/async.db")
                bind_storage(engine, storage or MemoryStorage())
                try:
                    async with engine.begin() as connection:
                        await connection.run_sync(Base.metadata.create_all)
                    async with AsyncSession(engine, expire_on_commit=False) as session:
                        data = DataStore(f=File(io.BytesIO(LARGE), "x.bin"))
                        session.add(Run(id=1, data=data))
                        await session.commit()
                    async with AsyncSession(engine) as session:
                        run = await session.get(Run, 1)
                        await body(session, run)
                finally:
                    await engine.dispose()

            asyncio.run(all_of_it())

        return run

    def test_reading_on_the_loop_names_what_to_await(self, scenario, tmp_path):
        async def body(session, run):
            from sqla_datastore import aload

            file = (await aload(run.data, "f"))["f"]
            for call, name in [
                (file.open, "aread"),
                (file.read, "aread"),
                (file.iter_bytes, "aiter_bytes"),
                (lambda: file.save(tmp_path / "x"), "asave"),
                (lambda: File.save_tree({"x": file}, tmp_path / "y"), "asave"),
            ]:
                with pytest.raises(StorageError, match=name):
                    call()
            assert await file.aread() == LARGE
            assert b"".join([piece async for piece in file.aiter_bytes()]) == LARGE
            assert (await file.asave(tmp_path / "x")).read_bytes() == LARGE
            # in a greenlet of SQLAlchemy's it is awaited
            assert await session.run_sync(lambda _: file.read()) == LARGE
            assert await session.run_sync(lambda _: file.open().read()) == LARGE
            assert not (tmp_path / "y").exists()

        scenario(body)

    def test_a_folder_is_near(self, scenario, tmp_path):
        async def body(session, run):
            assert run.data.f.read() == LARGE

        scenario(body, LocalStorage(tmp_path / "near"))

    def test_a_cancelled_save_leaves_nothing(self, scenario, tmp_path):
        async def body(session, run):
            from sqla_datastore import aload

            file = (await aload(run.data, "f"))["f"]
            (tmp_path / "out").mkdir()
            is_held.set()
            task = asyncio.ensure_future(file.asave(tmp_path / "out" / "x"))
            await asyncio.to_thread(reached.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            released.set()
            for _ in range(500):
                if os.listdir(tmp_path / "out") == []:
                    break
                await asyncio.sleep(0.01)
            assert os.listdir(tmp_path / "out") == []

        is_held, reached, released = (threading.Event() for _ in range(3))

        def hold(name, when):
            if is_held.is_set():
                reached.set()
                assert released.wait(20)

        scenario(body, Watched(MemoryStorage(), hold))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_small_whatever_the_size(tmp_path):
    """Read from a path and from a pipe, written, copied to another object, and read."""
    script = """
    import io, os, sys
    from sqla_datastore import DataStoreIO, DataStore, File, options
    base = sys.argv[1]
    options.url = f"{base}/storage"
    MB, SIZE = 1_000_000, 48_000_000
    os.truncate(os.open(f"{base}/big", os.O_CREAT | os.O_RDWR), SIZE)

    class Pipe:
        def __init__(self):
            self.stream = open(f"{base}/big", "rb")
        def read(self, size):
            return self.stream.read(size)

    def peak():
        fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return int(fields["VmHWM"].split()[0]) * 1024

    def use(source):
        made = DataStoreIO.serialize_write(DataStore(f=File(source)), "x")
        file = made.read_deserialize().f
        for _ in file.iter_bytes():
            pass
        made.remove()
        return file.size_bytes

    def use_all(source):
        made = DataStoreIO.serialize_write(DataStore(f=File(source)), "x")
        file = made.read_deserialize().f
        again = DataStoreIO.serialize_write(DataStore(f=file), "x")
        again.read_deserialize().f.save(f"{base}/out")
        stream = file.open()
        while stream.read(MB):
            pass
        made.remove()
        again.remove()
        return file.size_bytes

    use_all(io.BytesIO(bytes(3 * MB)))
    before = peak()
    assert use_all(f"{base}/big") == SIZE
    assert use(Pipe()) == SIZE
    print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(script), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 20_000_000


def test_a_file_with_a_zip64_header_that_nobody_needs_is_valid(engine, base):
    value = stored(engine, f=File(Pipe(b"short")))
    with zipfile.ZipFile(object_of(base, value)) as archive:
        assert archive.testzip() is None
        assert archive.read("f.file") == b"short"
    container = Container.open(
        BytesReader(object_of(base, value).read_bytes()), "x", nested=lambda _: None
    )
    assert list(container.check(deep=True)) == []
