"""Write existing values anew, as their columns say now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, MetaData, update

from sqla_datastore.dml.row_queries import inherited_values, url_text
from sqla_datastore.dml.statement import UNCHECKED
from sqla_datastore.exceptions import (
    DamagedObjectError,
    MissingObjectError,
    RefusedURLError,
    UnsupportedFormatError,
)
from sqla_datastore.format import Container
from sqla_datastore.maintenance.batches import BATCH_ROWS, ColumnRows, RowText, in_attempts
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.progress import Progress, StepCounter
from sqla_datastore.maintenance.reports import RewriteReport
from sqla_datastore.options import compression_level
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable
from sqla_datastore.schema.declarations import declared_table
from sqla_datastore.storage.in_row import IN_ROW, is_tried
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import DataURL, ObjectURL, head_of
from sqla_datastore.value.datastore import DataStore

_KINDS = ("in", "out", "folder", "compression")


def rewrite(
    engine: Any,
    metadata: MetaData,
    *,
    apply: bool = False,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> RewriteReport:
    """Write values anew that do not lie as their columns say now: a dry run unless `apply`.

    They move into the row or out of it (`inline_bytes`), to the folder that a template renders now,
    or are compressed as `compression` says. What is right already is passed over, so it may be
    interrupted and run again. Others may read and write meanwhile: rows are locked as any UPDATE
    locks them, a batch at a time, and one that has changed since it was read is left alone.
    Superseded objects are removed at the COMMIT
    of their batch, or later where `enable_removals` keeps them. Blocks; memory holds one batch.

    Args:
        engine: the database, with the storage bound as for the application.
        metadata: the declared tables.
        apply: write; else only tell what would be written.
        batch_rows: rows in one transaction.
        progress: called now and then with what is being done, how much is done, and of how much.

    Returns:
        What moved, or would move.

    Raises:
        ConfigurationError: as `check`; or a table with values has no primary key, or `batch_rows`
            is below 1.
        StorageError: the storage failed; what was committed before stays.
        sqlalchemy.exc.SQLAlchemyError: the database failed, five times in a row for one batch.
    """
    catalog = Catalog.of(engine, metadata)
    report = _Counts()
    for column in catalog.columns:
        declared = declared_table(column.column.table)
        assert declared is not None
        rows = ColumnRows(catalog.engine, column, batch_rows)
        _Rewriter(catalog, declared, column, rows, report, apply=apply).run(
            StepCounter(progress, f"rewriting {column.label}")
        )
    return report.report(applied=apply)


@dataclass(frozen=True, slots=True)
class _Misplaced:
    """A value that does not lie where its column says: its row's key, what the column holds."""

    key: tuple[Any, ...]
    url: str
    kind: str


@dataclass
class _Counts:
    rows: int = 0
    moves: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    changed_meanwhile: int = 0
    missing: int = 0
    unreadable: int = 0

    def report(self, *, applied: bool) -> RewriteReport:
        return RewriteReport(
            applied=applied,
            rows=self.rows,
            moved_in=self.moves["in"],
            moved_out=self.moves["out"],
            moved_folder=self.moves["folder"],
            recompressed=self.moves["compression"],
            unreadable=self.unreadable,
            changed_meanwhile=self.changed_meanwhile,
            missing=self.missing,
        )


