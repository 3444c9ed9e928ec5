"""The mapping part of a value: ordered entries, of which each is loaded when it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqla_datastore.exceptions import MissingObjectError, StorageError, UnsupportedTypeError
from sqla_datastore.storage.off_loop import can_await, is_on_loop, off_loop
from sqla_datastore.value.entry import UNLOADED, Entry, Nestable, Source, fingerprint_of

if TYPE_CHECKING:
    from sqla_datastore.storage.protocol import Storage
    from sqla_datastore.typed.entry_schema import EntrySchema

T = TypeVar("T")


class RowLink(Protocol):
    """What a value knows of the row that it belongs to; the listeners of mappers set it."""

    is_made: bool
    """True; a `Home`, which stands for a link that is not needed yet, says False."""

    def arm(self, value: Any) -> None:
        """Called when something editable is handed out, the first time since the last `_scan`.

        The row should be looked at before the next flush and commit, with `_scan`.
        """

    def check_edit(self, value: Any) -> None:
        """Called before entries are assigned or removed; nothing has changed yet.

        Raises:
            StaleValueError: the edit could not be saved with the row.
        """

    def is_for(self, state: Any, key: str) -> bool:
        """Return whether it is the link of this attribute of a row."""

    @property
    def is_async(self) -> bool:
        """Whether the row is one of an asynchronous engine's."""

    def is_of(self, table: Any, key: tuple[Any, ...] | None) -> bool:
        """Return whether the row is, or will be, the one of a table that has this primary key."""

    @property
    def label(self) -> str:
        """The attribute and the row, for messages."""

    @property
    def state_id(self) -> int:
        """What the row is known by to who looks after its values."""

    @property
    def identity(self) -> Any:
        """What the row is known by when it is loaded anew."""

    def put(self, state: Any, value: Any) -> None:
        """Make a value the attribute of a row that was loaded anew."""

    was_displaced: bool
    """Whether another value of the row, edited while it was gone, has taken its place."""

    def may_be_of(self, state: Any, key: str) -> bool:
        """Whether this is the attribute of that row or of one that was never inserted."""

    def note_parent(self, value: Any) -> None:
        """Have edits of a value flag the row's attribute, while it holds the value."""

    def has_lost(self, value: Any) -> bool:
        """Whether the row holds another value in its place now."""

    def restored(self, value: Any) -> None:
        """Called after a rollback has put the value back as it was before it was stored."""

    @property
    def schema(self) -> EntrySchema | None:
        """What the row's column says of the entries; None where it says nothing."""

    def why_missing(self, url: str) -> str | None:
        """Say why the row's object may be missing; None where only the storage can be wrong."""

    @property
    def is_dead(self) -> bool:
        """Whether the row's instance is gone."""

    @property
    def session(self) -> Any:
        """The Session that the row is attached to, if any."""

    def identify(self) -> None:
        """Called once the row is inserted, so that it has a key."""

    def bring_back(self, session: Any, row: Any, value: Any) -> None:
        """Called when an edited value went away from its row: it becomes the row's again.

        Raises:
            StaleValueError: the row is gone, or holds another value.
        """


class Home(Protocol):
    """Where a query has loaded values: what they share of their links to their rows.

    Stands for the link of each of them until that is needed.
    """

    is_made: bool
    """False."""

    def link(self, value: Any) -> RowLink:
        """Return the link of a value to the row that it was loaded for; note that it holds it."""

    @property
    def is_async(self) -> bool:
        """Whether the row is one of an asynchronous engine's."""


class Watch(Protocol):
    """Who looks after the edits in place of values, as these see it; a Session has one."""

    def going(self, value: Any) -> None:
        """Called when nobody holds the value any more; may hold on to it, never fails."""

    def track(self, value: Any) -> None:
        """Look after a value of a row."""

    def forget(self, value: Any) -> None:
        """Look after a value no more; called before it becomes another row's."""


