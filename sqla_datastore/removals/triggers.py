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
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sqlalchemy import String, inspect, literal, text

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.removals.table import TABLE_NAME
from sqla_datastore.storage.urls import URL_LENGTH

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.engine import Connection, Dialect

__all__ = [
    "RemovalTriggers",
    "create_removal_triggers",
    "drop_removal_triggers",
    "has_removal_triggers",
    "removal_triggers",
    "trigger_statements",
]

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
    Alembic's batch mode has made a table anew (SQLite). Drop them before a column is renamed,
    converted or dropped, or the table of removals is dropped. The operation of Alembic is
    ``op.create_removal_triggers(table_name, *column_names)``.

    On SQLite and PostgreSQL the statements belong to the caller's transaction. MySQL and MariaDB
    commit at each of them, what the transaction did before included; so renewing leaves a moment
    without triggers there, and a failure can leave some of them.

    Args:
        connection: a connection to SQLite, PostgreSQL, MySQL or MariaDB.
        table_name: the table.
        column_names: its `DataStoreType` columns.
        schema: the table's schema.
        removals_schema: the schema of the table of removals, by default the one that the
            ``search_path`` leads to (PostgreSQL) or the table's (MySQL, MariaDB). On SQLite it is
            always the table's.

    Raises:
        ConfigurationError: no column is named; the table, a column or the table of removals is
            missing; another database; a cascade comes from another schema (MySQL, MariaDB) or
            goes round in a circle over several tables. No statement was run.
        sqlalchemy.exc.SQLAlchemyError: the database refused a statement, as without the right to
            create triggers.
    """
    for statement in trigger_statements(
        connection.dialect,
        connection,
        table_name,
        column_names,
        schema,
        removals_schema,
        creates=True,
    ):
        connection.execute(statement)


def drop_removal_triggers(
    connection: Connection, table_name: str, *column_names: str, schema: str | None = None
) -> None:
    """Drop the triggers of `DataStoreType` columns; those that are not there are no error.

    The operation of Alembic is ``op.drop_removal_triggers(table_name, *column_names)``. The
    transaction is the caller's, but for MySQL and MariaDB, which commit at each statement.

    Args:
        connection: as for `create_removal_triggers`.
        table_name: the table, which may be gone.
        column_names: its columns, which may be gone.
        schema: the table's schema.

    Raises:
        ConfigurationError: no column is named; another database.
        sqlalchemy.exc.SQLAlchemyError: the database refused a statement.
    """
    for statement in trigger_statements(
        connection.dialect, connection, table_name, column_names, schema, creates=False
    ):
        connection.execute(statement)


def trigger_statements(
    dialect: Dialect,
    connection: Connection | None,
    table_name: str,
    column_names: Sequence[str],
    schema: str | None = None,
    removals_schema: str | None = None,
    *,
    creates: bool,
) -> list[TextClause]:
    """Return the statements that drop the triggers of columns and, if asked to, create them.

    All of them are known before the first is run.

    Args:
        dialect: the database's.
        connection: looks what the database has; without one (``--sql``) nothing is checked.
        table_name: the table.
        column_names: its `DataStoreType` columns.
        schema: the table's schema.
        removals_schema: as for `create_removal_triggers`.
        creates: whether to create them after they were dropped.

    Raises:
        ConfigurationError: as `create_removal_triggers`; no connection on MySQL or MariaDB.
        sqlalchemy.exc.SQLAlchemyError: the database could not be asked.
    """
    if not column_names:
        raise ConfigurationError(f"name the DataStoreType columns of table {table_name!r}")
    columns = [
        removal_triggers(dialect, table_name, column, schema, removals_schema)
        for column in column_names
    ]
    created: list[str] = []
    if creates:
        if connection is not None:
            _refuse_missing(connection, table_name, column_names, schema, _OWN_STEP)
            _refuse_missing(
                connection, TABLE_NAME, _COLUMNS, columns[0].schema_of_removals, _REMOVALS_STEP
            )
        created = [sql for column in columns for sql in column.creates(connection)]
    dropped = [sql for column in columns for sql in column.drops(connection)]
    return [_escaped(sql) for sql in (*dropped, *created)]


def _escaped(statement: str) -> TextClause:
    """Return a statement that has no parameters as SQLAlchemy takes it."""
    return text(statement.replace(":", r"\:"))


_COLUMNS = ("url", "source", "superseded_at")
_OWN_STEP = "name tables and columns as the database does, and create them before the triggers"
_REMOVALS_STEP = (
    "before the triggers create it (enable_removals(metadata), then metadata.create_all(engine) or "
    "alembic upgrade head), or name its schema with removals_schema="
)


def _refuse_missing(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    schema: str | None,
    next_step: str,
) -> None:
    """Refuse what would create triggers at which every DELETE fails.

    Raises:
        ConfigurationError: the database lacks the table or one of the columns.
    """
    inspector = inspect(connection)
    name = f"{schema}.{table}" if schema else table
    if not inspector.has_table(table, schema=schema):
        raise ConfigurationError(f"the database lacks table {name!r}; {next_step}")
    there = {
        column["name"]: column["type"] for column in inspector.get_columns(table, schema=schema)
    }
    missing = [column for column in columns if column not in there]
    if missing:
        raise ConfigurationError(
            f"table {name!r} lacks {', '.join(map(repr, missing))}; {next_step}"
        )
    others = [column for column in columns if not _can_hold_urls(there[column])]
    if others and table != TABLE_NAME:
        raise ConfigurationError(
            f"{', '.join(map(repr, others))} of table {name!r} can be no DataStoreType column, "
            f"which is a VARCHAR({URL_LENGTH}); {next_step}"
        )


def _can_hold_urls(type_: Any) -> bool:
    return isinstance(type_, String) and type_.length == URL_LENGTH


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

    @abstractmethod
    def creates(self, connection: Connection | None) -> list[str]:
        """Return the statements that create them.

        Raises:
            ConfigurationError: they depend on what the database has, and there is no connection;
                or a cascade cannot be followed.
        """

    @abstractmethod
    def drops(self, connection: Connection | None) -> list[str]:
        """Return the statements that drop them, where they are there.

        Raises:
            ConfigurationError: they depend on what the database has, and there is no connection.
        """

    def quoted(self, name: str) -> str:
        """Return an identifier as SQL has it."""
        return self._single(self.dialect.identifier_preparer.quote(name))

    def qualified(self, name: str) -> str:
        """Return an identifier with the table's schema."""
        return (
            f"{self.quoted(self.schema)}.{self.quoted(name)}" if self.schema else self.quoted(name)
        )

    def _single(self, rendered: str) -> str:
        """Undo the doubling of percent signs for the driver, since `text` doubles them too."""
        doubles = "%%" in self.dialect.identifier_preparer.quote("%")
        return rendered.replace("%%", "%") if doubles else rendered

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
    def schema_of_removals(self) -> str | None:
        """Where a trigger finds the table of removals; None leaves it to the database."""
        return self.removals_schema or self.schema

    @property
    def into(self) -> str:
        """The beginning of the statement that writes a removal down."""
        schema = f"{self.quoted(self.removals_schema)}." if self.removals_schema else ""
        return f"INSERT INTO {schema}{TABLE_NAME} ({', '.join(_COLUMNS)})"

    def noted(self, url: str) -> str:
        """Return what is written down, in the order of `into`."""
        # a compiler knows whether MySQL takes backslashes for escapes
        source = literal(f"{self.table}.{self.column}", String()).compile(
            dialect=self.dialect, compile_kwargs={"literal_binds": True}
        )
        return f"{url}, {self._single(str(source))}, {self.now}"


