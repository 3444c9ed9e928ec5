"""Durable removals: what a transaction will remove is written down in the same transaction.

`enable_removals` adds a small table to the application's MetaData. What a commit superseded is in
it until it is removed, so a crash or a failed removal leaves no orphan: the next process, or
``sqla-datastore drain``, goes on. Triggers can put in what no statement of SQLAlchemy's shows.

The table holds the URLs of rows that hold them no more. Names are used only once, so what is in it
stays superseded; the database is asked all the same before anything is removed that another
transaction wrote down, since a trigger also sees a URL that is on its way to another row.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    inspect,
    not_,
    select,
    true,
)

from sqla_datastore.columns import declared, present
from sqla_datastore.exceptions import ConfigurationError, RefusedURLError, StorageError
from sqla_datastore.findings import DrainReport
from sqla_datastore.options import storage_for
from sqla_datastore.rows import batch_size, batched, held_urls
from sqla_datastore.urls import OBJECT_NAME, URL_LENGTH, ObjectURL

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection, Dialect

    from sqla_datastore.folders import Schemas
    from sqla_datastore.storage.protocol import Storage

__all__ = ["TABLE_NAME", "Drainage", "Removals", "check_seconds", "enable_removals", "removals_of"]

TABLE_NAME = "sqla_datastore_removals"
_INDEXED = 255
_LOOK_SECONDS = 60.0
_LOOK_ROWS = 1_000

# when a process last looked what others left, by its engines' dialects
_looked: weakref.WeakKeyDictionary[Dialect, float] = weakref.WeakKeyDictionary()


def enable_removals(metadata: MetaData, *, keep_seconds: float = 0.0) -> Table:
    """Add the table of durable removals to an application's MetaData.

    Call it where the models are defined, then create the table (``metadata.create_all``, or
    Alembic's autogenerate). From then on every transaction that supersedes objects writes their
    URLs into it before COMMIT, and strikes them off once they are removed.

    Args:
        metadata: the MetaData of the mapped classes, for example ``Base.metadata``.
        keep_seconds: how long superseded objects stay, for readers in older snapshots. With 0 they
            go right after COMMIT. Otherwise they are removed when a later transaction of any
            process commits, or by ``sqla-datastore drain``.

    Returns:
        The table ``sqla_datastore_removals``; the same one when called again.

    Raises:
        ConfigurationError: `keep_seconds` is no number from 0, or was another one before.
    """
    check_seconds(keep_seconds)
    found = removals_of(metadata)
    if found is None:
        found = metadata.info[TABLE_NAME] = Removals(_table(metadata), keep_seconds)
    elif found.keep_seconds != keep_seconds:
        raise ConfigurationError(
            f"removals are enabled with keep_seconds={found.keep_seconds:g} already; enable them "
            "once, where the models are defined"
        )
    return found.table


def check_seconds(keep_seconds: float) -> None:
    """Refuse what is no period of time.

    Raises:
        ConfigurationError: it is no number from 0.
    """
    if not (0 <= keep_seconds < math.inf):
        raise ConfigurationError(f"keep_seconds is a number from 0, not {keep_seconds!r}")


def removals_of(metadata: MetaData) -> Removals | None:
    """Return the durable removals of a MetaData, or None where they are not enabled."""
    found: Removals | None = metadata.info.get(TABLE_NAME)
    return found if found is not None and found.table.key in metadata.tables else None


def _table(metadata: MetaData) -> Table:
    table = Table(
        TABLE_NAME,
        metadata,
        Column(
            "id",
            BigInteger().with_variant(Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        Column("url", String(URL_LENGTH), nullable=False),
        Column("superseded_at", BigInteger, nullable=False, comment="seconds since the epoch, UTC"),
    )
    # MySQL indexes 3,072 bytes at most; names differ long before that
    Index(f"ix_{TABLE_NAME}_url", table.c.url, mysql_length=_INDEXED)
    return table


@dataclass(frozen=True)
class Removals:
    """The table of durable removals, and how long what is in it stays.

    Attributes:
        table: the table.
        keep_seconds: how old a removal has to be before it is carried out.
    """

    table: Table
    keep_seconds: float

    def storages(self, dialect: Dialect) -> list[Storage]:
        """Return the storages of the MetaData's columns in a database."""
        columns = (column for s in declared(self.table.metadata) for column in s.columns)
        storages = (storage_for(column.type.url, dialect) for column in columns)
        return list({id(storage): storage for storage in storages}.values())

    def is_there(self, connection: Connection, schemas: Schemas) -> bool:
        """Return whether the database has the table."""
        schema = schemas.get(self.table.schema, self.table.schema)
        return inspect(connection).has_table(self.table.name, schema=schema)

    def note(self, connection: Connection, urls: Iterable[str], schemas: Schemas) -> None:
        """Write down what a transaction supersedes. Called in it, right before COMMIT; may fail.

        Args:
            connection: the transaction's.
            urls: URLs that rows held.
            schemas: a ``schema_translate_map``.
        """
        now = int(time.time())
        rows = [{"url": url, "superseded_at": now} for url in urls]
        connection.execute(insert(self.table), rows, execution_options=_options(schemas))

    def strike(self, connection: Connection, urls: Sequence[str], schemas: Schemas) -> None:
        """Strike off what was removed, whoever wrote it down. Called after COMMIT."""
        column = self.table.c.url
        for batch in batched(urls, batch_size(connection.dialect)):
            done = delete(self.table).where(column.in_(batch))
            connection.execute(done, execution_options=_options(schemas))

    def look(
        self, connection: Connection, commit: Callable[[], None], schemas: Schemas
    ) -> Drainage | None:
        """Carry out what others left, or what is due now, at most once a minute and process.

        Args:
            connection: has no transaction.
            commit: commits what was struck off.
            schemas: a ``schema_translate_map``.

        Returns:
            What was done, or None where it was not time yet.
        """
        dialect, now = connection.dialect, time.monotonic()
        if now - _looked.get(dialect, -math.inf) < _LOOK_SECONDS:
            return None
        _looked[dialect] = now
        drainage = Drainage(self, self.keep_seconds, schemas)
        drainage.batch(connection, _LOOK_ROWS)
        commit()
        if drainage.is_busy:
            # there is more to do than once a minute will do
            _looked.pop(dialect, None)
        return drainage


def _options(schemas: Schemas) -> dict[str, Any]:
    return {"schema_translate_map": schemas} if schemas else {}


@dataclass
class Drainage:
    """Removals while they are carried out.

    Args:
        removals: what is to be carried out.
        keep_seconds: how old they have to be.
        schemas: a ``schema_translate_map``.

    Attributes:
        carried_out: how many were carried out and struck off.
        referenced: how many were struck off because a row holds the URL again.
        foreign: how many were struck off because no row of this library's can hold the URL.
        failures: what the storage said where it could not remove.
        is_busy: whether the last batch was full.
    """

    removals: Removals
    keep_seconds: float
    schemas: Schemas
    carried_out: int = 0
    referenced: int = 0
    foreign: int = 0
    failures: list[str] = field(default_factory=list)
    is_busy: bool = True
    _last: int = -1

    def batch(self, connection: Connection, size: int) -> int:
        """Carry out and strike off some removals; the caller commits.

        Returns:
            How many it looked at.

        Raises:
            ConfigurationError: a declared table is missing, so that nobody can tell what its rows
                hold.
        """
        due = self._due(connection, size)
        self.is_busy = len(due) == size
        if not due:
            return 0
        self._last = due[-1].id
        self._refuse_missing(connection)
        urls = list(dict.fromkeys(row.url for row in due))
        held = held_urls(connection, self._columns(), urls, schemas=self.schemas)
        families = {url: _family(url) for url in urls if url not in held}
        kept = self._remove(connection, [f for f in families.values() if f])
        done = [row for row in due if row.url not in kept]
        self.referenced += sum(row.url in held for row in done)
        self.foreign += sum(not families.get(row.url, True) for row in done)
        self.carried_out += sum(bool(families.get(row.url)) for row in done)
        self._strike(connection, [row.id for row in done])
        return len(due)

    def _due(self, connection: Connection, size: int) -> list[Any]:
        table = self.removals.table
        query = (
            select(table.c.id, table.c.url)
            .where(table.c.id > self._last, self._is_due())
            .order_by(table.c.id)
            .limit(size)
        )
        return list(connection.execute(query, execution_options=_options(self.schemas)))

    def _is_due(self) -> ColumnElement[bool]:
        """Return the condition; without a period the clocks of hosts do not matter."""
        if not self.keep_seconds:
            return true()
        return self.removals.table.c.superseded_at <= int(time.time() - self.keep_seconds)

    def _columns(self) -> list[Column[Any]]:
        stores = declared(self.removals.table.metadata)
        return [column for store in stores for column in store.plain_columns]

    def _refuse_missing(self, connection: Connection) -> None:
        metadata = self.removals.table.metadata
        there = present(connection, metadata, self.schemas)
        missing = [s.table.fullname for s in declared(metadata) if s not in there]
        if missing:
            raise ConfigurationError(
                f"the database lacks the declared tables {', '.join(map(repr, missing))}; create "
                "them (metadata.create_all(engine), or alembic upgrade head)"
            )

    def _remove(self, connection: Connection, families: list[list[ObjectURL]]) -> set[str]:
        """Remove objects; return the URLs of those that a storage failed to remove."""
        failed: set[str] = set()
        for storage in self.removals.storages(connection.dialect):
            # names are used only once, so a storage that has not got them is not harmed
            own = [family for family in families if family[0].scheme == storage.scheme]
            try:
                storage.remove(url.path for family in own for url in family)
            except StorageError as err:
                self.failures.append(str(err))
                failed.update(str(family[0]) for family in own)
        return failed

    def _strike(self, connection: Connection, ids: list[int]) -> None:
        column = self.removals.table.c.id
        for batch in batched(ids, batch_size(connection.dialect)):
            done = delete(self.removals.table).where(column.in_(batch))
            connection.execute(done, execution_options=_options(self.schemas))

    def count(self, connection: Connection, *, due: bool) -> int:
        """Return how many removals there are: those that are due, or those that are not yet."""
        is_due = self._is_due()
        query = select(func.count()).select_from(self.removals.table)
        query = query.where(is_due if due else not_(is_due))
        return connection.scalar(query, execution_options=_options(self.schemas)) or 0

    def report(self, connection: Connection) -> DrainReport:
        """Return what was done, and how much is left that is not due."""
        return DrainReport(
            keep_seconds=self.keep_seconds,
            carried_out=self.carried_out,
            referenced=self.referenced,
            foreign=self.foreign,
            waiting=self.count(connection, due=False),
            failures=tuple(self.failures),
        )


def _family(url: str) -> list[ObjectURL]:
    """Return the objects that a row's URL stands for; none where it is not of this library."""
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return []
    return parsed.family() if OBJECT_NAME.fullmatch(parsed.name) else []
