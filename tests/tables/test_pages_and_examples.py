"""The code of docs/collect.md and examples/compare_runs.py does what is written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "collect.md").read_text()

pytest.importorskip("duckdb")
pytest.importorskip("polars")


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


def test_the_code_of_the_page_prints_what_it_says(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    on_pandas_2 = "import pandas; pandas.options.mode.copy_on_write = True\n"
    code = (on_pandas_2 if pd.__version__ < "3" else "") + "".join(blocks)
    (tmp_path / "page.py").write_text(code)
    out = run(tmp_path, "page.py")
    told = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert len(told) == 6
    at = 0
    for line in told:
        at = out.index(f"{line}\n", at) + len(line)


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
