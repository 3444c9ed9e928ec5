"""The suite of storages on file systems of fsspec, and what names a storage by its scheme."""

from __future__ import annotations

import contextlib
import pickle
import uuid

import numpy as np
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.watched import Watched

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    MissingObjectError,
    RefusedURLError,
    StorageError,
    bind_storage,
    register_storage,
)
from sqla_datastore.maintenance import check, gc
from sqla_datastore.storage import FsspecStorage, LocalStorage, schemes
from sqla_datastore.storage.binding import check_storage, open_storage
from sqla_datastore.testing import StorageSuite

fsspec = pytest.importorskip("fsspec")


class Base(DeclarativeBase):
    """The table of this module."""


class Run(Base):
    """A row with a value."""

    __tablename__ = "fsspec_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


class FileSystemSuite(StorageSuite):
    """The suite, and what a file system shows of a process that was killed."""

    def raw_read(self, storage, path):
        try:
            return storage._files.cat_file(f"{storage._base}/{path}")
        except FileNotFoundError:
            return None

    def raw_write(self, storage, path, data):
        key = f"{storage._base}/{path}"
        storage._files.makedirs(key.rpartition("/")[0], exist_ok=True)
        storage._files.pipe_file(key, data)

    def raw_paths(self, storage):
        base = storage._base + "/"
        return {key.removeprefix(base) for key in storage._files.find(storage._base)}

    def raw_folders(self, storage):
        found = storage._files.find(storage._base, withdirs=True, detail=True)
        base = storage._base + "/"
        return {
            key.removeprefix(base)
            for key, each in found.items()
            if each["type"] == "directory" and key.startswith(base)
        }

    def make_folder(self, storage, path):
        storage._files.makedirs(f"{storage._base}/{path}", exist_ok=True)

    def test_empty_folders_are_leftovers(self, storage):
        self.raw_write(storage, "a/1/whole.zip", b"data")
        self.make_folder(storage, "a/2/3")
        # as the base may be called
        self.make_folder(storage, "base")
        found = {each.path: each for each in storage.leftovers()}
        assert set(found) == {"a/2/3/", "base/"}
        assert {each.size_bytes for each in found.values()} == {0}
        assert {each.path for each in storage.list("")} == {"a/1/whole.zip"}
        storage.remove_leftovers([*found, "gone/too/"])
        assert self.raw_folders(storage) == {"a", "a/1"}
        assert self.raw_paths(storage) == {"a/1/whole.zip"}
        assert list(storage.leftovers()) == []

    def test_a_missing_base_has_no_leftovers(self, storage):
        assert list(storage.leftovers()) == []

    @pytest.mark.parametrize("moment", ["before it is looked at", "before it goes"])
    def test_a_folder_that_got_a_file_meanwhile_stays(self, storage, monkeypatch, moment):
        self.make_folder(storage, "a")
        (found,) = storage.leftovers()
        real = storage._files.rmdir

        def rmdir(key):
            self.raw_write(storage, "a/1.zip", b"data")
            real(key)

        if moment == "before it goes":
            monkeypatch.setattr(storage._files, "rmdir", rmdir)
        else:
            self.raw_write(storage, "a/1.zip", b"data")
        storage.remove_leftovers([found.path])
        assert self.raw_paths(storage) == {"a/1.zip"}

    def test_a_folder_that_cannot_go_is_an_error_and_keeps_no_other(self, storage, monkeypatch):
        real = storage._files.rmdir

        def rmdir(key):
            if key.endswith("/a"):
                raise PermissionError("not permitted")
            real(key)

        for name in ("a", "b", "c"):
            self.make_folder(storage, name)
        monkeypatch.setattr(storage._files, "rmdir", rmdir)
        with pytest.raises(StorageError, match="not permitted") as caught:
            storage.remove_leftovers([each.path for each in storage.leftovers()])
        assert "/a'" in str(caught.value)
        assert self.raw_folders(storage) == {"a"}

    @pytest.mark.parametrize("path", ["a/1.zip", "../", "/", ""])
    def test_no_other_leftover_is_removed(self, storage, path):
        self.raw_write(storage, "a/1.zip", b"data")
        with contextlib.suppress(RefusedURLError):
            storage.remove_leftovers([path])
        assert self.raw_paths(storage) == {"a/1.zip"}


class TestMemory(FileSystemSuite):
    @pytest.fixture
    def storage(self):
        return FsspecStorage(fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}/base")


class TestFiles(FileSystemSuite):
    @pytest.fixture
    def storage(self, tmp_path):
        return FsspecStorage(fsspec.filesystem("file"), str(tmp_path / "base"))


class TestFolder(FileSystemSuite):
    """A file system that is made of another one."""

    @pytest.fixture
    def storage(self, tmp_path):
        files = fsspec.filesystem("dir", path=str(tmp_path), fs=fsspec.filesystem("file"))
        return FsspecStorage(files, "base")


@pytest.fixture
def storage():
    return FsspecStorage(fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}")


@pytest.fixture
def session(tmp_path, storage):
    engine = create_engine(f"sqlite:///{tmp_path / 'runs.db'}")
    bind_storage(engine, storage)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def stored_urls(storage):
    return {f"memory:///{found.path}" for found in storage.list("")}


