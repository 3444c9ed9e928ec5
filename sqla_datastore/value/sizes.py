"""What an object in memory takes, in bytes: `inspect` tells it of entries that are not stored."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from sqla_datastore.codecs import find_codec
from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.value.entry import UNLOADED, Entry
from sqla_datastore.value.mapping import EntryMapping

_COUNTED_ITEMS: Final = 100_000
"""Collections of more items, and what would take long to add up, are not looked into."""

_Collections: Final = (list, tuple, set, frozenset, dict, deque)


def size_bytes(value: Any) -> int:
    """Return the size of an object in bytes, 0 where nobody can tell. No I/O.

    The length of bytes, the UTF-8 length of text, ``nbytes`` of arrays and tables, the memory of
    frames; for collections and numbers what they take in an object, for a `DataStore` the sum of
    its entries as far as they are known.
    """
    if isinstance(value, EntryMapping):
        return nested_size_bytes(value, set())
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if hasattr(type(value), "memory_usage") and _has_objects(value):
        return int(_total(value.memory_usage(deep=value.size <= _COUNTED_ITEMS)))
    if hasattr(type(value), "nbytes"):
        return int(value.nbytes)
    if hasattr(type(value), "memory_usage"):
        return int(_total(value.memory_usage()))
    if hasattr(type(value), "estimated_size"):
        return int(value.estimated_size())
    return _by_codec(value)


def nested_size_bytes(ds: EntryMapping, seen: set[int]) -> int:
    """Return the sum over a value's entries: 0 for one whose index was not read."""
    if id(ds) in seen:  # it contains itself, which is refused when it is saved
        return 0
    seen.add(id(ds))
    entries = list((ds._entries or {}).items())
    return sum(_entry_size_bytes(name, entry, seen) for name, entry in entries)


def _entry_size_bytes(name: str, entry: Entry, seen: set[int]) -> int:
    if isinstance(entry.value, EntryMapping):
        return nested_size_bytes(entry.value, seen)
    if entry.source is None or entry.edited:
        assert entry.value is not UNLOADED
        return size_bytes(entry.value)
    return entry.source.describe(name).nbytes


def _has_objects(value: Any) -> bool:
    """Return whether a column of pandas holds objects, which lie elsewhere than its ``nbytes``."""
    dtypes = value.dtypes if getattr(value, "ndim", 0) == 2 else [value.dtype]
    return any(str(dtype) == "object" for dtype in dtypes)


def _total(sizes: Any) -> Any:
    return sizes.sum() if hasattr(sizes, "sum") else sizes


def _by_codec(value: Any) -> int:
    codec = find_codec(value)
    kind = "" if codec is None else codec.name.partition(".")[0]
    if value is None or isinstance(value, bool):  # JSON has them, so they need no codec
        kind = "plain"
    if kind in ("plain", "pandas"):  # of pandas: scalars and dtypes
        return _encoded_bytes(value) if _has_few_items(value) else 0
    if kind == "pillow":
        width, height = value.size
        return int(width * height * len(value.getbands()) * (4 if value.mode in "IF" else 1))
    if kind == "scipy":
        return sum(int(getattr(part, "nbytes", 0)) for part in vars(value).values())
    return 0


def _encoded_bytes(value: Any) -> int:
    from sqla_datastore.format.encoder import encoded_nbytes

    nested: list[Any] = []
    try:
        own = encoded_nbytes(value, nested)
    except DataStoreError:  # it cannot be saved, and saving it will say why
        return 0
    seen: set[int] = set()
    return own + sum(nested_size_bytes(ds, seen) for ds in nested)


def _has_few_items(value: Any) -> bool:
    left, count = [value], 0
    while left:
        each = left.pop()
        if isinstance(each, _Collections):
            count += len(each)
            if count > _COUNTED_ITEMS:  # also where it contains itself
                return False
            left.extend(each)
            left.extend(each.values() if isinstance(each, dict) else ())
    return True
