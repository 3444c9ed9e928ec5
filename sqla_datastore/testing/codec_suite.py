"""The conformance suite of codecs, and single values on the same path.

Everything here goes through the format that stores values: a value is planned, written as an
object in memory, and read from it. Nodes and blobs that a stranger could have written are put into
an object of their own, with right checksums, so that only the codec can notice them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NoReturn

import pytest
from typing_extensions import Buffer

from sqla_datastore.codecs import Codec, Description, codec_named, find_codec, register_codec
from sqla_datastore.codecs._base import BytesPayload
from sqla_datastore.codecs.strict_json import dump_json, parse_json
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedFormatError
from sqla_datastore.format.encoder import plan
from sqla_datastore.format.manifest import SUFFIXES
from sqla_datastore.format.reader import Container
from sqla_datastore.format.writer import EncodedEntry, ObjectPlan

_ENTRY: Final = "value"
_URL: Final = "memory:///value"


class _MemoryObject:
    """An object in memory, to be written and then read."""

    maps = False

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def write(self, data: Buffer, /) -> None:
        self._data += data

    def read(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self._data[offset : offset + size_bytes])

    def view(self, offset: int, size_bytes: int) -> memoryview:
        return memoryview(self._data)[offset : offset + size_bytes]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [self.view(*each) for each in ranges]


def encode_value(value: object) -> tuple[str, list[bytes]]:
    """Store one value as an entry of an object in memory, and return what was written for it.

    Args:
        value: what some codec takes.

    Returns:
        The entry's node as JSON text, and its blobs by number.

    Raises:
        UnsupportedTypeError: no codec takes it.
        StaleValueError: a payload hands over another number of bytes than it announced.
    """
    entry = _stored(value).entry(_ENTRY)
    return entry.node, [blob.load().tobytes() for blob in entry.blobs]


def decode_value(text: str, blobs: Sequence[Buffer] = ()) -> Any:
    """Read an entry that consists of a node and blobs, whoever wrote them.

    Makes an object of them with right checksums and loads it. An error that a codec raises itself
    comes out as it is; where values are loaded from a database, it becomes a `DamagedObjectError`.

    Args:
        text: the node as JSON text.
        blobs: the blobs by number.

    Returns:
        The value.

    Raises:
        DamagedObjectError: the node or a blob is not what a codec writes. Also where a codec asks
            for a nested `DataStore`: there is none here.
        UnsupportedFormatError: the node's codec, or its version, is unknown.
    """
    payloads = [BytesPayload(memoryview(blob).tobytes()) for blob in blobs]
    return _written(ObjectPlan([EncodedEntry(_ENTRY, text, [*payloads])], [])).decode(_ENTRY)


def _stored(value: object) -> Container:
    """Return the object of a value."""
    planned = plan({_ENTRY: value}, nested_entries=dict).objects[0]  # type: ignore[arg-type]
    (entry,) = planned.entries
    payloads = entry.payloads if isinstance(entry, EncodedEntry) else []
    suffixes = {payload.suffix for payload in payloads}
    assert suffixes <= {*SUFFIXES}, f"a payload's suffix is none of {SUFFIXES}"
    return _written(planned)


def _written(planned: ObjectPlan) -> Container:
    stored = _MemoryObject()
    planned.write(stored)
    return Container.open(stored, _URL, nested=_no_nested)


def _no_nested(number: int) -> NoReturn:
    raise ValueError(f"nested value {number} is not kept in memory")


class CodecSuite:
    """What every `Codec` keeps, one promise a test.

    The fixture ``codec`` gives the codec, ``values`` examples of what it takes: ordinary, empty and
    large ones, and whatever compares equal without being the same. Override `assert_same` where
    ``==`` says too little or raises.
    """

    @pytest.fixture
    def codec(self) -> Codec:
        """Return the codec."""
        raise NotImplementedError

    @pytest.fixture
    def values(self) -> Sequence[object]:
        """Return values that the codec takes."""
        raise NotImplementedError

    def assert_same(self, back: Any, value: Any) -> None:
        """Fail unless what was read is what was stored."""
        assert back == value

    @pytest.fixture(autouse=True)
    def _registered(self, codec: Codec) -> None:
        try:
            codec_named(codec.name)
        except KeyError:
            register_codec(codec)

    def test_name_and_version_can_be_stored(self, codec: Codec) -> None:
        """The name has a prefix of its maker, the version counts from 1."""
        prefix, dot, rest = codec.name.partition(".")
        assert prefix
        assert dot
        assert rest
        assert type(codec.version) is int
        assert codec.version >= 1
        assert type(codec.mutable) is bool

    def test_every_value_finds_the_codec(self, codec: Codec, values: Sequence[object]) -> None:
        """`types` or `takes` covers the examples."""
        assert values, "give the suite some values"
        for value in values:
            found = find_codec(value)
            assert found is not None
            assert found.name == codec.name

    def test_every_value_comes_back_as_it_was(self, values: Sequence[object]) -> None:
        """A value survives being written as an object and loaded from it, type and all."""
        for value in values:
            back = _stored(value).load(_ENTRY)
            assert type(back) is type(value)
            self.assert_same(back, value)

    def test_the_same_value_is_the_same_bytes(self, values: Sequence[object]) -> None:
        """Encoding is repeatable, also after reading: else an unchanged value is stored anew."""
        for value in values:
            encoded = encode_value(value)
            assert encode_value(value) == encoded
            assert encode_value(decode_value(*encoded)) == encoded

    def test_an_edit_does_not_reach_what_was_read_before(
        self, codec: Codec, values: Sequence[object]
    ) -> None:
        """Two reads share nothing that can be edited; a node is not changed by decoding it."""
        for value in values:
            text, blobs = encode_value(value)
            node = parse_json(text)
            if not isinstance(node, list):
                continue
            first = decode_value(dump_json(node), blobs)
            second = decode_value(dump_json(node), blobs)
            assert first is not second or not codec.mutable
            assert node == parse_json(text)

    def test_any_node_is_described(self, codec: Codec, values: Sequence[object]) -> None:
        """A description never raises, whatever the node is."""
        for value in values:
            for node in _changed(parse_json(encode_value(value)[0])):
                described = codec.describe(node)
                assert isinstance(described, Description)
                assert isinstance(described.type, str)

    def test_a_changed_node_is_a_value_or_damage(self, values: Sequence[object]) -> None:
        """Nothing but our errors comes out of a node that somebody else wrote."""
        for value in values:
            text, blobs = encode_value(value)
            node = parse_json(text)
            if isinstance(node, list):
                for inner in _changed(node[2]):
                    _decoded_or_damaged([*node[:2], inner], blobs)

    def test_changed_bytes_are_a_value_or_damage(self, values: Sequence[object]) -> None:
        """Nothing but our errors comes out of bytes that are cut off or overwritten."""
        for value in values:
            text, blobs = encode_value(value)
            node = parse_json(text)
            for number, blob in enumerate(blobs):
                for noise in _noises(blob):
                    _decoded_or_damaged(node, [*blobs[:number], noise, *blobs[number + 1 :]])


_SCRAPS: Final[tuple[Any, ...]] = (None, True, -1, 2**31, 2**63, 2**70, 1.5, "", "x", [], {}, [[]])
_MAX_CHANGES: Final = 2_000


def _changed(node: Any) -> Iterator[Any]:
    """Yield copies of a node in each of which one part is missing or something else."""
    return islice(_all_changed(node), _MAX_CHANGES)


def _all_changed(node: Any) -> Iterator[Any]:
    yield from _SCRAPS
    if isinstance(node, dict):
        for key in node:
            yield {other: inner for other, inner in node.items() if other != key}
            yield from ({**node, key: inner} for inner in _all_changed(node[key]))
    if isinstance(node, list):
        for number in range(len(node)):
            head, tail = node[:number], node[number + 1 :]
            yield head + tail
            yield from ([*head, inner, *tail] for inner in _all_changed(node[number]))


def _noises(blob: bytes) -> Iterator[bytes]:
    yield b""
    yield blob[:-1]
    yield blob + b"\0"
    yield b"\xff" * len(blob)
    for at in range(0, len(blob), max(1, len(blob) // 64)):
        yield blob[:at] + bytes([blob[at] ^ 0xFF]) + blob[at + 1 :]


def _decoded_or_damaged(node: Any, blobs: Sequence[bytes]) -> None:
    try:
        decode_value(dump_json(node), blobs)
    except (DamagedObjectError, UnsupportedFormatError):
        return
