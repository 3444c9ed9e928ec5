"""Python's own types come back as they were, types and all; hostile nodes raise one error."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import enum
import json
import math
import struct
import subprocess
import sys
import time
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import MemoryReader, MemoryWriter

from sqla_datastore.codecs import codec_named, find_codec, register_enum, strict_json
from sqla_datastore.codecs.plain import CODECS
from sqla_datastore.exceptions import (
    DamagedObjectError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.format import Container, plan
from sqla_datastore.testing import CodecSuite, decode_value, encode_value


@register_enum
class Phase(enum.Enum):
    WARM = "warm"
    COLD = 2
    ALIAS = 2  # noqa: PIE796


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Mode(enum.StrEnum):
    FAST = "fast"


register_enum(Access, "shop.Access")
register_enum(Mode)


class Unregistered(enum.Enum):
    X = 1


class WeirdZone(dt.tzinfo):
    def utcoffset(self, when):
        return dt.timedelta(hours=1)


OURS = (DamagedObjectError, UnsupportedFormatError)


def round_trip(value):
    return decode_value(*encode_value(value))


def told_apart(value):
    """Return what tells values apart that compare equal: types, signs, bits, order, fold."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [told_apart(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(map(repr, map(told_apart, value)))
    if kind is dict:
        return kind, [(told_apart(key), told_apart(item)) for key, item in value.items()]
    if kind is float:
        return kind, struct.pack("d", value)
    if kind is complex:
        return kind, struct.pack("dd", value.real, value.imag)
    if kind is slice:
        return kind, told_apart([value.start, value.stop, value.step])
    if kind in (dt.datetime, dt.time):
        return kind, repr(value), value.fold, type(value.tzinfo)
    return kind, hex(value) if kind is int else repr(value)


def assert_exact(value):
    assert told_apart(round_trip(value)) == told_apart(value)


zones = st.one_of(
    st.none(),
    st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23))),
    st.builds(dt.timezone, st.just(dt.timedelta(hours=1)), st.text(max_size=5)),
    st.sampled_from([dt.UTC, zoneinfo.ZoneInfo("Europe/Berlin"), zoneinfo.ZoneInfo("UTC")]),
)
texts = st.text(st.characters(exclude_categories=()))
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**2000), 2**2000),
    st.floats(),
    st.complex_numbers(),
    texts,
    st.binary(),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.times(timezones=zones),
    st.dates(),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.fractions(),
    st.uuids(),
    st.sampled_from([*Phase, *Access, Access(0), Access(3), *Mode]),
)
frozen = st.recursive(
    hashables,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=4,
)
values = st.recursive(
    hashables,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(frozen, max_size=4),
        st.frozensets(frozen, max_size=4),
        st.dictionaries(frozen, inner, max_size=4),
        st.dictionaries(texts, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(values)
def test_every_value_comes_back_as_it_was(value):
    assert_exact(value)


SPECIAL = {
    "a big integer": [10**5000, {10**5000, (-(10**5000),)}],
    "a big key": {10**5000: (1,)},
    "2 to the 53": [2**53, -(2**53), 2**53 - 1, 2**63, -(2**63)],
    "minus zero": [-0.0, 0.0],
    "not a number": [math.nan, math.inf, -math.inf],
    "the payload of a NaN": struct.unpack(
        "<d", bytes.fromhex("efcdab89674523f1")[:6] + b"\xf9\x7f"
    ),
    "lone surrogates": ["\ud800", "\udc00", "\ud800\udc00", "\U00010000"],
    "NUL": "a\0b\0",
    "large text with surrogates": "\ud800" * 5000,
    "large bytes": [bytes(5000), bytearray(5000)],
    "signalling": [Decimal("sNaN123"), Decimal("-NaN"), Decimal("-Infinity"), Decimal("-0E-10")],
    "a long decimal": Decimal("1" * 6000 + "E-99"),
    "fold": dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "a zone with a name": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "UTC")),
    "an offset of microseconds": dt.time(tzinfo=dt.timezone(dt.timedelta(0, 1, 1))),
    "the longest durations": [dt.timedelta.max, dt.timedelta.min],
    "keys that are equal": [{1: "a"}, {True: "a"}, {1.0: "a"}, {-0.0: "a"}],
    "keys of all kinds": {None: 1, (1, "a"): 2, frozenset({1}): 3, b"": 4, "": 5, Phase.WARM: 6},
    "order": {"b": 1, "a": 2},
    "ranges": [range(0), range(10, -(2**70), -3), slice(None), slice("a", (1, 2), 2**70)],
    "nothing": [[], (), {}, set(), frozenset(), "", b"", bytearray()],
    "packed floats": [0.1, math.nan, -0.0] * 200,
    "packed integers": [2**63 - 1, -(2**63)] * 200,
    "integers too large to pack": [2**63, 1] * 200,
    "booleans do not pack as integers": [True, 1, False, 0] * 200,
    "a mixed long list": [None, 1, "a", 2.5, {"x": [True]}] * 300,
    "an array of tuples": [(1, "a"), (2, "b")] * 200,
    "fractions": [Fraction(1, 3), Fraction(-(2**80), 7)],
    "deep JSON": {"a": {"b": {"c": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}}},
    "enums": [Phase.ALIAS, Access.READ, Access(3), Access(0), Mode.FAST],
}


