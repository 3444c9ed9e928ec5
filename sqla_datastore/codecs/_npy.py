"""Arrays as blobs: ``.npy`` files where that format can hold the dtype, else bare bytes.

The header is for other tools. Readers take dtype, shape, order and the header's length from the
node. The array's own byte order is kept, so that any array can be mapped without a copy.

Source: the `numpy.lib.format` page of the NumPy manual, versions 1.0 and 3.0.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from ._base import field
from ._dtypes import RefusedDtypeError, dtype_node, is_ml_dtype, read_dtype, read_shape
from .protocol import JSON, Decoder, Encoder

Array: TypeAlias = npt.NDArray[Any]

_ALIGNMENT: Final = 64
_PIECE_BYTES: Final = 1 << 20
_MAX_HEADER: Final = 9_000
"""`numpy.load` refuses headers above 10,000 bytes."""
_MAX_EMPTY_ITEMS: Final = 1 << 20
"""Items of no bytes take no room in a blob, so its size does not bound their number."""
_MAX_CODE_POINT: Final = 0x10FFFF


class ArrayPayload:
    """A header and then the bytes of arrays in C or Fortran order, copied a piece at a time.

    Without a header the bytes are bare, and the suffix says so.
    """

    def __init__(self, header: bytes, arrays: Sequence[Array]) -> None:
        self._header = header
        self._arrays = arrays
        self.nbytes = len(header) + sum(array.nbytes for array in arrays)

    @property
    def suffix(self) -> str:
        return ".npy" if self._header else ".bin"

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        if self._header:
            write(self._header)
        for array in self._arrays:
            for piece in _pieces(array):
                # as bytes, because datetimes and timedeltas have no buffer
                write(piece.view(np.uint8).data)


def _pieces(array: Array) -> Iterator[Array]:
    """Yield contiguous one-dimensional pieces in the order of the blob."""
    # `nditer` refuses arrays without items
    if array.nbytes == 0:
        return
    if _order(array) == "F":
        array = array.T
    if array.flags.c_contiguous:
        yield array.reshape(-1)
        return
    # A buffered `nditer` copies about 1 MiB at a time, not the array. Without "contig" it would
    # hand out strided pieces where it can.
    options: dict[str, Any] = {
        "flags": ["external_loop", "buffered"],
        "op_flags": [["readonly", "contig"]],
        "buffersize": max(1, _PIECE_BYTES // array.itemsize),
    }
    yield from np.nditer(array, order="C", **options)


def _order(array: Array) -> str:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def array_node(array: Array, encoder: Encoder) -> dict[str, JSON]:
    """Return the node of a plain array and add its blob.

    Args:
        array: of exactly `numpy.ndarray`, any dtype without objects.
        encoder: takes the blob.
    """
    try:
        dtype = dtype_node(array.dtype)
    except RefusedDtypeError as err:
        raise encoder.unsupported(array, f"{err}; store {_instead(array)}") from None
    if array.itemsize == 0 and array.size > _MAX_EMPTY_ITEMS:
        raise encoder.unsupported(array, "it has too many items of no bytes; store value.shape")
    if fault := fault_of(array):  # it could not be read again
        raise encoder.unsupported(array, f"{fault}; store value.tobytes(), or mend it")
    header = _header_of(array)
    return {
        "dtype": dtype,
        "shape": list(array.shape),
        "order": _order(array),
        "start": len(header),
        "blob": encoder.blob(ArrayPayload(header, [array])),
    }


def _instead(array: Array) -> str:
    if array.dtype.metadata and array.dtype.names is None:
        return "value.astype(value.dtype.str)"
    return "value.tolist(), or an array of another dtype"


def _header_of(array: Array) -> bytes:
    """Return an array's header, or nothing where a ``.npy`` file cannot hold the dtype."""
    try:
        described = array.dtype.str if array.dtype.names is None else array.dtype.descr
    except ValueError:  # overlapping or unordered fields
        return b""
    # `numpy.load` takes text without characters for text of one, and misses its bytes
    if not array.dtype.itemsize:
        return b""
    if is_ml_dtype(array.dtype):  # whose text is NumPy's for another type, or none
        described = f"|V{array.itemsize}"
    elif array.dtype.names is not None and _holds_ml_dtype(array.dtype):
        return b""
    return npy_header(described, array.shape, is_fortran=_order(array) == "F")


def _holds_ml_dtype(dtype: np.dtype[Any]) -> bool:
    if dtype.subdtype is not None:
        return _holds_ml_dtype(dtype.subdtype[0])
    inner = [dtype[name] for name in dtype.names or ()]
    return is_ml_dtype(dtype) or any(map(_holds_ml_dtype, inner))


