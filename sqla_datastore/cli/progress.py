"""Showing how long work gets on: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqla_datastore.maintenance.survey import Progress

__all__ = ["shown_progress"]

_LINE_EVERY_SECONDS = 10.0


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Give what shows progress on stderr while the block runs.

    On a terminal with tqdm it is a bar with rate and remaining time; otherwise a line every ten
    seconds, so that short work shows nothing.
    """
    bars = _Bars() if sys.stderr.isatty() and _tqdm() is not None else None
    if bars is None:
        yield _Lines()
        return
    try:
        yield bars
    finally:
        bars.close()


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


class _Bars:
    """One bar at a time."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what != self._what:
            self.close()
            self._what = what
            self._bar = _tqdm()(
                desc=what, total=total, unit="", unit_scale=True, leave=False, file=sys.stderr
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._what = self._bar = None


class _Lines:
    """A line now and then."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._began = self._told = time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._told = what, now, now
        if now - self._told < _LINE_EVERY_SECONDS:
            return
        self._told = now
        rate = done / (now - self._began)
        print(f"{what}: {_text(done, total, rate)}", file=sys.stderr, flush=True)  # noqa: T201


def _text(done: int, total: int | None, rate: float) -> str:
    if not total or done > total or not rate:
        return f"{done}, {rate:.0f}/s"
    return f"{done} of {total}, {rate:.0f}/s, {(total - done) / rate:.0f} s left"
