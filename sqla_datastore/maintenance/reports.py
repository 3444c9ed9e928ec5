"""What maintenance finds: typed findings, and the reports that hold them.

A report counts everything, and keeps the first `MOST_KEPT` findings of each kind, so that it stays
small where a whole storage is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from sqla_datastore.printable import printable
from sqla_datastore.storage.urls import is_in_row

MOST_KEPT = 10_000

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class DanglingRow:
    """A row whose URL has no whole object.

    Attributes:
        table: the table, with its schema where it has one.
        key: the row's primary key by column name.
        column: the column that holds the URL.
        url: the URL.
        storage: where the object should be.
        reason: what is missing, in words.
    """

    kind: ClassVar[str] = "dangling"
    table: str
    key: dict[str, Any]
    column: str
    url: str
    storage: str
    reason: str

    def __str__(self) -> str:
        key = ", ".join(f"{name}={value}" for name, value in self.key.items())
        return printable(f"{self.table}({key}).{self.column}: {self.url}: {self.reason}")


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object of this library, in a folder of declared columns, that no row refers to.

    Attributes:
        path: below the storage's base.
        size_bytes: its size.
        modified: seconds since the epoch (UTC).
        storage: where it lies.
    """

    kind: ClassVar[str] = "orphan"
    path: str
    size_bytes: int
    modified: float
    storage: str

    def __str__(self) -> str:
        return printable(f"{self.path} ({self.size_bytes} bytes)")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What an interrupted write or removal left: a temporary file, or (``…/``) an empty folder."""

    kind: ClassVar[str] = "leftover"
    path: str
    size_bytes: int
    modified: float
    storage: str

    def __str__(self) -> str:
        return printable(f"{self.path} ({self.size_bytes} bytes)")


@dataclass(frozen=True, slots=True)
class DamagedObject:
    """An object that a row refers to and that cannot be read as it was written.

    Attributes:
        url: the object's URL; of a value in the row without the value.
        problems: what is wrong, in words.
        storage: where it lies, or in which row.
    """

    kind: ClassVar[str] = "damaged"
    url: str
    problems: tuple[str, ...]
    storage: str

    def __str__(self) -> str:
        where = f" in {self.storage}" if is_in_row(self.url) else ""
        return printable(f"{self.url}{where}: {'; '.join(self.problems)}")


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A file that belongs to no declared column; it is never touched."""

    kind: ClassVar[str] = "foreign"
    path: str
    size_bytes: int
    storage: str

    def __str__(self) -> str:
        return printable(self.path)


@dataclass(frozen=True)
class Findings(Generic[F]):
    """Findings of one kind.

    Attributes:
        first: the first of them, in the order of their paths.
        count: how many there are.
        size_bytes: their size together; 0 for rows.
    """

    first: tuple[F, ...] = ()
    count: int = 0
    size_bytes: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[F]:
        return iter(self.first)

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes: count, size and the first findings."""
        return {
            "count": self.count,
            "size_bytes": self.size_bytes,
            "first": [_plain(asdict(each)) for each in self.first],  # type: ignore[call-overload]
        }


class FindingsBuilder(Generic[F]):
    """Findings while they are found: all are counted, the first `MOST_KEPT` are kept."""

    def __init__(self) -> None:
        self._first: list[F] = []
        self.count = 0
        self._size_bytes = 0

    def add(self, finding: F) -> None:
        """Count a finding, and keep it while there are few."""
        self.count += 1
        # rows have no size
        self._size_bytes += getattr(finding, "size_bytes", 0)
        if len(self._first) < MOST_KEPT:
            self._first.append(finding)

    def findings(self) -> Findings[F]:
        """Return what was found."""
        return Findings(tuple(self._first), self.count, self._size_bytes)


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        references: how many URLs of objects the rows hold.
        objects: how many objects they refer to were found.
        size_bytes: the size of these.
        in_rows: how many values lie in rows themselves.
        in_row_bytes: what these take there.
        pending: objects that wait for their removal, as `enable_removals` has it; no fault.
        dangling: rows without object.
        orphans: objects without row.
        leftovers: what interrupted writes and removals left.
        damaged: objects that cannot be read as they were written.
        foreign: files that belong to no declared column; no fault.
        deep: whether checksums of payloads were compared.
    """

    references: int
    objects: int
    size_bytes: int
    in_rows: int
    in_row_bytes: int
    pending: int
    dangling: Findings[DanglingRow]
    orphans: Findings[Orphan]
    leftovers: Findings[Leftover]
    damaged: Findings[DamagedObject]
    foreign: Findings[ForeignName]
    deep: bool

    @property
    def is_clean(self) -> bool:
        """Whether the storages hold all that rows refer to, undamaged, and nothing else of ours."""
        return not (self.dangling or self.orphans or self.leftovers or self.damaged)

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return {"is_clean": self.is_clean, **_fields(self)}


@dataclass(frozen=True)
class GcReport:
    """What `gc` found and did.

    Attributes:
        applied: whether it removed what it found, or only told what it would remove.
        grace_seconds: how old an object has to be.
        references: how many URLs the rows hold.
        orphans: objects without row, older than the grace period: removed when `applied`.
        leftovers: what interrupted writes and removals left, older than the grace period.
        young: objects without row and leftovers that are younger; they stay.
        pending: objects that wait for their removal, as `enable_removals` has it; they stay.
        rescued: objects that a row came to refer to while `gc` was at work; they stay.
        removed: how many objects and leftovers were removed.
        removed_bytes: their size.
        failures: what the storage said where it could not remove; the next run tries again.
        foreign: files that belong to no declared column; they stay.
    """

    applied: bool
    grace_seconds: float
    references: int
    orphans: Findings[Orphan]
    leftovers: Findings[Leftover]
    young: int
    pending: int
    rescued: int
    removed: int
    removed_bytes: int
    failures: tuple[str, ...]
    foreign: Findings[ForeignName]

    @property
    def is_clean(self) -> bool:
        """Whether nothing past the grace period is left to remove."""
        return not self.failures and (self.applied or not (self.orphans or self.leftovers))

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return {"is_clean": self.is_clean, **_fields(self)}


