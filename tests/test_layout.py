"""The tree says what the library does: few modules beside the rooms, one import path per name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import sqla_datastore

PACKAGE = Path(sqla_datastore.__file__).parent
BESIDE_THE_ROOMS = {
    "__init__.py",
    "exceptions.py",
    "options.py",
    "printable.py",
    "py.typed",
    "types.py",
}
# each for its own library, imported where that is installed; they name the same things alike
OPTIONAL = {
    "sqla_datastore.admin.sqladmin": "sqladmin",
    "sqla_datastore.admin.starlette_admin": "starlette_admin",
}
PUBLIC = [
    "sqla_datastore",
    "sqla_datastore.alembic",
    "sqla_datastore.codecs",
    "sqla_datastore.maintenance",
    "sqla_datastore.mltraq",
    "sqla_datastore.storage",
    "sqla_datastore.testing",
    "sqla_datastore.typed",
]
IMPORTABLE = [*PUBLIC, *(name for name in OPTIONAL if importlib.util.find_spec(OPTIONAL[name]))]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names_of(module: str) -> list[str]:
    return importlib.import_module(module).__all__


def assigns_all(path: Path) -> bool:
    names = (
        node.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    return "__all__" in names


def test_at_most_six_files_lie_beside_the_rooms():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} <= BESIDE_THE_ROOMS


def test_every_room_is_a_package():
    rooms = {path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms
    assert all((room / "__init__.py").is_file() for room in rooms)


@pytest.mark.parametrize("module", IMPORTABLE)
def test_public_names_are_sorted_and_there(module):
    names = names_of(module)
    assert names == sorted(set(names))
    assert all(hasattr(importlib.import_module(module), name) for name in names)


def test_a_public_name_has_one_import_path():
    paths: dict[str, list[str]] = {}
    for module in PUBLIC:
        for name in names_of(module):
            paths.setdefault(name, []).append(module)
    assert {name: found for name, found in paths.items() if len(found) > 1} == {}


def test_internal_modules_declare_no_public_names():
    modules = {module_name(path) for path in PACKAGE.rglob("*.py") if assigns_all(path)}
    assert modules == {*PUBLIC, *OPTIONAL}


def test_no_module_is_imported_by_what_it_imports():
    # the contract in pyproject.toml compares siblings; here a package counts as a module, too
    graph = grimp.build_graph("sqla_datastore", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()


def test_the_reference_has_the_public_packages():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"automodule:: ([\w.]+)", page)) == PUBLIC
