"""The work of `sqla_datastore.maintenance.check`: both directions, and every object."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice

from sqla_datastore.dml.queries import batch_size
from sqla_datastore.exceptions import DamagedObjectError, DataStoreError, MissingObjectError
from sqla_datastore.maintenance.references import Declared, Odd, stem_of
from sqla_datastore.maintenance.reports import (
    CheckReport,
    DamagedObject,
    DanglingRow,
    ForeignName,
    Leftover,
    Orphan,
)
from sqla_datastore.maintenance.survey import Collected, Family, Survey, leftovers, open_container
from sqla_datastore.storage.protocol import Storage, StoredObject
from sqla_datastore.storage.urls import ObjectURL

__all__ = ["Comparison"]

_MOST_PROBLEMS = 20


@dataclass
class Comparison:
    """A check at work. Suspects are asked about in batches: rows may have changed meanwhile."""

    columns: Declared
    deep: bool
    newest: float
    references: int = 0
    objects: int = 0
    size_bytes: int = 0
    pending: int = 0
    dangling: Collected[DanglingRow] = field(default_factory=Collected)
    orphans: Collected[Orphan] = field(default_factory=Collected)
    leftovers: Collected[Leftover] = field(default_factory=Collected)
    damaged: Collected[DamagedObject] = field(default_factory=Collected)
    foreign: Collected[ForeignName] = field(default_factory=Collected)
    _unreferenced: list[StoredObject] = field(default_factory=list)
    _missing: dict[int, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def run(self, survey: Survey) -> None:
        """Check one storage."""
        storage = survey.storage
        self.references += survey.references.rows
        for family in survey.families():
            if family.references:
                self._check_family(storage, family)
            elif family.is_pending:
                self.pending += len(family.objects)
            else:
                self._unreferenced += [o for o in family.objects if o.modified <= self.newest]
            suspects = len(self._unreferenced) + sum(map(len, self._missing.values()))
            if suspects >= batch_size(self.columns.engine.dialect):
                self._ask(storage)
        for odd in survey.references.odd():
            self._check_odd(storage, odd)
        self._ask(storage)
        for leftover, is_old in leftovers(survey, self.newest):
            if is_old:
                self.leftovers.add(leftover)

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
        problems = _problems(storage, path, deep=self.deep)
        if problems:
            url = str(ObjectURL(storage.scheme, path))
            self.damaged.add(DamagedObject(url, problems, storage.url))

    def _check_odd(self, storage: Storage, odd: Odd) -> None:
        """Check what a row refers to by a name that this library does not make."""
        if odd.reason:
            self._missing[odd.source][odd.url] = odd.reason
            return
        path = ObjectURL.parse(odd.url).path
        try:
            self._check_object(storage, path)
        except MissingObjectError:
            self._note_missing(storage, odd.source, path, path)

    def _note_missing(self, storage: Storage, source: int, path: str, missing: str) -> None:
        what = "there is no such object" if path == missing else f"{missing!r} is missing"
        self._missing[source][str(ObjectURL(storage.scheme, path))] = what

    def _ask(self, storage: Storage) -> None:
        """Ask the database about the suspects: rows that changed meanwhile are no findings."""
        paths = [found.path for found in self._unreferenced]
        held = self.columns.held_stems(storage, paths)
        for found in self._unreferenced:
            if stem_of(found.path) not in held:
                orphan = Orphan(found.path, found.size_bytes, found.modified, storage.url)
                self.orphans.add(orphan)
        for source, reasons in self._missing.items():
            for row in self.columns.dangling(source, reasons):
                self.dangling.add(row)
        self._unreferenced.clear()
        self._missing.clear()

    def report(self) -> CheckReport:
        """Return what was found."""
        return CheckReport(
            references=self.references,
            objects=self.objects,
            size_bytes=self.size_bytes,
            pending=self.pending,
            dangling=self.dangling.findings(),
            orphans=self.orphans.findings(),
            leftovers=self.leftovers.findings(),
            damaged=self.damaged.findings(),
            foreign=self.foreign.findings(),
            deep=self.deep,
        )


def _problems(storage: Storage, path: str, *, deep: bool) -> tuple[str, ...]:
    """Return what is wrong with an object, in words; nothing when it is whole.

    Args:
        storage: where it lies.
        path: its path.
        deep: compare headers, directory and the checksums of payloads too.

    Raises:
        MissingObjectError: it is gone.
    """
    try:
        # opening verifies the index, and that it fits the object's size
        container = open_container(storage, path)
        return tuple(islice(container.check(deep=True), _MOST_PROBLEMS)) if deep else ()
    except MissingObjectError:
        raise
    except DamagedObjectError as err:
        return (err.reason,)
    except DataStoreError as err:
        return (str(err),)
