"""Transactions that overlap on a database without row locks, of which only this process knows.

Row locks keep two writers of a row apart, and a child from a parent that is being deleted. Without
them a transaction that began before a commit can bring back what that commit has superseded. DuckDB
makes a DELETE and an INSERT of an UPDATE of an indexed column ("Indexes", constraint checking in
UPDATE statements), with what the row held in the snapshot, and notices no conflict with an UPDATE
in place (duckdb/duckdb#17223). Nor does a foreign key keep a parent that another one deletes.

But only one process writes to such a database. So an object goes in this order: a commit after
which no row that it could see refers to it; then a moment in which no other transaction of the
process is open, so that what begins later cannot see it either; then the rows are asked, in a new
snapshot. Where another one is open the object stays, for `gc`.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqla_datastore.dml.dialects import has_row_locks

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

# weakly: with a connection that nobody has any more its transaction ends
_OPEN: WeakSet[Any] = WeakSet()
_LOCK = Lock()


def begun(raw: Any) -> None:
    """Note that a driver's connection is about to begin a transaction."""
    with _LOCK:
        _OPEN.add(raw)


def ended(raw: Any) -> None:
    """Note that the transaction of a driver's connection is over."""
    with _LOCK:
        _OPEN.discard(raw)


def others_are_open(dialect: Dialect, own: Connection | None = None) -> bool:
    """Return whether another transaction may bring back what rows have lost.

    Of any database of the kind: which of them a connection has open is not known.

    Args:
        dialect: the kind of database; one with row locks has no such transactions.
        own: a connection whose transaction does not count.
    """
    if has_row_locks(dialect):
        return False
    mine = None if own is None else own.connection.dbapi_connection
    with _LOCK:
        return any(raw is not mine for raw in _OPEN)
