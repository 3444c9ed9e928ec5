"""What a compiled statement has to do with storages: most have nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import BindParameter, Select, Table
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase

from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable, holds_values
from sqla_datastore.schema.declarations import DECLARATIONS, declared_table
from sqla_datastore.schema.sqlalchemy_compat import statement_of

RowsQueries: TypeAlias = (
    "dict[tuple[DeclaredColumn, ...], tuple[Select[Any], dict[str, BindParameter[Any]]]]"
)
"""SELECTs of rows and the statement's parameters that theirs stand for, by their columns."""

CONCERNS_NOTHING = "_sqla_datastore_concerns_nothing"
"""The attribute of a compiled statement that holds the declarations' version at which it concerned
nothing, for those who cannot afford a call of `concern_of`."""

_KNOWN = "_sqla_datastore_concern"
_UNKNOWN: tuple[int, Concern | None] = (-1, None)


@dataclass(frozen=True, slots=True)
class Concern:
    """What a compiled statement has to do with storages.

    Attributes:
        declared: the declared table that it changes, if any.
        binds_values: whether it has parameters of the column type.
        inner: the name of a declared table that one of its CTEs changes, which is refused.
        queries: the SELECTs for the rows that it affects, each built once; see `AffectedRows`.
    """

    declared: DeclaredTable | None
    binds_values: bool
    inner: str | None
    queries: RowsQueries = field(default_factory=dict)


def concern_of(compiled: Any) -> Concern | None:
    """Return what a compiled statement has to do with storages, None for nothing.

    SQLAlchemy compiles a statement once and runs it often, so the answer is kept with it.

    Args:
        compiled: what an execution context calls its ``compiled``.
    """
    # read before looking: another thread may map a class meanwhile. One that is mapped later may
    # declare a folder for a table that was used before
    version = DECLARATIONS.version
    known, found = getattr(compiled, _KNOWN, _UNKNOWN)
    if known != version:
        found = _look_at(compiled)
        setattr(compiled, _KNOWN, (version, found))
        if found is None:
            setattr(compiled, CONCERNS_NOTHING, version)
    return found


def _look_at(compiled: Any) -> Concern | None:
    if not isinstance(compiled, SQLCompiler):
        return None  # DDL
    declared = _changed_table(compiled)
    binds_values = any(holds_values(bind.type) for bind in compiled.bind_names)
    inner = _changed_by_cte(compiled)
    if declared is None and not binds_values and inner is None:
        return None
    return Concern(declared, binds_values, inner)


def _changed_table(compiled: Any) -> DeclaredTable | None:
    if not (compiled.isinsert or compiled.isupdate or compiled.isdelete):
        return None
    table = statement_of(compiled).table
    if not isinstance(table, Table):
        # a lightweight `table()`, as migrations use it, declares nothing
        return None
    # it may be an annotated copy
    return declared_table(table.metadata.tables.get(table.key, table))


def _changed_by_cte(compiled: Any) -> str | None:
    for cte in compiled.ctes or ():
        inner = getattr(cte, "element", None)
        if isinstance(inner, UpdateBase) and declared_table(inner.table) is not None:
            return str(inner.table.description)
    return None
