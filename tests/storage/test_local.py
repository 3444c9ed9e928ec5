"""LocalStorage keeps the promises of every storage, and those of a file system with enemies."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.folders import deep_folders

from sqla_datastore.exceptions import (
    ConfigurationError,
    MissingObjectError,
    RefusedURLError,
    StorageError,
)
from sqla_datastore.options import options
from sqla_datastore.storage import LocalStorage, linux, parallel, posix
from sqla_datastore.storage.binding import open_storage
from sqla_datastore.testing import StorageSuite


def files_below(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if not path.is_dir()}


class Audited(LocalStorage):
    def __init__(self, base, *, note):
        super().__init__(base)
        self.note = note


def write(storage, path, data=b"data"):
    with storage.create(path) as writer:
        writer.write(data)


@pytest.fixture(params=["one call", "step by step"])
def walk(request, monkeypatch):
    """Reach what lies below a base in each of the two ways."""
    if request.param == "step by step":
        monkeypatch.setattr(linux, "open_beneath", lambda *args: None)
    elif linux._openat2_if_there() is None:
        pytest.skip("this system has no openat2")


@pytest.fixture
def base(tmp_path):
    return tmp_path / "deep" / "base"


@pytest.fixture
def storage(base):
    return LocalStorage(base)


@pytest.mark.usefixtures("walk")
class TestLocalStorage(StorageSuite):
    @pytest.fixture
    def storage(self, base):
        return LocalStorage(base)

    def raw_read(self, storage, path):
        file = Path(storage.base, path)
        return file.read_bytes() if file.exists() else None

    def raw_write(self, storage, path, data):
        file = Path(storage.base, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def raw_paths(self, storage):
        return files_below(Path(storage.base))


@pytest.mark.usefixtures("walk")
class TestFolders:
    def test_nothing_is_made_before_the_first_write(self, storage, base):
        assert list(storage.list("")) == []
        with pytest.raises(MissingObjectError):
            storage.open("a.zip")
        storage.remove(["a/b.zip"])
        assert not base.parent.exists()

    def test_emptied_folders_go_up_to_the_base(self, storage, base):
        write(storage, "a/b/c/x.zip")
        write(storage, "a/y.zip")
        storage.remove(["a/b/c/x.zip"])
        assert sorted(os.listdir(base / "a")) == ["y.zip"]
        storage.remove(["a/y.zip"])
        assert os.listdir(base) == []

    def test_a_failed_write_leaves_no_folder(self, storage, base):
        with pytest.raises(ZeroDivisionError), storage.create("a/b/x.zip"):
            raise ZeroDivisionError
        assert os.listdir(base) == []

    def test_a_later_chdir_does_not_move_the_base(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        storage = LocalStorage("here")
        monkeypatch.chdir("/")
        write(storage, "a.zip")
        assert files_below(tmp_path) == {"here/a.zip"}

    def test_a_storage_pickles_and_compares_by_its_base(self, storage):
        assert pickle.loads(pickle.dumps(storage)) == storage
        assert storage != LocalStorage("/elsewhere")
        assert LocalStorage(storage.base) is storage
        assert copy.deepcopy(storage) is storage
        assert repr(storage) == f"LocalStorage({storage.base!r})"

    def test_two_threads_that_name_a_new_folder_get_one_storage(self, tmp_path):
        barrier = threading.Barrier(8)

        def make():
            barrier.wait()
            return LocalStorage(tmp_path / "new")

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(make) for _ in range(8)]
            assert len({id(future.result()) for future in futures}) == 1

    def test_a_subclass_has_storages_of_its_own(self, storage):
        own = Audited(storage.base, note="nightly")
        assert own is not storage
        assert own is not Audited(storage.base, note="nightly")
        again = pickle.loads(pickle.dumps(own))
        assert (type(again), again.base, again.note) == (Audited, storage.base, "nightly")

    def test_a_file_in_a_folders_place(self, storage, base):
        write(storage, "a")
        with pytest.raises(StorageError):
            write(storage, "a/b.zip")
        assert list(storage.list("a")) == []
        assert files_below(base) == {"a"}

    def test_a_folder_in_an_objects_place(self, storage):
        write(storage, "a/b.zip")
        for call in (storage.open, storage.size_bytes, lambda path: storage.remove([path])):
            with pytest.raises(StorageError):
                call("a")
        with pytest.raises(StorageError):
            write(storage, "a")


@pytest.mark.usefixtures("walk")
class TestLinks:
    @pytest.fixture
    def outside(self, tmp_path, storage):
        write(storage, "real/x.zip")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "x.zip").write_bytes(b"secret")
        return outside

    def calls(self, storage):
        return [
            storage.open,
            storage.size_bytes,
            lambda path: storage.make_durable([path]),
            lambda path: storage.remove([path]),
            lambda path: write(storage, path),
            lambda path: list(storage.list(path.rpartition("/")[0])),
        ]

    def test_a_linked_folder_is_refused(self, storage, base, outside):
        (base / "linked").symlink_to(outside)
        for call in self.calls(storage):
            with pytest.raises(StorageError, match="symbolic link"):
                call("linked/x.zip")
        assert files_below(outside) == {"x.zip"}

    def test_a_linked_folder_further_up_is_refused(self, storage, base, outside):
        (outside / "sub").mkdir()
        (base / "linked").symlink_to(outside)
        for call in self.calls(storage):
            with pytest.raises(StorageError, match="symbolic link"):
                call("linked/sub/x.zip")

    def test_a_linked_object_is_refused(self, storage, base, outside):
        (base / "real" / "y.zip").symlink_to(outside / "x.zip")
        for call in (storage.open, storage.size_bytes):
            with pytest.raises(StorageError, match="symbolic link"):
                call("real/y.zip")
        storage.remove(["real/y.zip"])
        assert files_below(outside) == {"x.zip"}

    def test_links_and_special_files_are_not_listed(self, storage, base, outside):
        (base / "linked").symlink_to(outside)
        (base / "y.zip").symlink_to(outside / "x.zip")
        os.mkfifo(base / "z.zip")
        assert [found.path for found in storage.list("")] == ["real/x.zip"]

    def test_the_base_itself_may_be_a_link(self, tmp_path, storage, base):
        write(storage, "a.zip")
        (tmp_path / "link").symlink_to(base)
        assert LocalStorage(tmp_path / "link").size_bytes("a.zip") == 4


@pytest.mark.usefixtures("walk")
class TestForeignFiles:
    def test_a_fifo_does_not_hang(self, storage, base):
        base.mkdir(parents=True)
        os.mkfifo(base / "a.zip")
        for call in (storage.open, storage.size_bytes):
            with pytest.raises(StorageError, match="not a regular file"):
                call("a.zip")

    def test_unfinished_and_foreign_names_are_not_listed(self, storage, base):
        with storage.create("a.zip") as writer:
            writer.write(b"data")
            assert len(files_below(base)) == 1
            assert list(storage.list("")) == []
        (base / "my notes.txt").touch()
        (base / os.fsdecode(b"\xff.zip")).touch()
        (base / "a folder").mkdir()
        (base / "a folder" / "b.zip").touch()
        assert [found.path for found in storage.list("")] == ["a.zip"]

    def test_percent_encoding_stays_on_disk(self, storage, base):
        write(storage, "%2Ea/a%20b.zip")
        assert files_below(base) == {"%2Ea/a%20b.zip"}


@pytest.mark.usefixtures("walk")
class TestFailures:
    @pytest.fixture
    def file_base(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        return LocalStorage(tmp_path / "file")

    def test_a_base_that_is_a_file(self, file_base):
        for call in (
            lambda: write(file_base, "a/b.zip"),
            lambda: file_base.open("b.zip"),
            lambda: list(file_base.list("")),
        ):
            with pytest.raises(StorageError) as caught:
                call()
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.url

    def test_a_base_below_a_file(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StorageError):
            write(LocalStorage(tmp_path / "file" / "base"), "a.zip")

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a read-only place")
    def test_a_read_only_base(self):
        with pytest.raises(StorageError):
            write(LocalStorage("/proc/self/base"), "a.zip")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
    @pytest.mark.parametrize("call", ["write", "link", "open"])
    def test_a_fault_leaves_no_file(self, storage, base, monkeypatch, code, call):
        write(storage, "kept/a.zip")

        def fail(*args, **kwargs):
            raise OSError(code, os.strerror(code))

        real_open = os.open

        def open_or_fail(path, flags, *args, **kwargs):
            return (fail if flags & os.O_CREAT else real_open)(path, flags, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, open_or_fail if call == "open" else fail)
            if call == "link" and code in posix._NO_HARD_LINKS:
                pytest.skip("means that there are no hard links")
            with pytest.raises(StorageError) as caught:
                write(storage, "new/b.zip")
        assert caught.value.__cause__.errno == code
        assert caught.value.url == "file:///new/b.zip"
        assert files_below(base) == {"kept/a.zip"}
        assert os.listdir(base) == ["kept"]

    @pytest.mark.parametrize(("links", "which"), [(True, 0), (False, 0), (False, 1)])
    def test_a_file_that_cannot_be_closed_leaves_nothing(
        self, storage, base, monkeypatch, links, which
    ):
        """NFS tells so of writes that failed; the second file claims a name without hard links."""
        write(storage, "kept/a.zip")
        closed = []
        real = os.close

        def close(descriptor):
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            real(descriptor)
            if is_file:
                closed.append(descriptor)
                if len(closed) == which + 1:
                    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        def no_links(*args, **kwargs):
            raise OSError(errno.EPERM, "no links here")

        with monkeypatch.context() as patched:
            patched.setattr(os, "close", close)
            if not links:
                patched.setattr(os, "link", no_links)
            with pytest.raises(StorageError) as caught:
                write(storage, "new/b.zip")
        assert caught.value.__cause__.errno == errno.EDQUOT
        assert len(closed) == which + 1
        assert files_below(base) == {"kept/a.zip"}
        assert os.listdir(base) == ["kept"]

    def test_a_folder_that_cannot_be_closed_is_no_failure(self, storage, base, monkeypatch):
        """Nothing was written through its descriptor, and the object has its name."""
        failures = []
        real = os.close

        def close(descriptor):
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            real(descriptor)
            if is_folder and (base / "new" / "a.zip").exists():
                failures.append(descriptor)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patched:
            patched.setattr(os, "close", close)
            write(storage, "new/a.zip")
        assert len(failures) == 1
        assert files_below(base) == {"new/a.zip"}

    def test_an_error_of_the_caller_is_raised_though_closing_fails(
        self, storage, base, monkeypatch
    ):
        real = os.close

        def close(descriptor):
            real(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with storage.create("new/b.zip") as writer:
            writer.write(b"data")

        def fail():
            with storage.create("new/a.zip"):
                monkeypatch.setattr(os, "close", close)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        monkeypatch.undo()
        assert files_below(base) == {"new/b.zip"}

    def test_file_systems_without_hard_links(self, storage, base, monkeypatch):
        def no_links(*args, **kwargs):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", no_links)
        write(storage, "a.zip", b"first")
        with pytest.raises(StorageError, match="never overwritten"):
            write(storage, "a.zip", b"second")
        assert (base / "a.zip").read_bytes() == b"first"
        assert files_below(base) == {"a.zip"}

    @pytest.mark.parametrize("below", ["", "deeper"])
    def test_a_base_that_is_a_file_is_called_one(self, tmp_path, below):
        (tmp_path / "file").write_text("mine")
        storage = LocalStorage(tmp_path / "file" / below)
        for act in (lambda: write(storage, "runs/a.zip"), lambda: storage.open("runs/a.zip")):
            with pytest.raises(StorageError, match="a file") as caught:
                act()
            assert "overwritten" not in str(caught.value)
            assert repr(storage.base) in str(caught.value)
        storage.remove(["runs/a.zip", "a.zip"])
        assert (tmp_path / "file").read_text() == "mine"

    def test_what_lies_below_a_file_is_gone_already(self, storage, base):
        write(storage, "runs/a.zip")
        storage.remove(["runs/a.zip/b.zip", "runs/a.zip/deep/er/b.zip"])
        assert files_below(base) == {"runs/a.zip"}

    def test_a_link_that_cannot_be_finished_is_undone(self, storage, base, monkeypatch):
        real = os.unlink
        failures = iter([OSError(errno.EIO, "broken")])

        def unlink(path, **kwargs):
            for failure in failures:
                raise failure
            real(path, **kwargs)

        monkeypatch.setattr(os, "unlink", unlink)
        with pytest.raises(StorageError):
            write(storage, "a.zip")
        assert files_below(base) == set()

    def test_short_writes_go_on(self, storage, base, monkeypatch):
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[:3]))
        write(storage, "a.zip", b"0123456789")
        assert (base / "a.zip").read_bytes() == b"0123456789"

    def test_remove_tries_all_before_it_raises(self, storage, base):
        write(storage, "a/folder/x.zip")
        write(storage, "a/y.zip")
        with pytest.raises(StorageError) as caught:
            storage.remove(["a/folder", "a/y.zip", "a"])
        assert files_below(base) == {"a/folder/x.zip"}
        assert "1 more" in caught.value.__notes__[0]

    @pytest.mark.parametrize("slow_seconds", [-1, 3600])
    def test_failures_keep_their_order(self, storage, base, monkeypatch, slow_seconds):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", slow_seconds)
        for number in range(40):
            write(storage, f"{number:02}/x.zip")
        with pytest.raises(StorageError) as caught:
            storage.remove(
                [f"{number:02}{'/x.zip' * (number not in (7, 9, 35))}" for number in range(40)]
            )
        assert caught.value.url == "file:///07"
        assert "2 more" in caught.value.__notes__[0]
        assert files_below(base) == {"07/x.zip", "09/x.zip", "35/x.zip"}
        assert sorted(os.listdir(base)) == ["07", "09", "35"]

    def test_each_folder_is_tried_once(self, storage, base, monkeypatch):
        paths = [f"a/{number % 3}/{number}/x.zip" for number in range(12)]
        for path in [*paths, "a/0/kept.zip"]:
            write(storage, path)
        real, tried = os.rmdir, []

        def rmdir(name, *, dir_fd):
            tried.append(name)
            real(name, dir_fd=dir_fd)

        monkeypatch.setattr(os, "rmdir", rmdir)
        storage.remove(paths)
        assert files_below(base) == {"a/0/kept.zip"}
        assert os.listdir(base / "a") == ["0"]
        # twelve folders of objects, then the three above, then the one that holds what is kept
        assert len(tried) == 12 + 3 + 1
        assert tried[-1] == "a"

    def test_a_base_that_cannot_be_opened_fails_every_path(self, storage, monkeypatch):
        write(storage, "a.zip")

        def fail(*args, **kwargs):
            raise OSError(errno.EMFILE, "too many")

        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(StorageError, match="too many") as caught:
            storage.remove(["a.zip", "b.zip"])
        assert caught.value.url == "file:///a.zip"
        assert "1 more" in caught.value.__notes__[0]

    def test_a_folder_that_got_a_file_before_it_went_stays(self, storage, base, monkeypatch):
        write(storage, "a/b/x.zip")
        real = os.unlink

        def unlink(name, *, dir_fd):
            real(name, dir_fd=dir_fd)
            (base / "a" / "b" / "new.zip").write_bytes(b"new")

        monkeypatch.setattr(os, "unlink", unlink)
        storage.remove(["a/b/x.zip"])
        assert files_below(base) == {"a/b/new.zip"}

    def test_a_folder_that_vanishes_is_made_again(self, storage, base, monkeypatch):
        real, vanished = os.open, []

        def open_late(path, flags, *args, **kwargs):
            if flags & os.O_CREAT and len(vanished) < 3:
                os.rmdir(base / "a" / "b")
                vanished.append(path)
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", open_late)
        write(storage, "a/b/x.zip")
        assert len(vanished) == 3
        assert files_below(base) == {"a/b/x.zip"}


class TestDurability:
    @pytest.fixture
    def synced(self, monkeypatch):
        names = []
        monkeypatch.setattr(
            posix, "sync", lambda fd: names.append(os.readlink(f"/proc/self/fd/{fd}"))
        )
        return names

    @pytest.mark.parametrize("path", ["runs/b.zip", "other/a.zip", "runs/a.zip/b.zip"])
    def test_a_missing_object_is_named(self, storage, path):
        write(storage, "runs/a.zip")
        with pytest.raises(MissingObjectError) as caught:
            storage.make_durable([path])
        assert caught.value.url == f"file:///{path}"

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    @pytest.mark.parametrize("count", [1, 5])
    def test_files_and_folders_up_to_the_base_once(self, storage, base, synced, count):
        paths = [f"runs/{number % 2}/{number}.zip" for number in range(count)]
        for path in paths:
            write(storage, path)
        storage.make_durable([*paths, *paths])
        folders = {str(base / path.rpartition("/")[0]) for path in paths}
        files = {str(base / path) for path in paths}
        above = {str(base / "runs"), str(base), str(base.parent), str(base.parent.parent)}
        assert sorted(synced) == sorted(files | folders | above)

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_the_folders_above_a_new_base_are_synced_though_it_is_named_again(
        self, tmp_path, synced
    ):
        base = tmp_path / "new" / "deep" / "storage"
        storage = LocalStorage(base)
        write(storage, "a.zip")
        LocalStorage(base)
        storage.make_durable(["a.zip"])
        assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new/deep")} <= set(synced)

    @pytest.fixture
    def whole(self, monkeypatch):
        """Sync file systems; return the folders by which that was done."""
        monkeypatch.setattr(options, "_sync", "filesystem")
        folders = []
        monkeypatch.setattr(
            linux,
            "sync_filesystem",
            lambda fd: folders.append(os.readlink(f"/proc/self/fd/{fd}")),
        )
        return folders

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_a_file_system_is_synced_once(self, storage, base, synced, whole):
        paths = [f"runs/{number}.zip" for number in range(5)]
        for path in paths:
            write(storage, path)
        storage.make_durable(paths)
        assert (whole, synced) == ([str(base)], [])

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_one_mounted_below_is_synced_too(self, storage, base, whole, monkeypatch):
        for path in ("a/1.zip", "b/1.zip", "b/2.zip"):
            write(storage, path)
        real = os.fstat
        devices = {str(base / "b" / name): 77 for name in ("1.zip", "2.zip")}

        def fstat(fd):
            status = [*real(fd)]
            status[2] = devices.get(os.readlink(f"/proc/self/fd/{fd}"), 1)
            return os.stat_result(status)

        monkeypatch.setattr(os, "fstat", fstat)
        storage.make_durable(["a/1.zip", "b/1.zip", "b/2.zip"])
        assert whole == [str(base), str(base / "b" / "1.zip")]

    def test_with_a_file_system_what_is_missing_is_named_too(self, storage, whole):
        write(storage, "a.zip")
        with pytest.raises(MissingObjectError, match=r"b\.zip"):
            storage.make_durable(["a.zip", "b.zip"])

    @pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
    def test_a_file_system_that_fails_raises(self, storage, monkeypatch):
        write(storage, "a.zip")
        monkeypatch.setattr(options, "_sync", "filesystem")
        storage.make_durable(["a.zip"])

        def fail(descriptor):
            raise OSError(errno.EIO, "lost")

        monkeypatch.setattr(linux, "sync_filesystem", fail)
        with pytest.raises(StorageError, match="lost"):
            storage.make_durable(["a.zip"])

    @pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
    def test_a_descriptor_that_cannot_be_synced(self):
        with pytest.raises(OSError, match="Bad file descriptor"):
            linux.sync_filesystem(-1)

    @pytest.mark.parametrize("count", [1, 5, 40])
    @pytest.mark.parametrize("slow_seconds", [-1, 3600])
    def test_the_first_of_many_failures_raises(self, storage, monkeypatch, count, slow_seconds):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", slow_seconds)
        paths = [f"{number:02}.zip" for number in range(count)]
        with pytest.raises(MissingObjectError, match=r"00\.zip"):
            storage.make_durable(paths)  # not even the base is there
        write(storage, "other.zip")
        with pytest.raises(MissingObjectError, match=r"00\.zip"):
            storage.make_durable(paths)

    def test_a_failing_barrier_raises(self, storage, monkeypatch):
        for path in ("a.zip", "b.zip"):
            write(storage, path)

        def fail(descriptor):
            raise OSError(errno.EIO, "lost")

        monkeypatch.setattr(os, "fsync", fail)
        for paths in (["a.zip"], ["a.zip", "b.zip"]):
            with pytest.raises(StorageError, match="lost"):
                storage.make_durable(paths)


class TestMaps:
    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_no_descriptor_is_held(self, storage):
        before = len(os.listdir("/proc/self/fd"))
        views = []
        for number in range(50):
            write(storage, f"{number}.zip", bytes(200_000))
            views.append(storage.open(f"{number}.zip").view(0, 200_000))
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert all(view.nbytes == 200_000 for view in views)

    def test_an_object_cut_off_meanwhile_gives_less(self, storage, base):
        write(storage, "a.zip", bytes(200_000))
        reader = storage.open("a.zip")
        os.truncate(base / "a.zip", 0)
        assert len(reader.read(0, 200_000)) == 0
        assert len(reader.view(0, 200_000)) == 0


class TestOpenStorage:
    @pytest.mark.parametrize("form", ["{}", "file://{}"])
    def test_paths_and_file_urls(self, tmp_path, form):
        assert open_storage(form.format(tmp_path)) == LocalStorage(tmp_path)

    def test_a_path_object(self, tmp_path):
        assert open_storage(tmp_path) == LocalStorage(tmp_path)

    def test_a_url_is_decoded_a_path_is_not(self):
        assert open_storage("file:///a%20b").base == "/a b"
        assert open_storage("/a%20b").base == "/a%20b"
        assert open_storage(open_storage("/a b/ü").url).base == "/a b/ü"

    @pytest.mark.parametrize("url", ["~/store", "file:///~/store"])
    def test_the_home_folder(self, monkeypatch, url):
        monkeypatch.setenv("HOME", "/home/somebody")
        assert open_storage(url).base == "/home/somebody/store"

    @pytest.mark.parametrize(
        "url",
        [
            "nonsense://bucket/x",
            "file://host/x",
            "file:///x?y=1",
            "file:///x#y",
            "",
            "file:///%00",
            b"/x",
        ],
    )
    def test_what_is_refused(self, url):
        with pytest.raises(ConfigurationError):
            open_storage(url)

    def test_an_unknown_scheme_says_what_is_supported(self):
        with pytest.raises(ConfigurationError, match="file:///"):
            open_storage("nonsense://bucket")


def test_importing_loads_no_library():
    code = (
        "import sys, sqla_datastore.storage, sqla_datastore.format;"
        "print(sorted({'numpy', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


class TestLeftovers:
    """What a crash leaves is told, and removed, without touching anything else."""

    def put(self, base, path):
        file = base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12")

    def test_unfinished_writes_and_empty_folders_are_told(self, storage, base):
        write(storage, "a/1/whole.zip")
        self.put(base, f"a/1/#{'0' * 32}.part")
        self.put(base, f"#{'1' * 32}.part")
        (base / "a" / "2" / "3").mkdir(parents=True)
        found = {each.path: each for each in storage.leftovers()}
        assert set(found) == {f"a/1/#{'0' * 32}.part", f"#{'1' * 32}.part", "a/2/3/"}
        assert found[f"#{'1' * 32}.part"].size_bytes == 2
        assert all(each.modified > 0 for each in found.values())
        storage.remove_leftovers(found)
        assert files_below(base) == {"a/1/whole.zip"}
        assert not (base / "a" / "2").exists()
        assert list(storage.leftovers()) == []

    def test_a_write_that_is_at_work_is_told_as_one(self, storage, base):
        with storage.create("a/1.zip") as writer:
            writer.write(b"data")
            (found,) = storage.leftovers()
            assert (found.path[:3], found.size_bytes) == ("a/#", 4)
        assert list(storage.leftovers()) == []

    def test_a_missing_base_has_none(self, storage, base):
        assert list(storage.leftovers()) == []
        assert not base.exists()

    def test_a_folder_that_got_a_file_meanwhile_stays(self, storage, base):
        (base / "a").mkdir(parents=True)
        (found,) = storage.leftovers()
        write(storage, "a/1.zip")
        storage.remove_leftovers([found.path, f"gone/#{'0' * 32}.part"])
        assert files_below(base) == {"a/1.zip"}

    @pytest.mark.parametrize(
        "path", ["a/1.zip", "../x", "../#" + "0" * 32 + ".part", "#b.part", "../"]
    )
    def test_nothing_else_is_removed(self, storage, base, path):
        write(storage, "a/1.zip")
        self.put(base.parent, f"#{'0' * 32}.part")
        with pytest.raises(RefusedURLError):
            storage.remove_leftovers([path])
        assert files_below(base.parent) == {"base/a/1.zip", f"#{'0' * 32}.part"}

    def test_links_are_not_followed(self, storage, base, tmp_path):
        self.put(tmp_path / "outside", f"#{'0' * 32}.part")
        base.mkdir(parents=True)
        (base / "link").symlink_to(tmp_path / "outside")
        assert list(storage.leftovers()) == []


def test_a_large_folder_is_listed_in_order(storage, monkeypatch):
    monkeypatch.setattr("sqla_datastore.storage.local._LISTED", 3)
    paths = sorted([*(f"a/{n}/x" for n in range(11)), *(f"a/{n}" for n in range(20, 33)), "a.b"])
    for path in paths:
        write(storage, path)
    assert [found.path for found in storage.list("")] == paths


@pytest.mark.usefixtures("walk")
class TestDescent:
    """One system call and the walk find the same, and nothing outside."""

    FOLDER = os.O_RDONLY | os.O_DIRECTORY

    @pytest.fixture
    def top(self, tmp_path):
        (tmp_path / "top" / "a" / "b").mkdir(parents=True)
        (tmp_path / "top" / "file").touch()
        (tmp_path / "outside").mkdir()
        descriptor = os.open(tmp_path / "top", self.FOLDER)
        yield descriptor
        os.close(descriptor)

    @pytest.mark.parametrize("path", ["..", "../outside", "a/../../outside"])
    def test_nothing_above_is_reached(self, top, path):
        with pytest.raises(OSError) as caught:
            posix._descend(top, path, self.FOLDER)
        assert caught.value.errno == errno.EXDEV

    @pytest.mark.parametrize("path", ["link", "a/link", "a/link/deeper", "dangling", "a/self"])
    def test_a_link_is_called_one(self, top, tmp_path, path):
        for name, target in [
            ("link", "a"),  # it leads nowhere else, and is refused all the same
            ("a/link", tmp_path / "outside"),
            ("dangling", "nowhere"),
            ("a/self", "self"),
        ]:
            (tmp_path / "top" / name).symlink_to(target)
        with pytest.raises(posix.LinkInTheWayError, match="symbolic link"):
            posix._descend(top, path, self.FOLDER)

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("file/x", NotADirectoryError),
            ("file", NotADirectoryError),
            ("a/c/d", FileNotFoundError),
            ("a/nul\0", ValueError),
        ],
    )
    def test_other_errors(self, top, path, error):
        with pytest.raises(error):
            posix._descend(top, path, self.FOLDER)

    def test_a_path_longer_than_a_system_call_takes(self, top):
        path = "/".join(["d" * 200] * 25)
        os.close(posix._open_or_make(top, path))
        os.close(posix._descend(top, path, self.FOLDER))

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_no_descriptor_is_left(self, top, tmp_path):
        (tmp_path / "top" / "link").symlink_to("a")
        before = os.listdir("/proc/self/fd")
        for path in ("a", "a/b", "link/b", "a/c", "a/../..", "file/x"):
            with contextlib.suppress(OSError):
                os.close(posix._descend(top, path, self.FOLDER))
        assert os.listdir("/proc/self/fd") == before


class TestOneCall:
    """The system call is taken where it is there, and only there."""

    @pytest.fixture(autouse=True)
    def _fresh(self):
        linux._probed_openat2.cache_clear()
        yield
        linux._probed_openat2.cache_clear()

    @pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
    def test_a_system_that_refuses_it_is_asked_once(self, storage, monkeypatch, code):
        asked = []

        def call(*args):
            asked.append(args)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(linux, "_MACHINES", {os.uname().machine})
        monkeypatch.setattr(linux, "_openat2", lambda: call)
        write(storage, "a/b.zip")
        assert storage.size_bytes("a/b.zip") == 4
        assert len(asked) == 1

    def test_a_passing_failure_tells_nothing(self, storage, monkeypatch):
        def call(*args):
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(linux, "_MACHINES", {os.uname().machine})
        with monkeypatch.context() as patched:
            patched.setattr(linux, "_openat2", lambda: call)
            write(storage, "a/b.zip")
            patched.setattr(linux, "_openat2", lambda: lambda *args: os.open("/", os.O_RDONLY))
            assert linux._openat2_if_there() is not None

    @pytest.mark.parametrize(("platform", "machine"), [("linux", "alpha"), ("darwin", "x86_64")])
    def test_other_systems_are_not_asked(self, monkeypatch, platform, machine):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
        assert linux._openat2_if_there() is None

    def test_an_interrupted_call_is_made_again(self, storage, monkeypatch):
        ctypes = pytest.importorskip("ctypes")
        answers = iter([-1, -1, 7])

        class Syscall:
            def __call__(self, *args):
                return next(answers)

        monkeypatch.setattr(
            ctypes, "CDLL", lambda *args, **kwargs: SimpleNamespace(syscall=Syscall())
        )
        monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EINTR)
        assert linux._openat2()(3, b"a", 0) == 7

    def test_an_auditor_hears_of_it(self, storage):
        write(storage, "a/b.zip")
        code = (
            "import sys; from sqla_datastore.storage import LocalStorage\n"
            "seen = []\n"
            "sys.addaudithook(lambda *event: seen.append(event[1][0]) if event[1] else None)\n"
            f"LocalStorage({storage.base!r}).size_bytes('a/b.zip')\n"
            "print(any(str(path).endswith('b.zip') for path in seen))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == "True"


class TestCallsForEach:
    def test_slow_calls_are_made_at_the_same_time(self, monkeypatch):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", -1)
        barrier = threading.Barrier(3)
        alone = []

        def call(number):
            if number == 0:
                alone.append(threading.get_ident())
            else:
                barrier.wait(timeout=30)

        assert parallel.call_for_each(call, range(4), threads=3) == []
        assert alone == [threading.get_ident()]

    def test_fast_calls_stay_in_this_thread(self, monkeypatch):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", 3600)
        idents = []
        parallel.call_for_each(lambda _: idents.append(threading.get_ident()), range(50), threads=8)
        assert idents == [threading.get_ident()] * 50

    @pytest.mark.parametrize("at_once", [False, True])
    def test_all_are_called_and_failures_come_in_order(self, monkeypatch, at_once):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", -1)
        called = []

        def call(number):
            called.append(number)
            if number % 10 == 3:
                raise ValueError(number)

        failures = parallel.call_for_each(call, range(100), threads=8, at_once=at_once)
        assert sorted(called) == [*range(100)]
        assert [err.args[0] for err in failures] == [*range(3, 100, 10)]

    @pytest.mark.parametrize("threads", [1, 4])
    def test_none_is_begun_after_a_failure(self, monkeypatch, threads):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", -1)
        called = []

        def call(number):
            called.append(number)
            raise ValueError(number)

        failures = parallel.call_for_each(call, range(100), threads=threads, until_failure=True)
        assert [err.args[0] for err in failures] == called == [0]

    @pytest.mark.parametrize("threads", [1, 4])
    @pytest.mark.parametrize("at_once", [False, True])
    def test_none_is_begun_once_it_is_stopped(self, threads, at_once):
        stopped, called = threading.Event(), []

        def call(number):
            called.append(number)
            stopped.set()

        kwargs = {"threads": threads, "at_once": at_once, "stopped": stopped}
        assert parallel.call_for_each(call, range(100), **kwargs) == []
        assert 1 <= len(called) <= threads
        assert parallel.call_for_each(call, range(100), **kwargs) == []
        assert 1 <= len(called) <= threads

    def test_what_has_begun_is_waited_for(self, monkeypatch):
        monkeypatch.setattr(parallel, "_SLOW_SECONDS", -1)
        all_began, failed, done = threading.Barrier(4), threading.Event(), set()

        def call(number):
            if number:
                all_began.wait(30)
            if number == 1:
                failed.set()
                raise ValueError(number)
            assert number == 0 or failed.wait(30)
            done.add(number)

        failures = parallel.call_for_each(call, range(5), threads=4, until_failure=True)
        assert [err.args[0] for err in failures] == [1]
        assert done == {0, 2, 3, 4}

    def test_an_interrupt_ends_it(self, monkeypatch):
        calls = parallel._Calls(lambda number: None, range(10))

        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(parallel.ThreadPoolExecutor, "submit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            calls.work_in(2)
        assert calls.count_left == 0


CALLS = """
import os, sys
from sqla_datastore.storage import LocalStorage
from sqla_datastore.format import Container, plan
from sqla_datastore.storage import parallel
parallel._SLOW_SECONDS = 3600  # a slow disk would start threads, whose waits are calls, too
storage = LocalStorage(sys.argv[1])

