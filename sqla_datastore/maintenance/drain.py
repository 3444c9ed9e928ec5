"""`drain`: carries out all durable removals that are due, with `removals.due`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import MetaData

from sqla_datastore.dml.dialects import batch_size
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.progress import Progress, StepCounter
from sqla_datastore.maintenance.reports import DrainReport
from sqla_datastore.maintenance.survey import refuse_missing_bases
from sqla_datastore.removals.due import DueRemovals
from sqla_datastore.removals.table import Removals, check_seconds, removals_of


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
    removals = _enabled(metadata)
    keep = removals.keep_seconds if keep_seconds is None else keep_seconds
    check_seconds(keep)
    # models of one MetaData may be in several databases, each with a table of removals
    catalog = Catalog.of(engine, metadata, force=True)
    if catalog.removals is None:
        raise ConfigurationError(
            f"the database lacks the table {removals.table.fullname!r}; give the right database, "
            "or create it (metadata.create_all(engine), or alembic upgrade head)"
        )
    refuse_missing_bases(catalog)
    return _carry_out(catalog, DueRemovals(removals, catalog.schemas, keep), progress)


def _enabled(metadata: MetaData) -> Removals:
    removals = removals_of(metadata)
    if removals is None:
        raise ConfigurationError(
            "removals are not enabled for these models; call enable_removals(metadata) where they "
            "are defined"
        )
    return removals


def _carry_out(catalog: Catalog, due: DueRemovals, progress: Progress | None) -> DrainReport:
    size = batch_size(catalog.engine.dialect)
    with catalog.engine.connect() as connection:
        counter = StepCounter(progress, "removing", due.count_due(connection))
        while not due.is_done:
            counter(due.carry_out(connection, size))
            # each batch by itself: an interruption takes back what the last one struck off, at most
            connection.commit()
        counter.report()
        return DrainReport(
            keep_seconds=due.keep_seconds,
            carried_out=due.carried_out,
            referenced=due.referenced,
            foreign=due.foreign,
            waiting=due.count_waiting(connection),
            others=due.count_others(connection),
            failures=tuple(due.failures),
        )
