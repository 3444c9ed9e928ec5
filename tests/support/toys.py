"""Small codecs and an in-memory storage's halves, so that the container is tested by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from typing_extensions import Buffer

from sqla_datastore.codecs import register_codec
from sqla_datastore.codecs.protocol import Codec, Decoder, Description, Encoder


class Blob:
    """A value that is stored as one blob for each of its parts."""

    def __init__(self, *parts: Any, mapped: bool = False, suffix: str = ".bin") -> None:
        self.parts = tuple(bytes(part) for part in parts)
        self.mapped = mapped
        self.suffix = suffix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and self.parts == other.parts


class Box:
    """A value that holds one other value; may hold itself."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.inner == other.inner


class Child(dict[str, Any]):
    """Stands for a nested DataStore."""


class Fault:
    """A value whose codec raises this error, when it is encoded or decoded."""

    def __init__(self, error: Exception, when: str = "decode") -> None:
        self.error = error
        self.when = when


class Pieces:
    """A payload that is handed over in pieces of any size, announced as `nbytes`."""

    def __init__(
        self, data: Buffer, suffix: str = ".bin", size: int = 1 << 20, nbytes: int | None = None
    ) -> None:
        self.data = memoryview(data)
        self.suffix = suffix
        self.size = size
        self.nbytes = self.data.nbytes if nbytes is None else nbytes

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        for start in range(0, len(self.data), self.size):
            write(self.data[start : start + self.size])


class _Toy:
    name: ClassVar[str]
    cls: ClassVar[type]
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False

    def types(self) -> tuple[type, ...]:
        return (self.cls,)

    def takes(self, value: Any) -> bool:
        return False

    def describe(self, node: Any) -> Description:
        return Description(f"toys.{self.cls.__name__}")


class _BlobCodec(_Toy):
    name = "toy.blob"
    cls = Blob

    def encode(self, value: Any, encoder: Encoder) -> Any:
        numbers = [encoder.blob(Pieces(part, value.suffix)) for part in value.parts]
        return {"numbers": numbers, "mapped": value.mapped}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        numbers, mapped = node["numbers"], node["mapped"]
        return Blob(*(decoder.blob(n, mapped=mapped) for n in numbers), mapped=mapped)

    def describe(self, node: Any) -> Description:
        return Description("toys.Blob", shape=(len(node["numbers"]),))


class _BoxCodec(_Toy):
    name = "toy.box"
    cls = Box

    def encode(self, value: Any, encoder: Encoder) -> Any:
        return [encoder.encode(value.inner, ".inner")]

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        return Box(decoder.decode(node[0]))


class _ChildCodec(_Toy):
    name = "toy.child"
    cls = Child

    def encode(self, value: Any, encoder: Encoder) -> Any:
        return encoder.nested(value)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        return decoder.nested(node)


class _FaultCodec(_Toy):
    name = "toy.fault"
    cls = Fault
    errors: ClassVar[dict[str, Exception]] = {}

    def encode(self, value: Any, encoder: Encoder) -> Any:
        if value.when == "encode":
            raise value.error
        self.errors[type(value.error).__name__] = value.error
        return type(value.error).__name__

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        raise self.errors[node]


class _LiarCodec(_Toy):
    """Announces one byte more or fewer than it hands over."""

    name = "toy.liar"
    cls = type("Liar", (int,), {})

    def encode(self, value: Any, encoder: Encoder) -> Any:
        return encoder.blob(Pieces(b"0123456789", nbytes=10 + value))

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        return decoder.blob(node)


Liar = _LiarCodec.cls
CODECS: list[Codec] = [_BlobCodec(), _BoxCodec(), _ChildCodec(), _FaultCodec(), _LiarCodec()]
for codec in CODECS:
    register_codec(codec)


class MemoryWriter:
    """An `ObjectWriter` into memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.largest = 0

    def write(self, data: Buffer) -> None:
        data = memoryview(data)
        self.largest = max(self.largest, len(data))
        self.data += data


class MemoryReader:
    """An `ObjectReader` of bytes, which counts what is read of them."""

    def __init__(self, data: bytes | bytearray, *, maps: bool = False) -> None:
        self.data = data
        self.maps = maps
        self.reads: list[tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        self.reads.append((offset, size_bytes))
        return bytes(self.data[offset : offset + size_bytes])

    def view(self, offset: int, size_bytes: int) -> memoryview:
        self.reads.append((offset, size_bytes))
        return memoryview(self.data)[offset : offset + size_bytes]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [self.view(*each) for each in ranges]
