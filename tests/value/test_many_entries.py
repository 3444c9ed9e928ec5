"""A value of many entries: what was not touched costs no objects, and is saved in bulk."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.values import reloaded, store

from sqla_datastore import DataStore, DataStoreError
from sqla_datastore.format import Container
from sqla_datastore.format.blobs import StoredBlob
from sqla_datastore.storage import LocalStorage
from sqla_datastore.value.entry import Entry

COUNT = 5_000


def contents():
    return {f"k{number}": np.arange(number % 7) for number in range(COUNT)}


class Counts:
    """How often things were made or called."""

    def __init__(self):
        self.of = {}

    def watch(self, monkeypatch, cls, name):
        original = getattr(cls, name)
        key = f"{cls.__name__}.{name}"
        self.of[key] = 0

        def counted(*args, **kwargs):
            self.of[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(cls, name, counted)


@pytest.fixture
def stored(tmp_path):
    storage = LocalStorage(tmp_path)
    ds = DataStore(contents())
    store(ds, storage)
    return reloaded(ds, storage), storage


@pytest.fixture
def counts(stored, monkeypatch):
    found = Counts()
    for cls, name in (
        (Entry, "__init__"),
        (Container, "decode"),
        (Container, "describe"),
        (StoredBlob, "__init__"),
    ):
        found.watch(monkeypatch, cls, name)
    return found.of


def test_one_entry_is_loaded_without_the_others(stored, counts):
    ds, _ = stored
    assert ds["k5"].tolist() == [0, 1, 2, 3, 4]
    assert counts["Entry.__init__"] == 2
    assert counts["Container.decode"] == counts["StoredBlob.__init__"] == 1


def test_one_entry_is_replaced_without_the_others(stored, counts):
    ds, storage = stored
    ds["k5"] = 7
    store(ds, storage)
    assert counts["Entry.__init__"] < 10
    assert counts["Container.decode"] == 0
    assert counts["StoredBlob.__init__"] < 10
    assert reloaded(ds, storage) == contents() | {"k5": 7}
    assert ds == contents() | {"k5": 7}


def test_entries_of_one_value_are_taken_over_by_another(stored, counts):
    ds, storage = stored
    other = DataStore(first=1)
    other.update(ds)
    store(other, storage, "rows/2")
    assert counts["Entry.__init__"] < 10
    assert counts["Container.decode"] == 0
    assert reloaded(other, storage) == {"first": 1} | contents()


def test_looking_for_edits_looks_at_what_was_loaded(stored, monkeypatch):
    ds, _ = stored
    ds["k5"], ds["k6"]
    looked = Counts()
    looked.watch(monkeypatch, Entry, "look_again")
    assert not ds._scan()
    assert looked.of == {"Entry.look_again": 2}


def test_a_loaded_entry_does_not_become_another_one(stored):
    ds, _ = stored
    first = ds["k5"]
    assert ds["k5"] is first
    assert ds["k6"].tolist() == [*range(6)]
    twin = ds.copy()
    assert twin["k5"] is not first


def test_threads_get_the_same_object(stored):
    ds, _ = stored
    found, start = [], threading.Barrier(8)

    def load():
        start.wait()
        found.append(ds["k13"])

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*map(id, found)}) == 1


def test_nested_values_and_edits_among_many(tmp_path):
    storage = LocalStorage(tmp_path)
    given = {**contents(), "nested": DataStore(a=np.ones(3)), "items": [1], "last": DataStore(b=1)}
    first = DataStore(given)
    store(first, storage)
    ds = reloaded(first, storage)
    ds["items"].append(2)
    ds["nested"]["c"] = 5
    ds["k3"] = "three"
    assert ds._scan()
    store(ds, storage)
    again = reloaded(ds, storage)
    assert again["items"] == [1, 2]
    assert again["nested"].to_dict().keys() == {"a", "c"}
    assert again["last"] == {"b": 1}
    assert again["k3"] == "three"
    assert np.array_equal(again["k4"], np.arange(4))
    assert list(again) == list(given)


class TestUndo:
    """A rollback after entries were loaded from what is removed then."""

    def test_what_was_loaded_since_is_read_from_the_earlier_object(self, stored):
        ds, storage = stored
        earlier = ds.url
        ds["k5"] = 7
        undo = store(ds, storage)
        written = ds.url
        assert ds["k13"].tolist() == [*range(6)]
        undo()
        storage.remove([written.removeprefix("file:///")])
        assert ds.url == earlier
        assert ds == contents() | {"k5": 7}

    def test_it_is_unchanged_if_what_was_loaded_cannot_be_edited(self, tmp_path):
        storage = LocalStorage(tmp_path)
        first = DataStore({f"k{number}": str(number) * 5_000 for number in range(10)})
        store(first, storage)
        ds = reloaded(first, storage)
        undo = store(ds, storage, "rows/2")
        assert ds["k3"] == "3" * 5_000
        undo()
        assert not ds._changed
        assert ds.url == first.url

    def test_what_was_edited_since_is_kept(self, tmp_path):
        storage = LocalStorage(tmp_path)
        first = DataStore({f"k{number}": [number] for number in range(10)})
        store(first, storage)
        ds = reloaded(first, storage)
        undo = store(ds, storage, "rows/2")
        ds["k3"].append("edited")
        del ds["k4"]
        undo()
        assert ds._changed
        store(ds, storage, "rows/3")
        again = reloaded(ds, storage)
        assert again["k3"] == [3, "edited"]
        assert "k4" not in again
        assert again["k5"] == [5]


def test_an_entry_that_is_loaded_between_plan_and_switch_is_saved(tmp_path):
    storage = LocalStorage(tmp_path)
    first = DataStore({f"k{number}": [number] for number in range(10)})
    store(first, storage)
    ds = reloaded(first, storage)
    plan, url = ds._plan(None), f"file:///rows/1/{'a' * 32}.zip"
    with storage.create(url.removeprefix("file:///")) as writer:
        plan.objects[0].write(writer)
    held = ds["k3"]
    ds._stored(storage, url, plan)
    storage.remove([first.url.removeprefix("file:///")])
    assert not ds._changed
    held.append("later")
    assert ds._scan()
    store(ds, storage)
    assert reloaded(ds, storage).to_dict() == {
        f"k{number}": [3, "later"] if number == 3 else [number] for number in range(10)
    }


def test_a_damaged_entry_is_refused_among_many(stored, tmp_path):
    ds, storage = stored
    path = tmp_path / ds.url.removeprefix("file:///")
    blob = ds._source.entry("k3000").blobs[0]
    data = bytearray(path.read_bytes())
    data[blob.offset + blob.nbytes - 1] ^= 1
    path.write_bytes(data)
    ds = reloaded(ds, storage)
    ds["k5"] = 7
    with pytest.raises(DataStoreError, match="k3000"):
        store(ds, storage)
    with pytest.raises(DataStoreError, match="k3000"):
        ds["k3000"]
    assert ds["k2999"].tolist() == [*range(2999 % 7)]
