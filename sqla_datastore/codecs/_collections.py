"""Codecs of Python's own collections, ranges and slices.

Items take the most compact of four forms: JSON in the node, JSON in a blob, packed binary64 or
64-bit integers in a blob, or else one node for each item.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from ._base import SMALL_BYTES, BytesPayload, ExactCodec, field, int_node, read_int
from .protocol import JSON, Codec, Decoder, Encoder
from .strict_json import NotJSONError, bytes_for_brackets, is_bare, parse_json

_PACKED_FROM: Final = 256
_JSON_DEPTH: Final = 16
_MOST_WITH_ONE_HASH: Final = 100
_MOST_BITS_WITH_ONE_HASH: Final = 2**17
_LONG_BITS: Final = 1024
_PACKED_AS: Final = {float: "d", int: "q"}
_CONTAINERS: Final = (list, dict)


class ListCodec(ExactCodec):
    """Lists."""

    name = "plain.list"
    mutable = True
    python_types = (list,)

    def encode(self, value: list[Any], encoder: Encoder) -> JSON:
        return items_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> list[Any]:  # noqa: ARG002
        return read_items(node, decoder)


class TupleCodec(ExactCodec):
    """Tuples; mutable, because an item may be."""

    name = "plain.tuple"
    mutable = True
    python_types = (tuple,)

    def encode(self, value: tuple[Any, ...], encoder: Encoder) -> JSON:
        return items_node(list(value), encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> tuple[Any, ...]:  # noqa: ARG002
        return tuple(read_items(node, decoder))


class SetCodec(ExactCodec):
    """Sets."""

    name = "plain.set"
    mutable = True
    python_types = (set,)

    def encode(self, value: set[Any], encoder: Encoder) -> JSON:
        _refuse_collisions(value, encoder)
        return items_node(_in_stable_order(value), encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        items = read_items(node, decoder)
        return _distinct(set, items, items, decoder)


class FrozensetCodec(ExactCodec):
    """Frozen sets."""

    name = "plain.frozenset"
    python_types = (frozenset,)

    def encode(self, value: frozenset[Any], encoder: Encoder) -> JSON:
        _refuse_collisions(value, encoder)
        return items_node(_in_stable_order(value), encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        items = read_items(node, decoder)
        return _distinct(frozenset, items, items, decoder)


class DictCodec(ExactCodec):
    """Dicts in their order, with keys of any hashable type that has a codec."""

    name = "plain.dict"
    mutable = True
    python_types = (dict,)

    def encode(self, value: dict[Any, Any], encoder: Encoder) -> JSON:
        return pairs_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        return read_pairs(node, decoder)


class RangeCodec(ExactCodec):
    """Ranges."""

    name = "plain.range"
    python_types = (range,)

    def encode(self, value: range, encoder: Encoder) -> JSON:  # noqa: ARG002
        return [int_node(value.start), int_node(value.stop), int_node(value.step)]

    def decode(self, node: Any, version: int, decoder: Decoder) -> range:  # noqa: ARG002
        start, stop, step = (read_int(part, decoder) for part in _three(node, decoder))
        if step == 0:
            raise decoder.damaged("a range's step is 0")
        return range(start, stop, step)


class SliceCodec(ExactCodec):
    """Slices of anything."""

    name = "plain.slice"
    mutable = True
    python_types = (slice,)

    def encode(self, value: slice, encoder: Encoder) -> JSON:
        return [
            encoder.encode(value.start, ".start"),
            encoder.encode(value.stop, ".stop"),
            encoder.encode(value.step, ".step"),
        ]

    def decode(self, node: Any, version: int, decoder: Decoder) -> slice:  # noqa: ARG002
        return slice(*[decoder.decode(part) for part in _three(node, decoder)])


def _in_stable_order(items: Iterable[Any]) -> list[Any]:
    """Return a set's items in an order without hashes, so that equal sets become equal bytes."""
    # An unchanged set that is read again may iterate in another order, and would then be stored
    # anew. Items of different types cannot be compared, but their texts can.
    return sorted(items, key=lambda item: (type(item).__qualname__, _shown(item)))


