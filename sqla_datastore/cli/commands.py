"""The commands: their arguments, and what each of them calls.

What a command needs is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sqla_datastore.cli.arguments import add_models
from sqla_datastore.cli.reading_commands import add_reading_commands
from sqla_datastore.printable import printable

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData

    from sqla_datastore.cli.printing import Report
    from sqla_datastore.maintenance import (
        CheckReport,
        DrainReport,
        GcReport,
        MoveReport,
        Progress,
        RewriteReport,
        UsageReport,
    )

    MaintenanceFunction: TypeAlias = Callable[
        [argparse.Namespace, Engine, MetaData, Progress], Report
    ]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(commands: Commands) -> None:
    """Add all commands to the parser."""
    _add_demo(commands)
    add_reading_commands(commands)
    _add_check(commands)
    _add_gc(commands)
    _add_drain(commands)
    _add_usage(commands)
    _add_rewrite(commands)
    _add_move(commands)


# -- demo ------------------------------------------------------------------------------------------


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="show in a minute what the library does",
        description="Show what the library does, with SQLite and a storage, and check it.",
    )
    demo.add_argument(
        "--folder",
        type=Path,
        metavar="PATH",
        help="work in this folder, which is new or empty (default: a temporary one)",
    )
    demo.add_argument(
        "--storage",
        metavar="BASE",
        help="keep the objects in this empty storage, for example s3://bucket/prefix",
    )
    demo.add_argument(
        "--keep", action="store_true", help="leave the database and the files to look at"
    )
    demo.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    from sqla_datastore.cli import demo

    try:
        demo.run(arguments.folder, storage_url=arguments.storage, keep=arguments.keep)
    except demo.BrokenPromise as err:
        print(f"sqla-datastore: broken promise: {printable(err)}", file=sys.stderr)
        return 1
    return 0


# -- maintenance -----------------------------------------------------------------------------------


def _add_check(commands: Commands) -> None:
    text = "find rows without object, objects without row, and damage"
    check = _add_maintenance(commands, "check", text, _check)
    check.add_argument("--deep", action="store_true", help="compare the checksums of all payloads")
    _add_grace(check, 0.0, "leave out orphans younger than this (default: 0)")


def _check(
    arguments: argparse.Namespace, engine: Engine, metadata: MetaData, progress: Progress
) -> CheckReport:
    from sqla_datastore.maintenance import check

    return check(
        engine,
        metadata,
        deep=arguments.deep,
        grace_seconds=arguments.grace_seconds,
        progress=progress,
    )


def _add_gc(commands: Commands) -> None:
    gc = _add_maintenance(commands, "gc", "remove the objects that no row refers to", _gc)
    gc.add_argument("--apply", action="store_true", help="remove them (default: a dry run)")
    # DAY_SECONDS of maintenance, which would load SQLAlchemy for --help
    _add_grace(gc, 86_400.0, "leave what is younger than this (default: 86400, a day)")
    gc.add_argument(
        "--force",
        action="store_true",
        help="go on though a table is missing, or though no row's object was found",
    )


def _gc(
    arguments: argparse.Namespace, engine: Engine, metadata: MetaData, progress: Progress
) -> GcReport:
    from sqla_datastore.maintenance import gc

    return gc(
        engine,
        metadata,
        apply=arguments.apply,
        grace_seconds=arguments.grace_seconds,
        force=arguments.force,
        progress=progress,
    )


def _add_drain(commands: Commands) -> None:
    drain = _add_maintenance(commands, "drain", "carry out durable removals that are due", _drain)
    drain.add_argument(
        "--keep-seconds",
        metavar="N",
        type=float,
        help="leave what is younger than this (default: as enable_removals was told)",
    )


def _drain(
    arguments: argparse.Namespace, engine: Engine, metadata: MetaData, progress: Progress
) -> DrainReport:
    from sqla_datastore.maintenance import drain

    return drain(engine, metadata, keep_seconds=arguments.keep_seconds, progress=progress)


def _add_usage(commands: Commands) -> None:
    _add_maintenance(commands, "usage", "tell what values take, by column and by type", _usage)


def _usage(
    _arguments: argparse.Namespace, engine: Engine, metadata: MetaData, progress: Progress
) -> UsageReport:
    from sqla_datastore.maintenance import usage

    return usage(engine, metadata, progress=progress)


def _add_rewrite(commands: Commands) -> None:
    text = "write values anew as their columns say now: in the row or outside, and in which folder"
    rewrite = _add_maintenance(commands, "rewrite", text, _rewrite)
    rewrite.add_argument("--apply", action="store_true", help="write (default: a dry run)")
    _add_batch_rows(rewrite)


def _rewrite(
    arguments: argparse.Namespace, engine: Engine, metadata: MetaData, progress: Progress
) -> RewriteReport:
    from sqla_datastore.maintenance import rewrite

    return rewrite(
        engine,
        metadata,
        apply=arguments.apply,
        batch_rows=arguments.batch_rows,
        progress=progress,
    )


def _add_move(commands: Commands) -> None:
    text = "copy the objects of rows to another base, verified"
    move = _add_maintenance(commands, "move", text, _move)
    move.add_argument(
        "--from", dest="source", metavar="BASE", required=True, help="the base they are in"
    )
    move.add_argument(
        "--to", dest="target", metavar="BASE", required=True, help="the base they are copied to"
    )
    move.add_argument(
        "--tables",
        metavar="A,B",
        type=lambda text: text.split(","),
        help="the tables to look at, separated by commas (default: all)",
    )
    move.add_argument("--apply", action="store_true", help="copy (default: a dry run)")
    move.add_argument(
        "--remove-source",
        action="store_true",
        help="remove what was copied from where it was; bind the application to the target first",
    )
    _add_batch_rows(move)


def _move(
    arguments: argparse.Namespace, engine: Engine, metadata: MetaData, progress: Progress
) -> MoveReport:
    from sqla_datastore.maintenance import move

    return move(
        engine,
        metadata,
        arguments.source,
        arguments.target,
        tables=arguments.tables,
        apply=arguments.apply,
        remove_source=arguments.remove_source,
        batch_rows=arguments.batch_rows,
        progress=progress,
    )


def _add_batch_rows(parser: argparse.ArgumentParser) -> None:
    # BATCH_ROWS of maintenance, which would load SQLAlchemy for --help
    parser.add_argument(
        "--batch-rows",
        metavar="N",
        type=int,
        default=100,
        help="rows in one transaction (default: 100)",
    )


def _add_maintenance(
    commands: Commands, name: str, text: str, function: MaintenanceFunction
) -> argparse.ArgumentParser:
    """Add a command that calls a function of maintenance, with the arguments that all have."""
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    add_models(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run_maintenance, function=function)
    return parser


def _add_grace(parser: argparse.ArgumentParser, seconds: float, text: str) -> None:
    parser.add_argument("--grace-seconds", metavar="N", type=float, default=seconds, help=text)


def _run_maintenance(arguments: argparse.Namespace) -> int:
    from sqla_datastore.cli.find_models import find_metadata, open_engine
    from sqla_datastore.cli.printing import print_report
    from sqla_datastore.cli.progress import shown_progress

    metadata = find_metadata(arguments.model)
    with (
        open_engine(arguments.database, arguments.storage) as engine,
        shown_progress() as progress,
    ):
        report: Report = arguments.function(arguments, engine, metadata, progress)
    return print_report(report, as_json=arguments.json)
