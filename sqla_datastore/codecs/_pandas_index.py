"""Indexes of pandas: a range, levels and codes, or an array; with names and frequency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ._base import field, int_node, read_int
from ._pandas_arrays import Node, check_codes, decode_array, encode_array
from ._pandas_columns import ColumnReader, ColumnWriter
from ._pandas_time import freq_text, offset_of
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
_TIMED = {"M": pd.DatetimeIndex, "m": pd.TimedeltaIndex}


def encode_index(index: Any, columns: ColumnWriter, label: str = "index") -> Node:
    """Return the node of any index of pandas.

    Raises:
        UnsupportedTypeError: it is a subclass, or holds or is named by what cannot be stored.
    """
    if type(index) not in INDEX_TYPES:
        reason = f"its {label} is a {type(index).__qualname__}; convert it with pandas.Index(...)"
        raise columns.unsupported(reason)
    if type(index) is pd.MultiIndex:
        return _encode_multi(index, columns, label)
    node: Node = {} if index.name is None else {"name": columns.encoder.encode(index.name, ".name")}
    if type(index) is pd.RangeIndex:
        return node | {"range": [int_node(each) for each in (index.start, index.stop, index.step)]}
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
            start, stop, step = (read_int(each, columns.decoder) for each in node["range"])
            return pd.RangeIndex(start, stop, step, name=name)
        return _decode_flat(node, columns, name)


def _freq(index: Any, columns: ColumnWriter) -> Node:
    if not isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) or index.freq is None:
        return {}
    try:
        freq = freq_text(index.freq)
        # what reads it insists that it fits; a series' array has forgotten it
        type(index)(pd.Series(index, copy=False).array, freq=index.freq)
    except ValueError as err:
        raise columns.unsupported(f"an index: {err}; set index.freq = None") from err
    return {"freq": freq}


def _decode_flat(node: Any, columns: ColumnReader, name: Any) -> Any:
    array = decode_array(field(node, "array", columns.decoder), columns)
    if "freq" not in node:
        return pd.Index(array, dtype=array.dtype, name=name, copy=False)
    freq = offset_of(node["freq"], columns.decoder)
    return _TIMED[array.dtype.kind](array, freq=freq, name=name, copy=False)


def _encode_multi(index: Any, columns: ColumnWriter, label: str) -> Node:
    numbered = enumerate(index.levels)
    return {
        "levels": [encode_index(each, columns, f"{label} {number}") for number, each in numbered],
        "codes": [columns.array(np.asarray(each)) for each in index.codes],
        "names": [columns.encoder.encode(name, ".names") for name in index.names],
        "sortorder": index.sortorder,
    }


def _decode_multi(node: Any, columns: ColumnReader) -> Any:
    levels = [decode_index(each, columns) for each in node["levels"]]
    pairs = zip(node["codes"], levels, strict=True)
    codes = [check_codes(columns.array(each), len(level), columns) for each, level in pairs]
    names = [columns.decoder.decode(name) for name in node["names"]]
    return pd.MultiIndex(levels, codes, sortorder=node["sortorder"], names=names)
