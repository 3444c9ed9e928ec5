"""The triggers of MySQL and MariaDB.

A cascade fires no trigger there (MySQL manual, "FOREIGN KEY Constraints"). So every table from
which a cascade can come gets a trigger that selects, before a row is deleted, what goes with it.
"""

# names are quoted, see RemovalTriggers
# ruff: noqa: S608

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sqlalchemy import text
from typing_extensions import override

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.removals.triggers.base import RemovalTriggers
from sqla_datastore.removals.triggers.cascades import CascadePaths, CascadingKey

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_WHAT = re.compile(r"(delete|update|cascade_[0-9]+)$")


class MySQLTriggers(RemovalTriggers):
    """One trigger for DELETE, one for UPDATE, and one for each table that cascades come from."""

    now = "UNIX_TIMESTAMP()"

    @override
    def creates(self, connection: Connection | None) -> list[str]:
        old = f"OLD.{self.url}"
        lost = f"SELECT {self.noted(old)} FROM DUAL WHERE {self.is_object(old)}"
        # `<=>` compares NULL as well, where `<>` would tell nothing
        changed = f"NOT (OLD.{self.url} <=> NEW.{self.url})"
        return [
            self._trigger("delete", "AFTER DELETE", self.table, lost),
            self._trigger("update", "AFTER UPDATE", self.table, f"{lost} AND {changed}"),
            *self._before_cascades(_online(connection)),
        ]

    def _trigger(self, what: str, moment: str, table: str, select: str) -> str:
        return (
            f"CREATE TRIGGER {self.qualified(self.name(what))} {moment} "
            f"ON {self.qualified(table)} FOR EACH ROW {self.into} {select}"
        )

    def _before_cascades(self, connection: Connection) -> Iterator[str]:
        """Yield a trigger for every table from which a cascade can come."""
        paths = CascadePaths.reflect(connection, self.table, self.schema)
        for number, source in enumerate(paths.sources()):
            # BEFORE: for an AFTER trigger the rows that refer to this one are gone already
            yield self._trigger(
                f"cascade_{number}", "BEFORE DELETE", source, self._reached(paths, source)
            )

    def _reached(self, paths: CascadePaths, source: str) -> str:
        """Return the SELECT of the URLs that go with a row of a table.

        Each table on the way has a common table expression with those of its rows that go.
        """
        # recursive: joins of all ways that a cascade can take cost MariaDB gigabytes a connection
        order = paths.order(source)
        expressions = {table: f"r{number}" for number, table in enumerate(order)}
        # UNION, not UNION ALL: rows that refer to each other in a circle end the recursion, and a
        # row that two ways lead to is noted once
        steps = [
            f"{expressions[table]} AS ({' UNION '.join(selects)})"
            for table in order
            if (selects := list(self._selects(paths, table, source, expressions)))
        ]
        url = f"r.{self.url}"
        return (
            f"WITH RECURSIVE {', '.join(steps)} SELECT {self.noted(url)} "
            f"FROM {expressions[self.table]} AS r WHERE {self.is_object(url)}"
        )

    def _selects(
        self, paths: CascadePaths, table: str, source: str, expressions: Mapping[str, str]
    ) -> Iterator[str]:
        """Yield the SELECTs of a table's rows that go; the recursive one comes last."""
        wanted = paths.referred(table, expressions)
        wanted += [self.column] if table == self.table and self.column not in wanted else []
        columns = ", ".join(f"c.{self.quoted(name)}" for name in wanted)
        select = f"SELECT {columns} FROM {self.qualified(table)} AS c"
        keys = [key for key in paths.keys[table] if key.parent in expressions]
        yield from (
            f"{select} WHERE {self._joined(key, 'OLD')}" for key in keys if key.parent == source
        )
        below = [key for key in keys if key.parent != source or paths.is_circular(source)]
        for key in sorted(below, key=lambda key: key.parent == table):
            yield f"{select} JOIN {expressions[key.parent]} AS p ON {self._joined(key, 'p')}"

    def _joined(self, key: CascadingKey, parent: str) -> str:
        """Return the condition that a row ``c`` refers to a row of the parent."""
        pairs = zip(key.columns, key.referred, strict=True)
        return " AND ".join(f"c.{self.quoted(a)} = {parent}.{self.quoted(b)}" for a, b in pairs)

    @override
    def drops(self, connection: Connection | None) -> list[str]:
        # what is there, and not what the foreign keys ask for now: they may have changed since
        query = text(
            "SELECT TRIGGER_NAME FROM INFORMATION_SCHEMA.TRIGGERS "
            "WHERE TRIGGER_SCHEMA = COALESCE(:schema, DATABASE())"
        )
        names = _online(connection).scalars(query, {"schema": self.schema})
        found = [name for name in names if self._is_ours(name)]
        return [f"DROP TRIGGER IF EXISTS {self.qualified(name)}" for name in found]

    def _is_ours(self, name: str) -> bool:
        what = _WHAT.search(name)
        return what is not None and name in self.names(what[0])


def _online(connection: Connection | None) -> Connection:
    """Refuse to go on offline.

    Raises:
        ConfigurationError: there is no connection.
    """
    if connection is None:
        raise ConfigurationError(
            "triggers depend on the foreign keys that MySQL or MariaDB has: run this migration "
            "online, without --sql"
        )
    return connection
