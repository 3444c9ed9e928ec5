"""Which rows hold an object: the one question that decides, asked right before COMMIT.

Neither the log nor a statement's row count can be trusted for this: a trigger may have put the old
URL back, UPDATE IGNORE counts a row that it left alone, criteria with ``random()`` find another
row the second time, a savepoint may be known to the driver only. So the rows themselves are asked,
in the same transaction, for every name that would go and for every name whose statement is not
certain.

What a row held, or was given, is asked by that row's primary key. What lies outside the folder
that the row's attributes render is asked by URL as well: somebody may have copied the URL of
another row. A name that was only listed in a folder is asked by URL with a share lock, so that a
row which another transaction is changing is waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sqla_datastore.dml.dialects import reads_old_rows_with_lock
from sqla_datastore.dml.overlaps import others_are_open
from sqla_datastore.dml.row_queries import held_urls, urls_of_rows
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.printable import printable
from sqla_datastore.schema.declarations import present, present_columns
from sqla_datastore.storage.urls import ObjectName, row_url

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.engine import Connection
    from sqlalchemy.schema import MetaData

    from sqla_datastore.dml.effects import Effects
    from sqla_datastore.removals.table import SchemaItems
    from sqla_datastore.schema.columns import DeclaredTable
    from sqla_datastore.schema.folders import Schemas

logger = logging.getLogger("sqla_datastore")

RowKey: TypeAlias = "tuple[DeclaredTable, tuple[Any, ...]]"
"""A row: its table and its primary key."""


@dataclass
class ReferringRows:
    """Knows which rows to ask about the objects of one transaction.

    Attributes:
        metadatas: the MetaData collections whose tables the transaction touched, each with the
            items of the ``schema_translate_map`` by which it did so.
        ran_ddl: whether a migration may have dropped tables or columns that were there.
        are_locked: whether the database locks rows. Without locks all that would go is asked about
            once more after COMMIT.
    """

    metadatas: dict[tuple[MetaData, SchemaItems], None] = field(default_factory=dict)
    ran_ddl: bool = False
    are_locked: bool = True
    _previous: dict[ObjectName, RowKey] = field(default_factory=dict)
    _unproven: dict[ObjectName, bool] = field(default_factory=dict)
    _destinations: dict[ObjectName, RowKey] = field(default_factory=dict)
    _tables: dict[ObjectName, DeclaredTable] = field(default_factory=dict)
    _bound_to_key: set[ObjectName] = field(default_factory=set)
    _asked_again: set[ObjectName] = field(default_factory=set)

    def note(self, effects: Effects) -> None:
        """Note the previous row of each dropped object, and the row of each uncertain one."""
        declared = effects.declared
        self._previous.update((name, (declared, key)) for name, key in effects.previous.items())
        # without a key its URL is looked for in any case
        unproven = {n: known for n, known in effects.unproven.items() if n in effects.previous}
        self._unproven.update(unproven)
        self._tables.update(dict.fromkeys(unproven, declared))
        if not effects.is_certain:
            self._tables.update((name, declared) for name in (*effects.names, *effects.dropped))
            self._destinations.update(
                (name, (declared, key)) for name, key in effects.destinations.items()
            )
        if not effects.is_by_key:
            self._bound_to_key.update(effects.destinations)

    def referenced(
        self,
        connection: Connection | None,
        names: set[ObjectName],
        listed: set[ObjectName],
        *,
        refuses_strays: bool = True,
    ) -> set[ObjectName]:
        """Return those of the names that a row refers to, asked in this transaction.

        Args:
            connection: the transaction's; without one nobody can be asked, so everything stays but
                what rows are known to have lost.
            names: what was dropped, listed, or adopted without certainty.
            listed: those of them that lie in a folder that is to be emptied, and that any row may
                have: also one that lost it and has it again, by a savepoint's rollback for
                instance, and may have got another key since.
            refuses_strays: refuse a value that an UPDATE has put into another row than was found.

        Raises:
            RefusedStatementError: there is such a value.
        """
        if connection is None:
            known = self._previous.keys() - self._unproven.keys()
            return names - (known - listed) if self.are_locked else names
        rows = {name: self._previous.get(name) or self._destinations.get(name) for name in names}
        held = self._held_by_key(connection, {n: row for n, row in rows.items() if row is not None})
        # what nobody else knows needs neither a lock nor another table; a row may have got another
        # key since, but not the one that got the value which a name was to make room for
        done = {self._destinations[name] for name in held if name in self._destinations}
        own = {name for name in names - held if name in self._tables}
        own = {n for n in own if n in self._unproven or self._previous.get(n) not in done}
        found = self._held_in_own_table(connection, own)
        if refuses_strays:
            self._refuse_strays(found, held)
        listed = (listed | (names - own - self._previous.keys())) - held - found
        self._asked_again = self._unseen(connection, names, listed)
        # without a lock, as no index may lead to it: a lock could be one of all rows
        others = {name for name in names - held - found if self._unproven.get(name) is False}
        copied = self._held_by_url(connection, others, locked=False)
        return held | found | copied | self._held_by_url(connection, listed)

    def _unseen(
        self, connection: Connection, names: set[ObjectName], listed: set[ObjectName]
    ) -> set[ObjectName]:
        """Return the names that other transactions' rows may hold without being seen from here."""
        if not self.are_locked:
            return set(names)
        return listed if listed and reads_old_rows_with_lock(connection) else set()

    def _refuse_strays(self, found: set[ObjectName], held: set[ObjectName]) -> None:
        """Refuse values that other rows got than those that were found for them.

        The row that was found still holds what it held: so the value has passed it by, and the row
        has not just got another key meanwhile.
        """
        kept = {self._previous[name] for name in held if name in self._previous}
        for name in found & self._bound_to_key:
            declared, _ = destination = self._destinations[name]
            if destination in kept:
                raise RefusedStatementError(
                    f"the criteria of an UPDATE of {declared.table.name!r} found another row than "
                    "a moment before; the transaction is rolled back: select the row, and update "
                    "it by its key"
                )

    def referenced_after_commit(self, connection: Connection | None) -> set[ObjectName]:
        """Return the names that rows refer to which the transaction could not see.

        On PostgreSQL a snapshot hides what others have committed since it was taken, from a locking
        SELECT too; so listed names are asked about once more, in a new snapshot. Without row locks
        all names are, and none goes while another transaction may bring it back.
        """
        # where nobody can be asked, they stay, as orphans at worst
        if not self._asked_again or connection is None:
            return self._asked_again
        # before the question: what commits in between is found by it
        if others_are_open(connection.dialect, connection):
            return self._asked_again
        try:
            # after COMMIT nothing is waited for; what others change now lies elsewhere
            return self._held_by_url(connection, self._asked_again, locked=False)
        except Exception as err:
            logger.warning(
                "what a transaction superseded stays, the database failed to tell: %s",
                printable(err),
            )
            return self._asked_again
        finally:
            # the SELECT has begun a transaction, after the COMMIT, that SQLAlchemy knows nothing of
            with suppress(Exception):
                connection.dialect.do_rollback(connection.connection)

    def _held_by_key(
        self, connection: Connection, rows: dict[ObjectName, RowKey]
    ) -> set[ObjectName]:
        keys: dict[DeclaredTable, set[tuple[Any, ...]]] = {}
        for declared, key in rows.values():
            keys.setdefault(declared, set()).add(key)
        held: set[str] = set()
        for declared, found in keys.items():
            for schemas in self._schemas_of(declared.table.metadata):
                columns = self._columns(connection, declared, schemas)
                if columns:
                    held |= urls_of_rows(
                        connection, declared, found, schemas=schemas, columns=columns
                    )
        return {name for name in rows if row_url(name) in held}

    def _schemas_of(self, metadata: MetaData) -> Iterable[Schemas]:
        return [dict(items) for each, items in self.metadatas if each is metadata]

    def _held_in_own_table(self, connection: Connection, names: set[ObjectName]) -> set[ObjectName]:
        """Return those of the names, all this transaction's own, that rows of their table hold."""
        found: set[ObjectName] = set()
        for declared in {self._tables[name] for name in names}:
            urls = {row_url(name): name for name in names if self._tables[name] is declared}
            for schemas in self._schemas_of(declared.table.metadata):
                columns = self._columns(connection, declared, schemas)
                held = held_urls(connection, columns, sorted(urls), schemas=schemas)
                found |= {name for name in names if row_url(name) in held}
        return found

    def _held_by_url(
        self, connection: Connection, names: set[ObjectName], *, locked: bool = True
    ) -> set[ObjectName]:
        if not names:
            return set()
        urls = {name: row_url(name) for name in names}
        asked = sorted(set(urls.values()))
        held: set[str] = set()
        for metadata, items in self.metadatas:
            schemas = dict(items)
            there = present(connection, metadata, schemas)
            columns = [c for each in there for c in self._columns(connection, each, schemas)]
            held |= held_urls(connection, columns, asked, locked=locked, schemas=schemas)
        return {name for name, url in urls.items() if url in held}

    def _columns(
        self, connection: Connection, declared: DeclaredTable, schemas: Schemas
    ) -> list[Column[Any]]:
        """Return a table's columns with URLs; a migration may have dropped some by now."""
        if not self.ran_ddl:
            return declared.plain_columns
        return present_columns(connection, declared, schemas)
