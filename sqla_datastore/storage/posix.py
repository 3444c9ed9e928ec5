"""Files and folders below a base, reached without following a symbolic link.

Linux does so by one system call. Elsewhere a path is walked one segment at a time, each relative to
the descriptor of the folder before it. So whoever can write into the storage cannot lead a reader
or a remover out of it. Only the base itself may be a link: it is the operator's choice.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from sqla_datastore.exceptions import DataStoreError, MissingObjectError, StorageError
from sqla_datastore.storage import linux
from sqla_datastore.storage.parallel import call_for_each

THREADS = 16
"""Calls of one storage that wait for the disk at the same time."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO in the place of an object would wait for somebody who writes to it
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# link(2) says EPERM on file systems that have no hard links, for example FAT, and EMLINK where a
# file has as many as it can have
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# what openat2 says where a link, a file or a path of more than 4,095 bytes is in the way; EAGAIN
# where somebody renames folders meanwhile. A walk finds out which, or succeeds.
_EXPLAINED_BY_A_WALK = {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EAGAIN}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LinkInTheWayError(OSError):
    """A path below the base leads through a symbolic link."""


class NameTakenError(OSError):
    """An object has the name already that another one should get."""


class NotAFileError(OSError):
    """A folder, a FIFO, a socket or a device lies where an object belongs."""


@contextmanager
def storage_errors(url: str, base: str) -> Iterator[None]:
    """Turn what the operating system says into this library's errors, naming the object."""
    try:
        yield
    except DataStoreError:
        raise
    except (OSError, ValueError) as err:
        raise storage_error(err, url, base) from err


def storage_error(err: Exception, url: str, base: str) -> DataStoreError:
    """Return this library's error for what the operating system says of an object."""
    if isinstance(err, FileNotFoundError):
        return MissingObjectError(url, f"the folder {base!r}")
    if isinstance(err, NameTakenError):
        return StorageError(
            f"{url!r} already exists in {base!r}; an object is never overwritten", url=url
        )
    reason = getattr(err, "strerror", None) or str(err)
    return StorageError(f"{url!r} in {base!r}: {reason}", url=url)


def _refuse_link(name: str, parent: int, err: OSError) -> None:
    """Raise a clear error where a symbolic link made the opening of `name` fail."""
    # O_NOFOLLOW says ELOOP of a link on Linux and EMLINK on FreeBSD. Together with O_DIRECTORY it
    # says ENOTDIR, as of a file.
    if err.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise LinkInTheWayError(
                    errno.ELOOP, f"{name!r} is a symbolic link, which a storage does not follow"
                ) from err


def _descend(top: int, path: str, flags: int) -> int:
    """Open what lies below a folder, and return its descriptor."""
    try:
        descriptor = linux.open_beneath(top, path, flags)
    except OSError as err:
        if err.errno not in _EXPLAINED_BY_A_WALK:
            raise
    else:
        if descriptor is not None:
            return descriptor
    return _walk(top, path, flags)


def _walk(top: int, path: str, flags: int) -> int:
    *folders, name = path.split("/")
    parent = top
    try:
        for folder in folders:
            child = _step(folder, parent, _FOLDER)
            if parent != top:
                os.close(parent)
            parent = child
        return _step(name, parent, flags)
    finally:
        if parent != top:
            os.close(parent)


def _step(name: str, parent: int, flags: int) -> int:
    if name == "..":
        # what openat2 answers, too (RESOLVE_BENEATH)
        raise OSError(errno.EXDEV, "'..' leaves the folder that it is looked for in")
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as err:
        _refuse_link(name, parent, err)
        raise


def open_base(base: str) -> int:
    """Open the base, which may be a symbolic link, and return its descriptor."""
    try:
        return os.open(base, _FOLDER)
    except NotADirectoryError as err:
        raise NotADirectoryError(errno.ENOTDIR, _why_no_folder(base)) from err


