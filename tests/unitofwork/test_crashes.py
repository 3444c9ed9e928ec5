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
from support.databases import STRIDE
from support.models import Base
from support.object_stores import s3_environment, stored_on_s3
from support.processes import environment
from support.scenarios import BEFORE, SCENARIOS
from support.stage import Stage

from sqla_datastore import enable_removals

LATE_SECONDS = 60
RACING = 3
# where a point takes longer, those that do most
ON_SERVERS = ("replace", "savepoints", "autocommit_update")
REMEMBERED = ("savepoints", "two_phase")
# each of these kills takes as long as dozens of others, and an object store has no system calls
ON_S3 = {
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
    """A process that runs scenarios in children of its own."""

    def __init__(self, stage, *options, **variables):
        base = str(stage.stored.base)
        program = [sys.executable, crashing.__file__, stage.url, base, *options]
        # threads of its own would make the fork of a process unsafe
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(OPENBLAS_NUM_THREADS="1", **variables),
        )

    def run(self, name, point):
        """Run a scenario up to a point; return what came of it."""
        self._process.stdin.write(json.dumps({"scenario": name, "point": point}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server of crashing processes ended"
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(LATE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


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
    stage.stored.wait_until_quiet()
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
    server = Server(stage, "removals")
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


@pytest.fixture(scope="module")
def s3_stage(s3_endpoint, tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'test.db'}"
    with stored_on_s3(s3_endpoint) as stored, contextlib.closing(Stage(url, stored)) as stage:
        yield stage


@pytest.fixture
def s3_server(s3_stage, s3_endpoint):
    server = Server(s3_stage, **s3_environment(s3_endpoint))
    yield server
    server.close()


@pytest.mark.parametrize("name", ON_S3)
def test_a_process_killed_while_it_uses_s3_leaves_whole_rows_and_what_gc_removes(
    s3_server, s3_stage, name
):
    points = kill_everywhere(s3_server, s3_stage, name, stride=ON_S3[name] * STRIDE)
    assert points > 30
