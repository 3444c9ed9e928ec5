"""Some rows at a time: their entries are loaded side by side, and become one table."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from sqla_datastore.exceptions import CollectError
from sqla_datastore.format.joining import Piece, joined
from sqla_datastore.storage.local import MAPPED_FROM_BYTES
from sqla_datastore.tables.entry_tables import TABLE, table_of
from sqla_datastore.tables.loading import EntryLoader
from sqla_datastore.tables.row_query import Row, RowQuery
from sqla_datastore.tables.schemas import Agreement, Form, fitted, plain

Missing: TypeAlias = Literal["skip", "null"]

OTHER_TYPE = (
    "a column of the rows is of another type than in rows before; select one of a known type: "
    "sqlalchemy.cast(column, Integer).label('name')"
)


@dataclass(frozen=True, slots=True)
class Part:
    """The entries of some rows, one after the other, which are alike.

    Attributes:
        rows: the rows without their values, so that these can go.
        counts: of each entry its number of rows; 1 for a row that lacks it.
        table: the entries, one below the other; None for rows that lack it.
        form: what they are like, one object for all that are alike; None for rows that lack it.
    """

    rows: list[Row]
    counts: list[int]
    table: Any
    form: Form | None


@dataclass(frozen=True, slots=True)
class Page:
    """The entries of some rows, and what is attached to them.

    Attributes:
        attached: the rows' columns, once for each row of their entries.
        entries: the entries, one below the other; None where none of the rows has one.
        forms: what they are like, each once.
        origins: the rows, each with the number of rows that its entry has.
    """

    attached: Any
    entries: Any
    forms: list[Form]
    origins: list[tuple[Row, int]]


class PageReader:
    """Reads an entry of some rows at a time.

    Args:
        query: what was selected.
        entry: the entry's name.
        missing: what becomes of rows that lack it.
        schema: the columns of the entry, where the user gives them.
    """

    def __init__(self, query: RowQuery, entry: str, missing: Missing, schema: Any) -> None:
        if missing not in ("skip", "null"):
            raise ValueError(f"missing is 'skip' or 'null', not {missing!r}")
        self.query = query
        self.entry = entry
        self._entries = EntryLoader(query, entry, table_of, as_arrow=True)
        self._missing = missing
        self._schema = schema

    def read(self, rows: Sequence[Row], stopped: threading.Event | None = None) -> Page:
        """Load the entry of each row, several at the same time, and put them together; blocks.

        Raises:
            CollectError: the entries make no table; names the row.
            MissingObjectError: an object is not there; a note names the row.
            DataStoreError: it cannot be read.
        """
        parts = [*self._parts(rows, self._entries.load(rows, stopped))]
        if self._missing == "skip":
            parts = [part for part in parts if part.form is not None]
        agreement = Agreement(self.entry, self._schema)
        forms = [*{id(part.form): part.form for part in parts if part.form is not None}.values()]
        agreement.add(forms)
        entries = self._joined(parts, agreement.schema) if forms else None
        counts = [count for part in parts for count in part.counts]
        found = [row for part in parts for row in part.rows]
        places = np.repeat(np.arange(len(found)), counts)
        attached = self.query.table_of(found).take(places)
        return Page(attached, entries, forms, [*zip(found, counts, strict=True)])

    def _parts(self, rows: Sequence[Row], loaded: list[Any]) -> Iterator[Part]:
        """Yield the entries with their forms, each form once: most are like the one before."""
        forms: list[tuple[Any, Form]] = []
        for some, counts, found in self._tables(rows, loaded):
            keys = [row[:-1] for row in some]
            if found is None:
                yield Part(keys, counts, None, None)
                continue
            kind, table = found
            alike = (
                form
                for schema, form in reversed(forms)
                if form.kind == kind and schema.equals(table.schema, check_metadata=True)
            )
            form = next(alike, None)
            if form is None:
                form = self._form(kind, table.schema, some[0])
                forms.append((table.schema, form))
            yield Part(keys, counts, table, form)

    def _tables(
        self, rows: Sequence[Row], loaded: list[Any]
    ) -> Iterator[tuple[list[Row], list[int], tuple[str, Any] | None]]:
        """Yield rows, the numbers of rows of their entries, and their kind and their table."""
        for like, group in groupby(zip(rows, loaded, strict=True), _like):
            some, pieces = map(list, zip(*group, strict=True))
            table = None if like is None else joined(pieces)
            if table is not None:
                yield some, [piece.rows for piece in pieces], (TABLE, table)
                continue
            for row, found in zip(some, pieces, strict=True):
                alone = found if like is None else self._entries.alone(row)
                yield [row], [1 if alone is None else alone[1].num_rows], alone

    def _form(self, kind: str, schema: Any, row: Row) -> Form:
        try:
            return Form(kind, plain(schema), self.query.label(row))
        except ValueError as err:
            raise self._entries.refused(row, err) from err

    def _joined(self, parts: list[Part], schema: Any) -> Any:
        """Return the entries one below the other, in one schema."""
        tables = []
        for form, group in groupby(parts, attrgetter("form")):
            alike = [*group]
            if form is None:
                lacking = sum(len(part.rows) for part in alike)
                tables.append(fitted(pa.table({"": pa.nulls(lacking)}), schema))
            else:
                tables.append(self._fitted(alike, schema))
        together = pa.concat_tables(tables)
        # the longest one tells, since to ask each takes a tenth of all
        longest = max(tables, key=len)
        entries = sum(len(part.rows) for part in parts)
        small = longest.nbytes * len(tables) < MAPPED_FROM_BYTES * entries
        # what is not mapped was read with all of its object, and would keep the memory of that
        return together.combine_chunks() if small else together

    def _fitted(self, alike: list[Part], schema: Any) -> Any:
        """Return entries of one form in a schema; an error names the row."""
        try:
            return fitted(pa.concat_tables([part.table for part in alike]), schema)
        except pa.ArrowException:
            for part in alike:
                self._fit_each(zip(part.rows, part.counts, strict=True), part.table, schema)
            raise

    def whole(self, page: Page, rows: Any, schema: Any) -> Any:
        """Return a page as a table: the attached columns, and those of the entry.

        Args:
            page: the page.
            rows: the schema of the attached columns.
            schema: that of the entry; None where no row has it.

        Raises:
            CollectError: a value does not fit the schema, or two columns have one name.
        """
        schema = pa.schema([]) if schema is None else schema
        self._refuse_clash(rows.names, schema.names)
        try:
            attached = fitted(page.attached, rows)
        except pa.ArrowException as err:
            raise CollectError(f"{err}; {OTHER_TYPE}") from err
        entries = page.entries
        if entries is None:
            entries = pa.table({"": pa.nulls(page.attached.num_rows)})
        try:
            entries = fitted(entries, schema)
        except pa.ArrowException:
            self._fit_each(page.origins, entries, schema)
            raise
        names = [*rows.names, *schema.names]
        return pa.Table.from_arrays([*attached.columns, *entries.columns], names)

    def _fit_each(self, origins: Iterable[tuple[Row, int]], table: Any, schema: Any) -> None:
        """Raise `CollectError` for the first entry in a table that does not fit a schema."""
        start = 0
        for row, count in origins:
            self._fit(row, table.slice(start, count), schema)
            start += count

    def _fit(self, row: Row, table: Any, schema: Any) -> None:
        """Raise `CollectError` where an entry's values do not fit a schema."""
        try:
            fitted(table, schema)
        except pa.ArrowException as err:
            label = self.query.label(row)
            raise CollectError(
                f"the entry {self.entry!r} of {label} does not fit the types of all: {err}; give "
                "another schema=..., or leave the row out by a where()",
                row=label,
                entry=self.entry,
            ) from err

    def _refuse_clash(self, attached: list[str], names: list[str]) -> None:
        twins = {*attached} & {*names}
        if twins:
            twin = min(twins)
            raise CollectError(
                f"the rows and their entry {self.entry!r} both have a column {twin!r}; give that "
                f"of the rows another name: columns=[column.label('row_{twin}'), …]",
                entry=self.entry,
            )

    def check_found(self) -> None:
        """Raise `CollectError` where no row has the entry, and those without it are left out."""
        if self._missing == "skip":
            self._entries.check_found()

    def empty(self) -> Page:
        """Return the page of no rows."""
        return Page(self.query.table_of([]), None, [], [])


def _like(found: tuple[Row, Any]) -> Hashable | None:
    """Return what an entry is like, to be joined with those beside it; None where it stands alone.

    None is equal to None, so that those which stand alone come together.
    """
    _, loaded = found
    return loaded.like if isinstance(loaded, Piece) else None
