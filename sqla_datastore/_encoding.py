"""Encoding a value and its nested values, then writing each as one object."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite

from typing_extensions import Buffer

from sqla_datastore._decoding import MAX_DEPTH, StoredBlob, StoredEntry
from sqla_datastore._manifest import (
    FORMAT_VERSION,
    MAX_ENTRIES,
    MAX_NESTED,
    SUFFIXES,
    Manifest,
    dump_json,
)
from sqla_datastore._zip import ALIGNMENT, MANIFEST, PACKED, WrongSizeError, ZipWriter, crc32
from sqla_datastore.codecs import advice, find_codec
from sqla_datastore.codecs.protocol import JSON, Codec, Payload
from sqla_datastore.exceptions import DataStoreError, StaleValueError, UnsupportedTypeError
from sqla_datastore.storage.protocol import ObjectWriter

__all__ = ["ObjectPlan", "Plan", "matches", "plan"]

MAX_NESTED_DEPTH = 50
_MAX_BARE_INT = 2**53
_PACK_ABOVE = 1000
_SMALL = 64 * 1024
_MAX_STEM = 64
_UNSAFE = re.compile(r"[^a-z0-9_]")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(10))}

NestedEntries = Callable[[object], Mapping[str, object]]


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """The payload of a blob that is copied from another object."""

    source: StoredBlob

    @property
    def nbytes(self) -> int:
        return self.source.nbytes

    @property
    def suffix(self) -> str:
        return self.source.suffix

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        for piece in self.source.pieces():
            write(piece)


@dataclass(slots=True)
class _Entry:
    """An encoded entry: its node as JSON text and its payloads."""

    name: str
    node: str
    payloads: list[Payload] = field(default_factory=list)
    has_nested: bool = False


class Plan:
    """A value and its nested values, encoded; nothing was read or written yet.

    Attributes:
        objects: the value's object, then those of its nested values, numbered as in their URLs.
        nested_values: the nested values in that order, so ``objects[1:]``.
    """

    def __init__(self, objects: list[ObjectPlan], nested_values: list[object]) -> None:
        self.objects = objects
        self.nested_values = nested_values


class ObjectPlan:
    """One object to be written.

    Attributes:
        nbytes: the number of payload bytes, without index and padding.
    """

    def __init__(self, entries: list[_Entry], nested_values: list[object]) -> None:
        self._entries = entries
        self._nested_values = nested_values  # grows until the whole plan is made
        self.nbytes = sum(payload.nbytes for entry in entries for payload in entry.payloads)

    def write(self, writer: ObjectWriter) -> None:
        """Write the object in one pass; at most once, since payloads hand over their bytes once.

        Uses a buffer of 256 KiB whatever the payload's size.

        Args:
            writer: the new object, empty.

        Raises:
            StaleValueError: a value changed its size since it was planned.
            DamagedObjectError: an entry to be copied is not what was written.
            StorageError: the storage failed.
        """
        out = ZipWriter(writer)
        manifest = _BlobWriter(out, self._entries).write(len(self._nested_values))
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
    """Writes the blobs of one object and notes where they lie."""

    def __init__(self, out: ZipWriter, entries: list[_Entry]) -> None:
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
        rounded[-1] = sizes[packed[-1]]
        self._out.begin(PACKED, sum(rounded))
        for index in packed:
            with _named_errors(self._payloads[index][0].name):
                self._offsets[index] = self._out.part()
                self._payloads[index][1].write_to(self._out.write)
                if self._out.position != self._offsets[index] + sizes[index]:
                    raise WrongSizeError(f"not the {sizes[index]} bytes that were announced")
                self._take_crc(index, self._out.part_crc)
        self._out.end()

    def _take_crc(self, index: int, crc: int) -> None:
        payload = self._payloads[index][1]
        if isinstance(payload, _Copy) and crc != payload.source.crc:
            payload.source.refuse(crc)
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


def _member_names(entries: list[_Entry]) -> Iterator[str]:
    """Yield a member's name for each blob: safe everywhere, unique whatever the case."""
    taken: Counter[str] = Counter()
    for entry in entries:
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


def plan(
    entries: Mapping[str, object],
    *,
    nested_entries: NestedEntries,
    column: str | None = None,
) -> Plan:
    """Encode a value and all values nested in it; no I/O except for entries that must be loaded.

    Args:
        entries: the value's entries in order. A `StoredEntry` is copied as it is, without decoding;
            one that refers to nested objects is loaded and encoded again.
        nested_entries: gives the entries of a nested value that a codec hands over.
        column: ``table.column`` for messages.

    Returns:
        The plan; it refers to the entries' memory until its objects are written.

    Raises:
        UnsupportedTypeError: a value cannot be stored, contains itself, or nests too deeply; a name
            is no text that UTF-8 can express.
    """
    family = _Family(nested_entries, column)
    family.add(entries, "")
    return Plan(family.objects(), family.nested_values)


def matches(entry: StoredEntry, value: object, *, nested_entries: NestedEntries) -> bool:
    """Return whether a value would be stored as the very bytes of an entry.

    Encodes the value and compares node, sizes and checksums; reads its memory once, the object not
    at all. An entry that refers to nested objects never matches.
    """
    family = _Family(nested_entries, None)
    encoded = family.encode(entry.name, value, "")
    if encoded.has_nested or entry.has_nested or encoded.node != entry.node:
        return False
    blobs = entry.blobs
    if [blob.nbytes for blob in blobs] != [payload.nbytes for payload in encoded.payloads]:
        return False
    pairs = zip(blobs, encoded.payloads, strict=True)
    return all(blob.crc == _crc_of(payload) for blob, payload in pairs)


