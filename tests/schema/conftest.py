"""What the tests of declarations share: each sees its own alone, and leaves none behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase

from sqla_datastore.schema import declarations


@pytest.fixture(autouse=True)
def only_own_declarations(monkeypatch: pytest.MonkeyPatch) -> None:
    # templates of a table that is still remembered would refuse the prefixes of other tests
    monkeypatch.setattr(declarations, "DECLARATIONS", declarations.Declarations())


@pytest.fixture
def Base() -> Iterator[type[DeclarativeBase]]:
    # held: mappers of classes that nobody holds may be collected before they are looked at
    held: list[type] = []

    class Base(DeclarativeBase):
        def __init_subclass__(cls, **options: Any) -> None:
            super().__init_subclass__(**options)
            held.append(cls)

    yield Base
    # classes that cannot be configured would fail those of every later test
    Base.registry.dispose()
    Base.metadata.clear()
