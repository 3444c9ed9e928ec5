"""What a value's entries are made of: the stored object they are read from, and their states."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from sqla_datastore.codecs import find_codec
from sqla_datastore.exceptions import DamagedObjectError, DataStoreError, RefusedURLError
from sqla_datastore.options import options
from sqla_datastore.storage.binding import storage_for, storage_to_read
from sqla_datastore.storage.protocol import renewed
from sqla_datastore.storage.urls import DataURL, ObjectURL, head_of, is_in_row
from sqla_datastore.value.opening import open_object

if TYPE_CHECKING:
    from sqla_datastore.codecs import Description
    from sqla_datastore.format import Container, StoredEntry
    from sqla_datastore.storage.protocol import ObjectReader, Storage
    from sqla_datastore.value.fingerprint import Fingerprint, Layout

T = TypeVar("T")

UNLOADED: Final = object()


class Details:
    """What a value knows beyond where it is; made when it is touched first.

    Apart, since most values of a query are never touched: to fetch 20,000 takes 7 percent longer
    where each has room for all of this.

    Attributes:
        opened: the object that holds it, once it was needed; `DataStore._source` makes it.
        entries: its entries; None until the index of a stored value is first needed.
        changed: whether saving it would write something new.
        defaults: what `typed` gave for entries that are missing, where it can be edited, each with
            what makes another one; None without such.
        handed_out: whether something editable was handed out, here or in a nested value.
        armed: whether this was told to who looks after it, since the last `_scan`.
        outer: the value that it is nested in.
        watch: who looks after its edits in place; None while nothing editable was handed out.
        holders: the states of the rows that it is an attribute of, with the attribute, weakly.
    """

    __slots__ = (
        *("armed", "changed", "defaults", "entries", "handed_out", "holders", "opened", "outer"),
        "watch",
    )

    def __init__(self) -> None:
        self.opened: Source | None = None
        self.entries: dict[str, Entry] | None = None
        self.changed = False
        self.defaults: dict[str, tuple[Entry, Callable[[], Any]]] | None = None
        self.handed_out = False
        self.armed = False
        self.outer: Nestable | None = None
        self.watch: Any = None
        self.holders: tuple[tuple[weakref.ref[Any], str], ...] = ()


NO_DETAILS: Final = Details()
"""What all values that nobody has touched have in common; never changed."""

_first: Final[dict[tuple[int, str], tuple[object, Any]]] = {}


def settle(owner: object, field: str, unset: object, made: object) -> None:
    """Set a field that is unset; threads that find it so at one time set the same.

    Without a lock. Garbage may be collected while one is held, and a finalizer may wait for a
    thread that wants the lock; a process that is forked then would wait for ever.

    Args:
        owner: what has the field.
        field: its name.
        unset: what it has until it is set.
        made: what to set it to, unless another thread was first.
    """
    key = id(owner), field
    # one step, between which no other thread comes; it holds the owner, whose id stays its own
    _, first = _first.setdefault(key, (owner, made))
    if getattr(owner, field) is unset:
        setattr(owner, field, first)
    # not before it is set: who comes later finds it set, and who came earlier has the same
    _first.pop(key, None)


def _detail(name: str) -> Any:
    """Return the property of a value that is a field of its `Details`."""

    def put(value: Nestable, field: object) -> None:
        if value._details is NO_DETAILS:
            settle(value, "_details", NO_DETAILS, Details())
        setattr(value._details, name, field)

    return property(attrgetter(f"_details.{name}"), put)


class Nestable:
    """The fields of a value, and what entries know of one that is nested in them.

    `DataStore` is the one value. A query makes one for each row, and gives it only its storage, its
    URL, and where it was loaded.

    Args:
        storage: the storage, or its URL; None for the default one, looked up when needed.
        url: the URL of the object that holds it, None until it is stored.

    Attributes:
        _state: the state of the row that it was loaded for. Held, so that its id stays its own.
        _link: the link to the row that it belongs to, or what makes it once it is needed; see
            `_row`.
        _details: everything else; its fields are properties of the value.
    """

    __slots__ = ("__weakref__", "_details", "_link", "_state", "_storage", "_url")

    def __init__(self, storage: Storage | str | None = None, url: str | None = None) -> None:
        self._storage = storage
        self._url = url
        self._state: Any = None
        self._link: Any = None
        self._details = NO_DETAILS

    _armed: bool = _detail("armed")
    _changed: bool = _detail("changed")
    _defaults: dict[str, tuple[Entry, Callable[[], Any]]] | None = _detail("defaults")
    _entries: dict[str, Entry] | None = _detail("entries")
    _handed_out: bool = _detail("handed_out")
    _holders: tuple[tuple[weakref.ref[Any], str], ...] = _detail("holders")
    _opened: Source | None = _detail("opened")
    # `DataStore` says that it is one, too
    _outer: Any = _detail("outer")
    _watch: Any = _detail("watch")

    @property
    def _source(self) -> Source | None:
        """The object that holds it, None until it is stored."""
        raise NotImplementedError

    @_source.setter
    def _source(self, source: Source | None) -> None:
        raise NotImplementedError

    def _scan(self) -> bool:
        """Look for edits in place of what was handed out, here and in nested values."""
        raise NotImplementedError

    def _is_async(self) -> bool:
        """Return whether it is a row's, or nested in one, of an asynchronous engine."""
        raise NotImplementedError

    def _is_near(self) -> bool:
        """Return whether to read it waits for no network."""
        raise NotImplementedError

    def _is_held(self) -> bool:
        """Return whether another value or a row has it."""
        raise NotImplementedError


