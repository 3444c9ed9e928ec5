"""Storing values without a database, as the session's events do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqla_datastore import DataStore
from sqla_datastore.storage.protocol import ObjectReader, Storage
from sqla_datastore.storage.urls import ObjectURL, new_object_name


def store(ds: DataStore, storage: Storage, folder: str = "rows/1") -> Callable[[], None]:
    """Write a value, switch it to the stored form and return the undo."""
    plan = ds._plan("rows.data")
    name = new_object_name(len(plan.nested_values))
    url = ObjectURL(storage.scheme, f"{folder}/{name}")
    for place, content in zip(url.family(), plan.objects, strict=True):
        with storage.create(place.path) as writer:
            content.write(writer)
    return ds._stored(storage, str(url), plan)


def remove(storage: Storage, url: str) -> None:
    """Remove a value's objects."""
    storage.remove([place.path for place in ObjectURL.parse(url).family()])


def reloaded(ds: DataStore, storage: Storage) -> DataStore:
    """Return the value as another session reads it."""
    assert ds.url is not None
    return DataStore.from_url(ds.url, storage=storage)


class Row:
    """Stands for the link that events set; remembers what it was told."""

    is_made = True
    is_dead = False

    def __init__(self, refuse: Exception | None = None) -> None:
        self.armed: list[DataStore] = []
        self.checked: list[DataStore] = []
        self.refuse = refuse

    def is_for(self, state: object, key: str) -> bool:
        return True

    def arm(self, value: DataStore) -> None:
        self.armed.append(value)

    def check_edit(self, value: DataStore) -> None:
        self.checked.append(value)
        if self.refuse is not None:
            raise self.refuse


class CountingStorage:
    """A storage that remembers which objects were opened."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.opened: list[str] = []

    def open(self, path: str) -> ObjectReader:
        self.opened.append(path)
        return self._storage.open(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
