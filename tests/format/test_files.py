"""Objects with files: what is written stays what it is, and readable."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from support.toys import MemoryReader, MemoryWriter

from sqla_datastore import File
from sqla_datastore.format import Container, plan

GOLDEN = Path(__file__).parent / "golden" / "files-1.zip"
CONTENT = {
    "report": (b"%PDF-1.7 of some kind", "report.pdf", "application/pdf"),
    "large": (bytes(range(256)) * 20, "r\u00e9sum\u00e9.bin", "application/octet-stream"),
    "tree": (b"a,b\n1,2\n", "table.csv", "text/csv; charset=utf-8"),
    "empty": (b"", "empty.txt", "text/plain"),
}


class Pipe:
    """A stream that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def values():
    made = {
        name: File(Pipe(data) if name == "large" else io.BytesIO(data), *about)
        for name, (data, *about) in CONTENT.items()
    }
    return {**made, "tree": {"data/table.csv": made["tree"]}, "n": 5}


def written():
    writer = MemoryWriter()
    plan(values(), nested_entries=dict).objects[0].write(writer)
    return bytes(writer.data)


def test_the_golden_object_stays_readable():
    container = Container.open(MemoryReader(GOLDEN.read_bytes()), "golden", nested=int)
    assert list(container.check(deep=True)) == []
    for name, (data, file_name, kind) in CONTENT.items():
        value = container.load(name)
        file = value["data/table.csv"] if name == "tree" else value
        assert (file.name, file.content_type, file.read()) == (file_name, kind, data)
    with zipfile.ZipFile(GOLDEN) as archive:
        assert archive.testzip() is None
        assert archive.read("large.file") == CONTENT["large"][0]


def test_this_version_writes_its_golden_object():
    """A change of a single byte of the format is a new version, or a mistake."""
    assert written() == GOLDEN.read_bytes()
