"""Each unit of work, on object stores: rows and objects agree, and nothing is left behind."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from contextlib import contextmanager
from itertools import accumulate, chain
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from support.buckets import STORES, object_store, those_marked
from support.databases import STRIDE, make_engine
from support.exactness import assert_exact
from support.models import Base, Keyed
from support.object_stores import (
    Fault,
    FaultProxy,
    proxy_in_front,
    request,
    s3_options,
)
from support.scenarios import BEFORE, SCENARIOS
from support.stage import Stage
from support.watched import Watched

from sqla_datastore import DataStore, DataStoreIO, bind_storage, options
from sqla_datastore.cli import main as cli
from sqla_datastore.exceptions import MissingObjectError, StorageError
from sqla_datastore.maintenance import check, gc, usage
from sqla_datastore.storage import ObjectStorage
from sqla_datastore.storage.binding import open_storage

obstore = pytest.importorskip("obstore")
fsspec = pytest.importorskip("fsspec")
MIB = 1024 * 1024
FAULTY = [
    *("insert_rows", "replace", "edit_in_place", "delete_rows_that_own_folders", "savepoints")
]


@pytest.fixture(scope="module", params=["memory", "s3"])
def stored(request, tmp_path_factory):
    """An empty storage, seen without the library."""
    with object_store(request.param, request, tmp_path_factory.mktemp("stored")) as (stored, _):
        yield stored


@pytest.fixture(scope="module", params=those_marked(STORES))
def stage(request, tmp_path_factory):
    """A database, and an empty storage of some kind."""
    folder = tmp_path_factory.mktemp("stage")
    with object_store(request.param, request, folder) as (stored, storage):
        stage = Stage(f"sqlite:///{folder / 'test.db'}", stored, storage)
        yield stage
        stage.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_unit_of_work_is_exact(stage, name):
    scenario = SCENARIOS[name]
    if not stage.can(scenario):
        pytest.skip("other databases do this")
    stage.assert_does(scenario)


class Failing:
    """Fails one call."""

    def __init__(self, number):
        self.left = number
        self.call = None

    def __call__(self, call, moment):
        self.left -= 1
        if not self.left:
            self.call = call
            raise StorageError(f"{call} failed {moment}")


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name in FAULTY])
def test_a_call_that_fails(stage, name, caplog):
    """Whichever it is: all or nothing, nothing dangling, and gc finds what could not be removed."""
    scenario, number = SCENARIOS[name], 0
    step = 3 if stage.storage.scheme in ("memory", "file") else 7
    while True:
        number += step
        failing = Failing(number)
        stage.reset()
        storage = Watched(stage.storage, failing)
        engine = stage.engine_for(scenario, storage)
        try:
            scenario.run(engine, scenario.make())
        except StorageError:
            expected = BEFORE
        else:
            expected = scenario.after
        engine.dispose()
        assert stage.rows() == expected
        if failing.call == "remove":
            stage.collect()
        stage.assert_exact()
        if failing.call is None:
            break
    assert number > step


FAULTS = {
    "late": Fault(hang=0.1),
    "busy": Fault(status=503),
    "answer lost": Fault(drop=True),
    "request cut": Fault(cut_request=True),
    "answer cut": Fault(cut_answer=True),
    "no answer": Fault(hang=60),
}
REQUEST_SECONDS = 0.4
# each call takes at most twice this time, and is one of at most so many that follow each other
BOUND_SECONDS = 20 * 2 * REQUEST_SECONDS
# which requests fail, once or from then on: these make 20 or more, and 12 or more
NUMBERS = {
    ("savepoints", False): (4, 17),
    ("savepoints", True): (10,),
    ("edit_in_place", False): (2, 9),
    ("edit_in_place", True): (5,),
}
# where, in which scenario, and every which of these requests: moto is the quickest
FAILED_ON = [
    *(pytest.param("s3", name, 1) for name in ("savepoints", "edit_in_place")),
    pytest.param("seaweedfs", "savepoints", 2, marks=pytest.mark.servers),
    pytest.param("azurite", "edit_in_place", 2, marks=pytest.mark.servers),
    pytest.param("gcs", "savepoints", 2, marks=pytest.mark.servers),
]


class FailingRequests:
    """Fails the n-th request to a proxy, and perhaps all that follow.

    Attributes:
        met: the methods of those that failed.
    """

    def __init__(self, number, fault, *, stays):
        self.met = []
        self._left = number
        self._fault = fault
        self._stays = stays
        self._lock = threading.Lock()

    def __call__(self, seen):
        with self._lock:
            self._left -= 1
            if self._left > 0 or (self._left < 0 and not self._stays):
                return None
            self.met.append(seen.method)
            return self._fault


@pytest.fixture(scope="module")
def proxy(stage):
    """A proxy in front of the stage's server, and the options that name it."""
    with proxy_in_front() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name", "every"), FAILED_ON, indirect=["stage"])
