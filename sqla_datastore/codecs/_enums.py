"""The codec of registered Enums."""

from __future__ import annotations

from enum import Enum, Flag
from typing import Any, ClassVar

from ._base import field, int_node, lacks, read_int, text_in
from ._registered import ENUMS
from .protocol import JSON, Decoder, Description, Encoder


class EnumCodec:
    """Members by registered class name and member name; combined flags by value."""

    name: ClassVar[str] = "plain.enum"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False

    def types(self) -> tuple[type, ...]:
        return ()

    def takes(self, value: object) -> bool:
        # asked for, not listed in `types`: an Enum may be registered at any time
        return ENUMS.name_of(type(value)) is not None

    def encode(self, value: Enum, encoder: Encoder) -> JSON:
        name = ENUMS.name_of(type(value))
        # a combination of flags is called 'A|B' or None, which is no member's name
        if value.name in type(value).__members__:
            return {"enum": name, "member": value.name}
        if isinstance(value, Flag) and type(value.value) is int:
            return {"enum": name, "flags": int_node(value.value)}
        raise encoder.unsupported(value, "it is not a member of its Enum; store value.value")

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
        if (cls := ENUMS.named(name)) is not None:
            return cls
        raise lacks(f"an Enum registered as {name!r}; call register_enum first", decoder)

    def _flags(self, cls: type[Flag], flags: int, decoder: Decoder) -> Flag:
        try:
            return cls(flags)
        except ValueError:
            raise lacks(f"flags {flags} of Enum {cls.__qualname__!r}", decoder) from None

    def describe(self, node: Any) -> Description:
        name = node.get("enum") if isinstance(node, dict) else None
        return Description(name if isinstance(name, str) else "Enum")
