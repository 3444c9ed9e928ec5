"""NumPy dtypes as JSON, in a grammar of our own.

A node is one of:

- the text of a dtype without fields, byte order and all: ``"<f8"``, ``"|b1"``, ``">U5"``,
  ``"<M8[25s]"``; exactly what `dtype.str` says and what `_SIMPLE` matches,
- ``{"longdouble": "<f16", "mantissa_bits": 63}``: read only where ``long double`` is the same,
- ``{"fields": [{"name", "dtype", "offset", "title"}], "itemsize", "align", "record"}``,
- ``{"base": node, "shape": [3, 2]}``: a subarray, inside fields,
- ``{"of": node, "metadata": {...}}``: metadata that JSON can hold,
- ``{"ml_dtype": "bfloat16"}``: a type of the package ml_dtypes.

Sized names stand for C names of the same width: ``longlong`` comes back as ``int64``.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator
from typing import Any, Final, TypeGuard

import numpy as np

from ..exceptions import UnsupportedFormatError
from ._base import field, lacks, text_in
from ._collections import is_json
from .protocol import JSON, Decoder, StoredBytes

_MAX_DEPTH: Final = 16
_MAX_NDIM: Final = 64
_MAX_TEXT: Final = 200
_FREE_BYTES: Final = 128
"""What values may take beyond the size of their structure, where they overlap; 1 byte at least."""
_FREE_TEXT: Final = 1024
"""The same of text, which is faster to print and takes more memory."""
_COUNT: Final = "(0|[1-9][0-9]{0,9})"
# NumPy takes far more than this for a dtype: objects, fields, shapes, names of types. Only what
# matches is handed to it.
_SIMPLE: Final = re.compile(
    rf"\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(8|16)|\|[SV]{_COUNT}|[<>]U{_COUNT}"
    r"|[<>][mM]8(\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)


class RefusedDtypeError(Exception):
    """A dtype cannot be stored; the text says why."""


def dtype_node(dtype: np.dtype[Any], depth: int = _MAX_DEPTH) -> JSON:
    """Return the node of a dtype.

    Raises:
        RefusedDtypeError: the dtype holds Python objects, or what JSON cannot hold.
    """
    if dtype.hasobject:
        raise RefusedDtypeError("the dtype holds Python objects")
    if depth == 0:
        raise RefusedDtypeError("the dtype nests too deeply")
    node = _structure_node(dtype, depth - 1)
    if not dtype.metadata:
        return node
    metadata = dict(dtype.metadata)
    if not is_json(metadata):
        raise RefusedDtypeError("JSON cannot hold the dtype's metadata")
    return {"of": node, "metadata": metadata}


def _structure_node(dtype: np.dtype[Any], depth: int) -> JSON:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": dtype_node(base, depth), "shape": list(shape)}
    if dtype.names is not None:
        return _fields_node(dtype, depth)
    if is_ml_dtype(dtype):
        return {"ml_dtype": dtype.type.__name__}
    if dtype.char in "gG" and dtype.type.__module__ == "numpy":
        # "f16" is 80-bit extended on x86 and binary128 on arm64, and only the mantissa tells which
        return {"longdouble": dtype.str, "mantissa_bits": _mantissa_bits()}
    if _SIMPLE.fullmatch(dtype.str):
        return dtype.str
    raise RefusedDtypeError(f"no rule for dtype {dtype}")


def is_ml_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is one of ml_dtypes; with swapped bytes, NumPy takes it for void."""
    return dtype.type.__module__ == "ml_dtypes" and dtype.isnative


def _fields_node(dtype: np.dtype[Any], depth: int) -> JSON:
    if _has_too_many_fields(dtype):
        raise RefusedDtypeError("too many of the dtype's fields overlap or have no bytes")
    # an integer type with fields for its bytes would come back as a structure
    if dtype.type not in {np.void, np.record}:
        raise RefusedDtypeError(f"fields over the scalar type {dtype.type.__qualname__!r}")
    assert dtype.names is not None
    node: dict[str, JSON] = {
        "fields": [_field_node(dtype, name, depth) for name in dtype.names],
        "itemsize": dtype.itemsize,
    }
    if dtype.isalignedstruct:
        node["align"] = True
    if dtype.type is np.record:
        node["record"] = True
    return node


