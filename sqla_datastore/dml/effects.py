"""What one statement does to objects, once it has run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqla_datastore.dml.parameters import Reservation
from sqla_datastore.dml.row_queries import Row
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredTable
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import Name


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is to be emptied."""

    storage: Storage
    path: str


@dataclass
class Effects:
    """What one statement does to objects, once it has run.

    Attributes:
        declared: the table.
        reserved: values with a URL that the statement will put into rows.
        dropped: names that rows held and will not hold.
        previous: the primary key of the row that held each dropped name, where the table has one.
        given: the primary key of the row that each reserved name is for, where it is known.
        folders: folders to be emptied.
        found_rows: how many rows were found for an UPDATE, None where that says nothing.
        lone_values: how many values of it have no row that was found.
        is_certain: whether rows hold what is reserved once the statement has run. Otherwise the
            database is asked before COMMIT.
        is_by_key: whether the statement can find no other row than was found before. A value that
            got into another one is refused before COMMIT.
    """

    declared: DeclaredTable
    reserved: list[Reservation] = field(default_factory=list)
    dropped: list[Name] = field(default_factory=list)
    previous: dict[Name, tuple[Any, ...]] = field(default_factory=dict)
    given: dict[Name, tuple[Any, ...]] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)
    found_rows: int | None = None
    lone_values: int = 0
    is_certain: bool = True
    is_by_key: bool = True

    @property
    def names(self) -> list[Name]:
        """The names of all objects that the statement will put into rows."""
        return [name for reserved in self.reserved for name in reserved.names]

    def reserve(self, reservation: Reservation, key: tuple[Any, ...] | None) -> None:
        """Note a value with its URL, and the key of the row that it is for."""
        self.reserved.append(reservation)
        if key is not None:
            self.given.update(dict.fromkeys(reservation.names, key))

    def drop(self, row: Row, names: Iterable[Name]) -> None:
        """Note what a row held and will not hold."""
        names = list(names)
        self.dropped += names
        if self.declared.table.primary_key:
            self.previous.update(dict.fromkeys(names, row.key(self.declared.table)))

    def ran(self, rowcount: int) -> None:
        """Compare what was expected with what the statement did. Called right after it ran.

        Args:
            rowcount: the driver's count of matched rows, -1 where it does not know.

        Raises:
            RefusedStatementError: it put one value into several rows, which nobody could foresee.
        """
        if self.found_rows is None:
            return
        if rowcount == self.found_rows == 0:
            self.reserved.clear()
        elif rowcount != self.found_rows + self.lone_values:
            self.is_certain = False
        if self.reserved and rowcount > self.found_rows + self.lone_values:
            raise RefusedStatementError(
                f"rows of {self.declared.table.name!r} appeared while they were updated, and one "
                "value can be only one row's; roll the transaction back and try again"
            )
