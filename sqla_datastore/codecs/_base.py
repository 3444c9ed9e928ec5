"""What the codecs share: checks of hostile nodes, and blobs of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from typing_extensions import Buffer

from ..exceptions import UnsupportedFormatError
from .protocol import Decoder, Description, Encoder

SMALL_BYTES: Final = 4096
"""Longer bytes go into a blob, so that the node stays small."""

_MAX_JSON_INT: Final = 2**53 - 1


class ExactCodec:
    """A codec that takes exact types and no subclass of them."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False
    python_types: ClassVar[tuple[type, ...]] = ()
    described: ClassVar[str] = ""

    def types(self) -> tuple[type, ...]:
        return self.python_types

    def takes(self, value: object) -> bool:  # noqa: ARG002
        return False

    def describe(self, node: Any) -> Description:  # noqa: ARG002
        return Description(self.described or self.python_types[0].__name__)


class BytesPayload:
    """A blob of bytes that never change."""

    suffix = ".bin"

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        write(self._data)


def bytes_node(data: bytes, encoder: Encoder) -> str | int:
    """Return hexadecimal text, or the number of a blob for more than `SMALL_BYTES`."""
    if len(data) <= SMALL_BYTES:
        return data.hex()
    return encoder.blob(BytesPayload(data))


def read_bytes(node: Any, decoder: Decoder) -> bytes:
    """Return the bytes of a node that `bytes_node` made."""
    if not isinstance(node, str):
        return decoder.blob(node).tobytes()
    try:
        return bytes.fromhex(node)
    except ValueError:
        raise decoder.damaged("bytes are not hexadecimal text") from None


def int_node(value: int) -> int | str:
    """Return the int where any JSON reader keeps it exactly, else hexadecimal text."""
    return value if -_MAX_JSON_INT <= value <= _MAX_JSON_INT else hex(value)


def read_int(node: Any, decoder: Decoder) -> int:
    """Return the int of a node that `int_node` made."""
    if type(node) is int:
        return node
    try:
        value = int(text_in(node, decoder), 16)
    except ValueError:
        raise decoder.damaged("an integer is not hexadecimal text") from None
    if hex(value) != node:
        raise decoder.damaged("an integer is not written as hexadecimal text is")
    return value


def lacks(what: str, decoder: Decoder) -> UnsupportedFormatError:
    """Return the error of an undamaged node that needs what this program or platform lacks."""
    place = decoder.damaged(what)  # a decoder tells URL and entry only through its errors
    url, entry = getattr(place, "url", None), getattr(place, "entry", None)
    return UnsupportedFormatError(f"entry {entry!r} of {url!r} needs {what}", url=url, entry=entry)


def text_in(node: Any, decoder: Decoder) -> str:
    """Return a node that must be text."""
    if isinstance(node, str):
        return node
    raise decoder.damaged(f"expected text, found {type(node).__name__}")


def field(node: Any, key: str, decoder: Decoder) -> Any:
    """Return the value of a key of a node, which must be an object that has it."""
    if isinstance(node, dict) and key in node:
        return node[key]
    raise decoder.damaged(f"a node has no {key!r}")
