"""A server that runs scenarios in children which are killed at a given point.

Each line of its input is a JSON object with the scenario's name and the number of the point; it
answers with a line that tells how the child ended. Run by `test_crashes.py` with what `arguments`
returns. It has no connection of its own, so that each child starts without any, and imports
everything once.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from sqla_datastore import bind_storage, enable_removals, options
from sqla_datastore.storage import FsspecStorage
from sqla_datastore.storage.protocol import Storage
from support.databases import Stored, make_engine
from support.models import Base
from support.scenarios import SCENARIOS
from support.stage import Stage
from support.watched import Watched

LATE_SECONDS = 60
DATABASE = (
    "do_begin",
    "do_execute",
    "do_execute_no_params",
    "do_executemany",
    "do_commit",
    "do_rollback",
    "do_savepoint",
    "do_release_savepoint",
    "do_rollback_to_savepoint",
    "do_begin_twophase",
    "do_prepare_twophase",
    "do_commit_twophase",
    "do_rollback_twophase",
)
SYSTEM = ("mkdir", "link", "unlink", "rmdir")


def arguments(
    url: str, storage: Storage, storage_options: Mapping[str, Any], *, removals: bool
) -> list[str]:
    """Return what this program is to be given.

    Args:
        url: the database's.
        storage: where the scenarios store their objects.
        storage_options: what it needs besides.
        removals: whether removals are durable.
    """
    pickled = pickle.dumps(storage).hex()
    return [url, json.dumps(storage_options), pickled, *["removals"] * removals]


class Points:
    """Counts the points of a scenario and ends the process at one of them.

    Args:
        last: the number of the point to die at; None counts only.
    """

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self.is_armed = False
        self._last = last
        self._lock = threading.Lock()

    def __call__(self, call: str, moment: str) -> None:
        with self._lock:
            if not self.is_armed:
                return
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: object, name: str, *, after: bool = True) -> None:
        """Make a function of an object a point before it, and one after it."""
        original = getattr(owner, name)

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self(name, "before")
            result = original(*args, **kwargs)
            if after:
                self(name, "after")
            return result

        setattr(owner, name, call)


def run(url: str, storage: Storage, name: str, last: int | None, report: int) -> int:
    """Do a scenario; return how many points there were."""
    scenario = SCENARIOS[name]
    points = Points(last)
    engine = (create_engine if scenario.stock else make_engine)(url)
    bind_storage(engine, Watched(storage, points))
    # before the library observes the dialect, so that its own work comes around the points
    for method in DATABASE:
        points.around(engine.dialect, method)
    for function in SYSTEM:
        points.around(os, function, after=False)
    if isinstance(storage, FsspecStorage):  # after it, a file is there and nothing is in it yet
        points.around(storage._files, "_open")
    with engine.connect() as connection:  # what the first one asks is no part of the scenario
        session = server_session(connection.connection.dbapi_connection)
        os.write(report, json.dumps({"session": session}).encode() + b"\n")
    things = scenario.make()
    points.is_armed = True
    scenario.run(engine, things)
    points.is_armed = False
    engine.dispose()
    return points.count


def server_session(raw: Any) -> int:
    """Return the number of the server's end of a connection; 0 where there is no server."""
    if hasattr(raw, "thread_id"):
        return int(raw.thread_id())
    return int(raw.info.backend_pid) if hasattr(raw, "info") else 0


def child(url: str, storage: Storage, request: dict[str, Any], report: int) -> None:
    """Run in the child, and report; never return."""
    signal.alarm(LATE_SECONDS)
    try:
        points = run(url, storage, request["scenario"], request["point"], report)
        os.write(report, json.dumps({"points": points}).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def answer(url: str, storage: Storage, request: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario in a child, wait for its end and tell what it was."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(url, storage, request, write)
    os.close(write)
    found: dict[str, Any] = {}
    with os.fdopen(read) as lines:
        for line in lines:
            found |= json.loads(line)
    return found | {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def warm_up(url: str) -> None:
    """Import and configure here what every child would have to otherwise."""
    create_engine(url)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "storage")
        base.mkdir()
        Stage(f"sqlite:///{folder}/test.db", Stored(base)).close()


def main(url: str, storage_options: str, pickled: str, *others: str) -> None:
    """Answer until the input ends."""
    options.storage_options = json.loads(storage_options)
    storage = pickle.loads(bytes.fromhex(pickled))
    if "removals" in others:
        enable_removals(Base.metadata)
    warm_up(url)
    gc.freeze()  # else each child copies what the collector touches
    for line in sys.stdin:
        print(json.dumps(answer(url, storage, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
