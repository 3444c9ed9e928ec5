"""One entry of many objects as one Arrow table: for many small ones that are alike.

What it takes to read a small entry does not depend on what is in it: the node is parsed, the codec
found, the library called. Entries that are alike need that once. A codec whose values are tables
has a method ``arrow_plan(node, version)``, which returns how the values of a node are read, or
None; the plan has ``piece(decoder)``, which returns an entry's part of a table, or None; and pieces
that are alike have ``joined(pieces)``, which returns the table.

Whatever goes wrong, the entries are loaded one by one, which tells of which one it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from sqla_datastore.codecs import codec_named
from sqla_datastore.codecs.protocol import Decoder
from sqla_datastore.codecs.strict_json import parse_json
from sqla_datastore.format.blobs import StoredBlob
from sqla_datastore.format.compression import STORED
from sqla_datastore.format.reader import Container

JOINED_BYTES = 64 * 1024
"""Larger entries are not joined: to copy them would take longer than is saved."""
_REMEMBERED_CHARACTERS = 8 * 1024


class _Content(Protocol):
    """What a codec makes of an entry."""

    @property
    def like(self) -> Hashable: ...

    @property
    def rows(self) -> int: ...

    @staticmethod
    def joined(pieces: Sequence[Any]) -> Any: ...


class _Plan(Protocol):
    def piece(self, decoder: Decoder) -> _Content | None: ...


@dataclass(slots=True)
class Piece:
    """An entry of an object, read and verified, that can be joined with those of others.

    Attributes:
        like: pieces for which it is equal can be joined.
        rows: how many rows of a table it makes.
        content: what the codec needs to make them.
    """

    like: Hashable
    rows: int
    content: _Content


def piece_of(container: Container, name: str, blobs: list[StoredBlob]) -> Piece | None:
    """Return a small entry's piece; None where it has to be loaded, or that will say what is wrong.

    Args:
        container: the object.
        name: the entry's name, which is there.
        blobs: as the container has fetched them.
    """
    left = JOINED_BYTES
    for blob in blobs:
        left -= blob.nbytes
        if left < 0 or blob.method != STORED:
            return None
    try:
        text = container.node_text(name)
        plan = _plan_of(text) if _is_a_table_s(text) else None
        content = None if plan is None else plan.piece(container.decoder(name, blobs))
    except MemoryError:
        raise
    except Exception:
        return None
    if content is None:
        return None
    return Piece((type(content), content.like), content.rows, content)


def joined(pieces: Sequence[Piece]) -> Any | None:
    """Return the table of pieces that are alike; None where one of them is damaged."""
    contents = [piece.content for piece in pieces]
    try:
        table = contents[0].joined(contents)
    except MemoryError:
        raise
    except Exception:
        return None
    return table if table.num_rows == sum(piece.rows for piece in pieces) else None


def _is_a_table_s(text: str) -> bool:
    """Return whether a node is not too long, and of a codec that makes tables."""
    is_codec_s = text.startswith('["') and len(text) <= _REMEMBERED_CHARACTERS
    return is_codec_s and hasattr(codec_named(text[2 : text.find('"', 2)]), "arrow_plan")


@lru_cache(maxsize=128)
def _plan_of(text: str) -> _Plan | None:
    """Return the plan of a node; one for all that are equal, so it is never changed."""
    name, version, node = parse_json(text)
    codec: Any = codec_named(name)
    is_known = type(version) is int and 1 <= version <= codec.version
    return codec.arrow_plan(node, version) if is_known else None