def _crc_of(payload: Payload) -> int:
    crc = 0

    def take(data: Buffer) -> None:
        nonlocal crc
        crc = crc32(data, crc)

    payload.write_to(take)
    return crc


class _Family:
    """A value and the values nested in it, numbered in the order in which they were met."""

    def __init__(self, nested_entries: NestedEntries, column: str | None) -> None:
        self.nested_values: list[object] = []
        self.column = column
        self._nested_entries = nested_entries
        self._encoded: dict[int, list[_Entry]] = {}
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()

    def objects(self) -> list[ObjectPlan]:
        """Return the plans of all objects, the outermost value's first."""
        return [
            ObjectPlan(self._encoded[number], self.nested_values)
            for number in range(-1, len(self.nested_values))
        ]

    def add(self, entries: Mapping[str, object], place: str, number: int = -1) -> None:
        """Encode the entries of the value of a number; -1 is the outermost."""
        if len(entries) > MAX_ENTRIES:
            raise UnsupportedTypeError(
                f"{len(entries)} entries are more than {MAX_ENTRIES}; store them as a frame",
                column=self.column,
            )
        self._encoded[number] = [self.encode(name, value, place) for name, value in entries.items()]

    def encode(self, name: str, value: object, place: str) -> _Entry:
        """Encode one entry of the value at a place."""
        self._check_name(name)
        where = f"{place}[{name!r}]" if place else name
        if isinstance(value, StoredEntry):
            if not value.has_nested:
                return _Entry(name, value.node, [_Copy(blob) for blob in value.blobs])
            value = value.load()
        encoder = _Encoder(self, where)
        try:
            node = dump_json(encoder.encode(value))
            node.encode()
        except (DataStoreError, MemoryError, OSError):
            raise
        except RecursionError as err:
            raise encoder.unsupported(value, "it nests too deeply") from err
        except Exception as err:
            reason = f"its codec failed ({type(err).__name__}: {err}); convert it"
            raise encoder.unsupported(value, reason) from err
        return _Entry(name, node, encoder.payloads, encoder.has_nested)

    def _check_name(self, name: object) -> None:
        reason = "" if isinstance(name, str) else f"is of type {type(name).__name__}, not str"
        if isinstance(name, str) and not _is_text(name):
            reason = "has a surrogate, which UTF-8 cannot express"
        if reason:
            raise UnsupportedTypeError(
                f"the entry name {name!r} {reason}; rename the entry",
                column=self.column,
                type=type(name),
            )

    def number(self, value: object, encoder: _Encoder) -> int:
        """Return the number of a nested value, encoding it when it is met first."""
        key = id(value)
        if key in self._open:
            raise encoder.unsupported(value, "it contains itself; a value is stored as a tree")
        if key in self._numbers:
            return self._numbers[key]
        if len(self._open) >= MAX_NESTED_DEPTH or len(self.nested_values) >= MAX_NESTED:
            limits = f"{MAX_NESTED_DEPTH} levels or {MAX_NESTED} nested values"
            raise encoder.unsupported(value, f"there are more than {limits}; flatten it")
        number = self._numbers[key] = len(self.nested_values)
        self.nested_values.append(value)  # which also keeps the id from being used again
        self._open.add(key)
        self.add(self._nested_entries(value), encoder.where, number)
        self._open.discard(key)
        return number


class _Encoder:
    """What a codec may ask while one entry is encoded; see `codecs.protocol.Encoder`."""

    __slots__ = ("_family", "_open", "_places", "has_nested", "payloads")

    def __init__(self, family: _Family, where: str) -> None:
        self._family = family
        self._places = [where]
        self._open: set[int] = set()
        self.payloads: list[Payload] = []
        self.has_nested = False

    @property
    def where(self) -> str:
        """The place of the value that is being encoded."""
        return "".join(self._places)

    def encode(self, value: object, where: str = "") -> JSON:
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is str and _is_text(value):  # type: ignore[arg-type]
            return value  # type: ignore[return-value]
        if kind is int and -_MAX_BARE_INT <= value <= _MAX_BARE_INT:  # type: ignore[operator]
            return value  # type: ignore[return-value]
        if kind is float and isfinite(value):  # type: ignore[arg-type]
            return value  # type: ignore[return-value]
        return self._encode(value, where)

    def _encode(self, value: object, where: str) -> JSON:
        self._places.append(where)
        try:
            codec = self._codec(value)
            self._open.add(id(value))
            try:
                node = codec.encode(value, self)
            finally:
                self._open.discard(id(value))
        finally:
            self._places.pop()
        return [codec.name, codec.version, node]

    def _codec(self, value: object) -> Codec:
        codec = find_codec(value)
        if codec is None:
            raise self.unsupported(value, advice(value))
        if id(value) in self._open:
            raise self.unsupported(value, "it contains itself; a value is stored as a tree")
        if len(self._open) >= MAX_DEPTH:
            raise self.unsupported(value, f"it nests deeper than {MAX_DEPTH} levels; flatten it")
        return codec

    def blob(self, payload: Payload) -> int:
        self.payloads.append(payload)
        return len(self.payloads) - 1

    def nested(self, value: object) -> int:
        self.has_nested = True
        return self._family.number(value, self)

    def unsupported(self, value: object, reason: str) -> UnsupportedTypeError:
        kind = type(value)
        where = self.where
        return UnsupportedTypeError(
            f"entry {where!r} of type '{kind.__module__}.{kind.__qualname__}' cannot be stored: "
            f"{reason}",
            column=self._family.column,
            entry=where,
            type=kind,
        )


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
