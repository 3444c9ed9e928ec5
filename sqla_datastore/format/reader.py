"""Reading one object: its index at once, its entries when asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from sqla_datastore.codecs import codec_named
from sqla_datastore.codecs.protocol import JSON, Codec, Description
from sqla_datastore.exceptions import DamagedObjectError, DataStoreError, UnsupportedFormatError
from sqla_datastore.format.archive import Anchor, MalformedError, crc32, read_anchor, read_exactly
from sqla_datastore.format.check import check_archive
from sqla_datastore.format.manifest import (
    FORMAT_VERSION,
    SUFFIXES,
    Manifest,
    UnknownFeatureError,
    parse_json,
)
from sqla_datastore.storage.protocol import ObjectReader

__all__ = ["MAX_DEPTH", "MAX_NESTED_DEPTH", "Container", "StoredEntry"]

MAX_DEPTH = 100
MAX_NESTED_DEPTH = 50
_ALWAYS_VERIFIED = 1024 * 1024
_PIECE = 8 * 1024 * 1024
_BARE = {type(None): "NoneType", bool: "bool", int: "int", float: "float", str: "str"}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredEntry:
    """An entry where it lies in an object; a plan copies it without decoding it.

    Attributes:
        container: the object that it lies in.
        name: its name there.
    """

    container: Container
    name: str

    @property
    def has_nested(self) -> bool:
        """Whether it refers to nested objects, so that a copy needs those too."""
        return self.container._index[self.name] in self.container._with_nested

    @property
    def description(self) -> Description:
        """Type, dtype, shape and size, from the index alone."""
        return self.container.describe(self.name)

    @property
    def node(self) -> str:
        """The entry's node as JSON text."""
        return self.container._manifest.nodes[self.container._index[self.name]]

    @property
    def blobs(self) -> list[StoredBlob]:
        """The entry's blobs in their order."""
        return [
            StoredBlob(self.container, self.name, blob)
            for blob in self.container._blobs_of(self.container._index[self.name])
        ]

    def load(self) -> Any:
        """Return the entry's value."""
        return self.container.load(self.name)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredBlob:
    """One blob of an entry: its figures, and its bytes in pieces."""

    container: Container
    entry: str
    index: int

    @property
    def nbytes(self) -> int:
        """Its number of bytes."""
        return self.container._manifest.sizes[self.index]

    @property
    def suffix(self) -> str:
        """What its bytes are to other tools."""
        return SUFFIXES[self.container._manifest.kinds[self.index]]

    @property
    def crc(self) -> int:
        """The CRC-32 that was written."""
        return self.container._manifest.crcs[self.index]

    def pieces(self) -> Iterator[memoryview]:
        """Yield its bytes, unverified; raises DamagedObjectError where there are too few."""
        offset, left = self.container._manifest.offsets[self.index], self.nbytes
        while left:
            size = min(left, _PIECE)
            yield self.container._view(self.entry, offset, size)
            offset, left = offset + size, left - size

    def refuse(self, found: int) -> NoReturn:
        """Raise what another checksum than the written one deserves."""
        raise _crc_error(self.container.url, self.entry, self.crc, found)


