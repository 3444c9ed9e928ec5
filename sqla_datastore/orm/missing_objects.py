"""Why the object of a value is missing: its row is asked what it holds now."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Engine, String, inspect, select, type_coerce
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import NullPool, QueuePool

from sqla_datastore.dml.dialects import statement_against_waiting
from sqla_datastore.storage.off_loop import can_await

logger = logging.getLogger("sqla_datastore")

_AGAIN = (
    "read the row again with session.refresh(row); enable_removals(metadata, keep_seconds=...) "
    "keeps replaced objects for readers"
)


def reason(session: Session | None, identity: Any, key: str, label: str, url: str) -> str | None:
    """Say why the object of a row's value may be missing, after a look at the row.

    Asks by a connection of its own, which sees what others have committed; that of the Session
    may be at work in another thread, or see an old snapshot.

    Args:
        session: that of the row; None, and nobody is asked.
        identity: the row's identity key, None for one that was never inserted.
        key: the attribute.
        label: the row and the attribute, for the message.
        url: what the value was loaded by.

    Returns:
        What happened and what to do; None where only the storage can be wrong.
    """
    held = None
    if session is not None and identity is not None:
        try:
            held = _held(session, identity, key)
        except Exception:  # what cannot be asked must not hide that an object is missing
            logger.debug("a row could not be asked what it holds now", exc_info=True)
    if held is not None and held[:1] != [url]:
        now = f"holds {held[0]!r} now" if held and held[0] else "holds no value now"
        return f"another transaction has replaced it, and {label} {now}: {_AGAIN}"
    # an uncommitted change of the Session's own is seen by nobody else
    if held is not None and session is not None and not session.in_transaction():
        return None
    return (
        f"either another transaction has replaced it or deleted {label}: {_AGAIN}; or another "
        "storage is bound than the one that it was written to, see bind_storage"
    )


def _held(session: Session, identity: Any, key: str) -> list[str | None] | None:
    """Return what a row holds now, in a list, which is empty for no row; None if nobody is asked.

    Raises:
        Exception: the database or its driver could not tell.
    """
    mapper: Mapper[Any] = inspect(identity[0])
    engine = session.get_bind(mapper).engine
    # a connection that waits for what its own thread holds would wait for ever
    statement = statement_against_waiting(engine.dialect)
    if statement is None or not _is_free(engine):
        return None
    column = mapper.get_property(key).columns[0]
    keys = {
        mapper.get_property_by_column(part): value
        for part, value in zip(mapper.primary_key, identity[1], strict=True)
    }
    # the table of a joined subclass has a key of its own, mapped to the same attributes
    criteria = [
        part == keys[mapper.get_property_by_column(part)] for part in column.table.primary_key
    ]
    with engine.connect() as connection:
        connection.detach()  # nobody else gets it with this setting
        connection.exec_driver_sql(statement)
        return list(connection.scalars(select(type_coerce(column, String())).where(*criteria)))


def _is_free(engine: Engine) -> bool:
    """Return whether an engine has a connection to spare, at once."""
    if engine.dialect.is_async and not can_await():
        return False
    pool = engine.pool
    # other pools hand out the Session's own connection, or have the only one
    if isinstance(pool, QueuePool):
        return pool.checkedin() > 0 or pool.overflow() < 0  # less than `pool_size` are open
    return isinstance(pool, NullPool)
