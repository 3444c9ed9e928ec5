"""Arrow streams whose buffers Arrow compresses (``BodyCompression`` of its columnar format).

Columns of texts that repeat are written as dictionaries. The field's metadata says so, and reading
turns them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

KEY: Final = b"sqla_datastore:text"
"""Of a field's metadata: the type of a column of texts that is written as a dictionary."""

_CODECS: Final = {"fast": ("lz4", None), "default": ("zstd", 1), "small": ("zstd", 9)}
_SAMPLE_ROWS: Final = 1 << 16
# lz4 makes 255 bytes of one at most; zstd, and a dictionary, more than a reader believes
_MUCH: Final = 100
_TEXTS: Final = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
}
_REPEATS: Final = 4
_INDEXES: Final = (pa.int8(), pa.int16(), pa.int32())

Dictionaries: TypeAlias = "dict[int, list[Any]]"
"""Of columns, by their position: each batch's part as a dictionary."""


class CompressedStream:
    """The bytes of batches as a stream that Arrow compresses.

    Args:
        schema: of the batches.
        batches: record batches.
        options: how Arrow compresses.
        texts: what is written of columns of texts that repeat.
    """

    def __init__(
        self, schema: Any, batches: Sequence[Any], options: Any, texts: Dictionaries
    ) -> None:
        self._plain = schema
        for at, arrays in texts.items():
            field = schema.field(at)
            metadata = {**(field.metadata or {}), KEY: str(field.type).encode()}
            schema = schema.set(at, field.with_type(arrays[0].type).with_metadata(metadata))
        self._schema = schema
        self._batches = batches
        self._options = options
        self._texts = texts

    def stream_to(self, sink: Any) -> None:
        """Write the stream to a sink of Arrow's."""
        numbers = range(len(self._batches))
        _write(sink, self._schema, map(self._encoded, numbers), self._options)

    def _encoded(self, number: int) -> Any:
        batch = self._batches[number]
        if not self._texts:
            return batch
        columns = batch.columns
        for at, arrays in self._texts.items():
            columns[at] = arrays[number]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def samples(self) -> list[tuple[int, int]]:
        """Return the sizes of samples, as they are and compressed: of three batches at most."""
        sizes = []
        for number in _spread(len(self._batches), 1):
            plain, encoded = self._batches[number], self._encoded(number)
            for start in _spread(plain.num_rows, _SAMPLE_ROWS):
                pieces = (each.slice(start, _SAMPLE_ROWS) for each in (plain, encoded))
                sizes.append(
                    (
                        _size(self._plain, next(pieces), None),
                        _size(self._schema, next(pieces), self._options),
                    )
                )
        return sizes


def compressed_stream(schema: Any, batches: Sequence[Any], level: str) -> CompressedStream | None:
    """Return a stream that Arrow compresses, None where that is not worth its while.

    That is, where samples do not shrink by a tenth, or its own metadata would be taken for ours.
    """
    has_our_key = any(KEY in (field.metadata or {}) for field in schema)
    if has_our_key or not any(batch.num_rows for batch in batches):
        return None
    stream = CompressedStream(schema, batches, _options(*_CODECS[level]), {})
    samples = stream.samples()
    before, after = (sum(sizes) for sizes in zip(*samples, strict=True))
    if 10 * after > 9 * before:
        return None
    if level == "fast":
        return stream
    if _shrinks_much(samples):
        return CompressedStream(schema, batches, _options("lz4", None), {})
    if texts := _dictionaries(schema, batches):
        smaller = CompressedStream(schema, batches, _options(*_CODECS[level]), texts)
        return stream if _shrinks_much(smaller.samples()) else smaller
    return stream


def _shrinks_much(samples: Sequence[tuple[int, int]]) -> bool:
    return any(before > _MUCH * after for before, after in samples)