class _SQLite(RemovalTriggers):
    now = "CAST(strftime('%s', 'now') AS INTEGER)"

    @property
    def schema_of_removals(self) -> str | None:
        return self.schema

    @property
    def into(self) -> str:
        # a trigger's body names the tables of its own database, without a schema
        return f"INSERT INTO {TABLE_NAME} ({', '.join(_COLUMNS)})"

    def creates(self, connection: Connection | None) -> list[str]:  # noqa: ARG002
        changed = f"OLD.{self.url} IS NOT NEW.{self.url}"
        return [self._trigger("delete"), self._trigger("update", f" AND {changed}")]

    def _trigger(self, what: str, condition: str = "") -> str:
        return (
            f"CREATE TRIGGER {self.qualified(self.name(what))} AFTER {what} "
            f"ON {self.quoted(self.table)} WHEN OLD.{self.url} IS NOT NULL{condition} "
            f"BEGIN {self.into} VALUES ({self.noted(f'OLD.{self.url}')}); END"
        )

    def drops(self, connection: Connection | None) -> list[str]:  # noqa: ARG002
        names = map(self.name, ("delete", "update"))
        return [f"DROP TRIGGER IF EXISTS {self.qualified(name)}" for name in names]


class _PostgreSQL(RemovalTriggers):
    now = "CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp())) AS BIGINT)"

    @property
    def schema_of_removals(self) -> str | None:
        return self.removals_schema

    @property
    def _function(self) -> str:
        return f"{self.qualified(self.name('note'))}()"

    def creates(self, connection: Connection | None) -> list[str]:
        table, url = self.qualified(self.table), self.url
        note = (
            f"CREATE FUNCTION {self._function} RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path {self._search_path(connection)} AS $body$ BEGIN "
            f"IF TG_OP = 'TRUNCATE' THEN {self.into} "
            f"SELECT {self.noted(url)} FROM {table} WHERE {url} IS NOT NULL; "
            f"ELSE {self.into} VALUES ({self.noted(f'OLD.{url}')}); END IF; RETURN NULL; END $body$"
        )
        changed = f"OLD.{url} IS NOT NULL AND OLD.{url} IS DISTINCT FROM NEW.{url}"
        return [
            note,
            self._trigger("delete", "AFTER", f"ROW WHEN (OLD.{url} IS NOT NULL)"),
            self._trigger("update", "AFTER", f"ROW WHEN ({changed})"),
            self._trigger("truncate", "BEFORE", "STATEMENT"),
        ]

    def _search_path(self, connection: Connection | None) -> str:
        """Return the schemas of now, so that those of who deletes rows do not matter."""
        if connection is None:
            return "FROM CURRENT"
        # not the setting itself: "$user" in it is another one later
        schemas = connection.scalars(text("SELECT unnest(current_schemas(false))"))
        return "= " + (", ".join(map(self.quoted, schemas)) or "''")

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

    def creates(self, connection: Connection | None) -> list[str]:
        old = f"OLD.{self.url}"
        lost = f"SELECT {self.noted(old)} FROM DUAL WHERE {old} IS NOT NULL"
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
        ways = _Ways.to(self.table, _cascades(connection, self.schema), self.schema)
        for number, source in enumerate(ways.sources()):
            yield self._trigger(
                f"cascade_{number}", "BEFORE DELETE", source, self._reached(ways, source)
            )

    def _reached(self, ways: _Ways, source: str) -> str:
        """Return what selects the URLs that go with a row of a table, table by table."""
        order = ways.order(source)
        places = {table: f"r{number}" for number, table in enumerate(order)}
        steps = [
            f"{places[table]} AS ({' UNION '.join(rows)})"
            for table in order
            if (rows := list(self._rows(ways, table, source, places)))
        ]
        url = f"r.{self.url}"
        return (
            f"WITH RECURSIVE {', '.join(steps)} SELECT {self.noted(url)} "
            f"FROM {places[self.table]} AS r WHERE {url} IS NOT NULL"
        )

    def _rows(
        self, ways: _Ways, table: str, source: str, places: Mapping[str, str]
    ) -> Iterator[str]:
        """Yield what selects the rows of a table that go; those below themselves come last."""
        wanted = ways.referred(table, places)
        wanted += [self.column] if table == self.table and self.column not in wanted else []
        columns = ", ".join(f"c.{self.quoted(name)}" for name in wanted)
        select = f"SELECT {columns} FROM {self.qualified(table)} AS c"
        keys = [key for key in ways.keys[table] if key.parent in places]
        yield from (
            f"{select} WHERE {self._joined(key, 'OLD')}" for key in keys if key.parent == source
        )
        below = [key for key in keys if key.parent != source or ways.is_circular(source)]
        for key in sorted(below, key=lambda key: key.parent == table):
            yield f"{select} JOIN {places[key.parent]} AS p ON {self._joined(key, 'p')}"

    def _joined(self, key: _Cascade, parent: str) -> str:
        pairs = zip(key.columns, key.referred, strict=True)
        return " AND ".join(f"c.{self.quoted(a)} = {parent}.{self.quoted(b)}" for a, b in pairs)

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
    if not has_removal_triggers(dialect):
        raise ConfigurationError(
            f"there are no removal triggers for {dialect.name!r}, only for SQLite, PostgreSQL, "
            "MySQL and MariaDB"
        )
    return _BY_DIALECT[dialect.name](dialect, table, column, schema, removals_schema)


