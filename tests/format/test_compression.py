"""Compressed objects: what is stored, that others can read it, and what a hostile one may cost."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.forging import allowed_seconds, cost, forged_compressed, opened, used
from support.toys import MemoryReader, MemoryWriter

from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.format import Container, archive, compression, matches, plan
from sqla_datastore.format.compression import ARROW, DEFLATED, LEVELS, STORED

MB = 1024**2
RNG = np.random.default_rng(1)
# before, nothing writes or casts them
HAS_VIEWS = int(pa.__version__.partition(".")[0]) >= 18
WORDS = np.array([f"name {number}" for number in range(50)])


def words(count):
    return WORDS[RNG.integers(0, len(WORDS), count)].tolist()


VALUES = {
    "zeros": np.zeros(100_000),
    "fortran": np.asfortranarray(RNG.integers(0, 9, (300, 400))),
    "random": RNG.random(50_000),
    "tiny": np.arange(5),
    "bytes": b"ab" * 50_000,
    "text": "Ein Satz. " * 5_000,
    "list": [*range(20_000)],
    "frame": pd.DataFrame(
        {
            "text": pd.Series(words(50_000), dtype="string"),
            "objects": pd.Series(words(50_000), dtype=object),
            "numbers": RNG.integers(0, 100, 50_000),
            "categories": pd.Categorical(words(50_000)),
        }
    ),
    "table": pa.table(
        {
            "text": pa.array([None if n % 7 == 0 else t for n, t in enumerate(words(50_000))]),
            "large": pa.array(words(50_000), pa.large_string()),
            "binary": pa.array([b"x", b"yy"] * 25_000, pa.large_binary()),
            "unique": pa.array(map(str, range(50_000))),
            "dictionary": pa.array(words(50_000)).dictionary_encode(),
            "lists": pa.array([["a", "b"], None] * 25_000),
            "views": pa.array(words(50_000), pa.string_view() if HAS_VIEWS else pa.string()),
        }
    ).replace_schema_metadata({"k": "v"}),
    "batches": pa.Table.from_batches(
        [pa.record_batch({"t": pa.array(words(5_000))}) for _ in range(4)]
    ),
    "constant": pa.table({"t": ["a" * 100] * 100_000}),
    "nothing": pa.table({"t": pa.array([], pa.string())}),
    "many empty columns": pa.table({f"t{n}": pa.array([], pa.string()) for n in range(50)}),
    "no batches": pa.Table.from_batches(
        [], pa.schema([pa.field(f"t{n}", pa.string()) for n in range(50)])
    ),
    "empty batches": pa.Table.from_batches(
        [pa.record_batch({"t": pa.array(words(n * 2_000), pa.string())}) for n in (0, 3, 0)]
    ),
    "nulls": pa.table({"n": pa.nulls(100_000), "i": np.zeros(100_000)}),
    "polars": pl.DataFrame({"t": words(50_000), "i": RNG.integers(0, 100, 50_000)}),
    "index": pd.Index(words(50_000)),
}


def written(entries, level, *, nested=dict):
    writer = MemoryWriter()
    plan(entries, nested_entries=nested, compression=level).objects[0].write(writer)
    return bytes(writer.data)


def methods(container):
    """Return how the blobs of each entry lie in their members."""
    return {name: {blob.method for blob in container.blobs(name)} for name in container.names}


def is_same(found, expected):
    if isinstance(expected, np.ndarray):
        return np.array_equal(found, expected) and found.flags.fnc == expected.flags.fnc
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
        return True
    if isinstance(expected, pa.Table):
        same = found.schema.equals(expected.schema, check_metadata=True) and found.equals(expected)
        return same and found.column(0).num_chunks == expected.column(0).num_chunks
    equals = getattr(expected, "equals", None)
    return found == expected if equals is None else equals(found)


@pytest.mark.parametrize("level", LEVELS)
def test_values_come_back_and_take_less(level):
    data = written(VALUES, level)
    assert len(data) < len(written(VALUES, None)) / 2
    container = opened(data)
    assert list(container.check(deep=True)) == []
    for name, value in VALUES.items():
        found = container.load(name)
        assert type(found) is type(value)
        assert is_same(found, value), name


def test_only_what_shrinks_is_compressed():
    found = methods(opened(written(VALUES, "default")))
    assert found["random"] == found["tiny"] == found["nothing"] == {STORED}
    assert found["zeros"] == found["bytes"] == found["text"] == found["list"] == {DEFLATED}
    assert found["table"] == found["polars"] == found["constant"] == {ARROW}
    assert found["frame"] == {DEFLATED, ARROW}


def test_what_does_not_shrink_is_the_same_object():
    entries = {"random": VALUES["random"], "tiny": VALUES["tiny"], "n": 5}
    plain, compressed = written(entries, None), written(entries, "small")
    assert opened(compressed).compression == "small"
    # but for what the manifest says of the level
    assert len(compressed) - len(plain) == len('"compression":"small",')


@pytest.mark.parametrize("level", LEVELS)
def test_other_tools_read_it(level, tmp_path):
    path = tmp_path / "object.zip"
    path.write_bytes(written(VALUES, level))
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None
        kinds = {each.filename: each.compress_type for each in found.infolist()}
        assert kinds["zeros.npy"] == zipfile.ZIP_DEFLATED
        assert kinds["table.arrow"] == kinds["random.npy"] == zipfile.ZIP_STORED
        table = pa.ipc.open_stream(found.read("table.arrow")).read_all()
        assert table["text"].to_pylist() == VALUES["table"]["text"].to_pylist()
    with np.load(path) as arrays:
        assert np.array_equal(arrays["zeros"], VALUES["zeros"])
        assert np.array_equal(arrays["fortran"], VALUES["fortran"])


@pytest.mark.skipif(sys.platform != "linux", reason="unzip is a command of Linux distributions")
def test_unzip_takes_it(tmp_path):
    path = tmp_path / "object.zip"
    path.write_bytes(written(VALUES, "default"))
    try:
        found = subprocess.run(["unzip", "-tqq", path], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unzip is not installed")
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("level", LEVELS)
def test_entries_are_copied_as_they_lie_there(level):
    data = written(VALUES, level)
    container = opened(data)
    assert written(dict.fromkeys(VALUES, container), level) == data
    mixed = {**dict.fromkeys(VALUES, container), **{f"n{n}": np.arange(n % 9) for n in range(1100)}}
    copy = opened(written(mixed, None))
    assert list(copy.check(deep=True)) == []
    assert copy.compression is None
    assert {k: v for k, v in methods(copy).items() if k in VALUES} == methods(container)
    assert all(is_same(copy.load(name), value) for name, value in VALUES.items())


@pytest.mark.parametrize("level", LEVELS)
def test_loading_is_no_edit(level):
    container = opened(written(VALUES, level))
    for name, value in VALUES.items():
        assert matches(container.entry(name), value, nested_entries=dict), name
        assert matches(container.entry(name), container.load(name), nested_entries=dict), name
    assert not matches(container.entry("zeros"), np.ones(100_000), nested_entries=dict)


def test_without_isal_zlib_does_it(monkeypatch):
    monkeypatch.setattr(compression, "fast_zlib", zlib)
    monkeypatch.setitem(compression._DEFLATE, "default", (zlib, 1))
    data = written(VALUES, "default")
    monkeypatch.undo()
    assert all(is_same(opened(data).load(name), value) for name, value in VALUES.items())


def test_a_large_manifest_is_read_without_its_nodes():
    entries = {f"entry {n}": {"text": "x" * 300} for n in range(2_000)}
    container = opened(written({**entries, "zeros": VALUES["zeros"]}, "default"))
    assert methods(container)["zeros"] == {DEFLATED}
    assert type(container._manifest.nodes).__name__ == "UnparsedNodes"
    assert container.load("entry 7") == entries["entry 7"]


def test_a_field_that_has_our_metadata_is_left_alone():
    field = pa.field("t", pa.string(), metadata={"sqla_datastore:text": "string"})
    table = pa.table({"t": words(20_000)}).cast(pa.schema([field]))
    container = opened(written({"t": table}, "default"))
    assert container.load("t").schema.equals(table.schema, check_metadata=True)


def test_memory_of_writing_and_reading_is_bounded():
    array = np.zeros(8_000_000)
    data = b""

    def write():
        nonlocal data
        data = written({"a": array}, "default")

    assert cost(write)[1] < 16 * MB
    assert cost(lambda: opened(data).load("a"))[1] < array.nbytes + 16 * MB


def test_zip64_headers_of_compressed_members(monkeypatch):
    monkeypatch.setattr(archive, "ZIP64_SIZE", 100_000)
    data = written(VALUES, "default")
    assert list(opened(data).check(deep=True)) == []
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None


def test_what_shrinks_too_much_says_what_to_do(monkeypatch):
    # samples tell, so only what no sample shows can come here
    monkeypatch.setattr("sqla_datastore.codecs._compressed_stream._MUCH", 10**9)
    with pytest.raises(UnsupportedTypeError, match="compression='fast'"):
        written({"t": pa.table({"n": np.zeros(4_000_000)})}, "default")
    data = written({"t": pa.table({"n": np.zeros(4_000_000)})}, "fast")
    assert opened(data).load("t").num_rows == 4_000_000


# -- hostile objects -------------------------------------------------------------------------------


def deflated(data):
    deflater = compression.Deflater("default")
    return deflater.deflate(data) + deflater.finish()


def stream(table, **options):
    sink = pa.BufferOutputStream()
    ipc = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(sink, table.schema, options=ipc) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _numbers(count):
    return [
        "numpy.array",
        1,
        {"dtype": "<f8", "shape": [count], "order": "C", "start": 0, "blob": 0},
    ]


BYTES = ["plain.bytes", 1, 0]
_TABLE = ["arrow.table", 1, {"stream": 0, "shape": [100_000, 1]}]
_ZEROS = bytes(100_000)
_BOMB = deflated(bytes(200 * MB))
_TEXTS = pa.table({"t": pa.array(["x" * 1000] * 100_000).dictionary_encode()})


def _texts_of_nothing():
    field = pa.field("t", _TEXTS.schema.field(0).type, metadata={"sqla_datastore:text": "string"})
    return stream(_TEXTS.cast(pa.schema([field])), compression="lz4")


def _many_texts():
    """Return a stream of 50 columns that each take less than what it claims, and more together."""
    texts = pa.array(["x" * 1000] * 1_000).dictionary_encode()
    metadata = {"sqla_datastore:text": "string"}
    fields = [pa.field(f"t{n}", texts.type, metadata=metadata) for n in range(50)]
    return stream(pa.table([texts] * 50, schema=pa.schema(fields)), compression="lz4")


def _crc(data):
    return archive.crc32(data)


HOSTILE = {
    "fewer bytes than it says": lambda: forged_compressed(
        BYTES, deflated(_ZEROS), size=len(_ZEROS) + 1, method=DEFLATED
    ),
    "more bytes than it says": lambda: forged_compressed(
        BYTES, deflated(_ZEROS), size=10, crc=_crc(bytes(10)), method=DEFLATED
    ),
    "a bomb that lies": lambda: forged_compressed(BYTES, _BOMB, size=1000, method=DEFLATED),
    "a bomb of 10,000 to 1": lambda: forged_compressed(
        BYTES, deflated(_ZEROS), size=10_000 * len(deflated(_ZEROS)), method=DEFLATED
    ),
    # isal before 1.9 swallows up to six of them
    "trailing bytes": lambda: forged_compressed(
        BYTES, deflated(_ZEROS) + b"x" * 8, size=len(_ZEROS), crc=_crc(_ZEROS), method=DEFLATED
    ),
    "cut off": lambda: forged_compressed(
        BYTES, deflated(_ZEROS)[:-1], size=len(_ZEROS), crc=_crc(_ZEROS), method=DEFLATED
    ),
    "noise": lambda: forged_compressed(BYTES, os.urandom(1000), size=1000, method=DEFLATED),
    "a checksum of other bytes": lambda: forged_compressed(
        BYTES, deflated(_ZEROS), size=len(_ZEROS), crc=1, method=DEFLATED
    ),
    "an unknown method": lambda: forged_compressed(BYTES, b"x" * 64, size=64, method=3),
    "a stored size that differs": lambda: forged_compressed(
        BYTES, b"x" * 64, size=128, method=STORED
    ),
    "a stream that makes more than it says": lambda: forged_compressed(
        _TABLE, stream(pa.table({"n": np.zeros(10 * MB)}), compression="zstd"), size=1, method=ARROW
    ),
    "a stream of 10,000 to 1": lambda: forged_compressed(
        _TABLE,
        stream(pa.table({"n": np.zeros(40 * MB)}), compression="zstd"),
        size=320 * MB,
        method=ARROW,
    ),
    "texts that take more than it says": lambda: forged_compressed(
        _TABLE, _texts_of_nothing(), size=200_000, method=ARROW
    ),
    "texts of many columns that take more than it says": lambda: forged_compressed(
        ["arrow.table", 1, {"stream": 0, "shape": [1_000, 50]}],
        _many_texts(),
        size=2_500_000,
        method=ARROW,
    ),
    "a dictionary that is none": lambda: forged_compressed(
        _TABLE,
        stream(
            pa.table(
                [pa.array([1] * 100_000)],
                schema=pa.schema(
                    [pa.field("t", pa.int64(), metadata={"sqla_datastore:text": "x"})]
                ),
            ),
            compression="lz4",
        ),
        size=800_000,
        method=ARROW,
    ),
    "a compressed stream that is said to be none": lambda: forged_compressed(
        _TABLE,
        (data := stream(pa.table({"n": np.zeros(100_000)}), compression="zstd")),
        size=len(data),
        crc=_crc(data),
        method=STORED,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_object_is_refused_and_costs_little(name):
    data = HOSTILE[name]()
    used(written({"x": VALUES["table"], "y": VALUES["zeros"]}, "default"))  # what is imported
    with pytest.raises(DamagedObjectError):
        opened(data).load("x")
    if sys.platform == "linux":
        seconds, peak = cost(lambda: used(data))
        assert peak < 64 * MB + 10 * len(data), f"{peak / MB:.0f} MB for {len(data)} bytes"
        assert seconds < allowed_seconds(len(data))


def test_check_finds_what_differs():
    data = forged_compressed(BYTES, deflated(_ZEROS), size=len(_ZEROS), crc=1, method=DEFLATED)
    assert any("checksum" in each for each in opened(data).check(deep=True))


@pytest.mark.parametrize("level", LEVELS)
def test_damage_anywhere_is_noticed(level):
    entries = {name: VALUES[name] for name in ("zeros", "frame", "table", "text")}
    data = written(entries, level)
    rng = np.random.default_rng(3)
    for at in rng.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.integers(0, 8)
        try:
            container = Container.open(MemoryReader(bytes(damaged)), "file:///a/b.zip", nested=int)
        except DamagedObjectError:
            continue
        assert list(container.check(deep=True)), f"byte {at}"


FUZZED = ("zeros", "text", "frame", "table", "polars", "constant", "fortran")


def test_changed_objects_raise_only_our_errors():
    container = opened(written({name: VALUES[name] for name in FUZZED}, "default"))
    rng = np.random.default_rng(5)
    nodes = {name: container._node(name) for name in FUZZED}
    for run in range(400):
        name = FUZZED[rng.integers(0, len(FUZZED))]
        blobs = [blob for blob in container.blobs(name) if blob.method != STORED]
        blob = blobs[rng.integers(0, len(blobs))]
        stored = bytearray(container._bytes.copy(name, blob.offset, blob.stored_nbytes))
        for _ in range(rng.choice([0, 1, 1, 4])):
            stored[rng.integers(0, len(stored))] = rng.integers(0, 256)
        data = forged_compressed(
            nodes[name] if len(blobs) == 1 else ["arrow.table", 1, {"stream": 0, "shape": [1, 1]}],
            bytes(stored),
            size=int(blob.nbytes * rng.choice([1, 1, 1, 0.5, 2])),
            crc=blob.crc,
            method=int(rng.choice([blob.method, blob.method, DEFLATED, ARROW])),
        )
        try:
            used(data)
        except Exception as err:
            raise AssertionError(f"{name}, run {run}: {type(err).__name__}: {err}") from err


def _golden():
    texts = ["one", "two", None, "three"] * 500
    return {
        "numbers": np.arange(2_000) % 7,
        "table": pa.table({"t": pa.array(texts), "n": pa.array([*range(2_000)], pa.int16())}),
        "bytes": b"ab" * 3_000,
        "random": np.random.default_rng(1).random(200),
        "n": 5,
    }


def test_the_golden_object_stays_readable():
    """What is written differs with the versions of isal and zstd; what is read must not."""
    path = Path(__file__).parent / "golden" / "compressed-1.zip"
    container = opened(path.read_bytes())
    assert methods(container) == {
        "numbers": {DEFLATED},
        "table": {ARROW},
        "bytes": {DEFLATED},
        "random": {STORED},
        "n": set(),
    }
    for name, value in _golden().items():
        assert is_same(container.load(name), value)
    assert list(container.check(deep=True)) == []
