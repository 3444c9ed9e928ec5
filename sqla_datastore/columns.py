"""Declared columns: which tables hold values, and the folder templates of their rows.

A folder template has ``{attribute}`` fields over a row; ``{table}`` is the table's name, ``{pk}``
the whole primary key. A template that holds the whole primary key makes the row the owner of the
folder. `__datastore_folder__` on a mapped class declares an owner without a column.
"""

from __future__ import annotations

import re
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from string import Formatter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, types
from sqlalchemy.orm import Mapper, registry

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.urls import check_path, quote_segment

if TYPE_CHECKING:
    from sqla_datastore.types import DataStoreType

__all__ = [
    "Owner",
    "StoreColumn",
    "TableStore",
    "check_template",
    "refuse_owned_prefix",
    "table_store",
]

_ATTRIBUTE = re.compile(r"[^\W\d]\w*")
# quote_segment never leaves these as they are, so they keep two fields of one segment apart
_SEPARATORS = ",;=+@:!"

_lock = threading.Lock()
_registries: weakref.WeakSet[registry] = weakref.WeakSet()
_stores: weakref.WeakKeyDictionary[Table, TableStore] = weakref.WeakKeyDictionary()
_checked: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


@lru_cache(maxsize=1024)
def _segments(template: str) -> tuple[tuple[tuple[str, str | None], ...], ...]:
    """Parse a template into segments of (literal, field) parts."""
    segments: list[list[tuple[str, str | None]]] = [[]]
    for literal, field, spec, conversion in Formatter().parse(template):
        first, *others = literal.split("/")
        segments[-1].append((first, None))
        segments.extend([(text, None)] for text in others)
        if field is not None:
            if spec or conversion or not _ATTRIBUTE.fullmatch(field):
                raise ValueError(f"field {field!r} is not the plain name of an attribute")
            segments[-1].append(("", field))
    return tuple(tuple(part for part in segment if part[0] or part[1]) for segment in segments)


def check_template(template: str) -> str:
    """Return a folder template after refusing what cannot become a path below the base.

    Args:
        template: for example ``"{table}/{pk}"`` or ``"runs/{id_experiment}"``.

    Raises:
        ConfigurationError: bad syntax, an empty segment, ``..``, or two fields of one segment
            without one of ``, ; = + @ : !`` between them, so that different rows could meet.
    """
    try:
        for segment in _segments(template):
            _check_segment(segment)
    except (ValueError, RefusedURLError) as err:
        raise ConfigurationError(
            f"folder={template!r}: {err}; expected something like '{{table}}/{{pk}}'"
        ) from err
    return template


def _check_segment(segment: tuple[tuple[str, str | None], ...]) -> None:
    check_path("".join(literal or "x" for literal, _ in segment))
    before = ","
    for literal, field in segment:
        if field is not None:
            if not set(before) & set(_SEPARATORS):
                raise ValueError(f"put one of '{_SEPARATORS}' before {{{field}}}")
            before = ""
        else:
            before = literal if before == "" else before + literal


def _fields(template: str) -> list[str]:
    return [field for segment in _segments(template) for _, field in segment if field]


@dataclass(frozen=True, eq=False)
class Owner:
    """A folder template resolved against one table.

    Attributes:
        table: the table whose rows render it.
        template: the text.
        columns: the columns that its fields need, by field; ``pk`` is left out.
        owns: whether it holds the whole primary key.
    """

    table: Table
    template: str
    columns: Mapping[str, Column[Any]]
    owns: bool

    def render(self, row: Mapping[Column[Any], Any]) -> str | None:
        """Return the folder of a row, or None where a field's value is missing or None.

        Args:
            row: the values by column, at least those that `needs` names.
        """
        segments = []
        for segment in _segments(self.template):
            texts = [
                literal if field is None else self._text(field, row) for literal, field in segment
            ]
            if None in texts:
                return None
            segments.append("".join(text for text in texts if text is not None))
        return check_path("/".join(segments))

    def fresh(self, row: Mapping[Column[Any], Any], token: str) -> str:
        """Return the folder of a row, a token standing for what is not known yet.

        Args:
            row: the values by column, as far as they are known.
            token: a fresh UUID, the same for all columns of the row.
        """
        segments = [
            "".join(
                literal if field is None else self._text(field, row) or token
                for literal, field in segment
            )
            for segment in _segments(self.template)
        ]
        return check_path("/".join(segments))

    @property
    def needs(self) -> list[Column[Any]]:
        """The columns whose values `render` uses."""
        fields = _fields(self.template)
        key = list(self.table.primary_key) if "pk" in fields else []
        return list(dict.fromkeys([*key, *self.columns.values()]))

    def _text(self, field: str, row: Mapping[Column[Any], Any]) -> str | None:
        if field == "table":
            return quote_segment(self.table.fullname)
        columns = list(self.table.primary_key) if field == "pk" else [self.columns[field]]
        values = [row.get(column) for column in columns]
        if any(value is None for value in values):
            return None
        return ",".join(quote_segment(value) for value in values)


