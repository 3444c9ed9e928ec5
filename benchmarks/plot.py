"""A plot without a plotting library: one line a workload, one dot a subject, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from statistics import median

from benchmarks.measuring import Figures
from benchmarks.subjects import SUBJECTS
from benchmarks.workloads import WORKLOADS, Workload

_COLOURS = (
    "#777777", "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#ff7f0e",
    "#17becf",
)  # fmt: skip
_LABELS = 400
_WIDTH = 1000
_LINE = 26
_TOP = 86
_TICKS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)


def plot(figures: Sequence[Figures]) -> str:
    """Return the CPU of all subjects as ratios to each workload's base, on a logarithmic axis."""
    done = [key for key in WORKLOADS if any(each.workload == key for each in figures)]
    height = _TOP + _LINE * len(done) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_legend([name for name in SUBJECTS if any(each.subject == name for each in figures)]),
        *_axis(height),
    ]
    for place, key in enumerate(done):
        group = [each for each in figures if each.workload == key and not each.reason]
        parts += _workload(WORKLOADS[key], group, _TOP + _LINE * place + _LINE / 2)
    return "\n".join([*parts, "</svg>\n"])


def _x(ratio: float) -> float:
    least, most = math.log(_TICKS[0]), math.log(_TICKS[-1])
    share = (math.log(ratio) - least) / (most - least)
    return _LABELS + 10 + min(max(share, 0), 1) * (_WIDTH - _LABELS - 30)


def _colour(subject: str) -> str:
    return _COLOURS[list(SUBJECTS).index(subject)]


def _dot(x: float, y: float, subject: str, size: int) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{_colour(subject)}"/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _legend(names: Sequence[str]) -> Iterator[str]:
    for place, name in enumerate(names):
        x, y = 20 + place % 4 * 245, 18 + place // 4 * 16
        yield _dot(x, y - 4, name, 5)
        yield _text(x + 10, y, name)


def _axis(height: float) -> Iterator[str]:
    for tick in _TICKS:
        colour = "#333333" if tick == 1 else "#dddddd"
        x = _x(tick)
        yield f'<path d="M{x:.1f} {_TOP}V{height - 20}" stroke="{colour}"/>'
        yield _text(x, _TOP - 6, f"{tick:g}", "middle")


def _workload(workload: Workload, group: Sequence[Figures], y: float) -> Iterator[str]:
    yield _text(_LABELS, y + 4, workload.title, "end")
    base = next((each for each in group if each.subject == workload.base), None)
    if base is None:
        return
    # this library last, so that its dot lies on top
    for each in sorted(group, key=lambda each: each.subject == "sqla_datastore"):
        ratio = median(a / b for a, b in zip(each.cpu, base.cpu, strict=True))
        yield _dot(_x(ratio), y, each.subject, 6 if each.subject == "sqla_datastore" else 4)