@pytest.mark.parametrize("value", SPECIAL.values(), ids=SPECIAL)
def test_special_values_come_back_as_they_were(value):
    assert_exact(value)


def test_named_and_derived_zones_stay_apart():
    utc, named = round_trip(
        [
            dt.datetime(1, 1, 1, tzinfo=zone)
            for zone in (dt.UTC, dt.timezone(dt.timedelta(0), "UTC"))
        ]
    )
    assert utc.tzinfo is dt.UTC
    assert named.tzinfo is not dt.UTC


def test_equal_sets_are_stored_as_the_same_bytes():
    ascending, descending = set(), set()
    for number in range(0, 800, 8):
        ascending.add(number)
        descending.add(792 - number)
    assert encode_value(ascending) == encode_value(descending)


@pytest.mark.parametrize(
    "items",
    [
        [number * 1.1 for number in range(100_000)],
        list(range(100_000)),
        [str(number) for number in range(100_000)],
    ],
    ids=["floats", "integers", "text"],
)
def test_long_lists_are_small_nodes_and_quick(items):
    start = time.perf_counter()
    text, blobs = encode_value(items)
    assert decode_value(text, blobs) == items
    assert time.perf_counter() - start < 2  # tens of milliseconds; generous for a busy machine
    assert len(text) < 100


def test_what_is_stored_does_not_change_with_the_value():
    inner = [1, 2]
    value = {"a": inner, "b": bytearray(b"x")}
    codec = codec_named("plain.dict")

    class Encoder:
        def encode(self, value, where=""):
            return ["plain.x", 1, None]

    node = codec.encode({"a": inner}, Encoder())
    before = copy.deepcopy(node)
    inner.append(3)
    assert node == before
    text, blobs = encode_value(value)
    first, second = decode_value(text, blobs), decode_value(text, blobs)
    first["a"].append(4)
    assert second == value


