"""The examples in the package's docstrings show what happens."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import io
import pkgutil

import pytest

import sqla_datastore

# those of the package that is imported, which is not the tree's where a wheel is tested
NAMES = [
    found.name
    for found in pkgutil.walk_packages(sqla_datastore.__path__, "sqla_datastore.")
    if not found.name.endswith("__main__")
]
# the module of an optional library is imported where that is installed
OPTIONAL = {
    f"sqla_datastore.{module}": library
    for module, library in {
        "admin.sqladmin": "sqladmin",
        "admin.starlette_admin": "starlette_admin",
        "codecs.geopandas": "geopandas",
        "codecs.pillow": "PIL",
        "codecs.scipy": "scipy",
        "codecs.torch": "torch",
        "codecs.xarray": "xarray",
        "value.pydantic_schema": "pydantic_core",
    }.items()
} | {"sqla_datastore.browsing.app": "starlette"}
MODULES = [
    sqla_datastore,
    *(
        importlib.import_module(name)
        for name in NAMES
        if name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name]) is not None
    ),
]
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder().find(module)
    if test.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = io.StringIO()
    assert doctest.DocTestRunner().run(EXAMPLES[name], out=report.write).failed == 0, (
        report.getvalue()
    )


def test_public_names_have_examples():
    assert {name.rpartition(".")[2] for name in EXAMPLES} >= {"DataStore", "inspect"}
