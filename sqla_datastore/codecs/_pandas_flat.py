"""Rules of pandas arrays that hold no other arrays: how they become physical columns, and back.

==============  ================================================================
kind            parts
==============  ================================================================
numpy           the values; datetimes and timedeltas without zone are numbers too
object          texts as Arrow strings, everything else element by element
zoned           UTC ticks, unit and time zone
period          ordinals and the frequency's text
masked          values and mask (Int8 to UInt64, Float32 and Float64, boolean)
string          Arrow strings, the storage and the kind of missing value
arrow           the Arrow array
==============  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from ..exceptions import UnsupportedFormatError
from ._extensions import refusal
from ._npy import Array, check_values, fault_of
from ._pandas_columns import ColumnReader, ColumnWriter
from ._pandas_time import decode_zone, encode_zone, period_dtype_of, period_text
from .protocol import JSON

Node: TypeAlias = "dict[str, JSON]"
EncodeRule: TypeAlias = Callable[[Any, ColumnWriter, str], Node]
DecodeRule: TypeAlias = Callable[[Any, ColumnReader], Any]

_INLINE_TEXTS: Final = 100
_INLINE_BYTES: Final = 4096
_MASKED: Final = {
    "b": pd.arrays.BooleanArray,
    "i": pd.arrays.IntegerArray,
    "u": pd.arrays.IntegerArray,
    "f": pd.arrays.FloatingArray,
}
_NAN: Final = {"none": None, "nan": np.nan}


def encode_numpy(array: Any, columns: ColumnWriter, label: str) -> Node:  # noqa: ARG001
    return {"kind": "numpy", "values": columns.array(np.asarray(array))}


def _decode_numpy(node: Any, columns: ColumnReader) -> Any:
    values = columns.array(node["values"])
    if values.dtype.kind == "O":
        raise columns.decoder.damaged("an array of numbers is one of objects")
    if values.dtype.kind in "mM":
        return pd.array(values, dtype=values.dtype, copy=False)
    return values


def encode_object(array: Any, columns: ColumnWriter, label: str) -> Node:
    values = np.asarray(array)
    missing = _missing_of_texts(values)
    if missing is not None:
        try:
            texts = pa.array(values, pa.large_string(), from_pandas=True)
            return {
                "kind": "object",
                "missing": missing,
                "text": _encode_text(texts, columns, label),
            }
        except UnicodeEncodeError:  # lone surrogates: element by element
            pass
    return {"kind": "object", "values": columns.encoder.encode(values.tolist(), f"[{label!r}]")}


def _missing_of_texts(values: Array) -> str | None:
    """Return the kind of missing value among texts; None if anything but texts is there."""
    types = set(map(type, values))
    if str not in types:
        return None
    if types <= {str, type(None)}:
        return "none"
    # NaN is the only float that differs from itself
    if types == {str, float} and all(type(each) is str or each != each for each in values):
        return "nan"
    return None


def _decode_object(node: Any, columns: ColumnReader) -> Array:
    if "text" in node:
        missing = _NAN[node["missing"]]
        texts = decode_text(node["text"], columns).to_pylist()
        return _objects([missing if each is None else each for each in texts])
    values = columns.decoder.decode(node["values"])
    if type(values) is not list:
        raise columns.decoder.damaged("an object array is no list")
    return _objects(values)


def _objects(values: list[Any]) -> Array:
    # `np.array` would make two dimensions of lists of one length
    return np.fromiter(values, dtype=object, count=len(values))


def _encode_text(texts: Any, columns: ColumnWriter, label: str) -> Node:
    """Return a few short texts in the node, others as an Arrow column."""
    if len(texts) <= _INLINE_TEXTS and texts.nbytes <= _INLINE_BYTES:
        return {"list": texts.to_pylist()}
    return {"column": columns.arrow(texts, label)}


def decode_text(node: Any, columns: ColumnReader) -> Any:
    """Return the chunked Arrow array of a node that `_encode_text` made."""
    if "list" in node:
        return pa.chunked_array([pa.array(node["list"], pa.large_string())])
    texts = columns.arrow(node["column"])
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise columns.decoder.damaged("a column of texts has another type")
    return texts


def _encode_string(array: Any, columns: ColumnWriter, label: str) -> Node:
    dtype = array.dtype
    node: Node = {"kind": "string", "storage": dtype.storage, "missing": "na"}
    # pandas 2.2 has a storage of that name for what later versions tell by `na_value`
    if dtype.storage == "pyarrow_numpy" or dtype.na_value is not pd.NA:
        node |= {"storage": dtype.storage.removesuffix("_numpy"), "missing": "nan"}
    try:
        texts = _texts_of(array)
    except UnicodeEncodeError:
        values = array.to_numpy(dtype=object, na_value=None).tolist()
        return node | {"values": columns.encoder.encode(values, f"[{label!r}]")}
    return node | {"text": _encode_text(texts, columns, label)}


def _texts_of(array: Any) -> Any:
    if array.dtype.storage == "python":
        return pa.array(np.asarray(array, dtype=object), pa.large_string(), from_pandas=True)
    return array.__arrow_array__()


def _decode_string(node: Any, columns: ColumnReader) -> Any:
    dtype = _string_dtype(node["storage"], node["missing"], columns)
    if "values" in node:
        return pd.array(columns.decoder.decode(node["values"]), dtype=dtype)
    texts = decode_text(node["text"], columns)
    if dtype.storage == "python":
        return pd.array(_objects(texts.to_pylist()), dtype=dtype)
    return dtype.__from_arrow__(texts)


def _string_dtype(storage: Any, missing: Any, columns: ColumnReader) -> Any:
    if storage not in ("python", "pyarrow") or missing not in ("na", "nan"):
        raise columns.decoder.damaged("a string dtype is unknown")
    if missing == "na":
        return pd.StringDtype(storage)
    try:
        return pd.StringDtype(storage, na_value=np.nan)
    except TypeError:  # pandas 2.2
        if storage == "pyarrow":
            return pd.StringDtype("pyarrow_numpy")
    raise UnsupportedFormatError("strings in Python storage with NaN need pandas 2.3 or later")


def _encode_zoned(array: Any, columns: ColumnWriter, label: str) -> Node:  # noqa: ARG001
    node = {"unit": array.dtype.unit, "zone": encode_zone(array.dtype.tz)}
    return {"kind": "zoned", "ticks": columns.array(array.asi8), **node}


def _decode_zoned(node: Any, columns: ColumnReader) -> Any:
    dtype = pd.DatetimeTZDtype(node["unit"], decode_zone(node["zone"], columns.decoder))
    return pd.array(_ticks(node["ticks"], columns), dtype=dtype, copy=False)


def _ticks(reference: Any, columns: ColumnReader) -> Any:
    ticks = columns.array(reference)
    if ticks.dtype != np.dtype("i8"):
        raise columns.decoder.damaged("ticks are no 64-bit integers")
    return ticks


def _encode_period(array: Any, columns: ColumnWriter, label: str) -> Node:  # noqa: ARG001
    freq = period_text(array.dtype)
    return {"kind": "period", "ordinals": columns.array(array.asi8), "freq": freq}


def _decode_period(node: Any, columns: ColumnReader) -> Any:
    ordinals = _ticks(node["ordinals"], columns)
    return pd.arrays.PeriodArray(ordinals, dtype=period_dtype_of(node["freq"], columns.decoder))


def _encode_masked(array: Any, columns: ColumnWriter, label: str) -> Node:  # noqa: ARG001
    # no public attribute gives the parts without a copy
    for each in (array._data, array._mask):
        if fault := fault_of(each):  # it could not be read again
            raise ValueError(fault)
    values, mask = columns.array(array._data), columns.array(array._mask)
    return {"kind": "masked", "values": values, "mask": mask}


def _decode_masked(node: Any, columns: ColumnReader) -> Any:
    values, mask = columns.array(node["values"]), columns.array(node["mask"])
    # the bools of a block were not looked at when it was read, and pandas believes a mask
    for each in (values, mask):
        check_values(each, columns.decoder)
    return _MASKED[values.dtype.kind](values, mask, copy=False)


def _encode_arrow(array: Any, columns: ColumnWriter, label: str) -> Node:
    values = array.__arrow_array__()
    if reason := refusal(values.type):
        raise ValueError(reason)
    return {"kind": "arrow", "values": columns.arrow(values, label)}


def _decode_arrow(node: Any, columns: ColumnReader) -> Any:
    return pd.arrays.ArrowExtensionArray(columns.arrow(node["values"]))


_MASKED_DTYPES = (
    *(pd.Int8Dtype, pd.Int16Dtype, pd.Int32Dtype, pd.Int64Dtype),
    *(pd.UInt8Dtype, pd.UInt16Dtype, pd.UInt32Dtype, pd.UInt64Dtype),
    *(pd.Float32Dtype, pd.Float64Dtype, pd.BooleanDtype),
)
ENCODE_RULES: dict[Any, EncodeRule] = {
    pd.DatetimeTZDtype: _encode_zoned,
    pd.PeriodDtype: _encode_period,
    pd.StringDtype: _encode_string,
    pd.ArrowDtype: _encode_arrow,
    **dict.fromkeys(_MASKED_DTYPES, _encode_masked),
}
"""By the type of the dtype; NumPy's dtypes have `encode_numpy` and `encode_object`."""

DECODE_RULES: dict[str, DecodeRule] = {
    "numpy": _decode_numpy,
    "object": _decode_object,
    "zoned": _decode_zoned,
    "period": _decode_period,
    "masked": _decode_masked,
    "string": _decode_string,
    "arrow": _decode_arrow,
}
"""By the kind that a node names."""
