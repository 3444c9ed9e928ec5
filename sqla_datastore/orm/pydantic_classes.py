"""Mapped classes that are pydantic models, too, as those of SQLModel are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqla_datastore.value.datastore import DataStore


def is_pydantic(class_: type) -> bool:
    """Return whether a class is a model of pydantic 2; imports nothing."""
    return hasattr(class_, "__pydantic_validator__")


def coerce_first(class_: type, keys: Collection[str]) -> None:
    """Have a mapped class make a value of what is assigned, before anybody else sees it.

    SQLModel tells SQLAlchemy of an assignment, whose listeners make a value of a mapping. Then
    pydantic puts what was assigned over it, so that the attribute would be a dict until the flush.

    Args:
        class_: a mapped class, not used yet.
        keys: its attributes of this library's type.
    """
    assign: Any = class_.__setattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        assign(self, name, DataStore.coerce(name, value) if name in keys else value)

    # not by `setattr`, which the metaclasses of SQLModel and SQLAlchemy watch
    type.__setattr__(class_, "__setattr__", __setattr__)
