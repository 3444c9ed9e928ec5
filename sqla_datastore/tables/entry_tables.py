"""What becomes of one entry.

===============================  =====================================================
pandas ``DataFrame``             its columns; an index first, as ``reset_index()`` does
pandas ``Series``                as a frame of one column
``pyarrow.Table``, polars …      its columns
``pyarrow.Array``                one column
NumPy array                      one row, a fixed-size list of fixed-size lists
dict of names                    one row, a column for each key
a scalar, None                   one row of one column
`File`                           one row: what is known of it, and none of its bytes
===============================  =====================================================

A column that has no name of its own has the entry's. Metadata, `attrs` and an index that only
numbers the rows are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sqla_datastore.codecs import find_codec
from sqla_datastore.files.file import File

TABLE, SCALAR, DICT, FILE = "a table", "a scalar", "a dict", "a File"


_FACTS = ("name", "content_type", "size_bytes", "sha256")


def table_of(value: Any, name: str) -> tuple[str, Any] | None:
    """Return the kind of an entry and its Arrow table; None for an empty dict.

    Args:
        value: the entry, loaded.
        name: its name.

    Raises:
        TypeError: nothing of the kind becomes a table.
        pyarrow.ArrowException, ValueError, OverflowError: Arrow does not take what is in it.
    """
    if isinstance(value, pa.Table):
        return TABLE, value
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}", pa.table({name: _cell(value)})
    for kind, make in _MAKERS:
        if isinstance(value, kind):
            return TABLE, make(value, name)
    if hasattr(value, "__arrow_c_stream__"):
        return TABLE, pa.table(value)
    if isinstance(value, File):
        return FILE, pa.Table.from_pylist([{fact: getattr(value, fact) for fact in _FACTS}])
    if isinstance(value, dict):
        if not value:
            # a table without columns has no rows, and this is to be one
            return None
        return DICT, pa.Table.from_pylist([_named(value)])
    codec = find_codec(value)
    if codec is not None and codec.mutable:
        raise TypeError(f"{type(value).__name__} values make no table")
    return SCALAR, pa.table({name: pa.array([_scalar(value)])})


def _of_frame(frame: Any, _: str) -> Any:
    if type(frame.index) is not pd.RangeIndex or frame.index.name is not None:
        frame = frame.reset_index()
    return pa.Table.from_pandas(frame, preserve_index=False)


def _of_series(series: Any, name: str) -> Any:
    return _of_frame(series.to_frame(name if series.name is None else series.name), name)


def _of_array(array: Any, name: str) -> Any:
    return pa.table({name: array})


_MAKERS: tuple[tuple[Any, Callable[[Any, str], Any]], ...] = (
    (pd.DataFrame, _of_frame),
    (pd.Series, _of_series),
    (pa.RecordBatch, lambda batch, _: pa.Table.from_batches([batch])),
    ((pa.Array, pa.ChunkedArray), _of_array),
)


def _cell(array: Any) -> Any:
    """Return an Arrow array with a NumPy array as its only item; numbers are not copied."""
    cell = pa.array(array.reshape(-1))
    for length in reversed(array.shape):
        cell = pa.FixedSizeListArray.from_arrays(cell, length)
    return cell


def _named(value: dict[Any, Any]) -> dict[str, Any]:
    if not all(type(key) is str for key in value):
        raise TypeError("a dict whose keys are no names makes no table")
    return {key: _scalar(each) for key, each in value.items()}


def _scalar(value: Any) -> Any:
    if isinstance(value, np.ndarray) and not value.ndim:
        return value[()]
    if isinstance(value, pa.Scalar):
        return value.as_py()
    if value is pd.NaT or value is pd.NA:
        return None
    return value
