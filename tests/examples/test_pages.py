"""The code of the pages on web services, administration and notebooks runs as it stands there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.pages import code_blocks

DOCS = Path(__file__).parents[2] / "docs"
NEEDS = {"web.md": ["fastapi", "sqlmodel"], "admin.md": ["sqladmin", "starlette_admin"]}

pytestmark = pytest.mark.libraries


@pytest.mark.parametrize("page", ["web.md", "admin.md"])
def test_a_page_runs(page, tmp_path):
    for library in NEEDS[page]:
        pytest.importorskip(library)
    script = tmp_path / page
    script.write_text(code_blocks((DOCS / page).read_text()))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr


def test_the_page_on_notebooks_runs(tmp_path, monkeypatch):
    for library in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(library)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    code = compile(code_blocks((DOCS / "notebooks.md").read_text()), "notebooks.md", "exec")
    exec(code, {})
