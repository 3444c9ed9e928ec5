"""Small codecs and an in-memory storage's halves, so that the container is tested by itself."""

from __future__ import annotations

from sqla_datastore.codecs import register_codec
from sqla_datastore.codecs.protocol import Description


class Blob:
    """A value that is stored as one blob for each of its parts."""

    def __init__(self, *parts, mapped=False, suffix=".bin"):
        self.parts = tuple(bytes(part) for part in parts)
        self.mapped = mapped
        self.suffix = suffix

    def __eq__(self, other):
        return isinstance(other, Blob) and self.parts == other.parts

    __hash__ = None


class Box:
    """A value that holds one other value; may hold itself."""

    def __init__(self, inner=None):
        self.inner = inner

    def __eq__(self, other):
        return isinstance(other, Box) and self.inner == other.inner

    __hash__ = None


class Child(dict):
    """Stands for a nested DataStore."""

    __hash__ = None


class Fault:
    """A value whose codec raises this error, when it is encoded or decoded."""

    def __init__(self, error, when="decode"):
        self.error = error
        self.when = when


class Pieces:
    """A payload that is handed over in pieces of any size, announced as `nbytes`."""

    def __init__(self, data, suffix=".bin", size=1 << 20, nbytes=None):
        self.data = memoryview(data)
        self.suffix = suffix
        self.size = size
        self.nbytes = len(data) if nbytes is None else nbytes

    def write_to(self, write):
        for start in range(0, len(self.data), self.size):
            write(self.data[start : start + self.size])


class _Toy:
    version = 1
    mutable = False

    def types(self):
        return (self.type,)

    def takes(self, value):
        return False

    def describe(self, node):
        return Description(f"toys.{self.type.__name__}")


class _BlobCodec(_Toy):
    name = "toy.blob"
    type = Blob

    def encode(self, value, encoder):
        numbers = [encoder.blob(Pieces(part, value.suffix)) for part in value.parts]
        return {"numbers": numbers, "mapped": value.mapped}

    def decode(self, node, version, decoder):
        numbers, mapped = node["numbers"], node["mapped"]
        return Blob(*(decoder.blob(n, mapped=mapped) for n in numbers), mapped=mapped)

    def describe(self, node):
        return Description("toys.Blob", shape=(len(node["numbers"]),))


class _BoxCodec(_Toy):
    name = "toy.box"
    type = Box

    def encode(self, value, encoder):
        return [encoder.encode(value.inner, ".inner")]

    def decode(self, node, version, decoder):
        return Box(decoder.decode(node[0]))


class _ChildCodec(_Toy):
    name = "toy.child"
    type = Child

    def encode(self, value, encoder):
        return encoder.nested(value)

    def decode(self, node, version, decoder):
        return decoder.nested(node)


class _FaultCodec(_Toy):
    name = "toy.fault"
    type = Fault
    errors = {}

    def encode(self, value, encoder):
        if value.when == "encode":
            raise value.error
        self.errors[type(value.error).__name__] = value.error
        return type(value.error).__name__

    def decode(self, node, version, decoder):
        raise self.errors[node]


class _LiarCodec(_Toy):
    """Announces one byte more or fewer than it hands over."""

    name = "toy.liar"
    type = type("Liar", (int,), {})

    def encode(self, value, encoder):
        return encoder.blob(Pieces(b"0123456789", nbytes=10 + value))

    def decode(self, node, version, decoder):
        return decoder.blob(node)


Liar = _LiarCodec.type
for codec in (_BlobCodec(), _BoxCodec(), _ChildCodec(), _FaultCodec(), _LiarCodec()):
    register_codec(codec)


class MemoryWriter:
    """An `ObjectWriter` into memory."""

    def __init__(self):
        self.data = bytearray()
        self.largest = 0

    def write(self, data):
        self.largest = max(self.largest, len(data))
        self.data += data

    def patch(self, offset, data):
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data


class MemoryReader:
    """An `ObjectReader` of bytes, which counts what is read of them."""

    def __init__(self, data, *, maps=False):
        self.data = data
        self.maps = maps
        self.reads = []

    @property
    def size_bytes(self):
        return len(self.data)

    def read(self, offset, size_bytes):
        self.reads.append((offset, size_bytes))
        return bytes(self.data[offset : offset + size_bytes])

    def view(self, offset, size_bytes):
        self.reads.append((offset, size_bytes))
        return memoryview(self.data)[offset : offset + size_bytes]
