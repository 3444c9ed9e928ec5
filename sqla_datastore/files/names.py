"""Names and content types of files: from whomever they come, they are made harmless."""

from __future__ import annotations

import mimetypes
import os
import re
from typing import Final

from sqla_datastore.exceptions import RefusedURLError

UNKNOWN: Final = "application/octet-stream"
_UNNAMED: Final = "file"
_MAX_NAME: Final = 255
"""Bytes of UTF-8 in a name; most file systems take no more."""

# RFC 6838, section 4.2, and the parameters of RFC 9110, section 5.6.6: one line, for a header
_CONTENT_TYPE: Final = re.compile(
    r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}"
    r"(?:[ \t]*;[ \t]*[\w!#$&^.+-]+=(?:[\w!#$&^.+*'-]+|\"[^\"\\\x00-\x1f\x7f-\U0010ffff]*\"))*",
    re.ASCII,
)
_OF_CODING: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}


def base_name(name: object) -> str:
    r"""Return the last part of a name, without what a terminal or a file system would obey.

    Args:
        name: a text that anybody may have chosen; anything else has no name.

    Examples:
        >>> base_name("../../etc/passwd"), base_name("C:\\reports\\may.pdf"), base_name("..")
        ('passwd', 'may.pdf', 'file')
    """
    if not isinstance(name, str):
        return _UNNAMED
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    shown = "".join(char for char in last if char.isprintable()).strip()
    return _UNNAMED if shown in ("", ".", "..") else _shortened(shown)


def _shortened(name: str) -> str:
    """Return a name that file systems take; its suffix stays."""
    if len(name.encode()) <= _MAX_NAME:
        return name
    stem, suffix = os.path.splitext(name)
    if len(suffix.encode()) > _MAX_NAME // 4:
        stem, suffix = name, ""
    kept = stem.encode()[: _MAX_NAME - len(suffix.encode())]
    return kept.decode(errors="ignore") + suffix


def is_content_type(text: object) -> bool:
    """Return whether a text is a content type, such as ``text/csv; charset=utf-8``."""
    return isinstance(text, str) and len(text) <= 1024 and _CONTENT_TYPE.fullmatch(text) is not None


def guessed_content_type(name: str) -> str:
    """Return the content type that a name suggests.

    Examples:
        >>> guessed_content_type("table.csv"), guessed_content_type("table.csv.gz")
        ('text/csv', 'application/gzip')
    """
    kind, coding = mimetypes.guess_type(f"/{name}")
    if coding is not None:
        return _OF_CODING.get(coding, UNKNOWN)
    return kind if is_content_type(kind) and kind is not None else UNKNOWN


def segments_of(place: object) -> list[str]:
    """Return the parts of a relative path in a tree of files.

    Raises:
        RefusedURLError: it is none, or could lead out of the folder.
    """
    parts = place.split("/") if isinstance(place, str) else [""]
    bad = ("\0", "\\") if os.sep == "\\" else ("\0",)
    if any(part in ("", ".", "..") or any(char in part for char in bad) for part in parts):
        raise RefusedURLError(str(place), "a file's place in a tree is a path like 'images/1.png'")
    return parts
