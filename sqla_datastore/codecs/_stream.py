"""Arrow IPC streams as blobs, for every codec whose values are Arrow memory.

A stream (not an IPC *file*) may replace dictionaries from batch to batch. Its size is counted
before it is written, so that no payload is copied. What is read is validated in full before it is
handed out, because damaged offsets would not raise but crash the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import Buffer

from ..exceptions import DataStoreError
from ._compressed_stream import CompressedStream, compressed_stream, without_dictionaries
from ._extensions import check_extensions, refuse_foreign, schema_refusal
from ._messages import END, facts, messages, outline, storage_schema, unpacked_nbytes
from .protocol import Decoder, Encoder, TellsDamage

_FREE_ROWS = 1 << 20
_FREE_COLUMNS = 1 << 17
_FREE_BYTES = 1 << 26
_FREE_PACKED = 1 << 16
# of these nothing is free, and nothing lies in them: most streams have no others
_PLAIN_TYPES = {
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.bool_(), pa.float32(), pa.float64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.string(), pa.large_string()),
}
_WIDE_OF_VIEW = {
    "string_view": pa.large_string(),
    "binary_view": pa.large_binary(),
}


class StreamPayload:
    """Record batches as one IPC stream.

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

    def compressed(self, level: str) -> CompressedPayload | None:
        """Return the stream as Arrow compresses it, None where that is not worth its while."""
        stream = compressed_stream(self._schema, self._batches, level)
        return None if stream is None else CompressedPayload(stream)

    def _stream_to(self, sink: Any) -> None:
        with pa.ipc.new_stream(sink, self._schema) as writer:
            for batch in self._batches:
                writer.write_batch(batch)


class CompressedPayload:
    """A compressed stream, whose size is known once it is written."""

    def __init__(self, stream: CompressedStream) -> None:
        self._stream = stream

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        """Hand over all bytes in order."""
        sink: Any = _Sink(write)
        self._stream.stream_to(pa.PythonFile(sink, mode="w"))


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
    if reason := schema_refusal(schema):
        raise encoder.unsupported(value, reason)
    batches = [*batches]
    try:
        batches = [_compact_batch(each) for each in batches]
        payload = StreamPayload(schema, batches)
        if has_far_more_nulls(schema, batches, payload.nbytes):
            reason = "its columns of the type null are long, and nothing is stored of them"
            raise encoder.unsupported(value, f"{reason}; cast them, or store their length")
        if has_far_more_columns(schema, len(batches), payload.nbytes):
            reason = "its columns of nulls or unions are in too many batches"
            raise encoder.unsupported(value, f"{reason}; store value.combine_chunks()")
        if shows_far_more(schema, batches, payload.nbytes):
            reason = "its views show the same bytes again and again"
            raise encoder.unsupported(value, f"{reason}; cast them to strings or binary")
        return encoder.blob(payload)
    except (pa.ArrowException, RecursionError) as err:
        raise encoder.unsupported(value, f"Arrow cannot write it: {err}") from err


def batches_of(table: Any) -> list[Any]:
    """Return a table's batches: one for each chunk, empty ones too, where its columns' agree."""
    if not table.num_columns and table.num_rows:
        return [_no_columns(table.num_rows)]
    if len({tuple(map(len, column.chunks)) for column in table.columns}) != 1:
        return list(table.to_batches())
    chunks = zip(*(column.chunks for column in table.columns), strict=True)
    return [pa.RecordBatch.from_arrays([*each], schema=table.schema) for each in chunks]


def _no_columns(rows: int) -> Any:
    """Return a batch that has rows and no columns."""
    nothing = pa.StructArray.from_arrays([pa.nulls(rows)], ["nothing"])
    return pa.RecordBatch.from_struct_array(nothing).select([])


def read_stream(number: Any, decoder: Decoder) -> tuple[Any, list[Any]]:
    """Return schema and batches of a blob; they refer to its memory.

    Raises:
        DamagedObjectError: the bytes are no stream of valid batches of known types.
    """
    return batches_in(decoder.blob(number), decoder.unpacked_nbytes(number), decoder)


