"""What lies in the folders of a local storage: objects, and what interrupted writes left."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.storage import posix
from sqla_datastore.storage.protocol import StoredObject
from sqla_datastore.storage.urls import check_path

TEMPORARY = re.compile(r"#[0-9a-f]{32}\.part")
"""The names of files that are not written whole; no URL can hold one."""
MAX_PATH = 4_000
"""How many characters a folder's path and a name in it have together at most; Linux takes 4,095."""


def leftovers(base: str, folder: str) -> Iterator[StoredObject]:
    """Yield temporary files and empty folders below a folder; symbolic links are not followed."""
    # a list and no recursion: folders may nest deeper than Python calls
    todo = [folder]
    while todo:
        found, folders = _leftovers_in(base, todo.pop())
        # Only now is the folder closed. Yielding before would hold a descriptor at each level, and
        # let the caller remove files from a folder that is being read.
        yield from found
        todo += sorted(folders, reverse=True)


def _leftovers_in(base: str, folder: str) -> tuple[list[StoredObject], list[str]]:
    """Return the leftovers in one folder, and the paths of the folders in it."""
    path = f"{folder}/" if folder else ""
    folders: list[str] = []
    found: list[StoredObject] = []
    is_empty = bool(folder)
    # gone, or a writer has just finished: then it is no leftover
    with suppress(FileNotFoundError), posix.folder_opened(base, folder) as descriptor:
        modified = os.fstat(descriptor).st_mtime
        with os.scandir(descriptor) as children:
            for child in children:
                is_empty = False
                if child.is_dir(follow_symlinks=False):
                    # what no path can name is not of this library, and could not be removed by its
                    # path
                    folders += [path + child.name] * _is_nameable(folder, child.name)
                elif TEMPORARY.fullmatch(child.name):
                    with suppress(FileNotFoundError):
                        file = child.stat(follow_symlinks=False)
                        found.append(StoredObject(path + child.name, file.st_size, file.st_mtime))
        if is_empty:
            found.append(StoredObject(path, 0, modified))
    return found, folders


def look(base: str, folder: str, count: int) -> tuple[list[str], dict[str, StoredObject]]:
    """Return the names in a folder that a path can hold, in the order of full paths.

    A folder's name ends with ``/``, since that is how the paths below it go on. Nothing else is
    kept of most: a table of a million rows has as many folders beside each other.

    Args:
        base: an absolute path.
        folder: below the base; empty for the base itself.
        count: of so many names, the first ones, also return what `objects` does.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    with posix.folder_opened(base, folder) as descriptor:
        with os.scandir(descriptor) as children:
            names = sorted(
                # costs no call where the file system tells types along with names (d_type)
                child.name + "/" * child.is_dir(follow_symlinks=False)
                for child in children
                if _is_nameable(folder, child.name)
            )
        return names, _objects(descriptor, folder, names[:count])


def objects(base: str, folder: str, names: Sequence[str]) -> dict[str, StoredObject]:
    """Return, by name, what is an object; what has just gone is none."""
    if all(name.endswith("/") for name in names):
        return {}
    with suppress(FileNotFoundError), posix.folder_opened(base, folder) as descriptor:
        return _objects(descriptor, folder, names)
    return {}


def _objects(descriptor: int, folder: str, names: Sequence[str]) -> dict[str, StoredObject]:
    found: dict[str, StoredObject] = {}
    for name in names:
        if not name.endswith("/"):
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    path = f"{folder}/{name}".lstrip("/")
                    found[name] = StoredObject(path, status.st_size, status.st_mtime)
    return found


def _is_nameable(folder: str, name: str) -> bool:
    """Return whether what lies in a folder has a path that can be a URL's, and is not too long."""
    # the length bounds how deep one looks, whatever somebody has put there
    if len(folder) + len(name) > MAX_PATH:
        return False
    try:
        check_path(name)
    except RefusedURLError:
        return False
    return True
