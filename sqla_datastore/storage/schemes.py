"""Which storage serves a URL, by its scheme; `register_storage` adds to them.

``file`` and object stores are served here. Others come from `register_storage`, from the entry
points of installed packages, and last from fsspec, whose file systems have schemes, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Final

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.storage.buckets import SCHEMES, Bucket
from sqla_datastore.storage.protocol import Storage

Factory = Callable[[str], Storage]

ENTRY_POINTS: Final = "sqla_datastore.storages"
"""The group of entry points: of each the name is a scheme, and the object its factory."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_OWN: Final = frozenset({"file", "data", *SCHEMES})

_registered: dict[str, Factory] = {}


def register_storage(scheme: str, factory: Factory) -> None:
    """Have a factory make the storages of URLs with a scheme, wherever a storage is named.

    A package does the same for all who install it by an entry point of the group
    ``sqla_datastore.storages``: its name is the scheme, its object the factory. Prove the storage
    with the suite in `sqla_datastore.testing`.

    Args:
        scheme: in lower case, for example ``"vault"``. Its URLs are ``vault://…``.
        factory: is given a whole URL and returns its `Storage`, whose `scheme` is this one; called
            once for a URL. Does no I/O, and raises `ConfigurationError` for a URL that is none.

    Raises:
        ConfigurationError: it is no scheme, or one of this library's own, or has another factory.
        TypeError: the factory cannot be called.
    """
    if not callable(factory):
        raise TypeError(f"a factory is called with a URL, not {factory!r}")
    if not isinstance(scheme, str) or not _SCHEME.fullmatch(scheme):
        raise ConfigurationError(f"a scheme is a word in lower case like 'vault', not {scheme!r}")
    if scheme in _OWN:
        raise ConfigurationError(f"the scheme {scheme!r} is this library's own; choose another one")
    if _registered.setdefault(scheme, factory) is not factory:
        raise ConfigurationError(f"the scheme {scheme!r} has another factory already")


def serves(url: str) -> bool:
    """Return whether `storage_of` knows the scheme of a URL; imports nothing but fsspec.

    Raises:
        ConfigurationError: the URL is one of an object store, and names no bucket.
    """
    scheme = _scheme_of(url)
    if scheme in SCHEMES:
        Bucket.parse(url)
        return True
    # a path has none; it must not import fsspec
    return (
        bool(scheme)
        and scheme not in _OWN
        and (scheme in _registered or scheme in _installed() or scheme in _of_fsspec())
    )


def storage_of(url: str) -> Storage:
    """Return the storage of a URL that is `served`; no I/O.

    Raises:
        ConfigurationError: its storage refuses the URL, or something is not installed.
    """
    scheme = _scheme_of(url)
    if scheme in SCHEMES:
        from sqla_datastore.storage.object_storage import ObjectStorage

        return ObjectStorage.at(url)
    storage = (_registered.get(scheme) or _installed().get(scheme) or _at_fsspec)(url)
    if storage.scheme != scheme:
        raise ConfigurationError(
            f"the factory of {scheme!r} made a storage of the scheme {storage.scheme!r}"
        )
    return storage


def _scheme_of(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else ""


@cache
def _installed() -> dict[str, Factory]:
    """Return the factories of installed packages, imported when their URL is first named."""
    return {found.name: _Loaded(found) for found in entry_points(group=ENTRY_POINTS)}


class _Loaded:
    """A factory that is imported when it is called."""

    def __init__(self, found: object) -> None:
        self._found = found

    def __call__(self, url: str) -> Storage:
        made: Storage = self._found.load()(url)  # type: ignore[attr-defined]
        return made


def _at_fsspec(url: str) -> Storage:
    from sqla_datastore.storage.fsspec_storage import FsspecStorage

    return FsspecStorage.at(url)


@cache
def _of_fsspec() -> frozenset[str]:
    """Return the schemes that fsspec knows, whether or not what they need is installed."""
    try:
        from fsspec import available_protocols
    except ImportError:
        return frozenset()
    return frozenset(available_protocols()) - _OWN - {"local"}
