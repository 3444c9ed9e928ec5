"""Values in the row beside pickles in a `LargeBinary` column, on SQLite.

``python -m benchmarks.in_row`` prints the table of ``docs/small-values.md``: an array of ten
floats, a Series of them and an int in each row. The turns are interleaved, and the median counts.
Times of the clock contain the waiting for the disk, which varies by far more than that of the CPU.
"""

from __future__ import annotations

import argparse
import gc
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Dialect, Engine, LargeBinary, String, create_engine, event, insert
from sqlalchemy.orm import DeclarativeBase, InstanceState, Mapped, mapped_column

from benchmarks.rows import Rows
from sqla_datastore import DataStore, DataStoreType, bind_storage

ROWS = 300
SINGLE = 30
LISTED = 20_000

_FLOATS = np.random.default_rng(1).random(10)
_SERIES = pd.Series(_FLOATS)


class Text:
    """The least that a value which reads later may be: what its column holds."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class TextType(String):
    """Gives such an object for each text."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:  # noqa: ARG002
        """Return the class."""
        return Text


class Base(DeclarativeBase):
    """Tables that differ in one column."""


class InRow(Base):
    """Keeps values in the row."""

    __tablename__ = "in_row"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType(inline_bytes=4_000))


class Pickled(Base):
    """Keeps pickles."""

    __tablename__ = "pickled"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Texts(Base):
    """Keeps the same bytes as values in rows, and gives them as text."""

    __tablename__ = "texts"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[str] = mapped_column(String)


class Objects(Base):
    """Keeps the same bytes, gives an object for each, and is told of each row that is loaded."""

    __tablename__ = "objects"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[Any] = mapped_column(TextType)


@event.listens_for(Objects, "load", raw=True)
def _loaded(_state: InstanceState[Any], _context: object) -> None:
    """Do nothing: being called is what it costs to tell a value which row it belongs to."""


def entries(number: int) -> dict[str, Any]:
    """Return what each row holds."""
    return {"a": _FLOATS + number, "b": _SERIES + number, "c": number}


def rows_of(engine: Engine, cls: type[Base], name: str = "a") -> Rows:
    """Return the rows of a table, whose column takes a value or its pickle; one entry is read."""
    if cls is Pickled:
        pickled = partial(pickle.dumps, protocol=5)
        return Rows(engine, cls, pickled, lambda data: pickle.loads(data)[name])
    return Rows(engine, cls, DataStore, attrgetter(name))


def microseconds(call: Callable[[], object], rows: int, clock: Callable[[], float]) -> float:
    """Return what a call takes for each of its rows."""
    gc.collect()
    begin = clock()
    call()
    return (clock() - begin) / rows * 1e6


def turn(engine: Engine, cls: type[Base], clock: Callable[[], float]) -> dict[str, float]:
    """Do everything once with one table, and return what each step takes."""
    rows = rows_of(engine, cls)
    found: dict[str, float] = {}

    def step(what: str, call: Callable[[], object], count: int) -> None:
        found[what] = microseconds(call, count, clock)

    many, few = [[*map(entries, range(count))] for count in (ROWS, SINGLE)]
    step(f"insert {ROWS} rows, one commit", partial(rows.insert, many), ROWS)
    step("insert a row and commit", partial(rows.insert_each, few), SINGLE)
    for what, name in (("an int", "c"), ("an array", "a"), ("a Series", "b")):
        load = partial(rows_of(engine, cls, name).load, rows.keys(ROWS))
        step(f"load {what}, in a Session of its own", load, ROWS)
    step("delete a row and commit", partial(rows.delete_each, rows.keys(SINGLE)), SINGLE)
    step(f"delete {ROWS} rows, one commit", rows.delete, ROWS)
    return found


def print_row(what: str, found: list[list[float]]) -> None:
    """Print the medians of two subjects, and that of the rounds' ratios."""
    one, other = (statistics.median(each) for each in zip(*found, strict=True))
    ratio = statistics.median(a / b for a, b in found)
    print(f"| {what} | {one:,.1f} | {other:,.1f} | {ratio:.2f} |", flush=True)


def compare(engine: Engine, rounds: int, clock: Callable[[], float]) -> None:
    """Measure values in rows beside pickles, and their listing beside text."""
    print("| what | in the row, µs | pickle, µs | ratio |")
    print("| --- | ---: | ---: | ---: |")
    both = (InRow, Pickled)
    # the first round warms up
    found = [[turn(engine, cls, clock) for cls in both] for _ in range(rounds + 1)][1:]
    for what in found[0][0]:
        print_row(what, [[figures[what] for figures in each] for each in found])
    print("\n| what | it, µs | text, µs | ratio |")
    print("| --- | ---: | ---: | ---: |")
    fill(engine)
    all_ = [rows_of(engine, cls) for cls in (InRow, Objects, Texts)]
    listed = [[microseconds(rows.list, LISTED, clock) for rows in all_] for _ in range(rounds + 1)]
    for at, what in enumerate(("values in rows", "an object and an event, no more")):
        print_row(f"list {LISTED:,} rows: {what}", [[each[at], each[2]] for each in listed[1:]])


def fill(engine: Engine) -> None:
    """Fill the tables that are listed, all with the same text."""
    rows_of(engine, InRow).insert(map(entries, range(LISTED)))
    with engine.begin() as connection:
        texts = connection.exec_driver_sql("SELECT data FROM in_row").scalars().all()
        for cls in (Objects, Texts):
            connection.execute(insert(cls), [{"data": text} for text in texts])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wall", action="store_true", help="time of the clock, not of the CPU")
    parser.add_argument("--folder", help="where the database lies; by default a temporary folder")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.wall else time.process_time
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        engine = create_engine(f"sqlite:///{folder}/test.db")
        bind_storage(engine, Path(folder) / "objects")
        Base.metadata.create_all(engine)
        compare(engine, arguments.rounds, clock)
        engine.dispose()


if __name__ == "__main__":
    main()