class _Rewriter:
    """Rewrites the values of one column."""

    def __init__(
        self,
        catalog: Catalog,
        declared: DeclaredTable,
        column: DeclaredColumn,
        rows: ColumnRows,
        counts: _Counts,
        *,
        apply: bool,
    ) -> None:
        self._engine = catalog.engine
        self._schemas = catalog.schemas
        self._declared = declared
        self._column = column
        self._storage: Storage = catalog.storage_of(column)
        self._rows = rows
        self._counts = counts
        self._apply = apply

    def run(self, count: StepCounter) -> None:
        """Look at all rows, page by page; each page is a transaction of its own."""
        for page in self._rows.pages(*self._declared.needs):
            misplaced = list(self._misplaced(page))
            moved = self._write(misplaced) if self._apply and misplaced else misplaced
            for each in moved:
                self._counts.moves[each.kind] += 1
            self._counts.changed_meanwhile += len(misplaced) - len(moved)
            self._counts.rows += len(page)
            count(len(page))
        count.report()

    def _values(self, row: RowText) -> dict[Column[Any], Any]:
        """Return the values that the template needs of a row."""
        values = dict(zip(self._declared.needs, row.more, strict=True))
        if not self._declared.inherited_needs:
            return values
        with self._engine.connect() as connection:
            return inherited_values(connection, self._declared, values)

    def _misplaced(self, page: Sequence[RowText]) -> Iterator[_Misplaced]:
        for row in page:
            try:
                kind = self._move_of(ObjectURL.parse(row.text), self._values(row))
            except (MissingObjectError, RefusedURLError, DamagedObjectError):
                if self._rows.holds(row.key, row.text):
                    # the business of `check`
                    self._counts.missing += 1
                else:
                    self._counts.changed_meanwhile += 1
                continue
            if kind is not None:
                yield _Misplaced(row.key, row.text, kind)

    def _move_of(self, url: ObjectURL, values: dict[Column[Any], Any]) -> str | None:
        """Return where a value has to move, or None where it lies right."""
        limit = self._column.type.inline_bytes
        schemes = (IN_ROW.scheme, self._storage.scheme)
        if url.scheme not in schemes or not url.may_be_a_row_s:
            raise MissingObjectError(str(url), f"{self._storage.url!r}")
        # first: it changes the size, and what is compressed anew goes to the right folder, too
        level = compression_level(self._column.type.compression)
        if self._container(url).compression != level:
            return "compression"
        if isinstance(url, DataURL):
            return "out" if url.size_bytes > limit else None
        if limit and self._is_at_most(url, limit, is_compressed=level is not None):
            return "in"
        folder = self._column.folder
        rendered = folder.render(values, self._schemas)
        lies_right = rendered in (None, url.folder) or folder.is_fresh(url.folder)
        return None if lies_right else "folder"

    def _container(self, url: ObjectURL) -> Container:
        reader = url.reader() if isinstance(url, DataURL) else self._storage.open(url.path)
        return Container.open(reader, str(url), nested=int)

    def _is_at_most(self, url: ObjectURL, limit: int, *, is_compressed: bool) -> bool:
        left = limit
        for path in url.family_paths():
            left -= self._storage.size_bytes(path)
            if left < 0:
                return False
        nbytes = sum(self._container(each).nbytes for each in url.family())
        return is_tried(nbytes, limit, is_compressed=is_compressed)

    def _write(self, misplaced: Sequence[_Misplaced]) -> list[_Misplaced]:
        """Write a batch anew in a transaction; return those whose rows have not changed since."""
        return in_attempts(lambda: self._write_once(misplaced))

    def _write_once(self, misplaced: Sequence[_Misplaced]) -> list[_Misplaced]:
        column = self._column.column
        moved = []
        with self._engine.begin() as connection:
            found = self._rows.locked(connection, [each.key for each in misplaced], column)
            for each in misplaced:
                text, value = found.get(each.key, ("", None))
                if value is None or text != head_of(each.url):
                    continue
                # a value of its own, so that it is written anew; entries are copied as they are
                anew = DataStore(value)
                if each.kind == "compression" and not self._loads(anew):
                    continue
                statement = (
                    update(self._declared.table)
                    .where(*(k == part for k, part in zip(self._rows.keys, each.key, strict=True)))
                    # where rows are not locked: whoever was faster has put another value there
                    .where(url_text(column) == text)
                    .values({column: anew})
                    # it may have been stored before the column got its schema
                    .execution_options(**{UNCHECKED: True})
                )
                if connection.execute(statement).rowcount:
                    moved.append(each)
        return moved

    def _loads(self, value: DataStore) -> bool:
        """Load all entries, so that they are encoded anew; return False where one cannot be."""
        try:
            value._load_anew()
        except (DamagedObjectError, UnsupportedFormatError):
            self._counts.unreadable += 1
            return False
        return True
