"""What INSERT, UPDATE and DELETE statements do to objects.

`effects_of` looks at a statement before it runs: it gives every value in its parameters a URL,
selects the URLs that the affected rows hold, under their locks, and refuses what cannot be
followed. No storage is touched. Once the statement has run, `Effects.settle` finds out what it
really did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, String, Table, UniqueConstraint, and_, or_, select, type_coerce
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Null
from sqlalchemy.sql.visitors import replacement_traverse

from sqla_datastore.columns import Owner, StoreColumn, TableStore, table_store
from sqla_datastore.datastore import DataStore
from sqla_datastore.exceptions import RefusedStatementError, RefusedURLError
from sqla_datastore.ledger import Name
from sqla_datastore.options import storage_for
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.urls import ObjectURL, new_object_name

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, ExecutionContext
    from sqlalchemy.sql.compiler import SQLCompiler

    from sqla_datastore.container import Plan

__all__ = ["Effects", "Folder", "Reservation", "effects_of", "family_names"]

CHUNK = 500
"""Rows asked for in one SELECT; SQLite allows 32,766 parameters, older ones 999."""


class Reservation(str):
    """Stands in a statement's parameters for a value until its row is known.

    Attributes:
        value: the value that was bound; once placed, the one that will be stored.
        url: the URL to send to the database, or None until it is placed.
        storage: where its objects go.
        plan: its encoded objects, or None where the row keeps the object that it has.
    """

    __slots__ = ("plan", "storage", "url", "value")

    value: DataStore
    url: ObjectURL | None
    storage: Storage
    plan: Plan | None

    def __new__(cls, value: DataStore) -> Reservation:
        self = super().__new__(cls, "sqla-datastore:reserved")
        self.value = value
        self.url = None
        self.plan = None
        return self

    def names(self) -> list[Name]:
        """The names of the value's objects."""
        assert self.url is not None
        return [Name(self.storage, url.path) for url in self.url.family()]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is to be emptied."""

    storage: Storage
    path: str


@dataclass(frozen=True, slots=True)
class Row:
    """An existing row: the values of its columns, and its URLs as text by declared column."""

    values: Mapping[Column[Any], Any]
    urls: Mapping[StoreColumn, str | None]

    def key(self, table: Table) -> tuple[Any, ...]:
        return tuple(self.values[column] for column in table.primary_key)


@dataclass
class Effects:
    """What one statement does to objects, once it has run.

    Attributes:
        store: the table.
        reserved: values with a URL that the statement will put into rows.
        dropped: names that rows held and will not hold.
        folders: folders to be emptied.
        confirm: asks the database what the statement did, where its success does not tell.
    """

    store: TableStore
    reserved: list[Reservation] = field(default_factory=list)
    dropped: list[Name] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    expected_rows: int | None = None
    upsert: Upsert | None = None

    def settle(self, connection: Connection, rowcount: int) -> None:
        """Keep only what the statement really did. Called right after it ran.

        Args:
            connection: the connection that ran it.
            rowcount: the driver's count of matched rows, -1 where it does not know.
        """
        if self.upsert is not None:
            self.upsert.settle(self, connection)
        elif self.expected_rows is not None and rowcount != self.expected_rows:
            held = self.held(connection)
            self.reserved = [r for r in self.reserved if str(r.url) in held]
            self.dropped = [n for n in self.dropped if _root(n) not in held]

    def held(self, connection: Connection) -> set[str]:
        """Return which of its URLs, put or dropped, rows of the table hold now."""
        urls = [str(r.url) for r in self.reserved] + [_root(name) for name in self.dropped]
        return _held(connection, self.store, list(dict.fromkeys(urls)))


def _root(name: Name) -> str:
    return str(ObjectURL(name.storage.scheme, name.path).root())  # type: ignore[attr-defined]


def family_names(column: StoreColumn, connection: Connection, url: str | None) -> list[Name]:
    """Return the names of the objects behind a URL; none for NULL or a URL of another kind."""
    if url is None:
        return []
    storage = _storage(column, connection)
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return []
    if parsed.scheme != storage.scheme:
        return []
    return [Name(storage, member.path) for member in parsed.family()]


def _storage(column: StoreColumn, connection: Connection) -> Storage:
    return storage_for(column.type.url, connection.dialect)


# -- entry ---------------------------------------------------------------------------------------


def effects_of(
    connection: Connection,
    context: ExecutionContext,
    *,
    flushing: bool,
    superseded: Callable[[Name], bool],
) -> Effects | None:
    """Return what a compiled statement will do to objects, or None if nothing.

    Gives every `Reservation` in the context's parameters its URL. Runs SELECTs on the same
    connection for the rows that an UPDATE, DELETE or upsert will affect.

    Args:
        connection: the connection that is about to run it.
        context: its execution context, parameters bound.
        flushing: whether an ORM flush runs it, so that every value is its row's own.
        superseded: whether an object lost its row in this transaction, so that it may be its
            row's again.

    Raises:
        RefusedStatementError: its effect cannot be followed.
        UnsupportedTypeError: a value cannot be encoded.
        MissingObjectError: a value to be copied has lost its object.
    """
    compiled: SQLCompiler = context.compiled  # type: ignore[assignment]
    _refuse_inner_dml(compiled)
    if not (context.isinsert or context.isupdate or context.isdelete):
        _refuse_reserved(context, ())
        return None
    dml: UpdateBase = compiled.compile_state.statement  # type: ignore[union-attr, assignment]
    table = dml.table
    assert isinstance(table, Table)
    store = table_store(table.metadata.tables.get(table.key, table))
    if store is None:
        _refuse_reserved(context, ())
        return None
    run = _Run(connection, context, compiled, dml, store, flushing, superseded)
    effects = run.effects()
    _refuse_reserved(context, effects.reserved if effects else ())
    return effects


def _refuse_inner_dml(compiled: SQLCompiler) -> None:
    for cte in compiled.ctes or ():
        inner = getattr(cte, "element", None)
        if isinstance(inner, UpdateBase) and table_store(inner.table) is not None:
            raise RefusedStatementError(
                f"a CTE changes table {inner.table.name!r}, which has DataStore columns; run it "
                "as a statement of its own, so that its objects can be followed"
            )


def _refuse_reserved(context: ExecutionContext, placed: Sequence[Reservation]) -> None:
    """Refuse values anywhere but in VALUES and SET; a stored one stands for its URL."""
    if not binds_values(context.compiled):
        return
    known = {id(reservation) for reservation in placed}
    for parameters in context.parameters:  # type: ignore[attr-defined]
        for item in _items(parameters):
            if isinstance(item, Reservation) and id(item) not in known and item.url is None:
                item.url = _comparable(item.value)


def _comparable(value: DataStore) -> ObjectURL:
    if value.url is None or value._changed:
        raise RefusedStatementError(
            "a DataStore that is not stored can only be assigned to its column by INSERT or "
            "UPDATE; flush its row first, or use its URL"
        )
    return ObjectURL.parse(value.url)


def binds_values(compiled: Any) -> bool:
    """Return whether a compiled statement has parameters of the column type; kept with it."""
    known = compiled.__dict__.get("_sqla_datastore_binds")
    if known is None:
        from sqla_datastore.types import DataStoreType

        known = any(isinstance(bind.type, DataStoreType) for bind in compiled.bind_names)
        compiled.__dict__["_sqla_datastore_binds"] = known
    return bool(known)


def _items(parameters: Any) -> Iterable[Any]:
    return parameters.values() if isinstance(parameters, Mapping) else parameters


# -- one statement -------------------------------------------------------------------------------

_MISSING = object()


@dataclass
class _Run:
    connection: Connection
    context: Any
    compiled: SQLCompiler
    dml: Any
    store: TableStore
    flushing: bool
    superseded: Callable[[Name], bool]

    def effects(self) -> Effects | None:
        if isinstance(self.dml, Insert):
            return self.insert()
        if isinstance(self.dml, Update):
            return self.update() if self.set_columns() else None
        assert isinstance(self.dml, Delete)
        return self.delete()

    # what the statement assigns, by name ----------------------------------------------------

    @property
    def assignments(self) -> list[dict[str, Any]]:
        """The statement's own VALUES or SET by column key; several for a multi-row VALUES."""
        state: Any = self.compiled.compile_state
        many = getattr(state, "_multi_parameters", None)
        groups = many or [state._dict_parameters or {}]
        return [{getattr(key, "key", key): value for key, value in g.items()} for g in groups]

    def lookup(self, column: Column[Any], group: int, given: Mapping[str, Any]) -> Any:
        """Return the parameter that a row gets for a column, `_MISSING`, or an SQL expression."""
        assignments = self.assignments
        expression = assignments[group].get(column.key, _MISSING)
        if isinstance(expression, BindParameter):
            name = self.compiled.bind_names.get(expression)
            if name is None or name not in given:
                name = None if expression.unique else expression.key
            if name is not None and name in given:
                return given[name]
        elif expression is not _MISSING and hasattr(expression, "__clause_element__"):
            return expression.__clause_element__()
        elif expression is not _MISSING and hasattr(expression, "_is_bind_parameter"):
            return expression
        many = len(assignments) > 1
        names = [f"{column.key}_m{group}", *([] if many and group else [column.key])]
        return next((given[name] for name in names if name in given), _MISSING)

    def set_columns(self) -> list[StoreColumn]:
        """The declared columns that an UPDATE assigns."""
        keys = {*self.assignments[0], *(self.compiled.column_keys or ())}
        self._refuse_other_tables()
        return [column for column in self.store.columns if column.column.key in keys]

    def _refuse_other_tables(self) -> None:
        for key in self.compiled.compile_state._dict_parameters or {}:  # type: ignore[union-attr]
            other = getattr(key, "table", None)
            if other is None or other is self.store.table or other == self.store.table:
                continue
            if isinstance(key, Column) and any(c.column is key for c in _columns_of(other)):
                raise RefusedStatementError(
                    f"this UPDATE of {self.store.table.name!r} also sets {key}; update that table "
                    "in a statement of its own"
                )

    def reservations(self, index: int) -> list[Reservation]:
        """The values bound in one set of parameters, in order."""
        return [r for r in _items(self.context.parameters[index]) if isinstance(r, Reservation)]

    # INSERT ---------------------------------------------------------------------------------

    def insert(self) -> Effects:
        effects = Effects(self.store)
        self._refuse_select()
        rows = list(self._inserted())
        conflict = self.dml._post_values_clause is not None or bool(self.dml._prefixes)
        if conflict:
            effects.upsert = Upsert.of(self, [values for values, _ in rows])
        for values, reserved in rows:
            for column, reservation in reserved:
                self.place(effects, column, reservation, column.folder.fresh(values))
            if not (effects.upsert and effects.upsert.met(values)):
                effects.folders.extend(self._owned(values, {}))
        return effects

    def _refuse_select(self) -> None:
        if self.dml.select is None:
            return
        names = {getattr(name, "key", name) for name in self.dml._select_names or ()}
        for column in self.store.columns:
            if column.column.key in names:
                raise RefusedStatementError(
                    f"INSERT .. FROM SELECT into {column.label} would put one object into two "
                    "rows; select the rows and insert their values"
                )

    def _inserted(
        self,
    ) -> Iterator[tuple[dict[Column[Any], Any], list[tuple[StoreColumn, Reservation]]]]:
        if self.dml.select is not None:
            return
        groups = len(self.assignments)
        for index, given in enumerate(self.context.compiled_parameters):
            bound = self.reservations(index)
            for group in range(groups):
                values = self._values(group, given)
                reserved = [
                    (column, self._take(bound, raw))
                    for column in self.store.columns
                    if (raw := self._assigned(column, group, given)) is not None
                ]
                yield values, reserved

    def _values(self, group: int, given: Mapping[str, Any]) -> dict[Column[Any], Any]:
        values = {}
        for column in self.store.needs:
            value = self.lookup(column, group, given)
            if value is not _MISSING and not hasattr(value, "_is_bind_parameter"):
                values[column] = value
        return self._with_inherited(values)

    def _assigned(
        self, column: StoreColumn, group: int, given: Mapping[str, Any]
    ) -> DataStore | None:
        """Return the value that a row gets for a declared column; refuse what is none."""
        raw = self.lookup(column.column, group, given)
        if raw is None or raw is _MISSING or isinstance(raw, (DataStore, Null)):
            return raw if isinstance(raw, DataStore) else None
        raise RefusedStatementError(
            f"{column.label} can only be set to a DataStore or None, not to {raw!r:.80}; for a URL "
            "use DataStore.from_url(url), which stores a copy"
        )

    @staticmethod
    def _take(bound: list[Reservation], value: DataStore) -> Reservation:
        for position, reservation in enumerate(bound):
            if reservation.value is value:
                return bound.pop(position)
        raise RefusedStatementError(
            "a value of this statement does not reach its column as a plain parameter; bind it "
            "with the column's own type"
        )

    def place(
        self, effects: Effects, column: StoreColumn, reservation: Reservation, folder: str
    ) -> None:
        """Give a value its URL and encode it; a value that has a home elsewhere is copied."""
        value = reservation.value
        taken = any(value is other.value for other in effects.reserved)
        if taken or (not self.flushing and value.url is not None):
            value = reservation.value = value.copy()
        reservation.storage = _storage(column, self.connection)
        reservation.plan = value._plan(column.label)
        name = new_object_name(len(reservation.plan.objects) - 1)
        url = ObjectURL(reservation.storage.scheme, f"{folder}/{name}")
        reservation.url = ObjectURL.parse(str(url))
        effects.reserved.append(reservation)

    def _owned(
        self, values: Mapping[Column[Any], Any], urls: Mapping[StoreColumn, str | None]
    ) -> Iterator[Folder]:
        """Yield the folders that a row owns: where its URLs lie, else what its key says."""
        for column in self.store.columns:
            if not column.folder.owns:
                continue
            folder = self._folder_of(column, Row(values, urls))
            if folder is not None:
                yield Folder(_storage(column, self.connection), folder)
        owner = self.store.class_folder
        folder = owner.render(values) if owner else None
        if folder is not None:
            yield from (Folder(storage, folder) for storage in self._all_storages())

    def _all_storages(self) -> list[Storage]:
        from sqla_datastore.columns import declared

        storages = [
            _storage(column, self.connection)
            for store in declared(self.store.table.metadata)
            for column in store.columns
        ]
        return list({id(storage): storage for storage in storages}.values())

    def _with_inherited(self, values: dict[Column[Any], Any]) -> dict[Column[Any], Any]:
        """Add what templates need of the tables that this one inherits from."""
        wanted = [
            column
            for owner in (*(c.folder for c in self.store.columns), self.store.class_folder)
            if owner is not None
            for column in owner.needs
            if column.table is not self.store.table
        ]
        for column in wanted:
            link = _inherited_key(self.store.table, column.table)
            if link and all(values.get(own) is not None for own in link):
                query = select(column).where(
                    *(other == values[own] for own, other in link.items())
                )
                values[column] = self.connection.scalar(query)
        return values

    # UPDATE ---------------------------------------------------------------------------------

    def update(self) -> Effects:
        effects = Effects(self.store)
        columns = self.set_columns()
        matched = 0
        for index, rows in self.affected(columns):
            given = self.context.compiled_parameters[index]
            bound = self.reservations(index)
            matched += len(rows) or 1
            for column in columns:
                value = self._assigned(column, 0, given)
                if value is not None and len(rows) > 1:
                    raise RefusedStatementError(
                        f"this UPDATE would put one value of {column.label} into {len(rows)} rows; "
                        "update each row with a value of its own"
                    )
                reservation = self._take(bound, value) if value is not None else None
                row = rows[0] if rows else Row({}, {})
                if reservation is None or not self._keeps(reservation, row.urls.get(column)):
                    for each in rows:
                        effects.dropped += family_names(
                            column, self.connection, each.urls[column]
                        )
                    if reservation is not None:
                        self._replace(effects, column, reservation, row)
        # a value whose row was not found counts as one, so that `settle` asks whether it has one
        effects.expected_rows = matched
        return effects

    def _keeps(self, reservation: Reservation, url: str | None) -> bool:
        """Whether a row already holds the value's own, unchanged object."""
        value = reservation.value
        if url is None or value.url != url or value._changed:
            return False
        reservation.url = ObjectURL.parse(url)
        return True

    def _replace(
        self, effects: Effects, column: StoreColumn, reservation: Reservation, row: Row
    ) -> None:
        url = row.urls.get(column)
        if self._revives(column, reservation, row):
            effects.reserved.append(reservation)
            return
        own = url is not None and reservation.value.url == url
        folder = self._folder_of(column, row) or column.folder.fresh(
            self._with_inherited(dict(row.values))
        )
        flushing, self.flushing = self.flushing, self.flushing or own
        try:
            self.place(effects, column, reservation, folder)
        finally:
            self.flushing = flushing

    def _folder_of(self, column: StoreColumn, row: Row) -> str | None:
        """Return the folder that a row's URL remembers, else what its attributes say, if they do."""
        names = family_names(column, self.connection, row.urls.get(column))
        if names and "/" in names[0].path:
            return names[0].path.rpartition("/")[0]
        return column.folder.render(self._with_inherited(dict(row.values)))

    def _revives(self, column: StoreColumn, reservation: Reservation, row: Row) -> bool:
        """Whether an unchanged value comes back to the row that it left in this transaction."""
        value = reservation.value
        if value.url is None or value._changed:
            return False
        url = ObjectURL.parse(value.url)
        storage = _storage(column, self.connection)
        if url.folder != self._folder_of(column, row):
            return False
        if url.scheme != storage.scheme or not self.superseded(Name(storage, url.path)):
            return False
        reservation.url, reservation.storage = url, storage
        return True

    # DELETE ---------------------------------------------------------------------------------

    def delete(self) -> Effects:
        effects = Effects(self.store)
        for _, rows in self.affected(list(self.store.columns)):
            for row in rows:
                for column, url in row.urls.items():
                    effects.dropped += family_names(column, self.connection, url)
                values = self._with_inherited(dict(row.values))
                effects.folders.extend(self._owned(values, row.urls))
            effects.expected_rows = (effects.expected_rows or 0) + len(rows)
        return effects

    # the rows that a statement affects --------------------------------------------------------

    def affected(self, columns: list[StoreColumn]) -> Iterator[tuple[int, list[Row]]]:
        """Select the affected rows, locked, by index of the set of parameters."""
        given = self.context.compiled_parameters
        keys = self._key_binds() if len(given) > 1 else None
        if keys is None:
            for index in range(len(given)):
                criteria = [self._filled(c, index) for c in self.dml._where_criteria]
                yield index, self.rows(columns, criteria)
            return
        wanted = [tuple(params[name] for name in keys.values()) for params in given]
        found: dict[tuple[Any, ...], Row] = {}
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            clause = or_(*(and_(*map(operators.eq, keys, values)) for values in chunk))
            if len(keys) == 1:
                clause = next(iter(keys)).in_([values[0] for values in chunk])
            found |= {row.key(self.store.table): row for row in self.rows(columns, [clause])}
        for index, key in enumerate(wanted):
            yield index, [found[key]] if key in found else []

    def _key_binds(self) -> dict[Column[Any], str] | None:
        """Return the parameter of each key column where the criteria are just the row's key."""
        clauses = [
            clause
            for criterion in self.dml._where_criteria
            for clause in (
                criterion.clauses if isinstance(criterion, BooleanClauseList) else [criterion]
            )
        ]
        table = self.store.table
        binds: dict[Column[Any], str] = {}
        for clause in clauses:
            if not (isinstance(clause, BinaryExpression) and clause.operator is operators.eq):
                return None
            column = table.c.get(getattr(clause.left, "key", ""))
            if column is None or not isinstance(clause.right, BindParameter):
                return None
            binds[column] = self.compiled.bind_names.get(clause.right, clause.right.key)
        keys = list(table.primary_key)
        if not keys or any(column not in binds for column in keys):
            return None
        return {column: binds[column] for column in keys}

    def _filled(self, criterion: Any, index: int) -> Any:
        """Return a criterion with this execution's values in place of its parameters."""

        def fill(element: Any, **_: Any) -> Any:
            if not isinstance(element, BindParameter):
                return None
            return BindParameter(
                None,
                self._bound_value(element, index),
                type_=element.type,
                unique=True,
                expanding=element.expanding,
                literal_execute=element.literal_execute,
            )

        return replacement_traverse(criterion, {}, fill)

    def _bound_value(self, element: BindParameter[Any], index: int) -> Any:
        name = self.compiled.bind_names.get(element, element.key)
        given = self.context.compiled_parameters[index]
        if name in given:
            return given[name]
        # an expanding parameter: SQLAlchemy has replaced it by one parameter for each element
        expanded = getattr(self.context, "_expanded_parameters", {}).get(name)
        if expanded is not None and not getattr(element.type, "_is_tuple_type", False):
            return [given[part] for part in expanded]
        extracted = self.context.extracted_parameters
        return self.compiled.construct_params(extracted_parameters=extracted, _check=False)[name]

    def rows(self, columns: list[StoreColumn], criteria: Iterable[Any]) -> list[Row]:
        """Select rows with the raw text of their URLs, locked for update."""
        return select_rows(self.connection, self.store, columns, criteria)


