"""Where the bytes of a stored `File` are: in a blob, of which nothing is read before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from typing_extensions import Buffer

from sqla_datastore.exceptions import DamagedObjectError, MissingObjectError
from sqla_datastore.files.blob_stream import stream_of_blob
from sqla_datastore.files.contents import (
    Content,
    FilePayload,
    path_content,
    refuse_other_hash,
)
from sqla_datastore.format import StoredBlob
from sqla_datastore.value.entry import Source

_GONE = (
    "the row that the File was read from is gone, holds another value by now, or was rolled back; "
    "get the File from the row again, or assign one of its path"
)


def stored_content(blob: StoredBlob, sha256: str, *, blocks_a_loop: bool) -> Content:
    """Return the bytes of a blob.

    Args:
        blob: the blob; nothing is read of it.
        sha256: what its entry says of them.
        blocks_a_loop: as for `Content`.
    """
    return _StoredContent(blob, sha256, blocks_a_loop=blocks_a_loop)


def unpickled(kind: str, *about: Any) -> Content:
    """Return a content of what `Content.reduced` returned."""
    if kind == "path":
        path, follows_links = about
        return path_content(path, follows_links=follows_links)
    return _StoredContent(None, *about)


def content_in(
    source: Source, entry: str, offset: int, nbytes: int, sha256: str, *, blocks_a_loop: bool
) -> Content:
    """Return the bytes of a blob that was written just now; its object is not opened yet.

    Args:
        source: the object.
        entry: the name of the entry.
        offset: where the blob lies.
        nbytes: its size in bytes.
        sha256: as for `stored_content`.
        blocks_a_loop: as for `Content`.
    """
    reference = source.given, source.url, entry, offset, nbytes
    return _StoredContent(None, sha256, reference, source, blocks_a_loop=blocks_a_loop)


class _StoredContent:
    """The bytes of a blob, which is found by its reference when it is needed first.

    A reference is storage, URL, entry, offset and size.
    """

    def __init__(
        self,
        blob: StoredBlob | None,
        sha256: str,
        reference: tuple[Any, ...] = (),
        source: Source | None = None,
        *,
        blocks_a_loop: bool = False,
    ) -> None:
        self._found = blob
        self.sha256 = sha256
        self.blocks_a_loop = blocks_a_loop
        self._reference = reference
        self._source = source

    @property
    def size_bytes(self) -> int:
        return self._reference[4] if self._found is None else self._found.nbytes

    @property
    def identity(self) -> tuple[object, ...]:
        return "stored", self.sha256, self.size_bytes

    def payload(self, entry: str) -> FilePayload:  # noqa: ARG002
        blob = self._blob()
        return FilePayload(self._pieces, blob.nbytes, blob, self.sha256)

    def pieces(self) -> Generator[Buffer, None, None]:
        blob = self._blob()
        digest = hashlib.sha256() if blob.source.verifies_always else None
        for piece in self._pieces():
            if digest is not None:
                digest.update(piece)
            yield piece
        if digest is not None:
            refuse_other_hash(blob, self.sha256, digest.hexdigest())

    def open(self) -> BinaryIO:
        blob = self._blob()
        with _explained():
            blob.source.renew()
            if blob.source.verifies_always:
                blob.verify()
            blob.copy(0, min(1, blob.stored_nbytes))
        return stream_of_blob(blob, off_loop=self.blocks_a_loop)

    def reduced(self) -> tuple[object, ...]:
        storage, *about = self._reference or self._referenced()
        where = storage if storage is None or isinstance(storage, str) else storage.url
        return "stored", self.sha256, (where, *about)

    def _referenced(self) -> tuple[Any, ...]:
        assert self._found is not None
        blob, origin = self._found, self._found.source.origin
        if origin is None:
            raise TypeError("a File in an object that no storage holds cannot be pickled")
        return origin.storage, origin.url, blob.entry, blob.offset, blob.nbytes

    def _pieces(self) -> Generator[Buffer, None, None]:
        with _explained():
            # before the first piece: what was handed over cannot be read again
            self._blob().source.renew()
            yield from self._blob().verified_pieces()

    def _blob(self) -> StoredBlob:
        if self._found is None:
            self._found = self._looked_up()
        return self._found

    def _looked_up(self) -> StoredBlob:
        from sqla_datastore.value.datastore import DataStore

        storage, url, entry, offset, nbytes = self._reference
        source = self._source or Source(storage, url, DataStore._at)
        with _explained():
            container = source.container()
        blobs = container.blobs(entry) if entry in container else []
        for blob in blobs:
            if (blob.offset, blob.nbytes) == (offset, nbytes):
                return blob
        raise DamagedObjectError(url, "it is not the one that a File was pickled of", entry=entry)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except MissingObjectError as err:
        raise err.because(_GONE) from err
