"""The rows of one column, batch by batch, while others write.

A page of rows is read in a short transaction, and a batch is written in one of its own. Between the
two nothing is locked: whoever changes a row sees under its lock that it still holds what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, String, and_, func, or_, select, type_coerce
from sqlalchemy.exc import DBAPIError

from sqla_datastore.dml.dialects import locked_for_update
from sqla_datastore.dml.row_queries import any_key, url_text
from sqla_datastore.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from sqla_datastore.schema.columns import DeclaredColumn

BATCH_ROWS = 100
_ATTEMPTS = 5

Key = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowText:
    """What a row was found to hold.

    Attributes:
        key: its primary key.
        text: what the column holds, a URL.
        more: the values of further columns that were asked for.
    """

    key: Key
    text: str
    more: tuple[Any, ...]


class ColumnRows:
    """The rows of a table in which a column holds a URL, in the order of their primary key.

    Args:
        engine: the database.
        column: the column.
        batch_rows: how many rows make a page.

    Raises:
        ConfigurationError: the table has no primary key, or a page would be empty.
    """

    def __init__(self, engine: Engine, column: DeclaredColumn, batch_rows: int) -> None:
        self._engine = engine
        self._column = column.column
        self._batch_rows = batch_rows
        self.keys = list(column.column.table.primary_key)
        if not self.keys:
            raise ConfigurationError(
                f"table {column.column.table.name!r} has no primary key, by which rows are "
                "updated; leave it out of the metadata"
            )
        if batch_rows < 1:
            raise ConfigurationError(f"batch_rows is a number from 1, not {batch_rows!r}")

    @property
    def _text(self) -> Any:
        return type_coerce(self._column, String())

    def count(self, *criteria: Any) -> int:
        """Return how many rows there are now.

        Args:
            criteria: which rows.
        """
        query = select(func.count()).select_from(self._column.table)
        with self._engine.connect() as connection:
            return connection.scalar(query.where(self._text.is_not(None), *criteria)) or 0

    def pages(self, *more: Column[Any], criteria: Sequence[Any] = ()) -> Iterator[list[RowText]]:
        """Yield rows, a page at a time; none is locked, and no transaction stays open.

        Args:
            more: further columns of the table.
            criteria: which rows.
        """
        last: Key | None = None
        while page := self._page(last, more, criteria):
            yield page
            last = page[-1].key

    def _page(
        self, last: Key | None, more: Sequence[Column[Any]], criteria: Sequence[Any]
    ) -> list[RowText]:
        query = select(*self.keys, self._text.label("datastore_url"), *more)
        query = query.where(self._text.is_not(None), *criteria)
        if last is not None:
            query = query.where(_after(self.keys, last))
        query = query.order_by(*self.keys).limit(self._batch_rows)
        count = len(self.keys)
        with self._engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(query)]
        return [RowText(row[:count], row[count], row[count + 1 :]) for row in found]

    def holds(self, key: Key, text: str) -> bool:
        """Return whether a row still holds what was read of it."""
        criterion, asked = any_key(self.keys, [key])
        query = select(self._text).where(criterion)
        with self._engine.connect() as connection:
            return bool(connection.scalar(query, asked) == text)

    def locked(
        self, connection: Connection, keys: Sequence[Key], *more: Column[Any]
    ) -> dict[Key, tuple[Any, ...]]:
        """Lock rows as an UPDATE does, and return what they hold now: text and further columns.

        Of a value that lies in the row the text is the head of its URL.

        Args:
            connection: locks in its transaction; where the database has no such locks, not at all.
            keys: the rows' keys; those that are gone are left out.
            more: further columns of the table.
        """
        criterion, asked = any_key(self.keys, keys)
        query = select(*self.keys, url_text(self._column).label("datastore_url"), *more)
        query = locked_for_update(query.where(criterion), self._column.table, connection.dialect)
        count = len(self.keys)
        rows = (tuple(row) for row in connection.execute(query, asked))
        return {row[:count]: row[count:] for row in rows}


def in_attempts(write: Callable[[], T]) -> T:
    """Call what writes a batch in a transaction of its own, again where it has met a writer.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed five times in a row.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return write()
        except DBAPIError:
            # a deadlock with a writer, or a lock that was waited for too long
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError  # the last attempt returned or raised


def _after(keys: Sequence[Column[Any]], last: Sequence[Any]) -> Any:
    """Return the criterion of rows behind a key, without tuples: not every database has them."""
    return or_(
        *(
            and_(*(a == b for a, b in zip(keys[:i], last, strict=False)), keys[i] > last[i])
            for i in range(len(keys))
        )
    )
