"""The manifest of an object: its entries and where their blobs lie, by columns, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate, islice, pairwise
from operator import add, gt, or_
from typing import Any, Final

from sqla_datastore.codecs.protocol import FILE_SUFFIX, JSON
from sqla_datastore.codecs.strict_json import NotJSONError, dump_json, parse_json
from sqla_datastore.format.archive import ALIGNMENT, MAX_MANIFEST, MalformedError
from sqla_datastore.format.compression import ARROW, LEVELS, MAX_RATIO, STORED, is_claimed
from sqla_datastore.storage.urls import MAX_NESTED

FORMAT: Final = "sqla_datastore"
FORMAT_VERSION: Final = 1
SUFFIXES: Final = (".bin", ".npy", ".arrow", FILE_SUFFIX)
"""Member names end with these; a manifest has their indexes."""

# what writers keep to and readers insist on, so that a small hostile object stays a small value
MAX_ENTRIES = 1_000_000
MAX_BLOBS = 4_000_000
MAX_DEPTH: Final = 100
"""How deep codecs' nodes nest within an entry."""
MAX_NESTED_DEPTH: Final = 50
"""How many objects a nested object lies in."""
_MAX_CRC: Final = 0xFFFFFFFF

# From so many bytes on, nodes are parsed one by one: most of a manifest is nodes, and most of what
# its parsing takes. Below, one call of the parser is faster than the search for their column.
_APART_FROM = 256 * 1024
# How `dump` begins and ends the column of nodes. A quote within a string has a backslash before
# it, so neither can stand in one, but for a string that ends with the characters in front.
_NODES_BEGIN: Final = b'],"nodes":['
_NODES_END: Final = b'"],"'
_BETWEEN_NODES: Final = b'","'
# What follows the nodes is numbers. Without their digits it is this, so that one comparison tells
# the kinds of all of them.
_DIGITS: Final = b"0123456789,"
_BEHIND_NODES: Final = (
    b']"blobs":[]"nested":[]}"blobs":{"offsets":[]"sizes":[]"crcs":[]"kinds":[]}}'
)
_BEHIND_NODES_COMPRESSED: Final = (
    b']"blobs":[]"nested":[]}"blobs":{"offsets":[]"sizes":[]"crcs":[]"kinds":[]"methods":[]'
    b'"stored_sizes":[]"stored_crcs":[]}}'
)
_COMPRESSION: Final = "compression"
_FILES: Final = "files"


class UnknownFeatureError(ValueError):
    """The object requires a feature or version that this reader lacks."""


