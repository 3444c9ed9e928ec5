"""The triggers of PostgreSQL."""

# names are quoted, see RemovalTriggers
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text
from typing_extensions import override

from sqla_datastore.removals.triggers.base import RemovalTriggers

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class PostgreSQLTriggers(RemovalTriggers):
    """A function, and a trigger for each of DELETE, UPDATE and TRUNCATE that calls it.

    The first two also fire for a cascade.
    """

    # not now(), the beginning of the transaction: `keep_seconds` would be over too early
    now = "CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp())) AS BIGINT)"

    @property
    @override
    def schema_of_removals(self) -> str | None:
        return self.removals_schema

    @property
    def _function(self) -> str:
        return f"{self.qualified(self.name('note'))}()"

    @override
    def creates(self, connection: Connection | None) -> list[str]:
        table, url = self.qualified(self.table), self.url
        # it returns NULL, which is ignored after a row is changed and before a statement
        body = (
            f"BEGIN IF TG_OP = 'TRUNCATE' THEN {self.into} "
            f"SELECT {self.noted(url)} FROM {table} WHERE {self.is_object(url)}; "
            f"ELSE {self.into} VALUES ({self.noted(f'OLD.{url}')}); END IF; RETURN NULL; END"
        )
        note = (
            f"CREATE FUNCTION {self._function} RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path {self._search_path(connection)} AS {_dollar_quoted(body)}"
        )
        is_object = self.is_object(f"OLD.{url}")
        changed = f"{is_object} AND OLD.{url} IS DISTINCT FROM NEW.{url}"
        return [
            note,
            self._trigger("delete", "AFTER", f"ROW WHEN ({is_object})"),
            self._trigger("update", "AFTER", f"ROW WHEN ({changed})"),
            # TRUNCATE fires no trigger for rows, and afterwards there is none left to select
            self._trigger("truncate", "BEFORE", "STATEMENT"),
        ]

    @override
    def _text(self, plain: str) -> str:
        # with E: each session reads the body anew, with its own standard_conforming_strings
        return "E'{}'".format(plain.replace("\\", "\\\\").replace("'", "''"))

    def _search_path(self, connection: Connection | None) -> str:
        """Return the schemas of now: the function must not depend on the role that deletes rows."""
        if connection is None:
            # offline nothing can be asked: the setting of the session that runs the script is kept
            return "FROM CURRENT"
        # not the setting itself: the "$user" in it stands for whoever deletes rows later
        schemas = connection.scalars(text("SELECT unnest(current_schemas(false))"))
        return "= " + (", ".join(map(self.quoted, schemas)) or "''")

    def _trigger(self, what: str, moment: str, each: str) -> str:
        return (
            f"CREATE TRIGGER {self.quoted(self.name(what))} {moment} {what} "
            f"ON {self.qualified(self.table)} FOR EACH {each} EXECUTE FUNCTION {self._function}"
        )

    @override
    def drops(self, connection: Connection | None) -> list[str]:
        table = self.qualified(self.table)
        # a longer name of before is cut off here as it was when the trigger was created
        names = (name for what in ("delete", "update", "truncate") for name in self.names(what))
        drops = [f"DROP TRIGGER IF EXISTS {self.quoted(name)} ON {table}" for name in names]
        return [*drops, f"DROP FUNCTION IF EXISTS {self._function}"]


def _dollar_quoted(body: str) -> str:
    """Return a function's body between tags that do not occur in it: a column may be called so."""
    number = 0
    while (tag := f"$body{number or ''}$") in body:
        number += 1
    return f"{tag} {body} {tag}"
