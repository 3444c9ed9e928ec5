"""Which storage serves: that of a column, of an engine, of the process.

`bind_storage` binds one to an engine. Everything else is looked up when it is needed.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import unquote

from sqla_datastore.exceptions import ConfigurationError, DefaultStorageWarning
from sqla_datastore.options import options, storage_text
from sqla_datastore.storage.local import LocalStorage
from sqla_datastore.storage.schemes import serves, storage_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from sqla_datastore.storage.protocol import Storage

StorageLike: TypeAlias = (
    "str | os.PathLike[str] | Storage | Engine | Connection | Session"
    " | AsyncEngine | AsyncConnection | AsyncSession | None"
)

ENVIRONMENT_VARIABLE = "SQLA_DATASTORE_URL"
DEFAULT_FOLDER = "sqla.datastore"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)

_by_text: dict[str, Storage] = {}
_warned: set[str] = set()
# by the storage that is bound: a value knows its storage, and no engine
_also_read: dict[Storage, Storage] = {}
# Result processors know only the dialect, and the option engines of an engine share it. The storage
# is an attribute of it: a query looks it up for each row.
_BOUND = "_sqla_datastore_storage"


def bind_storage(
    engine: Engine | Connection | AsyncEngine | AsyncConnection,
    url: str | os.PathLike[str] | Storage | None,
    *,
    also_read: str | os.PathLike[str] | Storage | None = None,
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
        also_read: a storage of another scheme, where values are read whose URL has that scheme;
            nothing is written or removed there. For the time in which `sqla_datastore.maintenance`
            moves objects from one to the other. It belongs to the first storage, whatever engine
            is bound to that, until a later call for it.

    Raises:
        TypeError: when the engine has no dialect or the storage is none.
        ConfigurationError: when no storage serves the URL, or both are of one scheme.
    """
    dialect = _dialect_of(engine)
    if url is None:
        vars(dialect).pop(_BOUND, None)
        return
    storage = _storage_of(url)
    _also_read.pop(storage, None)
    if also_read is not None:
        other = _storage_of(also_read)
        if other.scheme == storage.scheme:
            raise ConfigurationError(
                f"{storage.url!r} and {other.url!r} have one scheme, so URLs do not tell where to "
                "read; give also_read of another one"
            )
        _also_read[storage] = other
    vars(dialect)[_BOUND] = storage


def _storage_of(url: str | os.PathLike[str] | Storage) -> Storage:
    if isinstance(url, (str, os.PathLike)):
        return _opened(storage_text(url))
    if hasattr(url, "make_durable"):
        return url
    raise TypeError(f"a storage is a URL, a path or a Storage, not {type(url).__name__!r}")


def storage_to_read(storage: Storage, scheme: str) -> Storage | None:
    """Return the storage that serves URLs of a scheme for who is bound to a storage, if any."""
    if storage.scheme == scheme:
        return storage
    other = _also_read.get(storage)
    return other if other is not None and other.scheme == scheme else None


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
    bound = None if dialect is None else vars(dialect).get(_BOUND)
    if bound is not None:
        return bound  # type: ignore[no-any-return]
    return _opened(options.url or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER)


def is_default(url: str | None, dialect: Dialect | None) -> bool:
    """Return whether nothing names the storage that `storage_for` returns for the same arguments.

    Then it is the folder ``sqla.datastore`` in the working directory, for trying things out.
    """
    bound = url is not None or (dialect is not None and _BOUND in vars(dialect))
    return not (bound or options.url or os.environ.get(ENVIRONMENT_VARIABLE))


def warn_of_default(storage: Storage) -> None:
    """Warn once that values are written to the folder that nobody has named."""
    if storage.url not in _warned:
        _warned.add(storage.url)
        warnings.warn(
            f"no storage is bound, so values are written to {storage.url!r}; a program that runs "
            "elsewhere would not find them: name the storage by bind_storage(engine, 'path'), by "
            f"options.url, or by the environment variable {ENVIRONMENT_VARIABLE}",
            DefaultStorageWarning,
            stacklevel=2,
        )


