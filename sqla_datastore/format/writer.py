"""Write one encoded value as one object, in one pass."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice, repeat
from typing import TypeAlias

from typing_extensions import Buffer

from sqla_datastore.codecs.protocol import Payload
from sqla_datastore.exceptions import StaleValueError, UnsupportedTypeError
from sqla_datastore.format.archive import (
    ALIGNMENT,
    MANIFEST,
    PACKED,
    WrongSizeError,
    ZipWriter,
)
from sqla_datastore.format.blobs import StoredBlob
from sqla_datastore.format.compression import DEFLATED, STORED, Level
from sqla_datastore.format.compressors import write_payload
from sqla_datastore.format.copying import CopiedEntries
from sqla_datastore.format.manifest import FORMAT_VERSION, SUFFIXES, Manifest
from sqla_datastore.printable import printable
from sqla_datastore.storage.protocol import ObjectWriter

# many members make an archive slow in other tools: `zipfile` opens 100,000 in 736 milliseconds
_PACK_ABOVE = 1000
_SMALL = 64 * 1024
_MAX_STEM = 64
_UNSAFE = re.compile(r"[^a-z0-9_]")
# names of Windows' devices, whatever suffix follows: such members could not be extracted there
# a stream whose end is not known may be that large; nothing of that size is made
_UNKNOWN = 1 << 40
_LEARNED = re.compile("[0-9a-f]{64}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(10))}


@dataclass(slots=True)
class EncodedEntry:
    """An encoded entry: its node as JSON text and its payloads."""

    name: str
    node: str
    payloads: list[Payload] = field(default_factory=list)
    has_nested: bool = False


Part: TypeAlias = EncodedEntry | CopiedEntries
"""One entry, or several that are copied together."""


class ObjectPlan:
    """One object to be written.

    Attributes:
        entries: the encoded and the copied entries in their order.
        names_with_nested: the names of entries that refer to nested values.
        compression: the level at which blobs are compressed, None to leave them as they are.
    """

    def __init__(
        self,
        entries: Sequence[Part],
        nested_values: list[object],
        compression: Level | None = None,
    ) -> None:
        self.entries = entries
        self.compression = compression
        # grows while the plan is made, so it is counted only when written
        self._nested_values = nested_values
        self.names_with_nested = frozenset(
            entry.name for entry in entries if isinstance(entry, EncodedEntry) and entry.has_nested
        )

    @property
    def nbytes(self) -> int:
        """The number of payload bytes, without index and padding.

        A payload counts as 1 TiB where only its end will tell.
        """
        return sum(
            sum(part.sizes(part.blobs))
            if isinstance(part, CopiedEntries)
            else sum(_announced(payload) for payload in part.payloads)
            for part in self.entries
        )

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
        blobs = _BlobWriter(out, self.entries, self.compression)
        manifest = blobs.write(len(self._nested_values))
        # its data end where the directory begins, so nothing may follow them
        out.add(MANIFEST, _dump(manifest))
        out.close(FORMAT_VERSION)


def _announced(payload: Payload) -> int:
    return payload.nbytes if payload.nbytes >= 0 else _UNKNOWN


def _dump(manifest: Manifest) -> bytes:
    try:
        return manifest.dump()
    except OverflowError as err:
        raise UnsupportedTypeError(
            f"{err}; store large lists and dicts as arrays or frames"
        ) from err


class _BlobWriter:
    """Writes the blobs of one object and notes their offsets and checksums."""

    def __init__(self, out: ZipWriter, parts: Sequence[Part], level: Level | None) -> None:
        self._out = out
        self._parts = parts
        self._level = level
        # what is copied stays as it is, at whatever level
        self._levels: set[str | None] = {level}
        self._names: list[str] = []
        self._nodes: list[str | bytes] = []
        self._counts: list[int] = []
        self._with_nested: list[int] = []
        self._sizes: list[int] = []
        self._kinds: list[int] = []
        self._methods: list[int] = []
        for part in parts:
            if isinstance(part, CopiedEntries):
                self._add_copied(part)
            else:
                self._add(part)
        self._offsets = [0] * len(self._sizes)
        self._crcs = [0] * len(self._sizes)
        self._stored_sizes = self._sizes.copy()
        self._stored_crcs = self._crcs.copy()

    def _add(self, entry: EncodedEntry) -> None:
        if entry.has_nested:
            self._with_nested.append(len(self._names))
        self._names.append(entry.name)
        self._nodes.append(entry.node)
        self._counts.append(len(entry.payloads))
        for payload in entry.payloads:
            self._sizes.append(_announced(payload))
            self._kinds.append(_kind(payload))
            self._methods.append(payload.method if isinstance(payload, StoredBlob) else STORED)

    def _add_copied(self, entries: CopiedEntries) -> None:
        self._names += entries.names
        self._nodes += entries.nodes
        self._counts += entries.counts
        self._sizes += entries.sizes(entries.blobs)
        self._kinds += entries.kinds(entries.blobs)
        self._methods += entries.methods(entries.blobs)
        self._levels.add(entries.compression)

    def write(self, nested: int) -> Manifest:
        """Write all and return the manifest."""
        figures = enumerate(zip(self._sizes, self._methods, strict=True))
        small = [at for at, (size, method) in figures if size < _SMALL and method == STORED]
        packed = small if len(small) > _PACK_ABOVE else []
        self._is_packed = bytearray(len(self._sizes))
        for index in packed:
            self._is_packed[index] = 1
        if len(packed) < len(self._sizes):
            self._write_members()
        if packed:
            self._write_packed(packed)
        self._take_learned()
        is_compressed = any(self._methods)
        return Manifest(
            nested=nested,
            names=self._names,
            nodes=self._nodes,
            counts=self._counts,
            with_nested=self._with_nested,
            offsets=self._offsets,
            sizes=self._sizes,
            crcs=self._crcs,
            kinds=self._kinds,
            methods=self._methods if is_compressed else [],
            stored_sizes=self._stored_sizes,
            stored_crcs=self._stored_crcs,
            compression=self._level if len(self._levels) == 1 else None,
        )

    def _take_learned(self) -> None:
        """Complete the nodes of what learned something while it was written, and tell it where."""
        index = 0
        for first, part in self._placed_parts():
            if isinstance(part, CopiedEntries):
                index += len(part.names)
                continue
            learned: dict[str, str] = {}
            for blob, payload in enumerate(part.payloads, first):
                learned |= getattr(payload, "learned", {})
                if (placed := getattr(payload, "placed", None)) is not None:
                    placed(self._offsets[blob], self._sizes[blob])
            if learned:
                self._nodes[index] = _completed(part.node, learned)
            index += 1

    def _placed_parts(self) -> Iterator[tuple[int, Part]]:
        """Yield all parts, each with the index of its first blob."""
        index = 0
        for part in self._parts:
            yield index, part
            index += len(part.blobs if isinstance(part, CopiedEntries) else part.payloads)

    def _write_members(self) -> None:
        names = [*_member_names(self._names, self._counts, self._kinds)]
        for first, part in self._placed_parts():
            if isinstance(part, CopiedEntries):
                self._copy_members(part, first, names)
                continue
            for index, payload in enumerate(part.payloads, first):
                if not self._is_packed[index]:
                    self._write_member(index, names[index], part.name, payload)

    def _write_member(self, index: int, name: str, entry: str, payload: Payload) -> None:
        with _named_errors(entry):
            if isinstance(payload, StoredBlob):
                self._copy_member(index, name, payload, payload.write_to)
                return
            written = write_payload(self._out, name, payload, self._level)
        self._offsets[index], self._methods[index] = written.offset, written.method
        self._sizes[index], self._crcs[index] = written.size, written.crc
        self._stored_sizes[index] = written.stored_size
        self._stored_crcs[index] = written.stored_crc

    def _copy_member(
        self,
        index: int,
        name: str,
        blob: StoredBlob,
        write_to: Callable[[Callable[[Buffer], object]], object],
    ) -> None:
        """Copy a blob as it lies in another object."""
        is_deflated = blob.method == DEFLATED
        if is_deflated:
            nbytes = blob.nbytes
            self._offsets[index] = self._out.begin_compressed(name, nbytes, is_deflated=True)
        else:
            self._offsets[index] = self._out.begin(name, blob.stored_nbytes)
        write_to(self._out.write)
        found = self._out.end_deflated(blob.nbytes, blob.crc) if is_deflated else self._out.end()
        # copied unverified: damage must not get a right checksum in the copy
        if found != blob.stored_crc:
            blob.refuse(found, blob.stored_crc)
        self._take_figures(index, blob)

    def _take_figures(self, index: int, blob: StoredBlob) -> None:
        self._crcs[index], self._stored_crcs[index] = blob.crc, blob.stored_crc
        self._stored_sizes[index] = blob.stored_nbytes

    def _copy_members(self, part: CopiedEntries, first: int, names: list[str]) -> None:
        blobs, shift = part.blobs, first - part.blobs.start
        wanted = [blob for blob in blobs if not self._is_packed[blob + shift]]
        for stretch in part.stretches(wanted):
            if len(stretch) == 1:
                # it may be of any size, so it is not read at once
                blob, index = part.container.blob_at(stretch.start), stretch.start + shift
                self._write_member(index, names[index], blob.entry, blob)
                continue
            with _named_errors_of(part, stretch):
                found = part.read(stretch)
            for index, (blob, data) in enumerate(found, stretch.start + shift):
                with _named_errors(blob.entry):
                    self._copy_member(index, names[index], blob, partial(_hand_over, data))

    def _write_packed(self, packed: list[int]) -> None:
        # nothing follows the last one
        rounded = sum(_rounded([self._sizes[index] for index in packed[:-1]]))
        self._out.begin(PACKED, rounded + self._sizes[packed[-1]])
        for first, part in self._placed_parts():
            if isinstance(part, CopiedEntries):
                self._copy_packed(part, first)
                continue
            for index, payload in enumerate(part.payloads, first):
                if self._is_packed[index]:
                    self._write_part(index, part.name, payload)
        self._out.end()

    def _write_part(self, index: int, entry: str, payload: Payload) -> None:
        with _named_errors(entry):
            self._offsets[index] = self._out.part()
            payload.write_to(self._out.write)
            # `end` compares only the sum: a part could have grown into its own padding
            if self._out.position != self._offsets[index] + self._sizes[index]:
                raise WrongSizeError(f"not the {self._sizes[index]} bytes that were announced")
            self._crcs[index] = self._stored_crcs[index] = found = self._out.part_crc
            if isinstance(payload, StoredBlob) and found != payload.crc:
                payload.refuse(found, payload.crc)

    def _copy_packed(self, part: CopiedEntries, first: int) -> None:
        blobs, shift = part.blobs, first - part.blobs.start
        wanted = [blob for blob in blobs if self._is_packed[blob + shift]]
        for stretch in part.stretches(wanted):
            with _named_errors_of(part, stretch):
                pieces = part.read_verified(stretch)
                start, stop = stretch.start + shift, stretch.stop + shift
                # their padding is made anew: no checksum of an entry covers it
                rounded = _rounded(self._sizes[start : stop - 1])
                offsets = accumulate(rounded, initial=self._out.part())
                self._offsets[start:stop] = offsets
                self._crcs[start:stop] = self._stored_crcs[start:stop] = part.crcs(stretch)
                rounded.append(0)
                self._out.write(b"".join(map(bytes.ljust, pieces, rounded, repeat(b"\0"))))


def _completed(node: str, learned: dict[str, str]) -> str:
    """Put into a node what stands for something in it, all in one pass."""
    return _LEARNED.sub(lambda found: learned.get(found[0], found[0]), node)


def _hand_over(data: Buffer, write: Callable[[Buffer], object]) -> None:
    write(data)


def _rounded(sizes: list[int]) -> list[int]:
    return [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]


@contextmanager
def _named_errors_of(part: CopiedEntries, stretch: range) -> Iterator[None]:
    """Say which entries were copied at once when an error was raised."""
    try:
        yield
    except Exception as err:
        first, last = (part.container.blob_at(at).entry for at in (stretch[0], stretch[-1]))
        err.add_note(printable(f"while copying entries {first!r} to {last!r}"))
        raise


class _named_errors:  # noqa: N801 - a context manager; as a generator it costs 2 microseconds
    """Say which entry an error is about."""

    __slots__ = ("_entry",)

    def __init__(self, entry: str) -> None:
        self._entry = entry

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, WrongSizeError):
            raise StaleValueError(
                f"entry {self._entry!r} changed its size while it was written ({err}); "
                "do not edit a value from another thread during flush or commit"
            ) from err
        if isinstance(err, Exception):
            err.add_note(printable(f"while writing entry {self._entry!r}"))


def _member_names(
    names: Iterable[str], counts: Iterable[int], kinds: Iterable[int]
) -> Iterator[str]:
    """Yield a member's name for each blob: safe everywhere, unique whatever the case."""
    taken: defaultdict[str, int] = defaultdict(int)
    suffixes = map(SUFFIXES.__getitem__, kinds)
    for name, count in zip(names, counts, strict=True):
        # '-' and '.' are unsafe, so only this function writes them: no entry's name can meet
        # PACKED, MANIFEST or the numbered name of another entry
        stem = _UNSAFE.sub("_", name.lower()[:_MAX_STEM]) or "_"
        if stem in _RESERVED:
            stem += "_"
        taken[stem] += 1
        if taken[stem] > 1:
            stem = f"{stem}-{taken[stem]}"
        for number, suffix in enumerate(islice(suffixes, count)):
            yield f"{stem}.{number}{suffix}" if count > 1 else stem + suffix


def _kind(payload: Payload) -> int:
    return SUFFIXES.index(payload.suffix) if payload.suffix in SUFFIXES else 0
