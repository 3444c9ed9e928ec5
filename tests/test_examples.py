"""The examples run as they are called in their own docstrings, on each database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def digits(database_url, tmp_path_factory):
    storage = tmp_path_factory.mktemp("digits") / "storage"
    return run("digits.py", "--database", database_url, "--storage", str(storage)), storage


def test_digits_compares_its_runs(digits):
    out, _storage = digits
    header, *rows = out.split("\n\n")[0].splitlines()
    assert header.split()[:2] == ["model", "accuracy"]
    assert {row.split()[0] for row in rows} == {"logistic", "neighbours", "bayes", "tree"}
    accuracies = [float(row.split()[1]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.95
    assert "disagree on" in out
    assert "Its most frequent mistake:" in out


def test_digits_keeps_one_folder_for_each_row(digits):
    _, storage = digits
    assert len(list(storage.glob("digits_experiments/*"))) == 1
    runs = list(storage.glob("digits_runs/*"))
    assert len(runs) == 4
    # the output, its nested coefficients and the metrics
    assert {len(list(run.iterdir())) for run in runs} == {3}


def test_workers_summarize_what_they_load_by_themselves(database_url, tmp_path):
    storage = tmp_path / "storage"
    database = ["--database", database_url, "--storage", str(storage)]
    lines = run("parallel_work.py", *database, "--samples", "3").splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        found = re.search(r"800000 bytes, (\d+) sent .* is at (\d+), it was made at (\d+)", line)
        sent, peak, made = map(int, found.groups())
        assert sent < 500
        assert peak == made == number
    # a signal and a summary each, and nothing of the row's earlier states
    assert len(list(storage.rglob("*.zip"))) == 6
