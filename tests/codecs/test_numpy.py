"""NumPy values come back with dtype, order and bits; hostile nodes raise one error."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.toys import MemoryReader, MemoryWriter

from sqla_datastore.codecs import codec_named, find_codec
from sqla_datastore.codecs._dtypes import dtype_node
from sqla_datastore.codecs.numpy import CODECS
from sqla_datastore.exceptions import (
    DamagedObjectError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.format import Container, plan
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

NUMPY_2 = hasattr(np.dtypes, "StringDType")
needs_numpy_2 = pytest.mark.skipif(not NUMPY_2, reason="StringDType came with NumPy 2")


OURS = (DamagedObjectError, UnsupportedFormatError)


def round_trip(value):
    return decode_value(*encode_value(value))


def planned(value):
    return plan({"entry": value}, nested_entries=dict).objects[0]


def opened(value, maps=False):
    """Return an object of one entry, and the memory that it lies in."""
    writer = MemoryWriter()
    planned(value).write(writer)
    reader = MemoryReader(writer.data, maps=maps)
    return Container.open(reader, "file:///a.zip", nested=int), writer.data


def assert_same_dtype(ours, theirs):
    """Compare what `==` does not: nested alignment, titles, metadata, the scalar type."""
    assert ours == theirs
    assert (ours.str, ours.itemsize, ours.isalignedstruct) == (
        theirs.str,
        theirs.itemsize,
        theirs.isalignedstruct,
    )
    assert dict(ours.metadata or {}) == dict(theirs.metadata or {})
    assert ours.type is theirs.type
    if ours.subdtype is not None:
        assert_same_dtype(ours.subdtype[0], theirs.subdtype[0])
    for name in ours.names or ():
        assert ours.fields[name][1:] == theirs.fields[name][1:]
        assert_same_dtype(ours.fields[name][0], theirs.fields[name][0])


def leaves(array):
    """Yield the arrays of fields without fields; padding is not compared."""
    if array.dtype.names is None:
        yield array
    for name in array.dtype.names or ():
        yield from leaves(array[name])


def bits(array):
    if array.dtype.char not in "gG" or np.finfo("g").nmant != 63:
        return array.tobytes()
    parts = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, np.dtype("g").itemsize)
    swapped = array.dtype.str[0] == ">"
    return (parts[:, -10:] if swapped else parts[:, :10]).tobytes()  # the rest is padding


def assert_exact(value, back=None):
    back = round_trip(value) if back is None else back
    assert type(back) is type(value)
    assert_same_dtype(back.dtype, value.dtype)
    assert back.shape == value.shape
    ours, theirs = leaves(np.asarray(back)), leaves(np.asarray(value))
    assert [bits(leaf) for leaf in ours] == [bits(leaf) for leaf in theirs]


plain_dtypes = hnp.scalar_dtypes() | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes()
plain_dtypes |= st.sampled_from(
    ["g", ">g", "G", ">G", "V5", "S0", "U0", "V0", ">U3", "M8", "M8[25s]", ">m8[7D]", "m8"]
).map(np.dtype)


def maybe_subarray(draw, dtype):
    if not dtype.itemsize or draw(st.booleans()):
        return dtype
    return np.dtype((dtype, draw(hnp.array_shapes(max_dims=2, max_side=2))))


@st.composite
def structures(draw, inner):
    """Draw structured dtypes: packed or aligned, with gaps, titles and subarrays."""
    names = draw(
        st.lists(
            st.text(min_size=1, max_size=4).filter(is_utf8), min_size=1, max_size=3, unique=True
        )
    )
    formats = [maybe_subarray(draw, draw(inner)) for _ in names]
    titles = [f"title of {name}" if draw(st.booleans()) else None for name in names]
    spec = {"names": names, "formats": formats, "titles": titles}
    align = draw(st.booleans())
    if not align:
        sizes = [form.itemsize for form in formats]
        gaps = [draw(st.integers(0, 3)) for _ in names]
        ends = np.cumsum([size + gap for size, gap in zip(sizes, gaps, strict=True)])
        spec["offsets"] = [int(end) - size for end, size in zip(ends, sizes, strict=True)]
        spec["itemsize"] = int(ends[-1]) + draw(st.integers(0, 3))
    dtype = np.dtype(spec, align=align)
    return np.dtype((np.record, dtype)) if draw(st.booleans()) else dtype


def is_utf8(text):
    return not any("\ud800" <= character <= "\udfff" for character in text)


dtypes = st.recursive(plain_dtypes, structures, max_leaves=5)


@st.composite
def arrays(draw, dtypes=dtypes):
    """Draw arrays of any bits and any layout: C, Fortran, transposed, strided, reversed."""
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nbytes = int(np.prod(shape)) * dtype.itemsize
    array = np.ndarray(shape, dtype, bytearray(generator.bytes(nbytes)))
    for leaf in leaves(array):
        if leaf.dtype.kind in "bU" and leaf.dtype.itemsize:
            leaf[...] = leaf.dtype.type(draw(st.sampled_from(["", "a", "é\U0001f600"])))
    layout = draw(st.sampled_from(["C", "F", "T", "sliced", "reversed", "swapped"]))
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "T":
        return array.T
    if layout == "sliced":
        return array[(..., *[slice(None, None, 2)] * array.ndim)]
    if layout == "reversed":
        return array[(..., *[slice(None, None, -1)] * array.ndim)]
    return array.swapaxes(0, 1) if layout == "swapped" and array.ndim > 1 else array


@given(arrays())
def test_every_array_comes_back_as_it_was(array):
    assert_exact(array)


@given(arrays())
def test_record_arrays_come_back_as_they_were(array):
    assert_exact(array.view(np.recarray))


@given(arrays(plain_dtypes))
def test_a_npy_blob_is_what_numpy_saves(array):
    _, (blob,) = encode_value(array)
    if not array.itemsize:
        return
    loaded = np.load(io.BytesIO(blob), allow_pickle=False)
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert loaded.tobytes() == array.tobytes()


@given(arrays(dtypes.filter(lambda dtype: dtype.itemsize)))
def test_the_blob_is_named_for_what_it_is(array):
    entry = opened(array)[0].entry("entry")
    node = json.loads(entry.node)[2]
    _, (data,) = encode_value(array)
    blob = entry.blobs[node["blob"]]
    assert blob.nbytes == len(data)
    assert node["start"] % 64 == 0
    if blob.suffix == ".npy":
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        assert loaded.shape == array.shape
        assert loaded.dtype.names == array.dtype.names


@given(dtypes)
def test_dtypes_are_values_too(dtype):
    assert_same_dtype(round_trip(dtype), dtype)


@given(arrays())
def test_every_scalar_comes_back_as_it_was(array):
    for scalar in array.reshape(-1)[:2]:
        if isinstance(scalar, np.generic):
            assert_exact(scalar)


def assert_same_mask(array, back):
    assert_exact(array.data, back.data)
    assert (back.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
    assert_exact(np.ma.getmaskarray(array), np.ma.getmaskarray(back))
    assert back.hardmask == array.hardmask
    assert (
        back._fill_value is None
        if array._fill_value is None
        else back.fill_value == array.fill_value
    )


@given(arrays(plain_dtypes.filter(lambda dtype: dtype.itemsize)), st.data())
def test_masked_arrays_come_back_as_they_were(array, data):
    mask = data.draw(st.none() | hnp.arrays(bool, array.shape))
    hard = data.draw(st.booleans())
    masked = np.ma.MaskedArray(array, np.ma.nomask if mask is None else mask, hard_mask=hard)
    back = round_trip(masked)
    assert type(back) is np.ma.MaskedArray
    assert_same_mask(masked, back)


def test_masks_of_fields_and_fill_values_come_back():
    array = np.ma.MaskedArray([(1, 2.5)] * 2, [(0, 1), (1, 0)], [("a", "i4"), ("b", "f8")])
    assert_same_mask(array, round_trip(array))
    array.fill_value = (7, 8.5)
    assert_same_mask(array, round_trip(array))
    filled = np.ma.MaskedArray([1.0], fill_value=np.inf)
    assert round_trip(filled).fill_value == np.inf
    unfilled = round_trip(np.ma.MaskedArray([1.5], [True]))
    assert unfilled.astype("i4").fill_value == np.ma.MaskedArray([1], dtype="i4").fill_value


@pytest.mark.parametrize("dtype", ["m8", "M8", "m8[3h]", "f2", "V0", "U1"])
def test_what_numpy_makes_up_to_fill_with_need_not_fit(dtype):
    array = np.ma.MaskedArray(np.ndarray(2, dtype, bytes(16)), [True, False])
    assert array.fill_value is not None
    assert array._fill_value is not None  # kept: "?", 1e20, "???", "N/A"
    back = round_trip(array)
    assert_exact(array.data, back.data)
    assert back.mask.tolist() == array.mask.tolist()


def test_a_structure_that_numpy_cannot_mask_is_damage():
    array = np.ma.MaskedArray(np.zeros(2, [("a", "i8")]), [(True,), (False,)])
    text, blobs = encode_value(array)
    with pytest.raises(DamagedObjectError, match="cannot be masked"):
        decode_value(text.replace("<i8", "<m8"), blobs)


def test_a_masked_subclass_of_ndarray_is_refused():
    with pytest.raises(UnsupportedTypeError, match="masks a subclass"):
        encode_value(np.ma.MaskedArray(np.zeros((1, 1)).view(np.matrix)))


NOT_A_TIME = np.array([-(2**63)])  # viewed, because NumPy 2.5 deprecates to make times of no unit
ALIGNED = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"]}, align=True)
SPECIAL = {
    "aligned": np.zeros(3, ALIGNED),
    "aligned record": np.zeros(3, np.dtype((np.record, ALIGNED))),
    "aligned inside packed": np.zeros(3, [("x", "i1"), ("y", ALIGNED, (2,))]),
    "titles": np.zeros(2, [(("A title", "a"), "i4"), ("b", ">f2")]),
    "overlapping fields": np.zeros(
        2, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2]}
    ),
    "unordered fields": np.zeros(
        2, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [2, 0]}
    ),
    "no fields": np.zeros(2, np.dtype([])),
    "no fields but bytes": np.zeros(2, {"names": [], "formats": [], "itemsize": 8}),
    "a name that is not Latin": np.zeros(2, [("δ", "i4")]),
    "a name with quotes": np.zeros(2, [("'\"\\\n", "i4")]),
    "many fields": np.zeros(2, [(f"a long name {number:030}", "i1") for number in range(500)]),
    "metadata": np.zeros(2, np.dtype("i4", metadata={"unit": "m", "n": [1, None]})),
    "metadata of a field": np.zeros(2, [("a", np.dtype("i4", metadata={"unit": "m"}))]),
    "big-endian": np.arange(5, dtype=">f4"),
    "a field of a packed array": np.zeros(300, [("a", "i1"), ("b", "f8")])["b"],
    "broadcast": np.broadcast_to(np.arange(3.0), (400, 3)),
    "without dimensions": np.array(1.5),
    "empty": np.zeros((0, 3, 0)),
    "many dimensions": np.zeros((1,) * 32),
    "NUL inside text": np.array(["a\0b", "\0"]),
    "surrogates": np.array(["\ud800", "\udc00\ud800"]),
    "NaT and units": np.array(["NaT", "2020-01-01"], "M8[3D]"),
    "a date of no unit": NOT_A_TIME.view("M8"),
    "durations of no unit": np.array([5, 7]).view("m8"),
    "payloads of NaN": np.array([0x7FF8DEADBEEF0001, 0xFFF0000000000001], "u8").view("f8"),
    "longdouble": np.array([1, 3], "g") / 3,
    "bool": np.array([[True, False]]),
    "longlong": np.zeros(2, "q"),
}


@pytest.mark.parametrize("array", SPECIAL.values(), ids=SPECIAL)
def test_special_arrays_come_back_as_they_were(array):
    if array.dtype.char == "q":  # widths count, names of C do not
        array = array.astype("i8")
    assert_exact(array)


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("array", SPECIAL.values(), ids=SPECIAL)
def test_the_container_gives_back_the_same(array, maps):
    back = opened(array, maps)[0].load("entry")
    assert_exact(array.astype("i8") if array.dtype.char == "q" else array, back)


SCALARS = {
    "text with NUL": np.str_("a\0"),
    "bytes with NUL": np.bytes_(b"a\0"),
    "empty text": np.str_(""),
    "void": np.void(b"\0a\0"),
    "date": np.datetime64("2020-01-01T00", "3h"),
    "duration": np.timedelta64("NaT", "s"),
    "date of no unit": NOT_A_TIME.view("M8")[0],
    "duration of no unit": NOT_A_TIME.view("m8")[0],
    "longdouble": np.longdouble(1) / 3,
    "clongdouble": np.clongdouble(1j) / 3,
    "bool": np.bool_(True),
    "half": np.float16("nan"),
    "structure": np.zeros(1, ALIGNED)[0],
    "record": np.zeros(1, ALIGNED).view(np.recarray)[0],
}


@pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)
def test_special_scalars_come_back_as_they_were(scalar):
    assert_exact(scalar)
    if isinstance(scalar, str | bytes):
        assert len(round_trip(scalar)) == len(scalar)


@needs_numpy_2
@pytest.mark.parametrize("missing", ["never", "None", "nan", "pandas", "text"])
@pytest.mark.parametrize("coerce", [True, False])
def test_arrays_of_strings_come_back_with_what_is_missing(missing, coerce):
    import pandas

    known = {"None": None, "nan": np.nan, "pandas": pandas.NA, "text": "none"}
    named = {"na_object": known[missing]} if missing in known else {}
    dtype = np.dtypes.StringDType(coerce=coerce, **named)
    items = ["", "a\0b", "é\U0001f600", "x" * 10_000, "none", *named.values()] * 2
    array = np.array(items, dtype=dtype).reshape(2, -1)
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.dtype.coerce is coerce
    assert back.shape == array.shape
    assert not back.flags.writeable
    assert back.tolist() == array.tolist() or missing in {"nan", "pandas"}
    assert [type(item) for item in back.ravel()] == [type(item) for item in array.ravel()]
    assert [str(item) for item in back.ravel()] == [str(item) for item in array.ravel()]


@needs_numpy_2
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_arrays_of_strings_may_be_empty(shape):
    array = np.full(shape, "a", dtype=np.dtypes.StringDType())
    assert round_trip(array).shape == shape
    assert round_trip(array).tolist() == array.tolist()


@needs_numpy_2
def test_a_missing_string_of_another_kind_is_refused():
    with pytest.raises(UnsupportedTypeError, match="na_object"):
        encode_value(np.array(["a"], dtype=np.dtypes.StringDType(na_object=7)))


def test_arrays_are_handed_out_read_only_on_the_blob():
    container, memory = opened(np.arange(10_000.0))
    (blob,) = container.blobs("entry")
    back = container.load("entry")
    assert not back.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.flags.writeable = True
    start = blob.offset + 128
    memory[start : start + 8] = b"\0\0\0\0\0\0\xf0?"
    assert back[0] == 1.0  # the same memory: nothing was copied


@pytest.mark.parametrize(
    "array",
    [np.zeros((4000, 1000)), np.zeros((1000, 4000)).T, np.zeros((8000, 1000))[::2]],
    ids=["C", "F", "strided"],
)
def test_writing_takes_no_copy_of_the_whole(array):
    (payload,) = planned(array).entries[0].payloads
    sizes = []
    tracemalloc.start()
    try:
        payload.write_to(lambda piece: sizes.append(memoryview(piece).nbytes))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) == payload.nbytes > 30_000_000
    assert peak < 3_000_000


REFUSED = {
    "objects": (np.array([None, "a"], object), "store value.tolist"),
    "objects in a field": (np.zeros(1, [("a", object)]), "Python objects"),
    "metadata that JSON cannot hold": (
        np.zeros(1, np.dtype("i4", metadata={"a": object})),
        "metadata",
    ),
    "titles that are no text": (np.zeros(1, [((1.5, "a"), "i4")]), "title of field 'a'"),
    "fields over an integer": (np.zeros(1, np.dtype(("i4", [("a", "i2"), ("b", "i2")]))), "int32"),
    "matrix": (np.zeros((1, 1)).view(np.matrix), "numpy.asarray"),
    "masked objects": (np.ma.MaskedArray(np.array([None])), "Python objects"),
    "no masked items of many bytes": (
        np.ma.array(np.zeros(0, [("a", "V2000000")])),
        "no items, and each would be large",
    ),
    "a dtype of objects in a field": (np.dtype([("a", "O")]), "Python objects"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exact_is_refused(value, message):
    with pytest.raises(UnsupportedTypeError, match=message):
        encode_value(value)


@pytest.mark.parametrize("names", [("\ud800", "b"), (("\ud800", "a"), "b")])
def test_a_name_with_a_surrogate_is_to_be_renamed(names):
    array = np.zeros(2, [(name, "i4") for name in names])
    with pytest.raises(UnsupportedTypeError, match=r"surrogate.*\\ud800.*rename it"):
        encode_value(array)


def node_of(**changes):
    node = {"dtype": "<f8", "shape": [2], "order": "C", "start": 0, "blob": 0} | changes
    return ["numpy.array", 1, node]


def fields_of(*fields, **changes):
    return node_of(dtype={"fields": list(fields), "itemsize": 8, **changes})


def one(name="a", dtype="<f8", offset=0, **more):
    return {"name": name, "dtype": dtype, "offset": offset, **more}


def deep(node, times):
    for _ in range(times):
        node = {"base": node, "shape": []}
    return node


HOSTILE = {
    "shape too large": node_of(shape=[3]),
    "shape too small": node_of(shape=[1]),
    "shape that wraps around": node_of(shape=[2**62, 4]),
    "shape beyond 64 bits": node_of(shape=[2**70, 0]),
    "huge and empty": node_of(shape=[2**62, 4, 0]),
    "negative shape": node_of(shape=[-1]),
    "two negatives": node_of(shape=[-1, -2]),
    "bool shape": node_of(shape=[True, 2]),
    "float shape": node_of(shape=[2.0]),
    "text shape": node_of(shape="2"),
    "no list": node_of(shape=2),
    "too many dimensions": node_of(shape=[1] * 65 + [2]),
    "order": node_of(order="K"),
    "order list": node_of(order=["C"]),
    "start": node_of(start=-8),
    "bool start": node_of(start=True, dtype="|u1", shape=[15]),
    "far start": node_of(start=2**70),
    "no blob": node_of(blob=7),
    "negative blob": node_of(blob=-1),
    "bool blob": node_of(blob=False),
    "objects": node_of(dtype="|O"),
    "objects 8": node_of(dtype="|O8"),
    "comma": node_of(dtype="f4,f4"),
    "repeat": node_of(dtype="2f4"),
    "name": node_of(dtype="float64"),
    "no order": node_of(dtype="f8"),
    "wrong width": node_of(dtype="<f3"),
    "wide text": node_of(dtype="<U9999999999"),
    "wide bytes": node_of(dtype="|S9999999999"),
    "digits of others": node_of(dtype="|S٣"),
    "a line after": node_of(dtype="<f8\n"),
    "zero unit": node_of(dtype="<M8[0s]"),
    "huge unit": node_of(dtype="<M8[9999999999s]"),
    "divided unit": node_of(dtype="<M8[s/3]"),
    "unknown unit": node_of(dtype="<M8[q]"),
    "no dtype": node_of(dtype=None),
    "list dtype": node_of(dtype=["<f8"]),
    "empty dtype": node_of(dtype={}),
    "nothing but nothing": node_of(dtype="|V0", shape=[2**62], blob=1),
    "subarray": node_of(dtype={"base": "<f4", "shape": [2]}),
    "deep dtype": node_of(dtype=deep("<f8", 5000 // 100)),
    "long double elsewhere": node_of(dtype={"longdouble": "<f16", "mantissa_bits": 105}, shape=[1]),
    "long double of nothing": node_of(dtype={"longdouble": "<f8", "mantissa_bits": 63}),
    "metadata": node_of(dtype={"of": "<f8", "metadata": 1}),
    "fields no list": node_of(dtype={"fields": "a", "itemsize": 8}),
    "field no object": fields_of("a"),
    "field outside": fields_of(one(offset=1)),
    "field before": fields_of(one(offset=-8)),
    "bool offset": fields_of(one(dtype="|i1", offset=True)),
    "huge offset": fields_of(one(offset=2**40)),
    "objects inside": fields_of(one(dtype="|O")),
    "same name": fields_of(one(), one()),
    "no name": fields_of(one(name=None)),
    "title is a name": fields_of(one(title="b"), one(name="b")),
    "title no text": fields_of(one(title=[])),
    "misaligned": fields_of(one(offset=1, dtype="<f4"), align=True),
    "small item": fields_of(one(), itemsize=4),
    "huge item": fields_of(one(), itemsize=2**40),
    "negative item": fields_of(itemsize=-1),
    "bool item": fields_of(one(dtype="|i1"), itemsize=True),
    "huge subarray": fields_of(one(dtype={"base": "<f8", "shape": [2**31, 2**31]})),
    "bool of 255": node_of(dtype="|b1", shape=[16], blob=2),
    "bool of 255 in a field": node_of(
        dtype={"fields": [one(dtype="|b1", offset=3)], "itemsize": 8}, blob=2
    ),
    "no code point": node_of(dtype="<U2", shape=[2], blob=2),
    "no code point in a subarray": node_of(
        dtype={"fields": [one(dtype={"base": ">U1", "shape": [2]})], "itemsize": 8}, blob=2
    ),
    "scalar too long": ["numpy.scalar", 1, {"dtype": "<f8", "bytes": "00"}],
    "scalar no code point": ["numpy.scalar", 1, {"dtype": "<U1", "bytes": "ffffffff"}],
    "scalar of a subarray": [
        "numpy.scalar",
        1,
        {"dtype": {"base": "<f4", "shape": [2]}, "bytes": "00" * 8},
    ],
    "text of bytes": ["numpy.str", 1, ["plain.bytes", 1, "00"]],
    "bytes of text": ["numpy.bytes", 1, "00"],
    "mask of another shape": [
        "numpy.masked",
        1,
        {"data": node_of()[2], "mask": node_of(dtype="|b1", shape=[16], blob=1)[2]},
    ],
    "mask of floats": ["numpy.masked", 1, {"data": node_of()[2], "mask": node_of()[2]}],
    "fill of another size": ["numpy.masked", 1, {"data": node_of()[2], "fill": "00"}],
}
BLOBS = [bytes(16), b"", b"\xff" * 16]


@pytest.mark.parametrize("node", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_node_is_damage(node):
    with pytest.raises(OURS):
        decode_value(json.dumps(node), BLOBS)
    assert codec_named(node[0]).describe(node[2]).type


@needs_numpy_2
@pytest.mark.parametrize(
    ("lengths", "text", "changes"),
    [
        ([1], b"", {}),
        ([0], b"a", {}),
        ([-2, 3], b"a", {"shape": [2]}),
        ([-1, 1], b"a", {"shape": [2]}),
        ([2**62, 1 - 2**62], b"a", {"shape": [2]}),
        ([1, 1], "é".encode(), {"shape": [2]}),
        ([1], b"a", {"shape": [2**60]}),
        ([1], b"a", {"shape": [1, 2**62, 0]}),
        ([1], b"a", {"strings": "all"}),
        ([1], b"a", {"strings": 7}),
        ([1], b"a", {"strings": {"text": 7}}),
    ],
)
def test_hostile_strings_are_damage(lengths, text, changes):
    node = {"strings": "never", "coerce": True, "shape": [1], "blob": 0} | changes
    blob = np.array(lengths, "<i8").tobytes() + text
    with pytest.raises(OURS):
        decode_value(json.dumps(["numpy.array", 1, node]), [blob])


scraps = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70) | st.sampled_from([2**31, 2**62, 2**63, 2**64]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["<f8", "|b1", "<U2", "|V0", "C", "F", "|O", "never", ""]),
    st.lists(st.integers(-1, 5), max_size=4),
    st.just({}),
)


def changed(draw, node):
    """Return a node with one thing inside replaced by a scrap."""
    if not node or not isinstance(node, list | dict) or draw(st.integers(0, 5)) == 0:
        return draw(scraps)
    node = copy.copy(node)
    key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = changed(draw, node[key])
    return node


SEEDS = [
    SPECIAL["aligned inside packed"],
    SPECIAL["titles"],
    SPECIAL["metadata"],
    SPECIAL["longdouble"],
    SPECIAL["bool"],
    SPECIAL["big-endian"],
    np.ma.MaskedArray([1, 2], [0, 1], fill_value=3),
    np.str_("a"),
    np.datetime64(5, "D"),
    SPECIAL["many dimensions"].view(np.recarray),
]
if NUMPY_2:
    SEEDS.append(np.array(["a", None], np.dtypes.StringDType(na_object=None)))


@given(st.sampled_from(SEEDS), st.data())
def test_any_change_of_a_node_is_a_value_or_damage(value, data):
    text, blobs = encode_value(value)
    name, version, node = json.loads(text)
    node = changed(data.draw, node)
    with contextlib.suppress(*OURS):
        back = decode_value(json.dumps([name, version, node]), blobs)
        assert getattr(back, "nbytes", 0) <= len(text) * 4 + sum(map(len, blobs)) * 2
    assert codec_named(name).describe(node).type


@given(st.sampled_from(SEEDS), st.data())
def test_any_bytes_of_a_blob_are_a_value_or_damage(value, data):
    text, blobs = encode_value(value)
    noise = [data.draw(st.binary(min_size=len(blob), max_size=len(blob))) for blob in blobs]
    with contextlib.suppress(*OURS):
        repr(decode_value(text, noise))


def test_entries_are_described_from_the_node_alone():
    def described(value):
        name, _, node = json.loads(encode_value(value)[0])
        described = codec_named(name).describe(node)
        return described.type, described.dtype, described.shape

    assert described(np.zeros((2, 3), ">i2")) == ("numpy.ndarray", ">i2", (2, 3))
    assert described(np.float32(1)) == ("numpy.generic", "float32", ())
    assert described(np.ma.MaskedArray([1.5])) == ("numpy.ma.MaskedArray", "float64", (1,))
    assert len(described(SPECIAL["many fields"])[1]) < 300
    for codec in CODECS:
        for node in (None, [], {}, "x", 1, {"dtype": 1, "shape": "x", "data": 5}):
            assert codec.describe(node).type


def test_the_grammar_of_dtypes_is_stable():
    assert dtype_node(np.dtype("<M8[25s]")) == "<M8[25s]"
    assert dtype_node(ALIGNED.newbyteorder("<")) == {
        "fields": [
            {"name": "a", "dtype": "|i1", "offset": 0},
            {"name": "b", "dtype": "<f8", "offset": 8},
        ],
        "itemsize": 16,
        "align": True,
    }


DTYPES = [np.dtype(object), np.dtype("f8"), np.dtype([("a", "i4")])]
if NUMPY_2:
    DTYPES += [
        np.dtypes.StringDType(),
        np.dtypes.StringDType(na_object=None, coerce=False),
        np.dtypes.StringDType(na_object="none"),
    ]


class TestDtypes(CodecSuite):
    """Dtypes as values; some of them no array can be stored with, or by another codec."""

    @pytest.fixture
    def values(self):
        return DTYPES

    @pytest.fixture
    def codec(self):
        return codec_named("numpy.dtype")

    def assert_same(self, back, value):
        assert (back, repr(back)) == (value, repr(value))


def test_dtypes_are_described():
    described = [
        codec_named("numpy.dtype").describe(json.loads(encode_value(each)[0])[2]) for each in DTYPES
    ]
    assert [each.dtype for each in described[:2]] == ["object", "float64"]
    assert {each.dtype for each in described[3:]} <= {"StringDType"}


def test_no_array_of_objects_is_read():
    text, blobs = encode_value(np.zeros(2))
    node = json.loads(text)
    node[2]["dtype"] = "|O"
    with pytest.raises(DamagedObjectError, match="no rule for dtype"):
        decode_value(json.dumps(node), blobs)


class TestConformance(CodecSuite):
    @pytest.fixture(params=range(len(SEEDS)))
    def values(self, request):
        return [SEEDS[request.param]]

    @pytest.fixture
    def codec(self, values):
        return find_codec(values[0])

    def assert_same(self, back, value):
        assert_exact(np.ma.getdata(value), np.ma.getdata(back))
