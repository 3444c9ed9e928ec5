"""A new object of a local storage, until it has its name."""

from __future__ import annotations

import os
from contextlib import suppress

from typing_extensions import Buffer

from sqla_datastore.storage import posix


class Draft:
    """A new object under its temporary name, open for writing, and the folder it lies in.

    Args:
        parent: the folder's descriptor, which this object closes.
        name: what the object will be called there.
        url: its URL, for messages.
        base: the storage's base, for messages.
    """

    def __init__(self, parent: int, name: str, url: str, base: str) -> None:
        self._parent = parent
        self._name = name
        self._url = url
        self._base = base
        self._temporary = f"#{os.urandom(16).hex()}.part"
        # The mode is left to the umask: the object's name will be a link to this very file, mode
        # and all. O_EXCL follows no link that somebody may have put there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._temporary, flags, 0o666, dir_fd=parent)
        except OSError:
            os.close(parent)
            raise

    def write(self, data: Buffer, /) -> None:
        """See `ObjectWriter.write`."""
        with posix.storage_errors(self._url, self._base):
            rest = memoryview(data).cast("B")
            # write(2) takes at most 2 GiB - 4 KiB at once on Linux, and less on a full disk
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def publish(self) -> None:
        """Give the object its name, where nothing has it yet; raise `NameTakenError` else."""
        # closed first: on NFS, close(2) tells of writes that failed
        self._close_file()
        posix.link_exclusively(self._temporary, self._name, self._parent)

    def discard(self) -> None:
        """Remove the temporary file; what is gone already is no error."""
        # the error that led here is the one to be raised; `leftovers` finds the file
        with suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._parent)

    def close(self) -> None:
        """Close what is open; never fails."""
        # a file that is still open goes, and through the folder's descriptor nothing was written
        with suppress(OSError):
            self._close_file()
        with suppress(OSError):
            os.close(self._parent)

    def _close_file(self) -> None:
        # once: after a failure the number may be another file's
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
