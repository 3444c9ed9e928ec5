"""A header that was sent already is completed behind its data, and what was sent stays as it is."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.toys import Blob, MemoryReader, MemoryWriter

from sqla_datastore.format import Container, plan
from sqla_datastore.format import archive as zip_archive
from sqla_datastore.format.compression import ARROW, DEFLATED, STORED

URL = "file:///runs/1/a.zip"
GOLDEN = Path(__file__).parent / "golden" / "descriptors-1.zip"
FLAG = 8


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return Blob(file.getvalue(), suffix=".npy")


# the first one fills the buffer, the second one does not, the third one begins and ends elsewhere
ENTRIES = {
    "large": npy(np.arange(1_000)),
    "small": npy(np.arange(10)),
    "larger": Blob(bytes(range(256)) * 40),
    "n": 5,
}


def write(entries, compression=None):
    writer = MemoryWriter()
    plan(entries, nested_entries=dict, compression=compression).objects[0].write(writer)
    return bytes(writer.data)


def opened(data):
    return Container.open(MemoryReader(data), URL, nested=int)


def problems(data):
    return list(opened(data).check(deep=True))


def flags(data):
    """Return the flags of each member, as the central directory has them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {info.filename: info.flag_bits for info in archive.infolist()}


@pytest.fixture
def small_buffer(monkeypatch):
    """Flush every 4 KiB, so that small objects have both forms."""
    monkeypatch.setattr(zip_archive, "BUFFER", 4096)


@pytest.fixture
def data(small_buffer):
    return write(ENTRIES)


def test_what_fits_into_the_buffer_has_no_descriptor():
    assert set(flags(write(ENTRIES)).values()) == {0}


def test_what_does_not_fit_has_one():
    data = write({"a": Blob(bytes(zip_archive.BUFFER)), "b": Blob(b"b")})
    assert flags(data) == {"a.bin": FLAG, "b.bin": 0, "manifest.json": 0}
    assert problems(data) == []


def test_both_forms_in_one_object(data):
    expected = {"large.npy": FLAG, "small.npy": 0, "larger.bin": FLAG, "manifest.json": 0}
    assert flags(data) == expected
    container = opened(data)
    assert {name: container.load(name) for name in container.names} == ENTRIES
    assert problems(data) == []


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("size", [*range(3_900, 4_110), 8_192, 8_193])
def test_wherever_the_buffer_ends(size):
    data = write({"a": Blob(bytes(size)), "b": Blob(b"b" * 70)})
    flags(data)
    assert problems(data) == []


@pytest.mark.usefixtures("small_buffer")
def test_a_long_manifest_has_no_descriptor():
    """Its data end where the central directory begins."""
    data = write({f"k{number}": number for number in range(1_000)})
    assert flags(data) == {"manifest.json": 0}
    assert problems(data) == []


@pytest.mark.usefixtures("small_buffer")
def test_packed_blobs():
    data = write({f"k{number}": Blob(b"x" * (number % 9)) for number in range(1_100)})
    assert flags(data) == {"small-blobs.bin": FLAG, "manifest.json": 0}
    assert problems(data) == []


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("zip64_size", [1, 100, 5_000, 2**32 - 1])
def test_compressed_members(monkeypatch, zip64_size):
    monkeypatch.setattr(zip_archive, "ZIP64_SIZE", zip64_size)
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(1)
    values = {
        "deflated": rng.integers(0, 9, 20_000),
        "arrow": pa.table({"t": [f"name {number % 50}" for number in rng.integers(0, 50, 9_000)]}),
        "stored": rng.random(2_000),
    }
    data = write(values, "default")
    manifest = opened(data).manifest
    assert manifest.methods == [DEFLATED, ARROW, STORED]
    assert [*flags(data).values()] == [FLAG, FLAG, FLAG, 0]
    assert problems(data) == []


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("zip64_size", [1, 100, 5_000])
def test_zip64(monkeypatch, zip64_size):
    monkeypatch.setattr(zip_archive, "ZIP64_SIZE", zip64_size)
    data = write(ENTRIES)
    assert FLAG in flags(data).values()
    assert problems(data) == []


class TestOtherTools:
    def test_numpy_reads_it(self, data):
        with np.load(io.BytesIO(data)) as archive:
            assert archive["large"].tolist() == list(range(1_000))
            assert archive["small"].tolist() == list(range(10))

    @pytest.mark.parametrize("zip64_size", [1, 5_000, 2**32 - 1])
    @pytest.mark.parametrize(
        "command",
        ["unzip -tqq", "jar tf", "bsdtar -xOf", "7z t -bso0", f"{sys.executable} -m zipfile -t"],
        ids=["unzip", "jar", "bsdtar", "7z", "zipfile"],
    )
    def test_it_is_accepted(self, monkeypatch, small_buffer, tmp_path, command, zip64_size):
        command = command.split()
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        monkeypatch.setattr(zip_archive, "ZIP64_SIZE", zip64_size)
        path = tmp_path / "a.zip"
        path.write_bytes(write(ENTRIES))
        done = subprocess.run([*command, path], capture_output=True)
        assert done.returncode == 0, (done.stdout[-500:], done.stderr)


class TestDamage:
    @pytest.mark.parametrize("zip64_size", [5_000, 2**32 - 1])
    def test_every_byte_of_a_descriptor_counts(self, monkeypatch, small_buffer, zip64_size):
        monkeypatch.setattr(zip_archive, "ZIP64_SIZE", zip64_size)
        data = write(ENTRIES)
        start = data.index(b"PK\7\b")
        size = 24 if zip64_size == 5_000 else 16
        assert data[start + size : start + size + 4] == b"PK\3\4"
        for at in range(start, start + size):
            damaged = bytearray(data)
            damaged[at] ^= 1
            (problem,) = problems(damaged)
            assert "'large.npy': its data descriptor" in problem

    def test_every_byte_of_its_local_header_counts(self, data):
        for at in range(30):
            damaged = bytearray(data)
            damaged[at] ^= 1
            assert any("'large.npy': its local header" in found for found in problems(damaged))

    def test_a_flag_in_the_directory_only(self, data):
        damaged = bytearray(data)
        at = data.index(b"PK\1\2")
        damaged[at + 8] = 0
        assert any("local header" in found for found in problems(damaged))


@pytest.mark.parametrize("buffers", [(4096, 1 << 18), (1 << 18, 4096), (4096, 4096)])
def test_members_are_copied_from_either_form(monkeypatch, buffers):
    before, after = buffers
    monkeypatch.setattr(zip_archive, "BUFFER", before)
    container = opened(write(ENTRIES))
    monkeypatch.setattr(zip_archive, "BUFFER", after)
    copy = write(dict.fromkeys(ENTRIES, container))
    assert copy == write(ENTRIES)
    assert problems(copy) == []


def test_the_golden_object_stays_readable():
    container = opened(GOLDEN.read_bytes())
    assert {name: container.load(name) for name in container.names} == ENTRIES
    assert list(container.check(deep=True)) == []


def test_this_version_writes_its_golden_object(data):
    assert data == GOLDEN.read_bytes()
