"""Labelled arrays of xarray.

=============  ===================================================================
``DataArray``  name, one variable, coordinates and their indexes
``Dataset``    variables, coordinates and their indexes, attributes
a variable     dimensions, attributes, and an array of NumPy or pandas
an index       an index of pandas, or an array of fixed-width text
=============  ===================================================================

Names are whatever can be stored. Numbers come back as read-only views of the object's memory.
``encoding``, which says how a file of another format was written, is not kept. Refused: chunked
arrays and those of other libraries, and indexes of kinds other than xarray's default ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from ._base import ExactCodec, field
from ._dtypes import RefusedDtypeError, dtype_node, read_dtype, read_shape
from ._pandas_arrays import is_claimed
from ._stream import refused_as_damage
from .protocol import JSON, Codec, Decoder, Description, Encoder

Node: TypeAlias = "dict[str, JSON]"

_MAX_ITEM: Final = 64
_MAX_TEXTS: Final = 1 << 26
"""Levels are stored once, and shown as arrays in which each item takes the width of the widest."""


class _DataArrayCodec(ExactCodec):
    """One variable with coordinates."""

    name = "xarray.data_array"
    mutable = True
    python_types: ClassVar[tuple[type, ...]] = (xr.DataArray,)
    described = "xarray.DataArray"

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        variables = _VariableWriter(value, encoder)
        return {
            "name": encoder.encode(value.name, ".name"),
            "dtype": str(value.dtype),
            "shape": [*value.shape],
            "variable": variables.node(value.variable, ""),
            **variables.coordinates(value.size),
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        with refused_as_damage(decoder, "a DataArray"):
            variable = _read_variable(node["variable"], decoder)
            coordinates = _read_coordinates(node, variable.size, decoder)
            return xr.DataArray(variable, coords=coordinates, name=decoder.decode(node["name"]))

    def describe(self, node: Any) -> Description:
        about = node if isinstance(node, dict) else {}
        dtype, shape = about.get("dtype"), about.get("shape")
        return Description(
            self.described,
            dtype if isinstance(dtype, str) else None,
            tuple(shape) if isinstance(shape, list) else None,
        )


class _DatasetCodec(ExactCodec):
    """Variables that share dimensions and coordinates."""

    name = "xarray.dataset"
    mutable = True
    python_types: ClassVar[tuple[type, ...]] = (xr.Dataset,)
    described = "xarray.Dataset"

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        variables = _VariableWriter(value, encoder)
        data = {name: each.variable for name, each in value.data_vars.items()}
        return {
            "attrs": encoder.encode(dict(value.attrs), ".attrs"),
            "data": variables.named(data),
            **variables.coordinates(sum(each.size for each in data.values())),
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        with refused_as_damage(decoder, "a Dataset"):
            data = _read_named(node["data"], decoder)
            items = sum(each.size for each in data.values())
            coordinates = _read_coordinates(node, items, decoder)
            attrs = _attrs(node["attrs"], decoder)
            return xr.Dataset(data, coords=coordinates, attrs=attrs)


class _VariableWriter:
    """Encodes the variables of one value."""

    def __init__(self, value: Any, encoder: Encoder) -> None:
        self._value = value
        self._encoder = encoder

    def named(self, variables: Mapping[Any, Any]) -> list[JSON]:
        """Return pairs of names and variables."""
        return [
            [self._encoder.encode(name, ".name"), self.node(variable, f"[{name!r:.40}]")]
            for name, variable in variables.items()
        ]

    def node(self, variable: Any, where: str) -> Node:
        """Return the node of a variable."""
        return self._bare(variable) | {"values": self._values(variable, where)}

    def coordinates(self, items: int) -> Node:
        """Return the nodes of coordinates, and of the indexes that make some of them.

        Args:
            items: how many items the value stores beside them.
        """
        coordinates = self._value.coords.variables
        groups = self._value.xindexes.group_by_index()
        indexed = {name for _, names in groups for name in names}
        plain = {name: each for name, each in coordinates.items() if name not in indexed}
        items += sum(each.size for each in plain.values())
        return {
            "order": [self._encoder.encode(name, ".coords") for name in coordinates],
            "coords": self.named(plain),
            "indexes": [self._index(index, names, items) for index, names in groups],
        }

    def _bare(self, variable: Any) -> Node:
        if len({*variable.dims}) != len(variable.dims):
            raise self._refused(
                f"dimensions {variable.dims!r:.80} are no names of one; rename them"
            )
        return {
            "dims": [self._encoder.encode(name, ".dims") for name in variable.dims],
            "attrs": self._encoder.encode(dict(variable.attrs), ".attrs"),
        }

    def _values(self, variable: Any, where: str) -> JSON:
        if variable.chunks is not None:
            raise self._refused("it is chunked, so not computed; store value.compute()")
        data = variable.data
        if type(data) is np.ndarray and data.dtype.hasobject and data.dtype.kind == "O":
            items = pd.Series(data.reshape(-1), dtype=object, copy=False)
            return {"objects": self._encoder.encode(items, where), "shape": [*data.shape]}
        if type(data) is np.ndarray or isinstance(data, pd.api.extensions.ExtensionArray):
            return {"array": self._encoder.encode(data, where)}
        kind = f"{type(data).__module__.partition('.')[0]}.{type(data).__qualname__}"
        raise self._refused(f"{where or 'it'} holds a {kind}; store value.as_numpy()")

    def _index(self, index: Any, variables: Mapping[Any, Any], items: int) -> Node:
        if type(index) not in (xr.indexes.PandasIndex, xr.indexes.PandasMultiIndex):
            names = [*variables]
            kind = type(index).__qualname__
            raise self._refused(f"a {kind} indexes it; store value.drop_indexes({names!r:.80})")
        if is_claimed(index.index, items):
            raise self._refused(
                f"its index over {index.dim!r:.40} is longer than what is stored of it; "
                "drop it with value.drop_vars"
            )
        attrs = [dict(each.attrs) for each in variables.values()]
        return {
            "dim": self._encoder.encode(index.dim, ".dims"),
            "names": [self._encoder.encode(name, ".name") for name in variables],
            "attrs": [self._encoder.encode(each, ".attrs") for each in attrs],
            **(
                self._levels(index)
                if type(index) is xr.indexes.PandasMultiIndex
                else self._labels(index)
            ),
        }

    def _labels(self, index: Any) -> Node:
        where = f".coords[{index.dim!r:.40}]"
        dtype = index.coord_dtype
        if isinstance(dtype, np.dtype) and dtype.kind in "SU":
            # what has a width is stored with it, so that no width is claimed
            texts = self._encoder.encode(np.asarray(index.index, dtype), where)
            return {"array": texts, "of_objects": index.index.dtype == object}
        return {"index": self._encoder.encode(index.index, where), "dtype": self._dtype(dtype)}

    def _levels(self, index: Any) -> Node:
        dtypes = [index.level_coords_dtype[name] for name in index.index.names]
        for dtype in dtypes:
            if _is_too_wide(dtype, len(index.index)):
                raise self._refused(
                    f"the texts of a level over {index.dim!r:.40} are too long; "
                    f"store value.reset_index({index.dim!r:.40})"
                )
        where = f".coords[{index.dim!r:.40}]"
        return {
            "levels": self._encoder.encode(index.index, where),
            "dtypes": [self._dtype(dtype) for dtype in dtypes],
        }

    def _dtype(self, dtype: Any) -> JSON:
        """Return the node of the dtype that a coordinate shows; null for what its index tells."""
        if not isinstance(dtype, np.dtype) or dtype.kind == "O":
            return None
        try:
            return dtype_node(dtype)
        except RefusedDtypeError as err:
            raise self._refused(str(err)) from None

    def _refused(self, reason: str) -> Exception:
        return self._encoder.unsupported(self._value, reason)


def _is_too_wide(dtype: Any, items: int) -> bool:
    return isinstance(dtype, np.dtype) and _MAX_TEXTS < items * dtype.itemsize > _MAX_ITEM * items


def _read_named(nodes: Any, decoder: Decoder) -> dict[Any, Any]:
    pairs = [(decoder.decode(name), _read_variable(node, decoder)) for name, node in nodes]
    return _distinct(pairs, decoder)


def _distinct(pairs: Iterable[tuple[Any, Any]], decoder: Decoder) -> dict[Any, Any]:
    pairs = [*pairs]
    named = dict(pairs)
    if len(named) != len(pairs):
        raise decoder.damaged("a variable is there twice")
    return named


def _read_variable(node: Any, decoder: Decoder) -> Any:
    dims = [decoder.decode(name) for name in field(node, "dims", decoder)]
    values = _read_values(field(node, "values", decoder), decoder)
    if not values.ndim == len(dims) == len({*dims}):  # two of one name only cause a warning
        raise decoder.damaged("a variable has not as many dimensions as its values")
    return xr.Variable(dims, values, _attrs(node["attrs"], decoder))


def _read_values(node: Any, decoder: Decoder) -> Any:
    if "objects" in node:
        items = decoder.decode(node["objects"])
        if type(items) is not pd.Series or items.dtype != object:
            raise decoder.damaged("objects are no series of objects")
        return items.to_numpy().reshape(read_shape(node["shape"], decoder))
    values = decoder.decode(node["array"])
    if type(values) is np.ndarray or isinstance(values, pd.api.extensions.ExtensionArray):
        return values
    raise decoder.damaged("a variable's values are no array")


def _read_coordinates(node: Any, items: int, decoder: Decoder) -> Any:
    """Return coordinates with their indexes, in their order."""
    variables = _read_named(node["coords"], decoder)
    items += sum(each.size for each in variables.values())
    indexes: list[tuple[Any, Any]] = []
    pairs = [*variables.items()]
    for each in node["indexes"]:
        index = _read_index(each, items, decoder)
        made = _variables_of(index, each, decoder)
        pairs += made.items()
        indexes += [(name, index) for name in made]
    found = _distinct(pairs, decoder)
    order = [decoder.decode(name) for name in node["order"]]
    if len(order) != len(found) or {*order} != {*found}:
        raise decoder.damaged("the order of coordinates has not the names that there are")
    return xr.Coordinates({name: found[name] for name in order}, _distinct(indexes, decoder))


def _read_index(node: Any, items: int, decoder: Decoder) -> Any:
    dim = decoder.decode(node["dim"])
    if "array" in node:
        array = decoder.decode(node["array"])
        if type(array) is not np.ndarray or array.ndim != 1 or array.dtype.kind not in "SU":
            raise decoder.damaged("labels of fixed width are no array of texts")
        labels = array.astype(object)
        # pandas has a type of its own for texts since version 3
        index = (
            pd.Index(labels, dtype=object)
            if node["of_objects"] is True
            else pd.Index(labels, dtype="str")
        )
        return xr.indexes.PandasIndex(index, dim, coord_dtype=array.dtype)
    index = decoder.decode(node["levels" if "levels" in node else "index"])
    if not isinstance(index, pd.Index) or is_claimed(index, items):
        raise decoder.damaged("an index is none, or longer than what is stored of it")
    if "levels" not in node:
        dtype = _read_dtype(node["dtype"], decoder)
        if dtype is not None and dtype.kind not in "biufcmM":
            raise decoder.damaged("an index of numbers has another dtype")
        return xr.indexes.PandasIndex(index, dim, coord_dtype=dtype)
    if type(index) is not pd.MultiIndex:
        raise decoder.damaged("levels are no index of levels")
    dtypes = [_read_dtype(each, decoder) for each in node["dtypes"]]
    named = dict(zip(index.names, dtypes, strict=True))
    if any(_is_too_wide(dtype, len(index)) for dtype in dtypes):
        raise decoder.damaged("the texts of a level are too long")
    found = xr.indexes.PandasMultiIndex(index, dim)
    dtypes_found = {name: named[name] or own for name, own in found.level_coords_dtype.items()}
    return xr.indexes.PandasMultiIndex(index, dim, level_coords_dtype=dtypes_found)


def _read_dtype(node: Any, decoder: Decoder) -> Any:
    return None if node is None else read_dtype(node, decoder)


def _variables_of(index: Any, node: Any, decoder: Decoder) -> dict[Any, Any]:
    """Return the variables that an index makes, with the attributes of its node."""
    made = index.create_variables()
    names = [decoder.decode(name) for name in node["names"]]
    if len(names) != len(made) or {*names} != {*made}:
        raise decoder.damaged("an index makes other coordinates")
    for name, attrs in zip(names, node["attrs"], strict=True):
        made[name].attrs = _attrs(attrs, decoder)
    return {name: made[name] for name in names}


def _attrs(node: Any, decoder: Decoder) -> dict[Any, Any]:
    attrs = decoder.decode(node)
    if type(attrs) is dict:
        return attrs
    raise decoder.damaged("attributes are no dict")


CODECS: tuple[Codec, ...] = (_DataArrayCodec(), _DatasetCodec())