def make_base(base: str) -> None:
    """Make the base and the folders above it, where they are missing."""
    try:
        os.makedirs(base, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as err:
        raise NotADirectoryError(errno.ENOTDIR, _why_no_folder(base)) from err
    except OSError as err:
        if os.path.dirname(top := _topmost_missing(base)) != "/":
            raise
        raise OSError(
            err.errno,
            f"{err.strerror}; {top!r} would be a folder at the root of the file system: for one "
            f"relative to the working directory write {base[1:]!r}, without 'file:///'",
        ) from err


def _topmost_missing(base: str) -> str:
    """Return the first folder that has to be made for a base."""
    while not os.path.lexists(above := os.path.dirname(base)):
        base = above
    return base


def _why_no_folder(base: str) -> str:
    if os.path.isfile(base):
        return "the storage's base is a file, not a folder"
    return "the storage's base is no folder, or lies below a file"


def make_folder(base: str, folder: str) -> int:
    """Make a folder below the base, where it is missing, and return its descriptor.

    Args:
        base: an absolute path of a folder that is there.
        folder: segments separated by ``/``; empty for the base itself.

    Raises:
        FileNotFoundError: the base is missing, or a concurrent remover has taken a new folder away.
    """
    top = open_base(base)
    if not folder:
        return top
    try:
        return _open_or_make(top, folder)
    finally:
        os.close(top)


def _open_or_make(top: int, folder: str) -> int:
    with suppress(FileNotFoundError):
        # the folder is mostly there, and then this is the only call
        return _descend(top, folder, _FOLDER)
    parent, missing = _nearest(top, folder)
    for name in missing:
        try:
            # another writer may make it first; a remover may take it before the next line opens it
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            child = _step(name, parent, _FOLDER)
        finally:
            if parent != top:
                os.close(parent)
        parent = child
    return parent


def _nearest(top: int, folder: str) -> tuple[int, list[str]]:
    """Open what is there of the folders above a missing one, and return the names below it."""
    missing: list[str] = []
    while folder:
        folder, _, name = folder.rpartition("/")
        missing.insert(0, name)
        with suppress(FileNotFoundError):
            return (_descend(top, folder, _FOLDER) if folder else top), missing
    raise AssertionError  # the base is open


@contextmanager
def base_opened(base: str) -> Iterator[int]:
    """Give the base's descriptor, and close it afterwards."""
    top = open_base(base)
    try:
        yield top
    finally:
        os.close(top)


@contextmanager
def folder_opened(base: str, folder: str) -> Iterator[int]:
    """Give the descriptor of a folder below the base, and close it afterwards.

    Args:
        base: an absolute path.
        folder: segments separated by ``/``; empty for the base itself.
    """
    descriptor = open_base(base)
    if folder:
        try:
            child = _descend(descriptor, folder, _FOLDER)
        finally:
            os.close(descriptor)
        descriptor = child
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def folder_below(top: int, folder: str) -> Iterator[int]:
    """Give the descriptor of a folder below an open one, and close it afterwards."""
    if not folder:
        yield top
        return
    descriptor = _descend(top, folder, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(top: int, path: str) -> tuple[int, os.stat_result]:
    """Open a regular file below an open folder; return its descriptor and its status."""
    descriptor = _descend(top, path, _FILE)
    # the descriptor is asked, not the path: what lies there can be exchanged between two calls
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status
    os.close(descriptor)
    name = path.rpartition("/")[2]
    raise NotAFileError(errno.EINVAL, f"{name!r} is not a regular file")


def unlink_below(top: int, path: str) -> None:
    """Remove a file below an open folder, or a symbolic link itself."""
    folder, _, name = path.rpartition("/")
    with folder_below(top, folder) as parent:
        os.unlink(name, dir_fd=parent)


def link_exclusively(temporary: str, name: str, parent: int) -> None:
    """Give a finished file its name in one step, or raise and leave no such name of ours.

    Raises:
        NameTakenError: there is something of that name.
        OSError: it failed for another reason.
    """
    try:
        _link(temporary, name, parent)
    except FileExistsError as err:
        raise NameTakenError(errno.EEXIST, "its name is taken") from err


def _link(temporary: str, name: str, parent: int) -> None:
    try:
        # A link, because rename(2) would replace an object that has the name. With a dir_fd, Python
        # follows a symbolic link in the temporary file's place unless told otherwise.
        os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except OSError as err:
        if err.errno not in _NO_HARD_LINKS:
            raise
        _claim_and_rename(temporary, name, parent)
        return
    try:
        os.unlink(temporary, dir_fd=parent)
    except BaseException:
        os.unlink(name, dir_fd=parent)
        raise


def _claim_and_rename(temporary: str, name: str, parent: int) -> None:
    """Do the same on file systems without hard links: an empty file claims the name first."""
    claim = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.close(claim)
        # until then a listing shows an empty object, but no committed row names it yet
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.unlink(name, dir_fd=parent)
        raise


def prune(base: str, folders: Iterable[str]) -> None:
    """Remove folders and those above them, up to but not including the base, while empty.

    Each is tried once, below its parent that is opened once; `os.rmdir` decides what is empty.
    """
    with suppress(OSError), base_opened(base) as top:
        prune_below(top, folders)


def prune_below(top: int, folders: Iterable[str]) -> None:
    """Do what `prune` does, below the open base."""
    level = {folder for folder in folders if folder}
    while level:
        # from the deepest on: a folder is empty only once those in it are gone
        deepest = max(folder.count("/") for folder in level)
        now = {folder for folder in level if folder.count("/") == deepest}
        level -= now
        siblings: dict[str, list[str]] = {}
        for folder in sorted(now):
            parent, _, name = folder.rpartition("/")
            siblings.setdefault(parent, []).append(name)
        level |= {parent for parent, names in siblings.items() if _rmdir(top, parent, names)}
        level.discard("")


def _rmdir(top: int, parent: str, names: Sequence[str]) -> bool:
    """Remove the empty ones of some folders; return whether one of them is gone."""
    gone: list[str] = []

    def remove(name: str) -> None:
        try:
            os.rmdir(name, dir_fd=descriptor)
        except FileNotFoundError:
            pass  # somebody else was faster; the parent may be empty now
        except OSError:
            return
        gone.append(name)

    try:
        with folder_below(top, parent) as descriptor:
            for failure in call_for_each(remove, names, threads=THREADS):
                raise failure
    except FileNotFoundError:
        # the parent itself is gone, so the one above it may be empty
        return True
    except OSError:
        return False
    return bool(gone)


def sync(descriptor: int) -> None:
    """Wait until a file or folder is on the disk, as far as its file system can tell."""
    try:
        if sys.platform == "darwin":
            import fcntl

            # on macOS fsync(2) may leave the data in the drive's own cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    except OSError as err:
        # Some file systems cannot sync folders, and then nothing more can be done. A file that
        # cannot be synced is not durable.
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not folder or err.errno not in _NO_SYNC:
            raise


def map_file(descriptor: int, path: str) -> memoryview:
    """Map a whole file read-only; the mapping holds no descriptor.

    Args:
        descriptor: the open file.
        path: its path, for systems that cannot open it again by its descriptor.
    """
    if sys.version_info >= (3, 13):
        import mmap

        # without trackfd=False each map keeps a descriptor: a process runs out of them after about
        # 1,000 values
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, trackfd=False)
        return memoryview(mapped)
    import pyarrow as pa

    # the very file that was opened and looked at; its path may lead to another by now
    same = f"/proc/self/fd/{descriptor}"
    with pa.memory_map(same if os.path.exists(same) else path, "r") as source:
        # the buffer keeps the map, but no descriptor, after the file is closed
        return memoryview(source.read_buffer())
