"""Arrays as NumPy saves them and frames as Feather, in the bytes of a DataPak.

Source: the `numpy.lib.format` page of the NumPy manual; the Arrow columnar format, section "IPC
file format", which is version 2 of Feather.
"""

from __future__ import annotations

import ast
import math
import struct
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqla_datastore.codecs._npy import fault_of
from sqla_datastore.codecs._stream import arrays_in, batches_in, refused_as_damage
from sqla_datastore.mltraq.reading import Reading

_NPY: Final = b"\x93NUMPY"
_MAX_HEADER: Final = 10_000
"""As `numpy.load` has it."""
_ARROW: Final = b"ARROW1"
_CELL_BYTES: Final = 64
"""What pandas takes for a text, a list or the like, besides its bytes."""


def read_npy(data: bytes, reading: Reading) -> npt.NDArray[Any]:
    """Return the array of a ``.npy`` file, read-only on its bytes.

    Raises:
        DamagedObjectError: they are no such file, or hold Python objects.
    """
    with refused_as_damage(reading, "an array"):
        header, start = _npy_header(data, reading)
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(header["descr"])
        shape = tuple(header["shape"])
        order: Literal["C", "F"] = "F" if header["fortran_order"] else "C"
        if dtype.hasobject or dtype.subdtype is not None:
            raise reading.damaged("an array holds Python objects, or is of a subarray")
        items = math.prod(shape)  # not by NumPy, which wraps round
        if items * dtype.itemsize != len(data) - start or (items and not dtype.itemsize):
            raise reading.damaged("an array's shape does not fit its bytes")
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, memoryview(data)[start:], order=order)
        if fault := fault_of(array):
            raise reading.damaged(fault)
    return array


def _npy_header(data: bytes, reading: Reading) -> tuple[dict[str, Any], int]:
    """Return what the header says, and where the items begin."""
    major = data[6]
    if not data.startswith(_NPY) or major not in (1, 2, 3):
        raise reading.damaged("an array is no .npy file of version 1 to 3")
    length = "<H" if major == 1 else "<I"
    (size,) = struct.unpack_from(length, data, 8)
    begin = 8 + struct.calcsize(length)
    if size > _MAX_HEADER:
        raise reading.damaged("an array's header is too long")
    text = data[begin : begin + size].decode("utf-8" if major == 3 else "latin1")
    try:
        return ast.literal_eval(text.strip()), begin + size
    except MemoryError:  # the parser's word for text that nests too deeply
        raise reading.damaged("an array's header nests too deeply") from None


def read_feather(data: bytes, reading: Reading) -> Any:
    """Return the table of a Feather file of version 2.

    Its bytes are read as the stream that they are: what the file's footer says of it is not asked.

    Raises:
        DamagedObjectError: they are no such file, or no valid table of known types.
        UnsupportedFormatError: it takes more memory than it may.
    """
    with refused_as_damage(reading, "a frame"):
        if len(data) < 20 or not (data.startswith(_ARROW) and data.endswith(_ARROW)):
            raise reading.damaged("a frame is no Feather file of version 2")
        (footer,) = struct.unpack_from("<i", data, len(data) - 10)
        if not 0 <= footer <= len(data) - 18:
            raise reading.damaged("a frame's footer is larger than its file")
        schema, batches = batches_in(memoryview(data)[8 : len(data) - 10 - footer], None, reading)
        table = pa.Table.from_batches(batches, schema)
        cells = [each for batch in batches for each in arrays_in(batch)]
        reading.take(table.nbytes)
        reading.take(sum(_CELL_BYTES * len(each) for each in cells if not _is_plain(each.type)))
    return table


def _is_plain(arrow_type: Any) -> bool:
    return bool(pa.types.is_primitive(arrow_type) or pa.types.is_dictionary(arrow_type))


def frame_of(table: Any, reading: Reading) -> Any:
    """Return the pandas frame that was written as a table, by what pandas noted in it."""
    with refused_as_damage(reading, "a frame"):
        return table.to_pandas()
    raise AssertionError


def series_of(table: Any, reading: Reading) -> Any:
    """Return the series that was written as a frame of one column.

    A series without a name was written as the column 0, and comes back without a name.
    """
    frame = frame_of(table, reading)
    if frame.shape[1] != 1:
        raise reading.damaged("a series has not one column")
    series = frame.iloc[:, 0]
    # "0" would be a name
    return series if isinstance(series.name, str) or series.name != 0 else series.rename(None)
