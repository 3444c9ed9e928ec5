"""pandas: what becomes what.

===========================  ========================================================
``DataFrame``                index, columns, one array per column, attrs, flags
``Series``                   index, name, one array, attrs, flags
every ``Index``              a range, levels and codes, or an array; names, frequency
``Categorical`` and others   an array by itself
``Timestamp``, ``Period``    and ``Timedelta``, ``Interval``, ``NaT``, ``NA``: the manifest
every dtype                  its parts, or an array of it without items
offsets                      the class and its arguments
===========================  ========================================================

Everything is exact: dtypes, index classes, names of any stored type, duplicate column names, unused
levels and categories, the kinds of missing values in object columns. How columns are grouped
in memory is not. Numbers come back as read-only views of the object's memory. On pandas 3 edits
copy on write; on pandas 2.2 an edit in place of numbers raises ``ValueError`` (read-only) unless
``pandas.options.mode.copy_on_write`` is set: ``frame.copy()`` is editable.

Subclasses, arrays and dtypes of other libraries, and what has no name that gives it back (the
frequency of an index, a time zone) are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ._base import field
from ._npy import Array
from ._pandas_arrays import (
    INDEX_TYPES,
    decode_array,
    decode_index,
    encode_array,
    encode_index,
    has_one_hash,
    is_claimed,
)
from ._pandas_columns import ColumnReader, ColumnWriter
from ._pandas_tables import FramePlan
from ._pandas_time import SCALARS
from ._pandas_types import OffsetCodec, dtype_parts, read_dtype_parts
from ._stream import refused_as_damage
from .advice import advice_by_base
from .protocol import JSON, Codec, Decoder, Description, Encoder


class _PandasCodec:
    """A kind of pandas value that is made of physical columns."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = True
    exact: ClassVar[tuple[type, ...]]
    base: ClassVar[type]

    def types(self) -> tuple[type, ...]:
        return self.exact

    def takes(self, value: object) -> bool:
        """Take subclasses too: `encode` refuses them and says why."""
        return isinstance(value, self.base)

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        if type(value) not in self.exact and self.exact:
            reason = advice_by_base(type(value)) or _subclass(self.base)
            raise encoder.unsupported(value, reason)
        columns = ColumnWriter(value, encoder)
        node = self.parts(value, columns)
        return node | {"physical": columns.close()}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        columns = ColumnReader(field(node, "physical", decoder), decoder)
        with refused_as_damage(decoder, f"a {self.name}"):
            value = self.whole(node, columns)
            if not self._is_as_described(value, node):
                raise decoder.damaged(f"a {self.name} is another than its node says")
            return value

    def _is_as_described(self, value: Any, node: Any) -> bool:
        """Return whether a value has the type, dtype and shape that its node tells."""
        described = self.about(value)
        return all(
            key not in node or _comparable(key, node[key]) == _comparable(key, each)
            for key, each in described.items()
        )

    def about(self, value: Any) -> dict[str, JSON]:
        """Return what a node tells of a value for descriptions."""
        raise NotImplementedError

    def describe(self, node: Any) -> Description:
        about = node if isinstance(node, dict) else {}
        kind, dtype, shape = (about.get(key) for key in ("type", "dtype", "shape"))
        return Description(
            f"pandas.{kind if isinstance(kind, str) else self.base.__name__}",
            dtype if isinstance(dtype, str) else None,
            tuple(shape) if isinstance(shape, list) else None,
        )

    def parts(self, value: Any, columns: ColumnWriter) -> dict[str, JSON]:
        """Return the node of a value, its columns added to `columns`."""
        raise NotImplementedError

    def whole(self, node: Any, columns: ColumnReader) -> Any:
        """Return the value of a node; any exception means damage."""
        raise NotImplementedError


class _Frame(_PandasCodec):
    name = "pandas.frame"
    exact = (pd.DataFrame,)
    base = pd.DataFrame

    def parts(self, value: Any, columns: ColumnWriter) -> dict[str, JSON]:
        labels = _labels(value.columns)
        arrays = (column.array for _, column in value.items())
        nodes = [
            encode_array(each, columns, label) for each, label in zip(arrays, labels, strict=True)
        ]
        node: dict[str, JSON] = {
            **self.about(value),
            "index": encode_index(value.index, columns),
            "columns": encode_index(value.columns, columns, "columns"),
            "data": _joined(nodes),
        }
        return node | _attached(value, columns)

    def decode_arrow(self, node: Any, version: int, decoder: Decoder) -> Any:
        """Return the frame's columns as an Arrow table where these are plain, else the frame."""
        with refused_as_damage(decoder, f"a {self.name}"):
            plan = self.arrow_plan(node, version)
            if plan is None:
                return self.decode(node, version, decoder)
            return plan.table([plan.piece(decoder)])

    def arrow_plan(self, node: Any, version: int) -> FramePlan | None:  # noqa: ARG002
        """Return how frames of a node are read; see `format.joining`."""
        return FramePlan.of(node)

    def about(self, value: Any) -> dict[str, JSON]:
        # each dtype once, since their texts take most of the time of a frame with many columns
        dtypes = ", ".join(dict.fromkeys(map(str, dict.fromkeys(value.dtypes))))
        return {"dtype": dtypes or None, "shape": [*value.shape]}

    def whole(self, node: Any, columns: ColumnReader) -> Any:
        index = decode_index(node["index"], columns)
        names = decode_index(node["columns"], columns)
        blocks = _blocks(node["data"], columns)
        if any(block.shape[-1] != len(index) for block, _ in blocks):
            raise columns.decoder.damaged("columns are not as long as their index")
        if sum(len(places) for _, places in blocks) != len(names):
            raise columns.decoder.damaged("a frame has not as many columns as names")
        return _attach(_frame(blocks, index, names), node, columns)


