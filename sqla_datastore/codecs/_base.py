"""What the codecs share: checks of hostile nodes, and blobs of bytes."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from typing_extensions import Buffer

from ..exceptions import UnsupportedFormatError
from .protocol import Decoder, Description, Encoder, TellsDamage

SMALL_BYTES: Final = 4096
"""Longer bytes go into a blob, so that the node stays small."""

MAX_PARSED: Final = 64
"""How many characters a text has at most that a parser of another library reads."""

_MAX_JSON_INT: Final = 2**53 - 1
_TEXT_PIECE: Final = 256 * 1024


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


class TextPayload:
    """A blob of text in UTF-8, surrogates included, which is never encoded whole."""

    suffix = ".bin"

    def __init__(self, text: str) -> None:
        self._text = text
        self.nbytes = len(text) if text.isascii() else sum(map(len, self._pieces()))

    def _pieces(self) -> Iterator[bytes]:
        # cut between code points, so that each piece can be encoded by itself
        for start in range(0, len(self._text), _TEXT_PIECE):
            yield self._text[start : start + _TEXT_PIECE].encode("utf-8", "surrogatepass")

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        for piece in self._pieces():
            write(piece)


def bytes_node(data: bytes, encoder: Encoder) -> str | int:
    """Return hexadecimal text, or the number of a blob for more than `SMALL_BYTES`."""
    if len(data) <= SMALL_BYTES:
        return data.hex()
    return encoder.blob(BytesPayload(data))


def read_bytes(node: Any, decoder: Decoder) -> bytes:
    """Return the bytes of a node that `bytes_node` made."""
    buffer = io.BytesIO()  # its bytes are handed out without a copy, unlike a bytearray's
    for piece in byte_pieces(node, decoder):
        buffer.write(piece)
    return buffer.getvalue()


def byte_pieces(node: Any, decoder: Decoder) -> Iterator[bytes]:
    """Return the bytes of a node that `bytes_node` made, piece by piece; see `Decoder.pieces`."""
    if not isinstance(node, str):
        return decoder.pieces(node)
    try:
        return iter([bytes.fromhex(node)])
    except ValueError:
        raise decoder.damaged("bytes are not hexadecimal text") from None


def text_node(text: str, encoder: Encoder) -> str | int:
    """Return the node that `bytes_node` makes of a text's UTF-8; surrogates pass."""
    if len(text) > SMALL_BYTES:
        return encoder.blob(TextPayload(text))
    return bytes_node(text.encode("utf-8", "surrogatepass"), encoder)


def read_text(node: Any, decoder: Decoder) -> str:
    """Return the text of a node that `text_node` made."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
    pieces = byte_pieces(node, decoder)
    text = ""
    try:
        for piece in pieces:
            # CPython lets a local str grow in place, where a join would hold the text twice; it is
            # copied only when the first character comes that needs more bytes
            text += decode(piece)
        text += decode(b"", final=True)
    except UnicodeDecodeError:
        for _ in pieces:  # a wrong checksum is the better reason
            pass
        raise decoder.damaged("text is not UTF-8") from None
    return text


def int_node(value: int) -> int | str:
    """Return the int where any JSON reader keeps it exactly, else hexadecimal text."""
    # hexadecimal, because Python refuses decimal text of more than 4,300 digits
    return value if -_MAX_JSON_INT <= value <= _MAX_JSON_INT else hex(value)


def read_int(node: Any, decoder: Decoder) -> int:
    """Return the int of a node that `int_node` made."""
    if type(node) is int:
        return node
    try:
        value = int(text_in(node, decoder), 16)
    except ValueError:
        raise decoder.damaged("an integer is not hexadecimal text") from None
    # `int` takes signs, spaces and underscores, too: one number has one node
    if hex(value) != node:
        raise decoder.damaged("an integer is not written as hexadecimal text is")
    return value


def lacks(what: str, decoder: TellsDamage) -> UnsupportedFormatError:
    """Return the error of an undamaged node that needs what this program or platform lacks."""
    place = decoder.damaged(what)  # a decoder tells URL and entry only through its errors
    url, entry = getattr(place, "url", None), getattr(place, "entry", None)
    return UnsupportedFormatError(f"entry {entry!r} of {url!r} needs {what}", url=url, entry=entry)


def text_in(node: Any, decoder: Decoder) -> str:
    """Return a node that must be text."""
    if isinstance(node, str):
        return node
    raise decoder.damaged(f"expected text, found {type(node).__name__}")


def short_text_in(node: Any, decoder: Decoder) -> str:
    """Return a node that must be text, and short: a parser of another library is to read it.

    Some take seconds for a text of 10,000 characters.
    """
    text = text_in(node, decoder)
    if len(text) > MAX_PARSED:
        raise decoder.damaged(f"a text of {len(text)} characters is too long: {text[:40]!r}…")
    return text


def field(node: Any, key: str, decoder: Decoder) -> Any:
    """Return the value of a key of a node, which must be an object that has it."""
    if isinstance(node, dict) and key in node:
        return node[key]
    raise decoder.damaged(f"a node has no {key!r}")
