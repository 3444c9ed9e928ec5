"""Frames of geopandas.

================  ==================================================================
``GeoSeries``     a series of pandas, and its coordinate reference system
``GeoDataFrame``  a frame of pandas, the systems, and which column is active
a column          well-known binary (WKB) of Arrow, in little-endian byte order
a system          its authority and code, or PROJJSON
================  ==================================================================

Coordinates in any dimension, identifiers of systems in geometries, empty and missing geometries and
rings are exact. Everything else is as in frames of pandas.

WKB nests, and GEOS follows it by recursion until the process crashes: what contains other
geometries is walked here before.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Iterable
from typing import Any, ClassVar, Final, TypeAlias

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj
import shapely
from geopandas.array import GeometryArray, GeometryDtype
from pyproj.crs.datum import Datum

from ._base import ExactCodec, text_in
from ._budget import Budget
from ._npy import Array
from ._stream import refused_as_damage
from .protocol import JSON, Codec, Decoder, Description, Encoder

Node: TypeAlias = "dict[str, JSON]"

_POINT, _LINE, _RING, _POLYGON = 0, 1, 2, 3
"""Types of shapely; those of WKB are one more, and have no rings."""
_WKB_POINT, _WKB_LINE, _WKB_POLYGON, _WKB_COLLECTION = 1, 2, 3, 7
_MAX_DEPTH: Final = 32
_MAX_EMPTY: Final = 1 << 17
"""Parts without coordinates: four bytes of WKB take some hundred in memory."""
_EMPTY_BYTES: Final = 64
"""Each so many bytes of all geometries back one more of them."""
_RING_BYTES: Final = 64
_CODE: Final = re.compile("[A-Za-z0-9_]{1,32}:[A-Za-z0-9_]{1,32}")
_MAX_SYSTEM: Final = 1 << 16
_MAX_SYSTEMS: Final = 256
_MAX_SYSTEM_DEPTH: Final = 16
_MAX_MEMBERS: Final = 64
_UNKNOWN_MEMBERS: Final = Budget(32)
"""Members of datum ensembles, in all of an entry: PROJ searches all its names for each (5 ms)."""


class _WrongGeometryError(Exception):
    """Geometries that WKB cannot hold, or WKB of none; the text says why."""


class _GeoSeriesCodec(ExactCodec):
    """A column of geometries."""

    name = "geopandas.series"
    mutable = True
    python_types: ClassVar[tuple[type, ...]] = (geopandas.GeoSeries,)
    described = "geopandas.GeoSeries"

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        writer = _ColumnWriter(value, encoder)
        column, about = writer.column(value.array)
        series: Any = pd.Series(column, index=value.index, name=value.name)
        series.attrs = dict(value.attrs)
        series.flags.allows_duplicate_labels = value.flags.allows_duplicate_labels
        return {"series": encoder.encode(series), "shape": [len(value)], **about}

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        with refused_as_damage(decoder, "a GeoSeries"):
            series: Any = decoder.decode(node["series"])
            if type(series) is not pd.Series:
                raise decoder.damaged("a GeoSeries is made of no series")
            array = _read_columns([(series.array, node)], decoder)[0]
            value: Any = geopandas.GeoSeries(array, index=series.index, name=series.name)
            value.attrs = series.attrs
            value.flags.allows_duplicate_labels = series.flags.allows_duplicate_labels
            return value

    def describe(self, node: Any) -> Description:
        return _described(self.described, node)


class _GeoDataFrameCodec(ExactCodec):
    """A frame with any number of columns of geometries."""

    name = "geopandas.frame"
    mutable = True
    python_types: ClassVar[tuple[type, ...]] = (geopandas.GeoDataFrame,)
    described = "geopandas.GeoDataFrame"

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        writer = _ColumnWriter(value, encoder)
        # shares the memory of all other columns
        frame: Any = pd.DataFrame(value, copy=False)
        columns: list[JSON] = []
        for position, dtype in enumerate(value.dtypes):
            if isinstance(dtype, GeometryDtype):
                column, about = writer.column(value.iloc[:, position].array)
                frame.isetitem(position, column)
                columns.append({"position": position, **about})
        frame.attrs = dict(value.attrs)
        frame.flags.allows_duplicate_labels = value.flags.allows_duplicate_labels
        return {
            "frame": encoder.encode(frame),
            "geometries": columns,
            "active": _active(value, encoder),
            "shape": [*value.shape],
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        with refused_as_damage(decoder, "a GeoDataFrame"):
            frame = decoder.decode(node["frame"])
            if type(frame) is not pd.DataFrame:
                raise decoder.damaged("a GeoDataFrame is made of no frame")
            positions = [each["position"] for each in node["geometries"]]
            if not _are_positions(positions, frame.shape[1]):
                raise decoder.damaged("a column of geometries is not there, or is there twice")
            pairs = [
                (frame.iloc[:, position].array, about)
                for position, about in zip(positions, node["geometries"], strict=True)
            ]
            for position, array in zip(positions, _read_columns(pairs, decoder), strict=True):
                frame.isetitem(position, array)
            return _frame_of(frame, node["active"], positions, decoder)

    def describe(self, node: Any) -> Description:
        return _described(self.described, node)


def _described(name: str, node: Any) -> Description:
    shape = node.get("shape") if isinstance(node, dict) else None
    return Description(name, shape=tuple(shape) if isinstance(shape, list) else None)


def _active(value: Any, encoder: Encoder) -> JSON:
    """Return the position of the active column, or a name whose column is not there."""
    # public only where the column is there
    name = value._geometry_column_name
    if name is None or name not in value.columns:
        return {"name": encoder.encode(name, ".active_geometry_name")}
    position = value.columns.get_loc(name)
    if not isinstance(position, int):
        raise encoder.unsupported(value, f"it has several columns {name!r:.40}; rename them")
    return position


def _frame_of(frame: Any, active: Any, positions: list[int], decoder: Decoder) -> Any:
    value = geopandas.GeoDataFrame(frame, copy=False)
    value.attrs = frame.attrs
    value.flags.allows_duplicate_labels = frame.flags.allows_duplicate_labels
    if isinstance(active, dict):
        name = decoder.decode(active["name"])
        hash(name)
    elif type(active) is int and active in positions:
        name = frame.columns[active]
    else:
        raise decoder.damaged("the active column is none of geometries")
    value._geometry_column_name = name
    return value


def _are_positions(positions: list[Any], columns: int) -> bool:
    known = all(type(each) is int and 0 <= each < columns for each in positions)
    return known and len({*positions}) == len(positions)


class _ColumnWriter:
    """Encodes the columns of one value."""

    def __init__(self, value: Any, encoder: Encoder) -> None:
        self._value = value
        self._encoder = encoder
        self._systems: list[tuple[Any, JSON]] = []

    def column(self, array: Any) -> tuple[Any, Node]:
        """Return geometries as WKB, and what that does not tell."""
        geometries = np.asarray(array)
        try:
            _refuse_lossy(geometries)
            wkb = _wkb_of(geometries)
            _check([*wkb])
            about: Node = {"crs": self._system(array.crs)}
        except _WrongGeometryError as err:
            raise self._encoder.unsupported(self._value, str(err)) from None
        if len(rings := np.flatnonzero(shapely.get_type_id(geometries) == _RING)):
            about["rings"] = self._encoder.encode(rings)
        column: Any = pa.array(wkb, pa.large_binary())
        return pd.arrays.ArrowExtensionArray(column), about

    def _system(self, system: Any) -> JSON:
        for other, node in self._systems:
            if other is system:
                return node
        if len(self._systems) == _MAX_SYSTEMS:
            raise _WrongGeometryError("it has too many systems; store value.to_crs(...)")
        self._systems.append((system, _system_node(system, self._encoder)))
        return self._systems[-1][1]


def _wkb_of(geometries: Array) -> Array:
    wkb: Array = shapely.to_wkb(geometries, output_dimension=4, byte_order=1, include_srid=True)
    return wkb


def _refuse_lossy(geometries: Array, inside: bool = False) -> None:
    """Refuse what comes back from WKB as something else."""
    types = shapely.get_type_id(geometries)
    points = geometries[types == _POINT]
    points = points[~shapely.is_empty(points)]
    if (np.isnan(shapely.get_x(points)) & np.isnan(shapely.get_y(points))).any():
        raise _WrongGeometryError("WKB has no point at NaN; store an empty one, shapely.Point()")
    if inside and (types == _RING).any():
        raise _WrongGeometryError("WKB has no rings inside collections; make them LineStrings")
    rings = geometries[types == _RING]
    if hasattr(shapely, "has_m") and shapely.has_m(rings).any():
        raise _WrongGeometryError("WKB has no rings with M; make them LineStrings")
    # collections, of which there are four kinds
    if (many := types > _POLYGON).any():
        _refuse_lossy(shapely.get_parts(geometries[many]), inside=True)


def _system_node(system: Any, encoder: Encoder) -> JSON:
    """Return a system's authority and code, or its PROJJSON."""
    if system is None or _CODE.fullmatch(system.srs):
        return None if system is None else system.srs
    node: JSON = json.loads(system.to_json())
    if (refusal := _refusal_of_system(node, encoder)) is not None:
        raise _WrongGeometryError(f"{refusal}; store value.to_crs(...)")
    if pyproj.CRS.from_json(json.dumps(node)) != system:
        raise _WrongGeometryError("its crs has no PROJJSON; store value.to_crs(...)")
    return {"projjson": node}


