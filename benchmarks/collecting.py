"""What it costs to collect one entry of many rows, beside Arrow files that pyarrow reads alone.

    python benchmarks/collecting.py                 600 rows of 100 rows each, and 100 of 100,000
    python benchmarks/collecting.py 1000 500        so many rows, and so many rows in each entry
    taskset -c 0 python benchmarks/collecting.py    on one processor

Prints a table in Markdown, with a line for each way in which pyarrow reads as many files with the
same columns: through a map, as its documentation does; by calls of the operating system; and from
bytes that Python has read and compared with a checksum, validated as `collect` does. First comes
what pyarrow takes for a file, in microseconds. Then what `collect` takes on SQLite and a local
folder, divided by that. CPU time of all threads comes first, wall time in brackets. The turns are
interleaved, and the median counts.

pyarrow hands the footer of a file that is no bytes over to a thread of its own and waits for it.
That takes 30 to 80 microseconds, more on two processors than on one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zlib import crc32

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


def measured(folder: Path, rows: int, length: int) -> dict[str, tuple[float, float]]:
    """Return the CPU and the wall time of each way to read, in seconds."""
    engine = create_engine(f"sqlite:///{folder / 'test.db'}")
    bind_storage(engine, folder / "storage")
    Base.metadata.create_all(engine)
    files = folder / "files"
    files.mkdir()
    fill(engine, files, rows, length)
    paths = sorted(files.iterdir())

    def collected(name: str) -> None:
        with Session(engine) as session:
            collect(session, select(Run), getattr(Run, name), "e")

    def read(each: Callable[[Path], pa.Table]) -> None:
        pa.concat_tables([each(path) for path in paths])

    steps: dict[str, Callable[[], None]] = {
        "frames": partial(collected, "frame"),
        "tables": partial(collected, "table"),
        **{name: partial(read, each) for name, each in BY_PYARROW.items()},
    }
    # the first turn warms up
    turns = [{name: _seconds(step) for name, step in steps.items()} for _ in range(TURNS + 1)][1:]
    engine.dispose()
    return {
        name: (
            statistics.median(turn[name][0] for turn in turns),
            statistics.median(turn[name][1] for turn in turns),
        )
        for name in steps
    }


def _verified(path: Path) -> pa.Table:
    data = path.read_bytes()
    crc32(data)
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    table.validate(full=True)
    return table


BY_PYARROW: dict[str, Callable[[Path], pa.Table]] = {
    "a map": lambda path: pa.ipc.open_file(pa.memory_map(str(path))).read_all(),
    "calls": lambda path: pa.ipc.open_file(pa.OSFile(str(path))).read_all(),
    "bytes, verified": _verified,
}


def _seconds(step: Callable[[], None]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measure the shapes that are asked for."""
    given = [int(number) for number in sys.argv[1:]]
    print("| rows | rows of each entry | pyarrow reads | µs a file | frames | tables |")
    print("| ---: | ---: | --- | ---: | ---: | ---: |")
    for rows, length in [(given[0], given[1])] if given else [(600, 100), (100, 100_000)]:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(Path(folder), rows, length)
        for name in BY_PYARROW:
            alone = found[name]
            figures = [
                f"{1e6 * alone[0] / rows:.0f} ({1e6 * alone[1] / rows:.0f})",
                *(
                    f"{found[each][0] / alone[0]:.2f} ({found[each][1] / alone[1]:.2f})"
                    for each in ("frames", "tables")
                ),
            ]
            print(f"| {rows:,} | {length:,} | {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
