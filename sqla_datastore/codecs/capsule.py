"""Libraries that hand their frames over through the Arrow PyCapsule interface.

=======================  ==================================================================
``polars.DataFrame``     a stream of plain Arrow types; the node holds the polars types
``polars.Series``        the same with one column
=======================  ==================================================================

Enums with unused members, named categories, decimals, durations, time zones and nested types are
exact. Refused: ``LazyFrame`` (collect it first), ``Object`` columns, and types that Arrow lacks
(128-bit integers). Other libraries' frames are refused: only a codec of their own can give them
back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from ._base import MAX_PARSED, field
from ._stream import add_stream, batches_of, read_stream, refused_as_damage, types_in
from .advice import advice_by_base
from .protocol import JSON, Codec, Decoder, Description, Encoder

_PLAIN_NAMES = (
    *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
    *("Float16", "Float32", "Float64", "Boolean", "String", "Binary", "Date", "Time", "Null"),
)
_MOST_DAYS = 95_000_000
"""Before and after 1970: the years that polars prints end near 262,000 years from the year 0."""
_A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}
_FAR_DATES = (
    "it has dates beyond the year 262,000, which polars cannot print; "
    "store those columns as integers, column.to_physical()"
)


class _Frame:
    """Polars frames; polars is imported when the first one is stored or read."""

    name: ClassVar[str] = "capsule.polars_frame"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = True
    described: ClassVar[str] = "polars.DataFrame"
    plain: ClassVar[str] = "value.to_dict(as_series=False)"

    def types(self) -> tuple[type, ...]:
        return ()

    def takes(self, value: object) -> bool:
        # by name: polars is not imported for other libraries' values
        return _qualified(value) == self.described

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        frame = self.frame_of(value)
        try:
            types = [_type_node(dtype) for dtype in frame.dtypes]
            table = _table_of(frame)
        except (ValueError, pa.ArrowException) as err:
            raise encoder.unsupported(value, f"{err}; store {self.plain}") from err
        if _has_far_dates(table):
            raise encoder.unsupported(value, _FAR_DATES)
        return {
            "stream": add_stream(encoder, value, table.schema, batches_of(table)),
            "names": frame.columns,
            "types": types,
            "shape": [*value.shape],
            "dtype": ", ".join(dict.fromkeys(map(str, frame.dtypes))) or None,
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        schema, batches = read_stream(field(node, "stream", decoder), decoder)
        try:
            with refused_as_damage(decoder, f"a {self.described}"):
                frame = _frame_of(pa.Table.from_batches(batches, schema), node)
                return self.value_of(frame, node, decoder)
        except Exception:
            raise
        except BaseException as err:  # a panic in polars is no Exception
            if type(err).__name__ != "PanicException":
                raise
            raise decoder.damaged(f"polars cannot take a {self.described}") from err

    def describe(self, node: Any) -> Description:
        dtype, shape = (node.get("dtype"), node.get("shape")) if isinstance(node, dict) else (0, 0)
        return Description(
            self.described,
            dtype if isinstance(dtype, str) else None,
            tuple(shape) if isinstance(shape, list) else None,
        )

    def frame_of(self, value: Any) -> Any:
        """Return the frame that is stored for a value."""
        return value

    def value_of(self, frame: Any, node: Any, decoder: Decoder) -> Any:
        """Return the value of a stored frame."""
        if [*frame.shape] != node["shape"]:
            raise decoder.damaged("a polars frame has another shape")
        return frame


class _Series(_Frame):
    name = "capsule.polars_series"
    described = "polars.Series"
    plain = "value.to_list()"

    def frame_of(self, value: Any) -> Any:
        return value.to_frame()

    def value_of(self, frame: Any, node: Any, decoder: Decoder) -> Any:
        (series,) = frame.get_columns()
        if [*series.shape] != node["shape"]:
            raise decoder.damaged("a polars series has another length")
        return series


class _Refused:
    """Takes values that no codec could give back, only to refuse them with advice."""

    name: ClassVar[str] = "capsule.refused"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False

    def types(self) -> tuple[type, ...]:
        return ()

    def takes(self, value: object) -> bool:
        return _qualified(value) == "polars.LazyFrame" or _is_foreign(type(value))

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        if _qualified(value) == "polars.LazyFrame":
            raise encoder.unsupported(value, "it is a query; store value.collect()")
        raise encoder.unsupported(
            value, f"no codec gives this type back; store {_as_arrow(value)}, or register a codec"
        )

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        raise decoder.damaged("nothing is ever stored with this codec")

    def describe(self, node: Any) -> Description:  # noqa: ARG002
        return Description("unknown")


def _as_arrow(value: Any) -> str:
    """Return the code by which a value of the interface becomes pyarrow's."""
    try:
        pa.schema(value)
    except (pa.ArrowException, TypeError, ValueError):  # it has no columns, or does not tell
        has_columns = not hasattr(type(value), "__arrow_c_schema__")
    else:
        has_columns = True
    return "pyarrow.table(value)" if has_columns else "pyarrow.chunked_array(value)"


