"""Triggers that write down removals for rows that go without SQLAlchemy's knowledge.

A database cascade, raw SQL, another program: none of them passes the ledger. A trigger on each
column adds the URLs that rows lose to the table of `sqla_datastore.enable_removals`, in the
transaction that takes them.

On MySQL and MariaDB a cascade fires no trigger (MySQL manual, "FOREIGN KEY Constraints"), so every
table from which a cascade can come gets one that looks ahead.
"""

# The dialect quotes every name, and nothing else of the caller's gets into a statement:
# ruff: noqa: S608

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sqlalchemy import inspect, text

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.removals import TABLE_NAME

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.engine import Connection, Dialect

__all__ = [
    "RemovalTriggers",
    "create_removal_triggers",
    "drop_removal_triggers",
    "escaped",
    "removal_triggers",
]

_MOST_LEVELS = 15
"""InnoDB does not nest cascades any deeper."""

_MOST_WALKS = 300
_READABLE = 38


def create_removal_triggers(
    connection: Connection,
    table_name: str,
    *column_names: str,
    schema: str | None = None,
    removals_schema: str | None = None,
) -> None:
    """Create the triggers of `DataStoreType` columns, or renew those that are there.

    Renew them when a foreign key with ON DELETE CASCADE comes or goes (MySQL, MariaDB), and after
    Alembic's batch mode has made a table anew (SQLite). The operation of Alembic is
    ``op.create_removal_triggers(table_name, *column_names)``. The caller commits.

    Args:
        connection: a connection to SQLite, PostgreSQL, MySQL or MariaDB.
        table_name: the table.
        column_names: its `DataStoreType` columns.
        schema: the table's schema.
        removals_schema: the schema of the table of removals.

    Raises:
        ConfigurationError: another database, or more ways for a cascade than can be looked at.
    """
    for column in column_names:
        triggers = removal_triggers(connection.dialect, table_name, column, schema, removals_schema)
        for statement in (*triggers.drops(connection), *triggers.creates(connection)):
            connection.execute(escaped(statement))


def drop_removal_triggers(
    connection: Connection, table_name: str, *column_names: str, schema: str | None = None
) -> None:
    """Drop the triggers of `DataStoreType` columns; those that are not there are no error.

    The operation of Alembic is ``op.drop_removal_triggers(table_name, *column_names)``. The caller
    commits.

    Args:
        connection: as for `create_removal_triggers`.
        table_name: the table.
        column_names: its columns.
        schema: the table's schema.

    Raises:
        ConfigurationError: another database.
    """
    for column in column_names:
        triggers = removal_triggers(connection.dialect, table_name, column, schema)
        for statement in triggers.drops(connection):
            connection.execute(escaped(statement))


def escaped(statement: str) -> TextClause:
    """Return a statement that has no parameters as SQLAlchemy takes it."""
    return text(statement.replace(":", r"\:"))


@dataclass(frozen=True)
class RemovalTriggers(ABC):
    """The triggers of one column, as statements.

    Args:
        dialect: the database's.
        table: the table.
        column: the column.
        schema: the table's schema.
        removals_schema: the schema of the table of removals.
    """

    dialect: Dialect
    table: str
    column: str
    schema: str | None = None
    removals_schema: str | None = None

    now: ClassVar[str]
    asks_database: ClassVar[bool] = False
    """Whether the statements depend on what the database has, so that a connection is needed."""

    @abstractmethod
    def creates(self, connection: Connection | None) -> list[str]:
        """Return the statements that create them."""

    @abstractmethod
    def drops(self, connection: Connection | None) -> list[str]:
        """Return the statements that drop them, where they are there."""

    def quoted(self, name: str) -> str:
        """Return an identifier as SQL has it."""
        return self.dialect.identifier_preparer.quote(name)

    def qualified(self, name: str) -> str:
        """Return an identifier with the table's schema."""
        return (
            f"{self.quoted(self.schema)}.{self.quoted(name)}" if self.schema else self.quoted(name)
        )

    def name(self, what: str) -> str:
        """Return a name of its own for each column, in the 63 bytes that PostgreSQL takes."""
        digest = hashlib.sha256(f"{self.table}.{self.column}".encode()).hexdigest()[:8]
        readable = f"{self.table}_{self.column}".encode()[:_READABLE].decode(errors="ignore")
        return f"datastore_{readable}_{digest}_{what}"

    @property
    def url(self) -> str:
        """The column, quoted."""
        return self.quoted(self.column)

    @property
    def into(self) -> str:
        """The beginning of the statement that writes a removal down."""
        schema = f"{self.quoted(self.removals_schema)}." if self.removals_schema else ""
        return f"INSERT INTO {schema}{TABLE_NAME} (url, superseded_at)"


