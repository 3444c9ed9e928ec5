"""What values take, by column and by type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import MetaData

from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.format import Container
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.in_rows import ValueInRow, values_in_rows
from sqla_datastore.maintenance.progress import Progress
from sqla_datastore.maintenance.reports import (
    ColumnUsage,
    FindingsBuilder,
    ForeignName,
    TypeUsage,
    UsageReport,
)
from sqla_datastore.maintenance.survey import Family, Survey, open_container, surveyed
from sqla_datastore.storage.protocol import Storage


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
    catalog = Catalog.of(engine, metadata)
    counter = _UsageCounter(catalog)
    for storage in catalog.storages():
        foreign: FindingsBuilder[ForeignName] = FindingsBuilder()
        with surveyed(catalog, storage, foreign, progress) as survey:
            counter.count(survey)
    for value in values_in_rows(catalog, progress):
        counter.count_in_row(value)
    return counter.report()


@dataclass
class _TypeCounts:
    """Entries by type."""

    entries: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def usages(self) -> tuple[TypeUsage, ...]:
        usages = [TypeUsage(name, count, self.sizes[name]) for name, count in self.entries.items()]
        return tuple(sorted(usages, key=lambda each: (-each.size_bytes, each.type)))


@dataclass
class _ColumnCounts:
    """What the values of one column take."""

    rows: int = 0
    objects: int = 0
    size_bytes: int = 0
    in_rows: int = 0
    in_row_bytes: int = 0
    unreadable: int = 0
    types: _TypeCounts = field(default_factory=_TypeCounts)


class _UsageCounter:
    """Counts what the values of all columns take."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._columns = [_ColumnCounts() for _ in catalog.columns]
        self._types = _TypeCounts()
        self._objects = 0
        self._size_bytes = 0

    def count(self, survey: Survey) -> None:
        """Count one storage."""
        for family in survey.families():
            if family.references:
                self._add(survey.storage, family)
        for unmanaged in survey.references.unmanaged():
            self._columns[unmanaged.source].rows += 1

    def _add(self, storage: Storage, family: Family) -> None:
        for reference in family.references:
            self._columns[reference.source].rows += 1
        columns = [self._columns[source] for source in {each.source for each in family.references}]
        size_bytes = sum(found.size_bytes for found in family.objects)
        self._objects += len(family.objects)
        self._size_bytes += size_bytes
        # what two columns hold counts for both, so that columns can add up to more than all
        for column in columns:
            column.objects += len(family.objects)
            column.size_bytes += size_bytes
        for found in family.objects:
            self._add_types(partial(_only, storage, found.path), columns)

    def count_in_row(self, value: ValueInRow) -> None:
        """Count a value that lies in a row."""
        column = self._columns[value.source]
        column.in_rows += 1
        column.in_row_bytes += value.size_bytes
        self._add_types(value.containers, [column])

    def _add_types(
        self, containers: Callable[[], Iterable[Container]], columns: Iterable[_ColumnCounts]
    ) -> None:
        try:
            entries = [each.describe(name) for each in containers() for name in each.names]
        # damage is the business of `check`; here it must not end the count
        except DataStoreError:
            for column in columns:
                column.unreadable += 1
            return
        for types in (self._types, *(column.types for column in columns)):
            for entry in entries:
                types.entries[entry.type] += 1
                types.sizes[entry.type] += entry.nbytes

    def report(self) -> UsageReport:
        """Return what was counted."""
        return UsageReport(
            columns=tuple(
                ColumnUsage(
                    table=declared.column.table.fullname,
                    column=declared.column.name,
                    rows=counts.rows,
                    objects=counts.objects,
                    size_bytes=counts.size_bytes,
                    in_rows=counts.in_rows,
                    in_row_bytes=counts.in_row_bytes,
                    unreadable=counts.unreadable,
                    types=counts.types.usages(),
                )
                for declared, counts in zip(self._catalog.columns, self._columns, strict=True)
            ),
            types=self._types.usages(),
            objects=self._objects,
            size_bytes=self._size_bytes,
            in_rows=sum(counts.in_rows for counts in self._columns),
            in_row_bytes=sum(counts.in_row_bytes for counts in self._columns),
        )


def _only(storage: Storage, path: str) -> list[Container]:
    return [open_container(storage, path)]
