"""Errors lead to their page, and go through pickle as they are."""

from __future__ import annotations

import pickle
import re
import tomllib
import warnings
from pathlib import Path

import pytest

import sqla_datastore
from sqla_datastore import exceptions
from sqla_datastore.exceptions import (
    DOCUMENTATION,
    DamagedObjectError,
    DataStoreError,
    DefaultStorageWarning,
    MissingObjectError,
    RefusedStatementError,
    RefusedURLError,
    StorageError,
    UnsupportedTypeError,
)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "errors.md").read_text()
CLASSES = {
    cls.__name__: cls
    for cls in vars(exceptions).values()
    if isinstance(cls, type) and hasattr(cls, "code") and cls.__module__ == exceptions.__name__
}
CODED = {name: cls for name, cls in CLASSES.items() if cls.code is not None}
RAISED = [
    UnsupportedTypeError("no", column="t.c", entry="'a'", type=object),
    DamagedObjectError("file:///a/b.zip", "cut", entry="a", expected=1, found=2),
    MissingObjectError("file:///a/b.zip", "the folder 'a'", "restore it"),
    RefusedURLError("ftp://a", "unknown"),
    StorageError("full", url="file:///a/b.zip", no_answer=True),
    RefusedStatementError("no"),
    sqla_datastore.ConfigurationError("no"),
]


def test_the_page_has_a_section_for_each_class_and_no_other():
    sections = re.findall(r"^## ([a-z-]+)\n\n`(\w+)`", PAGE, re.MULTILINE)
    assert sorted(sections) == sorted((cls.code, name) for name, cls in CODED.items())


def test_only_the_root_has_no_code():
    assert set(CLASSES) - set(CODED) == {"DataStoreError"}


def test_the_page_has_the_loggers_that_the_code_names():
    code = "".join(path.read_text() for path in (ROOT / "sqla_datastore").rglob("*.py"))
    named = set(re.findall(r'getLogger\("([\w.]+)"\)', code))
    assert set(re.findall(r"^\| `([\w.]+)` \| the", PAGE, re.MULTILINE)) == named


def test_the_page_has_what_is_logged():
    code = "".join(path.read_text() for path in (ROOT / "sqla_datastore").rglob("*.py"))
    for level, message in re.findall(r'logger\.(\w+)\(\s*"([^"]+)"', code):
        begins = re.split(r"[:,]| \(", re.sub(r"%[drs]", "…", message))[0]
        level = level.replace("exception", "error")
        assert f"| {level} | {begins}" in PAGE, message


def test_links_lead_to_the_documentation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Documentation"] == DOCUMENTATION


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_the_text_is_the_message_and_one_link(error):
    link = f"(Background on this error at: {DOCUMENTATION}/errors.html#{error.code})"
    assert str(error) == f"{error.message} {link}"
    assert "sqlalche.me" not in str(error)


def test_the_warning_links_too():
    with pytest.warns(DefaultStorageWarning, match=r"^mine \(Background on this warning at: \S+\)"):
        warnings.warn("mine", DefaultStorageWarning, stacklevel=1)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_pickling_keeps_text_attributes_and_notes(error):
    error.add_note("while testing")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert (str(twin), vars(twin)) == (str(error), vars(error))
    assert twin.args == error.args


def test_a_subclass_of_a_third_party_keeps_the_code_of_its_kind():
    class FullError(StorageError):
        pass

    assert FullError("full").code == StorageError.code
    assert isinstance(FullError("full"), DataStoreError)
