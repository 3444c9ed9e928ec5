"""Progress of long work: how it is counted, and how it is shown.

Work that takes long calls a `Progress` with what is being done, how much of it is done, and how
much there is. This module shows it: as a bar on a terminal with tqdm, otherwise as a line now and
then. Commands and migrations both use it; each has its own words for the lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqla_datastore.printable import printable

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Takes what is being done, how much of it is done, and how much there is, or None."""

_STEPS_PER_CALL = 1_000


class StepCounter:
    """Counts steps, and calls a `Progress` at the first one and after each thousand.

    Args:
        progress: what to call, if anything.
        what: what is being done.
        total: how many steps there are, or None.
    """

    def __init__(self, progress: Progress | None, what: str, total: int | None = None) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = 0
        self.report()

    def __call__(self, steps: int = 1) -> None:
        """Count some steps."""
        before, self._done = self._done, self._done + steps
        # a Progress may be slow, so it is not called for each of millions of steps
        if before // _STEPS_PER_CALL != self._done // _STEPS_PER_CALL:
            self.report()

    def report(self) -> None:
        """Call the `Progress` with what was counted so far."""
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)


class ProgressLines:
    """A `Progress` that shows a line now and then.

    Args:
        show: takes the arguments of a `Progress`, and the seconds since the work began.
        every_seconds: how much time lies between two lines at least; short work shows nothing.
        shows_end: whether the last step shows a line even so.
    """

    def __init__(
        self,
        show: Callable[[str, int, int | None, float], None],
        *,
        every_seconds: float,
        shows_end: bool = False,
    ) -> None:
        self._show = show
        self._every_seconds = every_seconds
        self._shows_end = shows_end
        self._what: str | None = None
        self._began = self._shown = time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show a line if it is time."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._shown = what, now, now
            return
        is_end = self._shows_end and total is not None and done >= total
        if is_end or now - self._shown >= self._every_seconds:
            self._shown = now
            self._show(what, done, total, now - self._began)


class _Bars:
    """A `Progress` that shows bars, one at a time."""

    def __init__(self, tqdm: Any, options: dict[str, Any]) -> None:
        self._tqdm = tqdm
        self._options = options
        self._what: str | None = None
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what != self._what:
            self.close()
            self._what = what
            self._bar = self._tqdm(
                desc=printable(what), total=total, file=sys.stderr, **self._options
            )
        # tqdm takes what was added, a Progress is told the sum
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._what = self._bar = None


@contextmanager
def bars_or_lines(lines: ProgressLines, **bar_options: Any) -> Iterator[Progress]:
    """Show progress on stderr while the block runs.

    Args:
        lines: shows it where stderr is no terminal, or tqdm is not installed.
        bar_options: arguments of tqdm.
    """
    tqdm = _tqdm() if sys.stderr.isatty() else None
    if tqdm is None:
        yield lines
        return
    bars = _Bars(tqdm, bar_options)
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
