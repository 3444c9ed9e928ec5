"""The commands that look at rows and values, and change nothing: ls, show, export, browse."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from sqla_datastore.cli.arguments import add_models
from sqla_datastore.exceptions import ConfigurationError, MissingObjectError
from sqla_datastore.printable import printable

if TYPE_CHECKING:
    from sqla_datastore.browsing.rows import Row, Tables

    Reading: TypeAlias = Callable[[argparse.Namespace, Tables], int]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_FORMATS = ("parquet", "csv", "npy", "json", "zip")
_SHOWN_ROWS = 50


def add_reading_commands(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_ls(commands)
    _add_show(commands)
    _add_export(commands)
    _add_browse(commands)


def _add_reading(
    commands: Commands, name: str, text: str, function: Reading
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    add_models(parser)
    parser.set_defaults(run=_run_reading, function=function)
    return parser


def _run_reading(arguments: argparse.Namespace) -> int:
    from sqla_datastore.cli.find_models import find_metadata, open_engine

    metadata = find_metadata(arguments.model)
    with open_engine(arguments.database, arguments.storage) as engine:
        from sqla_datastore.browsing.rows import Tables

        try:
            status: int = arguments.function(arguments, Tables(engine, metadata))
        except MissingObjectError as err:
            if arguments.storage is not None:
                raise
            # an engine that the models have bound is not the one of this command
            why = "is it the right storage? --storage names it, and so does SQLA_DATASTORE_URL"
            raise err.because(why) from err
    return status


def _add_row(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help="the table")
    parser.add_argument(
        "key", metavar="KEY", help="the row's primary key; several columns as '1,two'"
    )
    parser.add_argument(
        "entry",
        metavar="ENTRY",
        nargs="*",
        help="an entry's name; of a nested value, its name and that of the entry in it",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="the column, where the table has several with values"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")


# -- ls --------------------------------------------------------------------------------------------


def _add_ls(commands: Commands) -> None:
    ls = _add_reading(commands, "ls", "list the tables with values, or the rows of one", _ls)
    ls.add_argument("table", metavar="TABLE", nargs="?", help="list the rows of this table")
    ls.add_argument("--search", metavar="TEXT", default="", help="rows whose key contains this")
    for name, default, text in (
        ("--limit", _SHOWN_ROWS, "how many rows to list (default: 50)"),
        ("--offset", 0, "how many rows to leave out"),
    ):
        ls.add_argument(name, metavar="N", type=_count, default=default, help=text)
    _add_json(ls)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _ls(arguments: argparse.Namespace, tables: Tables) -> int:
    from sqla_datastore.cli.tables import print_json, print_table

    if arguments.table is not None:
        return _ls_rows(arguments, tables)
    found = tables.summaries()
    if arguments.json:
        print_json(
            [
                {
                    "table": each.name,
                    "rows": each.rows,
                    "columns": list(each.columns),
                    "storages": list(each.storages),
                }
                for each in found
            ]
        )
        return 0
    rows = [[t.name, str(t.rows), ", ".join(t.columns), ", ".join(t.storages)] for t in found]
    print_table(["table", "rows", "columns", "storage"], rows, numbers={1})
    return 0


def _ls_rows(arguments: argparse.Namespace, tables: Tables) -> int:
    from sqla_datastore.cli.tables import print_json, print_table
    from sqla_datastore.value.display import place_text

    page = tables.page(
        arguments.table,
        search=arguments.search,
        offset=arguments.offset,
        limit=arguments.limit,
    )
    if arguments.json:
        print_json([_row_json(row) for row in page.rows])
        return 0
    titles = ["key", *page.rows[0].fields, *page.rows[0].values] if page.rows else ["key"]
    print_table(
        titles,
        [
            [
                row.key,
                *map(_field_text, row.fields.values()),
                *("NULL" if v is None else place_text(v.url) for v in row.values.values()),
            ]
            for row in page.rows
        ],
    )
    if page.has_more:
        print(f"more rows follow: --offset {arguments.offset + arguments.limit}")
    return 0


def _field_text(value: Any) -> str:
    return "NULL" if value is None else str(value)


def _row_json(row: Row) -> dict[str, Any]:
    from sqla_datastore.browsing.exports import jsonable

    return {
        "key": row.key,
        "fields": {name: jsonable(value) for name, value in row.fields.items()},
        "urls": {name: None if v is None else v.url for name, v in row.values.items()},
    }


# -- show ------------------------------------------------------------------------------------------


def _add_show(commands: Commands) -> None:
    show = _add_reading(commands, "show", "show a row's entries, or what one of them holds", _show)
    _add_row(show)
    _add_json(show)


def _show(arguments: argparse.Namespace, tables: Tables) -> int:
    from sqla_datastore.browsing.entries import entries_of, find_entry, nested_value

    row = tables.row(arguments.table, arguments.key)
    path = arguments.entry
    if not path:
        values = row.values
        if arguments.column is not None:
            column, value = row.value(arguments.column)
            values = {column: value}
        contents = {
            name: None if value is None else entries_of(value) for name, value in values.items()
        }
        return _show_row(arguments, row, contents)
    _column, value = row.value(arguments.column)
    ref = find_entry(value, *path)
    if ref.is_nested:
        entries = entries_of(nested_value(value, path))
        return _show_row(arguments, row, {"/".join(path): entries})
    return _show_entry(arguments, ref)


def _show_row(arguments: argparse.Namespace, row: Row, contents: dict[str, Any]) -> int:
    from sqla_datastore.cli.tables import print_json, print_table
    from sqla_datastore.value.display import facts_of

    if arguments.json:
        shown = {name: _entries_json(entries) for name, entries in contents.items()}
        print_json({**_row_json(row), "entries": shown})
        return 0
    print_table(["", ""], [[name, _field_text(value)] for name, value in row.fields.items()])
    for name, entries in contents.items():
        if entries is None:
            print(f"{printable(name)}: NULL")
            continue
        print_table(
            ["entry", "type", "dtype", "shape", "size"],
            [[entry, *facts_of(what)] for entry, what in entries.items()],
            numbers={4},
            title=name,
        )
    return 0


def _entries_json(entries: dict[str, Any] | None) -> Any:
    if entries is None:
        return None
    return [
        {
            "name": name,
            "type": what.type,
            "dtype": what.dtype,
            "shape": what.shape,
            "nbytes": what.nbytes,
            **({} if what.file_name is None else {"file_name": what.file_name}),
        }
        for name, what in entries.items()
    ]


def _show_entry(arguments: argparse.Namespace, ref: Any) -> int:
    from sqla_datastore.browsing.views import view_of
    from sqla_datastore.cli.tables import print_json, print_table
    from sqla_datastore.value.display import size_text

    view = view_of(ref.load())
    what = ref.description
    if arguments.json:
        print_json(
            {"name": ref.name, "type": what.type, "nbytes": what.nbytes, "view": view.to_json()}
        )
        return 0
    facts = [("type", what.type), ("size", size_text(what.nbytes)), *view.facts]
    print_table(["", ""], [list(fact) for fact in facts])
    if view.columns:
        titles = [
            f"{name} ({dtype})" if dtype else name
            for name, dtype in zip(view.columns, view.dtypes, strict=True)
        ]
        print_table(titles, view.rows)
    for line in [*view.lines, *(f"({note})" for note in view.notes)]:
        print(printable(line))
    return 0


# -- export ----------------------------------------------------------------------------------------


def _add_export(commands: Commands) -> None:
    export = _add_reading(commands, "export", "write a value or an entry to a file", _export)
    _add_row(export)
    export.add_argument(
        "--to", choices=_FORMATS, help="the format; without it a file is written as it is"
    )
    export.add_argument(
        "--output",
        "-o",
        metavar="PATH",
        help="the file, '-' for stdout (default: named after the entry, in the working directory)",
    )
    export.add_argument("--force", action="store_true", help="replace the file if there is one")


def _export(arguments: argparse.Namespace, tables: Tables) -> int:
    from sqla_datastore.browsing.entries import find_entry
    from sqla_datastore.browsing.exports import export, file_name, suffix_of

    _column, value = tables.row(arguments.table, arguments.key).value(arguments.column)
    path, kind = arguments.entry, arguments.to
    if kind is not None and not path and kind not in ("json", "zip"):
        raise ConfigurationError(f"a whole value is no {kind}; name an entry, or use zip")
    loaded = find_entry(value, *path).load() if path else value
    name = arguments.output or file_name(
        kind or suffix_of(loaded), arguments.table, arguments.key, *path
    )
    with _written(name, replace=arguments.force) as out:
        export(loaded, kind, out)
    if name != "-":
        print(printable(name))
    return 0


@contextlib.contextmanager
def _written(name: str, *, replace: bool) -> Iterator[BinaryIO]:
    """Give a file to write; nothing stays of it after an error."""
    if name == "-":
        yield sys.stdout.buffer
        return
    path = Path(name)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    if os.path.lexists(path):
        if not replace:
            raise ConfigurationError(f"there is a file {name!r} already; --force replaces it")
        if path.exists() and not path.is_file():
            # to replace /dev/null by a file would harm all
            raise ConfigurationError(f"{name!r} is no file that could be replaced")
    try:
        with part.open("xb") as out:
            yield out
        _name(part, path, replace=replace)
    finally:
        part.unlink(missing_ok=True)


def _name(part: Path, path: Path, *, replace: bool) -> None:
    """Give a finished file its name."""
    if replace:
        part.replace(path)
        return
    from sqla_datastore.storage import posix

    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        posix.link_exclusively(part.name, path.name, folder)
    except posix.NameTakenError as err:
        # it was made meanwhile
        raise ConfigurationError(f"there is a file {str(path)!r} by now; export again") from err
    finally:
        os.close(folder)


# -- browse ----------------------------------------------------------------------------------------


def _add_browse(commands: Commands) -> None:
    browse = _add_reading(commands, "browse", "serve a page to look at rows and values", _browse)
    browse.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="bind this (default: 127.0.0.1)"
    )
    browse.add_argument(
        "--port", metavar="N", type=_count, default=8765, help="0 for a free one (default: 8765)"
    )
    browse.add_argument(
        "--token",
        metavar="TEXT",
        help="ask for this first (default: none on a loopback address, else a random one)",
    )


def _browse(arguments: argparse.Namespace, tables: Tables) -> int:
    from sqla_datastore.browsing.server import serve

    def announce(address: str) -> None:
        print(f"{address}  (Ctrl+C ends it)", flush=True)

    serve(tables, arguments.host, arguments.port, arguments.token, announce)
    return 0
