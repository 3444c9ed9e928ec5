"""The storage in an object store: S3, Google Cloud Storage, Azure, or memory, through obstore.

A small object is one conditional request, which never overwrites. A larger one is uploaded in
parts. What an object store has acknowledged is durable.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import accumulate
from typing import Any, NoReturn, Self

from typing_extensions import Buffer

from sqla_datastore.exceptions import MissingObjectError, RefusedURLError, StorageError
from sqla_datastore.options import options
from sqla_datastore.storage.buckets import Bucket, client, place_of, refuse_after_fork
from sqla_datastore.storage.object_errors import is_silence, object_errors
from sqla_datastore.storage.parallel import call_for_each, raise_first
from sqla_datastore.storage.protocol import TAIL_BYTES, ObjectReader, ObjectWriter, StoredObject
from sqla_datastore.storage.urls import ObjectURL, check_path

PART_BYTES = 8 * 1024 * 1024
"""How much of a new object is held in memory; one that is not larger is one request."""
_PARTS_AT_ONCE = 2
# More is read by several requests: the time that one may take is limited. 32 MiB in 30 seconds are
# 1.1 MB a second.
_READ_AT_ONCE = 32 * 1024 * 1024
_LISTED = 1_000


class ObjectStorage:
    """A `Storage` in a bucket of an object store.

    Thread-safe. Two of them are equal where they are one place. Their ``repr`` shows no
    credentials, and neither does anything else of them.

    Args:
        store: a ready client of obstore: `S3Store`, `GCSStore`, `AzureStore` or `MemoryStore`, with
            the options and the prefix that it was given. Such a storage cannot be pickled, since
            its client may hold credentials.

    Raises:
        TypeError: it is none of these.
    """

    def __init__(self, store: Any) -> None:
        self._bucket = Bucket.of(store)
        # a client puts its prefix in front of each key by itself
        self._keys = self._bucket._replace(prefix="")
        self._store = store
        self._is_ready = True
        self._made_with: object = None
        self.place = place_of(self._bucket, store)

    @classmethod
    def at(cls, url: str) -> Self:
        """Return the storage of a URL, with `options.storage_options`; no I/O.

        Args:
            url: ``s3://``, ``gs://`` or ``az://``, bucket and prefix; ``memory://name`` is one
                store for the process, which ends with it.

        Raises:
            ConfigurationError: the URL is none, obstore is not installed, or refuses an option.
        """
        storage = cls.__new__(cls)
        storage._bucket = storage._keys = Bucket.parse(url)
        storage._is_ready = False
        storage._connect()
        return storage

    def _connect(self) -> None:
        self._made_with = _settings()
        self._store = client(self._bucket)
        self.place = place_of(self._bucket, self._store)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStorage) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self._bucket)

    def __repr__(self) -> str:
        return f"ObjectStorage({self.url!r})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        if self._is_ready:
            raise TypeError(
                f"the storage {self.url!r} was made of a ready client, which holds credentials and "
                "is not pickled; name it by its URL, or bind one in the other process as well"
            )
        return type(self).at, (self.url,)

    @property
    def scheme(self) -> str:
        """The scheme of its objects' URLs: ``s3``, ``gs``, ``az`` or ``memory``."""
        return self._bucket.scheme

    @property
    def url(self) -> str:
        """The base, as it was named; without credentials."""
        return str(self._bucket)

    @property
    def is_local(self) -> bool:
        """Whether it waits for no network: memory."""
        return self.scheme == "memory"

    def exists(self) -> bool:
        """Return True: where the bucket is missing, every call says so itself."""
        return True

    def _client(self) -> Any:
        """Return the client, made anew where the options have changed."""
        refuse_after_fork(self.url)
        if not self._is_ready and self._made_with != _settings():
            self._connect()
        return self._store

    def _url(self, path: str) -> str:
        """Return the URL of a path, refusing one that could leave the base."""
        return str(ObjectURL(self.scheme, check_path(path)))

    @contextmanager
    def create(self, path: str) -> Iterator[ObjectWriter]:
        """Write a new object: leaving the block publishes it, an exception leaves nothing.

        Up to 8 MiB are held, and sent by one request, which fails where the name is taken. More is
        sent in parts, after a look whether the name is free.
        """
        writer = _Writer(self._client(), self._keys.key(path), self._url(path), self.url)
        try:
            yield writer
            writer.publish()
        except BaseException as err:
            writer.abort(err)
            raise

    def open(self, path: str) -> ObjectReader:
        """Open an object for reading, by one request for its size and its end; on Azure two."""
        url, key, store = self._url(path), self._keys.key(path), self._client()
        with object_errors(url, self.url):
            size, end = _tail(store, key)
        return _Reader(self, path, size, end)

    def size_bytes(self, path: str) -> int:
        """Return an object's size."""
        with object_errors(self._url(path), self.url):
            return int(_obstore().head(self._client(), self._keys.key(path))["size"])

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Yield the objects below a folder, at any depth, in the order in which the store lists.

        They come a thousand a request. What has a key that no path can be is not
        of this library, and is not listed.
        """
        url = self._url(folder) if folder else self.url
        prefix = self._keys.key(folder)
        skipped = len(self._keys.key("")) + 1 if self._keys.prefix else 0
        with object_errors(url, self.url):
            pages = iter(_obstore().list(self._client(), prefix or None, chunk_size=_LISTED))
        while True:
            with object_errors(url, self.url):
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                path = found["path"][skipped:]
                with suppress(RefusedURLError):
                    check_path(path)
                    yield StoredObject(path, found["size"], found["last_modified"].timestamp())

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects, many at the same time; what is already gone is no error.

        Tries every one, unless the store does not answer at all.
        """
        store, stopped = self._client(), threading.Event()

        def remove(path: str) -> None:
            try:
                with suppress(MissingObjectError), object_errors(self._url(path), self.url):
                    _obstore().delete(store, self._keys.key(path))
            except StorageError as err:
                # each of thousands would be waited for as long, after COMMIT; `gc` finds them
                if err.no_answer:
                    stopped.set()
                raise

        # a network is slow: one need not find out first
        at_once = not self.is_local
        failures = call_for_each(remove, paths, at_once=at_once, stopped=stopped)
        raise_first(failures, "objects")

    def sign(self, path: str, expires_seconds: float) -> str:
        """Return a URL from which anybody can download an object; see `SignsURLs`."""
        url = self._url(path)
        if self.scheme == "memory":
            raise StorageError(
                f"{self.url!r} is this process's memory: nobody can fetch it", url=url
            )
        limit = timedelta(seconds=expires_seconds)
        with object_errors(url, self.url):
            return str(_obstore().sign(self._client(), "GET", self._keys.key(path), limit))

    def make_durable(self, paths: Iterable[str]) -> None:
        """Do nothing: an object is durable once the store has acknowledged it."""


