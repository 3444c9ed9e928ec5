"""Dtypes and offsets of pandas as values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Final

import numpy as np
import pandas as pd

from ._base import field, int_node, read_int, text_in
from ._pandas_arrays import decode_array, encode_array
from ._pandas_columns import ColumnReader, ColumnWriter
from ._stream import refused_as_damage
from .protocol import JSON, Decoder, Description, Encoder

_CALENDAR: Final = (
    "its calendar would be lost; make it with weekmask= and holidays=, or store value.freqstr"
)
_ABSOLUTE: Final = {
    *("year", "month", "day", "weekday", "hour", "minute", "second", "microsecond", "nanosecond"),
}
"""What replaces a part of a moment: `dateutil` warns where it is no integer."""
_OFFSETS: Final[dict[str, type[Any]]] = {
    cls.__name__: cls
    for name in dir(pd.offsets)
    if isinstance(cls := getattr(pd.offsets, name), type)
    and issubclass(cls, pd.offsets.BaseOffset)
    and name not in ("BaseOffset", "Tick")
}


def dtype_parts(value: Any, columns: ColumnWriter) -> dict[str, JSON]:
    """Return the node of a dtype: its parts, or an array without items that has it.

    Raises:
        UnsupportedTypeError: it is another library's, or no array gives it back.
    """
    if type(value) is pd.CategoricalDtype:
        array = None if value.categories is None else pd.Categorical([], dtype=value)
        parts = None if array is None else encode_array(array, columns)
        return {"categories": parts, "ordered": value.ordered}
    if type(value) is pd.IntervalDtype:
        subtype = columns.encoder.encode(value.subtype, ".subtype")
        return {"subtype": subtype, "closed": value.closed}
    if type(value).__module__.partition(".")[0] != "pandas":
        raise columns.unsupported("it is not pandas' own; store str(value), or register a codec")
    array = pd.array([], dtype=value)
    if array.dtype != value:
        raise columns.unsupported("no array gives it back; store str(value)")
    return {"array": encode_array(array, columns)}


def read_dtype_parts(node: Any, columns: ColumnReader) -> Any:
    """Return the dtype of a node; any exception means damage."""
    if "categories" in node:
        parts = node["categories"]
        # by way of an array, which is checked before pandas looks at its categories
        categories = None if parts is None else decode_array(parts, columns).categories
        return pd.CategoricalDtype(categories, ordered=node["ordered"])
    if "subtype" in node:
        return pd.IntervalDtype(columns.decoder.decode(node["subtype"]), closed=node["closed"])
    array = decode_array(node["array"], columns)
    if isinstance(array, np.ndarray):
        array = pd.arrays.NumpyExtensionArray(array)
    return array.dtype


class OffsetCodec:
    """Offsets by class and arguments; no text is parsed."""

    name: ClassVar[str] = "pandas.offset"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False

    def types(self) -> tuple[type, ...]:
        return tuple(_OFFSETS.values())

    def takes(self, value: object) -> bool:  # noqa: ARG002
        return False

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        # the calendar of business days is made of the other arguments, unless it was given itself
        kwds = {key: each for key, each in value.kwds.items() if key != "calendar"}
        back = _offset(type(value), value.n, kwds, normalize=value.normalize)
        if back != value or _weekmask(back) != _weekmask(value):
            raise encoder.unsupported(value, _CALENDAR)
        return {
            "offset": type(value).__name__,
            "n": int_node(value.n),
            "normalize": value.normalize,
            "kwds": encoder.encode(kwds, ".kwds"),
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        name = text_in(field(node, "offset", decoder), decoder)
        n = read_int(field(node, "n", decoder), decoder)
        kwds = decoder.decode(field(node, "kwds", decoder))
        with refused_as_damage(decoder, "an offset"):
            if any(type(kwds[key]) is not int for key in _ABSOLUTE & {*kwds}):
                raise decoder.damaged("a part of a moment is no integer")
            if any(_is_made_up(each) for each in kwds.values()):
                raise decoder.damaged("an argument of an offset is no list and no single value")
            return _offset(_OFFSETS[name], n, kwds, normalize=node["normalize"] is True)

    def describe(self, node: Any) -> Description:
        name = node.get("offset") if isinstance(node, dict) else None
        return Description(f"pandas.offsets.{name if isinstance(name, str) else 'BaseOffset'}")


def _is_made_up(argument: Any) -> bool:
    """Return whether pandas would make items of an argument that the object does not hold."""
    return isinstance(argument, Iterable) and not isinstance(argument, (str, list, tuple))


def _weekmask(offset: Any) -> list[bool]:
    calendar = getattr(offset, "calendar", None)
    return [] if calendar is None else calendar.weekmask.tolist()


def _offset(cls: type[Any], n: int, kwds: dict[str, Any], *, normalize: bool) -> Any:
    return cls(n, normalize, **kwds)
