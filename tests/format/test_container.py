"""One value is one plain ZIP: written in one pass, found from its end, verified before use."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import Blob, Box, Child, Fault, Liar, MemoryReader, MemoryWriter

from sqla_datastore.codecs._stream import refused_as_damage
from sqla_datastore.exceptions import (
    DamagedObjectError,
    MissingObjectError,
    StaleValueError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.format import Container, encoder, manifest, matches, plan
from sqla_datastore.format import archive as zip_archive
from sqla_datastore.storage import LocalStorage

GOLDEN = Path(__file__).parent / "golden"
URL = "file:///runs/1/a.zip"

# what is read at once when an object is opened is not read again
LARGER_THAN_THE_TAIL = {"rest": Blob(bytes(100_000))}


def planned(entries, **kwargs):
    return plan(entries, nested_entries=dict, **kwargs)


def write(entries):
    writer = MemoryWriter()
    planned(entries).objects[0].write(writer)
    return writer.data


def opened(data, *, maps=False, **kwargs):
    nested = kwargs.pop("nested", lambda number: f"nested {number}")
    return Container.open(MemoryReader(data, maps=maps), URL, nested=nested, **kwargs)


def stored(entries, **kwargs):
    return opened(write(entries), **kwargs)


def loaded(container):
    return {name: container.load(name) for name in container.names}


def manifest_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return json.loads(archive.read("manifest.json"))


def _bits(number):
    return f"{number.bit_length()}bits"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


MIXED = {
    "nothing": None,
    "yes": True,
    "count": 42,
    "ratio": -0.0,
    "text": 'ä"\\\n\u2028',
    "list": [1, [2.5, None], "x"],
    "blob": Blob(b"payload", b"", b"x" * 1000),
    "box": Box(Box([Blob(b"inner")])),
}


class TestRoundTrip:
    def test_mixed_entries(self):
        container = stored(MIXED)
        assert container.names == tuple(MIXED)
        assert loaded(container) == MIXED
        assert str(container.load("ratio")) == "-0.0"

    def test_an_empty_value(self):
        container = stored({})
        assert container.names == ()
        assert list(container.check(deep=True)) == []

    @given(st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=8))
    def test_any_name_and_text(self, entries):
        container = stored(entries)
        assert loaded(container) == entries
        assert list(container.check(deep=True)) == []

    @given(st.floats(allow_nan=False))
    def test_floats_are_exact(self, number):
        assert repr(stored({"x": number}).load("x")) == repr(number)

    @pytest.mark.parametrize(
        "number", [2**53, -(2**53), 2**53 + 1, 2**63, -(2**70), 2**20_000], ids=_bits
    )
    def test_integers_of_any_size(self, number):
        assert stored({"x": number}).load("x") == number

    @pytest.mark.parametrize("text", ["\ud800", "a\udc00\ud800b", "\ud83d\ude00"])
    def test_text_that_utf8_cannot_express(self, text):
        assert stored({"x": text, "y": [text]}).load("y") == [text]
        assert stored({"x": text}).load("x") == text

    def test_types_stay_apart(self):
        values = {"a": 1, "b": True, "c": 1.0, "d": "1", "e": [1, True, 1.0, "1"]}
        found = loaded(stored(values))
        assert [type(found[name]) for name in "abcd"] == [int, bool, float, str]
        assert [type(item) for item in found["e"]] == [int, bool, float, str]

    def test_the_same_entries_give_the_same_bytes(self):
        assert write(MIXED) == write(MIXED)

    def test_lookups(self):
        container = stored(MIXED)
        assert "blob" in container
        assert "Blob" not in container
        assert None not in container
        for call in (container.load, container.describe, container.entry):
            with pytest.raises(KeyError):
                call("missing")


class TestNames:
    def test_a_surrogate_in_a_name_is_refused(self):
        with pytest.raises(UnsupportedTypeError, match="rename"):
            planned({"a\ud800": 1}, column="t.c")

    def test_a_name_that_is_no_text_is_refused(self):
        with pytest.raises(UnsupportedTypeError, match="not str"):
            planned({1: 1})

    def test_member_names_are_safe_and_unique(self):
        names = ["a", "A", "ä", "ö", "../../etc/passwd", "con", "NUL", "", " ", "a-2", "x" * 500]
        names += ["manifest", "small-blobs", "a.0", "\0", "K", "\u212a"]
        data = write({name: Blob(b"1", b"2") for name in names})
        members = zipfile.ZipFile(io.BytesIO(data)).namelist()
        assert len({member.casefold() for member in members}) == 2 * len(names) + 1
        for member in members:
            assert member.isascii()
            assert member == member.lower()
            assert "/" not in member
            assert len(member) < 100
            assert member.partition(".")[0] not in {"con", "nul", ""}
        assert loaded(opened(data)) == {name: Blob(b"1", b"2") for name in names}


class TestOtherTools:
    @pytest.fixture
    def data(self):
        arrays = {
            "a": Blob(npy(np.arange(10)), suffix=".npy"),
            "z": Blob(npy(np.zeros((0, 3))), suffix=".npy"),
        }
        return write({**arrays, **MIXED})

    def test_zipfile_reads_it(self, data):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            assert archive.namelist()[-1] == "manifest.json"
            assert archive.read("blob.0.bin") == b"payload"
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
            assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}

    def test_numpy_reads_it(self, data):
        with np.load(io.BytesIO(data)) as archive:
            assert archive["a"].tolist() == list(range(10))
            assert archive["z"].shape == (0, 3)

    @pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
    def test_unzip_tests_it(self, data, tmp_path):
        for number, content in enumerate([data, write({}), write(many(1500))]):
            path = tmp_path / f"{number}.zip"
            path.write_bytes(content)
            done = subprocess.run(["unzip", "-t", path], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout

    def test_data_are_aligned(self, data):
        manifest = manifest_of(data)
        assert all(offset % 64 == 0 for offset in manifest["blobs"]["offsets"])
        assert data.count(b"PK\3\4") == len(zipfile.ZipFile(io.BytesIO(data)).namelist())


def many(count):
    return {f"k{number}": Blob(number.to_bytes(4, "big") * (number % 5)) for number in range(count)}


class TestManyBlobs:
    def test_a_thousand_small_blobs_have_members(self):
        assert len(zipfile.ZipFile(io.BytesIO(write(many(1000)))).namelist()) == 1001

    def test_more_are_packed_into_one_member(self):
        entries = {**many(1200), "large": Blob(bytes(100_000)), "last": Blob(b"end")}
        data = write(entries)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.namelist() == ["large.bin", "small-blobs.bin", "manifest.json"]
            assert archive.testzip() is None
        container = opened(data)
        assert loaded(container) == entries
        assert list(container.check(deep=True)) == []

    def test_each_packed_blob_has_its_own_checksum(self):
        data = write(many(1200))
        offset = manifest_of(data)["blobs"]["offsets"][801]
        data[offset] ^= 1
        container = opened(data)
        with pytest.raises(DamagedObjectError):
            container.load("k801")
        assert container.load("k802") == many(1200)["k802"]


class TestLargeFigures:
    """The ZIP64 forms, in small files: their limits are lowered."""

    @pytest.mark.parametrize("size", [1, 100, 5000])
    @pytest.mark.parametrize("count", [1, 3, 1000])
    def test_zip64(self, monkeypatch, size, count):
        monkeypatch.setattr(zip_archive, "ZIP64_SIZE", size)
        monkeypatch.setattr(zip_archive, "ZIP64_COUNT", count)
        data = write({**MIXED, "large": Blob(bytes(range(256)) * 40)})
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            assert len(archive.read("large.bin")) == 10240
        container = opened(data)
        assert container.load("large").parts[0] == bytes(range(256)) * 40
        assert list(container.check(deep=True)) == []


class TestWriting:
    def test_one_small_buffer_whatever_the_size(self):
        data = bytes(20 << 20)
        objects = planned({"x": Blob(data)}).objects
        writer = MemoryWriter()
        writer.data = _Sink()
        tracemalloc.start()
        objects[0].write(writer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
        assert writer.largest <= zip_archive.BUFFER

    @pytest.mark.parametrize("size", [0, 10, 5_000, 100_000, zip_archive.BUFFER - 1_500])
    def test_a_small_object_is_written_by_one_call(self, size):
        data = bytes(range(256)) * (size // 256 + 1)
        entries = {**MIXED, "a": Blob(data[:size]), "b": Blob(data[: size // 3], b"!")}
        writer = MemoryWriter()
        planned(entries if size < 200_000 else {"a": Blob(data[:size])}).objects[0].write(writer)
        assert writer.largest == len(writer.data)
        assert list(opened(writer.data).check(deep=True)) == []

    def test_a_small_object_takes_little_memory(self):
        objects = planned({"n": 1}).objects
        writer = MemoryWriter()
        tracemalloc.start()
        objects[0].write(writer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(writer.data) < 1_000
        assert peak < 32 * 1024

    @pytest.mark.parametrize("size", [2 << 20, 4_000], ids=["in pieces", "at once"])
    def test_bytes_and_checksum_agree_while_another_thread_edits(self, size):
        array = np.zeros(size, dtype="u1")
        stop = threading.Event()

        def edit():
            value = 0
            while not stop.is_set():
                value = (value + 1) % 256
                array[:] = value

        blob = Blob(b"")
        blob.parts = (memoryview(array),)
        thread = threading.Thread(target=edit)
        thread.start()
        try:
            data = write({"x": blob})
        finally:
            stop.set()
            thread.join()
        assert list(opened(data).check(deep=True)) == []

    @pytest.mark.parametrize("items", [6, 6_000], ids=["small", "large"])
    def test_a_piece_counts_by_its_bytes(self, items):
        array = np.arange(items, dtype="<i8").reshape(2, -1)
        blob = Blob(b"")
        blob.parts = (memoryview(array),)
        found = stored({"x": blob}).load("x")
        assert found.parts == (array.tobytes(),)

    def test_planning_reads_and_writes_nothing(self):
        plan_ = planned({"x": Blob(b"abc", b"de"), "y": 1})
        assert plan_.objects[0].nbytes == 5
        assert plan_.nested_values == []

    def test_an_index_that_is_too_large_is_refused(self, monkeypatch):
        objects = planned({str(number): "text" for number in range(100)}).objects
        monkeypatch.setattr(manifest, "MAX_MANIFEST", 1000)
        with pytest.raises(UnsupportedTypeError, match="arrays or frames"):
            objects[0].write(MemoryWriter())

    def test_too_many_entries_are_refused(self, monkeypatch):
        monkeypatch.setattr(encoder, "MAX_ENTRIES", 10)
        with pytest.raises(UnsupportedTypeError, match="as a frame"):
            planned(dict.fromkeys(map(str, range(11))))

    @pytest.mark.parametrize("lie", [1, -1])
    @pytest.mark.parametrize("others", [0, 1200])
    def test_a_payload_of_another_size_is_refused(self, lie, others):
        objects = planned({**many(others), "x": Liar(lie)}).objects
        with pytest.raises(StaleValueError, match="'x'"):
            objects[0].write(MemoryWriter())


class TestCopies:
    def test_an_entry_is_copied_as_it_is(self):
        container = stored(MIXED)
        again = {name: container.entry(name) for name in reversed(container.names)}
        copied = stored(again)
        assert loaded(copied) == MIXED
        assert write({name: copied.entry(name) for name in MIXED}) == write(MIXED)

    def test_a_copy_of_a_damaged_entry_is_refused(self):
        data = write({"x": Blob(b"payload", mapped=True)})
        data[data.index(b"payload")] ^= 1
        container = opened(data, maps=True)
        objects = planned({"y": container.entry("x")}).objects
        with pytest.raises(DamagedObjectError, match="'x'") as caught:
            objects[0].write(MemoryWriter())
        assert caught.value.url == URL

    def test_a_copied_entry_may_be_renamed(self):
        container = stored({"x": Blob(b"1")})
        assert loaded(stored({"y": container.entry("x")})) == {"y": Blob(b"1")}

    def test_a_copied_entry_with_nested_values_is_encoded_again(self):
        child = Child(x=1)
        container = stored({"a": child}, nested=lambda number: child)
        assert container.entry("a").has_nested
        copied = planned({"n": Child(), "a": container.entry("a")})
        assert copied.nested_values == [{}, child]

    def test_matches_compares_bytes(self):
        entry = stored({"x": Box([1, Blob(b"abc", b"")])}).entry("x")

        def same(value):
            return matches(entry, value, nested_entries=dict)

        assert same(Box([1, Blob(b"abc", b"")]))
        assert not same(Box([2, Blob(b"abc", b"")]))
        assert not same(Box([1, Blob(b"abd", b"")]))
        assert not same(Box([1, Blob(b"abc", b"d")]))
        assert not same(Box([1, Blob(b"abc")]))


class TestNested:
    def test_a_family_is_numbered_in_one_series(self):
        grandchild = Child(z=Blob(b"z"))
        child, other = Child(y=grandchild, y2=2), Child()
        made = planned({"a": child, "b": [other, Child()], "c": 1})
        assert [id(value) for value in made.nested_values[:3]] == [
            *map(id, (child, grandchild, other))
        ]
        containers = []
        for each in made.objects:
            writer = MemoryWriter()
            each.write(writer)
            containers.append(opened(writer.data))
        assert loaded(containers[0]) == {
            "a": "nested 0",
            "b": ["nested 2", "nested 3"],
            "c": 1,
        }
        assert loaded(containers[1]) == {"y": "nested 1", "y2": 2}
        assert loaded(containers[2]) == {"z": Blob(b"z")}
        assert [container.nested_count for container in containers] == [4] * 5
        assert [containers[0].entry(name).has_nested for name in "abc"] == [True, True, False]
        assert not containers[1].entry("y2").has_nested

    def test_a_cycle_of_values_is_refused(self):
        child = Child()
        child["again"] = Box(Child(back=child))
        with pytest.raises(UnsupportedTypeError, match="contains itself") as caught:
            planned({"a": child}, column="runs.data")
        assert caught.value.entry == "a['again'].inner['back']"
        assert str(caught.value).startswith("column 'runs.data': ")

    def test_a_long_chain_is_refused(self):
        child = Child()
        for _ in range(200):
            child = Child(x=child)
        with pytest.raises(UnsupportedTypeError, match="flatten"):
            planned({"a": child})

    def test_a_shared_value_is_an_object_for_each_place(self):
        child = Child(x=Child())
        made = planned({"a": child, "b": [child]})
        assert len(made.objects) == 5
        writer = MemoryWriter()
        made.objects[0].write(writer)
        assert loaded(opened(writer.data)) == {"a": "nested 0", "b": ["nested 2"]}


class TestUnsupported:
    class Stranger:
        pass

    def test_the_error_names_column_place_and_type(self):
        with pytest.raises(UnsupportedTypeError) as caught:
            planned({"a": Box(Box(self.Stranger()))}, column="runs.data")
        err = caught.value
        assert (err.column, err.entry, err.type) == ("runs.data", "a.inner.inner", self.Stranger)
        for part in ("'runs.data'", "'a.inner.inner'", "Stranger", "register_codec"):
            assert part in str(err)

    def test_a_value_in_itself(self):
        box = Box()
        box.inner = box
        with pytest.raises(UnsupportedTypeError, match="contains itself"):
            planned({"a": box})

    def test_one_value_twice_is_no_cycle(self):
        box = Box(1)
        assert stored({"a": [box, box], "b": box}).load("a") == [Box(1), Box(1)]

    @pytest.mark.parametrize("depth", [101, 5000])
    def test_deep_nesting_is_refused(self, depth):
        box = Box()
        for _ in range(depth):
            box = Box(box)
        with pytest.raises(UnsupportedTypeError, match="nests deeper"):
            planned({"a": box})

    def test_what_can_be_written_can_be_read(self):
        box = None
        for _ in range(100):
            box = Box(box)
        assert stored({"a": box}).load("a") == box

    @pytest.mark.parametrize("error", [ValueError("no"), KeyError("no"), RecursionError()])
    def test_a_codec_that_fails(self, error):
        with pytest.raises(UnsupportedTypeError, match="'a'") as caught:
            planned({"a": Fault(error, "encode")})
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("error", [MemoryError(), OSError("disk")])
    def test_what_is_not_the_values_fault_passes(self, error):
        with pytest.raises(type(error)):
            planned({"a": Fault(error, "encode")})


class TestReading:
    LARGE = bytes(range(256)) * 8192

    def test_opening_reads_the_end_only(self):
        data = write({"x": Blob(self.LARGE), "y": 1})
        reader = MemoryReader(data)
        container = Container.open(reader, URL, nested=int)
        assert reader.reads == [(len(data) - 65536, 65536)]
        assert container.load("y") == 1
        assert container.describe("x").nbytes == len(self.LARGE)
        assert len(reader.reads) == 1

    def test_a_small_object_is_read_once(self):
        reader = MemoryReader(write(MIXED))
        container = Container.open(reader, URL, nested=int)
        assert loaded(container) == MIXED
        copy = write({name: container.entry(name) for name in container.names})
        assert loaded(opened(copy)) == MIXED
        assert reader.reads == [(0, len(reader.data))]

    def test_what_was_read_at_once_is_verified_too(self):
        data = write({"x": Blob(b"x" * 1000), "y": Blob(b"y")})
        data[manifest_of(data)["blobs"]["offsets"][0]] ^= 1
        container = opened(data)
        with pytest.raises(DamagedObjectError):
            container.load("x")
        assert container.load("y") == Blob(b"y")

    def test_a_check_reads_a_small_object_again(self):
        data = write({"x": Blob(b"x" * 1000)})
        container = opened(data)
        assert list(container.check(deep=True)) == []
        data[manifest_of(data)["blobs"]["offsets"][0]] ^= 1
        assert len(list(container.check(deep=True))) == 1

    def test_a_large_index_costs_one_more_read(self):
        entries = {f"k{number}": number for number in range(10_000)}
        reader = MemoryReader(write(entries))
        container = Container.open(reader, URL, nested=int)
        assert len(reader.reads) == 2
        assert loaded(container) == entries
        assert len(reader.reads) == 2

    def test_long_text_is_no_part_of_the_index(self):
        data = write({"x": "é" * 1_000_000})
        reader = MemoryReader(data)
        container = Container.open(reader, URL, nested=int)
        assert sum(size for _, size in reader.reads) < 100_000
        assert container.load("x") == "é" * 1_000_000

    def test_an_entry_costs_its_own_bytes(self):
        reader = MemoryReader(write({"a": Blob(b"a" * 1000), "b": Blob(self.LARGE)}))
        container = Container.open(reader, URL, nested=int)
        reader.reads.clear()
        container.load("a")
        assert [size for _, size in reader.reads] == [1000]

    @pytest.mark.parametrize(
        ("size", "mapped", "maps", "always", "verified"),
        [
            (2 << 20, True, True, False, False),
            (2 << 20, True, True, True, True),
            (2 << 20, True, False, False, True),
            (2 << 20, False, True, False, True),
            (1 << 19, True, True, False, True),
        ],
    )
    def test_what_is_verified(self, size, mapped, maps, always, verified):
        data = write({"x": Blob(bytes(size), mapped=mapped)})
        data[manifest_of(data)["blobs"]["offsets"][0] + 1000] ^= 1
        container = opened(data, maps=maps, verify_always=always)
        if verified:
            with pytest.raises(DamagedObjectError) as caught:
                container.load("x")
            err = caught.value
            assert (err.url, err.entry) == (URL, "x")
            assert str(err.expected).startswith("CRC-32 ")
            assert err.found
        else:
            assert len(container.load("x").parts[0]) == size
        assert len(list(container.check(deep=True))) == 1
        assert list(container.check()) == []

    def test_a_large_map_is_verified_once_all_else_always(self):
        large = write({"x": Blob(self.LARGE)})
        small = write({"x": Blob(b"x" * 1000), **LARGER_THAN_THE_TAIL})
        containers = [opened(large, maps=True), opened(large), opened(small, maps=True)]
        for container in containers:
            container.load("x")
        for data in (large, small):
            data[manifest_of(data)["blobs"]["offsets"][0]] ^= 1
        assert containers[0].load("x") != Blob(self.LARGE)
        for container in containers[1:]:
            with pytest.raises(DamagedObjectError):
                container.load("x")

    @pytest.mark.parametrize(
        "error",
        [
            KeyError("k"),
            AttributeError("a"),
            ValueError("v"),
            OverflowError("o"),
            RecursionError("r"),
            ZeroDivisionError("z"),
            StopIteration(),
        ],
    )
    def test_a_codec_that_fails_means_damage(self, error):
        container = stored({"x": Fault(error)})
        with pytest.raises(DamagedObjectError, match=type(error).__name__) as caught:
            container.load("x")
        assert caught.value.__cause__ is error
        assert not isinstance(caught.value, (KeyError, AttributeError))

    def test_our_own_errors_pass(self):
        error = MissingObjectError(URL)
        container = stored({"x": Fault(error)})
        with pytest.raises(MissingObjectError) as caught:
            container.load("x")
        assert caught.value is error

    def test_a_lack_of_memory_is_no_damage(self):
        error = MemoryError("m")
        with pytest.raises(MemoryError) as caught:
            stored({"x": Fault(error)}).load("x")
        assert caught.value is error

    def test_a_library_that_is_not_installed(self):
        container = stored({"x": Fault(ModuleNotFoundError("no polars", name="polars"))})
        with pytest.raises(UnsupportedFormatError, match="polars"):
            container.load("x")

    def test_a_fault_of_the_program_is_no_damage(self):
        error = NameError("name 'nan' is not defined")
        with pytest.raises(NameError) as caught:
            stored({"x": Fault(error)}).load("x")
        assert caught.value is error

    @pytest.mark.parametrize("error", [NameError("x"), ModuleNotFoundError("x")])
    def test_what_libraries_raise_for_other_reasons_than_bytes(self, error):
        with pytest.raises(type(error)), refused_as_damage(None, "a table"):
            raise error

    def test_descriptions(self):
        container = stored(MIXED)
        described = {name: container.describe(name).type for name in container.names}
        assert described == {
            "nothing": "NoneType",
            "yes": "bool",
            "count": "int",
            "ratio": "float",
            "text": "str",
            "list": "list",
            "blob": "toys.Blob",
            "box": "toys.Box",
        }
        assert container.describe("blob").shape == (3,)
        assert container.describe("blob").nbytes == 1007
        assert container.entry("blob").description == container.describe("blob")

    def test_many_threads_read_one_container(self):
        entries = {f"k{number}": Blob(bytes([number]) * 5000) for number in range(50)}
        container = stored(entries, maps=True)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(container.load, [*entries] * 4))
        assert found == [*entries.values()] * 4


class TestLocalFiles:
    @pytest.fixture
    def storage(self, tmp_path):
        return LocalStorage(tmp_path)

    def put(self, storage, path, entries):
        with storage.create(path) as writer:
            planned(entries).objects[0].write(writer)
        return Container.open(storage.open(path), f"file:///{path}", nested=int)

    def test_objects_are_written_and_read(self, storage):
        container = self.put(storage, "runs/a.zip", MIXED)
        assert loaded(container) == MIXED
        copied = self.put(storage, "b.zip", {n: container.entry(n) for n in container.names})
        assert loaded(copied) == MIXED

    def test_an_object_that_went_away_is_missing(self, storage):
        container = self.put(storage, "a.zip", {**MIXED, **LARGER_THAN_THE_TAIL})
        storage.remove(["a.zip"])
        with pytest.raises(MissingObjectError):
            container.load("blob")
        assert container.load("text") == MIXED["text"]

    def test_a_failed_write_leaves_nothing(self, storage, tmp_path):
        with pytest.raises(StaleValueError):
            self.put(storage, "runs/a.zip", {"x": Liar(1)})
        assert list(tmp_path.iterdir()) == []


class _Sink(bytearray):
    """Takes bytes and keeps their number only."""

    size = 0

    def __iadd__(self, data):
        self.size += len(data)
        return self

    def __len__(self):
        return self.size

    def __setitem__(self, key, value):
        pass


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("container-*.zip")), ids=lambda path: path.stem)
def test_golden_objects_stay_readable(path):
    container = opened(path.read_bytes())
    assert loaded(container) == {
        "nothing": None,
        "yes": True,
        "count": 42,
        "ratio": 0.1,
        "text": "ä ☃ \U0001f600",
        "blob": Blob(b"payload", b"", bytes(range(256))),
        "mapped": Blob(b"0123456789", mapped=True),
        "box": Box(Box("inner")),
        "child": "nested 0",
    }
    assert list(container.check(deep=True)) == []


def test_there_is_a_golden_object_of_this_version():
    assert (GOLDEN / f"container-{manifest.FORMAT_VERSION}.zip").exists()


def test_this_version_writes_its_golden_object():
    """A change of a single byte of the format is a new version, or a mistake."""
    path = GOLDEN / f"container-{manifest.FORMAT_VERSION}.zip"
    entries = {
        "nothing": None,
        "yes": True,
        "count": 42,
        "ratio": 0.1,
        "text": "ä ☃ \U0001f600",
        "blob": Blob(b"payload", b"", bytes(range(256))),
        "mapped": Blob(b"0123456789", mapped=True),
        "box": Box(Box("inner")),
        "child": Child(),
    }
    assert bytes(write(entries)) == path.read_bytes()
