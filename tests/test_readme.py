"""What the project says of itself is true: the code of its pages runs, version bounds agree."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Page:
    """A page, and the folder in which its code runs.

    Its Python blocks are one script, in which every line has the page's number, together with what
    stands in comments like ``<!-- python``. A comment before a block says what else becomes of it:
    ``<!-- file: NAME -->`` writes it to a file of its own, ``<!-- not run: REASON -->`` leaves it
    out, and so does ``<!-- command: NAME -->``, for .ci/run or another test runs it. Shell commands
    run after the script. A block of text after them is what they print.
    """

    BLOCK = re.compile(
        r"(?:^<!-- (?P<about>(?:file|not run|command): .+?) -->\n)?"
        r"^```(?P<kind>[^`\n]*)\n(?P<code>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$",
        re.MULTILINE | re.DOTALL,
    )

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.script = ""
        self.files: dict[str, str] = {}
        self.commands: list[tuple[str, str | None]] = []
        text = path.read_text()
        before = None
        for block in self.BLOCK.finditer(text):
            kind, about, code = block["kind"], block["about"] or "", block["code"]
            if block["hidden"] is not None:
                self._add_code(text, block.start("hidden"), block["hidden"])
            elif about.startswith("file: "):
                self.files[about.removeprefix("file: ")] = code
            elif kind == "python" and not about:
                self._add_code(text, block.start("code"), code)
            elif kind == "sh" and not about:
                self.commands.append((code, None))
            elif kind == "text" and before == "sh":
                self.commands[-1] = (self.commands[-1][0], code)
            before = None if about else kind

    def _add_code(self, text: str, start: int, code: str) -> None:
        lines = text.count("\n", 0, start) - self.script.count("\n")
        self.script += "\n" * lines + code

    def runs_nothing(self) -> bool:
        return not (self.script or self.commands)

    def run(self, folder: Path) -> str:
        """Run all of it in a folder, and return what the script printed."""
        for name, code in {"lab.py": QUICK_START, **self.files}.items():
            (folder / name).write_text(code)
        printed = ""
        if self.script:
            # the title's line is free for what the text asks of users of pandas 2
            script = folder / self.name
            script.write_text((ON_PANDAS_2 if pd.__version__ < "3" else "") + self.script)
            printed = self._checked([sys.executable, "-W", "error", str(script)], folder)
        for command, expected in self.commands:
            found = self._checked(["bash", "-euo", "pipefail", "-c", command], folder)
            if expected is not None:
                assert re.sub(r"[0-9a-f]{32}", "…", found) == expected, command
        return printed

    def _checked(self, command: list[str], folder: Path) -> str:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{self.name}: {command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout


ON_PANDAS_2 = "import pandas; pandas.options.mode.copy_on_write = True"
QUICK_START = Page(ROOT / "README.md").files["lab.py"]
WITH_CODE = [
    path for path in sorted((ROOT / "docs").rglob("*.md")) if not Page(path).runs_nothing()
]


def urls(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        return {url for (url,) in connection.execute("SELECT data FROM experiments")}


def files(storage: Path) -> set[str]:
    return {f"file:///{path.relative_to(storage)}" for path in storage.rglob("*") if path.is_file()}


# how many rows a page leaves; their files are all that it leaves besides
LAB = ("lab.db", "lab.storage")
LEFT = {
    "orm": {LAB: 1},
    "core": {LAB: 3},
    "folders": {LAB: 1, ("north.db", "tenants/north"): 1, ("south.db", "tenants/south"): 1},
    "reflection": {LAB: 1},
    "tables": {LAB: 4},
}


def test_the_readme_prints_what_its_text_says_and_leaves_a_row_and_its_file(tmp_path):
    printed = Page(ROOT / "README.md").run(tmp_path)
    assert re.search(r"weights +numpy\.ndarray +float64 +\(2, 3\)", printed)
    assert "[[0. 1. 2.]\n [3. 4. 5.]]" in printed
    assert files(tmp_path / "lab.storage") == urls(tmp_path / "lab.db")
    assert len(urls(tmp_path / "lab.db")) == 1


@pytest.mark.libraries
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path, tmp_path):
    Page(path).run(tmp_path)
    for (database, storage), rows in LEFT.get(path.stem, {}).items():
        assert len(urls(tmp_path / database)) == rows
        assert files(tmp_path / storage) == urls(tmp_path / database)


def test_the_codec_of_the_docs_passes_its_suite(tmp_path):
    script = tmp_path / "test_codec.py"
    script.write_text(Page(ROOT / "docs" / "codecs.md").script)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(script)],
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


def test_the_page_on_architecture_has_the_layers_of_the_contract():
    contract = PYPROJECT["tool"]["importlinter"]["contracts"][0]
    layers = [set(layer.split(" | ")) for layer in contract["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
    assert [set(re.findall(r"\w+", row)) for row in rows] == layers


def test_the_lowest_versions_tested_are_those_that_are_allowed():
    allowed = {}
    project = PYPROJECT["project"]
    extras = [
        project["optional-dependencies"][name] for name in ("object-stores", "fsspec", "typed")
    ]
    for requirement in chain(project["dependencies"], *extras):
        name, _, rest = requirement.partition(">=")
        allowed[name] = re.match(r"[0-9.]+", rest)[0]
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested == allowed


def test_the_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{PYPROJECT['project']['version']}]" in changelog
