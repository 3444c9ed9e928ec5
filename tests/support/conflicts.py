"""What tests need that set transactions against each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

TIMEOUT = 120
"""Seconds after which a thread or process is said to hang."""

WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx"
    " JOIN information_schema.processlist ON trx_mysql_thread_id = id"
    " WHERE trx_state = 'LOCK WAIT' AND db = database()",
}


def in_threads(*functions: Callable[[], object]) -> None:
    """Run functions at the same time, and raise what they raised."""
    failures: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=guarded, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


def wait_for_a_waiter(engine: Engine, done: threading.Event) -> None:
    """Return once a transaction of this database waits for a lock, or `done` is set."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        query = WAITING.get(connection.dialect.name, "SELECT 1")
        # InnoDB refreshes this table for those only who ask less often than ten times a second
        pause = 0.15 if connection.dialect.name == "mysql" else 0.01
        for _ in range(400):
            if connection.scalar(text(query)) or done.wait(pause):
                return
    pytest.fail("nobody waits for a lock")


def resolve_soon(engine: Engine) -> None:
    """Have a database tell of deadlocks and locks soon, so that attempts are cheap."""
    settings = {
        "postgresql": "SET deadlock_timeout = '20ms'",
        "mysql": "SET SESSION innodb_lock_wait_timeout = 5",
    }
    if engine.dialect.name not in settings:
        return

    @event.listens_for(engine, "connect")
    def connect(raw: Any, _record: object) -> None:
        cursor = raw.cursor()
        cursor.execute(settings[engine.dialect.name])
        cursor.close()
        raw.commit()