class UnparsedNodes:
    """The nodes of a large manifest as they stand there: JSON strings without their quotes.

    Immutable to its users, and thread-safe.

    Args:
        column: the strings, with what is between two of them.
        count: how many there are.
    """

    __slots__ = ("_column", "_count", "_is_asked", "_nodes")

    def __init__(self, column: memoryview, count: int) -> None:
        self._column = column
        self._count = count
        self._is_asked = False
        self._nodes: list[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def all(self) -> list[bytes]:
        """Return all of them."""
        if self._nodes is None:
            self._nodes = bytes(self._column).split(_BETWEEN_NODES)
        return self._nodes

    def parsed(self, index: int) -> str:
        """Return one of them as text.

        Raises:
            NotJSONError: it is no string.
        """
        if not self._is_asked:
            # who asks for one may need no other, and twice the usual length of those before has it
            self._is_asked = True
            head = self._column[: (index + 2) * 2 * len(self._column) // self._count]
            nodes = bytes(head).split(_BETWEEN_NODES, index + 1)
            if len(nodes) == index + 2:
                return _parse_string(nodes[index])
        return _parse_string(self.all()[index])


@dataclass(slots=True)
class Manifest:
    """The columns of a manifest.

    Attributes:
        nested: how many nested objects the value's family has.
        names: the entries' names in order.
        nodes: each entry's node as JSON text, or as bytes where it is taken from another manifest
            as it stands there; `node` reads what was parsed.
        counts: each entry's number of blobs; the blobs below stand in the order of entries.
        with_nested: the indexes of entries that refer to nested objects.
        offsets: each blob's first byte, from the object's start.
        sizes: each blob's number of bytes, before it was compressed.
        crcs: the CRC-32 of the same.
        kinds: what each blob is to other tools, as an index into `SUFFIXES`.
        methods: how each blob lies in its member (see `compression`); empty where all are stored.
        stored_sizes: each blob's number of bytes in the object.
        stored_crcs: the CRC-32 of these.
        compression: the level at which all of it was compressed, None for any other object.
        starts: for each entry the index of its first blob; follows from `counts`.
        indexes: each entry's index by its name; only of a manifest that was parsed.
    """

    nested: int
    names: list[str]
    nodes: list[str | bytes] | UnparsedNodes
    counts: list[int]
    with_nested: list[int]
    offsets: list[int]
    sizes: list[int]
    crcs: list[int]
    kinds: list[int]
    methods: list[int] = field(default_factory=list)
    stored_sizes: list[int] = field(default_factory=list)
    stored_crcs: list[int] = field(default_factory=list)
    compression: str | None = None
    starts: list[int] = field(init=False)
    indexes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = [0, *accumulate(self.counts)]
        if not self.methods:
            self.stored_sizes, self.stored_crcs = self.sizes, self.crcs

    def node(self, index: int) -> str:
        """Return an entry's node as JSON text.

        Raises:
            NotJSONError: it is no string; only a part of a manifest that was not parsed is none.
        """
        if isinstance(self.nodes, UnparsedNodes):
            return self.nodes.parsed(index)
        node = self.nodes[index]
        return node if isinstance(node, str) else _parse_string(node)

    def nodes_to_copy(self, start: int, stop: int) -> list[str | bytes]:
        """Return nodes as another manifest takes them.

        Raises:
            NotJSONError: one of them is no string.
        """
        if not isinstance(self.nodes, UnparsedNodes):
            return self.nodes[start:stop]
        nodes = self.nodes.all()[start:stop]
        # all at once, because what is no string would break the other manifest as a whole
        found = parse_json(f'["{_decoded(_BETWEEN_NODES.join(nodes))}"]')
        if len(found) != len(nodes) or not _kinds(found) <= {str}:
            raise NotJSONError("a node of its manifest is no text")
        return [*nodes]

    def dump(self) -> bytes:
        """Return the manifest's bytes, UTF-8."""
        given = self.nodes.all() if isinstance(self.nodes, UnparsedNodes) else self.nodes
        nodes = [node for node in given if isinstance(node, str)]
        apart = len(nodes) < len(given)
        entries: JSON = {
            "names": [*self.names],
            "nodes": [] if apart else [*nodes],
            "blobs": [*self.counts],
            "nested": [*self.with_nested],
        }
        blobs: dict[str, JSON] = {
            "offsets": [*self.offsets],
            "sizes": [*self.sizes],
            "crcs": [*self.crcs],
            "kinds": [*self.kinds],
        }
        if self.methods:
            blobs["methods"] = [*self.methods]
            blobs["stored_sizes"] = [*self.stored_sizes]
            blobs["stored_crcs"] = [*self.stored_crcs]
        manifest: JSON = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "requires": self._features(),
            **({} if self.compression is None else {"compression": self.compression}),
            "nested": self.nested,
            "entries": entries,
            "blobs": blobs,
        }
        data = dump_json(manifest).encode()
        if apart:
            data = _with_nodes(data, given)
        if len(data) > MAX_MANIFEST:
            raise OverflowError(f"the index of {len(data)} bytes exceeds {MAX_MANIFEST}")
        return data

    def _features(self) -> list[JSON]:
        """Return what a reader has to know of."""
        found: list[JSON] = [_COMPRESSION] if self.methods else []
        return [*found, _FILES] if SUFFIXES.index(FILE_SUFFIX) in self.kinds else found

    @classmethod
    def parse(cls, data: bytes, end: int, *, whole: bool = False) -> Manifest:
        """Read a manifest whose checksum was verified, trusting nothing in it.

        The nodes of a large one are left as they are: `node` finds out whether one is a string.

        Args:
            data: its bytes.
            end: the offset that no blob may reach beyond.
            whole: parse all nodes, of a large one too.

        Raises:
            MalformedError: it is not what `dump` writes.
            UnknownFeatureError: it needs a newer reader.
        """
        rest, unparsed = (data, None) if whole or len(data) < _APART_FROM else _without_nodes(data)
        try:
            found = _parse_text(rest)
            if not isinstance(found, dict) or found["format"] != FORMAT:
                raise MalformedError("its manifest is of another format")
            # first: a column that a newer version does without would count as damage below
            _refuse_newer(found)
            entries, blobs = found["entries"], found["blobs"]
            names, nodes = (_texts(entries[key], MAX_ENTRIES) for key in ("names", "nodes"))
            if unparsed is not None and (nodes or len(unparsed) != len(names)):
                # it was another column, or is none of `dump`
                return cls.parse(data, end, whole=True)
            numbers = _numbers if unparsed is None else _natural_numbers
            compressed = {
                key: numbers(blobs[key], largest)
                for key, largest in (
                    *(("methods", ARROW), ("stored_sizes", end), ("stored_crcs", _MAX_CRC)),
                )
                if _COMPRESSION in found["requires"]
            }
            level = found.get(_COMPRESSION)
            manifest = cls(
                nested=_numbers([found["nested"]], MAX_NESTED)[0],
                names=names,
                nodes=[*nodes] if unparsed is None else unparsed,
                counts=numbers(entries["blobs"], MAX_BLOBS),
                with_nested=numbers(entries["nested"], MAX_ENTRIES),
                offsets=numbers(blobs["offsets"], end),
                sizes=numbers(blobs["sizes"], MAX_RATIO * end if compressed else end),
                crcs=numbers(blobs["crcs"], _MAX_CRC),
                kinds=numbers(blobs["kinds"], len(SUFFIXES) - 1),
                compression=level if level in LEVELS else None,
                **compressed,
            )
        except (KeyError, TypeError, UnicodeDecodeError) as err:
            raise MalformedError(
                f"its manifest lacks a key or has another structure ({err!r})"
            ) from err
        manifest._check(end)
        return manifest

    def _check(self, end: int) -> None:
        entries, blobs = len(self.names), len(self.offsets)
        if not entries == len(self.nodes) == len(self.counts) or blobs > MAX_BLOBS:
            raise MalformedError("its manifest's columns differ in length")
        if not blobs == len(self.sizes) == len(self.crcs) == len(self.kinds) == self.starts[-1]:
            raise MalformedError("its manifest's blob columns differ in length")
        self._check_compression(blobs)
        self.indexes = dict(zip(self.names, range(entries), strict=True))
        if len(self.indexes) != entries:
            raise MalformedError("an entry occurs twice in its manifest")
        if any(index >= entries for index in self.with_nested):
            raise MalformedError("its manifest names entries that it does not have")
        self._check_ranges(end)

    def _check_compression(self, blobs: int) -> None:
        if not self.methods:
            return
        if not blobs == len(self.methods) == len(self.stored_sizes) == len(self.stored_crcs):
            raise MalformedError("its manifest's blob columns differ in length")
        for method, size, stored in zip(self.methods, self.sizes, self.stored_sizes, strict=True):
            if (method == STORED and size != stored) or is_claimed(size, stored):
                raise MalformedError("a blob of its manifest claims more bytes than it can have")

    def _check_ranges(self, end: int) -> None:
        offsets = self.offsets
        if reduce(or_, offsets, 0) % ALIGNMENT:
            raise MalformedError("a blob of its manifest is not aligned")
        ends = [*map(add, offsets, self.stored_sizes)]
        # Blobs that overlap would let a small object fill the memory. They need not be in order,
        # because packed blobs lie behind the others; where they are, a sorted copy is spared.
        if any(map(gt, ends, islice(offsets, 1, None))):
            ranges = sorted(zip(offsets, ends, strict=True))
            if any(first[1] > second[0] for first, second in pairwise(ranges)):
                raise MalformedError("blobs of its manifest overlap")
        if max(ends, default=0) > end:
            raise MalformedError("a blob of its manifest reaches beyond the data")


def _without_nodes(data: bytes) -> tuple[bytes, UnparsedNodes | None]:
    """Cut the column of nodes out of a manifest.

    What `dump` has written is cut where the parser would, and behind the nodes there is nothing but
    columns of natural numbers. Of anything else that looks like it, the pieces that are no strings
    are found when they are needed.

    Returns:
        The manifest without nodes, and the nodes; or all of the manifest and None.
    """
    begin = data.find(_NODES_BEGIN) + len(_NODES_BEGIN)
    end = data.find(_NODES_END, begin)
    behind = data[end + 1 :]
    is_as_dumped = begin >= len(_NODES_BEGIN) and data.startswith(b'"', begin) and end > begin
    kinds = behind.translate(None, _DIGITS)
    if not is_as_dumped or kinds not in (_BEHIND_NODES, _BEHIND_NODES_COMPRESSED):
        return data, None
    count = data.count(_BETWEEN_NODES, begin + 1, end) + 1
    return data[:begin] + behind, UnparsedNodes(memoryview(data)[begin + 1 : end], count)


def _with_nodes(data: bytes, nodes: Sequence[str | bytes]) -> bytes:
    """Put nodes into the empty column of a manifest."""
    at = data.index(_NODES_BEGIN) + len(_NODES_BEGIN)
    column = _BETWEEN_NODES.join(
        node if isinstance(node, bytes) else dump_json(node).encode()[1:-1] for node in nodes
    )
    return b'%b"%b"%b' % (data[:at], column, data[at:])


def _parse_string(text: bytes) -> str:
    found = parse_json(f'"{_decoded(text)}"')
    assert isinstance(found, str)
    return found


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as err:
        raise NotJSONError(f"its text is not UTF-8 ({err})") from err


def _parse_text(data: bytes) -> Any:
    try:
        return parse_json(data.decode())
    except NotJSONError as err:
        raise MalformedError(str(err)) from err


def _refuse_newer(manifest: dict[str, Any]) -> None:
    version, requires = manifest["version"], manifest.get("requires", [])
    if type(version) is not int or version < 1 or type(requires) is not list:
        raise MalformedError("its manifest has no version")
    if version > FORMAT_VERSION:
        raise UnknownFeatureError(f"format version {version}")
    if unknown := [each for each in requires if each not in (_COMPRESSION, _FILES)]:
        raise UnknownFeatureError(f"features {', '.join(map(repr, unknown))}")


def _texts(column: object, limit: int) -> list[str]:
    _check_column(column, str, limit)
    return column  # type: ignore[return-value]


def _numbers(column: object, largest: int) -> list[int]:
    _check_column(column, int, MAX_BLOBS)
    numbers: list[int] = column  # type: ignore[assignment]
    if min(numbers, default=0) < 0:
        raise MalformedError("a number of its manifest is out of range")
    return _natural_numbers(numbers, largest)


def _natural_numbers(numbers: list[int], largest: int) -> list[int]:
    if len(numbers) > MAX_BLOBS or max(numbers, default=0) > largest:
        raise MalformedError("a number of its manifest is out of range")
    return numbers


def _check_column(column: object, kind: type, limit: int) -> None:
    if type(column) is not list or len(column) > limit or not _kinds(column) <= {kind}:
        raise MalformedError(f"a column of its manifest is not a list of {kind.__name__}")


def _kinds(column: Iterable[object]) -> set[type]:
    # not `isinstance`, to which True is an int
    return set(map(type, column))
