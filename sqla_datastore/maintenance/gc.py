"""The work of `sqla_datastore.maintenance.gc`: finding what may go, then removing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TextIO

from sqla_datastore.dml.queries import batch_size
from sqla_datastore.exceptions import ConfigurationError, StorageError
from sqla_datastore.maintenance.references import Declared, stem_of
from sqla_datastore.maintenance.reports import ForeignName, GcReport, Leftover, Orphan
from sqla_datastore.maintenance.survey import Collected, Progress, Survey, Ticker, leftovers
from sqla_datastore.storage.protocol import KeepsLeftovers, Storage, is_there

__all__ = ["Collection"]


@dataclass
class Collection:
    """A garbage collection at work: all is found and counted before anything is removed."""

    columns: Declared
    newest: float
    progress: Progress | None
    references: int = 0
    young: int = 0
    pending: int = 0
    rescued: int = 0
    removed: int = 0
    removed_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    orphans: Collected[Orphan] = field(default_factory=Collected)
    leftovers: Collected[Leftover] = field(default_factory=Collected)
    foreign: Collected[ForeignName] = field(default_factory=Collected)

    def find(self, survey: Survey, number: int, spool: TextIO, *, force: bool) -> None:
        """Spool what there is to remove in one storage, as lines of its number, size and path."""
        url = survey.storage.url
        self.references += survey.references.rows
        for family in survey.families():
            if family.references:
                continue
            if family.is_pending:
                self.pending += len(family.objects)
                continue
            # a family goes as a whole
            if max(found.modified for found in family.objects) > self.newest:
                self.young += len(family.objects)
                continue
            for found in family.objects:
                self.orphans.add(Orphan(found.path, found.size_bytes, found.modified, url))
                spool.write(f"{number} {found.size_bytes} {found.path}\n")
        if survey.unreferenced and not force:
            self._refuse(survey)
        for leftover, is_old in leftovers(survey, self.newest):
            if is_old:
                self.leftovers.add(leftover)
                spool.write(f"{number} {leftover.size_bytes} {leftover.path}\n")
            else:
                self.young += 1

    def _refuse(self, survey: Survey) -> None:
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
        ticker = Ticker(self.progress, "removing", self.orphans.count + self.leftovers.count)
        spool.seek(0)
        for number, lines in groupby(map(_spooled, spool), lambda line: line[0]):
            for batch in _batches(lines, batch_size(self.columns.engine.dialect)):
                self._remove_batch(storages[number], batch)
                ticker(len(batch))
        ticker.tell()

    def _remove_batch(self, storage: Storage, sizes: dict[str, int]) -> None:
        """Ask the database once more, and remove what it knows nothing of."""
        left = [path for path in sizes if not path.endswith(".zip")]
        objects = [path for path in sizes if path.endswith(".zip")]
        held = self.columns.held_stems(storage, objects)
        doomed = [path for path in objects if stem_of(path) not in held]
        self.rescued += len(objects) - len(doomed)
        try:
            storage.remove(doomed)
            if left and isinstance(storage, KeepsLeftovers):
                storage.remove_leftovers(left)
        except StorageError as err:
            self.failures.append(str(err))
            doomed = [path for path in doomed if not is_there(storage, path)]
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


def _spooled(line: str) -> tuple[int, int, str]:
    number, size, path = line.rstrip("\n").split(" ", 2)
    return int(number), int(size), path


def _batches(lines: Iterator[tuple[int, int, str]], size: int) -> Iterator[dict[str, int]]:
    """Yield sizes by path, so many at a time; families stay together."""
    batch: dict[str, int] = {}
    for _, members in groupby(lines, lambda line: stem_of(line[2])):
        batch.update((path, size_bytes) for _, size_bytes, path in members)
        if len(batch) >= size:
            yield batch
            batch = {}
    if batch:
        yield batch
