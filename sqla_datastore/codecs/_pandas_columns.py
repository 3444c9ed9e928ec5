"""The physical columns of one pandas object: blocks of numbers and Arrow streams.

Arrays of one dtype and length go into one two-dimensional ``.npy`` blob, column after column, so
that 10,000 columns are one blob and come back as one block. Arrow arrays of one length go into one
stream, under the columns' names where these are unique.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ._base import field
from ._npy import Array, ArrayPayload, array_over, npy_header
from ._stream import add_stream, read_stream, refused_as_damage
from .protocol import JSON, Decoder, Encoder
from .strict_json import is_text

_BLOCK_DTYPE = re.compile(r"[<>|]([biu][1248]|f[248]|c8|c16|[mM]8\[(s|ms|us|ns)\])")
_ALIGNMENT = 64
_MOST_ITEMS = 1 << 62
MAX_EMPTY_COLUMNS = 1 << 16
"""Columns without rows take no room in blobs, so their sizes do not bound their number."""


class ColumnWriter:
    """Collects the columns of one object; `close` turns them into blobs."""

    def __init__(self, value: object, encoder: Encoder) -> None:
        self.value = value
        self.encoder = encoder
        self._blocks: dict[tuple[str, int], list[Array]] = {}
        self._streams: dict[int, list[tuple[str, Any]]] = {}
        self._empty_columns = 0

    def array(self, array: Array) -> JSON:
        """Add a one-dimensional array and return its reference."""
        if not _BLOCK_DTYPE.fullmatch(array.dtype.str):
            return self.encoder.encode(np.asarray(array))
        block = self._blocks.setdefault((array.dtype.str, len(array)), [])
        block.append(array)
        return [list(self._blocks).index((array.dtype.str, len(array))), len(block) - 1]

    def arrow(self, array: Any, label: str = "") -> JSON:
        """Add an Arrow array, chunked or not, and return its reference."""
        stream = self._streams.setdefault(len(array), [])
        stream.append((label, array))
        return [list(self._streams).index(len(array)), len(stream) - 1]

    def close(self) -> JSON:
        """Add the blobs and return the node that `ColumnReader` takes."""
        blocks = [self._block(*key, arrays) for key, arrays in self._blocks.items()]
        streams = [self._stream(labelled) for labelled in self._streams.values()]
        return {"blocks": blocks, "streams": streams}

    def unsupported(self, reason: str) -> Exception:
        """Return the error that refuses the whole object."""
        return self.encoder.unsupported(self.value, reason)

    def _block(self, dtype: str, rows: int, arrays: list[Array]) -> JSON:
        self._empty_columns += 0 if rows else len(arrays)
        if self._empty_columns > MAX_EMPTY_COLUMNS:
            raise self.unsupported("it has too many columns without rows")
        # Columns of a frame over one C-order array are strided. Taken row by row, they are one
        # piece of memory that nothing has to gather.
        whole = _by_row(arrays)
        header = npy_header(dtype, (rows, len(arrays)), is_fortran=whole is None)
        payload = ArrayPayload(header, arrays if whole is None else [whole])
        return {
            "blob": self.encoder.blob(payload),
            "dtype": dtype,
            "shape": [len(arrays), rows],
            "by_row": whole is not None,
            "offset": len(header),
        }

    def _stream(self, labelled: list[tuple[str, Any]]) -> JSON:
        labels = [label for label, _ in labelled]
        if len({*labels}) < len(labels) or not is_text("".join(labels)):
            labels = [str(position) for position in range(len(labels))]
        table = pa.Table.from_arrays([array for _, array in labelled], names=labels)
        return add_stream(self.encoder, self.value, table.schema, table.to_batches())


class BlockLayout(NamedTuple):
    """How columns of numbers lie in a blob.

    Attributes:
        blob: its number.
        dtype: of all of them.
        columns: how many there are.
        rows: how many each has.
        is_by_row: whether the first numbers of all columns come first.
        offset: where they begin, in bytes.
        nbytes: how many bytes the blob has.
    """

    blob: Any
    dtype: np.dtype[Any]
    columns: int
    rows: int
    is_by_row: bool
    offset: int
    nbytes: int

    @classmethod
    def of(cls, node: Any) -> BlockLayout:
        """Return what a node says.

        Raises:
            Exception: it is damaged.
        """
        columns, rows = (checked(each, _MOST_ITEMS) for each in node["shape"])
        text = node["dtype"]
        if not (isinstance(text, str) and _BLOCK_DTYPE.fullmatch(text)):
            raise ValueError("a block has an unknown dtype")
        dtype = np.dtype(text)
        offset, is_by_row = checked(node["offset"], _MOST_ITEMS), node["by_row"] is True
        nbytes = offset + math.prod((columns, rows, dtype.itemsize))
        return cls(node["blob"], dtype, columns, rows, is_by_row, offset, nbytes)

    def array(self, data: memoryview, decoder: Decoder) -> Array:
        """Return the block in a blob, read-only, as an array of columns x rows.

        Raises:
            DamagedObjectError: the blob has another size.
        """
        if data.nbytes != self.nbytes or self.offset % _ALIGNMENT:
            raise decoder.damaged(f"a block of {self.nbytes} bytes has {data.nbytes}")
        shape = (self.rows, self.columns) if self.is_by_row else (self.columns, self.rows)
        block = array_over(data, self.offset, shape, self.dtype, decoder)
        if not block.flags.aligned:
            block = block.copy()
            block.flags.writeable = False
        return block.T if self.is_by_row else block


class ColumnReader:
    """Gives columns back by reference, each once; blobs are asked for when first needed."""

    def __init__(self, node: Any, decoder: Decoder) -> None:
        self.decoder = decoder
        self._block_nodes = self._list(field(node, "blocks", decoder))
        self._stream_nodes = self._list(field(node, "streams", decoder))
        self._blocks: dict[int, Array] = {}
        self._tables: dict[int, Any] = {}
        self._taken: dict[int, Array] = {}
        self._taken_columns: set[tuple[int, int]] = set()
        self._empty_columns = 0

    def array(self, reference: Any) -> Array:
        """Return a read-only one-dimensional array that refers to the blob."""
        if not _is_reference(reference):
            decoded = self.decoder.decode(reference)
            if type(decoded) is np.ndarray and decoded.ndim == 1:
                return decoded
            raise self.decoder.damaged("a column is no array of one dimension")
        block, row = reference
        self.take_rows(block, row, 1)
        rows: Array = self.block(block)[row]
        return rows

    def take_rows(self, block: Any, first: Any, count: Any) -> None:
        """Note that columns of a block are used, and refuse a second use: it takes memory again.

        Raises:
            DamagedObjectError: they are not inside the block, or used already.
        """
        size = len(self.block(block))
        numbers = self._checked(first, size), self._checked(count, size + 1)
        rows = slice(numbers[0], sum(numbers))
        if block not in self._taken:
            self._taken[block] = np.zeros(size, bool)
        taken = self._taken[block]
        if not numbers[1] or rows.stop > size or taken[rows].any():
            raise self.decoder.damaged("columns are not in their block, or used twice")
        taken[rows] = True

    def block(self, number: Any) -> Array:
        """Return a block, read-only, as an array of columns x rows."""
        number = self._checked(number, len(self._block_nodes))
        if number not in self._blocks:
            with refused_as_damage(self.decoder, "a block of columns"):
                self._blocks[number] = self._read_block(self._block_nodes[number])
        return self._blocks[number]

    def arrow(self, reference: Any) -> Any:
        """Return a chunked array that refers to the blob."""
        if not _is_reference(reference):
            raise self.decoder.damaged("a reference to an Arrow column is not one")
        stream = self._checked(reference[0], len(self._stream_nodes))
        if stream not in self._tables:
            schema, batches = read_stream(self._stream_nodes[stream], self.decoder)
            self._tables[stream] = pa.Table.from_batches(batches, schema)
        table = self._tables[stream]
        column = self._checked(reference[1], table.num_columns)
        if (stream, column) in self._taken_columns:
            raise self.decoder.damaged("an Arrow column is used twice")
        self._taken_columns.add((stream, column))
        return table.column(column)

    def _read_block(self, node: Any) -> Array:
        layout = BlockLayout.of(node)
        data = self.decoder.blob(layout.blob, mapped=True)
        self._empty_columns += 0 if layout.rows else layout.columns
        if self._empty_columns > MAX_EMPTY_COLUMNS:
            raise self.decoder.damaged("there are too many columns without rows")
        return layout.array(data, self.decoder)

    def _checked(self, number: Any, limit: int) -> int:
        try:
            return checked(number, limit)
        except ValueError as err:
            raise self.decoder.damaged(str(err)) from err

    def _list(self, node: Any) -> list[Any]:
        if isinstance(node, list):
            return node
        raise self.decoder.damaged("physical columns are not lists")


def checked(number: Any, limit: int) -> int:
    """Return a number that is from 0 on and below a limit; ValueError for anything else."""
    if type(number) is int and 0 <= number < limit:
        return number
    raise ValueError(f"a number of columns or rows is {number!r}")


def _is_reference(node: Any) -> bool:
    return isinstance(node, list) and len(node) == 2 and all(type(each) is int for each in node)


def _by_row(arrays: list[Array]) -> Array | None:
    """Return the two-dimensional array of these columns if they lie in memory row by row."""
    first, step = arrays[0], arrays[0].itemsize
    if len(arrays) < 2 or len(first) < 2 or first.strides != (step * len(arrays),):
        return None
    start = first.__array_interface__["data"][0]
    for position, array in enumerate(arrays):
        place = array.__array_interface__["data"][0] - start
        if array.strides != first.strides or place != position * step:
            return None
    shape, strides = (len(first), len(arrays)), (first.strides[0], step)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)
