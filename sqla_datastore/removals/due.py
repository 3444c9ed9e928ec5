"""Carrying out durable removals: in batches for `drain`, and by a look after a commit."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, not_, select, true

from sqla_datastore.dml.dialects import (
    batch_size,
    has_one_writer,
    reads_uncommitted_rows,
    statement_against_waiting,
)
from sqla_datastore.dml.row_queries import batched, held_urls, in_schemas
from sqla_datastore.exceptions import StorageError
from sqla_datastore.printable import printable
from sqla_datastore.schema.declarations import present
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.off_loop import off_loop
from sqla_datastore.storage.protocol import those_there
from sqla_datastore.storage.urls import names_behind

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from sqla_datastore.removals.table import Noted, Removals
    from sqla_datastore.schema.folders import Schemas
    from sqla_datastore.storage.protocol import Storage
    from sqla_datastore.storage.urls import ObjectName

logger = logging.getLogger("sqla_datastore")

LOOK_SECONDS = 60.0
"""A process looks at most once in this time."""

LOOK_ROWS = 1_000
"""A look carries out at most so many removals."""


@dataclass
class DueRemovals:
    """Removals that are due, carried out batch by batch.

    Args:
        removals: the table.
        schemas: a ``schema_translate_map``.
        keep_seconds: how old a removal has to be.
        last_id: the id of a removal; only later ones are looked at.

    Attributes:
        carried_out: how many were carried out and struck off.
        referenced: how many were struck off because a row holds the URL again.
        foreign: how many were struck off because they name no object of this library.
        failures: what the storages said where they could not remove.
        is_done: whether the last batch reached the end.
    """

    removals: Removals
    schemas: Schemas
    keep_seconds: float
    last_id: int = -1
    carried_out: int = 0
    referenced: int = 0
    foreign: int = 0
    failures: list[str] = field(default_factory=list)
    is_done: bool = False

    def carry_out(self, connection: Connection, size: int) -> int:
        """Carry out and strike off the next removals; the caller commits.

        Asks the database which URLs rows hold, and removes the other objects from the storages.
        Blocks. What a storage fails to remove is among the failures, and stays.

        Args:
            connection: may be in a transaction.
            size: how many to take.

        Returns:
            How many it looked at.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database failed.
        """
        found = self._select(connection, size)
        self.is_done = len(found) < size
        if not found or reads_uncommitted_rows(connection):
            return 0
        self.last_id = found[-1].id
        columns = self.removals.columns()
        # the database may have compared the source without regard to case
        due = [row for row in found if row.source in columns]
        left = self._remove_unheld(connection, due)
        self._strike(connection, [row.id for row in due if row.url not in left])
        return len(found)

    def _select(self, connection: Connection, size: int) -> list[Any]:
        table = self.removals.table
        # without a lock: if two processes take the same ones, what is gone already is no error
        query = (
            select(table.c.id, table.c.url, table.c.source)
            .where(table.c.id > self.last_id, self._is_own(), self._is_due())
            .order_by(table.c.id)
            .limit(size)
        )
        return list(connection.execute(query, execution_options=in_schemas(self.schemas)))

    def _is_own(self) -> ColumnElement[bool]:
        """Return the condition that a removal is of these models; others may share the table."""
        return self.removals.table.c.source.in_(self.removals.columns())

    def _is_due(self) -> ColumnElement[bool]:
        """Return the condition; without a period the clocks of hosts do not matter."""
        if not self.keep_seconds:
            return true()
        return self.removals.table.c.superseded_at <= int(time.time() - self.keep_seconds)

    def _remove_unheld(self, connection: Connection, due: Sequence[Any]) -> set[str]:
        """Remove the objects of URLs that no row holds; return the URLs that could not go."""
        columns = self.removals.columns()
        held = self._held(connection, [row.url for row in due])
        storages: dict[str, Storage] = {}
        families: dict[str, dict[str, list[str]]] = defaultdict(dict)
        for row in due:
            if row.url in held:
                self.referenced += 1
                continue
            # several columns can hold one text; the source tells in which storage the object lies
            storage = storage_for(columns[row.source].type.url, connection.dialect)
            if family := [name.path for name in names_behind(storage, row.url)]:
                storages[row.source] = storage
                families[row.source][row.url] = family
            else:
                self.foreign += 1
        left: set[str] = set()
        for source, storage in storages.items():
            left |= off_loop(partial(self._remove, storage, families[source]))
        gone = {url for of_source in families.values() for url in of_source} - left
        # one URL may stand there twice, written down by a trigger and by a transaction
        self.carried_out += sum(row.url in gone for row in due)
        return left

    def _held(self, connection: Connection, urls: list[str]) -> set[str]:
        """Return those of the URLs that rows hold, whatever the column."""
        tables = present(connection, self.removals.table.metadata, self.schemas)
        columns = [column for declared in tables for column in declared.plain_columns]
        return held_urls(connection, columns, list(dict.fromkeys(urls)), schemas=self.schemas)

    def _remove(self, storage: Storage, families: dict[str, list[str]]) -> set[str]:
        """Remove the objects of URLs from a storage; return the URLs that could not go."""
        # an unmounted base looks empty: removing would succeed, and strike off what is still there
        if not storage.exists():
            self.failures.append(f"the storage's base {storage.url!r} does not exist; mount it")
            return set(families)
        try:
            storage.remove([path for family in families.values() for path in family])
        except StorageError as err:
            self.failures.append(err.message)
            # remove() does not say which of them it could not remove
            there = those_there(storage, (path for family in families.values() for path in family))
            return {url for url, family in families.items() if not there.isdisjoint(family)}
        return set()

    def _strike(self, connection: Connection, ids: list[int]) -> None:
        column = self.removals.table.c.id
        # by id: nobody has asked yet about a removal of the same URL that was written down since
        for batch in batched(ids, batch_size(connection.dialect)):
            done = delete(self.removals.table).where(column.in_(batch))
            connection.execute(done, execution_options=in_schemas(self.schemas))

    def count_due(self, connection: Connection) -> int:
        """Return how many removals are due."""
        return self._count(connection, self._is_own(), self._is_due())

    def count_waiting(self, connection: Connection) -> int:
        """Return how many removals are younger than `keep_seconds`."""
        return self._count(connection, self._is_own(), not_(self._is_due()))

    def count_others(self, connection: Connection) -> int:
        """Return how many removals are of other models."""
        return self._count(connection, not_(self._is_own()))

    def _count(self, connection: Connection, *conditions: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(self.removals.table).where(*conditions)
        return connection.scalar(query, execution_options=in_schemas(self.schemas)) or 0


# -- after a commit --------------------------------------------------------------------------------


def strike_off(
    connection: Connection,
    commit: Callable[[], None],
    noted: Iterable[Noted],
    removed: set[ObjectName],
) -> None:
    """Strike off what a committed transaction has removed. Called after COMMIT; may fail.

    Args:
        connection: the transaction's, which has none now.
        commit: commits what was struck off.
        noted: what the transaction wrote down.
        removed: what it has removed.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database failed. What is left is carried out again.
    """
    # a base that is not mounted has removed nothing, even where it raised nothing
    storages = {name.storage for name in removed}
    there = off_loop(lambda: {storage for storage in storages if storage.exists()})
    removed = {name for name in removed if name.storage in there}
    struck = [(each, urls) for each in noted if (urls := each.urls(removed))]
    if not struck:
        return
    with _without_waiting(connection):
        for each, urls in struck:
            each.removals.strike(connection, urls, each.schemas)
        commit()


def look(
    connection: Connection, commit: Callable[[], None], removals: Removals, schemas: Schemas
) -> None:
    """Carry out what is due, once a minute. Called after COMMIT; may fail.

    What is due was left by others, or had to be kept for a while. Removes objects, blocks, and logs
    what a storage refuses.

    Args:
        connection: has no transaction.
        commit: commits what was struck off.
        removals: where to look.
        schemas: a ``schema_translate_map``.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    looks = removals.looks.setdefault(connection.dialect, {})
    key, now = frozenset(schemas.items()), time.monotonic()
    when, last_id = looks.get(key, (-math.inf, -1))
    if now - when < LOOK_SECONDS:
        return
    # before it is tried: a look that fails is not to be repeated at every commit
    looks[key] = now, last_id
    due = DueRemovals(removals, schemas, removals.keep_seconds, last_id)
    with _without_waiting(connection):
        due.carry_out(connection, LOOK_ROWS)
        commit()
    # the next look goes on behind this one: what cannot be removed must not block what follows
    looks[key] = now, -1 if due.is_done else due.last_id
    for failure in due.failures:
        logger.error(
            "could not remove what earlier transactions superseded: %s", printable(failure)
        )


@contextmanager
def _without_waiting(connection: Connection) -> Iterator[None]:
    """Fail at once where another process writes to an SQLite file: the next look tries again."""
    statement = statement_against_waiting(connection.dialect)
    if statement is None or not has_one_writer(connection.dialect):
        yield
        return
    before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    connection.exec_driver_sql(statement)
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {before}")
