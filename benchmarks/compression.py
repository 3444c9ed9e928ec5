"""What compression saves and costs, beside the same without it and beside Parquet.

``python -m benchmarks.compression`` prints the table of ``docs/compression.md``. Objects are
written to a temporary folder; times are CPU seconds of the process, the least of some rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sqla_datastore import DataStoreIO, options

LEVELS: tuple[bool | Literal["fast", "small"], ...] = (False, "fast", True, "small")
MB = 1e6


def values(scale: int) -> dict[str, Any]:
    """Return the values by what they are, of some 40 to 160 MB each at a scale of 1,000,000."""
    rng = np.random.default_rng(1)
    words = np.array([f"customer {number}" for number in range(1_000)])
    text = pd.DataFrame(
        {
            "customer": words[rng.integers(0, 1_000, 4 * scale)],
            "quantity": rng.integers(0, 100, 4 * scale),
            "day": np.sort(rng.integers(0, 365, 4 * scale)),
        }
    )
    return {
        "frame of text and integers": text,
        "zeros": np.zeros(5 * scale),
        "small integers": rng.integers(0, 100, 5 * scale),
        "measurements, two decimals": np.round(rng.normal(size=5 * scale), 2),
        "random floats": rng.random(25 * scale),
    }


def least(call: Callable[[], object], rounds: int) -> float:
    """Return the least CPU seconds of some calls."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def touched(managed: DataStoreIO) -> None:
    """Read a value, all of it: a mapped array is read when it is used."""
    value: Any = managed.read_deserialize()
    columns = [value] if isinstance(value, np.ndarray) else [value[name] for name in value]
    for column in columns:
        if column.dtype.kind in "if":
            column.sum()


def main() -> None:
    """Print a row for each value and level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| value | MB | compression | of its size | write MB/s | read MB/s |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, value in values(arguments.scale).items():
            _measure(name, value, folder, arguments.rounds)


def _measure(name: str, value: Any, folder: str, rounds: int) -> None:
    plain = 0
    for level in LEVELS:
        options.compression = level
        subject = _Written(value, folder)
        seconds = least(subject.write, rounds)
        size = subject.managed.size_bytes
        plain = plain or size
        _print(name, plain, repr(level), size, seconds, least(subject.touch, rounds))
        subject.managed.remove()
    options.compression = False
    if isinstance(value, pd.DataFrame):
        _measure_parquet(name, value, plain, folder, rounds)


class _Written:
    """A value as one object, the last one that was written."""

    managed: DataStoreIO

    def __init__(self, value: Any, folder: str) -> None:
        self._value = value
        self._folder = folder

    def write(self) -> None:
        if hasattr(self, "managed"):
            self.managed.remove()
        self.managed = DataStoreIO.serialize_write(self._value, "bench", storage=self._folder)

    def touch(self) -> None:
        touched(self.managed)


def _print(name: str, plain: int, level: str, size: int, write: float, read: float) -> None:
    rates = f"{plain / MB / write:.0f} | {plain / MB / read:.0f}"
    print(f"| {name} | {plain / MB:.0f} | {level} | {size / plain:.3f} | {rates} |", flush=True)


def _measure_parquet(name: str, value: pd.DataFrame, plain: int, folder: str, rounds: int) -> None:
    path = Path(folder, "bench.parquet")
    table = pa.Table.from_pandas(value, preserve_index=False)
    seconds = least(lambda: pq.write_table(table, path, compression="zstd"), rounds)
    read = least(lambda: pq.read_table(path), rounds)
    _print(name, plain, "Parquet, zstd", path.stat().st_size, seconds, read)


if __name__ == "__main__":
    main()