class _Series(_PandasCodec):
    name = "pandas.series"
    exact = (pd.Series,)
    base = pd.Series

    def parts(self, value: Any, columns: ColumnWriter) -> dict[str, JSON]:
        label = value.name if isinstance(value.name, str) else "values"
        node: dict[str, JSON] = {
            **self.about(value),
            "array": encode_array(value.array, columns, label),
            "index": encode_index(value.index, columns),
            "name": columns.encoder.encode(value.name, ".name"),
        }
        return node | _attached(value, columns)

    def about(self, value: Any) -> dict[str, JSON]:
        return {"dtype": str(value.dtype), "shape": [len(value)]}

    def whole(self, node: Any, columns: ColumnReader) -> Any:
        array = decode_array(node["array"], columns)
        index = decode_index(node["index"], columns)
        name = columns.decoder.decode(node["name"])
        series: Any = pd.Series(array, index=index, dtype=array.dtype, name=name, copy=False)
        return _attach(series, node, columns)


class _Index(_PandasCodec):
    name = "pandas.index"
    exact = INDEX_TYPES
    base = pd.Index

    def parts(self, value: Any, columns: ColumnWriter) -> dict[str, JSON]:
        return {**self.about(value), "index": encode_index(value, columns)}

    def about(self, value: Any) -> dict[str, JSON]:
        about: dict[str, JSON] = {"type": type(value).__name__, "dtype": str(value.dtype)}
        return about | {"shape": [len(value)]}

    def whole(self, node: Any, columns: ColumnReader) -> Any:
        return decode_index(node["index"], columns)


class _Array(_PandasCodec):
    """Extension arrays by themselves; taken by base class, since their dtypes decide."""

    name = "pandas.array"
    exact = ()
    base = pd.api.extensions.ExtensionArray

    def parts(self, value: Any, columns: ColumnWriter) -> dict[str, JSON]:
        return {**self.about(value), "array": encode_array(value, columns)}

    def about(self, value: Any) -> dict[str, JSON]:
        about: dict[str, JSON] = {"type": f"arrays.{type(value).__name__}"}
        return about | {"dtype": str(value.dtype), "shape": [len(value)]}

    def whole(self, node: Any, columns: ColumnReader) -> Any:
        array = decode_array(node["array"], columns)
        if isinstance(array, np.ndarray):
            return pd.arrays.NumpyExtensionArray(array)
        return array


class _Dtype(_PandasCodec):
    """Dtypes by themselves; taken by base class, so that foreign ones are refused with a reason."""

    name = "pandas.dtype"
    mutable = False
    exact = ()
    base = pd.api.extensions.ExtensionDtype

    def parts(self, value: Any, columns: ColumnWriter) -> dict[str, JSON]:
        return self.about(value) | dtype_parts(value, columns)

    def about(self, value: Any) -> dict[str, JSON]:
        return {"type": type(value).__name__, "dtype": str(value)}

    def whole(self, node: Any, columns: ColumnReader) -> Any:
        return read_dtype_parts(node, columns)


def _comparable(key: str, described: Any) -> Any:
    """Return what has to agree of a description, whatever version of pandas has written it.

    Names of classes and of the dtypes of text are another version's: so is what holds them.
    """
    if key == "shape":
        return described
    if key == "type" or not isinstance(described, str) or _NAMED_BY_VERSION.search(described):
        return None
    return described


_NAMED_BY_VERSION = re.compile(r"str|object|category|\[")
"""Dtypes whose text pandas has changed, or may: those of text, and those with parameters."""


def _subclass(base: type) -> str:
    plain = f"pandas.{base.__name__}"
    data = "value.to_numpy()" if base is pd.Index else "value"
    return f"it is a subclass of {plain}; store {plain}({data}), or register a codec for it"


def _labels(names: Any) -> list[str]:
    """Return the columns' names where other tools can use them, else their positions."""
    if names.nlevels == 1 and names.is_unique and all(type(name) is str for name in names):
        return list(names)
    return [str(position) for position in range(len(names))]