class Container:
    """An object, opened: its index was read and verified, its payloads were not.

    Immutable and thread-safe; holds no file descriptor. Every blob that is copied, decoded or
    fetched is verified against its checksum before it is used. The exception is a blob of 1 MiB or
    more whose codec asks for a map, on a reader that maps: that one is verified by ``check(deep)``,
    or here when `verify_always` is set.

    Attributes:
        url: the object's URL, for messages.
        names: the entries' names in their order.
        nested_count: how many nested objects the value's family has.
    """

    def __init__(
        self,
        reader: ObjectReader,
        url: str,
        manifest: Manifest,
        *,
        nested: Callable[[int], Any],
        verify_always: bool,
    ) -> None:
        self.url = url
        self.names = tuple(manifest.names)
        self.nested_count = manifest.nested
        self._reader = reader
        self._manifest = manifest
        self._nested = nested
        self._verify_always = verify_always
        self._index = {name: index for index, name in enumerate(manifest.names)}
        self._with_nested = frozenset(manifest.with_nested)
        self._verified: set[int] = set()
        self._places: dict[int, str] = {}

    @classmethod
    def open(
        cls,
        reader: ObjectReader,
        url: str,
        *,
        nested: Callable[[int], Any],
        verify_always: bool = False,
    ) -> Container:
        """Read an object's index: one read of its last 64 KiB, and one more where that is short.

        Args:
            reader: the object.
            url: its URL, for messages.
            nested: gives the nested value of a number, not loaded; raises ValueError for a
                number that the object cannot have.
            verify_always: verify large mapped blobs as well.

        Raises:
            DamagedObjectError: it is no object, or its index is not what was written.
            UnsupportedFormatError: it was written by a newer version.
        """
        manifest = _read_manifest(reader, url)
        return cls(reader, url, manifest, nested=nested, verify_always=verify_always)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        return f"<Container {self.url!r}: {len(self.names)} entries>"

    def entry(self, name: str) -> StoredEntry:
        """Return a reference to an entry.

        Raises:
            KeyError: there is none of that name.
        """
        self._index[name]
        return StoredEntry(self, name)

    def describe(self, name: str) -> Description:
        """Return type, dtype, shape and size of an entry from the index alone.

        The size is the payload's own where the codec knows it, else that of its blobs, or of its
        node where it has none. An entry of an unknown codec is described by the codec's name.

        Raises:
            KeyError: there is none of that name.
        """
        index = self._index[name]
        description = _describe(self._node(name))
        if description.nbytes >= 0:
            return description
        blobs, text = self._blobs_of(index), self._manifest.nodes[index]
        nbytes = sum(self._manifest.sizes[blob] for blob in blobs) if blobs else len(text.encode())
        return dataclasses.replace(description, nbytes=nbytes)

    def load(self, name: str) -> Any:
        """Return an entry's value; reads and verifies its own blobs only.

        Raises:
            KeyError: there is none of that name.
            DamagedObjectError: its bytes are not what was written, or make no value.
            UnsupportedFormatError: its codec is unknown, newer, or lacks its library.
        """
        index = self._index[name]
        try:
            return _Decoder(self, name, index).decode(self._node(name))
        except DataStoreError:
            raise
        except ImportError as err:
            raise UnsupportedFormatError(
                f"entry {name!r} of {self.url!r} needs {err.name or 'a library'}, which cannot be "
                f"imported ({err}); install it",
                url=self.url,
                entry=name,
            ) from err
        except NameError:  # a fault of the program; no bytes can cause it
            raise
        except Exception as err:
            raise self._damaged(name, f"it makes no value ({type(err).__name__}: {err})") from err

    def check(self, *, deep: bool = False) -> Iterator[str]:
        """Yield what is wrong with the object, in words; nothing when it is whole.

        Compares what other tools see (headers, central directory) with the manifest and parses all
        nodes.

        Args:
            deep: read all payloads and compare their checksums.
        """
        yield from check_archive(self._reader, self._manifest, deep=deep)
        for name in self.names:
            yield from self._check_entry(name, deep=deep)

    def _check_entry(self, name: str, *, deep: bool) -> Iterator[str]:
        try:
            self._node(name)
            for blob in self._blobs_of(self._index[name]) if deep else ():
                self._verify(name, blob)
        except DataStoreError as err:
            yield str(err)

    def _blobs_of(self, index: int) -> range:
        return range(self._manifest.starts[index], self._manifest.starts[index + 1])

    def _node(self, name: str) -> JSON:
        try:
            node: JSON = parse_json(self._manifest.nodes[self._index[name]])
        except MalformedError as err:
            raise self._damaged(name, str(err)) from err
        return node

    def _blob(self, name: str, blob: int, *, mapped: bool) -> memoryview:
        size = self._manifest.sizes[blob]
        if not size:
            return memoryview(b"")
        view = self._view(name, self._manifest.offsets[blob], size)
        large_map = self._reader.maps and size >= _ALWAYS_VERIFIED
        if large_map and (blob in self._verified or (mapped and not self._verify_always)):
            return view
        expected, found = self._manifest.crcs[blob], crc32(view)
        if expected != found:
            raise _crc_error(self.url, name, expected, found)
        if large_map:
            self._verified.add(blob)
        return view

    def _verify(self, name: str, blob: int) -> None:
        """Compare a blob's checksum anew, in pieces."""
        stored, found = StoredBlob(self, name, blob), 0
        for piece in stored.pieces():
            found = crc32(piece, found)
        if found != stored.crc:
            stored.refuse(found)

    def _view(self, name: str, offset: int, size: int) -> memoryview:
        view = self._reader.view(offset, size).toreadonly()
        if len(view) != size:
            raise DamagedObjectError(
                self.url, "it was cut off", entry=name, expected=f"{size} bytes", found=len(view)
            )
        return view

    def _damaged(self, name: str, reason: str) -> DamagedObjectError:
        return DamagedObjectError(self.url, reason, entry=name)


