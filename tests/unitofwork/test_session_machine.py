"""P1 to P6 and P9: rows and objects stay equal, whatever Sessions and Connections do.

One run of the machine is one test. ``SQLA_DATASTORE_MACHINE_EXAMPLES`` gives a larger budget of
examples, then with other random ones in every run.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.conjecture import providers
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.orm import Session
from support.buckets import STORES, object_store, those_marked
from support.databases import make_engine, private_database
from support.machine import SessionMachine
from support.machine.checks import Violation
from support.machine.models import Base
from support.machine.transactions import JOIN_MODES
from support.machine.world import AttackedStorage, World

from sqla_datastore import StorageError, bind_storage
from sqla_datastore.engine import observed_transaction
from sqla_datastore.format import compressors
from sqla_datastore.storage.binding import open_storage
from sqla_datastore.unitofwork import writing
from sqla_datastore.unitofwork.ledger import Ledger
from sqla_datastore.unitofwork.referring_rows import ReferringRows

fsspec = pytest.importorskip("fsspec")
EXAMPLES = int(os.environ.get("SQLA_DATASTORE_MACHINE_EXAMPLES", "0"))
SEED = 1
"""Of the fixed examples; with it every fault below is found among the first few dozen."""


@pytest.fixture(autouse=True)
def small_blobs_are_compressed(monkeypatch):
    """Compress the machine's arrays too, which are small."""
    monkeypatch.setattr(compressors, "SMALLEST", 100)


@pytest.fixture(autouse=True)
def examples_follow_from_the_seed_alone(monkeypatch):
    """Hypothesis also draws constants of all modules that are imported, so tests beside these."""
    monkeypatch.setattr(providers, "_get_local_constants", providers.Constants, raising=False)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", {}, raising=False)


DATABASES = {
    "sqlite": "sqlite+pysqlite",
    "sqlite-wal": "sqlite+pysqlite",
    "sqlite-legacy": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql-psycopg2": "postgresql+psycopg2",
    "mariadb": "mysql+pymysql",
}
ON_STORES = those_marked(STORES, prefix="sqlite-")
"""On SQLite, with the objects elsewhere than in a folder that the library knows."""


def bounded(examples, steps=50):
    """Return settings that make every run the same, unless more examples are asked for.

    Shrinking a failure takes minutes, so it is left to a run that has time.
    """
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=steps,
        derandomize=not EXAMPLES,
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


@pytest.fixture
def world(request, server_url, tmp_path, stored):
    """A database of this test alone, and a storage."""
    name = request.param
    with ExitStack() as stack:
        store, plain = name.partition("-")[2], open_storage(stored.base)
        if store in STORES:
            stored, plain = stack.enter_context(object_store(store, request, tmp_path))
        if name.startswith("sqlite"):
            url = f"sqlite:///{tmp_path / 'machine.db'}"
        else:
            server = server_url(name.partition("-")[0])
            url = stack.enter_context(private_database(server))
        url = make_url(url).set(drivername=DATABASES.get(name, "sqlite+pysqlite"))
        storage = AttackedStorage(plain)
        engines = [_engine(name, url, storage), _engine(name, url, plain)]
        for engine in engines:
            stack.callback(engine.dispose)
        Base.metadata.create_all(engines[0])
        yield World(*engines, storage, stored)


def _engine(name, url, storage):
    if name != "sqlite-legacy":
        engine = make_engine(url, storage)
    else:
        engine = create_engine(url)
        bind_storage(engine, storage)
    if name in ("sqlite-wal", "sqlite-legacy"):

        @event.listens_for(engine, "connect")
        def connect(dbapi_connection, _record):
            dbapi_connection.execute("PRAGMA foreign_keys=ON")
            dbapi_connection.execute("PRAGMA synchronous=OFF")
            if name == "sqlite-wal":
                dbapi_connection.execute("PRAGMA journal_mode=WAL")

    return engine


def run(world, chosen, without=()):
    """Run the machine, or one that lacks some rules, from the fixed seed unless it has time."""
    rules = dict.fromkeys(without)
    machine = type("Machine", (SessionMachine,), {"world": world, **rules})
    if not EXAMPLES:
        machine = seed(SEED)(machine)
    run_state_machine_as_test(machine, settings=chosen)


# what no run of some size leaves out
_COMMON = {
    "begin_nested to depth 3",
    "cascade by the ORM",
    "cascade by the database",
    "change_key",
    "commit",
    "delete",
    "edit_in_place",
    "make_transient with deleted",
    "release",
    "replace",
    "retry_a_commit",
    "retry_an_update",
    "rollback",
    "rollback_to",
    "row_switch",
    "upsert",
}


@pytest.mark.slow
@pytest.mark.usefixtures("copy_on_write")
@pytest.mark.parametrize(
    "world", [name for name in DATABASES if name != "sqlite-s3"], indirect=True
)
def test_rows_and_objects_stay_equal(world):
    run(world, bounded(70))
    assert sum(world.steps.values()) > 1000
    joined = {step.split()[1] for step in world.steps if step.startswith("join ")}
    assert joined == set(JOIN_MODES)
    assert world.steps.keys() >= _COMMON
    assert world.ends > 100


