"""examples/compare_runs.py does what is written there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("duckdb")


def run(folder, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_compares_600_runs_by_sql(tmp_path):
    script = str(ROOT / "examples" / "compare_runs.py")
    database = ["--database", f"sqlite:///{tmp_path / 'runs.db'}"]
    out = run(tmp_path, script, *database, "--storage", str(tmp_path / "storage"))
    first, rates, fastest = (block.splitlines() for block in out.split("\n\n"))
    assert first == ["60000 epochs of 600 runs"]
    assert {tuple(line.split()[:2]) for line in rates[1:5]} == {
        *(("0.100", "150"), ("1.000", "150"), ("0.010", "150"), ("0.001", "150")),
    }
    assert rates[1].split()[0] == "0.100"
    assert {line.split()[1] for line in fastest[1:] if line} == {"0.1"}
