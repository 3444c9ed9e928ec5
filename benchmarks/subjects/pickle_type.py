"""SQLAlchemy's PickleType: values are in the row, and read with it."""

from __future__ import annotations

import operator
from typing import Any

from sqlalchemy import PickleType
from sqlalchemy.types import TypeEngine

from benchmarks.subject import Entries, Subject


class Pickle(Subject):
    def column_type(self) -> TypeEngine[Any]:
        return PickleType(protocol=5, comparator=operator.is_)  # arrays have no single truth

    def value(self, entries: Entries) -> dict[str, Any]:
        return dict(entries)

    def entry(self, stored: Any, name: str) -> Any:
        return stored[name]


SUBJECT = Pickle
