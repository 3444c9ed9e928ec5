"""The value: mapping, attributes, loading, edits, the way to stored and back, copies, pickles."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.values import Row, reloaded, remove, store

from sqla_datastore import (
    DamagedObjectError,
    DataStore,
    DataStoreType,
    MissingObjectError,
    RefusedURLError,
    StaleValueError,
    UnsupportedTypeError,
    bind_storage,
    inspect,
    register_namedtuple,
)
from sqla_datastore.storage.urls import ObjectURL
from sqla_datastore.value import datastore, entry, mapping, saving

Pair = register_namedtuple(namedtuple("Pair", "first second"), "tests.value.Pair")

GONE = f"file:///rows/1/{'0' * 32}.zip"
COPIES_ON_WRITE = int(pd.__version__.partition(".")[0]) >= 3
pytestmark = pytest.mark.usefixtures("copy_on_write")


def contents():
    return {
        "array": np.arange(6.0).reshape(2, 3),
        "frame": pd.DataFrame({"x": [1, 2], "y": ["a", None]}),
        "series": pd.Series([1.5, np.nan], name="s"),
        "table": pa.table({"c": [1, 2, None]}),
        "number": 123,
        "text": "héllo",
        "nested": DataStore(inner=np.ones(3), deeper=DataStore(k=[1])),
        "items": [1, {"a": (2, 3)}],
    }


def call_when_made(monkeypatch, module, name, call):
    """Have something called whenever an instance of a class of a module is made."""

    class Calls(getattr(module, name)):
        __slots__ = ()

        def __init__(self, *args):
            super().__init__(*args)
            call()

    monkeypatch.setattr(module, name, Calls)


class TestMapping:
    """It behaves as a dict does."""

    names = st.sampled_from(["a", "b", "c", "", "url", "_x", "ä/ö"])
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("set"), names, st.integers()),
            st.tuples(st.sampled_from(["del", "pop", "setdefault", "get", "in"]), names),
            st.tuples(st.sampled_from(["popitem", "clear", "copy", "reversed", "items"])),
            st.tuples(
                st.sampled_from(["update", "or", "ior", "ror"]),
                st.dictionaries(names, st.integers(), max_size=3),
            ),
        ),
        max_size=12,
    )

    @staticmethod
    def play(target, step, *arguments):  # noqa: C901
        try:
            match step, *arguments:
                case "set", name, value:
                    target[name] = value
                case "del", name:
                    del target[name]
                case "in", name:
                    return name in target
                case ("copy",):
                    target = target.copy()
                case ("reversed",):
                    views = target.keys(), target.values(), target.items()
                    return list(reversed(target)), *(list(reversed(view)) for view in views)
                case ("items",):
                    return list(target.items()), list(target), list(target.values()), len(target)
                case "or", other:
                    return dict(target | other)
                case "ror", other:
                    return dict(other | target)
                case "ior", other:
                    target |= other
                case method, *rest:
                    return getattr(target, method)(*rest)
        except KeyError as err:
            return type(err)
        return None

    @given(st.dictionaries(names, st.integers(), max_size=4), steps)
    def test_like_dict(self, start, steps):
        ds, model = DataStore(start), dict(start)
        for step in steps:
            assert self.play(ds, *step) == self.play(model, *step)
            assert list(ds.items()) == list(model.items())
            assert ds == model
            assert bool(ds) == bool(model)

    def test_stored_values_are_edited_like_dicts_too(self, storage):
        for steps in ([("del", "a")], [("clear",)], [("popitem",)], [("set", "a", 9)]):
            ds, model = DataStore(a=1, b=2), {"a": 1, "b": 2}
            store(ds, storage)
            fresh = reloaded(ds, storage)
            for step in steps:
                self.play(fresh, *step)
                self.play(model, *step)
            assert list(fresh.items()) == list(model.items())
            assert fresh._changed

    def test_made_from_pairs_names_and_mappings(self):
        assert dict(DataStore([("a", 1)], b=2)) == {"a": 1, "b": 2}
        assert dict(DataStore({"a": 1}, a=2)) == {"a": 2}
        assert dict(DataStore.fromkeys("ab")) == {"a": None, "b": None}
        assert dict(DataStore.fromkeys("ab", 0)) == {"a": 0, "b": 0}
        assert dict(**DataStore(a=1)) == {"a": 1}

    @pytest.mark.parametrize("name", [1, None, b"a", ("a",)])
    def test_names_are_strings(self, name):
        with pytest.raises(TypeError, match="is a str"):
            DataStore({name: 1})
        assert name not in DataStore(a=1)

    def test_names_of_a_str_subclass_become_plain(self):
        ds = DataStore({np.str_("a"): 1})
        assert [type(name) for name in ds] == [str]

    def test_matches_as_a_mapping(self):
        match DataStore(a=1, b=2):
            case {"a": found}:
                assert found == 1

    def test_to_dict_is_deep(self):
        ds = DataStore(a=1, n=DataStore(b=DataStore(c=2)))
        assert ds.to_dict() == {"a": 1, "n": {"b": {"c": 2}}}
        assert type(ds.to_dict()["n"]["b"]) is dict

    def test_no_array_and_no_hash(self):
        with pytest.raises(TypeError, match=r"dict\(ds\)"):
            np.asarray(DataStore(a=1))
        with pytest.raises(TypeError, match=r"dict\(ds\)"):
            pd.DataFrame(DataStore(a=[1]))
        with pytest.raises(TypeError, match="unhashable"):
            hash(DataStore())

    def test_weakly_referable(self):
        ds = DataStore()
        assert weakref.ref(ds)() is ds


class TestAttributes:
    def test_entries_are_attributes(self):
        ds = DataStore()
        ds.a = 1
        assert (ds.a, ds["a"]) == (1, 1)
        del ds.a
        assert not ds
        with pytest.raises(AttributeError, match="'a'"):
            _ = ds.a
        with pytest.raises(AttributeError, match="'a'"):
            del ds.a

    @pytest.mark.parametrize("name", ["url", "copy", "items", "changed", "_x", "__y__", "ndim"])
    def test_taken_names_are_items_only(self, name):
        ds = DataStore({name: 1})
        assert ds[name] == 1
        assert getattr(ds, name, None) != 1
        with pytest.raises(AttributeError, match=r"use ds\['"):
            setattr(ds, name, 2)
        with pytest.raises(AttributeError, match=r"del ds\['"):
            delattr(ds, name)
        assert ds[name] == 1

    def test_private_names_read_nothing(self, storage):
        ds = DataStore.from_url(GONE, storage=storage)
        for name in ("_private", "__wrapped__", "_repr_png_", "ndim"):
            assert not hasattr(ds, name)
        assert "a" not in dir(ds)
        assert storage.opened == []

    def test_dir_lists_loaded_names(self):
        assert {"abc", "keys"} <= set(dir(DataStore({"abc": 1, "not a name": 2})))
        assert "not a name" not in dir(DataStore({"not a name": 2}))


class TestEquality:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: float("nan"),
            lambda: np.array([1.0, np.nan]),
            lambda: np.array(["NaT"], "M8[s]"),
            lambda: np.array([-(2**63)]).view("M8"),
            lambda: np.array([(1, np.nan)], dtype=[("a", "i4"), ("b", "f8")]),
            lambda: np.ma.masked_array([1, 2], mask=[True, False]),
            lambda: np.ma.masked_array(np.array([5, 7]).view("m8"), mask=[True, False]),
            lambda: np.ma.masked_array(np.float16([1, np.nan]), mask=[True, False]),
            lambda: np.ma.masked_array(np.array(1.0), mask=True),
            lambda: np.ma.masked_array([(1, [2, 3])], [(0, [1, 0])], [("a", "i4"), ("b", "f8", 2)]),
            lambda: np.float32("nan"),
            lambda: np.array(["a", None], dtype=object),
            lambda: pd.DataFrame({"a": [1.0, np.nan]}, index=["x", "y"]),
            lambda: pd.DataFrame({"name": [1, 2], "names": [3, 4]}),
            lambda: pd.Series([pd.NaT, pd.Timestamp(0)]),
            lambda: pd.Index([1, 2], name="i"),
            lambda: pd.NaT,
            lambda: pd.NA,
            lambda: pd.Timestamp("2024-01-01", tz="UTC"),
            lambda: pa.table({"a": [1.0, float("nan")]}),
            lambda: pa.array([1, None]),
            lambda: pa.schema([("a", pa.int8())]),
            lambda: [1, {"a": np.ones(2)}, (2,)],
            lambda: {1: "a", "b": float("nan")},
            lambda: DataStore(a=np.ones(1)),
            lambda: datetime(2024, 1, 1),
        ],
    )
    def test_equal_content(self, make):
        assert DataStore(v=make()) == DataStore(v=make())

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (np.ones(2), np.ones(3)),
            (np.ones(2), np.ones((1, 2))),
            (np.ones(2), np.ones(2, "f4")),
            (np.ones(2), [1.0, 1.0]),
            (np.ones(2), None),
            (np.ma.masked_array([1, 2], mask=[1, 0]), np.ma.masked_array([1, 2], mask=[0, 1])),
            (np.ma.masked_array([1, 2], mask=[1, 0]), np.ma.masked_array([1, 3], mask=[1, 0])),
            (pd.Series([1], name="a"), pd.Series([1], name="b")),
            (pd.Series([1]), pd.Series([1], dtype="int8")),
            (pd.Series([1]), pd.Series([1], index=["a"])),
            (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
            (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}, index=pd.Index([0], name="n"))),
            (pd.DataFrame({"a": [1]}), pd.Series([1], name="a")),
            (pa.table({"a": [1]}), pa.table({"b": [1]})),
            (pa.table({"a": [1.0]}), pa.table({"a": [float("nan")]})),
            (pa.array([1]), pa.array([1], pa.int8())),
            ([1, 2], (1, 2)),
            ([1], [1, 2]),
            (float("nan"), 1.0),
            (pd.NaT, None),
            (DataStore(a=1), DataStore(a=2)),
            ({"a": 1}, {"a": 1, "b": 2}),
        ],
    )
    def test_different_content(self, a, b):
        assert DataStore(v=a) != DataStore(v=b)
        assert DataStore(v=b) != DataStore(v=a)

    def test_what_is_masked_does_not_count(self):
        a, b = (np.ma.masked_array([n, 2], mask=[True, False]) for n in (1, 3))
        assert DataStore(v=a) == DataStore(v=b)
        assert a._fill_value is None, "comparing has made up what the array is filled with"
        fields = [("a", "i4"), ("b", "f8", 2)]
        a, b = (np.ma.masked_array([(n, [2, n])], [(1, [0, 1])], fields) for n in (1, 3))
        assert DataStore(v=a) == DataStore(v=b)
        b["b"][0, 0] = 5
        assert DataStore(v=a) != DataStore(v=b)

    def test_polars(self):
        pl = pytest.importorskip("polars")
        make = lambda: pl.DataFrame({"a": [1.0, float("nan")]})  # noqa: E731
        assert DataStore(v=make()) == DataStore(v=make())
        assert DataStore(v=make()) != DataStore(v=make().rename({"a": "b"}))
        assert DataStore(v=pl.Series("a", [1])) != DataStore(v=pl.Series("b", [1]))

    def test_other_mappings_and_other_things(self):
        assert DataStore(a=1) == {"a": 1}
        assert {"a": 1} == DataStore(a=1)  # noqa: SIM300 - the other side is asked first
        assert DataStore(a=1) != {"b": 1}
        assert DataStore(a=1) != 1
        assert DataStore(n=DataStore(a=1)) == {"n": {"a": 1}}

    def test_same_object_is_equal_without_reading(self, storage):
        a, b = (DataStore.from_url(GONE, storage=storage) for _ in range(2))
        assert a == b
        assert storage.opened == []

    def test_edits_in_place_count(self, storage):
        ds = DataStore(items=[1])
        store(ds, storage)
        ds["items"].append(2)
        assert ds != reloaded(ds, storage)


class TestLoading:
    def test_every_entry_comes_back(self, storage):
        ds = DataStore(contents())
        store(ds, storage)
        assert reloaded(ds, storage) == DataStore(contents())
        assert list(reloaded(ds, storage)) == list(contents())
        assert type(reloaded(ds, storage).nested.deeper) is DataStore

    def test_many_values_cost_no_io(self, storage):
        values = [DataStore._at(storage, GONE) for _ in range(1000)]
        assert all(value.url == GONE for value in values)
        assert storage.opened == []

    def test_an_entry_loads_once(self, storage):
        ds = DataStore(frame=pd.DataFrame({"a": [1]}))
        store(ds, storage)
        assert ds.frame is ds.frame
        assert len(storage.opened) == 1

    @pytest.mark.parametrize("touch", [lambda ds: ds.number, lambda ds: ds["number"]])
    def test_the_first_touch_reads_index_and_entry_at_once(self, storage, monkeypatch, touch):
        """An asynchronous engine reads in another thread, and changes to it once."""
        calls = []
        monkeypatch.setattr(mapping, "off_loop", lambda call: calls.append(1) or call())
        ds = DataStore(contents())
        store(ds, storage)
        assert touch(reloaded(ds, storage)) == 123
        assert len(calls) == 1

    def test_threads_load_once(self, storage):
        ds = DataStore(contents())
        store(ds, storage)
        fresh, found = reloaded(ds, storage), []
        start = threading.Barrier(8)

        def load():
            start.wait()
            found.append([id(fresh[name]) for name in fresh])

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert all(each == found[0] for each in found)
        assert len(storage.opened) == 1

    def test_a_forked_child_loads(self, storage):
        ds = DataStore(contents())
        store(ds, storage)
        fresh = reloaded(ds, storage)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"1" if fresh.array.sum() == 15 else b"0")
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(reader, 1) == b"1"
        os.close(reader)
        os.close(writer)

    def test_arrays_are_read_only_once_stored(self, storage):
        array = np.arange(3)
        ds = DataStore(array=array)
        assert ds.array is array
        store(ds, storage)
        with pytest.raises(ValueError, match="read-only"):
            ds.array[0] = 1
        array[0] = 1

    def test_a_missing_object_is_neither_key_nor_attribute_error(self, storage):
        ds = DataStore.from_url(GONE, storage=storage)
        for ask in (lambda: ds["a"], lambda: ds.a, lambda: len(ds), lambda: ds.get("a")):
            with pytest.raises(MissingObjectError, match="0000"):
                ask()

    def test_a_damaged_entry_is_told(self, storage, tmp_path):
        ds = DataStore(array=np.arange(1000.0))
        store(ds, storage)
        file = tmp_path / "storage" / ObjectURL.parse(ds.url).path
        data = bytearray(file.read_bytes())
        data[4000] ^= 1
        file.chmod(0o600)
        file.write_bytes(data)
        with pytest.raises(DamagedObjectError, match="'array'"):
            _ = reloaded(ds, storage).array

    @pytest.mark.parametrize("url", ["file:///../x.zip", "data:,x", "nothing", "file://host/x.zip"])
    def test_bad_urls_are_refused_at_once(self, url):
        with pytest.raises(RefusedURLError):
            DataStore.from_url(url)

    def test_another_scheme_is_refused_on_access(self, storage):
        ds = DataStore.from_url("s3:///a/b.zip", storage=storage)
        with pytest.raises(RefusedURLError, match="file:"):
            len(ds)

    def test_url_is_read_only(self):
        assert DataStore().url is None
        with pytest.raises(AttributeError, match="'url'"):
            DataStore().url = GONE

    def test_an_error_in_a_field_is_told_as_it_is(self):
        class Breaks:
            is_made = False

            def link(self, value):
                raise AttributeError("no such mapper")

        ds = DataStore()
        ds._row = Breaks()
        for ask in (lambda: ds._row, lambda: ds.typed):
            with pytest.raises(AttributeError, match="no such mapper"):
                ask()

    def test_what_threads_set_of_a_value_that_nobody_touched_stays(self, monkeypatch):
        call_when_made(monkeypatch, entry, "Details", threading.Barrier(2, timeout=10).wait)
        ds = DataStore.from_url(GONE)
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(lambda name: setattr(ds, name, True), ["_changed", "_handed_out"]):
                pass
        assert ds._changed
        assert ds._handed_out

    def test_threads_that_touch_a_value_first_read_from_one_source(self, monkeypatch):
        call_when_made(monkeypatch, datastore, "Source", threading.Barrier(2, timeout=10).wait)
        ds = DataStore.from_url(GONE)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: ds._source, range(2))
        assert first is second is ds._source

    def test_a_finalizer_that_reads_the_same_object_leaves_a_load_its_nested_values(
        self, storage, monkeypatch
    ):
        ds = DataStore(several=[DataStore(n=1), DataStore(n=2)])
        store(ds, storage)
        fresh = reloaded(ds, storage)
        source = fresh._source

        class Reads:
            def __del__(self):
                source.load("several")

        garbage, nested = [Reads()], []

        def collect():
            nested.append(1)
            if len(nested) == 2:
                garbage.clear()

        call_when_made(monkeypatch, entry, "Details", collect)
        first, second = fresh.several
        assert len(nested) == 4
        assert first._outer is second._outer is fresh
        assert not fresh._changed
        first.n = 5
        assert fresh._changed

    @pytest.mark.parametrize(
        "touch",
        [lambda ds: ds._source, lambda ds: setattr(ds, "_armed", 1)],
        ids=["source", "field"],
    )
    def test_a_finalizer_may_wait_for_another_thread(self, monkeypatch, touch):
        """Garbage may be collected at any time, and an edited value looks at itself then."""
        ended = []

        class Waits:
            def __del__(self):
                thread = threading.Thread(target=touch, args=[DataStore.from_url(GONE)])
                thread.start()
                thread.join(5)
                ended.append(not thread.is_alive())

        garbage = [Waits()]
        call_when_made(monkeypatch, entry, "Details", garbage.clear)
        touch(DataStore.from_url(GONE))
        assert ended == [True]


class TestEdits:
    """An edit is saved or refused, never dropped (P9)."""

    def test_direct_edits_change_the_value(self, storage):
        edits = [
            lambda ds: ds.update(a=2),
            lambda ds: ds.pop("a"),
            lambda ds: ds.clear(),
            lambda ds: ds.popitem(),
            lambda ds: ds.setdefault("new"),
            lambda ds: ds.__ior__({"a": 2}),
            lambda ds: ds.__delitem__("a"),
            lambda ds: setattr(ds, "a", 2),
            lambda ds: ds.update(DataStore(a=2)),
        ]
        for edit in edits:
            ds = DataStore(a=1, b=2)
            store(ds, storage)
            row = ds._row = Row()
            assert not ds._changed
            edit(ds)
            assert ds._changed
            assert row.checked
            assert all(value is ds for value in row.checked)

    def test_a_refused_edit_changes_nothing(self, storage):
        ds = DataStore(a=1, n=DataStore(b=1))
        store(ds, storage)
        ds._row = Row(refuse=StaleValueError("gone"))
        for edit in (ds.clear, ds.popitem, lambda: ds.update(a=2), lambda: ds.n.update(b=2)):
            with pytest.raises(StaleValueError):
                edit()
        assert ds.to_dict() == {"a": 1, "n": {"b": 1}}
        assert not ds._changed

    def test_nested_edits_reach_the_outermost(self, storage):
        ds = DataStore(n=DataStore(m=DataStore(k=1)), listed=[DataStore(k=1)])
        store(ds, storage)
        for edit in (lambda v: v.n.m.update(k=2), lambda v: v.listed[0].update(k=2)):
            fresh = reloaded(ds, storage)
            edit(fresh)
            assert fresh._changed
            store(fresh, storage)
            assert not fresh._changed
            assert reloaded(fresh, storage).to_dict() == fresh.to_dict() != ds.to_dict()

    def test_values_keep_their_nested_ones_across_saves(self, storage):
        child, listed = DataStore(k=1), DataStore(k=1)
        ds = DataStore(n=child, items=[listed])
        for number in range(3):
            store(ds, storage)
            assert ds.n is child
            assert ds["items"][0] is listed
            child.k = number
            assert ds._changed
            store(ds, storage)
            listed.k = number
            assert ds._changed

    def test_a_value_lives_in_one_place(self, storage):
        child = DataStore(k=1)
        a, b = DataStore(n=child), DataStore(n=child)
        assert a.n is child
        assert b.n is not child
        child.k = 2
        assert (a.n.k, b.n.k) == (2, 1)

    def test_a_popped_value_moves(self, storage):
        ds = DataStore(n=DataStore(k=1))
        store(ds, storage)
        child = ds.pop("n")
        other = DataStore(n=child)
        assert other.n is child
        store(other, storage, "rows/2")
        child.k = 2
        assert other._changed
        assert not ds._changed or "n" not in ds

    def test_cycles_are_refused(self):
        ds = DataStore(a=1)
        ds.me = ds
        with pytest.raises(UnsupportedTypeError, match="contains itself") as info:
            ds._plan("rows.data")
        assert info.value.column == "rows.data"
        assert info.value.entry.startswith("me")
        outer = DataStore(inner=DataStore())
        outer.inner.outer = outer
        with pytest.raises(UnsupportedTypeError, match="contains itself"):
            outer._plan(None)
        outer.changed()

    def test_unsupported_entries_are_named(self):
        with pytest.raises(UnsupportedTypeError, match="'bad'") as info:
            DataStore(good=1, bad=object())._plan("rows.data")
        assert info.value.entry == "bad"

    EDITS = {
        "list": ([1, [2]], lambda v: v[1].append(3)),
        "dict": ({"a": {}}, lambda v: v["a"].update(b=1)),
        "set": ({1}, lambda v: v.add(2)),
        "tuple": (([],), lambda v: v[0].append(1)),
        "bytearray": (bytearray(b"a"), lambda v: v.extend(b"b")),
        "deque": (deque([[1]], 3), lambda v: v[0].append(2)),
        "deque grows": (deque([1], 3), lambda v: v.appendleft(0)),
        "ordered dict": (OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
        "default dict": (defaultdict(list, a=[1]), lambda v: v["b"].append(1)),
        "factory": (defaultdict(list, a=[1]), lambda v: setattr(v, "default_factory", set)),
        "counter": (Counter("ab"), lambda v: v.update("a")),
        "namedtuple": (Pair([1], 2), lambda v: v.first.append(2)),
        "type only": ([1], lambda v: v.__setitem__(0, True)),
    }

    @pytest.mark.parametrize("kind", EDITS)
    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_edits_in_place_are_found(self, storage, kind, depth):
        value, edit = copy.deepcopy(self.EDITS[kind])
        ds = inner = DataStore(v=value)
        for _ in range(depth):
            ds = DataStore(n=ds)
        store(ds, storage)
        assert ds._handed_out
        assert not ds._scan()
        edit(value)
        assert ds._scan()
        assert ds._changed
        assert inner.v is value
        for _ in range(2):
            store(ds, storage)
            assert not ds._scan()
            inner = reloaded(ds, storage)
            for _ in range(depth):
                inner = inner.n
            assert inner.v == value
            assert not reloaded(ds, storage)._scan()

    FRAME_EDITS = {
        "cell": lambda f: f.loc.__setitem__((0, "x"), 9),
        "column": lambda f: f.__setitem__("new", 1),
        "names": lambda f: setattr(f, "columns", ["p", "q"]),
        "attrs": lambda f: f.attrs.update(a=1),
        "pop": lambda f: f.pop("x"),
    }

    @pytest.mark.parametrize("kind", FRAME_EDITS)
    def test_edits_of_frames_are_found(self, storage, kind):
        ds = DataStore(frame=contents()["frame"])
        store(ds, storage)
        ds = reloaded(ds, storage)
        for _ in range(2):
            frame = ds.frame
            assert not ds._scan()
        self.FRAME_EDITS[kind](frame)
        assert ds._scan()
        store(ds, storage)
        assert ds.frame is frame
        assert not ds._scan()
        assert reloaded(ds, storage) == {"frame": frame}

    @pytest.mark.skipif(COPIES_ON_WRITE, reason="pandas 3 always copies on write")
    def test_edits_of_frames_without_copy_on_write_are_refused(self, storage):
        ds = DataStore(frame=contents()["frame"])
        store(ds, storage)
        with pd.option_context("mode.copy_on_write", False):
            frame = reloaded(ds, storage).frame
            with pytest.raises(ValueError, match="read-only"):
                frame.loc[0, "x"] = 9

    def test_merely_used_frames_are_unchanged(self, storage):
        frame = pd.DataFrame({"x": [1, 2]}, index=pd.date_range("2024", periods=2))
        ds = DataStore(frame=frame)
        store(ds, storage)
        ds = reloaded(ds, storage)
        ds.frame.loc["2024-01-01"]
        ds.frame.describe()
        _ = ds.frame.index.is_unique, ds.frame.index.inferred_freq
        assert not ds._scan()
        assert not ds._changed

    def test_reading_arms_nothing_but_editable_entries(self, storage):
        ds = DataStore(array=np.ones(2), number=1, items=[1], n=DataStore(items=[1], k=1))
        store(ds, storage)
        ds = reloaded(ds, storage)
        row = ds._row = Row()
        _ = ds.number, ds.n, ds.n.k
        assert row.armed == []
        assert not ds._handed_out
        _ = ds["items"], ds["items"], ds.array  # an array's shape can be set
        assert [value is ds for value in row.armed] == [True]
        ds._scan()
        _ = ds["items"]
        assert len(row.armed) == 2
        ds._scan()
        _ = ds.n["items"]
        assert len(row.armed) == 3

    def test_an_edit_that_cannot_be_stored_is_reported_by_the_plan(self, storage):
        ds = DataStore(items=[1])
        store(ds, storage)
        ds["items"].append(object())
        assert ds._scan()
        with pytest.raises(UnsupportedTypeError, match="items"):
            ds._plan(None)

    def test_augmented_assignment(self, storage):
        child = DataStore(k=1)
        ds = DataStore(items=[child], n=DataStore(k=1))
        store(ds, storage)
        ds["items"] += [2]
        ds["n"] |= {"k": 2}
        assert ds._changed
        store(ds, storage)
        child.k = 3
        assert ds._changed
        store(ds, storage)
        assert reloaded(ds, storage).to_dict()["n"] == {"k": 2}
        assert reloaded(ds, storage)["items"] == [{"k": 3}, 2]

    def test_swapped_nested_values_are_found(self, storage):
        ds = DataStore(items=[DataStore(k=1), DataStore(k=1)])
        store(ds, storage)
        ds["items"].reverse()
        assert ds._scan()

    def test_explicitly_changed(self, storage):
        ds = DataStore(n=DataStore(k=1))
        store(ds, storage)
        ds.n.changed()
        assert ds._changed
        assert ds.n._changed


class TestRows:
    @pytest.fixture
    def session(self, storage):
        class Base(DeclarativeBase):
            pass

        class Plain(Base):
            __tablename__ = "plain"
            id: Mapped[int] = mapped_column(primary_key=True)
            data = mapped_column(DataStoreType())

        engine = create_engine("sqlite://")
        bind_storage(engine, storage)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.row = Plain(id=1, data={"a": 1, "n": DataStore(k=1)})
            session.add(session.row)
            session.commit()
            yield session
        engine.dispose()

    @pytest.mark.parametrize(
        "edit", [lambda v: v.update(a=2), lambda v: v.n.update(k=2), lambda v: v.changed()]
    )
    def test_edits_make_the_row_dirty(self, session, edit):
        row = session.row
        assert isinstance(row.data, DataStore)
        assert row not in session.dirty
        edit(row.data)
        assert row in session.dirty
        wanted = row.data.to_dict()
        session.commit()
        assert row.data.to_dict() == wanted

    def test_a_replaced_value_is_let_go(self, session):
        old = session.row.data
        old.to_dict()  # its object goes
        session.row.data = DataStore(b=1)
        session.commit()
        old.a = 5
        assert session.row not in session.dirty

    def test_edits_of_an_expired_value_are_refused(self, session):
        old = session.row.data
        session.commit()
        for edit in (lambda: old.update(a=2), lambda: old.n.update(k=2), old.changed):
            with pytest.raises(StaleValueError, match="get it from the row again"):
                edit()
        assert old == {"a": 1, "n": {"k": 1}}
        assert session.row.data == old

    def test_rows_are_pickled_with_their_values(self, session):
        value = pickle.loads(pickle.dumps(session.row.data))
        assert value == session.row.data
        value.a = 2
        assert session.row not in session.dirty


class TestStored:
    """What `_stored` does, and its undo."""

    def test_unchanged_entries_are_copied_without_decoding(self, storage):
        ds = DataStore(contents())
        store(ds, storage)
        first = reloaded(ds, storage)
        first.number = 5
        store(first, storage)
        assert first._entries["frame"].value is not first.frame
        assert reloaded(first, storage) == DataStore(contents()) | {"number": 5}

    def test_frames_and_arrays_are_not_hoarded(self, storage):
        array = np.ones(10)
        ds = DataStore(array=array, frame=pd.DataFrame({"a": array}))
        undo = store(ds, storage)
        alive = weakref.ref(array)
        del array
        assert alive() is not None  # until the transaction ends
        del undo
        gc.collect()
        assert alive() is None

    def test_the_original_object_is_gone(self, storage):
        ds = DataStore(array=np.ones(10))
        store(ds, storage)
        copied = ds.copy()
        remove(storage, ds.url)
        with pytest.raises(MissingObjectError):
            copied._plan(None)

    def test_undo_puts_everything_back(self, storage):
        given = contents()
        ds = DataStore(given)
        undo = store(ds, storage)
        url = ds.url
        undo()
        remove(storage, url)
        assert ds.url is None
        assert ds._changed
        assert list(ds) == list(given)
        assert all(ds[name] is value for name, value in given.items())
        assert ds.nested.url is None
        store(ds, storage)
        assert reloaded(ds, storage) == DataStore(contents())

    def test_undo_of_a_second_save(self, storage):
        ds = DataStore(a=np.ones(2), items=[1], n=DataStore(k=1))
        store(ds, storage)
        url = ds.url
        ds.a, ds.n.k = np.zeros(2), 2
        ds["items"].append(2)
        undo = store(ds, storage)
        second = ds.url
        undo()
        remove(storage, second)
        assert (ds.url, ds._changed) == (url, True)
        assert ds == {"a": np.zeros(2), "items": [1, 2], "n": {"k": 2}}
        store(ds, storage)
        assert reloaded(ds, storage) == {"a": np.zeros(2), "items": [1, 2], "n": {"k": 2}}

    def test_undo_of_two_saves(self, storage):
        ds = DataStore(a=1, b=np.ones(1), n=DataStore(k=1))
        undos = [store(ds, storage)]
        ds.a, ds.n.k = 2, 2
        undos.append(store(ds, storage))
        ds.c = 3
        for undo in reversed(undos):
            undo()
        assert ds.url is None
        assert ds == {"a": 2, "b": np.ones(1), "n": {"k": 2}, "c": 3}
        assert ds._changed

    def test_undo_keeps_what_was_edited_since(self, storage):
        ds = DataStore(a=1, b=2, frame=pd.DataFrame({"x": [1]}), items=[1], n=DataStore(k=1))
        undo = store(ds, storage)
        ds.a = 5
        del ds.b
        ds.frame.loc[0, "x"] = 7
        ds["items"].append(2)
        ds.n.k = 9
        ds.new = "new"
        url = ds.url
        undo()
        remove(storage, url)
        wanted = {"a": 5, "items": [1, 2], "n": {"k": 9}, "new": "new"}
        assert ds == wanted | {"frame": pd.DataFrame({"x": [7]})}
        assert ds._changed
        store(ds, storage)
        assert reloaded(ds, storage) == wanted | {"frame": pd.DataFrame({"x": [7]})}

    def test_undo_keeps_frames_that_were_handed_out(self, storage):
        ds = DataStore(frame=pd.DataFrame({"x": [1]}))
        undo = store(ds, storage)
        frame, url = ds.frame, ds.url
        undo()
        remove(storage, url)
        frame.loc[0, "x"] = 7
        store(ds, storage)
        assert reloaded(ds, storage).frame.loc[0, "x"] == 7

    def test_an_entry_assigned_between_plan_and_stored_stays_unsaved(self, storage):
        ds = DataStore(a=1, b=2, c=3)
        plan = ds._plan(None)
        url = f"file:///rows/1/{'a' * 32}.zip"
        with storage.create(ObjectURL.parse(url).path) as writer:
            plan.objects[0].write(writer)
        ds.a = 5
        del ds.b
        ds.d = 4
        ds._stored(storage, url, plan)
        assert ds._changed
        assert ds == {"a": 5, "c": 3, "d": 4}
        store(ds, storage)
        assert reloaded(ds, storage) == {"a": 5, "c": 3, "d": 4}

    def test_containers_with_arrays_are_read_again(self, storage):
        given = [np.ones(3)]
        ds = DataStore(items=given, nested=[DataStore(a=np.ones(2))])
        nested = ds.nested
        store(ds, storage)
        assert ds["items"] is not given
        assert ds.nested is nested

    def test_a_list_that_holds_a_rows_value_is_read_again(self, storage):
        of_a_row = DataStore(k=1)
        of_a_row._row = Row()
        given = [of_a_row]
        ds = DataStore(items=given)
        store(ds, storage)
        assert ds["items"] is not given
        assert of_a_row.url is None
        assert reloaded(ds, storage)["items"] == [{"k": 1}]


class TestCopies:
    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, DataStore.copy])
    def test_a_stored_value_is_copied_by_reference(self, storage, make):
        ds = DataStore(contents())
        store(ds, storage)
        twin = make(DataStore._at(storage, ds.url))
        assert (twin.url, twin._changed, twin._row) == (ds.url, False, None)
        assert storage.opened == []
        twin["items"].append(1)
        twin.nested.deeper.k = 2
        assert ds == DataStore(contents())
        assert twin._scan()

    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, DataStore.copy, DataStore])
    def test_a_changed_value_is_copied_with_its_changes(self, storage, make):
        ds = DataStore(contents())
        store(ds, storage)
        ds["items"].append(4)
        ds.nested.inner = 5
        twin = make(ds)
        assert twin == ds
        assert twin.nested is not ds.nested
        assert twin.url is None
        twin.nested.inner = 6
        twin["new"] = 1
        assert ds.nested.inner == 5
        assert "new" not in ds
        store(twin, storage, "rows/2")
        assert reloaded(twin, storage)["items"] == [1, {"a": (2, 3)}, 4]

    def test_shallow_and_deep(self):
        ds = DataStore(items=[1], n=DataStore(items=[1]))
        assert ds.copy()["items"] is ds["items"]
        deep = copy.deepcopy(ds)
        deep["items"].append(2)
        deep.n["items"].append(2)
        assert ds.to_dict() == {"items": [1], "n": {"items": [1]}}
        deep._changed = False
        deep.n.k = 1
        assert deep._changed

    def test_entries_are_taken_over_without_loading(self, storage):
        ds = DataStore(contents())
        store(ds, storage)
        source = reloaded(ds, storage)
        merged = DataStore(extra=1)
        merged.update(source)
        taken = [merged._entries[name] for name in source]
        assert inspect(source).loaded == ()
        assert inspect(merged).loaded == ("extra",)
        assert all(entry.source is not None for entry in taken)
        store(merged, storage, "rows/2")
        assert reloaded(merged, storage) == DataStore(contents()) | {"extra": 1}


class TestPickle:
    def test_a_stored_value_is_a_reference(self, storage):
        ds = DataStore(big=np.ones(100_000), n=DataStore(k=1))
        store(ds, storage)
        data = pickle.dumps(ds)
        assert len(data) < 1000
        back = pickle.loads(data)
        assert (back.url, back._changed) == (ds.url, False)
        assert back == ds
        assert pickle.loads(pickle.dumps(ds.n)).to_dict() == {"k": 1}

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_changed_value_is_its_content(self, storage, protocol, tmp_path):
        ds = DataStore(contents())
        assert pickle.loads(pickle.dumps(ds, protocol)) == ds
        store(ds, storage)
        ds["items"].append(5)
        _ = ds.nested.deeper
        data = pickle.dumps(ds, protocol)
        remove(storage, ds.url)
        back = pickle.loads(data)
        assert back == DataStore(contents()) | {"items": [1, {"a": (2, 3)}, 5]}
        assert back.url is None
        back._changed = False
        back.nested.deeper.k = 1
        assert back._changed

    def test_cycles_and_emptiness(self):
        ds = DataStore()
        assert pickle.loads(pickle.dumps(ds)) == {}
        ds.me = ds
        back = pickle.loads(pickle.dumps(ds))
        assert back.me is back

    def test_does_not_carry_the_row(self):
        ds = DataStore(a=1)
        ds._row = Row()
        assert pickle.loads(pickle.dumps(ds))._row is None


class Own(DataStore):
    pass


class TestCoercion:
    def test_what_a_column_takes(self):
        ds = DataStore()
        assert DataStore.coerce("data", None) is None
        assert DataStore.coerce("data", ds) is ds
        assert dict(DataStore.coerce("data", {"a": 1})) == {"a": 1}

    def test_a_subclass_of_datastore_is_refused(self):
        value = Own(a=1)
        with pytest.raises(UnsupportedTypeError, match=r"store DataStore\(value\)"):
            DataStore.coerce("data", value)
        for outer in (value, DataStore(n=value), DataStore(n=[{"x": value}])):
            with pytest.raises(UnsupportedTypeError, match=r"store DataStore\(value\)"):
                outer._plan("rows.data")
        assert DataStore(n=DataStore(value))._plan("rows.data")

    @pytest.mark.parametrize("names", [{1: 2}, {None: 1}, {"a": 1, b"b": 2}, [(1, 2)]])
    def test_a_name_that_is_no_str_is_refused(self, names):
        for make in (DataStore, lambda n: DataStore().update(n), lambda n: DataStore() | dict(n)):
            with pytest.raises(UnsupportedTypeError, match="the name of an entry is a str"):
                make(names)

    @pytest.mark.parametrize("value", [np.ones(2), [1], "text", 1])
    def test_what_it_refuses(self, value):
        with pytest.raises(UnsupportedTypeError, match=r"'data'.*DataStore\(data="):
            DataStore.coerce("data", value)


def test_a_nested_value_in_two_places_is_saved_in_both(storage):
    child = DataStore(items=[1], n=DataStore(k=1))
    ds = DataStore(a=child, b=[child], c=[child, child])
    store(ds, storage)
    wanted = {"items": [1], "n": {"k": 1}}
    fresh = reloaded(ds, storage)
    assert [fresh.a.to_dict(), *(each.to_dict() for each in (*fresh["b"], *fresh["c"]))] == (
        [wanted] * 4
    )
    assert not ds._changed
    ds.a["items"].append(2)
    assert ds._scan()
    store(ds, storage)
    assert reloaded(ds, storage).a["items"] == [1, 2]
    assert not ds._scan()
    assert not ds._changed


def test_lists_without_nested_values_are_not_walked(storage, monkeypatch):
    """A long list would take seconds, whatever else is nested in the value."""
    walked = []
    nested_in = saving._nested_in

    def spy(value):
        walked.append(value)
        return nested_in(value)

    monkeypatch.setattr(saving, "_nested_in", spy)
    inner = [DataStore(k=1)]
    ds = DataStore(a=[1, 2], n=DataStore(items=[3], inner=inner))
    store(ds, storage)
    assert [each for each in walked if isinstance(each, list)] == [inner]
    assert ds.n["inner"][0].url == ds.url.replace(".zip", ".2.zip")
