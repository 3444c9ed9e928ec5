"""MLtraq's objects: what DataPak makes of plain data, and where the data of a `DataStore` lie.

========================  ==============================================================
MLtraq                    what is read
========================  ==============================================================
plain data                the same: None, bool, int, float, str, bytes and containers
``Bunch``                 a dict
``DataStore``             a `DataStore`, with what its URL refers to; not stored yet
``Sequence``              its frame
``Archive``               the bytes of its TAR
``ArchiveStore``          a `File`, the TAR that its URL refers to; nothing is unpacked
arrays, frames, …         the same; arrays are read-only
========================  ==============================================================
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from sqla_datastore.codecs._collections import collides
from sqla_datastore.exceptions import MissingObjectError, RefusedURLError
from sqla_datastore.files.file import File
from sqla_datastore.mltraq.pickled_data import (
    FrozenMembers,
    Members,
    Pairs,
    read_pickle,
    uncompressed,
)
from sqla_datastore.mltraq.reading import LIMIT_BYTES, Allowance, Reading
from sqla_datastore.storage import posix
from sqla_datastore.value.datastore import DataStore

DEPTH: Final = 100
"""How deep containers may nest, those of the objects that are referred to included."""

_KIND: Final = "DATAPAK-0"
_SCHEME: Final = "file:///"
_NODE_BYTES: Final = 64
_FILE_BYTES: Final = 65_536
"""What an object counts for besides its bytes, so that few bytes cannot name too many."""
_ATOMS: Final = (bool, int, float, str, bytes, bytearray, type(None))

PathLike = str | os.PathLike[str]


def read_object(
    source: bytes | PathLike,
    datastore: PathLike | None = None,
    *,
    limit_bytes: int = LIMIT_BYTES,
) -> Any:
    """Return the value of an object that MLtraq serialized; blocks, and writes nothing.

    DataPak, uncompressed or compressed, and pickles of plain data are read.

    Args:
        source: the object's bytes, its path, or its URL as MLtraq gave it (``file:///…``).
        datastore: the folder that MLtraq's option ``datastore.url`` names, where URLs lead. Needed
            for a URL, and where the object refers to others.
        limit_bytes: about how much memory reading may take, together with all that it refers to;
            1 GiB by default. More is refused.

    Returns:
        The value. The object of a `DataStore` is a dict; a `DataStore` inside is a `DataStore`.

    Raises:
        UnsupportedFormatError: its pickle asks for more than plain data, or it takes too much.
        DamagedObjectError: its bytes are not what MLtraq writes.
        MissingObjectError: it, or what it refers to, is not there.
        RefusedURLError: a URL leaves the folder, or none was given.
        StorageError: a file cannot be read.
    """
    reader = ObjectReader(datastore, Allowance(limit_bytes))
    if isinstance(source, bytes):
        return reader.value_of(source, "the object")
    source = os.fspath(source)
    if source.startswith("file:"):
        return reader.value_at(source)
    folder, name = os.path.split(_absolute(source))
    return reader.value_of(contents(folder, name, source, reader.allowance), source)


def read_bytes(url: str, datastore: PathLike, *, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """Return what MLtraq's ``DataStoreIO.write`` wrote, as it is.

    Args:
        url: as ``DataStoreIO.url`` gave it.
        datastore: as for `read_object`.
        limit_bytes: how large it may be.

    Raises:
        UnsupportedFormatError: it is larger.
        MissingObjectError: it is not there.
        RefusedURLError: the URL leaves the folder.
        StorageError: the file cannot be read.
    """
    return ObjectReader(datastore, Allowance(limit_bytes)).bytes_at(url)


class ObjectReader:
    """Reads the objects of one folder that belong to one value.

    Args:
        datastore: the folder, or None where there is none.
        allowance: what they may take together.
    """

    def __init__(self, datastore: PathLike | None, allowance: Allowance) -> None:
        self._folder = None if datastore is None else _absolute(datastore)
        self.allowance = allowance
        self._open: set[str] = set()

    def value_at(self, url: str, depth: int = DEPTH) -> Any:
        """Return the value of the object of a URL, which may nest so deep."""
        with self._entered(url):
            return self.value_of(self.bytes_at(url), url, depth)

    def value_of(self, data: bytes, name: str, depth: int = DEPTH) -> Any:
        """Return the value of an object's bytes; errors call it by the name."""
        reading = Reading(name, self.allowance)
        plain = read_pickle(uncompressed(data, reading), reading)
        return self._decoded(plain, reading, depth)

    def bytes_at(self, url: str) -> bytes:
        """Return the bytes of the object of a URL."""
        return contents(*self._place_of(url), url, self.allowance)

    def _archive_at(self, url: str) -> File:
        folder, path = self._place_of(url)
        with _opened(folder, path, url):  # that it is there, and no link
            name = f"{path.rpartition('/')[2]}.tar"
            return File(os.path.join(folder, path), name=name, content_type="application/x-tar")

    def _place_of(self, url: str) -> tuple[str, str]:
        """Return the folder of all objects, and the path there."""
        path = _path_of(url)
        if self._folder is None:
            raise RefusedURLError(url, "give the folder of MLtraq's data store, where it lies")
        return self._folder, path

    @contextmanager
    def _entered(self, url: str) -> Iterator[None]:
        if url in self._open:
            raise Reading(url, self.allowance).damaged("it contains itself")
        self._open.add(url)
        try:
            yield
        finally:
            self._open.remove(url)

    def _decoded(self, plain: Any, reading: Reading, depth: int) -> Any:
        """Return the value that plain data stand for."""
        reading.take(_NODE_BYTES)
        if isinstance(plain, _ATOMS):
            return plain
        if not depth:
            raise reading.damaged(f"it nests deeper than {DEPTH} levels, or contains itself")
        if isinstance(plain, Pairs):
            return self._decoded_dict(plain, reading, depth - 1)
        items = (self._decoded(each, reading, depth - 1) for each in plain)
        if isinstance(plain, Members | FrozenMembers):
            members = _hashable([*items], reading)
            return set(members) if isinstance(plain, Members) else frozenset(members)
        return type(plain)(items)

    def _decoded_dict(self, plain: Pairs, reading: Reading, depth: int) -> Any:
        # to decode a key counts what hashing it takes
        keys = _hashable([self._decoded(key, reading, depth) for key in plain[::2]], reading)
        pairs = dict(zip(keys, plain[1::2], strict=True))
        if _KIND in pairs:
            return self._decoded_kind(pairs[_KIND], pairs.get("value"), reading, depth)
        return {key: self._decoded(value, reading, depth) for key, value in pairs.items()}

    def _decoded_kind(self, kind: Any, value: Any, reading: Reading, depth: int) -> Any:
        match kind, value:
            case "mltraq.Bunch-0" | "mltraq.Sequence-0", Pairs():
                return self._decoded(value, reading, depth)
            case "mltraq.DataStore-0", str():
                return DataStore(self._entries_at(value, reading, depth))
            case "mltraq.ArchiveStore-0", str():
                return self._archive_at(value)
            case "mltraq.Archive-0", bytes():
                return value
            case "uuid.UUID-0", str():
                return _uuid(value, reading)
            case "numpy.datetime64-0", int():
                return _datetime64(value, reading)
            case str(), bytes() if kind in _OF_BYTES:
                return _from_bytes(kind, value, reading)
        shown = repr(kind) if isinstance(kind, str) else "no text"
        raise reading.refused(
            f"it holds what MLtraq does not write: the kind {shown}, or its value"
        )

    def _entries_at(self, url: str, reading: Reading, depth: int) -> dict[str, Any]:
        found = self.value_at(url, depth)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise reading.damaged(f"{url!r} is no object of a DataStore")
        return found


