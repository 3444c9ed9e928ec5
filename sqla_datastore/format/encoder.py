"""Encode a value and its nested values, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from sqla_datastore.codecs import find_codec
from sqla_datastore.codecs.advice import advice
from sqla_datastore.codecs.protocol import JSON, Codec, Payload
from sqla_datastore.codecs.strict_json import (
    BARE_RULES,
    NotJSONError,
    check_readable,
    dump_json,
    is_text,
)
from sqla_datastore.exceptions import DataStoreError, UnsupportedTypeError
from sqla_datastore.format.compression import Level
from sqla_datastore.format.compressors import crc_of
from sqla_datastore.format.copying import CopiedEntries
from sqla_datastore.format.manifest import MAX_DEPTH, MAX_ENTRIES, MAX_NESTED_DEPTH
from sqla_datastore.format.reader import Container, StoredEntry
from sqla_datastore.format.writer import EncodedEntry, ObjectPlan, Part
from sqla_datastore.storage.urls import MAX_NESTED

_BARE_TEXT: Final = 4096
"""Longer text is a codec's, so that the index of an object stays small."""

NestedEntries = Callable[[object], Mapping[str, object]]


class Plan:
    """A value and its nested values, encoded; nothing was read or written yet.

    Attributes:
        objects: the value's object, then those of its nested values, numbered as in their URLs.
        nested_values: the nested values in that order, so ``objects[1:]``.
    """

    def __init__(self, objects: list[ObjectPlan], nested_values: list[object]) -> None:
        self.objects = objects
        self.nested_values = nested_values


def plan(
    entries: Mapping[str, object],
    *,
    nested_entries: NestedEntries,
    column: str | None = None,
    compression: Level | None = None,
) -> Plan:
    """Encode a value and all values nested in it; no I/O except for entries that must be loaded.

    Args:
        entries: the value's entries in order. A `StoredEntry` is copied as it is, without decoding;
            one that refers to nested objects is loaded and encoded again. A `Container` stands for
            its entry of the same name, which must not refer to any: those that follow one another
            there too are copied together.
        nested_entries: gives the entries of a nested value that a codec hands over.
        column: ``table.column`` for messages.
        compression: how hard to compress what shrinks by it, None for not at all. What is copied
            stays as it is.

    Returns:
        The plan; it refers to the entries' memory until its objects are written.

    Raises:
        UnsupportedTypeError: a value cannot be stored, contains itself, or nests too deeply; a name
            is no text that UTF-8 can express.
    """
    family = _Family(nested_entries, column)
    family.add(entries, "")
    return Plan(family.objects(compression), family.nested_values)


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
    # sizes first: checksums read all of the value's memory
    if [blob.nbytes for blob in blobs] != [payload.nbytes for payload in encoded.payloads]:
        return False
    pairs = zip(blobs, encoded.payloads, strict=True)
    return all(blob.crc == _crc(payload) for blob, payload in pairs)


def _crc(payload: Payload) -> int:
    """Return a payload's checksum, without reading what is stored already."""
    known: int | None = getattr(payload, "crc", None)
    return crc_of(payload) if known is None else known


def encoded_nbytes(value: object, nested: list[object]) -> int:
    """Return what an entry of a value would take: its blobs or, where it has none, its node.

    Args:
        value: as an entry would hold it; encoded, so what is costly to encode costs that here.
        nested: the nested values in it are added to it, and not counted.

    Raises:
        UnsupportedTypeError: it cannot be stored.
    """

    def note(inner: object) -> Mapping[str, object]:
        nested.append(inner)
        return {}

    encoded = _Family(note, None).encode("entry", value, "")
    return sum(payload.nbytes for payload in encoded.payloads) or len(encoded.node.encode())


def _around(err: UnicodeEncodeError) -> str:
    return err.object[max(0, err.start - 20) : err.end + 20]


