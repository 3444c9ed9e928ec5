"""What is known of a value without loading it: `inspect`, and the ``repr`` built on it."""

from __future__ import annotations

from html import escape
from itertools import islice

from sqla_datastore.codecs import Description, find_codec
from sqla_datastore.printable import printable
from sqla_datastore.value.display import (
    SHOWN,
    Inspection,
    aligned,
    html_table,
    lines_of_rest,
    rows_of,
    summary,
)
from sqla_datastore.value.entry import UNLOADED, Entry, Nestable
from sqla_datastore.value.mapping import EntryMapping
from sqla_datastore.value.previews import preview
from sqla_datastore.value.sizes import size_bytes


def inspect(ds: EntryMapping) -> Inspection:
    """Tell what is known of a value; ``sqlalchemy.inspect(ds)`` does the same.

    Reads the index of a stored object when nothing has needed it before, and never a payload.

    Args:
        ds: the value.

    Returns:
        A snapshot of its state.

    Raises:
        TypeError: for what is no `DataStore`.
        MissingObjectError: its object is gone.
        DamagedObjectError: the index is not what was written.

    Examples:
        >>> from sqla_datastore import DataStore
        >>> known = inspect(DataStore(n=1, data=b"1234"))
        >>> known.stored, known.loaded, known.entries["data"].nbytes
        (False, ('n', 'data'), 4)
        >>> known
        <Inspection not stored, 2 entries>
          entry  type   dtype  shape  size
          n      int                  1 B
          data   bytes                4 B
    """
    if not isinstance(ds, EntryMapping):
        raise TypeError(
            f"a DataStore is inspected here, not {type(ds).__name__!r}; rows, mappers and engines "
            "are for sqlalchemy.inspect"
        )
    entries = list(ds._index().items())
    return Inspection(
        url=ds.url,
        stored=ds.url is not None,
        changed=ds._changed or any(_is_edited(entry) for _, entry in entries),
        loaded=tuple(name for name, entry in entries if entry.value is not UNLOADED),
        entries={name: _description(name, entry) for name, entry in entries},
    )


def description_of(ds: EntryMapping, name: str) -> Description:
    """Return what `inspect` tells of one entry; KeyError where there is none."""
    return _description(name, ds._index()[name])


def _is_edited(entry: Entry) -> bool:
    if entry.may_be_edited():
        return True
    children = (child._entries or {} for child in entry.children if child._handed_out)
    return any(_is_edited(inner) for entries in children for inner in entries.values())


def _description(name: str, entry: Entry) -> Description:
    # a nested value knows more of itself than its place in the object does
    if entry.source is None or entry.edited or isinstance(entry.value, EntryMapping):
        return _described(entry.value)
    return entry.source.describe(name)


def _described(value: object) -> Description:
    """Describe an object in memory as its codec describes the stored one."""
    cls, codec = type(value), find_codec(value)
    if (describes := getattr(codec, "describe_value", None)) is not None:
        return describes(value)  # type: ignore[no-any-return]
    # asked of the type: a column called "shape" is an attribute of its frame too
    dtype = getattr(value, "dtype", None) if hasattr(cls, "dtype") else None
    shape = getattr(value, "shape", None) if hasattr(cls, "shape") else None
    return Description(
        type=getattr(codec, "described", None) or _type_name(cls),
        dtype=None if dtype is None else str(dtype),
        shape=shape if isinstance(shape, tuple) else None,
        nbytes=size_bytes(value),
    )


def _type_name(cls: type) -> str:
    library = cls.__module__.partition(".")[0]
    is_ours = issubclass(cls, Nestable) or library in ("builtins", "datetime", "decimal", "uuid")
    return cls.__qualname__ if is_ours else f"{library}.{cls.__qualname__}"


# -- text and HTML ---------------------------------------------------------------------------------


def text_of(ds: EntryMapping) -> str:
    """Return the ``repr``: a line for the value and one for each entry; never raises."""
    try:
        known = inspect(ds)
        rows = rows_of(known, SHOWN)
    except Exception as err:  # a repr that raises hides what a debugger wants to show
        return f"<{_headline(ds)}; {_error(err)}>"
    return "\n".join([f"<{_headline(ds, known)}>", *aligned(rows), *lines_of_rest(known, SHOWN)])


def html_of(ds: EntryMapping) -> str:
    """Return a value as an HTML table with previews of what is in memory; never raises."""
    try:
        known = inspect(ds)
        rows = rows_of(known, SHOWN)
        previews = [_preview_of(ds, name) for name in islice(known.entries, SHOWN)]
    except Exception as err:
        return f"<pre>{escape(f'<{_headline(ds)}; {_error(err)}>')}</pre>"
    return html_table(_headline(ds, known), rows, previews, lines_of_rest(known, SHOWN))


def _headline(ds: EntryMapping, known: Inspection | None = None) -> str:
    changed = ds._changed if known is None else known.changed
    return printable(f"{type(ds).__name__} {summary(ds.url, known, changed=changed)}")


def _error(err: Exception) -> str:
    return printable(f"{type(err).__name__}: {err}")


def _preview_of(ds: EntryMapping, name: str) -> str:
    # not `ds[name]`: that would load, and hand out what may then be edited
    entry = (ds._entries or {}).get(name)
    return "" if entry is None or entry.value is UNLOADED else preview(entry.value)
