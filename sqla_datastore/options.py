"""The settings of the process: `options`."""

from __future__ import annotations

import os
from typing import Literal

from sqla_datastore.exceptions import ConfigurationError


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

    def __repr__(self) -> str:
        return f"options(url={self.url!r}, verify={self.verify!r})"


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


options = Options()
