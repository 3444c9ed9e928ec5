"""The page, and a value in a notebook, in a real browser: set as they should be, and harmless.

``SQLA_DATASTORE_SCREENSHOTS=1`` writes the pictures of the documentation.
"""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlencode

import pytest
from support.chromium import keep, visit
from support.lab import FIRST, LAST, Base, Lab, first_value

pytestmark = pytest.mark.libraries

SIZE, NOTEBOOK = (1000, 640), (1000, 360)
LIGHT, DARK = (255, 255, 255), (23, 25, 28)
MARKS = {False: (47, 111, 176), True: (110, 168, 224)}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page that is served as `sqla-datastore browse` does it."""
    import uvicorn

    from sqla_datastore.browsing.app import page_of
    from sqla_datastore.browsing.guard import Guard
    from sqla_datastore.browsing.rows import Tables

    lab = Lab(tmp_path_factory.mktemp("lab"))
    app = Guard(page_of(Tables(lab.engine(), Base.metadata)), "secret")
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def address(page, *path, key=FIRST):
    pairs = [("token", "secret"), ("table", "experiments"), ("key", key)]
    return f"{page}?{urlencode([*pairs, *(('entry', name) for name in path)])}"


def share_near(picture, colour):
    """Return which share of a picture has a colour, nearly."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape[1::-1] in (SIZE, NOTEBOOK)
    return (abs(pixels - colour).max(axis=-1) < 8).mean()


@pytest.mark.parametrize(
    ("name", "url", "dark", "plotted"),
    [
        ("browse-rows.png", "/rows?token=secret&table=experiments", False, 0),
        ("browse-row.png", address("/row"), False, 0),
        ("browse-frame.png", address("/entry", "history"), False, 0.0005),
        ("browse-array-dark.png", address("/entry", "weights"), True, 0.01),
    ],
)
def test_pages(served, tmp_path, name, url, dark, plotted):
    document, picture = visit(served + url, tmp_path, dark=dark, size=SIZE)
    # the address was left without the token, and the style was applied
    assert "token=" not in document
    assert share_near(picture, DARK if dark else LIGHT) > 0.5
    assert share_near(picture, MARKS[dark]) >= plotted
    keep(picture, name)


def test_what_is_hostile_does_not_become_part_of_the_document(served, tmp_path):
    document, _ = visit(served + address("/entry", "report", key=LAST), tmp_path, size=SIZE)
    assert "Before." in document
    assert "<script" not in document
    assert "&lt;script&gt;" in document


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_value_in_a_notebook(tmp_path, dark):
    value = first_value()
    page = tmp_path / "notebook.html"
    # a page that has its colours from the user's preference, as notebooks have
    page.write_text(
        '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<body style='font: 14px sans-serif'>{value._repr_html_()}"
    )
    document, picture = visit(page.as_uri(), tmp_path, dark=dark, size=NOTEBOOK)
    assert "columns loss, accuracy, phase" in document
    text = (255, 255, 255) if dark else (0, 0, 0)
    assert share_near(picture, text) > 0.002
    assert share_near(picture, (255, 255, 255)) < 0.1 if dark else True
    keep(picture, "notebook-dark.png" if dark else "notebook-light.png")
