"""What pyarrow does not tell of the messages of an IPC stream: compression and extension types.

This reads the flatbuffers of Arrow's ``Message.fbs`` and ``Schema.fbs``, which Arrow has verified.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa
from typing_extensions import Buffer

EXTENSION_NAME = b"ARROW:extension:name"
# of the union `MessageHeader`
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_PREFIX_BYTES = 8
"""Of a message in a stream, before its metadata: a marker and their size."""
_SIZE_BYTES = 4
"""Of a text's size, before the text."""
_REMEMBERED_BYTES: Final = 4096
"""Of metadata; what is longer belongs to a table so wide that reading it takes long anyway."""
_REMEMBERED: Final = 256
_PREFIX: Final = struct.Struct("<Ii")
_MARKER: Final = 0xFFFFFFFF
END: Final = _PREFIX.pack(_MARKER, 0)
"""What a stream ends with."""


class Facts(NamedTuple):
    """What the metadata of a message say, which Arrow does not tell.

    Attributes:
        kind: of the header.
        body_nbytes: how many bytes follow the metadata.
        rows: of a record batch, 0 of anything else.
        is_compressed: see `is_compressed`.
        is_delta: see `is_delta`.
        overlap: see `overlap`.
        extensions: the names of the extension types in it.
    """

    kind: int
    body_nbytes: int
    rows: int
    is_compressed: bool
    is_delta: bool
    overlap: bool
    extensions: tuple[bytes, ...]


# by metadata that Arrow has verified
_known: dict[bytes, Facts] = {}


def facts(metadata: Buffer) -> Facts:
    """Return what metadata say; those of streams of one schema and length are often the same.

    Args:
        metadata: of a message that Arrow has read, and so verified.
    """
    data = bytes(metadata)
    found = _known.get(data)
    if found is None:
        found = _facts(data)
        if len(data) <= _REMEMBERED_BYTES:
            if len(_known) >= _REMEMBERED:
                _known.clear()
            _known[data] = found
    return found


def _facts(data: bytes) -> Facts:
    kind, table = _header(data)
    # Message has the size of its body as 3, RecordBatch the number of its rows as 0
    body = _number(data, struct.unpack_from("<I", data)[0], 3)
    rows = _number(data, table, 0) if kind == _RECORD_BATCH else 0
    names = tuple(name for _, name in extensions(data))
    return Facts(kind, body, rows, is_compressed(data), is_delta(data), overlap(data), names)


class Outline(NamedTuple):
    """Where things are in a stream of record batches, and nothing else.

    Attributes:
        schema: its first message.
        batches: all other messages.
        rows: how many there are in them.
    """

    schema: bytes
    batches: memoryview
    rows: int


def outline(data: memoryview) -> Outline | None:
    """Return where things are in a stream that is written as Arrow writes it today.

    Arrow looks at metadata only that were not met before: to read a message by it takes longer.

    Returns:
        None where there are dictionaries, extension types or compressed or overlapping buffers,
        or bytes of nothing: such a stream needs a closer look.

    Raises:
        Exception: it is no stream.
    """
    at = rows = schema_nbytes = 0
    while True:
        marker, size = _PREFIX.unpack_from(data, at)
        if marker != _MARKER or size <= 0:
            break
        found = _known.get(bytes(data[at + _PREFIX_BYTES :][:size])) or _met(data[at:], size)
        expected = _RECORD_BATCH if at else _SCHEMA
        if found is None or found.kind != expected or found.body_nbytes < 0 or found.rows < 0:
            return None
        if found.is_compressed or found.overlap or found.extensions:
            return None
        rows += found.rows
        at += _PREFIX_BYTES + size + found.body_nbytes
        schema_nbytes = schema_nbytes or at
        if at % _PREFIX_BYTES:  # what follows in another stream would not be aligned
            return None
    if not at or data[at:] != END:
        return None
    return Outline(bytes(data[:schema_nbytes]), data[schema_nbytes:at], rows)


def _met(data: memoryview, size: int) -> Facts | None:
    """Return the facts of the first message, which Arrow verifies; None for another than it."""
    message = next(messages(data))
    is_it = bytes(message.metadata) == data[_PREFIX_BYTES:][:size]
    return facts(message.metadata) if is_it else None


def messages(data: Buffer) -> Iterator[Any]:
    """Yield the messages of a stream."""
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(data))
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def storage_schema(message: Any) -> Any:
    """Return the schema of a message as it is stored, without a look at extension types."""
    data = bytearray(message.serialize())
    for position, _ in extensions(message.metadata):
        data[_PREFIX_BYTES + position] = ord("_")  # another key than the one that Arrow looks for
    return pa.ipc.read_schema(pa.py_buffer(bytes(data)))


