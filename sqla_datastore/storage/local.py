"""The storage in a local folder.

An object is written under a temporary name (``#<random>.part``, which no URL can hold) in its own
folder and gets its name by a hard link, so that a name stands for a whole object or for none and
nothing is ever overwritten. Large ranges are memory maps; no descriptor outlives a call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, NoReturn, Self, cast
from urllib.parse import quote
from weakref import WeakValueDictionary

from sqla_datastore.exceptions import (
    DataStoreError,
    MissingObjectError,
    RefusedURLError,
    StorageError,
)
from sqla_datastore.options import options
from sqla_datastore.storage import linux, listing, posix
from sqla_datastore.storage.draft import Draft
from sqla_datastore.storage.parallel import call_for_each, raise_first
from sqla_datastore.storage.protocol import (
    TAIL_BYTES,
    ObjectReader,
    ObjectWriter,
    StoredObject,
)
from sqla_datastore.storage.urls import ObjectURL, check_path

# To set up a map takes some 20 microseconds, longer than to read so little. More is not copied, and
# only the pages that are used are read from the disk.
MAPPED_FROM_BYTES = 128 * 1024
"""Ranges of an object that have fewer bytes are read, larger ones are memory maps."""
# for fewer objects, finding out first whether the disk is slow would be a good part of all calls
_MANY = 16
_ATTEMPTS = 100
_LISTED = 1_000
_lock = threading.Lock()


class LocalStorage:
    """A `Storage` in a folder of the local file system (or one mounted there).

    The folder is created by the first write. Objects are files whose paths are those of their URLs,
    percent-encoded as there. A symbolic link below the base is never followed.

    Ranges of 128 KiB or more are memory maps. Whoever cuts off an object's file in place ends the
    processes that read its map (SIGBUS), so replace files by renaming.

    Args:
        base: the folder; resolved now, symbolic links too, so that it has one name and stays where
            it is.
    """

    scheme = "file"
    is_local = True
    _known: ClassVar[WeakValueDictionary[str, LocalStorage]] = WeakValueDictionary()

    def __new__(cls, base: str | os.PathLike[str], *_: Any, **__: Any) -> Self:
        """Return the one storage of a folder; a subclass makes its instances as it likes."""
        made = super().__new__(cls)
        if cls is not LocalStorage:
            return made
        # storages are keys of every ledger, so they are compared and hashed by identity
        with _lock:  # `setdefault` of a weak dictionary is none for two threads
            return cast("Self", cls._known.setdefault(_resolved(base), made))

    def __init__(self, base: str | os.PathLike[str]) -> None:
        # under two names for one folder, each storage removed the other's objects of the same row
        resolved = _resolved(base)
        # a folder that is named again has its storage already, with what `make_durable` has to sync
        if vars(self).get("base") != resolved:
            self.base = resolved
            self._above_base = {os.path.dirname(resolved)}

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is LocalStorage:
            return LocalStorage, (self.base,)
        return super().__reduce_ex__(protocol)

    def __getnewargs__(self) -> tuple[str]:
        return (self.base,)

    def __repr__(self) -> str:
        return f"LocalStorage({self.base!r})"

    @property
    def url(self) -> str:
        """The base as a ``file:`` URL."""
        return f"file://{quote(self.base)}"

    @property
    def place(self) -> str:
        """The folder's path: a symbolic link would make two places of it."""
        return os.path.realpath(self.base)

    def exists(self) -> bool:
        """Return whether the folder is there; it may not be mounted, or not be made yet."""
        return os.path.isdir(self.base)

    @contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        """Write a new object: leaving the block publishes it, an exception leaves nothing.

        Folders that are missing are created; after a failure those that are empty go again.
        """
        url = _object_url(path)
        with posix.storage_errors(url, self.base):
            draft = self._draft(path, url)
        try:
            yield draft
            with posix.storage_errors(url, self.base):
                draft.publish()
        except BaseException:
            draft.discard()
            draft.close()
            posix.prune(self.base, [path.rpartition("/")[0]])
            raise
        draft.close()

    def _draft(self, path: str, url: str) -> Draft:
        folder, _, name = path.rpartition("/")
        for attempt in range(_ATTEMPTS):
            try:
                # The base is there, except the first time. Looking for it would cost every object a
                # call.
                if attempt:
                    self._make_base()
                return Draft(posix.make_folder(self.base, folder), name, url, self.base)
            except OSError as err:
                # a remover may take the emptied folder between its creation and our first file
                if isinstance(err, FileNotFoundError) and attempt < _ATTEMPTS - 1:
                    continue
                posix.prune(self.base, [folder])
                if isinstance(err, FileNotFoundError):
                    where = self._path(folder)
                    raise StorageError(f"the folder {where!r} cannot be made", url=url) from err
                raise
        raise AssertionError  # the last attempt returned or raised

    def _make_base(self) -> None:
        """Make the base, and remember for `make_durable` the folders that get a new one."""
        above = self.base
        while not os.path.isdir(above) and above != os.path.dirname(above):
            above = os.path.dirname(above)
            self._above_base.add(above)
        posix.make_base(self.base)

    def open(self, path: str) -> ObjectReader:
        """Open an object for reading, and read its end: a container asks for that first."""
        (reader,) = self._readers([path])
        return reader

    def open_many(self, paths: Iterable[str]) -> Generator[ObjectReader]:
        """Open objects one after the other, as `open` does, below the base that is opened once."""
        # a subclass may open in another way
        is_own = type(self).open is LocalStorage.open
        yield from self._readers(paths) if is_own else map(self.open, paths)

    def _readers(self, paths: Iterable[str]) -> Iterator[ObjectReader]:
        """Yield readers; without context managers, which take as long as the calls in them."""
        top = None
        try:
            for path in paths:
                check_path(path)
                try:
                    if top is None:
                        top = posix.open_base(self.base)
                    size_bytes, end = _size_and_end(top, path)
                except DataStoreError:
                    raise
                except (OSError, ValueError) as err:
                    raise self._error_of(path, err) from err
                yield _Reader(self, path, size_bytes, end)
        finally:
            if top is not None:
                os.close(top)

    def size_bytes(self, path: str) -> int:
        """Return an object's size."""
        with self._opened(path) as (_, status):
            return status.st_size

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Yield the objects below a folder, at any depth, in the order of their paths.

        What has a path of more than 4,000 characters is no object, and is not looked for.
        """
        url = _object_url(folder) if folder else self.url
        with posix.storage_errors(url, self.base):
            try:
                names, objects = listing.look(self.base, folder, _LISTED)
            except FileNotFoundError:
                return
            except NotADirectoryError:
                # a file where the folder would be holds no objects, but a base that is a file is a
                # mistake
                if not folder:
                    raise
                return
        # a list and no recursion: folders may nest deeper than Python calls
        levels = [self._level(folder, url, names, objects)]
        while levels:
            found = next(levels[-1], None)
            if found is None:
                levels.pop()
            elif isinstance(found, str):
                levels.append(self._in_subfolder(found, url))
            else:
                yield found

    def _level(
        self, folder: str, url: str, names: Sequence[str], objects: dict[str, StoredObject]
    ) -> Iterator[StoredObject | str]:
        """Yield what lies in a folder: objects, and the paths of folders."""
        for start in range(0, len(names), _LISTED):
            batch = names[start : start + _LISTED]
            # those of the first batch came along with the names
            if start:
                with posix.storage_errors(url, self.base):
                    objects = listing.objects(self.base, folder, batch)
            for name in batch:
                if name.endswith("/"):
                    yield f"{folder}/{name[:-1]}".lstrip("/")
                elif name in objects:
                    yield objects[name]

    def _in_subfolder(self, folder: str, url: str) -> Iterator[StoredObject | str]:
        with posix.storage_errors(url, self.base):
            try:
                names, objects = listing.look(self.base, folder, _LISTED)
            except FileNotFoundError:
                return  # it has just gone
        yield from self._level(folder, url, names, objects)

    def leftovers(self) -> Iterator[StoredObject]:
        """Yield what interrupted writes left: temporary files, and empty folders."""
        with posix.storage_errors(self.url, self.base):
            yield from listing.leftovers(self.base, "")

    def remove_leftovers(self, paths: Iterable[str]) -> None:
        """Remove temporary files and empty folders; a folder that got a file meanwhile stays."""
        paths = [*paths]
        folders = [check_path(path[:-1]) for path in paths if path.endswith("/")]
        posix.prune(self.base, folders)
        self._remove((path for path in paths if not path.endswith("/")), _leftover_url)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects, and folders that became empty; what is already gone is no error.

        Many are removed in parallel, where that takes long.
        """
        self._remove(paths, _object_url)

    def _remove(self, paths: Iterable[str], url_of: Callable[[str], str]) -> None:
        emptied: set[str] = set()
        with ExitStack() as stack:
            unlink, prune = self._removers(stack)

            def remove(path: str) -> None:
                with (
                    posix.storage_errors(url_of(path), self.base),
                    # where a folder of its path is a file, it was never written
                    suppress(FileNotFoundError, NotADirectoryError),
                ):
                    unlink(path)
                # also where the object was gone: whoever removed it may have died before its folder
                # went
                emptied.add(path.rpartition("/")[0])

            failures = call_for_each(remove, paths, threads=posix.THREADS)
            prune(emptied)
        raise_first(failures, "objects")

    def _removers(
        self, stack: ExitStack
    ) -> tuple[Callable[[str], None], Callable[[Iterable[str]], None]]:
        """Return what unlinks a path, and what prunes folders, below the base opened once."""
        try:
            top = stack.enter_context(posix.base_opened(self.base))
        except OSError as err:
            # The error becomes that of each object: a base that is missing or no folder has none,
            # and any other failure is told with an object's URL.
            return partial(_fail, err), lambda _: None
        return partial(posix.unlink_below, top), partial(posix.prune_below, top)

    def make_durable(self, paths: Iterable[str]) -> None:
        """Sync these objects and every folder from them up to the base, each once, in parallel.

        With `options.sync` set to ``"filesystem"``, sync the file system that they lie in instead.
        """
        files = list(dict.fromkeys(paths))
        if not files:
            return
        with ExitStack() as stack:
            with self._errors_of(files[0]):
                top = stack.enter_context(posix.base_opened(self.base))
            if options.sync == "filesystem":
                self._sync_filesystems(top, files)
            else:
                self._sync_each(top, files)

    def _sync_each(self, top: int, files: Sequence[str]) -> None:
        # fsync(2) of a file does not make its name durable: the name is in the folder, and the
        # folder's name in the one above
        folders = sorted({above for path in files for above in _folders_above(path)}, reverse=True)
        tasks: list[Callable[[], None]] = [partial(self._sync, top, path) for path in files]
        tasks += [partial(self._sync_folder, top, folder) for folder in folders]
        threads = posix.THREADS if len(files) > 1 else 1
        at_once = len(files) < _MANY
        for failure in call_for_each(lambda task: task(), tasks, threads=threads, at_once=at_once):
            raise failure

    def _sync(self, top: int, path: str) -> None:
        with self._opened_below(top, path) as (descriptor, _):
            posix.sync(descriptor)

    def _sync_folder(self, top: int, folder: str) -> None:
        url = _object_url(folder) if folder else self.url
        with (
            posix.storage_errors(url, self.base),
            posix.folder_below(top, folder) as descriptor,
        ):
            posix.sync(descriptor)
        for above in () if folder else [*self._above_base]:
            # the base may be new as well, by another process too; these need not be readable
            with suppress(OSError), posix.base_opened(above) as descriptor:
                posix.sync(descriptor)

    def _sync_filesystems(self, top: int, files: Sequence[str]) -> None:
        """Sync the base's file system, and those that are mounted below it and hold objects."""
        synced = {os.fstat(top).st_dev}
        with posix.storage_errors(self.url, self.base):
            linux.sync_filesystem(top)
        for path in files:  # each has to be there, as `_sync` finds out too
            with self._opened_below(top, path) as (descriptor, status):
                if status.st_dev not in synced:
                    synced.add(status.st_dev)
                    linux.sync_filesystem(descriptor)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, os.stat_result]]:
        """Give the descriptor and the status of an object's file, and close it afterwards."""
        with self._errors_of(path):
            top = posix.open_base(self.base)
            try:
                descriptor, status = posix.open_file(top, path)
            finally:
                os.close(top)
            try:
                yield descriptor, status
            finally:
                os.close(descriptor)

    @contextmanager
    def _opened_below(self, top: int, path: str) -> Iterator[tuple[int, os.stat_result]]:
        """Do what `_opened` does, below the open base."""
        with self._errors_of(path):
            descriptor, status = posix.open_file(top, path)
            try:
                yield descriptor, status
            finally:
                os.close(descriptor)

    @contextmanager
    def _errors_of(self, path: str) -> Iterator[None]:
        check_path(path)
        try:
            yield
        except DataStoreError:
            raise
        except (OSError, ValueError) as err:
            raise self._error_of(path, err) from err

    def _error_of(self, path: str, err: Exception) -> DataStoreError:
        url = _object_url(path)
        # a file lies where the object's folder would be
        if isinstance(err, NotADirectoryError) and os.path.isdir(self.base):
            return MissingObjectError(url, f"the folder {self.base!r}")
        return posix.storage_error(err, url, self.base)

    def _path(self, path: str) -> str:
        return os.path.join(self.base, path) if path else self.base


