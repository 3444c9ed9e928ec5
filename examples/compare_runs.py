"""Compare hundreds of runs by SQL: the history of each is a frame, and all of them are one table.

    python examples/compare_runs.py --database sqlite:///runs.db --storage runs.storage

`collect` reads one entry of all rows. What it returns is Arrow, which DuckDB queries as it is and
which pandas and polars take over. Needs duckdb.
"""

from __future__ import annotations

import argparse

import duckdb
import numpy as np
import pandas as pd
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreType, bind_storage, collect

EPOCHS = 100

BEST_RATES = """
    SELECT rate, count(DISTINCT id) AS runs, avg(loss) AS mean_loss, stddev(loss) AS spread
    FROM history WHERE epoch = 99 GROUP BY rate ORDER BY mean_loss
"""
FASTEST = """
    SELECT id, rate, min(epoch) AS reached FROM history WHERE loss < 0.3
    GROUP BY id, rate ORDER BY reached, id LIMIT 3
"""


class Base(DeclarativeBase):
    pass


class Run(Base):
    """One training."""

    __tablename__ = "compared_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    rate: Mapped[float]
    data: Mapped[DataStore] = mapped_column(DataStoreType())


def trained(rate: float, random: np.random.Generator) -> pd.DataFrame:
    """Return the history of a training, which learns the faster the nearer its rate is to 0.1."""
    epochs = np.arange(EPOCHS)
    speed = 0.1 / (1 + 2 * abs(np.log10(rate) + 1))
    loss = 0.2 + np.exp(-speed * epochs) + random.normal(0, 0.01, EPOCHS)
    return pd.DataFrame({"epoch": epochs, "loss": loss})


def record(session: Session, count: int) -> None:
    """Store runs of several rates."""
    random = np.random.default_rng(1)
    rates = [10.0**-power for power in range(4)]
    for number in range(count):
        rate = rates[number % len(rates)]
        session.add(Run(rate=rate, data=DataStore(history=trained(rate, random))))
    session.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", default="sqlite:///runs.db")
    parser.add_argument("--storage", default="runs.storage")
    parser.add_argument("--runs", type=int, default=600)
    options = parser.parse_args()

    engine = create_engine(options.database)
    bind_storage(engine, options.storage)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        record(session, options.runs)
        # DuckDB finds the table by the name of this variable
        history = collect(session, select(Run), Run.data, "history", columns=[Run.id, Run.rate])
    engine.dispose()
    print(f"{history.num_rows} epochs of {options.runs} runs\n")
    print(duckdb.execute(BEST_RATES).df().to_string(index=False), "\n")
    print(duckdb.execute(FASTEST).df().to_string(index=False))


if __name__ == "__main__":
    main()
