"""Values in rows that a database has cut off: MySQL and MariaDB do so outside their strict mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqla_datastore.dml.dialects import cuts_text_off
from sqla_datastore.dml.row_queries import lengths_in_rows
from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage.in_row import IN_ROW
from sqla_datastore.storage.urls import ObjectName, row_url

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from sqla_datastore.dml.effects import Effects
    from sqla_datastore.schema.columns import DeclaredTable


class CutOffValues:
    """Knows how long the values are that one transaction has put into rows."""

    def __init__(self) -> None:
        self._lengths: dict[DeclaredTable, dict[str, int]] = {}

    def note(self, effects: Effects) -> None:
        """Note the values that a statement has put into rows."""
        for each in effects.reserved:
            if each.is_in_row:
                lengths = self._lengths.setdefault(effects.declared, {})
                lengths[row_url(each.names[0])] = len(str(each.url))

    def refuse(self, connection: Connection | None, live: Iterable[ObjectName]) -> None:
        """Ask whether rows hold these values whole. Called before COMMIT.

        Raises:
            StorageError: the database has cut one off.
        """
        if not self._lengths or connection is None or not cuts_text_off(connection):
            return
        asked = {row_url(name) for name in live if name.storage is IN_ROW}
        for declared, lengths in self._lengths.items():
            expected = {head: length for head, length in lengths.items() if head in asked}
            for column, head, length in lengths_in_rows(connection, declared, list(expected)):
                if length < expected[head]:
                    raise StorageError(
                        f"{declared.table.name}.{column} has cut a value off at {length} of "
                        f"{expected[head]} characters; make it as long as its type says, by a "
                        "migration (alembic revision --autogenerate), and set sql_mode to "
                        "STRICT_TRANS_TABLES",
                        url=head,
                    )
