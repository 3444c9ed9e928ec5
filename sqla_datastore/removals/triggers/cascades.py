"""The paths on which ON DELETE CASCADE reaches a table, read from the foreign keys."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect

from sqla_datastore.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class CascadingKey(NamedTuple):
    """A foreign key with ON DELETE CASCADE."""

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


@dataclass(frozen=True)
class CascadePaths:
    """The paths that a cascade can take to a table.

    Attributes:
        table: the table.
        keys: the cascading foreign keys on these paths, by the table that has them.
    """

    table: str
    keys: Mapping[str, list[CascadingKey]]

    @classmethod
    def reflect(cls, connection: Connection, table: str, schema: str | None) -> CascadePaths:
        """Follow the foreign keys from a table to all from which it can be reached.

        Raises:
            ConfigurationError: one of them is in another schema.
        """
        cascading = _cascading_keys(connection, schema)
        keys: dict[str, list[CascadingKey]] = {}
        todo = [table]
        while todo:
            child = todo.pop()
            # each table once: foreign keys may go round in a circle
            if child not in keys:
                keys[child] = list(cascading.get(child, ()))
                for key in keys[child]:
                    key.refuse_elsewhere(schema)
                    todo.append(key.parent)
        return cls(table, keys)

    def sources(self) -> list[str]:
        """Return the tables from which a cascade can come."""
        return sorted({key.parent for keys in self.keys.values() for key in keys})

    def is_circular(self, table: str) -> bool:
        """Return whether rows of a table go with other rows of it."""
        return any(key.parent == table for key in self.keys[table])

    def referred(self, table: str, among: Container[str]) -> list[str]:
        """Return the columns of a table that foreign keys of some tables refer to."""
        keys = (key for child, keys in self.keys.items() if child in among for key in keys)
        names = (name for key in keys if key.parent == table for name in key.referred)
        return list(dict.fromkeys(names))

    def order(self, source: str) -> list[str]:
        """Return the tables that a cascade from a source reaches, parents first.

        Raises:
            ConfigurationError: they go round in a circle.
        """
        reached = self._reached(source)
        # without a table's keys to itself, which a query can follow by recursion in any order
        parents = {
            child: {key.parent for key in self.keys[child]} & reached - {child} for child in reached
        }
        try:
            return list(TopologicalSorter(parents).static_order())
        except CycleError as err:
            raise ConfigurationError(
                f"foreign keys with ON DELETE CASCADE go round in a circle over the tables "
                f"{sorted(set(err.args[1]))}, where no trigger can look ahead; take ON DELETE "
                "CASCADE from one, or declare __datastore_folder__ on the owning classes instead"
            ) from err

    def _reached(self, source: str) -> set[str]:
        reached: set[str] = set()
        more = {source}
        while not more <= reached:
            reached |= more
            more = {
                child
                for child, keys in self.keys.items()
                if any(key.parent in reached for key in keys)
            }
        return reached


def _cascading_keys(connection: Connection, schema: str | None) -> Mapping[str, list[CascadingKey]]:
    """Return the cascading foreign keys of a schema, by the table that has them."""
    found: Mapping[tuple[str | None, str], Any] = inspect(connection).get_multi_foreign_keys(
        schema=schema
    )
    return {
        table: [
            CascadingKey(
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
