"""What every store does that takes large objects in parts."""

from __future__ import annotations

import pytest

from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage import ObjectStorage
from sqla_datastore.testing import StorageSuite

LARGE = bytes(20 << 20)


class UploadSuite(StorageSuite):
    """The suite for storages, with objects that are uploaded in parts.

    `raw_paths` also returns what has begun and is not finished.
    """

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_aborts_an_upload(
        self, storage: ObjectStorage, error: type[BaseException]
    ) -> None:
        """Nothing is there, nor parts of it."""
        with pytest.raises(error):
            self.write(storage, "runs/a.zip", LARGE, error)
        assert self.raw_paths(storage) == set()

    def test_a_large_object_never_overwrites(self, storage: ObjectStorage) -> None:
        """The name is looked up before."""
        self.raw_write(storage, "a.zip", b"first")
        with pytest.raises(StorageError, match="already exists"):
            self.write(storage, "a.zip", LARGE)
        assert self.raw_read(storage, "a.zip") == b"first"
        assert self.raw_paths(storage) == {"a.zip"}
