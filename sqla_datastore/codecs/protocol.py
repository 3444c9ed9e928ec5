"""What a codec does: the seam between values and the container.

A codec turns a value into a JSON node and any number of blobs, and back. The node alone decides
types; nothing in a blob is ever executed or trusted. A codec never sees files, rows or URLs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from typing_extensions import Buffer

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


FILE_SUFFIX = ".file"
"""Of blobs that readers leave where they are until their bytes are asked for."""


class Payload(Protocol):
    """The bytes of one blob: their number is known before they are produced, once.

    One that learns something of its bytes while it hands them over, such as their hash, may have an
    attribute ``learned`` afterwards: a dict of texts in its entry's node, each of 64 hexadecimal
    digits, and what stands in their place when the node is written. Where it has a method `placed`,
    that is called with the offset of its bytes in the object, and with their number.
    """

    @property
    def nbytes(self) -> int:
        """The exact number of bytes that `write_to` hands over; -1 where only their end tells."""

    @property
    def suffix(self) -> str:
        """What the bytes are to other tools: ``.npy``, ``.arrow``, ``.bin`` or ``.file``."""

    def write_to(self, write: Callable[[Buffer], object]) -> None:
        """Hand over all bytes in order, in pieces of any size, without copying them whole.

        `write` has consumed a piece when it returns. Called at most once.
        """


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of an entry without its payload.

    Attributes:
        type: the Python type's usual name, for example ``numpy.ndarray``.
        dtype: the dtype as text, of a file its content type, or None where the type has none.
        shape: lengths by dimension, or None where the type has none.
        nbytes: the payload's own size in bytes, for an array its ``nbytes``. Where a codec leaves
            it at -1, the container puts the size of the blobs there, headers included, or that of
            the node where there are none.
        file_name: the name of a file, None for all else.
    """

    type: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    nbytes: int = -1
    file_name: str | None = None


class StoredBytes(Protocol):
    """A blob that is left where it is until its bytes are asked for; each call reads them anew.

    All methods block, and raise `MissingObjectError` once the object is gone.
    """

    @property
    def nbytes(self) -> int:
        """How many bytes there are."""

    def verified_pieces(self) -> Iterator[bytes]:
        """Yield the bytes in pieces; their checksum is compared after the last one.

        Raises:
            DamagedObjectError: the bytes are not those that were written.
        """


class Encoder(Protocol):
    """What a codec may ask of the container while it encodes one entry. No I/O happens."""

    def encode(self, value: object, where: str = "") -> JSON:
        """Encode a value inside this one with whatever codec takes it.

        Args:
            value: the inner value.
            where: its place for error messages, for example ``[3]`` or ``.index``.

        Raises:
            UnsupportedTypeError: no codec takes it, it contains itself, or it nests too deeply.
        """

    def blob(self, payload: Payload) -> int:
        """Add a blob to the entry and return its number, from 0 within the entry."""

    def nested(self, value: object) -> int:
        """Add a nested `DataStore` to the value's family and return its number."""

    def unsupported(self, value: object, reason: str) -> Exception:
        """Return (not raise) an `UnsupportedTypeError` that names the entry and the place."""


class TellsDamage(Protocol):
    """What makes the error for bytes that are not what was written, as a `Decoder` does."""

    def damaged(self, reason: str) -> Exception:
        """Return (not raise) the error."""


class Decoder(Protocol):
    """What a codec may ask of the container while it decodes one entry."""

    def decode(self, node: JSON) -> Any:
        """Decode an inner node."""

    def blob(self, number: Any, *, mapped: bool = False) -> memoryview:
        """Return a blob's bytes, read-only and 64-byte aligned where the object maps.

        Ask for each blob once: a blob that many nodes name would fill the memory many times.

        Args:
            number: as `Encoder.blob` returned it; taken from the node, so it is checked here.
            mapped: the bytes are fixed-width numbers that no parser will walk, so that a large
                blob may stay unverified and be paged in later. Without it the checksum is
                verified before this returns.

        Raises:
            DamagedObjectError: the number, the size or the checksum is wrong, or the blob was
                asked for before.
        """

    def unpacked_nbytes(self, number: Any) -> int | None:
        """Return how many bytes an Arrow stream has that Arrow compressed; None for another blob.

        `blob` returns such a stream as it is, and to read it may take no more than that.
        """

    def pieces(self, number: Any) -> Iterator[bytes]:
        """Yield a blob's bytes in pieces, for a value that is built by copying them.

        Keeps less memory than `blob`, whose bytes stay until the value is complete. The checksum is
        verified after the last piece: take all of them before you return the value or raise.

        Args:
            number: as for `blob`.

        Raises:
            DamagedObjectError: as for `blob`.
        """

    def later(self, number: Any) -> StoredBytes:
        """Return a blob that is read when the value is used, and not now.

        For blobs with `FILE_SUFFIX`. Others may have been read already.

        Args:
            number: as for `blob`.

        Raises:
            DamagedObjectError: the number is wrong, or the blob was asked for before.
        """

    def nested(self, number: Any) -> Any:
        """Return the nested `DataStore` of that number, not loaded."""

    def damaged(self, reason: str) -> Exception:
        """Return (not raise) a `DamagedObjectError` that names the URL and the entry."""


class Codec(Protocol):
    """One kind of value. Third parties register instances with `register_codec`.

    A node that `encode` returns is stored with the codec's name and version; `decode` gets it back
    as a hostile stranger may have written it, and answers anything wrong with
    ``raise decoder.damaged(…)``: it must not crash, run code, or allocate more than the blobs hold.
    """

    name: ClassVar[str]
    """Stored in objects; never changes, for example ``numpy.array``."""

    version: ClassVar[int]
    """The version that `encode` writes; `decode` reads it and every earlier one."""

    mutable: ClassVar[bool]
    """Whether a decoded value can be edited in place, so that edits must be looked for."""

    def types(self) -> tuple[type, ...]:
        """Return the exact types that it takes; subclasses are offered only to `takes`."""

    def takes(self, value: object) -> bool:
        """Return whether it takes a value of another type (a registered Enum, a protocol)."""

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        """Return the node of a value.

        The value may be changed by its owner later: whatever is small is turned into the node
        now, whatever is large is referred to by a payload.
        """

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:
        """Return the value of a node: equal to and of the type of what was encoded."""

    def describe(self, node: Any) -> Description:
        """Return type, dtype, shape and size from the node alone; tolerates any node."""
