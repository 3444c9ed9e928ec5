"""Object URLs and names: the one place that parses and builds them, and maps a row to its objects.

A column holds ``<scheme>:///<folder>/<object>``, relative to the base of its storage, so that a
storage can be moved without rewriting a row. An object's name is 32 random hexadecimal digits and
the container's suffix ``.zip``, or ``.io.zip`` for one that no row owns. A value with *n* nested
values is a family of *n* + 1 objects whose names follow from the first one, ``<hex>-<n>.zip``: the
nested ones are ``<hex>-<n>.1.zip`` to ``<hex>-<n>.<n>.zip``. So whoever knows a row's URL knows all
its objects without reading one.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote

from sqla_datastore.exceptions import DamagedObjectError, RefusedURLError
from sqla_datastore.storage.in_row import IN_ROW, BytesReader, decoded
from sqla_datastore.storage.protocol import Storage, is_there

SUFFIX = ".zip"
MANAGED_SUFFIX = ".io.zip"
RAW_SUFFIX = ".bin"
"""Of the objects that hold bytes as they were given."""
MAX_NESTED = 1_000_000
"""How many nested values a value has at most."""
_NUMBER = "(?:[1-9][0-9]{0,5}|1000000)"
_STEM = rf"[0-9a-f]{{32}}(-(?P<n>{_NUMBER})(\.(?P<i>{_NUMBER}))?)?"
OBJECT_NAME = re.compile(rf"{_STEM}\.zip")
_FAMILY_NAME = re.compile(rf"{_STEM}(\.io)?\.zip")
_MANAGED_NAME = re.compile(rf"{_STEM}\.io\.zip|[0-9a-f]{{32}}\.bin")
# what would be a family's name without the limit
_CLAIM = re.compile(r"[0-9a-f]{32}-(?P<n>[0-9]+)(\.[0-9]+)?(\.io)?\.zip")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HARMLESS = re.compile(r"[^/\\\0]*")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9_.~!$'()*+,;=:@-]|%[0-9A-F]{2})+")
# without escapes, dots at the start of a segment, and whatever else asks for a closer look
_ORDINARY = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*")
URL_LENGTH = 1024
"""How many characters a column with URLs takes."""

_MAX_BELIEVED = 1_000
_MAX_SEGMENT = 150
_ESCAPED = re.compile(r"[~/\\\0]")
# most keys: numbers and UUIDs
_AS_IT_IS = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_SEGMENT}}}")
# half an escape, which a cut may leave at the end
_CUT = re.compile(r"[%~][0-9A-F]?$")


def quote_segment(value: object) -> str:
    """Render a value as one path segment, injectively.

    Args:
        value: anything with a text form; a key's values are rendered one by one.

    Returns:
        The text, percent-encoded (UTF-8). What a path could not hold even so, ``/``, a backslash,
        NUL, an empty text and dots alone, is written ``~`` and two hexadecimal digits. Beyond 150
        characters the end gives way to ``~~`` and the text's SHA-256.

    Examples:
        >>> quote_segment("run 7"), quote_segment("a/b"), quote_segment("..")
        ('run%207', 'a~2Fb', '~2E~2E')
    """
    text = str(value)
    if _AS_IT_IS.fullmatch(text):
        return text
    text = _ESCAPED.sub(lambda found: f"~{ord(found[0]):02X}", text)
    if not text.strip("."):
        text = text.replace(".", "~2E") or "~"
    quoted = quote(text, safe="~", errors="surrogatepass")
    if len(quoted) > _MAX_SEGMENT:
        # '~~' comes from nowhere else, since '~' itself is escaped: so a shortened text meets no
        # other. It takes 66 characters with the 64 digits.
        digest = hashlib.sha256(quoted.encode()).hexdigest()
        return f"{_CUT.sub('', quoted[: _MAX_SEGMENT - 66])}~~{digest}"
    return quoted


def check_path(path: str, *, url: str | None = None) -> str:
    """Return a relative storage path after refusing whatever could leave the base.

    Args:
        path: segments separated by ``/``, percent-encoded.
        url: the text to name in the error, by default the path.

    Raises:
        RefusedURLError: for an empty path or segment, ``.``, ``..``, an encoded slash, backslash
            or NUL, or a character that a URL path cannot hold.
    """
    if _ORDINARY.fullmatch(path):
        return path  # the paths of this library's own folders, which each statement checks often
    shown = path if url is None else url
    for segment in path.split("/"):
        if not segment:
            raise RefusedURLError(shown, "a path segment is empty")
        if not _SEGMENT.fullmatch(segment):
            raise RefusedURLError(shown, f"segment {segment!r} is not a plain URL path segment")
        # A local file keeps the encoded name, so '%2E%2E' would stay inside. Storages and tools
        # that decode names would leave the base by it.
        plain = unquote(segment)
        if plain in (".", "..") or not _HARMLESS.fullmatch(plain):
            raise RefusedURLError(shown, f"segment {segment!r} could leave the storage's base")
    return path


def new_object_name(nested: int = 0, suffix: str = SUFFIX) -> str:
    """Return a new random object name, for a value with so many nested values."""
    return f"{uuid.uuid4().hex}{f'-{nested}' if nested else ''}{suffix}"


def is_managed(name: str) -> bool:
    """Return whether an object's name says that its user manages it, and no row."""
    return _MANAGED_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class ObjectURL:
    """A parsed URL: `scheme`, and `path` relative to the storage's base.

    ``str()`` gives the text that a column holds; `parse` reads it.

    Examples:
        >>> url = ObjectURL.parse(f"file:///runs/7/{'0' * 32}-1.zip")
        >>> url.scheme, [member.path[-8:] for member in url.family()]
        ('file', ['00-1.zip', '-1.1.zip'])
    """

    scheme: str
    path: str

    @classmethod
    def parse(cls, url: str) -> ObjectURL:
        """Read a URL.

        Raises:
            RefusedURLError: for an authority, a query, a fragment, a ``data:`` URL that holds no
                value, a path that could leave the base, more than 1,024 characters, or a name that
                claims more nested objects than a value can have.
        """
        if not isinstance(url, str):
            raise RefusedURLError(repr(url), "a URL is a str")
        scheme, colon, rest = url.partition(":")
        if not colon or not _SCHEME.fullmatch(scheme):
            raise RefusedURLError(url, "it has no scheme; expected '<scheme>:///<folder>/<object>'")
        if scheme == "data":
            return DataURL.read(url)
        if not rest.startswith("///"):
            raise RefusedURLError(
                url, "it has an authority; expected '<scheme>:///<folder>/<object>'"
            )
        if len(url) > URL_LENGTH:
            raise RefusedURLError(url[:80] + "…", f"it is longer than {URL_LENGTH} characters")
        if "?" in rest or "#" in rest:
            raise RefusedURLError(url, "query and fragment are reserved for a later version")
        path = check_path(rest[3:], url=url)
        name = path.rpartition("/")[2]
        claim = _CLAIM.fullmatch(name) if "-" in name else None  # most values nest none
        if claim and int(claim["n"]) > MAX_NESTED:
            raise RefusedURLError(url, f"it claims more than {MAX_NESTED} nested objects")
        return cls(scheme, path)

    @classmethod
    def of(cls, scheme: str, path: str) -> ObjectURL:
        """Return the URL of a path that was checked already.

        Raises:
            RefusedURLError: a column could not hold it.
        """
        url = cls(scheme, path)
        if len(str(url)) > URL_LENGTH:
            raise RefusedURLError(f"{url!s:.80}…", f"it is longer than {URL_LENGTH} characters")
        return url

    def __str__(self) -> str:
        return f"{self.scheme}:///{self.path}"

    @property
    def folder(self) -> str:
        """The path without the object's name; empty for an object at the base."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The object's name, the last segment."""
        return self.path.rpartition("/")[2]

    @property
    def nested_count(self) -> int:
        """How many nested objects belong to this one; 0 for a nested object itself."""
        match = _FAMILY_NAME.fullmatch(self.name)
        return int(match["n"]) if match and match["n"] and not match["i"] else 0

    @property
    def family_size(self) -> int:
        """How many nested objects the family has that this object is the first or one of."""
        match = _FAMILY_NAME.fullmatch(self.name)
        return int(match["n"]) if match and match["n"] else 0

    @property
    def number(self) -> int:
        """The object's number in its family: from 0 for nested objects, -1 for the first one."""
        match = _FAMILY_NAME.fullmatch(self.name)
        return int(match["i"]) - 1 if match and match["i"] else -1

    @property
    def may_be_a_row_s(self) -> bool:
        """Whether it is named like what a row holds: no nested object, none of `DataStoreIO`."""
        match = OBJECT_NAME.fullmatch(self.name)
        return match is not None and not match["i"]

    def nested(self, index: int) -> ObjectURL:
        """Return the URL of a nested object of this one's family.

        Args:
            index: from 0; the same for every member of the family.
        """
        stem, suffix = self._stem_and_suffix()
        return ObjectURL(self.scheme, f"{stem}.{index + 1}{suffix}")

    def _stem_and_suffix(self) -> tuple[str, str]:
        """Return what stands before and after the number in the paths of nested objects."""
        suffix = MANAGED_SUFFIX if self.name.endswith(MANAGED_SUFFIX) else SUFFIX
        stem = re.sub(r"(-[0-9]+)(\.[0-9]+)?$", r"\1", self.name.removesuffix(suffix))
        return f"{self.folder}/{stem}".lstrip("/"), suffix

    def root(self) -> ObjectURL:
        """Return the URL that a row holds for this object: its own, or its family's first."""
        if "-" not in self.name:
            return self  # most values nest none
        name = re.sub(r"^([0-9a-f]{32}-[0-9]+)\.[0-9]+((\.io)?\.zip)$", r"\1\2", self.name)
        return ObjectURL(self.scheme, f"{self.folder}/{name}".lstrip("/"))

    def family(self) -> list[ObjectURL]:
        """Return this URL and those of all its nested objects."""
        return [ObjectURL(self.scheme, path) for path in self.family_paths()]

    def family_paths(self) -> Iterator[str]:
        """Yield the paths of `family`."""
        yield self.path
        count = self.nested_count
        if count:
            stem, suffix = self._stem_and_suffix()
            yield from (f"{stem}.{number}{suffix}" for number in range(1, count + 1))


