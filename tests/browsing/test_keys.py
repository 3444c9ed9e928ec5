"""Keys as text: what people see and type, and no two keys are one text."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_datastore.browsing.keys import key_text, parsed_key


class Colour(enum.Enum):
    RED = "r"


COLUMNS = {
    sa.Integer(): -7,
    sa.String(): "a,b %2C",
    sa.Uuid(): uuid.UUID(int=5),
    sa.Numeric(): Decimal("1.50"),
    sa.Float(): 0.5,
    sa.Boolean(): True,
    sa.LargeBinary(): b"\x00\xff",
    sa.DateTime(): datetime.datetime(2024, 1, 2, 3, 4),
    sa.Date(): datetime.date(2024, 1, 2),
    sa.Time(): datetime.time(3, 4),
    sa.Enum(Colour): Colour.RED,
}


@pytest.mark.parametrize("kind", COLUMNS, ids=lambda kind: type(kind).__name__)
def test_a_key_of_each_type_comes_back(kind):
    column, value = sa.Column("k", kind), COLUMNS[kind]
    assert parsed_key([column], key_text([value])) == [value]
    assert parsed_key([column, column], key_text([value, value])) == [value, value]


def test_one_column_is_its_plain_text():
    assert key_text(["50%, or more"]) == "50%, or more"
    assert key_text([uuid.UUID(int=1)]) == str(uuid.UUID(int=1))


@settings(max_examples=40)
@given(st.lists(st.text(), min_size=2, max_size=3))
def test_keys_of_texts_come_back(values):
    columns = [sa.Column(str(n), sa.String()) for n in range(len(values))]
    assert parsed_key(columns, key_text(values)) == values


@pytest.mark.parametrize(("kind", "text"), [(sa.Integer(), "x"), (sa.Uuid(), "1"), (sa.Date(), "")])
def test_text_that_is_no_key(kind, text):
    with pytest.raises(ValueError, match="is no"):
        parsed_key([sa.Column("k", kind)], text)
    with pytest.raises(ValueError, match="2 parts"):
        parsed_key([sa.Column("k", kind)] * 2, "only one")
