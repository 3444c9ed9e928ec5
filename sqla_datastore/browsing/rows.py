"""Tables and rows of a database, to look at: rows a page at a time, values not loaded.

Only SELECT runs, each in a transaction of its own that is rolled back, and where the database knows
such transactions they are read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Column, Engine, MetaData, Select, event, func, select
from sqlalchemy.exc import DataError

from sqla_datastore.browsing.keys import key_text, parsed_key
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.value.datastore import DataStore

PAGE_ROWS: Final = 50
"""How many rows a page has."""

_WIDEST_TEXT: Final = 200
_SHOWN_COLUMNS: Final = 6
_LISTED: Final = 20
# Types whose values are plain. Those of others may be large, or be made by code of somebody's: a
# PickleType runs what it loads.
_PLAIN: Final = (
    *(sa.Integer, sa.Numeric, sa.String, sa.Boolean, sa.Uuid),
    *(sa.Date, sa.DateTime, sa.Time, sa.Interval),
)


class NotThereError(ConfigurationError):
    """A table, row, column or entry that is not there; the message says what is."""


@dataclass(frozen=True)
class TableSummary:
    """One table: its name, the columns that hold values, the number of rows, their storages."""

    name: str
    columns: tuple[str, ...]
    rows: int
    storages: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        table: the table's name.
        key: the text of its primary key.
        fields: the plain columns by name.
        values: the columns that hold values by name; not loaded.
    """

    table: str
    key: str
    fields: dict[str, Any]
    values: dict[str, DataStore | None]

    def value(self, column: str | None) -> tuple[str, DataStore]:
        """Return a column's name and value.

        Args:
            column: the name, or None for the only one.

        Raises:
            NotThereError: the table has no such column, several, or the row holds NULL there.
        """
        if column is None and len(self.values) == 1:
            column = next(iter(self.values))
        if column not in self.values:
            what = "several columns with values" if column is None else f"no column {column!r}"
            raise NotThereError(
                f"table {self.table!r} has {what}; name one of {listed(list(self.values))}"
            )
        value = self.values[column]
        if value is None:
            raise NotThereError(f"{column!r} of row {self.key!r} is NULL: there is no value")
        return column, value


@dataclass(frozen=True)
class Page:
    """Some rows of a table in the order of their keys, and whether more follow."""

    rows: tuple[Row, ...]
    has_more: bool