def _field_node(dtype: np.dtype[Any], name: str, depth: int) -> JSON:
    assert dtype.fields is not None
    inner, offset, *title = dtype.fields[name]
    node: dict[str, JSON] = {"name": name, "dtype": dtype_node(inner, depth), "offset": offset}
    if title:
        if type(title[0]) is not str:
            raise RefusedDtypeError(f"the title of field {name!r} is not text")
        node["title"] = title[0]
    return node


def _mantissa_bits() -> int:
    return int(np.finfo(np.longdouble).nmant)


def read_dtype(node: Any, decoder: Decoder, depth: int = _MAX_DEPTH) -> np.dtype[Any]:
    """Return the dtype of a node; nothing but the grammar above is understood."""
    if depth == 0:
        raise decoder.damaged("a dtype nests too deeply")
    try:
        return _read_structure(node, decoder, depth - 1)
    except (ValueError, TypeError, OverflowError) as err:
        # not a subclass: our own errors are ValueErrors, too
        if type(err) in {ValueError, TypeError, OverflowError}:
            raise decoder.damaged(f"NumPy refuses a dtype: {err}") from None
        raise


def _read_structure(node: Any, decoder: Decoder, depth: int) -> np.dtype[Any]:
    if isinstance(node, str):
        return _read_simple(node, decoder)
    if not isinstance(node, dict):
        raise decoder.damaged(f"expected a dtype, found {type(node).__name__}")
    if "fields" in node:
        return _read_fields(node, decoder, depth)
    if "base" in node:
        shape = read_shape(field(node, "shape", decoder), decoder)
        return np.dtype((read_dtype(node["base"], decoder, depth), shape))
    if "of" in node:
        return _read_metadata(node, decoder, depth)
    if "ml_dtype" in node:
        return _read_ml_dtype(node["ml_dtype"], decoder)
    return _read_longdouble(node, decoder)


def _read_simple(node: str, decoder: Decoder) -> np.dtype[Any]:
    if not _SIMPLE.fullmatch(node):
        raise decoder.damaged(f"no rule for dtype {node[:40]!r}")
    return np.dtype(node)


def _read_ml_dtype(node: Any, decoder: Decoder) -> np.dtype[Any]:
    name = text_in(node, decoder)
    try:
        scalar = getattr(importlib.import_module("ml_dtypes"), name, None)
    except ImportError:
        raise lacks(f"the dtype {name[:40]!r} of ml_dtypes; install that", decoder) from None
    if isinstance(scalar, type) and issubclass(scalar, np.generic):
        return np.dtype(scalar)
    raise lacks(f"the dtype {name[:40]!r} of ml_dtypes; upgrade that", decoder)


def _read_longdouble(node: dict[str, Any], decoder: Decoder) -> np.dtype[Any]:
    text = text_in(field(node, "longdouble", decoder), decoder)
    ours = [np.dtype(char) for char in "gG"]
    swapped = [dtype.newbyteorder("S") for dtype in ours]
    dtype = next((dtype for dtype in ours + swapped if dtype.str == text), None)
    if dtype is None or field(node, "mantissa_bits", decoder) != _mantissa_bits():
        raise lacks(f"the long double {text[:40]!r} of the platform that wrote it", decoder)
    return dtype


def _read_metadata(node: dict[str, Any], decoder: Decoder, depth: int) -> np.dtype[Any]:
    metadata = field(node, "metadata", decoder)
    if not isinstance(metadata, dict):
        raise decoder.damaged("a dtype's metadata is no object")
    return np.dtype(read_dtype(node["of"], decoder, depth), metadata=dict(metadata))


