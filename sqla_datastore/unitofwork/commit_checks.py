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


# only looked up by key, since other threads change it
watched_connections: dict[int, weakref.WeakSet[Any]] = {}
"""What is asked before COMMIT, by the id of the driver's connection; mostly nothing."""


def watch_connection(raw: Any, watch: Watch) -> int:
    """Have a watch asked before each COMMIT of a driver's connection.

    Returns:
        The connection's id, which `unwatch_connection` takes; the connection is not held.
    """
    watched_connections.setdefault(id(raw), weakref.WeakSet()).add(watch)
    return id(raw)


def unwatch_connection(number: int, watch: Watch) -> None:
    """Have a watch not asked any more."""
    watches = watched_connections.get(number)
    if watches is not None:
        watches.discard(watch)
        if not watches:
            watched_connections.pop(number, None)


def watches_of(raw: Any) -> list[Watch]:
    """Return what has to be asked before a driver's connection commits."""
    return list(watched_connections.get(id(raw), ()))