class _Reader:
    """An object's path and size, and its memory map once a large range was asked for."""

    maps = True

    def __init__(self, storage: LocalStorage, path: str, size_bytes: int, end: bytes) -> None:
        self._storage = storage
        self._path = path
        self._size_bytes = size_bytes
        # given out once and not kept: a container holds what it needs of it
        self._end = end
        self._map: memoryview | None = None
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        end = min(offset + size_bytes, self._size_bytes)
        known, self._end = self._end, b""
        if known and offset == self._size_bytes - len(known) and end == self._size_bytes:
            return known
        with self._storage._opened(self._path) as (descriptor, _):
            return _read(descriptor, offset, end)

    def view(self, offset: int, size_bytes: int) -> memoryview:
        if size_bytes < MAPPED_FROM_BYTES:
            return memoryview(self.read(offset, size_bytes))
        # a slice keeps the map alive, so what is built on it outlives this reader
        return self._mapped()[offset : offset + size_bytes]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [self.view(*each) for each in ranges]

    def _mapped(self) -> memoryview:
        with self._lock:
            if self._map is None:
                with self._storage._opened(self._path) as (descriptor, status):
                    whole = self._storage._path(self._path)
                    # a file of no bytes cannot be mapped (EINVAL)
                    empty = status.st_size == 0
                    self._map = memoryview(b"") if empty else posix.map_file(descriptor, whole)
            return self._map


