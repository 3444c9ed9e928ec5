"""What is known of a value without loading it: `inspect`, and the ``repr`` built on it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import Any

from sqla_datastore.codecs import Description, find_codec
from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.printable import printable
from sqla_datastore.storage.urls import DataURL, ObjectURL, is_in_row
from sqla_datastore.value.entry import UNLOADED, Entry, Nestable
from sqla_datastore.value.mapping import EntryMapping

_SHOWN = 20
_WIDEST = 40
_WIDEST_TYPE = 120


@dataclass(frozen=True, slots=True)
class Inspection:
    """The state of a value.

    Attributes:
        url: the object that holds it, or None until it is stored.
        stored: whether an object holds it, or held it before it was changed.
        changed: whether saving it would write something new. Entries edited in place count; one
            that only looks edited may count too until the next flush has compared it.
        loaded: the names of the entries whose values are in memory, in order.
        entries: type, dtype, shape and ``nbytes`` by name, in order. That is the payload's own size
            in bytes: ``nbytes`` for NumPy arrays and scalars, the length of bytes, the UTF-8 length
            of text, the same before and after the value is stored. For frames, tables and
            collections it is what their columns or items take, in memory before and in the object
            after (headers included), and 0 where nobody can tell.
    """

    url: str | None
    stored: bool
    changed: bool
    loaded: tuple[str, ...]
    entries: dict[str, Description]


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


def _is_edited(entry: Entry) -> bool:
    if entry.may_be_edited():
        return True
    children = (child._entries or {} for child in entry.children if child._handed_out)
    return any(_is_edited(inner) for entries in children for inner in entries.values())


def _description(name: str, entry: Entry) -> Description:
    if entry.source is None or entry.edited:
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
        nbytes=_size_bytes(value),
    )


def _type_name(cls: type) -> str:
    library = cls.__module__.partition(".")[0]
    is_ours = issubclass(cls, Nestable) or library in ("builtins", "datetime", "decimal", "uuid")
    return cls.__qualname__ if is_ours else f"{library}.{cls.__qualname__}"


def _size_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if hasattr(type(value), "nbytes"):
        return int(value.nbytes)
    if hasattr(type(value), "memory_usage"):
        return int(value.memory_usage(index=True).sum())
    if hasattr(type(value), "estimated_size"):
        return int(value.estimated_size())
    return 0


# -- text and HTML ---------------------------------------------------------------------------------


def text_of(ds: EntryMapping) -> str:
    """Return the ``repr``: a line for the value and one for each entry; never raises."""
    try:
        known = inspect(ds)
        rows = _rows(known)
    except Exception as err:  # a repr that raises hides what a debugger wants to show
        return f"<{_headline(ds)}; {_error(err)}>"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"<{_headline(ds, known)}>"]
    lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *_rest(known)])


def html_of(ds: EntryMapping) -> str:
    """Return the same as an HTML table, for notebooks; never raises."""
    try:
        known = inspect(ds)
        rows = _rows(known)
    except Exception as err:
        return f"<pre>{escape(f'<{_headline(ds)}; {_error(err)}>')}</pre>"
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    head = "".join(f"<th>{title}</th>" for title in ("entry", "type", "dtype", "shape", "size", ""))
    caption = escape(_headline(ds, known))
    rest = "".join(f"<p>{escape(line.strip())}</p>" for line in _rest(known))
    return (
        f"<table><caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>{rest}"
    )


def _headline(ds: EntryMapping, known: Inspection | None = None) -> str:
    number = 0 if known is None else len(known.entries)
    count = [] if known is None else [f"{number} {'entry' if number == 1 else 'entries'}"]
    changed = ds._changed if known is None else known.changed
    state = [_place(ds.url)] + ["changed"] * changed if ds.url is not None else ["not stored"]
    return printable(f"{type(ds).__name__} " + ", ".join([*state, *count]))


def _error(err: Exception) -> str:
    return printable(f"{type(err).__name__}: {err}")


def _place(url: str) -> str:
    """Return where a value is: the URL, unless that is the value itself."""
    if not is_in_row(url):
        return url
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return "in the row, damaged"
    return f"in the row, {size_text(parsed.size_bytes)}" if isinstance(parsed, DataURL) else url


def _rows(known: Inspection) -> list[list[str]]:
    loaded = set(known.loaded)
    return [
        [
            _shortened(name),
            printable(what.type, _WIDEST_TYPE),
            printable(what.dtype or "", _WIDEST_TYPE),
            "" if what.shape is None else printable(what.shape, _WIDEST_TYPE),
            size_text(what.nbytes),
            "loaded" if name in loaded and known.stored else "",
        ]
        for name, what in islice(known.entries.items(), _SHOWN)
    ]


def _rest(known: Inspection) -> list[str]:
    more = len(known.entries) - _SHOWN
    return [f"  … and {more} more"] if more > 0 else []


def _shortened(name: str) -> str:
    # a cut before `repr`, which would take ten times as much for a name of controls alone
    text = name if name.isprintable() and name else repr(name[:_WIDEST])
    return text if max(len(text), len(name)) <= _WIDEST else text[: _WIDEST - 1] + "…"


def size_text(nbytes: int) -> str:
    """Return a number of bytes as people read it."""
    size, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
