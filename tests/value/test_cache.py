"""Values of remote storages with `options.cache_folder`: what is downloaded once is mapped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.object_stores import CREDENTIALS, FaultProxy, request, s3_options
from support.processes import environment
from support.values import reloaded, store
from support.watched import Watched

from sqla_datastore import (
    ConfigurationError,
    DamagedObjectError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    MissingObjectError,
    StorageError,
    aload,
    bind_storage,
    inspect,
    options,
    prefetch,
)
from sqla_datastore.maintenance import check
from sqla_datastore.storage import LocalStorage, ObjectStorage, cache, cache_folder

SECONDS = 30
MIB = 1024 * 1024
LARGE = np.arange(MIB / 4)  # 2 MiB
MEDIUM = np.arange(20_000)
NUMBERS = np.arange(7_000, 7_100)


class Base(DeclarativeBase):
    """The table of this module."""


class Run(Base):
    """A row with a value."""

    __tablename__ = "cached_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


class Far(Watched):
    """A storage behind a network, which notes what it is asked for."""

    is_local = False

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.is_down = False
        super().__init__(LocalStorage(folder), self._note)

    def _note(self, name: str, when: str) -> None:
        self.asked.append(name)
        if self.is_down:
            raise StorageError("the network is down")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of a cache that is on."""
    for name in ("cache_folder", "cache_bytes", "verify"):
        monkeypatch.setattr(options, name, getattr(options, name))
    options.cache_folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "cache"


@pytest.fixture
def far(stored, folder) -> Far:
    return Far(stored.base)


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.sqla-copy"), key=lambda file: file.stat().st_size)


def value(**entries) -> DataStore:
    frame = pd.DataFrame({"a": [1, 2]})
    return DataStore(large=LARGE, small=[1, 2], frame=frame, numbers=NUMBERS, **entries)


def stored_at(storage, ds: DataStore) -> DataStore:
    store(ds, storage)
    storage.asked.clear()
    return ds


def flip(file: Path, what: bytes, count: int = 1) -> None:
    """Change a bit behind the last place where a file has some bytes."""
    data = bytearray(file.read_bytes())
    at = data.rindex(what) + len(what) - 1
    data[at] ^= 1
    # another file of the name, as the map of the one that is open must not change
    file.unlink()
    file.write_bytes(data)


# -- what is read ----------------------------------------------------------------------------------


def test_it_is_off_by_default(stored, tmp_path):
    far = Far(stored.base)
    ds = stored_at(far, value())
    assert options.cache_folder is None
    assert reloaded(ds, far).small == [1, 2]
    assert not (tmp_path / "cache").exists()


def test_what_was_read_once_is_asked_for_no_more(far, folder):
    ds = stored_at(far, value(inner=DataStore(medium=MEDIUM)))
    first = reloaded(ds, far)
    assert first.frame.a.tolist() == [1, 2]
    assert np.array_equal(first.inner.medium, MEDIUM)
    assert far.asked.count("open") == 2
    assert len(copies(folder)) == 2
    far.asked.clear()
    again = reloaded(ds, far)
    assert np.array_equal(again.large, LARGE)
    assert again.frame.a.tolist() == [1, 2]
    assert np.array_equal(again.inner.medium, MEDIUM)
    assert np.array_equal(first.large, LARGE)
    assert far.asked == []


def test_an_array_is_mapped_as_one_of_a_folder_is(far, folder, stored):
    ds = stored_at(far, value())
    local = reloaded(ds, LocalStorage(stored.base)).large
    for found in (reloaded(ds, far).large, reloaded(ds, far).large):
        assert found.flags.writeable is local.flags.writeable is False
        assert found.flags.owndata is local.flags.owndata is False
        assert found.flags.aligned
        assert type(found.base) is type(local.base)
        address = found.__array_interface__["data"][0]
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [(*(int(end, 16) for end in each[0].split("-")), each[-1]) for each in maps]
        assert [name for start, end, name in spans if start <= address < end] == [
            str(copies(folder)[0])
        ]


def test_an_index_is_read_without_the_rest(far, folder):
    ds = stored_at(far, value())
    found = reloaded(ds, far)
    assert list(found) == ["large", "small", "frame", "numbers"]
    assert inspect(found)
    assert far.asked == ["open", "read"]
    assert not folder.exists()


def test_a_small_object_is_copied_when_it_is_opened(far, folder):
    ds = stored_at(far, DataStore(n=1))
    assert list(reloaded(ds, far)) == ["n"]
    far.asked.clear()
    assert reloaded(ds, far).n == 1
    assert far.asked == []


