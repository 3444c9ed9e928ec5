"""The commands ``sqla-datastore check``, ``gc``, ``drain`` and ``usage``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sqla_datastore.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData

    from sqla_datastore.maintenance.reports import (
        CheckReport,
        DrainReport,
        Findings,
        GcReport,
        UsageReport,
    )

    Report: TypeAlias = CheckReport | DrainReport | GcReport | UsageReport

__all__ = ["add_commands"]

_SHOWN = 100

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(commands: Commands) -> None:
    """Add the commands to the parser; imports nothing that they need."""
    check = _add(commands, "check", "find rows without object, objects without row, and damage")
    check.add_argument("--deep", action="store_true", help="compare the checksums of all payloads")
    _add_grace(check, 0.0, "leave out orphans younger than this (default: 0)")
    gc = _add(commands, "gc", "remove the objects that no row refers to")
    gc.add_argument("--apply", action="store_true", help="remove them (default: a dry run)")
    _add_grace(gc, 86_400.0, "leave what is younger than this (default: 86400, a day)")
    gc.add_argument(
        "--force",
        action="store_true",
        help="go on though a table is missing, or though no row's object was found",
    )
    drain = _add(commands, "drain", "carry out durable removals that are due")
    drain.add_argument(
        "--keep-seconds",
        metavar="N",
        type=float,
        help="leave what is younger than this (default: as enable_removals was told)",
    )
    _add(commands, "usage", "tell what values take, by column and by type")


def _add(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument(
        "model", metavar="MODEL", help="the models, as 'package.module:Base' or ':metadata'"
    )
    database = os.environ.get("SQLA_DATASTORE_DATABASE_URL")
    parser.add_argument(
        "--database",
        metavar="URL",
        default=database,
        required=database is None,
        help="SQLAlchemy's URL of it (default: SQLA_DATASTORE_DATABASE_URL)",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="the storage (default: as the models or environment say)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run, command=name)
    return parser


def _add_grace(parser: argparse.ArgumentParser, seconds: float, text: str) -> None:
    parser.add_argument("--grace-seconds", metavar="N", type=float, default=seconds, help=text)


def _run(arguments: argparse.Namespace) -> int:
    from sqla_datastore import maintenance
    from sqla_datastore.cli.progress import shown_progress

    metadata = _metadata(arguments.model)
    with _engine(arguments.database, arguments.storage) as engine, shown_progress() as progress:
        report: Report
        if arguments.command == "check":
            report = maintenance.check(
                engine,
                metadata,
                deep=arguments.deep,
                grace_seconds=arguments.grace_seconds,
                progress=progress,
            )
        elif arguments.command == "gc":
            report = maintenance.gc(
                engine,
                metadata,
                apply=arguments.apply,
                grace_seconds=arguments.grace_seconds,
                force=arguments.force,
                progress=progress,
            )
        elif arguments.command == "drain":
            report = maintenance.drain(
                engine, metadata, keep_seconds=arguments.keep_seconds, progress=progress
            )
        else:
            report = maintenance.usage(engine, metadata, progress=progress)
    return _show(report, as_json=arguments.json)


def _metadata(model: str) -> MetaData:
    """Return the MetaData that ``package.module:attribute`` names; the working directory counts."""
    from sqlalchemy import MetaData
    from sqlalchemy.orm import configure_mappers

    module, _, attribute = model.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"{model!r} names no models; give 'package.module:Base'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        # what it prints is not the report
        with contextlib.redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module)
            configure_mappers()
    except (Exception, SystemExit) as err:  # whatever a module of the user's raises
        raise ConfigurationError(
            f"{module!r} cannot be imported from {here!r} ({type(err).__name__}: {err}); give "
            "'package.module:Base', and run in the folder that holds the package"
        ) from err
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(
                f"module {module!r} has no {attribute!r}; give the Base or MetaData of the models"
            )
        found = getattr(found, name)
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise ConfigurationError(f"{model!r} is neither a Base nor a MetaData; give one of them")
    return metadata


@contextlib.contextmanager
def _engine(database: str, storage: str | None) -> Iterator[Engine]:
    """Give an engine, its storage bound; database errors become one line with the next step."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    from sqla_datastore.storage.binding import bind_storage

    try:
        url = make_url(database)
        _refuse_missing_file(url)
        engine = create_engine(url)
    except ImportError as err:
        raise ConfigurationError(
            f"the driver of {database.partition(':')[0]!r} is not installed ({err}); install it "
            "with pip, or give the URL of a driver that is"
        ) from err
    except (ArgumentError, NoSuchModuleError) as err:
        if isinstance(err, ConfigurationError):
            raise
        raise ConfigurationError(
            f"--database is no URL that SQLAlchemy knows ({err}); give one like "
            "'postgresql+psycopg://user@host/name'"
        ) from err
    try:
        if storage is not None:
            bind_storage(engine, storage)
        yield engine
    except SQLAlchemyError as err:
        if isinstance(err, ConfigurationError):
            raise
        reason = str(getattr(err, "orig", None) or err)
        raise ConfigurationError(
            f"the database {url.render_as_string()!r} cannot be used: {reason}; see that it runs "
            "and that the URL is right"
        ) from err
    finally:
        engine.dispose()