def batches_in(data: Buffer, unpacked: int | None, decoder: TellsDamage) -> tuple[Any, list[Any]]:
    """Return schema and batches of a stream; they refer to its memory.

    Args:
        data: the stream.
        unpacked: how many bytes it has before it is compressed, None where it must not be.
        decoder: makes the errors.

    Raises:
        DamagedObjectError: the bytes are no stream of valid batches of known types.
    """
    nbytes = memoryview(data).nbytes if unpacked is None else unpacked
    with refused_as_damage(decoder, "an Arrow stream"):
        # first: to read a batch would unpack it, and to read a schema runs the code of its types
        storage, count = _checked_messages(data, unpacked, decoder)
        reader = pa.ipc.open_stream(pa.py_buffer(data))
        schema = reader.schema
        check_field_names(schema)
        is_plain = all(map(_is_plain, schema.types))
        if not is_plain and has_far_more_columns(schema, count, nbytes):
            raise decoder.damaged("nulls or unions are in too many batches of an Arrow stream")
        if storage is not None:
            check_extensions(schema, storage, decoder)
        batches = list(reader)
        if not is_plain and shows_far_more(schema, batches, nbytes):
            raise decoder.damaged("views of an Arrow stream show the same bytes again and again")
        for batch in batches:
            # Of 400 damaged streams, 106 crashed the process without it, 104 with the short form,
            # and none with this one.
            batch.validate(full=True)
        if unpacked is not None:
            schema, batches = without_dictionaries(schema, batches, unpacked)
        if not is_plain and has_far_more_nulls(schema, batches, nbytes):
            raise decoder.damaged("there are more nulls than what is stored of them")
    return schema, batches


class StreamPiece:
    """A stream of plain columns, of which many with one schema are read as one.

    pyarrow takes some 15 microseconds to read a stream of a few rows, most of them for its schema.

    Attributes:
        like: pieces for which it is equal can be joined.
        rows: how many it has.
    """

    __slots__ = ("_batches", "like", "rows")

    def __init__(self, like: bytes, batches: memoryview, rows: int) -> None:
        self.like = like
        self.rows = rows
        self._batches = batches

    @classmethod
    def of(cls, data: memoryview, columns: int) -> StreamPiece | None:
        """Return what is in a stream of so many columns, None where it has to be read alone."""
        found = outline(data)
        if found is None or not _has_plain_columns(found.schema, columns):
            return None
        return cls(found.schema, found.batches, found.rows)

    @staticmethod
    def joined(pieces: Sequence[StreamPiece]) -> Any:
        """Return the table of all of them; any exception means that one is damaged."""
        data = b"".join([pieces[0].like, *(piece._batches for piece in pieces), END])
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        return table


