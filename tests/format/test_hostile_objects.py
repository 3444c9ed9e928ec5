"""Damaged and hostile objects: one of our errors or the written value, never anything else."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import traceback
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.forging import URL, forged, forged_blobs, opened
from support.toys import Blob, Box, MemoryWriter

from sqla_datastore import DataStore
from sqla_datastore.exceptions import (
    DamagedObjectError,
    DataStoreError,
    StorageError,
    UnsupportedFormatError,
)
from sqla_datastore.format import Container, manifest, plan
from sqla_datastore.format import archive as zip_archive
from sqla_datastore.storage import LocalStorage

VALUE = {
    "n": 5,
    "text": "some text",
    "blob": Blob(b"payload" * 10, b"", b"second"),
    "box": Box([1, 2.5, None]),
}
# larger than what is read when an object is opened, which is not read again
LARGE_VALUE = {**VALUE, "rest": Blob(bytes(100_000))}


def written(entries=VALUE):
    writer = MemoryWriter()
    plan(entries, nested_entries=dict).objects[0].write(writer)
    return bytes(writer.data)


def outcomes(data):
    """Read all that can be read; return what came, checking that only our errors do."""
    try:
        container = opened(data)
    except (DamagedObjectError, UnsupportedFormatError) as err:
        return {None: err}
    found = {}
    for name in container.names:
        container.describe(name)
        try:
            found[name] = container.load(name)
        except (DamagedObjectError, UnsupportedFormatError) as err:
            found[name] = err
    list(container.check(deep=True))
    return found


def assert_same_or_refused(data):
    for name, value in outcomes(data).items():
        if not isinstance(value, DataStoreError):
            assert value == VALUE[name], name


class TestAccidents:
    def test_cut_off_anywhere(self):
        data = written()
        for size in range(len(data)):
            with pytest.raises(DamagedObjectError):
                opened(data[:size])

    def test_cut_off_in_front(self):
        data = written()
        for start in (1, 30, 64, 200, len(data) - 200):
            assert_same_or_refused(data[start:])

    def test_something_appended(self):
        for more in (b"\0", b"\n", b"PK", bytes(100)):
            with pytest.raises(DamagedObjectError):
                opened(written() + more)

    def test_every_byte_changed(self):
        data = written()
        for index in range(len(data)):
            damaged = bytearray(data)
            damaged[index] ^= 0xFF
            assert_same_or_refused(damaged)

    @pytest.mark.parametrize("seed", range(10))
    def test_random_bits(self, seed):
        data, rng = written(), random.Random(seed)
        for _ in range(50):
            damaged = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 8, 64])):
                damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            assert_same_or_refused(damaged)

    @pytest.mark.parametrize("size", [1, 16, 512, 4096])
    def test_a_zeroed_block(self, size):
        data = written()
        for start in range(0, len(data), max(size, 16)):
            assert_same_or_refused(data[:start] + bytes(size) + data[start + size :])

    def test_damage_is_found_by_check(self):
        """A changed byte anywhere is reported, by opening or by a deep check."""
        data = written()
        unseen = []
        for index in range(len(data)):
            damaged = bytearray(data)
            damaged[index] ^= 0xFF
            with contextlib.suppress(DataStoreError):
                if not list(opened(damaged).check(deep=True)):
                    unseen.append(index)
        assert unseen == []

    @pytest.mark.parametrize("size", [0, 1, 21, 22, 100, 70_000])
    @pytest.mark.parametrize("filling", [b"\0", b"P", b"\xff"])
    def test_no_archive_at_all(self, size, filling):
        with pytest.raises(DamagedObjectError) as caught:
            opened(filling * size)
        assert caught.value.url == URL

    def test_a_foreign_archive(self):
        file = io.BytesIO()
        np.savez(file, a=np.arange(3))
        with pytest.raises(DamagedObjectError, match="ZIP"):
            opened(file.getvalue())
        empty = io.BytesIO()
        zipfile.ZipFile(empty, "w").close()
        with pytest.raises(DamagedObjectError):
            opened(empty.getvalue())

    def test_repacked_by_another_tool(self):
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(written())) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        with pytest.raises(DamagedObjectError):
            opened(file.getvalue())

    def test_swapped_objects_of_the_same_shape(self):
        """The blobs of one object under the index of another do not pass."""
        one, other = written({"x": Blob(b"first!")}), written({"x": Blob(b"second")})
        assert len(one) == len(other)
        cut = one.index(b"first!") + 6
        with pytest.raises(DamagedObjectError):
            opened(other[:cut] + one[cut:]).load("x")


def node(text):
    return forged(lambda manifest: manifest["entries"].update(nodes=[text]))


class TestForgedManifests:
    def test_the_forgery_itself_is_good(self):
        container = opened(forged(data=b"payload"))
        assert container.load("x") == Blob(b"payload")
        assert list(container.check(deep=True)) == []

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "null",
            "[]",
            "{}",
            '"text"',
            "1",
            "NaN",
            '{"format": NaN}',
            '{"format": "sqla_datastore"}',
            '{"format": "other", "version": 1}',
            '{"format": "sqla_datastore", "format": "sqla_datastore"}',
            "[" * 100_000,
            "[" * 5000 + "]" * 5000,
            '{"a":' * 5000 + "1" + "}" * 5000,
            "1" * 5000,
            "\ud800",
            '{"format": "sqla_datastore", "version": 1} trailing',
        ],
        ids=range(17),
    )
    def test_manifests_that_are_none(self, text):
        with pytest.raises(DamagedObjectError):
            opened(forged(text=text))

    @pytest.mark.parametrize(
        "key",
        ["format", "version", "nested", "entries", "blobs"],
    )
    def test_a_key_that_is_missing(self, key):
        with pytest.raises(DamagedObjectError):
            opened(forged(lambda manifest: manifest.pop(key)))

    @pytest.mark.parametrize("table", ["entries", "blobs"])
    @pytest.mark.parametrize(
        "column",
        [None, 1, "ab", {}, [None], [1.0], [True], [[1]], [-1], [2**70], ["x", "x"], [], [0, 0]],
    )
    def test_a_column_of_another_kind(self, table, column):
        for name in json.loads(_text_of(forged()))[table]:
            data = forged(lambda manifest, name=name: manifest[table].update({name: column}))
            try:
                container = opened(data)
            except DamagedObjectError:
                continue
            for entry in container.names:
                _load_or_refuse(container, entry)

    @pytest.mark.parametrize("nested", [-1, 2**70, 1.0, "1", None, True, [0]])
    def test_a_nested_count_that_is_none(self, nested):
        with pytest.raises(DamagedObjectError):
            opened(forged(lambda manifest: manifest.update(nested=nested)))

    @pytest.mark.parametrize(
        ("offset", "size"),
        [
            (0, 2**62),
            (64, 2**40),
            (2**62, 1),
            (2**64 - 64, 128),
            (1, 4),
            (64, 10_000),
            (-64, 64),
            (10_048, 1),
        ],
    )
    def test_lying_ranges(self, offset, size):
        def lie(manifest):
            manifest["blobs"].update(offsets=[offset], sizes=[size])

        with pytest.raises(DamagedObjectError):
            opened(forged(lie, data=b"payload"))

    def test_overlapping_blobs(self):
        def overlap(manifest):
            start = manifest["blobs"]["offsets"][0]
            manifest["blobs"] = {
                "offsets": [start, start + 64],
                "sizes": [100, 50],
                "crcs": [0, 0],
                "kinds": [0, 0],
            }
            manifest["entries"]["blobs"] = [2]

        with pytest.raises(DamagedObjectError, match="overlap"):
            opened(forged(overlap, data=bytes(200)))

    def test_two_entries_of_one_name(self):
        def twice(manifest):
            manifest["entries"] = {
                "names": ["x", "x"],
                "nodes": ["1", "2"],
                "blobs": [0, 1],
                "nested": [],
            }

        with pytest.raises(DamagedObjectError, match="twice"):
            opened(forged(twice))

    def test_lying_sizes_allocate_nothing(self):
        tracemalloc.start()
        for lie in (
            lambda manifest: manifest["blobs"].update(sizes=[2**50]),
            lambda manifest: manifest["entries"].update(blobs=[2**50]),
            lambda manifest: manifest.update(nested=10**6),
        ):
            outcomes(forged(lie))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    def test_an_anchor_that_lies_allocates_nothing(self, tmp_path):
        """A sparse file that claims a manifest of a terabyte."""
        data = forged()
        end = bytearray(data[-22 - 32 :])
        size, total = 1 << 40, (1 << 40) + 4096
        end[8:24] = (0).to_bytes(8, "little") + size.to_bytes(8, "little")
        end[28:32] = zip_archive.crc32(bytes(end[:28])).to_bytes(4, "little")
        with open(tmp_path / "a.zip", "wb") as file:
            file.truncate(total)
            file.seek(total - len(end))
            file.write(end)
        tracemalloc.start()
        with pytest.raises(DamagedObjectError):
            Container.open(LocalStorage(tmp_path).open("a.zip"), URL, nested=int)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


class TestForgedNodes:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            "[1,2]",
            "[1,2,3]",
            '["toy.blob",1]',
            '["toy.blob",0,null]',
            '["toy.blob",true,null]',
            '["toy.blob",1.0,null]',
            '["toy.blob",1,null]',
            '["toy.blob",1,{}]',
            '["toy.blob",1,{"numbers":[1],"mapped":false}]',
            '["toy.blob",1,{"numbers":[-1],"mapped":false}]',
            '["toy.blob",1,{"numbers":[true],"mapped":false}]',
            '["toy.blob",1,{"numbers":["0"],"mapped":false}]',
            '["toy.blob",1,{"numbers":[0],"numbers":[0],"mapped":false}]',
            '["toy.child",1,0]',
            '["toy.child",1,-1]',
            '["toy.box",1,[NaN]]',
            '["toy.box",1,[Infinity]]',
            '["toy.box",1,[{}]]',
            '["toy.box",1,' * 5000,
            '["toy.box",1,[' * 101 + "1" + "]]" * 101,
            '["toy.box",1,[' * 400 + "1" + "]]" * 400,
            "[" * 100_000,
            "1" * 10_000,
        ],
        ids=range(26),
    )
    def test_a_node_that_makes_no_value(self, text):
        container = opened(node(text))
        with pytest.raises(DamagedObjectError) as caught:
            container.load("x")
        assert caught.value.entry == "x"
        assert not isinstance(caught.value, (KeyError, AttributeError))
        _describe_or_refuse(container)
        list(container.check(deep=True))

    @pytest.mark.parametrize("name", ["os.system", "toy", "", "toy.Blob", "builtins.eval"])
    def test_an_unknown_codec(self, name):
        container = opened(node(json.dumps([name, 1, None])))
        with pytest.raises(UnsupportedFormatError) as caught:
            container.load("x")
        assert (caught.value.url, caught.value.entry) == (URL, "x")
        assert container.describe("x").type == name

    def test_a_newer_codec(self):
        with pytest.raises(UnsupportedFormatError, match="version 2"):
            opened(node('["toy.blob",2,null]')).load("x")


class TestNewerFormats:
    def test_a_newer_anchor(self):
        with pytest.raises(UnsupportedFormatError, match="version 2") as caught:
            opened(forged(text="anything", version=2))
        assert caught.value.url == URL

    def test_a_newer_manifest(self):
        with pytest.raises(UnsupportedFormatError, match="version 7"):
            opened(forged(lambda manifest: manifest.update(version=7)))

    @pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
    def test_a_version_that_is_none(self, version):
        with pytest.raises(DamagedObjectError):
            opened(forged(lambda manifest: manifest.update(version=version)))

    def test_a_required_feature(self):
        with pytest.raises(UnsupportedFormatError, match="encryption"):
            opened(forged(lambda manifest: manifest.update(requires=["encryption"])))

    def test_optional_keys_are_ignored(self):
        def extend(manifest):
            manifest.update(comment="made by a later version")
            manifest["entries"]["statistics"] = [None]
            manifest["blobs"]["sha256"] = ["0" * 64]

        assert opened(forged(extend, data=b"payload")).load("x") == Blob(b"payload")


class TestHostileDirectories:
    """What other tools would see is compared by `check`; reading never follows it."""

    def test_a_member_that_no_entry_refers_to(self):
        data = forged(lambda m: (m["entries"].update(blobs=[0]), m.update(blobs=_NO_BLOBS)))
        assert any("x.bin" in problem for problem in opened(data).check())

    def test_a_blob_without_a_member(self):
        def shift(manifest):
            manifest["blobs"].update(offsets=[128], sizes=[10])

        assert any(
            "byte 128" in problem for problem in opened(forged(shift, data=bytes(200))).check()
        )

    def test_a_directory_that_differs(self):
        data = bytearray(written())
        record = data.index(b"PK\1\2")
        data[record + 16] ^= 1
        container = opened(data)
        assert container.load("blob") == VALUE["blob"]
        assert list(container.check()) != []

    @pytest.mark.parametrize("size", [1, 2000])
    def test_names_beyond_ascii(self, size):
        data = bytearray(written({"x" * 5000: Blob(b"1"), **VALUE}))
        record = data.index(b"PK\1\2")
        data[record + 28 : record + 30] = size.to_bytes(2, "little")
        data[record + 46 : record + 48] = b"\xff\xff"
        assert list(opened(data).check()) != []

    def test_a_local_header_that_differs(self):
        data = bytearray(written())
        data[30] ^= 1
        container = opened(data)
        assert container.load("blob") == VALUE["blob"]
        assert any("local header" in problem for problem in container.check())


_NO_BLOBS = {"offsets": [], "sizes": [], "crcs": [], "kinds": []}


LIBRARIES = {
    "array": np.arange(12).reshape(3, 4),
    "structured": np.array([("x", 1)], dtype=[("n", "U3"), ("v", "<i4")]),
    "masked": np.ma.array([1, 2], mask=[False, True]),
    "dates": np.array(["2020-01-01"], "M8[s]"),
    "frame": pd.DataFrame(
        {"a": [1, 2], "b": ["x", None], "c": pd.Categorical(["u", "v"])},
        index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
    ),
    "times": pd.Series(pd.date_range("2020", periods=2, tz="UTC")),
    "table": pa.table({"a": [1, 2], "s": ["x", "yy"], "l": [[1], [2, 3]]}),
    "python": [1, "x", (2, 3), {1: 2, "k": 3}, 2**100, {1, 2}, b"x"],
    "bytes": b"x" * 5000,
}
STRANGE = [0, -1, 2**31, 2**52, 1.5, "", "x", None, True, [], {}, "<i8", "O", [2**52, 4], [-1]]


def _array(dtype, length, blob):
    return {"dtype": dtype, "shape": [length], "order": "C", "start": 0, "blob": blob}


def _sparse(blob, values=None):
    """The node of a sparse array of 2**30 items, of which sixteen are stored."""
    return {
        "kind": "sparse",
        "length": 1 << 30,
        "block": False,
        "positions": ["numpy.array", 1, _array("<i4", 16, blob)],
        "values": values or {"kind": "object", "values": ["plain.list", 1, {"json": [*range(16)]}]},
        "fill": 0,
    }


def _pandas(**parts):
    return {**parts, "physical": {"blocks": [], "streams": []}}


_CODES = ["numpy.array", 1, _array("|i1", 64, 0)]
_RANGE = {"range": [0, 1 << 30, 1]}
_POSITIONS = np.arange(16, dtype="<i4").tobytes()
_NO_ITEMS = _array({"fields": [], "itemsize": 2**31 - 1}, 0, 0)
_LEVEL = {"levels": [_RANGE], "codes": [_CODES], "names": [None], "sortorder": None}
_CATEGORIES = {"codes": _CODES, "categories": {"array": _sparse(1)}, "ordered": False}
_SIDES = {"left": _sparse(0), "right": _sparse(1), "closed": "left"}
CLAIMS = {
    "a default item": (
        "it masks no items",
        "numpy.masked",
        {"data": _NO_ITEMS, "hard": False},
        b"",
    ),
    "a level": ("a level has more items", "pandas.index", _pandas(index=_LEVEL), bytes(64)),
    "categories": (
        "an index is longer",
        "pandas.array",
        _pandas(array={"kind": "categorical", **_CATEGORIES}),
        *(bytes(64), _POSITIONS),
    ),
    "an interval": (
        "an interval array is longer",
        "pandas.array",
        _pandas(array={"kind": "interval", **_SIDES}),
        *(_POSITIONS, _POSITIONS),
    ),
    "sparse values": (
        "of another kind",
        "pandas.array",
        _pandas(array=_sparse(0, _sparse(1))),
        *(_POSITIONS, _POSITIONS),
    ),
    "an index without duplicates": (
        "an index is longer",
        "pandas.series",
        _pandas(array=_sparse(0), index={"array": _sparse(1)}, name=None, unique_labels=True),
        *(_POSITIONS, _POSITIONS),
    ),
}


class TestHostileAuthors:
    """Objects whose checksums are right and whose payloads or nodes were made to harm."""

    @pytest.mark.parametrize("seed", range(20))
    def test_payloads(self, seed):
        rng = random.Random(seed)
        data = bytearray(written(LIBRARIES))
        container = opened(data)
        manifest = container._manifest
        for blob, (offset, size) in enumerate(zip(manifest.offsets, manifest.sizes, strict=True)):
            for _ in range(rng.choice([1, 1, 3, 20])):
                data[offset + rng.randrange(size)] = rng.choice([0, 255, rng.randrange(256)])
            manifest.crcs[blob] = zip_archive.crc32(data[offset : offset + size])
        for name in container.names:
            _load_or_refuse(container, name)

    @pytest.mark.parametrize("seed", range(20))
    def test_nodes(self, seed):
        rng = random.Random(seed)
        container = opened(written(LIBRARIES))
        nodes = container._manifest.nodes
        for index, text in enumerate(nodes):
            codec, version, inner = json.loads(text)
            nodes[index] = json.dumps([codec, version, _changed(inner, rng)])
        for name in container.names:
            container.describe(name)
            _load_or_refuse(container, name)

    @pytest.mark.parametrize(
        "inner",
        [
            ["plain.bytes", 1, 0],
            ["plain.list", 1, {"packed": "q", "blob": 0}],
            ["plain.list", 1, {"json_blob": 0}],
            ["toy.blob", 1, {"numbers": [0], "mapped": True}],
        ],
        ids=lambda inner: inner[0],
    )
    def test_a_blob_that_many_nodes_name(self, inner):
        """The object's size bounds what reading it allocates."""
        data = b"[" + b" " * (1 << 20) + b" " * 6 + b"]"
        once = forged(_node_of(["plain.list", 1, {"items": [inner]}]), data=data)
        assert len(opened(once).load("x")) == 1
        many = forged(_node_of(["plain.list", 1, {"items": [inner] * 400}]), data=data)
        tracemalloc.start()
        with pytest.raises(DamagedObjectError, match="blob 0 twice"):
            opened(many).load("x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * len(many)

    @pytest.mark.parametrize("claim", CLAIMS)
    def test_what_is_longer_than_its_bytes(self, claim):
        """It is refused before a library makes up memory for it."""
        message, codec, node, *blobs = CLAIMS[claim]
        container = opened(forged_blobs([codec, 1, node], *blobs))
        tracemalloc.start()
        with pytest.raises(DamagedObjectError, match=message):
            container.load("x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 23

    def test_nulls_that_would_become_numbers(self):
        """Arrow's nulls take no bytes, and polars would fill the memory with numbers for them."""
        stream = pa.BufferOutputStream()
        batch = pa.record_batch({"a": pa.nulls(1 << 24)})
        with pa.ipc.new_stream(stream, batch.schema) as writer:
            writer.write_batch(batch)
        for names in (["Int64"], [{"Enum": ["a"]}]):
            node = {"stream": 0, "names": ["a"], "types": names, "shape": [1 << 24, 1]}
            data = forged_blobs(["capsule.polars_frame", 1, node], stream.getvalue().to_pybytes())
            with pytest.raises(DamagedObjectError, match="nulls"):
                opened(data).load("x")

    def test_an_entry_is_loaded_as_often_as_one_likes(self):
        container = opened(written(LIBRARIES))
        for name in container.names * 2:
            container.load(name)

    @pytest.mark.parametrize("count", [10**8, (1 << 20) + 1])
    def test_columns_of_no_bytes(self, count):
        data = forged(_node_of(_frame_of_runs(count, [(0, count)])))
        tracemalloc.start()
        with pytest.raises(DamagedObjectError, match="too many columns"):
            opened(data).load("x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    def test_a_column_that_is_used_twice(self):
        good = forged(_node_of(_frame_of_runs(4, [(0, 2), (2, 2)])))
        assert opened(good).load("x").shape == (0, 4)
        for runs in ([(0, 2), (0, 2)], [(0, 2), (1, 2)], [(0, 3), (2, 1)], [(0, 2), (2, 0)]):
            with pytest.raises(DamagedObjectError, match="used twice"):
                opened(forged(_node_of(_frame_of_runs(4, runs)))).load("x")

    def test_json_with_a_key_twice(self):
        data = b'{"a":1,"a":2}' + b" " * 16
        with pytest.raises(DamagedObjectError, match="keys are all different"):
            opened(forged(_node_of(["plain.dict", 1, {"json_blob": 0}]), data=data)).load("x")


def _frame_of_runs(columns, runs):
    """Return the node of a frame without rows, of a block with so many columns."""
    block = {"blob": 0, "dtype": "<f8", "shape": [columns, 0], "by_row": False, "offset": 0}
    names = sum(count for _, count in runs)
    node = {
        "physical": {"blocks": [block], "streams": []},
        "dtype": "float64",
        "shape": [0, names],
        "index": {"range": [0, 0, 1]},
        "columns": {"range": [0, names, 1]},
        "data": [{"kind": "run", "block": 0, "row": row, "count": n} for row, n in runs],
    }
    return ["pandas.frame", 1, node]


def _node_of(inner):
    """Return what gives a manifest's only entry a node."""
    return lambda manifest: manifest["entries"].update(nodes=[json.dumps(inner)])


def _changed(node, rng):
    """Return a node with one value exchanged or one part removed, somewhere."""
    if not isinstance(node, (list, dict)) or not node or rng.random() < 0.15:
        return rng.choice(STRANGE)
    node = node.copy()
    key = rng.choice([*node] if isinstance(node, dict) else range(len(node)))
    if rng.random() < 0.1:
        del node[key]
    else:
        node[key] = _changed(node[key], rng)
    return node


HEX = "a" * 32


class TestHostileFamilies:
    """Objects that name each other: at most a tree, and no larger than what is stored."""

    @pytest.fixture
    def put(self, tmp_path):
        def put(children, name="-{}", nested=None):
            """Write a family by the numbers that each object names, and open the first."""
            count = len(children) - 1
            stem = HEX + name.format(count)
            for number, named in enumerate(children, -1):
                path = tmp_path / f"{stem}{'' if number < 0 else f'.{number + 1}'}.zip"
                path.write_bytes(family_member(count if nested is None else nested, named))
            return DataStore.from_url(f"file:///{stem}.zip", storage=tmp_path)

        return put

    def test_a_tree_is_read(self, put):
        ds = put([[0, 2], [1], [], [3], []])
        inner = {"x0": {"x0": {}}}
        assert ds.to_dict() == {"x0": inner["x0"], "x1": inner["x0"]}
        assert ds.to_dict() == ds.copy().to_dict()
        assert ds == ds.copy()

    @pytest.mark.parametrize(
        "children",
        [
            [[0], [0]],  # itself
            [[0], [1], [0]],
            [[0, 0], []],
            [[0, 1], [1], []],
            [[[0, 0]], []],  # twice in one entry
            [[1, 0], [], [0]],
        ],
    )
    def test_what_is_no_tree_is_damage(self, put, children):
        for act in (
            DataStore.to_dict,
            lambda ds: ds._plan(None),
            lambda ds: copy.deepcopy(ds).to_dict(),
            lambda ds: ds == {"x0": 1, "x1": 2} or ds.to_dict(),
        ):
            with pytest.raises(DamagedObjectError, match="nested"):
                act(put(children))

    @pytest.mark.parametrize("make", [lambda n, i: [i + 1] * 2, lambda n, i: range(i + 1, n)])
    def test_small_families_stand_for_no_large_tree(self, put, make):
        count = 30
        ds = put([make(count, number) for number in range(-1, count - 1)] + [[]])
        with pytest.raises(DamagedObjectError):
            ds.to_dict()
        assert len(repr(ds)) < 10_000

    def test_a_long_chain(self, put):
        assert put([*([number] for number in range(50)), []]).to_dict()
        with pytest.raises(DamagedObjectError, match="deeper than 50"):
            put([*([number] for number in range(2000)), []]).to_dict()

    @pytest.mark.parametrize("name", ["", "-1"])
    def test_more_nested_objects_than_the_name_says(self, put, name):
        with pytest.raises(DamagedObjectError, match="than its name says"):
            len(put([[0], [], []], name=name))


def family_member(nested, children):
    """Return an object of a family; a child is a number, or a list of several in one entry."""

    def change(manifest):
        nodes = [
            ["plain.list", 1, {"items": [["datastore", 1, each] for each in child]}]
            if isinstance(child, list)
            else ["datastore", 1, child]
            for child in children
        ]
        manifest.update(nested=nested, blobs=_NO_BLOBS)
        manifest["entries"] = {
            "names": [f"x{index}" for index in range(len(nodes))],
            "nodes": [json.dumps(each) for each in nodes],
            "blobs": [0] * len(nodes),
            "nested": [*range(len(nodes))],
        }

    return forged(change)


class TestFiles:
    @pytest.fixture
    def storage(self, tmp_path):
        return LocalStorage(tmp_path)

    def test_cut_off_while_open(self, storage, tmp_path):
        (tmp_path / "a.zip").write_bytes(written(LARGE_VALUE))
        container = Container.open(storage.open("a.zip"), URL, nested=int)
        os.truncate(tmp_path / "a.zip", 100)
        with pytest.raises(DamagedObjectError):
            container.load("blob")
        assert list(container.check(deep=True)) != []

    def test_an_empty_file(self, storage, tmp_path):
        (tmp_path / "a.zip").touch()
        with pytest.raises(DamagedObjectError):
            Container.open(storage.open("a.zip"), URL, nested=int)

    def test_exchanged_by_a_link_or_fifo_while_open(self, storage, tmp_path):
        for make in (lambda path: path.symlink_to("/etc/passwd"), os.mkfifo):
            path = tmp_path / "a.zip"
            path.write_bytes(written(LARGE_VALUE))
            container = Container.open(storage.open("a.zip"), URL, nested=int)
            path.unlink()
            make(path)
            with pytest.raises(StorageError):
                container.load("blob")
            path.unlink()


class TestNames:
    """What an object is called by is shown, and obeyed by no terminal."""

    HOSTILE = "\x1b[2J\x07\n\x9b31m\x7f\u202e\u2028\ud800"
    NODES = (
        [HOSTILE, 1, None],
        [HOSTILE * 100_000, 1, None],
        ["plain.enum", 1, {"enum": HOSTILE, "member": "A"}],
        ["plain.enum", 1, {"enum": HOSTILE * 100_000, "member": "A"}],
        ["numpy.array", 1, {"dtype": HOSTILE, "shape": [1], "blob": 0}],
        ["numpy.array", 1, {"dtype": [[HOSTILE * 100_000, "<i4"]], "shape": [1], "blob": 0}],
        ["pandas.dtype", 1, HOSTILE],
        [HOSTILE],
    )

    @pytest.mark.parametrize("name", ["x", HOSTILE, HOSTILE * 100_000])
    @pytest.mark.parametrize("inner", NODES, ids=range(len(NODES)))
    def test_errors_and_reprs_are_printable(self, tmp_path, name, inner):
        def change(manifest):
            manifest["entries"].update(names=[name], nodes=[json.dumps(inner)])

        storage = LocalStorage(tmp_path)
        path = f"rows/{'0' * 32}.zip"
        with storage.create(path) as writer:
            writer.write(forged(change, data=b"1234"))
        value = DataStore.from_url(f"file:///{path}", storage=storage)
        for text in (repr(value), value._repr_html_()):
            assert text.replace("\n", "").isprintable()
            assert text.count("\n") <= 1
            assert len(text) < 3_000
        with pytest.raises(DataStoreError) as caught:
            value[name]
        shown = "".join(traceback.format_exception_only(caught.value)).removesuffix("\n")
        assert shown.isprintable()
        assert len(shown) < 5_000
        cause = caught.value.__cause__
        assert cause is None or str(cause).isprintable()


def _text_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read("manifest.json").decode()


def _load_or_refuse(container, name):
    with contextlib.suppress(DamagedObjectError, UnsupportedFormatError):
        container.load(name)


def _describe_or_refuse(container):
    with contextlib.suppress(DamagedObjectError):
        container.describe("x")


def test_limits_are_bounded():
    """What a hostile manifest can make a reader allocate is a few times its own size."""
    assert zip_archive.MAX_MANIFEST <= 1 << 28
    assert manifest.MAX_ENTRIES <= 10**6
