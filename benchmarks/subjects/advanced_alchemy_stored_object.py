"""advanced-alchemy's StoredObject on obstore's local storage, with pickles as its files."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from advanced_alchemy._listeners import setup_file_object_listeners
from advanced_alchemy.types.file_object import FileObject, StoredObject, storages
from advanced_alchemy.types.file_object.backends.obstore import ObstoreBackend
from obstore.store import LocalStore

from benchmarks.subject import Entries, Pickled


class AdvancedAlchemy(Pickled):
    def __init__(self, files: Path) -> None:
        super().__init__(files)
        self._backend = ObstoreBackend(key="local", fs=LocalStore(str(files)))
        storages.register_backend(self._backend)
        setup_file_object_listeners()

    def column_type(self) -> Any:
        return StoredObject(backend=self._backend)

    def value(self, entries: Entries) -> FileObject:
        return FileObject(self._backend, uuid.uuid4().hex, content=self.dumps(entries))

    def content(self, stored: Any) -> bytes:
        found: bytes = stored.get_content()
        return found


SUBJECT = AdvancedAlchemy
