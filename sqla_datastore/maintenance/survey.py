"""Comparing what rows refer to with what a storage lists: two sorted streams, merged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import MetaData

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.format import Container
from sqla_datastore.maintenance.references import PENDING, Declared, Reference, References, stem_of
from sqla_datastore.maintenance.reports import MOST_KEPT, Findings, ForeignName, Leftover
from sqla_datastore.schema.folders import OwnedFolders
from sqla_datastore.storage import base_exists
from sqla_datastore.storage.protocol import KeepsLeftovers, Storage, StoredObject
from sqla_datastore.storage.urls import OBJECT_NAME, ObjectURL, is_managed

__all__ = [
    "Collected",
    "Family",
    "Progress",
    "Survey",
    "Ticker",
    "declared_in",
    "leftovers",
    "newest",
    "open_container",
    "refuse_missing_bases",
    "surveyed",
]

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Takes what is being done, how much of it is done, and how much there is, or None."""

_TOLD_EVERY = 1_000
_MISSING_BASE = (
    "the storage's base {!r} is no folder, or does not exist; give the right storage, or mount it "
    "(the first write creates it)"
)

F = TypeVar("F")


class Ticker:
    """Counts, and tells a `Progress` now and then."""

    def __init__(self, progress: Progress | None, what: str, total: int | None = None) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = 0
        self.tell()

    def __call__(self, steps: int = 1) -> None:
        """Count some steps."""
        before, self._done = self._done, self._done + steps
        if before // _TOLD_EVERY != self._done // _TOLD_EVERY:
            self.tell()

    def tell(self) -> None:
        """Tell how far it is."""
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)


class Collected(Generic[F]):
    """Findings while they are found: all are counted, the first are kept."""

    def __init__(self) -> None:
        self._first: list[F] = []
        self.count = 0
        self._size_bytes = 0

    def add(self, finding: F) -> None:
        """Count a finding, and keep it while there are few."""
        self.count += 1
        self._size_bytes += getattr(finding, "size_bytes", 0)
        if len(self._first) < MOST_KEPT:
            self._first.append(finding)

    def findings(self) -> Findings[F]:
        """Return what was found."""
        return Findings(tuple(self._first), self.count, self._size_bytes)


@dataclass(frozen=True, slots=True)
class Family:
    """A value's objects, and the rows that refer to them; either can be missing.

    Attributes:
        stem: what their paths have in common.
        references: the rows' URLs.
        objects: what the storage has of the family, in the order of paths.
        is_pending: whether it waits for its removal.
    """

    stem: str
    references: list[Reference]
    objects: list[StoredObject]
    is_pending: bool = False

    @classmethod
    def of(cls, stem: str, found: list[Reference], objects: list[StoredObject]) -> Family:
        """Tell rows that refer to it from what waits for its removal."""
        references = [reference for reference in found if reference.source != PENDING]
        return cls(stem, references, objects, len(references) < len(found))

    def missing(self, path: str) -> str | None:
        """Return the first path that a reference stands for and the storage lacks."""
        found = {each.path for each in self.objects}
        if path not in found:
            return path
        url = ObjectURL("", path)
        nested = (url.nested(index).path for index in range(url.nested_count))
        return next((each for each in nested if each not in found), None)


@dataclass
class Survey:
    """One storage, compared with the rows that refer to it.

    Attributes:
        storage: the storage.
        references: the rows' URLs.
        owned: the folders of declared columns.
        tick: called for every listed object.
        foreign: what is none of their business.
        matched: how many families rows refer to and the storage has, at least in part.
        unreferenced: how many families of owned folders no row refers to.
    """

    storage: Storage
    references: References
    owned: OwnedFolders
    tick: Callable[[], None]
    foreign: Collected[ForeignName]
    matched: int = 0
    unreferenced: int = 0
    _foreign_before: int = field(init=False)
    _has_our_names: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._foreign_before = self.foreign.count

    def families(self) -> Iterator[Family]:
        """Yield every family that rows refer to or that lies in an owned folder.

        Raises:
            ConfigurationError: the storage does not list in the order of paths.
        """
        rows = groupby(self.references, lambda reference: stem_of(reference.path))
        objects = groupby(self._listed(), lambda found: stem_of(found.path))
        row, found = _next(rows), _next(objects)
        while row or found:
            if found is None or (row and row[0] < found[0]):
                assert row is not None
                yield Family.of(row[0], row[1], [])
                row = _next(rows)
            elif row is None or found[0] < row[0]:
                if found[0].rpartition("/")[0] in self.owned:
                    self.unreferenced += 1
                    yield Family(found[0], [], found[1])
                else:
                    self._add_foreign(found[1])
                found = _next(objects)
            else:
                family = Family.of(row[0], row[1], found[1])
                self.matched += bool(family.references)
                yield family
                row, found = _next(rows), _next(objects)

    def _listed(self) -> Iterator[StoredObject]:
        """List what has a name of ours; the rest is foreign."""
        last = ""
        for found in self.storage.list(""):
            if found.path < last:
                raise ConfigurationError(
                    f"the storage {self.storage.url!r} does not list in the order of paths: "
                    f"{last!r} came before {found.path!r}"
                )
            last = found.path
            self.tick()
            name = found.path.rpartition("/")[2]
            is_object = OBJECT_NAME.fullmatch(name) is not None
            self._has_our_names = self._has_our_names or is_object or is_managed(name)
            if is_object:
                yield found
            else:
                self._add_foreign([found])

    def _add_foreign(self, objects: list[StoredObject]) -> None:
        for each in objects:
            self.foreign.add(ForeignName(each.path, each.size_bytes, self.storage.url))

    def refuse_strangers(self) -> None:
        """Refuse a storage that has files and nothing of the declared columns. Called at the end.

        Raises:
            ConfigurationError: it is a folder of foreign files, or another application's.
        """
        foreign = self.foreign.count - self._foreign_before
        if self.matched or self.unreferenced or not foreign:
            return
        if not self._has_our_names:
            raise ConfigurationError(
                f"the storage {self.storage.url!r} holds {foreign} foreign files and no object of "
                "this library; give the right storage"
            )
        if self.references.rows:
            raise ConfigurationError(
                f"the storage {self.storage.url!r} holds {foreign} files, none of them of these "
                "models; it seems to be another application's; give the right storage or models"
            )