def _refusal_of_system(node: JSON, owner: Encoder | Decoder) -> str | None:
    """Return why PROJ is not asked for a system, if it would take too long."""
    if not isinstance(node, dict) or len(json.dumps(node)) > _MAX_SYSTEM:
        return "its crs is none, or too long"
    members: list[JSON] = []
    level: list[JSON] = [node]
    for _ in range(_MAX_SYSTEM_DEPTH):
        level = [*itertools.chain.from_iterable(map(_parts_of_system, level))]
        named = (each.get("members") for each in level if isinstance(each, dict))
        members += itertools.chain.from_iterable(each for each in named if isinstance(each, list))
    if any(isinstance(each, (dict, list)) and each for each in level):
        return "its crs nests too deeply"
    unknown = sum(not _is_known_datum(each) for each in members[: _MAX_MEMBERS + 1])
    if len(members) > _MAX_MEMBERS or not _UNKNOWN_MEMBERS.takes(owner, unknown):
        return "its crs has too many members"
    return None


def _parts_of_system(node: JSON) -> Iterable[JSON]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _is_known_datum(member: JSON) -> bool:
    """Return whether PROJ finds a member by its code, and need not search for its name."""
    try:
        about: Any = member
        Datum.from_authority(about["id"]["authority"], about["id"]["code"])
    except Exception:  # whatever PROJ raises about an identifier that is none
        return False
    return True