class _SQLite(RemovalTriggers):
    now = "CAST(strftime('%s', 'now') AS INTEGER)"

    def creates(self, connection: Connection | None) -> list[str]:  # noqa: ARG002
        changed = f"OLD.{self.url} IS NOT NEW.{self.url}"
        return [self._trigger("delete"), self._trigger("update", f" AND {changed}")]

    def _trigger(self, what: str, condition: str = "") -> str:
        # its body names the tables of its own database, without a schema
        return (
            f"CREATE TRIGGER {self.qualified(self.name(what))} AFTER {what} "
            f"ON {self.quoted(self.table)} WHEN OLD.{self.url} IS NOT NULL{condition} "
            f"BEGIN INSERT INTO {TABLE_NAME} (url, superseded_at) "
            f"VALUES (OLD.{self.url}, {self.now}); END"
        )

    def drops(self, connection: Connection | None) -> list[str]:  # noqa: ARG002
        names = map(self.name, ("delete", "update"))
        return [f"DROP TRIGGER IF EXISTS {self.qualified(name)}" for name in names]


class _PostgreSQL(RemovalTriggers):
    now = "CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp())) AS BIGINT)"

    @property
    def _function(self) -> str:
        return f"{self.qualified(self.name('note'))}()"

    def creates(self, connection: Connection | None) -> list[str]:  # noqa: ARG002
        table, url = self.qualified(self.table), self.url
        note = (
            f"CREATE FUNCTION {self._function} RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN "
            f"IF TG_OP = 'TRUNCATE' THEN {self.into} "
            f"SELECT {url}, {self.now} FROM {table} WHERE {url} IS NOT NULL; "
            f"ELSE {self.into} VALUES (OLD.{url}, {self.now}); END IF; RETURN NULL; END $body$"
        )
        changed = f"OLD.{url} IS NOT NULL AND OLD.{url} IS DISTINCT FROM NEW.{url}"
        return [
            note,
            self._trigger("delete", "AFTER", f"ROW WHEN (OLD.{url} IS NOT NULL)"),
            self._trigger("update", "AFTER", f"ROW WHEN ({changed})"),
            self._trigger("truncate", "BEFORE", "STATEMENT"),
        ]

    def _trigger(self, what: str, moment: str, each: str) -> str:
        return (
            f"CREATE TRIGGER {self.quoted(self.name(what))} {moment} {what} "
            f"ON {self.qualified(self.table)} FOR EACH {each} EXECUTE FUNCTION {self._function}"
        )

    def drops(self, connection: Connection | None) -> list[str]:  # noqa: ARG002
        table = self.qualified(self.table)
        names = (self.quoted(self.name(what)) for what in ("delete", "update", "truncate"))
        drops = [f"DROP TRIGGER IF EXISTS {name} ON {table}" for name in names]
        return [*drops, f"DROP FUNCTION IF EXISTS {self._function}"]


