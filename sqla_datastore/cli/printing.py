"""Printing the reports of maintenance."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

from sqla_datastore.maintenance import (
    CheckReport,
    DrainReport,
    Findings,
    GcReport,
    MoveReport,
    RewriteReport,
    UsageReport,
)
from sqla_datastore.maintenance.reports import ColumnUsage
from sqla_datastore.printable import printable

Report: TypeAlias = CheckReport | DrainReport | GcReport | MoveReport | RewriteReport | UsageReport

_SHOWN = 100
"""How many findings of a kind are printed."""


def print_report(report: Report, *, as_json: bool) -> int:
    """Print a report on stdout, and what could not be removed on stderr.

    Args:
        report: what a command found or did.
        as_json: print all fields as JSON instead of text.

    Returns:
        The exit status: 0, 1 for findings, 2 where not all was removed.
    """
    print(
        # JSON escapes all but ASCII itself
        json.dumps(report.to_json(), indent=2)
        if as_json
        else "\n".join(map(printable, _lines(report)))
    )
    if isinstance(report, (DrainReport, GcReport, MoveReport)) and report.failures:
        message = printable(f"not all was removed: {report.failures[0]}; run it again")
        print(f"sqla-datastore: error: {message}", file=sys.stderr)
        return 2
    # `usage` finds no faults
    return 0 if isinstance(report, UsageReport) or report.is_clean else 1


def _lines(report: Report) -> Iterator[str]:
    if isinstance(report, CheckReport):
        return _check_lines(report)
    if isinstance(report, GcReport):
        return _gc_lines(report)
    if isinstance(report, DrainReport):
        return _drain_lines(report)
    if isinstance(report, RewriteReport):
        return _rewrite_lines(report)
    if isinstance(report, MoveReport):
        return _move_lines(report)
    return _usage_lines(report)


def _check_lines(report: CheckReport) -> Iterator[str]:
    yield from _finding_lines("rows without object", report.dangling)
    yield from _finding_lines("damaged objects", report.damaged)
    yield from _finding_lines("objects without row", report.orphans)
    yield from _finding_lines("leftovers of interrupted writes", report.leftovers)
    yield (
        f"{report.references} URLs in rows, {report.objects} objects, "
        f"{report.size_bytes} bytes; {report.foreign.count} foreign files"
    )
    yield from _in_row_lines(report)
    yield from _pending_lines(report.pending)
    counts = (
        f"{report.dangling.count} dangling, {report.damaged.count} damaged, "
        f"{report.orphans.count} orphans, {report.leftovers.count} leftovers"
    )
    yield "clean" if report.is_clean else f"found: {counts}"


def _gc_lines(report: GcReport) -> Iterator[str]:
    yield from _finding_lines("objects without row", report.orphans)
    yield from _finding_lines("leftovers of interrupted writes", report.leftovers)
    yield (
        f"{report.references} URLs in rows; {report.young} younger than "
        f"{report.grace_seconds:g} s stay, {report.foreign.count} foreign files stay"
    )
    yield from _pending_lines(report.pending)
    if report.applied:
        rescued = f"; {report.rescued} stay: a row refers to them now" if report.rescued else ""
        yield f"removed {report.removed} ({report.removed_bytes} bytes){rescued}"
    elif report.is_clean:
        yield "nothing to remove"
    else:
        size = report.orphans.size_bytes + report.leftovers.size_bytes
        count = report.orphans.count + report.leftovers.count
        yield f"would remove {count} ({size} bytes); run it with --apply to do so"


def _in_row_lines(
    report: CheckReport | UsageReport | ColumnUsage, indent: str = ""
) -> Iterator[str]:
    if report.in_rows:
        yield f"{indent}{report.in_rows} values in rows, {report.in_row_bytes} bytes there"


def _pending_lines(pending: int) -> Iterator[str]:
    if pending:
        yield (
            f"{pending} objects wait for their removal, until it is due: see sqla-datastore drain"
        )


def _drain_lines(report: DrainReport) -> Iterator[str]:
    yield (
        f"{report.carried_out} removals carried out; {report.waiting} younger than "
        f"{report.keep_seconds:g} s wait"
    )
    if report.others:
        yield f"{report.others} are of other models and stay"
    if report.referenced or report.foreign:
        yield (
            f"struck off: {report.referenced} that rows hold again, {report.foreign} that name no "
            "object of this library"
        )


def _rewrite_lines(report: RewriteReport) -> Iterator[str]:
    verb = "moved" if report.applied else "would move"
    yield (
        f"{report.rows} values; {verb} {report.moved_in} into their rows, {report.moved_out} out "
        f"of them, {report.moved_folder} to another folder; {_compressed(report)}"
    )
    if report.changed_meanwhile:
        yield f"{report.changed_meanwhile} were changed meanwhile; run it again"
    if report.missing:
        yield f"{report.missing} have no object in this storage; run check"
    if report.unreadable:
        yield f"{report.unreadable} cannot be loaded and stay as they are; run check --deep"
    if report.moved and not report.applied:
        yield "run it with --apply to do so"


def _compressed(report: RewriteReport) -> str:
    verb = "compressed" if report.applied else "would compress"
    return f"{verb} {report.recompressed} as their columns say"


def _move_lines(report: MoveReport) -> Iterator[str]:
    yield from _finding_lines("rows without object", report.missing)
    yield from _finding_lines("objects that were not copied", report.damaged)
    would = "" if report.applied else "would be "
    yield (
        f"{report.rows} URLs in rows; {report.copied} objects {would}copied "
        f"({report.copied_bytes} bytes), {report.present} were there; "
        f"{report.switched} rows {would}switched"
    )
    if report.removed:
        size = report.removed_bytes
        yield f"{report.removed} objects {would}removed from the source ({size} bytes)"
    if report.changed_meanwhile:
        yield f"{report.changed_meanwhile} rows were changed meanwhile; run it again"
    if not report.applied and (report.copied or report.switched or report.removed):
        yield "run it with --apply to do so"


def _usage_lines(report: UsageReport) -> Iterator[str]:
    for column in report.columns:
        yield (
            f"{column.table}.{column.column}: {column.rows} rows, {column.objects} objects, "
            f"{column.size_bytes} bytes"
        )
        yield from _in_row_lines(column, "  ")
        for each in column.types:
            yield f"  {each.type}: {each.entries} entries, {each.size_bytes} bytes"
        if column.unreadable:
            yield f"  {column.unreadable} objects cannot be read; run check"
    yield f"in all: {report.objects} objects, {report.size_bytes} bytes"
    yield from _in_row_lines(report)


def _finding_lines(title: str, findings: Findings[Any]) -> Iterator[str]:
    if not findings.count:
        return
    yield f"{title}: {findings.count}"
    for each in findings.first[:_SHOWN]:
        yield f"  {each}"
    if findings.count > _SHOWN:
        yield f"  … and {findings.count - _SHOWN} more"
