"""What a workload asks of a subject: a column type, and how its values are written and read."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

Entries = Mapping[str, Any]


class Subject:
    """One way to keep a mapping of values with a row."""

    def __init__(self, files: Path) -> None:
        self.files = files

    def column_type(self) -> TypeEngine[Any]:
        """Return the type of the column."""
        raise NotImplementedError

    def bind(self, engine: Engine) -> None:
        """Prepare an engine."""

    def value(self, entries: Entries) -> Any:
        """Return what is assigned to the column; what it needs beside the row is written."""
        raise NotImplementedError

    def entry(self, stored: Any, name: str) -> Any:
        """Return one entry of what the column holds."""
        raise NotImplementedError

    def replace(self, row: Any, entries: Entries) -> None:
        """Assign another value to a row."""
        row.data = self.value(entries)

    def delete(self, session: Session, row: Any) -> None:
        """Delete a row."""
        session.delete(row)

    def delete_all(self, session: Session, row_class: type[Any]) -> None:
        """Delete all rows by one statement."""
        session.execute(delete(row_class))

    def commit(self, session: Session) -> None:
        """Commit, with what the application has to do before and after by itself."""
        session.commit()


class Pickled(Subject):
    """Keeps all entries as one pickle of protocol 5."""

    @staticmethod
    def dumps(entries: Entries) -> bytes:
        return pickle.dumps(dict(entries), protocol=5)

    def content(self, stored: Any) -> bytes:
        """Return the bytes of a stored value."""
        raise NotImplementedError

    def entry(self, stored: Any, name: str) -> Any:
        return pickle.loads(self.content(stored))[name]


class BesideStringColumn(Subject):
    """Keeps a URL in a String column; the application removes files that no row needs."""

    def __init__(self, files: Path) -> None:
        super().__init__(files)
        self._superseded: list[str] = []

    def path(self, url: str) -> Path:
        """Return the file of a URL."""
        return self.files / url.removeprefix("file:///")

    def replace(self, row: Any, entries: Entries) -> None:
        self._superseded.append(row.data)
        super().replace(row, entries)

    def delete(self, session: Session, row: Any) -> None:
        self._superseded.append(row.data)
        super().delete(session, row)

    def delete_all(self, session: Session, row_class: type[Any]) -> None:
        self._superseded += session.scalars(select(row_class.data))
        super().delete_all(session, row_class)

    def commit(self, session: Session) -> None:
        session.commit()
        for url in self._superseded:
            os.unlink(self.path(url))
        self._superseded.clear()