def npy_header(described: object, shape: tuple[int, ...], *, is_fortran: bool) -> bytes:
    """Return a ``.npy`` header, padded so that the array's bytes begin at a multiple of 64.

    Args:
        described: the dtype as `numpy.lib.format` describes it: text, or a list of fields.
        shape: the array's lengths.
        is_fortran: whether the first index changes fastest.

    Returns:
        The header, or nothing where it is longer than `numpy.load` accepts.
    """
    text = f"{{'descr': {described!r}, 'fortran_order': {is_fortran}, 'shape': {shape!r}, }}"
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > _MAX_HEADER:
        return b""
    # version 3.0 of the format is the one whose header is UTF-8
    prefix, length = (
        (b"\x93NUMPY\x01\x00", "<H") if text.isascii() else (b"\x93NUMPY\x03\x00", "<I")
    )
    used = len(prefix) + struct.calcsize(length) + len(data) + 1
    data += b" " * (-used % _ALIGNMENT) + b"\n"
    return prefix + struct.pack(length, len(data)) + data


def read_array(node: Any, decoder: Decoder, *, mapped: bool = True) -> Array:
    """Return the array of a node, read-only on the blob's memory.

    Args:
        node: as `array_node` returned it, or a stranger's.
        decoder: gives the blob.
        mapped: a large blob may stay unverified, see `Decoder.blob`; not for what is looked at or
            copied right away.
    """
    dtype = read_dtype(field(node, "dtype", decoder), decoder)
    shape = read_shape(field(node, "shape", decoder), decoder)
    order, start = field(node, "order", decoder), field(node, "start", decoder)
    if order not in ("C", "F") or type(start) is not int or start < 0:
        raise decoder.damaged("an array's order or start is not one")
    if dtype.subdtype is not None:
        raise decoder.damaged("an array's dtype is a subarray")
    # a dtype whose items are checked is read whole at once, so it gains nothing from a map
    data = decoder.blob(field(node, "blob", decoder), mapped=mapped and not _is_checked(dtype))
    _check_size(shape, dtype, len(data) - start, decoder)
    array = array_over(data, start, shape, dtype, decoder, order)
    check_values(array, decoder)
    return array


def _check_size(
    shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int, decoder: Decoder
) -> None:
    # not `np.prod`, which wraps round: (2**62, 4) would have 0 items
    items = math.prod(shape)
    if items * dtype.itemsize != nbytes:
        reason = f"an array of shape {shape} and dtype {dtype} does not take {nbytes} bytes"
        raise decoder.damaged(reason)
    if not dtype.itemsize and items > _MAX_EMPTY_ITEMS:
        raise decoder.damaged("an array has too many items of no bytes")


def array_over(
    data: memoryview,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    decoder: Decoder,
    order: Literal["C", "F"] = "C",
) -> Array:
    """Return a read-only array on a blob's memory, from a byte on.

    Its base is the memoryview: that keeps a map open, and nobody can make the array writable. The
    base of an ``ndarray`` made directly would be what the memoryview shows.

    Raises:
        DamagedObjectError: NumPy cannot make such an array.
    """
    items = math.prod(shape)
    try:
        if items * dtype.itemsize and data.readonly:  # half to a third of the time of the other way
            array: Array = np.frombuffer(data, dtype, items, start)
            return array if len(shape) == 1 else array.reshape(shape, order=order)
        memory = np.frombuffer(data, np.uint8) if len(data) else b""
        array = np.ndarray(shape, dtype, memory, start, order=order)
    except (ValueError, TypeError, OverflowError) as err:
        raise decoder.damaged(f"NumPy refuses an array: {err}") from None
    array.flags.writeable = False
    return array


def _is_checked(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype has byte patterns that are no value, so that items must be checked."""
    if dtype.subdtype is not None:
        return _is_checked(dtype.subdtype[0])
    if dtype.fields is not None:
        return any(_is_checked(dtype.fields[name][0]) for name in dtype.names or ())
    return dtype.kind in "bU"


def check_values(array: Array, decoder: Decoder) -> None:
    """Refuse bools other than 0 and 1, and text with what is no code point."""
    if fault := fault_of(array):
        raise decoder.damaged(fault)


def fault_of(array: Array) -> str | None:
    """Return what is wrong with an array's values, or None.

    NumPy's loops rely on bools of 0 and 1, and raise SystemError at text with what is no code
    point.
    """
    dtype = array.dtype
    if dtype.names is not None:
        parts = (array[name] for name in dtype.names if _is_checked(dtype[name]))
        return next((fault for part in parts if (fault := fault_of(part))), None)
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        return "a bool is neither 0 nor 1"
    if dtype.kind == "U" and array.size and dtype.itemsize:
        points = np.dtype("u4").newbyteorder(dtype.byteorder)
        if array.view(np.dtype((points, (dtype.itemsize // 4,)))).max() > _MAX_CODE_POINT:
            return "text holds what is no code point"
    return None
