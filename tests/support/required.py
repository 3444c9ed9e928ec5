"""Databases and servers that have to be there: without them tests fail instead of skipping."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

_VARIABLES = ("SQLA_DATASTORE_TEST_DATABASES", "SQLA_DATASTORE_TEST_SERVERS")


def required_by(name: str) -> str | None:
    """Return the environment variable that says that it must be there, or None."""
    for variable in _VARIABLES:
        names = os.environ.get(variable, "").split(",")
        if name in (each.strip() for each in names):
            return variable
    return None


def unavailable(name: str, reason: str) -> NoReturn:
    """Skip a test of what is not there, or fail it where that has to be there."""
    variable = required_by(name)
    if variable:
        pytest.fail(f"{name} is required by {variable}: {reason}")
    pytest.skip(f"{name}: {reason}")
