"""The codec of `collections.OrderedDict`, with the attributes that one can have.

PyTorch's modules keep the versions of their parts in an attribute of their ``state_dict``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ._base import ExactCodec, field
from ._collections import DictCodec
from .protocol import JSON, Decoder, Encoder


class OrderedDictCodec(ExactCodec):
    """Ordered dicts: as a dict, and attributes by name."""

    name = "plain.ordered_dict"
    mutable = True
    python_types = (OrderedDict,)
    described = "collections.OrderedDict"
    _items = DictCodec()

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        node: dict[str, JSON] = {"items": self._items.encode(value, encoder)}
        attributes = vars(value)
        if not _are_additions(attributes):
            raise encoder.unsupported(value, "its attributes hide those of its class; remove them")
        if attributes:
            node["attributes"] = encoder.encode(attributes, ".__dict__")
        return node

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        value = OrderedDict(self._items.decode(field(node, "items", decoder), version, decoder))
        attributes = decoder.decode(node["attributes"]) if "attributes" in node else {}
        if type(attributes) is not dict or not _are_additions(attributes):
            raise decoder.damaged("the attributes of an OrderedDict are none that it can have")
        vars(value).update(attributes)
        return value


def _are_additions(attributes: dict[Any, Any]) -> bool:
    return all(type(name) is str and not hasattr(OrderedDict, name) for name in attributes)
