"""Where an object store keeps a storage: the URL of a bucket, and the client that reaches it.

The clients are obstore's, which is imported when the first one is made.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any, NamedTuple

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError, StorageError
from sqla_datastore.options import options
from sqla_datastore.storage.urls import check_path

_STORES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore", "memory": "MemoryStore"}
SCHEMES = frozenset(_STORES)
"""The schemes of the URLs of object stores."""
_USER = re.compile(r"//[^/]*@")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_CONNECT_SECONDS = 5
# what tells one server, or one account, from another, and the variables that obstore reads it from
_SERVERS: dict[str, list[tuple[str, ...]]] = {
    "s3": [("endpoint", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")],
    "gs": [("base_url", "GOOGLE_BASE_URL")],
    "az": [("endpoint", "AZURE_STORAGE_ENDPOINT"), ("account_name", "AZURE_STORAGE_ACCOUNT_NAME")],
}

# what obstore reads from the environment unless it is given client_options, as it is here
_VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_CLIENT_VARIABLES = (
    *("allow_http", "allow_invalid_certificates", "proxy_ca_certificate", "proxy_excludes"),
    *("proxy_url", "user_agent"),
)

# one store for each name, as long as the process lives
_in_memory: dict[str, Any] = {}
# the process that has used an object store first, or what it was forked from
_used_in: int | None = None


class Bucket(NamedTuple):
    """The base of a storage in an object store.

    Attributes:
        scheme: ``s3``, ``gs``, ``az`` or ``memory``.
        name: the bucket's, on Azure the container's.
        prefix: what the keys of its objects begin with, without a slash at the end; may be empty.
    """

    scheme: str
    name: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Bucket:
        """Read a URL, ``<scheme>://<bucket>`` or ``<scheme>://<bucket>/<prefix>``.

        Raises:
            ConfigurationError: it is none, or the prefix could leave the bucket.
        """
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        name, _, prefix = rest.partition("/")
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{_without_user(url)!r} names no bucket; expected '{scheme}://bucket' or "
                f"'{scheme}://bucket/prefix'; credentials and other options belong into "
                "options.storage_options or the environment"
            )
        prefix = prefix.rstrip("/")
        if prefix:
            try:
                check_path(prefix, url=url)
            except RefusedURLError as err:
                raise ConfigurationError(str(err)) from err
        return cls(scheme, name, prefix)

    @classmethod
    def of(cls, store: Any) -> Bucket:
        """Return the base of a ready client of obstore.

        Raises:
            TypeError: it is no client of an object store.
        """
        # a user's subclass is one as well
        kinds = [each.__name__ for each in type(store).__mro__]
        scheme = next((scheme for scheme, name in _STORES.items() if name in kinds), None)
        if scheme == "memory":
            name = next((name for name, each in _in_memory.items() if each is store), "")
            if not name:
                name = f"unnamed-{len(_in_memory) + 1}"
                _in_memory[name] = store
            return cls("memory", name, "")
        if scheme is None:
            raise TypeError(
                "an ObjectStorage takes an S3Store, GCSStore, AzureStore or MemoryStore of "
                f"obstore, not {kinds[0]!r}"
            )
        name = store.config.get("container_name" if scheme == "az" else "bucket", "")
        return cls(scheme, str(name), str(store.prefix or "").strip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """Return the key in the bucket of a path below the base; of ``""`` the prefix."""
        return f"{self.prefix}/{path}".strip("/")


def _without_user(url: str) -> str:
    return _USER.sub("//…@", url)


def client(bucket: Bucket) -> Any:
    """Return a new client of obstore for a bucket, with `options.storage_options`; no I/O.

    Stores in memory are made once for each name.

    Raises:
        ConfigurationError: obstore is not installed, or refuses an option.
    """
    try:
        from obstore import exceptions, store
    except ImportError as err:
        raise ConfigurationError(
            f"{str(bucket)!r} needs obstore; pip install 'sqla_datastore[object-stores]'"
        ) from err
    if bucket.scheme == "memory":
        return _in_memory.setdefault(bucket.name, store.MemoryStore())
    try:
        return getattr(store, _STORES[bucket.scheme])(bucket.name, **_client_options(bucket))
    except (exceptions.BaseError, ValueError, TypeError) as err:
        # the first line names the option; what follows, and the cause, may show others
        raise ConfigurationError(
            f"no client for {str(bucket)!r}: {str(err).partition(chr(10))[0]}; see "
            "options.storage_options, whose names are obstore's, and the environment"
        ) from None


def _client_options(bucket: Bucket) -> dict[str, Any]:
    """Return what the user has set, and what keeps each call within a bounded time."""
    given = dict(options.storage_options)
    limit = timedelta(seconds=options.request_seconds)
    connect = min(limit, timedelta(seconds=_CONNECT_SECONDS))
    for_client = {"timeout": limit, "connect_timeout": connect, **_client_environment(bucket)}
    given["client_options"] = for_client | dict(given.get("client_options") or {})
    given["retry_config"] = {"retry_timeout": limit} | dict(given.get("retry_config") or {})
    if bucket.scheme == "s3":
        # one request for each object is what every server of S3 can do
        given.setdefault("disable_bulk_delete", True)
    return given


def _client_environment(bucket: Bucket) -> dict[str, str]:
    """Return what the environment says of the client, for example ``AWS_ALLOW_HTTP``."""
    names = {name: f"{_VARIABLES[bucket.scheme]}_{name.upper()}" for name in _CLIENT_VARIABLES}
    return {name: os.environ[found] for name, found in names.items() if found in os.environ}


def place_of(bucket: Bucket, client: Any) -> str:
    """Return what two storages share that have the same objects: server, bucket and prefix."""
    where = [_setting(client, *names) for names in _SERVERS.get(bucket.scheme, ())]
    # what stands before the @ may be a password
    where = [_USER.sub("//", each).rstrip("/") for each in where if each]
    return " ".join([*where, str(bucket)])


def _setting(client: Any, name: str, *variables: str) -> str:
    """Return an option of a client, or what it has taken from the environment instead."""
    found = client.config.get(name) or next(filter(None, map(os.environ.get, variables)), "")
    return str(found)


def refuse_after_fork(url: str) -> None:
    """Refuse to go on in a process that was forked from one that has used an object store.

    The threads that wait for obstore's answers are not forked, so that a call would never return.

    Raises:
        StorageError: it was.
    """
    global _used_in
    process = os.getpid()
    if _used_in is None:
        _used_in = process
    if _used_in != process:
        raise StorageError(
            f"{url!r} cannot be used in this process: it was forked from process {_used_in}, which "
            "had used an object store, and its calls would hang; start processes by "
            "multiprocessing.get_context('spawn') or 'forkserver', or fork before the first use",
            url=url,
        )
