"""`inspect` and the reprs tell what is there, and load nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from support.values import reloaded, remove, store

from sqla_datastore import DataStore, MissingObjectError, inspect


def example():
    return DataStore(
        array=np.zeros((100, 20), "f4"),
        frame=pd.DataFrame({"a": [1, 2]}),
        number=1,
        items=[1],
        nested=DataStore(k=1),
    )


def test_a_value_that_is_not_stored():
    known = inspect(example())
    assert (known.url, known.stored, known.changed) == (None, False, True)
    assert known.loaded == ("array", "frame", "number", "items", "nested")
    array = known.entries["array"]
    assert (array.type, array.dtype, array.shape) == ("numpy.ndarray", "float32", (100, 20))
    assert array.nbytes == 8000
    assert known.entries["nested"].type == "DataStore"


def test_a_stored_value_is_described_from_the_index(storage):
    ds = example()
    store(ds, storage)
    fresh = reloaded(ds, storage)
    known = inspect(fresh)
    assert (known.url, known.stored, known.changed) == (ds.url, True, False)
    assert known.loaded == ()
    assert list(known.entries) == list(example())
    array = known.entries["array"]
    assert (array.type, array.dtype, array.shape) == ("numpy.ndarray", "float32", (100, 20))
    assert array.nbytes == 8000
    _ = fresh.array
    assert inspect(fresh).loaded == ("array",)


def test_types_are_named_alike_before_and_after(storage):
    values = {"date": pd.Timestamp(0), "dtype": np.dtype("i4"), "complex": 1j, "scalar": np.int8(1)}
    ds = DataStore(example()) | values
    before = {name: what.type for name, what in inspect(ds).entries.items()}
    store(ds, storage)
    fresh = reloaded(ds, storage)
    assert {name: what.type for name, what in inspect(fresh).entries.items()} == before


@pytest.mark.parametrize(
    "value",
    [
        np.arange(10.0),
        np.zeros((100, 200), "i2").T,
        np.zeros((0, 5)),
        np.array(1.5),
        np.array(["ab", "c"]),
        np.zeros(3, [("a", "i4"), ("b", "f8", (2,))]),
        np.zeros(3, [("a", "i4")]).view(np.recarray),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.float32(1),
        np.datetime64("2024-01-01"),
        b"abc",
        b"x" * 10_000,
        bytearray(b"abc"),
        "text \u2603",
        "\u2603" * 10_000,
        "\ud800",
        "",
    ],
    ids=lambda value: repr(value)[:20],
)
def test_sizes_are_the_payload_s_own_before_and_after(storage, value):
    ds = DataStore(v=value)
    before = inspect(ds).entries["v"].nbytes
    assert before == (value.nbytes if hasattr(value, "nbytes") else len(_bytes(value)))
    store(ds, storage)
    assert inspect(reloaded(ds, storage)).entries["v"].nbytes == before


@pytest.mark.parametrize(
    "value",
    [1, 1.5, True, [1, "two", 3.0], {"a": 1, 2: (3,)}, {"x": np.zeros(100)}, pd.Timestamp(0), 1j],
    ids=repr,
)
def test_sizes_of_numbers_and_collections_agree_before_and_after(storage, value):
    ds = DataStore(v=value)
    before = inspect(ds).entries["v"].nbytes
    assert before > 0
    store(ds, storage)
    assert inspect(reloaded(ds, storage)).entries["v"].nbytes == before


def test_a_nested_value_is_as_large_as_its_entries(storage):
    def made():
        return DataStore(n=DataStore(a=np.zeros(100), m=DataStore(b=b"12345")))

    ds = made()
    assert inspect(ds).entries["n"].nbytes == 805
    assert inspect(DataStore(items=[DataStore(a=np.zeros(100))])).entries["items"].nbytes > 800
    store(ds, storage)
    fresh = reloaded(ds, storage)
    assert inspect(fresh).entries["n"].nbytes == 0  # unknown: no other object is read for that
    assert "B" not in repr(fresh).splitlines()[1].removeprefix("  n  DataStore")
    assert len(fresh.n) == 2
    assert len(fresh.n.m) == 1
    assert inspect(fresh).entries["n"].nbytes == 805
    fresh.n.a = np.zeros(200)
    assert inspect(fresh).entries["n"].nbytes == 1605
    assert "1.6 KiB" in repr(fresh)


def test_texts_of_frames_count():
    texts = pd.DataFrame({"a": pd.Series(["x" * 1000] * 100, dtype=object)})
    for value in (texts, texts["a"], pd.Index(texts["a"])):
        assert inspect(DataStore(v=value)).entries["v"].nbytes > 100_000


def test_what_is_too_large_to_count_or_cannot_be_stored_has_no_size():
    endless = []
    endless.append(endless)
    for value in ([0] * 200_000, endless, [object()]):
        assert inspect(DataStore(v=value)).entries["v"].nbytes == 0


def test_an_inspection_prints_as_a_table(storage):
    ds = example()
    store(ds, storage)
    fresh = reloaded(ds, storage)
    _ = fresh.array
    lines = str(inspect(fresh)).splitlines()
    assert lines[0] == f"<Inspection {ds.url}, 5 entries>"
    assert lines[1].split() == ["entry", "type", "dtype", "shape", "size"]
    assert " ".join(lines[2].split()) == "array numpy.ndarray float32 (100, 20) 7.8 KiB loaded"
    assert repr(inspect(fresh)) == str(inspect(fresh))
    assert "<table" in inspect(fresh)._repr_html_()
    assert str(inspect(DataStore())) == "<Inspection not stored, 0 entries>"


def _bytes(value):
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def test_changes_show(storage):
    ds = example()
    store(ds, storage)
    ds.nested.k = 2
    assert inspect(ds).changed
    ds = example()
    store(ds, storage)
    ds["items"].append(1)
    assert inspect(ds).changed
    assert not ds._changed  # looking has no effect


def test_edits_in_a_nested_value_show(storage):
    ds = DataStore(n=DataStore(items=[1]))
    store(ds, storage)
    assert not inspect(ds).changed
    ds.n["items"].append(2)
    assert inspect(ds).changed


def test_sqlalchemy_inspect_answers_too(storage):
    ds = example()
    assert sqlalchemy.inspect(ds) == inspect(ds)

    class Own(DataStore):
        pass

    assert sqlalchemy.inspect(Own(a=1)).entries == inspect(DataStore(a=1)).entries


def test_a_missing_object(storage):
    ds = example()
    store(ds, storage)
    fresh = reloaded(ds, storage)
    remove(storage, ds.url)
    with pytest.raises(MissingObjectError):
        inspect(fresh)
    assert "MissingObjectError" in repr(fresh)
    assert ds.url in repr(fresh)
    assert "MissingObjectError" in fresh._repr_html_()


def test_repr_has_a_line_for_each_entry(storage):
    ds = example()
    assert repr(ds).splitlines()[0] == "<DataStore not stored, 5 entries>"
    store(ds, storage)
    fresh = reloaded(ds, storage)
    lines = repr(fresh).splitlines()
    assert lines[0] == f"<DataStore {ds.url}, 5 entries>"
    assert len(lines) == 6
    assert lines[1].split()[:4] == ["array", "numpy.ndarray", "float32", "(100,"]
    assert inspect(fresh).loaded == ()
    fresh.number = 2
    assert "changed" in repr(fresh).splitlines()[0]


def test_repr_is_bounded():
    ds = DataStore({f"entry{i}": i for i in range(1000)}) | {"n" * 1000: 1}
    assert len(repr(ds).splitlines()) == 22
    assert repr(ds).endswith("… and 981 more")
    assert "981 more" in ds._repr_html_()
    assert len(repr(DataStore({"n" * 1000: 1}))) < 120
    assert repr(DataStore()) == "<DataStore not stored, 0 entries>"


def test_repr_shows_no_control_characters():
    assert "\n  b" not in repr(DataStore({"a\n  b": 1}))
    assert "\x1b" not in repr(DataStore({"\x1b[31m": 1}))


def test_html_is_escaped(storage):
    html = DataStore({"<script>alert(1)</script>": 1})._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_repr_never_raises():
    class Hostile:
        nbytes = property(lambda self: 1 / 0)

    ds = DataStore(a=Hostile())
    assert "ZeroDivisionError" in repr(ds)
    assert "ZeroDivisionError" in ds._repr_html_()
    ds = DataStore()
    ds.me = ds
    assert "me" in repr(ds)


@pytest.mark.parametrize(
    "value", [b"123", "text", bytearray(3), pd.Series([1]), pd.DataFrame({"nbytes": [1]}), None]
)
def test_sizes_of_what_is_not_stored(value):
    assert inspect(DataStore(v=value)).entries["v"].nbytes > 0


@pytest.mark.parametrize("thing", [{"a": 1}, None, object()])
def test_what_is_no_value_is_refused(thing):
    with pytest.raises(TypeError, match="sqlalchemy"):
        inspect(thing)
