"""Write a loaded value to a file that other programs read: Parquet, CSV, NPY, JSON, or our ZIP.

A `File` is written as it is.
"""

from __future__ import annotations

import base64
import datetime
import enum
import json
import math
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.files.file import File
from sqla_datastore.storage.urls import ObjectURL
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.io import DataStoreIO


def export(value: Any, kind: str | None, out: BinaryIO) -> None:
    """Write a value.

    Args:
        value: an entry's value, or a whole `DataStore`, which is loaded.
        kind: one of `KINDS`; None for a `File`, whose bytes are written as they are.
        out: an open file.

    Raises:
        ConfigurationError: the format cannot hold such a value, or is needed; something may have
            been written.
        DataStoreError: entries of it cannot be read.
    """
    if isinstance(value, File) and kind != "zip":
        _file(value, kind, out)
        return
    if kind is None:
        raise ConfigurationError(f"only a File needs no format; name one of {', '.join(KINDS)}")
    try:
        KINDS[kind](value, out)
    except (TypeError, ValueError, ArithmeticError, NotImplementedError) as err:
        shown = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        which = "" if kind == "zip" else ": zip takes everything"
        raise ConfigurationError(
            f"{shown!r} cannot be written as {kind} ({err}); try another format{which}"
        ) from err


def _file(file: File, kind: str | None, out: BinaryIO) -> None:
    if kind is not None:
        raise ConfigurationError(
            f"a File is not written as {kind}; leave the format out for its own bytes, or use zip"
        )
    for piece in file.iter_bytes():
        out.write(piece)


def suffix_of(value: Any) -> str:
    """Return the suffix under which a `File` is written as it is: that of its name."""
    name = value.name if isinstance(value, File) else ""
    return re.sub(r"[^A-Za-z0-9]", "_", Path(name).suffix[1:20]) or "bin"


def file_name(kind: str, *parts: str) -> str:
    """Return a name for an exported file that every file system takes.

    Examples:
        >>> file_name("csv", "runs", "1/2", "loss curve")
        'runs-1_2-loss_curve.csv'
    """
    stem = "-".join(re.sub(r"[^A-Za-z0-9._-]", "_", part)[:60] for part in parts).lstrip(".-")
    return f"{stem or 'value'}.{kind}"


# -- tables ----------------------------------------------------------------------------------------


def _parquet(value: Any, out: BinaryIO) -> None:
    from pyarrow import parquet

    parquet.write_table(_table(value), out)


def _csv(value: Any, out: BinaryIO) -> None:
    if type(value).__module__.partition(".")[0] in ("pandas", "geopandas"):
        # an index that only counts rows says nothing
        is_counting = type(value.index).__name__ == "RangeIndex" and value.index.name is None
        out.write(value.to_csv(index=not is_counting, lineterminator="\n").encode())
    else:
        from pyarrow import csv

        csv.write_csv(_table(value), out)


def _table(value: Any) -> Any:
    """Return a value as a table of Arrow."""
    import pyarrow as pa

    library = type(value).__module__.partition(".")[0]
    if library in ("pandas", "geopandas"):
        return pa.Table.from_pandas(value if value.ndim == 2 else value.to_frame("value"))
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        return pa.table(value) if isinstance(value, pa.Table) else pa.Table.from_batches([value])
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        return pa.table({"value": value})
    if library == "polars":
        return (value if hasattr(value, "columns") else value.to_frame()).to_arrow()
    if library == "numpy":
        return pa.table(_columns_of_array(value))
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return pa.table({name: pa.array(column) for name, column in value.items()})
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return pa.Table.from_pylist(value)
    raise TypeError("it is no table")


def _columns_of_array(array: Any) -> dict[str, Any]:
    if array.ndim == 1 and array.dtype.names:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim == 1:
        return {"value": array}
    if array.ndim == 2:
        return {str(number): array[:, number] for number in range(array.shape[1])}
    raise TypeError(f"it has {array.ndim} dimensions, a table has two")


def _npy(value: Any, out: BinaryIO) -> None:
    import numpy as np

    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    if array.dtype.hasobject:
        raise TypeError("its numbers are not of one type")
    np.save(out, array, allow_pickle=False)


# -- JSON ------------------------------------------------------------------------------------------


def _json(value: Any, out: BinaryIO) -> None:
    out.write(json.dumps(jsonable(value), indent=2, allow_nan=False).encode() + b"\n")


def jsonable(value: Any) -> Any:
    """Return a value as what JSON has: frames as lists of rows, bytes in base64, NaN as null.

    Raises:
        TypeError: it is of another type, or a collection has keys that JSON has not.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, DataStore):
        return {name: _entry_json(name, value[name]) for name in value}
    if isinstance(value, Mapping):
        return {_key(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(each) for each in value]
    return jsonable(_plain(value))


def _entry_json(name: str, value: Any) -> Any:
    try:
        return jsonable(value)
    except TypeError as err:
        raise TypeError(f"entry {name!r}: {err}") from err


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"it has a key of type {type(key).__name__}, JSON has text")
    return key


def _plain(value: Any) -> Any:
    """Return what a library's value holds as plain objects."""
    library = type(value).__module__.partition(".")[0]
    if library in ("pandas", "geopandas") and getattr(value, "ndim", 0) == 2:
        return value.to_dict("records")
    if hasattr(value, "to_pylist"):  # of Arrow
        return value.to_pylist()
    if hasattr(value, "to_dicts"):  # of polars
        return value.to_dicts()
    for method in ("tolist", "to_list", "item"):
        if library in ("numpy", "pandas", "polars", "torch") and hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} values have no form in JSON")


# -- ZIP -------------------------------------------------------------------------------------------


def _zip(value: Any, out: BinaryIO) -> None:
    """Write an object as this library stores it; values nested in it become dicts."""
    whole = value if isinstance(value, DataStore) else {"value": value}
    plain = DataStore(whole.to_dict() if isinstance(whole, DataStore) else whole)
    with tempfile.TemporaryDirectory() as folder:
        written = DataStoreIO.serialize_write(plain, "export", storage=folder)
        objects = [path for path in Path(folder).rglob("*") if path.is_file()]
        if len(objects) != 1:
            raise TypeError("a collection in it holds a DataStore; export that by itself")
        with (Path(folder) / ObjectURL.parse(written.url).path).open("rb") as source:
            while piece := source.read(1 << 20):
                out.write(piece)


KINDS: Final[dict[str, Callable[[Any, BinaryIO], None]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "npy": _npy,
    "json": _json,
    "zip": _zip,
}
