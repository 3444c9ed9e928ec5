"""Codecs of the containers in `collections`, and of namedtuples."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, Final

from ._base import ExactCodec, field, lacks, text_in
from ._collections import items_node, pairs_node, read_items, read_pairs
from ._ordered_dict import OrderedDictCodec
from ._registered import NAMEDTUPLES
from .protocol import JSON, Codec, Decoder, Description, Encoder

# what a defaultdict may call for a missing key: these make something empty, and objects name them
_FACTORIES: Final = (
    *(bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple),
    *(Counter, Decimal, Fraction, OrderedDict, defaultdict, deque),
)
_FACTORIES_BY_NAME: Final[dict[str, type[Any]]] = {cls.__name__: cls for cls in _FACTORIES}
_MAX_LENGTH: Final = 1 << 62


class CounterCodec(ExactCodec):
    """Counters; a count may be anything, as it may be there."""

    name = "plain.counter"
    mutable = True
    python_types = (Counter,)
    described = "Counter"

    def encode(self, value: Counter[Any], encoder: Encoder) -> JSON:
        return pairs_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        return Counter(read_pairs(node, decoder))


class DefaultdictCodec(ExactCodec):
    """Dicts with a factory that is None or a known type."""

    name = "plain.defaultdict"
    mutable = True
    python_types = (defaultdict,)
    described = "defaultdict"

    def encode(self, value: defaultdict[Any, Any], encoder: Encoder) -> JSON:
        pairs = pairs_node(value, encoder)
        return {"pairs": pairs, "factory": _factory_node(value, encoder)}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        factory = _read_factory(field(node, "factory", decoder), decoder)
        return defaultdict(factory, read_pairs(field(node, "pairs", decoder), decoder))


def _factory_node(value: defaultdict[Any, Any], encoder: Encoder) -> JSON:
    factory = value.default_factory
    if factory is None:
        return None
    name = getattr(factory, "__name__", None)
    if isinstance(name, str) and _FACTORIES_BY_NAME.get(name) is factory:
        return name
    known = ", ".join(sorted(_FACTORIES_BY_NAME))
    raise encoder.unsupported(
        value,
        f"its factory is none of {known}; store dict(value), or "
        "collections.defaultdict(None, value)",
    )


def _read_factory(node: Any, decoder: Decoder) -> Callable[[], Any] | None:
    if node is None:
        return None
    if text_in(node, decoder) in _FACTORIES_BY_NAME:
        return _FACTORIES_BY_NAME[node]
    raise lacks(f"a defaultdict with the factory {node[:40]!r}", decoder)


class DequeCodec(ExactCodec):
    """Deques with the length that they may have."""

    name = "plain.deque"
    mutable = True
    python_types = (deque,)
    described = "deque"

    def encode(self, value: deque[Any], encoder: Encoder) -> JSON:
        return {"items": items_node(list(value), encoder), "maxlen": value.maxlen}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        items = read_items(field(node, "items", decoder), decoder)
        maxlen = field(node, "maxlen", decoder)
        fits = type(maxlen) is int and len(items) <= maxlen < _MAX_LENGTH
        if maxlen is not None and not fits:
            raise decoder.damaged("a deque is longer than it may be")
        return deque(items, maxlen)


class NamedtupleCodec:
    """Registered namedtuples by name and fields."""

    name: ClassVar[str] = "plain.namedtuple"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = True

    def types(self) -> tuple[type, ...]:
        return ()

    def takes(self, value: object) -> bool:
        # asked for, not listed in `types`: a class may be registered at any time
        return NAMEDTUPLES.name_of(type(value)) is not None

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        if getattr(value, "__dict__", None):
            reason = "it has attributes besides its fields; store tuple(value)"
            raise encoder.unsupported(value, reason)
        fields = [*type(value)._fields]
        return {
            "namedtuple": NAMEDTUPLES.name_of(type(value)),
            "fields": fields,
            "items": items_node(list(value), encoder, lambda number: f".{fields[number]}"),
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        name = text_in(field(node, "namedtuple", decoder), decoder)
        fields, items = field(node, "fields", decoder), read_items(node.get("items"), decoder)
        cls = NAMEDTUPLES.named(name)
        if cls is None:
            raise lacks(
                f"a namedtuple registered as {name!r}; call register_namedtuple first", decoder
            )
        if fields != [*cls._fields]:
            raise lacks(f"a namedtuple {name!r} with the fields {fields!r}", decoder)
        if len(items) != len(fields):
            raise decoder.damaged("a namedtuple has not as many items as fields")
        # not `cls(*items)`: a subclass of a namedtuple may have code there
        return tuple.__new__(cls, items)

    def describe(self, node: Any) -> Description:
        name = node.get("namedtuple") if isinstance(node, dict) else None
        return Description(name if isinstance(name, str) else "namedtuple")


CONTAINER_CODECS: tuple[Codec, ...] = (
    OrderedDictCodec(),
    CounterCodec(),
    DefaultdictCodec(),
    DequeCodec(),
    NamedtupleCodec(),
)
