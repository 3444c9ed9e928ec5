"""A file of any size as an entry: streamed in when it is stored, and out when it is read."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, BinaryIO, Self

from sqla_datastore.exceptions import StorageError, UnsupportedTypeError
from sqla_datastore.files.contents import (
    Content,
    FilePayload,
    path_content,
    stream_content,
)
from sqla_datastore.files.names import (
    base_name,
    guessed_content_type,
    is_content_type,
    segments_of,
)
from sqla_datastore.files.stored import content_in, unpickled
from sqla_datastore.files.tree import files_below, write_at, write_below
from sqla_datastore.printable import printable
from sqla_datastore.storage import posix
from sqla_datastore.storage.off_loop import can_await, in_thread, is_on_loop, off_loop
from sqla_datastore.value.display import size_text
from sqla_datastore.value.entry import ReadsLater, Source


class File(ReadsLater):
    r"""A file as an entry, which is never held in memory.

    ::

        run.data.report = File("report.pdf")
        session.commit()
        run.data.report.save("copy.pdf")

    The path or stream is read when the value is flushed. From then on the File reads from the
    stored object, until a rollback. A file that changes while it is stored, or is gone, is a
    `StaleValueError`, and nothing is stored.

    A stored File reads as long as its object is there: get it from the row again after a commit
    that has replaced the value.

    Args:
        path_or_stream: the path of a file, or a binary stream, which is stored from where it stands
            now to its end. One that cannot seek is read once: a flush that is tried again after a
            failure raises. Keep the file in place, or the stream open, until the flush.
        name: its name; by default that of the path or stream. Only its last part is kept, without
            characters that cannot be printed.
        content_type: by default what the name suggests.

    Raises:
        TypeError: it is neither a path nor a binary stream.
        ValueError: the content type is none.

    Examples:
        >>> import io
        >>> File(io.BytesIO(b"a,b\n"), name="../table.csv")
        <File 'table.csv', text/csv, 4 B, not stored>
    """

    # pickles name the class by its public path, which stays when modules move
    __module__ = "sqla_datastore"

    __slots__ = ("__weakref__", "_content", "_content_type", "_name")

    _content: Content
    _content_type: str
    _name: str

    def __init__(
        self,
        path_or_stream: str | os.PathLike[str] | BinaryIO,
        name: str | None = None,
        content_type: str | None = None,
    ) -> None:
        content, found = _content_of(path_or_stream)
        self._content = content
        self._name = base_name(found if name is None else name)
        if content_type is not None and not is_content_type(content_type):
            raise ValueError(f"{content_type!r} is no content type; one is 'text/csv', for example")
        self._content_type = content_type or guessed_content_type(self._name)

    @classmethod
    def _of(cls, content: Content, name: str, content_type: str) -> Self:
        """Return a File of what is known already."""
        self = cls.__new__(cls)
        self._content, self._name, self._content_type = content, name, content_type
        return self

    def _payload(self, entry: str) -> _Payload:
        """Return what is written of it; see `Content.payload`."""
        return _Payload(self, self._content.payload(entry))

    # -- what is known without its bytes -----------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name: the last part of a path, never a path."""
        return self._name

    @property
    def content_type(self) -> str:
        """Its content type, for example ``application/pdf``; nobody has looked at the bytes."""
        return self._content_type

    @property
    def size_bytes(self) -> int | None:
        """Its size in bytes; None for a stream that cannot seek and is not stored yet.

        Raises:
            OSError: it is not stored yet, and its path is gone.
        """
        return self._content.size_bytes

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of its bytes in hexadecimal, taken while they were stored; None until then.

        It is what the object says. Reading compares a CRC-32, and with ``options.verify =
        "always"`` this, too.
        """
        return self._content.sha256

    # -- reading -----------------------------------------------------------------------------------

    def open(self) -> BinaryIO:
        """Return a binary stream for reading, with random access; blocks when it is read.

        It is verified at its end where it is read in order, and before it is returned with
        ``options.verify = "always"``. Going back is slow where the bytes are compressed.

        Raises:
            MissingObjectError: its object is gone.
            DamagedObjectError: its bytes are not what was written.
            StorageError: the storage failed, or an event loop would stand still meanwhile.
            StaleValueError: it is a stream that is not stored yet.
        """
        self._refuse_on_loop("open()", "aread() or aiter_bytes()")
        return self._content.open()

    def iter_bytes(self) -> Iterator[bytes]:
        """Yield its bytes in pieces of 8 MiB at most; verified after the last one. Blocks.

        Raises:
            MissingObjectError: its object is gone.
            DamagedObjectError: its bytes are not what was written; take no piece for true before
                the last one.
            StorageError: the storage failed, or an event loop would stand still meanwhile.
            StaleValueError: it is a stream that is not stored yet.
        """
        self._refuse_on_loop("iter_bytes()", "aiter_bytes()")
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        pieces = self._content.pieces()
        if not self._content.blocks_a_loop:
            return map(bytes, pieces)
        return iter(partial(off_loop, partial(_next_of, pieces)), None)

    def read(self) -> bytes:
        """Return all its bytes, in memory; raises as `iter_bytes` does."""
        self._refuse_on_loop("read()", "aread()")
        return b"".join(self._pieces())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write its bytes to a file, whole or not at all; blocks.

        Args:
            path: where to; an existing file is replaced. In an existing folder it gets its own
                name, and replaces nothing, since strangers may have chosen that name.

        Returns:
            The path of the new file.

        Raises:
            FileExistsError: the folder has something of its name; pass the whole path instead.
            OSError: the file system failed.
            DataStoreError: as for `iter_bytes`.
        """
        self._refuse_on_loop("save()", "asave()")
        return self._save(Path(path), None)

    def _save(self, path: Path, stopped: threading.Event | None) -> Path:
        is_folder = path.is_dir()
        target = path / self._name if is_folder else path
        write_at(str(target), self._pieces(), replaces=not is_folder, stopped=stopped)
        return target

    # -- for coroutines ----------------------------------------------------------------------------

    async def aread(self) -> bytes:
        """As `read`, in a thread, while the event loop goes on."""
        return await in_thread(self.read)

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """As `iter_bytes`, in a thread, while the event loop goes on."""
        pieces = self._content.pieces()
        while (piece := await in_thread(partial(_next_of, pieces))) is not None:
            yield piece

    async def asave(self, path: str | os.PathLike[str]) -> Path:
        """As `save`, in a thread, while the event loop goes on.

        Where the task is cancelled, saving ends early: the file is whole, or not there.
        """
        stopped = threading.Event()
        return await in_thread(partial(self._save, Path(path), stopped), stopped)

    def _refuse_on_loop(self, call: str, awaitable: str) -> None:
        if self._content.blocks_a_loop and is_on_loop() and not can_await():
            raise StorageError(
                f"File.{call} of {self._name!r} would block the event loop until requests are "
                f"answered; await {awaitable} instead"
            )

    # -- folders -----------------------------------------------------------------------------------

    @classmethod
    def tree(
        cls, path: str | os.PathLike[str], *, follow_symlinks: bool = False
    ) -> dict[str, File]:
        """Return the files below a folder by their relative paths, with ``/`` between the parts.

        Such a dict can be an entry; `save_tree` writes it back. Folders without files are left out.

        Args:
            path: the folder.
            follow_symlinks: store what symbolic links lead to. By default a link is refused.

        Raises:
            UnsupportedTypeError: there is a link, or what is neither file nor folder.
            OSError: a folder cannot be read.
        """
        top = os.path.abspath(path)
        return {
            place: cls._of(
                path_content(found, follows_links=follow_symlinks),
                name := base_name(place),
                guessed_content_type(name),
            )
            for place, found in files_below(top, follow_symlinks=follow_symlinks)
        }

    @classmethod
    def save_tree(cls, tree: Mapping[str, File], folder: str | os.PathLike[str]) -> None:
        """Write files into a folder, by their relative paths; all or none. Blocks.

        Nothing is written outside of the folder, whatever the paths say and whatever symbolic links
        lie in it, and nothing is replaced.

        Args:
            tree: as `tree` returns it.
            folder: made where it is missing.

        Raises:
            RefusedURLError: a path could lead out of the folder; nothing was written.
            UnsupportedTypeError: there is something else than a File; nothing was written.
            FileExistsError: a file is there already.
            OSError: the file system failed, or a symbolic link is in the way.
            DataStoreError: as for `iter_bytes`.
        """
        base = os.path.abspath(folder)
        for place, file in tree.items():
            segments_of(place)
            if not isinstance(file, File):
                raise UnsupportedTypeError(f"{place!r} is no File but a {type(file).__name__!r}")
            file._refuse_on_loop("save_tree()", "asave()")
        posix.make_base(base)
        written: list[str] = []
        try:
            for place, file in tree.items():
                below, _, name = place.rpartition("/")
                write_below(base, below, name, file._pieces())
                written.append(place)
        except BaseException:
            with posix.base_opened(base) as top:
                for place in written:
                    posix.unlink_below(top, place)
            raise

    # -- comparison, copies, pickle ----------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Compare name, content type, and what is known of the bytes.

        Stored files are equal where size and SHA-256 are. One that is not stored is equal to
        another of the same path or stream; its bytes are not read.
        """
        if not isinstance(other, File):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((self._name, self._content_type))  # its bytes may be stored meanwhile

    def _identity(self) -> tuple[object, ...]:
        return self._name, self._content_type, *self._content.identity

    def __copy__(self) -> Self:
        return self  # it cannot be edited

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._unpickled, (self._name, self._content_type, *self._content.reduced())

    @classmethod
    def _unpickled(cls, name: str, content_type: str, *content: Any) -> Self:
        return cls._of(unpickled(*content), name, content_type)

    def __repr__(self) -> str:
        try:
            size = self.size_bytes
        except (OSError, ValueError):  # a repr that raises hides what a debugger wants to show
            size = None
        shown = "size unknown" if size is None else size_text(size)
        state = "not stored" if self.sha256 is None else f"sha256 {self.sha256[:12]}…"
        return printable(f"<File {self._name!r}, {self._content_type}, {shown}, {state}>")


class _Payload(FilePayload):
    """What is written of a File, which reads from there once it is the value's."""

    def __init__(self, file: File, payload: FilePayload) -> None:
        vars(self).update(vars(payload))
        self._file = file

    def belongs_to(self, source: Source, entry: str, *, blocks_a_loop: bool) -> Callable[[], None]:
        """Have the File read from the object that it was written to.

        Args:
            source: the object.
            entry: the name of the entry.
            blocks_a_loop: as for `Content`.

        Returns:
            What has it read again from where it read before, when the object is removed.
        """
        before = [self._file._content]
        # a File that nobody has needs no restoring: its stream must not stay until COMMIT
        found = weakref.ref(self._file, lambda _: before.clear())
        after = content_in(
            source, entry, self.offset, self.nbytes, self.sha256, blocks_a_loop=blocks_a_loop
        )
        self._file._content = after

        def undo() -> None:
            file = found()
            if file is not None and file._content is after:
                file._content = before[0]

        return undo


def _next_of(pieces: Iterator[Any]) -> bytes | None:
    for piece in pieces:
        return bytes(piece)
    return None


def _content_of(given: Any) -> tuple[Content, object]:
    """Return the content of a path or stream, and the name that it suggests."""
    if isinstance(given, (str, os.PathLike)):
        path = os.fspath(given)
        if isinstance(path, str):
            return path_content(os.path.abspath(path)), path
    if isinstance(given, io.TextIOBase):
        raise TypeError("the stream gives text; open it in binary mode")
    if iscoroutinefunction(getattr(given, "read", None)):
        raise TypeError(f"{type(given).__name__}.read() is awaited; pass its binary stream, .file")
    if not hasattr(given, "read"):
        raise TypeError(
            f"a File is made of a path or a binary stream, not of {type(given).__name__!r}; bytes "
            "can be an entry as they are, or io.BytesIO(data)"
        )
    return stream_content(given), getattr(given, "name", None)
