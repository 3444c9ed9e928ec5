"""Classes of the user's that objects name: by a registered name, never by an import path."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type[Any])


class RegisteredClasses:
    """The classes of one kind by name, for the whole process.

    Args:
        kind: what they are, for messages, for example ``Enum``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._classes: dict[str, type[Any]] = {}
        self._names: dict[type[Any], str] = {}

    def add(self, cls: _Class, name: str | None) -> _Class:
        """Register a class, by default under its qualified name, and return it.

        Raises:
            ValueError: the name is taken by another class, or the class has another name.
        """
        name = cls.__qualname__ if name is None else name
        with self._lock:
            if self._classes.get(name, cls) is not cls:
                raise ValueError(f"{self._kind} name {name!r} is taken; pass another name=")
            if self._names.get(cls, name) != name:
                known = self._names[cls]
                raise ValueError(f"{self._kind} {cls.__qualname__!r} is registered as {known!r}")
            self._classes[name], self._names[cls] = cls, name
        return cls

    def name_of(self, cls: type[Any]) -> str | None:
        """Return the name of a class, None where it is not registered."""
        return self._names.get(cls)

    def named(self, name: str) -> type[Any] | None:
        """Return the class of a name, None where none is registered."""
        return self._classes.get(name)


ENUMS = RegisteredClasses("Enum")
NAMEDTUPLES = RegisteredClasses("namedtuple")

ARROW_TYPES: set[type[Any]] = set()
"""Classes of Arrow extension types whose code may read what objects hold."""
