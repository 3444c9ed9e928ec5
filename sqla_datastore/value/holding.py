"""Whether a value that nobody holds any more must be kept: for edits in place, past or to come.

A thing that nobody else holds cannot be edited any more. The reference counts tell: what refers to
a thing besides the value itself is somebody else's.

Nothing is read here, as finalizers ask. Where the answer says more than is true, a value is kept
longer than needed, and nothing is lost.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

from sqla_datastore.value.entry import UNLOADED, Entry, Nestable

_ITERABLE = (list, tuple, set, frozenset, deque)
_EDITABLE = (list, dict, set, bytearray, deque)
_IMMUTABLE = {
    *("builtins", "datetime", "decimal", "fractions", "uuid", "numpy", "enum"),
    *("pathlib", "zoneinfo", "pytz", "dateutil", "ml_dtypes"),
    "sqla_datastore",  # a File; nested values are seen before
}
_BY_THIS_MODULE = 2  # the node that counts it, and the argument of getrefcount


def may_be_edited(value: Nestable) -> bool:
    """Return whether a value may have edits that are not stored; some caches look like one."""
    return (
        value._changed
        or value._defaults is not None
        or any(
            entry.may_be_edited() or any(map(may_be_edited, entry.children))
            for entry in (value._entries or {}).values()
        )
    )


def is_held_elsewhere(value: Nestable) -> bool:
    """Return whether somebody holds something editable that a value has handed out."""
    defaults = [entry for entry, _ in (value._defaults or {}).values()]
    return any(
        _is_entry_held(entry) if entry.handed_out else any(map(is_held_elsewhere, entry.children))
        for entry in [*(value._entries or {}).values(), *defaults]
    )


def _is_entry_held(entry: Entry) -> bool:
    if entry.value is UNLOADED:
        return False
    if entry.children:
        # who holds a nested value holds the one around it, too
        return True
    owned = 1 + (entry.fingerprint is not None)
    return any(
        sys.getrefcount(node.thing) > node.edges + _BY_THIS_MODULE
        for node in _nodes(entry.value, owned)
    )


class _Node:
    """An editable thing, and how often the value's own things refer to it."""

    __slots__ = ("edges", "thing")

    def __init__(self, thing: Any, edges: int) -> None:
        self.thing = thing
        self.edges = edges


def _nodes(root: Any, edges: int) -> Iterable[_Node]:
    """Return what is editable in a thing, found through containers of Python's own."""
    nodes: dict[int, _Node] = {id(root): _Node(root, edges)}
    seen: set[int] = set()
    todo = [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        for part in _parts(thing):
            if isinstance(part, (*_ITERABLE, dict)) or _is_foreign(part):
                todo.append(part)
            if _is_editable(part):
                nodes.setdefault(id(part), _Node(part, 0)).edges += 1
    todo.clear()
    thing = part = None
    return nodes.values()


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, _ITERABLE):
        return thing
    if not _is_foreign(thing):
        return ()
    # pandas keeps notes of its user's in a dict of each frame, xarray and Pillow likewise; an empty
    # one can be filled
    # each where it is kept, and so once: a DataArray hands out those of its variable
    names = () if hasattr(thing, "variable") else ("attrs", "info")
    notes = [getattr(thing, name, None) for name in names]
    return [*(each for each in notes if isinstance(each, dict)), *_axes(thing), *_variables(thing)]


def _axes(thing: Any) -> Iterable[Any]:
    """Return the indexes of a frame or series, whose names can be set."""
    axes = getattr(thing, "axes", None)
    return axes if isinstance(axes, list) else ()


def _variables(thing: Any) -> Iterable[Any]:
    """Return the variables of xarray in a thing, which what is taken out of it shares."""
    if type(thing).__module__.partition(".")[0] != "xarray":
        return ()
    if hasattr(thing, "variables"):
        return [*thing.variables.values()]
    if hasattr(thing, "coords"):
        return [thing.variable, *thing.coords.variables.values()]
    return ()


def _is_editable(thing: Any) -> bool:
    return isinstance(thing, _EDITABLE) or (_is_foreign(thing) and not callable(thing))


def _is_foreign(thing: Any) -> bool:
    """Whether a thing is a library's, such as a frame, and perhaps editable."""
    module = type(thing).__module__.partition(".")[0]
    return module not in _IMMUTABLE
