"""P1, P2 and P4 when a process is killed at any call to the storage, the database or the system.

Afterwards the rows are exactly those before the scenario or exactly those that it commits, every
value of theirs is whole, and `gc` removes what else lies in the storage.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
from sqlalchemy import text
from support import crashing
from support.buckets import STORES, object_store, those_marked
from support.databases import STRIDE
from support.models import Base
from support.object_stores import proxy_in_front
from support.processes import environment
from support.scenarios import BEFORE, SCENARIOS
from support.stage import Stage

from sqla_datastore import enable_removals, options

LATE_SECONDS = 60
RACING = 3
# where a point takes longer, those that do most
ON_SERVERS = ("replace", "savepoints", "autocommit_update")
REMEMBERED = ("savepoints", "two_phase")
# each of these kills takes as long as dozens of others, and an object store has no system calls:
# of so many points one is tried
ON_STORES = {
    "insert_rows": 29,
    "replace": 11,
    "delete_rows_that_own_folders": 11,
    "savepoints": 41,
    "rolled_back": 19,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def stage(database_url, stored):
    with contextlib.closing(Stage(database_url, stored)) as stage:
        yield stage


class Server:
    """A process that runs scenarios in children of its own.

    Args:
        stage: where they run. Objects on a server are reached through a proxy, which knows what a
            process that was killed has sent.
        removals: whether removals are durable.
    """

    def __init__(self, stage, *, removals=False):
        self._stack, self._proxy, reached = contextlib.ExitStack(), None, {}
        if options.storage_options:
            self._proxy, reached = self._stack.enter_context(proxy_in_front())
        given = crashing.arguments(stage.url, stage.storage, reached, removals=removals)
        program = [sys.executable, crashing.__file__, *given]
        # threads of its own would make the fork of a process unsafe
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(OPENBLAS_NUM_THREADS="1"),
        )

    def run(self, name, point):
        """Run a scenario up to a point; return what came of it, once nothing more comes of it."""
        self._process.stdin.write(json.dumps({"scenario": name, "point": point}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server of crashing processes ended"
        if self._proxy is not None:
            self._proxy.wait_for_the_last_client()
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(LATE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._stack.close()


@pytest.fixture
def server(stage):
    server = Server(stage)
    yield server
    server.close()


class Database:
    """What only the database's server knows of processes that were killed."""

    def __init__(self, engine):
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._name = engine.url.database
        self._dialect = {"mysql": "mariadb"}.get(engine.dialect.name, engine.dialect.name)

    def wait_for_the_end_of(self, session):
        """Wait until the server has noticed that the process at the other end is gone."""
        table = {
            "postgresql": "pg_stat_activity WHERE pid",
            "mariadb": "information_schema.processlist WHERE id",
        }.get(self._dialect)
        if table is None:
            return
        query = text(f"SELECT count(*) FROM {table} = :session")
        late = time.monotonic() + LATE_SECONDS
        with self._engine.connect() as connection:
            while connection.scalar(query, {"session": session}):
                # no event tells of it
                assert time.monotonic() < late, "the server did not notice that a process ended"
                time.sleep(0.002)

    def can_prepare(self):
        """Whether there are two-phase transactions."""
        if self._dialect != "postgresql":
            return self._dialect == "mariadb"
        with self._engine.connect() as connection:
            return int(connection.scalar(text("SHOW max_prepared_transactions"))) > 0

    def prepared(self):
        """Return the names of the two-phase transactions that were prepared and nothing else."""
        if self._dialect == "sqlite":
            return []
        with self._engine.connect() as connection:
            if self._dialect == "mariadb":
                names = [row.data.decode() for row in connection.execute(text("XA RECOVER"))]
            else:
                names = connection.scalars(text("SELECT gid FROM pg_prepared_xacts")).all()
        return [name for name in names if name.startswith(f"{self._name}_")]

    def resolve(self, name, outcome):
        """Commit or roll back what was prepared."""
        statement = {
            "mariadb": f"XA {outcome} '{name}'",
            "postgresql": f"{outcome} PREPARED '{name}'",
        }[self._dialect]
        with self._engine.connect() as connection:
            connection.execute(text(statement))