def _system_of(node: Any, decoder: Decoder) -> Any:
    # PROJ takes far more than these for a system, names of files among them
    if node is None:
        return None
    if isinstance(node, dict):
        if (refusal := _refusal_of_system(node["projjson"], decoder)) is not None:
            raise decoder.damaged(refusal)
        return pyproj.CRS.from_json(json.dumps(node["projjson"]))
    if not _CODE.fullmatch(text_in(node, decoder)):
        raise decoder.damaged("a coordinate reference system is no authority and code")
    return pyproj.CRS.from_user_input(node)


def _systems_of(nodes: list[Any], decoder: Decoder) -> dict[str, Any]:
    """Return the systems of columns by the text of their nodes; equal ones are made once."""
    different = {json.dumps(node): node for node in nodes}
    if len(different) > _MAX_SYSTEMS:
        raise decoder.damaged("it has too many coordinate reference systems")
    return {text: _system_of(node, decoder) for text, node in different.items()}


def _read_columns(columns: list[tuple[Any, Any]], decoder: Decoder) -> list[Any]:
    """Return the arrays of columns of WKB, with what their nodes tell of them."""
    values = [_bytes_of(column, decoder) for column, _ in columns]
    try:
        _check([each for value in values for each in value])
    except _WrongGeometryError as err:
        raise decoder.damaged(str(err)) from None
    nodes = [about for _, about in columns]
    systems = _systems_of([about["crs"] for about in nodes], decoder)
    return [_array_of(*pair, systems, decoder) for pair in zip(values, nodes, strict=True)]


def _bytes_of(column: Any, decoder: Decoder) -> Array:
    if column.dtype != pd.ArrowDtype(pa.large_binary()):
        raise decoder.damaged("a column of geometries is no WKB")
    values: Array = column.to_numpy(dtype=object, na_value=None)
    return values


