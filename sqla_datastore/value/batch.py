"""A block that writes several objects of `DataStoreIO`, and waits for the disk once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import BinaryIO, Generic, Self, TypeVar

from typing_extensions import Buffer

from sqla_datastore.exceptions import RefusedURLError, UnsupportedTypeError
from sqla_datastore.format import Plan
from sqla_datastore.options import compression_level
from sqla_datastore.printable import printable
from sqla_datastore.schema.declarations import refuse_owned_prefix
from sqla_datastore.storage.protocol import ObjectWriter, Storage
from sqla_datastore.storage.urls import (
    MANAGED_SUFFIX,
    RAW_SUFFIX,
    ObjectURL,
    check_path,
    new_object_name,
    quote_segment,
)
from sqla_datastore.value.byte_streams import pieces_of
from sqla_datastore.value.datastore import DataStore

T = TypeVar("T")

ONLY = "__value__"
"""The name of the only entry of an object that holds a value other than a `DataStore`."""

_OPEN = "open"


class Batch(Generic[T]):
    """A ``with`` block that writes objects and has one wait for the disk, at its end.

    Inside the block the objects can be read already, by others too; they are durable when it has
    ended. An exception that leaves the block, KeyboardInterrupt too, removes all that the block has
    written. So does a storage that cannot make them durable, because it fails or one was removed
    meanwhile; then the end of the block raises. Whoever catches the error of one call inside the
    block goes on with the other objects.

    A batch is used for one block. Blocks of several batches may be nested: each decides about its
    own objects alone. Several threads may write to one batch at the same time; wait for them inside
    the block. A call that is still at work when the block ends raises and leaves nothing, and the
    block may fail with it. A process that dies within the block leaves its objects.
    """

    __slots__ = ("_kind", "_paths", "_place", "_state")

    def __init__(self, kind: Callable[..., T], place: Storage) -> None:
        self._kind = kind
        self._place = place
        self._state = "not entered yet"
        self._paths: dict[str, None] = {}

    def __enter__(self) -> Self:
        """Begin the block; RuntimeError where the batch had one already."""
        if self._state != "not entered yet":
            raise RuntimeError(f"the batch is {self._state}; call DataStoreIO.batch() for another")
        self._state = _OPEN
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Make all objects durable, or remove them after an error; blocks."""
        self._state = "over"
        paths = list(self._paths)
        if error is not None:
            self._remove(paths, error)
            return
        try:
            if paths:
                self._place.make_durable(paths)
        except BaseException as err:
            self._remove(paths, err)
            raise

    def write(self, data: Buffer | BinaryIO, relative_path_prefix: str) -> T:
        """Write bytes as a new object, durable at the end of the block.

        Args:
            data: as for `DataStoreIO.write`.
            relative_path_prefix: as for `DataStoreIO.write`.

        Returns:
            The object; it can be read now.

        Raises:
            TypeError: the data are no bytes.
            RefusedURLError: the prefix is empty, leaves the base, or rows own it.
            StorageError: the storage failed; nothing of this object was written.
            RuntimeError: outside of the block.
        """
        pieces = pieces_of(data)

        def write(writer: ObjectWriter) -> None:
            for piece in pieces:
                writer.write(piece)

        name = f"{uuid.uuid4().hex}{RAW_SUFFIX}"
        return self._written(f"{managed_folder(relative_path_prefix)}/{name}", [write])

    def serialize_write(self, obj: object, relative_path_prefix: str) -> T:
        """Write any value that an entry of a `DataStore` can have, or a `DataStore` itself.

        Args:
            obj: as for `DataStoreIO.serialize_write`; it is written now, later edits are not.
            relative_path_prefix: as for `DataStoreIO.write`.

        Returns:
            The object; it can be read now.

        Raises:
            UnsupportedTypeError: no codec takes the value.
            RefusedURLError: the prefix is empty, leaves the base, or rows own it.
            StorageError: the storage failed; nothing of this value was written.
            RuntimeError: outside of the block.
        """
        folder, plan = managed_folder(relative_path_prefix), _plan(obj)
        name = new_object_name(len(plan.nested_values), MANAGED_SUFFIX)
        return self._written(f"{folder}/{name}", [content.write for content in plan.objects])

    def _written(self, first: str, writes: Sequence[Callable[[ObjectWriter], None]]) -> T:
        """Write an object and those of its nested values, all or none."""
        self._check_open()
        url = ObjectURL(self._place.scheme, first)
        made = self._kind(str(url), storage=self._place)
        paths = [member.path for member in url.family()]
        self._paths.update(dict.fromkeys(paths))  # before they are there: an interrupt finds them
        try:
            for path, write in zip(paths, writes, strict=True):
                with self._place.create(path) as writer:
                    write(writer)
            self._check_open()  # else the end of the block may not have seen them
        except BaseException as err:
            self._remove(paths, err)
            for path in paths:
                self._paths.pop(path, None)
            raise
        return made

    def _check_open(self) -> None:
        if self._state != _OPEN:
            raise RuntimeError(f"the batch is {self._state}; it writes inside its with block alone")

    def _remove(self, paths: list[str], error: BaseException) -> None:
        """Remove what was written; a failure becomes a note of the error that came first."""
        try:
            if paths:
                self._place.remove(paths)
        except Exception as err:
            note = f"not all that was written could be removed again: {err}"
            error.add_note(printable(note))


def managed_folder(prefix: str) -> str:
    """Return a prefix as a storage path.

    Raises:
        RefusedURLError: it is empty, leaves the base, or rows own it.
    """
    if not isinstance(prefix, str):
        raise RefusedURLError(repr(prefix), "a prefix is a str")
    segments = prefix.removesuffix("/").split("/")
    if (
        not prefix.isprintable()
        or "\\" in prefix
        or any(segment in ("", ".", "..") for segment in segments)
    ):
        raise RefusedURLError(prefix, "a prefix is plain text like 'models/run 1'")
    path = check_path("/".join(map(quote_segment, segments)), url=prefix)
    refuse_owned_prefix(path)
    return path


def _plan(obj: object) -> Plan:
    if not isinstance(obj, DataStore):
        return DataStore({ONLY: obj})._plan(None, compression_level(None))
    if list(obj) == [ONLY]:
        reason = f"a DataStore whose only entry is {ONLY!r} would come back as that entry"
        raise UnsupportedTypeError(f"{reason}; rename it", entry=ONLY)
    return obj._plan(None, compression_level(None))
