"""Carrying out durable removals: the work of `drain`, and of a look after a commit."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, not_, select, true

from sqla_datastore.dml.rows import batch_size, batched, held_urls, in_schemas
from sqla_datastore.exceptions import RefusedURLError, StorageError
from sqla_datastore.schema.declarations import present
from sqla_datastore.storage import base_exists
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.protocol import is_there
from sqla_datastore.storage.urls import OBJECT_NAME, ObjectURL

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from sqla_datastore.removals.table import Noted, Removals
    from sqla_datastore.schema.folders import Schemas
    from sqla_datastore.storage.names import Name
    from sqla_datastore.storage.protocol import Storage

__all__ = ["Drainage", "look", "strike_off"]

logger = logging.getLogger("sqla_datastore")

LOOK_SECONDS = 60.0
"""A process looks once in this time."""

LOOK_ROWS = 1_000
"""And carries out so many removals at most."""


@dataclass
class Drainage:
    """Removals while they are carried out.

    Args:
        removals: what is to be carried out.
        schemas: a ``schema_translate_map``.
        keep_seconds: how old they have to be.
        last: the id after which to begin.

    Attributes:
        carried_out: how many were carried out and struck off.
        referenced: how many were struck off because a row holds the URL again.
        foreign: how many were struck off because no row of this library's can hold the URL.
        failures: what the storages said where they could not remove.
        is_done: whether the last batch reached the end.
    """

    removals: Removals
    schemas: Schemas
    keep_seconds: float
    last: int = -1
    carried_out: int = 0
    referenced: int = 0
    foreign: int = 0
    failures: list[str] = field(default_factory=list)
    is_done: bool = False

    def batch(self, connection: Connection, size: int) -> int:
        """Carry out and strike off some removals; the caller commits.

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
        found = self._due(connection, size)
        self.is_done = len(found) < size
        if not found or _reads_uncommitted(connection):
            return 0
        self.last = found[-1].id
        columns = self.removals.columns()
        # a database may compare without regard to case
        due = [row for row in found if row.source in columns]
        there = present(connection, self.removals.table.metadata, self.schemas)
        asked = [column for declared in there for column in declared.plain_columns]
        urls = list(dict.fromkeys(row.url for row in due))
        held = held_urls(connection, asked, urls, schemas=self.schemas)
        doomed: dict[str, dict[str, list[str]]] = defaultdict(dict)
        for row in due:
            storage = storage_for(columns[row.source].type.url, connection.dialect)
            family = [] if row.url in held else _family(row.url, storage)
            self.referenced += row.url in held
            self.foreign += row.url not in held and not family
            if family:
                doomed[row.source][row.url] = family
        left: set[str] = set()
        for source, families in doomed.items():
            storage = storage_for(columns[source].type.url, connection.dialect)
            left |= self._remove(storage, families)
        gone = {url for families in doomed.values() for url in families} - left
        self.carried_out += sum(row.url in gone for row in due)
        self._strike(connection, [row.id for row in due if row.url not in left])
        return len(found)

    def _due(self, connection: Connection, size: int) -> list[Any]:
        table = self.removals.table
        query = (
            select(table.c.id, table.c.url, table.c.source)
            .where(table.c.id > self.last, self._is_own(), self._is_due())
            .order_by(table.c.id)
            .limit(size)
        )
        return list(connection.execute(query, execution_options=in_schemas(self.schemas)))

    def _is_own(self) -> ColumnElement[bool]:
        """Return the condition: other models of the same database use the table, too."""
        return self.removals.table.c.source.in_(self.removals.columns())

    def _is_due(self) -> ColumnElement[bool]:
        """Return the condition; without a period the clocks of hosts do not matter."""
        if not self.keep_seconds:
            return true()
        return self.removals.table.c.superseded_at <= int(time.time() - self.keep_seconds)

    def _remove(self, storage: Storage, families: dict[str, list[str]]) -> set[str]:
        """Remove objects; return the URLs of values that are still there."""
        if not base_exists(storage):
            self.failures.append(f"the storage's base {storage.url!r} does not exist; mount it")
            return set(families)
        try:
            storage.remove([path for family in families.values() for path in family])
        except StorageError as err:
            self.failures.append(str(err))
            return {
                url
                for url, family in families.items()
                if any(is_there(storage, path) for path in family)
            }
        return set()

    def _strike(self, connection: Connection, ids: list[int]) -> None:
        column = self.removals.table.c.id
        for batch in batched(ids, batch_size(connection.dialect)):
            done = delete(self.removals.table).where(column.in_(batch))
            connection.execute(done, execution_options=in_schemas(self.schemas))

    def due(self, connection: Connection) -> int:
        """Return how many removals are due."""
        return self._count(connection, self._is_own(), self._is_due())

    def waiting(self, connection: Connection) -> int:
        """Return how many removals are younger than `keep_seconds`."""
        return self._count(connection, self._is_own(), not_(self._is_due()))

    def others(self, connection: Connection) -> int:
        """Return how many removals are of other models."""
        return self._count(connection, not_(self._is_own()))

    def _count(self, connection: Connection, *conditions: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(self.removals.table).where(*conditions)
        return connection.scalar(query, execution_options=in_schemas(self.schemas)) or 0


def _family(url: str, storage: Storage) -> list[str]:
    """Return the objects that a row's URL stands for; none where it is not of this library."""
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return []
    ours = parsed.scheme == storage.scheme and OBJECT_NAME.fullmatch(parsed.name)
    return [member.path for member in parsed.family()] if ours else []


def _reads_uncommitted(connection: Connection) -> bool:
    """Whether what is read may be rolled back yet: nothing may be removed because of that."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        return False
    return connection.get_isolation_level() == "READ UNCOMMITTED"


# -- after a commit -------------------------------------------------------------------------------


def strike_off(
    connection: Connection, commit: Callable[[], None], noted: Iterable[Noted], removed: set[Name]
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
    removed = {name for name in removed if base_exists(name.storage)}  # type: ignore[arg-type]
    todo = [(each, urls) for each in noted if (urls := each.urls(removed))]
    if not todo:
        return
    with _without_waiting(connection):
        for each, urls in todo:
            each.removals.strike(connection, urls, each.schemas)
        commit()


def look(
    connection: Connection, commit: Callable[[], None], removals: Removals, schemas: Schemas
) -> None:
    """Carry out what others left or what is due now, if it is time. Called after COMMIT; may fail.

    Removes objects, blocks, and logs what a storage refuses.

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
    when, last = looks.get(key, (-math.inf, -1))
    if now - when < LOOK_SECONDS:
        return
    looks[key] = now, last
    drainage = Drainage(removals, schemas, removals.keep_seconds, last)
    with _without_waiting(connection):
        drainage.batch(connection, LOOK_ROWS)
        commit()
    # what could not be removed must not be in the way of what comes after it
    looks[key] = now, -1 if drainage.is_done else drainage.last
    for failure in drainage.failures:
        logger.error("could not remove what earlier transactions superseded: %s", failure)


@contextmanager
def _without_waiting(connection: Connection) -> Iterator[None]:
    """Give up at once where another process writes to an SQLite file: there is no hurry."""
    if connection.dialect.name != "sqlite":
        yield
        return
    before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {before}")