def _polars() -> Any:
    import polars as pl

    return pl


def _qualified(value: object) -> str:
    """Return ``library.Class`` of a value's exact type."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"


def _is_foreign(cls: type) -> bool:
    """Return whether a class offers the interface and no other codec knows its library."""
    if f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}" in _TAKEN:
        return False
    # an array of xarray offers the interface, too: what to do with it must not depend on whether
    # this module was imported before
    if advice_by_base(cls) is not None:
        return False
    libraries = {base.__module__.partition(".")[0] for base in cls.__mro__}
    return hasattr(cls, "__arrow_c_stream__") and libraries.isdisjoint({"pandas", "pyarrow"})


def _table_of(frame: Any) -> Any:
    """Return the table of plain Arrow types that is stored for a frame."""
    frame = frame.with_columns(
        column.cast(_of_lists(column.dtype))
        for column in frame.get_columns()
        if _is_widthless(column.dtype)
    )
    # newer levels give Arrow's string views, which not every reader of Arrow knows
    return _bare(frame.to_arrow(compat_level=_polars().CompatLevel.oldest()))


def _is_widthless(dtype: Any) -> bool:
    """Return whether arrays of no items are in a type: polars cannot take them from Arrow."""
    pl = _polars()
    if isinstance(dtype, pl.Struct):
        return any(_is_widthless(each.dtype) for each in dtype.fields)
    if isinstance(dtype, pl.Array) and not dtype.shape[0]:
        return True
    return isinstance(dtype, pl.List | pl.Array) and _is_widthless(dtype.inner)


def _of_lists(dtype: Any) -> Any:
    """Return a type with lists in the place of arrays; to cast them back is exact."""
    pl = _polars()
    if isinstance(dtype, pl.Struct):
        return pl.Struct([pl.Field(each.name, _of_lists(each.dtype)) for each in dtype.fields])
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_of_lists(dtype.inner))
    return dtype


def _frame_of(table: Any, node: Any) -> Any:
    """Return the frame of a table; the node alone decides names and types."""
    pl = _polars()
    if not table.num_columns:
        # a frame keeps its height when its last column goes; nulls take no memory
        return pl.DataFrame({"": pl.repeat(None, table.num_rows, dtype=pl.Null, eager=True)}).drop(
            ""
        )
    types = [_type_of(each) for each in node["types"]]
    for each in table.schema:
        _check_arrow_type(each.type)
    if _has_far_dates(table):
        raise ValueError("it has dates beyond the year 262,000")
    # the stream's names count for nothing; two of them may be equal, which polars refuses
    columns = [column.rename(str(at)) for at, column in enumerate(_columns(table))]
    for column, dtype in zip(columns, types, strict=True):
        if not _is_stored_as(_of_lists(dtype) if _is_widthless(dtype) else dtype, column.dtype):
            raise ValueError(f"a column of {dtype} is stored as {column.dtype}")
    casts = [column.cast(dtype) for column, dtype in zip(columns, types, strict=True)]
    frame = pl.DataFrame(casts)
    frame.columns = [str(name) for name in node["names"]]
    return frame


def _is_stored_as(dtype: Any, found: Any) -> bool:
    """Return whether a column of a type is written as the type that is found.

    A cast from any other may take far more memory than the object has bytes: of a category for
    each text, of nulls for numbers.
    """
    pl = _polars()
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return isinstance(found, pl.Categorical)
    if isinstance(dtype, pl.Decimal):
        return isinstance(found, pl.Decimal) and found.scale == dtype.scale
    if isinstance(dtype, pl.Struct):
        return isinstance(found, pl.Struct) and (
            [each.name for each in dtype.fields] == [each.name for each in found.fields]
            and all(
                _is_stored_as(each.dtype, other.dtype)
                for each, other in zip(dtype.fields, found.fields, strict=True)
            )
        )
    if isinstance(dtype, pl.List | pl.Array):
        is_same = type(dtype) is type(found) and (
            isinstance(dtype, pl.List) or dtype.shape[0] == found.shape[0]
        )
        return is_same and _is_stored_as(dtype.inner, found.inner)
    return bool(dtype == found)


def _check_arrow_type(arrow_type: Any) -> None:
    """Look at the types of a column that are handed to polars.

    Raises:
        ValueError: polars is never stored as one, and may panic or take long about it.
    """
    for each in types_in(arrow_type):
        if not any(is_it(each) for is_it in _ARROW_TYPES):
            raise ValueError(f"no column of polars is stored as {each}")
        if pa.types.is_dictionary(each) and not _is_text(each.value_type):
            raise ValueError(f"no column of polars is stored as {each}")
        if pa.types.is_timestamp(each) and len(each.tz or "") > MAX_PARSED:
            raise ValueError("the name of a time zone is too long")


def _has_far_dates(table: Any) -> bool:
    """Return whether polars would panic where it prints a table's dates."""
    return any(_is_far(chunk) for column in table.columns for chunk in column.chunks)