def has_removal_triggers(dialect: Dialect) -> bool:
    """Return whether there are triggers for a database."""
    return dialect.name in _BY_DIALECT


def _needed(connection: Connection | None) -> Connection:
    if connection is None:
        raise ConfigurationError(
            "triggers depend on the foreign keys that MySQL or MariaDB has: run this migration "
            "online, without --sql"
        )
    return connection


class _Cascade(NamedTuple):
    """A foreign key by which a deleted row takes others with it."""

    name: str | None
    child: str
    schema: str | None
    parent: str
    columns: tuple[str, ...]
    referred: tuple[str, ...]

    def refuse_elsewhere(self, schema: str | None) -> None:
        """Refuse a parent in another schema: a trigger lies in the schema of its table.

        Raises:
            ConfigurationError: it is in another one.
        """
        if self.schema != schema:
            raise ConfigurationError(
                f"foreign key {self.name!r} of table {self.child!r} cascades from "
                f"'{self.schema}.{self.parent}' in another schema, where no trigger can look "
                "ahead; take ON DELETE CASCADE from it, or declare __datastore_folder__ on the "
                "owning classes instead of triggers"
            )


def _cascades(connection: Connection, schema: str | None) -> Mapping[str, list[_Cascade]]:
    """Return the cascading foreign keys of a schema, by the table that has them."""
    found: Mapping[tuple[str | None, str], Any] = inspect(connection).get_multi_foreign_keys(
        schema=schema
    )
    return {
        table: [
            _Cascade(
                key["name"],
                table,
                key["referred_schema"],
                key["referred_table"],
                tuple(key["constrained_columns"]),
                tuple(key["referred_columns"]),
            )
            for key in keys
            if (key["options"].get("ondelete") or "").upper() == "CASCADE"
        ]
        for (_, table), keys in found.items()
    }


