"""What to do with a value that no codec takes.

What stands behind "store" is an expression of `value` that can be stored: a test runs each.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types

from . import find_codec

# base class by library and name -> what to store instead; the first base in the MRO counts
_INSTEAD = {
    "numpy.matrix": "numpy.asarray(value)",
    "numpy.memmap": "numpy.asarray(value), which copies nothing",
    "numpy.ndarray": "numpy.asarray(value)",
    "numpy.MaskedArray": (
        "numpy.ma.array(numpy.asarray(value.data), mask=numpy.asarray(value.mask))"
    ),
    "numpy.ABCPolyBase": "[value.coef, value.domain, value.window]",
    "numpy.poly1d": "value.coef",
    "numpy.Generator": "value.bit_generator.state",
    "numpy.RandomState": "value.get_state()",
    "polars.Schema": "{name: str(dtype) for name, dtype in value.items()}",
    "builtins.dict": "dict(value)",
    "builtins.list": "list(value)",
    "builtins.set": "set(value)",
    "builtins.frozenset": "frozenset(value)",
    "builtins.str": "str(value)",
    "builtins.bytes": "bytes(value)",
    "builtins.bytearray": "bytearray(value)",
    "builtins.int": "int(value)",
    "builtins.float": "float(value)",
    "builtins.complex": "complex(value)",
    "builtins.memoryview": "bytes(value)",
    "builtins.BaseException": "repr(value)",
    "datetime.datetime": "datetime.datetime.combine(value, value.timetz())",
    "datetime.date": "value.isoformat()",
    "datetime.time": "value.isoformat()",
    "datetime.timedelta": "value.total_seconds()",
    "decimal.Decimal": "decimal.Decimal(value)",
    "fractions.Fraction": "fractions.Fraction(value)",
    "uuid.UUID": "str(value)",
    "collections.deque": "list(value)",
    "pathlib.PurePath": "str(value)",
    "array.array": "value.tolist()",
    "re.Pattern": "value.pattern",
    "types.SimpleNamespace": "vars(value)",
    "_io.BytesIO": "value.getvalue()",
    "_io.StringIO": "value.getvalue()",
    "_io._IOBase": "value.read()",
    "geopandas.GeoDataFrame": "geopandas.GeoDataFrame(value) and what the subclass adds",
    "geopandas.GeoSeries": "geopandas.GeoSeries(value) and what the subclass adds",
    "PIL.Image": "value.copy(), which is a PIL.Image.Image",
    "torch.Tensor": "value.detach().as_subclass(torch.Tensor), and what the subclass adds",
    "torch.Module": "value.state_dict()",
    "xarray.DataTree": "value.to_dict()",
    "xarray.DataArray": "xarray.DataArray(value) and what the subclass adds",
    "xarray.Dataset": (
        "xarray.Dataset(value.data_vars, value.coords, value.attrs) and what the subclass adds"
    ),
    "xarray.Variable": "xarray.DataArray(value)",
}
# what any class may offer -> the same
_INSTEAD_BY_INTERFACE: dict[type, str] = {
    collections.abc.Mapping: "dict(value)",
    collections.abc.Set: "set(value)",
    collections.abc.Sequence: "list(value)",
    collections.abc.ValuesView: "list(value)",
    collections.abc.Iterator: "list(value)",
}
_CODE = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType),
)


def advice(value: object) -> str:
    """Say why a value is refused and what to store instead.

    Args:
        value: an object for which `find_codec` returned None.

    Returns:
        A clause for an error message, without the value's own text.
    """
    return (
        _advice_by_kind(value)
        or advice_by_base(type(value))
        or _advice_by_interface(value)
        or f"no codec takes this type; store {_rest(value)}, or register a codec "
        "with register_codec"
    )


def _advice_by_kind(value: object) -> str | None:
    cls = type(value)
    if hasattr(cls, "__members__"):
        return f"register the Enum with register_enum({cls.__name__})"
    if isinstance(value, tuple):
        named = hasattr(cls, "_fields")
        register = f"call register_namedtuple({cls.__name__}), or " if named else ""
        return f"the type {cls.__name__!r} would be lost; {register}store tuple(value)"
    if isinstance(value, _CODE):
        return f"code is never stored; store {_name_of_code(value)}"
    if isinstance(value, functools.partial):
        return "code is never stored; store [value.args, value.keywords]"
    if dataclasses.is_dataclass(cls):
        return "store dataclasses.asdict(value)"
    return None


def _name_of_code(value: object) -> str:
    if isinstance(value, type) and "numpy.generic" in map(_qualified, value.__mro__):
        return "numpy.dtype(value)"
    return "value.__qualname__" if hasattr(value, "__qualname__") else "value.__name__"


def advice_by_base(cls: type) -> str | None:
    """Say what to store instead of what a subclass adds to, None where no base is known."""
    for base in cls.__mro__:
        if (instead := _INSTEAD.get(_qualified(base))) is not None:
            return f"the type {cls.__name__!r} would be lost; store {instead}"
    return None


def _qualified(cls: type) -> str:
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"


def _advice_by_interface(value: object) -> str | None:
    # what has weights, such as a module of torch, gives them as a dict
    if callable(getattr(type(value), "state_dict", None)):
        return "it holds code, which is never stored; store value.state_dict()"
    for interface, instead in _INSTEAD_BY_INTERFACE.items():
        if isinstance(value, interface):
            return f"the type {type(value).__name__!r} would be lost; store {instead}"
    return None


def _rest(value: object) -> str:
    attributes = getattr(value, "__dict__", None)
    if attributes and all(find_codec(each) is not None for each in attributes.values()):
        return "vars(value)"
    return "repr(value)"
