"""What is measured of rows with a value each: insert, list, load and delete them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session


@dataclass
class Rows:
    """The rows of one table.

    Attributes:
        engine: the database.
        cls: the class, with the columns `id` and `data`.
        stored: makes what the column takes of a dict.
        read: reads an entry of what the column gives.
    """

    engine: Engine
    cls: Any
    stored: Callable[[dict[str, Any]], Any]
    read: Callable[[Any], object]

    def keys(self, limit: int) -> list[int]:
        """Return the keys of some rows."""
        with Session(self.engine) as session:
            return list(session.scalars(select(self.cls.id).limit(limit)))

    def insert(self, values: Iterable[dict[str, Any]]) -> None:
        """Insert rows in one commit."""
        with Session(self.engine) as session, session.begin():
            session.add_all([self.cls(data=self.stored(value)) for value in values])

    def insert_each(self, values: Iterable[dict[str, Any]]) -> None:
        """Insert rows, each in a commit."""
        for value in values:
            self.insert([value])

    def list(self) -> None:
        """Fetch all rows, and touch no value."""
        with Session(self.engine) as session:
            list(session.scalars(select(self.cls)))

    def load(self, keys: Iterable[int]) -> None:
        """Read the entry of rows, each in a Session of its own."""
        for key in keys:
            with Session(self.engine) as session:
                self.read(session.get_one(self.cls, key).data)

    def delete(self) -> None:
        """Delete all rows in one commit."""
        with Session(self.engine) as session, session.begin():
            for row in session.scalars(select(self.cls)):
                session.delete(row)

    def delete_each(self, keys: Iterable[int]) -> None:
        """Delete rows, each in a commit."""
        for key in keys:
            with Session(self.engine) as session, session.begin():
                session.delete(session.get_one(self.cls, key))
