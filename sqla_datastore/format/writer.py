"""Write one encoded value as one object, in one pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqla_datastore.codecs.protocol import Payload
from sqla_datastore.exceptions import StaleValueError, UnsupportedTypeError
from sqla_datastore.format.archive import ALIGNMENT, MANIFEST, PACKED, WrongSizeError, ZipWriter
from sqla_datastore.format.blobs import StoredBlob
from sqla_datastore.format.manifest import FORMAT_VERSION, SUFFIXES, Manifest
from sqla_datastore.storage.protocol import ObjectWriter

# many members make an archive slow in other tools: `zipfile` opens 100,000 in 736 milliseconds
_PACK_ABOVE = 1000
_SMALL = 64 * 1024
_MAX_STEM = 64
_UNSAFE = re.compile(r"[^a-z0-9_]")
# names of Windows' devices, whatever suffix follows: such members could not be extracted there
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(10))}


@dataclass(slots=True)
class EncodedEntry:
    """An encoded entry: its node as JSON text and its payloads."""

    name: str
    node: str
    payloads: list[Payload] = field(default_factory=list)
    has_nested: bool = False


class ObjectPlan:
    """One object to be written.

    Attributes:
        entries: the encoded entries in their order.
        nbytes: the number of payload bytes, without index and padding.
        names_with_nested: the names of entries that refer to nested values.
    """

    def __init__(self, entries: list[EncodedEntry], nested_values: list[object]) -> None:
        self.entries = entries
        # grows while the plan is made, so it is counted only when written
        self._nested_values = nested_values
        self.nbytes = sum(payload.nbytes for entry in entries for payload in entry.payloads)
        self.names_with_nested = frozenset(entry.name for entry in entries if entry.has_nested)

    def write(self, writer: ObjectWriter) -> None:
        """Write the object in one pass; at most once, since payloads hand over their bytes once.

        Uses a buffer of at most 256 KiB, and one call to write a smaller object.

        Args:
            writer: the new object, empty.

        Raises:
            StaleValueError: a value changed its size since it was planned.
            DamagedObjectError: an entry to be copied is not what was written.
            StorageError: the storage failed.
        """
        out = ZipWriter(writer)
        manifest = _BlobWriter(out, self.entries).write(len(self._nested_values))
        data = _dump(manifest)
        out.begin(MANIFEST, len(data))
        out.write(data)
        out.end()
        out.close(FORMAT_VERSION)


def _dump(manifest: Manifest) -> bytes:
    try:
        return manifest.dump()
    except OverflowError as err:
        raise UnsupportedTypeError(
            f"{err}; store large lists and dicts as arrays or frames"
        ) from err


class _BlobWriter:
    """Writes the blobs of one object and notes their offsets and checksums."""

    def __init__(self, out: ZipWriter, entries: list[EncodedEntry]) -> None:
        self._out = out
        self._entries = entries
        self._payloads = [(entry, payload) for entry in entries for payload in entry.payloads]
        self._offsets = [0] * len(self._payloads)
        self._crcs = [0] * len(self._payloads)

    def write(self, nested: int) -> Manifest:
        """Write all and return the manifest."""
        sizes = [payload.nbytes for _, payload in self._payloads]
        small = [index for index, size in enumerate(sizes) if size < _SMALL]
        packed = small if len(small) > _PACK_ABOVE else []
        self._write_members(set(packed), sizes)
        if packed:
            self._write_packed(packed, sizes)
        return Manifest(
            nested=nested,
            names=[entry.name for entry in self._entries],
            nodes=[entry.node for entry in self._entries],
            counts=[len(entry.payloads) for entry in self._entries],
            with_nested=[i for i, entry in enumerate(self._entries) if entry.has_nested],
            offsets=self._offsets,
            sizes=sizes,
            crcs=self._crcs,
            kinds=[_kind(payload) for _, payload in self._payloads],
        )

    def _write_members(self, packed: set[int], sizes: list[int]) -> None:
        for index, name in enumerate(_member_names(self._entries)):
            if index not in packed:
                with _named_errors(self._payloads[index][0].name):
                    self._offsets[index] = self._out.begin(name, sizes[index])
                    self._payloads[index][1].write_to(self._out.write)
                    self._take_crc(index, self._out.end())

    def _write_packed(self, packed: list[int], sizes: list[int]) -> None:
        rounded = [-(-sizes[index] // ALIGNMENT) * ALIGNMENT for index in packed]
        # nothing follows the last one
        rounded[-1] = sizes[packed[-1]]
        self._out.begin(PACKED, sum(rounded))
        for index in packed:
            with _named_errors(self._payloads[index][0].name):
                self._offsets[index] = self._out.part()
                self._payloads[index][1].write_to(self._out.write)
                # `end` compares only the sum: a part could have grown into its own padding
                if self._out.position != self._offsets[index] + sizes[index]:
                    raise WrongSizeError(f"not the {sizes[index]} bytes that were announced")
                self._take_crc(index, self._out.part_crc)
        self._out.end()

    def _take_crc(self, index: int, crc: int) -> None:
        payload = self._payloads[index][1]
        # copied unverified: damage must not get a right checksum in the copy
        if isinstance(payload, StoredBlob) and crc != payload.crc:
            payload.refuse(crc)
        self._crcs[index] = crc


@contextmanager
def _named_errors(entry: str) -> Iterator[None]:
    """Say which entry an error is about."""
    try:
        yield
    except WrongSizeError as err:
        raise StaleValueError(
            f"entry {entry!r} changed its size while it was written ({err}); "
            "do not edit a value from another thread during flush or commit"
        ) from err
    except Exception as err:
        err.add_note(f"while writing entry {entry!r}")
        raise


def _member_names(entries: list[EncodedEntry]) -> Iterator[str]:
    """Yield a member's name for each blob: safe everywhere, unique whatever the case."""
    taken: Counter[str] = Counter()
    for entry in entries:
        # '-' and '.' are unsafe, so only this function writes them: no entry's name can meet
        # PACKED, MANIFEST or the numbered name of another entry
        stem = _UNSAFE.sub("_", entry.name.lower()[:_MAX_STEM]) or "_"
        if stem in _RESERVED:
            stem += "_"
        taken[stem] += 1
        if taken[stem] > 1:
            stem = f"{stem}-{taken[stem]}"
        for number, payload in enumerate(entry.payloads):
            suffix = SUFFIXES[_kind(payload)]
            yield f"{stem}.{number}{suffix}" if len(entry.payloads) > 1 else stem + suffix


def _kind(payload: Payload) -> int:
    return SUFFIXES.index(payload.suffix) if payload.suffix in SUFFIXES else 0
