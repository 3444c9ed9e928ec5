"""Arrays and indexes of pandas: each kind as a node and physical columns, and back.

An index is made of arrays, and a categorical array has an index, so both are here. Kinds that hold
no other arrays are in `_pandas_flat`; these do:

==============  ================================================================
kind            parts
==============  ================================================================
interval        left and right arrays, and the closed sides
categorical     codes, and the categories as an index
sparse          stored values, their positions, the fill value
an index        a range, levels and codes, or an array; names and frequency
==============  ================================================================
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from ._base import field, int_node, read_int
from ._budget import Budget
from ._npy import Array
from ._pandas_columns import ColumnReader, ColumnWriter
from ._pandas_flat import (
    DECODE_RULES,
    ENCODE_RULES,
    DecodeRule,
    EncodeRule,
    Node,
    encode_numpy,
    encode_object,
)
from ._pandas_time import freq_text, offset_of, takes_long
from ._stream import refused_as_damage

INDEX_TYPES = (
    pd.Index,
    pd.RangeIndex,
    pd.MultiIndex,
    pd.CategoricalIndex,
    pd.DatetimeIndex,
    pd.TimedeltaIndex,
    pd.PeriodIndex,
    pd.IntervalIndex,
)
_MAX_CLAIMED: Final = 1 << 20
"""Items that take no room in a blob, and that pandas turns into memory when it looks at them."""
_CLAIMED: Final = Budget(1 << 26)
"""Bytes that all indexes of an entry may take and that are not stored."""

_ITEM_BYTES: Final = 8
_MAX_OF_ONE_HASH: Final = 100
_INSTEAD = {
    "geopandas": "store geopandas.GeoDataFrame(value) of a frame, geopandas.GeoSeries(value) of it"
    " otherwise",
}
_TIMED = {"M": pd.DatetimeIndex, "m": pd.TimedeltaIndex}
_TIMES = pd.arrays.DatetimeArray | pd.arrays.TimedeltaArray


def encode_array(array: Any, columns: ColumnWriter, label: str = "") -> Node:
    """Return the node of any array of pandas.

    Args:
        array: an extension array, as ``series.array`` gives it.
        columns: takes the physical columns.
        label: the column's name for other tools and for errors.

    Raises:
        UnsupportedTypeError: the dtype is another library's, or an element cannot be stored.
    """
    rule = _rule(array)
    if rule is None:
        library = type(array).__module__.partition(".")[0]
        name = label.strip() or "its array"
        raise columns.unsupported(
            f"{name} has the dtype {str(array.dtype)!r}, which is not pandas' own; "
            + _INSTEAD.get(library, f"store {_as_text(columns.value)}, or register a codec")
        )
    try:
        return rule(array, columns, label)
    except ValueError as err:
        raise columns.unsupported(f"{label or 'its array'}: {err}") from err


def _rule(array: Any) -> EncodeRule | None:
    """Return how an array is encoded; None for one of another library's."""
    if type(array).__module__.partition(".")[0] != "pandas":
        return None
    rule = _ENCODE_RULES.get(type(array.dtype))
    if rule is None and isinstance(array, pd.arrays.NumpyExtensionArray | _TIMES):
        rule = encode_object if array.dtype.kind == "O" else encode_numpy
    return rule


def _as_text(value: Any) -> str:
    """Return the code by which what is of a foreign dtype becomes text: all of it."""
    if isinstance(value, pd.api.extensions.ExtensionDtype):
        return "str(value)"
    if isinstance(value, pd.MultiIndex):
        return "value.map(str)"
    if isinstance(value, pd.DataFrame):
        foreign = [name for name, column in value.items() if _is_foreign(column.array)]
        if foreign:
            types = ", ".join(f"{name!r}: str" for name in foreign)
            # a label that stands for several columns, or that no code can name
            is_named = value.columns.is_unique and {type(each) for each in foreign} <= {str, int}
            return f"value.astype({{{types}}})" if is_named else "value.astype(str)"
        if not _is_foreign_index(value.index):
            return "value.set_axis(value.columns.map(str), axis=1)"
    is_of_the_index = isinstance(value, pd.DataFrame | pd.Series) and _is_foreign_index(value.index)
    if is_of_the_index and not (isinstance(value, pd.Series) and _is_foreign(value.array)):
        return "value.set_axis(value.index.map(str))"
    return "value.astype(str)"