class ReadsLater:
    """What reads from an object only when it is asked, for as long as the object is there.

    Containers of such values do not stay in place once they are stored: they are read anew, so that
    what is in them reads from their own object.
    """

    __slots__ = ()


class Origin:
    """Where a source is: what those know of it that read from it later.

    Args:
        storage: the storage, or its URL; None for the default one.
        url: the object's URL.

    Attributes:
        outer: the value that an entry is decoded for just now.
    """

    __slots__ = ("outer", "storage", "url")

    def __init__(self, storage: Storage | str | None, url: str) -> None:
        self.storage = storage
        self.url = url
        self.outer: Nestable | None = None

    @property
    def would_block_a_loop(self) -> bool:
        """Whether the value is an asynchronous engine's, and reading it waits for a network."""
        return self.outer is not None and self.outer._is_async() and not self.outer._is_near()


Nest: TypeAlias = "Callable[[Storage | str | None, str], Nestable]"
"""Makes a stored value of its storage and URL, not loaded."""


class Source:
    """One stored object that entries are read from; opened on first need, by one thread.

    Making one costs no I/O and parses nothing.

    Args:
        storage: the storage, or its URL; None for the default one, looked up when needed.
        url: the object's URL.
        nest: makes a nested value of its storage and URL, not loaded.
    """

    __slots__ = (
        *("_container", "_family", "_is_compared", "_nest", "_nested_made", "_origin"),
        "_storage",
        *("lock", "url"),
    )

    def __init__(self, storage: Storage | str | None, url: str, nest: Nest) -> None:
        self._storage = storage
        self._nest = nest
        self.url = url
        self._container: Container | None = None
        self._is_compared = False
        self._nested_made: list[Nestable] = []
        self._family = _FamilyTree({}, 0)
        self._origin: Origin | None = None
        self.lock = threading.RLock()

    @property
    def storage(self) -> Storage:
        """The storage, looked up only now where it was not given."""
        if self._storage is None or isinstance(self._storage, str):
            self._storage = storage_for(self._storage, None)
        return self._storage

    @property
    def given(self) -> Storage | str | None:
        """What it was made with, so that another one can be."""
        return self._storage

    @property
    def is_near(self) -> bool:
        """Whether to read it waits for no network."""
        return is_in_row(self.url) or getattr(self.storage, "is_local", False)

    def container(self) -> Container:
        """Return the opened object.

        Raises:
            MissingObjectError: it is not there.
            DamagedObjectError: its index is not what was written.
            RefusedURLError: its URL is none that the storage serves.
        """
        if self._container is None:
            with self.lock:
                if self._container is None:
                    self._container = self._open()
        return self._container

    def _open(self) -> Container:
        url = ObjectURL.parse(self.url)
        if isinstance(url, DataURL):
            return self._opened(url.reader(), url)
        return self._opened(open_object(self.serving(url), url), url)

    def open_from(self, reader: ObjectReader, url: ObjectURL) -> None:
        """Take the object as somebody else has opened it; see `container`.

        Args:
            reader: the object.
            url: its URL, parsed.
        """
        with self.lock:
            if self._container is None:
                self._container = self._opened(reader, url)

    def _opened(self, reader: ObjectReader, url: ObjectURL) -> Container:
        from sqla_datastore.format.reader import Container  # no package: found in half the time

        shown = head_of(self.url)
        # made apart: an origin that held this source would keep maps alive
        self._origin = Origin(self.given, self.url)
        open_it = partial(
            Container.open,
            *(reader, shown),
            nested=_nested(self, url),
            verify_always=options.verify == "always",
            origin=self._origin,
        )
        container = _again_if_renewed(open_it, partial(renewed, reader))
        if container.nested_count and container.nested_count > url.family_size:
            raise DamagedObjectError(
                shown,
                "it has more nested objects than its name says",
                expected=url.family_size,
                found=container.nested_count,
            )
        return container

    def serving(self, url: ObjectURL) -> Storage:
        """Return the storage that its URL, parsed, belongs to; see `container`."""
        storage = storage_to_read(self.storage, url.scheme)
        if storage is None:
            raise RefusedURLError(self.url, f"{self.storage.url!r} serves {self.storage.scheme}:")
        return storage

    def load(self, name: str, outer: Nestable | None = None) -> tuple[Any, tuple[Nestable, ...]]:
        """Decode an entry anew.

        Args:
            name: the entry's name.
            outer: the value that it is loaded for.

        Returns:
            The value, and the nested `DataStore` values that were made for it, not loaded.
        """
        with self.lock:
            container = self.container()
            assert self._origin is not None
            interrupted, self._origin.outer = self._origin.outer, outer
            try:
                return _again_if_renewed(lambda: self._decoded(container, name), container.renew)
            finally:
                self._origin.outer = interrupted

    def _decoded(self, container: Container, name: str) -> tuple[Any, tuple[Nestable, ...]]:
        # within another load of this thread, where the finalizer of an edited value reads
        interrupted = [*self._nested_made]
        self._nested_made.clear()
        try:
            return container.load(name), tuple(self._nested_made)
        finally:
            self._nested_made[:] = interrupted

    def container_to_copy(self) -> Container:
        """Return the opened object for who copies its bytes; a local copy of it was compared."""
        with self.lock:
            container = self.container()
            if not self._is_compared:
                container.renew()
                self._is_compared = True
            return container

    def entry(self, name: str) -> StoredEntry:
        """Return the reference by which another object copies an entry without decoding it."""
        return self.container_to_copy().entry(name)

    def describe(self, name: str) -> Description:
        """Describe an entry without reading its payload."""
        return self.container().describe(name)


