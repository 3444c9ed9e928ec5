"""When it pays to keep values in the row: in rows beside outside, by size and database.

    python benchmarks/small_values.py                                  SQLite
    python benchmarks/small_values.py postgresql+psycopg://… mysql+pymysql://…   and servers

Prints a table in Markdown: the wall time of values in rows divided by that of values outside, so
that less than 1 is faster. The turns are interleaved, and the median counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreType, bind_storage

SIZES = (100, 1_000, 4_000, 16_000, 64_000)
ROWS = 100
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


class Turn:
    """Works on one table with values of one size.

    Args:
        engine: the database.
        cls: the class.
        array: what each value holds, beside a number.
    """

    def __init__(self, engine: Engine, cls: Any, array: np.ndarray[Any, Any]) -> None:
        self.engine, self.cls, self.array = engine, cls, array
        self.keys: list[int] = []

    def seconds(self) -> list[float]:
        """Return how long each step takes."""
        return [self._seconds(step) for step in self._steps()]

    def _steps(self) -> tuple[Callable[[], None], ...]:
        return self.insert_all, self.insert_one_by_one, self.list, self.load, self.delete

    def _seconds(self, step: Callable[[], None]) -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    def _insert(self, rows: int) -> None:
        with Session(self.engine) as session, session.begin():
            session.add_all([self.cls(data=DataStore(a=self.array, n=n)) for n in range(rows)])

    def insert_all(self) -> None:
        """Insert 100 rows in one commit."""
        self._insert(ROWS)

    def insert_one_by_one(self) -> None:
        """Insert 10 rows, each in a commit."""
        for _ in range(10):
            self._insert(1)

    def list(self) -> None:
        """Fetch all rows, and touch no value."""
        with Session(self.engine) as session:
            self.keys = [row.id for row in session.scalars(select(self.cls))]

    def load(self) -> None:
        """Read the array of 20 rows, each in a Session of its own."""
        for key in self.keys[:20]:
            with Session(self.engine) as session:
                session.get_one(self.cls, key).data.a.sum()

    def delete(self) -> None:
        """Delete all rows in one commit."""
        with Session(self.engine) as session, session.begin():
            for row in session.scalars(select(self.cls)):
                session.delete(row)


def measured(url: str, base: Path) -> Iterator[tuple[int, list[float]]]:
    """Yield the ratio of each step by size."""
    engine = create_engine(url)
    bind_storage(engine, base)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    for size in SIZES:
        array = np.random.default_rng(1).random(max(1, size // 8))
        turns = [Turn(engine, cls, array) for cls in (InRow, Outside)]
        # the first one warms up
        times = [[turn.seconds() for turn in turns] for _ in range(TURNS + 1)][1:]
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