@dataclass(frozen=True, slots=True)
class DataURL(ObjectURL):
    """A value that lies in the row itself.

    ``data:application/zip;id=<32 hexadecimal digits>;base64,<object>``, where the objects of nested
    values follow after commas, in their order. The id is random, as an object's name is, so that
    two rows with equal values have URLs that differ. ``#<i>`` at the end stands for a nested
    object.

    Attributes:
        scheme: ``data``.
        path: the id, for a nested object with ``#<i>``.
        objects: base64 of the objects, separated by commas.
    """

    objects: str = ""

    @classmethod
    def read(cls, url: str) -> DataURL:
        """Read a URL; nothing is decoded.

        Raises:
            RefusedURLError: it has no id, or no base64 of objects.
        """
        head, base64, rest = url.partition(_BASE64)
        if not _DATA_HEAD.fullmatch(head) or not base64:
            raise RefusedURLError(
                f"{url[:80]}…" if len(url) > 80 else url,
                "a data: URL of this library is 'data:application/zip;id=…;base64,…'",
            )
        objects, _, number = rest.partition("#")
        path = head[-32:]
        if number:
            if not re.fullmatch(_NUMBER, number) or int(number) > objects.count(","):
                raise RefusedURLError(f"{head}…#{number:.10}", "there is no such nested object")
            path = f"{path}#{number}"
        return cls("data", path, objects)

    @classmethod
    def holding(cls, objects: str) -> DataURL:
        """Return a new URL that holds objects, as `in_row.encoded` returns them."""
        return cls("data", uuid.uuid4().hex, objects)

    @property
    def head(self) -> str:
        """What tells it from any other, for messages and comparisons: all but the objects."""
        return f"{_DATA_START}{self.path[:32]}"

    def __str__(self) -> str:
        nested = self.path[32:]
        return f"{self.head}{_BASE64}{self.objects}{nested}"

    @property
    def folder(self) -> str:
        """Empty: it lies in no folder."""
        return ""

    @property
    def nested_count(self) -> int:
        """How many nested objects belong to this one; 0 for a nested object itself."""
        return 0 if "#" in self.path else self.family_size

    @property
    def family_size(self) -> int:
        """How many nested objects the family has that this object is the first or one of."""
        return self.objects.count(",")

    @property
    def number(self) -> int:
        """The object's number in its family: from 0 for nested objects, -1 for the first one."""
        return int(self.path.partition("#")[2] or 0) - 1

    @property
    def may_be_a_row_s(self) -> bool:
        """Whether it is what a row holds: no nested object."""
        return "#" not in self.path

    def nested(self, index: int) -> DataURL:
        """Return the URL of a nested object of this one's family."""
        return DataURL("data", f"{self.path[:32]}#{index + 1}", self.objects)

    def root(self) -> DataURL:
        """Return the URL that the row holds."""
        return DataURL("data", self.path[:32], self.objects)

    def family_paths(self) -> Iterator[str]:
        """Yield the one name that the ledger knows it by."""
        yield self.path

    @property
    def size_bytes(self) -> int:
        """How many bytes its objects take, without base64."""
        pieces = self.objects.split(",")
        return sum(len(piece) * 3 // 4 - piece[-2:].count("=") for piece in pieces)

    def reader(self) -> BytesReader:
        """Decode its object, or the nested one that it stands for.

        Raises:
            DamagedObjectError: it is cut off, or no base64.
        """
        piece = self.objects.split(",")[self.number + 1]
        try:
            return BytesReader(decoded(piece))
        except ValueError as err:
            raise DamagedObjectError(
                self.head,
                f"it is no base64, or cut off ({err}): a column has to be a DataStoreType("
                "inline_bytes=…), and as long in the database, to hold values in the row",
            ) from err


_DATA_START = "data:application/zip;id="
_DATA_HEAD = re.compile(rf"{re.escape(_DATA_START)}[0-9a-f]{{32}}")
_BASE64 = ";base64,"
DATA_PREFIX = "data:"
HEAD_LENGTH = len(_DATA_START) + 32
"""How many characters tell a ``data:`` URL from any other."""


def is_in_row(url: str | None) -> bool:
    """Return whether a column's text holds the value itself."""
    return url is not None and url.startswith(DATA_PREFIX)


def head_of(url: str) -> str:
    """Return what tells a URL from any other: all of it, without the value that is in the row."""
    return url[:HEAD_LENGTH] if is_in_row(url) else url


# -- the objects of a row --------------------------------------------------------------------------


class ObjectName(NamedTuple):
    """An object: its storage and its path there."""

    storage: Storage
    path: str


def names_of(storage: Storage, url: ObjectURL) -> list[ObjectName]:
    """Return the objects that a row's URL stands for: a value's and those nested in it."""
    where = IN_ROW if isinstance(url, DataURL) else storage
    return [ObjectName(where, path) for path in url.family_paths()]


def names_behind(
    storage: Storage, url: str | None, is_pending: Callable[[ObjectName], bool] | None = None
) -> list[ObjectName]:
    """Return the objects behind a column's text; none for NULL or what no column can own.

    What lies in the row goes with it.

    A row's text may be anybody's. So what is not named like the first object of a value, such as
    ``report.pdf`` or an object of `DataStoreIO`, is not a row's to remove. A large family is
    believed only where the storage has its first object: a few characters could stand for a million
    names. Only then is it looked for.

    Args:
        storage: the column's.
        url: what the column holds.
        is_pending: tells whether an object is going to be written, by default none is.
    """
    if url is None or is_in_row(url):
        return []
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return []
    if parsed.scheme != storage.scheme or not parsed.may_be_a_row_s:
        return []
    first = ObjectName(storage, parsed.path)
    is_believed = (
        parsed.nested_count <= _MAX_BELIEVED
        or (is_pending is not None and is_pending(first))
        or is_there(*first)
    )
    return names_of(storage, parsed) if is_believed else [first]


def row_url(name: ObjectName) -> str:
    """Return the URL that a row holds for an object: its own, or its family's first.

    For a value in the row it is what `head_of` returns of it.
    """
    if name.storage is IN_ROW:
        return f"{_DATA_START}{name.path}"
    return str(ObjectURL(name.storage.scheme, name.path).root())
