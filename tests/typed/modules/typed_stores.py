"""What type checkers make of typed stores; each line marked with ``# error`` must be refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict, assert_type

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreIO, DataStoreType
from sqla_datastore.typed import MaxBytes, Shape


@dataclass
class Features:
    """Entries as attributes."""

    weights: Annotated[npt.NDArray[np.float64], Shape(None, 3), MaxBytes(1_000_000)]
    n: int = 0


class Scores(TypedDict):
    """Entries as items."""

    loss: float
    notes: NotRequired[list[str]]


class Base(DeclarativeBase):
    """The models' base."""


class Run(Base):
    """A row with typed and free-form stores."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    features: Mapped[DataStore[Features]] = mapped_column(DataStoreType())
    scores: Mapped[DataStore[Scores] | None] = mapped_column(DataStoreType())
    free: Mapped[DataStore] = mapped_column(DataStoreType())


def store(session: Session, weights: npt.NDArray[np.float64]) -> Run:
    """Assign."""
    run = Run(features=DataStore(Features(weights, n=1)), free=DataStore(a=1, b="x"))
    run.features = DataStore(weights=weights, n=2)
    run.scores = DataStore(Scores(loss=0.5))
    run.scores = DataStore({"loss": 0.5})
    run.free = DataStore({"a": 1})
    run.scores = None
    run.features = None  # error
    run.features = 5  # error
    session.add(run)
    return run


def read(session: Session) -> None:
    """Read."""
    run = session.scalars(select(Run)).one()
    assert_type(run.features.typed.n, int)
    assert_type(run.features.typed, Features)
    run.features.typed.n = 3
    run.features.typed.n = "three"  # error
    print(run.features.typed.wieghts)  # error
    assert run.scores is not None
    assert_type(run.scores.typed["loss"], float)
    print(run.scores.typed["lost"])  # error
    run.scores.typed["loss"] = "low"  # error
    assert_type(run.free.typed, Any)
    assert_type(run.free.a, Any)
    assert_type(run.free["a"], Any)


def self_managed(io: DataStoreIO) -> None:
    """Single objects."""
    assert_type(io.read_deserialize(), Any)
    assert_type(io.read_deserialize(dict), dict[Any, Any])
