"""What is known of a value without loading it: `inspect`; `display` shows it."""

from __future__ import annotations

from dataclasses import dataclass

from sqla_datastore.codecs import Description, find_codec
from sqla_datastore.value.entry import UNLOADED, Entry, Nestable
from sqla_datastore.value.mapping import EntryMapping
from sqla_datastore.value.sizes import size_bytes


@dataclass(frozen=True, slots=True, repr=False)
class Inspection:
    """The state of a value; prints as a table.

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
            after (headers included). For a nested `DataStore` it is the sum of its entries, once
            its index was read. It is 0 where nobody can tell.
    """

    url: str | None
    stored: bool
    changed: bool
    loaded: tuple[str, ...]
    entries: dict[str, Description]

    def __repr__(self) -> str:
        from sqla_datastore.value.display import table_of

        return table_of(self)

    def _repr_html_(self) -> str:
        from sqla_datastore.value.display import html_table_of

        return html_table_of(self)


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
    cls = type(value)
    # asked of the type: a column called "shape" is an attribute of its frame too
    dtype = getattr(value, "dtype", None) if hasattr(cls, "dtype") else None
    shape = getattr(value, "shape", None) if hasattr(cls, "shape") else None
    return Description(
        type=getattr(find_codec(value), "described", None) or _type_name(cls),
        dtype=None if dtype is None else str(dtype),
        shape=shape if isinstance(shape, tuple) else None,
        nbytes=size_bytes(value),
    )


def _type_name(cls: type) -> str:
    library = cls.__module__.partition(".")[0]
    is_ours = issubclass(cls, Nestable) or library in ("builtins", "datetime", "decimal", "uuid")
    return cls.__qualname__ if is_ours else f"{library}.{cls.__qualname__}"
