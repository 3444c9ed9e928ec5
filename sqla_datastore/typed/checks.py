"""Whether a value is of an annotated type."""

from __future__ import annotations

import types
import typing
from typing import Any, Protocol, runtime_checkable

import typing_extensions

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.typed.annotations import schema_in
from sqla_datastore.typed.constraints import Constraint, is_dtype

_UNIONS = {typing.Union, types.UnionType}
_ANNOTATED = {typing.Annotated, typing_extensions.Annotated}


@runtime_checkable
class _Nested(Protocol):
    """A `DataStore`, which may be an entry of another one."""

    def _problem_as(self, schema: type) -> str | None: ...


def problem_of(value: Any, annotation: Any) -> str | None:
    """Say why a value is not of a type; None if it is.

    Args:
        value: any.
        annotation: a class, a union, a generic alias, `typing.Annotated` with constraints, and what
            else typeguard knows. Of ``NDArray[np.float64]`` the dtype counts.

    Raises:
        ConfigurationError: typeguard is not installed.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object:
        return None
    if origin in _ANNOTATED:
        wanted = [each for each in arguments[1:] if isinstance(each, Constraint)]
        problems = (each.problem_of(value) for each in wanted)
        return problem_of(value, arguments[0]) or next(filter(None, problems), None)
    if origin in _UNIONS:
        found = [problem_of(value, each) for each in arguments]
        return None if None in found else "; ".join(filter(None, found))
    if isinstance(value, _Nested) and isinstance(origin, type) and isinstance(value, origin):
        schema = schema_in(arguments)
        return None if schema is None else value._problem_as(schema)
    if _is_array(origin):
        return _array_problem(value, origin, arguments)
    if isinstance(annotation, type) and not typing_extensions.is_typeddict(annotation):
        return _class_problem(value, annotation)
    return _generic_problem(value, annotation)


def _class_problem(value: Any, cls: type) -> str | None:
    # an int stands for a float, as type checkers have it
    numbers = {float: (float, int), complex: (complex, float, int)}.get(cls, cls)
    try:
        if isinstance(value, numbers):
            return None
    except TypeError:  # a protocol that is not for the run time
        return _generic_problem(value, cls)
    return f"it is of type {_name(type(value))}, not {_name(cls)}"


def _is_array(origin: Any) -> bool:
    return isinstance(origin, type) and (origin.__module__, origin.__name__) == ("numpy", "ndarray")


def _array_problem(value: Any, origin: Any, arguments: tuple[Any, ...]) -> str | None:
    problem = _class_problem(value, origin)
    wanted = typing.get_args(arguments[1]) if len(arguments) > 1 else ()
    if problem or not wanted or not isinstance(wanted[0], type):
        return problem
    if is_dtype(value.dtype, wanted[0]):
        return None
    return f"its dtype is {value.dtype}, not {wanted[0].__name__}"


def _generic_problem(value: Any, annotation: Any) -> str | None:
    try:
        from typeguard import CollectionCheckStrategy, TypeCheckError, check_type
    except ImportError as err:
        raise ConfigurationError(
            f"to check values of {annotation} needs typeguard; pip install 'sqla_datastore[typed]'"
        ) from err
    try:
        check_type(value, annotation, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as err:
        return str(err)
    return None


def _name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )
