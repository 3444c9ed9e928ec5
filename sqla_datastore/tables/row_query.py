"""Which rows, and what of them: the SELECT, the columns that are attached, the rows' names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
from sqlalchemy import Select, types
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql import ColumnElement

from sqla_datastore.exceptions import CollectError
from sqla_datastore.schema.columns import DeclaredType

if TYPE_CHECKING:
    from sqla_datastore.value.datastore import DataStore

Attribute: TypeAlias = "QueryableAttribute[Any] | ColumnElement[Any]"
Row: TypeAlias = Sequence[Any]
"""What is attached, the primary key, and the value, as `RowQuery.statement` selects them."""


@dataclass(frozen=True, slots=True)
class RowQuery:
    """What is selected of the rows.

    Attributes:
        statement: selects it, in the order of the statement that it was made of.
        attached: the columns that are attached.
        keys: the names of the primary key's columns.
        table: the name of the table, for messages.
    """

    statement: Select[Any]
    attached: tuple[AttachedColumn, ...]
    keys: tuple[str, ...]
    table: str

    @classmethod
    def of(
        cls, statement: Select[Any], attribute: Attribute, columns: Sequence[Attribute] | None
    ) -> RowQuery:
        """Return the query for a value and some columns of the rows of a statement.

        Args:
            statement: says which rows, and in which order.
            attribute: the column of values.
            columns: those that are attached, None for the primary key.

        Raises:
            TypeError: the statement is no SELECT, or `attribute` no column of values.
            CollectError: a column cannot be attached.
        """
        if not isinstance(statement, Select):
            raise TypeError(
                f"a select() says which rows to collect, not {type(statement).__name__!r}; for a "
                "union write select(Run).where(Run.id.in_(…))"
            )
        if not isinstance(getattr(attribute, "type", None), DeclaredType):
            raise TypeError(f"{attribute} is no column of DataStoreType")
        keys, table = _keys_of(attribute)
        attached = [*map(AttachedColumn.of, keys if columns is None else columns)]
        _refuse_twins([column.name for column in attached])
        selected = [*(column.expression for column in attached), *keys, attribute]
        only = statement.with_only_columns(*selected, maintain_column_froms=True)
        return cls(only, tuple(attached), tuple(key.key for key in keys), table)

    @staticmethod
    def value_of(row: Row) -> DataStore | None:
        """Return the value of a row."""
        return row[-1]  # type: ignore[no-any-return]

    def label(self, row: Row) -> str:
        """Return what a row is called in messages."""
        first = len(self.attached)
        keys = zip(self.keys, row[first : first + len(self.keys)], strict=True)
        shown = ", ".join(f"{name}={value!r}" for name, value in keys)
        return f"the row {shown or 'without a primary key'} of {self.table!r}"

    def table_of(self, rows: Sequence[Row]) -> Any:
        """Return the Arrow table of the attached columns, one row for each."""
        values = [[row[place] for row in rows] for place in range(len(self.attached))]
        arrays = [each.array(found) for each, found in zip(self.attached, values, strict=True)]
        return pa.Table.from_arrays(arrays, [column.name for column in self.attached])


def _keys_of(attribute: Any) -> tuple[list[Any], str]:
    """Return the primary key of the rows that a column belongs to, and their table's name."""
    if isinstance(attribute, QueryableAttribute):
        mapper, entity = attribute.parent.mapper, attribute.parent.entity
        properties = map(mapper.get_property_by_column, mapper.primary_key)
        return [getattr(entity, each.key) for each in properties], str(mapper.local_table)
    table = getattr(attribute, "table", None)
    return [*getattr(table, "primary_key", ())], str(getattr(table, "name", attribute))


def _refuse_twins(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise CollectError(
                f"two of the columns are called {name!r}; name one: column.label('other')"
            )


@dataclass(frozen=True, slots=True)
class AttachedColumn:
    """A column of the rows, as it is attached to their entries.

    Attributes:
        expression: what is selected.
        name: its name in the table.
        type: its Arrow type; None leaves it to the values.
        convert: makes of a value what Arrow takes.
    """

    expression: Any
    name: str
    type: Any
    convert: Callable[[Any], Any] | None

    @classmethod
    def of(cls, expression: Any) -> AttachedColumn:
        """Return how a column is attached.

        Raises:
            CollectError: it has no name, or holds values of this library.
        """
        name = getattr(expression, "key", None)
        if not isinstance(name, str):
            raise CollectError(f"the column {expression} has no name; give it one: .label('name')")
        if isinstance(expression.type, DeclaredType):
            raise CollectError(f"the column {name!r} holds values; collect one of their entries")
        return cls(expression, str(name), *_arrow_type(expression.type))

    def array(self, values: list[Any]) -> Any:
        """Return values as an Arrow array.

        Raises:
            CollectError: Arrow does not take them.
        """
        if self.convert is not None:
            values = [None if value is None else self.convert(value) for value in values]
        try:
            return pa.array(values, self.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as err:
            raise CollectError(
                f"the column {self.name!r} cannot be attached ({err}); leave it out, or select an "
                "expression of another type"
            ) from err


def _arrow_type(sql: types.TypeEngine[Any]) -> tuple[Any, Callable[[Any], Any] | None]:
    """Return the Arrow type of a SQL type, if one is sure before there are values."""
    if isinstance(sql, types.Enum):
        return pa.string(), lambda value: getattr(value, "name", value)
    if getattr(sql, "asdecimal", False):
        precision, scale = getattr(sql, "precision", None), getattr(sql, "scale", None)
        is_known = precision is not None and scale is not None
        return pa.decimal128(precision, scale) if is_known else None, None
    if isinstance(sql, types.DateTime) and sql.timezone:
        # some databases keep no zone and give none back
        return None, None
    for kind, arrow, convert in _TYPES:
        if isinstance(sql, kind):
            return arrow, convert
    return None, None


_TYPES: tuple[tuple[type[Any], Any, Callable[[Any], Any] | None], ...] = (
    (types.Boolean, pa.bool_(), None),
    (types.Integer, pa.int64(), None),
    (types.Float, pa.float64(), None),
    (types.Numeric, pa.float64(), None),
    (types.Uuid, pa.string(), str),
    (types.String, pa.string(), None),
    (types.DateTime, pa.timestamp("us"), None),
    (types.Date, pa.date32(), None),
    (types.Time, pa.time64("us"), None),
    (types.Interval, pa.duration("us"), None),
    (types.LargeBinary, pa.binary(), None),
    (types.JSON, pa.string(), json.dumps),
)