def test_an_object_of_more_than_a_tenth_is_read_by_ranges(far, folder):
    options.cache_bytes = 10 * MIB
    ds = stored_at(far, value())
    for _ in range(2):
        far.asked.clear()
        assert reloaded(ds, far).frame.a.tolist() == [1, 2]
        assert far.asked == ["open", "read", "view"]
    assert not folder.exists()
    options.cache_bytes = 100 * MIB
    assert reloaded(ds, far).frame.a.tolist() == [1, 2]
    assert len(copies(folder)) == 1


def test_a_local_object_is_not_copied(stored, folder):
    storage = LocalStorage(stored.base)
    ds = value()
    store(ds, storage)
    assert np.array_equal(reloaded(ds, storage).large, LARGE)
    assert not folder.exists()


@pytest.mark.parametrize("size", [0, 10, 100_000, 3 * MIB])
def test_managed_objects(far, folder, size):
    data = os.urandom(size)
    written = DataStoreIO.write(data, "reports", far)
    frame = DataStoreIO.serialize_write(pd.DataFrame({"a": [1]}), "reports", far)
    for _ in range(2):
        far.asked.clear()
        assert DataStoreIO(written.url, storage=far).read() == data
        with DataStoreIO(written.url, storage=far).open() as stream:
            stream.seek(size // 2)
            assert stream.read() == data[size // 2 :]
        assert DataStoreIO(frame.url, storage=far).read_deserialize().a.tolist() == [1]
    assert far.asked == []


def test_prefetching_and_loading_in_coroutines_fill_it(far, folder, tmp_path):
    engine = create_engine("sqlite://")
    bind_storage(engine, far)
    Base.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add_all([Run(id=n, data=DataStore(n=n, medium=MEDIUM)) for n in range(3)])
    with Session(engine) as session:
        rows = session.scalars(select(Run)).all()
        prefetch(rows[:2], Run.data, ["medium"])
        asyncio.run(aload(rows[2].data, "medium"))
        assert len(copies(folder)) == 3
    with Session(engine) as session:
        far.asked.clear()
        rows = session.scalars(select(Run)).all()
        prefetch(rows, Run.data)
        assert [row.data.n for row in rows] == [0, 1, 2]
        assert far.asked == []
    engine.dispose()


def test_on_an_event_loop_a_copy_is_as_far_as_its_object(far, folder, tmp_path):
    """So that a program does not depend on what the cache holds."""

    async def scenario():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'runs.db'}")
        bind_storage(engine, far)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session, session.begin():
            session.add(Run(id=1, data=value()))
        async with AsyncSession(engine) as session:
            await aload((await session.get(Run, 1)).data)
            assert len(copies(folder)) == 1
        async with AsyncSession(engine) as session:
            run = await session.get(Run, 1)
            with pytest.raises(StorageError, match="await aload"):
                _ = run.data.large
            far.asked.clear()
            await aload(run.data)
            assert_whole(run.data)
            assert far.asked == []
        await engine.dispose()

    asyncio.run(asyncio.wait_for(scenario(), SECONDS))


def test_threads_that_ask_for_one_object(far, folder):
    ds, found = stored_at(far, value()), []
    threads = [
        threading.Thread(target=lambda: found.append(reloaded(ds, far).large)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(found) == 8
    assert all(np.array_equal(each, LARGE) for each in found)
    assert len(copies(folder)) == len(list(folder.iterdir())) - 1 == 1


# -- what the storage has --------------------------------------------------------------------------


def test_who_looks_after_a_storage_looks_at_the_storage(far, folder, stored):
    engine, url = engine_with_a_copied_row(far)
    assert check(engine, Base.metadata, deep=True).is_clean
    file = stored.base / url.removeprefix("file:///")
    flip(file, LARGE[-1:].tobytes())
    assert check(engine, Base.metadata, deep=True).damaged.count == 1
    file.unlink()
    assert check(engine, Base.metadata).dangling.count == 1
    managed = DataStoreIO(url, storage=far)
    assert not managed.exists()
    with pytest.raises(MissingObjectError):
        _ = managed.size_bytes
    with Session(engine) as session:  # an object never changes, so a copy is right for ever
        assert np.array_equal(session.get(Run, 1).data.large, LARGE)
    engine.dispose()


def test_a_missing_object_is_told_where_there_is_no_copy(far, folder, stored):
    ds = stored_at(far, value())
    (stored.base / ds.url.removeprefix("file:///")).unlink()
    with pytest.raises(MissingObjectError):
        _ = reloaded(ds, far).frame
    assert not folder.exists()


# -- damage ----------------------------------------------------------------------------------------


PLACES = {
    "index": b'"small"',
    "small entry": b"[1,2]",
    "anchor": b"PK\x05\x06",
    "small payload": NUMBERS[-1:].tobytes(),
    "payload": LARGE[-1:].tobytes(),
}


def engine_with_a_copied_row(far):
    """Return an engine with a row that was read, and the URL of its value."""
    engine = create_engine("sqlite://")
    bind_storage(engine, far)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=value()))
    with Session(engine) as session:
        ds = session.get(Run, 1).data
        assert_whole(ds)
        return engine, ds.url


def assert_whole(found: DataStore) -> None:
    assert found.small == [1, 2]
    assert found.frame.a.tolist() == [1, 2]
    assert np.array_equal(found.numbers, NUMBERS)
    assert np.array_equal(found.large, LARGE)


@pytest.mark.parametrize("where", PLACES)
def test_a_damaged_copy_is_dropped_and_made_anew(far, folder, where):
    ds = stored_at(far, value())
    assert_whole(reloaded(ds, far))
    flip(copies(folder)[0], PLACES[where])
    # the numbers of a large array are not compared by default, as those in a folder are not
    options.verify = "always" if where == "payload" else "default"
    far.asked.clear()
    assert_whole(reloaded(ds, far))
    assert far.asked.count("open") == 1
    assert cache_folder.CacheFolder(str(folder), 1).find(copies(folder)[0].stem, compared=True)
    far.asked.clear()
    assert_whole(reloaded(ds, far))
    assert far.asked == []


def test_a_copy_that_was_cut_off_is_made_anew(far, folder):
    ds = stored_at(far, value())
    assert_whole(reloaded(ds, far))
    os.truncate(copies(folder)[0], MIB * 3 // 2)
    assert_whole(reloaded(ds, far))
    assert copies(folder)[0].stat().st_size > 2 * MIB


def test_a_damaged_copy_that_cannot_be_removed_is_not_used(far, folder, monkeypatch, caplog):
    ds = stored_at(far, value())
    assert_whole(reloaded(ds, far))
    flip(copies(folder)[0], PLACES["small payload"])

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    for name in ("unlink", "rename", "posix_fallocate", "ftruncate"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    assert_whole(reloaded(ds, far))
    assert "Read-only" in caplog.text


def test_damage_is_not_copied_into_another_object(far, folder):
    ds = stored_at(far, value())
    assert_whole(reloaded(ds, far))
    flip(copies(folder)[0], PLACES["payload"])
    found = reloaded(ds, far)
    assert found.large[-1] != LARGE[-1]
    # who copies an entry into another object compares all of the copy first
    found.note = "new"
    other = stored_at(far, found)
    assert_whole(reloaded(other, far))


def test_an_edit_of_a_row_copies_no_damage(far, folder, stored):
    engine, _ = engine_with_a_copied_row(far)
    flip(copies(folder)[0], PLACES["payload"])
    with Session(engine) as session, session.begin():
        session.get(Run, 1).data.small.append(3)
    with Session(engine) as session:
        assert session.get(Run, 1).data.small == [1, 2, 3]
    assert check(engine, Base.metadata, deep=True).is_clean
    assert len(stored.files()) == 1
    engine.dispose()


def test_an_object_that_is_damaged_itself_is_not_kept(far, folder, stored):
    ds = stored_at(far, value())
    flip(stored.base / ds.url.removeprefix("file:///"), PLACES["payload"])
    for _ in range(2):
        found = reloaded(ds, far)
        assert found.small == [1, 2]  # as without a cache: only what is damaged is refused
        with pytest.raises(DamagedObjectError, match="'large'"):
            _ = found.large
    assert copies(folder) == []


def test_what_was_damaged_on_the_way_is_not_kept(far, folder, monkeypatch):
    ds = stored_at(far, value())
    real = cache._Reader._downloaded

    def damaged(self):
        for piece in real(self):
            data = bytearray(piece)
            data[MIB] ^= 1
            yield data

    monkeypatch.setattr(cache._Reader, "_downloaded", damaged)
    assert_whole(reloaded(ds, far))
    assert copies(folder) == []
    monkeypatch.setattr(cache._Reader, "_downloaded", real)
    assert_whole(reloaded(ds, far))
    assert len(copies(folder)) == 1


# -- when the cache fails --------------------------------------------------------------------------


def fill_disk(folder, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)


def open_to_others(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o777)


def be_a_file(folder, monkeypatch):
    folder.write_bytes(b"mine")


@pytest.mark.parametrize("fail", [fill_disk, open_to_others, be_a_file])
def test_reading_goes_on_without_it(far, folder, monkeypatch, caplog, fail):
    fail(folder, monkeypatch)
    ds, small = stored_at(far, value()), stored_at(far, DataStore(n=1))
    with caplog.at_level(logging.WARNING, "sqla_datastore"):
        for _ in range(2):
            assert_whole(reloaded(ds, far))
            assert reloaded(small, far).n == 1
    assert len(caplog.records) == 1
    assert "options.cache_folder" in caplog.text
    assert str(folder) in caplog.text
    assert not folder.is_dir() or copies(folder) == []


def test_a_storage_that_fails_meanwhile_is_told(far, folder):
    ds = stored_at(far, value())
    found = reloaded(ds, far)
    assert list(found)
    far.is_down = True
    with pytest.raises(StorageError, match="network"):
        _ = found.large
    far.is_down = False
    assert list(folder.glob("*.sqla-part")) == copies(folder) == []
    assert_whole(found)
    assert len(copies(folder)) == 1


# -- S3, and other processes -----------------------------------------------------------------------

_LOAD = """
import json, pickle, sys
from sqla_datastore import options

given = json.loads(sys.argv[1])
options.storage_options, options.cache_folder = given["options"], given["folder"]
ds = pickle.loads(bytes.fromhex(given["value"]))
print(float(ds.large.sum()), ds.inner.n)
print([name for name in sys.modules if name.startswith("sqla_datastore.storage.cache")])
"""


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """A bucket's storage behind a proxy, and the proxy."""
    name = f"b-{uuid.uuid4().hex}"
    request(s3_endpoint, "PUT", f"/{name}")
    proxy = FaultProxy(s3_endpoint)
    with proxy.running() as endpoint:
        monkeypatch.setattr(options, "storage_options", s3_options(endpoint))
        yield ObjectStorage.at(f"s3://{name}/base"), proxy


def load_elsewhere(ds: DataStore, folder: Path | None) -> list[str]:
    given = {
        "options": dict(options.storage_options),
        "folder": None if folder is None else str(folder),
        "value": pickle.dumps(ds).hex(),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LOAD, json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_value_in_a_bucket_is_downloaded_once_for_all_processes(s3, folder):
    storage, proxy = s3
    ds = value(inner=DataStore(n=7))
    store(ds, storage)
    proxy.seen.clear()
    found = reloaded(ds, storage)
    assert np.array_equal(found.large, LARGE)
    assert found.inner.n == 7
    # the end and all of the large object, and the nested one at once
    assert [seen.method for seen in proxy.seen] == ["GET"] * 3
    proxy.seen.clear()
    again = reloaded(ds, storage)
    assert np.array_equal(again.large, LARGE)
    assert again.inner.n == 7
    assert load_elsewhere(ds, folder)[0] == f"{LARGE.sum()} 7"
    assert proxy.seen == []
    assert load_elsewhere(ds, None) == [f"{LARGE.sum()} 7", "[]"]  # nothing is paid when it is off
    assert len(proxy.seen) == 3
    for file in folder.iterdir():
        shown = file.name.encode() + file.read_bytes()
        assert CREDENTIALS["secret_access_key"].encode() not in shown
        assert CREDENTIALS["access_key_id"].encode() not in shown


def test_a_copy_belongs_to_one_place(s3, folder, far):
    """Two storages may have an object under one name."""
    storage, _ = s3
    found = []
    for place, text in ((storage, b"there"), (far, b"here")):
        path = "reports/" + "0" * 32 + ".bin"
        with place.create(path) as writer:
            writer.write(text)
        managed = DataStoreIO(f"{place.scheme}:///{path}", storage=place)
        found += [managed.read(), managed.read()]
    assert found == [b"there", b"there", b"here", b"here"]
    assert len(copies(folder)) == 2


# -- options ---------------------------------------------------------------------------------------


def test_a_folder_is_a_local_path(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options.cache_folder = "~/mine"
    assert options.cache_folder == str(tmp_path / "mine")
    options.cache_folder = Path("here")
    assert options.cache_folder == str(tmp_path / "here")
    assert not (tmp_path / "here").exists()
    for wrong, error in (("", ConfigurationError), ("s3://b", ConfigurationError), (1, TypeError)):
        with pytest.raises(error):
            options.cache_folder = wrong
    options.cache_folder = None
    assert options.cache_folder is None


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", None])
def test_the_limit_is_a_positive_number(folder, value):
    with pytest.raises(ValueError, match="cache_bytes"):
        options.cache_bytes = value
