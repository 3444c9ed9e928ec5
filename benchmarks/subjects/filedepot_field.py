"""filedepot's UploadedFileField on its local storage, with pickles as its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depot.fields.sqlalchemy import UploadedFileField
from depot.manager import DepotManager

from benchmarks.subject import Entries, Pickled


class FileDepot(Pickled):
    def __init__(self, files: Path) -> None:
        super().__init__(files)
        DepotManager.configure("default", {"depot.storage_path": str(files)})

    def column_type(self) -> Any:
        return UploadedFileField()

    def value(self, entries: Entries) -> bytes:
        return self.dumps(entries)

    def content(self, stored: Any) -> bytes:
        found: bytes = stored.file.read()
        return found


SUBJECT = FileDepot
