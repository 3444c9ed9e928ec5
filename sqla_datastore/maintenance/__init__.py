"""Maintenance of storages: `check`, `gc`, `usage` and `drain`.

::

    from sqla_datastore.maintenance import check, gc

    report = check(engine, Base.metadata, deep=True)
    gc(engine, Base.metadata, apply=True)

All of them stream: memory stays flat however many objects and rows there are. They read URLs as raw
text and never load a value, may run while others write, and may be interrupted and run again.
``docs/maintenance.md`` has the whole story.
"""

from __future__ import annotations

import tempfile
from typing import Any

from sqlalchemy import MetaData

from sqla_datastore.dml.queries import batch_size
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.maintenance.check import Comparison
from sqla_datastore.maintenance.gc import Collection
from sqla_datastore.maintenance.reports import (
    CheckReport,
    ColumnUsage,
    DamagedObject,
    DanglingRow,
    DrainReport,
    Findings,
    ForeignName,
    GcReport,
    Leftover,
    Orphan,
    TypeUsage,
    UsageReport,
)
from sqla_datastore.maintenance.survey import (
    Collected,
    Progress,
    Ticker,
    declared_in,
    newest,
    refuse_missing_bases,
    surveyed,
)
from sqla_datastore.maintenance.usage import Account
from sqla_datastore.removals.drain import Drainage
from sqla_datastore.removals.table import check_seconds, removals_of

__all__ = [
    "CheckReport",
    "ColumnUsage",
    "DamagedObject",
    "DanglingRow",
    "DrainReport",
    "Findings",
    "ForeignName",
    "GcReport",
    "Leftover",
    "Orphan",
    "Progress",
    "TypeUsage",
    "UsageReport",
    "check",
    "drain",
    "gc",
    "usage",
]

DAY_SECONDS = 86_400.0


def check(
    engine: Any,
    metadata: MetaData,
    *,
    deep: bool = False,
    grace_seconds: float = 0.0,
    progress: Progress | None = None,
) -> CheckReport:
    """Compare rows and storages in both directions, and look at every object. Changes nothing.

    Blocks; reads the index of each object, and with `deep` all of it.

    Args:
        engine: the database, with the storage bound as for the application.
        metadata: the declared tables, for example ``Base.metadata``.
        deep: read all of each object: compare the checksums of payloads, and the index with what
            other ZIP tools see.
        grace_seconds: leave out orphans and leftovers younger than this. Those of transactions that
            are open now look like orphans.
        progress: called now and then with what is being done, how much is done, and of how much.

    Returns:
        The findings, typed; the same call again finds the same.

    Raises:
        ConfigurationError: a declared table is missing, the storage's base does not exist, the
            storage is another application's, or the engine is asynchronous.
        StorageError: the storage failed.
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    columns = declared_in(engine, metadata)
    comparison = Comparison(columns, deep, newest(grace_seconds))
    for storage in columns.storages():
        with surveyed(columns, storage, comparison.foreign, progress) as survey:
            comparison.run(survey)
    return comparison.report()


def gc(
    engine: Any,
    metadata: MetaData,
    *,
    apply: bool = False,
    grace_seconds: float = DAY_SECONDS,
    force: bool = False,
    progress: Progress | None = None,
) -> GcReport:
    """Remove the objects that no row refers to: a dry run unless `apply`.

    Takes only names that this library made, in folders of declared columns, older than the grace
    period, and what interrupted writes and removals left there. The database is asked again just
    before each batch goes. Blocks; may be interrupted and run again, and is done when it finds
    nothing.

    Args:
        engine: the database, with the storage bound as for the application.
        metadata: all declared tables that keep values in the storage.
        apply: remove what was found.
        grace_seconds: how old an object has to be; longer than the longest transaction, since the
            rows of one that is open cannot be seen.
        force: go on where it would be refused.
        progress: called now and then with what is being done, how much is done, and of how much.

    Returns:
        What was found and removed.

    Raises:
        ConfigurationError: as `check`; or objects without rows were found, but not one that a row
            refers to: then database and storage do not belong together. Nothing was removed.
        StorageError: the storage could not be listed. What it does not remove is in the report.
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    columns = declared_in(engine, metadata, force=force)
    collection = Collection(columns, newest(grace_seconds), progress)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        storages = columns.storages()
        for number, storage in enumerate(storages):
            with surveyed(columns, storage, collection.foreign, progress, force=force) as survey:
                collection.find(survey, number, spool, force=force)
        if apply:
            collection.remove(storages, spool)
    return collection.report(applied=apply, grace_seconds=grace_seconds)


def drain(
    engine: Any,
    metadata: MetaData,
    *,
    keep_seconds: float | None = None,
    progress: Progress | None = None,
) -> DrainReport:
    """Carry out durable removals that are due: what a crash, a failure or a trigger left.

    The database is asked before each batch goes; what a row holds again stays and is struck off.
    Blocks; may be interrupted and run again, and by several processes at once.

    Args:
        engine: the database, with the storage bound as for the application.
        metadata: the declared tables, with `enable_removals`.
        keep_seconds: how old a removal has to be, by default as `enable_removals` was told.
        progress: called now and then with what is being done, how much is done, and of how much.

    Returns:
        What was done. What the storage did not remove is among its failures.

    Raises:
        ConfigurationError: removals are not enabled; the table of removals is missing; no
            storage's base exists; or the engine is asynchronous.
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    removals = removals_of(metadata)
    if removals is None:
        raise ConfigurationError(
            "removals are not enabled for these models; call enable_removals(metadata) where they "
            "are defined"
        )
    keep = removals.keep_seconds if keep_seconds is None else keep_seconds
    check_seconds(keep)
    # models of one MetaData may be in several databases, each with a table of removals
    columns = declared_in(engine, metadata, force=True)
    if columns.removals is None:
        raise ConfigurationError(
            f"the database lacks the table {removals.table.fullname!r}; give the right database, "
            "or create it (metadata.create_all(engine), or alembic upgrade head)"
        )
    refuse_missing_bases(columns)
    drainage = Drainage(removals, columns.schemas, keep)
    size = batch_size(columns.engine.dialect)
    with columns.engine.connect() as connection:
        ticker = Ticker(progress, "removing", drainage.due(connection))
        while not drainage.is_done:
            ticker(drainage.batch(connection, size))
            connection.commit()
        ticker.tell()
        return DrainReport(
            keep_seconds=keep,
            carried_out=drainage.carried_out,
            referenced=drainage.referenced,
            foreign=drainage.foreign,
            waiting=drainage.waiting(connection),
            others=drainage.others(connection),
            failures=tuple(drainage.failures),
        )


def usage(engine: Any, metadata: MetaData, *, progress: Progress | None = None) -> UsageReport:
    """Tell what values take, by table and column and by type of entry. Changes nothing.

    Blocks; reads the index of each object.

    Args:
        engine: the database, with the storage bound as for the application.
        metadata: the declared tables.
        progress: called now and then with what is being done, how much is done, and of how much.

    Returns:
        Objects and bytes of what rows refer to.

    Raises:
        ConfigurationError: as `check`.
        StorageError: the storage failed.
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    columns = declared_in(engine, metadata)
    account = Account(columns)
    for storage in columns.storages():
        with surveyed(columns, storage, Collected(), progress) as survey:
            account.run(survey)
    return account.report()
