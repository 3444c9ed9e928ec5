"""The table of removals: what a transaction will remove is written down in the same transaction.

`enable_removals` adds a small table to the application's MetaData. What a commit superseded is in
it until it is removed, so a crash or a failed removal leaves no orphan: the next process, or
``sqla-datastore drain``, goes on. Triggers add what no statement of SQLAlchemy's shows.

The table holds URLs that rows held once. An object's name is never used again, so its URL stays
superseded, with one exception: a trigger also notes a URL that moves from one row to another. So
the database is asked before anything is removed that another transaction wrote down.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
    inspect,
)

from sqla_datastore.dml.dialects import batch_size, refuse_removals
from sqla_datastore.dml.row_queries import batched, in_schemas
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.schema.columns import DeclaredColumn
from sqla_datastore.schema.declarations import declared_tables
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.urls import OBJECT_NAME, URL_LENGTH, ObjectName, row_url

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

    from sqla_datastore.schema.folders import Schemas

TABLE_NAME = "sqla_datastore_removals"
_INDEXED_CHARACTERS = 255

SchemaItems: TypeAlias = frozenset[tuple[str | None, str | None]]
"""The items of a ``schema_translate_map``, as something hashable."""


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
    """Refuse a period that is negative, infinite or no number.

    Raises:
        ConfigurationError: it is one of these.
    """
    if not (isinstance(keep_seconds, (int, float)) and 0 <= keep_seconds < math.inf):
        raise ConfigurationError(f"keep_seconds is a number from 0, not {keep_seconds!r}")


def removals_of(metadata: MetaData) -> Removals | None:
    """Return the durable removals of a MetaData, or None where they are not enabled."""
    found: Removals | None = metadata.info.get(TABLE_NAME)
    # MetaData.clear() takes the tables and leaves `info`
    return found if found is not None and found.table.key in metadata.tables else None


def _table(metadata: MetaData) -> Table:
    schema = metadata.schema
    reflected = metadata.tables.get(f"{schema}.{TABLE_NAME}" if schema else TABLE_NAME)
    if reflected is not None:
        # MetaData.reflect() came first, and knows nothing of the options below
        metadata.remove(reflected)
    table = Table(
        TABLE_NAME,
        metadata,
        # no Identity(): Alembic before 1.18 sees a difference in it on SQLite, again and again
        Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
        Column("url", String(URL_LENGTH), nullable=False),
        Column("source", String(255), nullable=False, comment="table.column that held the URL"),
        Column("superseded_at", BigInteger, nullable=False, comment="seconds since the epoch, UTC"),
        # two processes may strike off the same id at once: it must not become another removal's
        sqlite_autoincrement=True,
    )
    # MySQL indexes 3,072 bytes at most; names differ long before that
    Index(f"ix_{TABLE_NAME}_url", table.c.url, mysql_length=_INDEXED_CHARACTERS)
    return table


@dataclass(frozen=True, eq=False)
class Removals:
    """The table of durable removals, and how long what is in it stays.

    Attributes:
        table: the table.
        keep_seconds: how old a removal has to be before it is carried out.
        looks: when this process last looked for due removals, and the id of the last one that it
            saw, by the engine's dialect and the items of its ``schema_translate_map``.
    """

    table: Table
    keep_seconds: float
    looks: weakref.WeakKeyDictionary[Dialect, dict[SchemaItems, tuple[float, int]]] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def columns(self) -> dict[str, DeclaredColumn]:
        """Return the columns that may have held the URLs, by their label ``table.column``."""
        tables = declared_tables(self.table.metadata)
        return {column.label: column for declared in tables for column in declared.columns}

    def is_there(self, connection: Connection, schemas: Schemas) -> bool:
        """Return whether the database has the table. Asks it."""
        schema = schemas.get(self.table.schema, self.table.schema)
        return inspect(connection).has_table(self.table.name, schema=schema)

    def note(self, connection: Connection, urls: Mapping[str, str], schemas: Schemas) -> None:
        """Write down what a transaction supersedes. Called in it, right before COMMIT; may fail.

        Args:
            connection: the transaction's.
            urls: URLs that rows held, each with the ``table.column`` that held it.
            schemas: a ``schema_translate_map``.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database failed, or lacks the table.
        """
        now = int(time.time())
        rows = [
            {"url": url, "source": source, "superseded_at": now} for url, source in urls.items()
        ]
        try:
            connection.execute(insert(self.table), rows, execution_options=in_schemas(schemas))
        except Exception as err:
            err.add_note(
                f"The transaction writes what it will remove into {self.table.fullname!r}, see "
                "enable_removals(). Create the table where the database lacks it "
                "(metadata.create_all(engine), or alembic upgrade head), and give the role the "
                "rights to SELECT, INSERT and DELETE there."
            )
            raise

    def strike(self, connection: Connection, urls: Sequence[str], schemas: Schemas) -> None:
        """Delete the rows of removed URLs, whoever wrote them. Called after COMMIT; may fail.

        Args:
            connection: the caller commits.
            urls: what was removed.
            schemas: a ``schema_translate_map``.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database failed.
        """
        column = self.table.c.url
        for batch in batched(urls, batch_size(connection.dialect)):
            done = delete(self.table).where(column.in_(batch))
            connection.execute(done, execution_options=in_schemas(schemas))


# -- one transaction -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noted:
    """What a transaction wrote down in one table.

    Attributes:
        removals: the table.
        schemas: the ``schema_translate_map`` that it was written with.
        names: the objects.
    """

    removals: Removals
    schemas: Schemas
    names: list[ObjectName]

    def urls(self, removed: set[ObjectName]) -> list[str]:
        """Return the URLs that can be struck off: those of which all objects are removed."""
        left = {row_url(name) for name in self.names if name not in removed}
        urls = dict.fromkeys(row_url(name) for name in self.names)
        return [url for url in urls if url not in left]


def note_removals(
    connection: Connection | None,
    dialect: Dialect,
    metadatas: Iterable[tuple[MetaData, SchemaItems]],
    names: Iterable[ObjectName],
) -> list[Noted]:
    """Write down what will be removed, where that is enabled. Called before COMMIT; may fail.

    Args:
        connection: the transaction's. Without one nothing is written: objects that have to be kept
            for a while are then left to garbage collection.
        dialect: its dialect.
        metadatas: those that the transaction touched.
        names: the objects that will be removed.

    Returns:
        What belongs to each table of removals.

    Raises:
        ConfigurationError: removals are enabled, but not for such a database.
        sqlalchemy.exc.SQLAlchemyError: the database failed.
    """
    found = [(removals_of(metadata), dict(items)) for metadata, items in metadatas]
    enabled = [(removals, schemas) for removals, schemas in found if removals is not None]
    # models that share a storage share the longest period
    if enabled:
        refuse_removals(dialect)
    enabled.sort(key=lambda pair: -pair[0].keep_seconds)
    left = [name for name in names if _is_ours(name)]
    noted = []
    for removals, schemas in enabled:
        # by storage, not by column: a name does not tell its column, and the source is there to
        # find the storage again; reversed, so that the first column wins
        sources = {
            storage_for(column.type.url, dialect): label
            for label, column in reversed(removals.columns().items())
        }
        own = [name for name in left if name.storage in sources]
        left = [name for name in left if name.storage not in sources]
        if own:
            urls = {row_url(name): sources[name.storage] for name in own}
            # without a connection the names are noted all the same, to keep what has to wait
            if connection is not None:
                removals.note(connection, urls, schemas)
            noted.append(Noted(removals, schemas, own))
    return noted


def _is_ours(name: ObjectName) -> bool:
    """Return whether a row can have held the name: a folder may hold other files, too."""
    file = name.path.rpartition("/")[2]
    # a longer one would fail the INSERT, and COMMIT with it
    return OBJECT_NAME.fullmatch(file) is not None and len(row_url(name)) <= URL_LENGTH