def _refuse_missing_file(url: Any) -> None:
    """Refuse an SQLite database that is not there: connecting would make an empty one."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return
    if not url.database.startswith("file:") and not Path(url.database).is_file():
        raise ConfigurationError(
            f"there is no database {url.database!r}; a relative path is taken from the working "
            "directory"
        )


# -- what is printed -------------------------------------------------------------------------------


def _show(report: Report, *, as_json: bool) -> int:
    from sqla_datastore.maintenance.reports import CheckReport, DrainReport, GcReport, UsageReport

    if as_json:
        _print(json.dumps(report.to_json(), indent=2))
    elif isinstance(report, CheckReport):
        _show_check(report)
    elif isinstance(report, GcReport):
        _show_gc(report)
    elif isinstance(report, DrainReport):
        _show_drain(report)
    else:
        _show_usage(report)
    if isinstance(report, (DrainReport, GcReport)) and report.failures:
        print(  # noqa: T201
            f"sqla-datastore: error: not all was removed: {report.failures[0]}; run it again",
            file=sys.stderr,
        )
        return 2
    return 0 if isinstance(report, UsageReport) or report.is_clean else 1


def _show_check(report: CheckReport) -> None:
    _list("rows without object", report.dangling)
    _list("damaged objects", report.damaged)
    _list("objects without row", report.orphans)
    _list("leftovers of interrupted writes", report.leftovers)
    _print(
        f"{report.references} URLs in rows, {report.objects} objects, "
        f"{report.size_bytes} bytes; {report.foreign.count} foreign files"
    )
    _show_pending(report.pending)
    counts = (
        f"{report.dangling.count} dangling, {report.damaged.count} damaged, "
        f"{report.orphans.count} orphans, {report.leftovers.count} leftovers"
    )
    _print("clean" if report.is_clean else f"found: {counts}")


def _show_gc(report: GcReport) -> None:
    _list("objects without row", report.orphans)
    _list("leftovers of interrupted writes", report.leftovers)
    _print(
        f"{report.references} URLs in rows; {report.young} younger than "
        f"{report.grace_seconds:g} s stay, {report.foreign.count} foreign files stay"
    )
    _show_pending(report.pending)
    if report.applied:
        rescued = f"; {report.rescued} stay: a row refers to them now" if report.rescued else ""
        _print(f"removed {report.removed} ({report.removed_bytes} bytes){rescued}")
    elif report.is_clean:
        _print("nothing to remove")
    else:
        size = report.orphans.size_bytes + report.leftovers.size_bytes
        count = report.orphans.count + report.leftovers.count
        _print(f"would remove {count} ({size} bytes); run it with --apply to do so")


def _show_pending(pending: int) -> None:
    if pending:
        _print(
            f"{pending} objects wait for their removal, until it is due: see sqla-datastore drain"
        )


def _show_drain(report: DrainReport) -> None:
    _print(
        f"{report.carried_out} removals carried out; {report.waiting} younger than "
        f"{report.keep_seconds:g} s wait"
    )
    if report.others:
        _print(f"{report.others} are of other models and stay")
    if report.referenced or report.foreign:
        _print(
            f"struck off: {report.referenced} that rows hold again, {report.foreign} that name no "
            "object of this library"
        )


def _show_usage(report: UsageReport) -> None:
    for column in report.columns:
        _print(
            f"{column.table}.{column.column}: {column.rows} rows, {column.objects} objects, "
            f"{column.size_bytes} bytes"
        )
        for each in column.types:
            _print(f"  {each.type}: {each.entries} entries, {each.size_bytes} bytes")
        if column.unreadable:
            _print(f"  {column.unreadable} objects cannot be read; run check")
    _print(f"in all: {report.objects} objects, {report.size_bytes} bytes")


def _list(title: str, findings: Findings[Any]) -> None:
    if not findings.count:
        return
    _print(f"{title}: {findings.count}")
    for each in findings.first[:_SHOWN]:
        _print(f"  {each}")
    if findings.count > _SHOWN:
        _print(f"  … and {findings.count - _SHOWN} more")


def _print(line: str) -> None:
    print(line)  # noqa: T201