@dataclass(frozen=True)
class _Ways:
    """The ways that a cascade can take to a table.

    Attributes:
        table: the table.
        keys: the cascading foreign keys on these ways, by the table that has them.
    """

    table: str
    keys: Mapping[str, list[_Cascade]]

    @classmethod
    def to(cls, table: str, cascades: Mapping[str, list[_Cascade]], schema: str | None) -> _Ways:
        """Follow the foreign keys from a table to all from which it can be reached.

        Raises:
            ConfigurationError: one of them is in another schema.
        """
        keys: dict[str, list[_Cascade]] = {}
        todo = [table]
        while todo:
            child = todo.pop()
            if child not in keys:
                keys[child] = list(cascades.get(child, ()))
                for key in keys[child]:
                    key.refuse_elsewhere(schema)
                    todo.append(key.parent)
        return cls(table, keys)

    def sources(self) -> list[str]:
        """Return the tables from which a cascade can come."""
        return sorted({key.parent for keys in self.keys.values() for key in keys})

    def is_circular(self, table: str) -> bool:
        """Whether rows of a table go with other rows of it."""
        return any(key.parent == table for key in self.keys[table])

    def referred(self, table: str, among: Container[str]) -> list[str]:
        """Return the columns of a table that foreign keys of some tables refer to."""
        keys = (key for child, keys in self.keys.items() if child in among for key in keys)
        names = (name for key in keys if key.parent == table for name in key.referred)
        return list(dict.fromkeys(names))

    def order(self, source: str) -> list[str]:
        """Return the tables between a source and the table, each after those above it.

        Raises:
            ConfigurationError: they go round in a circle.
        """
        reached = {source}
        while True:
            more = {
                child
                for child, keys in self.keys.items()
                if any(key.parent in reached for key in keys)
            }
            if more <= reached:
                break
            reached |= more
        above = {
            child: {key.parent for key in self.keys[child]} & reached - {child} for child in reached
        }
        try:
            return list(TopologicalSorter(above).static_order())
        except CycleError as err:
            raise ConfigurationError(
                f"foreign keys with ON DELETE CASCADE go round in a circle over the tables "
                f"{sorted(set(err.args[1]))}, where no trigger can look ahead; take ON DELETE "
                "CASCADE from one, or declare __datastore_folder__ on the owning classes instead"
            ) from err