def _read_fields(node: dict[str, Any], decoder: Decoder, depth: int) -> np.dtype[Any]:
    fields, itemsize = node["fields"], field(node, "itemsize", decoder)
    if not isinstance(fields, list):
        raise decoder.damaged("a dtype's fields are no list")
    spec: dict[str, Any] = {
        "names": [text_in(field(entry, "name", decoder), decoder) for entry in fields],
        "formats": [read_dtype(field(entry, "dtype", decoder), decoder, depth) for entry in fields],
        "offsets": [field(entry, "offset", decoder) for entry in fields],
        "itemsize": itemsize,
    }
    # NumPy adds in 32 bits: for an offset near 2**31 it does not notice that the field lies outside
    ends = [
        at + inner.itemsize
        for at, inner in zip(_sizes(spec["offsets"], decoder), spec["formats"], strict=True)
    ]
    if max(ends, default=0) > _sizes([itemsize], decoder)[0]:
        raise decoder.damaged("a field lies outside its dtype")
    if any("title" in entry for entry in fields):
        spec["titles"] = [_read_title(entry, decoder) for entry in fields]
    dtype: np.dtype[Any] = np.dtype(spec, align=node.get("align") is True)  # type: ignore[call-overload]
    if dtype.itemsize != itemsize or dtype.names != tuple(spec["names"]):
        raise decoder.damaged("a dtype does not have the fields or the size that it says")
    if _has_too_many_fields(dtype):
        raise decoder.damaged("too many of a dtype's fields overlap or have no bytes")
    return np.dtype((np.record, dtype)) if node.get("record") is True else dtype


def _has_too_many_fields(dtype: np.dtype[Any]) -> bool:
    """Return whether a structure shows far more than its bytes: many fields on the same ones.

    To print or check one takes time for each of them. A union of a few small fields is fine.
    """
    nbytes = text = 0
    for count, leaf in _leaves(dtype):
        is_text = leaf.kind in "SU"
        nbytes += count * (1 if is_text else max(1, leaf.itemsize))
        text += count * leaf.itemsize if is_text else 0
    return nbytes > dtype.itemsize + _FREE_BYTES or text > dtype.itemsize + _FREE_TEXT


def _leaves(dtype: np.dtype[Any], count: int = 1) -> Iterator[tuple[int, np.dtype[Any]]]:
    """Yield the dtypes of a structure that are not made of others, each with its number."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        yield from _leaves(base, count * max(1, math.prod(shape)))
    elif dtype.names:
        for name in dtype.names:
            yield from _leaves(dtype[name], count)
    else:
        yield count, dtype


def _read_title(entry: dict[str, Any], decoder: Decoder) -> str | None:
    return text_in(entry["title"], decoder) if "title" in entry else None


def _sizes(numbers: list[Any], decoder: Decoder) -> list[int]:
    if all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        return numbers
    raise decoder.damaged("an offset or size is no number of bytes")


def is_shape(node: Any) -> TypeGuard[list[int]]:
    """Return whether a node is a list of at most 64 lengths."""
    return (
        isinstance(node, list)
        and len(node) <= _MAX_NDIM
        and all(type(length) is int and 0 <= length < 2**63 for length in node)
    )


def read_shape(node: Any, decoder: Decoder) -> tuple[int, ...]:
    """Return the shape of a node: a list of at most 64 lengths."""
    if not is_shape(node):
        raise decoder.damaged("a shape is not a list of at most 64 lengths")
    return tuple(node)


def dtype_text(node: Any) -> str | None:
    """Return a dtype's usual name from any node, shortened, or None."""
    try:
        text = str(read_dtype(node, _Unchecked()))
    except (_NotReadableError, UnsupportedFormatError):
        return None
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def item_bytes(node: Any) -> int | None:
    """Return a dtype's item size from any node, or None."""
    try:
        return read_dtype(node, _Unchecked()).itemsize
    except (_NotReadableError, UnsupportedFormatError):
        return None


class _NotReadableError(Exception):
    """A node is no dtype."""


class _Unchecked:
    """The decoder for descriptions, which know no URL: any fault is a `_NotReadableError`."""

    def damaged(self, reason: str) -> Exception:
        return _NotReadableError(reason)

    def decode(self, node: JSON) -> Any:  # noqa: ARG002
        raise _NotReadableError

    def blob(self, number: Any, *, mapped: bool = False) -> memoryview:  # noqa: ARG002
        raise _NotReadableError

    def unpacked_nbytes(self, number: Any) -> int | None:  # noqa: ARG002
        return None

    def pieces(self, number: Any) -> Iterator[bytes]:  # noqa: ARG002
        raise _NotReadableError

    def later(self, number: Any) -> StoredBytes:  # noqa: ARG002
        raise _NotReadableError

    def nested(self, number: Any) -> Any:  # noqa: ARG002
        raise _NotReadableError
