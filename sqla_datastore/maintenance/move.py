"""Copy the objects of rows to another base, and have the rows say so where the scheme changes."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from sqlalchemy import MetaData

from sqla_datastore.maintenance.batches import BATCH_ROWS, ColumnRows
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.move_bases import Bases, Counts
from sqla_datastore.maintenance.move_copies import Mover
from sqla_datastore.maintenance.move_removals import Remover
from sqla_datastore.maintenance.progress import Progress
from sqla_datastore.maintenance.reports import MoveReport
from sqla_datastore.storage.binding import storage_given
from sqla_datastore.storage.protocol import Storage


def move(
    engine: Any,
    metadata: MetaData,
    source: str | os.PathLike[str] | Storage,
    target: str | os.PathLike[str] | Storage,
    *,
    tables: Collection[str] | None = None,
    apply: bool = False,
    remove_source: bool = False,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> MoveReport:
    """Copy the objects that rows refer to from one base to another: a dry run unless `apply`.

    Every object is verified before it is copied, and its copy is read back and verified, as
    ``check(deep=True)`` does it. What the target has already in the same size is passed over, so it
    may be interrupted at any point and run again. Others may read and write meanwhile: what they
    write to the source the next run copies. Where source and target are of one scheme no row
    changes, and the engine is bound to the target afterwards. Where they are of two, rows get the
    target's scheme batch by batch: rows are locked as any UPDATE locks them, and one that has
    changed since its object was copied is left for the next run. Values that lie in rows stay
    there. ``docs/maintenance.md`` has the order of steps. Blocks; memory holds one batch of names,
    and 1 MiB of each of eight objects.

    Args:
        engine: the database. Its binding does not tell the source, but columns with a URL of their
            own take part only where that is the source or the target.
        metadata: the declared tables.
        source: the base that the objects are in, whatever the engine is bound to.
        target: the base that they are copied to; made where it is missing.
        tables: the tables to look at, with their schema where they have one; by default all.
        apply: copy, switch and remove; else only tell what would be done.
        remove_source: afterwards remove from the source what the rows looked at own, is verified in
            the target, and no row refers to in the source. Nothing else is removed there.
        batch_rows: rows looked at together, and switched in one transaction.
        progress: called after each batch with what is being done, how much is done, and of how
            much.

    Returns:
        What was done, or would be, and what stood in the way.

    Raises:
        ConfigurationError: as `rewrite`; or one base is the other or lies within it, the source's
            does not exist, no storage serves one of them, there is no such table, or
            `remove_source` is asked for while the engine does not read from the target. Nothing
            was written.
        StorageError: a storage failed, or the target takes nothing; what was copied before stays.
        sqlalchemy.exc.SQLAlchemyError: the database failed, five times in a row for one batch.
    """
    catalog = Catalog.of(engine, metadata)
    bases = Bases(storage_given(source), storage_given(target))
    bases.check()
    columns = bases.columns_of(catalog, tables)
    if remove_source:
        bases.refuse_readers_of_source(catalog, columns)
    rows = [(column, ColumnRows(catalog.engine, column, batch_rows)) for column in columns]
    report = Counts()
    for column, of_column in rows:
        Mover(catalog, bases, column, of_column, report, apply=apply).run(progress)
    for column, of_column in rows if remove_source else ():
        Remover(catalog, bases, column, of_column, report, apply=apply).run(progress)
    return report.report(applied=apply)