@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_fails(stage, proxy, name, every, fault, stays):
    """Our error or none, all or nothing, nothing dangling; and `gc` finds what is left."""
    scenario, (proxy, reached) = SCENARIOS[name], proxy
    for number in NUMBERS[name, stays][:: every * STRIDE]:
        stage.reset()
        engine = stage.engine_for(scenario, stage.storage.url)
        proxy.rule = failing = FailingRequests(number, FAULTS[fault], stays=stays)
        begin, raised = time.monotonic(), None
        with options.using(storage_options=reached, request_seconds=REQUEST_SECONDS):
            try:
                scenario.run(engine, scenario.make())
            except StorageError as err:
                raised = err
        assert time.monotonic() - begin < BOUND_SECONDS
        engine.dispose()
        # a request that was given up may arrive all the same
        proxy.release()
        assert failing.met
        if raised:
            assert raised.url.startswith(f"{stage.storage.scheme}://")
            assert stage.storage.url in str(raised)
        assert stage.rows() == (BEFORE if raised else scenario.after)
        if not stage.is_exact():
            assert stage.collect().removed
            stage.assert_exact()


@pytest.fixture
def engine(stored, tmp_path):
    stored.put_back({})
    engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", stored.base)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


class TestMaintenance:
    def test_orphans_and_dangling_rows(self, engine, stored):
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=np.arange(n))) for n in (1, 2, 3))
            session.commit()
        assert usage(engine, Base.metadata).objects == 3
        tree = stored.tree()
        gone = next(path for path in tree if path.startswith("keyed/2/"))
        orphan = f"keyed/9/{uuid.uuid4().hex}.zip"
        stored.put_back({orphan: b"x" * 9, **{p: d for p, d in tree.items() if p != gone}})

        found = check(engine, Base.metadata)
        assert [row.url.endswith(gone) for row in found.dangling] == [True]
        assert [each.path for each in found.orphans] == [orphan]
        assert gc(engine, Base.metadata, grace_seconds=0).removed == 0
        gc(engine, Base.metadata, apply=True, grace_seconds=0)
        assert stored.files() == tree.keys() - {gone}

    def test_a_listing_in_another_order(self, engine, stored, monkeypatch):
        real = obstore.list
        monkeypatch.setattr(
            obstore, "list", lambda *a, **k: [[*page][::-1] for page in real(*a, **k)]
        )
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in (1, 2, 3))
            session.commit()
            assert check(engine, Base.metadata).is_clean
            assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 0
            session.delete(session.get(Keyed, 2))
            session.commit()
        monkeypatch.undo()
        assert_exact(engine, Base.metadata, stored, 2)

    def test_the_command(self, engine, stored, capsys):
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in (1, 2))
            session.commit()
        arguments = ["support.models:Base", "--database", str(engine.url)]
        arguments += ["--storage", stored.base]
        assert cli.main(["check", "--deep", *arguments]) == 0
        path = next(iter(stored.files()))
        tree = stored.tree()
        stored.put_back({each: data for each, data in tree.items() if each != path})
        assert cli.main(["check", *arguments]) == 1
        assert path in capsys.readouterr().out

    def test_a_column_of_one_storage_and_a_binding_of_the_same(self, engine, stored):
        """Two names of one place are one place."""
        again = create_engine(engine.url)
        bind_storage(again, ObjectStorage.at(f"{stored.base}/"))
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=1)))
            session.commit()
        with Session(again) as session:
            session.get(Keyed, 1).data.a = 2
            session.commit()
        again.dispose()
        assert_exact(engine, Base.metadata, stored, 1)
        assert check(again, Base.metadata, deep=True).is_clean


class TestFiles:
    def test_files_that_their_user_manages(self, stored):
        stored.put_back({})
        io = DataStoreIO.write(b"report", "reports", stored.base)
        assert io.read() == b"report"
        assert stored.files() == {io.url.partition(":///")[2]}
        value = DataStoreIO.serialize_write({"w": np.arange(5)}, "weights", stored.base)
        found = DataStoreIO(value.url, storage=stored.base).read_deserialize(dict)
        assert found["w"].tolist() == [0, 1, 2, 3, 4]
        DataStoreIO.delete("reports", stored.base)
        value.remove()
        assert stored.files() == set()


