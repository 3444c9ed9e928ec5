"""Where a storage is looked for, and how one base stays one storage."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy
from sqlalchemy import create_engine
from support.values import store

from sqla_datastore import ConfigurationError, DamagedObjectError, DataStore, bind_storage, options
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.urls import ObjectURL


@pytest.fixture(autouse=True)
def _defaults(monkeypatch, tmp_path):
    monkeypatch.delenv("SQLA_DATASTORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    options.url, options.verify, options.sync = None, "default", "files"


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def base(storage) -> str:
    return storage.url.rpartition("/")[2].strip("'")


def test_the_search_order(engine, tmp_path, monkeypatch):
    dialect = engine.dialect
    assert base(storage_for(None, dialect)) == "sqla.datastore"
    monkeypatch.setenv("SQLA_DATASTORE_URL", str(tmp_path / "environment"))
    assert base(storage_for(None, dialect)) == "environment"
    options.url = tmp_path / "options"
    assert base(storage_for(None, dialect)) == "options"
    bind_storage(engine, tmp_path / "bound")
    assert base(storage_for(None, dialect)) == "bound"
    assert base(storage_for(str(tmp_path / "column"), dialect)) == "column"
    assert base(storage_for(None, None)) == "options"


def test_nothing_is_created(tmp_path, engine):
    bind_storage(engine, tmp_path / "bound")
    storage_for(None, engine.dialect)
    storage_for(None, None)
    assert list(tmp_path.iterdir()) == []


def test_one_base_is_one_storage(tmp_path):
    as_path, as_url = storage_for(str(tmp_path), None), storage_for(tmp_path.as_uri(), None)
    assert as_path is as_url
    assert storage_for(".", None) is as_path
    assert storage_for(str(tmp_path / "other"), None) is not as_path


def test_relative_paths_follow_the_working_directory(tmp_path, monkeypatch):
    first = storage_for("data", None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert storage_for("data", None) is not first


def test_a_binding_keeps_the_directory_it_was_made_in(tmp_path, monkeypatch, engine):
    bind_storage(engine, "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert storage_for(None, engine.dialect) is storage_for(str(tmp_path / "data"), None)


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage_for("~/data", None) is storage_for(str(tmp_path / "data"), None)


class TestBinding:
    def test_replaced_and_removed(self, engine, tmp_path):
        bind_storage(engine, tmp_path / "a")
        bind_storage(engine, str(tmp_path / "b"))
        assert base(storage_for(None, engine.dialect)) == "b"
        bind_storage(engine, None)
        bind_storage(engine, None)
        assert base(storage_for(None, engine.dialect)) == "sqla.datastore"

    def test_a_ready_storage(self, engine, tmp_path):
        storage = LocalStorage(tmp_path)
        bind_storage(engine, storage)
        assert storage_for(None, engine.dialect) is storage

    def test_option_engines_and_connections_share_it(self, engine, tmp_path):
        optioned = engine.execution_options(isolation_level="AUTOCOMMIT")
        bind_storage(optioned, tmp_path / "a")
        assert base(storage_for(None, engine.dialect)) == "a"
        with engine.connect() as connection:
            bind_storage(connection, tmp_path / "b")
        assert base(storage_for(None, optioned.dialect)) == "b"

    def test_engines_are_apart(self, engine, tmp_path):
        bind_storage(engine, tmp_path / "a")
        other = create_engine("sqlite://")
        assert base(storage_for(None, other.dialect)) == "sqla.datastore"

    def test_async_engines(self, tmp_path):
        pytest.importorskip("aiosqlite")
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine("sqlite+aiosqlite://")
        bind_storage(engine, tmp_path / "a")
        assert base(storage_for(None, engine.sync_engine.dialect)) == "a"

    def test_goes_with_its_engine(self, tmp_path):
        engine = create_engine("sqlite://")
        dialect = weakref.ref(engine.dialect)
        bind_storage(engine, tmp_path)
        del engine
        gc.collect()
        assert dialect() is None

    @pytest.mark.parametrize("engine", [None, "sqlite://", object()])
    def test_refuses_what_is_no_engine(self, engine):
        with pytest.raises(TypeError, match="Engine"):
            bind_storage(engine, "data")

    @pytest.mark.parametrize(
        ("url", "error"),
        [
            (1, TypeError),
            (b"x", TypeError),
            ("", ConfigurationError),
            ("nonsense://x", ConfigurationError),
        ],
    )
    def test_refuses_what_is_no_storage(self, engine, url, error):
        with pytest.raises(error):
            bind_storage(engine, url)
        assert base(storage_for(None, engine.dialect)) == "sqla.datastore"


class TestOptions:
    def test_url_takes_paths_and_text(self):
        options.url = Path("some/where")
        assert options.url == "some/where"
        options.url = "file:///tmp/x"
        assert options.url == "file:///tmp/x"
        options.url = None
        assert options.url is None

    @pytest.mark.parametrize(("url", "error"), [(1, TypeError), ("", ConfigurationError)])
    def test_url_is_validated(self, url, error):
        with pytest.raises(error):
            options.url = url
        assert options.url is None

    def test_verify_is_validated(self):
        with pytest.raises(ValueError, match="'always'"):
            options.verify = "never"
        assert options.verify == "default"

    def test_sync_is_validated(self):
        with pytest.raises(ValueError, match="'filesystem'"):
            options.sync = "none"
        assert options.sync == "files"

    @pytest.mark.parametrize("name", ["storage_workers", "in_flight_bytes"])
    @pytest.mark.parametrize("number", [0, -1, 1.5, True, "8", None, 10**30])
    def test_numbers_are_validated(self, name, number):
        default = getattr(options, name)
        with pytest.raises(ValueError, match=f"options.{name} is a whole number from 1"):
            setattr(options, name, number)
        assert getattr(options, name) == default

    @pytest.mark.parametrize(
        ("platform", "release", "can"),
        [
            ("linux", "6.1.0-9-amd64", True),
            ("linux", "5.8", True),
            ("linux", "5.8-rc1", True),
            ("linux", "5.7.19", False),
            ("linux", "4.19.0", False),
            ("linux", "unknown", False),
            ("darwin", "23.1.0", False),
        ],
    )
    def test_a_file_system_is_synced_where_errors_are_told(
        self, monkeypatch, platform, release, can
    ):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
        if can:
            options.sync = "filesystem"
        else:
            with pytest.raises(ConfigurationError, match=r"Linux 5\.8"):
                options.sync = "filesystem"
        assert options.sync == ("filesystem" if can else "files")

    def test_no_other_option_exists(self):
        with pytest.raises(AttributeError):
            options.urls = "x"

    def test_using_sets_options_for_a_block(self, tmp_path):
        options.url = "outer"
        with options.using(url=tmp_path, verify="always") as inner:
            assert inner is options
            assert (options.url, options.verify) == (str(tmp_path), "always")
            with options.using(url=None):
                assert options.url is None
            assert options.url == str(tmp_path)
        assert (options.url, options.verify) == ("outer", "default")

    def test_using_puts_back_what_was_there_after_an_error(self):
        with pytest.raises(RuntimeError), options.using(url="inner"):
            raise RuntimeError
        assert options.url is None

    def test_using_sets_nothing_where_one_option_is_wrong(self):
        with pytest.raises(ValueError, match="'always'"), options.using(url="x", verify="never"):
            pytest.fail("the block began")
        with pytest.raises(TypeError, match="no option 'urls'; there are url, verify"):
            options.using(url="x", urls="x").__enter__()
        assert (options.url, options.verify) == (None, "default")

    def test_using_takes_every_option(self):
        names = {name.removeprefix("_") for name in type(options).__slots__}
        before = repr(options)
        with options.using(**{name: getattr(options, name) for name in names}):
            assert repr(options) == before
        assert repr(options) == before

    def test_repr(self):
        shown = (
            "options(url=None, verify='default', sync='files', compression=False, "
            "storage_options={}, request_seconds=30.0, storage_workers=32, "
            "in_flight_bytes=268435456, cache_folder=None, cache_bytes=10000000000)"
        )
        assert repr(options) == shown

    def test_verify_always_reads_large_arrays(self, tmp_path):
        storage = LocalStorage(tmp_path / "storage")
        ds = DataStore(array=np.zeros(500_000))
        store(ds, storage)
        file = tmp_path / "storage" / ObjectURL.parse(ds.url).path
        data = bytearray(file.read_bytes())
        data[2_000_000] ^= 1
        file.chmod(0o600)
        file.write_bytes(data)
        assert DataStore.from_url(ds.url, storage=storage).array.shape == (500_000,)
        options.verify = "always"
        with pytest.raises(DamagedObjectError):
            _ = DataStore.from_url(ds.url, storage=storage).array


def test_values_of_the_default_storage_are_found(tmp_path):
    ds = DataStore(a=1)
    store(ds, storage_for(None, None))
    assert (tmp_path / "sqla.datastore").is_dir()
    assert DataStore.from_url(ds.url).a == 1
    assert sqlalchemy.inspect(ds).stored
