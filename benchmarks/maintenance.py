"""Time and memory of check and gc at 100,000 and 1,000,000 objects and rows.

    python benchmarks/maintenance.py

Each size runs in a process of its own, with rows in SQLite and a storage that makes its listing up:
nine values of ten have a row; of ten rows one has no object. Prints seconds and peak memory (RSS).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import MetaData, create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import String

from sqla_datastore import DataStore, DataStoreType, bind_storage
from sqla_datastore.exceptions import MissingObjectError
from sqla_datastore.format import plan
from sqla_datastore.maintenance import check, gc, usage
from sqla_datastore.storage import LocalStorage, ObjectReader, ObjectWriter, StoredObject
from sqla_datastore.storage.urls import ObjectURL

SIZES = (100_000, 1_000_000)
SCRAMBLE = 0x9E3779B97F4A7C15


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


def path_of(number: int) -> str:
    """The path of an object, in the order of numbers; its row's key is scrambled."""
    return f"runs/{number:08d}/{number * SCRAMBLE % 2**128:032x}.zip"


class MadeUp:
    """A storage whose every tenth object has no row; all objects have the bytes of one."""

    scheme = "file"
    url = place = "file:///made-up"

    def __init__(self, count: int, whole: ObjectReader) -> None:
        self.count = count
        self.whole = whole
        self.removed = 0

    def exists(self) -> bool:
        return True

    def list(self, folder: str) -> Iterator[StoredObject]:
        assert folder == ""
        for number in range(self.count):
            if number % 10 != 1:
                yield StoredObject(path_of(number), self.whole.size_bytes, 0.0)

    def create(self, path: str) -> AbstractContextManager[ObjectWriter]:
        raise NotImplementedError(path)

    def open(self, _path: str) -> ObjectReader:
        return self.whole

    def size_bytes(self, path: str) -> int:
        raise MissingObjectError(path, self.url)

    def remove(self, paths: Iterable[str]) -> None:
        self.removed += sum(1 for _ in paths)

    def make_durable(self, paths: Iterable[str]) -> None:
        raise NotImplementedError


def whole_object(folder: Path) -> ObjectReader:
    storage = LocalStorage(folder)
    path = ObjectURL.parse("file:///one/object.zip").path
    (content,) = plan({"a": 1, "b": "text"}, nested_entries=lambda _: {}).objects
    with storage.create(path) as writer:
        content.write(writer)
    return storage.open(path)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(database: Path, count: int) -> None:
    engine = create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    table = Base.metadata.tables["runs"].to_metadata(MetaData())
    table.c.data.type = String()
    with engine.begin() as connection:
        for start in range(0, count, 10_000):
            numbers = (n for n in range(start, start + 10_000) if n % 10 != 0)
            rows = [
                {"id": n * 7_919 % 100_000_007, "data": f"file:///{path_of(n)}"} for n in numbers
            ]
            connection.execute(insert(table), rows)
    engine.dispose()


def measure(what: str, database: Path, count: int, folder: Path) -> None:
    engine = create_engine(f"sqlite:///{database}")
    storage = MadeUp(count, whole_object(folder))
    bind_storage(engine, storage)
    before, began = peak_mb(), time.perf_counter()
    if what == "check":
        report = check(engine, Base.metadata)
        assert (report.orphans.count, report.dangling.count) == (count // 10, count // 10), report
    elif what == "gc":
        done = gc(engine, Base.metadata, apply=True)
        assert done.removed == storage.removed == count // 10
    else:
        assert usage(engine, Base.metadata).objects == count // 10 * 8
    seconds = time.perf_counter() - began
    print(
        f"{what:6} {count:>9,} objects: {seconds:7.1f} s, {seconds / count * 1e6:5.1f} µs each, "
        f"{peak_mb():5.0f} MB at most ({before:.0f} MB before)",
        flush=True,
    )


def main() -> None:
    if len(sys.argv) > 1:
        what, rows, size, work = sys.argv[1:]
        if what == "prepare":
            prepare(Path(rows), int(size))
        else:
            measure(what, Path(rows), int(size), Path(work))
        return
    for count in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            database = os.path.join(folder, "rows.db")
            for what in ("prepare", "gc", "check", "usage"):
                work = os.path.join(folder, what)
                subprocess.run(
                    [sys.executable, __file__, what, database, str(count), work], check=True
                )


if __name__ == "__main__":
    main()
