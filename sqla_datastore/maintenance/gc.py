"""Garbage collection: find the objects that no row refers to, then remove them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TextIO

from sqlalchemy import MetaData

from sqla_datastore.dml.dialects import batch_size
from sqla_datastore.dml.overlaps import others_are_open
from sqla_datastore.exceptions import ConfigurationError, StorageError
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.progress import Progress, StepCounter
from sqla_datastore.maintenance.references import stem_of
from sqla_datastore.maintenance.reports import (
    FindingsBuilder,
    ForeignName,
    GcReport,
    Leftover,
    Orphan,
)
from sqla_datastore.maintenance.survey import Family, Survey, cutoff, leftovers, surveyed
from sqla_datastore.storage.protocol import KeepsLeftovers, Storage, those_there

DAY_SECONDS = 86_400.0

_OTHERS_ARE_OPEN = (
    "nothing was removed while another transaction was open: without row locks, it can bring back "
    "what rows have lost; end it, and run this again"
)


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
    catalog = Catalog.of(engine, metadata, force=force)
    collector = _GarbageCollector(catalog, cutoff(grace_seconds), progress)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        storages = catalog.storages()
        for number, storage in enumerate(storages):
            with surveyed(catalog, storage, collector.foreign, progress, force=force) as survey:
                collector.find(survey, number, spool, force=force)
        # all storages come first: one that does not belong to the database stops everything
        if apply:
            collector.remove(storages, spool)
    return collector.report(applied=apply, grace_seconds=grace_seconds)


@dataclass
class _GarbageCollector:
    """Finds and counts everything before it removes anything.

    What it finds is spooled to a file, a line each: the storage's number, the size, the path.
    """

    catalog: Catalog
    cutoff: float
    progress: Progress | None
    references: int = 0
    young: int = 0
    pending: int = 0
    rescued: int = 0
    removed: int = 0
    removed_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    orphans: FindingsBuilder[Orphan] = field(default_factory=FindingsBuilder)
    leftovers: FindingsBuilder[Leftover] = field(default_factory=FindingsBuilder)
    foreign: FindingsBuilder[ForeignName] = field(default_factory=FindingsBuilder)

    def find(self, survey: Survey, number: int, spool: TextIO, *, force: bool) -> None:
        """Spool what there is to remove in one storage.

        Args:
            survey: compares the storage with its references.
            number: the number of the storage.
            spool: takes the lines.
            force: go on where no row's object was found.

        Raises:
            ConfigurationError: none was found, see `_refuse_mismatch`.
        """
        self.references += survey.references.rows
        for family in survey.families():
            if family.is_pending and not family.references:
                self.pending += len(family.objects)
            elif not family.references:
                self._spool_family(survey.storage, family, number, spool)
        # at the end of the listing: before it, an object that a row refers to could still come
        if survey.unreferenced and not force:
            self._refuse_mismatch(survey)
        for leftover, is_old in leftovers(survey, self.cutoff):
            if is_old:
                self.leftovers.add(leftover)
                spool.write(f"{number} {leftover.size_bytes} {leftover.path}\n")
            else:
                self.young += 1

    def _spool_family(self, storage: Storage, family: Family, number: int, spool: TextIO) -> None:
        # a family goes as a whole, so its youngest object decides
        if max(found.modified for found in family.objects) > self.cutoff:
            self.young += len(family.objects)
            return
        for found in family.objects:
            orphan = Orphan(found.path, found.size_bytes, found.modified, storage.url)
            self.orphans.add(orphan)
            spool.write(f"{number} {found.size_bytes} {found.path}\n")

    def _refuse_mismatch(self, survey: Survey) -> None:
        """Refuse a storage with objects of the models, where no row refers to any object there."""
        rows, url = survey.references.rows, survey.storage.url
        found = f"the storage {url!r} holds {survey.unreferenced} values of these models, but"
        if not rows:
            raise ConfigurationError(
                f"{found} the database refers to none of them: no row has a URL; nothing was "
                "removed: give the right database, or --force it (force=True) if the tables are "
                "meant to be empty"
            )
        if not survey.matched:
            raise ConfigurationError(
                f"{found} none that one of the {rows} rows refers to; nothing was removed: give "
                "the right database and storage, or --force it (force=True) if all objects "
                "of the rows are lost"
            )

    def remove(self, storages: list[Storage], spool: TextIO) -> None:
        """Remove what was spooled, batch by batch."""
        counter = StepCounter(self.progress, "removing", self.orphans.count + self.leftovers.count)
        spool.seek(0)
        for number, lines in groupby(map(_parsed, spool), lambda line: line[0]):
            for batch in _batches(lines, batch_size(self.catalog.engine.dialect)):
                if others_are_open(self.catalog.engine.dialect):
                    self.failures.append(_OTHERS_ARE_OPEN)
                    return
                self._remove_batch(storages[number], batch)
                counter(len(batch))
        counter.report()

    def _remove_batch(self, storage: Storage, sizes: dict[str, int]) -> None:
        """Ask the database once more, and remove what no row refers to now."""
        # no row can hold the name of a leftover, so the database is asked about objects only
        left = [path for path in sizes if not path.endswith(".zip")]
        objects = [path for path in sizes if path.endswith(".zip")]
        held = self.catalog.held_stems(storage, objects)
        doomed = [path for path in objects if stem_of(path) not in held]
        self.rescued += len(objects) - len(doomed)
        try:
            storage.remove(doomed)
            if left and isinstance(storage, KeepsLeftovers):
                storage.remove_leftovers(left)
        except StorageError as err:
            self.failures.append(err.message)
            there = those_there(storage, doomed)
            doomed = [path for path in doomed if path not in there]
            # which of them went nobody can tell; the next run finds the others
            left = []
        self.removed += len(doomed) + len(left)
        self.removed_bytes += sum(sizes[path] for path in (*doomed, *left))

    def report(self, *, applied: bool, grace_seconds: float) -> GcReport:
        """Return what was found and removed."""
        return GcReport(
            applied=applied,
            grace_seconds=grace_seconds,
            references=self.references,
            orphans=self.orphans.findings(),
            leftovers=self.leftovers.findings(),
            young=self.young,
            pending=self.pending,
            rescued=self.rescued,
            removed=self.removed,
            removed_bytes=self.removed_bytes,
            failures=tuple(self.failures),
            foreign=self.foreign.findings(),
        )


def _parsed(line: str) -> tuple[int, int, str]:
    number, size, path = line.rstrip("\n").split(" ", 2)
    return int(number), int(size), path


def _batches(lines: Iterator[tuple[int, int, str]], size: int) -> Iterator[dict[str, int]]:
    """Yield sizes by path, about so many at a time; the objects of a family stay together."""
    batch: dict[str, int] = {}
    for _, members in groupby(lines, lambda line: stem_of(line[2])):
        batch.update((path, size_bytes) for _, size_bytes, path in members)
        if len(batch) >= size:
            yield batch
            batch = {}
    if batch:
        yield batch
