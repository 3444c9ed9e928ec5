"""What other processes do with values that are sent to them; a spawned one imports this anew."""

from __future__ import annotations

import os
from typing import Any

from sqla_datastore import DataStore

_held: list[DataStore] = []


def leave(folder: str) -> None:
    """Begin in a folder of its own, with nothing that names a storage."""
    os.chdir(folder)
    os.environ.pop("SQLA_DATASTORE_URL", None)


def load(value: DataStore) -> dict[str, Any]:
    """Load all of a value."""
    return {name: _plain(entry) for name, entry in value.items()}


def hold(value: DataStore) -> int:
    """Take a value and load nothing of it yet."""
    _held.append(value)
    return os.getpid()


def load_held() -> dict[str, Any]:
    """Load the value that was taken last."""
    return load(_held[-1])


def _plain(entry: Any) -> Any:
    return load(entry) if isinstance(entry, DataStore) else entry
