"""The blobs of an opened object: their bytes are verified before anything uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from typing_extensions import Buffer

from sqla_datastore.codecs.protocol import FILE_SUFFIX
from sqla_datastore.exceptions import DamagedObjectError
from sqla_datastore.format.archive import ALIGNMENT, crc32
from sqla_datastore.format.compression import ARROW, DEFLATED, inflated
from sqla_datastore.storage.protocol import ObjectReader, renewed

# the checksum of so many bytes takes 0.1 to 0.4 milliseconds
_ALWAYS_VERIFIED = 1024 * 1024
_PIECE = 8 * 1024 * 1024
_READ_PIECE = 1024 * 1024


class ObjectBytes:
    """The bytes of an opened object, and which of its mapped blobs were verified already.

    Args:
        reader: the object.
        url: its URL, for messages.
        known: those of its bytes that were read already.
        start: the offset of the first one of them.
        verify_always: verify large mapped blobs as well.
        origin: what the blobs that are read later know of the object; see `value.entry.Origin`.
    """

    def __init__(
        self,
        reader: ObjectReader,
        url: str,
        known: Buffer = b"",
        start: int = 0,
        *,
        verify_always: bool,
        origin: Any = None,
    ) -> None:
        self.url = url
        self.origin = origin
        self._reader = reader
        self._known = memoryview(known)
        self._start = start
        self._verify_always = verify_always
        self._verified_offsets: set[int] = set()

    def view(self, entry: str, offset: int, size: int) -> memoryview:
        """Return a range, unverified, without reading again what was read already.

        Raises:
            DamagedObjectError: the object has become shorter.
        """
        if self._knows(offset, size):
            return self._known[offset - self._start :][:size]
        return self.fresh_view(entry, offset, size)

    def _knows(self, offset: int, size: int) -> bool:
        return self._start <= offset and offset + size <= self._start + len(self._known)

    def fetched(self, blobs: list[StoredBlob]) -> list[StoredBlob]:
        """Return blobs of this object whose bytes were read, unverified, by few requests.

        Where the reader maps, or all was read already, that would save nothing. Blobs that a value
        reads later are left alone.

        Raises:
            DamagedObjectError: the object has become shorter.
        """
        if self._reader.maps:
            return blobs
        needed = [
            each
            for each in blobs
            if each.suffix != FILE_SUFFIX and not self._knows(each.offset, each.stored_nbytes)
        ]
        if not needed:
            return blobs
        found = self._reader.read_many([(each.offset, each.stored_nbytes) for each in needed])
        views = {each.offset: view for each, view in zip(needed, found, strict=True)}
        return [
            each
            if each.suffix == FILE_SUFFIX
            else replace(each, source=self._with(each, views.get(each.offset)))
            for each in blobs
        ]

    def _with(self, blob: StoredBlob, view: memoryview | None) -> ObjectBytes:
        if view is None:
            return self
        self._refuse_shorter(blob.entry, blob.stored_nbytes, len(view))
        # the memory of a third party's reader may be writable
        known = view.toreadonly()
        return ObjectBytes(
            self._reader, self.url, known, blob.offset, verify_always=self._verify_always
        )

    def fresh_view(self, entry: str, offset: int, size: int) -> memoryview:
        """Do what `view` does, but from the storage even if it was read already."""
        # the memory of a third party's reader may be writable
        view = self._reader.view(offset, size).toreadonly()
        self._refuse_shorter(entry, size, len(view))
        return view

    def read(self, entry: str, offset: int, size: int) -> bytes:
        """Return a copy of a range, unverified; it maps nothing.

        Raises:
            DamagedObjectError: the object has become shorter.
        """
        data = self._reader.read(offset, size)
        self._refuse_shorter(entry, size, len(data))
        return data

    def copy(self, entry: str, offset: int, size: int) -> bytes:
        """Do what `read` does, without reading again what was read already."""
        if self._knows(offset, size):
            return bytes(self._known[offset - self._start :][:size])
        return self.read(entry, offset, size)

    def _refuse_shorter(self, entry: str, size: int, found: int) -> None:
        if found != size:
            raise DamagedObjectError(
                self.url, "it was cut off", entry=entry, expected=f"{size} bytes", found=found
            )

    def renew(self) -> None:
        """Compare a local copy of the object, and read from the storage again if it is damaged."""
        renewed(self._reader)

    @property
    def verifies_always(self) -> bool:
        """Whether nothing is given out unverified."""
        return self._verify_always

    @property
    def piece_bytes(self) -> int:
        """How much of a blob is read at once where it is read through: less where no request is."""
        return _READ_PIECE if self._reader.maps else _PIECE

    def load(self, blob: StoredBlob, *, mapped: bool) -> memoryview:
        """Return a blob's bytes, verified; a large mapped one only once, or not at all.

        Args:
            blob: one of this object's.
            mapped: its codec takes any bytes, so that a large map may stay unverified.

        Raises:
            DamagedObjectError: the bytes are not those that were written.
        """
        if not blob.stored_nbytes:
            return memoryview(b"")
        if blob.method == DEFLATED:
            return _joined(blob.verified_pieces(), blob.nbytes)
        view = self.view(blob.entry, blob.offset, blob.stored_nbytes)
        is_large_map = self._reader.maps and blob.stored_nbytes >= _ALWAYS_VERIFIED
        if is_large_map and self._is_trusted(blob, mapped=mapped):
            return view
        if (found := crc32(view)) != blob.stored_crc:
            blob.refuse(found, blob.stored_crc)
        if is_large_map:
            # A large map shows the same pages again, so once is enough. Anything else may be read
            # anew, and a checksum says nothing of the next read.
            self._verified_offsets.add(blob.offset)
        return view

    def _is_trusted(self, blob: StoredBlob, *, mapped: bool) -> bool:
        may_stay_unverified = mapped and not self._verify_always
        return may_stay_unverified or blob.offset in self._verified_offsets


def _joined(pieces: Iterator[bytes], nbytes: int) -> memoryview:
    """Return pieces in memory that is aligned as blobs are."""
    import numpy as np  # not with the package: who only lists rows needs none

    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    view = memory.data[start : start + nbytes]
    at = 0
    for piece in pieces:
        view[at : at + len(piece)] = piece
        at += len(piece)
    return view.toreadonly()


@dataclass(slots=True, eq=False)  # not frozen: to make one would take three times as long
class StoredBlob:
    """One blob of an entry; also the payload of its copy in another object. Not to be changed.

    Attributes:
        source: the bytes of the object that it lies in.
        entry: the entry's name, for messages.
        offset: its first byte, from the object's start.
        nbytes: its number of bytes, before it was compressed.
        crc: the CRC-32 of the same.
        suffix: what its bytes are to other tools.
        method: how it lies there; see `compression`.
        stored_nbytes: its number of bytes in the object.
        stored_crc: the CRC-32 of these.
    """

    source: ObjectBytes
    entry: str
    offset: int
    nbytes: int
    crc: int
    suffix: str
    method: int
    stored_nbytes: int
    stored_crc: int

    def load(self, *, mapped: bool = False) -> memoryview:
        """Return its bytes; see `ObjectBytes.load`. Those of an Arrow stream may be compressed."""
        return self.source.load(self, mapped=mapped)

    @property
    def unpacked_nbytes(self) -> int | None:
        """How many bytes an Arrow stream has that Arrow compressed; None for any other blob."""
        return self.nbytes if self.method == ARROW else None

    @property
    def is_deflated(self) -> bool:
        """Whether it lies there deflated, so that its bytes are found by reading from its start."""
        return self.method == DEFLATED

    def _pieces(self, get: Callable[[str, int, int], memoryview]) -> Iterator[memoryview]:
        """Yield its bytes as they lie there, unverified.

        Raises:
            DamagedObjectError: there are too few.
        """
        offset, end = self.offset, self.offset + self.stored_nbytes
        while offset < end:
            size = min(end - offset, _PIECE)
            yield get(self.entry, offset, size)
            offset += size

    def verified_pieces(self) -> Iterator[bytes]:
        """Yield its bytes in pieces of 1 MiB, copied: a map's pages would count as memory, too.

        Those of a file on a network have 8 MiB, since each is a request.

        Raises:
            DamagedObjectError: the bytes are not those that were written; their checksum is
                compared after the last piece.
        """
        found = 0
        for piece in self._inflated(self._copies()):
            found = crc32(piece, found)
            yield piece
        if found != self._crc_of_pieces:
            self.refuse(found, self._crc_of_pieces)

    @property
    def _crc_of_pieces(self) -> int:
        return self.crc if self.method == DEFLATED else self.stored_crc

    def _copies(self) -> Iterator[bytes]:
        end = self.offset + self.stored_nbytes
        step = self.source.piece_bytes if self.suffix == FILE_SUFFIX else _READ_PIECE
        for offset in range(self.offset, end, step):
            yield self.source.copy(self.entry, offset, min(end - offset, step))

    def copy(self, start: int, size: int) -> bytes:
        """Return a range of its bytes as they lie there, copied and unverified.

        Raises:
            DamagedObjectError: there are too few.
        """
        return self.source.copy(self.entry, self.offset + start, size)

    def _inflated(self, pieces: Iterator[Buffer]) -> Iterator[bytes]:
        if self.method != DEFLATED:
            yield from pieces  # type: ignore[misc]
            return
        try:
            yield from inflated(pieces, self.nbytes)
        except ValueError as err:
            raise DamagedObjectError(self.source.url, str(err), entry=self.entry) from err

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        """Hand over its bytes as they lie there, unverified; the writer compares their checksum."""
        # what is read later may be of any size, and a map's pages would count as memory
        is_file = self.suffix == FILE_SUFFIX
        for piece in self._copies() if is_file else self._pieces(self.source.view):
            write(piece)

    def verify(self) -> None:
        """Read all of it and compare its checksum.

        Raises:
            DamagedObjectError: the bytes are not those that were written.
        """
        stored = found = 0
        # fresh: what was kept since opening does not tell what the storage holds now
        for piece in self._pieces(self.source.fresh_view):
            stored = crc32(piece, stored)
        if stored != self.stored_crc:
            self.refuse(stored, self.stored_crc)
        if self.method == DEFLATED:
            for part in self._inflated(self._pieces(self.source.fresh_view)):
                found = crc32(part, found)
            if found != self.crc:
                self.refuse(found, self.crc)

    def refuse(self, found: int, expected: int) -> NoReturn:
        """Raise the error of a checksum that differs from the written one."""
        raise crc_error(self.source.url, self.entry, expected, found)


def crc_error(url: str, entry: str | None, expected: int, found: int) -> DamagedObjectError:
    """Return the error of a checksum that differs, of an entry or (None) of the index."""
    return DamagedObjectError(
        url,
        "its index's checksum differs" if entry is None else "its checksum differs",
        entry=entry,
        expected=f"CRC-32 {expected:08x}",
        found=f"{found:08x}",
    )
