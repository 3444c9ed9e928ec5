"""This library, as its README shows it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.types import TypeEngine

from benchmarks.subject import Entries, Subject
from sqla_datastore import DataStore, DataStoreType, bind_storage


class ThisLibrary(Subject):
    def column_type(self) -> TypeEngine[Any]:
        return DataStoreType()

    def bind(self, engine: Engine) -> None:
        bind_storage(engine, self.files)

    def value(self, entries: Entries) -> DataStore:
        return DataStore(entries)

    def entry(self, stored: Any, name: str) -> Any:
        return stored[name]


SUBJECT = ThisLibrary
