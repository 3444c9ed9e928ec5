"""A session for the tests of collected tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import Session
from support.databases import Stored

from sqla_datastore import bind_storage


@pytest.fixture
def session(stored: Stored, tmp_path: Path, model_metadata: MetaData) -> Iterator[Session]:
    """A session on SQLite without rows."""
    engine = create_engine(f"sqlite:///{tmp_path / 'runs.db'}")
    bind_storage(engine, stored.base)
    model_metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()
