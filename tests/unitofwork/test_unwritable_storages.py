"""Bad input: a base that cannot be written to fails the flush and leaves nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session
from support.databases import make_engine
from support.models import Keyed

from sqla_datastore import DataStore, StorageError
from sqla_datastore.storage.local import LocalStorage

pytestmark = pytest.mark.usefixtures("tables")


def count(session):
    return session.scalar(select(func.count()).select_from(Keyed))


def test_a_base_that_is_a_file(database_url, tmp_path, caplog):
    base = tmp_path / "file"
    base.write_text("not a folder")
    engine = make_engine(database_url, base)
    with Session(engine) as session:
        session.add(Keyed(id=1, data=DataStore(n=1)))
        with pytest.raises(StorageError, match=f"'{base}': the storage's base is a file"):
            session.commit()
        session.rollback()
        assert count(session) == 0
        with pytest.raises(StorageError):
            session.execute(insert(Keyed).values(id=2, data=DataStore(n=1)))
        session.rollback()
        assert count(session) == 0
    engine.dispose()
    assert base.read_text() == "not a folder"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_base_that_is_read_only(engine, stored):
    stored.base.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with Session(engine) as session:
        session.add(Keyed(id=1, data=DataStore(n=1)))
        with pytest.raises(StorageError):
            session.commit()
        session.rollback()
        assert count(session) == 0
    stored.base.chmod(stat.S_IRWXU)
    assert not stored.files()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_write_that_fails_in_the_middle_of_a_flush(engine, stored, monkeypatch, failing):
    original = LocalStorage.create
    calls = []

    def create(self, path):
        calls.append(path)
        if len(calls) == failing:
            raise StorageError("no space left", url=path)
        return original(self, path)

    with Session(engine) as session:
        session.add(Keyed(id=0, data=DataStore(n=0)))
        session.commit()
        before = stored.files()
        monkeypatch.setattr(LocalStorage, "create", create)
        rows = [Keyed(id=n, data=DataStore(n=n)) for n in (1, 2, 3)]
        session.add_all(rows)
        with pytest.raises(StorageError, match="no space"):
            session.commit()
        session.rollback()
        assert count(session) == 1
        assert stored.files() == before
        assert [row.data.url for row in rows] == [None] * 3
        session.add_all(rows)
        session.commit()
        assert len(stored.files()) == 4


FULL = """
import resource, signal, sys
import numpy as np
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqla_datastore import DataStore, DataStoreType, StorageError, bind_storage

class Base(DeclarativeBase):
    pass

class Result(Base):
    __tablename__ = "results"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())

engine = create_engine(f"sqlite:///{sys.argv[1]}/test.db")
bind_storage(engine, f"{sys.argv[1]}/storage")
Base.metadata.create_all(engine)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
with Session(engine) as session:
    session.add(Result(data=DataStore(small=np.zeros(10))))
    session.commit()
    session.add(Result(data=DataStore(small=np.zeros(10))))
    session.add(Result(data=DataStore(large=np.zeros(1_000_000))))
    try:
        session.commit()
    except StorageError as err:
        print(err)
    session.rollback()
    assert session.scalar(select(func.count()).select_from(Result)) == 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are set by resource.setrlimit")
def test_a_base_that_is_full(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "large" in done.stdout or "storage" in done.stdout
    files = [p for p in (tmp_path / "storage").rglob("*") if p.is_file()]
    assert len(files) == 1, "a temporary file or an object was left"
    assert np.load(files[0])["small"].shape == (10,)
