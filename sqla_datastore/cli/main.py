"""The command ``sqla-datastore``: its parser and its exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sqla_datastore.cli.commands import add_commands
from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.printable import printable


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
        sys.stdout.flush()
    except BrokenPipeError:
        # `… | head` has seen enough; what is left in the buffer must not be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DataStoreError, OSError) as err:
        print(f"sqla-datastore: error: {printable(err)}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sqla-datastore",
        description="Arrays, frames and tables outside the database, in step with it.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    add_commands(parser.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from sqla_datastore import __version__

        print(f"sqla-datastore {__version__}")
        parser.exit()
