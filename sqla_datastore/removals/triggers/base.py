"""What the triggers of all databases have in common: names, quoting, what they insert."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import String, literal

from sqla_datastore.removals.table import TABLE_NAME
from sqla_datastore.storage.urls import DATA_PREFIX

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

INSERTED_COLUMNS = ("url", "source", "superseded_at")
"""The columns of the table of removals that a trigger fills."""

# PostgreSQL cuts identifiers off at 63 bytes (NAMEDATALEN), MySQL and MariaDB refuse more than 64
# characters
_MAX_NAME_BYTES = 63
_MAX_READABLE_BYTES = 38


@dataclass(frozen=True)
class RemovalTriggers(ABC):
    """The triggers of one column, as statements.

    The dialect quotes every name, and nothing else of the caller's gets into a statement.

    Args:
        dialect: the database's.
        table: the table.
        column: the column.
        schema: the table's schema.
        removals_schema: the schema of the table of removals.
    """

    dialect: Dialect
    table: str
    column: str
    schema: str | None = None
    removals_schema: str | None = None

    now: ClassVar[str]
    """The SQL expression for the seconds since the epoch."""

    @abstractmethod
    def creates(self, connection: Connection | None) -> list[str]:
        """Return the statements that create them.

        Args:
            connection: tells what the database has; None where Alembic runs offline.

        Raises:
            ConfigurationError: they depend on what the database has, and there is no connection;
                or a cascade cannot be followed.
        """

    @abstractmethod
    def drops(self, connection: Connection | None) -> list[str]:
        """Return the statements that drop those of them that exist.

        Args:
            connection: as for `creates`.

        Raises:
            ConfigurationError: they depend on what the database has, and there is no connection.
        """

    def quoted(self, name: str) -> str:
        """Return an identifier as SQL has it."""
        return self._single(self.dialect.identifier_preparer.quote(name))

    def qualified(self, name: str) -> str:
        """Return an identifier with the table's schema."""
        return (
            f"{self.quoted(self.schema)}.{self.quoted(name)}" if self.schema else self.quoted(name)
        )

    def _single(self, rendered: str) -> str:
        """Undo the doubling of percent signs for the driver, since `text` doubles them too."""
        doubles = "%%" in self.dialect.identifier_preparer.quote("%")
        return rendered.replace("%%", "%") if doubles else rendered

    def name(self, what: str) -> str:
        """Return a trigger's name: another one for each column, within 63 bytes.

        Args:
            what: the trigger among those of the column.
        """
        others = len(self._name("", what))
        return self._name(self._readable(_MAX_NAME_BYTES - others), what)

    def names(self, what: str) -> list[str]:
        """Return `name`, and the longer one that earlier versions gave the trigger."""
        longer = self._name(self._readable(_MAX_READABLE_BYTES), what)
        return list(dict.fromkeys((self.name(what), longer)))

    def _readable(self, size_bytes: int) -> str:
        cut = f"{self.table}_{self.column}".encode()[: min(size_bytes, _MAX_READABLE_BYTES)]
        return cut.decode(errors="ignore")

    def _name(self, readable: str, what: str) -> str:
        digest = hashlib.sha256(f"{self.table}.{self.column}".encode()).hexdigest()[:8]
        return f"datastore_{readable}_{digest}_{what}"

    @property
    def url(self) -> str:
        """The column, quoted."""
        return self.quoted(self.column)

    @property
    def schema_of_removals(self) -> str | None:
        """Where a trigger finds the table of removals; None leaves it to the database."""
        return self.removals_schema or self.schema

    @property
    def into(self) -> str:
        """The beginning of the statement that writes a removal down."""
        schema = f"{self.quoted(self.removals_schema)}." if self.removals_schema else ""
        return f"INSERT INTO {schema}{TABLE_NAME} ({', '.join(INSERTED_COLUMNS)})"

    def is_object(self, url: str) -> str:
        """Return the condition that a URL is that of an object: not NULL, nor a value in the row.

        Args:
            url: the SQL expression for the URL.
        """
        return f"{url} NOT LIKE '{DATA_PREFIX}%'"

    def noted(self, url: str) -> str:
        """Return the values of a removal, in the order of `into`.

        Args:
            url: the SQL expression for the URL.
        """
        return f"{url}, {self._text(f'{self.table}.{self.column}')}, {self.now}"

    def _text(self, plain: str) -> str:
        """Return a text as SQL has it."""
        # a compiler knows whether MySQL takes backslashes for escapes
        compiled = literal(plain, String()).compile(
            dialect=self.dialect, compile_kwargs={"literal_binds": True}
        )
        return self._single(str(compiled))