def _is_far(array: Any) -> bool:
    kind = array.type
    if pa.types.is_struct(kind):
        return any(_is_far(array.field(at)) for at in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_far(array.values)
    if pa.types.is_date32(kind):
        most = _MOST_DAYS
    elif pa.types.is_timestamp(kind) and kind.unit in _A_DAY:
        most = _MOST_DAYS * _A_DAY[kind.unit]
    else:
        return False
    numbers = array.view(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    low, high = pc.min_max(numbers).as_py().values()
    return low is not None and not -most <= low <= high <= most


def _is_text(arrow_type: Any) -> bool:
    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


_ARROW_TYPES: tuple[Callable[[Any], bool], ...] = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_date32, pa.types.is_time64, pa.types.is_timestamp, pa.types.is_duration),
    *(pa.types.is_decimal128, pa.types.is_binary, pa.types.is_large_binary, _is_text),
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_struct, pa.types.is_dictionary),
    lambda each: pa.types.is_fixed_size_list(each) and each.list_size > 0,
)


def _columns(table: Any) -> list[Any]:
    return [_polars().from_arrow(column) for column in _bare(table).columns]


def _type_node(dtype: Any) -> JSON:
    """Return the node of a polars type.

    Raises:
        ValueError: it has none.
    """
    name = type(dtype).__name__
    if name in _PLAIN_NAMES:
        return name
    if name in _PARTS:
        return {name: _PARTS[name](dtype)}
    raise ValueError(f"columns of the polars type {dtype} cannot be stored")


_PARTS: dict[str, Any] = {
    "Datetime": lambda dtype: [dtype.time_unit, dtype.time_zone],
    "Duration": lambda dtype: dtype.time_unit,
    "Decimal": lambda dtype: [dtype.precision, dtype.scale],
    "List": lambda dtype: _type_node(dtype.inner),
    "Array": lambda dtype: [_type_node(dtype.inner), dtype.shape[0]],
    "Struct": lambda dtype: [[each.name, _type_node(each.dtype)] for each in dtype.fields],
    "Enum": lambda dtype: dtype.categories.to_list(),
    "Categorical": lambda dtype: _categories_node(dtype),
}


def _categories_node(dtype: Any) -> JSON:
    categories = getattr(dtype, "categories", None)
    if categories is None or categories.is_global():
        return None
    physical = type(categories.physical()) if callable(categories.physical) else None
    width = str(categories.physical()) if physical else "UInt32"
    return [categories.name(), categories.namespace(), width]


def _type_of(node: Any) -> Any:
    """Return the polars type of a node; any exception means damage."""
    pl = _polars()
    if isinstance(node, str):
        # the name comes from our list, so no node can ask for another attribute of polars
        return getattr(pl, _PLAIN_NAMES[_PLAIN_NAMES.index(node)])()
    ((name, parts),) = node.items()
    match name:
        case "List":
            return pl.List(_type_of(parts))
        case "Array":
            return pl.Array(_type_of(parts[0]), int(parts[1]))
        case "Struct":
            return pl.Struct([pl.Field(str(each), _type_of(inner)) for each, inner in parts])
        case "Categorical":
            return _categorical_of(parts)
        case "Duration" | "Enum":
            return getattr(pl, name)(parts)
        case "Datetime":
            unit, zone = parts
            if zone is not None and len(zone) > MAX_PARSED:
                raise ValueError("the name of a time zone is too long")
            return pl.Datetime(unit, zone)
        case "Decimal":
            return pl.Decimal(*parts)
    raise ValueError(f"unknown polars type {name!r}")


def _categorical_of(parts: Any) -> Any:
    pl = _polars()
    if parts is None:
        return pl.Categorical()
    name, namespace, width = parts
    return pl.Categorical(pl.Categories(name, namespace, physical=_type_of(width)))


def _bare(table: Any) -> Any:
    """Return a table without metadata: polars would take types from it."""
    if not table.num_columns:  # made of arrays, it would have no rows either
        return table
    fields = [_bare_field(each) for each in table.schema]
    columns = [
        column if column.type.equals(each.type, check_metadata=True) else column.cast(each.type)
        for column, each in zip(table.columns, fields, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _bare_field(each: Any) -> Any:
    return pa.field(each.name, _bare_type(each.type), nullable=each.nullable)


def _bare_type(arrow_type: Any) -> Any:
    if pa.types.is_struct(arrow_type):
        return pa.struct([_bare_field(arrow_type.field(at)) for at in range(arrow_type.num_fields)])
    if pa.types.is_large_list(arrow_type):
        return pa.large_list(_bare_field(arrow_type.value_field))
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.list_(_bare_field(arrow_type.value_field), arrow_type.list_size)
    return arrow_type


_TAKEN = {"polars.DataFrame", "polars.Series"}

CODECS: tuple[Codec, ...] = (_Frame(), _Series(), _Refused())