def storage_given(storage: StorageLike, *, to_write: bool = False) -> Storage:
    """Return the storage that a caller names in one of the ways that public calls accept.

    Args:
        storage: a URL or path, a ready `Storage`, or an engine, a connection or a session, each
            synchronous or asynchronous, whose binding by `bind_storage` counts; None for the
            default. Does no I/O.
        to_write: warn where nobody has named it.

    Raises:
        TypeError: when it is none of these.
        ConfigurationError: when no storage serves the URL.
        sqlalchemy.exc.UnboundExecutionError: when the session has no engine for all classes.
    """
    if isinstance(storage, (str, os.PathLike)) or hasattr(storage, "make_durable"):
        return _storage_of(cast("str | Storage", storage))
    bound = getattr(storage, "get_bind", lambda: storage)()
    dialect = None if bound is None else _dialect_of(bound)
    found = storage_for(None, dialect)
    if to_write and is_default(None, dialect):
        warn_of_default(found)
    return found


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """Return the storage that a path or URL names; nothing is created or contacted yet.

    Args:
        url: a path (``~`` is expanded, a relative one is taken from the working directory), a
            ``file:///absolute/path`` URL, percent-encoded, the URL of a bucket and a prefix in it,
            as `ObjectStorage.at` takes it, or one that `register_storage` or fsspec knows.

    Raises:
        ConfigurationError: for an unknown scheme, an authority, a query, or an empty path.
    """
    text = os.fspath(url)
    if not isinstance(text, str):
        raise ConfigurationError(f"a storage is a str or a path of str, not {text!r}")
    if serves(text):
        return storage_of(text)
    return LocalStorage(os.path.expanduser(_folder_of(text)))


def check_storage(url: str | os.PathLike[str]) -> str:
    """Return a storage's URL or path as text, after refusing what no storage serves; no I/O.

    Raises:
        TypeError: it is neither text nor a path.
        ConfigurationError: as `open_storage`.
    """
    text = storage_text(url)
    if not serves(text):
        _folder_of(text)
    return text


def _folder_of(url: str) -> str:
    """Return the path that a path or URL names."""
    match = _URL.fullmatch(url)
    path = url if match is None else _path_of_url(url, match["scheme"], match["rest"])
    if not path or "\0" in path:
        raise ConfigurationError(f"{url!r} names no folder; give a path or 'file:///path'")
    return path


def _path_of_url(url: str, scheme: str, rest: str) -> str:
    if scheme.lower() != "file":
        raise ConfigurationError(
            f"no storage serves {scheme + '://'!r} (of {url!r}); supported are a path, "
            "'file:///absolute/path', and 's3://', 'gs://', 'az://', 'memory://' with a bucket; "
            "register_storage adds others, and pip install 'sqla_datastore[fsspec]' those of fsspec"
        )
    if not rest.startswith("/"):
        raise ConfigurationError(
            f"{url!r} has an authority; a local folder is 'file:///absolute/path'"
        )
    # looked for before the path is unquoted: %3F and %23 may belong to a folder's name
    if "?" in rest or "#" in rest:
        raise ConfigurationError(f"{url!r} has a query or fragment, which a local folder cannot")
    path = unquote(rest)
    # the slash that begins every URL's path would keep '~' from being expanded
    return path[1:] if path.startswith("/~") else path


def _opened(url: str) -> Storage:
    storage = _by_text.get(url)
    if storage is not None:
        return storage  # a URL or an absolute path, as all keys are
    # the key is an absolute path: a relative one is another folder after a chdir
    text = url if _URL.match(url) else os.path.abspath(os.path.expanduser(url))
    # Reading a dict is atomic, so no lock here. Two threads that both find nothing make the same
    # storage: a folder has one.
    storage = _by_text.get(text)
    if storage is None:
        storage = _by_text[text] = open_storage(text)
    return storage


def _dialect_of(engine: Any) -> Dialect:
    sync = getattr(engine, "sync_engine", None) or getattr(engine, "sync_connection", None)
    dialect = getattr(engine if sync is None else sync, "dialect", None)
    if dialect is None:
        raise TypeError(f"expected an Engine or a Connection, not {engine!r}")
    return cast("Dialect", dialect)
