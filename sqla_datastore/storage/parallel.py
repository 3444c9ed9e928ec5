"""Calls that may wait for the disk, made at the same time where they do."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Generic, TypeVar

from sqla_datastore.options import options

T = TypeVar("T")

# Making a file takes about 0.05 milliseconds on a fast disk, and from 0.7 on in an aged folder of
# ext4; an fsync takes longer still.
_SLOW_SECONDS = 0.5e-3
_MEASURED = 4


def call_for_each(
    call: Callable[[T], object],
    things: Iterable[T],
    *,
    threads: int | None = None,
    at_once: bool = False,
    stopped: threading.Event | None = None,
    until_failure: bool = False,
) -> list[Exception]:
    """Call for every thing and return what was raised, in the order of the things.

    No call is running any more when this returns or raises.

    Begins in this thread and goes on in others once calls are slow: on a fast disk, handing over
    from thread to thread takes longer than the calls.

    Args:
        call: blocks; thread-safe.
        things: what it is called with.
        threads: how many there are at most, and never more than `options.storage_workers`; 1 calls
            in this thread only.
        at_once: begin in several threads.
        stopped: once it is set, the rest is not called.
        until_failure: set `stopped` once a call has failed.
    """
    things = list(things)
    calls = _Calls(call, things, stopped, until_failure=until_failure)
    most = options.storage_workers
    threads = most if threads is None else min(threads, most)
    if threads == 1 or len(things) == 1:
        calls.work()
    elif not at_once:
        calls.work_while_fast()
    if calls.count_left:
        calls.work_in(min(threads, calls.count_left))
    return calls.failures()


def raise_first(failures: Sequence[Exception], what: str) -> None:
    """Raise the first failure of `call_for_each`, if there is one, and say how many there are.

    Args:
        failures: what was raised.
        what: what could not be removed besides, as a plural.
    """
    if failures:
        if len(failures) > 1:
            failures[0].add_note(f"and {len(failures) - 1} more {what} could not be removed")
        raise failures[0]


class _Calls(Generic[T]):
    """What is still to be called, and what was raised."""

    def __init__(
        self,
        call: Callable[[T], object],
        things: Iterable[T],
        stopped: threading.Event | None = None,
        *,
        until_failure: bool = False,
    ) -> None:
        self._call = call
        self._stopped = threading.Event() if stopped is None else stopped
        self._until_failure = until_failure
        # no lock: taking from a deque and appending to a list are atomic
        self._queue = deque(enumerate(things))
        self._raised: list[tuple[int, Exception]] = []

    @property
    def count_left(self) -> int:
        return len(self._queue)

    def failures(self) -> list[Exception]:
        return [err for _, err in sorted(self._raised, key=itemgetter(0))]

    def work(self) -> None:
        while self._call_next():
            pass

    def work_while_fast(self) -> None:
        """Call until a group of calls takes long: a single short pause tells nothing."""
        while self._queue:
            slow = time.perf_counter() + _MEASURED * _SLOW_SECONDS
            for _ in range(_MEASURED):
                self._call_next()
                if time.perf_counter() > slow:
                    return

    def work_in(self, threads: int) -> None:
        with ThreadPoolExecutor(threads, "sqla_datastore") as pool:
            try:
                for future in [pool.submit(self.work) for _ in range(threads)]:
                    future.result()
            except BaseException:
                self._queue.clear()  # an interrupt does not wait for what nobody has begun
                raise

    def _call_next(self) -> bool:
        if self._stopped.is_set():
            self._queue.clear()
        try:
            number, thing = self._queue.popleft()
        except IndexError:
            return False
        try:
            self._call(thing)
        except Exception as err:
            self._raised.append((number, err))
            if self._until_failure:
                self._stopped.set()
        return True