@pytest.mark.slow
@pytest.mark.usefixtures("copy_on_write")
@pytest.mark.parametrize("world", ON_STORES, indirect=True)
def test_rows_and_objects_stay_equal_in_object_stores(world):
    run(world, bounded(6, steps=30))
    assert sum(world.steps.values()) > 80
    assert world.ends > 15


# rules that these faults need not: without them they are found sooner, and without cascades of the
# database, which leave orphans, a fault is always told by the same name
_SPARED = (
    "a_failing_statement_in_a_savepoint",
    "bulk_update_by_key",
    "bulk_update_to_null",
    "change_owner",
    "core_insert",
    "core_savepoint",
    "core_update",
    "delete_owner",
    "discard_an_edit",
    "edit_held_entry",
    "expire",
    "expunge",
    "hold_entry",
    "make_transient",
    "merge",
    "retry_a_commit",
    "retry_an_insert",
    "retry_an_update",
    "upsert",
)


# -- faults that the machine has to find -----------------------------------------------------------


def remove_when_a_session_says_that_it_committed(_patch):
    """The event fires where a savepoint is released, or an outer transaction goes on."""

    def after_commit(_session):
        for transaction in list(observed_transaction.open_transactions.values()):
            found = transaction.ledger._replay()
            for name in found.dropped - found.live:
                name.storage.remove([name.path])

    event.listen(Session, "after_commit", after_commit)
    return lambda: event.remove(Session, "after_commit", after_commit)


def list_after_commit(patch):
    """Empty a folder of what lies in it after COMMIT: somebody may have put it there since."""
    emptied = {}
    carry_out, finish = writing.carry_out, Ledger.finish

    def remember(transaction, effects):
        carry_out(transaction, effects)
        folders = [folder for effect in effects for folder in effect.folders]
        emptied.setdefault(id(transaction.ledger), []).extend(folders)

    def list_again(ledger, kept=()):
        folders = emptied.pop(id(ledger), [])
        before = [{found.path for found in f.storage.list(f.path)} for f in folders]
        removed = finish(ledger, kept)
        for folder, known in zip(folders, before, strict=True):
            found = {found.path for found in folder.storage.list(folder.path)}
            with contextlib.suppress(StorageError):
                folder.storage.remove(found - known)
        return removed

    patch.setattr(writing, "carry_out", remember)
    patch.setattr(Ledger, "finish", list_again)


def forget_what_a_rolled_back_savepoint_wrote(patch):
    written = {}
    begin_savepoint, rollback_to = Ledger.begin_savepoint, Ledger.rollback_to

    def begin(ledger, name):
        begin_savepoint(ledger, name)
        written[id(ledger), name] = dict(ledger._written)

    def rollback(ledger, name):
        rollback_to(ledger, name)
        ledger._written = dict(written.get((id(ledger), name), {}))

    patch.setattr(Ledger, "begin_savepoint", begin)
    patch.setattr(Ledger, "rollback_to", rollback)


def remember_what_a_rolled_back_savepoint_dropped(patch):
    rollback_to = Ledger.rollback_to

    def rollback(ledger, name):
        log = list(ledger._log)
        rollback_to(ledger, name)
        ledger._log += [(kind, n) for kind, n in log[len(ledger._log) :] if kind.name == "DROP"]

    patch.setattr(Ledger, "rollback_to", rollback)
    believe_the_ledger(patch)


def believe_the_ledger(patch):
    """Leave out the question before COMMIT, which makes up for what the ledger gets wrong."""
    patch.setattr(ReferringRows, "_held_by_key", lambda *_, **__: set())


def remove_what_a_row_got_back(patch):
    """What was superseded once goes, though its row refers to it again."""
    replay = Ledger._replay

    def drop_wins(ledger):
        found = replay(ledger)
        return replace(found, live=found.live - found.dropped)

    patch.setattr(Ledger, "_replay", drop_wins)
    believe_the_ledger(patch)


def remove_listed_names_without_asking(patch):
    patch.setattr(ReferringRows, "referenced", lambda *_, **__: set())


@pytest.mark.usefixtures("copy_on_write")
@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (remove_when_a_session_says_that_it_committed, "dangling"),
        (list_after_commit, "dangling"),
        (forget_what_a_rolled_back_savepoint_wrote, "orphans"),
        (remember_what_a_rolled_back_savepoint_dropped, "dangling"),
        (remove_what_a_row_got_back, "dangling"),
        (remove_listed_names_without_asking, "dangling"),
    ],
)
def test_a_fault_is_found(world, monkeypatch, fault, found):
    undo = fault(monkeypatch)
    try:
        with pytest.raises(Violation, match=f"^{found}"):
            run(world, bounded(300), without=_SPARED)
    finally:
        if undo is not None:
            undo()
