"""Whether a value was edited in place since it was handed out.

A fingerprint is the hash of a pickle that is written and thrown away: small things go into it
whole, memory that nobody can write to only with its address. So a frame of 1 GB that is built on
read-only buffers costs less than a millisecond, and everything that is writable is hashed.

An address means something only as long as nothing else can move there: `Fingerprint` keeps every
buffer that it has seen. It also keeps a shallow copy of every pandas object, which makes
copy-on-write copy read-only memory before an edit, so that edits of decoded frames succeed (pandas
3, or ``pd.options.mode.copy_on_write`` on 2.2; without it they raise as read-only, and
``frame.copy()`` is editable).

A mismatch means "look again": using an index can fill a cache that its pickle shows. A match means
that nothing changed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from functools import partial
from types import NotImplementedType
from typing import Any, TypeAlias

import numpy as np

_Reduced: TypeAlias = "tuple[Any, tuple[object, ...]] | NotImplementedType"


class Fingerprint:
    """The state of a value at the time of construction.

    Keeps the value, its buffers and shallow copies of its frames alive: drop it when the edits
    do not matter any more. Costs no copy of a payload.

    Args:
        value: any value; one that cannot be pickled always counts as changed.
        opaque: types whose instances look after their own edits, compared by identity.
    """

    __slots__ = ("_digest", "_kept", "_opaque", "_value")

    def __init__(self, value: object, *, opaque: tuple[type, ...] = ()) -> None:
        self._value = value
        self._opaque = opaque
        self._digest, self._kept = _digest(value, opaque)

    def changed(self) -> bool:
        """Return whether the value may have been edited since; False is certain."""
        if self._digest is None:
            return True
        digest, _ = _digest(self._value, self._opaque)
        return digest != self._digest


class Layout:
    """How an array that was handed out lies in its memory, which itself is read-only.

    Shape, dtype, strides and flags of a read-only array can be set all the same.

    Args:
        array: an array; masked ones, too.
    """

    __slots__ = ("_layout", "_value")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._value = array
        self._layout = _layout(array)

    def changed(self) -> bool:
        """Return whether the layout is another one now."""
        return _layout(self._value) != self._layout


def _layout(array: np.ndarray[Any, Any]) -> tuple[object, ...]:
    # Names of fields can be set in place, so a dtype that may have some is taken as text, which
    # takes ten times as long.
    dtype = array.dtype.str if array.dtype.isbuiltin == 1 else repr(array.dtype)
    hard = getattr(array, "hardmask", None)
    return dtype, array.shape, array.strides, array.flags.writeable, hard


def fingerprint(value: object) -> bytes:
    """Return the fingerprint of a value, comparable only while `Fingerprint` holds its memory.

    Args:
        value: any value that can be pickled.

    Raises:
        ValueError: it cannot be pickled.
    """
    digest, _ = _digest(value, ())
    if digest is None:
        raise ValueError(f"a value of type {type(value).__name__} has no fingerprint")
    return digest


def _digest(value: object, opaque: tuple[type, ...]) -> tuple[bytes | None, list[object]]:
    hashed = HashSink()
    kept: list[object] = []
    pickler = _Pickler(hashed, kept, opaque)
    try:
        pickler.dump(value)
    except Exception:  # a foreign __reduce__ may raise anything: then "look again"
        return None, []
    return hashed.digest(), kept


class HashSink(io.RawIOBase):
    """A file, or an object being written, that remembers only the hash of its bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        """Hash some bytes."""
        self._hash.update(data)
        return memoryview(data).nbytes

    def digest(self) -> bytes:
        """Return the hash of all that was written."""
        return self._hash.digest()