class _Writer:
    """A new object: held up to `PART_BYTES`, then uploaded in parts."""

    def __init__(self, store: Any, key: str, url: str, base: str) -> None:
        self._store = store
        self._key = key
        self._url = url
        self._base = base
        self._held = bytearray()
        self._sent_bytes = 0
        self._upload: Any = None

    def write(self, data: Buffer, /) -> None:
        """See `ObjectWriter.write`."""
        rest = memoryview(data).cast("B")
        while rest:
            if len(self._held) == PART_BYTES:
                self._upload_part()
            room = PART_BYTES - len(self._held)
            self._held += rest[:room]
            rest = rest[room:]

    def _upload_part(self) -> None:
        with object_errors(self._url, self._base):
            if self._upload is None:
                self._upload = self._begun_upload()
            # it is sent from this very memory, later on, so that it must not be filled again
            part, self._held = self._held, bytearray()
            self._upload.write(part)
            self._sent_bytes += len(part)

    def _begun_upload(self) -> Any:
        # an upload in parts replaces what has its name, and the name is known to nobody else
        with suppress(FileNotFoundError):
            _obstore().head(self._store, self._key)
            self._refuse()
        upload = _obstore().open_writer(
            self._store, self._key, buffer_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE
        )
        return upload.__enter__()

    def publish(self) -> None:
        """Give the object its name."""
        if self._upload is not None:
            self._upload_part()
            with object_errors(self._url, self._base):
                self._complete()
        else:
            with object_errors(self._url, self._base):
                self._put()

    def _complete(self) -> None:
        try:
            self._upload.__exit__(None, None, None)
        except Exception as err:
            # Where its answer was lost this is sent again, and Azure and some servers of S3 then
            # say that there are no such parts: they are the object already. Nobody else knows its
            # name.
            if is_silence(err) or not self._is_whole():
                raise

    def _is_whole(self) -> bool:
        with suppress(Exception):
            return bool(_obstore().head(self._store, self._key)["size"] == self._sent_bytes)
        return False

    def _put(self) -> None:
        already_exists = _obstore().exceptions.AlreadyExistsError
        try:
            _obstore().put(self._store, self._key, memoryview(self._held), mode="create")
        except already_exists:
            # a request whose answer was lost is sent again, and then meets itself
            if not self._is_there():
                self._refuse()

    def _is_there(self) -> bool:
        """Return whether the object under this name is this one, byte by byte."""
        if _obstore().head(self._store, self._key)["size"] != len(self._held):
            return False
        return memoryview(_obstore().get(self._store, self._key).bytes()) == self._held

    def _refuse(self) -> NoReturn:
        raise StorageError(
            f"{self._url!r} already exists in {self._base!r}; an object is never overwritten",
            url=self._url,
        ) from None

    def abort(self, err: BaseException) -> None:
        """Drop what was uploaded; never fails."""
        upload, self._upload = self._upload, None
        if upload is not None:
            # the error that led here is the one to be raised; parts that stay are for the bucket's
            # lifecycle rule
            with suppress(Exception):
                upload.__exit__(type(err), err, err.__traceback__)


