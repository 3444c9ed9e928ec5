"""Writing the objects that statements have put into rows, and listing the folders to be emptied.

Both happen after the statements, under the locks of their rows: whoever writes or lists before
could meet an object whose row another transaction is about to insert or delete. Only a statement
that is a transaction of its own (AUTOCOMMIT) has its objects written before, in folders of their
own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqla_datastore.dml.effects import Effects, Folder
from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.exceptions import MissingObjectError
from sqla_datastore.options import options
from sqla_datastore.storage.off_loop import off_loop
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectName
from sqla_datastore.unitofwork.transaction import Transaction

T = TypeVar("T")

_Job: TypeAlias = "tuple[Storage, str, Any]"
"""Where an object goes, and what is written."""

_MIB = 1024 * 1024
_LARGE = _MIB
_MOST_HELD = 32 * _MIB
"""What a storage holds in memory of one object at most, while it is written."""


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
    found = _listed(folders) if folders else ()
    transaction.ledger.listed(name for name in found if name not in adopted)


def _listed(folders: Iterable[Folder]) -> list[ObjectName]:
    """Return what lies in folders, in their order."""
    found: dict[Folder, list[ObjectName]] = {folder: [] for folder in folders}

    def look(folder: Folder) -> None:
        storage = folder.storage
        found[folder] = [ObjectName(storage, each.path) for each in storage.list(folder.path)]

    for err in _called_for_each(look, [*found]):
        raise err
    return [name for names in found.values() for name in names]


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
    # apart, so that a large one does not have the small ones wait
    by_size: tuple[list[_Job], list[_Job]] = ([], [])
    for job in jobs:
        by_size[job[2].nbytes >= _LARGE].append(job)
    for some in by_size:
        # none is running any more: a thread that wrote on would outlive the rollback's removal
        for err in _called_for_each(_write_object, some, _affordable(some)):
            raise _explained(err, todo)
    transaction.ledger.wrote(names)
    # only when all are whole: after a failure each value is as it was, and can be tried again
    for reservation in todo:
        plan, reservation.plan = reservation.plan, None
        assert plan is not None
        undo = reservation.value._stored(reservation.storage, str(reservation.url), plan)
        transaction.ledger.on_rollback(reservation.names[0], undo)


def _affordable(jobs: list[_Job]) -> int:
    """Return how many of some objects may be written at the same time, by what they hold."""
    held = min(max((job[2].nbytes for job in jobs), default=0), _MOST_HELD)
    return max(1, options.in_flight_bytes // max(1, held))


def _explained(err: Exception, reserved: Iterable[Reservation]) -> Exception:
    """Return an error with what the row tells whose value copies from an object that is gone."""
    if isinstance(err, MissingObjectError):
        for reservation in reserved:
            explained = reservation.value._explained(err)
            if explained is not err:
                return explained
    return err


def _called_for_each(
    call: Callable[[T], object], things: list[T], threads: int | None = None
) -> list[Exception]:
    """Return what calls raised; none is begun after a failure, or once a task is cancelled."""
    if not things:
        return []
    stopped = threading.Event()
    calls = partial(
        call_for_each, call, things, threads=threads, stopped=stopped, until_failure=True
    )
    return off_loop(calls, stopped)


def _write_object(job: _Job) -> None:
    storage, path, content = job
    with storage.create(path) as writer:
        content.write(writer)
