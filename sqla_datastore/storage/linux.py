"""System calls of Linux that Python does not offer."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

# 64-bit only: elsewhere openat2 needs O_LARGEFILE; on alpha and mips it has another number
_MACHINES = frozenset({"x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "loongarch64"})
_OPENAT2 = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
# ENOSYS before Linux 5.6; EPERM from a sandbox whose filter does not know the call; EINVAL where a
# flag of `how` is unknown
_ABSENT = {errno.ENOSYS, errno.EPERM, errno.EINVAL}

_Open = Callable[[int, bytes, int], int]


def open_beneath(parent: int, path: str, flags: int) -> int | None:
    """Open what lies below a folder by one system call that follows no symbolic link.

    See openat2(2) of the Linux manual. It never leaves the folder, whatever others rename
    meanwhile.

    Args:
        parent: the folder's descriptor.
        path: relative to it.
        flags: as for `os.open`; nothing is created.

    Returns:
        A descriptor; None where the system has no such call, or a sandbox forbids it.

    Raises:
        OSError: it cannot be opened. ELOOP stands for a symbolic link on the way.
        ValueError: the path holds a NUL.
    """
    call = _openat2_if_there()
    if call is None:
        return None
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    sys.audit("open", path.rpartition("/")[2], None, flags)  # as the last step of a walk does
    return call(parent, raw, flags)


def sync_filesystem(descriptor: int) -> None:
    """Wait until everything is on the disk that was written to the file system of a descriptor.

    Raises:
        OSError: something could not be written, whoever wrote it.
    """
    import ctypes

    # before Linux 5.8 syncfs(2) reports no write that failed, so it proves less there
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _openat2_if_there() -> _Open | None:
    try:
        return _probed_openat2()
    except OSError:  # too many open files, for example: this tells nothing of the system
        return None


@functools.cache
def _probed_openat2() -> _Open | None:
    if sys.platform != "linux" or os.uname().machine not in _MACHINES or sys.maxsize < 2**32:
        return None
    try:
        call = _openat2()
        os.close(_probe(call))
    except ImportError:  # a Python that was built without ctypes
        return None
    except OSError as err:
        if err.errno in _ABSENT:
            return None
        # an exception is not cached, so the next call asks again
        raise
    return call


def _probe(call: _Open) -> int:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return call(root, b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(root)


def _openat2() -> _Open:
    import ctypes

    syscall = ctypes.CDLL(None, use_errno=True).syscall
    # syscall(2) is variadic: without types ctypes passes every number as a C int
    syscall.argtypes = [
        *(ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    ]
    syscall.restype = ctypes.c_long

    @functools.cache
    def how(flags: int) -> Any:
        resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
        # The kernel only reads it, so all threads can share it. The mode, in the middle, has to be
        # 0 where nothing is created.
        return (ctypes.c_uint64 * 3)(flags, 0, resolve)

    def call(parent: int, path: bytes, flags: int) -> int:
        while True:
            descriptor: int = syscall(_OPENAT2, parent, path, how(flags), 24)
            if descriptor >= 0:
                return descriptor
            code = ctypes.get_errno()
            # Python repeats its own interrupted calls (PEP 475), but not this one
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code), os.fsdecode(path))

    return call