class _Reader:
    """An object's path and size, and its end until somebody has read it."""

    maps = False

    def __init__(self, storage: ObjectStorage, path: str, size_bytes: int, end: memoryview) -> None:
        self._storage = storage
        self._path = path
        self._size_bytes = size_bytes
        # given out once and not kept: a container holds what it needs of it
        self._end = end

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self.view(offset, size_bytes))

    def view(self, offset: int, size_bytes: int) -> memoryview:
        end = min(offset + size_bytes, self._size_bytes)
        known, self._end = self._end, memoryview(b"")
        if known and offset == self._size_bytes - len(known) and end == self._size_bytes:
            return known
        if end - offset <= _READ_AT_ONCE:
            return self.read_many([(offset, size_bytes)])[0]
        whole = memoryview(bytearray(end - offset))
        for start in range(offset, end, _READ_AT_ONCE):
            piece = self.read_many([(start, min(_READ_AT_ONCE, end - start))])[0]
            whole[start - offset :][: len(piece)] = piece
        return whole.toreadonly()

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        found = [memoryview(b"")] * len(ranges)
        # a server refuses an empty range, and one behind the end
        spans = [(at, min(at + size, self._size_bytes)) for at, size in ranges]
        wanted = [number for number, (start, end) in enumerate(spans) if start < end]
        for batch in _batches(wanted, [spans[number] for number in wanted]):
            for number, view in zip(batch, self._read([spans[n] for n in batch]), strict=True):
                found[number] = view
        return found

    def _read(self, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        if len(spans) == 1 and spans[0][1] - spans[0][0] > _READ_AT_ONCE:
            return [self.view(spans[0][0], spans[0][1] - spans[0][0])]
        storage, starts, ends = self._storage, *zip(*spans, strict=True)
        with object_errors(storage._url(self._path), storage.url):
            found = _obstore().get_ranges(
                storage._client(), storage._keys.key(self._path), starts=starts, ends=ends
            )
        return [memoryview(each) for each in found]


def _batches(numbers: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[Sequence[int]]:
    """Yield numbers by what one call reads: `_READ_AT_ONCE`, or one span that is larger."""
    sums = [*accumulate((end - start for start, end in spans), initial=0)]
    first = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or sums[at + 1] - sums[first] > _READ_AT_ONCE:
            yield numbers[first:at]
            first = at


def _tail(store: Any, key: str) -> tuple[int, memoryview]:
    """Return an object's size and its last bytes."""
    obstore = _obstore()
    try:
        found = obstore.get(store, key, options={"range": {"suffix": TAIL_BYTES}})
        return found.meta["size"], memoryview(found.bytes())
    except obstore.exceptions.BaseError as err:
        # Azure has no such range, and an object of no bytes has no end: some say that the range is
        # wrong, others send all of it
        if not _is_refused_range(err):
            raise
    size = obstore.head(store, key)["size"]
    if not size:
        return 0, memoryview(b"")
    start = max(0, size - TAIL_BYTES)
    return size, memoryview(obstore.get_range(store, key, start=start, end=size))


def _is_refused_range(err: Exception) -> bool:
    text = str(err)
    refused = ("416", "non-partial response", "NotPartial")
    return type(err).__name__ == "NotSupportedError" or any(map(text.__contains__, refused))


def _settings() -> tuple[object, float]:
    """Return what a client is made with, besides its URL."""
    return options.storage_options, options.request_seconds


def _obstore() -> Any:
    import obstore.exceptions

    return obstore
