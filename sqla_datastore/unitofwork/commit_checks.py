"""Sessions whose edits in place are checked before their connection commits."""

from __future__ import annotations

import weakref
from typing import Any, Protocol


class Watch(Protocol):
    """What looks after values that can be edited in place; a Session has one."""

    def refuse_unsaved(self) -> None:
        """Called before COMMIT.

        Raises:
            StaleValueError: a value was edited after the last flush.
        """


# by the id of the driver's connection; only looked up by key, since other threads change it
_watches: dict[int, weakref.WeakSet[Any]] = {}


def watch_connection(raw: Any, watch: Watch) -> int:
    """Have a watch asked before each COMMIT of a driver's connection.

    Returns:
        The connection's id, which `unwatch_connection` takes; the connection is not held.
    """
    _watches.setdefault(id(raw), weakref.WeakSet()).add(watch)
    return id(raw)


def unwatch_connection(number: int, watch: Watch) -> None:
    """Have a watch not asked any more."""
    watches = _watches.get(number)
    if watches is not None:
        watches.discard(watch)
        if not watches:
            _watches.pop(number, None)


def is_any_watched() -> bool:
    """Return whether any Session is asked before COMMIT."""
    return bool(_watches)


def watches_of(raw: Any) -> list[Watch]:
    """Return what has to be asked before a driver's connection commits."""
    return list(_watches.get(id(raw), ()))
