"""Writing the objects that statements have put into rows, and listing the folders to be emptied.

Both happen after the statements, under the locks of their rows: whoever writes or lists before
could meet an object whose row another transaction is about to insert or delete. Only a statement
that is a transaction of its own (AUTOCOMMIT) has its objects written before, in folders of their
own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeAlias

from sqla_datastore.dml.effects import Effects, Folder
from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.exceptions import MissingObjectError
from sqla_datastore.storage.off_loop import off_loop
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectName
from sqla_datastore.unitofwork.transaction import Transaction

_Job: TypeAlias = "tuple[Storage, str, Any]"
"""Where an object goes, and what is written."""

WRITERS = 8
"""Objects of one flush that are written at the same time, where writing takes long."""


def carry_out(transaction: Transaction, effects: list[Effects]) -> None:
    """Write and list what statements asked for; they ran, and their rows are locked.

    Raises:
        StorageError: the storage failed; the transaction has to be rolled back.
        UnsupportedTypeError: a value was refused while it was written.
    """
    # before the first byte: where a write fails, the ledger knows of the row and refuses COMMIT
    for effect in effects:
        transaction.log(effect)
    write(transaction, [reserved for effect in effects for reserved in effect.reserved])
    folders = dict.fromkeys(folder for effect in effects for folder in effect.folders)
    # what these statements put there themselves lies there by now
    adopted = {name for effect in effects for name in effect.names} if folders else set()
    found = off_loop(partial(_listed, folders)) if folders else ()
    transaction.ledger.listed(name for name in found if name not in adopted)


def _listed(folders: Iterable[Folder]) -> list[ObjectName]:
    return [
        ObjectName(folder.storage, found.path)
        for folder in folders
        for found in folder.storage.list(folder.path)
    ]


def write(transaction: Transaction, reserved: Iterable[Reservation]) -> None:
    """Write the objects of values, and switch the values to their stored form."""
    todo = [reservation for reservation in reserved if reservation.plan is not None]
    jobs = [
        (name.storage, name.path, content)
        for reservation in todo
        if not reservation.is_in_row
        for name, content in zip(reservation.names, reservation.plan.objects, strict=True)  # type: ignore[union-attr]
    ]
    names = [ObjectName(storage, path) for storage, path, _ in jobs]
    transaction.ledger.write(names)
    # no call is running any more: a thread that wrote on would outlive the rollback's removal
    for err in _write_objects(jobs):
        raise _explained(err, todo)
    transaction.ledger.wrote(names)
    # only when all are whole: after a failure each value is as it was, and can be tried again
    for reservation in todo:
        plan, reservation.plan = reservation.plan, None
        assert plan is not None
        undo = reservation.value._stored(reservation.storage, str(reservation.url), plan)
        transaction.ledger.on_rollback(reservation.names[0], undo)


def _explained(err: Exception, reserved: Iterable[Reservation]) -> Exception:
    """Return an error with what the row tells whose value copies from an object that is gone."""
    if isinstance(err, MissingObjectError):
        for reservation in reserved:
            explained = reservation.value._explained(err)
            if explained is not err:
                return explained
    return err


def _write_objects(jobs: list[_Job]) -> list[Exception]:
    """Write objects and return what was raised; the rest is not begun where a task is cancelled."""
    if not jobs:
        return []
    stopped = threading.Event()
    write = partial(call_for_each, _write_object, jobs, threads=WRITERS, stopped=stopped)
    return off_loop(write, stopped)


def _write_object(job: _Job) -> None:
    storage, path, content = job
    with storage.create(path) as writer:
        content.write(writer)