@dataclass(frozen=True, eq=False)
class StoreColumn:
    """A declared column: the `Column`, its type and its folder."""

    column: Column[Any]
    type: DataStoreType
    folder: Owner

    def shares_folder(self, other: StoreColumn) -> bool:
        """Whether another column of the table puts its objects into the same folder."""
        return (self.type.url, self.type.folder) == (other.type.url, other.type.folder)

    @property
    def label(self) -> str:
        """``table.column``, for messages."""
        return f"{self.column.table.name}.{self.column.name}"


@dataclass(frozen=True, eq=False)
class TableStore:
    """What one table has to do with storages.

    Attributes:
        columns: its declared columns.
        class_folder: the template of a `__datastore_folder__`, or None.
    """

    table: Table
    columns: tuple[StoreColumn, ...]
    class_folder: Owner | None

    @property
    def needs(self) -> list[Column[Any]]:
        """The columns of this table that templates and the primary key need."""
        return [c for c in self._all_needs if c.table is self.table]

    @property
    def inherited_needs(self) -> list[Column[Any]]:
        """The columns that templates need of the tables that this one inherits from."""
        return [c for c in self._all_needs if c.table is not self.table]

    @cached_property
    def _all_needs(self) -> list[Column[Any]]:
        owners = [column.folder for column in self.columns]
        owners += [self.class_folder] if self.class_folder else []
        wanted = [*self.table.primary_key, *(c for owner in owners for c in owner.needs)]
        return list(dict.fromkeys(wanted))


def note_mapper(mapper: Mapper[Any], *_: Any) -> None:
    """Remember where mappers are found. Called when one is constructed."""
    with _lock:
        _registries.add(mapper.registry)
        _stores.clear()


def check_registries() -> None:
    """Refuse templates that contradict each other. Called once mappers are configured.

    Raises:
        ConfigurationError: as `table_store`.
    """
    for each in _seen():
        check_metadata(each.metadata)


def _seen() -> list[registry]:
    with _lock:
        return list(_registries)


def _mappers(table: Table) -> list[Mapper[Any]]:
    return [m for each in _seen() for m in each.mappers if table in m.tables]


def table_store(table: Any) -> TableStore | None:
    """Return what a table has to do with storages, or None if nothing.

    Raises:
        ConfigurationError: a template names an attribute that rows do not have, or the templates of
            two tables can meet.
    """
    if not isinstance(table, Table):
        return None
    store = _stores.get(table)
    if store is None:
        store = _stores[table] = _resolve(table)
    if not (store.columns or store.class_folder):
        return None
    check_metadata(table.metadata)
    return store


def declared(metadata: Any) -> Iterator[TableStore]:
    """Yield every table of a MetaData that has to do with storages."""
    for table in list(metadata.tables.values()):
        store = _stores.get(table)
        if store is None:
            store = _stores[table] = _resolve(table)
        if store.columns or store.class_folder:
            yield store


def is_store(column: Column[Any]) -> bool:
    """Return whether a column holds values."""
    from sqla_datastore.types import DataStoreType

    return isinstance(column.type, DataStoreType)


def _resolve(table: Table) -> TableStore:
    columns = tuple(
        StoreColumn(column, column.type, _owner(table, column.type.folder, str(column)))  # type: ignore[arg-type, attr-defined]
        for column in table.columns
        if is_store(column)
    )
    folders = {
        vars(mapper.class_)["__datastore_folder__"]: mapper
        for mapper in _mappers(table)
        if mapper.local_table is table and "__datastore_folder__" in vars(mapper.class_)
    }
    if len(folders) > 1:
        raise ConfigurationError(
            f"table {table.name!r} has several __datastore_folder__: {sorted(folders)}"
        )
    class_folder = None
    for template, mapper in folders.items():
        place = f"{mapper.class_.__name__}.__datastore_folder__"
        class_folder = _owner(table, check_template(template), place)
        if not class_folder.owns:
            raise ConfigurationError(
                f"{place} = {template!r} does not hold the primary key, so no row owns the folder"
            )
    return TableStore(table, columns, class_folder)


def _owner(table: Table, template: str, place: str) -> Owner:
    fields = [field for field in _fields(template) if field not in ("table", "pk")]
    columns = {field: _column(table, field, template, place) for field in fields}
    key = set(table.primary_key)
    owns = bool(key) and ("pk" in _fields(template) or key <= set(columns.values()))
    if "pk" in _fields(template) and not key:
        raise ConfigurationError(f"{place}: folder={template!r} needs a primary key")
    return Owner(table, template, columns, owns)


def _column(table: Table, field: str, template: str, place: str) -> Column[Any]:
    for mapper in _mappers(table):
        column = mapper.columns.get(field)
        if isinstance(column, Column):
            return _own_column(table, column)
    if field in table.c:
        return table.c[field]
    raise ConfigurationError(
        f"{place}: folder={template!r} names {field!r}, which is no attribute of its rows"
    )


