"""The work of `sqla_datastore.maintenance.usage`: what values take, by column and by type."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.maintenance.references import Declared
from sqla_datastore.maintenance.reports import ColumnUsage, TypeUsage, UsageReport
from sqla_datastore.maintenance.survey import Family, Survey, open_container
from sqla_datastore.storage.protocol import Storage

__all__ = ["Account"]


@dataclass
class _Types:
    """Entries by type."""

    entries: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def usages(self) -> tuple[TypeUsage, ...]:
        usages = [TypeUsage(name, count, self.sizes[name]) for name, count in self.entries.items()]
        return tuple(sorted(usages, key=lambda each: (-each.size_bytes, each.type)))


@dataclass
class _Tally:
    """What one column's values take."""

    rows: int = 0
    objects: int = 0
    size_bytes: int = 0
    unreadable: int = 0
    types: _Types = field(default_factory=_Types)


class Account:
    """What the values of all columns take, while they are counted."""

    def __init__(self, columns: Declared) -> None:
        self._columns = columns
        self._tallies = [_Tally() for _ in columns.columns]
        self._types = _Types()
        self._objects = 0
        self._size_bytes = 0

    def run(self, survey: Survey) -> None:
        """Count one storage."""
        for family in survey.families():
            if family.references:
                self._add(survey.storage, family)
        for odd in survey.references.odd():
            self._tallies[odd.source].rows += 1

    def _add(self, storage: Storage, family: Family) -> None:
        for reference in family.references:
            self._tallies[reference.source].rows += 1
        tallies = [self._tallies[source] for source in {each.source for each in family.references}]
        size_bytes = sum(found.size_bytes for found in family.objects)
        self._objects += len(family.objects)
        self._size_bytes += size_bytes
        for tally in tallies:
            tally.objects += len(family.objects)
            tally.size_bytes += size_bytes
        for found in family.objects:
            self._add_types(storage, found.path, tallies)

    def _add_types(self, storage: Storage, path: str, tallies: list[_Tally]) -> None:
        try:
            container = open_container(storage, path)
            entries = [container.describe(name) for name in container.names]
        except DataStoreError:
            for tally in tallies:
                tally.unreadable += 1
            return
        for types in (self._types, *(tally.types for tally in tallies)):
            for entry in entries:
                types.entries[entry.type] += 1
                types.sizes[entry.type] += entry.nbytes

    def report(self) -> UsageReport:
        """Return what was counted."""
        return UsageReport(
            columns=tuple(
                ColumnUsage(
                    table=each.column.table.fullname,
                    column=each.column.name,
                    rows=tally.rows,
                    objects=tally.objects,
                    size_bytes=tally.size_bytes,
                    unreadable=tally.unreadable,
                    types=tally.types.usages(),
                )
                for each, tally in zip(self._columns.columns, self._tallies, strict=True)
            ),
            types=self._types.usages(),
            objects=self._objects,
            size_bytes=self._size_bytes,
        )
