"""Segments: one class renders rows, matches paths and tells which segments can meet."""

from __future__ import annotations

import itertools
import uuid

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, SmallInteger, String, Table, Uuid

from sqla_datastore.schema.path_segments import Part, Segment

FRESH = str(uuid.UUID(int=2**127 + 0xABC))

TABLE = Table(
    "rows",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("small", SmallInteger),
    Column("uuid", Uuid),
    Column("text", String),
)
C = TABLE.c
CHILD = Table("children", TABLE.metadata, Column("id_row", ForeignKey(C.number))).c.id_row


def field(*columns):
    return Segment((Part("", columns),))


def around(before, column, after=""):
    parts = [Part(before), Part("", (column,)), Part(after)]
    return Segment(tuple(part for part in parts if part.text or part.columns))


SEGMENTS = {
    "constant": Segment.constant("word"),
    "table": Segment((Part("rows", is_table=True),)),
    "number": field(C.number),
    "small": field(C.small),
    "uuid": field(C.uuid),
    "text": field(C.text),
    "pair": field(C.number, C.small),
    "prefixed": around("run=", C.number),
    "enclosed": around("a", C.text, "z"),
    "two": Segment((Part("", (C.number,)), Part(","), Part("", (C.text,)))),
}
ROWS = [
    {C.number: 5, C.small: 5, C.uuid: uuid.UUID(int=5), C.text: "5"},
    {C.number: -5, C.small: 0, C.uuid: uuid.uuid4(), C.text: "word"},
    {C.number: 0, C.small: -1, C.uuid: uuid.UUID(int=5).hex, C.text: "rows"},
    {C.number: 12, C.small: 5, C.uuid: uuid.UUID(int=0), C.text: "a/b\n%"},
]


def each_segment(test):
    return pytest.mark.parametrize("segment", SEGMENTS.values(), ids=SEGMENTS)(test)


@each_segment
def test_what_is_rendered_is_matched(segment):
    for row in ROWS:
        assert segment.matches(segment.render(row))
        assert segment.matches(segment.render(row, FRESH))
    assert segment.matches(segment.render({}, FRESH))


@each_segment
def test_a_missing_value_renders_nothing_without_a_token(segment):
    for row in ({}, dict.fromkeys(C)):
        assert segment.render(row) == segment.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("constant", "words"),
        ("constant", FRESH),
        ("table", "row"),
        ("number", "word"),
        ("number", "5a"),
        ("number", "--5"),
        ("number", ""),
        ("number", "5\n"),
        ("number", FRESH.upper()),
        ("uuid", "5"),
        ("uuid", FRESH.upper()),
        ("text", ""),
        ("prefixed", "run="),
        ("prefixed", "5"),
        ("prefixed", "run-5"),
        ("enclosed", "az"),
        ("two", "5"),
    ],
)
def test_what_no_row_renders_is_not_matched(name, text):
    assert not SEGMENTS[name].matches(text)


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_fresh_uuid_shows_where_numbers_stand_alone(name):
    assert SEGMENTS[name].shows_fresh(FRESH) == (name in ("number", "small", "pair"))
    assert not SEGMENTS[name].shows_fresh("5")


# -- segments that can meet ------------------------------------------------------------------------


def test_segments_that_render_the_same_text_meet():
    for one, two in itertools.product(SEGMENTS.values(), repeat=2):
        texts = [{segment.render(row) for row in ROWS} for segment in (one, two)]
        if texts[0] & texts[1]:
            assert one.meets(two)


def test_to_meet_is_symmetric():
    for one, two in itertools.product(SEGMENTS.values(), repeat=2):
        assert one.meets(two) == two.meets(one)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("constant", "table"),
        ("constant", "number"),
        ("constant", "uuid"),
        ("number", "uuid"),
        ("small", "uuid"),
    ],
)
def test_segments_that_cannot_meet(one, two):
    assert not SEGMENTS[one].meets(SEGMENTS[two])


def test_a_fresh_uuid_meets_nothing():
    assert SEGMENTS["number"].matches(FRESH)
    assert not SEGMENTS["number"].meets(Segment.constant(FRESH))
    assert SEGMENTS["uuid"].meets(Segment.constant(FRESH))


# -- foreign keys ----------------------------------------------------------------------------------


def test_a_field_refers_to_the_column_that_its_foreign_key_names():
    assert field(CHILD).refers_to(field(C.number))
    assert around("run=", CHILD).refers_to(around("run=", C.number))


def test_other_fields_refer_to_nothing():
    assert not field(CHILD).refers_to(field(C.small))
    assert not field(CHILD).refers_to(field(C.number, C.small))
    assert not field(C.small).refers_to(field(C.number))
    assert not around("run=", CHILD).refers_to(around("job=", C.number))
    assert not around("run=", CHILD).refers_to(field(C.number))
    assert not SEGMENTS["constant"].refers_to(field(C.number))


def test_a_constant_refers_to_the_same_text_only():
    assert Segment.constant("rows").refers_to(SEGMENTS["table"])
    assert not Segment.constant("words").refers_to(SEGMENTS["table"])
    assert not field(CHILD).refers_to(SEGMENTS["table"])