def _own_column(table: Table, column: Column[Any]) -> Column[Any]:
    """Return a table's own copy of a column, where joined inheritance gives it one."""
    if column.table is not table:
        for own in table.c:
            if any(key.column is column for key in own.foreign_keys):
                return own
    return column


# -- templates that can meet ---------------------------------------------------------------------


def check_metadata(metadata: Any) -> None:
    """Refuse templates of different tables that can meet; cached until tables are added.

    Raises:
        ConfigurationError: the rows of one table could own what rows of another put there.
    """
    tables = len(metadata.tables)
    if _checked.get(metadata) == tables:
        return
    places = [(owner, url) for store in declared(metadata) for owner, url in _places(store)]
    for owner, owner_url in places:
        for other, other_url in places:
            if owner.owns and owner.table is not other.table and owner_url == other_url:
                _check_pair(owner, other)
    _checked[metadata] = tables


def _places(store: TableStore) -> list[tuple[Owner, str | None]]:
    places: list[tuple[Owner, str | None]] = [(c.folder, c.type.url) for c in store.columns]
    if store.class_folder:
        urls = {c.type.url for s in declared(store.table.metadata) for c in s.columns} or {None}
        places += [(store.class_folder, url) for url in urls]
    return places


def _check_pair(owner: Owner, other: Owner) -> None:
    if not _can_meet(owner, other) or _is_child(owner, other):
        return
    raise ConfigurationError(
        f"the folders {owner.template!r} of table {owner.table.name!r} and {other.template!r} of "
        f"table {other.table.name!r} can be the same; start one of them with a name of its own, or "
        f"give {other.table.name!r} a foreign key to the row that owns the folder"
    )


def _can_meet(owner: Owner, other: Owner) -> bool:
    mine, theirs = _segments(owner.template), _segments(other.template)
    return len(theirs) >= len(mine) and all(
        _segments_meet(owner, a, other, b) for a, b in zip(mine, theirs, strict=False)
    )


def _segments_meet(owner: Owner, a: Any, other: Owner, b: Any) -> bool:
    kinds = (_kinds(owner, a), _kinds(other, b))
    first, second = kinds
    if isinstance(first, str) and isinstance(second, str):
        return first == second
    if isinstance(first, str):
        return _could_be(second, first)
    if isinstance(second, str):
        return _could_be(first, second)
    return first is None or second is None or first == second


def _kinds(owner: Owner, segment: Any) -> Any:
    """Return the text of a constant segment, the kind of a lone field, or None for anything."""
    if all(field in (None, "table") for _, field in segment):
        return "".join(lit or quote_segment(owner.table.fullname) for lit, _ in segment)
    if len(segment) > 1:
        return None
    field = segment[0][1]
    columns = list(owner.table.primary_key) if field == "pk" else [owner.columns[field]]
    if len(columns) != 1:
        return None
    if isinstance(columns[0].type, types.Integer):
        return int
    return uuid.UUID if isinstance(columns[0].type, types.Uuid) else None


def _could_be(kind: Any, text: str) -> bool:
    if kind is int:
        return re.fullmatch(r"-?[0-9]+", text) is not None
    if kind is uuid.UUID:
        return re.fullmatch(r"[0-9a-f-]{32,36}", text) is not None
    return True


def _is_child(owner: Owner, other: Owner) -> bool:
    """Whether the other table's rows point, by foreign key, at the row that owns the folder."""
    wanted = {owner.columns[f] for f in owner.columns} or set(owner.table.primary_key)
    if "pk" in _fields(owner.template):
        wanted |= set(owner.table.primary_key)
    used = set(other.needs)
    return all(
        any(
            key.references(owner.table) and key.column is column
            for own in used
            for key in own.foreign_keys
        )
        for column in wanted
    )


def refuse_owned_prefix(prefix: str, metadatas: Iterable[Any] | None = None) -> None:
    """Refuse a self-managed prefix that falls into folders that rows own.

    Args:
        prefix: a relative storage path.
        metadatas: the MetaData collections to look at, by default all that were seen.

    Raises:
        RefusedURLError: the prefix could be, or lie in, or hold an owned folder.
    """
    segments = prefix.strip("/").split("/")
    for metadata in list(_checked) if metadatas is None else metadatas:
        for store in declared(metadata):
            for owner, _ in _places(store):
                theirs = [_kinds(owner, segment) for segment in _segments(owner.template)]
                if all(
                    kind == text if isinstance(kind, str) else _could_be(kind, text)
                    for kind, text in zip(theirs, segments, strict=False)
                ):
                    raise RefusedURLError(
                        prefix,
                        f"it meets the folders {owner.template!r} of table {owner.table.name!r}; "
                        "choose a prefix with a name of its own",
                    )
