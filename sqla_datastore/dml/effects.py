"""What one statement does to objects, once it has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.dml.row_queries import Row
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredTable
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectName

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class Upsert(Protocol):
    """The rows that an INSERT may meet."""

    def settle(self, effects: Effects, connection: Connection) -> None:
        """Find out, once it ran, which rows got what."""

    def drop_all(self, effects: Effects) -> None:
        """Note that all rows that it may meet may have lost what they held."""


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
        unproven: dropped names outside the folder that the row's attributes render. Another row may
            hold them too, as a URL can be copied; True where only one of the same table can.
        destinations: the primary key of the row that each reserved name is for, where it is known.
        folders: folders to be emptied.
        upsert: the rows that an INSERT may meet, or None.
        found_rows: how many rows were found for an UPDATE or DELETE, None for an INSERT, whose row
            count is not compared.
        values_without_row: how many sets of parameters of an UPDATE found no row.
        is_certain: whether rows hold what is reserved, and lost what is dropped, once the statement
            has run. Otherwise the database is asked before COMMIT.
        is_by_key: whether the criteria compare the whole primary key. Otherwise a value that got
            into another row is refused before COMMIT.
    """

    declared: DeclaredTable
    reserved: list[Reservation] = field(default_factory=list)
    dropped: list[ObjectName] = field(default_factory=list)
    previous: dict[ObjectName, tuple[Any, ...]] = field(default_factory=dict)
    unproven: dict[ObjectName, bool] = field(default_factory=dict)
    destinations: dict[ObjectName, tuple[Any, ...]] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)
    upsert: Upsert | None = None
    found_rows: int | None = None
    values_without_row: int = 0
    is_certain: bool = True
    is_by_key: bool = True

    @property
    def names(self) -> list[ObjectName]:
        """The names of all objects that the statement will put into rows."""
        return [name for reserved in self.reserved for name in reserved.names]

    def reserve(self, reservation: Reservation, key: tuple[Any, ...] | None) -> None:
        """Note a value with its URL, and the key of the row that it is for."""
        self.reserved.append(reservation)
        if key is not None:
            self.destinations.update(dict.fromkeys(reservation.names, key))

    def find(self, rows: Sequence[Row]) -> None:
        """Note the rows that one set of parameters of an UPDATE or DELETE matches."""
        self.found_rows = (self.found_rows or 0) + len(rows)

    def drop(self, row: Row, names: Sequence[ObjectName]) -> None:
        """Note what a row held and will not hold."""
        self.dropped += names
        # without a key the row cannot be asked for; `ReferringRows` then looks for the URL
        if self.declared.table.primary_key:
            self.previous.update(dict.fromkeys(names, row.key(self.declared.table)))

    def settle(self, connection: Connection, rowcount: int) -> None:
        """Compare what was expected with what the statement did. Called right after it ran.

        Args:
            connection: the connection that ran it; an upsert asks it which rows got what.
            rowcount: the driver's count of matched rows, -1 where it does not know.

        Raises:
            RefusedStatementError: it put one value into several rows, which nobody could foresee.
        """
        if self.upsert is not None:
            self.upsert.settle(self, connection)
        elif self.found_rows is not None:
            self._compare(rowcount, self.found_rows)

    def _compare(self, rowcount: int, found_rows: int) -> None:
        # a value that found no row may be in one all the same: under READ COMMITTED another
        # transaction's row can appear between the SELECT and the UPDATE
        expected = found_rows + self.values_without_row
        if rowcount == found_rows == 0:
            self.discard(self.reserved)
        elif rowcount != expected:
            self.is_certain = False
        # two rows with one URL: before COMMIT a row is asked for by its key, so the first one that
        # replaces the value would take the other's object
        if self.reserved and rowcount > expected:
            raise RefusedStatementError(
                f"rows of {self.declared.table.name!r} appeared while they were updated, and one "
                "value can be only one row's; roll the transaction back and try again"
            )

    def discard(self, unused: Sequence[Reservation]) -> None:
        """Note values that no row got; they are not written.

        One that is written already, for a statement that was a transaction of its own, has to go
        again and its value to be put back. `prepare` does so with what is uncertain.
        """
        # by identity: a Reservation is a str, and all of them have the same text
        waiting = {id(each) for each in unused if each.plan is not None}
        self.is_certain = self.is_certain and len(waiting) == len(unused)
        self.reserved = [each for each in self.reserved if id(each) not in waiting]

    def fail(self) -> None:
        """Note that the statement failed: a database may keep what its first rows got."""
        self.is_certain = False
        if self.upsert is not None:
            self.upsert.drop_all(self)
