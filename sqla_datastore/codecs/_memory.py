"""Encode to memory and decode from it: the container's side of the seam, for tests of codecs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from typing_extensions import Buffer

from ..exceptions import DamagedObjectError, UnsupportedTypeError
from . import advice, codec_named, find_codec
from .plain import is_bare
from .protocol import JSON, Payload

__all__ = ["MemoryDecoder", "MemoryEncoder", "decode_value", "encode_value"]

_MAX_DEPTH = 100


class MemoryEncoder:
    """Collects payloads and nested values in lists."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.nested_values: list[object] = []
        self._path: list[str] = []
        self._open: list[int] = []

    def encode(self, value: object, where: str = "") -> JSON:
        """Return bare JSON, or name and version of a codec and its node."""
        if is_bare(value):
            return value  # type: ignore[return-value]
        with self._inside(value, where):
            codec = find_codec(value)
            if codec is None:
                raise self.unsupported(value, advice(value))
            return [codec.name, codec.version, codec.encode(value, self)]

    def blob(self, payload: Payload) -> int:
        """Keep a payload."""
        self.payloads.append(payload)
        return len(self.payloads) - 1

    def nested(self, value: object) -> int:
        """Keep a nested value."""
        self.nested_values.append(value)
        return len(self.nested_values) - 1

    def unsupported(self, value: object, reason: str) -> Exception:
        """Return the error that names the place."""
        entry = "value" + "".join(self._path)
        message = f"{entry}: {type(value).__qualname__} cannot be stored: {reason}"
        return UnsupportedTypeError(message, entry=entry, type=type(value))

    @contextlib.contextmanager
    def _inside(self, value: object, where: str) -> Iterator[None]:
        self._path.append(where)
        if id(value) in self._open:
            raise self.unsupported(value, "it contains itself")
        if len(self._open) == _MAX_DEPTH:
            raise self.unsupported(value, "it nests too deeply")
        self._open.append(id(value))
        yield
        self._open.pop()
        self._path.pop()


class MemoryDecoder:
    """Reads blobs from a list; everything wrong is a `DamagedObjectError`."""

    def __init__(self, blobs: Sequence[Buffer], nested_values: Sequence[object] = ()) -> None:
        self._blobs = [memoryview(blob).toreadonly() for blob in blobs]
        self._nested_values = nested_values

    def decode(self, node: JSON) -> Any:
        """Return the value of bare JSON or of a tagged node."""
        if not isinstance(node, list | dict):
            return node
        match node:
            case [str(name), int(version), inner]:
                return self._codec(name, version).decode(inner, version, self)
        raise self.damaged("a node is not a codec, a version and a node")

    def blob(self, number: Any, *, mapped: bool = False) -> memoryview:  # noqa: ARG002
        """Return a blob of the list."""
        return self._blobs[self._checked(number, self._blobs, "blob")]

    def nested(self, number: Any) -> Any:
        """Return a value of the list."""
        return self._nested_values[self._checked(number, self._nested_values, "nested value")]

    def damaged(self, reason: str) -> Exception:
        """Return the error."""
        return DamagedObjectError("memory:///value", reason, entry="value")

    def _codec(self, name: str, version: int) -> Any:
        try:
            codec = codec_named(name)
        except KeyError:
            raise self.damaged(f"unknown codec {name!r}") from None
        if not 1 <= version <= codec.version:
            raise self.damaged(f"unknown version {version} of codec {name!r}")
        return codec

    def _checked(self, number: Any, items: Sequence[object], what: str) -> int:
        if type(number) is int and 0 <= number < len(items):
            return number
        raise self.damaged(f"no {what} {number!r}")


def encode_value(value: object) -> tuple[str, list[bytes]]:
    """Encode one value as the container would.

    Args:
        value: what some codec takes.

    Returns:
        The node as JSON text, and the blobs by number.

    Raises:
        UnsupportedTypeError: no codec takes it.
    """
    encoder = MemoryEncoder()
    text = json.dumps(encoder.encode(value), allow_nan=False, separators=(",", ":"))
    return text, [_written(payload) for payload in encoder.payloads]


def decode_value(text: str, blobs: Sequence[Buffer] = ()) -> Any:
    """Decode what `encode_value` returned, or what a stranger wrote instead.

    Args:
        text: the node as JSON text.
        blobs: the blobs by number; the value may refer to their memory.

    Returns:
        The value.

    Raises:
        DamagedObjectError: the node or a blob is not what a codec writes.
    """
    return MemoryDecoder(blobs).decode(json.loads(text))


def _written(payload: Payload) -> bytes:
    pieces: list[bytes] = []
    payload.write_to(_collector(pieces))
    data = b"".join(pieces)
    assert len(data) == payload.nbytes, "a payload wrote another number of bytes than it promised"
    assert payload.suffix in {".npy", ".arrow", ".bin"}, "a payload has an unknown suffix"
    return data


def _collector(pieces: list[bytes]) -> Callable[[Buffer], object]:
    return lambda piece: pieces.append(memoryview(piece).tobytes())