REFUSED = {
    "unregistered enum": (Unregistered.X, "register_enum"),
    "foreign zone": (dt.datetime(1, 1, 1, tzinfo=WeirdZone()), "value.astimezone"),
    "inside": ([1, {"x": (object(),)}], r"value\[1\]\['x'\]\[0\]"),
    "a key": ({object: 1}, r"\.keys\(\)\[0\]"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exact_is_refused(value, message):
    with pytest.raises(UnsupportedTypeError, match=message):
        encode_value(value)


@pytest.mark.parametrize("cls", [list, dict])
def test_a_value_that_contains_itself_is_refused(cls):
    value = cls()
    value.append(value) if cls is list else value.update(me=value)
    with pytest.raises(UnsupportedTypeError, match="contains itself"):
        encode_value(value)


def test_enum_names_are_unique():
    register_enum(Phase)  # again is no error
    with pytest.raises(ValueError, match="taken"):
        register_enum(enum.Enum("Other", "A"), "shop.Access")
    with pytest.raises(ValueError, match="registered as 'Phase'"):
        register_enum(Phase, "another")


HOSTILE = [
    ["plain.int", "0xZZ"],
    ["plain.int", "10"],
    ["plain.int", "0x1_0"],
    ["plain.int", True],
    ["plain.int", 1.5],
    ["plain.float", "00"],
    ["plain.float", "zz" * 8],
    ["plain.complex", "00" * 8],
    ["plain.str", "ff"],
    ["plain.str", "x"],
    ["plain.str", 5],
    ["plain.str", -1],
    ["plain.str", True],
    ["plain.bytes", "0"],
    ["plain.decimal", "ff"],
    ["plain.decimal", b"1e5_".hex() + "41"],
    ["plain.decimal", b"1E+9999999999999999999999".hex()],
    ["plain.fraction", {"over": 1, "under": 0}],
    ["plain.fraction", {"over": 1}],
    ["plain.uuid", "0" * 31],
    ["plain.uuid", "{" + "0" * 32],
    ["plain.date", "2024-W01-1"],
    ["plain.date", "2024-13-01"],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00+01:00"}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"key": "../../etc/passwd"}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"key": "Europe"}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"key": "No/Where"}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"key": "zone.tab"}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"key": "tzdata.zi"}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"offset": [1, 0, 0]}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"offset": [0, 1]}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"offset": [0, 0, 0], "name": 1}}],
    ["plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": None}],
    ["plain.timedelta", [10**30, 0, 0]],
    ["plain.timedelta", [True, 0, 0]],
    ["plain.timedelta", [0.5, 0, 0]],
    ["plain.list", {"json": {}}],
    ["plain.list", {"json": 1}],
    ["plain.list", {"packed": "u", "blob": 0}],
    ["plain.list", {"packed": "d", "blob": 0}],
    ["plain.list", {"packed": "d", "blob": 9}],
    ["plain.list", {"items": [["plain.int"]]}],
    ["plain.list", {"items": [{}]}],
    ["plain.list", {"json_blob": 0}],
    ["plain.list", {"json_blob": 1}],
    ["plain.list", {"json_blob": 2}],
    ["plain.set", {"json": [1, True]}],
    ["plain.set", {"json": [[]]}],
    ["plain.dict", {"keys": {"json": [1, 1]}, "values": {"json": [1, 1]}}],
    ["plain.dict", {"keys": {"json": [1]}, "values": {"json": []}}],
    ["plain.dict", {"keys": {"json": [{}]}, "values": {"json": [1]}}],
    ["plain.dict", {"json": []}],
    ["plain.range", [1, 2, 0]],
    ["plain.range", [1, 2]],
    ["plain.slice", [1, 2]],
    ["plain.enum", {"enum": "Phase", "member": "__class__"}],
    ["plain.enum", {"enum": "os.system", "member": "X"}],
    ["plain.enum", {"enum": "Phase", "flags": 1}],
    ["plain.enum", {"enum": ["Phase"], "member": "WARM"}],
    ["plain.enum", {"enum": "Phase", "member": ["WARM"]}],
]
BLOBS = [b"x" * 7, b"[" * 100_000, b"[NaN]"]


@pytest.mark.parametrize(("name", "node"), HOSTILE, ids=map(str, range(len(HOSTILE))))
def test_a_hostile_node_is_damage(name, node):
    with pytest.raises(OURS):
        decode_value(json.dumps([name, 1, node]), BLOBS)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("plain.enum", {"enum": "shop.Removed", "member": "X"}),
        ("plain.enum", {"enum": "Phase", "member": "REMOVED"}),
        ("plain.datetime", {"iso": "2024-01-01T00:00:00", "zone": {"key": "No/Where"}}),
    ],
)
def test_what_only_this_program_lacks_is_not_called_damage(name, node):
    with pytest.raises(UnsupportedFormatError, match="'value' of 'memory:///value' needs"):
        decode_value(json.dumps([name, 1, node]))


@pytest.mark.parametrize("value", SPECIAL.values(), ids=SPECIAL)
def test_the_container_gives_back_the_same(value):
    writer = MemoryWriter()
    plan({"entry": value}, nested_entries=dict).objects[0].write(writer)
    reader = MemoryReader(writer.data)
    back = Container.open(reader, "file:///a.zip", nested=int).load("entry")
    assert told_apart(back) == told_apart(value)


LONG = 2**20
TEXTS = {
    "ASCII": "abc\r\n\r\0" * LONG,
    "two bytes": "x" + "\u00e9" * LONG,
    "three bytes": "\u0100\uffff" * LONG,
    "four bytes": "xyz" + "\U0001f600" * LONG,
    "surrogates": "\ud800" * LONG + "\ud83d\ude00" * LONG,
    "wider and wider": "".join(char * LONG for char in "a\u00e9\u0100\U0001f600a"),
}


def container_of(value):
    writer = MemoryWriter()
    plan({"entry": value}, nested_entries=dict).objects[0].write(writer)
    return Container.open(MemoryReader(writer.data), "file:///a.zip", nested=int)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_long_text_is_one_blob_of_utf_8_however_it_is_cut(text):
    container = container_of(text)
    (blob,) = container.blobs("entry")
    assert blob.load() == text.encode("utf-8", "surrogatepass")
    assert container.load("entry") == text


@pytest.mark.parametrize("size", [4095, 4096, 4097, 2**20, 2**20 + 1])
@pytest.mark.parametrize("kind", [bytes, bytearray, str])
def test_every_size_comes_back(kind, size):
    value = "a" * size if kind is str else kind(b"a" * size)
    node, blobs = encode_value(value)
    assert len(blobs) == (size > 4096)
    back = decode_value(node, blobs)
    assert type(back) is kind
    assert back == value


