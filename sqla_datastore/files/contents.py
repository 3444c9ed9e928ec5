"""Where the bytes of a `File` are before it is stored: in a file or a stream.

They are read when the value is written. Whoever changes them meanwhile gets an error, and nothing
stays of the object.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, BinaryIO, Final, NoReturn, Protocol

from typing_extensions import Buffer

from sqla_datastore.codecs.protocol import FILE_SUFFIX
from sqla_datastore.exceptions import (
    DamagedObjectError,
    DataStoreError,
    StaleValueError,
    UnsupportedTypeError,
)
from sqla_datastore.format import StoredBlob

PIECE: Final = 1024 * 1024
# O_NONBLOCK: opening a FIFO that has taken the file's place would wait for a writer
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Content(Protocol):
    """The bytes of a `File`."""

    @property
    def size_bytes(self) -> int | None:
        """How many there are; None where only their end tells."""

    @property
    def sha256(self) -> str | None:
        """Their SHA-256 in hexadecimal, None before they are stored."""

    @property
    def blocks_a_loop(self) -> bool:
        """Whether to read them would have an event loop wait for a network."""

    @property
    def identity(self) -> tuple[object, ...]:
        """What is equal for equal contents; tells nothing of bytes that are not stored."""

    def payload(self, entry: str) -> FilePayload:
        """Return what is written of them; reads nothing yet.

        Args:
            entry: where in the value they are, for messages.

        Raises:
            StaleValueError: they are gone.
            UnsupportedTypeError: they are no bytes of a file.
        """

    def pieces(self) -> Generator[Buffer, None, None]:
        """Yield them; a piece is to be used before the next one is taken."""

    def open(self) -> BinaryIO:
        """Return a stream that reads them, with random access."""

    def reduced(self) -> tuple[object, ...]:
        """Return the arguments of `stored_file.unpickled`.

        Raises:
            TypeError: they cannot be sent to another process.
        """


class FilePayload:
    """What is written of a file, and hashed meanwhile.

    Args:
        pieces: yields its bytes.
        nbytes: how many they are, -1 where only their end tells.
        stored: the blob that they come from, if they are stored already.
        sha256: what the same says of them.

    Attributes:
        sha256: their hash in hexadecimal, or what stands for it in a node until they are written.
        offset: where in the object they are, once it is written.
        learned: the hash by what stood for it, once they are written; see `Payload`.
        crc: their CRC-32 where it is known.
    """

    suffix = FILE_SUFFIX

    def __init__(
        self,
        pieces: Callable[[], Generator[Buffer, None, None]],
        nbytes: int,
        stored: StoredBlob | None = None,
        sha256: str | None = None,
    ) -> None:
        self._pieces = pieces
        self._stored = stored
        self.nbytes = nbytes
        # random, so that no other text of the node is taken for it
        self.sha256 = sha256 or secrets.token_hex(32)
        self.learned: dict[str, str] = {}
        self.crc = None if stored is None else stored.crc
        self.offset = -1

    def placed(self, offset: int, nbytes: int) -> None:
        """Remember where in the object the bytes are."""
        self.offset, self.nbytes = offset, nbytes
        self.sha256 = self.learned.get(self.sha256, self.sha256)

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        """Hand over all bytes in order."""
        digest = hashlib.sha256()
        with closing(self._pieces()) as pieces:
            for piece in pieces:
                digest.update(piece)
                write(piece)
        if self._stored is None:
            self.learned = {self.sha256: digest.hexdigest()}
        else:
            refuse_other_hash(self._stored, self.sha256, digest.hexdigest())


def refuse_other_hash(blob: StoredBlob, expected: str, found: str) -> None:
    """Raise `DamagedObjectError` where a blob's hash is not what its entry says."""
    if found != expected:
        raise DamagedObjectError(
            blob.source.url,
            "its SHA-256 differs",
            entry=blob.entry,
            expected=expected,
            found=found,
        )


def path_content(path: str, *, follows_links: bool = True) -> Content:
    """Return the bytes of a file in a file system.

    Args:
        path: an absolute path.
        follows_links: whether its last part may be a symbolic link.
    """
    return _PathContent(path, follows_links=follows_links)


def stream_content(stream: Any) -> Content:
    """Return the bytes of a binary stream from where it stands; one that seeks can be read again.

    Args:
        stream: open for reading.
    """
    return _StreamContent(stream)


