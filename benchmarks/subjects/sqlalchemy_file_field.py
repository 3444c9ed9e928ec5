"""sqlalchemy-file's FileField on libcloud's local storage, with pickles as its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libcloud.storage.drivers.local import LocalStorageDriver
from sqlalchemy_file import File, FileField
from sqlalchemy_file.storage import StorageManager

from benchmarks.subject import Entries, Pickled


class SQLAlchemyFile(Pickled):
    def __init__(self, files: Path) -> None:
        super().__init__(files)
        (files / "values").mkdir()
        container = LocalStorageDriver(str(files)).get_container("values")
        StorageManager.add_storage("default", container)

    def column_type(self) -> Any:
        return FileField()

    def value(self, entries: Entries) -> File:
        return File(content=self.dumps(entries), filename="value")

    def content(self, stored: Any) -> bytes:
        found: bytes = stored.file.read()
        return found


SUBJECT = SQLAlchemyFile
