"""Codecs are found by exact type, loaded when needed, and told apart by name."""

from __future__ import annotations

import collections
import dataclasses
import enum
import subprocess
import sys
import threading
import uuid
import warnings

import numpy as np
import pytest

from sqla_datastore.codecs import (
    Description,
    _Registry,
    codec_named,
    find_codec,
    register_codec,
)
from sqla_datastore.codecs.advice import advice

LIBRARIES = [
    *("numpy", "pandas", "pyarrow", "polars"),
    *("geopandas", "shapely", "PIL", "scipy", "torch", "xarray"),
]


class Celsius(float):
    pass


class Temperature:
    pass


def a_codec(name: str, *types: type, takes=lambda value: False):
    class Its:
        version = 1
        mutable = False

        def types(self):
            return types

        def takes(self, value):
            return takes(value)

        def encode(self, value, encoder):
            return None

        def decode(self, node, version, decoder):
            return None

        def describe(self, node):
            return Description("its")

    Its.name = name
    return Its()


def test_importing_the_registry_imports_no_library():
    code = (
        "import sys, sqla_datastore.codecs as c; c.find_codec(1); c.find_codec([1]);"
        f"print({{*{LIBRARIES}}} & {{*sys.modules}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_value_loads_only_its_own_library():
    code = (
        "import sys, numpy, sqla_datastore.codecs as c; assert c.find_codec(numpy.zeros(1)).name;"
        f"print({{*{LIBRARIES}}} - {{'numpy'}} & {{*sys.modules}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "plain.int"),
        ([], "plain.list"),
        (uuid.UUID(int=0), "plain.uuid"),
        (np.zeros(1), "numpy.array"),
        (np.float64(1), "numpy.scalar"),
        (np.dtype("f8"), "numpy.dtype"),
        (np.rec.array([(1,)], dtype=[("a", int)]), "numpy.recarray"),
    ],
)
def test_a_codec_is_found_by_exact_type_and_by_name(value, name):
    assert find_codec(value).name == name
    assert codec_named(name) is find_codec(value)


def a_chararray():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5
        return np.array(["a"]).view(np.char.chararray)


@pytest.mark.parametrize(
    ("value", "what_to_do"),
    [
        (Celsius(1), "store float(value)"),
        (collections.UserDict(), "store dict(value)"),
        (collections.namedtuple("Point", "x y")(1, 2), "register_namedtuple(Point)"),
        (np.zeros((1, 1)).view(np.matrix), "store numpy.asarray(value)"),
        (a_chararray(), "store numpy.asarray(value)"),
        (enum.Enum("Color", "RED").RED, "register_enum(Color)"),
        (dataclasses.make_dataclass("Run", ["n"])(1), "dataclasses.asdict"),
        (len, "code is never stored"),
        (Temperature(), "register_codec"),
        (memoryview(b""), "store bytes(value)"),
    ],
)
def test_what_would_lose_its_type_is_refused_with_advice(value, what_to_do):
    assert find_codec(value) is None
    assert what_to_do in advice(value)


@pytest.mark.parametrize("name", ["nothing", "plain.nothing", "numpy.nothing", "", ".", "__init__"])
def test_an_unknown_name_is_a_key_error(name):
    with pytest.raises(KeyError):
        codec_named(name)


@pytest.mark.parametrize("name", ["numpy.mine", "pandas", "plain.int"])
def test_reserved_names_are_refused(name):
    with pytest.raises(ValueError, match="reserved"):
        register_codec(a_codec(name))


def test_a_taken_name_and_a_taken_type_are_refused():
    registry = _Registry()
    registry.register(a_codec("shop.temperature", Temperature))
    with pytest.raises(ValueError, match=r"'shop\.temperature' is taken"):
        registry.register(a_codec("shop.temperature"))
    with pytest.raises(ValueError, match=r"'Temperature' is taken by codec 'shop\.temperature'"):
        registry.register(a_codec("shop.other", Temperature))
    with pytest.raises(KeyError):
        registry.named("shop.other")


@pytest.mark.parametrize("loaded_before", [True, False])
def test_a_registered_type_wins_over_ours_whatever_came_first(loaded_before):
    registry = _Registry()
    if loaded_before:
        assert registry.find(np.zeros(1)).name == "numpy.array"
    mine = a_codec("shop.array", np.ndarray)
    registry.register(mine)
    assert registry.find(np.zeros(1)) is mine
    assert registry.named("numpy.array").name == "numpy.array"


def test_the_codec_registered_last_is_asked_first():
    registry = _Registry()
    registry.register(a_codec("shop.first", takes=lambda value: isinstance(value, Temperature)))
    registry.register(a_codec("shop.last", takes=lambda value: isinstance(value, Temperature)))
    assert registry.find(Temperature()).name == "shop.last"
    assert registry.find(object()) is None


def test_threads_that_load_a_module_at_once_add_it_once():
    registry, barrier, found = _Registry(), threading.Barrier(8), []

    def look():
        barrier.wait()
        found.append(registry.find(np.zeros(1)))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {codec.name for codec in found} == {"numpy.array"}
    names = [codec.name for codec in registry._built_in]
    assert len(names) == len(set(names))


SCRIPTS = {
    "scipy": "import scipy.sparse; value = scipy.sparse.eye(2).tocsr()",
    "PIL": "from PIL import Image; value = Image.new('L', (1, 1))",
    "torch": "import torch; value = torch.zeros(1)",
    "xarray": "import xarray; value = xarray.DataArray(1)",
    "geopandas": "import geopandas; value = geopandas.GeoSeries([])",
}


@pytest.mark.parametrize("library", SCRIPTS)
def test_an_optional_library_brings_no_other(library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    code = (
        f"import sys; {SCRIPTS[library]}; before = {{*sys.modules}}\n"
        "import sqla_datastore.codecs as c; assert c.find_codec(value) is not None\n"
        f"print({{*{LIBRARIES}}} - {{'numpy', 'pandas', 'pyarrow'}} & {{*sys.modules}} - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("prefix", ["geopandas", "pillow", "scipy", "torch", "xarray"])
def test_a_library_that_is_not_installed_is_named(prefix):
    code = (
        "import sys\n"
        f"for name in {LIBRARIES[4:]}: sys.modules[name] = None\n"
        "from sqla_datastore.codecs import codec_named\n"
        f"try: codec_named('{prefix}.x')\n"
        "except ImportError as err: print(err)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"pillow": "PIL"}.get(prefix, prefix) in run.stdout