def _is_foreign(array: Any) -> bool:
    if isinstance(array, pd.Categorical):
        return _is_foreign_index(array.categories)
    return _rule(array) is None


def _is_foreign_index(index: Any) -> bool:
    levels = index.levels if isinstance(index, pd.MultiIndex) else [index]
    return any(_is_foreign(level.array) for level in levels)


def decode_array(node: Any, columns: ColumnReader) -> Any:
    """Return the array of a node: a NumPy array for plain dtypes, else an extension array.

    Raises:
        DamagedObjectError: the node and its columns do not make an array.
    """
    kind = field(node, "kind", columns.decoder)
    rule = _DECODE_RULES.get(kind) if isinstance(kind, str) else None
    if rule is None:
        raise columns.decoder.damaged(f"unknown kind of array {kind!r}")
    with refused_as_damage(columns.decoder, f"a {kind} array"):
        return rule(node, columns)


def is_claimed(index: Any, items: int) -> bool:
    """Return whether an index is longer than what is stored of it: a range, or a sparse one.

    Args:
        index: an index or array, of any kind.
        items: how many items the value stores beside it.
    """
    return len(index) > max(_MAX_CLAIMED, items, int(index.nbytes))


def _refuse_claimed(index: Any, items: int, columns: ColumnWriter, label: str) -> None:
    if is_claimed(index, items):
        raise columns.unsupported(
            f"{label or 'its array'} has {len(index)} items and uses a few of them; remove those "
            "that are unused (remove_unused_levels(), remove_unused_categories()), or make them "
            "dense"
        )


def _claim(index: Any, columns: ColumnReader) -> None:
    """Count what an index takes that is not stored, so that many of them are refused."""
    nbytes = max(0, _ITEM_BYTES * len(index) - int(index.nbytes))
    if not _CLAIMED.takes(columns.decoder, nbytes):
        raise columns.decoder.damaged("its indexes are far longer than what is stored of them")


def has_one_hash(index: Any) -> bool:
    """Return whether many of an index's labels have one hash in pandas: it is not seeded.

    Looking for duplicates among them takes as many comparisons as the square of their number.
    """
    values = index.array
    if not (isinstance(index.dtype, np.dtype) or isinstance(values, _TIMES)):
        return False
    if len(values) <= _MAX_OF_ONE_HASH or type(index) is pd.RangeIndex:
        return False
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iumM" or numbers.dtype.itemsize != _ITEM_BYTES:
        return False
    keys = numbers.view(np.uint64)
    # `kh_int64_hash_func` of klib's khash
    hashes = ((keys >> np.uint64(33)) ^ keys ^ (keys << np.uint64(11))).astype(np.uint32)
    hashes.sort()
    # so many equal ones stand where those of one hash begin and end
    return bool((hashes[_MAX_OF_ONE_HASH:] == hashes[:-_MAX_OF_ONE_HASH]).any())


def _refuse_one_hash(index: Any, columns: ColumnWriter, label: str) -> None:
    if has_one_hash(index):
        raise columns.unsupported(
            f"{label or 'its array'} has many labels of one hash, about which pandas takes long; "
            "store them as text: .astype(str)"
        )


def _encode_interval(array: Any, columns: ColumnWriter, label: str) -> Node:
    for each in (array.left, array.right):
        _refuse_claimed(each, 0, columns, label)
    left = encode_array(array.left.array, columns, f"{label} left")
    right = encode_array(array.right.array, columns, f"{label} right")
    return {"kind": "interval", "left": left, "right": right, "closed": array.closed}


def _decode_interval(node: Any, columns: ColumnReader) -> Any:
    left, right = (decode_array(node[each], columns) for each in ("left", "right"))
    if is_claimed(left, 0) or is_claimed(right, 0):
        raise columns.decoder.damaged("an interval array is longer than what is stored of it")
    _claim(left, columns)
    _claim(right, columns)
    return pd.arrays.IntervalArray.from_arrays(left, right, closed=node["closed"])


