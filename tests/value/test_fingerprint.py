"""A fingerprint misses no edit in place, and costs no look at memory that nobody can write."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import warnings
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sqla_datastore.testing import decode_value, encode_value
from sqla_datastore.value.fingerprint import Fingerprint, fingerprint

PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3
pytestmark = pytest.mark.usefixtures("copy_on_write")


def decoded(value):
    text, blobs = encode_value(value)
    return decode_value(text, [bytes(blob) for blob in blobs])


def frame():
    texts = np.array(["a" * 60, None] * 100, object)
    nested = np.empty(200, object)
    nested[:] = [[number, {"k": [number]}] for number in range(200)]
    made = pd.DataFrame(
        {
            "f": np.arange(200.0),
            "g": np.arange(200.0),
            "i": np.arange(200),
            "d": pd.date_range("2024", periods=200),
            "z": pd.date_range("2024", periods=200, tz="UTC"),
            "c": pd.Categorical(["x", "y"] * 100, categories=["y", "x", "w"]),
            "m": pd.array([1, None] * 100, dtype="Int64"),
            "s": pd.array(texts, dtype="string[pyarrow]"),
            "p": pd.array(texts, dtype="string[python]"),
            "w": pd.array([1, None] * 100, dtype=pd.ArrowDtype(pa.int64())),
            "o": nested,
        },
        index=pd.date_range("2024", periods=200, freq="D", name="when"),
    )
    made.attrs = {"unit": {"x": [1]}}
    return made


def statement(text):
    def edit(value):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas deprecates some of these edits
            exec(text, {"df": value, "s": value, "x": value, "np": np, "pd": pd})

    return edit


FRAME_EDITS = [
    "df.iloc[0, 0] = 9",
    "df.loc[df.index[0], 'f'] = 9",
    "df.at[df.index[0], 'i'] = 9",
    "df.iat[0, 1] = 9",
    "df.loc[:, 'f'] = 9.0",
    "df.iloc[0, 3] = pd.Timestamp('2020')",
    "df.iloc[0, 4] = pd.Timestamp('2020', tz='UTC')",
    "df.iloc[0, 5] = 'y'",
    "df.iloc[0, 6] = 5",
    "df.loc[df.f > 5, 'g'] = 0",
    "df.fillna({'m': 0}, inplace=True)",
    "df[['f', 'g']] = df[['g', 'f']].to_numpy() + 1",
    "df.update(pd.DataFrame({'f': [7.0]}, index=df.index[:1]))",
    "df.iloc[3] = df.iloc[4]",
    "df['f'] = 0",
    "df['f'] += 1",
    "df['new'] = 1",
    "df.insert(0, 'new', 1)",
    "df.drop(columns='f', inplace=True)",
    "df.drop(index=df.index[0], inplace=True)",
    "df.pop('f')",
    "del df['f']",
    "df.columns = list('abcdefghijk')",
    "df.columns.name = 'n'",
    "df.index = range(len(df))",
    "df.index.name = 'n'",
    "df.index.freq = None",
    "df.rename(columns={'f': 'F'}, inplace=True)",
    "df.rename_axis('n', inplace=True)",
    "df.set_index('f', inplace=True)",
    "df.reset_index(inplace=True)",
    "df.sort_values('f', ascending=False, inplace=True)",
    "df.sort_index(ascending=False, inplace=True)",
    "df.dropna(inplace=True)",
    "df.drop_duplicates('m', inplace=True)",
    "df.query('f > 5', inplace=True)",
    "df.eval('new = f + g', inplace=True)",
    "df.loc[pd.Timestamp('2030')] = df.iloc[0]",
    "df.attrs['a'] = 1",
    "df.attrs['unit']['x'].append(2)",
    "df.attrs = {}",
    "df.flags.allows_duplicate_labels = False",
    "df.iloc[0, 7] = 'edited'",
    "df.iloc[0, 8] = 'edited'",
    "df.iloc[0, 9] = 7",
    "df.iloc[0, 10] = None",
    "df['o'].iloc[0].append(1)",
    "df['o'].iloc[0][1]['k'][0] = 'edited'",
    "df['o'].to_numpy()[1][1]['k'].clear()",
    "df['c'] = df['c'].cat.rename_categories({'w': 'v'})",
    "df['c'] = df['c'].cat.as_ordered()",
    "df['d'] = df['d'].astype('M8[s]')",
    "df.__init__({'a': [1]})",
]


@pytest.mark.parametrize("text", FRAME_EDITS)
def test_no_edit_of_a_frame_is_missed(text):
    value = decoded(frame())
    print_of = Fingerprint(value)
    assert not print_of.changed()
    before = value.copy(deep=True)
    statement(text)(value)
    assert print_of.changed()
    del before


READ_ONLY = [
    "df['f'].to_numpy()[0] = 9",
    "df['f'].values[0] = 9",
    "np.asarray(df['f'])[0] = 9",
    "np.asarray(df[['i']])[0, 0] = 9",
    "df['d'].to_numpy()[0] = 0",
    "df['d'].array.asi8[0] = 0",
    "df['c'].cat.codes.to_numpy()[0] = 0" if PANDAS_3 else "df['f'].array.to_numpy()[0] = 1",
    "df['c'].array.codes[0] = 0",
    "df['c'].array[0] = 'y'",
    "df['m'].array[0] = 5",
    "df['m'].array._data[0] = 5",
    "df['m'].array._mask[0] = True",
    "df['f'].array[0] = 5",
    "df['f'].to_numpy().flags.writeable = True",
    "df['f'].to_numpy().sort()",
    "df['f'].values.fill(0)",
    "np.add(df['f'].to_numpy(), 1, out=df['f'].to_numpy())",
]


@pytest.mark.parametrize("text", READ_ONLY)
def test_the_memory_of_a_frame_is_read_only(text):
    value = decoded(frame())
    # the dtype caches these when they are first asked for in a process, and its pickle shows them
    assert (value["m"].dtype.kind, value["m"].dtype.numpy_dtype) == ("i", np.int64)
    print_of = Fingerprint(value)
    with pytest.raises((ValueError, TypeError), match=r"(?i)read-?only|WRITEABLE|cannot modify"):
        statement(text)(value)
    assert not print_of.changed()


ARRAY_EDITS = [
    "df['s'].array[0] = 'edited'",
    "df['p'].array[0] = 'edited'",
    "df['w'].array[0] = 7",
    "df['o'].array[0] = 7",
    "df['o'].values[0] = 7",
]


@pytest.mark.parametrize("text", ARRAY_EDITS)
def test_no_edit_behind_pandas_is_missed(text):
    value = decoded(frame())
    print_of = Fingerprint(value)
    before = value.copy(deep=True)
    with contextlib.suppress(ValueError):  # read-only, for those that pandas itself protects
        statement(text)(value)
    if not value.equals(before):
        assert print_of.changed()


SERIES_EDITS = [
    "s.iloc[0] = 9",
    "s[s > 5] = 0",
    "s.update(pd.Series([7.0]))",
    "s.loc[1000] = 9",
    "s.name = 'new'",
    "s.rename('new', inplace=True)",
    "s.index = s.index + 1",
    "s.index.name = 'n'",
    "s.attrs['a'] = 1",
    "s.flags.allows_duplicate_labels = False",
    "s.sort_values(ascending=False, inplace=True)",
    "s.drop(0, inplace=True)",
    "s.pop(0)",
]


@pytest.mark.parametrize("text", SERIES_EDITS)
def test_no_edit_of_a_series_is_missed(text):
    value = decoded(pd.Series(np.arange(10.0), name="old"))
    print_of = Fingerprint(value)
    assert not print_of.changed()
    statement(text)(value)
    assert print_of.changed()


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (pd.Index([1, 2]), "x.name = 'n'"),
        (pd.Index(["a"]), "x.names = ['n']"),
        (pd.MultiIndex.from_product([[1], [2]]), "x.names = ['a', 'b']"),
        (pd.MultiIndex.from_product([[1], [2]]), "x.rename(['a', 'b'], inplace=True)"),
        (pd.date_range("2024", periods=3), "x.freq = None"),
        (pd.Index([[1]], dtype=object), "x[0].append(2)"),
    ],
)
def test_no_edit_of_an_index_is_missed(index, text):
    value = decoded(index)
    print_of = Fingerprint(value)
    assert not print_of.changed()
    statement(text)(value)
    assert print_of.changed()


@pytest.mark.skipif(PANDAS_3, reason="pandas 3 always copies on write")
def test_without_copy_on_write_edits_of_numbers_are_refused():
    with pd.option_context("mode.copy_on_write", False):
        value = decoded(frame())
        print_of = Fingerprint(value)
        for text in ("df.iloc[0, 0] = 9", "df['f'] += 1", "df.at[df.index[0], 'i'] = 9"):
            with pytest.raises(ValueError, match="read-only"):
                statement(text)(value)
        value["f"] = 0
        assert print_of.changed()


def test_an_edit_that_reuses_memory_is_not_missed():
    value = decoded(pd.Series(["a" * 60] * 200, dtype="string[pyarrow]"))
    print_of = Fingerprint(value)
    for number in range(50):
        value.iloc[0] = f"{number % 10}" * 60
        assert print_of.changed()


CONTAINERS = [
    ([1, [2]], "x[1].append(3)"),
    ([1, 2], "x[0] = 1.0"),
    ([1, 2], "x[0] = True"),
    ([1, 2], "x.reverse()"),
    ({"a": {"b": 1}}, "x['a']['b'] = 2"),
    ({"a": 1, "b": 2}, "x['a'] = x.pop('a')"),
    ({1, 2}, "x.add(3)"),
    ({1, 2}, "x.remove(1)"),
    (bytearray(b"abc"), "x[0] = 1"),
    ([bytearray(b"abc" * 10**5)], "x[0][7] = 1"),
    ([np.zeros(3)], "x[0][1] = 1"),
    ([np.zeros((3, 4))[:, ::2]], "x[0][1, 1] = 1"),
    ([np.zeros(3)], "x[0].dtype = 'i8'; x[0][0] = 0" if not PANDAS_3 else "x[0] = x[0].view('i8')"),
    ([np.array([[1], 2], object)], "x[0][0].append(2)"),
    ([np.ma.MaskedArray([1, 2])], "x[0][0] = np.ma.masked"),
    ([np.zeros(2, "i4,f8")], "x[0]['f0'] = 1"),
    ([np.rec.array([(1, 2.0)])], "x[0].f0[0] = 5"),
    ([pd.DataFrame({"a": [1.0, 2]})], "x[0].iloc[0, 0] = 9"),
    ({"s": pd.Series([1, 2])}, "x['s'].name = 'n'"),
    ([pa.array([1])], "x[0] = x[0][:0]"),
    ([pd.Categorical(["a", "b"])], "x[0][0] = 'b'"),
    ([pd.array([1, None])], "x[0][0] = 2"),
    (deque([1, [2]]), "x[1].append(3)"),
    (deque([1, 2]), "x.rotate()"),
    (deque([1, 2], 2), "x.append(1); x.append(2); x.append(2)"),
    (OrderedDict(a=1, b=2), "x.move_to_end('a')"),
    (OrderedDict(a=[1]), "x['a'].append(2)"),
    (Counter("ab"), "x.update('a')"),
    (Counter("ab"), "x['c'] += 0"),
    (defaultdict(list), "x['a']"),
    (defaultdict(list, a=[1]), "x.default_factory = set"),
    (defaultdict(list, a=[1]), "x['a'].append(1)"),
    ([deque([np.zeros(3)])], "x[0][0][1] = 1"),
]


@pytest.mark.parametrize(("value", "text"), CONTAINERS)
def test_no_edit_of_a_container_is_missed(value, text):
    print_of = Fingerprint(value)
    assert not print_of.changed()
    statement(text)(value)
    assert print_of.changed()


POLARS_EDITS = [
    "x[0, 'a'] = 9",
    "x[0, 's'] = 'edited'",
    "x.columns = ['b', 't']",
    "x.insert_column(0, x['a'].alias('new'))",
    "x.replace_column(0, x['a'] * 2)",
    "x.drop_in_place('a')",
    "x.extend(x.clone())",
    "x.vstack(x.clone(), in_place=True)",
    "x[1, 0] = 7",
]


@pytest.mark.parametrize("text", POLARS_EDITS)
@pytest.mark.parametrize("nested", [False, True])
def test_no_edit_of_a_polars_frame_is_missed(text, nested):
    pl = pytest.importorskip("polars")
    value = decoded(pl.DataFrame({"a": [1, 2, 3], "s": ["x", None, "y" * 40]}))
    print_of = Fingerprint([value] if nested else value)
    assert not print_of.changed()
    statement(text)(value)
    assert print_of.changed()


def test_no_edit_of_a_polars_series_is_missed():
    pl = pytest.importorskip("polars")
    for edit in ("x[0] = 9", "x.append(x.clone())", "x.extend(x.clone())", "x.scatter(1, 5)"):
        value = decoded(pl.Series("n", [1, 2, 3]))
        print_of = Fingerprint(value)
        assert not print_of.changed()
        statement(edit)(value)
        assert print_of.changed(), edit


@pytest.mark.parametrize(
    "kind", ["Categorical", "Enum", "List", "Struct", "Decimal", "Date", "Null"]
)
def test_an_unchanged_polars_frame_is_unchanged(kind):
    pl = pytest.importorskip("polars")
    values, dtype = {
        "Categorical": (["u", "v", None], pl.Categorical()),
        "Enum": (["u", "v", None], pl.Enum(["v", "u"])),
        "List": ([["a"], None], pl.List(pl.Categorical())),
        "Struct": ([{"a": "x"}, {"a": None}], pl.Struct({"a": pl.String()})),
        "Decimal": ([1, None], pl.Decimal(10, 2)),
        "Date": ([None], pl.Date()),
        "Null": ([None], pl.Null()),
    }[kind]
    value = decoded(pl.DataFrame({"a": pl.Series(values, dtype=dtype)}))
    print_of = Fingerprint(value)
    assert not print_of.changed()
    value.replace_column(0, pl.Series("a", [None] * len(value), dtype=dtype))
    assert print_of.changed() or kind in ("Null", "Date")


def test_another_type_of_the_same_memory_is_a_change():
    pl = pytest.importorskip("polars")
    value = decoded(pl.DataFrame({"a": pl.Series([1, 2], dtype=pl.Int64)}))
    print_of = Fingerprint(value)
    value.replace_column(0, value["a"].cast(pl.Duration("us")))
    assert print_of.changed()


def test_what_cannot_be_pickled_counts_as_changed():
    assert Fingerprint([lambda: None]).changed()
    with pytest.raises(ValueError, match="no fingerprint"):
        fingerprint([lambda: None])


def test_opaque_types_are_compared_by_identity():
    class Opaque:
        def __reduce__(self):
            raise AssertionError

    inner = Opaque()
    value = [inner]
    print_of = Fingerprint(value, opaque=(Opaque,))
    inner.attribute = 1
    assert not print_of.changed()
    value[0] = Opaque()
    assert print_of.changed()


def test_reading_a_frame_leaves_its_memory_unhashed():
    blob = bytes(100 * 10**6)
    columns = np.frombuffer(blob, "f8").reshape(100, -1)
    value = pd.DataFrame(columns.T, copy=False)
    start = time.perf_counter()
    print_of = Fingerprint(value)
    assert not print_of.changed()
    assert time.perf_counter() - start < 0.05


def test_equal_prints_of_one_value():
    value = {"a": [1, {2}], "b": np.arange(3)}
    assert fingerprint(value) == fingerprint(value)


def test_neither_pandas_nor_polars_is_imported():
    script = (
        "import sys, sqla_datastore.value.fingerprint as f; f.Fingerprint([1]).changed();"
        "assert not {'pandas', 'polars', 'pyarrow'} & {*sys.modules} - {*sys.argv[1:]}"
    )
    # the package itself may import them before; only the module's own share counts
    before = "import sys, sqla_datastore; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", before], capture_output=True, text=True, check=False
    ).stdout.split()
    subprocess.run([sys.executable, "-c", script, *loaded], check=True)