def _options(name: str, level: int | None) -> Any:
    codec = name if level is None else pa.Codec(name, compression_level=level)
    return pa.ipc.IpcWriteOptions(compression=codec)


def _spread(count: int, length: int) -> list[int]:
    """Return where pieces of a length begin at the start, in the middle and at the end."""
    last = max(0, count - length)
    return sorted({0, last // 2, last}) if count else []


def _size(schema: Any, batch: Any, options: Any) -> int:
    sink = pa.MockOutputStream()
    _write(sink, schema, [batch], options)
    return int(sink.size())


def _write(sink: Any, schema: Any, batches: Iterable[Any], options: Any) -> None:
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _dictionaries(schema: Any, batches: Sequence[Any]) -> Dictionaries:
    """Return the columns of texts, each of which stands several times, as dictionaries."""
    found: Dictionaries = {}
    for at, field in enumerate(schema):
        if str(field.type) not in _TEXTS:
            continue
        if not all(_repeats(each, pc.count_distinct(each).as_py()) for each in _texts(batches, at)):
            continue
        arrays = [batch.column(at).dictionary_encode() for batch in batches]
        if all(_repeats(each, len(each.dictionary)) for each in arrays):
            found[at] = _narrowed(arrays)
    return found


def _texts(batches: Sequence[Any], at: int) -> Iterator[Any]:
    """Yield samples of a column."""
    for number in _spread(len(batches), 1):
        column = batches[number].column(at)
        for start in _spread(len(column), _SAMPLE_ROWS):
            yield column.slice(start, _SAMPLE_ROWS)


def _repeats(array: Any, distinct: int) -> bool:
    return _REPEATS * distinct <= len(array)


def _narrowed(arrays: Sequence[Any]) -> list[Any]:
    """Return dictionaries with the narrowest indexes that all of them can have."""
    largest = max(len(each.dictionary) for each in arrays)
    index = next(each for each in _INDEXES if largest <= 1 << (each.bit_width - 1))
    cast = ((each.indices.cast(index), each.dictionary) for each in arrays)
    return [pa.DictionaryArray.from_arrays(*each) for each in cast]


# -- reading ---------------------------------------------------------------------------------------


def without_dictionaries(schema: Any, batches: Sequence[Any], nbytes: int) -> tuple[Any, list[Any]]:
    """Return schema and batches with columns of texts as they were before they were written.

    Args:
        schema: of a compressed stream.
        batches: its batches, validated.
        nbytes: how many bytes the stream had before; texts may not take more.

    Raises:
        ValueError: a column is no dictionary of texts, or its texts take more.
    """
    fields = [_plain_field(field) for field in schema]
    texts = [at for at, field in enumerate(schema) if field.type != fields[at].type]
    # all of them together: one by one, many columns could take as much each
    if sum(_text_bytes(batch.column(at)) for batch in batches for at in texts) > nbytes:
        raise ValueError("its texts take more than the stream has claimed")
    if not texts:
        return schema, [*batches]
    plain = pa.schema(fields, schema.metadata)
    decoded = []
    for batch in batches:
        columns = batch.columns
        for at in texts:
            columns[at] = columns[at].cast(fields[at].type)
        decoded.append(pa.RecordBatch.from_arrays(columns, schema=plain))
    return plain, decoded


def _plain_field(field: Any) -> Any:
    """Return a column's field as it was before its texts were written as a dictionary."""
    name = (field.metadata or {}).get(KEY)
    if name is None:
        return field
    plain = _TEXTS.get(name.decode())
    if not (pa.types.is_dictionary(field.type) and field.type.value_type == plain):
        raise ValueError(f"a column of texts is stored as {field.type}")
    metadata = {key: value for key, value in field.metadata.items() if key != KEY}
    return field.with_type(plain).with_metadata(metadata or None)


def _text_bytes(array: Any) -> int:
    lengths = pc.binary_length(array.dictionary).take(array.indices)
    return int(pc.sum(lengths).as_py() or 0)