_OF_BYTES: Final = {
    "numpy.ndarray-0",
    "pandas.DataFrame-0",
    "pandas.Series-0",
    "pyarrow.Table-0",
}


def _from_bytes(kind: str, data: bytes, reading: Reading) -> Any:
    # NumPy, pandas and pyarrow are imported where there is something for them
    from sqla_datastore.mltraq import arrays_and_frames as read

    if kind == "numpy.ndarray-0":
        return read.read_npy(data, reading)
    finish: Callable[[Any, Reading], Any] | None = {
        "pandas.DataFrame-0": read.frame_of,
        "pandas.Series-0": read.series_of,
    }.get(kind)
    table = read.read_feather(data, reading)
    return table if finish is None else finish(table, reading)


def _hashable(keys: list[Any], reading: Reading) -> list[Any]:
    """Return keys after a look at whether they can be told apart in little time."""
    try:
        if not collides(keys):
            return keys
    except TypeError:
        raise reading.damaged("a dict or set holds what cannot be hashed") from None
    raise reading.damaged("too many keys of a dict or set have the same hash")


def _uuid(text: str, reading: Reading) -> uuid.UUID:
    try:
        return uuid.UUID(hex=text)
    except ValueError as err:
        raise reading.damaged(f"a UUID is none ({err})") from err


def _datetime64(microseconds: int, reading: Reading) -> Any:
    import numpy as np

    try:
        return np.datetime64(microseconds, "us")
    except OverflowError as err:
        raise reading.damaged("a datetime64 has more than 64 bits") from err


def _absolute(path: PathLike) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _path_of(url: str) -> str:
    """Return a URL's path below the folder; MLtraq writes it as it is, without escapes."""
    if not url.startswith(_SCHEME):
        raise RefusedURLError(url, f"MLtraq's URLs begin with {_SCHEME}")
    segments = [each for each in url.removeprefix(_SCHEME).split("/") if each]
    if not segments or {".", ".."} & set(segments) or "\0" in url:
        raise RefusedURLError(url, "it does not lead to an object in the folder of the data store")
    return "/".join(segments)


def contents(folder: str, path: str, name: str, allowance: Allowance) -> bytes:
    """Return the bytes of a file below a folder, which count."""
    with _opened(folder, path, name) as (file, size_bytes):
        Reading(name, allowance).take(_FILE_BYTES + size_bytes)
        return file.read(size_bytes)


@contextmanager
def _opened(folder: str, path: str, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Give a regular file below a folder and its size; no symbolic link is followed."""
    try:
        with posix.storage_errors(name, folder), posix.base_opened(folder) as top:
            descriptor, status = posix.open_file(top, path)
            with os.fdopen(descriptor, "rb") as file:
                yield file, status.st_size
    except MissingObjectError as err:
        raise err.because("is it the folder that MLtraq's option datastore.url names?") from err
