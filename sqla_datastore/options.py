"""Where values live and how they are read: `options`, engine bindings, the search order."""

from __future__ import annotations

import os
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from sqla_datastore.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from sqla_datastore.storage.protocol import Storage

__all__ = ["StorageLike", "bind_storage", "options", "storage_for", "storage_given"]

StorageLike: TypeAlias = (
    "str | os.PathLike[str] | Storage | Engine | Connection | Session"
    " | AsyncEngine | AsyncConnection | AsyncSession | None"
)

ENVIRONMENT_VARIABLE = "SQLA_DATASTORE_URL"
DEFAULT_FOLDER = "sqla.datastore"
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_lock = threading.Lock()
_by_text: dict[str, Storage] = {}
_by_base: dict[tuple[str, str], Storage] = {}
# Result processors know only the dialect, and the option engines of an engine share it.
_by_dialect: weakref.WeakKeyDictionary[Dialect, Storage] = weakref.WeakKeyDictionary()


class Options:
    """Settings of the process, read whenever they are needed; `options` is the only instance."""

    __slots__ = ("_url", "_verify")

    def __init__(self) -> None:
        self._url: str | None = None
        self._verify: Literal["default", "always"] = "default"

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
        self._url = None if url is None else _text(url)

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

    def __repr__(self) -> str:
        return f"options(url={self.url!r}, verify={self.verify!r})"


options = Options()


def bind_storage(
    engine: Engine | Connection | AsyncEngine | AsyncConnection,
    url: str | os.PathLike[str] | Storage | None,
) -> None:
    """Keep the values of an engine's databases in a storage.

    Serves every `DataStoreType` without a URL of its own, so that the same models work in
    production, in tests and for several tenants. Engines made by ``execution_options()`` share the
    binding. Does no I/O; bind before the first use, since values that were fetched already stay
    with the storage they came from.

    Args:
        engine: an engine, synchronous or asynchronous, or one of its connections.
        url: the storage's URL or path, or a ready `Storage`; replaces an earlier binding, and
            None removes it. A relative path is taken from the working directory now.

    Raises:
        TypeError: when the engine has no dialect or the storage is none.
        ConfigurationError: when no storage serves the URL.
    """
    dialect = _dialect_of(engine)
    if url is None:
        _by_dialect.pop(dialect, None)
    elif isinstance(url, (str, os.PathLike)):
        _by_dialect[dialect] = _opened(_text(url))
    elif hasattr(url, "make_durable"):
        _by_dialect[dialect] = url
    else:
        raise TypeError(f"a storage is a URL, a path or a Storage, not {type(url).__name__!r}")


def storage_for(url: str | None, dialect: Dialect | None) -> Storage:
    """Return the storage of a column; the same base is always the same `Storage`.

    Looked for in this order: the column's URL, the dialect's binding, `options.url`, the
    environment variable ``SQLA_DATASTORE_URL``, the folder ``sqla.datastore`` in the working
    directory. Does no I/O.

    Args:
        url: the URL or path that the column's type names, or None.
        dialect: the dialect of the engine that runs the statement, or None outside of one.

    Raises:
        ConfigurationError: when no storage serves the URL.
    """
    if url is not None:
        return _opened(url)
    bound = None if dialect is None else _by_dialect.get(dialect)
    if bound is not None:
        return bound
    return _opened(options.url or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER)


def storage_given(storage: StorageLike) -> Storage:
    """Return the storage that a caller names in one of the ways that public calls accept.

    Args:
        storage: a URL or path, a ready `Storage`, or an engine, a connection or a session, each
            synchronous or asynchronous, whose binding by `bind_storage` counts; None for the
            default. Does no I/O.

    Raises:
        TypeError: when it is none of these.
        ConfigurationError: when no storage serves the URL.
        sqlalchemy.exc.UnboundExecutionError: when the session has no engine for all classes.
    """
    if storage is None:
        return storage_for(None, None)
    if isinstance(storage, (str, os.PathLike)):
        return storage_for(_text(storage), None)
    if hasattr(storage, "make_durable"):
        return cast("Storage", storage)
    bound = storage.get_bind() if hasattr(storage, "get_bind") else storage
    return storage_for(None, _dialect_of(bound))


def _opened(url: str) -> Storage:
    text = url if _HAS_SCHEME.match(url) else os.path.abspath(os.path.expanduser(url))
    storage = _by_text.get(text)
    if storage is None:
        from sqla_datastore.storage import open_storage

        opened = open_storage(text)
        with _lock:
            storage = _by_base.setdefault((opened.scheme, opened.url), opened)
            _by_text[text] = storage
    return storage


def _text(url: str | os.PathLike[str]) -> str:
    text = os.fspath(url)
    if not isinstance(text, str):
        raise TypeError(f"a storage is a URL or a path, not {type(url).__name__!r}")
    if not text:
        raise ConfigurationError("a storage's URL is empty; None stands for the default")
    return text


def _dialect_of(engine: Any) -> Dialect:
    sync = getattr(engine, "sync_engine", None) or getattr(engine, "sync_connection", None)
    dialect = getattr(engine if sync is None else sync, "dialect", None)
    if dialect is None:
        raise TypeError(f"expected an Engine or a Connection, not {engine!r}")
    return cast("Dialect", dialect)
