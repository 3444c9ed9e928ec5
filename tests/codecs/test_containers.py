"""The containers of `collections`, namedtuples and paths come back as they were."""

from __future__ import annotations

import collections
import json
import pathlib
import typing
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_datastore import register_namedtuple
from sqla_datastore.codecs import codec_named, find_codec
from sqla_datastore.exceptions import (
    DamagedObjectError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.testing import CodecSuite, decode_value, encode_value


@register_namedtuple
class Point(typing.NamedTuple):
    x: float
    y: float = 0.0


Pair = register_namedtuple(collections.namedtuple("Pair", "first second"), "shop.Pair")


class Named(Pair):
    """A subclass that has code of its own, and room for attributes."""

    made = 0

    def __new__(cls, *args):
        cls.made += 1
        return super().__new__(cls, *args)


register_namedtuple(Named)


def moved():
    ordered = OrderedDict(b=1, a=2, c=3)
    ordered.move_to_end("b")
    return ordered


VALUES = {
    "ordered": OrderedDict(b=1, a=[2, {"x": 1}]),
    "ordered, moved": moved(),
    "ordered with any keys": OrderedDict([((1, "a"), 1), (True, 2), (b"", np.float64(1))]),
    "ordered, inside": OrderedDict(a=OrderedDict(b=OrderedDict())),
    "counter": Counter("abracadabra"),
    "counter of anything": Counter({(1, 2): 1.5, None: -3}),
    "default": defaultdict(list, {"a": [1]}),
    "default without a factory": defaultdict(None, {1: 2}),
    "default of counters": defaultdict(Counter, a=Counter("ab")),
    "default of defaults": defaultdict(defaultdict, a=defaultdict(int, b=1)),
    "deque": deque([1, "a", [2]]),
    "deque with a length": deque([1, 2], 5),
    "deque that is full": deque([1, 2], 2),
    "deque of numbers": deque(range(1000), 2000),
    "deque without room": deque(maxlen=0),
    "namedtuple": Point(1.5, 2.0),
    "namedtuple of mutable items": Pair([1], {"a": {2}}),
    "namedtuples, inside": Pair(Pair(Point(1.0), 2), (Point(0.0),)),
    "subclass of a namedtuple": Named(1, 2),
    "path": pathlib.Path("/a/b c/ä"),
    "path that is no UTF-8": pathlib.Path("a\udcff"),
    "pure paths": [pathlib.PurePosixPath("a//b/../c"), pathlib.PureWindowsPath(r"c:\a\b")],
    "empty": [OrderedDict(), Counter(), defaultdict(set), deque(), pathlib.Path()],
}


def told_apart(value):
    """Return what tells values apart that compare equal."""
    kind = type(value)
    about = (kind, getattr(value, "default_factory", 0), getattr(value, "maxlen", 0))
    if isinstance(value, dict):
        items = [(told_apart(key), told_apart(item)) for key, item in value.items()]
    elif isinstance(value, tuple | list | deque):
        items = [told_apart(item) for item in value]
    else:
        items = repr(value)
    return about, items


def stored(value):
    return decode_value(*encode_value(value))


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_value_comes_back_as_it_was(value):
    assert told_apart(stored(value)) == told_apart(value)
    assert told_apart(stored([value])[0]) == told_apart(value)


items = st.recursive(
    st.none() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(deque),
        st.lists(inner, max_size=3).map(lambda found: deque(found, len(found) + 1)),
        st.lists(st.tuples(st.text(), inner), max_size=3).map(OrderedDict),
        st.dictionaries(st.integers(), inner, max_size=3).map(lambda d: defaultdict(set, d)),
        st.dictionaries(st.text(), st.integers(), max_size=3).map(Counter),
        st.tuples(inner, inner).map(Pair._make),
    ),
    max_leaves=8,
)


@given(items)
def test_any_nesting_comes_back_as_it_was(value):
    assert told_apart(stored(value)) == told_apart(value)


def test_a_factory_works_as_before():
    value = stored(defaultdict(list))
    value["new"].append(1)
    assert value == {"new": [1]}


@pytest.mark.parametrize("factory", [lambda: 1, Point, type("int", (), {}), np.ones, print])
def test_a_factory_that_objects_cannot_name_is_refused(factory):
    with pytest.raises(UnsupportedTypeError, match="factory"):
        encode_value(defaultdict(factory))


def test_reading_runs_no_code_of_a_namedtuple():
    encoded = encode_value(Named(1, 2))
    Named.made = 0
    assert decode_value(*encoded) == (1, 2)
    assert Named.made == 0


def test_attributes_of_a_namedtuple_are_not_lost():
    value = Named(1, 2)
    value.note = "x"
    with pytest.raises(UnsupportedTypeError, match="besides its fields"):
        encode_value(value)