def _shown(item: object) -> str:
    try:
        return repr(item)
    except ValueError:  # Python refuses to print ints of more than 4,300 digits
        return "…"


def _three(node: Any, decoder: Decoder) -> list[Any]:
    if isinstance(node, list) and len(node) == 3:
        return node
    raise decoder.damaged("a range or slice is not start, stop and step")


def collides(keys: Iterable[Any]) -> bool:
    """Return whether keys have one hash that a set or dict of them would take long to compare.

    Python's hash of a number is its remainder by ``2**61 - 1``, so anybody can make such numbers.
    To compare an int of 400,000 bits with a Decimal takes 0.3 seconds, and four times as long for
    twice the bits.
    """
    keys = list(keys)
    counts = Counter(map(hash, keys))
    most = max(counts.values(), default=0)
    if most < 2 or most > _MOST_WITH_ONE_HASH:
        return most > _MOST_WITH_ONE_HASH
    longest: dict[int, int] = {}
    for key in keys:
        if counts[hash(key)] > 1:
            longest[hash(key)] = max(longest.get(hash(key), 0), _long_bits(key))
    return any(counts[each] * bits > _MOST_BITS_WITH_ONE_HASH for each, bits in longest.items())


def _long_bits(key: Any) -> int:
    """Return how many bits the long numbers of a key have, those of its parts included."""
    if isinstance(key, int):
        bits = key.bit_length()
    elif isinstance(key, Decimal):
        bits = 4 * len(str(key))
    elif isinstance(key, Fraction):
        bits = key.numerator.bit_length() + key.denominator.bit_length()
    else:
        return sum(map(_long_bits, key)) if isinstance(key, tuple | frozenset) else 0
    return bits if bits > _LONG_BITS else 0


def _refuse_collisions(value: Any, encoder: Encoder) -> None:
    if collides(value):
        reason = f"more than {_MOST_WITH_ONE_HASH} of its keys, or long numbers, have the same hash"
        raise encoder.unsupported(value, f"{reason}; store list(value), or list(value.items())")


def _distinct(cls: Any, items: Iterable[Any], keys: list[Any], decoder: Decoder) -> Any:
    """Return a set or dict of items whose keys must be hashable and all different."""
    try:
        if collides(keys):
            raise decoder.damaged(f"too many keys of a {cls.__name__} have the same hash")
        value = _compared(cls, items, decoder)
    except TypeError:
        raise decoder.damaged(f"a {cls.__name__} holds what cannot be hashed") from None
    if len(value) != len(keys):
        raise decoder.damaged(f"a {cls.__name__} holds the same twice")
    return value


def _compared(cls: Any, items: Iterable[Any], decoder: Decoder) -> Any:
    try:
        return cls(items)
    except (ValueError, OverflowError):  # NumPy compares no number with an int of its hash
        raise decoder.damaged(f"a {cls.__name__} holds what cannot be compared") from None


def pairs_node(value: dict[Any, Any], encoder: Encoder) -> JSON:
    """Return the node of a dict's keys and values, in their order."""
    if is_json(value):
        return _json_node(value, encoder)
    _refuse_collisions(value, encoder)
    names = [f"[{_shown(key):.40}]" for key in value]
    return {
        "keys": items_node(list(value), encoder, lambda number: f".keys()[{number}]"),
        "values": items_node(list(value.values()), encoder, names.__getitem__),
    }


def read_pairs(node: Any, decoder: Decoder) -> dict[Any, Any]:
    """Return the dict of a node that `pairs_node` made."""
    pairs: dict[Any, Any]
    if isinstance(node, dict) and "keys" not in node:
        pairs = _read_json(node, dict, decoder)
        return pairs
    keys = read_items(field(node, "keys", decoder), decoder)
    values = read_items(field(node, "values", decoder), decoder)
    if len(keys) != len(values):
        raise decoder.damaged("a dict has not as many values as keys")
    pairs = _distinct(dict, zip(keys, values, strict=True), keys, decoder)
    return pairs


