"""The settings of the process: `options`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from sqla_datastore.exceptions import ConfigurationError

Level: TypeAlias = Literal["fast", "default", "small"]
"""How hard objects are compressed."""


_LONGEST_REQUEST = 86_400
_MOST_WORKERS = 1_000


class Options:
    """Settings of the process, read whenever they are needed; `options` is the only instance."""

    __slots__ = (
        *("_cache_bytes", "_cache_folder", "_compression", "_in_flight_bytes"),
        *("_request_seconds", "_storage_options", "_storage_workers", "_sync", "_url", "_verify"),
    )

    def __init__(self) -> None:
        self._url: str | None = None
        self._verify: Literal["default", "always"] = "default"
        self._sync: Literal["files", "filesystem"] = "files"
        self._compression: bool | Literal["fast", "small"] = False
        self._storage_options: Mapping[str, Any] = MappingProxyType({})
        self._request_seconds = 30.0
        self._storage_workers = 32
        self._in_flight_bytes = 256 * 1024 * 1024
        self._cache_folder: str | None = None
        self._cache_bytes = 10_000_000_000

    @property
    def url(self) -> str | None:
        """The storage of columns whose type and engine name none: a URL or a path.

        A path may be assigned as any path-like object; a relative one is taken from the working
        directory at the time of use. None (the default) leaves it to the environment variable
        ``SQLA_DATASTORE_URL``, then to the folder ``sqla.datastore`` in the working directory.

        Raises:
            TypeError: when something other than text, a path or None is assigned.
            ConfigurationError: when an empty text is assigned.
        """
        return self._url

    @url.setter
    def url(self, url: str | os.PathLike[str] | None) -> None:
        self._url = None if url is None else storage_text(url)

    @property
    def verify(self) -> Literal["default", "always"]:
        """How much of an object is checked when it is read.

        ``"default"`` checks everything but the payload of large memory-mapped arrays, ``"always"``
        that as well, so that the first touch of an entry reads all of it. Holds for objects that
        are opened afterwards.

        Raises:
            ValueError: when another word is assigned.
        """
        return self._verify

    @verify.setter
    def verify(self, verify: Literal["default", "always"]) -> None:
        if verify not in ("default", "always"):
            raise ValueError(f"options.verify is 'default' or 'always', not {verify!r}")
        self._verify = verify

    @property
    def sync(self) -> Literal["files", "filesystem"]:
        """How objects in a local folder are made durable before a transaction commits.

        ``"files"`` syncs each new file and each folder that names one. ``"filesystem"`` syncs
        the whole file system once for each storage and transaction, which is faster for many small
        objects. It also waits for everything that other programs have written there, and an
        error in what they wrote fails this transaction too. It is meant for local file systems:
        one in user space (FUSE) need not sync at all then.

        Raises:
            ValueError: when another word is assigned.
            ConfigurationError: when ``"filesystem"`` is assigned, and this is not Linux 5.8 or
                later. Other systems do not tell whether such a sync failed.
        """
        return self._sync

    @sync.setter
    def sync(self, sync: Literal["files", "filesystem"]) -> None:
        if sync not in ("files", "filesystem"):
            raise ValueError(f"options.sync is 'files' or 'filesystem', not {sync!r}")
        if sync == "filesystem" and not _can_sync_filesystems():
            raise ConfigurationError(
                "options.sync = 'filesystem' needs Linux 5.8 or later; leave it at 'files'"
            )
        self._sync = sync

    @property
    def compression(self) -> bool | Literal["fast", "small"]:
        """Whether new objects are compressed of columns that do not say, and of `DataStoreIO`.

        False (the default) leaves them as they are; True compresses what shrinks by a tenth or
        more, ``"fast"`` with less effort, ``"small"`` with more. Objects that are there stay as
        they are.

        Raises:
            ConfigurationError: when anything else is assigned.
        """
        return self._compression

    @compression.setter
    def compression(self, compression: bool | Literal["fast", "small"]) -> None:
        self._compression = check_compression(compression)

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """Credentials, region, endpoint and the like of object stores that a URL names.

        The names are those that obstore's store of that URL takes, for example ``region``,
        ``endpoint``, ``access_key_id``, ``secret_access_key`` for ``s3://``, and ``client_options``
        and ``retry_config``. What is not set here, obstore takes from the environment. Storages
        that are open use a new dict from their next request on. ``repr`` shows the names only.

        Raises:
            TypeError: when something other than a dict by names is assigned.
        """
        return self._storage_options

    @storage_options.setter
    def storage_options(self, storage_options: Mapping[str, Any]) -> None:
        if not isinstance(storage_options, Mapping):
            raise TypeError(
                f"options.storage_options is a dict, not {type(storage_options).__name__!r}"
            )
        if not all(isinstance(name, str) for name in storage_options):
            raise TypeError("the names of options.storage_options are texts")
        # a copy: a dict that is changed later would change nothing
        self._storage_options = MappingProxyType(dict(storage_options))

    @property
    def request_seconds(self) -> float:
        """How many seconds one request to an object store may take, and how long it is retried.

        30 by default. So a call fails after at most twice this time. It has to suffice for the
        upload of 8 MiB and the download of 32 MiB.

        Raises:
            ValueError: when no positive number is assigned.
        """
        return self._request_seconds

    @request_seconds.setter
    def request_seconds(self, request_seconds: float) -> None:
        # more would overflow what a timeout is measured in
        if not 0 < request_seconds <= _LONGEST_REQUEST:
            raise ValueError(
                f"options.request_seconds is a number between 0 and {_LONGEST_REQUEST}, not "
                f"{request_seconds!r}"
            )
        self._request_seconds = float(request_seconds)

    @property
    def storage_workers(self) -> int:
        """How many objects a flush, a removal or `prefetch` works on at the same time at most.

        32 by default. Folders and file systems of fsspec take fewer where more gain nothing.

        Raises:
            ValueError: when no whole number from 1 to 1,000 is assigned.
        """
        return self._storage_workers

    @storage_workers.setter
    def storage_workers(self, storage_workers: int) -> None:
        _check_whole("storage_workers", storage_workers, _MOST_WORKERS)
        self._storage_workers = storage_workers

    @property
    def in_flight_bytes(self) -> int:
        """How many bytes of payload a flush may hold in memory of objects while it writes them.

        256 MiB by default. An object store holds an object of up to 8 MiB whole, and 32 MiB of a
        larger one. So fewer large objects are written at the same time; there is always one.

        Raises:
            ValueError: when no whole number from 1 on is assigned.
        """
        return self._in_flight_bytes

    @in_flight_bytes.setter
    def in_flight_bytes(self, in_flight_bytes: int) -> None:
        _check_whole("in_flight_bytes", in_flight_bytes, sys.maxsize)
        self._in_flight_bytes = in_flight_bytes

    @property
    def cache_folder(self) -> str | None:
        """A local folder for copies of remote objects, which are read from there the next time.

        None (the default) makes no copies. A text or a path-like object may be assigned; ``~`` is
        expanded, and a relative path is taken from the working directory now. The folder is made by
        the first copy, for this user alone; one that another user owns or may write to is not used,
        with a warning in the log. Processes may share it. Nothing else in it is touched, and
        it may be removed at any time. Holds for objects that are opened afterwards.

        Whoever may read the folder may read the copies, even of objects that were removed.

        Raises:
            TypeError: when something other than text, a path or None is assigned.
            ConfigurationError: when an empty text or a URL is assigned.
        """
        return self._cache_folder

    @cache_folder.setter
    def cache_folder(self, folder: str | os.PathLike[str] | None) -> None:
        path = None if folder is None else os.path.expanduser(storage_text(folder))
        if path is not None and "://" in path:
            raise ConfigurationError(f"options.cache_folder is a local path, not {path!r}")
        self._cache_folder = None if path is None else os.path.abspath(path)

    @property
    def cache_bytes(self) -> int:
        """How many bytes the files in `cache_folder` may take together; 10 GB by default.

        An object is copied as a whole, if it takes a tenth of this or less. Before there is too
        much, those are removed that were opened last the longest ago. Each process sees to it that
        what it adds keeps to its own limit, so give all of them the same.

        Raises:
            ValueError: when no positive integer is assigned.
        """
        return self._cache_bytes

    @cache_bytes.setter
    def cache_bytes(self, cache_bytes: int) -> None:
        if not isinstance(cache_bytes, int) or cache_bytes < 1:
            raise ValueError(f"options.cache_bytes is a positive integer, not {cache_bytes!r}")
        self._cache_bytes = cache_bytes

    @contextmanager
    def using(self, **changes: Any) -> Iterator[Options]:
        """Set options for a ``with`` block, and put back what was there, after an error too.

        ::

            with options.using(url="/data/results", compression=True):
                ...

        The options are those of the whole process: other threads and tasks see them during the
        block as well. Where threads need different storages, give each engine its own
        (`bind_storage`). Blocks may be nested.

        Args:
            changes: any of the options by name; each is checked as when it is assigned.

        Raises:
            TypeError: there is no option of that name; none was set.
        """
        names = [name for name, each in vars(Options).items() if isinstance(each, property)]
        for name in changes.keys() - set(names):
            raise TypeError(f"there is no option {name!r}; there are {', '.join(names)}")
        before = {name: getattr(self, name) for name in changes}
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def __repr__(self) -> str:
        return (
            f"options(url={self.url!r}, verify={self.verify!r}, sync={self.sync!r}, "
            f"compression={self.compression!r}, storage_options={{{self._option_names()}}}, "
            f"request_seconds={self.request_seconds!r}, storage_workers={self.storage_workers!r}, "
            f"in_flight_bytes={self.in_flight_bytes!r}, cache_folder={self.cache_folder!r}, "
            f"cache_bytes={self.cache_bytes!r})"
        )

    def _option_names(self) -> str:
        return ", ".join(f"{name!r}: …" for name in self.storage_options)


def _check_whole(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"options.{name} is a whole number from 1 to {most}, not {value!r}")


def check_compression(compression: Any) -> bool | Literal["fast", "small"]:
    """Return how hard to compress, after a look at it.

    Raises:
        ConfigurationError: it is something else.
    """
    if compression is True or compression is False or compression in ("fast", "small"):
        return compression  # type: ignore[no-any-return]
    raise ConfigurationError(f"compression is True, False, 'fast' or 'small', not {compression!r}")


def compression_level(compression: bool | str | None) -> Level | None:
    """Return the level that a column or the process asks for; None for no compression.

    Args:
        compression: the column's; None leaves it to the process.
    """
    asked = options.compression if compression is None else compression
    if asked is True:
        return "default"
    return asked or None  # type: ignore[return-value]


def storage_text(url: str | os.PathLike[str]) -> str:
    """Return a storage's URL or path as text.

    Raises:
        TypeError: it is neither text nor a path.
        ConfigurationError: it is empty.
    """
    text = os.fspath(url)
    if not isinstance(text, str):
        raise TypeError(f"a storage is a URL or a path, not {type(url).__name__!r}")
    if not text:
        raise ConfigurationError("a storage's URL is empty; None stands for the default")
    return text


def _can_sync_filesystems() -> bool:
    """Return whether syncfs(2) is there and tells what could not be written."""
    if sys.platform != "linux":
        return False
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) >= (5, 8)


options = Options()
