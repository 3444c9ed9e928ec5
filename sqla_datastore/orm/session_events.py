"""The listeners of mappers and Sessions.

==============================  ===================================================================
``before_insert``, ``_update``  a value that belongs to another row is replaced by a copy
``before_flush``, ``_commit``   entries that were handed out are looked at again
``after_flush``                 the objects of the flush are written, in parallel
``set`` of an attribute         a value learns which rows its edits flag
``expire``                      edits of what was expired are discarded on purpose
``after_soft_rollback``         edits that were rolled back are discarded
``load``, ``refresh``           a value learns where it was loaded; what a bulk UPDATE made wrong
                                is read again
==============================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from sqlalchemy import Column, event, inspect
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import InstanceState, Mapper, Session, attributes

from sqla_datastore.engine.dialect_observer import observe
from sqla_datastore.engine.observed_transaction import (
    flushed_by,
    open_transactions,
    transaction_of,
)
from sqla_datastore.orm.edits_in_place import WATCH, SessionWatch, unlink, watch_of
from sqla_datastore.orm.pydantic_classes import coerce_first, is_pydantic
from sqla_datastore.orm.row_link import Home, RowLink
from sqla_datastore.schema import declarations
from sqla_datastore.unitofwork import writing
from sqla_datastore.unitofwork.values_of_rows import (
    declared_attributes,
    expire_unchanged,
    values_of,
)
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.entry import Nestable


def install() -> None:
    """Listen to all mappers and Sessions."""
    event.listen(Column, "after_parent_attach", declarations.note_column)
    event.listen(Mapper, "after_mapper_constructed", declarations.note_mapper)
    event.listen(Mapper, "mapper_configured", _mapper_configured)
    event.listen(Mapper, "after_configured", declarations.check_registries)
    event.listen(Session, "after_begin", _after_begin)
    event.listen(Session, "detached_to_persistent", _attached)
    event.listen(Session, "persistent_to_deleted", _deleted)
    event.listen(Session, "deleted_to_persistent", _attached)
    event.listen(Session, "before_flush", _if_watched(lambda watch, *_: watch.scan_flushed()))
    event.listen(Session, "after_flush", _after_flush)
    event.listen(Session, "after_flush_postexec", _if_watched(_after_flush_postexec))
    event.listen(Session, "before_commit", _if_watched(lambda watch, _: watch.scan()))
    event.listen(Session, "after_rollback", _if_watched(lambda watch, _: watch.remember_rows()))
    event.listen(Session, "after_soft_rollback", _after_soft_rollback)
    event.listen(Session, "after_transaction_end", _if_watched(_after_transaction_end))


def _if_watched(listener: Callable[..., None]) -> Callable[..., None]:
    """Return a listener of Sessions that calls another one with the watch of those that have one.

    Most have none, and pay for this look alone.
    """

    def listen(session: Session, *args: Any) -> None:
        if WATCH in session.__dict__:
            listener(session.__dict__[WATCH], session, *args)

    return listen


# -- rows ------------------------------------------------------------------------------------------


def _mapper_configured(mapper: Mapper[Any], class_: type) -> None:
    for key in declared_attributes(mapper):
        attribute: Any = mapper.class_manager[key]
        event.listen(attribute, "set", partial(_assigned, key), raw=True, retval=True)
    if declared_attributes(mapper):
        if is_pydantic(class_):
            coerce_first(class_, declared_attributes(mapper))
        event.listen(class_, "load", partial(_loaded, declared_attributes(mapper)), raw=True)
        event.listen(class_, "_sa_event_merge_wo_load", _merged, raw=True)
        event.listen(class_, "unpickle", _unpickled, raw=True)
        event.listen(class_, "expire", _expired, raw=True)
        event.listen(class_, "refresh", _refreshed, raw=True)
        event.listen(class_, "refresh_flush", _defaulted, raw=True)
        event.listen(mapper, "before_insert", _before_row, raw=True)
        event.listen(mapper, "before_update", _before_row, raw=True)
        event.listen(mapper, "before_delete", _before_delete, raw=True)


def _assigned(
    key: str, state: InstanceState[Any], value: Any, before: Any, _token: Any
) -> DataStore | None:
    """Make a value of what is assigned to an attribute, and tell it which rows its edits flag."""
    if value is before:
        return before  # type: ignore[no-any-return]
    coerced = DataStore.coerce(key, value)
    if coerced is not None:
        coerced._hold(state, key)
    if isinstance(before, DataStore):
        before._release_from(state)
    return coerced


def _expired(state: InstanceState[Any], _names: Any) -> None:
    watch = watch_of(state.session)
    if watch is not None:
        watch.discard(state)


# without `DataStore.__setattr__`, since these run for each row of a query
_set_state: Any = vars(Nestable)["_state"].__set__
_set_link: Any = vars(Nestable)["_link"].__set__


def _loaded(keys: tuple[str, ...], state: InstanceState[Any], context: Any) -> None:
    """Tell a row's values where they were loaded: briefly, as it runs for each row of a query."""
    if context is None:
        _merged(state)
        return
    homes = context.attributes.get(keys)
    if homes is None:
        # the same for all rows of a query
        homes = context.attributes[keys] = [(key, Home(key, context.session)) for key in keys]
    row = attributes.instance_dict(state.obj())  # less than `state.dict` takes
    for key, home in homes:
        value = row.get(key)
        # a refresh of another attribute leaves a value that its user has assigned
        if isinstance(value, DataStore) and value._link is None:
            _set_state(value, state)
            _set_link(value, home)
    watch: SessionWatch | None = context.session.__dict__.get(WATCH)
    if watch is not None:
        watch.give_back(state)


