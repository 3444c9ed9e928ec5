"""What was measured as Markdown: the tables of docs/performance.md, beside a plot."""

from __future__ import annotations

import datetime
import os
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.measuring import Figures
from benchmarks.plot import plot
from benchmarks.subjects import SUBJECTS
from benchmarks.workloads import WORKLOADS, Workload

_BEGIN = "<!-- results: written by the benchmarks -->"
_END = "<!-- end of the results -->"
_COUNTS = ("statements", "system calls", "written", "memory", "instructions")


@dataclass
class Results:
    """One run of the benchmarks.

    Attributes:
        file_system: what databases and files were on.
        figures: of each subject at each workload.
        versions: of the peers, by the subject's name.
        missing: why a peer was not measured, by the subject's name.
    """

    file_system: str
    figures: list[Figures] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def ratios(of: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return median, smallest and largest ratio of rounds; of the same round, so of one moment."""
    each = [mine / theirs for mine, theirs in zip(of, base, strict=True)]
    return median(each), min(each), max(each)


def base_of(workload: Workload, figures: Iterable[Figures]) -> Figures | None:
    found = (each for each in figures if each.subject == workload.base and not each.reason)
    return next(found, None)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(workload: Workload, figures: Sequence[Figures]) -> str:
    """Return one workload's title and table."""
    counted = [name for name in _COUNTS if any(name in each.counts for each in figures)]
    base = base_of(workload, figures)
    head = [f"beside {workload.base}", "CPU", "wall", "µs CPU", *counted]
    rows = [_row(workload, each, base, counted) for each in figures]
    return f"### {workload.title}\n\n{table(head, rows)}\n"


def _row(
    workload: Workload, figures: Figures, base: Figures | None, counted: Sequence[str]
) -> list[str]:
    if figures.reason:
        return [figures.subject, f"failed: {figures.reason}", *[""] * (len(counted) + 2)]
    return [
        figures.subject,
        _ratio(figures.cpu, base.cpu if base else ()),
        _ratio(figures.wall, base.wall if base else ()),
        _short(median(figures.cpu) / workload.count * 1e6),
        *(_count(workload, figures, name) for name in counted),
    ]


def _ratio(of: Sequence[float], base: Sequence[float]) -> str:
    if not base:
        return ""
    middle, least, most = ratios(of, base)
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


def _count(workload: Workload, figures: Figures, name: str) -> str:
    if name not in figures.counts:
        return ""
    if name == "statements":  # of a run, as most do not grow with the rows
        return _short(figures.counts[name])
    if name == "memory" and workload.measure_memory == "peak":
        return f"{figures.counts[name] / 1e6:.0f} MB in all"
    return _short(figures.counts[name] / workload.count)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


def summary(results: Results) -> str:
    """Return the table of this library alone: all workloads, as ratios."""
    names = ("system calls", "memory", "instructions")
    rows = []
    for key, workload in WORKLOADS.items():
        group = [each for each in results.figures if each.workload == key]
        base = base_of(workload, group)
        ours = next((each for each in group if each.subject == "sqla_datastore"), None)
        if ours and base and not ours.reason:
            cells = [_ratio(ours.cpu, base.cpu), _ratio(ours.wall, base.wall)]
            cells += [_counts_ratio(workload, ours, base, name) for name in names]
            rows.append([f"{workload.title}, beside {workload.base}", *cells])
    return table(["", "CPU", "wall", *names], rows)


def _counts_ratio(workload: Workload, ours: Figures, base: Figures, name: str) -> str:
    if name == "memory" and workload.measure_memory == "peak":
        return _count(workload, ours, name)  # the base may not grow at all
    mine, theirs = ours.counts.get(name), base.counts.get(name)
    return f"{mine / theirs:.2f}" if mine and theirs else ""


def machine(results: Results) -> str:
    """Return date, machine and versions as a list."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("sqlalchemy", "numpy", "pandas"))
    system = f"{platform.system()} {platform.release().split('-')[0]} on {platform.machine()}"
    return "\n".join(
        [
            f"- Measured on {datetime.datetime.now(datetime.UTC).date()}.",
            f"- {system}, {os.cpu_count()} cores.",
            f"- Python {platform.python_version()}, {versions}, SQLite {sqlite3.sqlite_version}.",
            f"- File system: {results.file_system}.",
        ]
    )


def subjects(results: Results) -> str:
    """Return who was measured, who was not, and what each does not have."""
    lines = []
    for name, about in SUBJECTS.items():
        if name in results.missing:
            lines.append(f"- **{name}** was not measured: {results.missing[name]}.")
        else:
            words = [f"- **{name}** {results.versions.get(name, '')}".rstrip(), f": {about.how}."]
            words += [f" No {need}: {why}." for need, why in about.cannot.items()]
            lines.append("".join(words))
    return "\n".join(lines)


def write(page: Path, results: Results) -> None:
    """Replace the results in a page, and its plot beside it; the rest of the page stays."""
    picture = page.with_suffix(".svg")
    picture.write_text(plot(results.figures))
    sections = [
        section(workload, group)
        for key, workload in WORKLOADS.items()
        if (group := [each for each in results.figures if each.workload == key])
    ]
    parts = [
        machine(results),
        f"![CPU beside the floor, for each workload and subject]({picture.name})",
        "## This library",
        summary(results),
        "## Who was measured",
        subjects(results),
        "## All figures",
        *sections,
    ]
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    body = "\n\n".join(part.rstrip() for part in parts)
    page.write_text(f"{before}{_BEGIN}\n\n{body}\n\n{_END}{after}")
