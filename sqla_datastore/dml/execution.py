"""The entry to this room: what a compiled statement will do to objects when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.sql.dml import UpdateBase

from sqla_datastore.dml.delete import DeleteStatement
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.insert import InsertStatement
from sqla_datastore.dml.parameters import Reservation, items_of
from sqla_datastore.dml.statement import Statement, Surroundings
from sqla_datastore.dml.update import UpdateStatement
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.schema.columns import DeclaredTable, declared_table, holds_values
from sqla_datastore.schema.sqlalchemy_compat import dml_of
from sqla_datastore.storage.urls import ObjectURL
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def effects_of(connection: Connection, context: Any, around: Surroundings) -> Effects | None:
    """Return what a compiled statement will do to objects, or None if nothing.

    Gives every `Reservation` in the context's parameters its URL. Runs SELECTs on the same
    connection for the rows that an UPDATE, DELETE or upsert will affect.

    Args:
        connection: the connection that is about to run it.
        context: its execution context, parameters bound.
        around: what matters of its transaction.

    Raises:
        RefusedStatementError: its effect cannot be followed.
        UnsupportedTypeError: a value cannot be encoded.
        MissingObjectError: a value to be copied has lost its object.
    """
    _refuse_inner_dml(context.compiled)
    effects = None
    declared = follows(context)
    if declared is not None:
        _refuse_own_schemas(connection, context)
        effects = _statement(connection, context, declared, around).effects()
    if binds_values(context.compiled):
        _refuse_elsewhere(context, effects.reserved if effects else ())
    return effects


def _statement(
    connection: Connection, context: Any, declared: DeclaredTable, around: Surroundings
) -> Statement:
    kind: type[Statement] = DeleteStatement
    if context.isinsert:
        kind = InsertStatement
    elif context.isupdate:
        kind = UpdateStatement
    return kind(connection, context, dml_of(context.compiled), declared, around)


def follows(context: Any) -> DeclaredTable | None:
    """Return what a statement's table has to do with storages, if it changes one that has."""
    if not (context.isinsert or context.isupdate or context.isdelete):
        return None
    table = dml_of(context.compiled).table
    if not isinstance(table, Table):
        # a lightweight `table()`, as migrations use it, declares nothing
        return None
    # it may be an annotated copy
    return declared_table(table.metadata.tables.get(table.key, table))


def binds_values(compiled: Any) -> bool:
    """Return whether a compiled statement has parameters of the column type; kept with it."""
    known = compiled.__dict__.get("_sqla_datastore_binds")
    if known is None:
        known = any(holds_values(bind.type) for bind in compiled.bind_names)
        compiled.__dict__["_sqla_datastore_binds"] = known
    return bool(known)


def _refuse_inner_dml(compiled: Any) -> None:
    for cte in compiled.ctes or ():
        inner = getattr(cte, "element", None)
        if isinstance(inner, UpdateBase) and declared_table(inner.table) is not None:
            raise RefusedStatementError(
                f"a CTE changes table {inner.table.description!r}, which has DataStore columns; "
                "run it as a statement of its own, so that its objects can be followed"
            )


def _refuse_own_schemas(connection: Connection, context: Any) -> None:
    """Refuse a translation that only the statement has: what is asked about its rows lacks it."""
    name = "schema_translate_map"
    if context.execution_options.get(name) != connection.get_execution_options().get(name):
        raise RefusedStatementError(
            "a schema_translate_map of one statement is not followed; give it to the engine or the "
            "connection: engine.execution_options(schema_translate_map=...)"
        )


def _refuse_elsewhere(context: Any, placed: Sequence[Reservation]) -> None:
    """Refuse values anywhere but in VALUES and SET; a stored one stands for its URL."""
    known = {id(reservation) for reservation in placed}
    for parameters in context.parameters:
        for item in items_of(parameters):
            for each in item if isinstance(item, (list, tuple)) else (item,):
                if isinstance(each, Reservation) and id(each) not in known and each.url is None:
                    each.url = _comparable(each.value)


def _comparable(value: DataStore) -> ObjectURL:
    url = value._unchanged_url()
    if url is None:
        raise RefusedStatementError(
            "a DataStore that is not stored can only be assigned to its column by INSERT or "
            "UPDATE; flush its row first, or use its URL"
        )
    return ObjectURL.parse(url)
