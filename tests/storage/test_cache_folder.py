"""The folder of the local cache: what it keeps, damage, and its limit between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
from support.processes import environment

from sqla_datastore.storage import cache_folder
from sqla_datastore.storage.cache_folder import CacheFolder

SECONDS = 60
KIB = 1024
FOOTER = 24


def name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def content(text: str, size: int) -> bytes:
    return (name_of(text).encode() * (size // 64 + 1))[:size]


def put(folder: CacheFolder, text: str, size: int = 10 * KIB):
    return folder.add(name_of(text), size, [content(text, size)], lambda copy: None)


def get(folder: CacheFolder, text: str, *, compared: bool = False) -> bytes | None:
    copy = folder.find(name_of(text), compared=compared)
    return None if copy is None else bytes(copy.data)


def taken(path: Path) -> int:
    """What copies take, finished or not, at one moment."""
    sizes: dict[int, int] = {}
    top = os.open(path, os.O_RDONLY)
    try:
        with cache_folder._locked(top):
            for entry in os.scandir(path):
                # one that gets its name meanwhile may be listed twice
                if entry.name.endswith(("-copy", "-part")):
                    with suppress(FileNotFoundError):
                        sizes[entry.inode()] = entry.stat().st_size
    finally:
        os.close(top)
    return sum(sizes.values())


def file_of(path: Path, text: str) -> Path:
    return path / f"{name_of(text)}.sqla-copy"


def parts(path: Path) -> list[Path]:
    return list(path.glob("*.sqla-part"))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "above" / "cache"


@pytest.fixture
def folder(path) -> CacheFolder:
    return CacheFolder(str(path), 1_000 * KIB)


@pytest.mark.parametrize("size", [0, 1, 10 * KIB, 64 * KIB, 64 * KIB + 1, 900 * KIB])
def test_what_was_added_is_found(folder, path, size):
    assert get(folder, "a") is None
    assert not path.exists()
    assert bytes(put(folder, "a", size).data) == content("a", size)
    assert get(folder, "a", compared=True) == content("a", size)
    assert folder.find(name_of("a"), compared=False).data.readonly
    assert parts(path) == []


def test_it_is_for_its_owner_alone(folder, path):
    put(folder, "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(folder, path, mode):
    put(folder, "a")
    path.chmod(mode)
    for call in (lambda: get(folder, "a"), lambda: put(folder, "b")):
        with pytest.raises(PermissionError, match="chmod 700"):
            call()


def test_a_file_in_its_place(folder, path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    for call in (lambda: get(folder, "a"), lambda: put(folder, "b")):
        with pytest.raises(NotADirectoryError):
            call()
    assert path.read_bytes() == b"mine"


def test_what_was_used_last_the_longest_ago_goes(folder, path):
    for number in range(9):
        put(folder, str(number), 100 * KIB)
        os.utime(file_of(path, str(number)), (number, number))
    assert get(folder, "0") == content("0", 100 * KIB)
    put(folder, "new", 100 * KIB)
    left = [n for n in (*map(str, range(9)), "new") if file_of(path, n).exists()]
    assert left == ["0", *map(str, range(3, 9)), "new"]  # a tenth of the limit is free
    assert taken(path) <= 900 * KIB


def test_files_of_others_stay(folder, path):
    path.mkdir(parents=True)
    others = {
        *("data.csv", "a.zip", name_of("x"), f"{name_of('x')}.sqla-copy.bak", "x.sqla-copy"),
        *(f"{name_of('x').upper()}.sqla-copy", f"{name_of('x')}.sqla-part", "#1.part"),
    }
    for name in others:
        (path / name).write_bytes(bytes(500 * KIB))
    (path / f"{name_of('folder')}.sqla-copy").mkdir()
    (path / f"{name_of('link')}.sqla-copy").symlink_to(path / "data.csv")
    for number in range(30):
        assert put(folder, str(number), 100 * KIB) is not None
    assert {name for name in others if (path / name).stat().st_size == 500 * KIB} == others
    assert (path / f"{name_of('folder')}.sqla-copy").is_dir()
    assert (path / f"{name_of('link')}.sqla-copy").is_symlink()


def test_a_copy_that_was_removed_is_used_on(folder, path):
    copy = put(folder, "a", 200 * KIB)
    found = folder.find(name_of("a"), compared=False)
    for number in range(20):
        put(folder, str(number), 100 * KIB)
    assert not file_of(path, "a").exists()
    assert bytes(copy.data) == bytes(found.data) == content("a", 200 * KIB)


def test_what_finds_no_room_is_not_added(folder, path):
    entered, leave = threading.Event(), threading.Event()

    def slowly():
        yield content("slow", 600 * KIB)
        entered.set()
        assert leave.wait(SECONDS)

    thread = threading.Thread(
        target=folder.add, args=(name_of("slow"), 600 * KIB, slowly(), lambda copy: None)
    )
    thread.start()
    try:
        assert entered.wait(SECONDS)
        assert put(folder, "other", 600 * KIB) is None
        assert put(folder, "small", 100 * KIB) is not None
    finally:
        leave.set()
        thread.join()
    assert get(folder, "slow") == content("slow", 600 * KIB)


def test_a_count_that_is_wrong_is_corrected(folder, path):
    put(folder, "a", 300 * KIB)
    (path / "lock.sqla-lock").write_bytes(b"%020d" % (990 * KIB))
    put(folder, "b", 300 * KIB)
    assert get(folder, "a") is not None
    (path / "lock.sqla-lock").write_bytes(b"nonsense")
    put(folder, "c", 300 * KIB)
    assert int((path / "lock.sqla-lock").read_bytes()) == taken(path) == 900 * KIB + 3 * FOOTER


def test_a_smaller_limit_holds_from_the_next_copy_on(folder, path):
    for number in range(9):
        put(folder, str(number), 100 * KIB)
    put(CacheFolder(str(path), 300 * KIB), "new", 20 * KIB)
    assert taken(path) <= 300 * KIB
    assert get(folder, "new") is not None


# -- damage ----------------------------------------------------------------------------------------


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "cut off":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    elif how == "longer":
        data += b"x"
    elif how == "zeros":
        data = bytearray(len(data))
    else:
        data[100] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["cut off", "empty", "longer", "zeros", "bit"])
@pytest.mark.parametrize("size", [10 * KIB, 200 * KIB])
def test_a_damaged_copy_is_removed(folder, path, how, size):
    put(folder, "a", size)
    damage(file_of(path, "a"), how)
    assert get(folder, "a") is None
    assert not file_of(path, "a").exists()


def test_of_a_large_copy_the_size_is_looked_at(path):
    folder, size = CacheFolder(str(path), 100 * KIB * KIB), 3 * KIB * KIB
    put(folder, "a", size)
    damage(file_of(path, "a"), "bit")
    assert get(folder, "a") is not None
    assert not folder.find(name_of("a"), compared=False).is_sound()
    assert get(folder, "a", compared=True) is None
    put(folder, "b", size)
    damage(file_of(path, "b"), "cut off")
    assert get(folder, "b") is None


@pytest.mark.parametrize("count", [-1, 1])
def test_an_object_of_another_size_is_not_kept(folder, path, count):
    with pytest.raises(EOFError):
        folder.add(name_of("a"), 100, [bytes(100 + count)], lambda copy: None)
    assert get(folder, "a") is None
    assert parts(path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_not_right_is_not_kept(folder, path, error):
    def refuse(copy):
        raise error

    with pytest.raises(error):
        folder.add(name_of("a"), 100, [bytes(100)], refuse)
    assert get(folder, "a") is None
    assert parts(path) == []


def test_a_full_disk_leaves_nothing(folder, path, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    put(folder, "a")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        put(folder, "b")
    assert get(folder, "a") is not None
    assert parts(path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no such call")
def test_a_full_disk_is_noticed_before_the_download(folder, path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    pieces = iter([bytes(100)])
    with pytest.raises(OSError, match="No space"):
        folder.add(name_of("a"), 100, pieces, lambda copy: None)
    assert len(list(pieces)) == 1
    assert parts(path) == []


def test_file_systems_that_cannot_allocate(folder, monkeypatch):
    def unknown(descriptor, offset, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    assert put(folder, "a", 300 * KIB).is_sound()
    assert get(folder, "a") == content("a", 300 * KIB)


# -- processes -------------------------------------------------------------------------------------

_BEGIN = """
import sys, time
from sqla_datastore.storage.cache_folder import CacheFolder