def select_rows(
    connection: Connection,
    store: TableStore,
    columns: Sequence[StoreColumn],
    criteria: Iterable[Any],
) -> list[Row]:
    """Select rows of a table with the raw text of their URLs, locked for update."""
    needs = store.needs
    query = (
        select(*needs, *(type_coerce(c.column, String()).label(None) for c in columns))
        .select_from(store.table)
        .where(*criteria)
        .with_for_update(of=store.table)
    )
    if not needs and not columns:
        return []
    return [
        Row(
            dict(zip(needs, found[: len(needs)], strict=True)),
            dict(zip(columns, found[len(needs) :], strict=True)),
        )
        for found in connection.execute(query)
    ]


def _columns_of(table: Any) -> tuple[StoreColumn, ...]:
    store = table_store(table)
    return store.columns if store else ()


def _held(connection: Connection, store: TableStore, urls: Sequence[str]) -> set[str]:
    """Return those of the URLs that rows of the table hold."""
    held: set[str] = set()
    for column in store.columns:
        text = type_coerce(column.column, String())
        for start in range(0, len(urls), CHUNK):
            query = select(text).where(text.in_(urls[start : start + CHUNK]))
            held.update(connection.scalars(query))
    return held


def _inherited_key(table: Table, base: Any) -> dict[Column[Any], Column[Any]]:
    """Return how a table's key points at the key of a table that it inherits from."""
    link: dict[Column[Any], Column[Any]] = {}
    for own in table.primary_key:
        for key in own.foreign_keys:
            if key.column.table is base:
                link[own] = key.column
            else:
                link.update({own: b for b in _inherited_key(key.column.table, base).values()})
    return link