class EntryMapping(MutableMapping[str, Any], Nestable):
    """A mapping from names to entries, read from a source as far as they are not in memory.

    What an edit or a hand-out means beyond the mapping is up to the methods that are abstract here.
    """

    __slots__ = ()

    _watch: Watch | None

    @property
    @abstractmethod
    def _row(self) -> RowLink | None:
        """The link to the row that it belongs to; None for a value that no row looks after."""

    @property
    @abstractmethod
    def url(self) -> str | None:
        """The URL of the object that holds it, None until stored; stays when it is changed."""

    @abstractmethod
    def changed(self) -> None:
        """Mark the value, those it is nested in and their rows as changed."""

    @abstractmethod
    def _lineage(self) -> Iterator[EntryMapping]:
        """Yield the value and those it is nested in, innermost first."""

    @abstractmethod
    def _source_at(self, storage: Storage, url: str) -> Source:
        """Return the source of an object that holds a value of this kind."""

    @abstractmethod
    def _begin_edit(self) -> None:
        """Called before entries are assigned or removed; an error leaves all as it is."""

    @abstractmethod
    def _arm(self) -> None:
        """Called when an entry was handed out that can be edited in place."""

    @abstractmethod
    def _take_in(self, entry: Entry) -> None:
        """Called before an entry is placed."""

    @abstractmethod
    def _release(self, entry: Entry) -> None:
        """Called after an entry was replaced or removed."""

    @abstractmethod
    def _explained(self, err: MissingObjectError) -> MissingObjectError:
        """Return an error about its object, with what its row tells of the reason."""

    @abstractmethod
    def _copies(self) -> dict[str, Entry]:
        """Return the entries for another mapping, not loaded for that."""

    def __getitem__(self, name: str) -> Any:
        entries = self._entries
        entry = None if entries is None else entries[name]
        if entry is None or entry.value is UNLOADED:
            # the index as well, where it was not read yet: by one change of threads
            entry = self._reading(partial(self._loaded, name), name)
        if entry.fingerprint is not None:
            entry.handed_out = True
            self._arm()
        return entry.value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise UnsupportedTypeError(
                f"the name of an entry is a str, not {type(name).__name__!r}; use str(name), or "
                "store DataStore(data=value), where a dict may have any keys",
                type=type(name),
            )
        old = self._index().get(name)
        if old is None or old.value is not value:
            self._begin_edit()
            self._put(str.__str__(name), Entry(value))
        elif not isinstance(value, EntryMapping):  # one has noticed itself what `|=` did to it
            self._begin_edit()
            old.edited = old.source is not None

    def __delitem__(self, name: str) -> None:
        if name not in self._index():
            raise KeyError(name)
        self._begin_edit()
        self._release(self._index().pop(name))

    def __contains__(self, name: object) -> bool:
        return name in self._index()

    def __iter__(self) -> Iterator[str]:
        return iter(self._index())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._index())

    def __len__(self) -> int:
        return len(self._index())

    def keys(self) -> KeysView[str]:
        """Return a view of the names; reads the index."""
        return _Keys(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the entries' values, each loaded when iteration comes to it."""
        return _Values(self)

    def items(self) -> ItemsView[str, Any]:
        """Return a view of names and values, each loaded when iteration comes to it."""
        return _Items(self)

    def clear(self) -> None:
        """Remove all entries; reads nothing."""
        self._begin_edit()
        removed, self._entries = self._entries or {}, {}
        for entry in removed.values():
            self._release(entry)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last entry and return its name and value.

        Raises:
            KeyError: there is none.
        """
        for name in reversed(self):
            return name, self.pop(name)
        raise KeyError("popitem(): the DataStore is empty")

    def update(  # type: ignore[override]
        self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **entries: Any
    ) -> None:
        """Assign the entries of a mapping or of pairs, then those given by name.

        Those of another `DataStore` are taken over without being loaded.
        """
        if isinstance(other, EntryMapping):
            taken = other._copies()
            self._begin_edit()
            for name, entry in taken.items():
                self._put(name, entry)
        else:
            super().update(other)
        super().update(entries)

    def _index(self) -> dict[str, Entry]:
        """Return the entries by name; a stored value's names are read on first need."""
        entries = self._entries
        if entries is not None:
            return entries
        return self._reading(self._read_index)

    def _reading(self, read: Callable[[], T], *names: str) -> T:
        """Read from the storage: in a thread where an asynchronous engine is at work.

        Args:
            read: blocks.
            names: the entries, for messages.

        Raises:
            StorageError: an event loop would stand still while a request is answered.
            MissingObjectError: the object is not there; with what the row tells.
        """
        if self._would_block_a_loop():
            shown = ", ".join(["value", *map(repr, names)])
            raise StorageError(
                f"to read {self.url!r} here would block the event loop until a request is "
                f"answered; await aload({shown}), or aprefetch(rows, …), before it is touched",
                url=self.url,
            )
        try:
            return off_loop(read)
        except MissingObjectError as err:
            raise self._explained(err) from err.__cause__

    def _would_block_a_loop(self) -> bool:
        """Return whether an event loop would stand still if it were read here."""
        return is_on_loop() and not can_await() and self._is_async() and not self._is_near()

    def _is_near(self) -> bool:
        """Return whether to read it waits for no network."""
        source = self._source
        return source is None or source.is_near

    def _is_async(self) -> bool:
        """Return whether it is a row's, or nested in one, of an asynchronous engine."""
        # as they are: a thread may ask, and must not make a link
        known = [value._link for value in self._lineage()]
        return any(each is not None and each.is_async for each in known)

    def _read_index(self) -> dict[str, Entry]:
        source = self._source
        assert source is not None
        with source.lock:
            if self._entries is None:
                # one for all of them, since each gets its own when it is loaded
                self._entries = dict.fromkeys(source.container().places, Entry(source=source))
            return self._entries

    def _loaded(self, name: str) -> Entry:
        """Return an entry after it was loaded, once, whatever the number of threads that ask."""
        entries = self._entries
        if entries is None:
            entries = self._read_index()
        entry = entries[name]
        source = entry.source
        if source is None:
            return entry
        with source.lock:
            entry = entries[name]
            if entry.value is UNLOADED and entry.source is source:
                own = Entry(source=source)
                own.load(name, self)
                entries[name] = entry = own
        # another thread has assigned it meanwhile, an entry of another object perhaps
        return self._loaded(name) if entry.value is UNLOADED else entry

    def _default(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the default of a missing entry; it becomes the entry once it is edited in place.

        Args:
            name: the entry's name.
            make: makes it.
        """
        known = self._defaults or {}
        if name in known:
            return known[name][0].value
        entry = Entry(make())
        if isinstance(entry.value, EntryMapping) or fingerprint_of(entry.value) is not None:
            entry.handed_out = True
            self._defaults = {**known, name: (entry, make)}
            self._arm()
        return entry.value

    def _take_edited_defaults(self) -> bool:
        """Take over defaults that were edited since they were handed out; return whether some were.

        The others stay: whoever has one may edit it yet.
        """
        if self._defaults is None:
            return False
        from sqla_datastore.value.equality import equal

        defaults = self._defaults
        missing = {name: each for name, each in defaults.items() if name not in self._index()}
        edited = {
            name: entry for name, (entry, make) in missing.items() if not equal(entry.value, make())
        }
        left = {name: each for name, each in missing.items() if name not in edited}
        if edited and not self._changed:
            # first, since it may refuse: then they are found again
            self.changed()
        self._defaults = left or None
        for name, entry in edited.items():
            self._put(name, entry)
        return bool(edited)

    def _load_anew(self) -> None:
        """Load all entries, and those of nested values, so that each is encoded when it is saved.

        Raises:
            DamagedObjectError: an entry's bytes are not what was written.
            UnsupportedFormatError: its codec is unknown, or lacks its library.
        """
        for name in list(self._index()):
            loaded = self._loaded(name)
            entry = Entry(loaded.value)
            entry.children = loaded.children
            for child in loaded.children:
                assert isinstance(child, EntryMapping)
                child._load_anew()
            assert self._entries is not None
            self._entries[name] = entry

    def _put(self, name: str, entry: Entry) -> None:
        """Place a new entry at the end, or in the place of an earlier one."""
        entries = self._index()
        old = entries.get(name)
        self._take_in(entry)
        entries[name] = entry
        if old is not None:
            self._release(old)


class _Keys(KeysView[str]):
    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)  # type: ignore[attr-defined]


class _Values(ValuesView[Any]):
    def __reversed__(self) -> Iterator[Any]:
        return (self._mapping[name] for name in reversed(self._mapping))  # type: ignore[attr-defined]


class _Items(ItemsView[str, Any]):
    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return ((name, self._mapping[name]) for name in reversed(self._mapping))  # type: ignore[attr-defined]
