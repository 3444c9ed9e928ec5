"""A value as a form shows it: its plain entries as JSON, after lines that say what it was made of.

::

    // read from 5d41402abc4b2a76; this line tells whether others have changed the value since
    // kept as they are: "weights" numpy.ndarray
    {
      "note": "converged",
      "tags": ["good"]
    }

A *plain* entry is one that JSON gives back exactly: None, bool, int, float, str, and lists and
dicts of these. A text of at most `LARGEST_BYTES` is shown, and of at most `MOST` entries.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from sqla_datastore.exceptions import DataStoreError, UnsupportedTypeError
from sqla_datastore.printable import printable
from sqla_datastore.storage.off_loop import in_thread
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.display import count_text
from sqla_datastore.value.inspection import inspect
from sqla_datastore.value.prefetching import aload

LARGEST_BYTES = 20_000
MOST = 100
_NAMED = 20
_SCALARS = (type(None), bool, int, float, str)
_TYPES = frozenset(cls.__name__ for cls in (*_SCALARS, list, dict))
_VERSION = re.compile(r"// read from (\w+);")


def summary_of(value: DataStore) -> str:
    """Return a line for a list of rows; reads the index at most, and never raises."""
    try:
        names = list(value)
    except DataStoreError as err:
        return printable(f"{type(err).__name__}: {err.message}", 200)
    count = count_text(len(names))
    more = ", …" * (len(names) > _NAMED)
    return printable(": ".join([count, *[", ".join(names[:_NAMED]) + more] * bool(names)]), 400)


async def text_of(value: DataStore) -> str:
    """Return the text of a form; loads plain entries alone, in a thread, and never raises.

    That of a value that cannot be read says why and has no entries.
    """
    version = (
        f"// read from {_version(value)}; this line tells whether others have changed it since"
    )
    try:
        shown = await _shown(value)
    except DataStoreError as err:
        return f"{version}\n// {printable(err)}\n{{}}"
    kept = [
        f"{json.dumps(name)} {what.type}"
        for name, what in inspect(value).entries.items()
        if name not in shown
    ]
    more = [f"and {len(kept) - _NAMED} more"] * (len(kept) > _NAMED)
    stays = ["// kept as they are: " + ", ".join([*kept[:_NAMED], *more])] * bool(kept)
    entries = json.dumps(shown, indent=2, ensure_ascii=False)
    # a lone surrogate becomes the escape that JSON has for it
    return "\n".join([version, *stays, entries.encode("utf-8", "backslashreplace").decode()])


def checked(text: str) -> dict[str, Any]:
    """Return the entries that a form's text holds.

    Raises:
        ValueError: it is no JSON object, or has a name twice, or a name that cannot be stored.
    """
    lines = text.strip().split("\n")
    while lines and lines[0].startswith("//"):
        lines.pop(0)
    try:
        entries = json.loads("\n".join(lines), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"this is no JSON: {err}") from err
    if not isinstance(entries, dict):
        raise ValueError("a JSON object is needed here, like {}")  # noqa: TRY004
    try:
        DataStore(entries)._plan(None)
    except UnsupportedTypeError as err:
        raise ValueError(err.message) from err
    return entries


async def revised(value: DataStore | None, text: str) -> DataStore:
    """Return what a form makes of a value.

    Args:
        value: the row's value now; None for a new one.
        text: what came back of `text_of`, edited.

    Returns:
        The value itself where nothing was edited, else a new one with the other's kept entries.

    Raises:
        ValueError: the text is no JSON object; it was made of another value than the row's; an
            entry has the name of one that is not shown.
        DataStoreError: the value cannot be read.
    """
    entries = checked(text)
    if value is None:
        return DataStore(entries)
    found = _VERSION.match(text.strip())
    if found is None or found[1] != _version(value):
        raise ValueError("the value was changed since this form was made; open the form again")
    try:
        shown = await _shown(value)
    except DataStoreError:
        if entries:
            raise
        return value
    for name in entries.keys() - shown.keys():
        if name in value:
            raise ValueError(f"{name!r} is an entry that is not shown here; take another name")
    edited = {name for name in entries if name not in shown or _differ(entries, shown, name)}
    removed = shown.keys() - entries.keys()
    if not edited and not removed:
        return value
    new = value.copy()
    await in_thread(new._index)
    for name in removed:
        del new[name]
    new.update({name: entry for name, entry in entries.items() if name in edited})
    return new


async def _shown(value: DataStore) -> dict[str, Any]:
    await in_thread(value._index)
    names = [
        name
        for name, what in inspect(value).entries.items()
        if what.type in _TYPES and what.nbytes <= LARGEST_BYTES
    ]
    loaded = await aload(value, *names[:MOST]) if names else {}
    return {name: entry for name, entry in loaded.items() if _is_plain(entry)}


def _is_plain(value: object) -> bool:
    """Return whether JSON gives a value back exactly."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and _is_plain(inner) for key, inner in value.items())
    return type(value) in _SCALARS


def _differ(entries: dict[str, Any], shown: dict[str, Any], name: str) -> bool:
    # as texts: 1, 1.0 and True are equal, NaN is not
    return json.dumps(entries[name]) != json.dumps(shown[name])


def _version(value: DataStore) -> str:
    """Return what tells a value from others, without showing its URL."""
    return hashlib.sha256(str(value.url).encode()).hexdigest()[:16]


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name is there twice")
    return entries
