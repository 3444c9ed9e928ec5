"""What `typing.Annotated` says of an entry beyond its type: dtype, shape, columns, size."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Constraint(Protocol):
    """What may stand in `typing.Annotated` beside a type; other metadata there is passed over."""

    def problem_of(self, value: Any) -> str | None:
        """Say what is wrong with a value of that type; None if nothing is."""


class Dtype:
    """The dtype of an array, a Series or an Index.

    Args:
        *names: those that are right, as NumPy or pandas name them: ``"float64"``, ``"category"``.
            An abstract class of NumPy stands for those below it: ``np.floating``.
    """

    def __init__(self, *names: Any) -> None:
        self.names = names

    def __repr__(self) -> str:
        return f"Dtype({', '.join(map(repr, self.names))})"

    def problem_of(self, value: Any) -> str | None:
        """See `Constraint.problem_of`."""
        dtype = getattr(value, "dtype", None)
        if any(is_dtype(dtype, name) for name in self.names):
            return None
        return f"its dtype is {dtype}, not {_listed(self.names)}"


class Shape:
    """The shape of an array.

    Args:
        *lengths: of its dimensions in their order; None stands for any length.
    """

    def __init__(self, *lengths: int | None) -> None:
        self.lengths = lengths

    def __repr__(self) -> str:
        return f"Shape({', '.join(map(repr, self.lengths))})"

    def problem_of(self, value: Any) -> str | None:
        """See `Constraint.problem_of`."""
        shape: Any = getattr(value, "shape", None)
        if isinstance(shape, tuple) and len(shape) == len(self.lengths):
            pairs = zip(self.lengths, shape, strict=True)
            if all(wanted in (None, length) for wanted, length in pairs):
                return None
        return f"its shape is {shape}, not {self.lengths}"


class Columns:
    """The columns of a pandas or polars frame, or of an Arrow table; it may have others too.

    Args:
        *names: columns of any type.
        **dtypes: columns with the type that they have, as `Dtype` takes it or as ``str(dtype)``
            says.
    """

    def __init__(self, *names: str, **dtypes: Any) -> None:
        self.dtypes: dict[str, Any] = {**dict.fromkeys(names), **dtypes}

    def __repr__(self) -> str:
        return f"Columns({', '.join(f'{name}={dtype!r}' for name, dtype in self.dtypes.items())})"

    def problem_of(self, value: Any) -> str | None:
        """See `Constraint.problem_of`."""
        found = _column_types(value)
        missing = [name for name in self.dtypes if name not in found]
        if missing:
            return f"it has no column {_listed(missing)}, but {_listed(list(found)[:20])}"
        for name, dtype in self.dtypes.items():
            if dtype is not None and not is_dtype(found[name], dtype):
                return f"its column {name!r} is of {found[name]}, not {dtype}"
        return None


class MaxBytes:
    """How much memory a value takes at most.

    Args:
        nbytes: as the value's own ``nbytes`` says, or its length for text and bytes; that of a
            frame is the sum over its columns and index, without the texts that objects refer to.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __repr__(self) -> str:
        return f"MaxBytes({self.nbytes})"

    def problem_of(self, value: Any) -> str | None:
        """See `Constraint.problem_of`."""
        nbytes = _nbytes(value)
        if nbytes is None:
            return f"a {type(value).__name__} does not tell its size, so MaxBytes cannot be checked"
        return (
            f"it takes {nbytes} bytes, not at most {self.nbytes}" * (nbytes > self.nbytes) or None
        )


def is_dtype(dtype: Any, wanted: Any) -> bool:
    """Return whether a dtype is the one that is wanted, or below it.

    Args:
        dtype: of NumPy, pandas, polars or Arrow, or None.
        wanted: one of these, its name, or a class of NumPy's scalars.
    """
    import numpy as np

    if isinstance(wanted, type) and issubclass(wanted, np.generic):
        return isinstance(dtype, np.dtype) and np.issubdtype(dtype, wanted)
    # each library compares its dtypes to names in ways of its own, and some raise for unknown ones
    try:
        return dtype is not None and bool(dtype == wanted or str(dtype) == str(wanted))
    except TypeError:
        return False


def _column_types(value: Any) -> dict[str, Any]:
    schema = getattr(value, "schema", None)
    if schema is not None and hasattr(schema, "types"):  # Arrow
        return dict(zip(schema.names, schema.types, strict=True))
    types = getattr(value, "dtypes", ())
    return dict(zip(getattr(value, "columns", ()), types, strict=True))


def _nbytes(value: Any) -> int | None:
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    usage = getattr(value, "memory_usage", None)
    if usage is not None and hasattr(value, "columns"):
        return int(usage(deep=False).sum())
    found = getattr(value, "nbytes", None)
    if found is None and hasattr(value, "estimated_size"):
        return int(value.estimated_size())
    return None if found is None else int(found)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) if isinstance(name, str) else str(name) for name in names)
