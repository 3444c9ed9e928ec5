"""P2, P4 and P5 under a storage that fails, tears a write or hangs, at every call of a scenario.

A call fails before, amid or after what it does. Then either the scenario raised, and rows and
objects are exactly as before, or it committed and raised nothing. Only an object whose removal
failed may stay: the failure is logged, `check` finds the object and `gc` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support.databases import STRIDE, Stored
from support.scenarios import BEFORE, SCENARIOS
from support.stage import Stage
from support.watched import Watched

from sqla_datastore import StorageError
from sqla_datastore.storage import LocalStorage

LATE_SECONDS = 60
NOBODY = 65534

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(database_url, tmp_path_factory):
    stored = Stored(tmp_path_factory.mktemp("storage"))
    with contextlib.closing(Stage(database_url, stored)) as stage:
        yield stage


class Interrupted(BaseException):
    """What a key or a cancelled task raises: no `Exception`."""


class Fault:
    """What goes wrong at the n-th call, or from then on.

    Attributes:
        met: the calls that failed.
    """

    def __init__(self, n, *, stays=False, error=None):
        self.met = []
        self._left = n
        self._stays = stays
        self._error = error
        self._lock = threading.Lock()
        self.interrupts = isinstance(error, Interrupted)

    def __call__(self, call, moment):
        with self._lock:
            self._left -= 1
            if self._left > 0 or (self._left < 0 and not self._stays):
                return
            self.met.append(call)
        if self._error is not None:
            raise self._error
        if moment == "before":
            raise StorageError(f"{call} failed")
        raise OSError(errno.ENOSPC, f"no space left {moment} {call}")

    @property
    def reached(self):
        """Whether there were that many calls."""
        return self._left <= 0

    def clear(self):
        """Have nothing fail any more."""
        self._left, self._stays = 0, False
        self.met.clear()


class Trial:
    """One run of a scenario with one fault, on a stage put back to the start."""

    def __init__(self, stage, scenario, fault, caplog):
        stage.reset()
        caplog.clear()
        self.stage = stage
        self.scenario = scenario
        self.fault = fault
        self.things = scenario.make()
        # without a transaction what is to go can only be looked for once the row is committed
        self._cleaning_up = {"remove", "list"} if scenario.stock else {"remove"}
        self._caplog = caplog
        storage = Watched(LocalStorage(stage.stored.base), fault)
        self._engine = stage.engine_for(scenario, storage)

    @property
    def may_leave_objects(self):
        """Whether a call failed that cleans up."""
        return bool(self._cleaning_up.intersection(self.fault.met))

    @property
    def must_be_quiet(self):
        """Whether only such calls failed."""
        return self._cleaning_up.issuperset(self.fault.met)

    def run(self, failed=None):
        self.scenario.run(self._engine, self.things, failed)

    def mend(self):
        """Have the storage work again."""
        self.fault.clear()
        self._caplog.clear()

    def close(self):
        self._engine.dispose()

    def assert_nothing_happened(self):
        """Assert that rows and objects are as before, but for what could not be removed."""
        if not self.may_leave_objects:
            assert self.stage.is_untouched()
            assert not self._errors()
            return
        assert self.stage.holds_rows_before()
        self._assert_findable()
        assert self.stage.is_untouched()

    def assert_committed(self):
        """Assert that it is done, but for what could not be removed."""
        assert self.stage.rows() == self.scenario.after
        if self.may_leave_objects:
            self._assert_findable()
            assert self.stage.rows() == self.scenario.after
        else:
            assert not self._errors()
        self.stage.assert_exact()

    def _assert_findable(self):
        """Assert that what was not removed was logged, is found by `check` and removed by `gc`.

        An interruption is not logged: it was raised.
        """
        loggers = {record.name for record in self._errors()}
        assert loggers == set() if self.fault.interrupts else {"sqla_datastore"}
        found = self.stage.check()
        assert not found.dangling.count
        assert not found.damaged.count
        assert found.is_clean is self.stage.is_exact()
        removed = self.stage.collect()
        assert removed.removed == found.orphans.count + found.leftovers.count

    def _errors(self):
        return [r for r in self._caplog.records if r.levelno >= logging.ERROR]


@pytest.fixture
def trials(stage, caplog):
    """Return a trial of a scenario for each call that can fail, up to the run without a fault."""

    def trials(name, make_fault, first=1):
        scenario = SCENARIOS[name]
        if not stage.can(scenario):
            pytest.skip(f"no {name} on this database")
        # a database server takes its time, and what the storage does is the same there
        every = stage.engine.dialect.name == "sqlite" or name == "two_phase"
        step = STRIDE if every else 5 * STRIDE
        for n in range(1 if step == 1 else first, 1_000, step):
            trial = Trial(stage, scenario, make_fault(n), caplog)
            with contextlib.closing(trial):
                yield trial
            if not trial.fault.reached:
                assert n > 5, "the scenario hardly calls the storage"
                return
        pytest.fail("it never ran without a fault")

    return trials


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_failed_call_is_all_or_nothing_and_the_same_session_tries_again(trials, name):
    for trial in trials(name, Fault):

        def failed(err, trial=trial):
            assert isinstance(err, OSError), err
            assert not trial.must_be_quiet, "raised because of a failure to clean up"
            trial.assert_nothing_happened()

        trial.run(failed)
        trial.assert_committed()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_storage_that_stays_broken_is_all_or_nothing_and_serves_again_when_mended(trials, name):
    for trial in trials(name, partial(Fault, stays=True), first=2):
        try:
            trial.run()
        except OSError:
            assert not trial.must_be_quiet, "raised because of a failure to clean up"
            trial.assert_nothing_happened()
            trial.mend()
            trial.run()
        else:
            assert trial.must_be_quiet
        trial.assert_committed()


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupted_call_is_all_or_nothing(trials, name):
    for trial in trials(name, partial(Fault, error=Interrupted()), first=3):
        try:
            trial.run()
        except Interrupted:
            committed = not trial.stage.holds_rows_before()
        else:
            committed = True
        trial.assert_committed() if committed else trial.assert_nothing_happened()


class Gate(Fault):
    """Holds the n-th call until it is opened.

    Attributes:
        arrived: set when the call is there.
    """

    def __init__(self, n):
        super().__init__(n)
        self.arrived = threading.Event()
        self._opened = threading.Event()

    def __call__(self, call, moment):
        with self._lock:
            self._left -= 1
            if self._left:
                return
            self.met.append(call)
        self.arrived.set()
        assert self._opened.wait(LATE_SECONDS), "nobody opened the gate"

    def open(self):
        self._opened.set()


@pytest.mark.parametrize("name", SCENARIOS)
def test_while_a_call_hangs_others_read_whole_rows_and_nothing_is_removed_too_early(trials, name):
    with ThreadPoolExecutor(1) as thread:
        for trial in trials(name, Gate, first=4):
            gate = trial.fault
            running = thread.submit(trial.run)
            running.add_done_callback(lambda _, gate=gate: gate.arrived.set())
            try:
                assert gate.arrived.wait(LATE_SECONDS)
                rows = trial.stage.rows()
            finally:
                gate.open()
            assert rows in (BEFORE, trial.scenario.after)
            if gate.met == ["remove"]:
                assert rows == trial.scenario.after, "removed before COMMIT"
            running.result(LATE_SECONDS)
            gate.met.clear()
            trial.assert_committed()


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that can be filled."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    # large arrays may be mapped still
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(folder, free_pages):
    """Leave so many pages of a file system free."""
    with open(folder / "ballast", "wb") as ballast:
        page = os.statvfs(folder).f_frsize
        ballast.write(bytes(page * (os.statvfs(folder).f_bavail - free_pages)))


@pytest.mark.parametrize("name", ["insert_rows", "replace", "savepoints"])
def test_a_disk_that_fills_up_is_all_or_nothing(small_disk, tmp_path_factory, name):
    base = small_disk / "storage"
    base.mkdir()
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'test.db'}"
    scenario, failures = SCENARIOS[name], 0
    with contextlib.closing(Stage(url, Stored(base))) as stage:
        engine = stage.engine_for(scenario, LocalStorage(base))
        for free_pages in range(1_000):
            stage.reset()
            things = scenario.make()
            gc.collect()  # the maps of objects that are gone take space until then
            fill(small_disk, free_pages)
            try:
                scenario.run(engine, things)
            except StorageError:
                failures += 1
                assert stage.is_untouched()
                (small_disk / "ballast").unlink()
                scenario.run(engine, things)
            else:
                break
            finally:
                (small_disk / "ballast").unlink(missing_ok=True)
                assert stage.rows() == scenario.after
                stage.assert_exact()
        engine.dispose()
    assert failures > 3


class Locked(Fault):
    """Takes the right to write away at the n-th call."""

    def __init__(self, n, base):
        super().__init__(n)
        self._base = base

    def __call__(self, call, moment):
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._change(0o555)

    def clear(self):
        """Give the right back."""
        super().clear()
        self._change(0o755)

    def _change(self, mode):
        for folder, _, _ in os.walk(self._base):
            os.chmod(folder, mode)


@contextlib.contextmanager
def nobody():
    """Be a user that permissions hold for, as far as the system looks at it."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def public_folder():
    """A folder of that user's, which it can reach; pytest's belong to whoever runs it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, -1)
        yield Path(folder)


@pytest.mark.parametrize("name", ["insert_rows", "replace", "delete_rows_that_own_folders"])
def test_permission_lost_half_way_is_all_or_nothing(tmp_path, public_folder, caplog, name):
    scenario = SCENARIOS[name]
    # first all of it once: what is imported on the way may lie where that user cannot read
    with sqlite_stage(tmp_path) as stage:
        scenario.run(stage.engine, scenario.make())
        stage.collect()
    with nobody(), sqlite_stage(public_folder) as stage:
        lock_at_every_call(stage, scenario, caplog)


def sqlite_stage(folder):
    """Return a stage of its own in a folder, to be used in a ``with`` statement."""
    base = folder / "storage"
    base.mkdir()
    return contextlib.closing(Stage(f"sqlite:///{folder / 'test.db'}", Stored(base)))


def lock_at_every_call(stage, scenario, caplog):
    failures = left = 0
    for n in range(1, 1_000, STRIDE):
        stage.reset()
        caplog.clear()
        locked = Locked(n, stage.stored.base)
        engine = stage.engine_for(scenario, Watched(LocalStorage(stage.stored.base), locked))
        things = scenario.make()
        try:
            scenario.run(engine, things)
            failed = False
        except StorageError:
            failed = True
            failures += 1
        finally:
            reached = locked.reached
            locked.clear()
        assert stage.holds_rows_before() if failed else stage.rows() == scenario.after
        if not stage.is_exact():
            # temporary files and empty folders, which nobody mistakes for a value, stay silently
            if stage.check().orphans.count:
                assert "could not remove" in caplog.text
            left += 1
            stage.collect()
            stage.assert_exact()
        if failed:
            scenario.run(engine, things)
            assert stage.rows() == scenario.after
            stage.assert_exact()
        engine.dispose()
        if not reached:
            break
    assert failures or not scenario.make(), "what is written needs permission"
    assert left, "what is removed needs permission"
