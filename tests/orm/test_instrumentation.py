"""Rows whose class keeps its attributes elsewhere than in ``__dict__``."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, Table
from sqlalchemy.ext import instrumentation
from sqlalchemy.orm import Session, registry
from sqlalchemy.orm.attributes import get_attribute, set_attribute

from sqla_datastore import DataStore, DataStoreType

mapped = registry()
table = Table(
    "instrumented",
    mapped.metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("data", DataStoreType()),
)


class Elsewhere(instrumentation.InstrumentationManager):
    """As in SQLAlchemy's ``examples/custom_attributes``: they lie in a dict of their own."""

    def instrument_attribute(self, class_: type, key: str, attribute: Any) -> None:
        """Leave the class as it is."""

    def install_descriptor(self, class_: type, key: str, attribute: Any) -> None:
        """Leave the class as it is."""

    def get_instance_dict(self, _class: type, instance: Any) -> dict[str, Any]:
        return instance.__dict__["attributes"]  # type: ignore[no-any-return]

    def initialize_instance_dict(self, _class: type, instance: Any) -> None:
        instance.__dict__["attributes"] = {}


@pytest.fixture(scope="module")
def model_metadata():
    return mapped.metadata


@pytest.fixture
def row_class():
    class Row:
        __sa_instrumentation_manager__ = Elsewhere

        def __init__(self, **attributes):
            for key, value in attributes.items():
                set_attribute(self, key, value)

        def __getattr__(self, key):
            if key.startswith("_"):
                raise AttributeError(key)
            return get_attribute(self, key)

    mapped.map_imperatively(Row, table)
    yield Row
    mapped.dispose()
    instrumentation._reinstall_default_lookups()


@pytest.mark.sqlite
def test_edits_of_a_row_that_keeps_its_attributes_elsewhere_are_saved(engine, row_class, exact):
    with Session(engine) as session:
        session.add(row_class(id=1, data=DataStore(numbers=[1], n=1)))
        session.commit()
    with Session(engine) as session:
        session.get(row_class, 1).data.numbers.append(2)
        session.commit()
    with Session(engine) as session:
        session.get(row_class, 1).data.n = 2
        session.commit()
    with Session(engine) as session:
        assert session.get(row_class, 1).data == {"numbers": [1, 2], "n": 2}
    exact(1)
