"""The folder of the local cache: copies of objects under names of their own, of limited size.

Processes share it. A copy is written under a temporary name of its full size, verified, and
renamed; then it is not changed any more. Files get their names under a lock, so that who makes room
sees them all. The lock's file holds how many bytes they take.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from typing_extensions import Buffer

from sqla_datastore.storage import posix

# Whoever names a file like these in a folder of ours means it: others are not looked at.
_COPY = re.compile(r"[0-9a-f]{64}\.sqla-copy")
_PART = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.sqla-part")
_LOCK = "lock.sqla-lock"
# behind the object's own bytes: a sign, their number and their CRC-32
_FOOTER = struct.Struct("<8sQI4x")
_SIGN = b"sqlacopy"
# the checksum of so many bytes takes 0.1 to 0.4 milliseconds
_COMPARED = 1024 * 1024
# a map takes some 20 microseconds, and a process has 65,530 of them
_MAPPED = 64 * 1024
_LOCK_SECONDS = 5
# what file systems say that cannot do it
_NO_ALLOCATION = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Copy:
    """The bytes of an object, which stay when their file is removed.

    Attributes:
        data: read-only; a memory map where `is_mapped`.
        crc: the CRC-32 that they had when they were downloaded.
        is_mapped: whether the file's pages are read when they are used.
    """

    data: memoryview
    crc: int
    is_mapped: bool

    def is_sound(self) -> bool:
        """Return whether they are what was downloaded; reads all of them."""
        return crc32(self.data) == self.crc


class _Found(NamedTuple):
    used: int
    name: str
    size: int


class CacheFolder:
    """A folder of copies that together take at most so many bytes.

    Its methods raise `OSError` where the disk or the folder fails.

    Args:
        path: the folder; made, for its owner alone, by the first copy.
        limit_bytes: how many bytes all copies may take, those that are being made included.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path = path
        self._limit = limit_bytes

    def find(self, digest: str, *, compared: bool) -> Copy | None:
        """Return a copy, which counts as used now; None where there is none that is whole.

        One that was cut off or is not what was downloaded is removed. Of more than 1 MiB only the
        size is looked at.

        Args:
            digest: the object's name here, 64 hexadecimal digits.
            compared: compare the checksum of a larger one, too.
        """
        with suppress(FileNotFoundError), self._opened() as top:
            name = f"{digest}.sqla-copy"
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=top)
            try:
                copy = self._copy(descriptor, name)
                if copy is not None and _is_right(copy, compared=compared):
                    # the oldest are removed first
                    with suppress(OSError):
                        os.utime(descriptor)
                    return copy
            finally:
                os.close(descriptor)
            os.unlink(name, dir_fd=top)
        return None

    def add(
        self,
        digest: str,
        size_bytes: int,
        pieces: Iterable[Buffer],
        verify: Callable[[Copy], None],
    ) -> Copy | None:
        """Make a copy and return it; None where there is no room for it now.

        Args:
            digest: the object's name here, 64 hexadecimal digits.
            size_bytes: of the object.
            pieces: its bytes in their order.
            verify: raises where the copy must not be kept.

        Raises:
            OSError: as for all methods.
            EOFError: there were fewer bytes, or more.
        """
        with suppress(FileExistsError):
            os.makedirs(self._path, 0o700)
        with self._opened() as top:
            part = f"{digest}.{os.urandom(8).hex()}.sqla-part"
            descriptor = self._begun(top, part, size_bytes + _FOOTER.size)
            if descriptor is None:
                return None
            try:
                _write(descriptor, pieces, size_bytes)
                copy = self._whole(descriptor, part)
                verify(copy)
                if size_bytes > _COMPARED:
                    # a smaller one is compared whenever it is read: a power failure shows then
                    posix.sync(descriptor)
                with _locked(top):
                    os.rename(part, f"{digest}.sqla-copy", src_dir_fd=top, dst_dir_fd=top)
            except BaseException:
                with suppress(OSError):
                    os.unlink(part, dir_fd=top)
                raise
            finally:
                os.close(descriptor)
            return copy

    def remove(self, digest: str) -> None:
        """Remove a copy; whoever has it goes on using it. What is gone already is no error."""
        with suppress(FileNotFoundError), self._opened() as top:
            os.unlink(f"{digest}.sqla-copy", dir_fd=top)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Give the folder's descriptor, where nobody else may write to it."""
        top = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(top)
            # what others put there would be taken for what the store holds
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(
                    errno.EPERM,
                    "it belongs to another user, or others may write to it; chmod 700 it, or name "
                    "a folder that is not there yet",
                )
            yield top
        finally:
            os.close(top)

    def _copy(self, descriptor: int, name: str) -> Copy | None:
        """Return what a file holds; None where it is not whole."""
        status = os.fstat(descriptor)
        size = status.st_size - _FOOTER.size
        if size < 0 or not stat.S_ISREG(status.st_mode):
            return None
        sign, told, crc = _FOOTER.unpack(_read(descriptor, size, _FOOTER.size))
        if (sign, told) != (_SIGN, size):
            return None
        if size <= _MAPPED:
            return Copy(memoryview(_read(descriptor, 0, size)), crc, is_mapped=False)
        whole = posix.map_file(descriptor, os.path.join(self._path, name))
        return Copy(whole[:size], crc, is_mapped=True)

    def _whole(self, descriptor: int, name: str) -> Copy:
        copy = self._copy(descriptor, name)
        if copy is None:
            raise OSError(errno.EIO, "a file is not what was written to it")
        return copy

    # -- the limit ---------------------------------------------------------------------------------

    def _begun(self, top: int, part: str, size: int) -> int | None:
        """Make room and a temporary file of its full size; return its descriptor."""
        with _locked(top) as lock:
            total = _told_total(lock)
            if total is None or total + size > self._limit:
                total = self._evicted(top, size)
            has_room = total + size <= self._limit
            # told before the file is there: after a crash the next look at all files corrects it
            _tell_total(lock, total + size if has_room else total)
            if not has_room:
                return None
            descriptor = os.open(
                part, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=top
            )
            try:
                # held until it is closed, by a crash at the latest
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _allocate(descriptor, size)
            except BaseException:
                os.close(descriptor)
                os.unlink(part, dir_fd=top)
                raise
            return descriptor

    def _evicted(self, top: int, size: int) -> int:
        """Remove what was used last the longest ago; return how many bytes all files take.

        So many that a tenth of the limit is free afterwards: to look at all files takes long.
        """
        copies, total = [], 0
        for name in os.listdir(top):
            if _COPY.fullmatch(name):
                copies += _found(top, name)
            elif _PART.fullmatch(name):
                total += sum(each.size for each in _found(top, name) if _is_written(top, name))
        total += sum(each.size for each in copies)
        if total + size <= self._limit:
            return total
        for each in sorted(copies):
            if total + size <= self._limit - self._limit // 10:
                break
            with suppress(FileNotFoundError):
                os.unlink(each.name, dir_fd=top)
            total -= each.size
        return total


