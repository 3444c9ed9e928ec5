"""When it pays to keep values in the row: in rows beside outside, by size and database.

    python -m benchmarks.small_values                                  SQLite
    python -m benchmarks.small_values postgresql+psycopg://… mysql+pymysql://…   and servers

Prints a table in Markdown: the wall time of values in rows divided by that of values outside, so
that less than 1 is faster. The turns are interleaved, and the median counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.rows import Rows
from sqla_datastore import DataStore, DataStoreType, bind_storage

SIZES = (100, 1_000, 4_000, 16_000, 64_000)
ROWS = 100
SINGLE = 10
LOADED = 20
TURNS = 5


class Base(DeclarativeBase):
    """Two tables that differ in the option alone."""


class InRow(Base):
    """Keeps all of these values in the row."""

    __tablename__ = "small_values_in_row"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType(inline_bytes=100_000))


class Outside(Base):
    """Keeps all values in the storage."""

    __tablename__ = "small_values_outside"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


def _sum(data: DataStore) -> object:
    return data.a.sum()


def turn(rows: Rows, array: np.ndarray[Any, Any]) -> list[float]:
    """Do everything once with values of one size, and return how long each step takes."""
    values = [{"a": array, "n": n} for n in range(ROWS)]
    return [
        seconds(partial(rows.insert, values)),
        seconds(partial(rows.insert_each, values[:SINGLE])),
        seconds(rows.list),
        seconds(partial(rows.load, rows.keys(LOADED))),
        seconds(rows.delete),
    ]


def seconds(step: Callable[[], None]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def measured(url: str, base: Path) -> Iterator[tuple[int, list[float]]]:
    """Yield the ratio of each step by size."""
    engine = create_engine(url)
    bind_storage(engine, base)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    for size in SIZES:
        array = np.random.default_rng(1).random(max(1, size // 8))
        both = [Rows(engine, cls, DataStore, _sum) for cls in (InRow, Outside)]
        # the first one warms up
        times = [[turn(rows, array) for rows in both] for _ in range(TURNS + 1)][1:]
        in_row, outside = (
            [statistics.median(step) for step in zip(*found, strict=True)]
            for found in zip(*times, strict=True)
        )
        yield size, [a / b for a, b in zip(in_row, outside, strict=True)]
    Base.metadata.drop_all(engine)
    engine.dispose()


def main() -> None:
    """Measure all databases that are named, and SQLite."""
    print("| database | bytes of the array | insert 100 | insert 1 | list | load | delete |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for url in [f"sqlite:///{folder}/test.db", *sys.argv[1:]]:
            name = url.partition(":")[0].partition("+")[0]
            for size, ratios in measured(url, Path(folder) / name):
                cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"| {name} | {size:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
