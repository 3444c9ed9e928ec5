"""Arrays of NumPy's variable-width strings (`numpy.dtypes.StringDType`, NumPy 2).

The blob holds one little-endian 64-bit length in bytes for each item, -1 where it is missing, and
then all items in UTF-8.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ._base import MAX_PARSED, BytesPayload, field, lacks, short_text_in, text_in
from ._dtypes import read_shape
from ._npy import Array
from .protocol import JSON, Decoder, Encoder

_MISSING: Final = -1
_NO_NA: Final = "store value.astype(numpy.dtypes.StringDType(na_object=None))"
_NO_OBJECT: Final = object()


def string_array_node(array: Array, encoder: Encoder) -> dict[str, JSON]:
    """Return the node of an array of strings and add its blob."""
    missing = getattr(array.dtype, "na_object", _NO_OBJECT)
    node = strings_node(array.dtype, encoder)
    items = array.ravel().tolist()
    encoded = [None if _is_missing(item, missing) else item.encode() for item in items]
    lengths = [_MISSING if item is None else len(item) for item in encoded]
    data = np.array(lengths, "<i8").tobytes() + b"".join(item for item in encoded if item)
    return node | {
        "shape": list(array.shape),
        "blob": encoder.blob(BytesPayload(data)),
    }


def strings_node(dtype: Any, encoder: Encoder) -> dict[str, JSON]:
    """Return the node of a dtype of strings."""
    missing = getattr(dtype, "na_object", _NO_OBJECT)
    return {"strings": _missing_node(missing, dtype, encoder), "coerce": bool(dtype.coerce)}


def _is_missing(item: object, missing: object) -> bool:
    if isinstance(missing, str):
        return item == missing
    return type(item) is not str


def _missing_node(missing: object, dtype: object, encoder: Encoder) -> JSON:
    if missing is _NO_OBJECT:
        return "never"
    if missing is None:
        return "None"
    if type(missing) is float and math.isnan(missing):
        return "nan"
    if type(missing).__qualname__ == "NAType" and type(missing).__module__.startswith("pandas."):
        return "pandas.NA"
    if type(missing) is str:
        if len(missing) > MAX_PARSED:
            # an item that takes 8 bytes would be printed and compared as that text
            raise encoder.unsupported(
                dtype, f"na_object has more than {MAX_PARSED} characters; {_NO_NA}"
            )
        return {"text": missing}
    raise encoder.unsupported(dtype, f"na_object {type(missing).__qualname__!r}; {_NO_NA}")


def _read_missing(node: Any, decoder: Decoder) -> Any:
    if isinstance(node, dict):
        return short_text_in(field(node, "text", decoder), decoder)
    if node == "pandas.NA":
        import pandas

        return pandas.NA
    known = {"never": _NO_OBJECT, "None": None, "nan": math.nan}
    if text_in(node, decoder) in known:
        return known[node]
    raise decoder.damaged("a missing string is of no known kind")


def read_strings_dtype(node: Any, decoder: Decoder) -> Any:
    """Return the dtype of a node that `strings_node` made."""
    if not hasattr(np.dtypes, "StringDType"):
        raise lacks("numpy.dtypes.StringDType; upgrade to NumPy 2", decoder)
    missing = _read_missing(field(node, "strings", decoder), decoder)
    named = {} if missing is _NO_OBJECT else {"na_object": missing}
    coerce = field(node, "coerce", decoder) is True
    try:
        return np.dtypes.StringDType(coerce=coerce, **named)
    except (ValueError, TypeError) as err:
        raise decoder.damaged(f"NumPy refuses a dtype of strings: {err}") from None


def read_string_array(node: Any, decoder: Decoder) -> Array:
    """Return the array of strings of a node, read-only."""
    dtype = read_strings_dtype(node, decoder)
    missing = getattr(dtype, "na_object", _NO_OBJECT)
    shape = read_shape(field(node, "shape", decoder), decoder)
    data = decoder.blob(field(node, "blob", decoder))
    items = _read_items(data, math.prod(shape), missing, decoder)
    try:
        array: Array = np.array(items, dtype=dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as err:
        raise decoder.damaged(f"NumPy refuses an array of strings: {err}") from None
    array.flags.writeable = False
    return array


def _read_items(data: memoryview, count: int, missing: Any, decoder: Decoder) -> list[Any]:
    # before anything of that size is allocated
    if count * 8 > len(data):
        raise decoder.damaged("an array of strings is shorter than its shape")
    lengths = np.frombuffer(data[: count * 8], "<i8").tolist()
    _check_lengths(lengths, len(data) - count * 8, missing, decoder)
    items, at = [], count * 8
    for length in lengths:
        if length == _MISSING:
            items.append(missing)
        else:
            items.append(_text(data[at : at + length], decoder))
            at += length
    return items


def _check_lengths(lengths: list[int], nbytes: int, missing: Any, decoder: Decoder) -> None:
    if min(lengths, default=0) < (0 if missing is _NO_OBJECT else _MISSING):
        raise decoder.damaged("an array of strings has a negative length")
    # a sum of Python's ints, which does not wrap round
    if sum(length for length in lengths if length != _MISSING) != nbytes:
        raise decoder.damaged("an array of strings has not the bytes of its lengths")


def _text(data: memoryview, decoder: Decoder) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise decoder.damaged("a string is not UTF-8") from None
