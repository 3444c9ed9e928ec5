"""Codecs of NumPy.

==============================  =========================================================
what                            becomes
==============================  =========================================================
ndarray                         a ``.npy`` blob, mapped read-only without a copy
ndarray of StringDType          lengths and UTF-8 in a blob
recarray                        as ndarray
MaskedArray                     two arrays, fill value and hard mask
scalars                         dtype and bytes; str_ and bytes_ as text and bytes
of ml_dtypes                    as ndarray and scalars
dtype                           the grammar of `_dtypes`; ``object`` and StringDType besides
==============================  =========================================================

Refused: object dtypes, `matrix`, `memmap` and other subclasses, and what JSON cannot hold of a
dtype's metadata and titles. C and Fortran order survive, other strides become C order.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ._base import ExactCodec, bytes_node, field, read_bytes
from ._dtypes import (
    RefusedDtypeError,
    dtype_node,
    dtype_text,
    is_ml_dtype,
    is_shape,
    item_bytes,
    read_dtype,
)
from ._npy import Array, array_node, check_values, read_array
from ._string_arrays import (
    read_string_array,
    read_strings_dtype,
    string_array_node,
    strings_node,
)
from .protocol import JSON, Codec, Decoder, Description, Encoder

_STRING_BYTES: Final = 16
"""The item size of `StringDType`, whose longer texts lie elsewhere."""
_OBJECT: Final = "|O"
_MAX_BYTES: Final = 1 << 62
_MASKED_SUBCLASS: Final = (
    "it masks a subclass of ndarray; "
    "store numpy.ma.array(numpy.asarray(value.data), mask=numpy.asarray(value.mask))"
)
_NO_ITEMS: Final = "it has no items, and each would be large; store value.data"
_MAX_FREE_BYTES: Final = 1 << 20
_MAX_DEFAULT_BYTES: Final = 1 << 20
"""For structures, NumPy makes an item as the default fill value, also where there are no items."""


class _ArrayCodec(ExactCodec):
    """Arrays of exactly `numpy.ndarray`."""

    name = "numpy.array"
    python_types = (np.ndarray,)
    described = "numpy.ndarray"

    def encode(self, value: Array, encoder: Encoder) -> JSON:
        if value.dtype.char == "T":  # StringDType
            return string_array_node(value, encoder)
        return array_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Array:  # noqa: ARG002
        if isinstance(node, dict) and "strings" in node:
            return read_string_array(node, decoder)
        return read_array(node, decoder)

    def describe(self, node: Any) -> Description:
        return array_description(self.described, node)


class _RecarrayCodec(ExactCodec):
    """Record arrays: arrays whose fields are attributes."""

    name = "numpy.recarray"
    python_types = (np.recarray,)
    described = "numpy.recarray"

    def encode(self, value: Array, encoder: Encoder) -> JSON:
        return array_node(value.view(np.ndarray), encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Array:  # noqa: ARG002
        return read_array(node, decoder).view(np.recarray)

    def describe(self, node: Any) -> Description:
        return array_description(self.described, node)


class _MaskedCodec(ExactCodec):
    """Masked arrays over exactly `numpy.ndarray`."""

    name = "numpy.masked"
    mutable = True
    python_types = (np.ma.MaskedArray,)
    described = "numpy.ma.MaskedArray"

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        if value.baseclass is not np.ndarray:
            raise encoder.unsupported(value, _MASKED_SUBCLASS)
        if _has_large_default(value.data):
            raise encoder.unsupported(value, _NO_ITEMS)
        node: dict[str, JSON] = {"data": array_node(value.data, encoder), "hard": value.hardmask}
        if value.mask is not np.ma.nomask:
            node["mask"] = array_node(value.mask, encoder)
        fill = _fill_of(value)
        if fill is not None:
            node["fill"] = bytes_node(fill.tobytes(), encoder)
        return node

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        data = read_array(field(node, "data", decoder), decoder)
        if _has_large_default(data):
            raise decoder.damaged(f"it masks no items, of {data.itemsize} bytes each")
        if "mask" not in node and _has_large_mask(data):
            raise decoder.damaged("a mask would take far more memory than its data")
        mask: Any = np.ma.nomask
        if "mask" in node:
            mask = read_array(node["mask"], decoder)
            if mask.shape != data.shape or mask.dtype != np.ma.make_mask_descr(data.dtype):
                raise decoder.damaged("a mask does not fit its data")
        fill: Any = None
        if "fill" in node:
            fill = _item(data.dtype, read_bytes(node["fill"], decoder), decoder)
        hard = node.get("hard") is True
        try:
            return np.ma.MaskedArray(data, mask=mask, fill_value=fill, hard_mask=hard)
        except (TypeError, ValueError) as err:  # no default for some dates inside structures
            raise decoder.damaged(f"{data.dtype} cannot be masked: {err}") from err

    def describe(self, node: Any) -> Description:
        return array_description(
            self.described, node.get("data") if isinstance(node, dict) else None
        )


class _ScalarCodec(ExactCodec):
    """Scalars by dtype and bytes, which keeps the payload of a NaN and the unit of a date."""

    name = "numpy.scalar"
    # types of C are classes of their own: `longlong` is not `int64`, though as wide
    python_types = tuple({np.dtype(char).type for char in "?bhilqpBHILQPefdgFDGVmM"} | {np.record})
    described = "numpy.generic"

    def takes(self, value: object) -> bool:
        return isinstance(value, np.generic) and is_ml_dtype(value.dtype)

    def encode(self, value: np.generic, encoder: Encoder) -> JSON:
        try:
            dtype = dtype_node(value.dtype)
        except RefusedDtypeError as err:
            raise encoder.unsupported(value, f"{err}; store value.item()") from None
        return {"dtype": dtype, "bytes": bytes_node(value.tobytes(), encoder)}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        dtype = read_dtype(field(node, "dtype", decoder), decoder)
        return _item(dtype, read_bytes(field(node, "bytes", decoder), decoder), decoder)[()]

    def describe(self, node: Any) -> Description:
        return array_description(
            self.described, node | {"shape": []} if isinstance(node, dict) else None
        )


class _StrCodec(ExactCodec):
    """Scalars of text; an array of one would drop NULs at its end."""

    name = "numpy.str"
    python_types = (np.str_,)
    described = "numpy.str_"

    def encode(self, value: np.str_, encoder: Encoder) -> JSON:
        # `str(value)` would drop NULs at its end
        return encoder.encode(str.__str__(value))

    def decode(self, node: Any, version: int, decoder: Decoder) -> np.str_:  # noqa: ARG002
        return np.str_(_exactly(str, decoder.decode(node), decoder))


class _BytesCodec(ExactCodec):
    """Scalars of bytes; an array of one would drop NULs at its end."""

    name = "numpy.bytes"
    python_types = (np.bytes_,)
    described = "numpy.bytes_"

    def encode(self, value: np.bytes_, encoder: Encoder) -> JSON:
        return encoder.encode(value[:])

    def decode(self, node: Any, version: int, decoder: Decoder) -> np.bytes_:  # noqa: ARG002
        return np.bytes_(_exactly(bytes, decoder.decode(node), decoder))


class _DtypeCodec(ExactCodec):
    """Dtypes as values."""

    name = "numpy.dtype"
    described = "numpy.dtype"

    def takes(self, value: object) -> bool:
        return isinstance(value, np.dtype)

    def encode(self, value: np.dtype[Any], encoder: Encoder) -> JSON:
        if value.type is np.object_ and not value.metadata:
            return _OBJECT
        if value.char == "T":
            return strings_node(value, encoder)
        try:
            return dtype_node(value)
        except RefusedDtypeError as err:
            raise encoder.unsupported(value, f"{err}; store str(value)") from None

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        # alone it is the name of a type; there is no array of it
        if node == _OBJECT:
            return np.dtype(object)
        if isinstance(node, dict) and "strings" in node:
            return read_strings_dtype(node, decoder)
        return read_dtype(node, decoder)

    def describe(self, node: Any) -> Description:
        if node == _OBJECT:
            return Description(self.described, "object")
        return Description(self.described, _dtype_text({"dtype": node}))


def _has_large_default(data: Array) -> bool:
    return not data.size and data.dtype.names is not None and data.itemsize > _MAX_DEFAULT_BYTES


def _has_large_mask(data: Array) -> bool:
    """Return whether NumPy would make up a large mask: structures have one bool for each field."""
    mask_bytes = data.size * np.ma.make_mask_descr(data.dtype).itemsize
    return mask_bytes > max(_MAX_FREE_BYTES, data.nbytes)


def _fill_of(value: Any) -> Array | None:
    """Return the fill value that was set on a masked array, None where NumPy has its default.

    Reads the private attribute, because the public one sets a default, which ``astype()`` would
    then keep. A default that was set, for example by ``repr()``, may not fit the dtype ("?" for
    dates without a unit); such a one is left out.
    """
    if value._fill_value is None or value.dtype.names == ():  # that has bytes, but never a value
        return None
    try:
        with np.errstate(over="ignore"):  # 1e20 in half precision
            fill = np.asarray(value._fill_value, value.dtype)
    except (TypeError, ValueError):
        return None
    return fill if fill.dtype == value.dtype else None


def _item(dtype: np.dtype[Any], data: bytes, decoder: Decoder) -> Array:
    """Return an array without dimensions over one item's bytes."""
    if len(data) != dtype.itemsize or dtype.subdtype is not None:
        raise decoder.damaged(f"a scalar of dtype {dtype} is not {len(data)} bytes")
    array: Array = np.ndarray((), dtype, data)
    check_values(array, decoder)
    return array


def _exactly(cls: type, value: Any, decoder: Decoder) -> Any:
    if type(value) is cls:
        return value
    raise decoder.damaged(f"expected {cls.__name__}, found {type(value).__name__}")


def array_description(name: str, node: Any) -> Description:
    """Describe a value that is an array with this node; tolerates any node."""
    if not isinstance(node, dict):
        return Description(name)
    shape = node.get("shape")
    if not is_shape(shape):
        return Description(name, _dtype_text(node))
    items = math.prod(shape)
    item = _STRING_BYTES if "strings" in node else item_bytes(node.get("dtype"))
    nbytes = -1 if item is None or not 0 <= items * item <= _MAX_BYTES else items * item
    return Description(name, _dtype_text(node), tuple(shape), nbytes)


def _dtype_text(node: dict[str, Any]) -> str | None:
    inner = node.get("dtype")
    is_strings = "strings" in node or (isinstance(inner, dict) and "strings" in inner)
    return "StringDType" if is_strings else dtype_text(inner)


CODECS: tuple[Codec, ...] = (
    _ArrayCodec(),
    _RecarrayCodec(),
    _MaskedCodec(),
    _ScalarCodec(),
    _StrCodec(),
    _BytesCodec(),
    _DtypeCodec(),
)
