"""P10: whether somebody else still holds what a value has handed out."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pandas as pd
import PIL.Image
import polars as pl
import pytest
import xarray
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.value.holding import is_held_elsewhere

VALUES = {
    "list": lambda: [1, [2]],
    "dict": lambda: {"a": [1], "b": {}},
    "set": lambda: {1, 2},
    "bytearray": lambda: bytearray(b"x"),
    "deque": lambda: deque([[1], 2]),
    "ordered dict": lambda: OrderedDict(a=[1]),
    "default dict": lambda: defaultdict(list, a=[1]),
    "counter": lambda: Counter("ab"),
    "tuple of lists": lambda: ([1], [2]),
    "a list that occurs twice": lambda: [(same := [1]), same],
    "frame": lambda: pd.DataFrame({"a": [1, 2], "t": ["x", "y"]}),
    "series": lambda: pd.Series([1.0]),
    "index": lambda: pd.Index([1, 2]),
    "frames in a dict": lambda: {"f": pd.DataFrame({"a": [1]}), "z": np.zeros(3)},
    "polars": lambda: pl.DataFrame({"a": [1]}),
}


@pytest.fixture
def stored(storage):
    def make(x):
        value = DataStore(x=x)
        store(value, storage)
        return reloaded(value, storage)

    return make


@pytest.mark.parametrize("kind", VALUES)
def test_what_was_let_go_is_not_held(stored, kind):
    value = stored(VALUES[kind]())
    assert not is_held_elsewhere(value)
    _ = value["x"]
    del _
    assert not is_held_elsewhere(value)
    value._scan()
    assert not is_held_elsewhere(value)


@pytest.mark.parametrize("kind", VALUES)
def test_what_somebody_has_is_held(stored, kind):
    value = stored(VALUES[kind]())
    got = value["x"]
    # a tuple itself cannot be edited
    assert is_held_elsewhere(value) or kind == "tuple of lists"
    del got
    assert not is_held_elsewhere(value)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("list", lambda x: x[1]),
        ("dict", lambda x: x["a"]),
        ("tuple of lists", lambda x: x[0]),
        ("a list that occurs twice", lambda x: x[1]),
        ("frames in a dict", lambda x: x["f"]),
    ],
)
def test_a_part_that_somebody_has_is_held(stored, kind, part):
    value = stored(VALUES[kind]())
    got = part(value["x"])
    assert is_held_elsewhere(value)
    del got
    assert not is_held_elsewhere(value)


NOTED = {
    "frame": (lambda: pd.DataFrame({"a": [1]}), lambda x: x.attrs),
    "series": (lambda: pd.Series([1]), lambda x: x.attrs),
    "dataset": (lambda: dataset(), lambda x: x.attrs),
    "variable of a dataset": (lambda: dataset(), lambda x: x["v"].attrs),
    "coordinate of a dataset": (lambda: dataset(), lambda x: x["c"].attrs),
    "index of a dataset": (lambda: dataset(), lambda x: x["x"].attrs),
    "array": (lambda: dataset()["v"], lambda x: x.attrs),
    "coordinate of an array": (lambda: dataset()["v"], lambda x: x["c"].attrs),
    "image": (lambda: PIL.Image.new("RGB", (1, 1)), lambda x: x.info),
}


def dataset():
    variable = xarray.Variable("x", [1.0, 2.0])
    return xarray.Dataset({"v": variable}, {"c": ("x", [3, 4]), "x": [5, 6]})


PLACES = {
    "top": (lambda x: x, lambda x: x),
    "dict": (lambda x: {"k": x}, lambda x: x["k"]),
    "list in a dict": (lambda x: {"k": [x]}, lambda x: x["k"][0]),
    "dict in a tuple": (lambda x: ({"k": x},), lambda x: x[0]["k"]),
}


@pytest.mark.libraries
@pytest.mark.parametrize(("around", "within"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("note", [None, "m", [1]], ids=["empty", "a note", "a list"])
@pytest.mark.parametrize(("make", "notes_of"), NOTED.values(), ids=NOTED)
def test_the_notes_of_a_library_s_thing_are_a_part(stored, make, notes_of, note, around, within):
    thing = make()
    if note is not None:
        notes_of(thing)["unit"] = note
    value = stored(around(thing))
    del thing
    notes = notes_of(within(value["x"]))
    assert is_held_elsewhere(value)
    if isinstance(note, list):
        notes = notes["unit"]
        assert is_held_elsewhere(value)
    del notes
    assert not is_held_elsewhere(value)


@pytest.mark.parametrize(("around", "within"), [PLACES["top"], PLACES["dict"]])
@pytest.mark.parametrize("axis", ["columns", "index"])
def test_the_indexes_of_a_frame_are_parts(stored, around, within, axis):
    index = pd.MultiIndex.from_tuples([(1, 2), (3, 4)])
    value = stored(around(pd.DataFrame({"a": [1, 2]}, index=index)))
    held = getattr(within(value["x"]), axis)
    assert is_held_elsewhere(value)
    held.names = ["edited"] * held.nlevels
    del held
    assert not is_held_elsewhere(value)
    assert value._scan()