def test_transactions(session, storage):
    session.add_all(
        [Run(id=n, data=DataStore(a=np.arange(n), inner=DataStore(k=n))) for n in (1, 2)]
    )
    session.commit()
    assert len(stored_urls(storage)) == 4
    row = session.get(Run, 1)
    row.data.inner["k"] = [1]
    session.flush()
    session.rollback()
    assert len(stored_urls(storage)) == 4
    assert session.get(Run, 1).data.inner.k == 1
    session.get(Run, 1).data = DataStore(b=2)
    session.delete(session.get(Run, 2))
    session.commit()
    assert stored_urls(storage) == {row.data.url for row in session.scalars(select(Run))}
    assert session.get(Run, 1).data.to_dict() == {"b": 2}
    bind = session.get_bind()
    assert check(bind, Base.metadata, deep=True).is_clean
    with storage.create("fsspec_runs/9/" + uuid.uuid4().hex + ".zip") as writer:
        writer.write(b"left")
    gc(bind, Base.metadata, apply=True, grace_seconds=0)
    assert len(stored_urls(storage)) == 1


class Failing:
    """A file system that fails when it writes."""

    def __init__(self, files, when):
        self._files = files
        self._when = when

    def __getattr__(self, name):
        return getattr(self._files, name)

    def pipe_file(self, key, value):
        if self._when == "after":
            self._files.pipe_file(key, value)
        raise OSError("no space left on device")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_that_fails_leaves_nothing(session, storage, when):
    storage._files = Failing(storage._files, when)
    session.add(Run(id=1, data=DataStore(a=1)))
    with pytest.raises(StorageError, match=r"no space left.*storage_options"):
        session.flush()
    session.rollback()
    assert stored_urls(storage) == set()
    assert session.get(Run, 1) is None


def test_a_missing_object(session, storage):
    session.add(Run(id=1, data=DataStore(a=1)))
    session.commit()
    storage._files.rm(storage._base, recursive=True)
    with pytest.raises(MissingObjectError):
        session.get(Run, 1).data.a  # noqa: B018


def test_pickles_have_no_credentials(storage):
    named = FsspecStorage.at(f"memory://{uuid.uuid4().hex}/base")
    assert pickle.loads(pickle.dumps(named)) == named
    with pytest.raises(TypeError, match="by its URL"):
        pickle.dumps(storage)


def test_a_password_in_a_url_is_refused():
    with pytest.raises(ConfigurationError, match=r"has a password.*storage_options") as caught:
        open_storage("sftp://me:secret@host/folder")
    assert "secret" not in str(caught.value)


def test_what_is_not_installed_is_named():
    with pytest.raises(ConfigurationError, match=r"no file system for 'hdfs://host/folder'"):
        open_storage("hdfs://host/folder")


def test_unknown_schemes():
    for act in (check_storage, open_storage):
        with pytest.raises(ConfigurationError, match="no storage serves 'nonsense://'"):
            act("nonsense://x/y")


# -- register_storage ------------------------------------------------------------------------------


class Vault(Watched):
    """A storage of somebody else."""

    def __init__(self, storage):
        super().__init__(storage, lambda *_: None)
        self.scheme = "vault"


@pytest.fixture
def registered(monkeypatch, tmp_path):
    monkeypatch.setattr(schemes, "_registered", {})
    made = []

    def factory(url):
        made.append(url)
        return Vault(LocalStorage(tmp_path / "vault"))

    register_storage("vault", factory)
    return factory, made


def test_a_registered_storage_is_named_by_its_url(registered, session):
    _, made = registered
    assert check_storage("vault://x") == "vault://x"
    assert made == []
    bind_storage(session.get_bind(), "vault://lab")
    session.add(Run(id=1, data=DataStore(a=1)))
    session.commit()
    assert session.get(Run, 1).data.url.startswith("vault:///fsspec_runs/1/")
    managed = DataStoreIO.write(b"a", "p", "vault://lab")
    assert DataStoreIO(managed.url, storage="vault://lab").read() == b"a"
    assert DataStoreType("vault://other").url == "vault://other"
    assert made == ["vault://lab"]


def test_a_scheme_has_one_factory(registered):
    factory, _ = registered
    register_storage("vault", factory)
    with pytest.raises(ConfigurationError, match="another factory"):
        register_storage("vault", lambda _: None)
    for own in ("file", "s3", "data"):
        with pytest.raises(ConfigurationError, match="this library's own"):
            register_storage(own, factory)
    for wrong in ("Vault", "", "a b", 1):
        with pytest.raises(ConfigurationError, match="a word in lower case"):
            register_storage(wrong, factory)
    with pytest.raises(TypeError, match="called with a URL"):
        register_storage("other", None)


def test_a_factory_of_another_scheme_is_refused(registered, tmp_path):
    register_storage("odd", lambda _: LocalStorage(tmp_path))
    with pytest.raises(ConfigurationError, match="made a storage of the scheme 'file'"):
        open_storage("odd://x")


def test_an_installed_package_brings_a_storage(monkeypatch, tmp_path):
    package = tmp_path / "vaults-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vaults\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[{schemes.ENTRY_POINTS}]\nvault = vaults:make\n")
    (tmp_path / "vaults.py").write_text(
        "from sqla_datastore.storage import LocalStorage\n"
        "class Vault(LocalStorage):\n"
        "    scheme = 'vault'\n"
        f"def make(url):\n    return Vault({str(tmp_path / 'v')!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    schemes._installed.cache_clear()
    try:
        assert open_storage("vault://x").scheme == "vault"
    finally:
        schemes._installed.cache_clear()
