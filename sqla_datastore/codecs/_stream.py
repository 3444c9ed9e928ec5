"""Arrow IPC streams as blobs, for every codec whose values are Arrow memory.

A stream (not an IPC *file*) may replace dictionaries from batch to batch. Its size is counted
before it is written, so that no payload is copied. What is read is validated in full before it is
handed out, because damaged offsets would not raise but crash the process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from typing_extensions import Buffer

from ..exceptions import DataStoreError
from .protocol import Decoder, Encoder

_FOREIGN = "its extension type is not one of pyarrow's own; store .storage, or register a codec"
# of the union `MessageHeader`
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_EXTENSION_NAME = b"ARROW:extension:name"
# of types that lie in the stream as a pickle
_PICKLED = b"arrow.py_extension_type"
_WIDE_OF_VIEW = {
    "string_view": pa.large_string(),
    "binary_view": pa.large_binary(),
}


class StreamPayload:
    """Record batches as one IPC stream, without body compression.

    Raises:
        pyarrow.ArrowException: Arrow cannot write the batches, for example nested too deeply.
    """

    suffix = ".arrow"

    def __init__(self, schema: Any, batches: Sequence[Any]) -> None:
        self._schema = schema
        self._batches = batches
        counted = pa.MockOutputStream()
        self._stream_to(counted)
        self._nbytes: int = counted.size()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        sink: Any = _Sink(write)
        self._stream_to(pa.PythonFile(sink, mode="w"))

    def _stream_to(self, sink: Any) -> None:
        with pa.ipc.new_stream(sink, self._schema) as writer:
            for batch in self._batches:
                writer.write_batch(batch)


class _Sink:
    """What `pyarrow.PythonFile` needs of a file that is open for writing."""

    closed = False

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write

    def write(self, data: Buffer) -> int:
        with memoryview(data) as view:
            self._write(data)
            return view.nbytes

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The blob is closed by who opened it."""


def add_stream(encoder: Encoder, value: object, schema: Any, batches: Iterable[Any]) -> int:
    """Add batches as a blob and return its number.

    Args:
        encoder: takes the blob.
        value: what is encoded, for errors.
        schema: the schema of every batch.
        batches: record batches.

    Raises:
        UnsupportedTypeError: a type is foreign, or Arrow cannot write it.
    """
    for field in schema:
        if reason := refusal(field.type):
            raise encoder.unsupported(value, f"{reason} ({field.name!r} is {field.type})")
    try:
        return encoder.blob(StreamPayload(schema, [_compact_batch(each) for each in batches]))
    except (pa.ArrowException, RecursionError) as err:
        raise encoder.unsupported(value, f"Arrow cannot write it: {err}") from err


def read_stream(number: Any, decoder: Decoder) -> tuple[Any, list[Any]]:
    """Return schema and batches of a blob; they refer to its memory.

    Raises:
        DamagedObjectError: the bytes are no stream of valid batches of known types.
    """
    data = decoder.blob(number)
    with refused_as_damage(decoder, "an Arrow stream"):
        # first: to read a batch would unpack it, and to read a schema runs the code of its types
        for message in _messages(data):
            if _is_compressed(message.metadata):
                raise decoder.damaged(
                    "an Arrow stream is compressed, which this library never writes"
                )
            if names := [*filter(_is_foreign, _extension_names(message.metadata))]:
                raise decoder.damaged(f"an Arrow stream has foreign extension types: {names}")
        reader = pa.ipc.open_stream(pa.py_buffer(data))
        schema, batches = reader.schema, list(reader)
        for batch in batches:
            # Of 400 damaged streams, 106 crashed the process without it, 104 with the short form,
            # and none with this one.
            batch.validate(full=True)
        foreign = [field.name for field in schema if refusal(field.type)]
        if foreign:
            raise decoder.damaged(f"an Arrow stream has foreign extension types in {foreign}")
    return schema, batches


def _messages(data: Buffer) -> Iterator[Any]:
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(data))
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _is_foreign(name: bytes) -> bool:
    """Return whether reading an extension type of this name runs code that is not pyarrow's own.

    A name that the program has not registered is metadata of a column that is read as it is stored.
    """
    if name == _PICKLED:
        return True
    # only a private list tells without reading or registering a type
    registered = getattr(pa.lib, "_python_extension_types_registry", None)
    if registered is None:
        return not name.startswith(b"arrow.")
    return any(each.extension_name.encode() == name and refusal(each) for each in registered)


