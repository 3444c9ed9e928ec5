"""HTML for notebooks: previews of what is in memory, in the page's own colours, all escaped."""

from __future__ import annotations

import datetime
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.values import CountingStorage, reloaded, remove, store

from sqla_datastore import DataStore, inspect
from sqla_datastore.value.previews import WIDEST, preview

HOSTILE = '</td><script>alert(1)</script>\x1b[2J\u202e"'


class Cells(HTMLParser):
    """Collects tags, and the text of each row's cells."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_entries_in_memory_have_previews():
    ds = DataStore(
        array=np.arange(10) / 4,
        frame=pd.DataFrame({"loss": [1.5], "epoch": [2]}),
        text="a < b",
        items=[1, {"k": DataStore(), "a": 2}],
        nested=DataStore(k=1, l=2),
    )
    head, *rows = Cells(ds._repr_html_()).rows
    assert head == ["entry", "type", "dtype", "shape", "size", "", "preview"]
    assert {row[0]: row[-1] for row in rows} == {
        "array": "0, 0.25, 0.5, 0.75, 1, 1.25, …",
        "frame": "columns loss, epoch",
        "text": "a < b",
        "items": "[1, {'k': <DataStore>, 'a': 2}]",
        "nested": "k, l",
    }


def test_a_preview_loads_nothing_and_hands_nothing_out(storage):
    counting = CountingStorage(storage)
    ds = DataStore(a=np.arange(3), items=[7, 8], n=DataStore(k=1))
    store(ds, storage)
    fresh = reloaded(ds, counting)
    assert Cells(fresh._repr_html_()).rows[0][-1] == ""  # no preview anywhere, so no column
    assert len(counting.opened) == 1  # the index; not that of the nested value
    assert inspect(fresh).loaded == ()
    _ = fresh["items"]
    fresh._scan()
    rows = Cells(fresh._repr_html_()).rows
    assert [row[-1] for row in rows[1:]] == ["", "[7, 8]", ""]
    assert not fresh._armed
    assert inspect(fresh).loaded == ("items",)
    assert len(counting.opened) == 1


@pytest.mark.parametrize("entries", [{HOSTILE: 1}, {"x": HOSTILE}, {"x": [HOSTILE]}])
def test_names_and_values_are_escaped(entries):
    html = DataStore(entries)._repr_html_()
    assert "script" not in Cells(html).tags
    assert "&lt;script&gt;" in html
    assert html.isprintable()
    assert inspect(DataStore(entries))._repr_html_().isprintable()


def test_column_names_of_a_frame_are_escaped():
    frame = pd.DataFrame({HOSTILE: [1]})
    for value in (frame, pa.Table.from_pandas(frame), np.zeros(1, [("<script>", "i4")])):
        html = DataStore(v=value)._repr_html_()
        assert "script" not in Cells(html).tags
        assert "&lt;script&gt;" in html


def test_colours_are_those_of_the_page():
    html = DataStore(a=1)._repr_html_()
    assert "prefers-color-scheme:dark" in html
    assert "--jp-content-font-color1" in html
    assert "background:none" in html


def test_a_missing_object_is_told(storage):
    ds = DataStore(a=1)
    store(ds, storage)
    fresh = reloaded(ds, storage)
    remove(storage, ds.url)
    assert "MissingObjectError" in fresh._repr_html_()
    assert fresh._ipython_key_completions_() == []


def test_keys_are_completed_from_the_index(storage):
    ds = DataStore({"a": 1, "not an identifier": 2})
    assert ds._ipython_key_completions_() == ["a", "not an identifier"]
    store(ds, storage)
    fresh = reloaded(ds, storage)
    assert fresh._ipython_key_completions_() == ["a", "not an identifier"]
    assert inspect(fresh).loaded == ()


class Loud:
    def __repr__(self):
        raise AssertionError("nobody asked")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (b"\x00\x01", "00 01"),
        (bytes(20), "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 …"),
        (datetime.date(2024, 1, 2), "datetime.date(2024, 1, 2)"),
        (pd.Series(["x", "y"]), "x, y"),
        (np.array(1.5), "1.5"),
        (np.zeros((0, 3)), ""),
        (pa.chunked_array([[1, 2]]), ""),
        (Loud(), ""),
        ([Loud()], "[<Loud>]"),
        (pd.Series([Loud()]), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_preview(value, shown):
    assert preview(value) == shown


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["x" * 10**6] * 10, np.zeros(10**6), {"k" * 10**6: 1}, b"x" * 10**6]
)
def test_a_preview_is_short(value):
    assert 0 < len(preview(value)) <= WIDEST
