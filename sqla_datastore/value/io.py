"""Objects that the caller manages: written and removed outside of any transaction."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, ClassVar, TypeVar, overload

from typing_extensions import Buffer

from sqla_datastore.exceptions import (
    MissingObjectError,
    RefusedURLError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.schema.declarations import refuse_owned_prefix
from sqla_datastore.storage.binding import StorageLike, storage_given
from sqla_datastore.storage.off_loop import in_thread
from sqla_datastore.storage.protocol import Storage, signed
from sqla_datastore.storage.urls import (
    RAW_SUFFIX,
    ObjectURL,
    head_of,
    is_in_row,
    is_managed,
)
from sqla_datastore.value.batch import ONLY, Batch, managed_folder
from sqla_datastore.value.byte_streams import stream_of
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.opening import open_object

T = TypeVar("T")

_FOREIGN = "its name is none that DataStoreIO gives"


class DataStoreIO:
    """One object that its user manages, under a prefix of its user's choice.

    ::

        report = DataStoreIO.write(b"...", relative_path_prefix="reports/2024")
        run.report_url = report.url
        DataStoreIO(run.report_url).read()

    No transaction knows of these objects: they stay when one is rolled back, until `remove` or
    `delete` removes them. Their names tell them from those that rows own: these can be read here,
    and are refused by `remove` and `delete`. A prefix in the folders that rows own is refused. All
    methods block.

    Args:
        url: as `write` or `serialize_write` gave it.
        storage: the storage's URL or path, a `Storage`, or an engine, connection or session
            (asynchronous ones too) that stands for the storage bound to it; by default the one
            that `options` and the environment name. URLs, paths and the default are looked up
            when they are needed.

    Raises:
        TypeError: for a storage that is none of these.
        RefusedURLError: for a URL that this library does not serve.
    """

    # pickles name the class by its public path, which stays when modules move
    __module__ = "sqla_datastore"

    __slots__ = ("_storage", "_url")

    __match_args__: ClassVar[tuple[str, ...]] = ("url",)

    def __init__(self, url: str, *, storage: StorageLike = None) -> None:
        self._url = ObjectURL.parse(url)
        if is_in_row(url):
            raise RefusedURLError(head_of(url), "it is a row's; DataStore.from_url reads it")
        is_text = storage is None or isinstance(storage, (str, os.PathLike))
        # no engine or session is kept
        self._storage = storage if is_text else storage_given(storage)

    # -- writing -----------------------------------------------------------------------------------

    @classmethod
    def write(
        cls, data: Buffer | BinaryIO, relative_path_prefix: str, storage: StorageLike = None
    ) -> DataStoreIO:
        """Write bytes as a new object; they are durable when this returns.

        Args:
            data: bytes-like, or a binary stream, which is read from where it stands to its end in
                pieces of 1 MiB.
            relative_path_prefix: the folder below the storage's base, in plain text: segments
                separated by ``/``, for example ``"models/run 1"``.
            storage: as for the class.

        Returns:
            The object, ``<prefix>/<32 hexadecimal digits>.bin``.

        Raises:
            TypeError: the data are no bytes, or the storage is none.
            RefusedURLError: the prefix is empty, leaves the base, or rows own it.
            StorageError: the storage failed; nothing was written.
        """
        with cls.batch(storage) as batch:
            return batch.write(data, relative_path_prefix)

    @classmethod
    def serialize_write(
        cls, obj: object, relative_path_prefix: str, storage: StorageLike = None
    ) -> DataStoreIO:
        """Write any value that an entry of a `DataStore` can have, or a `DataStore` itself.

        The value itself is not changed, and does not count as stored. Durable when this returns.

        Args:
            obj: the value; `read_deserialize` returns an equal one of the same type.
            relative_path_prefix: as for `write`.
            storage: as for `write`.

        Returns:
            The object, ``<prefix>/<32 hexadecimal digits>.io.zip``; a `DataStore` with nested
            ones is several objects beside each other.

        Raises:
            UnsupportedTypeError: no codec takes the value.
            RefusedURLError: the prefix is empty, leaves the base, or rows own it.
            StorageError: the storage failed; nothing was written.
        """
        with cls.batch(storage) as batch:
            return batch.serialize_write(obj, relative_path_prefix)

    @classmethod
    def batch(cls, storage: StorageLike = None) -> Batch[DataStoreIO]:
        """Return a ``with`` block whose objects are made durable together, or removed together.

        ::

            with DataStoreIO.batch(storage="lab.storage") as batch:
                parts = [batch.write(part, "parts") for part in parts_of_a_report]

        Quicker than as many calls of `write`, which wait for the disk one after the other.

        Args:
            storage: as for the class, but looked up now. Nothing is written yet.

        Returns:
            The batch, see `Batch`.

        Raises:
            TypeError: the storage is none.
        """
        return Batch(cls, storage_given(storage, to_write=True))

    # -- reading -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The object's URL, relative to the storage's base."""
        return str(self._url)

    @property
    def size_bytes(self) -> int:
        """The object's size in bytes, asked from the storage.

        Raises:
            MissingObjectError: there is no such object.
        """
        return self._place().size_bytes(self._url.path)

    def exists(self) -> bool:
        """Return whether the storage has the object."""
        try:
            self._place().size_bytes(self._url.path)
        except MissingObjectError:
            return False
        return True

    def read(self) -> bytes:
        """Return all its bytes.

        Raises:
            MissingObjectError: there is no such object.
            StorageError: the storage failed.
        """
        reader = open_object(self._place(), self._url)
        return reader.read(0, reader.size_bytes)

    def open(self) -> BinaryIO:
        """Return a binary stream for reading, with random access; it reads only what is asked.

        Raises:
            MissingObjectError: there is no such object.
        """
        return stream_of(open_object(self._place(), self._url))

    @overload
    def read_deserialize(self, expected_type: None = None) -> Any: ...

    @overload
    def read_deserialize(self, expected_type: type[T]) -> T: ...

    def read_deserialize(self, expected_type: type[Any] | None = None) -> Any:
        """Return the value that `serialize_write` wrote.

        A `DataStore` is not loaded yet: its entries are read when they are asked for.

        Args:
            expected_type: what the value has to be an instance of, or None for anything.

        Raises:
            UnsupportedTypeError: it is an instance of another type.
            UnsupportedFormatError: the object was written by `write`, or by a newer version.
            MissingObjectError: there is no such object.
            DamagedObjectError: its bytes are not what was written.
        """
        if self._url.name.endswith(RAW_SUFFIX):
            reason = "holds bytes as they were given to write(); use read() or open()"
            raise UnsupportedFormatError(f"{self.url!r} {reason}", url=self.url)
        ds = DataStore._at(self._place(), self.url)
        value = ds[ONLY] if list(ds) == [ONLY] else ds
        if expected_type is not None and not isinstance(value, expected_type):
            found = f"{type(value).__module__}.{type(value).__qualname__}"
            wanted = f"{expected_type.__module__}.{expected_type.__qualname__}"
            raise UnsupportedTypeError(
                f"{self.url!r} holds a value of type {found!r}, not {wanted!r}", type=type(value)
            )
        return value

    def sign(self, expires_seconds: float) -> str:
        """Return a URL from which anybody can download the object for a time; no request is made.

        For a browser, so that its bytes do not pass through this process.

        Args:
            expires_seconds: how long, at most a week.

        Raises:
            StorageError: the storage has no such URLs (S3, Google Cloud Storage and Azure have), or
                lacks the key for them.
        """
        return signed(self._place(), self._url.path, expires_seconds)

    # -- removing ----------------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove the object, with those of nested values; one that is gone already is no error.

        Raises:
            RefusedURLError: it was not written here, or a row owns it: assign another value to the
                row, or delete the row.
            StorageError: the storage failed.
        """
        if not is_managed(self._url.name):
            raise RefusedURLError(self.url, f"{_FOREIGN}; a row's goes with the row")
        if self._url.folder:
            refuse_owned_prefix(self._url.folder)
        self._place().remove([url.path for url in self._url.family()])

    @classmethod
    def delete(cls, relative_path_prefix: str, storage: StorageLike = None) -> None:
        """Remove every object under a prefix; one that does not exist is no error.

        Where there is any other file, nothing is removed: rows of a database that this process
        does not know may own it.

        Args:
            relative_path_prefix: as it was given to `write`.
            storage: as for `write`.

        Raises:
            RefusedURLError: the prefix is empty, leaves the base, or rows own it; or it holds an
                object that was not written here.
            StorageError: the storage failed.
        """
        folder, place = managed_folder(relative_path_prefix), storage_given(storage)
        paths = [found.path for found in place.list(folder)]
        for path in paths:
            if not is_managed(path.rpartition("/")[2]):
                url = str(ObjectURL(place.scheme, path))
                raise RefusedURLError(url, f"{_FOREIGN}; nothing under the prefix was removed")
        place.remove(paths)

    # -- for coroutines ----------------------------------------------------------------------------

    @classmethod
    async def awrite(
        cls, data: Buffer | BinaryIO, relative_path_prefix: str, storage: StorageLike = None
    ) -> DataStoreIO:
        """As `write`, in a thread, while the event loop goes on.

        Where the task is cancelled, nothing stays of the object.
        """
        return await _written(partial(cls.write, data, relative_path_prefix, storage))

    @classmethod
    async def aserialize_write(
        cls, obj: object, relative_path_prefix: str, storage: StorageLike = None
    ) -> DataStoreIO:
        """As `serialize_write`, in a thread, while the event loop goes on.

        Where the task is cancelled, nothing stays of the object.
        """
        return await _written(partial(cls.serialize_write, obj, relative_path_prefix, storage))

    async def aread(self) -> bytes:
        """As `read`, in a thread, while the event loop goes on."""
        return await in_thread(self.read)

    @overload
    async def aread_deserialize(self, expected_type: None = None) -> Any: ...

    @overload
    async def aread_deserialize(self, expected_type: type[T]) -> T: ...

    async def aread_deserialize(self, expected_type: type[Any] | None = None) -> Any:
        """As `read_deserialize`, in a thread, while the event loop goes on.

        `aload` loads the entries of a `DataStore`.
        """
        return await in_thread(partial(self.read_deserialize, expected_type))

    async def aremove(self) -> None:
        """As `remove`, in a thread, while the event loop goes on."""
        await in_thread(self.remove)

    @classmethod
    async def adelete(cls, relative_path_prefix: str, storage: StorageLike = None) -> None:
        """As `delete`, in a thread, while the event loop goes on."""
        await in_thread(partial(cls.delete, relative_path_prefix, storage))

    def _place(self) -> Storage:
        place = self._storage = storage_given(self._storage)
        if self._url.scheme != place.scheme:
            raise RefusedURLError(self.url, f"{place.url!r} serves {place.scheme}: URLs")
        return place

    def __eq__(self, other: object) -> bool:
        return self._url == other._url if isinstance(other, DataStoreIO) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._url)

    def __repr__(self) -> str:
        return f"DataStoreIO({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        given = self._storage
        is_text = given is None or isinstance(given, (str, os.PathLike))
        storage = given if is_text else given.url  # type: ignore[union-attr]
        return type(self)._unpickled, (self.url, storage)

    @classmethod
    def _unpickled(cls, url: str, storage: str | os.PathLike[str] | None) -> DataStoreIO:
        return cls(url, storage=storage)


async def _written(write: Callable[[], DataStoreIO]) -> DataStoreIO:
    """Await a writing; nobody would know of its object where the task is cancelled."""
    written, is_cancelled = await _finished(write)
    if is_cancelled:
        await _finished(written.remove)
        raise asyncio.CancelledError
    return written


async def _finished(call: Callable[[], T]) -> tuple[T, bool]:
    """Return what a call in a thread returns, and whether the task was cancelled meanwhile."""
    running = asyncio.ensure_future(in_thread(call))
    is_cancelled = False
    while not running.done():
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            is_cancelled = True
    return running.result(), is_cancelled
