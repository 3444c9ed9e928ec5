"""A declarative base for classes that may be refused."""

import pytest
from sqlalchemy.orm import DeclarativeBase


@pytest.fixture
def Base():
    class Base(DeclarativeBase):
        pass

    yield Base
    # classes that cannot be configured would fail those of every later test
    Base.registry.dispose()
    Base.metadata.clear()
