"""The assertion that rows and objects agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, MetaData

from sqla_datastore.engine.observed_transaction import open_transactions
from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.maintenance import CheckReport, check

_WHAT = {
    "orphans": "objects that no row refers to",
    "leftovers": "files of interrupted writes, and empty folders",
    "dangling": "rows without their object",
    "damaged": "objects that cannot be read as they were written",
}
_COLLECT = "gc of sqla_datastore.maintenance removes what is left."
_ADVICE = {
    "orphans": "Removals that failed are in the log of 'sqla_datastore'; what raw SQL, cascades "
    f"and triggers delete is out of sight, see docs/removals.md. {_COLLECT}",
    "leftovers": f"A process was killed, or a removal failed. {_COLLECT}",
    "dangling": "Something else than this library has removed the object or written the row, or "
    "the engine is bound to another storage than when the row was written.",
    "damaged": "Something else than this library has written to the storage.",
}


def assert_nothing_left(session_or_engine: Any, *models: Any) -> None:
    """Assert that each stored object is a row's, and that each row has its object.

    Looks at all tables of the models' MetaData, and at all of their storages. Blocks. Objects that
    wait for their removal (`sqla_datastore.enable_removals`) and those of `DataStoreIO` are no
    fault.

    Args:
        session_or_engine: an engine, or a session or a connection outside of a transaction; its
            storage is the one that is bound to its engine. In a coroutine:
            ``await session.run_sync(assert_nothing_left, Base)``.
        *models: mapped classes, their ``Base``, tables or MetaData.

    Raises:
        AssertionError: something is left or missing; the message lists all of it.
        ConfigurationError: a transaction is open, so that nothing is decided; or as
            `sqla_datastore.maintenance.check` raises it.
        TypeError: no model was given, or something that is none.
    """
    engine = _engine_of(session_or_engine)
    metadatas = list(dict.fromkeys(map(_metadata_of, models)))
    if not metadatas:
        raise TypeError("name the models, as in assert_nothing_left(session, Base)")
    _refuse_open_transactions(engine)
    found = [check(engine, metadata) for metadata in metadatas]
    if not all(report.is_clean for report in found):
        raise AssertionError("\n".join(line for report in found for line in _lines(report)))


def _engine_of(given: Any) -> Engine:
    # an asynchronous session or connection has its synchronous one as an attribute
    for name in ("sync_session", "sync_connection", "sync_engine"):
        given = getattr(given, name, given)
    if hasattr(given, "in_transaction") and given.in_transaction():
        raise ConfigurationError(
            "its transaction is open, and only its end decides which objects stay; commit, roll "
            "back or close it before assert_nothing_left"
        )
    bind = given.get_bind() if hasattr(given, "get_bind") else given
    if isinstance(bind, Connection) and bind is not given:
        return _engine_of(bind)
    engine = getattr(bind, "engine", None)
    if not isinstance(engine, Engine):
        raise TypeError(f"expected a session or an engine, not {given!r}")
    return engine


def _metadata_of(model: Any) -> MetaData:
    metadata = model if isinstance(model, MetaData) else getattr(model, "metadata", None)
    if not isinstance(metadata, MetaData):
        raise TypeError(f"expected a mapped class, a table or a MetaData, not {model!r}")
    return metadata


def _refuse_open_transactions(engine: Engine) -> None:
    for transaction in list(open_transactions.values()):
        if transaction.dialect is engine.dialect and not transaction.ledger.is_empty:
            raise ConfigurationError(
                "another transaction of this engine is open, and has written objects or will "
                "remove some; end it before assert_nothing_left"
            )


def _lines(report: CheckReport) -> Iterator[str]:
    for name, what in _WHAT.items():
        findings = getattr(report, name)
        if findings:
            yield f"{what}: {findings.count}"
            yield from (f"  {finding}{_place(finding)}" for finding in findings)
            yield f"  {_ADVICE[name]}"


def _place(finding: Any) -> str:
    return f" in {finding.storage!r}" if finding.storage not in str(finding) else ""
