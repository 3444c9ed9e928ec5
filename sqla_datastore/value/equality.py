"""Equality by content, for values whose ``==`` answers element by element or denies NaN.

Nothing is imported for it: a value of a library can only be there when the library is.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any


def equal(a: Any, b: Any) -> bool:
    """Return whether two values hold the same content.

    Like ``==``, with these differences: NaN equals NaN; arrays are equal when dtype, shape and
    elements are; frames, series and indexes when dtypes, labels, names and elements are; Arrow
    tables when schemas and elements are; other libraries' values likewise. Containers are compared
    by the same rule.

    Args:
        a: any value.
        b: any value.

    Returns:
        True or False, never an array.
    """
    if a is b:
        return True
    if isinstance(a, (list, tuple, deque)) and isinstance(b, (list, tuple, deque)):
        return type(a) is type(b) and _sequences_equal(a, b)
    # before mappings: those of libraries, such as a Dataset, are more than names and values
    libraries = _libraries(a) | _libraries(b)
    for module, rule in _RULES.items():
        if module in libraries:
            return rule(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return _mappings_equal(a, b)
    return _plain_equal(a, b)


def _mappings_equal(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    if isinstance(a, OrderedDict) and isinstance(b, OrderedDict) and list(a) != list(b):
        return False
    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


def _sequences_equal(a: Collection[Any], b: Collection[Any]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def _plain_equal(a: Any, b: Any) -> bool:
    if a == b:
        return True
    # a float or Decimal NaN: the only plain values that differ from themselves
    return bool(type(a) is type(b) and a != a and b != b)


def _is_same_plain(a: Any, b: Any) -> bool:
    return type(a) is type(b) and _plain_equal(a, b)


def _libraries(value: Any) -> set[str]:
    return {base.__module__.partition(".")[0] for base in type(value).__mro__}


def _numpy_equal(a: Any, b: Any) -> bool:
    np = sys.modules["numpy"]
    kinds = (np.ndarray, np.generic)
    if not (isinstance(a, kinds) and isinstance(b, kinds)):
        neither_is_an_array = not (isinstance(a, np.ndarray) or isinstance(b, np.ndarray))
        return neither_is_an_array and _plain_equal(a, b)
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, np.ma.MaskedArray):
        return _masked_equal(a, b)
    return _elements_equal(np.asarray(a), np.asarray(b))


def _masked_equal(a: Any, b: Any) -> bool:
    np = sys.modules["numpy"]
    mask_a, mask_b = np.ma.getmaskarray(a), np.ma.getmaskarray(b)
    if mask_a.tobytes() != mask_b.tobytes():
        return False
    # filling would need a value that fits, and have NumPy make one up and keep it
    return _elements_equal(np.asarray(a.data), np.asarray(b.data), mask_a)


def _elements_equal(a: Any, b: Any, masked: Any = None) -> bool:
    np = sys.modules["numpy"]
    if a.dtype.names is not None:
        return all(
            _elements_equal(a[name], b[name], None if masked is None else masked[name])
            for name in a.dtype.names
        )
    if not a.dtype.itemsize:  # a selection of such items has a byte that nobody has set
        return True
    if masked is not None:
        a, b = a[~masked], b[~masked]
    if a.dtype.kind == "O":
        return all(map(equal, a.ravel(), b.ravel()))
    if a.dtype.type is np.void:
        return bool(a.tobytes() == b.tobytes())
    same = a == b
    if a.dtype.kind in "fcmMT":
        same |= (a != a) & (b != b)
    return bool(np.all(same))


def _pandas_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if not hasattr(a, "equals"):
        return a is b if a.__class__.__name__ in ("NAType", "NaTType") else _plain_equal(a, b)
    return bool(a.equals(b)) and _labels(a) == _labels(b)


def _sparse_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or not hasattr(a, "tocoo"):
        return _is_same_plain(a, b)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    a, b = (each.tocoo(copy=True) for each in (a, b))
    for each in (a, b):
        each.sum_duplicates()
    return _sequences_equal((a.data, *a.coords), (b.data, *b.coords))


def _xarray_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or not hasattr(a, "identical"):
        return _is_same_plain(a, b)
    return _dtypes(a) == _dtypes(b) and bool(a.identical(b))


def _dtypes(value: Any) -> object:
    variables = getattr(value, "variables", None) or value.coords.variables
    return getattr(value, "dtype", None), {name: each.dtype for name, each in variables.items()}


def _torch_equal(a: Any, b: Any) -> bool:
    torch = sys.modules["torch"]
    if type(a) is not type(b) or not isinstance(a, torch.Tensor):
        return _is_same_plain(a, b)
    kinds = [(each.dtype, each.shape, each.device, each.requires_grad) for each in (a, b)]
    if kinds[0] != kinds[1]:
        return False
    a, b = a.detach(), b.detach()
    if not a.is_floating_point() and not a.is_complex():
        return bool(torch.equal(a, b))
    if a.itemsize == 1 or a.dtype == torch.complex32:  # those have no ==
        return bool(torch.equal(*(each.contiguous().view(torch.uint8) for each in (a, b))))
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _labels(value: Any) -> list[object]:
    """What ``equals`` of pandas passes over: dtypes, names and attrs."""
    axes = getattr(value, "axes", ())
    is_frame = hasattr(value, "columns")
    # a frame has no name; what looks like it would be a column
    names = None if is_frame else list(getattr(value, "names", ())) or getattr(value, "name", None)
    return [
        type(value),
        list(value.dtypes) if is_frame else getattr(value, "dtype", None),
        names,
        [(type(axis), axis.dtype, list(axis.names)) for axis in axes],
        getattr(value, "attrs", None),
        _geography(value),
    ]


def _geography(value: Any) -> list[object] | None:
    """What geopandas adds to a series or frame."""
    if "geopandas" not in _libraries(value):
        return None
    arrays = [value.array] if value.ndim == 1 else [each.array for _, each in value.items()]
    name = getattr(value, "_geometry_column_name", None)
    return [name, *(getattr(array, "crs", None) for array in arrays)]


def _arrow_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if a.equals(b):
        return True
    # Arrow says that NaN differs from NaN; only floating columns are worth a second look
    if hasattr(a, "columns") and hasattr(a, "schema"):
        return bool(a.schema.equals(b.schema)) and _sequences_equal(a.columns, b.columns)
    if not hasattr(a, "to_pylist") or a.type != b.type or not _holds_floats(str(a.type)):
        return False
    return equal(a.to_pylist(), b.to_pylist())


def _holds_floats(name: str) -> bool:
    return any(word in name for word in ("float", "double"))


def _polars_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or not hasattr(a, "equals"):
        return False
    types = [
        list(value.schema.items()) if hasattr(value, "schema") else (value.name, value.dtype)
        for value in (a, b)
    ]
    return types[0] == types[1] and bool(a.equals(b, null_equal=True))


_RULES: dict[str, Callable[[Any, Any], bool]] = {
    "pandas": _pandas_equal,
    "pyarrow": _arrow_equal,
    "polars": _polars_equal,
    "scipy": _sparse_equal,
    "xarray": _xarray_equal,
    "torch": _torch_equal,
    "numpy": _numpy_equal,
}
