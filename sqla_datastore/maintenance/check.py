"""Compare rows and storages in both directions, and look at every object."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import MetaData

from sqla_datastore.dml.dialects import batch_size
from sqla_datastore.exceptions import MissingObjectError
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.in_rows import ValueInRow, values_in_rows
from sqla_datastore.maintenance.progress import Progress
from sqla_datastore.maintenance.references import UnmanagedURL, stem_of
from sqla_datastore.maintenance.reports import (
    CheckReport,
    DamagedObject,
    DanglingRow,
    FindingsBuilder,
    ForeignName,
    Leftover,
    Orphan,
)
from sqla_datastore.maintenance.survey import (
    Family,
    Survey,
    cutoff,
    leftovers,
    problems_of,
    surveyed,
)
from sqla_datastore.storage.protocol import Storage, StoredObject
from sqla_datastore.storage.urls import ObjectURL


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
    catalog = Catalog.of(engine, metadata)
    checker = _Checker(catalog, deep, cutoff(grace_seconds))
    for storage in catalog.storages():
        with surveyed(catalog, storage, checker.foreign, progress) as survey:
            checker.check(survey)
    for value in values_in_rows(catalog, progress):
        checker.check_in_row(value)
    return checker.report()


@dataclass
class _Checker:
    """Finds what is wrong in storages, one after the other.

    Rows change while a storage is listed. So what looks like a finding is only a suspect until the
    database has been asked about it once more, in batches.
    """

    catalog: Catalog
    deep: bool
    cutoff: float
    references: int = 0
    objects: int = 0
    size_bytes: int = 0
    in_rows: int = 0
    in_row_bytes: int = 0
    pending: int = 0
    dangling: FindingsBuilder[DanglingRow] = field(default_factory=FindingsBuilder)
    orphans: FindingsBuilder[Orphan] = field(default_factory=FindingsBuilder)
    leftovers: FindingsBuilder[Leftover] = field(default_factory=FindingsBuilder)
    damaged: FindingsBuilder[DamagedObject] = field(default_factory=FindingsBuilder)
    foreign: FindingsBuilder[ForeignName] = field(default_factory=FindingsBuilder)
    _unreferenced: list[StoredObject] = field(default_factory=list)
    _missing: dict[int, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def check(self, survey: Survey) -> None:
        """Check one storage."""
        storage = survey.storage
        self.references += survey.references.rows
        for family in survey.families():
            if family.references:
                self._check_family(storage, family)
            elif family.is_pending:
                self.pending += len(family.objects)
            else:
                self._unreferenced += [o for o in family.objects if o.modified <= self.cutoff]
            # asked in batches: a storage that is lost has as many suspects as there are rows
            suspects = len(self._unreferenced) + sum(map(len, self._missing.values()))
            if suspects >= batch_size(self.catalog.engine.dialect):
                self._settle(storage)
        for unmanaged in survey.references.unmanaged():
            self._check_unmanaged(storage, unmanaged)
        self._settle(storage)
        for leftover, is_old in leftovers(survey, self.cutoff):
            if is_old:
                self.leftovers.add(leftover)

    def check_in_row(self, value: ValueInRow) -> None:
        """Check a value that lies in a row."""
        self.in_rows += 1
        self.in_row_bytes += value.size_bytes
        problems = value.problems(deep=self.deep)
        if problems:
            where = f"row {value.key} of {self.catalog.columns[value.source].label}"
            self.damaged.add(DamagedObject(value.head, problems, where))

    def _check_family(self, storage: Storage, family: Family) -> None:
        for reference in family.references:
            missing = family.missing(reference.path)
            if missing is not None:
                self._note_missing(storage, reference.source, reference.path, missing)
        for found in family.objects:
            self.objects += 1
            self.size_bytes += found.size_bytes
            try:
                self._check_object(storage, found.path)
            except MissingObjectError:
                for reference in family.references:
                    self._note_missing(storage, reference.source, reference.path, found.path)

    def _check_object(self, storage: Storage, path: str) -> None:
        problems = problems_of(storage, path, deep=self.deep)
        if problems:
            url = str(ObjectURL(storage.scheme, path))
            self.damaged.add(DamagedObject(url, problems, storage.url))

    def _check_unmanaged(self, storage: Storage, unmanaged: UnmanagedURL) -> None:
        if unmanaged.reason:
            self._missing[unmanaged.source][unmanaged.url] = unmanaged.reason
            return
        path = ObjectURL.parse(unmanaged.url).path
        try:
            self._check_object(storage, path)
        except MissingObjectError:
            self._note_missing(storage, unmanaged.source, path, path)

    def _note_missing(self, storage: Storage, source: int, path: str, missing: str) -> None:
        what = "there is no such object" if path == missing else f"{missing!r} is missing"
        self._missing[source][str(ObjectURL(storage.scheme, path))] = what

    def _settle(self, storage: Storage) -> None:
        """Ask the database about the suspects; those that rows have changed are no findings."""
        paths = [found.path for found in self._unreferenced]
        held = self.catalog.held_stems(storage, paths)
        for found in self._unreferenced:
            if stem_of(found.path) not in held:
                orphan = Orphan(found.path, found.size_bytes, found.modified, storage.url)
                self.orphans.add(orphan)
        for source, reasons in self._missing.items():
            for row in self.catalog.dangling(source, reasons):
                self.dangling.add(row)
        self._unreferenced.clear()
        self._missing.clear()

    def report(self) -> CheckReport:
        """Return what was found."""
        return CheckReport(
            references=self.references,
            objects=self.objects,
            size_bytes=self.size_bytes,
            in_rows=self.in_rows,
            in_row_bytes=self.in_row_bytes,
            pending=self.pending,
            dangling=self.dangling.findings(),
            orphans=self.orphans.findings(),
            leftovers=self.leftovers.findings(),
            damaged=self.damaged.findings(),
            foreign=self.foreign.findings(),
            deep=self.deep,
        )
