"""Codecs of numbers, text, bytes, identifiers and paths."""

from __future__ import annotations

import re
import struct
import uuid
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final

from ._base import (
    ExactCodec,
    byte_pieces,
    bytes_node,
    field,
    int_node,
    lacks,
    read_bytes,
    read_int,
    read_text,
    text_in,
    text_node,
)
from .protocol import JSON, Codec, Decoder, Description, Encoder

_FRACTION_BITS: Final = 32_768
"""Common factors of two numbers of so many bits are found in 2 milliseconds, of 50 times as many
in 4 seconds."""
_MAX_IN_FRACTION: Final = 2**_FRACTION_BITS
_UUID = re.compile("[0-9a-f]{32}")


class IntCodec(ExactCodec):
    """Integers of any size."""

    name = "plain.int"
    python_types = (int,)

    def encode(self, value: int, encoder: Encoder) -> JSON:  # noqa: ARG002
        return int_node(value)

    def decode(self, node: Any, version: int, decoder: Decoder) -> int:  # noqa: ARG002
        return read_int(node, decoder)


class FloatCodec(ExactCodec):
    """Floats by their bits, so that the payload of a NaN survives."""

    name = "plain.float"
    python_types = (float,)

    def encode(self, value: float, encoder: Encoder) -> JSON:  # noqa: ARG002
        return struct.pack(">d", value).hex()

    def decode(self, node: Any, version: int, decoder: Decoder) -> float:  # noqa: ARG002
        (value,) = _unpacked(">d", node, decoder)
        return value


class ComplexCodec(ExactCodec):
    """Complex numbers by the bits of both parts."""

    name = "plain.complex"
    python_types = (complex,)

    def encode(self, value: complex, encoder: Encoder) -> JSON:  # noqa: ARG002
        return struct.pack(">dd", value.real, value.imag).hex()

    def decode(self, node: Any, version: int, decoder: Decoder) -> complex:  # noqa: ARG002
        real, imag = _unpacked(">dd", node, decoder)
        return complex(real, imag)


def _unpacked(layout: str, node: Any, decoder: Decoder) -> tuple[float, ...]:
    try:
        return struct.unpack(layout, bytes.fromhex(text_in(node, decoder)))
    except (ValueError, struct.error):
        raise decoder.damaged("a float is not the bits of binary64") from None


class _OfBytes(ExactCodec):
    """What is one node of bytes."""

    def describe(self, node: Any) -> Description:
        nbytes = len(node) // 2 if isinstance(node, str) else -1
        return Description(self.python_types[0].__name__, nbytes=nbytes)


class StrCodec(_OfBytes):
    """Text that is not bare JSON; surrogates pass through UTF-8."""

    name = "plain.str"
    python_types = (str,)

    def encode(self, value: str, encoder: Encoder) -> JSON:
        return text_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> str:  # noqa: ARG002
        return read_text(node, decoder)


class BytesCodec(_OfBytes):
    """Bytes."""

    name = "plain.bytes"
    python_types = (bytes,)

    def encode(self, value: bytes, encoder: Encoder) -> JSON:
        return bytes_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> bytes:  # noqa: ARG002
        return read_bytes(node, decoder)


class BytearrayCodec(_OfBytes):
    """Bytes that can be edited, so that they are copied at once."""

    name = "plain.bytearray"
    mutable = True
    python_types = (bytearray,)

    def encode(self, value: bytearray, encoder: Encoder) -> JSON:
        return bytes_node(bytes(value), encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> bytearray:  # noqa: ARG002
        data = bytearray()
        for piece in byte_pieces(node, decoder):
            data += piece
        return data


class DecimalCodec(ExactCodec):
    """Decimals by their text, which keeps sign, exponent and the payload of a NaN."""

    name = "plain.decimal"
    python_types = (Decimal,)

    def encode(self, value: Decimal, encoder: Encoder) -> JSON:
        return bytes_node(str(value).encode("ascii"), encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Decimal:  # noqa: ARG002
        try:
            # the constructor is exact, whatever precision the context has
            return Decimal(read_bytes(node, decoder).decode("ascii"))
        except (InvalidOperation, ValueError):
            raise decoder.damaged("a decimal is not a number's text") from None


class FractionCodec(ExactCodec):
    """Fractions by numerator and denominator."""

    name = "plain.fraction"
    python_types = (Fraction,)

    def encode(self, value: Fraction, encoder: Encoder) -> JSON:
        if max(abs(value.numerator), value.denominator) > _MAX_IN_FRACTION:
            raise encoder.unsupported(
                value,
                f"its numbers have more than {_FRACTION_BITS} bits, and what reads it would have "
                "to look for common factors; store (value.numerator, value.denominator)",
            )
        return {"over": int_node(value.numerator), "under": int_node(value.denominator)}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Fraction:  # noqa: ARG002
        over, under = (read_int(field(node, key, decoder), decoder) for key in ("over", "under"))
        if under < 1:
            raise decoder.damaged("a fraction's denominator is not positive")
        if max(abs(over), under) > _MAX_IN_FRACTION:
            raise decoder.damaged(f"a fraction's numbers have more than {_FRACTION_BITS} bits")
        return Fraction(over, under)


class UUIDCodec(ExactCodec):
    """UUIDs; how safely one was made is not kept."""

    name = "plain.uuid"
    python_types = (uuid.UUID,)

    def encode(self, value: uuid.UUID, encoder: Encoder) -> JSON:  # noqa: ARG002
        return value.hex

    def decode(self, node: Any, version: int, decoder: Decoder) -> uuid.UUID:  # noqa: ARG002
        if _UUID.fullmatch(text_in(node, decoder)):
            return uuid.UUID(hex=node)
        raise decoder.damaged("a UUID is not 32 hexadecimal digits")


class PathCodec(ExactCodec):
    """Paths by class and text; nothing looks for a file."""

    name = "plain.path"
    python_types = (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)
    described = "Path"

    def encode(self, value: PurePath, encoder: Encoder) -> JSON:
        return {"path": type(value).__name__, "text": encoder.encode(str(value))}

    def decode(self, node: Any, version: int, decoder: Decoder) -> PurePath:  # noqa: ARG002
        kind, text = field(node, "path", decoder), decoder.decode(field(node, "text", decoder))
        cls = next((each for each in self.python_types if each.__name__ == kind), None)
        if cls is None:
            raise decoder.damaged("a path is of no known kind")
        try:
            return cls(text_in(text, decoder))
        except NotImplementedError:
            raise lacks(f"a {kind}, which this system has not", decoder) from None


SCALAR_CODECS: tuple[Codec, ...] = (
    IntCodec(),
    FloatCodec(),
    ComplexCodec(),
    StrCodec(),
    BytesCodec(),
    BytearrayCodec(),
    DecimalCodec(),
    FractionCodec(),
    UUIDCodec(),
    PathCodec(),
)
