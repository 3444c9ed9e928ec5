"""The notebook runs from its first cell to its last, in a kernel, as Jupyter runs it.

``SQLA_DATASTORE_SCREENSHOTS=1`` writes the documentation's picture of it.
"""

from __future__ import annotations

import pytest
from support.chromium import keep, visit
from support.examples import EXAMPLES

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.libraries

TELL_ALIGNMENT = """<script>
const cell = document.querySelector(".sqla-ds td");
document.body.dataset.align = getComputedStyle(cell).textAlign;
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def notebook(folder):
    """The notebook after its run."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JUPYTER_PLATFORM_DIRS", "1")
        environment.setenv("IPYTHONDIR", str(folder / "ipython"))
        notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
        metadata = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=60, resources=metadata).execute()
    return notebook


@pytest.fixture(scope="module")
def outputs(notebook):
    """What the cells that show something show, as HTML."""
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


def test_a_browser_shows_it(notebook, tmp_path):
    html = pytest.importorskip("nbconvert").HTMLExporter(
        jquery_url="", mathjax_url="", require_js_url=""
    )
    shown = nbformat.NotebookNode(notebook, cells=notebook.cells[4:-1])  # from where rows are read
    page = tmp_path / "notebook.html"
    page.write_text(html.from_notebook_node(shown)[0] + TELL_ALIGNMENT)
    document, picture = visit(page.as_uri(), tmp_path, size=(1000, 750))
    assert document.count("<b>history</b>") == 2
    assert 'data-align="left"' in document  # not as Jupyter aligns cells
    keep(picture, "notebook.png")
