"""Untouched entries are copied in bulk: few reads, nothing decoded, the same bytes, verified."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toys import Blob, Box, Child, MemoryReader, MemoryWriter

from sqla_datastore.exceptions import DamagedObjectError, MissingObjectError, UnsupportedTypeError
from sqla_datastore.format import Container, copying, manifest, plan, reader
from sqla_datastore.format import archive as zip_archive

URL = "file:///runs/1/a.zip"


def write(entries):
    writer = MemoryWriter()
    plan(entries, nested_entries=dict).objects[0].write(writer)
    return writer.data


def opened(data, **kwargs):
    return Container.open(MemoryReader(data, **kwargs), URL, nested=int)


def copies(container, **others):
    """Return all entries of an object to be copied, and others in their places or behind them."""
    return {**dict.fromkeys(container.names, container), **others}


def offsets_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return json.loads(archive.read("manifest.json"))["blobs"]["offsets"]


def many(count, size=5):
    numbers = range(count)
    return {f"k{number}": Blob(number.to_bytes(4, "big") * (number % size)) for number in numbers}


MEMBERS = {
    "a": Blob(b"1" * 100, b"", b"2"),
    "n": 1,
    "b": Box(Blob(b"3" * 999)),
    "c": Blob(b"4" * 64),
}
LARGE = {
    "large": Blob(bytes(100_000)),
    "A": Blob(b"large" * 20_000),
    "huge": Blob(bytes(5 << 20)),
}
VALUES = {
    "members": MEMBERS,
    "members_and_large": {**MEMBERS, **LARGE},
    "packed": many(1200),
    "packed_and_large": {**dict([*many(1200).items()][:600]), **LARGE, **many(1200)},
    "nothing": {},
    "no_blobs": dict(zip("abc", [None, 'text\\\n"', 2.5], strict=True)),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
class TestTheSameBytes:
    """A copy cannot be told from an object that was encoded anew."""

    @pytest.fixture(params=[False, True], ids=["parsed", "unparsed"], autouse=True)
    def unparsed(self, request, monkeypatch):
        if request.param:
            monkeypatch.setattr(manifest, "_APART_FROM", 0)

    def test_of_all(self, value):
        data = write(value)
        assert write(copies(opened(data))) == data

    def test_of_all_but_one(self, value):
        container = opened(write(value))
        for name in [*value][:: max(len(value) // 4, 1)]:
            changed = {**value, name: Blob(b"changed")}
            assert write(copies(container, **{name: Blob(b"changed")})) == write(changed)

    def test_with_more(self, value):
        """More small blobs than before are packed, fewer get members."""
        more = {f"more{number}": Blob(b"more") for number in range(1100)}
        container = opened(write(value))
        assert write({**more, **copies(container)}) == write({**more, **value})

    def test_of_some(self, value):
        container = opened(write(value))
        some = [*value][3::7]
        assert write(dict.fromkeys(some, container)) == write({name: value[name] for name in some})

    def test_in_another_order(self, value):
        container = opened(write(value))
        back = [*reversed(value)]
        assert write(dict.fromkeys(back, container)) == write({name: value[name] for name in back})

    def test_of_two_objects(self, value):
        one, two = opened(write(value)), opened(write({**value, "two": Blob(b"2")}))
        mixed = {name: (one, two)[at // 3 % 2] for at, name in enumerate(value)}
        assert write(mixed) == write(value)

    def test_from_a_memory_map(self, value):
        data = write(value)
        assert write(copies(opened(data, maps=True))) == data

    def test_with_small_zip64_limits(self, value, monkeypatch):
        monkeypatch.setattr(zip_archive, "ZIP64_SIZE", 100)
        monkeypatch.setattr(zip_archive, "ZIP64_COUNT", 3)
        data = write(value)
        copy = write(copies(opened(data)))
        assert copy == data
        assert list(opened(copy).check(deep=True)) == []


@settings(max_examples=30)
@given(st.lists(st.integers(0, 300), max_size=30), st.sets(st.integers(0, 29)), st.booleans())
def test_any_sizes_and_any_edits(sizes, edited, packs):
    value = {f"e{at}": Blob(bytes([at]) * size) for at, size in enumerate(sizes)}
    value |= many(1001) if packs else {}
    edits = {f"e{at}": Blob(b"edit") for at in edited}
    copy = write(copies(opened(write(value)), **edits))
    assert copy == write(value | edits)
    assert all(offset % 64 == 0 for offset in offsets_of(copy))


class TestReads:
    """Counted at the storage, so that they hold on any machine."""

    def reads(self, value, **others):
        """Return the reads of blobs while entries are copied, and what the manifest is."""
        container = opened(write(value))
        source = container._reader
        source.reads.clear()
        write(copies(container, **others))
        return source.reads

    def test_a_run_of_packed_blobs_is_one_read(self):
        assert len(self.reads(many(2000))) == 1

    def test_one_edit_makes_two_runs(self):
        assert len(self.reads(many(2000), k1000=1)) == 2

    def test_a_run_of_members_is_one_read(self):
        assert len(self.reads(many(900, size=50))) == 1

    def test_no_byte_of_an_entry_is_read_twice(self):
        value = many(1500, size=90)
        reads = sorted(self.reads(value, k7=1, k700=1, k701=1, k1499=1))
        assert len(reads) == 3
        ends = [offset + size for offset, size in reads]
        assert all(end <= start for end, (start, _) in zip(ends, reads[1:], strict=False))

    def test_what_was_replaced_is_not_read(self):
        value = {"a": Blob(b"a" * 1000), "x": Blob(bytes(5000)), "z": Blob(b"z" * 70_000)}
        assert sum(size for _, size in self.reads(value, x=1)) == 71_000

    def test_a_read_is_of_a_few_mebibytes(self):
        value = {f"k{at}": Blob(bytes([at]) * 60_000) for at in range(200)}
        reads = self.reads(value)
        assert len(reads) == 3
        assert max(size for _, size in reads) <= copying._READ_AT_ONCE

    def test_a_small_object_is_not_read_again(self):
        assert self.reads(MEMBERS, n=2) == []


class TestNothingIsDecoded:
    def test_when_one_of_many_is_replaced(self, monkeypatch):
        container = opened(write(many(20_000)))

        def refuse(*args):
            raise AssertionError(args)

        monkeypatch.setattr(Container, "decode", refuse)
        monkeypatch.setattr(reader, "parse_json", refuse)
        planned = plan(copies(container, k5=7), nested_entries=dict).objects[0]
        assert len(planned.entries) == 3

    def test_one_node_of_a_large_index(self, monkeypatch):
        data, texts = write(many(20_000)), []
        parse = manifest.parse_json

        def noted(text, **options):
            texts.append(text)
            return parse(text, **options)

        monkeypatch.setattr(manifest, "parse_json", noted)
        container = opened(data)
        assert container.load("k5") == many(6)["k5"]
        *index, node = texts
        assert "toy.blob" not in "".join(index)
        assert node.count("toy.blob") == 1


class TestDamage:
    @pytest.mark.parametrize("count", [900, 1500])
    @pytest.mark.parametrize("damaged", [0, 7, 444, 898])
    def test_is_refused_and_named(self, count, damaged):
        value = many(count) | {f"k{damaged}": Blob(b"payload")}
        data = write(value)
        data[offsets_of(data)[damaged] + 3] ^= 1
        objects = plan(copies(opened(data)), nested_entries=dict).objects
        with pytest.raises(DamagedObjectError, match="checksum") as caught:
            objects[0].write(MemoryWriter())
        assert (caught.value.url, caught.value.entry) == (URL, f"k{damaged}")

    @pytest.mark.parametrize("count", [900, 1500])
    def test_of_what_is_replaced_does_not_matter(self, count):
        data = write(many(count))
        data[offsets_of(data)[444]] ^= 1
        assert write(copies(opened(data), k444=1)) == write(many(count) | {"k444": 1})

    @pytest.mark.parametrize("count", [900, 1500])
    def test_between_entries_is_not_copied(self, count):
        """Headers and padding are made anew: no checksum of an entry covers them."""
        good = write(many(count))
        data = bytearray(good)
        for offset in offsets_of(good)[2:100:5]:
            data[offset - 1] ^= 1
        assert write(copies(opened(data))) == good

    @pytest.mark.parametrize("count", [900, 1500])
    def test_an_object_that_was_cut_off(self, count):
        container = opened(write(many(count, size=60)))
        del container._reader.data[70_000:]
        objects = plan(copies(container), nested_entries=dict).objects
        with pytest.raises(DamagedObjectError, match="cut off") as caught:
            objects[0].write(MemoryWriter())
        assert caught.value.entry is not None

    @pytest.mark.parametrize("count", [900, 1500])
    def test_an_object_that_went_away(self, count, monkeypatch):
        container = opened(write(many(count, size=60)))

        def gone(*_):
            raise MissingObjectError(URL)

        monkeypatch.setattr(container._reader, "read", gone)
        objects = plan(copies(container), nested_entries=dict).objects
        with pytest.raises(MissingObjectError) as caught:
            objects[0].write(MemoryWriter())
        assert caught.value.__notes__ == [f"while copying entries 'k1' to 'k{count - 1}'"] or (
            caught.value.__notes__ == [f"while copying entries 'k0' to 'k{count - 1}'"]
        )


class TestUnparsedNodes:
    """A large index is cut where its parser would cut it, or parsed as a whole."""

    @pytest.fixture(autouse=True)
    def unparsed(self, monkeypatch):
        monkeypatch.setattr(manifest, "_APART_FROM", 0)

    def forged(self, text):
        """Return an object with another manifest."""
        writer = MemoryWriter()
        out = zip_archive.ZipWriter(writer)
        out.add(zip_archive.MANIFEST, text)
        out.close(1)
        return opened(writer.data)

    def text(self, names, nodes):
        found = manifest.Manifest(0, names, nodes, [0] * len(names), [], [], [], [], [])
        return found.dump()

    @given(st.dictionaries(st.text(), st.text() | st.integers(), max_size=8))
    def test_any_names_and_texts(self, value):
        container = opened(write(value))
        assert {name: container.load(name) for name in container.names} == value
        assert write(copies(container)) == write(value)

    @pytest.mark.parametrize("name", ['],"nodes":["1"],"blobs":[', '"],"', '","', "\\", '\\"', ","])
    def test_names_that_look_like_its_structure(self, name):
        value = {name: name, "a": [name, {name: name}], name + name: 1}
        container = opened(write(value))
        assert isinstance(container._manifest.nodes, manifest.UnparsedNodes)
        assert {each: container.load(each) for each in container.names} == value

    @pytest.mark.parametrize("separators", [(", ", ": "), (",", ": "), (" ,", ":")])
    def test_json_that_is_written_in_another_way(self, separators):
        text = json.dumps(json.loads(self.text(["a", "b"], ["1", '"x"'])), separators=separators)
        container = self.forged(text.encode())
        assert [container.load("a"), container.load("b")] == [1, "x"]
        assert list(container.check(deep=True)) == []

    @pytest.mark.parametrize(
        "more", ['"x":["a"]', '"x":[1]', '"x":{"y":["a"],"blobs":[1]}', '"x":"],\\"nodes\\":["']
    )
    @pytest.mark.parametrize("before", ['"nodes":', '"blobs":[0', '"offsets":'])
    def test_unknown_keys_are_ignored(self, before, more):
        text = self.text(["a", "b"], ["1", '"x"']).decode()
        container = self.forged(text.replace(before, f"{more},{before}", 1).encode())
        assert [container.load("a"), container.load("b")] == [1, "x"]

    def test_another_column_of_nodes_is_not_taken_for_it(self):
        text = (
            self.text(["a"], ["1"])
            .decode()
            .replace('"entries"', '"x":{"names":[],"nodes":["2"]},"entries"', 1)
        )
        assert self.forged(text.encode()).load("a") == 1

    BAD = [b'x"y', b"x\\", b"\\x", b"\\ud8", b"a\nb", b"\xff", b'1","2', b'1"],"x":["2', b'1\\",']

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("place", [0, 3, 9])
    def test_damage_in_a_node(self, bad, place, monkeypatch):
        """What the parser refuses is refused, at the latest when it is needed; no copy has it."""
        names = [f"k{number}" for number in range(10)]
        nodes = [b"@@" if number == place else str(number) for number in range(10)]
        text = self.text(names, nodes).replace(b"@@", bad)
        found = self.outcomes(text)
        monkeypatch.setattr(manifest, "_APART_FROM", 1 << 30)
        expected = self.outcomes(text)
        if "index" in expected and "index" not in found:
            assert found[names[place]] is DamagedObjectError
            assert found["check"]
        elif "index" not in expected:
            assert all(found[name] in (expected[name], DamagedObjectError) for name in names)

    def outcomes(self, text):
        """Return what comes of opening, checking and loading, twice, and of copying."""
        try:
            container = self.forged(text)
        except DamagedObjectError as err:
            return {"index": type(err)}
        found = {name: outcome(container.load, name) for name in container.names}
        assert found == {name: outcome(container.load, name) for name in container.names}
        for edits in ({}, {"k3": 3}, {"k4": 4}):
            copy = outcome(write, copies(container, **edits))
            if copy is not DamagedObjectError:
                copied = opened(copy)
                for name in {*container.names} - {*edits}:
                    assert outcome(copied.load, name) in (found[name], DamagedObjectError)
        return {**found, "check": bool([*container.check()])}

    @pytest.mark.parametrize("count", [1, 3])
    def test_more_or_fewer_nodes_than_names(self, count):
        text = self.text(["a", "b"], ["1", "2"])
        with pytest.raises(DamagedObjectError, match="length"):
            self.forged(text.replace(b'"1","2"', b",".join([b'"1"'] * count)))

    @pytest.mark.parametrize("number", [b"-1", b"1.5", b"true", b"null", b'"1"', b"[1]", b"1e3"])
    def test_a_number_of_another_kind(self, number):
        text = self.text(["a"], ["1"]).replace(b'"blobs":[0]', b'"blobs":[' + number + b"]")
        with pytest.raises(DamagedObjectError):
            self.forged(text)

    def test_a_name_that_utf8_cannot_express(self):
        text = self.text(["a@", "b"], ["1", "2"]).replace(b"@", b"\\ud800")
        container = self.forged(text)
        with pytest.raises(UnsupportedTypeError, match="rename"):
            write(copies(container))


def outcome(action, *args):
    try:
        return action(*args)
    except DamagedObjectError as err:
        return type(err)


def test_what_refers_to_nested_objects_is_encoded_again():
    child = Child(x=1)
    writer = MemoryWriter()
    plan({"a": child, "b": 1}, nested_entries=dict).objects[0].write(writer)
    container = Container.open(MemoryReader(writer.data), URL, nested=lambda _: child)
    assert container.with_nested == {"a"}
    copied = plan({"a": container.entry("a"), "b": container}, nested_entries=dict)
    assert copied.nested_values == [child]


def test_arrays_stay_readable_by_numpy():
    value = {f"k{at}": np.arange(at, dtype="i4") for at in range(50)}
    copy = write(copies(opened(write(value)), k7=np.ones(3)))
    with np.load(io.BytesIO(copy)) as archive:
        assert archive["k49"].tolist() == [*range(49)]
        assert archive["k7"].tolist() == [1, 1, 1]
