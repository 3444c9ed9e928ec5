"""References: the URLs that rows hold in one storage, spooled to a temporary file.

They are read in one short transaction and sorted as storages list. So no snapshot, lock or cursor
stays open while a storage is listed for hours, and one connection at a time is enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple, TextIO

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.schema.columns import DeclaredColumn
from sqla_datastore.schema.folders import OwnedFolders
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import OBJECT_NAME, ObjectURL

PENDING = -1
"""The source of a URL that waits for its removal: no row holds it any more."""


class Reference(NamedTuple):
    """A URL that a row holds.

    Attributes:
        source: the number of its column, or `PENDING`.
        path: the path of the object.
    """

    source: int
    path: str


class UnmanagedURL(NamedTuple):
    """A URL in a row that does not name an object as this library does.

    Attributes:
        source: the number of its column.
        url: the URL.
        reason: why the storage cannot have its object, or "" where it may have it.
    """

    source: int
    url: str
    reason: str


class References:
    """The URLs that rows hold in one storage.

    Attributes:
        rows: how many there are.
        objects: how many objects they stand for.

    Args:
        spool: takes the references, a line each.
        unmanaged: takes the unmanaged URLs, a line each.
    """

    def __init__(self, spool: TextIO, unmanaged: TextIO) -> None:
        self._spool = spool
        self._unmanaged = unmanaged
        self.rows = 0
        self.objects = 0
        self._last = ""

    def add(
        self,
        source: int,
        url: str,
        storage: Storage,
        column: DeclaredColumn | None,
        owned: OwnedFolders,
    ) -> None:
        """Spool a URL.

        Args:
            source: the column's number, or `PENDING`.
            url: the URL.
            storage: where its object should be.
            column: the column, or None for a URL that waits for its removal.
            owned: learns the folders that URLs of owning rows remember.

        Raises:
            ConfigurationError: the URL before it should have come after it.
        """
        self.rows += column is not None
        try:
            parsed = ObjectURL.parse(url)
        except RefusedURLError as err:
            self._add_unmanaged(source, url, str(err))
            return
        if parsed.scheme != storage.scheme:
            self._add_unmanaged(source, url, f"{storage.url!r} serves {storage.scheme}: URLs")
        elif not OBJECT_NAME.fullmatch(parsed.name):
            # made by hand: it is not in the comparison, and `check` opens it by itself
            self._add_unmanaged(source, url, "")
        else:
            self._add_path(source, parsed)
            if column is not None and column.folder.owns:
                # a folder that its row does not own may be anybody's: nothing there is an orphan
                owned.remember(parsed.folder)

    def _add_path(self, source: int, url: ObjectURL) -> None:
        # as in `Survey._listed`: objects of rows would look like orphans
        if url.path < self._last:
            raise ConfigurationError(
                f"the database ({str(url)!r}) does not sort URLs byte by byte: "
                f"{self._last!r} came before {url.path!r}"
            )
        self._last = url.path
        self.objects += 1 + url.nested_count
        self._spool.write(f"{source} {url.path}\n")

    def _add_unmanaged(self, source: int, url: str, reason: str) -> None:
        if source != PENDING:
            # as JSON: such a text may hold line ends, which a checked path cannot
            self._unmanaged.write(json.dumps([source, url, reason]) + "\n")

    def __iter__(self) -> Iterator[Reference]:
        self._spool.seek(0)
        for line in self._spool:
            source, _, path = line.rstrip("\n").partition(" ")
            yield Reference(int(source), path)

    def unmanaged(self) -> Iterator[UnmanagedURL]:
        """Yield the URLs that do not name an object as this library does."""
        self._unmanaged.seek(0)
        for line in self._unmanaged:
            yield UnmanagedURL(*json.loads(line))


def stem_of(path: str) -> str:
    """Return what the paths of a family have in common: all before ``zip``, or ``<i>.zip``.

    Families stay together, and in their order, when paths are sorted.
    """
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}."