class _PathContent:
    """The bytes of a file."""

    sha256: str | None = None
    blocks_a_loop = False

    def __init__(self, path: str, *, follows_links: bool = True) -> None:
        self._path = path
        self._follows_links = follows_links

    @property
    def size_bytes(self) -> int:
        return self._status().st_size

    @property
    def identity(self) -> tuple[object, ...]:
        return "path", self._path

    def payload(self, entry: str) -> FilePayload:
        with self._errors(entry):
            status = self._status()
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedTypeError(
                f"entry {entry!r} cannot be stored: {self._path!r} is not a regular file; "
                "File.tree(path) takes a folder",
                entry=entry,
            )
        return FilePayload(partial(self._pieces, entry, status), status.st_size)

    def pieces(self) -> Generator[Buffer, None, None]:
        with open(self._path, "rb", buffering=0) as file:
            yield from _pieces_of(file, os.fstat(file.fileno()).st_size)

    def open(self) -> BinaryIO:
        return open(self._path, "rb")

    def reduced(self) -> tuple[object, ...]:
        return "path", self._path, self._follows_links

    def _status(self) -> os.stat_result:
        return os.stat(self._path, follow_symlinks=self._follows_links)

    def _pieces(self, entry: str, planned: os.stat_result) -> Generator[Buffer, None, None]:
        with self._errors(entry):
            flags = _FLAGS if self._follows_links else _FLAGS | os.O_NOFOLLOW
            with open(os.open(self._path, flags), "rb", buffering=0) as file:
                self._refuse_changed(file, planned, entry)
                left = planned.st_size
                for piece in _pieces_of(file, planned.st_size):
                    left -= len(piece)
                    if left < 0:
                        break
                    yield piece
                self._refuse_changed(file, planned, entry)
        if left:
            raise self._changed(entry)

    def _refuse_changed(self, file: Any, planned: os.stat_result, entry: str) -> None:
        if _marks(os.fstat(file.fileno())) != _marks(planned):
            raise self._changed(entry)

    def _changed(self, entry: str) -> StaleValueError:
        return StaleValueError(
            f"entry {entry!r}: the file {self._path!r} was changed while it was stored; nothing "
            "was stored, try again once it stays as it is"
        )

    @contextmanager
    def _errors(self, entry: str) -> Iterator[None]:
        """Name entry and path in what the operating system says."""
        try:
            yield
        except DataStoreError:
            raise
        except FileNotFoundError as err:
            raise StaleValueError(
                f"entry {entry!r}: there is no file {self._path!r}; a File reads its path when it "
                "is stored, so keep the file until the flush"
            ) from err
        except OSError as err:
            raise StaleValueError(
                f"entry {entry!r}: the file {self._path!r} cannot be read ({err.strerror or err}); "
                "nothing was stored"
            ) from err


def _marks(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _pieces_of(file: Any, size: int) -> Iterator[memoryview]:
    """Yield a raw file's bytes through one buffer."""
    buffer = memoryview(bytearray(min(size + 1, PIECE)))
    while found := file.readinto(buffer):
        yield buffer[:found]


class _StreamContent:
    """The bytes of a stream from where it stood when it was given."""

    sha256: str | None = None
    blocks_a_loop = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        seekable = getattr(stream, "seekable", None)
        # now: whoever reads it before the flush must not shorten what is stored
        self._start: int | None = stream.tell() if seekable is not None and seekable() else None
        self._is_used = False
        self._size: int | None = None
        # one File may be stored by several threads, in values of several rows
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int | None:
        # who only wants to know must not wait until another thread has stored it
        return self._size if self._lock.locked() else self._measured()

    def _measured(self) -> int | None:
        if self._start is not None:
            with self._lock:
                at = self._stream.tell()
                end: int = self._stream.seek(0, os.SEEK_END)
                self._stream.seek(at)
            self._size = max(0, end - self._start)
        return self._size

    @property
    def identity(self) -> tuple[object, ...]:
        return "stream", id(self._stream)

    def payload(self, entry: str) -> FilePayload:
        with self._errors(entry):
            size = self._measured()
        self._refuse_used(entry)
        return FilePayload(partial(self._pieces, entry, size), -1 if size is None else size)

    def pieces(self) -> NoReturn:
        raise self._not_stored()

    def open(self) -> NoReturn:
        raise self._not_stored()

    def reduced(self) -> NoReturn:
        raise TypeError("a File of a stream cannot be pickled before it is stored")

    def _not_stored(self) -> StaleValueError:
        return StaleValueError(
            "a File of a stream is read when it is stored; flush first, and read it from the row"
        )

    def _refuse_used(self, entry: str) -> None:
        if self._is_used:
            raise StaleValueError(
                f"entry {entry!r}: its stream was read already and cannot be read again; assign a "
                "File of another stream, or of a path"
            )

    def _pieces(self, entry: str, planned: int | None) -> Generator[Buffer, None, None]:
        with self._lock:
            self._refuse_used(entry)
            self._is_used = self._start is None
            at = self._start
            with self._errors(entry):
                if at is not None:
                    self._stream.seek(at)
                left = planned
                while piece := self._read(entry):
                    if at is not None and left is not None:
                        at, left = at + len(piece), left - len(piece)
                        if left < 0 or self._stream.tell() != at:
                            raise self._changed(entry)
                    yield piece
            if left:
                raise self._changed(entry)

    def _read(self, entry: str) -> bytes:
        piece = self._stream.read(PIECE)
        if isinstance(piece, (bytes, bytearray, memoryview)):
            return piece  # type: ignore[return-value]
        raise StaleValueError(
            f"entry {entry!r}: its stream gives {type(piece).__name__!r} and not bytes; open it in "
            "binary mode, and so that it waits for its bytes"
        )

    def _changed(self, entry: str) -> StaleValueError:
        return StaleValueError(
            f"entry {entry!r}: its stream was changed, or read by others, while it was stored; "
            "nothing was stored"
        )

    @contextmanager
    def _errors(self, entry: str) -> Iterator[None]:
        """Name the entry in what a stream raises, whatever that is."""
        try:
            yield
        except DataStoreError:
            raise
        except Exception as err:
            raise StaleValueError(
                f"entry {entry!r}: its stream cannot be read ({type(err).__name__}: {err}); "
                "nothing was stored"
            ) from err
