"""The schema that a mapped class names in an annotation: ``Mapped[DataStore[Features]]``."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Mapped, declared_attr

_UNIONS = {typing.Union, types.UnionType}


def annotated_schema(cls: type, key: str) -> type | None:
    """Return the class between the brackets of a mapped attribute's annotation.

    Args:
        cls: the mapped class.
        key: the attribute, which holds a value.

    Returns:
        The class; None where the annotation says none, or cannot be evaluated: SQLAlchemy refuses
        these where it needs them.
    """
    for base in cls.__mro__:
        annotation = _annotations(base).get(key) or _declared(vars(base).get(key))
        if annotation is not None:
            return _parameter(annotation, base)
    return None


def _annotations(base: Any) -> dict[str, Any]:
    try:
        return inspect.get_annotations(base)
    except NameError:  # from Python 3.14 on they are evaluated only now
        return {}


def _declared(attribute: Any) -> Any:
    """Return the annotation of what a mixin declares by a function; None for anything else."""
    if not isinstance(attribute, declared_attr):
        return None
    return _annotations(attribute.fget).get("return")


def _parameter(annotation: Any, base: type) -> type | None:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            module = vars(sys.modules[base.__module__])
            annotation = eval(annotation, module, dict(vars(base)))  # noqa: S307 - as typing does
        except (NameError, AttributeError, TypeError, SyntaxError):
            return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapped):
        return _parameter(arguments[0], base)
    if origin in _UNIONS:
        return _first(_parameter(each, base) for each in arguments)
    # what is left is `DataStore[Schema]`, as the column holds such values
    if origin is typing.Annotated:
        return _parameter(arguments[0], base)
    return schema_in(arguments)


def schema_in(arguments: tuple[Any, ...]) -> type | None:
    """Return the class between the brackets of ``DataStore[…]``; None for `Any`, and for none."""
    given = arguments[0] if arguments else None
    # a generic class says which entries there are, whatever its parameters
    given = typing.get_origin(given) or given
    # from Python 3.11 on `Any` is a class
    return given if isinstance(given, type) and given is not Any else None


def _first(found: Iterable[type | None]) -> type | None:
    return next(filter(None, found), None)
