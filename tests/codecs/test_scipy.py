"""Sparse matrices and arrays come back in their format, and nothing is followed out of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

pytestmark = pytest.mark.libraries

sp = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")

FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]
TYPES = {
    f"{form}_{kind}": getattr(sp, f"{form}_{kind}")
    for form in FORMATS
    for kind in ("array", "matrix")
}
DENSE = np.array([[0, 1.5, 0, 0], [-2, 0, 0, 3], [0, 0, 0, 0], [4, 0, np.nan, 0]])


def stored(value):
    return decode_value(*encode_value(value))


def parts_of(value):
    """Return the arrays that make up a value, by their public names."""
    if value.format == "dok":
        return dict(sorted(value.items()))
    if value.format == "lil":
        return {"rows": value.rows.tolist(), "data": value.data.tolist()}
    others = ("data", "indices", "indptr")
    names = {"coo": ("data", "coords"), "dia": ("data", "offsets")}.get(value.format, others)
    return {name: getattr(value, name) for name in names}


def assert_same(new, old):
    assert type(new) is type(old)
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
    if old.format in ("dok", "lil"):
        np.testing.assert_equal(parts_of(new), parts_of(old))
        return
    for mine, its in zip(parts_of(new).values(), parts_of(old).values(), strict=True):
        arrays = [each if type(each) is tuple else (each,) for each in (mine, its)]
        for one, other in zip(*arrays, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


class TestSparseCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("scipy.sparse")

    @pytest.fixture(params=TYPES)
    def values(self, request):
        return [TYPES[request.param](DENSE), TYPES[request.param]((2, 3), dtype="i1")]

    def assert_same(self, back, value):
        assert_same(back, value)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i8", "f4", "f8", "g", "F", "D"])
def test_every_type_and_dtype_is_exact(kind, dtype):
    value = TYPES[kind](np.nan_to_num(DENSE).astype(dtype))
    assert_same(stored(value), value)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_degenerate_shapes_are_exact(kind, shape):
    value = TYPES[kind](np.zeros(shape))
    assert_same(stored(value), value)


@pytest.mark.parametrize("kind", ["coo_array", "csr_array", "dok_array"])
def test_one_dimension_is_exact(kind):
    for dense in (np.array([0, 1, 0, 2]), np.zeros(3)):
        value = TYPES[kind](dense)
        assert_same(stored(value), value)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays("f8", hnp.array_shapes(min_dims=2, max_dims=2, max_side=6, min_side=0)),
    st.sampled_from(sorted(TYPES)),
)
def test_any_matrix_is_exact(dense, kind):
    value = TYPES[kind](dense)
    assert_same(stored(value), value)


def unordered():
    return sp.csr_array(([1.0, 2.0, 0.0, 3.0], [2, 0, 1, 1], [0, 2, 4]), shape=(2, 3))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_zeros_duplicates_and_order_survive(kind):
    value = unordered() if kind == "csr" else getattr(unordered(), f"to{kind}")()
    assert_same(stored(value), value)
    assert stored(value).nnz == value.nnz


def test_explicit_zeros_survive_in_dicts_and_lists():
    lists = sp.lil_array((2, 2))
    lists.rows[0], lists.data[0] = [1], [0.0]
    dicts = sp.coo_array(([0.0, 2.0], ([1, 0], [1, 0])), shape=(2, 2)).todok()
    assert stored(lists).nnz == 1
    assert stored(dicts).nnz == 2
    assert_same(stored(dicts), dicts)


def test_wide_indices_stay_wide():
    value = sp.csr_array(DENSE)
    value.indices, value.indptr = value.indices.astype("i8"), value.indptr.astype("i8")
    assert stored(value).indices.dtype == np.int64
    wide = sp.coo_array(([1], ([2**40], [2**41])), shape=(2**45, 2**45))
    assert_same(stored(wide), wide)


def test_room_for_more_items_is_not_stored():
    value = sp.csr_array(DENSE)
    value.data, value.indices = np.resize(value.data, 10**5), np.resize(value.indices, 10**5)
    assert sum(map(len, encode_value(value)[1])) < 5_000
    np.testing.assert_array_equal(stored(value).toarray(), DENSE)


def test_numbers_in_order_are_read_only_and_those_out_of_order_are_copies():
    with pytest.raises(ValueError, match="read-only"):
        stored(sp.csr_array(DENSE))[0, 1] = 9
    value = stored(unordered())
    np.testing.assert_array_equal((value @ np.eye(3)), unordered().toarray())
    value.sum_duplicates()
    value[0, 0] = 9
    assert value[0, 0] == 9


EDITS = {
    "item of a dict": ("dok", lambda m: m.__setitem__((0, 0), 7)),
    "item of a list": ("lil", lambda m: m.__setitem__((0, 0), 7)),
    "other data": ("csc", lambda m: setattr(m, "data", m.data * 2)),
    "another shape": ("coo", lambda m: m.resize(2, 2)),
    "other offsets": ("dia", lambda m: setattr(m, "offsets", m.offsets[::-1])),
}


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize(("form", "edit"), EDITS.values(), ids=EDITS)
def test_an_edit_is_noticed(storage, form, edit):
    ds = DataStore(m=TYPES[f"{form}_array"](DENSE))
    store(ds, storage)
    fresh = reloaded(ds, storage)
    assert not (fresh.m.sum() and fresh._scan())
    edit(fresh.m)
    assert fresh._scan()
    after = fresh.m.toarray()
    store(fresh, storage)
    np.testing.assert_array_equal(reloaded(fresh, storage).m.toarray(), after)


@pytest.mark.parametrize("kind", TYPES)
def test_equality_is_that_of_content(kind):
    make = lambda scale: TYPES[kind](DENSE * scale)  # noqa: E731
    assert DataStore(m=make(1)) == DataStore(m=make(1))
    assert DataStore(m=make(1)) != DataStore(m=make(2))
    assert DataStore(m=make(1)) != DataStore(m=DENSE)
    other = "csr_array" if kind != "csr_array" else "csc_array"
    assert DataStore(m=make(1)) != DataStore(m=TYPES[other](DENSE))


def forged(value, **parts):
    """Return the node and blobs of a value with other arrays in it."""
    text, blobs = encode_value(value)
    name, version, node = json.loads(text)
    for part, array in parts.items():
        its_text, its_blobs = encode_value(array)
        node["parts"][part.replace("_", ".")] = {
            **json.loads(its_text)[2],
            "blob": len(blobs),
        }
        blobs += its_blobs
    return name, version, node, blobs


i4 = lambda *items: np.array(items, "i4")  # noqa: E731
HOSTILE = {
    "an index beyond": ("csr", {"indices": i4(1, 0, 2**30, 0, 2)}),
    "an index before": ("csr", {"indices": i4(1, 0, -5, 0, 2)}),
    "a row that ends beyond": ("csr", {"indptr": i4(0, 1, 3, 3, 99)}),
    "a row that ends before": ("csr", {"indptr": i4(0, 3, 1, 3, 5)}),
    "a first row that begins later": ("csr", {"indptr": i4(1, 1, 3, 3, 5)}),
    "too few rows": ("csr", {"indptr": i4(0, 5)}),
    "no rows": ("csr", {"indptr": i4()}),
    "indices in two dimensions": ("csr", {"indices": np.zeros((5, 1), "i4")}),
    "indices that are floats": ("csr", {"indices": np.zeros(5)}),
    "indices of another width": ("csr", {"indices": np.zeros(5, "i8")}),
    "half precision": ("csr", {"data": np.zeros(5, "f2")}),
    "texts": ("csr", {"data": np.zeros(5, "S8")}),
    "swapped bytes": ("csr", {"data": np.zeros(5, ">f8")}),
    "too few numbers": ("csr", {"data": np.zeros(4)}),
    "a coordinate beyond": ("coo", {"coords_1": i4(1, 0, 3, 0, 4)}),
    "a coordinate before": ("coo", {"coords_0": i4(-1, 1, 1, 3, 3)}),
    "too few coordinates": ("coo", {"coords_0": i4(0)}),
    "another axis": ("coo", {"coords_2": i4(0, 1, 1, 3, 3)}),
    "an offset beyond": ("dia", {"offsets": i4(-3, -1, 1, 2**31 - 1)}),
    "an offset twice": ("dia", {"offsets": i4(-3, 1, 1, 2)}),
    "a block of nothing": ("bsr", {"data": np.zeros((3, 0, 2))}),
    "blocks that do not fit": ("bsr", {"data": np.zeros((3, 3, 3))}),
    "keys out of order": ("dok", {"coords_0": np.array([3, 1, 1, 0, 3])}),
    "the same key twice": ("dok", {f"coords_{axis}": np.zeros(5, "i8") for axis in (0, 1)}),
    "rows out of order": ("lil", {"indices": np.array([1, 3, 0, 0, 2])}),
}


@pytest.mark.parametrize(("form", "parts"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_nothing_is_followed_out_of_an_array(form, parts, kind):
    name, version, node, blobs = forged(TYPES[f"{form}_{kind}"](DENSE), **parts)
    with pytest.raises(DamagedObjectError):
        decode_value(json.dumps([name, version, node]), blobs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [[2**61, 2**61], [2**40, 4], [4, 2**40], ["0x1" + "0" * 40, 4]])
def test_a_shape_that_nothing_backs_takes_no_memory(kind, shape):
    name, version, node, blobs = forged(TYPES[kind](DENSE))
    node["shape"] = shape
    try:
        value = decode_value(json.dumps([name, version, node]), blobs)
    except DamagedObjectError:
        return
    assert value.nnz <= 16


def test_rows_that_few_bytes_stand_for_are_refused():
    many = sp.csr_array((2**18 + 1, 2))
    with pytest.raises(UnsupportedTypeError, match=r"tocsr\(\)"):
        encode_value(many.tolil())
    assert_same(stored(many.tolil().tocsr()), many.tolil().tocsr())
    name, version, node, blobs = forged(sp.lil_array((3, 2)), indptr=np.zeros(2**18 + 2, "i8"))
    node["shape"] = [2**18 + 1, 2]
    with pytest.raises(DamagedObjectError, match="too many rows"):
        decode_value(json.dumps([name, version, node]), blobs)


def test_what_could_not_be_read_is_refused_when_it_is_stored():
    broken = sp.csr_array(DENSE)
    broken.indices = broken.indices + 100
    with pytest.raises(UnsupportedTypeError, match="an index is outside its shape"):
        encode_value(broken)


@pytest.mark.parametrize("kind", TYPES)
def test_description(kind):
    about = codec_named("scipy.sparse").describe(json.loads(encode_value(TYPES[kind](DENSE))[0])[2])
    assert (about.type, about.dtype, about.shape) == (f"scipy.sparse.{kind}", "float64", (4, 4))
