"""The default folder is for trying things out: it warns, and loses nothing that lies elsewhere."""

from __future__ import annotations

import pickle

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import LargeBinary, create_engine, delete, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreError,
    DataStoreIO,
    DataStoreType,
    DefaultStorageWarning,
    bind_storage,
    options,
)
from sqla_datastore import alembic as _operations  # noqa: F401 - Alembic before 1.18 has no plugins
from sqla_datastore.storage import binding


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs_by_default"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A database whose row a program has written that binds a storage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(binding, "_warned", set())
    monkeypatch.delenv("SQLA_DATASTORE_URL", raising=False)
    url = f"sqlite:///{tmp_path}/runs.db"
    engine = create_engine(url)
    bind_storage(engine, "production")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=DataStore(n=1)))
    engine.dispose()
    return url


def replace(session):
    session.get_one(Run, 1).data = DataStore(n=2)


def replace_by_core(session):
    session.connection().execute(update(Run).where(Run.id == 1).values(data=DataStore(n=2)))


def delete_row(session):
    session.delete(session.get_one(Run, 1))


def delete_by_core(session):
    session.connection().execute(delete(Run))


def committed(engine, act):
    with Session(engine) as session, session.begin():
        act(session)


@pytest.mark.filterwarnings("ignore::sqla_datastore.DefaultStorageWarning")
@pytest.mark.parametrize("act", [replace, replace_by_core, delete_row, delete_by_core])
def test_a_forgotten_binding_loses_nothing(url, tmp_path, act):
    engine = create_engine(url)
    message = r"the row \(1,\) of 'runs_by_default' holds 'file:///.*sqla\.datastore.*bind_storage"
    with pytest.raises(ConfigurationError, match=message):
        committed(engine, act)
    engine.dispose()
    files = list(tmp_path.rglob("*.zip"))
    assert len(files) == 1
    # what the message says to do
    bind_storage(engine, "production")
    with Session(engine) as session:
        assert session.get_one(Run, 1).data.n == 1
    committed(engine, act)
    assert not files[0].exists()


@pytest.mark.filterwarnings("ignore::sqla_datastore.DefaultStorageWarning")
def test_a_row_whose_object_is_lost_can_go_once_the_folder_is_bound(url, tmp_path):
    engine = create_engine(url)
    bind_storage(engine, "sqla.datastore")
    with Session(engine) as session, session.begin():
        session.delete(session.get_one(Run, 1))
    with Session(engine) as session:
        assert session.get(Run, 1) is None


def test_writing_warns_once(url):
    engine = create_engine(url)
    rows = [Run(id=2, data=DataStore()), Run(id=3, data=DataStore())]
    with pytest.warns(DefaultStorageWarning, match="bind_storage") as caught:
        committed(engine, lambda session: session.add_all(rows))
    assert len(caught) == 1
    committed(engine, lambda session: session.add(Run(id=4, data=DataStore())))
    with Session(engine) as session, session.begin():
        row = session.get_one(Run, 2)
        row.data = DataStore(n=1)
        session.flush()
        row.data = DataStore(n=2)
        session.delete(session.get_one(Run, 3))


def test_self_managed_objects_warn(url):
    with pytest.warns(DefaultStorageWarning):
        DataStoreIO.serialize_write(1, "mine")


@pytest.mark.parametrize("names", ["engine", "environment", "options"])
def test_a_named_storage_does_not_warn(url, tmp_path, monkeypatch, names):
    engine = create_engine(url)
    if names == "engine":
        bind_storage(engine, "sqla.datastore")
    elif names == "environment":
        monkeypatch.setenv("SQLA_DATASTORE_URL", str(tmp_path / "named"))
    else:
        monkeypatch.setattr(options, "url", str(tmp_path / "named"))
    with Session(engine) as session, session.begin():
        session.add(Run(id=2, data=DataStore()))


def test_reading_does_not_warn(url):
    engine = create_engine(url)
    with Session(engine) as session:
        assert session.get_one(Run, 1).data is not None


@pytest.mark.filterwarnings("ignore::sqla_datastore.DefaultStorageWarning")
@pytest.mark.parametrize("what", ["data", "back"])
def test_a_migration_that_binds_nothing_loses_nothing(url, tmp_path, monkeypatch, what):
    """Online migrations run statements on an engine of their own, which ``env.py`` has to bind."""
    engine = create_engine(url)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.zip")}

    def migrate():
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            op = Operations(context)
            with context.begin_transaction(_per_migration=True):
                if what == "data":
                    op.execute(update(Run.__table__).values(data=DataStore(n=2)))
                else:
                    op.convert_from_datastore(
                        "runs_by_default", "data", dumps=pickle.dumps, type_=LargeBinary()
                    )

    with pytest.raises(DataStoreError, match=r"is not in|bind_storage|right storage"):
        migrate()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.zip")} == before
    monkeypatch.setenv("SQLA_DATASTORE_URL", str(tmp_path / "production"))
    migrate()
    with engine.connect() as connection:
        (found,) = connection.exec_driver_sql("SELECT data FROM runs_by_default").one()
    assert found.startswith("file:") if what == "data" else pickle.loads(found) == {"n": 1}
    engine.dispose()
