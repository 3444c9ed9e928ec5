"""The public names `check`, `drain`, `gc`, `move` and `usage` mean functions, not modules."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["", ".check", ".drain", ".gc", ".move", ".usage"])
def test_names_mean_functions_whatever_is_imported_first(first):
    code = (
        "import importlib\n"
        f"importlib.import_module('sqla_datastore.maintenance{first}')\n"
        "from sqla_datastore import maintenance\n"
        "for name in ('check', 'drain', 'gc', 'move', 'usage'):\n"
        "    importlib.import_module(f'sqla_datastore.maintenance.{name}')\n"
        "    assert callable(getattr(maintenance, name)), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
