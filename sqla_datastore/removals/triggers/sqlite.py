"""The triggers of SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from sqla_datastore.removals.table import TABLE_NAME
from sqla_datastore.removals.triggers.base import INSERTED_COLUMNS, RemovalTriggers

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class SQLiteTriggers(RemovalTriggers):
    """One trigger for DELETE and one for UPDATE; both also fire for a cascade."""

    now = "CAST(strftime('%s', 'now') AS INTEGER)"

    @property
    @override
    def schema_of_removals(self) -> str | None:
        return self.schema

    @property
    @override
    def into(self) -> str:
        # a trigger's body names the tables of its own database, without a schema
        return f"INSERT INTO {TABLE_NAME} ({', '.join(INSERTED_COLUMNS)})"

    @override
    def creates(self, connection: Connection | None) -> list[str]:
        # REPLACE fires the one for DELETE only with PRAGMA recursive_triggers=ON
        changed = f"OLD.{self.url} IS NOT NEW.{self.url}"
        return [self._trigger("delete"), self._trigger("update", f" AND {changed}")]

    def _trigger(self, what: str, condition: str = "") -> str:
        return (
            f"CREATE TRIGGER {self.qualified(self.name(what))} AFTER {what} "
            f"ON {self.quoted(self.table)} WHEN {self.is_object(f'OLD.{self.url}')}{condition} "
            f"BEGIN {self.into} VALUES ({self.noted(f'OLD.{self.url}')}); END"
        )

    @override
    def drops(self, connection: Connection | None) -> list[str]:
        names = (name for what in ("delete", "update") for name in self.names(what))
        return [f"DROP TRIGGER IF EXISTS {self.qualified(name)}" for name in names]
