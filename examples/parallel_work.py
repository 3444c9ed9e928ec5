"""Share the work on stored values between processes, each of which loads what it needs by itself.

    python examples/parallel_work.py --database sqlite:///work.db --storage work.storage

A stored value is sent to a worker as a few hundred bytes, its URL and that of its storage: no array
goes through a pipe. The worker needs neither the database nor a binding. `keep_seconds` keeps what
workers still hold, though others replace the row meanwhile. Each call adds samples.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreType, bind_storage, enable_removals


class Base(DeclarativeBase):
    pass


class Sample(Base):
    """A signal, and what was found in it."""

    __tablename__ = "work_samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())
    summary: Mapped[DataStore | None] = mapped_column(DataStoreType())


# longer than the longest job: a lease of what workers were sent
enable_removals(Base.metadata, keep_seconds=3_600)


def summarize(data: DataStore) -> DataStore:
    """Find the strongest frequency of a signal; runs in a worker, which loads `signal` alone."""
    spectrum = np.abs(np.fft.rfft(data.signal))
    return DataStore(peak=int(spectrum.argmax()), spectrum=spectrum)


def record(session: Session, count: int) -> None:
    """Store signals, each of another frequency."""
    time = np.linspace(0, 1, 100_000, endpoint=False)
    for frequency in range(1, count + 1):
        signal = np.sin(2 * np.pi * frequency * time)
        session.add(Sample(data=DataStore(signal=signal, frequency=frequency)))
    session.commit()


def summarize_all(session: Session, workers: int) -> Iterator[Sample]:
    """Send each sample without a summary to a worker, and store what comes back."""
    samples = session.scalars(select(Sample).where(Sample.summary.is_(None))).all()
    # a forked process would share the database's connections
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = pool.map(summarize, [sample.data for sample in samples])
        for sample, summary in zip(samples, found, strict=True):
            sample.summary = summary
            session.commit()
            yield sample


def main() -> None:
    """Record, share the work, and tell what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", default="sqlite:///work.db")
    parser.add_argument("--storage", default="work.storage")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    engine = create_engine(arguments.database)
    bind_storage(engine, arguments.storage)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        record(session, arguments.samples)
        for sample in summarize_all(session, arguments.workers):
            assert sample.summary is not None
            sent = len(pickle.dumps(sample.data))
            print(
                f"sample {sample.id}: {sample.data.signal.nbytes} bytes, {sent} sent to a worker; "
                f"its peak is at {sample.summary.peak}, it was made at {sample.data.frequency}"
            )
    engine.dispose()


if __name__ == "__main__":
    main()
