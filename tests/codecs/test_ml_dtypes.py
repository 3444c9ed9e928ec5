"""Arrays and scalars of the package ml_dtypes come back to the bit."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from sqla_datastore.codecs import codec_named, find_codec
from sqla_datastore.exceptions import UnsupportedFormatError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value
from sqla_datastore.value.equality import equal

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

SCALARS = [
    each
    for each in map(ml_dtypes.__dict__.get, sorted(ml_dtypes.__all__))
    if isinstance(each, type) and issubclass(each, np.generic)
]
BFLOAT = np.dtype(ml_dtypes.bfloat16)
ARRAYS = {
    "every pattern": np.arange(2**16, dtype="u2").view(BFLOAT),
    "2-D": np.arange(6).astype(BFLOAT).reshape(2, 3),
    "Fortran": np.arange(6).astype(BFLOAT).reshape(2, 3).T,
    "strided": np.arange(10).astype(BFLOAT)[::3],
    "0-d": np.array(1.5, BFLOAT),
    "empty": np.zeros((2, 0), BFLOAT),
    "fields": np.ones(2, [("a", BFLOAT), ("b", ml_dtypes.float8_e5m2, (2,))]),
    "records": np.ones(2, [("a", BFLOAT)]).view(np.recarray),
    "masked": np.ma.MaskedArray(np.arange(3).astype(BFLOAT), [0, 1, 0]),
}


def stored(value):
    return decode_value(*encode_value(value))


def assert_same(new, old):
    assert type(new) is type(old)
    if isinstance(old, np.dtype):
        assert (new, repr(new)) == (old, repr(old))
        return
    assert (new.dtype, new.shape) == (old.dtype, old.shape)
    assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_exact(array):
    assert_same(stored(array), array)
    assert_same(stored([array])[0], array)


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda each: each.__name__)
def test_every_type_is_exact(scalar):
    every_byte = np.arange(256, dtype="u1")[: 256 // np.dtype(scalar).itemsize * 8]
    for value in (scalar(1), np.dtype(scalar), np.ones(3, scalar), every_byte.view(scalar)):
        assert_same(stored(value), value)


def test_other_tools_read_the_bytes_of_an_array():
    array = np.arange(6).astype(BFLOAT).reshape(2, 3)
    for dtype in (BFLOAT, np.dtype(ml_dtypes.float8_e5m2)):  # NumPy calls the latter "<f1"
        _, (blob,) = encode_value(array.astype(dtype))
        loaded = np.load(io.BytesIO(blob))
        assert loaded.shape == array.shape
        assert loaded.view(dtype).tolist() == array.tolist()


def test_swapped_bytes_are_refused():
    with pytest.raises(UnsupportedTypeError, match="no rule for dtype"):
        encode_value(np.zeros(2, BFLOAT.newbyteorder()))


def test_equality_is_that_of_the_numbers():
    zeros, nans = np.array([0.0], BFLOAT), np.array([np.nan], BFLOAT)
    assert equal(zeros, -zeros)
    assert not equal(zeros, nans)


def test_a_type_that_the_package_lacks_is_named():
    for name in ("bfloat99", "finfo", "np", "__name__", "version"):
        with pytest.raises(UnsupportedFormatError, match="ml_dtypes; upgrade"):
            decode_value(json.dumps(["numpy.dtype", 1, {"ml_dtype": name}]))


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "from sqla_datastore.testing import decode_value\n"
        "from sqla_datastore import UnsupportedFormatError\n"
        'try: decode_value(\'["numpy.dtype",1,{"ml_dtype":"bfloat16"}]\')\n'
        "except UnsupportedFormatError as err: print(err)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'bfloat16' of ml_dtypes; install that" in run.stdout


def test_description():
    _, _, node = json.loads(encode_value(ARRAYS["2-D"])[0])
    about = codec_named("numpy.array").describe(node)
    assert (about.dtype, about.shape, about.nbytes) == ("bfloat16", (2, 3), 12)


class TestConformance(CodecSuite):
    @pytest.fixture(params=[*ARRAYS, "scalar", "dtype"])
    def values(self, request):
        more = {"scalar": ml_dtypes.float8_e4m3fn(2), "dtype": BFLOAT}
        return [{**ARRAYS, **more}[request.param]]

    @pytest.fixture
    def codec(self, values):
        return find_codec(values[0])

    def assert_same(self, back, value):
        assert_same(back, value)
