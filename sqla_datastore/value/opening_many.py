"""Opening many objects, for who reads an entry of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.storage.protocol import OpensMany
from sqla_datastore.storage.urls import ObjectURL, is_in_row
from sqla_datastore.value.entry import Source


def each_opened(sources: Iterable[Source | None]) -> Iterator[Source | None]:
    """Yield objects, opened; those of a folder by fewer system calls than each alone.

    What cannot be opened comes as it is: who reads it gets the error, and can say whose it is. So
    does what a storage has no better way for.

    Args:
        sources: the objects; None for none.
    """
    for storage, group in groupby(map(_placed, sources), itemgetter(0)):
        if storage is None:
            yield from (source for _, _, source in group)
        else:
            yield from _opened_by(storage, deque((source, url) for _, url, source in group))


def _placed(source: Source | None) -> tuple[Any, Any, Any]:
    """Return the storage that opens an object with others, and its URL; None where none does."""
    if source is not None and not is_in_row(source.url):
        with suppress(DataStoreError):
            url = ObjectURL.parse(source.url)
            storage = source.serving(url)
            if hasattr(storage, "open_many"):  # what `OpensMany` looks for, many times faster
                return storage, url, source
    return None, None, source


def _opened_by(storage: OpensMany, left: deque[tuple[Source, ObjectURL]]) -> Iterator[Source]:
    """Open objects, and forget each when it was yielded: what it holds goes with its user."""
    paths = [url.path for _, url in left]
    with suppress(DataStoreError), closing(storage.open_many(paths)) as readers:
        for reader in readers:
            source, url = left[0]
            source.open_from(reader, url)
            left.popleft()
            yield source
            del source, reader
    yield from (source for source, _ in left)
