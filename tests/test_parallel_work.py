"""Stored values go to other processes as references, and load there by themselves."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine
from support.exactness import assert_exact
from support.memory import MemoryStorage
from support.workers import hold, leave, load, load_held

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreType,
    MissingObjectError,
    bind_storage,
    enable_removals,
)
from sqla_datastore.maintenance import check, drain

A = np.arange(200_000)


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


class LeasedBase(DeclarativeBase):
    pass


class Leased(LeasedBase):
    __tablename__ = "leased_jobs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


enable_removals(LeasedBase.metadata, keep_seconds=3_600)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """A pool of one spawned process, which knows no binding and works in a folder of its own."""
    folder = str(tmp_path_factory.mktemp("elsewhere"))
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=leave, initargs=(folder,)) as pool:
        yield lambda call, *arguments: pool.submit(call, *arguments).result(timeout=120)


@pytest.fixture
def jobs(tmp_path, stored):
    engine = make_engine(f"sqlite:///{tmp_path / 'jobs.db'}", stored.base)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def add(engine, cls):
    with Session(engine) as session, session.begin():
        session.add(cls(id=1, data=DataStore(a=A, n=1, inner=DataStore(k=2))))


def assert_first(found):
    assert found["n"] == 1
    assert found["inner"] == {"k": 2}
    assert np.array_equal(found["a"], A)


def test_a_stored_value_is_sent_as_a_reference_and_loads_without_a_binding(jobs, worker):
    add(jobs, Job)
    with Session(jobs) as session:
        data = session.get(Job, 1).data
        assert len(pickle.dumps(data)) < 500
        assert_first(worker(load, data))
        # loaded or not, whole or a part of it
        assert len(pickle.dumps(data)) < 500
        assert len(pickle.dumps(data.inner)) < 500
        assert worker(load, data.inner) == {"k": 2}
    assert worker(hold, data) != os.getpid()


def test_a_storage_that_was_bound_by_a_relative_path_is_found(tmp_path, monkeypatch, worker):
    monkeypatch.chdir(tmp_path)
    engine = create_engine("sqlite:///jobs.db")
    bind_storage(engine, "job.storage")
    Base.metadata.create_all(engine)
    add(engine, Job)
    with Session(engine) as session:
        assert_first(worker(load, session.get(Job, 1).data))
    engine.dispose()


def test_a_value_with_edits_is_sent_whole(jobs, worker):
    add(jobs, Job)
    with Session(jobs) as session:
        data = session.get(Job, 1).data
        data["n"] = 5
        assert len(pickle.dumps(data)) > A.nbytes
        assert worker(load, data)["n"] == 5
        session.rollback()
    with Session(jobs) as session:
        assert worker(load, session.get(Job, 1).data)["n"] == 1


def test_a_worker_names_the_storage_that_it_cannot_open(jobs, worker):
    """Of a `Storage` that no URL stands for, a worker has to be told by a binding and the row."""
    bind_storage(jobs, MemoryStorage())
    add(jobs, Job)
    with Session(jobs) as session, pytest.raises(ConfigurationError, match="toy://"):
        worker(load, session.get(Job, 1).data)


def test_without_a_lease_a_replaced_object_is_gone(jobs, stored, worker):
    add(jobs, Job)
    with Session(jobs) as session:
        worker(hold, session.get(Job, 1).data)
        session.get(Job, 1).data = DataStore(n=2)
        session.commit()
    with pytest.raises(MissingObjectError):
        worker(load_held)
    assert_exact(jobs, Base.metadata, stored, 1)


@pytest.mark.parametrize("ending", ["replaced", "deleted"])
def test_with_keep_seconds_what_a_worker_holds_survives(private_url, stored, worker, ending):
    engine = make_engine(private_url, stored.base)
    LeasedBase.metadata.create_all(engine)
    add(engine, Leased)
    with Session(engine) as session, session.begin():
        row = session.get(Leased, 1)
        sent = pickle.dumps(row.data)
        worker(hold, row.data)
        if ending == "replaced":
            row.data = DataStore(n=2)
        else:
            session.delete(row)
    assert_first(worker(load_held))
    report = check(engine, LeasedBase.metadata)
    assert (report.pending, report.is_clean) == (2, True)
    # when the lease is over
    assert drain(engine, LeasedBase.metadata, keep_seconds=0).carried_out == 1
    with pytest.raises(MissingObjectError):
        worker(load, pickle.loads(sent))
    assert_exact(engine, LeasedBase.metadata, stored, 1 if ending == "replaced" else 0)
    engine.dispose()


@pytest.mark.timeout(180)
def test_dask_workers_load_values_by_themselves(jobs, tmp_path):
    distributed = pytest.importorskip("distributed")
    with Session(jobs) as session, session.begin():
        session.add_all(Job(id=n, data=DataStore(a=A + n, inner=DataStore(k=n))) for n in range(4))
    with Session(jobs) as session:
        values = [session.get(Job, n).data for n in range(4)]
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        distributed.Client(cluster, timeout="60s") as client,
    ):
        # a folder that has no storage, as on another host with the same mount
        client.run(leave, str(tmp_path))
        found = client.gather(client.map(load, values))
        pids = set(client.run(os.getpid).values())
    assert [each["inner"] for each in found] == [{"k": n} for n in range(4)]
    for n, each in enumerate(found):
        assert np.array_equal(each["a"], A + n)
    assert os.getpid() not in pids
