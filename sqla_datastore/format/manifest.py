"""The manifest of an object: its entries and where their blobs lie, by columns, as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import accumulate, chain, islice, pairwise
from operator import add, gt, or_
from typing import Any, Final, NamedTuple

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
_COMPRESSION: Final = "compression"
_FILES: Final = "files"
_REMEMBERED_BYTES: Final = 4096
"""Of names or nodes; those of many objects are equal where these are small."""
_STORED_COLUMNS: Final = 6
"""Of numbers, in a manifest without compression."""

# From so many bytes on, nodes are parsed one by one: most of a manifest is nodes, and most of what
# its parsing takes. Below, one call of the parser is faster.
_APART_FROM = 256 * 1024
# How `dump` begins and ends the column of nodes. A quote within a string has a backslash before
# it, so neither can stand in one, but for a string that ends with the characters in front.
_NODES_BEGIN: Final = b'],"nodes":['
_NODES_END: Final = b'"],"'
_BETWEEN_NODES: Final = b'","'
# What `dump` writes before the nodes, and from their end on. Nothing in it matches in two ways.
_BEFORE_NODES: Final = re.compile(
    (
        rf'\{{"format":"{FORMAT}","version":{FORMAT_VERSION},"requires":\['
        rf'(|"{_COMPRESSION}"|"{_FILES}"|"{_COMPRESSION}","{_FILES}")\],'
        rf'(?:"{_COMPRESSION}":"([a-z]{{1,20}})",)?"nested":(0|[1-9][0-9]{{0,19}}),'
        r'"entries":\{"names":(\[.*)'
    ).encode(),
    re.DOTALL,
)
_COLUMNS: Final = (
    *(b'\\],"blobs":', b',"nested":', b'\\},"blobs":\\{"offsets":', b',"sizes":'),
    *(b',"crcs":', b',"kinds":', b'(?:,"methods":', b',"stored_sizes":', b',"stored_crcs":'),
)
_BEHIND_NODES: Final = re.compile(
    b"".join(rb"%b\[([0-9,]*)\]" % each for each in _COLUMNS) + rb")?\}\}"
)


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
        parts = (None if whole else _parts_of_dumped(data)) or _parts_of_any(data)
        if parts.nested > MAX_NESTED or len(parts.names) > MAX_ENTRIES:
            raise MalformedError("a number of its manifest is out of range")
        counts, with_nested, offsets, sizes, crcs, kinds, *compressed = parts.numbers
        manifest = cls(
            *(parts.nested, parts.names, parts.nodes),
            *(counts, with_nested, offsets, sizes, crcs, kinds),
            compression=parts.level if parts.level in LEVELS else None,
        )
        if compressed and compressed[0]:
            manifest.methods, manifest.stored_sizes, manifest.stored_crcs = compressed
        manifest._check(end)
        return manifest

    def _check(self, end: int) -> None:
        entries, blobs = len(self.names), len(self.offsets)
        if not entries == len(self.nodes) == len(self.counts) or blobs > MAX_BLOBS:
            raise MalformedError("its manifest's columns differ in length")
        if not blobs == len(self.sizes) == len(self.crcs) == len(self.kinds) == self.starts[-1]:
            raise MalformedError("its manifest's blob columns differ in length")
        # all are natural, so those that a sum or the ends of blobs limit need no look of their own
        if max(self.kinds, default=0) >= len(SUFFIXES) or max(self.crcs, default=0) > _MAX_CRC:
            raise MalformedError("a number of its manifest is out of range")
        if self.methods:
            self._check_compression(blobs, end)
        self.indexes = dict(zip(self.names, range(entries), strict=True))
        if len(self.indexes) != entries:
            raise MalformedError("an entry occurs twice in its manifest")
        if any(index >= entries for index in self.with_nested):
            raise MalformedError("its manifest names entries that it does not have")
        self._check_ranges(end)

    def _check_compression(self, blobs: int, end: int) -> None:
        if not blobs == len(self.methods) == len(self.stored_sizes) == len(self.stored_crcs):
            raise MalformedError("its manifest's blob columns differ in length")
        if (
            max(self.methods) > ARROW
            or max(self.stored_crcs) > _MAX_CRC
            or max(self.sizes) > MAX_RATIO * end
        ):
            raise MalformedError("a number of its manifest is out of range")
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


class _Parts(NamedTuple):
    """What stands in a manifest, each of its kind, but not yet compared with anything.

    Attributes:
        nested: a natural number.
        names: texts.
        nodes: texts, or what they are parsed from.
        numbers: columns of natural numbers, as `Manifest` has them from `counts` on.
        level: what the level of compression is said to be.
    """

    nested: int
    names: list[str]
    nodes: list[str | bytes] | UnparsedNodes
    numbers: list[list[int]]
    level: object


def _parts_of_dumped(data: bytes) -> _Parts | None:
    """Take apart what `dump` has written: it is cut where the parser would, and each piece parsed.

    Of a large one the nodes are left as they are. Those that are no strings are found when they
    are needed.

    Returns:
        None where it is written in another way, if only by a space, or is damaged.
    """
    begin = data.find(_NODES_BEGIN) + 1
    start = begin + len(_NODES_BEGIN) - 1
    end = data.find(_NODES_END, start) + 1
    if not (begin and end) or data[start] != ord('"'):
        return None
    before, behind = _BEFORE_NODES.fullmatch(data, 0, begin), _BEHIND_NODES.fullmatch(data, end)
    if before is None or behind is None:
        return None
    requires, level, nested, names = before.groups()
    columns = [column for column in behind.groups() if column is not None]
    if (len(columns) > _STORED_COLUMNS) is not (_COMPRESSION.encode() in requires):
        return None
    if b"" in columns[_STORED_COLUMNS:]:  # not written: what it says of numbers is not looked at
        return None
    try:
        texts = [*_texts_in(names)]
        nodes = _nodes(data, start, end)
        # a number that begins with 0, or is missing between two commas, is no JSON
        numbers = _parse_text(b"[[%b]]" % b"],[".join(columns), any_number=True)
    except MalformedError:
        return None
    if len(nodes) != len(texts):
        return None  # a piece of a node looked like what is between two of them
    return _Parts(int(nested), texts, nodes, numbers, level and level.decode())


def _nodes(data: bytes, start: int, end: int) -> Any:
    """Return the nodes that stand in a manifest; of a large one as they are."""
    if len(data) < _APART_FROM:
        return [*_texts_in(b"[%b]" % data[start:end])]
    count = data.count(_BETWEEN_NODES, start + 1, end) + 1
    return UnparsedNodes(memoryview(data)[start + 1 : end - 1], count)


def _texts_in(data: bytes) -> Sequence[str]:
    return _remembered(data) if len(data) <= _REMEMBERED_BYTES else _parsed_texts(data)


def _parsed_texts(data: bytes) -> Sequence[str]:
    return (*_texts(_parse_text(data, any_number=True)),)


_remembered = lru_cache(maxsize=256)(_parsed_texts)


def _parts_of_any(data: bytes) -> _Parts:
    """Take apart a manifest by the parser alone.

    Raises:
        MalformedError: it is no manifest.
        UnknownFeatureError: it needs a newer reader.
    """
    try:
        found = _parse_text(data)
        if not isinstance(found, dict) or found["format"] != FORMAT:
            raise MalformedError("its manifest is of another format")
        # first: a column that a newer version does without would count as damage below
        _refuse_newer(found)
        entries, blobs = found["entries"], found["blobs"]
        names, nodes = (_texts(entries[key]) for key in ("names", "nodes"))
        keys = ["offsets", "sizes", "crcs", "kinds"]
        if _COMPRESSION in found["requires"]:
            keys += "methods", "stored_sizes", "stored_crcs"
        numbers = [entries["blobs"], entries["nested"], *(blobs[key] for key in keys)]
        _check_natural([[found["nested"]], *numbers])
        return _Parts(found["nested"], names, [*nodes], numbers, found.get(_COMPRESSION))
    except (KeyError, TypeError) as err:
        raise MalformedError(
            f"its manifest lacks a key or has another structure ({err!r})"
        ) from err


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


def _parse_text(data: bytes, *, any_number: bool = False) -> Any:
    try:
        return parse_json(data.decode(), any_number=any_number)
    except UnicodeDecodeError as err:
        raise MalformedError(f"its manifest is not UTF-8 ({err})") from err
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


def _texts(column: object) -> list[str]:
    if type(column) is not list or not _kinds(column) <= {str}:
        raise MalformedError("a column of its manifest is not a list of str")
    return column


def _check_natural(columns: list[Any]) -> None:
    if not _kinds(columns) <= {list} or not _kinds(chain.from_iterable(columns)) <= {int}:
        raise MalformedError("a column of its manifest is not a list of int")
    if min(chain.from_iterable(columns), default=0) < 0:
        raise MalformedError("a number of its manifest is out of range")


def _kinds(column: Iterable[object]) -> set[type]:
    # not `isinstance`, to which True is an int
    return set(map(type, column))