class _Pickler(pickle.Pickler):
    """Writes what can change: content of writable memory, addresses of the rest."""

    def __init__(self, file: HashSink, kept: list[object], opaque: tuple[type, ...]) -> None:
        # the callback holds no pickler: in a cycle it would hold the value until a collection
        super().__init__(file, 5, buffer_callback=partial(_out_of_band, file, kept))
        self.kept = kept
        self._file = file
        self._opaque = opaque
        self._pandas = _imported("pandas", "DataFrame", "Series")
        self._arrow = _imported("pandas.arrays", "ArrowExtensionArray")
        self._polars = _imported("polars", "DataFrame", "Series")
        self._geometries = _imported("geopandas.array", "GeometryArray")
        self._images = _imported("PIL.Image", "Image")
        self._tensors = _imported("torch", "Tensor")

    def reducer_override(self, obj: Any) -> Any:
        """Describe arrays and frames by their memory; called for no builtin container."""
        if type(obj) is np.ndarray and not obj.dtype.hasobject:
            return self._array(obj)
        if isinstance(obj, self._opaque):
            return self._identity(obj)
        if isinstance(obj, np.ma.MaskedArray):
            # its own pickle leaves this out
            self._file.write(repr(_layout(obj)).encode())
        if isinstance(obj, self._pandas):
            self.kept.append(_twin(obj))
        elif isinstance(obj, self._polars):
            return self._capsule(obj)
        elif isinstance(obj, self._arrow):
            return self._chunked(obj)
        elif isinstance(obj, self._geometries):
            return self._shapes(obj)
        elif isinstance(obj, self._images):
            return self._image(obj)
        elif isinstance(obj, self._tensors):
            return self._tensor(obj)
        return NotImplemented

    def _array(self, array: np.ndarray[Any, Any]) -> _Reduced:
        self.kept.append(array)
        layout = (array.dtype, array.shape, array.strides, array.flags.writeable)
        if _frozen(array):
            return tuple, ((*layout, array.__array_interface__["data"][0]),)
        self._content(array)
        return tuple, (layout,)

    def _content(self, array: np.ndarray[Any, Any]) -> None:
        if array.nbytes:
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def _chunked(self, array: Any) -> _Reduced:
        """Describe a pandas array of Arrow memory, whose own pickle copies slices."""
        chunks = array.__arrow_array__().chunks
        self.kept.append(chunks)
        return tuple, ((str(array.dtype), [self._chunk(chunk) for chunk in chunks]),)

    def _identity(self, obj: object) -> _Reduced:
        self.kept.append(obj)
        return tuple, ((id(obj),),)

    def _capsule(self, frame: Any) -> _Reduced:
        """Describe a polars object by its Arrow export; the clone makes edits copy."""
        import polars as pl
        import pyarrow as pa

        columns = [frame] if isinstance(frame, pl.Series) else frame.get_columns()
        tables = [pa.table(_still(column).to_frame()) for column in columns]
        self.kept += [*tables, frame.clone()]
        about = [(column.name, repr(column.dtype)) for column in columns]
        chunks = [chunk for table in tables for chunk in table.column(0).chunks]
        return tuple, ((str(type(frame)), about, [self._chunk(chunk) for chunk in chunks]),)

    def _shapes(self, array: Any) -> _Reduced:
        """Describe geometries, which nobody can edit, by where they lie."""
        geometries = np.asarray(array).copy()
        self.kept.append(geometries)
        return tuple, ((geometries.tobytes(), array.crs),)

    def _image(self, image: Any) -> _Reduced:
        """Describe an image by its pixels; where it is read-only, its edits replace them."""
        palette = image.palette and (image.palette.mode, bytes(image.palette.palette))
        about = (type(image).__name__, image.mode, image.size, image.info, palette)
        if getattr(image, "tile", None):  # not decoded yet
            return tuple, ((*about, None),)
        self.kept.append(image.im)
        if image.readonly:
            return tuple, ((*about, id(image.im)),)
        self._file.write(image.tobytes())
        return tuple, (about,)

    def _tensor(self, tensor: Any) -> _Reduced:
        """Describe a tensor by its content: its memory is never read-only."""
        plain = tensor.detach().resolve_conj().resolve_neg()
        layout = (str(plain.dtype), tuple(plain.shape), tensor.requires_grad, plain.stride())
        if plain.numel():
            uint8 = sys.modules["torch"].uint8
            self._file.write(plain.contiguous().reshape(-1).view(uint8).numpy())
        return tuple, ((type(tensor).__name__, *layout),)

    def _chunk(self, chunk: Any) -> tuple[object, ...]:
        """Return where an Arrow array lies; exports rebuild dictionaries, so these by content."""
        buffers = [buffer for buffer in chunk.buffers() if buffer is not None]
        for buffer in buffers:
            if not _frozen(buffer):
                self._file.write(buffer)
        dictionary = getattr(chunk, "dictionary", None)
        values = None if dictionary is None else dictionary.to_pylist()
        return len(chunk), chunk.offset, [(each.address, each.size) for each in buffers], values


def _twin(thing: Any) -> Any:
    """Return a shallow copy of a frame or series, with indexes of its own.

    pandas 2 would share the very index, and `holding` take the copy for somebody who has it.
    """
    twin = thing.copy(deep=False)
    twin.index = twin.index.view()
    if hasattr(twin, "columns"):
        twin.columns = twin.columns.view()
    return twin


def _out_of_band(file: HashSink, kept: list[object], buffer: pickle.PickleBuffer) -> bool:
    """Hash a buffer that some ``__reduce_ex__`` handed over; false keeps it apart."""
    kept.append(buffer)
    raw = buffer.raw()
    where = np.frombuffer(raw, np.uint8).__array_interface__["data"][0] if raw.nbytes else 0
    file.write(repr((raw.nbytes, raw.readonly, where)).encode())
    if not _frozen(buffer):
        file.write(raw)
    return False


def _still(column: Any) -> Any:
    """Return a polars series that is exported from where it lies: categories move, codes do not."""
    return column.to_physical() if "Categorical" in repr(column.dtype) else column


def _imported(module: str, *names: str) -> tuple[Any, ...]:
    """Return classes of a module that is already imported, so that none is imported for this."""
    found = sys.modules.get(module)
    return tuple(getattr(found, name) for name in names if hasattr(found, name))


def _frozen(memory: Any) -> bool:
    """Return whether nobody can write to an object's memory, through its owners neither."""
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable or memory.flags.owndata:
            return False
        memory = memory.base
    try:
        view = memoryview(memory)
    except (TypeError, ValueError, BufferError):
        return False
    if isinstance(view.obj, np.ndarray):
        return _frozen(view.obj)
    return view.readonly
