"""Start a process for each subject, and let them take turns at a workload: A B C A B C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[1]
HERE_PYTHON = Path(sys.executable)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PYTHONHASHSEED": "0",  # the same order in each process, so the same instructions
    "OPENBLAS_NUM_THREADS": "1",  # its threads spin for a while after numpy is imported
}
_FEWEST_ROUNDS = 3
_TOO_LONG_TO_COUNT_SECONDS = 5.0
_CALLGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


class WorkerError(Exception):
    """A subject's process failed; the message is its last line."""


@dataclass
class Figures:
    """What one subject took for one workload. Each figure is of one run, not of one row.

    Attributes:
        cpu: seconds of CPU in each round: all threads, user and system.
        wall: seconds of the clock in each round.
        counts: statements, written (bytes), memory (bytes), system calls, instructions.
        reason: why there are no figures.
    """

    subject: str
    workload: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    reason: str = ""


class Worker:
    """The process of one subject at one workload."""

    def __init__(
        self, python: Path, subject: str, workload: str, folder: Path, *prefix: str
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [*prefix, python, "-m", "benchmarks.worker", subject, workload, folder],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pid = self._process.pid
        self._answer()  # it has prepared itself

    def ask(self, command: str) -> dict[str, float]:
        """Send a command and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError((self.close().splitlines() or ["it ended without a word"])[-1])
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> str:
        """End the process and return what it wrote to stderr."""
        if self._errors.closed:
            return ""
        self._process.communicate()
        self._errors.seek(0)
        errors = self._errors.read()
        self._errors.close()
        return errors


@contextmanager
def started(
    python: Path, subject: str, workload: Workload, folder: Path, *prefix: str
) -> Iterator[Worker]:
    """Start a worker in a folder of its own, which goes with it."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        worker = Worker(python, subject, workload.key, Path(own), *prefix)
        try:
            yield worker
        finally:
            worker.close()


def measure(
    workload: Workload,
    pythons: Mapping[str, Path],
    folder: Path,
    *,
    rounds: int,
    seconds: float,
) -> list[Figures]:
    """Measure subjects at a workload.

    Args:
        workload: what they do.
        pythons: the interpreter of each subject, in the order of their turns.
        folder: where their databases and files are.
        rounds: how many turns each has.
        seconds: how long all turns may take; each subject has three turns all the same, or one
            where three would take longer.
    """
    found = {name: Figures(name, workload.key) for name in pythons}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for name, figures in found.items():
            with _noted(figures):
                worker = started(pythons[name], name, workload, folder)
                workers[name] = stack.enter_context(worker)
                if workload.measure_memory:  # first: later ones could use memory again
                    figures.counts |= workers[name].ask("memory")
        _take_turns(workers, found, rounds, seconds)
        for name, figures in found.items():
            if not figures.reason and max(figures.cpu) < _TOO_LONG_TO_COUNT_SECONDS:
                with _noted(figures):
                    figures.counts |= workers[name].ask("count")
                    figures.counts |= system_calls(workers[name])
    return list(found.values())


@contextmanager
def _noted(figures: Figures) -> Iterator[None]:
    """Note why a subject's process failed, so that the others go on."""
    try:
        yield
    except WorkerError as err:
        figures.reason = str(err)


def _take_turns(
    workers: Mapping[str, Worker], found: Mapping[str, Figures], rounds: int, seconds: float
) -> None:
    began = time.monotonic()
    for done in range(rounds):
        spent = time.monotonic() - began
        if spent > seconds and (done >= _FEWEST_ROUNDS or spent > _FEWEST_ROUNDS * seconds / 2):
            return
        for name, figures in found.items():
            if not figures.reason:
                with _noted(figures):
                    answer = workers[name].ask("time")
                    figures.cpu.append(answer["cpu"])
                    figures.wall.append(answer["wall"])


def system_calls(worker: Worker) -> dict[str, float]:
    """Count the system calls of one run, in all threads; nothing where there is no strace."""
    if shutil.which("strace") is None:
        return {}
    worker.ask("idle")
    with tempfile.NamedTemporaryFile("r") as summary:
        strace = subprocess.Popen(
            ["strace", "-f", "-c", "-o", summary.name, "-p", str(worker.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        attached = "attached" in strace.stderr.readline()
        worker.ask("bare")
        strace.send_signal(signal.SIGINT)
        strace.communicate()
        total = re.search(r"^100\.00 +\S+ +\S+ +(\d+)", summary.read(), re.MULTILINE)
    return {"system calls": float(total[1])} if attached and total else {}


def count_instructions(
    figures: Sequence[Figures], workload: Workload, pythons: Mapping[str, Path], folder: Path
) -> None:
    """Add the instructions of one run of this library and of the base, if valgrind is there."""
    if shutil.which("valgrind") is None or shutil.which("vgdb") is None:
        return
    for each in figures:
        # where callgrind fails, the column stays empty: the other figures are good
        if each.subject in (workload.base, "sqla_datastore") and not each.reason:
            with suppress(WorkerError, subprocess.CalledProcessError):
                each.counts |= _instructions(workload, pythons[each.subject], each.subject, folder)


def _instructions(workload: Workload, python: Path, name: str, folder: Path) -> dict[str, float]:
    prefix = (*_CALLGRIND, "--instr-atstart=no")
    with started(python, name, workload, folder, *prefix) as worker:
        worker.ask("idle")
        _instrumentation(worker.pid, "on")
        worker.ask("bare")
        _instrumentation(worker.pid, "off")
        collected = re.search(r"Collected : (\d+)", worker.close())
    return {"instructions": float(collected[1])} if collected else {}


def _instrumentation(pid: int, state: str) -> None:
    command: Sequence[str] = ["vgdb", f"--pid={pid}", "instrumentation", state]
    subprocess.run(command, check=True, capture_output=True)