def _again_if_renewed(read: Callable[[], T], renew: Callable[[], bool]) -> T:
    """Read once more where a local copy of the object was damaged; see `KeepsCopy`."""
    try:
        return read()
    except DamagedObjectError:
        if not renew():
            raise
        return read()


@dataclass(frozen=True, slots=True)
class _FamilyTree:
    """What is known of a family, so that hostile objects make a tree and nothing larger.

    Attributes:
        parents: the number of each nested object's parent, as far as they were met; shared by the
            sources of a family.
        depth: how many objects this one is nested in.
    """

    parents: dict[int, int]
    depth: int

    def below(self, parent: int, number: int) -> _FamilyTree:
        """Return the same for a nested object that a parent names.

        Raises:
            ValueError: it could contain itself, is another one's, or lies too deep.
        """
        from sqla_datastore.format import MAX_NESTED_DEPTH

        if number <= parent:
            raise ValueError(f"nested value {number} comes before what it is nested in")
        if self.parents.setdefault(number, parent) != parent:
            raise ValueError(f"nested value {number} is nested in another object too")
        if self.depth >= MAX_NESTED_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_NESTED_DEPTH} objects")
        return _FamilyTree(self.parents, self.depth + 1)


def _nested(source: Source, url: ObjectURL) -> Callable[[int], Nestable]:
    """Return what makes a nested value; it holds no source, since a cycle would keep maps alive."""
    storage, nest, made, family = source.given, source._nest, source._nested_made, source._family

    def nested(number: int) -> Nestable:
        its_family = family.below(url.number, number)
        child = nest(storage, str(url.nested(number)))
        assert child._source is not None
        child._source._family = its_family
        made.append(child)
        return child

    return nested


