"""The process of one subject at one workload: prepares it, then measures it when told to.

    python -m benchmarks.worker SUBJECT WORKLOAD FOLDER

Reads commands from its input, one a line, and answers each with one line of JSON.

    time    one run: seconds of CPU (all threads, user and system) and of the clock
    count   one run: SQL statements and bytes written
    memory  one run: bytes that its result holds, or how far the process grows
    idle    what comes before a run
    bare    the run alone, for who measures the process from outside
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import create_engine, event

from benchmarks.subjects import subject_class
from benchmarks.workloads import WORKLOADS, Case, Workload

Answer = dict[str, float]


class Trial:
    """One subject at one workload, prepared and run once."""

    def __init__(self, subject: str, workload: str, folder: Path) -> None:
        self.workload: Workload = WORKLOADS[workload]
        files = folder / "files"
        files.mkdir()
        engine = create_engine(f"sqlite:///{folder}/rows.db")
        self.case = Case(subject_class(subject)(files), engine, self.workload.count)
        with not_durable():
            self.workload.prepare(self.case)
        if self.workload.measure_memory != "peak":  # what a first run leaves could be used again
            self.idle()
            self.workload.run(self.case)
        gc.collect()
        gc.freeze()  # whether what libraries hold is looked at in a run would be chance

    def idle(self) -> Answer:
        with not_durable():
            self.workload.before(self.case)
        gc.collect()
        return {}

    def bare(self) -> Answer:
        self.workload.run(self.case)
        return {}

    def time(self) -> Answer:
        self.idle()
        wall, cpu = time.perf_counter(), time.process_time()
        result = self.workload.run(self.case)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        del result
        return {"cpu": cpu, "wall": wall}

    def count(self) -> Answer:
        self.idle()
        statements = 0

        def noted(*_arguments: Any) -> None:
            nonlocal statements
            statements += 1

        event.listen(self.case.engine, "before_cursor_execute", noted)
        before = bytes_written()
        self.workload.run(self.case)
        written = bytes_written() - before
        event.remove(self.case.engine, "before_cursor_execute", noted)
        return {"statements": statements, "written": written}

    def memory(self) -> Answer:
        self.idle()
        return {"memory": held(self) if self.workload.measure_memory == "held" else peak(self)}


@contextmanager
def not_durable() -> Iterator[None]:
    """Prepare without waiting for the disk."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


def held(trial: Trial) -> float:
    """Return the bytes that Python allocated for a run's result."""
    tracemalloc.start()
    result = trial.workload.run(trial.case)
    gc.collect()
    size_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return float(size_bytes)


def peak(trial: Trial) -> float:
    """Return by how many bytes the process grew at most, beyond what it had before a run."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    trial.workload.run(trial.case)
    return float(resident_bytes("VmHWM") - before)


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def bytes_written() -> int:
    """Return the bytes that this process has handed to the system, the journal's included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def main() -> None:
    subject, workload, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    trial = Trial(subject, workload, Path(folder))
    commands: dict[str, Callable[[], Answer]] = {
        "time": trial.time,
        "count": trial.count,
        "memory": trial.memory,
        "bare": trial.bare,
        "idle": trial.idle,
    }
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers, flush=True)


if __name__ == "__main__":
    main()