@dataclass(frozen=True)
class DrainReport:
    """What `drain` did.

    Attributes:
        keep_seconds: how old a removal had to be.
        carried_out: how many removals were carried out and struck off.
        referenced: how many were struck off because a row holds the URL again.
        foreign: how many were struck off because they name no object of this library.
        waiting: how many are younger; they stay.
        others: how many are of other models; they stay.
        failures: what the storage said where it could not remove; the next run tries again.
    """

    keep_seconds: float
    carried_out: int
    referenced: int
    foreign: int
    waiting: int
    others: int
    failures: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing that is due is left."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return {"is_clean": self.is_clean, **_fields(self)}


@dataclass(frozen=True)
class RewriteReport:
    """What `rewrite` did, or would do.

    Attributes:
        applied: whether it wrote, or only told what it would write.
        rows: how many values were looked at.
        moved_in: how many moved into their rows.
        moved_out: how many moved out of their rows.
        moved_folder: how many moved to the folder that the template renders now.
        recompressed: how many were compressed anew, or no longer are.
        unreadable: how many of these cannot be loaded; they were left alone.
        changed_meanwhile: how many rows somebody else has changed meanwhile; they were left alone.
        missing: how many values have no object, or a URL that is not the storage's; see `check`.
    """

    applied: bool
    rows: int
    moved_in: int
    moved_out: int
    moved_folder: int
    recompressed: int
    unreadable: int
    changed_meanwhile: int
    missing: int

    @property
    def moved(self) -> int:
        """How many values were, or would be, written anew."""
        return self.moved_in + self.moved_out + self.moved_folder + self.recompressed

    @property
    def is_clean(self) -> bool:
        """Whether all values lie as their columns say."""
        left = self.changed_meanwhile or self.missing or self.unreadable
        return not left and (self.applied or not self.moved)

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return {"is_clean": self.is_clean, **_fields(self)}


@dataclass(frozen=True)
class MoveReport:
    """What `move` did, or would do.

    Attributes:
        applied: whether it wrote and removed, or only told what it would.
        rows: how many URLs of objects were looked at.
        copied: how many objects were copied.
        copied_bytes: their size.
        present: how many objects the target had already.
        switched: how many rows got the target's scheme.
        changed_meanwhile: how many rows somebody else has changed meanwhile; the next run looks at
            them.
        missing: rows whose object neither source nor target has, or whose URL is of neither.
        damaged: objects that were not copied, because they cannot be read as they were written, or
            because the target has another one of their name.
        removed: how many objects were removed from the source.
        removed_bytes: their size.
        failures: what the source said where it could not remove; the next run tries again.
    """

    applied: bool
    rows: int
    copied: int
    copied_bytes: int
    present: int
    switched: int
    changed_meanwhile: int
    missing: Findings[DanglingRow]
    damaged: Findings[DamagedObject]
    removed: int
    removed_bytes: int
    failures: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left to copy, to switch or to remove, and nothing stood in the way."""
        left = self.changed_meanwhile or self.missing or self.damaged or self.failures
        return not left and (self.applied or not (self.copied or self.switched or self.removed))

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return {"is_clean": self.is_clean, **_fields(self)}


@dataclass(frozen=True, slots=True)
class TypeUsage:
    """What the entries of one type take.

    Attributes:
        type: as `sqla_datastore.inspect` names it, for example ``pandas.DataFrame``.
        entries: how many there are.
        size_bytes: the size of their payloads, without what an object adds.
    """

    type: str
    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ColumnUsage:
    """What one column's values take.

    Attributes:
        table: the table, with its schema where it has one.
        column: the column.
        rows: how many rows hold the URL of an object.
        objects: how many objects these have, nested values included.
        size_bytes: the size of the objects.
        in_rows: how many values lie in rows themselves.
        in_row_bytes: what these take there, in base64.
        unreadable: how many objects and values in rows could not be opened, so that no type counts
            them.
        types: by type, the largest first.
    """

    table: str
    column: str
    rows: int
    objects: int
    size_bytes: int
    in_rows: int
    in_row_bytes: int
    unreadable: int
    types: tuple[TypeUsage, ...]


@dataclass(frozen=True)
class UsageReport:
    """What the values of declared columns take.

    Attributes:
        columns: by column, in the order of the MetaData.
        types: by type over all columns, the largest first.
        objects: how many objects rows refer to.
        size_bytes: the size of these.
        in_rows: how many values lie in rows themselves.
        in_row_bytes: what these take there, in base64.
    """

    columns: tuple[ColumnUsage, ...] = ()
    types: tuple[TypeUsage, ...] = ()
    objects: int = 0
    size_bytes: int = 0
    in_rows: int = 0
    in_row_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return _plain(asdict(self))  # type: ignore[no-any-return]


def _fields(
    report: CheckReport | DrainReport | GcReport | MoveReport | RewriteReport,
) -> dict[str, Any]:
    return {
        name: value.to_json() if isinstance(value, Findings) else _plain(value)
        for name, value in vars(report).items()
    }


def _plain(value: Any) -> Any:
    """Return a value in JSON's types; what JSON has no type for (a UUID, a date) is text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
