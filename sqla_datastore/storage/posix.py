"""Files and folders below a base, reached one path segment at a time.

Every step is relative to the descriptor of the folder before it and follows no symbolic link, so
that whoever can write into the storage cannot lead a reader or a remover out of it. Only the base
itself may be a link: it is the operator's choice.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqla_datastore.exceptions import DataStoreError, MissingObjectError, StorageError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
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
    except FileNotFoundError as err:
        raise MissingObjectError(url, f"the folder {base!r}") from err
    except NameTakenError as err:
        raise StorageError(
            f"{url!r} already exists in {base!r}; an object is never overwritten", url=url
        ) from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or str(err)
        raise StorageError(f"{url!r} in {base!r}: {reason}", url=url) from err


def _refuse_link(name: str, parent: int, err: OSError) -> None:
    """Raise a clear error where a symbolic link made the opening of `name` fail."""
    if err.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise LinkInTheWayError(
                    errno.ELOOP, f"{name!r} is a symbolic link, which a storage does not follow"
                ) from err


def _open_child(name: str, parent: int, *, create: bool) -> int:
    flags = _FOLDER | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            raise
    except OSError as err:
        _refuse_link(name, parent, err)
        raise
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    return os.open(name, flags, dir_fd=parent)


@contextmanager
def folder_opened(base: str, folder: str, *, create: bool = False) -> Iterator[int]:
    """Give the descriptor of a folder below the base, and close it afterwards.

    Args:
        base: an absolute path.
        folder: segments separated by ``/``; empty for the base itself.
        create: make what is missing. A concurrent remover may take a new folder away before the
            caller has put something into it: then the caller sees FileNotFoundError and retries.
    """
    try:
        if create:
            os.makedirs(base, exist_ok=True)
        descriptor = os.open(base, _FOLDER)
    except (FileExistsError, NotADirectoryError) as err:
        raise NotADirectoryError(errno.ENOTDIR, _why_no_folder(base)) from err
    try:
        for segment in folder.split("/") if folder else ():
            child = _open_child(segment, descriptor, create=create)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def _why_no_folder(base: str) -> str:
    if os.path.isfile(base):
        return "the storage's base is a file, not a folder"
    return "the storage's base is no folder, or lies below a file"


@contextmanager
def file_opened(base: str, path: str) -> Iterator[int]:
    """Give the descriptor of a regular file below the base, and close it afterwards."""
    folder, _, name = path.rpartition("/")
    with folder_opened(base, folder) as parent:
        try:
            descriptor = os.open(name, _FILE, dir_fd=parent)
        except OSError as err:
            _refuse_link(name, parent, err)
            raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotAFileError(errno.EINVAL, f"{name!r} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


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
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=parent))
    try:
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.unlink(name, dir_fd=parent)
        raise


def prune(base: str, folder: str) -> None:
    """Remove a folder and those above it, up to but not including the base, while empty."""
    while folder:
        parent, _, name = folder.rpartition("/")
        try:
            with folder_opened(base, parent) as descriptor:
                os.rmdir(name, dir_fd=descriptor)
        except FileNotFoundError:
            pass  # somebody else was faster; the folders above may be empty now
        except OSError:
            return
        folder = parent


def sync(descriptor: int) -> None:
    """Wait until a file or folder is on the disk, as far as its file system can tell."""
    try:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    except OSError as err:
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

        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, trackfd=False)
        return memoryview(mapped)
    import pyarrow as pa

    same = f"/proc/self/fd/{descriptor}"
    with pa.memory_map(same if os.path.exists(same) else path, "r") as source:
        return memoryview(source.read_buffer())