class _MySQL(RemovalTriggers):
    now = "UNIX_TIMESTAMP()"
    asks_database = True

    def creates(self, connection: Connection | None) -> list[str]:
        lost = f"SELECT OLD.{self.url}, {self.now} FROM DUAL WHERE OLD.{self.url} IS NOT NULL"
        changed = f"NOT (OLD.{self.url} <=> NEW.{self.url})"
        return [
            self._trigger("delete", "AFTER DELETE", self.table, lost),
            self._trigger("update", "AFTER UPDATE", self.table, f"{lost} AND {changed}"),
            *self._looking_ahead(_needed(connection)),
        ]

    def _trigger(self, what: str, moment: str, table: str, select: str) -> str:
        return (
            f"CREATE TRIGGER {self.qualified(self.name(what))} {moment} "
            f"ON {self.qualified(table)} FOR EACH ROW {self.into} {select}"
        )

    def _looking_ahead(self, connection: Connection) -> Iterator[str]:
        """Yield a trigger for every table from which a cascade can come."""
        selects: dict[str, list[str]] = defaultdict(list)
        for walk in _walks(self.table, _cascades(connection, self.schema)):
            selects[walk[-1].parent].append(self._reached(walk))
        for number, table in enumerate(sorted(selects)):
            union = " UNION ".join(selects[table])
            yield self._trigger(f"cascade_{number}", "BEFORE DELETE", table, union)

    def _reached(self, walk: Sequence[_Cascade]) -> str:
        """Return what selects the URLs that a cascade over these foreign keys will take."""
        source = f"{self.qualified(self.table)} AS t0"
        for level, step in enumerate(walk[:-1]):
            on = self._joined(step, f"t{level}", f"t{level + 1}")
            source += f" JOIN {self.qualified(step.parent)} AS t{level + 1} ON {on}"
        met = self._joined(walk[-1], f"t{len(walk) - 1}", "OLD")
        url = f"t0.{self.url}"
        return f"SELECT {url}, {self.now} FROM {source} WHERE {met} AND {url} IS NOT NULL"

    def _joined(self, step: _Cascade, child: str, parent: str) -> str:
        pairs = zip(step.columns, step.referred, strict=True)
        joined = (f"{child}.{self.quoted(a)} = {parent}.{self.quoted(b)}" for a, b in pairs)
        return " AND ".join(joined)

    def drops(self, connection: Connection | None) -> list[str]:
        query = text(
            "SELECT TRIGGER_NAME FROM INFORMATION_SCHEMA.TRIGGERS "
            "WHERE TRIGGER_SCHEMA = COALESCE(:schema, DATABASE())"
        )
        pattern = re.compile(re.escape(self.name("")) + r"(delete|update|cascade_[0-9]+)")
        names = _needed(connection).scalars(query, {"schema": self.schema})
        found = [name for name in names if pattern.fullmatch(name)]
        return [f"DROP TRIGGER IF EXISTS {self.qualified(name)}" for name in found]


_BY_DIALECT: dict[str, type[RemovalTriggers]] = {
    "sqlite": _SQLite,
    "postgresql": _PostgreSQL,
    "mysql": _MySQL,
    "mariadb": _MySQL,
}


def removal_triggers(
    dialect: Dialect,
    table: str,
    column: str,
    schema: str | None = None,
    removals_schema: str | None = None,
) -> RemovalTriggers:
    """Return the triggers of a column.

    Raises:
        ConfigurationError: the database is none of SQLite, PostgreSQL, MySQL and MariaDB.
    """
    triggers = _BY_DIALECT.get(dialect.name)
    if triggers is None:
        raise ConfigurationError(
            f"there are no removal triggers for {dialect.name!r}, only for SQLite, PostgreSQL, "
            "MySQL and MariaDB"
        )
    return triggers(dialect, table, column, schema, removals_schema)


def _needed(connection: Connection | None) -> Connection:
    assert connection is not None, "asks_database says so"
    return connection


class _Cascade(NamedTuple):
    """A foreign key by which a deleted row takes others with it."""

    parent: str
    columns: tuple[str, ...]
    referred: tuple[str, ...]


def _cascades(connection: Connection, schema: str | None) -> Mapping[str, list[_Cascade]]:
    """Return the cascading foreign keys of a schema, by the table that has them."""
    found: Mapping[tuple[str | None, str], Any] = inspect(connection).get_multi_foreign_keys(
        schema=schema
    )
    return {
        table: [
            _Cascade(
                key["referred_table"],
                tuple(key["constrained_columns"]),
                tuple(key["referred_columns"]),
            )
            for key in keys
            if (key["options"].get("ondelete") or "").upper() == "CASCADE"
        ]
        for (_, table), keys in found.items()
    }


def _walks(table: str, cascades: Mapping[str, list[_Cascade]]) -> Iterator[tuple[_Cascade, ...]]:
    """Yield every way that a cascade can take to a table, from the table outwards.

    Raises:
        ConfigurationError: there are too many: cycles that meet.
    """
    walks: list[tuple[_Cascade, ...]] = [(step,) for step in cascades.get(table, ())]
    count = 0
    while walks:
        walk = walks.pop()
        count += 1
        if count > _MOST_WALKS:
            raise ConfigurationError(
                f"there are more than {_MOST_WALKS} ways for a cascade to reach {table!r}; "
                "declare __datastore_folder__ on the owning classes instead"
            )
        yield walk
        if len(walk) < _MOST_LEVELS:
            walks += [(*walk, step) for step in cascades.get(walk[-1].parent, ())]