def _encode_categorical(array: Any, columns: ColumnWriter, label: str) -> Node:
    _refuse_claimed(array.categories, len(array), columns, f"{label} categories")
    _refuse_one_hash(array.categories, columns, f"{label} categories")
    return {
        "kind": "categorical",
        "codes": columns.array(array.codes),
        "categories": encode_index(array.categories, columns, f"{label} categories"),
        "ordered": array.ordered,
    }


def _decode_categorical(node: Any, columns: ColumnReader) -> Any:
    categories: Any = decode_index(node["categories"], columns)
    codes = columns.array(node["codes"])
    if is_claimed(categories, len(codes)):
        raise columns.decoder.damaged("categories are more than what is stored of them")
    _claim(categories, columns)
    if has_one_hash(categories):
        raise columns.decoder.damaged("many categories have one hash")
    dtype = pd.CategoricalDtype(categories, ordered=node["ordered"])
    codes = _check_codes(codes, len(dtype.categories), columns)
    return pd.Categorical.from_codes(codes, dtype=dtype)


def _check_codes(codes: Array, categories: int, columns: ColumnReader) -> Any:
    """Return codes that are checked as stored: pandas narrows them before it checks."""
    if codes.dtype.kind != "i":
        raise columns.decoder.damaged("codes are no signed integers")
    # MultiIndex would narrow codes to the width that its levels need, and take 256 for 0
    if len(codes) and not -1 <= int(codes.min()) <= int(codes.max()) < categories:
        raise columns.decoder.damaged(f"a code is not below {categories}")
    return codes


def _encode_sparse(array: Any, columns: ColumnWriter, label: str) -> Node:
    positions = array.sp_index.to_int_index().indices
    values = pd.arrays.NumpyExtensionArray(array.sp_values)
    return {
        "kind": "sparse",
        "length": len(array),
        "block": array.kind == "block",
        "positions": columns.array(positions),
        "values": encode_array(values, columns, label),
        "fill": columns.encoder.encode(array.fill_value, ".fill_value"),
    }


def _decode_sparse(node: Any, columns: ColumnReader) -> Any:
    # there is no public way to build one from positions
    from pandas.core.arrays.sparse.array import make_sparse_index  # type: ignore[attr-defined]

    length = read_int(node["length"], columns.decoder)
    positions = columns.array(node["positions"])
    _check_positions(positions, length, columns)
    # those of a sparse array are dense: another one's would be made so here
    if node["values"]["kind"] not in ("numpy", "object"):
        raise columns.decoder.damaged("the values of a sparse array are of another kind")
    values: Any = np.asarray(decode_array(node["values"], columns))
    index = make_sparse_index(length, positions, "block" if node["block"] is True else "integer")
    fill = columns.decoder.decode(node["fill"])
    if len(values) != len(positions):
        raise columns.decoder.damaged("a sparse array has positions without values")
    dtype = pd.SparseDtype(values.dtype, fill)
    sparse: Any = pd.arrays.SparseArray
    return sparse._simple_new(values, index, dtype)


def _check_positions(positions: Array, length: int, columns: ColumnReader) -> None:
    fits = positions.dtype == np.int32 and 0 <= length < 2**31
    if fits and len(positions):
        fits = positions[0] >= 0 and positions[-1] < length and bool((np.diff(positions) > 0).all())
    if not fits:
        raise columns.decoder.damaged("the positions of a sparse array are not inside it")


def encode_index(index: Any, columns: ColumnWriter, label: str = "index") -> Node:
    """Return the node of any index of pandas.

    Raises:
        UnsupportedTypeError: it is a subclass, or holds or is named by what cannot be stored.
    """
    if type(index) not in INDEX_TYPES:
        base = next(each for each in type(index).__mro__ if each in INDEX_TYPES).__name__
        what = f"its {label.strip()} is a {type(index).__qualname__}"
        axis = {"index": "", "columns": ", axis=1"}.get(label)
        if axis is None:
            raise columns.unsupported(f"{what}; make it a pandas.{base}")
        plain = f"pandas.Index(value.{label}.to_numpy())"
        raise columns.unsupported(f"{what}; store value.set_axis({plain}{axis})")
    if type(index) is pd.MultiIndex:
        return _encode_multi(index, columns, label)
    node: Node = {} if index.name is None else {"name": columns.encoder.encode(index.name, ".name")}
    if type(index) is pd.RangeIndex:
        return node | {"range": [int_node(each) for each in (index.start, index.stop, index.step)]}
    if isinstance(index.dtype, pd.SparseDtype):
        _refuse_claimed(index, 0, columns, label)
    return node | _freq(index, columns) | {"array": encode_array(index.array, columns, label)}