def _read_manifest(reader: ObjectReader, url: str) -> Manifest:
    try:
        anchor, suffix = read_anchor(reader)
        _refuse_newer(anchor)
        data = _manifest_bytes(reader, anchor, suffix)
        if (found := crc32(data)) != anchor.crc:
            raise _crc_error(url, None, anchor.crc, found)
        return Manifest.parse(data, anchor.offset)
    except MalformedError as err:
        raise DamagedObjectError(url, str(err)) from err
    except UnknownFeatureError as err:
        raise UnsupportedFormatError(
            f"{url!r} needs {err}; this version reads format version {FORMAT_VERSION}: "
            "upgrade sqla_datastore",
            url=url,
        ) from err


def _refuse_newer(anchor: Anchor) -> None:
    if anchor.version > FORMAT_VERSION:
        raise UnknownFeatureError(f"format version {anchor.version}")


def _manifest_bytes(reader: ObjectReader, anchor: Anchor, suffix: bytes) -> bytes:
    start = anchor.offset - (reader.size_bytes - len(suffix))
    if start < 0:
        return read_exactly(reader, anchor.offset, anchor.size)
    return suffix[start : start + anchor.size]


def _crc_error(url: str, entry: str | None, expected: int, found: int) -> DamagedObjectError:
    return DamagedObjectError(
        url,
        "its index's checksum differs" if entry is None else "its checksum differs",
        entry=entry,
        expected=f"CRC-32 {expected:08x}",
        found=f"{found:08x}",
    )


def _describe(node: JSON) -> Description:
    if isinstance(node, str):
        return Description("str", nbytes=len(node.encode("utf-8", "surrogatepass")))
    if not isinstance(node, list):
        return Description(_BARE.get(type(node), "unknown"))
    name = node[0] if node and isinstance(node[0], str) else "unknown"
    try:
        return codec_named(name).describe(node[2])
    except Exception:  # a description is shown by repr(), which does not fail for one entry
        return Description(name)


class _Decoder:
    """What a codec may ask while one entry is decoded; see `codecs.protocol.Decoder`."""

    __slots__ = ("_blobs", "_container", "_depth", "_entry", "_nested", "_taken")

    def __init__(self, container: Container, entry: str, index: int) -> None:
        self._container = container
        self._entry = entry
        self._blobs = container._blobs_of(index)
        self._depth = 0
        self._taken: set[int] = set()
        self._nested: set[int] = set()

    def decode(self, node: JSON) -> Any:
        if type(node) is not list:
            if type(node) is dict:
                raise self.damaged("a node is no value")
            return node
        if len(node) != 3:
            raise self.damaged("a node does not have three parts")
        codec, version = self._codec(node[0], node[1])
        if self._depth >= MAX_DEPTH:
            raise self.damaged(f"it nests deeper than {MAX_DEPTH}")
        self._depth += 1
        value = codec.decode(node[2], version, self)
        self._depth -= 1
        return value

    def _codec(self, name: JSON, version: JSON) -> tuple[Codec, int]:
        if type(name) is not str or type(version) is not int or version < 1:
            raise self.damaged("a node names no codec")
        try:
            codec = codec_named(name)
        except KeyError as err:
            raise self._unsupported(f"codec {name!r}; register it") from err
        if version > codec.version:
            newer = f"version {version} of codec {name!r}, which is registered as {codec.version}"
            raise self._unsupported(f"{newer}; upgrade what provides it")
        return codec, version

    def blob(self, number: Any, *, mapped: bool = False) -> memoryview:
        if type(number) is not int or not 0 <= number < len(self._blobs):
            raise self.damaged(f"it has no blob {number!r}")
        if number in self._taken:  # each use would take its size in memory once more
            raise self.damaged(f"it uses blob {number} twice")
        self._taken.add(number)
        return self._container._blob(self._entry, self._blobs[number], mapped=mapped)

    def nested(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < self._container.nested_count:
            raise self.damaged(f"it has no nested value {number!r}")
        place = self._container._places.setdefault(number, self._entry)
        if number in self._nested or place != self._entry:
            raise self.damaged(f"it has nested value {number}, which has another place already")
        self._nested.add(number)
        try:
            return self._container._nested(number)
        except ValueError as err:
            raise self.damaged(str(err)) from err

    def damaged(self, reason: str) -> DamagedObjectError:
        return self._container._damaged(self._entry, reason)

    def _unsupported(self, what: str) -> UnsupportedFormatError:
        url = self._container.url
        return UnsupportedFormatError(
            f"entry {self._entry!r} of {url!r} needs {what}", url=url, entry=self._entry
        )
