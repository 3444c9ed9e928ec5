"""The observers of mappers, sessions and engines: they tell the ledger what happens to rows.

==============================  ===================================================================
``before_cursor_execute``       values in the parameters get their URLs; the URLs that affected rows
                                hold are selected
``after_execute``               the statement ran: its objects are written and its folders listed,
                                or, inside a flush, at its end
``before_insert``, ``_update``  a value that belongs to another row is replaced by a copy
``before_flush``, ``_commit``   entries that were handed out are looked at again
``after_flush``                 the objects of the flush are written, in parallel
==============================  ===================================================================
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sqlalchemy import Column, event
from sqlalchemy.engine import Connection, Engine, ExecutionContext
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    ORMExecuteState,
    Session,
    attributes,
    object_session,
)
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE
from sqlalchemy.pool import Pool

from sqla_datastore.dml.effects import Effects, binds_values, effects_of, follows
from sqla_datastore.dml.parameters import Reservation
from sqla_datastore.engine import observer as endings
from sqla_datastore.engine.drivers import TransactionState
from sqla_datastore.engine.observer import transaction_of
from sqla_datastore.exceptions import StaleValueError
from sqla_datastore.orm import edits
from sqla_datastore.orm.edits import RowLink, declared_attributes, values_of
from sqla_datastore.schema import declarations
from sqla_datastore.storage.names import Name, names_of
from sqla_datastore.unitofwork import transaction as transactions
from sqla_datastore.unitofwork.transaction import Transaction
from sqla_datastore.value.datastore import DataStore

__all__ = ["install"]

logger = logging.getLogger("sqla_datastore")

WRITERS = 8
"""Objects of one flush written at the same time."""

# text that starts or ends a transaction or a savepoint behind SQLAlchemy's back
_CONTROL = re.compile(
    r"(?:^|;)\s*(BEGIN|START\s+TRANSACTION|COMMIT|ROLLBACK|ABORT|END|SAVEPOINT|RELEASE"
    r"|PREPARE\s+TRANSACTION|XA|SET\s+(SESSION\s+)?AUTOCOMMIT)\b",
    re.IGNORECASE,
)
# MariaDB, "SQL statements that cause an implicit commit"
_IMPLICIT_COMMIT = re.compile(
    r"(?:^|;)\s*((CREATE|DROP)(?!\s+TEMPORARY)|ALTER|TRUNCATE|RENAME|GRANT|REVOKE|LOCK|UNLOCK|ANALYZE|OPTIMIZE|CHECK"
    r"|REPAIR|CACHE|LOAD\s+INDEX|FLUSH|RESET|INSTALL|UNINSTALL|SET\s+PASSWORD|CHANGE|START|STOP)\b",
    re.IGNORECASE,
)
_DDL = re.compile(r"\b(ALTER|DROP|RENAME)\b", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)

_to_expire: weakref.WeakKeyDictionary[Session, list[tuple[Any, set[str]]]] = (
    weakref.WeakKeyDictionary()
)
# values that a rollback put back, by the Session that has not heard of it yet
_undone: weakref.WeakKeyDictionary[Session, list[tuple[InstanceState[Any], DataStore]]] = (
    weakref.WeakKeyDictionary()
)
# which Sessions' transactions use a driver's connection, by its id, and the reverse; each is only
# looked up by key, since other threads change it meanwhile
_sessions: dict[int, weakref.WeakSet[Session]] = {}
_raws: weakref.WeakKeyDictionary[Session, set[int]] = weakref.WeakKeyDictionary()


# -- statements ----------------------------------------------------------------------------------


def _before_cursor_execute(
    connection: Connection,
    _cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext | None,
    _executemany: bool,
) -> tuple[str, Any]:
    endings.end_if_out_of_sight(connection)
    compiled: Any = getattr(context, "compiled", None)
    if compiled is None or context.isddl or context.is_text:  # type: ignore[union-attr]
        _note_text(connection, statement)
        if compiled is None or context.isddl:  # type: ignore[union-attr]
            return statement, parameters
    if context.is_crud or compiled.bind_names:  # type: ignore[union-attr]
        _look_at(connection, context)
        if binds_values(compiled):
            parameters = _with_urls(parameters)
    return statement, parameters


def _look_at(connection: Connection, context: Any) -> None:
    """Find out what a statement will do, once for all its batches."""
    if hasattr(context, "_sqla_datastore"):
        return
    context._sqla_datastore = None
    autocommit = context.is_crud and transactions.is_autocommit(connection)
    if follows(context) and not autocommit:
        transactions.begin_immediately(connection)
    found = transactions.found_on(connection)
    effects = effects_of(
        connection,
        context,
        flushing=_in_flush(connection),
        autocommit=autocommit,
        pending=found.pending_values if found is not None else set(),
        superseded=found.ledger.is_superseded if found is not None else lambda _: False,
    )
    if effects is None:
        return
    context._sqla_datastore = effects
    transaction = transaction_of(connection)
    schemas = frozenset((context.execution_options.get("schema_translate_map") or {}).items())
    transaction.metadatas[effects.declared.table.metadata, schemas] = None
    if autocommit:
        # there is no moment between the statement and its COMMIT, so the write comes first
        try:
            _write(transaction, effects.reserved)
            transaction.ledger.make_durable(name for r in effects.reserved for name in _names(r))
        except BaseException:
            transaction.end("rollback")
            raise


def _with_urls(parameters: Any) -> Any:
    if isinstance(parameters, Reservation):
        return str(parameters.url)
    if isinstance(parameters, dict):
        return {key: _with_urls(value) for key, value in parameters.items()}
    if isinstance(parameters, (list, tuple)):
        return type(parameters)([_with_urls(item) for item in parameters])
    return parameters


def _after_execute(
    connection: Connection, _clause: Any, _multi: Any, _params: Any, _options: Any, result: Any
) -> None:
    context: Any = getattr(result, "context", None)
    effects: Effects | None = getattr(context, "_sqla_datastore", None)
    if effects is None:
        return
    context._sqla_datastore = None
    transaction = transaction_of(connection)
    try:
        with transaction.inside():
            effects.settle(connection, result.rowcount if not context.isinsert else -1)
    except BaseException:
        transaction.note_failed(effects)
        raise
    if transactions.is_autocommit(connection) or transaction.state is TransactionState.IDLE:
        _write(transaction, effects.reserved)
        _end_committed(transaction, effects)
    elif _in_flush(connection):
        transaction.defer(effects)
    else:
        _carry_out(transaction, [effects])


def _end_committed(transaction: Transaction, effects: Effects) -> None:
    """Remove what a statement superseded that was its own transaction; its failures are logged."""
    try:
        with transaction.inside():
            _carry_out(transaction, [effects])
            transaction.decide()
    except BaseException as err:
        transaction.end("looking after a statement that was its own transaction failed")
        if not isinstance(err, Exception):
            raise
        logger.exception("what a committed statement superseded could not be found out")
    else:
        transaction.end("commit")


def _note_text(connection: Connection, statement: str) -> None:
    """Note transaction control that SQLAlchemy does not see; nobody can tell its effect."""
    transaction = transactions.found_on(connection)
    if transaction is None or transaction.ledger.is_empty:
        return
    implicit = connection.dialect.name in ("mysql", "mariadb", "oracle")
    plain = _COMMENT.sub(" ", statement)
    transaction.ran_ddl |= _DDL.search(plain) is not None
    if _CONTROL.search(plain) or (implicit and _IMPLICIT_COMMIT.search(plain)):
        transaction.doubt = f"{statement.strip()[:60]!r} was executed as text"


def _handle_error(context: Any) -> None:
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    transaction = transactions.found_on(connection)
    if transaction is None or transaction.busy:
        return
    transaction.statement_failed = True
    effects: Effects | None = getattr(context.execution_context, "_sqla_datastore", None)
    if transactions.is_autocommit(connection):
        _end_failed_autocommit(connection, transaction, effects)
    elif transaction.state_after_error() is TransactionState.IDLE:
        # no database commits because of an error, so this one has rolled back all of it
        # (SQLITE_FULL, INSERT OR ROLLBACK, a deadlock on MySQL); what follows is another one
        transaction.end("rollback")
    elif effects is not None:
        transaction.note_failed(effects)


def _end_failed_autocommit(
    connection: Connection, transaction: Transaction, effects: Effects | None
) -> None:
    """Find out how far a statement came that is no transaction as a whole."""
    if effects is None:
        transaction.end("rollback")
        return
    try:
        with transaction.inside():
            held = effects.held(connection)
            unused = [r for r in effects.reserved if str(r.url) not in held]
            transaction.ledger.undo(_names(r)[0] for r in unused)
            effects.keep(held)
            transaction.drop(effects)
            transaction.ledger.adopt(name for r in effects.reserved for name in _names(r))
            transaction.decide()
    except Exception as err:
        transaction.end(f"a statement failed under AUTOCOMMIT, and so did asking: {err!r}")
    else:
        transaction.end("commit")


# -- writing and listing -------------------------------------------------------------------------


def _carry_out(transaction: Transaction, effects: list[Effects]) -> None:
    """Write and list what statements asked for; they ran, and their rows are locked.

    Raises:
        StorageError: the storage failed; the transaction has to be rolled back.
        UnsupportedTypeError: a value was refused while it was written.
    """
    ledger = transaction.ledger
    adopted: set[Name] = set()
    for effect in effects:
        transaction.drop(effect)
        names = [name for reserved in effect.reserved for name in _names(reserved)]
        ledger.adopt(names)
        adopted.update(names)
    _write(transaction, [reserved for effect in effects for reserved in effect.reserved])
    folders = dict.fromkeys(folder for effect in effects for folder in effect.folders)
    for folder in folders:
        listed = [Name(folder.storage, found.path) for found in folder.storage.list(folder.path)]
        ledger.listed(name for name in listed if name not in adopted)


def _names(reservation: Reservation) -> list[Name]:
    assert reservation.url is not None
    return names_of(reservation.storage, reservation.url)


def _write(transaction: Transaction, reserved: Iterable[Reservation]) -> None:
    """Write the objects of values, in parallel, and switch the values to their stored form."""
    todo = [reservation for reservation in reserved if reservation.plan is not None]
    jobs = [
        (name.storage, name.path, content)
        for reservation in todo
        for name, content in zip(_names(reservation), reservation.plan.objects, strict=True)  # type: ignore[union-attr]
    ]
    names = [Name(storage, path) for storage, path, _ in jobs]
    transaction.ledger.write(names)
    if len(jobs) == 1:
        _write_object(*jobs[0])
    elif jobs:
        with ThreadPoolExecutor(min(WRITERS, len(jobs)), "sqla_datastore") as pool:
            for _ in pool.map(lambda job: _write_object(*job), jobs):
                pass
    transaction.ledger.wrote(names)
    for reservation in todo:
        plan, reservation.plan = reservation.plan, None
        assert plan is not None
        undo = reservation.value._stored(reservation.storage, str(reservation.url), plan)
        put_back = partial(_put_back, reservation.value, undo)
        transaction.ledger.on_rollback(_names(reservation)[0], put_back)


def _put_back(value: DataStore, undo: Callable[[], None]) -> None:
    """Undo the storing of a value, and note the rows that may hold it wrongly from now on."""
    undo()
    for state in list(value._parents):
        if state.session is not None:
            _undone.setdefault(state.session, []).append((state, value))


def _write_object(storage: Any, path: str, content: Any) -> None:
    with storage.create(path) as writer:
        content.write(writer)


# -- sessions and mappers ------------------------------------------------------------------------


def _mapper_configured(mapper: Mapper[Any], class_: type) -> None:
    if declared_attributes(mapper):
        event.listen(class_, "load", _loaded, raw=True)
        event.listen(class_, "refresh", _loaded, raw=True)
        event.listen(class_, "expire", _expired, raw=True)
        event.listen(class_, "refresh_flush", _defaulted, raw=True)


def _expired(state: InstanceState[Any], _names: Any) -> None:
    edits.discard(state)


def _loaded(state: InstanceState[Any], _context: Any, *_: Any) -> None:
    for key, value in values_of(state):
        if value._row is None:
            value._row = RowLink(state, key)


def _defaulted(state: InstanceState[Any], _context: Any, names: Iterable[str] | None) -> None:
    """Have a value that a column's default made read back: rows may not share it."""
    keys = set(declared_attributes(state.mapper)).intersection(names or ())
    session = state.session
    if keys and session is not None:
        _to_expire.setdefault(session, []).append((state.obj(), keys))