def _array_of(wkb: Array, about: Any, systems: dict[str, Any], decoder: Decoder) -> Any:
    geometries = shapely.from_wkb(wkb)
    if "rings" in about:
        positions = decoder.decode(about["rings"])
        if type(positions) is not np.ndarray or positions.ndim != 1 or positions.dtype.kind != "i":
            raise decoder.damaged("positions of rings are none")
        _make_rings(geometries, positions, decoder)
    return GeometryArray(geometries, crs=systems[json.dumps(about["crs"])])


def _make_rings(geometries: Array, positions: Array, decoder: Decoder) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < len(geometries):
        raise decoder.damaged("a ring is not there")
    lines = geometries[positions]
    if (shapely.get_type_id(lines) != _LINE).any():
        raise decoder.damaged("a ring is no line")
    rings = [shapely.LinearRing(line.coords) for line in lines]
    geometries[positions] = shapely.set_srid(rings, shapely.get_srid(lines)) if rings else rings


# -- WKB -------------------------------------------------------------------------------------------


def _check(values: list[Any]) -> None:
    """Refuse WKB that would take the process down, or memory out of proportion to its bytes.

    Raises:
        _WrongGeometryError: it nests too deeply, has too many empty parts, or is none.
    """
    heads = {head: _head(head, 0)[1] for head in {each[:5] for each in values if each is not None}}
    # points and lines have no parts, and GEOS compares their counts with their bytes
    walked = {head for head, kind in heads.items() if kind >= _WKB_POLYGON}
    empty = 0
    for each in values if walked else ():
        if each is not None and (head := each[:5]) in walked:
            is_usual = heads[head] == _WKB_POLYGON and _has_usual_rings(each)
            empty += 0 if is_usual else _empty_parts(each)
    backed = sum(len(each) for each in values if each is not None) // _EMPTY_BYTES
    if empty > _MAX_EMPTY + backed:
        raise _WrongGeometryError("it has too many empty parts; remove them")


def _has_usual_rings(wkb: bytes) -> bool:
    """Return whether a polygon has rings, which take memory in proportion to its bytes."""
    order, _, _, at = _head(wkb, 0)
    rings, _ = _count(wkb, order, at)
    return 0 < rings * _RING_BYTES <= len(wkb)


def _head(wkb: bytes, at: int) -> tuple[str, int, int, int]:
    """Return a geometry's byte order, type, dimensions, and where its content begins."""
    if len(wkb) < at + 5 or wkb[at] > 1:
        raise _WrongGeometryError("a geometry is no WKB")
    order = "<" if wkb[at] == 1 else ">"
    (number,) = struct.unpack_from(f"{order}I", wkb, at + 1)
    dimensions = 2 + bool(number & 0x80000000) + bool(number & 0x40000000)
    kind = number & 0x1FFFFFFF
    if not _WKB_POINT <= kind <= _WKB_COLLECTION:
        raise _WrongGeometryError("a geometry is of no type that is stored")
    return order, kind, dimensions, at + (9 if number & 0x20000000 else 5)


def _empty_parts(wkb: bytes) -> int:
    """Return how many parts of a geometry have no coordinates.

    Raises:
        _WrongGeometryError: it nests too deeply, or ends too early.
    """
    empty, at = 0, 0
    todo = [1]  # how many geometries are to come, in each that is open
    while todo:
        if not todo[-1]:
            todo.pop()
            continue
        todo[-1] -= 1
        order, kind, dimensions, at = _head(wkb, at)
        point = 8 * dimensions
        if kind == _WKB_POINT:
            at += point
            continue
        count, at = _count(wkb, order, at)
        empty += not count
        if kind == _WKB_LINE:
            at += count * point
        elif kind == _WKB_POLYGON:
            for _ in range(count):
                points, at = _count(wkb, order, at)
                at += points * point
                empty += not points
        elif len(todo) > _MAX_DEPTH:
            raise _WrongGeometryError(f"collections nest deeper than {_MAX_DEPTH}; flatten them")
        else:
            todo.append(count)
    return empty


def _count(wkb: bytes, order: str, at: int) -> tuple[int, int]:
    if len(wkb) < at + 4:
        raise _WrongGeometryError("a geometry ends too early")
    (count,) = struct.unpack_from(f"{order}I", wkb, at)
    return count, at + 4


CODECS: tuple[Codec, ...] = (_GeoSeriesCodec(), _GeoDataFrameCodec())
