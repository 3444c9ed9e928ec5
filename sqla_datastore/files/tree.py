"""Folders as trees of files, and files written into folders that nothing leads out of."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

from typing_extensions import Buffer

from sqla_datastore.exceptions import UnsupportedTypeError
from sqla_datastore.storage import posix

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class SavingStoppedError(Exception):
    """Nobody waits any more for what is saved."""


def files_below(folder: str, *, follow_symlinks: bool) -> Iterator[tuple[str, str]]:
    """Yield the files below a folder: the place of each, with slashes, and its path.

    Raises:
        UnsupportedTypeError: there is a link that is not to be followed or leads in a circle, or
            something that is neither file nor folder.
    """
    yield from _below(folder, "", follow_symlinks, ())


def _below(
    folder: str, prefix: str, follows: bool, around: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, str]]:
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in around:
        raise UnsupportedTypeError(f"{folder!r} is a symbolic link to a folder that it lies in")
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        place = f"{prefix}{entry.name}"
        if entry.is_symlink() and not follows:
            raise UnsupportedTypeError(
                f"{entry.path!r} is a symbolic link; File.tree(path, follow_symlinks=True) stores "
                "what it leads to"
            )
        if entry.is_dir():
            yield from _below(entry.path, f"{place}/", follows, (*around, here))
        elif stat.S_ISREG(entry.stat().st_mode):
            yield place, entry.path
        else:
            raise UnsupportedTypeError(f"{entry.path!r} is neither a file nor a folder; remove it")


def write_below(base: str, folder: str, name: str, pieces: Iterable[Buffer]) -> None:
    """Write a new file into a folder below another one, through no symbolic link.

    Raises:
        FileExistsError: there is something of that name.
        OSError: the file system failed, or a link is in the way.
    """
    parent = posix.make_folder(base, folder)
    try:
        _write(parent, name, pieces, replaces=False)
    finally:
        os.close(parent)


def write_at(
    path: str,
    pieces: Iterable[Buffer],
    *,
    replaces: bool,
    stopped: threading.Event | None = None,
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: its path; the folder is there.
        pieces: its bytes.
        replaces: whether a file of that path is replaced.
        stopped: set where nobody waits any more: then nothing is left.

    Raises:
        FileExistsError: there is something of that name, which is not to be replaced.
        OSError: the file system failed.
    """
    folder, name = os.path.split(path)
    parent = os.open(folder or ".", _FOLDER)
    try:
        _write(parent, name, pieces, replaces=replaces, stopped=stopped)
    finally:
        os.close(parent)


def _write(
    parent: int,
    name: str,
    pieces: Iterable[Buffer],
    *,
    replaces: bool,
    stopped: threading.Event | None = None,
) -> None:
    temporary = f".{secrets.token_hex(8)}.part"
    descriptor = os.open(temporary, _NEW, 0o666, dir_fd=parent)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for piece in pieces:
                _refuse_stopped(stopped)
                _write_all(file.fileno(), piece)
        _refuse_stopped(stopped)
        if replaces:
            os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            return
        try:
            posix.link_exclusively(temporary, name, parent)
        except posix.NameTakenError as err:
            raise FileExistsError(err.errno, "there is a file of that name", name) from err
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
        raise


def _write_all(descriptor: int, piece: Buffer) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _refuse_stopped(stopped: threading.Event | None) -> None:
    if stopped is not None and stopped.is_set():
        raise SavingStoppedError
