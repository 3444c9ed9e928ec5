"""Read one object: its index when it is opened, an entry when it is asked for."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from typing_extensions import Buffer

from sqla_datastore.codecs.protocol import JSON, Description
from sqla_datastore.codecs.strict_json import NotJSONError, parse_json
from sqla_datastore.exceptions import DamagedObjectError, DataStoreError, UnsupportedFormatError
from sqla_datastore.format.archive import (
    Anchor,
    MalformedError,
    crc32,
    read_anchor,
    read_exactly,
)
from sqla_datastore.format.blobs import ObjectBytes, StoredBlob, crc_error
from sqla_datastore.format.check import check_archive
from sqla_datastore.format.compression import STORED
from sqla_datastore.format.decoder import EntryDecoder, describe
from sqla_datastore.format.manifest import (
    FORMAT_VERSION,
    SUFFIXES,
    Manifest,
    UnknownFeatureError,
    UnparsedNodes,
)
from sqla_datastore.printable import hides_nothing
from sqla_datastore.storage.protocol import ObjectReader, renewed


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
        return self.container.has_nested(self.name)

    @property
    def description(self) -> Description:
        """Type, dtype, shape and size, from the index alone."""
        return self.container.describe(self.name)

    @property
    def node(self) -> str:
        """The entry's node as JSON text."""
        return self.container.node_text(self.name)

    @property
    def blobs(self) -> list[StoredBlob]:
        """The entry's blobs in their order."""
        return self.container.blobs(self.name)

    def load(self) -> Any:
        """Return the entry's value; see `Container.load`."""
        return self.container.load(self.name)


