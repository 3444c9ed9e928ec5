"""Decode one entry: what its node says, and what its codec may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqla_datastore.codecs import codec_named
from sqla_datastore.codecs.protocol import JSON, Codec, Description
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedFormatError
from sqla_datastore.format.blobs import StoredBlob
from sqla_datastore.format.compression import ARROW
from sqla_datastore.format.manifest import MAX_DEPTH

_BARE = {type(None): "NoneType", bool: "bool", int: "int", float: "float", str: "str"}


def describe(node: JSON) -> Description:
    """Return what is known of an entry from its node alone; never raises.

    An entry whose codec is unknown, or fails, is described by the codec's name.
    """
    if isinstance(node, str):
        return Description("str", nbytes=len(node.encode("utf-8", "surrogatepass")))
    if not isinstance(node, list):
        return Description(_BARE.get(type(node), "unknown"))
    name = node[0] if node and isinstance(node[0], str) else "unknown"
    try:
        return codec_named(name).describe(node[2])
    except Exception:  # repr() shows descriptions, and one bad entry must not break it
        return Description(name)


class EntryDecoder:
    """The `codecs.protocol.Decoder` of one entry."""

    __slots__ = (
        "__weakref__",  # for codecs that count over an entry: `codecs._budget`
        *("_blobs", "_depth", "_entry", "_nested", "_taken_blobs", "_taken_nested", "_url"),
    )

    def __init__(
        self,
        url: str,
        entry: str,
        blobs: Sequence[StoredBlob],
        nested: Callable[[Any], Any],
    ) -> None:
        """Prepare to decode an entry once.

        Args:
            url: the object, for messages.
            entry: the entry's name, for messages.
            blobs: the entry's blobs by number.
            nested: gives the nested value of a number; raises ValueError where there is none.
        """
        self._url = url
        self._entry = entry
        self._blobs = blobs
        self._nested = nested
        self._depth = 0
        self._taken_blobs: set[int] = set()
        self._taken_nested: set[int] = set()

    def decode(self, node: JSON, *, as_arrow: bool = False) -> Any:
        """Return the value of a node: bare JSON, or a codec's name, version and inner node.

        Args:
            node: the node.
            as_arrow: an Arrow table will do, where the codec can make one without the value.
        """
        if type(node) is not list:
            if type(node) is dict:
                raise self.damaged("a node is no value")
            return node
        if len(node) != 3:
            raise self.damaged("a node does not have three parts")
        codec, version = self._codec(node[0], node[1])
        if self._depth >= MAX_DEPTH:
            raise self.damaged(f"it nests deeper than {MAX_DEPTH}")
        self._depth += 1
        decode = getattr(codec, "decode_arrow", codec.decode) if as_arrow else codec.decode
        value = decode(node[2], version, self)
        self._depth -= 1
        return value

    def _codec(self, name: JSON, version: JSON) -> tuple[Codec, int]:
        if type(name) is not str or type(version) is not int or version < 1:
            raise self.damaged("a node names no codec")
        try:
            codec = codec_named(name)
        except KeyError as err:
            raise self._unsupported(f"codec {name!r}; register it") from err
        if version > codec.version:
            newer = f"version {version} of codec {name!r}, which is registered as {codec.version}"
            raise self._unsupported(f"{newer}; upgrade what provides it")
        return codec, version

    def blob(self, number: Any, *, mapped: bool = False) -> memoryview:
        """Return a blob's bytes, once."""
        return self._taken_blob(number).load(mapped=mapped)

    def unpacked_nbytes(self, number: Any) -> int | None:
        """Return how many bytes a stream has that Arrow compressed, None for any other blob."""
        is_blob = type(number) is int and 0 <= number < len(self._blobs)
        return self._blobs[number].unpacked_nbytes if is_blob else None

    def pieces(self, number: Any) -> Iterator[bytes]:
        """Yield a blob's bytes in pieces, once."""
        return self._taken_blob(number).verified_pieces()

    def later(self, number: Any) -> StoredBlob:
        """Return a blob, once, that is read when the value is used."""
        blob = self._taken_blob(number)
        if blob.method == ARROW:
            raise self.damaged("Arrow has compressed what is no stream of Arrow's")
        return blob

    def _taken_blob(self, number: Any) -> StoredBlob:
        if type(number) is not int or not 0 <= number < len(self._blobs):
            raise self.damaged(f"it has no blob {number!r}")
        if number in self._taken_blobs:  # each use would take its size in memory once more
            raise self.damaged(f"it uses blob {number} twice")
        self._taken_blobs.add(number)
        return self._blobs[number]

    def nested(self, number: Any) -> Any:
        """Return a nested value, once."""
        if type(number) is not int:
            raise self.damaged(f"it has no nested value {number!r}")
        # named twice, a small family could stand for a tree of any size
        if number in self._taken_nested:
            raise self.damaged(f"it names nested value {number} twice")
        self._taken_nested.add(number)
        try:
            return self._nested(number)
        except ValueError as err:
            raise self.damaged(str(err)) from err

    def damaged(self, reason: str) -> DamagedObjectError:
        """Return (not raise) the error that names URL and entry."""
        return DamagedObjectError(self._url, reason, entry=self._entry)

    def _unsupported(self, what: str) -> UnsupportedFormatError:
        return UnsupportedFormatError(
            f"entry {self._entry!r} of {self._url!r} needs {what}", url=self._url, entry=self._entry
        )