@lru_cache(maxsize=64)
def _has_plain_columns(message: bytes, columns: int) -> bool:
    """Return whether a schema has so many columns, all of types that need no closer look.

    Args:
        message: the schema, without extension types.
        columns: how many it is to have.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(message))
    check_field_names(schema)
    return len(schema) == columns and all(
        _is_plain(each) or pa.types.is_temporal(each) or pa.types.is_decimal(each)
        for each in schema.types
    )


def _checked_messages(data: Buffer, unpacked: int | None, decoder: TellsDamage) -> tuple[Any, int]:
    """Look at all messages of a stream before Arrow acts on them.

    Args:
        data: the stream.
        unpacked: how many bytes it has before it is compressed, None where it must not be.
        decoder: makes the errors.

    Returns:
        The schema as it is stored where there are extension types, else None; and the number of
        messages.
    """
    storage = None
    count = 0
    # a dictionary and its indexes may be larger than its texts, where these are short
    left = _FREE_PACKED + 2 * (unpacked or 0)
    for message in messages(data):
        count += 1
        found = facts(message.metadata)
        if found.is_compressed:
            if unpacked is None:
                raise decoder.damaged("an Arrow stream is compressed, and its size is not known")
            left -= unpacked_nbytes(message)
            if left < 0:
                raise decoder.damaged("an Arrow stream makes more bytes than it claims")
        if found.is_delta:
            raise decoder.damaged(
                "a dictionary of an Arrow stream is added to, which this library never writes"
            )
        if found.overlap:
            raise decoder.damaged("buffers of an Arrow stream overlap")
        for name in found.extensions:
            refuse_foreign(name, decoder)
        storage = storage_schema(message) if found.extensions else storage
    return storage, count


def has_far_more_nulls(schema: Any, batches: Sequence[Any], nbytes: int) -> bool:
    """Return whether columns of the type null have far more rows than a stream has bytes.

    Other libraries take memory for each of these rows, and Arrow stores none.
    """
    if not any(pa.types.is_null(each) for field in schema for each in types_in(field.type)):
        return False
    rows = sum(max(map(len, arrays_in(batch)), default=0) for batch in batches)
    return rows > max(_FREE_ROWS, 8 * nbytes)


def has_far_more_columns(schema: Any, batches: int, nbytes: int) -> bool:
    """Return whether a stream has far more nulls and unions, one for each batch, than bytes.

    Arrow takes 200 to 400 bytes for each of them, and stores 16 to 40.
    """
    types = (each for field in schema for each in types_in(field.type))
    columns = sum(pa.types.is_null(each) or pa.types.is_union(each) for each in types)
    return bool(columns * batches > max(_FREE_COLUMNS, nbytes // 64))


def shows_far_more(schema: Any, batches: Sequence[Any], nbytes: int) -> bool:
    """Return whether views show far more bytes than a stream has: they may all show the same.

    Arrow looks at each of them when it validates, and other libraries take memory for each.
    """
    if not any(_is_view(each) for field in schema for each in types_in(field.type)):
        return False
    shown = sum(map(_shown, batches))
    return shown > _FREE_BYTES + 8 * nbytes


def _is_plain(arrow_type: Any) -> bool:
    # extension types of others need not be hashable
    return not isinstance(arrow_type, pa.BaseExtensionType) and arrow_type in _PLAIN_TYPES


def _shown(batch: Any) -> int:
    views = (each for each in arrays_in(batch) if _is_view(each.type))
    # of 16 bytes each; the first four are its length
    lengths = (np.frombuffer(each.buffers()[1] or b"", "<u4")[::4] for each in views)
    return sum(int(each.sum(dtype=np.uint64)) for each in lengths)


def _is_view(arrow_type: Any) -> bool:
    return str(arrow_type) in _WIDE_OF_VIEW


def arrays_in(batch: Any) -> Iterator[Any]:
    """Yield the columns of a batch and the arrays in them."""
    todo = list(batch.columns)
    while todo:
        array = todo.pop()
        yield array
        if isinstance(array, pa.ExtensionArray):
            todo.append(array.storage)
        elif isinstance(array, pa.DictionaryArray):
            todo.append(array.dictionary)
        elif isinstance(array, pa.UnionArray | pa.StructArray):
            todo += (array.field(n) for n in range(array.type.num_fields))
        elif (values := getattr(array, "values", None)) is not None:
            todo.append(values)


def types_in(arrow_type: Any) -> Iterator[Any]:
    """Yield a type and those in it."""
    yield arrow_type
    if isinstance(arrow_type, pa.BaseExtensionType):
        yield from types_in(arrow_type.storage_type)
    if pa.types.is_dictionary(arrow_type):
        yield from types_in(arrow_type.value_type)
    for number in range(arrow_type.num_fields):
        yield from types_in(arrow_type.field(number).type)


def check_field_names(schema: Any) -> None:
    """Look at the names of fields at any depth.

    Raises:
        UnicodeDecodeError: one is not UTF-8; pyarrow says so only when it is used.
    """
    _ = schema.names
    for field in schema:
        if _is_plain(field.type):
            continue
        for each in types_in(field.type):
            _ = [each.field(number).name for number in range(each.num_fields)]


@contextmanager
def refused_as_damage(decoder: TellsDamage, what: str) -> Iterator[None]:
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
