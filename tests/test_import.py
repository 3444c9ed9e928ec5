"""Importing the package is cheap, and its names are where they should be."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sqla_datastore

HEAVY = [
    *("numpy", "pandas", "pyarrow", "alembic", "obstore", "fsspec", "asyncio", "polars"),
    *("scipy", "xarray", "geopandas", "shapely", "PIL", "torch"),
    *("rich", "starlette", "jinja2", "uvicorn"),
]

SCRIPT = """
import gc, json, sys, time
# whose turn it is to collect the whole heap is chance, and takes as long as all of our imports
gc.disable()
begin = time.perf_counter()
import sqlalchemy.orm
before = set(sys.modules)
start = time.perf_counter()
import sqla_datastore
ratio = (time.perf_counter() - start) / (start - begin)
new = set(sys.modules) - before
print(json.dumps({"ratio": ratio, "modules": sorted(new)}))
"""


def run(script: str) -> dict:
    root = Path(sqla_datastore.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root
    )
    return json.loads(done.stdout)


def test_imports_none_of_the_heavy_libraries():
    found = {name.partition(".")[0] for name in run(SCRIPT)["modules"]}
    assert found.isdisjoint(HEAVY)


def test_costs_less_than_a_quarter_of_what_sqlalchemy_costs():
    assert any(run(SCRIPT)["ratio"] < 0.25 for _ in range(5))


def test_imports_nothing_of_what_only_some_use():
    ours = {name for name in run(SCRIPT)["modules"] if name.startswith("sqla_datastore.")}
    rooms = {name.split(".")[1] for name in ours}
    assert rooms.isdisjoint({"typed", "tables", "browsing", "admin", "cli", "orm", "maintenance"})
    storages = {"fsspec_storage", "object_storage", "cache", "cache_folder"}
    assert ours.isdisjoint(f"sqla_datastore.storage.{name}" for name in storages)


def test_the_column_type_imports_none_of_them_either():
    found = run(SCRIPT.replace("import sqla_datastore\n", "from sqla_datastore import *\n"))
    modules = {name.partition(".")[0] for name in found["modules"]}
    assert modules.isdisjoint(HEAVY)


def test_all_is_sorted_and_complete():
    assert sqla_datastore.__all__ == sorted(sqla_datastore.__all__)
    assert all(getattr(sqla_datastore, name) is not None for name in sqla_datastore.__all__)
    assert set(sqla_datastore.__all__) <= set(dir(sqla_datastore))


def test_the_option_object_hides_its_module():
    import sqla_datastore.options

    assert type(sqla_datastore.options).__name__ == "Options"


def test_version():
    assert sqla_datastore.__version__ == importlib.metadata.version("sqla_datastore")


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sqla_datastore.nonsense