def decode_index(node: Any, columns: ColumnReader) -> Any:
    """Return the index of a node.

    Raises:
        DamagedObjectError: the node and its columns do not make an index.
    """
    with refused_as_damage(columns.decoder, "an index"):
        if "levels" in node:
            return _decode_multi(node, columns)
        name = columns.decoder.decode(node.get("name"))
        if "range" in node:
            return pd.RangeIndex(_range(node["range"], columns), name=name)
        return _decode_flat(node, columns, name)


def _range(node: Any, columns: ColumnReader) -> range:
    """Return a range of 64 bits; pandas takes a larger one, and fails later."""
    start, stop, step = (read_int(each, columns.decoder) for each in node)
    if all(-(2**63) <= each < 2**63 for each in (start, stop, step)):
        return range(start, stop, step)
    raise columns.decoder.damaged("a range is not three numbers of 64 bits")


def _freq(index: Any, columns: ColumnWriter) -> Node:
    if not isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) or index.freq is None:
        return {}
    if takes_long(index.freq, len(index)):
        raise columns.unsupported(
            "an index: pandas takes long to check a frequency of its kind; set index.freq = None"
        )
    try:
        freq = freq_text(index.freq)
        # reading builds the index with its freq, which pandas then checks: so check it now, on an
        # array without freq, because pandas believes the freq that an array has
        type(index)(pd.Series(index, copy=False).array, freq=index.freq)
    except ValueError as err:
        raise columns.unsupported(f"an index: {err}; set index.freq = None") from err
    return {"freq": freq}


def _decode_flat(node: Any, columns: ColumnReader, name: Any) -> Any:
    array = decode_array(field(node, "array", columns.decoder), columns)
    if isinstance(array.dtype, pd.SparseDtype) and is_claimed(array, 0):
        raise columns.decoder.damaged("an index is longer than what is stored of it")
    if "freq" not in node:
        return pd.Index(array, dtype=array.dtype, name=name, copy=False)
    freq = offset_of(node["freq"], columns.decoder)
    if takes_long(freq, len(array)):
        raise columns.decoder.damaged("an index is too long for a frequency of its kind")
    return _TIMED[array.dtype.kind](array, freq=freq, name=name, copy=False)


def _encode_multi(index: Any, columns: ColumnWriter, label: str) -> Node:
    numbered = enumerate(index.levels)
    for level in index.levels:
        _refuse_claimed(level, len(index), columns, f"a level of its {label}")
        _refuse_one_hash(level, columns, f"a level of its {label}")
    return {
        "levels": [encode_index(each, columns, f"{label} {number}") for number, each in numbered],
        "codes": [columns.array(np.asarray(each)) for each in index.codes],
        "names": [columns.encoder.encode(name, ".names") for name in index.names],
        "sortorder": index.sortorder,
    }


def _decode_multi(node: Any, columns: ColumnReader) -> Any:
    levels = [decode_index(each, columns) for each in node["levels"]]
    pairs = zip(node["codes"], levels, strict=True)
    codes = [_check_codes(columns.array(each), len(level), columns) for each, level in pairs]
    if any(is_claimed(level, len(each)) for each, level in zip(codes, levels, strict=True)):
        raise columns.decoder.damaged("a level has more items than what is stored of them")
    for level in levels:
        _claim(level, columns)
        if has_one_hash(level):
            raise columns.decoder.damaged("many labels of a level have one hash")
    names = [columns.decoder.decode(name) for name in node["names"]]
    return pd.MultiIndex(levels, codes, sortorder=node["sortorder"], names=names)


_ENCODE_RULES: Final[dict[Any, EncodeRule]] = {
    **ENCODE_RULES,
    pd.IntervalDtype: _encode_interval,
    pd.CategoricalDtype: _encode_categorical,
    pd.SparseDtype: _encode_sparse,
}
_DECODE_RULES: Final[dict[str, DecodeRule]] = {
    **DECODE_RULES,
    "interval": _decode_interval,
    "categorical": _decode_categorical,
    "sparse": _decode_sparse,
}
