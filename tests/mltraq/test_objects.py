"""What MLtraq wrote is read exactly, and what does more than hold data is refused and not run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import uuid
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather

from sqla_datastore import (
    DamagedObjectError,
    DataStore,
    MissingObjectError,
    RefusedURLError,
    StorageError,
    UnsupportedFormatError,
)
from sqla_datastore.mltraq import read_bytes, read_object

GOLDEN = Path(__file__).parent / "golden"
PLAIN = {
    "none": None,
    "flags": [True, False],
    "large": -(2**70),
    "number": -1.5,
    "text": "Größe",
    "bytes": b"\0\xff",
    "pair": (1, (2, [3])),
    "members": {1, "a", (2, 3)},
    "numbers": {1: "one", (1, 2): "pair"},
}


def kind(name: str, value: object) -> dict:
    return {"DATAPAK-0": name, "value": value}


def dumped(value: object) -> bytes:
    return pickle.dumps(value, protocol=5)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def feather_of(table: pa.Table, compression: str = "uncompressed") -> bytes:
    file = io.BytesIO()
    feather.write_feather(table, file, compression=compression)
    return file.getvalue()


# -- what MLtraq wrote -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["datapak", "compressed"])
def test_a_golden_object_of_every_type(name):
    found = read_object(GOLDEN / name)
    assert {key: found[key] for key in PLAIN} == PLAIN
    assert [type(found[key]) for key in PLAIN] == [type(value) for value in PLAIN.values()]
    assert found["bunch"] == {"outer": {"inner": 1}}
    assert found["key"] == uuid.UUID(int=7)
    assert found["moment"] == np.datetime64("2024-01-02T03:04:05.123456", "us")
    with tarfile.open(fileobj=io.BytesIO(found["archive"])) as archive:
        assert archive.extractfile("notes.txt").read() == b"a note"


def test_golden_arrays():
    found = read_object(GOLDEN / "datapak")
    expected = {
        "array": np.arange(6).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(4.0).reshape(2, 2)),
        "empty": np.empty((0, 3)),
        "scalar": np.array(True),
        "records": np.array([(1, 0.5)], dtype=[("größe", "<i4"), ("b", ">f8")]),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert not found[name].flags.writeable
    assert found["columns first"].flags.f_contiguous


def test_golden_frames():
    found = read_object(GOLDEN / "datapak")
    frame = found["frame"]
    assert frame["name"].tolist()[0] == "a"
    assert frame["name"].isna().tolist() == [False, True]
    assert frame["kind"].dtype == pd.CategoricalDtype(["x", "y"])
    pd.testing.assert_index_equal(frame.index, pd.Index([10, 20], name="id"))
    pd.testing.assert_series_equal(found["series"], pd.Series([1, 2, 3]))
    pd.testing.assert_series_equal(found["named"], pd.Series([0.5], name="loss"))
    assert found["table"].equals(pa.table({"a": [1, 2], "b": ["x", "y"]}))
    assert list(found["sequence"]) == ["idx", "timestamp", "loss"]
    assert found["sequence"]["timestamp"][0] == pd.Timestamp("2024-01-02 03:04:05.123456")


def test_a_golden_pickle_of_plain_data():
    found = read_object(GOLDEN / "pickle")
    assert found == PLAIN | {
        "frozen": frozenset({1}),
        "array": bytearray(b"x"),
        "twice": [[1, 2], [1, 2]],
    }


def test_objects_by_bytes_path_and_url():
    folder = GOLDEN / "mltraq.datastore"
    (path, *_) = sorted((folder / "self_managed").rglob("*3"))
    url = f"file:///{path.relative_to(folder)}"
    for found in (read_object(path.read_bytes()), read_object(str(path)), read_object(url, folder)):
        np.testing.assert_array_equal(found, [0.1, 0.1, 0.1])
    assert read_bytes(f"{url[:-1]}4", folder) == b"11111"


@pytest.mark.parametrize(
    "value", [[0.5] * 2_500, {str(n): n for n in range(2_500)}, set(range(2_500))]
)
def test_containers_that_pickle_writes_in_batches(value):
    assert read_object(dumped(value)) == value


@pytest.mark.parametrize("size", [0, 10, 300, 70_000])
def test_text_and_bytes_of_any_length(size):
    assert read_object(dumped(["ä" * size, b"x" * size])) == ["ä" * size, b"x" * size]


def test_what_is_read_can_be_stored(storage):
    from support.values import store

    ds = DataStore(read_object(GOLDEN / "datapak"))
    store(ds, storage)
    assert DataStore.from_url(ds.url, storage=storage)["frame"].shape == (2, 2)


def test_a_value_of_values(tmp_path):
    (tmp_path / "inner").write_bytes(dumped({"x": 1}))
    (tmp_path / "outer").write_bytes(dumped({"ds": kind("mltraq.DataStore-0", "file:///inner")}))
    (tmp_path / "tar").write_bytes(b"a tar")
    outer = read_object("file:///outer", tmp_path)
    assert outer == {"ds": DataStore(x=1)}
    assert outer["ds"].url is None
    archived = dumped(kind("mltraq.ArchiveStore-0", "file:///tar"))
    archive = read_object(archived, tmp_path)
    assert (archive.name, archive.content_type) == ("tar.tar", "application/x-tar")
    with archive.open() as stream:
        assert stream.read() == b"a tar"


# -- what is refused -------------------------------------------------------------------------------


class _Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


OPCODES = {
    "os.system": (pickle.dumps(_Runs(), protocol=5), r"names 'posix\.system' \(STACK_GLOBAL\)"),
    "inside a list": (pickle.dumps([1, [_Runs()]], protocol=5), "STACK_GLOBAL"),
    "GLOBAL": (b"\x80\x05cos\nsystem\n\x8c\x09touch ran\x85R.", r"names 'os\.system' \(GLOBAL\)"),
    "INST": (b"\x80\x05(\x8c\x09touch ranios\nsystem\n.", "INST"),
    "REDUCE": (b"\x80\x05K\x01K\x02\x85R.", "opcode REDUCE"),
    "BUILD": (b"\x80\x05}}b.", "opcode BUILD"),
    "EXT1": (b"\x80\x05\x82\x01.", "opcode EXT1"),
    "EXT4": (b"\x80\x05\x84\x01\x00\x00\x00.", "opcode EXT4"),
    "PERSID": (b"\x80\x05Px\n.", "opcode PERSID"),
    "BINPERSID": (b"\x80\x05K\x01Q.", "opcode BINPERSID"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    # a memo of this length would take 64 GB
    "LONG_BINPUT": (b"\x80\x05K\x01r\xff\xff\xff\xff.", "opcode LONG_BINPUT"),
    "a name that nests": (
        b"\x80\x05" + b"]" * 5_000 + b"a" * 4_999 + b"\x8c\x01x\x93.",
        r"names 'x' \(STACK_GLOBAL\)",
    ),
    "protocol 0": (pickle.dumps([1.5], protocol=0), "opcode (LIST|PUT)"),
    "protocol 4": (pickle.dumps([1.5], protocol=4), "protocol 4"),
    "an array as a pickle": (pickle.dumps(np.zeros(2), protocol=5), "STACK_GLOBAL"),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize(("data", "message"), OPCODES.values(), ids=OPCODES)
def test_a_pickle_that_does_more_than_data(data, message, compressed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "object"
    path.write_bytes(b"C01" + zlib.compress(data) if compressed else data)
    with pytest.raises(UnsupportedFormatError, match=message) as caught:
        read_object(path)
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["object"]


DAMAGED = {
    "nothing": b"",
    "no pickle": b"\x80\x05\xff.",
    "cut off": dumped(PLAIN)[:-5],
    "cut off in a length": b"\x80\x05B\xff\xff\xff\x7fx",
    "no stop": dumped([1])[:-1],
    "nothing on the stack": b"\x80\x05.",
    "two things": b"\x80\x05K\x01K\x02.",
    "an open mark": b"\x80\x05(K\x01.",
    "no mark": b"\x80\x05]K\x01e.",
    "behind the mark": b"\x80\x05K\x01(\x85.",
    "appended to a number": b"\x80\x05K\x01K\x02a.",
    "members of a list": b"\x80\x05](K\x01\x90.",
    "a key without a value": b"\x80\x05}(K\x01u.",
    "an unknown memo": b"\x80\x05h\x07.",
    "a list as a key": b"\x80\x05}]K\x01s.",
    "a list that contains itself": b"\x80\x05]\x94h\x00a.",
    "a tuple that contains itself": b"\x80\x05]\x94h\x00\x85a.",
    "a kind that nests": b"\x80\x05}\x8c\x09DATAPAK-0" + b"]" * 5_000 + b"a" * 4_999 + b"s.",
    "lists in lists": b"\x80\x05" + b"]" * 5_000 + b"a" * 4_999 + b".",
    # hashing it would crash CPython
    "a key that nests": b"\x80\x05}" + b")" + b"\x85" * 200_000 + b"Ns.",
    "keys of one hash": dumped({n * (2**61 - 1): 0 for n in range(1, 500)}),
    "not what zlib wrote": b"C01" + b"x" * 20,
    "compressed and cut off": b"C01" + zlib.compress(dumped(PLAIN))[:-9],
    "a UUID": dumped(kind("uuid.UUID-0", "x")),
    "a moment": dumped(kind("numpy.datetime64-0", 2**70)),
    "an array of nothing": dumped(kind("numpy.ndarray-0", b"")),
    "an array cut off": dumped(kind("numpy.ndarray-0", npy(np.zeros(9))[:-1])),
    "an array of objects": dumped(
        kind("numpy.ndarray-0", npy(np.zeros(2)).replace(b"'<f8'", b"'|O8'"))
    ),
    "an array that claims": dumped(
        kind("numpy.ndarray-0", npy(np.zeros(2)).replace(b"(2,), }", b"(2**62, 4), }"))
    ),
    "an array's header as code": dumped(
        kind("numpy.ndarray-0", npy(np.zeros(2)).replace(b"'<f8'", b"exit()"))
    ),
    "a bool of 2": dumped(kind("numpy.ndarray-0", npy(np.array([True]))[:-1] + b"\x02")),
    "a header that nests": dumped(
        kind("numpy.ndarray-0", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9_000) + b"(" * 9_000)
    ),
    "a frame of nothing": dumped(kind("pandas.DataFrame-0", b"")),
    "a frame of wrong bytes": dumped(
        kind("pandas.DataFrame-0", b"ARROW1\0\0" + b"x" * 50 + b"ARROW1")
    ),
    "a frame cut off": dumped(kind("pandas.DataFrame-0", feather_of(pa.table({"a": [1]}))[:-20])),
    "a frame in the old format": dumped(kind("pandas.DataFrame-0", b"FEA1" + b"\0" * 20 + b"FEA1")),
    "a compressed frame": dumped(
        kind("pyarrow.Table-0", feather_of(pa.table({"a": np.zeros(9_999)}), "zstd"))
    ),
    "a series of two columns": dumped(
        kind("pandas.Series-0", feather_of(pa.table({"a": [1], "b": [2]})))
    ),
    "a pickled type": dumped(
        kind(
            "pyarrow.Table-0",
            feather_of(
                pa.table(
                    [pa.array([1])],
                    schema=pa.schema(
                        [
                            pa.field(
                                "a",
                                pa.int64(),
                                metadata={
                                    "ARROW:extension:name": "arrow.py_extension_type",
                                    "ARROW:extension:metadata": OPCODES["os.system"][0],
                                },
                            )
                        ]
                    ),
                )
            ),
        )
    ),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damage(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "object"
    path.write_bytes(data)
    with pytest.raises((DamagedObjectError, UnsupportedFormatError)) as caught:
        read_object(path)
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["object"]


@pytest.mark.parametrize("value", [None, b"", "x", [1]])
@pytest.mark.parametrize(
    "name", ["mltraq.Bunch-0", "numpy.ndarray-0", "os.system", 7, None, [[1]], {"a": 1}]
)
def test_kinds_that_are_not_known(name, value):
    with pytest.raises((UnsupportedFormatError, DamagedObjectError)):
        read_object(dumped(kind(name, value)))


ERRORS = (DamagedObjectError, UnsupportedFormatError, MissingObjectError, RefusedURLError)


def test_a_changed_byte_is_an_error_of_ours_or_another_value():
    data = bytearray((GOLDEN / "datapak").read_bytes())
    for position in [*range(0, 300, 7), *range(300, len(data), 997)]:
        changed = data.copy()
        changed[position] ^= 0x41
        with contextlib.suppress(*ERRORS):
            read_object(bytes(changed))


# -- what it may take ------------------------------------------------------------------------------


def _memoized(levels: int) -> bytes:
    # each tuple is made of the one before, twice
    steps = b"".join(b"\x94h%c\x86" % n for n in range(levels))
    return b"\x80\x05)" + steps + b"."


BOMBS = {
    "compressed": b"C01" + zlib.compress(dumped(bytes(50_000_000))),
    "one tuple again and again": _memoized(60),
    "a key of one tuple again and again": b"\x80\x05}" + _memoized(60)[2:-1] + b"Ns.",
    "many marks": b"\x80\x05" + b"(" * 600_000 + b".",
    "many sets": b"\x80\x05(" + b"\x8f" * 100_000 + b"t.",
    "one array again and again": b"\x80\x05("
    + dumped(kind("pyarrow.Table-0", feather_of(pa.table({"a": ["x" * 100] * 50_000}))))[2:-1]
    + b"\x94"
    + b"h\x00" * 3_000
    + b"t.",
    "rows of nothing": dumped(
        kind(
            "pandas.DataFrame-0",
            feather_of(pa.table({"a": pa.nulls(500_000)})),
        )
    ),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_it_takes_the_memory(data):
    with pytest.raises((UnsupportedFormatError, DamagedObjectError), match=r"limit_bytes|nests"):
        read_object(data, limit_bytes=2**22)


def test_a_higher_limit_lets_it_pass():
    data = dumped(bytes(2**20))
    with pytest.raises(UnsupportedFormatError, match="limit_bytes"):
        read_object(data, limit_bytes=2**20)
    assert len(read_object(data, limit_bytes=2**22)) == 2**20


def test_urls_that_name_each_other(tmp_path):
    (tmp_path / "a").write_bytes(dumped({"b": kind("mltraq.DataStore-0", "file:///b")}))
    (tmp_path / "b").write_bytes(dumped({"a": kind("mltraq.DataStore-0", "file:///a")}))
    with pytest.raises(DamagedObjectError, match="contains itself"):
        read_object("file:///a", tmp_path)


def test_urls_that_fan_out(tmp_path):
    for n in range(40):
        below = kind("mltraq.DataStore-0", f"file:///{n + 1}")
        (tmp_path / str(n)).write_bytes(dumped({"a": below, "b": below}))
    (tmp_path / "40").write_bytes(dumped({}))
    with pytest.raises(UnsupportedFormatError, match="limit_bytes"):
        read_object("file:///0", tmp_path, limit_bytes=2**22)


# -- where URLs lead -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "file:///../secret",
        "file:///a/../../secret",
        "file:///./secret",
        "file:///",
        "file:///a\0b",
        "file://host/secret",
        "s3://bucket/secret",
        "secret",
    ],
)
def test_a_url_that_leaves_the_folder(url, tmp_path):
    (tmp_path / "secret").write_bytes(dumped("secret"))
    (tmp_path / "folder" / "a").mkdir(parents=True)
    with pytest.raises(RefusedURLError):
        read_object(dumped({"x": kind("mltraq.DataStore-0", url)}), tmp_path / "folder")
    with pytest.raises(RefusedURLError):
        read_object(dumped(kind("mltraq.ArchiveStore-0", url)), tmp_path / "folder")
    with pytest.raises(RefusedURLError):
        read_bytes(url, tmp_path / "folder")


def test_a_url_is_looked_for_in_the_folder_alone(tmp_path):
    (tmp_path / "secret").write_bytes(dumped("secret"))
    (tmp_path / "folder").mkdir()
    for url in (f"file:///{tmp_path}/secret", "file:///%2e%2e/secret"):
        with pytest.raises(MissingObjectError, match=r"datastore\.url"):
            read_object(url, tmp_path / "folder")


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(dumped("secret"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    for url in ("file:///link", "file:///up/secret", "file:///fifo"):
        with pytest.raises(StorageError):
            read_object(url, folder)
        with pytest.raises(StorageError):
            read_object(dumped(kind("mltraq.ArchiveStore-0", url)), folder)


def test_a_prefix_with_spaces(tmp_path):
    (tmp_path / "self managed" / "run 1").mkdir(parents=True)
    (tmp_path / "self managed" / "run 1" / "x").write_bytes(dumped(1))
    assert read_object("file:///self managed/run 1/x", tmp_path) == 1
    assert read_object("file:///self managed//run 1/x", tmp_path) == 1


def test_an_object_that_is_not_there(tmp_path):
    for source in (tmp_path / "x", "file:///x"):
        with pytest.raises(MissingObjectError):
            read_object(source, tmp_path)
    with pytest.raises(RefusedURLError, match="data store"):
        read_object("file:///x")


def test_plain_data_need_no_library():
    script = (
        "import sys\n"
        "from sqla_datastore.mltraq import read_object\n"
        f"assert read_object({dumped([1, 'a'])!r}) == [1, 'a']\n"
        "print(*sorted({'numpy', 'pandas', 'pyarrow', 'mltraq', 'cloudpickle'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout == "\n"
