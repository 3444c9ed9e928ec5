"""The codec of registered Enums."""

from __future__ import annotations

import threading
from enum import Enum, Flag
from typing import Any, ClassVar, TypeVar

from ._base import field, int_node, lacks, read_int, text_in
from .protocol import JSON, Decoder, Description, Encoder

EnumType = TypeVar("EnumType", bound=type[Enum])

_lock = threading.Lock()
_classes: dict[str, type[Enum]] = {}
_names: dict[type[Enum], str] = {}


def register_enum(cls: EnumType, name: str | None = None) -> EnumType:
    """Register an Enum under a name; see `sqla_datastore.register_enum`."""
    name = cls.__qualname__ if name is None else name
    with _lock:
        if _classes.get(name, cls) is not cls:
            raise ValueError(f"Enum name {name!r} is taken; pass another name=")
        if _names.get(cls, name) != name:
            raise ValueError(f"Enum {cls.__qualname__!r} is registered as {_names[cls]!r}")
        _classes[name], _names[cls] = cls, name
    return cls


class EnumCodec:
    """Members by registered class name and member name; combined flags by value."""

    name: ClassVar[str] = "plain.enum"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False

    def types(self) -> tuple[type, ...]:
        return ()

    def takes(self, value: object) -> bool:
        # asked for, not listed in `types`: an Enum may be registered at any time
        return type(value) in _names

    def encode(self, value: Enum, encoder: Encoder) -> JSON:
        name = _names[type(value)]
        # a combination of flags is called 'A|B' or None, which is no member's name
        if value.name in type(value).__members__:
            return {"enum": name, "member": value.name}
        if isinstance(value, Flag) and type(value.value) is int:
            return {"enum": name, "flags": int_node(value.value)}
        raise encoder.unsupported(value, "it is not a member of its Enum")

    def decode(self, node: Any, version: int, decoder: Decoder) -> Enum:  # noqa: ARG002
        cls = self._class(node, decoder)
        if "flags" in node and issubclass(cls, Flag):
            return self._flags(cls, read_int(node["flags"], decoder), decoder)
        member = text_in(field(node, "member", decoder), decoder)
        if member in cls.__members__:
            return cls.__members__[member]
        raise lacks(f"member {member!r} of Enum {cls.__qualname__!r}", decoder)

    def _class(self, node: Any, decoder: Decoder) -> type[Enum]:
        name = text_in(field(node, "enum", decoder), decoder)
        if name in _classes:
            return _classes[name]
        raise lacks(f"an Enum registered as {name!r}; call register_enum first", decoder)

    def _flags(self, cls: type[Flag], flags: int, decoder: Decoder) -> Flag:
        try:
            return cls(flags)
        except ValueError:
            raise lacks(f"flags {flags} of Enum {cls.__qualname__!r}", decoder) from None

    def describe(self, node: Any) -> Description:
        name = node.get("enum") if isinstance(node, dict) else None
        return Description(name if isinstance(name, str) else "Enum")
