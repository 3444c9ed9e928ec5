"""LargeBinary, and pickle by the application: values are in the row, and decoded when needed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import LargeBinary
from sqlalchemy.types import TypeEngine

from benchmarks.subject import Entries, Pickled


class Blob(Pickled):
    def column_type(self) -> TypeEngine[Any]:
        return LargeBinary()

    def value(self, entries: Entries) -> bytes:
        return self.dumps(entries)

    def content(self, stored: Any) -> bytes:
        return bytes(stored)


SUBJECT = Blob
