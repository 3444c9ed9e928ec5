"""What it costs to collect one entry of many rows, beside Arrow files that pyarrow reads alone.

    python benchmarks/collecting.py                 600 rows of 100 rows each, and 100 of 100,000
    python benchmarks/collecting.py 1000 500        so many rows, and so many rows in each entry

Prints a table in Markdown: the wall time of `collect` on SQLite and a local folder divided by that
of ``pyarrow.ipc`` over as many files with the same columns. The turns are interleaved, and the
median counts. The last column is the time of pyarrow for a file, in microseconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreType, bind_storage, collect

TURNS = 9


class Base(DeclarativeBase):
    """The table."""


class Run(Base):
    """A row with one entry, once as a frame and once as an Arrow table."""

    __tablename__ = "collected"
    id: Mapped[int] = mapped_column(primary_key=True)
    frame: Mapped[DataStore] = mapped_column(DataStoreType(folder="frame/{id}"))
    table: Mapped[DataStore] = mapped_column(DataStoreType(folder="table/{id}"))


def fill(engine: Engine, files: Path, rows: int, length: int) -> None:
    """Store rows, and the same tables as files."""
    random = np.random.default_rng(1)
    with Session(engine) as session, session.begin():
        for number in range(rows):
            frame = pd.DataFrame({"step": np.arange(length), "loss": random.random(length)})
            table = pa.Table.from_pandas(frame, preserve_index=False)
            session.add(Run(frame=DataStore(e=frame), table=DataStore(e=table)))
            with pa.ipc.new_file(str(files / f"{number:06}.arrow"), table.schema) as writer:
                writer.write_table(table)


def measured(folder: Path, rows: int, length: int) -> list[float]:
    """Return the ratios of frames, of tables, and pyarrow's microseconds for a file."""
    engine = create_engine(f"sqlite:///{folder / 'test.db'}")
    bind_storage(engine, folder / "storage")
    Base.metadata.create_all(engine)
    files = folder / "files"
    files.mkdir()
    fill(engine, files, rows, length)
    paths = sorted(map(str, files.iterdir()))

    def by_pyarrow() -> None:
        pa.concat_tables([pa.ipc.open_file(pa.memory_map(path)).read_all() for path in paths])

    def by(name: str) -> Callable[[], None]:
        def read() -> None:
            with Session(engine) as session:
                collect(session, select(Run), getattr(Run, name), "e")

        return read

    steps = [by("frame"), by("table"), by_pyarrow]
    # the first turn warms up
    times = [[_seconds(step) for step in steps] for _ in range(TURNS + 1)][1:]
    frames, tables, alone = map(statistics.median, zip(*times, strict=True))
    engine.dispose()
    return [frames / alone, tables / alone, 1e6 * alone / rows]


def _seconds(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def main() -> None:
    """Measure the shapes that are asked for."""
    given = [int(number) for number in sys.argv[1:]]
    print("| rows | rows of each entry | frames | tables | pyarrow, µs a file |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for rows, length in [(given[0], given[1])] if given else [(600, 100), (100, 100_000)]:
        with tempfile.TemporaryDirectory() as folder:
            frames, tables, alone = measured(Path(folder), rows, length)
        print(f"| {rows:,} | {length:,} | {frames:.1f} | {tables:.1f} | {alone:.0f} |", flush=True)


if __name__ == "__main__":
    main()
