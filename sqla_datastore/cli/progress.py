"""Showing how long a command has got: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from sqla_datastore.maintenance.progress import Progress, ProgressLines, bars_or_lines
from sqla_datastore.printable import printable

_LINE_EVERY_SECONDS = 10.0


def shown_progress() -> AbstractContextManager[Progress]:
    """Show progress on stderr while a block runs.

    On a terminal with tqdm it is a bar with rate and remaining time; otherwise a line every ten
    seconds, so that short work shows nothing.
    """
    lines = ProgressLines(_print_line, every_seconds=_LINE_EVERY_SECONDS)
    return bars_or_lines(lines, unit="", unit_scale=True, leave=False)


def _print_line(what: str, done: int, total: int | None, seconds: float) -> None:
    # `seconds` is never 0: the first line comes after _LINE_EVERY_SECONDS
    print(f"{printable(what)}: {_text(done, total, done / seconds)}", file=sys.stderr, flush=True)


def _text(done: int, total: int | None, rate: float) -> str:
    # rows come while the work goes on, so that more may be done than was counted before
    if not total or done > total or not rate:
        return f"{done}, {rate:.0f}/s"
    return f"{done} of {total}, {rate:.0f}/s, {(total - done) / rate:.0f} s left"