class Entry:
    """One entry of a value, in one of these states.

    ======== ======== ======== =============================================================
    `source` `value`  `edited` state
    ======== ======== ======== =============================================================
    None     set      False    assigned, not stored: the user's own object
    set      UNLOADED False    stored, not loaded
    set      set      False    stored and loaded; `fingerprint` is set when it is editable
    set      set      True     stored, loaded, and found to be edited in place
    ======== ======== ======== =============================================================

    `children` are the nested `DataStore` values in a loaded or assigned value.

    One that is not loaded never changes: many names and values share it, and each name gets an
    entry of its own when it is loaded.
    """

    __slots__ = ("children", "edited", "fingerprint", "handed_out", "source", "value")

    def __init__(self, value: Any = UNLOADED, source: Source | None = None) -> None:
        self.value = value
        self.source = source
        self.edited = False
        self.handed_out = False
        self.fingerprint: Fingerprint | Layout | None = None
        self.children: tuple[Nestable, ...] = ()

    def load(self, name: str, outer: Nestable) -> None:
        """Load a stored entry; the caller holds the lock of its source."""
        assert self.source is not None
        value, self.children = self.source.load(name, outer)
        for child in self.children:
            child._outer = outer
        self.watch(value)
        self.value = value  # last: other threads look at it without the lock

    def is_from(self, other: Entry) -> bool:
        """Return whether it is the other one, or what that became when it was loaded."""
        return self is other or (other.value is UNLOADED and self.source is other.source)

    def watch(self, value: Any) -> None:
        """Remember what an editable value looks like now."""
        self.fingerprint = fingerprint_of(value)

    def may_be_edited(self) -> bool:
        """Return whether a loaded value may differ from the stored one, as far as is cheap."""
        return self.edited or (self.fingerprint is not None and self.fingerprint.changed())

    def is_unsaved(self) -> bool:
        """Return whether its object does not hold it as it is, as far as was found out."""
        return self.source is None or self.edited or any(child._changed for child in self.children)

    def look_again(self, name: str, holds: Callable[[Entry, str], bool]) -> bool:
        """Find out whether the loaded value was edited in place, and remember it.

        Args:
            name: the entry's name.
            holds: tells whether the source still holds what the loaded value is; asked only when
                the fingerprint does not fit any more.
        """
        if self.edited or not self.may_be_edited():
            return self.edited
        try:
            self.edited = not holds(self, name)
        except DataStoreError:
            # it cannot be encoded, or what it came from is gone: saving it will say so
            self.edited = True
        if not self.edited:
            self.watch(self.value)
        return self.edited


def fingerprint_of(value: Any) -> Fingerprint | Layout | None:
    """Return the fingerprint of an editable value, and None for any other.

    Nested `DataStore` values look after their own edits.
    """
    codec = find_codec(value)
    if codec is None or codec.name == "datastore":
        return None
    if codec.name.startswith("numpy.") and hasattr(value, "strides") and value.shape:
        from sqla_datastore.value.fingerprint import Layout

        return Layout(value)
    if not codec.mutable:
        return None
    from sqla_datastore.value.fingerprint import Fingerprint, Layout

    return Fingerprint(value, opaque=(Nestable,))