class TestFailures:
    def test_a_missing_bucket_fails_the_flush(self, s3_endpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(options, "storage_options", s3_options(s3_endpoint))
        engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", "s3://nowhere/base")
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=1)))
            with pytest.raises(StorageError, match="make it"):
                session.flush()
            session.rollback()
            assert session.scalars(select(Keyed)).all() == []
        engine.dispose()

    def test_an_object_that_is_gone(self, engine, stored):
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=np.arange(5))))
            session.commit()
        stored.put_back({})
        with Session(engine) as session, pytest.raises(MissingObjectError) as caught:
            session.get(Keyed, 1).data.a  # noqa: B018 - loads it
        assert stored.base in str(caught.value)


class TestRequests:
    @pytest.fixture
    def proxied(self, s3_endpoint, tmp_path, monkeypatch):
        """An engine whose storage is behind a proxy, and the proxy."""
        name = f"b-{uuid.uuid4().hex}"
        request(s3_endpoint, "PUT", f"/{name}")
        proxy = FaultProxy(s3_endpoint)
        with proxy.running() as endpoint:
            monkeypatch.setattr(options, "storage_options", s3_options(endpoint))
            engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", f"s3://{name}/base")
            Base.metadata.create_all(engine)
            yield engine, proxy
            engine.dispose()

    def test_a_small_value_is_one_put(self, proxied):
        engine, proxy = proxied
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=np.arange(100))))
            session.commit()
        # and one look into its folder, which may hold what a crash has left
        assert sorted(seen.method for seen in proxy.seen) == ["GET", "PUT"]

    def test_deletes_are_two_rounds(self, proxied):
        """Their folders are listed together, and their objects removed together."""
        engine, proxy = proxied
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in range(20))
            session.commit()
            proxy.seen.clear()
            proxy.latency = 0.02
            for row in session.scalars(select(Keyed)).all():
                session.delete(row)
            session.commit()
        for method in ("GET", "DELETE"):
            spans = [(seen.began, seen.ended) for seen in proxy.seen if seen.method == method]
            assert len(spans) == 20
            assert overlapping(spans) > 10
        assert len(proxy.seen) == 40
        spans = [(seen.began, seen.ended) for seen in proxy.seen]
        assert covered(spans) < sum(end - begin for begin, end in spans) / 4

    def test_one_entry_of_a_large_value_is_two_requests(self, proxied):
        engine, proxy = proxied
        rng = np.random.default_rng(1)
        arrays = {f"a{number}": rng.random(250_000) for number in range(20)}  # 40 MB
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(arrays)))
            session.commit()
        total = sum(seen.sent for seen in proxy.seen)
        assert total > 40e6
        assert max(seen.sent for seen in proxy.seen) <= 8 * 1024 * 1024
        proxy.seen.clear()
        with Session(engine) as session:
            assert np.array_equal(session.get(Keyed, 1).data.a7, arrays["a7"])
        assert [seen.method for seen in proxy.seen] == ["GET", "GET"]
        assert sum(seen.got for seen in proxy.seen) < 0.06 * total

    def test_an_entry_of_several_blobs_is_two_requests(self, proxied):
        pd = pytest.importorskip("pandas")
        engine, proxy = proxied
        frame = pd.DataFrame(
            {"t": pd.date_range("2024", periods=9_000), "p": pd.period_range("2024", periods=9_000)}
        )
        rest = np.zeros(100_000)
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(f=frame, nested=[np.arange(9)] * 9, rest=rest)))
            session.commit()
        for name in ("f", "nested"):
            proxy.seen.clear()
            with Session(engine) as session:
                session.get(Keyed, 1).data[name]
            assert [seen.method for seen in proxy.seen] == ["GET", "GET"]

    def test_a_deep_check_reads_an_object_at_once(self, proxied):
        engine, proxy = proxied
        with Session(engine) as session:
            session.add(Keyed(id=1, data=DataStore(a=np.arange(9), b=[1, 2], c="x")))
            session.add(Keyed(id=2, data=DataStore(a=np.arange(90_000), b=np.arange(90_000))))
            session.commit()
        proxy.seen.clear()
        assert check(engine, Base.metadata, deep=True).is_clean
        # the listing, the small one, the end and the whole of the larger one
        assert [seen.method for seen in proxy.seen] == ["GET"] * 4

    def test_what_is_compressed_is_read_at_once(self, proxied):
        engine, proxy = proxied
        values = np.random.default_rng(1).integers(0, 9, 2_000_000)
        with Session(engine) as session, pytest.MonkeyPatch.context() as patch:
            patch.setattr(options, "compression", True)
            session.add(Keyed(id=1, data=DataStore(a=values, rest=np.random.bytes(100_000))))
            session.commit()
        proxy.seen.clear()
        with Session(engine) as session:
            assert np.array_equal(session.get(Keyed, 1).data.a, values)
        assert [seen.method for seen in proxy.seen] == ["GET", "GET"]


