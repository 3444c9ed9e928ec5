"""The floor: a file written, synced and renamed, and its URL in a String column."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from benchmarks.subject import BesideStringColumn, Entries


class PlainFiles(BesideStringColumn):
    def __init__(self, files: Path) -> None:
        super().__init__(files)
        self._wrote = False

    def column_type(self) -> TypeEngine[Any]:
        return String(1024)

    def value(self, entries: Entries) -> str:
        name = uuid.uuid4().hex
        path = f"{self.files}/{name}"
        descriptor = os.open(f"{path}.part", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(descriptor, pickle.dumps(dict(entries), protocol=5))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(f"{path}.part", path)
        self._wrote = True
        return f"file:///{name}"

    def entry(self, stored: Any, name: str) -> Any:
        return pickle.loads(self.path(stored).read_bytes())[name]

    def commit(self, session: Session) -> None:
        if self._wrote:
            folder = os.open(self.files, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            self._wrote = False
        super().commit(session)


SUBJECT = PlainFiles
