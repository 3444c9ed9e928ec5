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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Dialect, Engine, LargeBinary, String, create_engine, event, insert, select
from sqlalchemy.orm import DeclarativeBase, InstanceState, Mapped, Session, mapped_column

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


def row_of(cls: type[Base], value: dict[str, Any]) -> Base:
    """Return a new row with a value."""
    data = DataStore(value) if cls is InRow else pickle.dumps(value, protocol=5)
    return cls(data=data)


def array_of(row: Any) -> Any:
    """Read a row's array."""
    return row.data.a if isinstance(row, InRow) else pickle.loads(row.data)["a"]


class Turn:
    """Works on one table.

    Args:
        engine: the database.
        cls: the class.
    """

    def __init__(self, engine: Engine, cls: Any) -> None:
        self.engine, self.cls = engine, cls

    def keys(self, limit: int) -> list[int]:
        """Return the keys of some rows."""
        with Session(self.engine) as session:
            return list(session.scalars(select(self.cls.id).limit(limit)))

    def steps(self) -> Iterable[tuple[str, Callable[[], float]]]:
        """Return what is measured, each as a call that returns microseconds of a row."""
        return (
            (f"insert {ROWS} rows, one commit", self.insert),
            ("insert a row and commit", self.insert_single),
            ("load an array, in a Session of its own", self.load),
            ("delete a row and commit", self.delete_single),
            (f"delete {ROWS} rows, one commit", self.delete),
        )

    def insert(self) -> float:
        """Insert many rows in one commit."""
        values = [entries(number) for number in range(ROWS)]
        with timed(ROWS) as clock, Session(self.engine) as session, session.begin():
            session.add_all([row_of(self.cls, value) for value in values])
        return clock.microseconds

    def insert_single(self) -> float:
        """Insert rows, each in a commit."""
        values = [entries(number) for number in range(SINGLE)]
        with timed(SINGLE) as clock:
            for value in values:
                with Session(self.engine) as session, session.begin():
                    session.add(row_of(self.cls, value))
        return clock.microseconds

    def load(self) -> float:
        """Read the array of some rows."""
        keys = self.keys(ROWS)
        with timed(len(keys)) as clock:
            for key in keys:
                with Session(self.engine) as session:
                    array_of(session.get_one(self.cls, key)).sum()
        return clock.microseconds

    def delete_single(self) -> float:
        """Delete rows, each in a commit."""
        keys = self.keys(SINGLE)
        with timed(len(keys)) as clock:
            for key in keys:
                with Session(self.engine) as session, session.begin():
                    session.delete(session.get_one(self.cls, key))
        return clock.microseconds

    def delete(self) -> float:
        """Delete all rows in one commit."""
        with timed(ROWS) as clock, Session(self.engine) as session, session.begin():
            for row in session.scalars(select(self.cls)):
                session.delete(row)
        return clock.microseconds

    def list(self) -> float:
        """Fetch all rows, and touch no value."""
        with timed(LISTED) as clock, Session(self.engine) as session:
            list(session.scalars(select(self.cls)))
        return clock.microseconds


class timed:  # noqa: N801 - a context manager
    """Measures a block: what it takes for each of its rows.

    Args:
        rows: how many there are.
    """

    clock = staticmethod(time.process_time)

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.microseconds = 0.0

    def __enter__(self) -> timed:
        gc.collect()
        self._begin = self.clock()
        return self

    def __exit__(self, *_: object) -> None:
        self.microseconds = (self.clock() - self._begin) / self._rows * 1e6


def print_row(what: str, found: list[list[float]]) -> None:
    """Print the medians of two subjects, and that of the rounds' ratios."""
    one, other = (statistics.median(each) for each in zip(*found, strict=True))
    ratio = statistics.median(a / b for a, b in found)
    print(f"| {what} | {one:,.1f} | {other:,.1f} | {ratio:.2f} |", flush=True)


def compare(engine: Engine, rounds: int) -> None:
    """Measure values in rows beside pickles, and their listing beside text."""
    print("| what | in the row, µs | pickle, µs | ratio |")
    print("| --- | ---: | ---: | ---: |")
    turns = [Turn(engine, cls) for cls in (InRow, Pickled)]
    steps = list(zip(*(turn.steps() for turn in turns), strict=True))
    # the first round warms up
    found = [[[call() for _, call in pair] for pair in steps] for _ in range(rounds + 1)][1:]
    for pair, figures in zip(steps, zip(*found, strict=True), strict=True):
        print_row(pair[0][0], list(figures))
    print("\n| what | it, µs | text, µs | ratio |")
    print("| --- | ---: | ---: | ---: |")
    fill(engine)
    turns = [Turn(engine, cls) for cls in (InRow, Objects, Texts)]
    listed = [[turn.list() for turn in turns] for _ in range(rounds + 1)][1:]
    for at, what in enumerate(("values in rows", "an object and an event, no more")):
        print_row(f"list {LISTED:,} rows: {what}", [[each[at], each[2]] for each in listed])


def fill(engine: Engine) -> None:
    """Fill the tables that are listed, all with the same text."""
    with Session(engine) as session, session.begin():
        session.add_all([row_of(InRow, entries(number)) for number in range(LISTED)])
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
    if arguments.wall:
        timed.clock = staticmethod(time.perf_counter)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        engine = create_engine(f"sqlite:///{folder}/test.db")
        bind_storage(engine, Path(folder) / "objects")
        Base.metadata.create_all(engine)
        compare(engine, arguments.rounds)
        engine.dispose()


if __name__ == "__main__":
    main()
