"""Calls that block, made away from a running event loop.

An asynchronous engine calls its hooks in a greenlet of SQLAlchemy's, on the thread of the event
loop. There a storage's call runs in a thread, and the greenlet awaits it. No asynchronous storages:
of 100 uploads that were cancelled and then removed 88 stayed, since a request that was sent may
still succeed; a thread that was begun is waited for.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

T = TypeVar("T")

WORKERS = 32
"""Calls of all event loops of a process that run at the same time."""

_pools: dict[int, ThreadPoolExecutor] = {}


def off_loop(call: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Make a blocking call; under an asynchronous engine the event loop goes on meanwhile.

    Hold no lock: another task of the loop could want it, and block the loop.

    Args:
        call: blocks; runs in this thread outside of a greenlet of SQLAlchemy's.
        stopped: set when the task is cancelled, so that the call can end early.

    Returns:
        What the call returns.

    Raises:
        asyncio.CancelledError: the task was cancelled. The call has ended by then.
        Exception: what the call raises.
    """
    if not can_await():
        return call()
    future = _submit(partial(copy_context().run, call))
    if future is None:
        return call()
    try:
        return await_only(asyncio.shield(_awaitable(future)))
    except BaseException as err:
        if stopped is not None:
            stopped.set()
        _wait_for(future, err)
        raise


async def in_thread(call: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Make a blocking call in a thread, and await it; for coroutines, outside of greenlets.

    Args:
        call: blocks.
        stopped: set when the task is cancelled, so that the call can end early.

    Returns:
        What the call returns.

    Raises:
        asyncio.CancelledError: the task was cancelled. The call goes on where it has begun, so it
            must leave nothing behind.
        Exception: what the call raises.
    """
    future = _submit(partial(copy_context().run, call))
    if future is None:
        return call()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if stopped is not None:
            stopped.set()
        raise


def handed_over(call: Callable[[], object]) -> None:
    """Make a blocking call, without waiting for it where an event loop cannot wait.

    That is where a connection is reset that nobody has any more: on the thread of the loop, and in
    no greenlet.

    Args:
        call: blocks; must not fail.
    """
    if can_await() or not is_on_loop() or _submit(call) is None:
        off_loop(call)


def can_await() -> bool:
    """Return whether this is a greenlet in which SQLAlchemy runs an asynchronous engine."""
    # SQLAlchemy would import it now, which looks for files while rows are fetched
    if "greenlet" not in sys.modules:
        return False
    try:
        return in_greenlet()
    except (ImportError, ValueError):
        # greenlet is not installed; the second is SQLAlchemy 2.0's
        return False


def is_on_loop() -> bool:
    """Return whether an event loop runs in this thread, and would stand still meanwhile."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _submit(call: Callable[[], T]) -> Future[T] | None:
    """Have a call made by a thread; None where the process ends."""
    pid = os.getpid()
    pool = _pools.get(pid)
    if pool is None:
        # a forked child has none of its parent's threads
        pool = _pools.setdefault(pid, ThreadPoolExecutor(WORKERS, "sqla_datastore"))
    try:
        return pool.submit(call)
    except RuntimeError:
        return None


def _wait_for(future: Future[T], err: BaseException) -> None:
    """Wait until a call has ended that was interrupted: what it writes is to be removed then."""
    if future.cancel():
        return
    if not isinstance(err, asyncio.CancelledError):
        # the loop is over: nothing can be awaited
        wait([future])
    while not future.done():
        # a task may be cancelled again and again, as by anyio's scopes
        with suppress(asyncio.CancelledError):
            await_only(asyncio.wait([_awaitable(future)]))


def _awaitable(future: Future[T]) -> asyncio.Future[T]:
    """Return what the loop awaits; what the call raises is told to the task alone, not logged."""
    awaitable = asyncio.wrap_future(future)
    awaitable.add_done_callback(lambda done: done.cancelled() or done.exception())
    return awaitable