def items_node(
    items: list[Any], encoder: Encoder, where: Callable[[int], str] = "[{}]".format
) -> JSON:
    """Return the node of a list's items, in the most compact of the forms above."""
    if len(items) >= _PACKED_FROM and (packed := _packed_node(items, encoder)) is not None:
        return packed
    if is_json(items):
        return _json_node(items, encoder)
    return {"items": [encoder.encode(item, where(number)) for number, item in enumerate(items)]}


def read_items(node: Any, decoder: Decoder) -> list[Any]:
    """Return the items of a node that `items_node` made."""
    match node:
        case {"items": list(nodes)}:
            return [decoder.decode(inner) for inner in nodes]
        case {"packed": str(code), "blob": number}:
            return _read_packed(code, number, decoder)
    items: list[Any] = _read_json(node, list, decoder)
    return items


def _packed_node(items: list[Any], encoder: Encoder) -> JSON:
    kinds = set(map(type, items))
    code = _PACKED_AS.get(kinds.pop()) if len(kinds) == 1 else None
    if code is None:
        return None
    try:
        packed = array(code, items)
    except OverflowError:  # an int of more than 64 bits
        return None
    return {"packed": code, "blob": encoder.blob(BytesPayload(_little_endian(packed).tobytes()))}


def _read_packed(code: str, number: Any, decoder: Decoder) -> list[Any]:
    data = decoder.blob(number)
    if code not in _PACKED_AS.values() or len(data) % 8:
        raise decoder.damaged("packed numbers are not 64 bits each")
    packed = array(code)
    packed.frombytes(data)
    return _little_endian(packed).tolist()


def _little_endian(packed: array[Any]) -> array[Any]:
    if sys.byteorder == "big":
        packed.byteswap()
    return packed


def is_json(value: list[Any] | dict[Any, Any], depth: int = _JSON_DEPTH) -> bool:
    """Return whether JSON gives a list or dict back as it was, types and all."""
    if depth == 0:
        return False
    items: Iterable[Any] = value
    if isinstance(value, dict):
        if not all(type(key) is str and is_bare(key) for key in value):
            return False
        items = value.values()
    return all(
        is_bare(item) or (type(item) in _CONTAINERS and is_json(item, depth - 1)) for item in items
    )


def _json_node(value: list[Any] | dict[Any, Any], encoder: Encoder) -> JSON:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    if len(text) <= SMALL_BYTES:
        # a copy, because the value may be edited before it is written
        return {"json": _copied(value)}
    text = text.ljust(bytes_for_brackets(text))
    return {"json_blob": encoder.blob(BytesPayload(text.encode("ascii")))}


def _read_json(node: Any, cls: type, decoder: Decoder) -> Any:
    """Return the list or dict of either JSON form; its items are not decoded further."""
    if isinstance(node, dict) and "json" in node:
        value = _copied(node["json"])
    else:
        value = _parsed(decoder.blob(field(node, "json_blob", decoder)), decoder)
    if type(value) is not cls:
        raise decoder.damaged(f"expected a {cls.__name__}, found {type(value).__name__}")
    return value


def _copied(node: Any) -> Any:
    if isinstance(node, list):
        return [_copied(item) for item in node]
    if isinstance(node, dict):
        return {key: _copied(item) for key, item in node.items()}
    return node


def _parsed(data: memoryview, decoder: Decoder) -> Any:
    try:
        text = str(data, "utf-8")
        if len(text) < bytes_for_brackets(text):
            raise decoder.damaged("a blob of JSON has more lists and objects than it has room for")
        return parse_json(text)
    except (NotJSONError, UnicodeDecodeError):
        raise decoder.damaged("a blob is not JSON whose keys are all different") from None


COLLECTION_CODECS: tuple[Codec, ...] = (
    ListCodec(),
    TupleCodec(),
    SetCodec(),
    FrozensetCodec(),
    DictCodec(),
    RangeCodec(),
    SliceCodec(),
)
