"""Compare what rows refer to with what a storage lists: two sorted streams, merged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, TypeVar

from sqla_datastore.exceptions import (
    ConfigurationError,
    DamagedObjectError,
    DataStoreError,
    MissingObjectError,
)
from sqla_datastore.format import Container
from sqla_datastore.maintenance.catalog import Catalog
from sqla_datastore.maintenance.progress import Progress, StepCounter
from sqla_datastore.maintenance.references import PENDING, Reference, References, stem_of
from sqla_datastore.maintenance.reports import FindingsBuilder, ForeignName, Leftover
from sqla_datastore.maintenance.sorting import by_path
from sqla_datastore.schema.folders import OwnedFolders
from sqla_datastore.storage.in_row import BytesReader
from sqla_datastore.storage.protocol import KeepsLeftovers, Storage, StoredObject
from sqla_datastore.storage.urls import OBJECT_NAME, ObjectURL, is_managed

_MISSING_BASE = (
    "the storage's base {!r} is no folder, or does not exist; give the right storage, or mount it "
    "(the first write creates it)"
)

_MOST_PROBLEMS = 20
_READ_WHOLE = 8 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Family:
    """The objects of one value, and the rows that refer to it; either can be missing.

    Attributes:
        stem: what the paths of the objects have in common.
        references: the URLs in rows.
        objects: those that the storage has, in the order of paths.
        is_pending: whether the value waits for its removal.
    """

    stem: str
    references: list[Reference]
    objects: list[StoredObject]
    is_pending: bool = False

    @classmethod
    def of(cls, stem: str, found: list[Reference], objects: list[StoredObject]) -> Family:
        """Return a family, with the rows' URLs told from those that wait for their removal."""
        references = [reference for reference in found if reference.source != PENDING]
        return cls(stem, references, objects, len(references) < len(found))

    def missing(self, path: str) -> str | None:
        """Return the first object that the storage lacks of a reference's value.

        Args:
            path: that of the reference.
        """
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
        count: called for every listed object.
        foreign: takes the files that belong to no declared column.
        matched: how many families have both: a row, and at least one object.
        unreferenced: how many families in owned folders no row refers to.
    """

    storage: Storage
    references: References
    owned: OwnedFolders
    count: Callable[[], None]
    foreign: FindingsBuilder[ForeignName]
    matched: int = 0
    unreferenced: int = 0
    _foreign_before: int = field(init=False)
    _has_our_names: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._foreign_before = self.foreign.count

    def families(self) -> Iterator[Family]:
        """Yield every family that rows refer to or that lies in an owned folder."""
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
                    # a name of ours in a folder of no declared column may be another application's
                    self._add_foreign(found[1])
                found = _next(objects)
            else:
                family = Family.of(row[0], row[1], found[1])
                self.matched += bool(family.references)
                yield family
                row, found = _next(rows), _next(objects)

    def _listed(self) -> Iterator[StoredObject]:
        """Yield the listed objects with names of this library; the rest is foreign."""
        for found in by_path(self._counted()):
            name = found.path.rpartition("/")[2]
            is_object = OBJECT_NAME.fullmatch(name) is not None
            self._has_our_names = self._has_our_names or is_object or is_managed(name)
            if is_object:
                yield found
            else:
                self._add_foreign([found])

    def _counted(self) -> Iterator[StoredObject]:
        for found in self.storage.list(""):
            self.count()
            yield found

    def _add_foreign(self, objects: list[StoredObject]) -> None:
        for each in objects:
            self.foreign.add(ForeignName(each.path, each.size_bytes, self.storage.url))

    def refuse_strangers(self) -> None:
        """Refuse a storage that has files, but none of the declared columns. Called at the end.

        Raises:
            ConfigurationError: all files are foreign, or another application's.
        """
        # the builder counts over all storages
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


def _next(groups: Iterator[tuple[str, Iterator[T]]]) -> tuple[str, list[T]] | None:
    for stem, members in groups:
        # groupby forgets the members when the next group is asked for
        return stem, list(members)
    return None


def open_container(storage: Storage, path: str, *, to_read_all: bool = False) -> Container:
    """Open an object and verify its index.

    Args:
        storage: where it lies.
        path: its path.
        to_read_all: read it at once where it is small and each read would be a request.

    Raises:
        DataStoreError: it is missing, damaged, or needs a newer version.
    """
    reader = storage.open(path)
    if to_read_all and not reader.maps and reader.size_bytes <= _READ_WHOLE:
        reader = BytesReader(reader.read(0, reader.size_bytes))
    return Container.open(reader, str(ObjectURL(storage.scheme, path)), nested=not_loaded)


def problems_of(storage: Storage, path: str, *, deep: bool) -> tuple[str, ...]:
    """Return what is wrong with an object, in words; nothing when it is undamaged.

    Args:
        storage: where it lies.
        path: its path.
        deep: compare headers, directory and the checksums of payloads too.

    Raises:
        MissingObjectError: it is gone.
    """
    try:
        # opening verifies the index, and that it fits the object's size
        container = open_container(storage, path, to_read_all=deep)
        return tuple(islice(container.check(deep=True), _MOST_PROBLEMS)) if deep else ()
    except MissingObjectError:
        # it went after it was listed: whether that is a fault, the database is asked
        raise
    except DamagedObjectError as err:
        return (err.reason,)
    except DataStoreError as err:
        return (str(err),)


def not_loaded(_index: int) -> Any:
    """Stand for nested values where no entry is loaded."""
    raise AssertionError("no entry is loaded")


# -- what check, gc and usage have in common -------------------------------------------------------


def cutoff(grace_seconds: float) -> float:
    """Return the latest modification time that is past the grace period.

    Raises:
        ConfigurationError: the period is negative, infinite or no number.
    """
    if not (0 <= grace_seconds < math.inf):
        raise ConfigurationError(f"grace_seconds is a number from 0, not {grace_seconds!r}")
    # without a period clocks do not matter: a file server's may be ahead of ours
    return time.time() - grace_seconds if grace_seconds else math.inf


@contextmanager
def surveyed(
    catalog: Catalog,
    storage: Storage,
    foreign: FindingsBuilder[ForeignName],
    progress: Progress | None,
    *,
    force: bool = False,
) -> Iterator[Survey]:
    """Compare a storage with its references; at the end refuse one of other models.

    Raises:
        ConfigurationError: the storage's folder does not exist, or, at the end and unless `force`,
            the storage has files and nothing of the declared columns.
    """
    owned = catalog.owned(storage)
    reading = StepCounter(progress, "reading URLs")
    # before the listing: rows' URLs also tell the folders of older templates
    with catalog.references(storage, owned, reading) as references:
        reading.report()
        _refuse_missing_base(catalog, storage, references)
        listing = StepCounter(progress, f"comparing {storage.url}", references.objects)
        survey = Survey(storage, references, owned, listing, foreign)
        yield survey
        listing.report()
        if not force:
            survey.refuse_strangers()


def refuse_missing_bases(catalog: Catalog) -> None:
    """Refuse a catalog of which no storage exists.

    Raises:
        ConfigurationError: none of their folders exists.
    """
    storages = catalog.storages()
    if not any(storage.exists() for storage in storages):
        raise ConfigurationError(_MISSING_BASE.format(storages[0].url))


def _refuse_missing_base(catalog: Catalog, storage: Storage, references: References) -> None:
    """Refuse a missing folder, unless no row uses it and the folder of another storage exists."""
    if storage.exists():
        return
    if references.rows or not any(other.exists() for other in catalog.storages()):
        raise ConfigurationError(_MISSING_BASE.format(storage.url))


def leftovers(survey: Survey, cutoff: float) -> Iterator[tuple[Leftover, bool]]:
    """Yield what interrupted writes left in owned folders, and whether it is past the cutoff."""
    if not isinstance(survey.storage, KeepsLeftovers):
        return
    for found in survey.storage.leftovers():
        folder = found.path.rpartition("/")[0]
        is_folder = found.path.endswith("/")
        # an empty folder above owned ones has had some in it; a file there is somebody else's
        if folder in survey.owned or (is_folder and survey.owned.are_below(folder)):
            leftover = Leftover(found.path, found.size_bytes, found.modified, survey.storage.url)
            yield leftover, found.modified <= cutoff
