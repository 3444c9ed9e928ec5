"""How the entries of many rows agree: one kind and one schema, or an error that names a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from sqla_datastore.exceptions import CollectError

_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}


class Form(NamedTuple):
    """What an entry is: its kind and schema, and the row of the first one that was like it."""

    kind: str
    schema: Any
    row: str


class Agreement:
    """The kind and the schema that all entries so far have in common.

    Args:
        entry: the entry's name, for messages.
        schema: given by the user, or None to take the one that suits all.

    Attributes:
        schema: what suits all of them; None while there is none.
        is_fixed: whether another schema is refused.
    """

    def __init__(self, entry: str, schema: Any = None) -> None:
        self.schema = schema
        self.is_fixed = False
        self._entry = entry
        self._is_given = schema is not None
        self._first: Form | None = None

    def add(self, forms: Iterable[Form]) -> None:
        """Take in the forms of further entries.

        Raises:
            CollectError: one does not agree with those before; names its row.
        """
        for form in forms:
            self._first = self._first or form
            if form.kind != self._first.kind:
                raise CollectError(
                    f"the entry {self._entry!r} of {form.row} is {form.kind}, that of "
                    f"{self._first.row} is {self._first.kind}; collect them apart, by a where()",
                    row=form.row,
                    entry=self._entry,
                )
            if not self._is_given:
                self._take(form)

    def _take(self, form: Form) -> None:
        if self.schema is None:
            self.schema = form.schema
            return
        try:
            schema = merged(self.schema, form.schema)
        except pa.ArrowException as err:
            raise CollectError(
                f"the entry {self._entry!r} of {form.row} does not agree with those before: {err}; "
                "collect them apart, or give the schema=... that all of them are cast to",
                row=form.row,
                entry=self._entry,
            ) from err
        if self.is_fixed and not schema.equals(self.schema):
            new = [field.name for field in schema if field not in [*self.schema]]
            raise CollectError(
                f"the entry {self._entry!r} of {form.row} has columns that batches before do not "
                f"have, or of another type: {', '.join(map(repr, new))}; give the schema=... of "
                "all of them",
                row=form.row,
                entry=self._entry,
            )
        self.schema = schema


def plain(schema: Any) -> Any:
    """Return a schema without metadata, whose columns may have nulls.

    Raises:
        ValueError: two columns have one name.
    """
    names = schema.names
    if len({*names}) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called {twin!r}")
    return pa.schema([pa.field(field.name, _read_by_all(field.type)) for field in schema])


def _read_by_all(arrow_type: Any) -> Any:
    """Return the type that a view of text becomes: unify_schemas knows none."""
    return _VIEWS.get(str(arrow_type), arrow_type)


def merged(one: Any, other: Any) -> Any:
    """Return the schema that two plain ones can be cast to.

    Raises:
        pyarrow.ArrowException: there is none.
    """
    known = {field.name: field.type for field in one}
    for field in other:
        mine = known.setdefault(field.name, field.type)
        if not mine.equals(field.type):
            known[field.name] = _merged_type(field.name, mine, field.type)
    return pa.schema([pa.field(name, each) for name, each in known.items()])


def _merged_type(name: str, one: Any, other: Any) -> Any:
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        # of categories that differ, or text here and categories there: text
        values = [_value_type(each) for each in (one, other)]
        return values[0] if values[0].equals(values[1]) else _merged_type(name, *values)
    schemas = [pa.schema([pa.field(name, each)]) for each in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _value_type(arrow_type: Any) -> Any:
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def fitted(table: Any, schema: Any) -> Any:
    """Return a table with the columns of a schema, cast where need be; what it lacks is null.

    Raises:
        pyarrow.ArrowException: a value does not fit its type.
    """
    if table.schema.equals(schema, check_metadata=True):
        return table
    lacks = pa.nulls(table.num_rows)
    names = {*table.column_names}
    columns = [
        _cast(table.column(field.name) if field.name in names else lacks, field.type)
        for field in schema
    ]
    if not columns:
        return table.select([])
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: Any, arrow_type: Any) -> Any:
    try:
        return column.cast(arrow_type)
    except pa.ArrowNotImplementedError:  # before pyarrow 20 nothing casts views
        if str(column.type) not in _VIEWS:
            raise
        return pa.array(column.to_pylist(), arrow_type)