class Tables:
    """The tables with values of a database.

    Args:
        engine: the database, with the storage bound as for the application.
        metadata: the declared tables.

    Raises:
        ConfigurationError: the MetaData declares no column that the database has.
    """

    def __init__(self, engine: Engine, metadata: MetaData) -> None:
        catalog = Catalog.of(engine, metadata, force=True)
        self._catalog = catalog
        self._engine = _read_only(catalog.engine)
        self._declared = {
            declared.table.fullname: declared
            for declared in catalog.tables
            if set(declared.columns) & set(catalog.columns)
        }
        if not self._declared:
            raise ConfigurationError(
                f"the database lacks the declared tables {listed(catalog.missing)}; give the right "
                "database, or create them"
            )

    @property
    def names(self) -> list[str]:
        """The names of the tables."""
        return sorted(self._declared)

    def summaries(self) -> list[TableSummary]:
        """Count the rows of all tables."""
        return [self._summary(name) for name in self.names]

    def _summary(self, name: str) -> TableSummary:
        declared = self._declared[name]
        count = self._fetch(select(func.count()).select_from(declared.table))[0][0]
        urls = {self._catalog.storage_of(column).url for column in declared.columns}
        names = tuple(column.column.name for column in declared.columns)
        return TableSummary(name, names, count, tuple(sorted(urls)))

    def page(
        self, table: str, *, search: str = "", offset: int = 0, limit: int = PAGE_ROWS
    ) -> Page:
        """Return rows of a table; no storage is asked.

        Args:
            table: its name.
            search: what the text of a key contains, in any case; "" for all rows.
            offset: how many rows to leave out.
            limit: how many rows to return at most.

        Raises:
            NotThereError: there is no such table.
        """
        query = self._query(table, _SHOWN_COLUMNS).order_by(*self._keys(table))
        if not _is_storable(search):
            return Page((), has_more=False)
        if search:
            query = query.where(sa.or_(*(_contains(key, search) for key in self._keys(table))))
        found = self._fetch(query.offset(offset).limit(limit + 1))
        rows = tuple(self._row(table, each) for each in found[:limit])
        return Page(rows, has_more=len(found) > limit)

    def row(self, table: str, key: str) -> Row:
        """Return one row; no storage is asked.

        Args:
            table: its name.
            key: the text of the row's key, see `key_text`.

        Raises:
            NotThereError: there is no such table, or no such row.
        """
        keys = self._keys(table)
        if not _is_storable(key):
            raise self._no_row(table, key)
        try:
            values = parsed_key(keys, key)
            wanted = [column == value for column, value in zip(keys, values, strict=True)]
            found = self._fetch(self._query(table, None).where(*wanted).limit(1))
        except (ValueError, OverflowError, DataError) as err:  # too large a number, for instance
            raise self._no_row(table, key, f" ({err})") from err
        if not found:
            raise self._no_row(table, key)
        return self._row(table, found[0])

    def _no_row(self, table: str, key: str, why: str = "") -> NotThereError:
        first = [row.key for row in self.page(table, limit=5).rows]
        some = f"its first keys are {listed(first)}" if first else "it has no rows"
        return NotThereError(f"table {table!r} has no row {key!r}{why}; {some}")

    def _keys(self, table: str) -> list[Column[Any]]:
        if table not in self._declared:
            raise NotThereError(
                f"there is no table {table!r} with values; there are {listed(self.names)}"
            )
        return list(self._declared[table].table.primary_key)

    def _query(self, table: str, shown: int | None) -> Select[Any]:
        keys = self._keys(table)
        declared = self._declared[table]
        others = [c for c in declared.table.columns if not c.primary_key and _is_plain(c)]
        plain = [_shortened(column).label(f"field {column.name}") for column in others[:shown]]
        labelled = [key.label(f"key {key.name}") for key in keys]
        values = [c.column.label(f"value {c.column.name}") for c in declared.columns]
        return select(*labelled, *plain, *values)

    def _row(self, table: str, found: Any) -> Row:
        parts: dict[str, dict[str, Any]] = {"key": {}, "field": {}, "value": {}}
        for label, value in found._mapping.items():
            part, _, name = label.partition(" ")
            parts[part][name] = value
        key = key_text(list(parts["key"].values()))
        return Row(table, key, parts["field"], parts["value"])

    def _fetch(self, query: Select[Any]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def listed(names: Sequence[str]) -> str:
    """Return some names for a message."""
    shown = ", ".join(map(repr, names[:_LISTED]))
    return f"{shown}, … ({len(names)} in all)" if len(names) > _LISTED else shown


def _is_storable(text: str) -> bool:
    """Return whether a text may be in a database: some drivers fail at what none can hold."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def _is_plain(column: Column[Any]) -> bool:
    return isinstance(column.type, _PLAIN)


def _shortened(column: Column[Any]) -> Any:
    if isinstance(column.type, sa.String) and not isinstance(column.type, sa.Enum):
        return func.substr(column, 1, _WIDEST_TEXT)
    return column


def _contains(column: Column[Any], text: str) -> Any:
    if isinstance(column.type, sa.Uuid):
        # as 32 digits, which is how databases without such a type have it
        shown: Any = func.replace(sa.cast(column, sa.String(36)), "-", "")
        text = text.replace("-", "")
    else:
        shown = sa.cast(column, sa.String(255))
    return func.lower(shown).contains(text.lower(), autoescape=True)


def _read_only(engine: Engine) -> Engine:
    """Return an engine whose transactions the database keeps from writing, where it can."""
    statement = {
        "sqlite": "PRAGMA query_only = ON",
        "mysql": "SET SESSION TRANSACTION READ ONLY",
        "mariadb": "SET SESSION TRANSACTION READ ONLY",
    }.get(engine.dialect.name)
    if statement is None:
        # known to the drivers of PostgreSQL, ignored by others
        return engine.execution_options(postgresql_readonly=True)

    def forbid_writes(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    # connections that were made before do not hear of it
    engine.dispose()
    event.listen(engine, "connect", forbid_writes)
    return engine
