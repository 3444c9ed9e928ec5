"""MLtraq's DataStore, whose URL the application puts into a String column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mltraq.opts import options
from mltraq.storage.datastore import DataStore
from sqlalchemy import String
from sqlalchemy.types import TypeEngine

from benchmarks.subject import BesideStringColumn, Entries


class MLtraq(BesideStringColumn):
    def __init__(self, files: Path) -> None:
        super().__init__(files)
        options().set("datastore.url", f"file:///{files}")

    def column_type(self) -> TypeEngine[Any]:
        return String(1024)

    def value(self, entries: Entries) -> Any:
        return DataStore(entries).to_url()

    def entry(self, stored: Any, name: str) -> Any:
        return DataStore.from_url(stored)[name]


SUBJECT = MLtraq