@pytest.mark.parametrize("at", [0, 2**20 - 1, 2**20, 3 * 2**20 - 1])
def test_changed_bytes_are_told_by_their_checksum(at):
    for value in ("a" * 3 * 2**20, b"a" * 3 * 2**20, bytearray(3 * 2**20)):
        writer = MemoryWriter()
        plan({"entry": value}, nested_entries=dict).objects[0].write(writer)
        reader = MemoryReader(writer.data)
        container = Container.open(reader, "file:///a.zip", nested=int)
        (blob,) = container.blobs("entry")
        reader.data[blob.offset + at] = 0xFF
        with pytest.raises(DamagedObjectError, match="checksum differs"):
            container.load("entry")
        reader.data = reader.data[: blob.offset + at]
        with pytest.raises(DamagedObjectError, match="cut off"):
            container.load("entry")


@pytest.mark.parametrize("rest", [b"\xc3", b"\xff" + b"a" * 2**21, b"\xed\xa0"])
def test_long_bytes_that_are_no_text_are_damage(rest):
    with pytest.raises(DamagedObjectError, match="not UTF-8"):
        decode_value(json.dumps(["plain.str", 1, 0]), [b"a" * 2**20 + rest])


PEAKS = """
import gc, json, sys
from sqla_datastore import DataStoreIO

def memory(key):
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields[key].split()[0]) * 1024

def peak(act):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts anew
    before = memory("VmRSS")
    result = act()
    return result, memory("VmHWM") - before

gc.disable()  # nothing is left for it
value = eval(sys.argv[1])
size = sys.getsizeof(value)
io = DataStoreIO.serialize_write(value[:1_000_000], "warm", sys.argv[2])
assert io.read_deserialize() == value[:1_000_000]
before = memory("VmRSS")
io, written = peak(lambda: DataStoreIO.serialize_write(value, "p", sys.argv[2]))
del value
left = memory("VmRSS") - before
back, read = peak(io.read_deserialize)
same = back == eval(sys.argv[1])
print(json.dumps({"size": size, "written": written, "left": left, "read": read, "same": same}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("value", "copies_to_write"),
    [
        ("b'x' * 100_000_000", 0),
        ("bytearray(100_000_000)", 1),  # one that can be edited is copied when it is planned
        ("'abcdefghij' * 10_000_000", 0),
        ("'a\u00e9' * 50_000_000", 0),
        ("'a\u0100' * 50_000_000", 0),
    ],
)
def test_large_bytes_and_text_take_their_memory_once(value, copies_to_write, tmp_path):
    command = [sys.executable, "-W", "error", "-c", PEAKS, value, str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["same"]
    assert found["size"] >= 100_000_000
    assert found["written"] < 1.3 * copies_to_write * found["size"] + 20_000_000
    assert found["left"] < 20_000_000 - found["size"], "nobody holds what was written"
    assert 0.9 * found["size"] < found["read"] < 1.3 * found["size"] + 20_000_000


json_trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["json", "items", "keys", "values", "packed", "blob", "json_blob", "iso"]
            )
            | st.sampled_from(
                ["zone", "offset", "key", "enum", "member", "flags", "over", "under"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    json_trees.map(json.dumps) | st.text('[]{}",:0e+.- \\n\\ufeff'),
    st.sampled_from(["", " ", "\n", "x", "]", ",", "{}", "\u2003", "\0"]),
)
def test_json_is_taken_apart_from_what_stands_around_it(text, other):
    """A text that begins as a list or object is not looked through for space around it."""
    for whole in (text + other, other + text):
        outcomes = []
        for brackets in (strict_json._BRACKETS, ()):
            with mock.patch.object(strict_json, "_BRACKETS", brackets):
                try:
                    outcomes.append(repr(strict_json.parse_json(whole)))
                except strict_json.NotJSONError as err:
                    outcomes.append(str(err))
        assert outcomes[0] == outcomes[1]


@given(st.sampled_from([codec.name for codec in CODECS]), json_trees)
def test_any_node_is_a_value_or_damage(name, node):
    with contextlib.suppress(*OURS):
        decode_value(json.dumps([name, 1, node]), BLOBS)
    assert codec_named(name).describe(node).type


def test_a_uuid_is_described_without_its_bytes():
    assert codec_named("plain.uuid").describe(uuid.UUID(int=0).hex).type == "UUID"
    assert codec_named("plain.enum").describe({"enum": "shop.Access"}).type == "shop.Access"


class TestConformance(CodecSuite):
    @pytest.fixture(params=SPECIAL, ids=str)
    def values(self, request):
        return [SPECIAL[request.param]]

    @pytest.fixture
    def codec(self, values):
        return find_codec(values[0])

    def assert_same(self, back, value):
        assert told_apart(back) == told_apart(value)