def _merged(state: InstanceState[Any], *_: Any) -> None:
    """Tie values to a row that merge(load=False) has made: it shares them with the other row."""
    for key, value in list(values_of(state)):
        if value._row is None or value._row.session is None:
            _tie_and_watch(value, state, key)
        else:
            value._hold(state, key)


def _unpickled(state: InstanceState[Any], _pickled: Any) -> None:
    for key, value in values_of(state):
        value._hold(state, key)


def _refreshed(state: InstanceState[Any], context: Any, _names: Any) -> None:
    """Tell a row's values where they were loaded anew.

    A bulk UPDATE has no context. It hands its value to the rows that it matched, although it may
    have stored a copy, so they are read again.
    """
    if context is None:
        expire_unchanged(state, others_only=True)
    else:
        _loaded(declared_attributes(state.mapper), state, context)


def _defaulted(state: InstanceState[Any], _context: Any, names: Iterable[str] | None) -> None:
    """Have a value that a column's default made read back: rows may not share it."""
    keys = set(declared_attributes(state.mapper)).intersection(names or ())
    if keys and state.session is not None:
        SessionWatch.of(state.session).to_expire.append((state.obj(), keys))


def _attached(_session: Session, row: Any) -> None:
    """Tie a row's values to it anew, and look after them."""
    state: InstanceState[Any] = inspect(row)
    for key, value in values_of(state):
        _tie_and_watch(value, state, key)


def _tie_and_watch(value: DataStore, state: InstanceState[Any], key: str) -> None:
    """Make a value the row's, and look after it where somebody may have edited it already."""
    _tie(value, state, key)
    if state.session is not None and (value._handed_out or value._changed):
        SessionWatch.of(state.session).track(value)


def _deleted(session: Session, row: Any) -> None:
    """Look after a row's values no more: what was edited of them goes with the row."""
    state: InstanceState[Any] = inspect(row)
    watch = watch_of(session)
    if watch is not None:
        watch.forget_row(state)
    for _, value in values_of(state):
        unlink(value)


# -- flush -----------------------------------------------------------------------------------------


def _before_row(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Make each value the row's own. Called before the INSERT or UPDATE of a flush."""
    transaction_of(connection).flushing = state.session
    row = state.dict
    for key in declared_attributes(mapper):
        value = _made_value(state, key) if isinstance(row.get(key), Mapping) else None
        if value is None:
            continue
        link = value._row
        if value._outer is not None:
            _replace(state, key, value)
        elif link is None or (link.is_dead and link.may_be_of(state, key)):
            _tie(value, state, key)
        elif not link.is_for(state, key) and _is_assigned(state, key):
            _replace(state, key, value)


def _tie(value: DataStore, state: InstanceState[Any], key: str) -> None:
    """Make a value the row's; what looks after it finds it by its row."""
    watch = value._watch
    unlink(value)
    value._row = RowLink(state, key)
    value._hold(state, key)
    if watch is not None:
        watch.track(value)


def _made_value(state: InstanceState[Any], key: str) -> DataStore:
    """Return a row's value, made of a plain mapping that was written past the set event.

    SQLModel does so, and edits of such a mapping would be lost.
    """
    found = state.dict[key]
    if not isinstance(found, DataStore):
        found = state.dict[key] = DataStore(found)
        found._hold(state, key)
    return found


def _before_delete(_mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    transaction_of(connection).flushing = state.session


def _is_assigned(state: InstanceState[Any], key: str) -> bool:
    return bool(state.attrs[key].history.added) or not state.has_identity


def _replace(state: InstanceState[Any], key: str, value: DataStore) -> None:
    """Put a copy in a value's place: one value is one row's."""
    copy = value.copy()
    copy._row = RowLink(state, key)
    # not by set_committed_value: the change has to stay in the history; and no validator is asked
    value._release_from(state)
    copy._hold(state, key)
    state.dict[key] = copy


def _after_flush(session: Session, _context: Any) -> None:
    for transaction in flushed_by(session) if open_transactions else ():
        transaction.flushing = None
        pending = transaction.take_pending()
        writing.carry_out(transaction, pending)
        for value in (reserved.value for effects in pending for reserved in effects.reserved):
            if value._row is not None:
                value._row.identify()
                # what its user still holds can be edited before COMMIT
                if value._handed_out:
                    SessionWatch.of(session).track(value)


def _after_flush_postexec(watch: SessionWatch, session: Session, _context: Any) -> None:
    expiring, watch.to_expire = watch.to_expire, []
    for row, keys in expiring:
        if row in session:
            session.expire(row, keys)


# -- transactions ----------------------------------------------------------------------------------


def _after_begin(session: Session, _transaction: Any, connection: Connection) -> None:
    observe(connection.dialect)
    # an engine-bound Session commits itself, so that `before_commit` sees all of its edits
    if not isinstance(session.bind, Engine):
        SessionWatch.of(session).watch_connection(connection.connection.dbapi_connection)


def _after_soft_rollback(session: Session, _transaction: Any) -> None:
    watch = watch_of(session)
    if watch is not None:
        watch.to_expire.clear()
        watch.discard_rolled_back()
    for transaction in flushed_by(session):
        transaction.flushing = None


def _after_transaction_end(watch: SessionWatch, _session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        watch.end_transaction()
