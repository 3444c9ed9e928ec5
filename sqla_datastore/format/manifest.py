"""The manifest of an object: its entries and where their blobs lie, by columns, as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import add
from typing import Any, Final

from sqla_datastore.codecs.protocol import JSON
from sqla_datastore.codecs.strict_json import NotJSONError, dump_json, parse_json
from sqla_datastore.format.archive import ALIGNMENT, MAX_MANIFEST, MalformedError
from sqla_datastore.storage.urls import MAX_NESTED

FORMAT: Final = "sqla_datastore"
FORMAT_VERSION: Final = 1
SUFFIXES: Final = (".bin", ".npy", ".arrow")
"""Member names end with these; a manifest has their indexes."""

# what writers keep to and readers insist on, so that a small hostile object stays a small value
MAX_ENTRIES = 1_000_000
MAX_BLOBS = 4_000_000
MAX_DEPTH: Final = 100
"""How deep codecs' nodes nest within an entry."""
MAX_NESTED_DEPTH: Final = 50
"""How many objects a nested object lies in."""
_MAX_CRC: Final = 0xFFFFFFFF


class UnknownFeatureError(ValueError):
    """The object requires a feature or version that this reader lacks."""


@dataclass(slots=True)
class Manifest:
    """The columns of a manifest.

    Attributes:
        nested: how many nested objects the value's family has.
        names: the entries' names in order.
        nodes: each entry's node as JSON text.
        counts: each entry's number of blobs; the blobs below stand in the order of entries.
        with_nested: the indexes of entries that refer to nested objects.
        offsets: each blob's first byte, from the object's start.
        sizes: each blob's number of bytes.
        crcs: each blob's CRC-32.
        kinds: what each blob is to other tools, as an index into `SUFFIXES`.
        starts: for each entry the index of its first blob; follows from `counts`.
    """

    nested: int
    names: list[str]
    nodes: list[str]
    counts: list[int]
    with_nested: list[int]
    offsets: list[int]
    sizes: list[int]
    crcs: list[int]
    kinds: list[int]
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = [0, *accumulate(self.counts)]

    def dump(self) -> bytes:
        """Return the manifest's bytes, UTF-8."""
        entries: JSON = {
            "names": [*self.names],
            "nodes": [*self.nodes],
            "blobs": [*self.counts],
            "nested": [*self.with_nested],
        }
        blobs: JSON = {
            "offsets": [*self.offsets],
            "sizes": [*self.sizes],
            "crcs": [*self.crcs],
            "kinds": [*self.kinds],
        }
        manifest: JSON = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "requires": [],
            "nested": self.nested,
            "entries": entries,
            "blobs": blobs,
        }
        data = dump_json(manifest).encode()
        if len(data) > MAX_MANIFEST:
            raise OverflowError(f"the index of {len(data)} bytes exceeds {MAX_MANIFEST}")
        return data

    @classmethod
    def parse(cls, data: bytes, end: int) -> Manifest:
        """Read a manifest whose checksum was verified, trusting nothing in it.

        Args:
            data: its bytes.
            end: the offset that no blob may reach beyond.

        Raises:
            MalformedError: it is not what `dump` writes.
            UnknownFeatureError: it needs a newer reader.
        """
        try:
            found = _parse_text(data)
            if not isinstance(found, dict) or found["format"] != FORMAT:
                raise MalformedError("its manifest is of another format")
            # first: a column that a newer version does without would count as damage below
            _refuse_newer(found)
            entries, blobs = found["entries"], found["blobs"]
            manifest = cls(
                nested=_numbers([found["nested"]], MAX_NESTED)[0],
                names=_texts(entries["names"], MAX_ENTRIES),
                nodes=_texts(entries["nodes"], MAX_ENTRIES),
                counts=_numbers(entries["blobs"], MAX_BLOBS),
                with_nested=_numbers(entries["nested"], MAX_ENTRIES),
                offsets=_numbers(blobs["offsets"], end),
                sizes=_numbers(blobs["sizes"], end),
                crcs=_numbers(blobs["crcs"], _MAX_CRC),
                kinds=_numbers(blobs["kinds"], len(SUFFIXES) - 1),
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
        if len(set(self.names)) != entries:
            raise MalformedError("an entry occurs twice in its manifest")
        if any(index >= entries for index in self.with_nested):
            raise MalformedError("its manifest names entries that it does not have")
        self._check_ranges(end)

    def _check_ranges(self, end: int) -> None:
        if any(offset % ALIGNMENT for offset in self.offsets):
            raise MalformedError("a blob of its manifest is not aligned")
        # Sorted, because packed blobs lie behind the others. Blobs that overlap would let a small
        # object fill the memory.
        ranges = sorted(zip(self.offsets, map(add, self.offsets, self.sizes), strict=True))
        if any(first[1] > second[0] for first, second in pairwise(ranges)):
            raise MalformedError("blobs of its manifest overlap")
        if ranges and ranges[-1][1] > end:
            raise MalformedError("a blob of its manifest reaches beyond the data")


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
    if requires:
        raise UnknownFeatureError(f"features {', '.join(map(repr, requires))}")


def _texts(column: object, limit: int) -> list[str]:
    _check_column(column, str, limit)
    return column  # type: ignore[return-value]


def _numbers(column: object, largest: int) -> list[int]:
    _check_column(column, int, MAX_BLOBS)
    numbers: list[int] = column  # type: ignore[assignment]
    if numbers and (min(numbers) < 0 or max(numbers) > largest):
        raise MalformedError("a number of its manifest is out of range")
    return numbers


def _check_column(column: object, kind: type, limit: int) -> None:
    if type(column) is not list or len(column) > limit or not _kinds(column) <= {kind}:
        raise MalformedError(f"a column of its manifest is not a list of {kind.__name__}")


def _kinds(column: Iterable[object]) -> set[type]:
    # not `isinstance`, to which True is an int
    return set(map(type, column))
