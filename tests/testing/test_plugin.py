"""What applications test with: fixtures, a storage that fails, and nothing left behind."""

from __future__ import annotations

import errno
import importlib.metadata

import numpy as np
import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool
from support.databases import make_engine
from support.models import Base, Experiment, Keyed, Project, Run

from sqla_datastore import ConfigurationError, DataStore, StorageError, bind_storage, options
from sqla_datastore.exceptions import MissingObjectError
from sqla_datastore.maintenance import gc
from sqla_datastore.storage import LocalStorage, ObjectStorage
from sqla_datastore.storage.protocol import KeepsLeftovers, SignsURLs
from sqla_datastore.testing import FailingStorage, assert_nothing_left

pytest_plugins = ["pytester", "sqla_datastore.testing.plugin"]

PATH = "rows/1/a.zip"


@pytest.fixture
def engine(tmp_path, datastore_folder):
    engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", datastore_folder)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- the plugin ------------------------------------------------------------------------------------


def test_the_plugin_does_not_register_itself():
    """No run of pytest in the environment imports anything of the package for it."""
    found = importlib.metadata.distribution("sqla_datastore").entry_points
    assert list(found.select(group="pytest11")) == []


def test_each_test_has_a_folder_and_options_of_its_own(pytester, monkeypatch):
    monkeypatch.setattr(options, "url", "before")
    monkeypatch.setenv("SQLA_DATASTORE_URL", "before, too")
    pytester.makeconftest('pytest_plugins = ["sqla_datastore.testing.plugin"]')
    pytester.makepyfile(
        """
        import os
        import pytest
        from sqla_datastore import DataStoreIO, options

        @pytest.mark.parametrize("number", [1, 2])
        def test_own(datastore_folder, number):
            assert list(datastore_folder.iterdir()) == []
            assert options.url == os.environ["SQLA_DATASTORE_URL"] == str(datastore_folder)
            assert options.verify == "default"
            options.verify, options.request_seconds, options.compression = "always", 1, True
            DataStoreIO.write(b"report", "reports")
            assert len(list(datastore_folder.iterdir())) == 1

        def test_put_back():
            assert options.url == "before"
            assert os.environ["SQLA_DATASTORE_URL"] == "before, too"
            shown = (options.verify, options.request_seconds, options.compression)
            assert shown == ("default", 30.0, False)
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


def test_a_failing_storage_works_again_after_the_test(pytester):
    pytester.makeconftest('pytest_plugins = ["sqla_datastore.testing.plugin"]')
    pytester.makepyfile(
        """
        import pytest
        from sqla_datastore import DataStoreIO, StorageError

        kept = []

        def test_fails(failing_storage, datastore_folder):
            kept.append(failing_storage)
            failing_storage.fail("create")
            with pytest.raises(StorageError, match="create of r/.* was made to fail"):
                DataStoreIO.write(b"report", "r", failing_storage)
            assert list(datastore_folder.iterdir()) == []

        def test_works():
            assert DataStoreIO.write(b"report", "r", kept[0]).read() == b"report"
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


# -- a storage that fails --------------------------------------------------------------------------


class TestFailingStorage:
    def use(self, storage, method):
        """Call a method of a storage that has `PATH`."""
        if method == "exists":
            return storage.exists()
        if method in ("create", "write"):
            with storage.create("rows/2/b.zip") as writer:
                return writer.write(b"data")
        if method == "read":
            return storage.open(PATH).read(0, 4)
        if method in ("remove", "make_durable"):
            return getattr(storage, method)([PATH])
        if method == "list":
            return [*storage.list("rows")]
        return getattr(storage, method)(PATH)

    @pytest.fixture
    def storage(self, failing_storage):
        with failing_storage.create(PATH) as writer:
            writer.write(b"data")
        failing_storage.mend()
        return failing_storage

    METHODS = (
        *("create", "exists", "list", "make_durable", "open", "read", "remove", "size_bytes"),
        "write",
    )

    @pytest.mark.parametrize("method", METHODS)
    def test_each_method_fails_and_has_done_nothing(self, storage, datastore_folder, method):
        storage.fail(method)
        for _ in range(2):
            with pytest.raises(StorageError, match=f"{method} of .* was made to fail"):
                self.use(storage, method)
        assert files(datastore_folder) == {PATH}
        storage.mend()
        self.use(storage, method)
        assert method in [called for called, _ in storage.calls]

    def test_views_and_many_ranges_are_reads(self, storage):
        reader = storage.open(PATH)
        assert (reader.size_bytes, reader.maps) == (4, True)
        assert bytes(reader.view(0, 4)) == bytes(reader.read_many([(0, 4)])[0]) == b"data"
        storage.fail("read")
        with pytest.raises(StorageError):
            reader.view(0, 4)
        with pytest.raises(StorageError):
            reader.read_many([(0, 4)])

    def test_the_nth_call_from_now(self, storage):
        storage.open(PATH)
        storage.fail("open", call=2, error=OSError(errno.EIO, "worn out"))
        storage.size_bytes(PATH)
        storage.open(PATH)
        with pytest.raises(OSError, match="worn out"):
            storage.open(PATH)
        storage.open(PATH)

    def test_a_rule(self, storage):
        missing = MissingObjectError(f"file:///{PATH}", storage.url)
        storage.fail_when(lambda method, paths: missing if paths == (PATH,) else None)
        with pytest.raises(MissingObjectError):
            storage.open(PATH)
        with storage.create("rows/2/b.zip") as writer:
            writer.write(b"data")
        expected = [("open", (PATH,)), ("create", ("rows/2/b.zip",)), ("write", ("rows/2/b.zip",))]
        assert storage.calls == expected

    def test_what_is_no_method_and_no_number(self, storage):
        with pytest.raises(ValueError, match="no method 'delete' that can fail; it has create, "):
            storage.fail("delete")
        with pytest.raises(ValueError, match="counted from 1"):
            storage.fail("open", call=0)

    def test_it_is_what_it_stands_before(self, datastore_folder):
        local = LocalStorage(datastore_folder)
        failing = FailingStorage(local)
        assert failing == local == failing == FailingStorage(local)
        assert hash(failing) == hash(local)
        assert (failing.scheme, failing.url, failing.place) == (
            *(local.scheme, local.url, local.place),
        )
        assert isinstance(failing, KeepsLeftovers)
        assert not isinstance(failing, SignsURLs)
        assert failing != FailingStorage(LocalStorage(datastore_folder / "other"))
        assert repr(failing) == f"FailingStorage({local!r})"

    def test_an_object_store(self):
        pytest.importorskip("obstore")
        failing = FailingStorage(ObjectStorage.at("memory://failing"))
        assert failing.is_local
        assert isinstance(failing, SignsURLs)
        assert not isinstance(failing, KeepsLeftovers)


# -- nothing left ----------------------------------------------------------------------------------


class TestNothingLeft:
    def test_what_is_right(self, engine):
        assert_nothing_left(engine, Base)
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=np.arange(3), inner=DataStore(b=1))))
            session.add(Project(id=1, runs=[Run(data=DataStore(a=1))]))
            session.commit()
            for models in [(Base,), (Keyed, Run), (Base.metadata,), (Keyed.__table__,)]:
                assert_nothing_left(session, *models)
            session.delete(session.get_one(Keyed, 1))
            session.commit()
            assert_nothing_left(session, Keyed)

    def test_objects_without_rows_are_listed(self, engine, datastore_folder):
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in (1, 2, 3))
            session.commit()
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM keyed WHERE id < 3"))
        with pytest.raises(AssertionError) as caught:
            assert_nothing_left(engine, Base)
        message = str(caught.value)
        assert "objects that no row refers to: 2" in message
        gone = {path for path in files(datastore_folder) if not path.startswith("keyed/3")}
        assert len(gone) == 2
        assert all(path in message for path in gone)
        assert str(datastore_folder) in message
        assert "docs/removals.md" in message
        gc(engine, Base.metadata, apply=True, grace_seconds=0)
        assert_nothing_left(engine, Base)

    def test_rows_without_objects_are_listed(self, engine, datastore_folder):
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in (1, 2))
            session.commit()
            url = session.get_one(Keyed, 2).data.url
        (lost,) = (datastore_folder / "keyed" / "2").iterdir()
        lost.unlink()
        with pytest.raises(AssertionError) as caught:
            assert_nothing_left(engine, Base)
        message = str(caught.value)
        assert "rows without their object: 1" in message
        assert f"keyed(id=2).data: {url}" in message
        assert "files of interrupted writes, and empty folders: 1" in message

    def test_a_damaged_object(self, engine, datastore_folder):
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=1)))
            session.commit()
        (path,) = (datastore_folder / "keyed" / "1").iterdir()
        path.chmod(0o600)
        path.write_bytes(b"PK")
        with pytest.raises(AssertionError, match="objects that cannot be read as they were"):
            assert_nothing_left(engine, Base)

    def test_an_open_transaction_is_refused(self, engine):
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=1)))
            session.flush()
            for bind in (session, session.connection()):
                with pytest.raises(ConfigurationError, match="commit, roll back or close it"):
                    assert_nothing_left(bind, Base)
            with pytest.raises(ConfigurationError, match="another transaction of this engine"):
                assert_nothing_left(engine, Base)
            session.commit()
            assert_nothing_left(session, Base)

    def test_in_an_outer_transaction_nothing_is_decided(self, engine):
        with engine.connect() as connection:
            outer = connection.begin()
            session = Session(connection, join_transaction_mode="create_savepoint")
            session.add(Keyed(id=1, data=DataStore(a=1)))
            session.commit()
            with pytest.raises(ConfigurationError, match="transaction is open"):
                assert_nothing_left(session, Base)
            outer.rollback()
            assert_nothing_left(session, Base)
            session.close()

    def test_a_database_in_memory(self, datastore_folder):
        engine = create_engine("sqlite://", poolclass=StaticPool)
        bind_storage(engine, datastore_folder)
        Base.metadata.create_all(engine)
        sessions = scoped_session(sessionmaker(engine))
        sessions.add(Experiment(name="kept", data=DataStore(a=1)))
        sessions.commit()
        assert_nothing_left(sessions, Base)
        assert sessions.get_one(Experiment, sessions.query(Experiment).one().id).name == "kept"
        sessions.remove()
        engine.dispose()

    def test_in_a_coroutine(self, tmp_path, datastore_folder):
        pytest.importorskip("aiosqlite")
        import asyncio

        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

        async def use():
            engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
            bind_storage(engine, datastore_folder)
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            async with AsyncSession(engine) as session:
                session.add(Keyed(id=1, data=DataStore(a=1)))
                await session.commit()
                await session.run_sync(assert_nothing_left, Base)
            with pytest.raises(ConfigurationError, match="run_sync"):
                assert_nothing_left(engine, Base)
            await engine.dispose()

        asyncio.run(use())

    def test_what_is_no_model_and_no_session(self, engine):
        with pytest.raises(TypeError, match="name the models"):
            assert_nothing_left(engine)
        with pytest.raises(TypeError, match="mapped class"):
            assert_nothing_left(engine, "keyed")
        with pytest.raises(TypeError, match="a session or an engine"):
            assert_nothing_left(object(), Base)

    def test_a_failed_removal_is_found(self, engine, failing_storage, caplog):
        bind_storage(engine, failing_storage)
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=1)))
            session.commit()
            failing_storage.fail("remove")
            session.delete(session.get_one(Keyed, 1))
            session.commit()
        assert "could not remove" in caplog.text
        with pytest.raises(AssertionError, match="no row refers to: 1"):
            assert_nothing_left(engine, Base)

    @pytest.mark.parametrize("method", ["create", "write", "make_durable"])
    def test_a_failed_write_leaves_nothing(self, engine, failing_storage, method):
        bind_storage(engine, failing_storage)
        failing_storage.fail(method)
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=1)))
            with pytest.raises(StorageError, match=f"{method} of"):
                session.commit()
            session.rollback()
            assert session.scalars(select(Keyed)).all() == []
        assert_nothing_left(engine, Base)
