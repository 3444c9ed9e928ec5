"""An index is cut at the places where it is written to have them, as its parser would."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import Blob, MemoryWriter

from sqla_datastore.format import manifest, plan
from sqla_datastore.format.manifest import Manifest, UnparsedNodes


def index_of(entries, **options):
    """Return the bytes of an index, and the offset that it begins at."""
    writer = MemoryWriter()
    plan(entries, nested_entries=dict, **options).objects[0].write(writer)
    data = bytes(writer.data)
    begin = data.index(b'{"format":"sqla_datastore"')
    return data[begin : data.rindex(b"}}") + 2], begin


def parts(data):
    """Return what both ways make of an index; None and the error where one does not take it."""
    cut = manifest._parts_of_dumped(data)
    try:
        return cut, manifest._parts_of_any(data)
    except (manifest.MalformedError, manifest.UnknownFeatureError) as err:
        return cut, err


ENTRIES = {"a": Blob(b"payload"), "b": {"x": [1, 'a "quoted" text', "],", "\\"]}, "ü": 1.5}


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.binary(max_size=9), min_size=1))
def test_what_is_written_is_cut_as_it_would_be_parsed(entries):
    data, _ = index_of(entries)
    cut, parsed = parts(data)
    assert cut is not None
    assert cut == parsed


@pytest.mark.parametrize("level", ["fast", "small"])
def test_so_is_what_is_compressed(level):
    data, _ = index_of({"a": Blob(bytes(10_000)), "b": Blob(b"x")}, compression=level)
    cut, parsed = parts(data)
    assert cut == parsed
    assert cut.level == level
    assert len(cut.numbers) == 9


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_taken_that_the_parser_would_not_take_so(seed):
    rng, taken = random.Random(seed), 0
    data, _ = index_of(ENTRIES, compression="fast" if seed % 2 else None)
    pieces = [b"", b'"', b",", b"\\", b"[", b"]", b"0", b"-", b" ", b"e", b"\xff", b'","', b'"],"']
    for _ in range(3000):
        at = rng.randrange(len(data))
        changed = data[:at] + rng.choice(pieces) + data[at + rng.randrange(3) :]
        cut, parsed = parts(changed)
        if cut is not None:
            taken += 1
            assert cut == parsed, changed
    assert taken > 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"offsets":[', b'"offsets":[00,'),
        (b'"crcs":[', b'"crcs":[4294967296,'),
        (b'"kinds":[', b'"kinds":[9,'),
        (b'"kinds":[', b'"kinds":[,'),
        (b'"sizes":[', b'"sizes":[' + b"9" * 5000 + b","),
        (b'"nested":0', b'"nested":1000001'),
        (b'"nested":0', b'"nested":00'),
        (b'"nested":[]', b'"nested":[3]'),
        (b'"names":["a"', b'"names":[1'),
        (b'"names":["a"', b'"names":["b"'),
        (b'"nodes":["', b'"nodes":["1","'),
        (b'"blobs":[1', b'"blobs":[2'),
        (b'"requires":[]', b'"requires":["compression"]'),
        (b'"requires":[]', b'"requires":["more"]'),
        (b'"version":1', b'"version":2'),
    ],
)
def test_damage_in_it_is_refused_in_both_ways(old, new, monkeypatch):
    data, end = index_of(ENTRIES)
    assert data.count(old) >= 1
    changed = data.replace(old, new, 1)
    errors = (manifest.MalformedError, manifest.UnknownFeatureError)
    with pytest.raises(errors):
        Manifest.parse(changed, end)
    with pytest.raises(errors):
        Manifest.parse(changed, end, whole=True)


def test_no_methods_stand_for_no_compression():
    data, end = index_of({"a": Blob(b"payload")})
    lists = b',"methods":[],"stored_sizes":[9,9,9],"stored_crcs":[7]}}'
    data = data.replace(b'"requires":[]', b'"requires":["compression"]').replace(b"}}", lists)
    for whole in (False, True):
        found = Manifest.parse(data, end, whole=whole)
        assert (found.stored_sizes, found.stored_crcs) == (found.sizes, found.crcs)


def test_only_the_nodes_of_a_large_one_wait(monkeypatch):
    data, end = index_of(ENTRIES)
    assert Manifest.parse(data, end).nodes == Manifest.parse(data, end, whole=True).nodes
    monkeypatch.setattr(manifest, "_APART_FROM", 0)
    found = Manifest.parse(data, end)
    assert isinstance(found.nodes, UnparsedNodes)
    assert [found.node(at) for at in range(3)] == Manifest.parse(data, end, whole=True).nodes