def write(path):
    with storage.create(path) as writer:
        plan({"n": 1, "b": b"x" * 500}, nested_entries=dict).objects[0].write(writer)

def load(path):
    Container.open(storage.open(path), "file:///" + path, nested=int).load("b")

def run(first, last):
    paths = [f"runs/{number}/a.zip" for number in range(first, last)]
    for step in (
        lambda: [write(path) for path in paths],
        lambda: [load(path) for path in paths],
        lambda: storage.remove(paths[:-1]),
    ):
        os.access("/mark", os.F_OK)
        step()

run(0, 3)
run(3, 3 + int(sys.argv[2]))
os.access("/mark", os.F_OK)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.skipif(linux._openat2_if_there() is None, reason="this system has no openat2")
def test_system_calls_of_a_small_object(tmp_path):
    log = tmp_path / "log"
    count = 20
    command = ["strace", "-o", log, sys.executable, "-c", CALLS, tmp_path / "base", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip("this system does not let strace trace")
    assert done.returncode == 0, done.stderr
    steps = log.read_text().split('"/mark"')[4:-1]
    created, loaded, removed = (step.count("\n") / count for step in steps)
    assert created < 15
    assert loaded < 12
    assert removed < 6


class TestRootOfTheFileSystem:
    """``file:///name`` looks like a relative path, and is none."""

    @pytest.fixture
    def forbidden(self, monkeypatch):
        """Have the system refuse folders at its root, also where the tests run as root."""
        mkdir = os.mkdir

        def refuse(path, *args, **kwargs):
            if os.path.dirname(path) == "/":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return mkdir(path, *args, **kwargs)

        monkeypatch.setattr(os, "mkdir", refuse)

    @pytest.mark.parametrize("folder", ["no-such.datastore", "no-such.datastore/runs"])
    def test_the_error_says_what_was_named_and_how_to_name_a_relative_one(
        self, forbidden, folder, monkeypatch, tmp_path
    ):
        with pytest.raises(StorageError) as caught:
            write(open_storage(f"file:///{folder}"), "a/x.zip")
        message = str(caught.value)
        assert "Permission denied" in message
        assert "'/no-such.datastore' would be a folder at the root of the file system" in message
        (relative,) = re.findall(r"working directory write '(.+?)'", message)
        monkeypatch.chdir(tmp_path)
        write(open_storage(relative), "a/x.zip")
        assert files_below(tmp_path) == {f"{folder}/a/x.zip"}

    def test_a_folder_elsewhere_is_not_explained_so(self, monkeypatch, base):
        def refuse(path, *_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr(os, "mkdir", refuse)
        with pytest.raises(StorageError, match=r"Permission denied \(Background"):
            write(open_storage(base / "runs"), "a/x.zip")


class TestDepth:
    """Folders may nest deeper than Python calls, and be longer than a path of the system."""

    @pytest.mark.parametrize("name", ["d", "d" * 200])
    def test_listings(self, walk, base, name):
        storage = LocalStorage(base)
        write(storage, "a/b.zip")
        write(storage, "e/b.zip")
        with deep_folders(base, ["c", *[name] * 1_000], "x.zip"):
            (base / "c" / "empty").mkdir()
            # a path of 4,000 characters at most is looked for
            deep = [f"c/{'/'.join([name] * 1_000)}/x.zip"] if name == "d" else []
            assert [found.path for found in storage.list("")] == ["a/b.zip", *deep, "e/b.zip"]
            assert [found.path for found in storage.leftovers()] == ["c/empty/"]

    def test_objects_as_deep_as_a_url_can_name(self, walk, base):
        storage = LocalStorage(base)
        folder = "/".join("d" * 500)
        path = f"{folder}/x.zip"
        write(storage, path)
        assert storage.size_bytes(path) == 4
        assert [found.path for found in storage.list("")] == [path]
        storage.make_durable([path])
        storage.remove([path])
        assert list(base.iterdir()) == []

    def test_deep_leftovers(self, walk, base):
        folder, temporary = "/".join("d" * 450), f"#{'0' * 32}.part"
        with deep_folders(base, folder.split("/"), temporary):
            storage = LocalStorage(base)
            found = [each.path for each in storage.leftovers()]
            assert found == [f"{folder}/{temporary}"]
            storage.remove_leftovers(found)
            assert list(base.iterdir()) == []

    def test_paths_longer_than_the_system_takes(self, walk, base):
        deep = base
        # up to where the base's own path can still be named
        for _ in range((4_000 - len(os.fsencode(base))) // 201):
            deep /= "d" * 200
        deep.mkdir(parents=True)
        storage = LocalStorage(deep)
        path = "/".join(["e" * 100] * 8) + "/x.zip"
        write(storage, path, bytes(300_000))
        assert bytes(storage.open(path).view(0, 200_000)) == bytes(200_000)
        assert [found.path for found in storage.list("")] == [path]
        storage.remove([path])
        assert os.listdir(deep) == []

    def test_a_base_that_is_too_long_is_our_error(self, base):
        storage = LocalStorage(f"{base}/{'d' * 200}" + f"/{'d' * 200}" * 30)
        with pytest.raises(StorageError, match="File name too long"):
            write(storage, "a/x.zip")
        with pytest.raises(StorageError, match="File name too long"):
            list(storage.list(""))


class TestOpeningMany:
    PATHS = ("runs/1/a.zip", "runs/2/b.zip", "c.zip")

    @pytest.fixture
    def storage(self, tmp_path):
        storage = LocalStorage(tmp_path / "base")
        for path in self.PATHS:
            write(storage, path, path.encode() * 10_000)
        return storage

    def descriptors(self):
        return len(os.listdir("/proc/self/fd"))

    @pytest.mark.usefixtures("walk")
    def test_gives_what_opening_each_gives(self, storage):
        before = self.descriptors()
        for path, reader in zip(self.PATHS, storage.open_many(self.PATHS), strict=True):
            one = storage.open(path)
            assert reader.size_bytes == one.size_bytes
            assert reader.read(0, 1 << 20) == one.read(0, 1 << 20) == path.encode() * 10_000
        assert self.descriptors() == before

    @pytest.mark.usefixtures("walk")
    def test_raises_at_the_first_failure(self, storage):
        before = self.descriptors()
        (Path(storage.base) / "link.zip").symlink_to(Path(storage.base) / "c.zip")
        for bad, error in [
            ("runs/3/d.zip", MissingObjectError),
            ("c.zip/d.zip", MissingObjectError),
            ("link.zip", StorageError),
            ("runs", StorageError),
            ("../base/c.zip", RefusedURLError),
        ]:
            readers = storage.open_many(["c.zip", bad, "runs/1/a.zip"])
            assert next(readers).size_bytes == 50_000
            with pytest.raises(error) as many:
                next(readers)
            with pytest.raises(error) as one:
                storage.open(bad)
            assert str(many.value) == str(one.value)
        assert self.descriptors() == before

    def test_the_base_is_closed_by_who_stops_early(self, storage):
        before = self.descriptors()
        with contextlib.closing(storage.open_many(self.PATHS)) as readers:
            next(readers)
        assert self.descriptors() == before

    def test_a_storage_that_opens_in_its_own_way_does_so_for_many(self, storage, tmp_path):
        opened = []

        class Noting(LocalStorage):
            def open(self, path):
                opened.append(path)
                return super().open(path)

        assert len([*Noting(storage.base).open_many(self.PATHS)]) == 3
        assert tuple(opened) == self.PATHS
