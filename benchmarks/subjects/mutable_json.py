"""A JSON column whose edits in place SQLAlchemy notices."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.types import TypeEngine

from benchmarks.subject import Entries, Subject


class MutableJSON(Subject):
    def column_type(self) -> TypeEngine[Any]:
        return MutableDict.as_mutable(JSON())

    def value(self, entries: Entries) -> dict[str, Any]:
        return dict(entries)

    def entry(self, stored: Any, name: str) -> Any:
        return stored[name]


SUBJECT = MutableJSON