class _Family:
    """A value and the values nested in it, numbered in the order in which they were met."""

    def __init__(self, nested_entries: NestedEntries, column: str | None) -> None:
        self.nested_values: list[object] = []
        self.column = column
        self._nested_entries = nested_entries
        self._parts: dict[int, list[Part]] = {}
        self._open: set[int] = set()

    def objects(self, compression: Level | None) -> list[ObjectPlan]:
        """Return the plans of all objects, the outermost value's first."""
        return [
            ObjectPlan(self._parts[number], self.nested_values, compression)
            for number in range(-1, len(self.nested_values))
        ]

    def add(self, entries: Mapping[str, object], place: str, number: int = -1) -> None:
        """Encode the entries of the value of a number; -1 is the outermost."""
        if len(entries) > MAX_ENTRIES:
            raise UnsupportedTypeError(
                f"{len(entries)} entries are more than {MAX_ENTRIES}; store them as a frame",
                column=self.column,
            )
        self._parts[number] = parts = [*self._encoded(entries, place)]
        for part in parts:
            if isinstance(part, CopiedEntries):
                part.take_nodes()
                self._check_names(part.names)

    def _encoded(self, entries: Mapping[str, object], place: str) -> Iterator[Part]:
        """Encode entries, or note what of them is copied; entries that stay together are one."""
        copied: CopiedEntries | None = None
        for name, value in entries.items():
            if type(value) is not Container:
                copied = None
                yield self.encode(name, value, place)
            elif copied is None or not copied.grow(name, value):
                copied = CopiedEntries(value, name)
                yield copied

    def encode(self, name: str, value: object, place: str) -> EncodedEntry:
        """Encode one entry of the value at a place."""
        self._check_name(name)
        where = f"{place}[{name!r}]" if place else name
        if isinstance(value, StoredEntry):
            if not value.has_nested:
                return EncodedEntry(name, value.node, [*value.blobs])
            # its nested objects are of another object's family, so they are written anew in this
            value = value.load()
        encoder = _Encoder(self, where)
        try:
            node = dump_json(encoder.encode(value))
            # A codec's lone surrogates are refused here, before anything is written:
            # `Manifest.dump` would fail at them later.
            node.encode()
            check_readable(node)
        except (DataStoreError, MemoryError, OSError):
            # not the value's fault, or told already
            raise
        except UnicodeEncodeError as err:
            reason = f"a name in it has a surrogate, which UTF-8 cannot express: {_around(err)!r}"
            raise encoder.unsupported(value, f"{reason}; rename it") from err
        except RecursionError as err:
            raise encoder.unsupported(value, "it nests too deeply") from err
        except NotJSONError as err:
            reason = f"it could not be read again: {err}; store an array or a frame"
            raise encoder.unsupported(value, reason) from err
        except Exception as err:
            reason = f"its codec failed ({type(err).__name__}: {err}); convert it"
            raise encoder.unsupported(value, reason) from err
        return EncodedEntry(name, node, encoder.payloads, encoder.has_nested)

    def _check_names(self, names: list[str]) -> None:
        if not is_text("".join(names)):
            for name in names:
                self._check_name(name)

    def _check_name(self, name: object) -> None:
        reason = "" if isinstance(name, str) else f"is of type {type(name).__name__}, not str"
        if isinstance(name, str) and not (name.isascii() or is_text(name)):
            reason = "has a surrogate, which UTF-8 cannot express"
        if reason:
            raise UnsupportedTypeError(
                f"the entry name {name!r} {reason}; rename the entry",
                column=self.column,
                type=type(name),
            )

    def number(self, value: object, encoder: _Encoder) -> int:
        """Return a new number for a nested value and encode it.

        One that is met again is encoded again: every nested object has one place, so that readers
        can refuse small families that stand for large trees.
        """
        key = id(value)
        if key in self._open:
            raise encoder.unsupported(value, "it contains itself; a value is stored as a tree")
        if len(self._open) >= MAX_NESTED_DEPTH or len(self.nested_values) >= MAX_NESTED:
            limits = f"{MAX_NESTED_DEPTH} levels or {MAX_NESTED} nested values"
            raise encoder.unsupported(value, f"there are more than {limits}; flatten it")
        number = len(self.nested_values)
        self.nested_values.append(value)  # also keeps it alive, so that its id stays its own
        self._open.add(key)
        self.add(self._nested_entries(value), encoder.where, number)
        self._open.discard(key)
        return number


class _Encoder:
    """What a codec may ask while one entry is encoded; see `codecs.protocol.Encoder`."""

    __slots__ = ("__weakref__", "_family", "_open", "_places", "has_nested", "payloads")

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
        rule = BARE_RULES.get(type(value))
        is_bare = rule is not None and rule(value)
        if is_bare and not (type(value) is str and len(value) > _BARE_TEXT):
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
