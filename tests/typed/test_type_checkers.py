"""Type checkers take what is right and refuse what is wrong in a user's modules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = Path(__file__).parent / "modules"
# the options that decide what mypy remembers are those of pyproject.toml: what it has just read for
# the project, SQLAlchemy and NumPy among it, is not read again
MYPY = [
    *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"),
    *("--python-version=3.11", "--warn-unreachable", f"--cache-dir={ROOT / '.mypy_cache'}"),
]
PYRIGHT = [sys.executable, "-m", "basedpyright", "--project"]
STANDARD = '{"typeCheckingMode": "standard", "pythonVersion": "3.11"}'

pytest.importorskip("mypy", reason="run by `tox -e types`, which has the type checkers")
pytest.importorskip("basedpyright", reason="run by `tox -e types`, which has the type checkers")


def errors(checker: str, path: Path, tmp_path: Path) -> dict[int, str]:
    """Return what a type checker finds, by line."""
    project = tmp_path / "pyrightconfig.json"
    project.write_text(STANDARD)
    command = (
        MYPY if checker == "mypy" else [*PYRIGHT, str(project), "--pythonpath", sys.executable]
    )
    done = subprocess.run(
        [*command, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(rf"{path.name}:(\d+):[^\n]*\berror:? ?-? ?([^\n]*)", done.stdout)
    assert found or done.returncode == 0, done.stdout
    return {int(line): text for line, text in found}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("path", sorted(MODULES.glob("*.py")), ids=lambda path: path.stem)
def test_they_refuse_the_marked_lines_and_no_others(checker, path, tmp_path):
    lines = enumerate(path.read_text().splitlines(), 1)
    marked = {number for number, line in lines if line.endswith("# error")}
    assert marked
    found = errors(checker, path, tmp_path)
    assert set(found) == marked, found


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_they_take_the_readme_as_it_is(checker, tmp_path):
    page = (ROOT / "README.md").read_text()
    path = tmp_path / "readme.py"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    # what follows is typed into the interpreter that has run the file as the main one
    path.write_text(code.replace('if __name__ == "__main__":', "if True:"))
    assert errors(checker, path, tmp_path) == {}
