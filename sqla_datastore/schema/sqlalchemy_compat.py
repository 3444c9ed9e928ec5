"""What this library reads of SQLAlchemy that SQLAlchemy does not document.

Every use of an internal is here, with its reason. ``tests/schema/test_sqlalchemy_compat.py`` pins
each one; they were tried on SQLAlchemy 2.0.30, 2.0.58 and 2.1.9. It lies in `schema` because that
is the lowest room that needs it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.inspection import _inspects
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import _sessions
from sqlalchemy.sql.elements import BindParameter, ClauseElement

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

F = TypeVar("F", bound=Callable[..., Any])


# -- compiled statements ---------------------------------------------------------------------------


def assigned(compiled: SQLCompiler) -> list[dict[Any, Any]]:
    """Return what VALUES or SET says, by column or key; one dict for each row of a VALUES.

    The statement's own ``_values`` and ``_multi_values`` are not normalized; the compile state is.
    """
    state: Any = compiled.compile_state
    # it is set for a VALUES of several rows, and `_dict_parameters` is its first row then
    many: list[dict[Any, Any]] | None = getattr(state, "_multi_parameters", None)
    return many or [state._dict_parameters or {}]


def statement_of(compiled: SQLCompiler) -> Any:
    """Return the INSERT, UPDATE or DELETE that was compiled.

    The ORM rewrites the statement that an execution context calls its own; this one is what runs.
    """
    state: Any = compiled.compile_state
    return state.statement


def parameter_names(column: Column[Any], group: int, groups: int) -> list[str]:
    """Return the names that ``sqlalchemy.sql.crud`` gives to the parameter of a column.

    They follow the column's key and, in a VALUES of several rows, the row's number. The compiler
    does not keep which parameter belongs to which column.

    Args:
        column: the column.
        group: which row of the VALUES, else 0.
        groups: how many rows the VALUES has.
    """
    # the first row has two names: in a VALUES of several rows `_m0` is for what was given, and the
    # bare key for what a default made
    if groups > 1 and group:
        return [f"{column.key}_m{group}"]
    return [f"{column.key}_m0", column.key]


def defaulted_keys(compiled: SQLCompiler) -> set[str]:
    """Return the keys of the columns whose Python-side defaults gave the parameters."""
    # later rows of a VALUES have stand-ins there, with the parameter's name for a key
    return {column.key for column in (*compiled.insert_prefetch, *compiled.update_prefetch)}


def expanded_parameters(context: Any, name: str) -> Sequence[str] | None:
    """Return the parameters that replaced an expanding one, as in ``IN``; None where it is none.

    The execution context keeps them, and nothing public does.
    """
    expanded: dict[str, Sequence[str]] = getattr(context, "_expanded_parameters", {})
    return expanded.get(name)


def constructed_parameters(context: Any) -> dict[str, Any]:
    """Return the values of a cached statement's own literals, as this execution has them.

    A compiled statement is shared by executions with other literals; ``extracted_parameters`` are
    those of this one, and ``_check`` leaves required ones alone that were given otherwise.
    """
    values: dict[str, Any] = context.compiled.construct_params(
        extracted_parameters=context.extracted_parameters, _check=False
    )
    return values


def conflict_targets(statement: Any) -> Sequence[Any]:
    """Return what an ON CONFLICT names to meet rows by: names, columns, or expressions.

    The clause keeps ``index_elements`` under another, internal name.
    """
    clause = conflict_clause(statement)
    return getattr(clause, "inferred_target_elements", None) or ()


def conflict_clause(insert: Any) -> Any:
    """Return the ON CONFLICT or ON DUPLICATE KEY clause of an INSERT, or None."""
    return getattr(insert, "_post_values_clause", None)


def conflict_keys(insert: Any) -> list[str]:
    """Return the keys of the columns that the conflict clause of an INSERT sets to plain values.

    They come in the order in which the compiler binds them: that of the table's columns, after
    those whose order a list for MySQL's clause gives. ``set_`` of PostgreSQL's and SQLite's clause
    is kept as pairs, MySQL's as a dict; a plain value may have been made a parameter.
    """
    clause = insert._post_values_clause
    pairs = getattr(clause, "update_values_to_set", None) or getattr(clause, "update", None) or ()
    keys = {
        getattr(key, "key", key)
        for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)
        if isinstance(value, BindParameter) or not is_sql(value)
    }
    given = getattr(clause, "_parameter_ordering", None) or ()
    ordered = dict.fromkeys(getattr(key, "key", key) for key in given)
    ordered |= dict.fromkeys(column.key for column in insert.table.c)
    return [key for key in ordered if key in keys]


def may_meet_rows(insert: Any) -> bool:
    """Return whether an INSERT may update or replace existing rows, or leave them alone.

    It has a conflict clause, or prefixes such as ``OR IGNORE``.
    """
    return insert._post_values_clause is not None or bool(insert._prefixes)


def selected_names(insert: Any) -> set[str]:
    """Return the keys of the columns that an ``INSERT .. FROM SELECT`` fills."""
    return {getattr(name, "key", name) for name in insert._select_names or ()}


def is_sql(value: Any) -> bool:
    """Return whether something is an SQL expression, or stands for one as mapped attributes do."""
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


# -- types and inspection --------------------------------------------------------------------------


def variants(type_: TypeEngine[Any]) -> Iterable[TypeEngine[Any]]:
    """Return the types that ``with_variant`` gave to a type; nothing public lists them."""
    mapping: dict[str, TypeEngine[Any]] = getattr(type_, "_variant_mapping", {})
    return mapping.values()


def inspects(cls: type) -> Callable[[F], F]:
    """Register what answers ``sqlalchemy.inspect`` for a class; SQLAlchemy's own way to do so."""
    return _inspects(cls)


# -- Sessions --------------------------------------------------------------------------------------


def observe_flush(session: Session, before: Callable[[], None]) -> None:
    """Call something before each flush of one's own, not before an autoflush.

    A Session without a dirty row does not flush at all, and no event tells that it was asked to.
    Its own ``flush`` is observed as an instance attribute: ``begin_nested`` and ``commit`` call it,
    too.
    """
    # weakly: otherwise the Session would hold itself, by its own attribute
    reference, cls = weakref.ref(session), type(session)

    def flush(objects: Sequence[Any] | None = None) -> None:
        found = reference()
        assert found is not None
        # None under AsyncSession, whose greenlet begins with this call
        caller = sys._getframe().f_back
        if caller is None or caller.f_code is not Session._autoflush.__code__:
            before()
        cls.flush(found, objects)

    vars(session)["flush"] = flush


def sessions_using(connection: Connection) -> list[Session]:
    """Return the Sessions whose transactions use a connection.

    A connection does not know them, and a Session lists its connections for itself.
    """
    return [
        session
        for session in list(_sessions.values())
        if (used := session.get_transaction()) is not None and connection in used._connections
    ]


# -- engines ---------------------------------------------------------------------------------------


def pool_dialect(record: Any) -> Dialect | None:
    """Return the dialect of the engine whose pool has made a connection.

    A pool knows it, to reset and close connections, and tells nobody. One that was made without an
    engine knows none. ``create_engine(pool=other.pool)`` rebinds it, so it may be another one than
    that of the engine in use.
    """
    dialect = record._ConnectionRecord__pool._dialect
    return dialect if hasattr(dialect, "execution_ctx_cls") else None