def _next(groups: Iterator[tuple[str, Iterator[F]]]) -> tuple[str, list[F]] | None:
    for stem, members in groups:
        return stem, list(members)
    return None


def open_container(storage: Storage, path: str) -> Container:
    """Open an object and verify its index.

    Raises:
        DataStoreError: it is missing, damaged, or needs a newer version.
    """
    url = str(ObjectURL(storage.scheme, path))
    return Container.open(storage.open(path), url, nested=_not_loaded)


def _not_loaded(_index: int) -> Any:
    raise AssertionError("no entry is loaded")


# -- what check, gc and usage have in common ------------------------------------------------------


def declared_in(engine: Any, metadata: MetaData, *, force: bool = False) -> Declared:
    """Look the declared columns up in the database.

    Raises:
        ConfigurationError: as `Declared.of`; or a declared table is missing, unless `force`.
    """
    columns = Declared.of(engine, metadata)
    if columns.missing and not force:
        names = ", ".join(map(repr, columns.missing))
        raise ConfigurationError(
            f"the database lacks the declared tables {names}; give the right database, or create "
            "them (metadata.create_all(engine), or alembic upgrade head)"
        )
    return columns


def newest(grace_seconds: float) -> float:
    """Return the latest modification time that is past the grace period."""
    if not (0 <= grace_seconds < math.inf):
        raise ConfigurationError(f"grace_seconds is a number from 0, not {grace_seconds!r}")
    return time.time() - grace_seconds if grace_seconds else math.inf


@contextmanager
def surveyed(
    columns: Declared,
    storage: Storage,
    foreign: Collected[ForeignName],
    progress: Progress | None,
    *,
    force: bool = False,
) -> Iterator[Survey]:
    """Give a storage and its references; refuse, at the end, one that is somebody else's."""
    owned = columns.owned(storage)
    reading = Ticker(progress, "reading URLs")
    with columns.references(storage, owned, reading) as references:
        reading.tell()
        _refuse_missing_base(columns, storage, references)
        ticker = Ticker(progress, f"comparing {storage.url}", references.objects)
        survey = Survey(storage, references, owned, ticker, foreign)
        yield survey
        ticker.tell()
        if not force:
            survey.refuse_strangers()


def refuse_missing_bases(columns: Declared) -> None:
    """Refuse where none of the storages is there.

    Raises:
        ConfigurationError: their folders do not exist.
    """
    storages = columns.storages()
    if not any(map(base_exists, storages)):
        raise ConfigurationError(_MISSING_BASE.format(storages[0].url))


def _refuse_missing_base(columns: Declared, storage: Storage, references: References) -> None:
    """Refuse a local storage without its folder, unless another one serves and this is unused."""
    if base_exists(storage):
        return
    if references.rows or not any(map(base_exists, columns.storages())):
        raise ConfigurationError(_MISSING_BASE.format(storage.url))


def leftovers(survey: Survey, newest: float) -> Iterator[tuple[Leftover, bool]]:
    """Yield what interrupted writes left in owned folders, and whether it is old enough."""
    if not isinstance(survey.storage, KeepsLeftovers):
        return
    for found in survey.storage.leftovers():
        folder = found.path.rpartition("/")[0]
        is_folder = found.path.endswith("/")
        if folder in survey.owned or (is_folder and survey.owned.are_below(folder)):
            leftover = Leftover(found.path, found.size_bytes, found.modified, survey.storage.url)
            yield leftover, found.modified <= newest