def kill_at(point, server, stage, name, outcome, collect):
    """Run a scenario that is killed at a point.

    Args:
        point: its number.
        server: runs the scenario.
        stage: where it runs.
        name: the scenario's.
        outcome: how to resolve what it had prepared.
        collect: removes what a committed scenario left.

    Returns:
        Whether it had committed; None if it ended before it came to the point.
    """
    stage.reset()
    database = Database(stage.engine)
    answer = server.run(name, point)
    database.wait_for_the_end_of(answer.get("session"))
    if answer["code"] == 0:
        assert stage.rows() == SCENARIOS[name].after
        stage.assert_exact()
        return None
    assert answer["code"] == -signal.SIGKILL
    for prepared in database.prepared():
        database.resolve(prepared, outcome)
    if stage.holds_rows_before():
        if not stage.is_untouched():
            stage.collect()
            assert stage.is_untouched()
        return False
    assert stage.rows() == SCENARIOS[name].after
    if not stage.is_exact():
        collect(stage)
        assert stage.rows() == SCENARIOS[name].after
        stage.assert_exact()
    return True


def kill_everywhere(server, stage, name, outcome="ROLLBACK", collect=Stage.collect, stride=STRIDE):
    """Run a scenario that is killed at each of its points in turn; return how many there are."""
    found = []
    for point in range(1, 1_000, stride):
        try:
            committed = kill_at(point, server, stage, name, outcome, collect)
        except BaseException as err:
            err.add_note(f"{name}, killed at point {point}")
            raise
        if committed is None:
            break
        found.append(committed)
    before_the_last_loss = found[: len(found) - found[::-1].index(False)]
    # objects are written in parallel, so a point can come a little earlier in another run
    assert before_the_last_loss.count(True) <= RACING, "committed, and not at a later point"
    if stride == 1:
        assert set(found) == {False, SCENARIOS[name].after != BEFORE}
    return len(found) * stride


def test_a_process_killed_at_any_call_leaves_whole_rows_and_what_gc_removes(server, stage):
    all_of_them = stage.engine.dialect.name == "sqlite"
    names = SCENARIOS if all_of_them else ON_SERVERS
    points = {
        name: kill_everywhere(server, stage, name) for name in names if stage.can(SCENARIOS[name])
    }
    assert sum(points.values()) >= (1_000 if all_of_them else 200), points


@pytest.mark.parametrize("outcome", ["COMMIT", "ROLLBACK"])
def test_what_a_killed_process_had_prepared_is_resolved_by_another(server, stage, outcome):
    if not Database(stage.engine).can_prepare():
        pytest.skip("this database cannot prepare transactions")
    assert kill_everywhere(server, stage, "two_phase", outcome) > 50


@pytest.fixture
def removals():
    """Have the models write their removals down, for as long as the test runs."""
    table = enable_removals(Base.metadata)
    yield
    Base.metadata.remove(table)
    del Base.metadata.info[table.name]


@pytest.fixture
def remembering_server(removals, stage):
    server = Server(stage, removals=True)
    yield server
    server.close()


@pytest.mark.parametrize("name", REMEMBERED)
def test_with_durable_removals_another_process_removes_what_a_killed_one_superseded(
    remembering_server, stage, name
):
    if name == "two_phase" and not Database(stage.engine).can_prepare():
        pytest.skip(f"no {name} on this database")
    points = kill_everywhere(remembering_server, stage, name, "COMMIT", Stage.drain)
    assert points > 50


@pytest.fixture(params=those_marked(name for name in STORES if name != "memory"))
def store_stage(request, tmp_path):
    """A stage on SQLite whose objects lie in a store that a killed process does not take along."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with (
        object_store(request.param, request, tmp_path) as (stored, storage),
        contextlib.closing(Stage(url, stored, storage)) as stage,
    ):
        yield stage


@pytest.fixture
def store_server(store_stage):
    server = Server(store_stage)
    yield server
    server.close()


def test_a_process_killed_while_it_uses_a_store_leaves_whole_rows_and_what_gc_removes(
    store_server, store_stage
):
    points = {
        name: kill_everywhere(store_server, store_stage, name, stride=every * STRIDE)
        for name, every in ON_STORES.items()
    }
    assert min(points.values()) > 30, points


@pytest.fixture
def remembering_store_server(removals, store_stage):
    server = Server(store_stage, removals=True)
    yield server
    server.close()


@pytest.mark.parametrize("store_stage", those_marked(["fsspec", "s3", "seaweedfs"]), indirect=True)
def test_with_durable_removals_another_process_removes_what_one_superseded_in_a_store(
    remembering_store_server, store_stage
):
    drained = []

    def drain(stage):
        drained.append(stage.drain())

    name = "delete_rows_that_own_folders"
    # between the end of COMMIT and that of the removals are three points or more
    kill_everywhere(remembering_store_server, store_stage, name, collect=drain, stride=3)
    assert drained