@dataclass
class Upsert:
    """The rows that an INSERT may meet, found by every unique key that its values tell."""

    columns: tuple[StoreColumn, ...]
    criteria: list[Any]
    before: dict[tuple[Any, ...], Row]
    unknown: bool

    @classmethod
    def of(cls, run: _Run, rows: list[dict[Column[Any], Any]]) -> Upsert:
        unique = _unique_keys(run.store.table)
        criteria = []
        for index, given in enumerate(run.context.compiled_parameters):
            for group in range(len(run.assignments)):
                criteria += _key_criteria(run, unique, group, given)
        self = cls(run.store.columns, criteria, {}, not criteria)
        self.before = self._select(run.connection, run.store)
        return self

    def met(self, values: Mapping[Column[Any], Any]) -> bool:
        """Whether a row of this primary key was there before."""
        key = tuple(values.get(column) for column in self._key_columns)
        return key in self.before

    @property
    def _key_columns(self) -> list[Column[Any]]:
        return list(self.columns[0].column.table.primary_key) if self.columns else []

    def _select(self, connection: Connection, store: TableStore) -> dict[tuple[Any, ...], Row]:
        found: dict[tuple[Any, ...], Row] = {}
        for start in range(0, len(self.criteria), CHUNK):
            clause = or_(*self.criteria[start : start + CHUNK])
            for row in select_rows(connection, store, self.columns, [clause]):
                found[row.key(store.table)] = row
        return found

    def settle(self, effects: Effects, connection: Connection) -> None:
        """Compare the rows before and after: what they hold now is adopted, the rest dropped."""
        if self.unknown:
            held = effects.held(connection)
        else:
            after = self._select(connection, effects.store)
            held = {url for row in after.values() for url in row.urls.values() if url}
        for row in self.before.values():
            for column, url in row.urls.items():
                if url is not None and url not in held:
                    effects.dropped += family_names(column, connection, url)
        effects.reserved = [r for r in effects.reserved if str(r.url) in held]


def _unique_keys(table: Table) -> list[list[Column[Any]]]:
    keys = [list(table.primary_key)] if table.primary_key else []
    keys += [list(c.columns) for c in table.constraints if isinstance(c, UniqueConstraint)]
    keys += [
        [c for c in index.expressions if isinstance(c, Column)]
        for index in table.indexes
        if index.unique and all(isinstance(c, Column) for c in index.expressions)
    ]
    return keys


def _key_criteria(
    run: _Run, unique: list[list[Column[Any]]], group: int, given: Mapping[str, Any]
) -> Iterator[Any]:
    for columns in unique:
        values = [run.lookup(column, group, given) for column in columns]
        if all(v is not _MISSING and v is not None and not hasattr(v, "_is_bind_parameter") for v in values):
            yield and_(*map(operators.eq, columns, values))
