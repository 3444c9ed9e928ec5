"""Entries of a value, and of the values nested in it, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqla_datastore.browsing.rows import NotThereError, listed
from sqla_datastore.codecs import Description
from sqla_datastore.format.compression import STORED
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.inspection import description_of

LARGEST_BYTES: Final = 256 << 20
"""Entries that take more memory than this are loaded only when that was asked for."""


@dataclass(frozen=True)
class EntryRef:
    """An entry that was found; nothing of it is loaded.

    Attributes:
        value: the value that it is an entry of.
        name: its name there.
        description: what the index says of it.
    """

    value: DataStore
    name: str
    description: Description

    def load(self) -> Any:
        """Return its value.

        Raises:
            DataStoreError: it cannot be read.
        """
        return self.value[self.name]

    @property
    def is_nested(self) -> bool:
        """Whether it is a value with entries of its own."""
        return self.description.type == "DataStore"

    @property
    def is_file(self) -> bool:
        """Whether it is a file, of which loading reads no byte."""
        return self.description.file_name is not None

    @property
    def is_mapped(self) -> bool:
        """Whether loading it reads nothing: an array of numbers that is mapped from a file."""
        source = self.value._source
        if self.description.type != "numpy.ndarray" or source is None:
            return False
        blobs = source.container().blobs(self.name)
        return self.value._is_near() and all(blob.method == STORED for blob in blobs)

    @property
    def is_large(self) -> bool:
        """Whether loading it takes more memory than people expect of a glance."""
        return self.description.nbytes > LARGEST_BYTES and not (self.is_file or self.is_mapped)


def entries_of(value: DataStore, most: int | None = None) -> dict[str, Description]:
    """Return the descriptions of a value's first entries by name; reads its index.

    Args:
        value: the value.
        most: how many entries are described; None for all.

    Raises:
        DataStoreError: the index cannot be read.
    """
    return {name: description_of(value, name) for name in islice(value, most)}


def nested_value(value: DataStore, path: Sequence[str]) -> DataStore:
    """Return the value at the end of a path of names.

    Raises:
        NotThereError: there is none; the message names the entries that are there.
        DataStoreError: an index cannot be read.
    """
    for name in path:
        ref = find_entry(value, name)
        if not ref.is_nested:
            raise NotThereError(f"entry {name!r} is of type {ref.description.type}: no entries")
        value = ref.load()
    return value


def find_entry(value: DataStore, *path: str) -> EntryRef:
    """Return the entry at the end of a path of names, at least one.

    Raises:
        NotThereError: as for `nested_value`.
        DataStoreError: an index cannot be read.
    """
    *outer, name = path
    inner = nested_value(value, outer)
    if name not in inner:
        there = f"there are {listed(list(inner))}" if inner else "the value is empty"
        raise NotThereError(f"there is no entry {name!r}; {there}")
    return EntryRef(inner, name, description_of(inner, name))