def _resolved(base: str | os.PathLike[str]) -> str:
    return os.path.realpath(os.fspath(base))


def _size_and_end(top: int, path: str) -> tuple[int, bytes]:
    """Return a file's size and its last `TAIL_BYTES`."""
    descriptor, status = posix.open_file(top, path)
    try:
        size_bytes = status.st_size
        return size_bytes, _read(descriptor, max(0, size_bytes - TAIL_BYTES), size_bytes)
    finally:
        os.close(descriptor)


def _read(descriptor: int, offset: int, end: int) -> bytes:
    pieces = []
    while offset < end:
        # pread(2) returns at most 2 GiB - 4 KiB at once on Linux
        piece = os.pread(descriptor, end - offset, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _fail(err: OSError, _path: str) -> NoReturn:
    raise err


def _object_url(path: str) -> str:
    """Return the URL of a path, refusing one that could leave the base."""
    return str(ObjectURL("file", check_path(path)))


def _leftover_url(path: str) -> str:
    """Return what to call a temporary file in messages, refusing any other name."""
    folder, _, name = path.rpartition("/")
    if not listing.TEMPORARY.fullmatch(name):
        raise RefusedURLError(path, "it is no temporary file of this library")
    return f"{_object_url(folder) if folder else 'file://'}/{name}"


def _folders_above(path: str) -> Iterator[str]:
    """Yield the folders of a path, the nearest first and the base (``""``) last."""
    while path:
        path = path.rpartition("/")[0]
        yield path
