"""What the project says of itself is true: the README's code runs, the version bounds agree."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
from support.pages import code_blocks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LOWEST_EXTRAS = ("cli", "browse", "object-stores", "fsspec", "typed")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder in which the README's code was run, and what it printed."""
    folder = tmp_path_factory.mktemp("readme")
    script = folder / "README.md"
    # the title's line is free for what the text asks of users of pandas 2
    on_pandas_2 = "import pandas; pandas.options.mode.copy_on_write = True"
    script.write_text((on_pandas_2 if pd.__version__ < "3" else "") + code_blocks(README))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def urls(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        return {url for (url,) in connection.execute("SELECT data FROM experiments")}


def files(storage: Path) -> set[str]:
    return {f"file:///{path.relative_to(storage)}" for path in storage.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("database", "storage", "rows"),
    [
        ("lab.db", "lab.storage", 3),
        ("north.db", "tenants/north", 1),
        ("south.db", "tenants/south", 1),
    ],
)
def test_the_code_leaves_rows_and_their_files_and_nothing_else(workplace, database, storage, rows):
    folder, _ = workplace
    assert len(urls(folder / database)) == rows
    assert files(folder / storage) == urls(folder / database)


def test_the_code_prints_what_the_text_says(workplace):
    _, out = workplace
    assert re.search(r"weights +numpy\.ndarray +float64 +\(2, 3\)", out)
    assert "[[0. 1. 2.]\n [3. 4. 5.]]" in out


@pytest.mark.parametrize("page", ["codecs", "testing"])
def test_the_tests_of_a_page_pass(page, tmp_path):
    script = tmp_path / "test_page.py"
    script.write_text(code_blocks((ROOT / "docs" / f"{page}.md").read_text()))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-p",
            "no:cacheprovider",
            str(script),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout


def test_the_code_of_the_page_on_looking_runs(capsys):
    page = ROOT / "docs" / "browse.md"
    exec(compile(code_blocks(page.read_text()), page, "exec"), {})
    assert "weights" in capsys.readouterr().out


def test_the_code_of_the_page_on_files_runs(tmp_path):
    script = tmp_path / "files.py"
    script.write_text(code_blocks((ROOT / "docs" / "files.md").read_text()))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("report.csv text/csv 16 ")
    assert lines[1] == repr(b"step,loss\n")
    assert lines[2].startswith("entry 'report': there is no file '/")
    assert lines[3:] == ["may.pdf application/pdf", "['config.json', 'weights/0.bin']"]


def test_the_readme_opens_with_one_sentence_and_two_commands():
    opening = README.partition("\n## ")[0]
    assert opening.splitlines()[0] == "# sqla_datastore"
    assert re.findall(r"<!-- command: (\w+) -->\n```sh\n.+\n```\n", opening) == ["demo", "tests"]


def test_ci_takes_its_commands_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert "$(readme_command demo)" in script
    assert "$(readme_command tests)" in script


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_modules_and_tests_that_pages_name_are_there():
    roots = [ROOT, ROOT / "sqla_datastore", ROOT / "tests"]
    for page in PAGES:
        for path in re.findall(r"`((?:\w+/)+(?:\w+\.py)?|test_\w+\.py)`", page.read_text()):
            assert any((root / path).exists() for root in roots), f"{page.name}: {path}"


def test_the_page_on_architecture_has_the_layers_of_the_contract():
    contract = PYPROJECT["tool"]["importlinter"]["contracts"][0]
    layers = [set(layer.split(" | ")) for layer in contract["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
    assert [set(re.findall(r"\w+", row)) for row in rows] == layers


def test_the_lowest_versions_tested_are_those_that_are_allowed():
    allowed = {}
    project = PYPROJECT["project"]
    extras = [project["optional-dependencies"][name] for name in LOWEST_EXTRAS]
    for requirement in chain(project["dependencies"], *extras):
        name, _, rest = requirement.partition(">=")
        allowed[name] = re.match(r"[0-9.]+", rest)[0]
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested == allowed


def test_the_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{PYPROJECT['project']['version']}]" in changelog