def test_a_namedtuple_class_is_told_by_its_registered_name():
    text, _ = encode_value(Pair(1, 2))
    assert json.loads(text)[2]["namedtuple"] == "shop.Pair"
    assert register_namedtuple(Pair, "shop.Pair") is Pair
    with pytest.raises(ValueError, match="taken"):
        register_namedtuple(Point, "shop.Pair")
    for other in (tuple, dict, Pair(1, 2), "Pair"):
        with pytest.raises(UnsupportedTypeError, match="no namedtuple"):
            register_namedtuple(other)


HOSTILE = [
    ("plain.ordered_dict", {"json": []}),
    ("plain.ordered_dict", {"keys": {"json": [1, 1]}, "values": {"json": [1, 1]}}),
    ("plain.counter", {"keys": {"json": [[]]}, "values": {"json": [1]}}),
    ("plain.defaultdict", {"pairs": {"json": {}}}),
    ("plain.defaultdict", {"pairs": {"json": {}}, "factory": "eval"}),
    ("plain.defaultdict", {"pairs": {"json": {}}, "factory": ["list"]}),
    ("plain.deque", {"items": {"json": [1, 2]}, "maxlen": 1}),
    ("plain.deque", {"items": {"json": []}, "maxlen": -1}),
    ("plain.deque", {"items": {"json": []}, "maxlen": 2**64}),
    ("plain.deque", {"items": {"json": []}, "maxlen": True}),
    ("plain.deque", {"items": {"json": []}}),
    ("plain.namedtuple", {"namedtuple": "Point", "fields": ["x", "y"], "items": {"json": [1]}}),
    ("plain.namedtuple", {"namedtuple": "Point", "fields": ["x"], "items": {"json": [1]}}),
    ("plain.namedtuple", {"namedtuple": "os", "fields": [], "items": {"json": []}}),
    ("plain.namedtuple", {"namedtuple": ["Point"], "fields": [], "items": {"json": []}}),
    ("plain.path", {"path": "Path", "text": "x"}),
    ("plain.path", {"path": "PosixPath", "text": 1}),
    ("plain.path", {"path": [], "text": "x"}),
    ("plain.path", {"path": "WindowsPath", "text": "x"}),
]


@pytest.mark.parametrize(("name", "node"), HOSTILE)
def test_a_hostile_node_is_damage(name, node):
    with pytest.raises((DamagedObjectError, UnsupportedFormatError)):
        decode_value(json.dumps([name, 1, node]))


def test_what_only_this_program_lacks_is_not_called_damage():
    fields = {"fields": ["x"], "items": {"json": [1]}}
    for name in ("Unknown", "Point"):  # not registered here, or with other fields
        node = ["plain.namedtuple", 1, {"namedtuple": name} | fields]
        with pytest.raises(UnsupportedFormatError, match=name):
            decode_value(json.dumps(node))


# as files hold them: what was written once can be read for ever
WRITTEN = {
    '["plain.ordered_dict",1,{"items":{"json":{"b":1,"a":2}}}]': OrderedDict(b=1, a=2),
    '["plain.counter",1,{"json":{"a":2}}]': Counter("aa"),
    '["plain.defaultdict",1,{"pairs":{"json":{"a":[]}},"factory":"list"}]': defaultdict(list, a=[]),
    '["plain.defaultdict",1,{"pairs":{"json":{}},"factory":null}]': defaultdict(None),
    '["plain.deque",1,{"items":{"json":[1]},"maxlen":3}]': deque([1], 3),
    '["plain.deque",1,{"items":{"json":[1]},"maxlen":null}]': deque([1]),
    (
        '["plain.namedtuple",1,{"namedtuple":"shop.Pair","fields":["first","second"],'
        '"items":{"json":[1,null]}}]'
    ): Pair(1, None),
    '["plain.path",1,{"path":"PurePosixPath","text":"a/b"}]': pathlib.PurePosixPath("a/b"),
}


@pytest.mark.parametrize(("text", "value"), WRITTEN.items())
def test_nodes_stay_what_they_are(text, value):
    assert encode_value(value) == (text, [])
    assert told_apart(decode_value(text)) == told_apart(value)


class TestConformance(CodecSuite):
    @pytest.fixture(params=VALUES, ids=str)
    def values(self, request):
        return [VALUES[request.param]]

    @pytest.fixture
    def codec(self, values):
        return find_codec(values[0])

    def assert_same(self, back, value):
        assert told_apart(back) == told_apart(value)


@pytest.mark.parametrize(
    "name", ["ordered_dict", "counter", "defaultdict", "deque", "namedtuple", "path", "zone"]
)
def test_descriptions_tolerate_any_node(name):
    for node in (None, 1, "x", [], {}):
        assert codec_named(f"plain.{name}").describe(node).type