def _joined(nodes: list[Any]) -> list[JSON]:
    """Return nodes with those of neighbours in one block joined to one of the kind ``run``."""
    joined: list[Any] = []
    for node in nodes:
        # one item for a run of columns: the node of a frame with 10,000 of them stays small
        last = joined[-1] if joined else {}
        reference = node["values"] if node["kind"] == "numpy" else None
        if not (isinstance(reference, list) and all(type(each) is int for each in reference)):
            joined.append(node)
        elif last.get("kind") == "run" and reference == [
            last["block"],
            last["row"] + last["count"],
        ]:
            last["count"] += 1
        else:
            joined.append({"kind": "run", "block": reference[0], "row": reference[1], "count": 1})
    return joined


def _blocks(nodes: list[Any], columns: ColumnReader) -> list[tuple[Any, Array]]:
    """Return arrays with their columns' positions in the frame; numbers are columns x rows."""
    blocks: list[tuple[Any, Array]] = []
    runs: dict[tuple[int, int], _Run] = {}
    position = 0
    for node in nodes:
        if node["kind"] == "run":
            position = _add_run(runs, node, position, columns)
        else:
            array = decode_array(node, columns)
            array = array.reshape(1, -1) if isinstance(array, np.ndarray) else array
            blocks.append((array, np.array([position])))
            position += 1
    return [
        *blocks,
        *((columns.block(run.block)[run.rows], run.positions) for run in runs.values()),
    ]


@dataclass
class _Run:
    """Columns side by side in a block; in the frame, others may stand between them."""

    block: int
    first: int
    stop: int
    places: list[range]

    @property
    def rows(self) -> slice:
        return slice(self.first, self.stop)

    @property
    def positions(self) -> Array:
        return np.concatenate([np.arange(each.start, each.stop) for each in self.places])


def _add_run(
    runs: dict[tuple[int, int], _Run], node: Any, position: int, columns: ColumnReader
) -> int:
    """Add a run, joined to the one that it continues; return the next column's position.

    Args:
        runs: by their block and where they stop in it.
        node: the run's.
        position: of its first column in the frame.
        columns: has the block.
    """
    block, first, count = node["block"], node["row"], node["count"]
    columns.take_rows(block, first, count)
    places = range(position, position + count)
    run = runs.pop((block, first), None) or _Run(block, first, first, [])
    run.places.append(places)
    run.stop += count
    runs[block, run.stop] = run
    return places.stop


def _frame(blocks: list[tuple[Any, Array]], index: Any, names: Any) -> Any:
    """Return a frame that shares the memory of its arrays."""
    if hasattr(pd.api, "internals"):
        return pd.api.internals.create_dataframe_from_blocks(blocks, index=index, columns=names)
    return _frame_of_columns(blocks, index, names)


def _frame_of_columns(blocks: list[tuple[Any, Array]], index: Any, names: Any) -> Any:
    """Return the frame with pandas 2.2, which has no public way to give it several blocks."""
    if len(blocks) == 1 and isinstance(blocks[0][0], np.ndarray) and blocks[0][0].dtype != object:
        return pd.DataFrame(blocks[0][0].T, index=index, columns=names, copy=False)
    # Positions stand for the names, and the index comes last: pandas would take one column for two
    # of the same name, and align the rows by label.
    columns = {}
    for block, positions in blocks:
        rows = block if isinstance(block, np.ndarray) else [block]
        for row, position in zip(rows, positions, strict=True):
            columns[position] = pd.Series(row, dtype=row.dtype, copy=False)
    in_order = {position: columns[position] for position in sorted(columns)}
    frame = pd.DataFrame(in_order, index=range(len(index)), copy=False)
    frame.index, frame.columns = index, names
    return frame


def _attached(value: Any, columns: ColumnWriter) -> dict[str, JSON]:
    node: dict[str, JSON] = {}
    if value.attrs:
        node["attrs"] = columns.encoder.encode(dict(value.attrs), ".attrs")
    if not value.flags.allows_duplicate_labels:
        if not _can_be_unique(value):
            raise columns.unsupported(
                "its index is sparse and its labels have to be unique; "
                "store value.set_axis(pandas.Index(value.index.to_numpy()))"
            )
        if any(map(has_one_hash, value.axes)):
            raise columns.unsupported(
                "its labels have to be unique, and many have one hash, about which pandas takes "
                "long; store value.set_flags(allows_duplicate_labels=True)"
            )
        node["unique_labels"] = True
    return node


def _attach(value: Any, node: Any, columns: ColumnReader) -> Any:
    if "attrs" in node:
        value.attrs = columns.decoder.decode(node["attrs"])
    if node.get("unique_labels") is True:
        if not _can_be_unique(value):
            raise columns.decoder.damaged("an index is longer than what is stored of it")
        if any(map(has_one_hash, value.axes)):
            raise columns.decoder.damaged("many labels have one hash")
        value.flags.allows_duplicate_labels = False
    return value


def _can_be_unique(value: Any) -> bool:
    """Return whether pandas can look for duplicate labels without making up an index in memory."""
    return type(value.index) is pd.RangeIndex or not is_claimed(value.index, 0)


CODECS: tuple[Codec, ...] = (
    *(_Frame(), _Series(), _Index(), _Array(), _Dtype(), OffsetCodec()),
    *SCALARS,
)
