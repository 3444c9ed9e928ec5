"""The command ``sqla-datastore``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sqla_datastore.cli import commands as operating
from sqla_datastore.exceptions import DataStoreError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 when what was checked is not as it should be, 2 for an error, which
        is one line on stderr.

    Raises:
        SystemExit: after ``--help`` or ``--version`` (0), and for unknown arguments (2).
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (DataStoreError, OSError) as err:
        message = " ".join(str(err).split())
        print(f"sqla-datastore: error: {message}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sqla-datastore",
        description="Arrays, frames and tables outside the database, in step with it.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    operating.add_commands(commands)
    return parser


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from sqla_datastore import __version__

        print(f"sqla-datastore {__version__}")
        parser.exit()


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="show in a minute what the library does",
        description="Show what the library does, with SQLite and a local folder, and check it.",
    )
    demo.add_argument(
        "--folder",
        type=Path,
        metavar="PATH",
        help="work in this folder, which is new or empty (default: a temporary one)",
    )
    demo.add_argument(
        "--keep", action="store_true", help="leave the database and the files to look at"
    )
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from sqla_datastore.cli import demo

    try:
        demo.run(arguments.folder, keep=arguments.keep)
    except demo.BrokenPromise as err:
        print(f"sqla-datastore: broken promise: {err}", file=sys.stderr)
        return 1
    return 0
