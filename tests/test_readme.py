"""What the project says of itself is true: the code of its pages runs, version bounds agree."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from support.pages import Page

from sqla_datastore.options import Options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LOWEST_EXTRAS = ("cli", "browse", "object-stores", "fsspec", "typed")
TESTS = ("codecs", "testing")  # pages whose code is tests
WITH_CODE = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.stem not in TESTS and not Page(path).runs_nothing()
]


def urls(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        return {url for (url,) in connection.execute("SELECT data FROM experiments")}


def files(storage: Path) -> set[str]:
    return {f"file:///{path.relative_to(storage)}" for path in storage.rglob("*") if path.is_file()}


# what a page needs that is not always there
NEEDS = {
    "admin": ("sqladmin", "starlette_admin"),
    "collect": ("duckdb", "polars"),
    "notebooks": ("nbclient", "nbformat", "ipykernel"),
    "tables": ("duckdb", "polars"),
    "web": ("fastapi", "sqlmodel"),
}
# what another program has left, which the page reads
GIVEN = {"mltraq": ROOT / "tests" / "mltraq" / "golden"}
# how many rows a page leaves; their files are all that it leaves besides
LAB = ("lab.db", "lab.storage")
LEFT = {
    "orm": {LAB: 1},
    "core": {LAB: 3},
    "folders": {LAB: 1, ("north.db", "tenants/north"): 1, ("south.db", "tenants/south"): 1},
    "reflection": {LAB: 1},
    "tables": {LAB: 4},
}


# what a page says that it prints
PRINTED = {
    "browse": [r"^  weights +numpy\.ndarray"],
    "collect": [
        rf"^{re.escape(told)}$"
        for told in re.findall(
            r"^print\(.*\)  # (.+)$", (ROOT / "docs" / "collect.md").read_text(), re.MULTILINE
        )
    ],
    "files": [
        r"^report\.csv text/csv 16 ",
        r"^b'step,loss\\n'$",
        r"^entry 'report': there is no file '/",
        r"^may\.pdf application/pdf$",
        r"^\['config\.json', 'weights/0\.bin'\]$",
    ],
    "mltraq": [
        r"^(examples\.storage/d65df69e-1175-44a5-be2f-2232765703b8/[0-9a-f]{32}\.zip\n){2}^a ",
        r"^a <class 'numpy\.ndarray'> \[0\. 0\. 0\. 0\. 0\. 0\. 0\. 0\. 0\. 0\.\]$",
        r"^b <class 'pandas\..*Series'> \[1 2 3\]$",
        r"^c <class 'int'> 123$",
        r"^url_a file:///self_managed/d65df69e-1175-44a5-be2f-2232765703b8/[0-9a-f]{32}\.io\.zip$",
        r"^url_b file:///self_managed/d65df69e-1175-44a5-be2f-2232765703b8/[0-9a-f]{32}\.bin$",
        r"^b <class 'bytes'> b'11111'\n^refused 'hostile': its pickle names 'posix\.system'",
    ],
}


def test_the_readme_prints_what_its_text_says_and_leaves_a_row_and_its_file(tmp_path):
    printed = Page(ROOT / "README.md").run(tmp_path)
    assert re.search(r"weights +numpy\.ndarray +float64 +\(2, 3\)", printed)
    assert "[[0. 1. 2.]\n [3. 4. 5.]]" in printed
    assert files(tmp_path / "lab.storage") == urls(tmp_path / "lab.db")
    assert len(urls(tmp_path / "lab.db")) == 1


@pytest.mark.libraries
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    for library in NEEDS.get(path.stem, ()):
        pytest.importorskip(library)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    if path.stem in GIVEN:
        shutil.copytree(GIVEN[path.stem], tmp_path, dirs_exist_ok=True)
    page = Page(path)
    printed = page.run(tmp_path)
    for pattern in PRINTED.get(path.stem, ()):
        assert re.search(pattern, printed, re.MULTILINE)
    for (database, storage), rows in LEFT.get(path.stem, {}).items():
        assert len(urls(tmp_path / database)) == rows
        assert files(tmp_path / storage) == urls(tmp_path / database)


@pytest.mark.parametrize("page", TESTS)
def test_the_tests_of_a_page_pass(page, tmp_path):
    script = tmp_path / "test_page.py"
    script.write_text(Page(ROOT / "docs" / f"{page}.md").script)
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
            # as in pyproject.toml: its plugin of the lowest versions warns with the newest pytest
            "-p",
            "no:anyio",
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


def test_the_reference_lists_all_options_variables_and_extras():
    page = (ROOT / "docs" / "api.md").read_text()
    names = {name for name, each in vars(Options).items() if isinstance(each, property)}
    assert set(re.findall(r"^\| `options\.(\w+)` \|", page, re.MULTILINE)) == names
    variables = {
        name
        for module in (ROOT / "sqla_datastore").rglob("*.py")
        for name in re.findall(r"SQLA_DATASTORE_\w+", module.read_text())
    }
    assert set(re.findall(r"^\| `(SQLA_DATASTORE_\w+)` \|", page, re.MULTILINE)) == variables
    extras = set(PYPROJECT["project"]["optional-dependencies"]) - {"all"}
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    assert extras <= set(re.findall(r"`([\w-]+)`", table))


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