def _is_right(copy: Copy, *, compared: bool) -> bool:
    is_large = len(copy.data) > _COMPARED
    return (is_large and not compared) or copy.is_sound()


def _found(top: int, name: str) -> list[_Found]:
    """Return a file's size and when it was used; nothing where it is gone or no file."""
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=top, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            return [_Found(status.st_mtime_ns, name, status.st_size)]
    return []


def _is_written(top: int, name: str) -> bool:
    """Return whether a process is at work on a temporary file; remove it where none is."""
    with suppress(FileNotFoundError):
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=top)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        os.unlink(name, dir_fd=top)
    return False


@contextmanager
def _locked(top: int) -> Iterator[int]:
    """Hold the folder's lock for a moment; give the descriptor of its file.

    Raises:
        TimeoutError: another process holds it, and does not go on.
    """
    flags = os.O_RDWR | os.O_CREAT | _FLAGS
    descriptor = os.open(_LOCK, flags, 0o600, dir_fd=top)
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, f"{_LOCK} is held") from None
                time.sleep(0.001)
        try:
            yield descriptor
        finally:
            # a child that was forked meanwhile has the descriptor as well
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its size, on the disk as well, so that a full one shows before the download."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as err:
            if err.errno not in _NO_ALLOCATION:
                raise
        else:
            return
    os.ftruncate(descriptor, size)


def _told_total(lock: int) -> int | None:
    text = os.pread(lock, 32, 0)
    return int(text) if text.isdigit() else None


def _tell_total(lock: int, total: int) -> None:
    text = b"%020d" % total
    if os.pwrite(lock, text, 0) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(descriptor: int, pieces: Iterable[Buffer], size: int) -> None:
    """Write an object's bytes and the footer."""
    at = crc = 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        crc = crc32(rest, crc)
        if len(rest) > size - at:
            raise EOFError
        while rest:
            count = os.pwrite(descriptor, rest, at)
            rest, at = rest[count:], at + count
    if at != size:
        raise EOFError
    footer = _FOOTER.pack(_SIGN, size, crc)
    if os.pwrite(descriptor, footer, size) != len(footer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise OSError(errno.EIO, "a file became shorter")
    return data