def _before_row(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    """Make each value the row's own. Called before the INSERT or UPDATE of a flush."""
    if not declared_attributes(mapper):
        return
    transaction_of(connection).flushing = object_session(target)
    state: InstanceState[Any] = attributes.instance_state(target)
    for key, value in list(values_of(state)):
        if value._outer is not None:
            _replace(state, key, value)
        elif value._row is None or (value._row.is_dead and not value._row.is_for(state, key)):
            value._row = RowLink(state, key)
        elif not value._row.is_for(state, key) and _is_assigned(state, key):
            _replace(state, key, value)


def _before_delete(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    if declared_attributes(mapper):
        transaction_of(connection).flushing = object_session(target)


def _is_assigned(state: InstanceState[Any], key: str) -> bool:
    history = state.get_history(key, PASSIVE_NO_INITIALIZE)
    return bool(history.added) or not state.has_identity


def _replace(state: InstanceState[Any], key: str, value: DataStore) -> None:
    """Put a copy in a value's place: one value is one row's."""
    copy = value.copy()
    copy._row = RowLink(state, key)
    value._parents.pop(state, None)
    copy._parents[state] = key
    state.dict[key] = copy


def _in_flush(connection: Connection) -> bool:
    transaction = transactions.found_on(connection)
    return transaction is not None and transaction.flushing is not None


def _after_begin(session: Session, _transaction: Any, connection: Connection) -> None:
    if isinstance(session.bind, Engine):
        # it commits by itself what it begins
        return
    raw = id(transactions.unwrap(connection.connection))
    _sessions.setdefault(raw, weakref.WeakSet()).add(session)
    _raws.setdefault(session, set()).add(raw)


def _attached(_session: Session, row: Any) -> None:
    edits.relink(attributes.instance_state(row))


def _after_flush(session: Session, _context: Any) -> None:
    for transaction in transactions.flushed_by(session):
        transaction.flushing = None
        pending = transaction.take_pending()
        _carry_out(transaction, pending)
        for value in (reserved.value for effects in pending for reserved in effects.reserved):
            if isinstance(value._row, RowLink):
                value._row.identify()
                # what its user still holds can be edited before COMMIT
                for state in list(value._parents) if value._handed_out else ():
                    edits.arm(session, state.obj(), value)


def _after_flush_postexec(session: Session, _context: Any) -> None:
    for row, keys in _to_expire.pop(session, ()):
        if row in session:
            session.expire(row, keys)


def _after_transaction_create(session: Session, transaction: Any) -> None:
    if not transaction.nested or transactions.flushed_by(session):
        return
    try:
        edits.check_unsaved(session, savepoint=True)
    except StaleValueError:
        # it is the Session's current one already, and nobody will get hold of it
        transaction.close()
        raise


def _after_soft_rollback(session: Session, _transaction: Any) -> None:
    _to_expire.pop(session, None)
    for state, value in _undone.pop(session, ()):
        # SQLAlchemy expires what was changed in the savepoint itself, but not in one within it
        edits.expire(session, state, value)
    edits.discard_rolled_back(session)
    for transaction in transactions.flushed_by(session):
        transaction.flushing = None


def _before_flush(session: Session, _context: Any, _instances: Any) -> None:
    edits.scan(session)


def _before_commit(session: Session) -> None:
    edits.scan(session)


def _check_edits(raw: Any) -> None:
    """Refuse a COMMIT that would leave edits behind: one that no Session's commit came before.

    Raises:
        StaleValueError: an entry was changed in place after the last flush.
    """
    for session in list(_sessions.get(id(raw), ())):
        edits.check_unsaved(session)


def _after_transaction_end(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        edits.end_transaction(session)
        _undone.pop(session, None)
        for raw in _raws.pop(session, ()):
            sessions = _sessions.get(raw)
            if sessions is not None:
                sessions.discard(session)
                if not sessions:
                    _sessions.pop(raw, None)


def _do_orm_execute(state: ORMExecuteState) -> Any:
    """Have values read again that a bulk statement made wrong in the Session's rows.

    An UPDATE hands its value to the rows that it matched, although it may have stored a copy; after
    an upsert rows may hold a value that was replaced. Rows with changes of their own keep them.
    """
    mapper = state.bind_mapper
    upserts = getattr(state.statement, "_post_values_clause", None) is not None
    if mapper is None or not (state.is_update or upserts) or not declared_attributes(mapper):
        return None
    result = state.invoke_statement()
    for row in list(state.session.identity_map.values()):
        if isinstance(row, mapper.class_):
            edits.expire_unchanged(row, others_only=not upserts)
    return result


def install(_type: type) -> None:
    """Install the observers; called once, when the column type is imported."""
    event.listen(Engine, "before_cursor_execute", _before_cursor_execute, retval=True)
    event.listen(Engine, "after_execute", _after_execute)
    event.listen(Engine, "handle_error", _handle_error)
    event.listen(Engine, "begin", _begin)
    event.listen(Engine, "begin_twophase", _begin)
    event.listen(Pool, "reset", endings.forgotten)
    event.listen(Column, "after_parent_attach", declarations.note_column)
    event.listen(Mapper, "after_mapper_constructed", declarations.note_mapper)
    event.listen(Mapper, "mapper_configured", _mapper_configured)
    event.listen(Mapper, "after_configured", declarations.check_registries)
    event.listen(Mapper, "before_insert", _before_row)
    event.listen(Mapper, "before_update", _before_row)
    event.listen(Mapper, "before_delete", _before_delete)
    event.listen(Session, "after_begin", _after_begin)
    event.listen(Session, "detached_to_persistent", _attached)
    event.listen(Session, "before_flush", _before_flush)
    event.listen(Session, "after_flush", _after_flush)
    event.listen(Session, "after_flush_postexec", _after_flush_postexec)
    event.listen(Session, "before_commit", _before_commit)
    event.listen(Session, "after_soft_rollback", _after_soft_rollback)
    event.listen(Session, "after_transaction_create", _after_transaction_create)
    event.listen(Session, "after_transaction_end", _after_transaction_end)
    event.listen(Session, "do_orm_execute", _do_orm_execute)
    DataStore.associate_with(_type)
    transactions.commit_checks.append(_check_edits)


def _begin(connection: Connection, *_: Any) -> None:
    endings.observe(connection)
    endings.begun(connection)
