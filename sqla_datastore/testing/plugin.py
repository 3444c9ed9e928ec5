"""Fixtures for the tests of applications; name the plugin in ``conftest.py``.

::

    pytest_plugins = ["sqla_datastore.testing.plugin"]

A plugin that registered itself would be imported by each run of pytest in its environment, those of
other projects included. PYTEST_DONT_REWRITE: so it may be imported before, without a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sqla_datastore import options
from sqla_datastore.options import Options
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.binding import ENVIRONMENT_VARIABLE
from sqla_datastore.testing.failing_storage import FailingStorage

_OPTIONS = [name for name, found in vars(Options).items() if isinstance(found, property)]


@pytest.fixture
def datastore_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the test's own, which `options.url` names; all options are put back afterwards.

    The environment names it, too, for processes that the test starts. An engine that has a storage
    of its own keeps that: bind the folder to it, as in ``bind_storage(engine, datastore_folder)``.
    """
    folder = tmp_path / "datastore"
    folder.mkdir()
    before = {name: getattr(options, name) for name in _OPTIONS}
    options.url = folder
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    yield folder
    for name, value in before.items():
        setattr(options, name, value)


@pytest.fixture
def failing_storage(datastore_folder: Path) -> Iterator[FailingStorage]:
    """A storage in `datastore_folder` that fails where the test tells it to, and never afterwards.

    Bind it to the engine: ``bind_storage(engine, failing_storage)``.
    """
    storage = FailingStorage(LocalStorage(datastore_folder))
    yield storage
    storage.mend()