def _extension_names(metadata: Buffer) -> Iterator[bytes]:
    """Yield the names of extension types in a message, if it is a schema, at any depth.

    As `_is_compressed`. In tables of ``Schema.fbs``, Schema has its fields as 1, Field its children
    as 5 and its metadata as 6, KeyValue its key as 0 and its value as 1.
    """
    number, table = _header(metadata)
    # Arrow has verified the message, so no table is met more often than its bytes allow
    todo = list(_tables(metadata, table, 1)) if number == _SCHEMA else []
    while todo:
        column = todo.pop()
        todo += _tables(metadata, column, 5)
        for pair in _tables(metadata, column, 6):
            if _string(metadata, pair, 0) == _EXTENSION_NAME:
                yield _string(metadata, pair, 1)


def _is_compressed(metadata: Buffer) -> bool:
    """Return whether a message's body is compressed, so that few bytes could fill the memory.

    pyarrow does not tell, so this reads the fields of Arrow's ``Message.fbs``.
    """
    # DictionaryBatch has its data as 1, RecordBatch its compression as 3
    number, table = _header(metadata)
    if number == _DICTIONARY_BATCH and (data := _field(metadata, table, 1)):
        table, number = _target(metadata, data), _RECORD_BATCH
    return number == _RECORD_BATCH and _field(metadata, table, 3) > 0


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
    return bytes(memoryview(metadata)[start + 4 : start + 4 + size])


def _field(metadata: Buffer, table: int, number: int) -> int:
    """Return where a flatbuffer table has a field, 0 where it has none."""
    # A vtable holds two sizes and then an offset for each field, 16 bits each. It may end early:
    # the fields that it lacks are not there.
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _target(metadata: Buffer, position: int) -> int:
    target: int = struct.unpack_from("<I", metadata, position)[0]
    return position + target


@contextmanager
def refused_as_damage(decoder: Decoder, what: str) -> Iterator[None]:
    """Turn whatever a library raises about hostile values into `DamagedObjectError`."""
    try:
        yield
    except (DataStoreError, Warning, ImportError, NameError, MemoryError):
        # not the bytes' fault: a warning made an error, a library missing or broken, too small a
        # machine
        raise
    except Exception as err:
        text = " ".join(str(err).split())[:200]
        raise decoder.damaged(f"{what}: {type(err).__name__}: {text}") from err


def refusal(arrow_type: Any) -> str | None:
    """Return why a type cannot be stored, or None."""
    if isinstance(arrow_type, pa.BaseExtensionType):
        ours = type(arrow_type).__module__.partition(".")[0] == "pyarrow"
        # The class of such a type lies in the stream as a pickle (CVE-2023-47248). pyarrow reads it
        # as unknown since 14.0.1, unless a program allows it again.
        unknown = type(arrow_type).__name__ in {"UnknownExtensionType", "PyExtensionType"}
        if unknown or not ours:
            return _FOREIGN
    return next((reason for child in _children(arrow_type) if (reason := refusal(child))), None)


def _children(arrow_type: Any) -> list[Any]:
    if isinstance(arrow_type, pa.BaseExtensionType):
        return [arrow_type.storage_type]
    if pa.types.is_dictionary(arrow_type):
        return [arrow_type.value_type]
    if pa.types.is_run_end_encoded(arrow_type):
        return [arrow_type.value_type]
    return [arrow_type.field(each).type for each in range(arrow_type.num_fields)]


def compact(array: Any) -> Any:
    """Return an array without what its views do not show.

    IPC cuts the buffers of a slice, except those that string and binary views point into: ten rows
    of a table would write all of it.
    """
    wide = _without_views(array.type)
    if wide is array.type:
        return array
    try:
        return array.cast(wide).cast(array.type)
    except pa.ArrowNotImplementedError:  # before pyarrow 20 nothing casts views
        return pa.array(array.to_pylist(), array.type)


def _compact_batch(batch: Any) -> Any:
    columns = [compact(column) for column in batch.columns]
    if all(new is old for new, old in zip(columns, batch.columns, strict=True)):
        return batch
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _without_views(arrow_type: Any) -> Any:
    """Return the type with views replaced, or the very same one where it has none that we cast."""
    if wide := _WIDE_OF_VIEW.get(str(arrow_type)):
        return wide
    is_list = pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type)
    if not (is_list or pa.types.is_struct(arrow_type)):
        return arrow_type
    fields = [arrow_type.field(each) for each in range(arrow_type.num_fields)]
    wides = [field.with_type(_without_views(field.type)) for field in fields]
    if all(wide.equals(field) for wide, field in zip(wides, fields, strict=True)):
        return arrow_type
    return _rebuilt(arrow_type, wides)


def _rebuilt(arrow_type: Any, fields: list[Any]) -> Any:
    if pa.types.is_struct(arrow_type):
        return pa.struct(fields)
    if pa.types.is_large_list(arrow_type):
        return pa.large_list(fields[0])
    return pa.list_(fields[0])