def overlapping(spans):
    """Return how many of these (begin, end) there are at the same time at most."""
    begins, ends = [(begin, 1) for begin, _ in spans], [(end, -1) for _, end in spans]
    return max(accumulate(step for _, step in sorted(begins + ends)))


def covered(spans):
    """Return how long there is at least one of these (begin, end), in seconds."""
    total, until = 0.0, 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


class Slow:
    """A storage of which each request takes 20 milliseconds; notes when they began and ended.

    Attributes:
        spans: begin and end of each request, by its name.
        most_held: how many bytes its unfinished objects had together at most.
    """

    SECONDS = 0.02

    def __init__(self, storage):
        self._storage = storage
        self._lock = threading.Lock()
        self._held = 0
        self.spans = defaultdict(list)
        self.most_held = 0

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def _wait(self, name):
        begin = time.monotonic()
        time.sleep(self.SECONDS)
        self.spans[name].append((begin, time.monotonic()))

    def _hold(self, size):
        with self._lock:
            self._held += size
            self.most_held = max(self.most_held, self._held)

    @contextmanager
    def create(self, path):
        sizes = []

        def write(data):
            writer.write(data)
            sizes.append(memoryview(data).nbytes)
            self._hold(sizes[-1])

        try:
            with self._storage.create(path) as writer:
                yield SimpleNamespace(write=write)
                self._wait("create")
        finally:
            self._hold(-sum(sizes))

    def list(self, folder):
        self._wait("list")
        return iter([*self._storage.list(folder)])

    def most_at_once(self, name):
        return overlapping(self.spans[name])

    def seconds(self):
        """Return how long at least one of them was waited for."""
        return covered(chain.from_iterable(self.spans.values()))


class TestLatency:
    @pytest.fixture
    def slow(self, tmp_path):
        storage = Slow(open_storage(f"memory://{uuid.uuid4().hex}"))
        engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}", storage)
        Base.metadata.create_all(engine)
        yield engine, storage
        engine.dispose()

    def test_a_flush_of_many_values(self, slow):
        """Writing and listing take at most a tenth of what they take one by one."""
        engine, storage = slow
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=bytes(1_000))) for n in range(200))
            session.flush()
            calls = len(storage.spans["create"]) + len(storage.spans["list"])
            assert calls == 400
            assert storage.most_at_once("create") > 16
            assert storage.most_at_once("list") > 16
            assert storage.seconds() < calls * storage.SECONDS / 10
            session.commit()
        assert len([*storage.list("")]) == 200

    @pytest.mark.parametrize("budget", [1, 5 * MIB, 64 * MIB])
    def test_what_is_written_at_once_keeps_to_the_bytes_in_flight(self, slow, monkeypatch, budget):
        engine, storage = slow
        monkeypatch.setattr(options, "in_flight_bytes", budget)
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=bytes(MIB))) for n in range(20))
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in range(20, 30))
            session.commit()
        # there is always one; the indexes of objects come on top
        assert storage.most_held <= max(budget, MIB) + 30 * 1_000
        assert storage.most_at_once("create") > min(3, budget // MIB)
        assert len([*storage.list("")]) == 30

    @pytest.mark.parametrize("workers", [1, 4])
    def test_no_more_workers_than_the_option_says(self, slow, monkeypatch, workers):
        engine, storage = slow
        monkeypatch.setattr(options, "storage_workers", workers)
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in range(12))
            session.commit()
        assert storage.most_at_once("create") == workers
        assert storage.most_at_once("list") == workers

    def test_a_store_that_is_down_is_not_asked_for_each_value(self, slow, monkeypatch):
        engine, storage = slow

        def fail(name):
            Slow._wait(storage, name)
            raise StorageError("down")

        monkeypatch.setattr(storage, "_wait", fail)
        with Session(engine) as session:
            session.add_all(Keyed(id=n, data=DataStore(a=n)) for n in range(200))
            with pytest.raises(StorageError, match="down"):
                session.flush()
        assert len(storage.spans["create"]) == 1
        assert [*storage._storage.list("")] == []
