"""A database with experiments to look at: values of every kind that is shown in its own way."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreType, File, bind_storage

HOSTILE = '</td><script>alert("x")</script>\x1b[2J\u202e'
ROWS = 120
FIRST, EMPTY, LAST = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=ROWS)
FILES = uuid.UUID(int=ROWS + 1)


class Base(DeclarativeBase):
    """The tables."""


class Experiment(Base):
    """One value, a key of one column."""

    __tablename__ = "experiments"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str]
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Run(Base):
    """Two values, a key of two columns."""

    __tablename__ = "runs"
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    extra: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Lab:
    """A folder with a database and a storage that hold some experiments and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = f"sqlite:///{folder / 'lab.db'}"
        self.storage = folder / "lab.storage"
        engine = self.engine()
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Experiment(id=FIRST, title="first", data=first_value()))
            session.add(Experiment(id=EMPTY, title="nothing yet", data=None))
            session.add(Experiment(id=LAST, title=HOSTILE, data=hostile_value()))
            session.add_all(
                Experiment(id=uuid.UUID(int=n), title=f"run {n}", data=DataStore(n=n))
                for n in range(3, ROWS)
            )
            session.add_all(Run(name="a,b", step=n, data=DataStore(n=n)) for n in range(3))
            session.commit()
        engine.dispose()

    def add_files(self, **entries: File | dict[str, File]) -> None:
        """Add an experiment with files."""
        engine = self.engine()
        with Session(engine) as session:
            session.add(Experiment(id=FILES, title="files", data=DataStore(entries)))
            session.commit()
        engine.dispose()

    def engine(self) -> Engine:
        """Return an engine that is bound to the storage."""
        engine = create_engine(self.database)
        bind_storage(engine, self.storage)
        return engine

    @property
    def arguments(self) -> list[str]:
        """The database and the storage for a command."""
        return ["--database", self.database, "--storage", str(self.storage)]


def first_value() -> DataStore:
    """Return a value with entries of every kind, the same each time."""
    rng = np.random.default_rng(7)
    epochs = np.arange(200)
    return DataStore(
        {
            "history": pd.DataFrame(
                {
                    "loss": np.exp(-epochs / 40) + rng.random(200) / 20,
                    "accuracy": 1 - 0.6 * np.exp(-epochs / 30),
                    "phase": ["warm-up"] * 20 + ["training"] * 180,
                }
            ),
            "weights": rng.normal(size=(64, 96)),
            "signal": np.sin(epochs / 9) + rng.normal(size=200) / 9,
            "confusion": np.diag(np.arange(8, dtype="i8") + 5) + 1,
            "labels": pa.table({"class": ["cat", "dog"], "count": [1, 2]}),
            "report": "Converged.\n\nAfter 12 epochs.\n",
            "settings": {"rate": 0.01, "layers": [64, 32], "day": datetime.date(2024, 1, 2)},
            "raw": bytes(range(256)) * 4,
            "photo": gradient(),
            "evaluation": DataStore(scores=np.linspace(0, 1, 11), deeper=DataStore(k=1)),
        }
    )


def hostile_value() -> DataStore:
    """Return a value whose names and texts are to be shown and not obeyed."""
    return DataStore(
        {
            HOSTILE: 1,
            "": 2,
            "labels": pa.table({HOSTILE: [HOSTILE]}),
            "report": f"Before.\n{HOSTILE}\n",
        }
    )


def gradient() -> np.ndarray:
    """Return the pixels of a picture."""
    down, across = np.mgrid[0:120, 0:160]
    return np.stack([down * 2, across, 255 - across], axis=-1).astype(np.uint8)
