"""What to do with a value that no codec takes."""

from __future__ import annotations

import dataclasses

# base class by library and name -> what to store instead; the first base in the MRO counts
_INSTEAD = {
    "numpy.matrix": "store numpy.asarray(value)",
    "numpy.memmap": "store numpy.asarray(value), which copies nothing",
    "numpy.ndarray": "store numpy.asarray(value)",
    "numpy.MaskedArray": "store numpy.ma.MaskedArray(value), or data and mask",
    "pandas.DataFrame": "store pandas.DataFrame(value) and what the subclass adds",
    "pandas.Series": "store pandas.Series(value) and what the subclass adds",
    "builtins.dict": "store dict(value)",
    "builtins.list": "store list(value)",
    "builtins.set": "store set(value)",
    "builtins.frozenset": "store frozenset(value)",
    "builtins.str": "store str(value)",
    "builtins.bytes": "store bytes(value)",
    "builtins.int": "store int(value)",
    "builtins.float": "store float(value)",
    "datetime.datetime": "store a plain datetime",
    "collections.deque": "store list(value)",
    "pathlib.PurePath": "store str(value)",
    "builtins.memoryview": "store bytes(value)",
    "builtins.generator": "store list(value)",
}


def advice(value: object) -> str:
    """Say why a value is refused and what to store instead.

    Args:
        value: an object for which `find_codec` returned None.

    Returns:
        A clause for an error message, without the value's own text.
    """
    return (
        _advice_by_kind(value)
        or _advice_by_base(type(value))
        or "no codec takes this type; convert it, or register a codec with register_codec"
    )


def _advice_by_kind(value: object) -> str | None:
    cls = type(value)
    if hasattr(cls, "__members__"):
        return f"register the Enum with register_enum({cls.__name__})"
    if isinstance(value, tuple):
        fields = " or value._asdict()" if hasattr(cls, "_fields") else ""
        return f"the type {cls.__name__!r} would be lost; store tuple(value){fields}"
    if dataclasses.is_dataclass(value):
        return "store dataclasses.asdict(value)"
    if callable(value):
        return "code is never stored"
    return None


def _advice_by_base(cls: type) -> str | None:
    for base in cls.__mro__:
        library = base.__module__.partition(".")[0]
        if (instead := _INSTEAD.get(f"{library}.{base.__qualname__}")) is not None:
            return f"the type {cls.__name__!r} would be lost; {instead}"
    return None