def extensions(metadata: Buffer) -> Iterator[tuple[int, bytes]]:
    """Yield the extension types in a message, if it is a schema, at any depth.

    Each is where the text of the key is that Arrow looks for, and the type's name.

    As `is_compressed`. In tables of ``Schema.fbs``, Schema has its fields as 1, Field its children
    as 5 and its metadata as 6, KeyValue its key as 0 and its value as 1.
    """
    number, table = _header(metadata)
    # Arrow has verified the message, so no table is met more often than its bytes allow
    todo = list(_tables(metadata, table, 1)) if number == _SCHEMA else []
    while todo:
        column = todo.pop()
        todo += _tables(metadata, column, 5)
        for pair in _tables(metadata, column, 6):
            if _string(metadata, pair, 0) == EXTENSION_NAME:
                key = _target(metadata, _field(metadata, pair, 0)) + _SIZE_BYTES
                yield key, _string(metadata, pair, 1)


def is_compressed(metadata: Buffer) -> bool:
    """Return whether a message's body is compressed, so that few bytes could fill the memory.

    pyarrow does not tell, so this reads the fields of Arrow's ``Message.fbs``.
    """
    # DictionaryBatch has its data as 1, RecordBatch its compression as 3
    number, table = _header(metadata)
    if number == _DICTIONARY_BATCH and (data := _field(metadata, table, 1)):
        table, number = _target(metadata, data), _RECORD_BATCH
    return number == _RECORD_BATCH and _field(metadata, table, 3) > 0


def is_delta(metadata: Buffer) -> bool:
    """Return whether a message adds to a dictionary: Arrow copies all of it each time.

    DictionaryBatch has that as 2.
    """
    number, table = _header(metadata)
    found = _field(metadata, table, 2) if number == _DICTIONARY_BATCH else 0
    return found > 0 and bytes(memoryview(metadata)[found : found + 1]) != b"\0"


def overlap(metadata: Buffer) -> bool:
    """Return whether two buffers of a message's body overlap: then it stands for more than it is.

    Arrow reads them as buffers of their own, and takes memory for each where it converts them.
    """
    ranges = sorted(pair for pair in buffers(metadata) if pair[1])
    return any(start + length > after for (start, length), (after, _) in itertools.pairwise(ranges))


def buffers(metadata: Buffer) -> list[tuple[int, int]]:
    """Return the offset and the length of each buffer in a message's body.

    In ``Message.fbs``, RecordBatch has them as 2: pairs of 64 bits each.
    """
    number, table = _header(metadata)
    if number == _DICTIONARY_BATCH and (data := _field(metadata, table, 1)):
        table, number = _target(metadata, data), _RECORD_BATCH
    found = _field(metadata, table, 2) if number == _RECORD_BATCH else 0
    if not found:
        return []
    vector = _target(metadata, found)
    (count,) = struct.unpack_from("<I", metadata, vector)
    numbers = struct.unpack_from(f"<{2 * count}q", metadata, vector + 4)
    return [*zip(numbers[::2], numbers[1::2], strict=True)]


def unpacked_nbytes(message: Any) -> int:
    """Return how many bytes the buffers of a compressed message claim to be.

    BodyCompression has BUFFER as its only method: each buffer begins with its uncompressed length,
    64 bits, and -1 says that it is not compressed.
    """
    total, body = 0, memoryview(message.body or b"")
    for start, length in buffers(message.metadata):
        claimed = int.from_bytes(body[start : start + 8], "little", signed=True) if length else 0
        total += length if claimed < 0 else claimed
    return total


def _header(metadata: Buffer) -> tuple[int, int]:
    """Return the kind of a message's header and where its table is; 0 and 0 without one."""
    # Fields are numbered as declared, a union takes two numbers: Message has the header's type as 1
    # and the header as 2.
    root = struct.unpack_from("<I", metadata)[0]
    kind = _field(metadata, root, 1)
    header = _field(metadata, root, 2)
    if not kind or not header:
        return 0, 0
    return struct.unpack_from("<B", metadata, kind)[0], _target(metadata, header)


def _tables(metadata: Buffer, table: int, number: int) -> Iterator[int]:
    """Yield where the tables are that a field lists."""
    if found := _field(metadata, table, number):
        vector = _target(metadata, found)
        (count,) = struct.unpack_from("<I", metadata, vector)
        for position in range(vector + 4, vector + 4 + 4 * count, 4):
            yield _target(metadata, position)


def _string(metadata: Buffer, table: int, number: int) -> bytes:
    """Return the text of a field, empty where there is none."""
    found = _field(metadata, table, number)
    if not found:
        return b""
    start = _target(metadata, found)
    (size,) = struct.unpack_from("<I", metadata, start)
    return bytes(memoryview(metadata)[start + _SIZE_BYTES : start + _SIZE_BYTES + size])


def _field(metadata: Buffer, table: int, number: int) -> int:
    """Return where a flatbuffer table has a field, 0 where it has none."""
    # A vtable holds two sizes and then an offset for each field, 16 bits each. It may end early:
    # the fields that it lacks are not there.
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _number(metadata: Buffer, table: int, number: int) -> int:
    """Return a number of 64 bits, 0 where there is none."""
    found = _field(metadata, table, number)
    return int(struct.unpack_from("<q", metadata, found)[0]) if found else 0


def _target(metadata: Buffer, position: int) -> int:
    target: int = struct.unpack_from("<I", metadata, position)[0]
    return position + target
