"""Write existing values anew, as their columns say now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, MetaData, Select, String, and_, or_, select, type_coerce, update
from sqlalchemy.exc import DBAPIError

from sqla_datastore.dml.dialects import locked_for_update
from sqla_datastore.dml.row_queries import any_key, inherited_values, url_text
from sqla_datastore.exceptions import (
    ConfigurationError,
    DamagedObjectError,
    MissingObjectError,
    RefusedURLError,
    UnsupportedFormatError,
)
from sqla_datastore.format import Container
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

BATCH_ROWS = 100
_KINDS = ("in", "out", "folder", "compression")
_ATTEMPTS = 5


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
        ConfigurationError: as `check`; or a table with values has no primary key.
        StorageError: the storage failed; what was committed before stays.
        sqlalchemy.exc.SQLAlchemyError: the database failed, five times in a row for one batch.
    """
    catalog = Catalog.of(engine, metadata)
    report = _Counts()
    for column in catalog.columns:
        declared = declared_table(column.column.table)
        assert declared is not None
        if not declared.table.primary_key:
            raise ConfigurationError(
                f"table {declared.table.name!r} has no primary key, by which rows are updated; "
                "leave it out of the metadata"
            )
        _Rewriter(catalog, declared, column, report, batch_rows, apply=apply).run(
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
        counts: _Counts,
        batch_rows: int,
        *,
        apply: bool,
    ) -> None:
        self._engine = catalog.engine
        self._schemas = catalog.schemas
        self._declared = declared
        self._column = column
        self._storage: Storage = catalog.storage_of(column)
        self._counts = counts
        self._batch_rows = batch_rows
        self._apply = apply
        self._keys = list(declared.table.primary_key)

    def run(self, count: StepCounter) -> None:
        """Look at all rows, page by page; each page is a transaction of its own."""
        last: tuple[Any, ...] | None = None
        while page := self._page(last):
            last = page[-1][0]
            misplaced = list(self._misplaced(page))
            moved = self._write(misplaced) if self._apply and misplaced else misplaced
            for each in moved:
                self._counts.moves[each.kind] += 1
            self._counts.changed_meanwhile += len(misplaced) - len(moved)
            self._counts.rows += len(page)
            count(len(page))
        count.report()

    def _page(
        self, last: tuple[Any, ...] | None
    ) -> list[tuple[tuple[Any, ...], str, dict[Column[Any], Any]]]:
        """Return key, text and the values that the template needs of the next rows."""
        needs = self._declared.needs
        text = type_coerce(self._column.column, String())
        query = select(*self._keys, text.label("datastore_url"), *needs).where(text.is_not(None))
        if last is not None:
            query = query.where(_after(self._keys, last))
        query = query.order_by(*self._keys).limit(self._batch_rows)
        count = len(self._keys)
        with self._engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(query)]
            return [
                (
                    row[:count],
                    row[count],
                    inherited_values(
                        connection,
                        self._declared,
                        dict(zip(needs, row[count + 1 :], strict=True)),
                    ),
                )
                for row in found
            ]

    def _misplaced(
        self, page: Sequence[tuple[tuple[Any, ...], str, dict[Column[Any], Any]]]
    ) -> Iterator[_Misplaced]:
        for key, text, values in page:
            try:
                kind = self._move_of(ObjectURL.parse(text), values)
            except (MissingObjectError, RefusedURLError, DamagedObjectError):
                if self._holds(key, text):
                    # the business of `check`
                    self._counts.missing += 1
                else:
                    self._counts.changed_meanwhile += 1
                continue
            if kind is not None:
                yield _Misplaced(key, text, kind)

    def _holds(self, key: tuple[Any, ...], text: str) -> bool:
        """Return whether a row still holds what was read of it."""
        criterion, asked = any_key(self._keys, [key])
        query = select(type_coerce(self._column.column, String())).where(criterion)
        with self._engine.connect() as connection:
            return bool(connection.scalar(query, asked) == text)

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
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._write_once(misplaced)
            except DBAPIError:
                # a deadlock with a writer, or a lock that was waited for too long
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError  # the last attempt returned or raised

    def _write_once(self, misplaced: Sequence[_Misplaced]) -> list[_Misplaced]:
        column = self._column.column
        moved = []
        with self._engine.begin() as connection:
            query, asked = self._locking_query([each.key for each in misplaced])
            found = {tuple(row[:-2]): row[-2:] for row in connection.execute(query, asked)}
            for each in misplaced:
                text, value = found.get(each.key, (None, None))
                if text != head_of(each.url):
                    continue
                # a value of its own, so that it is written anew; entries are copied as they are
                anew = DataStore(value)
                if each.kind == "compression" and not self._loads(anew):
                    continue
                statement = (
                    update(self._declared.table)
                    .where(*(k == part for k, part in zip(self._keys, each.key, strict=True)))
                    # where rows are not locked: whoever was faster has put another value there
                    .where(url_text(column) == text)
                    .values({column: anew})
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

    def _locking_query(self, keys: list[tuple[Any, ...]]) -> tuple[Select[Any], dict[str, Any]]:
        column = self._column.column
        criterion, asked = any_key(self._keys, keys)
        query = select(*self._keys, url_text(column).label("datastore_url"), column)
        query = query.where(criterion)
        return locked_for_update(query, column.table, self._engine.dialect), asked


def _after(keys: Sequence[Column[Any]], last: Sequence[Any]) -> Any:
    """Return the criterion of rows behind a key, without tuples: not every database has them."""
    return or_(
        *(
            and_(*(a == b for a, b in zip(keys[:i], last, strict=False)), keys[i] > last[i])
            for i in range(len(keys))
        )
    )
