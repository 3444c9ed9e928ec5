"""Tables on stdout: by rich on a terminal that has it, as plain lines anywhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from sqla_datastore.printable import printable

_WIDEST_CELL = 200


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: set[int] | None = None,
    title: str = "",
) -> None:
    """Print rows under titles; nothing where there are no rows and no titles.

    Args:
        titles: those of the columns; none is printed where all are empty.
        rows: the cells; what a terminal would obey is escaped here.
        numbers: the columns that are aligned to the right.
        title: printed above it.
    """
    if not rows and not any(titles):
        return
    cells = [[printable(cell, _WIDEST_CELL) for cell in row] for row in rows]
    heads = [printable(head, _WIDEST_CELL) for head in titles]
    rich = _rich() if sys.stdout.isatty() else None
    if rich is None:
        _print_plain(heads, cells, numbers or set(), printable(title))
    else:
        _print_rich(rich, heads, cells, numbers or set(), printable(title))


def print_json(found: Any) -> None:
    """Print what was found for programs; JSON escapes all but ASCII."""
    print(json.dumps(found, indent=2))


def _print_plain(heads: list[str], cells: list[list[str]], numbers: set[int], title: str) -> None:
    lines = [heads, *cells] if any(heads) else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if title:
        print(f"{title}:")
    for line in lines:
        texts = [
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(texts).rstrip())


def _print_rich(
    rich: Any, heads: list[str], cells: list[list[str]], numbers: set[int], title: str
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=rich.box.SIMPLE_HEAD if any(heads) else None,
        show_header=any(heads),
        title=Text(title) if title else None,
        title_justify="left",
    )
    for number, head in enumerate(heads):
        # Text, since a str may hold markup
        table.add_column(
            Text(head), justify="right" if number in numbers else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*map(Text, row))
    rich.console.Console(highlight=False).print(table)


def _rich() -> Any:
    """Return rich, None where it is not installed."""
    try:
        import rich.box
        import rich.console
    except ImportError:
        return None
    return rich