class Container:
    """An object, opened: its index was read and verified, its payloads were not.

    Immutable and thread-safe; holds no file descriptor. Every blob that is copied, decoded or
    fetched is verified against its checksum before it is used. The exception is a blob of 1 MiB or
    more whose codec asks for a map, on a reader that maps: that one is verified by ``check(deep)``,
    or here when `verify_always` is set.

    Attributes:
        url: the object's URL, for messages.
        names: the entries' names in their order.
        places: each entry's place in that order, by its name; not to be changed.
        nested_count: how many nested objects the value's family has.
        with_nested: the names of the entries that refer to nested objects.
    """

    def __init__(
        self,
        reader: ObjectReader,
        url: str,
        manifest: Manifest,
        head: Buffer = b"",
        *,
        nested: Callable[[int], Any],
        verify_always: bool,
        origin: Any = None,
    ) -> None:
        self.url = url
        self.names = tuple(manifest.names)
        self.nested_count = manifest.nested
        self.with_nested = frozenset(manifest.names[each] for each in manifest.with_nested)
        self._reader = reader
        self._bytes = ObjectBytes(reader, url, head, verify_always=verify_always, origin=origin)
        self._manifest = manifest
        self._nested = nested
        self.places = manifest.indexes
        self._entry_of_nested: dict[int, str] = {}

    @classmethod
    def open(
        cls,
        reader: ObjectReader,
        url: str,
        *,
        nested: Callable[[int], Any],
        verify_always: bool = False,
        origin: Any = None,
    ) -> Container:
        """Read an object's index: one read of its last 64 KiB, and one more where that is short.

        The payloads of an object that is not larger than that are kept, and not read again.

        Args:
            reader: the object.
            url: its URL, for messages.
            nested: gives the nested value of a number, not loaded; raises ValueError for a
                number that the object cannot have.
            verify_always: verify large mapped blobs as well.
            origin: handed on to blobs that are read later.

        Raises:
            DamagedObjectError: it is no object, or its index is not what was written.
            UnsupportedFormatError: it was written by a newer version.
        """
        manifest, head = _read_manifest(reader, url)
        return cls(
            *(reader, url, manifest, head),
            nested=nested,
            verify_always=verify_always,
            origin=origin,
        )

    @property
    def nbytes(self) -> int:
        """The bytes of all its payloads, before they were compressed."""
        return sum(self._manifest.sizes)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __repr__(self) -> str:
        return f"<Container {self.url!r}: {len(self.names)} entries>"

    def entry(self, name: str) -> StoredEntry:
        """Return a reference to an entry.

        Raises:
            KeyError: there is none of that name.
        """
        self.places[name]
        return StoredEntry(self, name)

    def node_text(self, name: str) -> str:
        """Return an entry's node as JSON text.

        Raises:
            KeyError: there is none of that name.
            DamagedObjectError: it is no text.
        """
        index = self.places[name]
        try:
            return self._manifest.node(index)
        except NotJSONError as err:
            raise self._damaged(name, str(err)) from err

    def blobs(self, name: str) -> list[StoredBlob]:
        """Return an entry's blobs in their order; KeyError where there is no such entry."""
        starts, index = self._manifest.starts, self.places[name]
        return [self._blob(name, blob) for blob in range(starts[index], starts[index + 1])]

    def fetched(self, name: str) -> list[StoredBlob]:
        """Return an entry's blobs with their bytes, unverified, where these come by requests.

        Raises:
            KeyError: there is no such entry.
            DamagedObjectError: the object has become shorter.
        """
        return self._bytes.fetched(self.blobs(name))

    def _blob(self, name: str, blob: int) -> StoredBlob:
        manifest = self._manifest
        return StoredBlob(
            self._bytes,
            name,
            manifest.offsets[blob],
            manifest.sizes[blob],
            manifest.crcs[blob],
            SUFFIXES[manifest.kinds[blob]],
            manifest.methods[blob] if manifest.methods else STORED,
            manifest.stored_sizes[blob],
            manifest.stored_crcs[blob],
        )

    @property
    def compression(self) -> str | None:
        """The level at which all of it was compressed, None for any other object."""
        return self._manifest.compression

    @property
    def manifest(self) -> Manifest:
        """The columns of its index, for who copies entries; not to be changed."""
        return self._manifest

    def blob_at(self, blob: int) -> StoredBlob:
        """Return the blob of a number, counted through all entries."""
        # an entry without blobs starts where the next one does, so the last of these has it
        entry = bisect_right(self._manifest.starts, blob) - 1
        return self._blob(self.names[entry], blob)

    def read(self, blobs: range) -> bytes:
        """Return the bytes of adjacent blobs and what lies between them, unverified, by one read.

        Raises:
            DamagedObjectError: the object has become shorter.
        """
        first, last = self.blob_at(blobs[0]), self.blob_at(blobs[-1])
        size = last.offset + last.stored_nbytes - first.offset
        return self._bytes.copy(last.entry, first.offset, size)

    def has_nested(self, name: str) -> bool:
        """Return whether an entry refers to nested objects; KeyError where there is none."""
        self.places[name]
        return name in self.with_nested

    def describe(self, name: str) -> Description:
        """Return type, dtype, shape and size of an entry from the index alone.

        The size is the payload's own where the codec knows it, else that of its blobs, or of its
        node where it has none. An entry of an unknown codec is described by the codec's name.

        Raises:
            KeyError: there is none of that name.
        """
        description = describe(self._node(name))
        if description.nbytes >= 0:
            return description
        blobs = self.blobs(name)
        nbytes = sum(blob.nbytes for blob in blobs) if blobs else len(self.node_text(name).encode())
        return dataclasses.replace(description, nbytes=nbytes)

    def load(
        self, name: str, *, as_arrow: bool = False, blobs: list[StoredBlob] | None = None
    ) -> Any:
        """Return an entry's value; reads and verifies its own blobs only.

        Args:
            name: the entry's name.
            as_arrow: an Arrow table will do, where the codec can make one without the value.
            blobs: as `fetched` has returned them, so that nothing is requested again.

        Raises:
            KeyError: there is none of that name.
            DamagedObjectError: its bytes are not what was written, or make no value.
            UnsupportedFormatError: its codec is unknown, newer, or lacks its library.
            MemoryError: there is not enough memory for it.
        """
        # A missing entry is a KeyError, but none that comes from decoding is let out as one.
        self.places[name]
        try:
            return self.decode(name, as_arrow=as_arrow, blobs=blobs)
        except DataStoreError as err:
            _hide_raw_cause(err)
            raise
        except ImportError as err:
            raise UnsupportedFormatError(
                f"entry {name!r} of {self.url!r} needs {err.name or 'a library'}, which cannot be "
                f"imported ({err}); install it",
                url=self.url,
                entry=name,
            ) from err
        # a fault of the program, or too small a machine: what an object claims is compared with its
        # bytes before anything of that size is allocated
        except (NameError, MemoryError):
            raise
        except Exception as err:
            error = self._damaged(name, f"it makes no value ({type(err).__name__}: {err})")
            raise error from (err if hides_nothing(err) else None)

    def decode(
        self, name: str, *, as_arrow: bool = False, blobs: list[StoredBlob] | None = None
    ) -> Any:
        """Return an entry's value as `load` does, but let the errors of its codec out unchanged.

        Tests of codecs need the difference: a codec says itself which nodes are damaged.
        """
        node = self._node(name)
        found = self.fetched(name) if blobs is None else blobs
        return self.decoder(name, found).decode(node, as_arrow=as_arrow)

    def decoder(self, name: str, blobs: list[StoredBlob]) -> EntryDecoder:
        """Return what decodes an entry with its blobs, once."""
        return EntryDecoder(self.url, name, blobs, partial(self._nested_of, name))

    def check(self, *, deep: bool = False) -> Iterator[str]:
        """Yield what is wrong with the object, in words; nothing when it is whole.

        Compares what other tools see (headers, central directory) with the manifest and parses all
        nodes.

        Args:
            deep: read all payloads and compare their checksums.
        """
        yield from check_archive(self._reader, self._manifest, deep=deep)
        yield from self._check_manifest()
        for name in self.names:
            yield from self._check_entry(name, deep=deep)

    def verify(self) -> None:
        """Read all payloads and compare their checksums.

        Raises:
            DamagedObjectError: the bytes of an entry are not those that were written.
        """
        for name in self.names:
            for blob in self.blobs(name):
                blob.verify()

    def renew(self) -> bool:
        """Return whether to load again may help: the reader has dropped a damaged copy.

        Raises:
            MissingObjectError: it had, and the object went away.
        """
        return renewed(self._reader)

    def _check_manifest(self) -> Iterator[str]:
        """Yield what is wrong with a manifest whose nodes were left unparsed, as a whole."""
        if isinstance(self._manifest.nodes, UnparsedNodes):
            try:
                _read_manifest(self._reader, self.url, whole=True)
            except DataStoreError as err:
                yield err.message

    def _check_entry(self, name: str, *, deep: bool) -> Iterator[str]:
        try:
            self._node(name)
            for blob in self.blobs(name) if deep else ():
                blob.verify()
        except DataStoreError as err:
            yield err.message

    def _node(self, name: str) -> JSON:
        text = self.node_text(name)
        try:
            node: JSON = parse_json(text)
        except NotJSONError as err:
            raise self._damaged(name, str(err)) from err
        return node

    def _nested_of(self, name: str, number: int) -> Any:
        """Return a nested value, which only one entry of the object may name."""
        if not 0 <= number < self.nested_count:
            raise ValueError(f"it has no nested value {number!r}")
        # An entry may be loaded again, another one must not share its nested value. `setdefault` is
        # atomic, so it decides between threads.
        if self._entry_of_nested.setdefault(number, name) != name:
            raise ValueError(f"another entry names nested value {number} already")
        return self._nested(number)

    def _damaged(self, name: str, reason: str) -> DamagedObjectError:
        return DamagedObjectError(self.url, reason, entry=name)


def _hide_raw_cause(err: DataStoreError) -> None:
    """Drop a cause that quotes an object's names unescaped: a traceback would print it."""
    if err.__cause__ is not None and not hides_nothing(err.__cause__):
        err.__cause__ = None


def _read_manifest(
    reader: ObjectReader, url: str, *, whole: bool = False
) -> tuple[Manifest, Buffer]:
    """Return the manifest, and all bytes before it where they were read with it."""
    try:
        anchor, suffix = read_anchor(reader)
        # before the manifest, which another version may write in another way
        _refuse_newer(anchor)
        data = _manifest_bytes(reader, anchor, suffix)
        if (found := crc32(data)) != anchor.crc:
            raise crc_error(url, None, anchor.crc, found)
        is_whole = len(suffix) == reader.size_bytes
        head = memoryview(suffix)[: anchor.offset] if is_whole else b""
        return Manifest.parse(data, anchor.offset, whole=whole), head
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
