"""The subjects, each imported in its own process only: listeners cost the others nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

from benchmarks.subject import Subject


@dataclass(frozen=True)
class About:
    """What is known of a subject without importing it.

    Attributes:
        module: where its class is, as `SUBJECT`.
        how: how it keeps values.
        cannot: the kinds of work that it does not have, see `Workload.needs`, with the reason.
    """

    module: str
    how: str
    cannot: Mapping[str, str] = field(default_factory=dict)


FLOOR = "plain files"

_NO_EDITS = {"edits": "sees no edits in place"}
_NO_ARRAYS = {"arrays": "JSON has no arrays", "frames": "JSON has no frames"}
_ROW_BY_ROW = {**_NO_EDITS, "bulk deletes": "does not see bulk statements: its files stay"}

HERE = {
    FLOOR: About(
        "plain_files",
        "the floor: a pickle in a file (write, fsync, rename; one fsync of the folder a commit), "
        "its URL in a `String` column, removed by the application",
        _NO_EDITS,
    ),
    "sqla_datastore": About("this_library", "this library"),
    "PickleType": About("pickle_type", "a pickle in the row, by SQLAlchemy", _NO_EDITS),
    "LargeBinary": About(
        "large_binary", "a pickle of protocol 5 in the row, by the application", _NO_EDITS
    ),
    "MutableDict(JSON)": About("mutable_json", "JSON in the row, edits noticed", _NO_ARRAYS),
}

PEERS = {
    "MLtraq DataStore": About(
        "mltraq_datastore", "a file without fsync, its URL in a `String` column", _NO_EDITS
    ),
    "advanced-alchemy StoredObject": About(
        "advanced_alchemy_stored_object",
        "a file that is written after COMMIT, without fsync; JSON in the row",
        _ROW_BY_ROW,
    ),
    "sqlalchemy-file": About(
        "sqlalchemy_file_field",
        "a file that is written at flush, without fsync; JSON in the row",
        _ROW_BY_ROW,
    ),
    "filedepot": About(
        "filedepot_field",
        "two files that are written at assignment, without fsync; JSON in the row",
        _ROW_BY_ROW,
    ),
}

SUBJECTS = HERE | PEERS


def subject_class(name: str) -> type[Subject]:
    """Import a subject by its name."""
    found: type[Subject] = import_module(f"benchmarks.subjects.{SUBJECTS[name].module}").SUBJECT
    return found
