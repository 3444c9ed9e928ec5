"""What copying and removing have in common: two bases, and the values of a column, page by page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, String, type_coerce

from sqla_datastore.exceptions import ConfigurationError, MissingObjectError, RefusedURLError
from sqla_datastore.maintenance.batches import ColumnRows, Key, RowText
from sqla_datastore.maintenance.catalog import Catalog, are_apart, is_one_place
from sqla_datastore.maintenance.progress import Progress, StepCounter
from sqla_datastore.maintenance.reports import (
    DamagedObject,
    DanglingRow,
    FindingsBuilder,
    MoveReport,
)
from sqla_datastore.schema.columns import DeclaredColumn
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import DATA_PREFIX, ObjectURL

THREADS = 8
"""How many objects are worked at together: each holds a few pieces, and an object store may refuse
who asks for many at once."""


@dataclass(frozen=True)
class Bases:
    """Where objects are, and where they go.

    Attributes:
        source: where they are.
        target: where they go.
    """

    source: Storage
    target: Storage

    @property
    def switches(self) -> bool:
        """Whether rows have to say where their objects are."""
        return self.source.scheme != self.target.scheme

    def check(self) -> None:
        """Refuse two that are one, and a source that is not there.

        Raises:
            ConfigurationError: they are, or it is not.
        """
        if not are_apart(self.source, self.target):
            raise ConfigurationError(
                f"{self.source.url!r} and {self.target.url!r} are one base, or one lies within the "
                "other; give two"
            )
        if not self.source.exists():
            raise ConfigurationError(
                f"the source {self.source.url!r} is no folder, or does not exist; give the base "
                "that the objects are in, or mount it"
            )

    def columns_of(self, catalog: Catalog, names: Collection[str] | None) -> list[DeclaredColumn]:
        """Return the columns whose objects may lie in the source.

        Args:
            catalog: the declared columns.
            names: the names of their tables, or None for all.

        Raises:
            ConfigurationError: there is no such table, or no such column.
        """
        known = {column.column.table.fullname for column in catalog.columns}
        unknown = sorted(set(names or ()) - known)
        if unknown:
            raise ConfigurationError(
                f"the models have no table {unknown[0]!r} with a DataStoreType column; there are "
                f"{', '.join(sorted(map(repr, known)))}"
            )
        columns = [
            column
            for column in catalog.columns
            if (names is None or column.column.table.fullname in names)
            and (column.type.url is None or self._has(catalog.storage_of(column)))
        ]
        if not columns:
            raise ConfigurationError(
                f"no column of the tables keeps its objects in {self.source.url!r}: each has a URL "
                "of its own"
            )
        return columns

    def _has(self, storage: Storage) -> bool:
        return is_one_place(storage, self.source) or is_one_place(storage, self.target)

    def refuse_readers_of_source(self, catalog: Catalog, columns: Sequence[DeclaredColumn]) -> None:
        """Refuse to remove what columns would still be read from: their rows do not say where.

        Raises:
            ConfigurationError: one of them is not read from the target, or another column's base
                is around or within the source, so that its URLs of the same objects are others.
        """
        for column in catalog.columns:
            storage = catalog.storage_of(column)
            if not (is_one_place(storage, self.source) or are_apart(storage, self.source)):
                raise ConfigurationError(
                    f"{column.label} is read from {storage.url!r}, which lies around or within the "
                    f"source {self.source.url!r}, so nothing is removed"
                )
        for column in () if self.switches else columns:
            storage = catalog.storage_of(column)
            if not is_one_place(storage, self.target):
                raise ConfigurationError(
                    f"{column.label} is read from {storage.url!r}, so nothing is removed: bind the "
                    f"engine to the target {self.target.url!r} first (bind_storage, --storage)"
                )

    def readers_of_source(self, catalog: Catalog) -> list[Column[Any]]:
        """Return the columns whose URLs of the source's scheme may be of objects there."""
        return [
            column.column
            for column in catalog.columns
            if self.switches or not is_one_place(catalog.storage_of(column), self.target)
        ]


@dataclass
class Counts:
    """What becomes a `MoveReport`, while it is counted."""

    rows: int = 0
    copied: int = 0
    copied_bytes: int = 0
    present: int = 0
    switched: int = 0
    changed_meanwhile: int = 0
    removed: int = 0
    removed_bytes: int = 0
    missing: FindingsBuilder[DanglingRow] = field(default_factory=FindingsBuilder)
    damaged: FindingsBuilder[DamagedObject] = field(default_factory=FindingsBuilder)
    failures: list[str] = field(default_factory=list)

    def report(self, *, applied: bool) -> MoveReport:
        """Return what was counted."""
        return MoveReport(
            applied=applied,
            rows=self.rows,
            copied=self.copied,
            copied_bytes=self.copied_bytes,
            present=self.present,
            switched=self.switched,
            changed_meanwhile=self.changed_meanwhile,
            missing=self.missing.findings(),
            damaged=self.damaged.findings(),
            removed=self.removed,
            removed_bytes=self.removed_bytes,
            failures=tuple(self.failures),
        )


@dataclass
class Value:
    """A row's value, and what became of its objects.

    Attributes:
        key: the row's primary key.
        text: the URL that it holds.
        url: the same, parsed; None where that is refused.
        copied: the sizes of the objects that were copied, by path.
        present: the paths of those that the target had.
        missing: why the row dangles, in words; empty where it does not.
        damaged: what was not copied.
    """

    key: Key
    text: str
    url: ObjectURL | None = None
    copied: dict[str, int] = field(default_factory=dict)
    present: list[str] = field(default_factory=list)
    missing: str = ""
    damaged: list[DamagedObject] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the target has all its objects."""
        return not (self.missing or self.damaged)

    @classmethod
    def of(cls, row: RowText, bases: Bases) -> Value:
        """Read a row's URL."""
        value = cls(row.key, row.text)
        try:
            url = ObjectURL.parse(row.text)
            # the row may have to hold it
            ObjectURL.of(bases.target.scheme, url.path)
        except RefusedURLError as err:
            value.missing = str(err)
            return value
        schemes = (bases.source.scheme, bases.target.scheme)
        if url.scheme in schemes:
            value.url = url
        else:
            value.missing = f"neither base serves {url.scheme}: URLs"
        return value


class OfColumn:
    """What is done with the values of one column that have objects, batch by batch.

    Args:
        catalog: the database.
        bases: where objects are and where they go.
        column: the column.
        rows: its rows.
        counts: takes what was done.
        apply: do it; else only count.
    """

    doing: str

    def __init__(
        self,
        catalog: Catalog,
        bases: Bases,
        column: DeclaredColumn,
        rows: ColumnRows,
        counts: Counts,
        *,
        apply: bool,
    ) -> None:
        self._catalog = catalog
        self._bases = bases
        self._source = bases.source
        self._target = bases.target
        self._column = column
        self._rows = rows
        self._counts = counts
        self._apply = apply

    def run(self, progress: Progress | None) -> None:
        """Look at all rows, page by page."""
        outside = type_coerce(self._column.column, String()).not_like(f"{DATA_PREFIX}%")
        total = self._rows.count(outside)
        count = StepCounter(progress, f"{self.doing} {self._column.label}", total)
        for page in self._rows.pages(criteria=[outside]):
            self._do([Value.of(row, self._bases) for row in page])
            count(len(page))
            count.report()

    def _do(self, values: Sequence[Value]) -> None:
        raise NotImplementedError


def size_of(storage: Storage, path: str) -> int | None:
    """Return an object's size, or None where there is none."""
    try:
        return storage.size_bytes(path)
    except MissingObjectError:
        return None
