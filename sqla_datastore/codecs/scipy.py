"""Sparse matrices and arrays of SciPy.

===============================  =========================================================
``csr``, ``csc``, ``bsr``        data, indices and indptr
``coo``                          data and one array of coordinates for each dimension
``dia``                          data and offsets
``dok``                          as ``coo``, in the order of the coordinates
``lil``                          as ``csr``
===============================  =========================================================

Each as ``…_matrix`` and as ``…_array``. Explicit zeros survive, and so do duplicates and the order
of items in all but ``dok`` and ``lil``, which have neither. The arrays come back read-only on the
object's memory where their items are in order; where they are not, SciPy orders them in place as
it needs, so they are copies. What SciPy's compiled code would follow out of an array (an index, a
row's end) is checked when a value is stored and when it is read: SciPy's own checks are optional.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import scipy.sparse as sp

from ._base import ExactCodec, field, int_node, read_int, text_in
from ._npy import Array, array_node, read_array
from .numpy import array_description
from .protocol import JSON, Codec, Decoder, Description, Encoder

Parts: TypeAlias = dict[str, Array]
Shape: TypeAlias = tuple[int, ...]

_MAX_NDIM: Final = 64
_MAX_LENGTH: Final = 1 << 62
_ROW_BYTES: Final = 128
"""What an empty row of ``lil`` takes in memory: two lists."""
_MAX_ROWS: Final = 1 << 18
_ITEM_BYTES: Final = (180, 280)
"""What an item of ``dok`` takes in memory, in one dimension and in two."""
_FREE_BYTES: Final = 64 << 20


class _RefusedError(Exception):
    """Parts make no sparse array; the text says why."""


@dataclass(frozen=True)
class _Format:
    """How values of one format are taken apart and made.

    Attributes:
        split: returns the parts of a value, views where it has such arrays.
        check: raises `_RefusedError` where parts of a shape are none of this format.
        join: returns the value of a class, of checked parts and a shape.
    """

    split: Callable[[Any], Parts]
    check: Callable[[Parts, Shape], None]
    join: Callable[[Any, Parts, Shape], Any]


class _SparseCodec(ExactCodec):
    """All sparse types; the node names the type."""

    name = "scipy.sparse"
    mutable = True
    described = "scipy.sparse"

    def types(self) -> tuple[type, ...]:
        return (*_TYPES.values(),)

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        form = _FORMATS[value.format]
        try:
            parts = form.split(value)
            form.check(parts, value.shape)
            _require_width(parts, value.shape)
        except _RefusedError as err:
            advice = "" if ";" in str(err) else "; repair it"
            raise encoder.unsupported(value, f"{err}{advice}") from None
        return {
            "type": type(value).__name__,
            "shape": [int_node(int(length)) for length in value.shape],
            "parts": {name: array_node(part, encoder) for name, part in parts.items()},
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        cls = _TYPES.get(text_in(field(node, "type", decoder), decoder))
        if cls is None:
            raise decoder.damaged("no sparse type of this name")
        shape = _read_shape(field(node, "shape", decoder), decoder)
        nodes = field(node, "parts", decoder)
        if not isinstance(nodes, dict) or len(nodes) > _MAX_NDIM + 1:
            raise decoder.damaged("a sparse value's parts are no object")
        parts = {
            name: read_array(part, decoder, mapped=name == "data") for name, part in nodes.items()
        }
        form = _FORMATS[cls.__name__.partition("_")[0]]
        try:
            form.check(parts, shape)
            _require_width(parts, shape)
            return form.join(cls, parts, shape)
        except _RefusedError as err:
            raise decoder.damaged(f"a {cls.__name__}: {err}") from None
        except (ValueError, TypeError, IndexError, OverflowError) as err:
            if type(err) not in {ValueError, TypeError, IndexError, OverflowError}:
                raise  # our own errors are ValueErrors, too
            raise decoder.damaged(f"SciPy refuses a {cls.__name__}: {err}") from err

    def describe(self, node: Any) -> Description:
        about = node if isinstance(node, dict) else {}
        name, shape, parts = (about.get(key) for key in ("type", "shape", "parts"))
        data = array_description("", parts.get("data") if isinstance(parts, dict) else None)
        lengths = shape if isinstance(shape, list) else []
        return Description(
            f"scipy.sparse.{name}" if isinstance(name, str) else self.described,
            data.dtype,
            tuple(lengths) if lengths and all(type(each) is int for each in lengths) else None,
        )


def _read_shape(node: Any, decoder: Decoder) -> Shape:
    if not isinstance(node, list) or not 1 <= len(node) <= _MAX_NDIM:
        raise decoder.damaged("a sparse value's shape is no list of lengths")
    shape = tuple(read_int(length, decoder) for length in node)
    if not all(0 <= length < _MAX_LENGTH for length in shape):
        raise decoder.damaged("a sparse value's shape holds what is no length")
    return shape


def _require(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise _RefusedError(otherwise)


def _require_parts(parts: Parts, *names: str) -> None:
    _require({*parts} == {*names}, f"its parts are not {', '.join(names)}")
    data = parts["data"]
    _require(data.dtype.kind in "biufc" and data.dtype.isnative, "its data are no numbers of SciPy")
    _require(data.dtype != np.float16, "its data are no numbers of SciPy")
    for name in names:
        known = name == "data" or parts[name].dtype in (np.int32, np.int64)
        _require(known and (name == "data" or parts[name].ndim == 1), f"{name} is no list of ints")


def _require_width(parts: Parts, shape: Shape) -> None:
    """Refuse indices of 32 bits where lengths need more: SciPy calculates in their type."""
    wide = all(part.dtype != np.int32 for name, part in parts.items() if name != "data")
    _require(wide or 0 in shape or max(shape) < 2**31, "its indices are too narrow for its shape")


def _require_within(indices: Array, length: int, what: str) -> None:
    if len(indices):
        least, most = int(indices.min()), int(indices.max())
        _require(0 <= least <= most < length, f"{what} is outside its shape")


# -- csr, csc, bsr ---------------------------------------------------------------------------------


def _split_compressed(value: Any) -> Parts:
    stored = int(value.indptr[-1]) if len(value.indptr) else 0
    # SciPy keeps room for more items than there are
    return {
        "data": value.data[:stored],
        "indices": value.indices[:stored],
        "indptr": value.indptr,
    }


def _check_compressed(rows: int, columns: int, parts: Parts, dimensions: int = 1) -> None:
    _require_parts(parts, "data", "indices", "indptr")
    data, indices, indptr = (parts[name] for name in ("data", "indices", "indptr"))
    _require(data.ndim == dimensions, f"its data have not {dimensions} dimensions")
    _require(indices.dtype == indptr.dtype, "indices and indptr are of two types")
    _require(len(indptr) == rows + 1, "indptr has not one item more than there are rows")
    _require(indptr[0] == 0 and len(data) == len(indices) == indptr[-1], "indptr does not fit")
    _require((indptr[1:] >= indptr[:-1]).all(), "indptr goes back")
    _require_within(indices, columns, "an index")


def _check_csr(parts: Parts, shape: Shape) -> None:
    _require(len(shape) <= 2, "it has more than two dimensions")
    _check_compressed(shape[0] if len(shape) == 2 else 1, shape[-1], parts)


def _check_csc(parts: Parts, shape: Shape) -> None:
    _require(len(shape) == 2, "it has not two dimensions")
    _check_compressed(shape[1], shape[0], parts)


def _check_bsr(parts: Parts, shape: Shape) -> None:
    _require_parts(parts, "data", "indices", "indptr")
    blocks = parts["data"].shape[1:]
    _require(len(shape) == len(blocks) == 2 and min(blocks) > 0, "its data are no blocks")
    fits = all(length % block == 0 for length, block in zip(shape, blocks, strict=True))
    _require(fits, "its shape is no multiple of its blocks")
    rows, columns = (length // block for length, block in zip(shape, blocks, strict=True))
    _check_compressed(rows, columns, parts, dimensions=3)


def _join_compressed(cls: Any, parts: Parts, shape: Shape) -> Any:
    data, indices, indptr = (parts[name] for name in ("data", "indices", "indptr"))
    value = cls((data, indices, indptr), shape=shape, copy=False)
    # the constructor narrows indices where they fit into 32 bits
    value.data, value.indices, value.indptr = data, indices, indptr
    if not value.has_sorted_indices:
        # one that is out of order is put into order in place, by operations that only read
        value.data, value.indices, value.indptr = data.copy(), indices.copy(), indptr.copy()
    return value


# -- coo, dok --------------------------------------------------------------------------------------


def _split_coo(value: Any) -> Parts:
    coordinates = {f"coords.{axis}": np.asarray(each) for axis, each in enumerate(value.coords)}
    return {"data": value.data, **coordinates}


def _check_coo(parts: Parts, shape: Shape) -> None:
    names = [f"coords.{axis}" for axis in range(len(shape))]
    _require_parts(parts, "data", *names)
    _require(parts["data"].ndim == 1, "its data have not one dimension")
    _require(len({parts[name].dtype for name in names}) == 1, "coordinates are of two types")
    for name, length in zip(names, shape, strict=True):
        _require(len(parts[name]) == len(parts["data"]), "coordinates and data differ in length")
        _require_within(parts[name], length, "a coordinate")


def _join_coo(cls: Any, parts: Parts, shape: Shape) -> Any:
    coordinates = tuple(parts[f"coords.{axis}"] for axis in range(len(shape)))
    value = cls((parts["data"], coordinates), shape=shape, copy=False)
    value.coords = coordinates  # not narrowed, as above
    return value


def _split_dok(value: Any) -> Parts:
    # its order is that of a dict, which SciPy does not keep; 64 bits, since an item is an object in
    # memory, and few bytes shall not stand for many of those
    keys = sorted(value.keys())
    axes = zip(*keys, strict=True) if value.ndim > 1 else [keys]
    coordinates = [np.array([*axis], np.int64) for axis in axes] if keys else []
    coordinates = coordinates or [np.zeros(0, np.int64)] * value.ndim
    data = np.array([value[key] for key in keys], value.dtype)
    return {"data": data, **{f"coords.{axis}": each for axis, each in enumerate(coordinates)}}


def _check_dok(parts: Parts, shape: Shape) -> None:
    _require(len(shape) <= 2, "it has more than two dimensions")
    _check_coo(parts, shape)
    wide = all(part.dtype == np.int64 for name, part in parts.items() if name != "data")
    _require(wide, "its coordinates are not of 64 bits")
    taken = len(parts["data"]) * _ITEM_BYTES[len(shape) - 1]
    nbytes = sum(part.nbytes for part in parts.values())
    few = taken <= _FREE_BYTES + 10 * nbytes
    _require(few, "it has too many items for so small numbers; store value.tocsr()")
    coordinates = np.stack([parts[f"coords.{axis}"] for axis in range(len(shape))])
    steps = np.diff(coordinates, axis=1)
    _require(((steps[0] > 0) | ((steps[0] == 0) & (steps[-1] > 0))).all(), "items are not in order")


def _join_dok(cls: Any, parts: Parts, shape: Shape) -> Any:
    coordinates = tuple(parts[f"coords.{axis}"] for axis in range(len(shape)))
    whole = sp.coo_matrix if issubclass(cls, sp.spmatrix) else sp.coo_array
    value = whole((parts["data"], coordinates), shape=shape)
    value.has_canonical_format = True  # as was checked: it would be sorted once more
    return value.todok()


# -- dia, lil --------------------------------------------------------------------------------------


def _split_dia(value: Any) -> Parts:
    return {"data": value.data, "offsets": value.offsets}


def _check_dia(parts: Parts, shape: Shape) -> None:
    _require_parts(parts, "data", "offsets")
    data, offsets = parts["data"], parts["offsets"]
    _require(len(shape) == data.ndim == 2, "it or its data have not two dimensions")
    _require(len(data) == len(offsets), "it has not as many diagonals as offsets")
    _require_within(offsets + np.int64(shape[0]), shape[0] + shape[1] + 1, "an offset")
    _require(len(np.unique(offsets)) == len(offsets), "an offset is there twice")


def _join_dia(cls: Any, parts: Parts, shape: Shape) -> Any:
    value = cls((parts["data"], parts["offsets"]), shape=shape, copy=False)
    value.offsets = parts["offsets"]
    return value


def _split_lil(value: Any) -> Parts:
    lengths = np.array([len(row) for row in value.rows], np.int64)
    indices = [*itertools.chain.from_iterable(value.rows)]
    data = [*itertools.chain.from_iterable(value.data)]
    return {
        "data": np.array(data, value.dtype),
        # 64 bits: as for `dok`
        "indices": np.array(indices, np.int64),
        "indptr": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    }


def _check_lil(parts: Parts, shape: Shape) -> None:
    _require(len(shape) == 2, "it has not two dimensions")
    _check_compressed(shape[0], shape[1], parts)
    nbytes = sum(part.nbytes for part in parts.values())
    few = shape[0] <= max(_MAX_ROWS, 10 * nbytes // _ROW_BYTES)
    _require(few, "it has too many rows that are empty; store value.tocsr()")
    steps, ends = np.diff(parts["indices"]) > 0, parts["indptr"][1:-1]
    within = np.ones(len(steps), bool)
    within[ends[(ends > 0) & (ends <= len(steps))] - 1] = False
    _require(steps[within].all(), "a row is not in order")


def _join_lil(cls: Any, parts: Parts, shape: Shape) -> Any:
    whole = sp.csr_matrix if issubclass(cls, sp.spmatrix) else sp.csr_array
    return _join_compressed(whole, parts, shape).tolil()


_FORMATS: Final = {
    "csr": _Format(_split_compressed, _check_csr, _join_compressed),
    "csc": _Format(_split_compressed, _check_csc, _join_compressed),
    "bsr": _Format(_split_compressed, _check_bsr, _join_compressed),
    "coo": _Format(_split_coo, _check_coo, _join_coo),
    "dok": _Format(_split_dok, _check_dok, _join_dok),
    "dia": _Format(_split_dia, _check_dia, _join_dia),
    "lil": _Format(_split_lil, _check_lil, _join_lil),
}
_TYPES: Final[dict[str, Any]] = {
    f"{form}_{kind}": getattr(sp, f"{form}_{kind}")
    for form in _FORMATS
    for kind in ("array", "matrix")
}

CODECS: tuple[Codec, ...] = (_SparseCodec(),)
