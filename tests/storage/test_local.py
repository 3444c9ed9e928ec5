"""LocalStorage keeps the promises of every storage, and those of a file system with enemies."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from sqla_datastore.exceptions import (
    ConfigurationError,
    MissingObjectError,
    RefusedURLError,
    StorageError,
)
from sqla_datastore.storage import LocalStorage, posix
from sqla_datastore.storage.binding import open_storage
from sqla_datastore.testing import StorageSuite


def files_below(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if not path.is_dir()}


def write(storage, path, data=b"data", patch=None):
    with storage.create(path) as writer:
        writer.write(data)
        if patch is not None:
            writer.patch(0, patch)


@pytest.fixture
def base(tmp_path):
    return tmp_path / "deep" / "base"


@pytest.fixture
def storage(base):
    return LocalStorage(base)


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
        assert len({storage, LocalStorage(storage.base)}) == 1
        assert repr(storage) == f"LocalStorage({storage.base!r})"

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
    @pytest.mark.parametrize("call", ["write", "pwrite", "link", "open"])
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
                write(storage, "new/b.zip", patch=b"D")
        assert caught.value.__cause__.errno == code
        assert caught.value.url == "file:///new/b.zip"
        assert files_below(base) == {"kept/a.zip"}
        assert os.listdir(base) == ["kept"]

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
            "s3://bucket/x",
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
            open_storage("gs://bucket")


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
