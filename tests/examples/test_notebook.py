"""The notebook runs from its first cell to its last, in a kernel, as Jupyter runs it."""

from __future__ import annotations

import pytest
from support.examples import EXAMPLES

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.libraries


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def outputs(folder):
    """What the cells that show something show, as HTML."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JUPYTER_PLATFORM_DIRS", "1")
        environment.setenv("IPYTHONDIR", str(folder / "ipython"))
        notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
        metadata = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=60, resources=metadata).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output for output in shown if output.output_type == "stream"] == []
    return [output.data["text/html"] for output in shown]


def test_a_value_shows_a_table_and_loads_nothing(outputs):
    assert "<b>history</b></td><td>pandas.DataFrame</td>" in outputs[0]
    assert "<b>weights</b></td><td>numpy.ndarray</td><td>float64</td><td>(3, 2)</td>" in outputs[0]
    assert "loaded" not in outputs[0]


def test_an_entry_of_all_runs_is_compared(outputs):
    assert "<td>0.607</td>" in outputs[1]


def test_an_edit_is_saved(outputs, folder):
    assert "<b>note</b>" in outputs[2]
    assert len(list((folder / "notebook.storage").rglob("*.zip"))) == 3