def pieces():
    yield bytes(100)
    print("begun", flush=True)
    time.sleep(600)

CacheFolder(sys.argv[1], 1_024_000).add("0" * 64, 600 * 1024, pieces(), lambda copy: None)
"""


def test_what_a_crash_leaves_goes_when_room_is_needed(folder, path):
    put(folder, "a", 300 * KIB)
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGIN, str(path)], stdout=subprocess.PIPE, env=environment()
    )
    try:
        assert process.stdout.readline() == b"begun\n"
        assert len(parts(path)) == 1
        assert put(folder, "b", 600 * KIB) is None  # it is at work
        assert len(parts(path)) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(parts(path)) == 1
    put(folder, "c", 600 * KIB)
    assert parts(path) == []
    assert get(folder, "c") == content("c", 600 * KIB)


def _add_many(path: str, limit: int, number: int) -> int:
    folder, right = CacheFolder(path, limit), 0
    for n in range(60):
        text = str((n * 7 + number) % 50)  # the others add the same ones
        copy = folder.find(name_of(text), compared=False)
        if copy is None:
            copy = put(folder, text, 20 * KIB + n)
        right += copy is not None and copy.is_sound()
    return right


def test_processes_keep_the_limit_together(path):
    limit, most = 400 * KIB, 0
    with get_context("spawn").Pool(3) as pool:
        running = pool.starmap_async(_add_many, [(str(path), limit, n) for n in range(3)])
        while not running.ready():
            if path.exists():
                most = max(most, taken(path))
            time.sleep(0.0005)
        found = running.get(SECONDS)
    assert found == [60, 60, 60]
    assert limit / 2 < most <= limit
    assert taken(path) <= limit
    assert parts(path) == []


def test_a_lock_that_is_held_for_ever_is_given_up(folder, path, monkeypatch):
    put(folder, "a")
    monkeypatch.setattr(cache_folder, "_LOCK_SECONDS", 0.05)
    top = os.open(path, os.O_RDONLY)
    try:
        with cache_folder._locked(top), pytest.raises(TimeoutError):
            put(folder, "b")
    finally:
        os.close(top)
    assert get(folder, "a") is not None
    assert put(folder, "b") is not None
