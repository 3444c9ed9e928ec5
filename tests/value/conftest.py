"""The storage of values that no database knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.values import CountingStorage

from sqla_datastore.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    """A folder that remembers which of its objects were opened."""
    return CountingStorage(LocalStorage(tmp_path / "storage"))
