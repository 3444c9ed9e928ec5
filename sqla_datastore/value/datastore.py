"""The value: a mapping of entries that are kept outside the database and loaded one by one.

One public class with all that ``dict`` offers, so it is longer than other modules.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Self, cast, get_args, overload

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm.attributes import flag_modified
from typing_extensions import TypeVar

from sqla_datastore.codecs import (
    Decoder,
    Description,
    Encoder,
    register_codec,
)
from sqla_datastore.codecs.protocol import JSON
from sqla_datastore.exceptions import (
    MissingObjectError,
    SchemaMismatchError,
    StaleValueError,
    UnsupportedTypeError,
)
from sqla_datastore.schema.sqlalchemy_compat import inspects
from sqla_datastore.storage.urls import ObjectURL, head_of
from sqla_datastore.value.entry import (
    NO_DETAILS,
    UNLOADED,
    Details,
    Entry,
    Nestable,
    Source,
    settle,
)
from sqla_datastore.value.equality import equal
from sqla_datastore.value.mapping import EntryMapping, RowLink

if TYPE_CHECKING:
    from sqla_datastore.options import Level
    from sqla_datastore.storage.binding import StorageLike
    from sqla_datastore.storage.protocol import Storage
    from sqla_datastore.typed.entry_schema import EntrySchema
    from sqla_datastore.value.display import Inspection
    from sqla_datastore.value.saving import ValuePlan


S_co = TypeVar("S_co", covariant=True, default=Any)
"""The schema: a TypedDict, a dataclass or a pydantic model that lists the entries."""


class DataStore(EntryMapping, Generic[S_co]):
    """An ordered mapping from names to arrays, frames and plain values.

    ::

        ds = DataStore(a=np.zeros(10), b=pd.Series([1, 2, 3]), c=123)
        ds.a, ds["a"]

    It is a mapping with string keys and everything that ``dict`` offers. Entries are attributes
    too, apart from names that start with an underscore, are ``ndim``, or are methods or properties
    here: these are reached as items only. A `DataStore` can be an entry of another one.

    Assigned to a column of `DataStoreType` it is stored when the row is flushed. From then on it
    holds what was written: entries are loaded one by one when they are first asked for, each once,
    by whichever thread; arrays come back read-only. What was assigned before belongs to its user
    again, except for plain containers (list, dict, set), which stay in place. Editing an entry in
    place, a nested value or a frame for instance, is noticed and saved.

    Args:
        mapping_or_pairs: a mapping, or pairs of name and value; entries of another `DataStore` are
            taken over without being loaded. The instance of a dataclass or of a pydantic model
            stands for its fields.
        **entries: further entries.

    Raises:
        UnsupportedTypeError: a name is not a str.

    Examples:
        >>> ds = DataStore(n=1, name="first")
        >>> ds.n, ds["name"], list(ds)
        (1, 'first', ['n', 'name'])
        >>> ds == DataStore(ds)
        True
    """

    # pickles name the class by its public path, which stays when modules move
    __module__ = "sqla_datastore"
    __slots__ = ()

    _outer: DataStore | None

    def __new__(cls, *_: Any, **__: Any) -> Self:  # noqa: D102 - the class says it
        return cls._at(None, None)

    @overload
    def __init__(
        self,
        mapping_or_pairs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        /,
        **entries: Any,
    ) -> None: ...

    @overload
    def __init__(self, features: S_co, /, **entries: Any) -> None: ...

    def __init__(self, mapping_or_pairs: Any = (), /, **entries: Any) -> None:
        self._entries = {}
        self._changed = True
        if not isinstance(mapping_or_pairs, (Mapping, list, tuple)):
            from sqla_datastore.typed.entry_schema import entries_of

            fields = entries_of(mapping_or_pairs)
            mapping_or_pairs = mapping_or_pairs if fields is None else fields
        self.update(mapping_or_pairs, **entries)

    @classmethod
    def from_url(cls, url: str, *, storage: StorageLike = None) -> Self:
        """Return the value that a URL stands for; nothing is read yet.

        Args:
            url: as a column holds it, for example ``file:///experiments/1/0f3c….zip``.
            storage: the storage's URL or path, a `Storage`, or an engine, connection or session
                (asynchronous ones too) that stands for the storage bound to it; by default the
                one that `options` and the environment name, looked up when it is first needed.

        Returns:
            A value that belongs to no row; assigning it to one stores a copy of the object.

        Raises:
            RefusedURLError: for a URL that this library does not serve.
            ConfigurationError: for a storage that it does not know.
            TypeError: for what is no storage.
        """
        from sqla_datastore.storage.binding import storage_given

        ObjectURL.parse(url)
        return cls._at(None if storage is None else storage_given(storage), url)

    @classmethod
    def fromkeys(cls, names: Iterable[str], value: Any = None) -> Self:
        """Return a value with the same object under each name, None by default."""
        return cls((name, value) for name in names)

    @property
    def url(self) -> str | None:
        """The URL of the object that holds it, None until stored; stays when it is changed."""
        return self._url

    # -- dict beyond the mapping -------------------------------------------------------------------

    def __or__(self, other: Any) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        union = self.copy()
        union.update(other)
        return union

    def __ror__(self, other: Any) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        return type(self)(other) | self

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Load everything and return it as a dict, nested `DataStore` values as dicts too."""
        return {
            name: value.to_dict() if isinstance(value, DataStore) else value
            for name, value in self.items()
        }

    # -- schema ------------------------------------------------------------------------------------

    @property
    def typed(self) -> S_co:
        """The value as type checkers see it by its schema: ``run.data.typed.metrics``.

        For ``Mapped[DataStore[Features]]`` its entries have the types that `Features` gives them:
        as attributes, or as items where that is a TypedDict. At run time it is a view of the value.
        In a row whose column has a schema it checks what it hands out and what is assigned, and
        gives the default of a field that is missing. Reads nothing before it is touched.
        """
        link = self._row
        schema = None if link is None else link.schema
        if link is None or schema is None:
            return cast("S_co", self)
        from sqla_datastore.value.typed_view import TypedView

        return cast("S_co", TypedView(self, schema, link.label))

    def _check_entries(self, schema: EntrySchema, column: str | None) -> None:
        """Refuse names, and entries in memory, that a schema does not allow.

        Raises:
            SchemaMismatchError: says which.
        """
        self._take_edited_defaults()
        entries = self._index()
        schema.check_names(entries, column=column)
        for name, entry in entries.items():
            if entry.value is not UNLOADED:
                schema.check(name, entry.value, column=column)

    def _problem_as(self, schema: type) -> str | None:
        """Say why the value is not what a schema says, None if it is; for nested values."""
        from sqla_datastore.typed.entry_schema import EntrySchema

        try:
            self._check_entries(EntrySchema.of(schema), None)
        except SchemaMismatchError as err:
            return err.message
        return None

    # -- attributes --------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name != "ndim":
            try:
                return self[name]
            except KeyError:
                pass
        if isinstance(getattr(type(self), name, None), property):
            # an AttributeError within it led here, and is told as it is
            return object.__getattribute__(self, name)
        raise AttributeError(f"{type(self).__name__} has no attribute or entry {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STATE:
            object.__setattr__(self, name, value)
        elif self._is_item_only(name):
            raise AttributeError(f"{name!r} cannot be set as an attribute; use ds[{name!r}] = ...")
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        if self._is_item_only(name):
            raise AttributeError(f"{name!r} cannot be deleted this way; use del ds[{name!r}]")
        if name not in self._index():
            raise AttributeError(f"{type(self).__name__} has no entry {name!r}")
        del self[name]

    def __dir__(self) -> list[str]:
        names = [] if self._entries is None else [*self._entries]
        return sorted({*super().__dir__(), *(name for name in names if name.isidentifier())})

    @classmethod
    def _is_item_only(cls, name: str) -> bool:
        return name.startswith("_") or name == "ndim" or hasattr(cls, name)

    def __array__(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("a DataStore is no array, and its names are no data; use dict(ds)")

    # -- comparison, copies, pickle ----------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if isinstance(other, DataStore) and not (self._handed_out or other._handed_out):
            return self._same_as(other) or equal(self, other)
        return equal(self, other)

    def _same_as(self, other: DataStore) -> bool:
        """Return whether both stand for the same stored object; never compares content."""
        if self is other:
            return True
        both_stored = not (self._changed or other._changed) and self.url is not None
        return both_stored and self.url == other.url

    def copy(self) -> Self:
        """Return a new value that belongs to no row.

        One that is stored and unchanged is copied by reference to the same object, without I/O,
        and the entries of the two are loaded apart; otherwise assigned objects are shared.
        """
        if self._unchanged_url() is not None:
            return self._at(self._storage, self._url)
        twin = type(self)()
        for name, entry in self._copies().items():
            twin._put(name, entry)
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = self.copy()
        memo[id(self)] = twin
        for entry in (twin._entries or {}).values():
            if entry.source is None:
                entry.value = copy.deepcopy(entry.value, memo)
            if isinstance(entry.value, DataStore):
                entry.value._outer, entry.children = twin, (entry.value,)
        return twin

    def _copies(self) -> dict[str, Entry]:
        """Return the entries for another value: by reference to an object where it holds them."""
        self._scan()
        return {name: self._copied(entry) for name, entry in self._index().items()}

    @staticmethod
    def _copied(entry: Entry) -> Entry:
        if entry.value is UNLOADED:
            return entry
        if entry.is_unsaved():
            return Entry(entry.value)
        return Entry(source=entry.source)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        self._scan()
        if self._url is not None and not any(value._changed for value in self._lineage()):
            return type(self)._referenced, (self._url, _url_of(self._storage))
        return type(self)._blank, (), list(self.items())

    @classmethod
    def _referenced(cls, url: str, storage_url: str | None) -> Self:
        """Unpickle a stored value."""
        return cls._at(storage_url, url)

    @classmethod
    def _blank(cls) -> Self:
        """Unpickle a value whose entries follow as its state, so that it may contain itself."""
        return cls.__new__(cls)

    def __setstate__(self, items: list[tuple[str, Any]]) -> None:
        self._entries, self._changed = {}, True
        for name, value in items:
            self._put(name, Entry(value))

    # -- pydantic ----------------------------------------------------------------------------------

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Be the type of a pydantic field: see ``docs/web.md``."""
        from sqla_datastore.typed.annotations import schema_in
        from sqla_datastore.typed.entry_schema import EntrySchema
        from sqla_datastore.value.pydantic_schema import core_schema_of

        given = schema_in(get_args(source))
        schema = None if given is None else EntrySchema.of(given)
        return core_schema_of(partial(cls._field, schema), handler)

    @classmethod
    def _field(cls, schema: EntrySchema | None, value: Mapping[str, Any]) -> DataStore:
        """Make a value of a mapping, and return a value as it is; check what is not stored yet.

        Raises:
            UnsupportedTypeError: the mapping cannot be one.
            SchemaMismatchError: it is not what the schema says.
        """
        coerced = cls.coerce("data", value)
        assert coerced is not None
        # to look at a value that is stored would read its index
        if schema is not None and coerced.url is None:
            coerced._check_entries(schema, None)
        return coerced

    # -- rows --------------------------------------------------------------------------------------

    @classmethod
    def coerce(cls, key: str, value: Any) -> DataStore | None:
        """Turn what is assigned to a column into a `DataStore`; SQLAlchemy calls this.

        Args:
            key: the attribute that it is assigned to.
            value: a `DataStore`, a mapping with string keys, or None.

        Raises:
            UnsupportedTypeError: for anything else, also for a subclass of `DataStore`.
        """
        if value is None:
            return None
        if isinstance(value, DataStore):
            _refuse_subclass(value, key)
            return value
        if isinstance(value, Mapping):
            return cls(value)
        raise UnsupportedTypeError(
            f"{key!r} takes a DataStore, a dict or None, not {type(value).__name__!r}; "
            f"give it a name: DataStore(data=...)",
            type=type(value),
        )

    def changed(self) -> None:
        """Mark the value, those it is nested in and their rows as changed.

        Editing entries does this by itself, and edits in place are found at flush. The next flush
        writes the value anew.

        Raises:
            StaleValueError: the row's attribute was expired, so that the edit would be lost.
        """
        for value in self._lineage():
            if value._held_by():
                value._flag_rows()
            value._changed = True

    def _flag_rows(self) -> None:
        try:
            for state, key in self._held_by():
                row = state.obj()  # a state can outlive its instance
                if row is not None:
                    flag_modified(row, key)
        except InvalidRequestError as err:
            raise StaleValueError(
                f"an edit of {self._edited_text()} would be lost: the row's attribute was expired, "
                "by a commit or rollback for instance; get it from the row again"
            ) from err

    @classmethod
    def _at(cls, storage: Storage | str | None, url: str | None) -> Self:
        """Return a stored value; nothing is read, looked up or checked.

        Args:
            storage: the storage, or its URL; None for the default one, looked up when needed.
            url: the object's URL; None for a value that is not stored.
        """
        if cls is not DataStore:
            self = object.__new__(cls)
            Nestable.__init__(self, storage, url)
            return self
        # half the price of the above, where each field goes through `__setattr__`
        fields: Any = Nestable(storage, url)
        fields.__class__ = DataStore
        return fields  # type: ignore[no-any-return]

    @property
    def _source(self) -> Source | None:
        """The object that holds it, None until it is stored."""
        if self._opened is None and self._url is not None:
            settle(self, "_opened", None, self._source_at(self._storage, self._url))
        return self._opened

    @_source.setter
    def _source(self, source: Source | None) -> None:
        self._opened = source
        self._storage = None if source is None else source.given
        self._url = None if source is None else source.url

    def _source_apart(self) -> Source | None:
        """Return what reads the object that holds it, and is kept by nobody else; None without."""
        return None if self._url is None else self._source_at(self._storage, self._url)

    def _source_at(self, storage: Storage | str | None, url: str) -> Source:
        return Source(storage, url, DataStore._at)

    def _edited_text(self) -> str:
        """Name the entries that are not stored, the row and the object, for messages."""
        entries = (self._entries or {}).items()
        names = [repr(name) for name, entry in entries if entry.is_unsaved()]
        shown = ", ".join(names[:3]) + ", …" * (len(names) > 3)
        links = [value._row for value in self._lineage() if value._row is not None]
        what = f"entry {shown} of " if shown else ""
        where = links[-1].label if links else "a value that belongs to no row"
        return f"{what}{where} ({head_of(str(self.url))})"

    @property
    def _row(self) -> RowLink | None:
        """The link to the row that it belongs to; None for a value that no row looks after."""
        link: Any = self._link
        if link is not None and not link.is_made:
            settle(self, "_link", link, link.link(self))
        return self._link  # type: ignore[no-any-return]

    @_row.setter
    def _row(self, link: RowLink | None) -> None:
        self._link = link

    def _held_by(self) -> list[tuple[Any, str]]:
        """Return the states of the rows that it is an attribute of, each with the attribute."""
        _ = self._row  # notes the row that it was loaded for
        return [(state, key) for ref, key in self._holders if (state := ref()) is not None]

    def _hold(self, state: Any, key: str) -> None:
        """Note that it is an attribute of a row now, in the place of another one of that row."""
        others = [(other, name) for other, name in self._holders if other() is not state]
        # weak references without a callback are one object for each state
        self._holders = (*others, (weakref.ref(state), key))

    def _release_from(self, state: Any) -> None:
        """Note that it is no attribute of a row any more."""
        _ = self._row  # whose home would note the row later
        self._holders = tuple(each for each in self._holders if each[0]() is not state)

    def _scan(self) -> bool:
        """Look for edits in place of what was handed out, here and in nested values.

        What was edited marks the value as changed. May read entries that look edited from the
        storage; disarms, so that the next hand-out calls `RowLink.arm` again.

        Returns:
            Whether there are edits in place that are not stored yet.
        """
        if not self._handed_out:
            return False
        from sqla_datastore.value import saving

        return saving.scan(self)

    def _unchanged_url(self) -> str | None:
        """Return the URL of the object that holds the value as it is now, or None without one.

        Looks for edits in place.
        """
        return None if self.url is None or self._scan() or self._changed else self.url

    def _plan(self, column: str | None, compression: Level | None = None) -> ValuePlan:
        """Encode the value and all nested ones; nothing is written.

        Args:
            column: ``table.column``, for error messages.
            compression: how hard new entries are compressed, None for not at all.

        Raises:
            UnsupportedTypeError: an entry cannot be stored, or the value is of a subclass; names
                column and entry.
            MissingObjectError: entries are to be copied from an object that is gone.
        """
        from sqla_datastore.value import saving

        _refuse_subclass(self, column)
        try:
            return saving.plan(self, column, compression)
        except MissingObjectError as err:
            raise self._explained(err) from err.__cause__

    def _stored(self, storage: Storage, url: str, plan: ValuePlan) -> Callable[[], None]:
        """Switch to the stored form, after all objects of a plan were written.

        Does no I/O, and arms nothing: ask `_handed_out` afterwards.

        Args:
            storage: where they are.
            url: the URL of the first one; the others are its family.
            plan: what `_plan` of this value returned.

        Returns:
            What to call when they were removed again: it puts the earlier state back, keeps what
            was edited since, and marks no row. Undo the later of two calls first.
        """
        from sqla_datastore.value import saving

        return saving.switch(self, storage, ObjectURL.parse(url), plan)

    # -- nesting and hand-outs ---------------------------------------------------------------------

    def _explained(self, err: MissingObjectError) -> MissingObjectError:
        for value in self._lineage():
            # the objects of a family come and go together, and the row names the first one
            url, row = value.url, value._row
            # An entry may be copied from the object of another value. The first 32 characters are
            # a family's own.
            if url is not None and row is not None and url.rpartition("/")[2][:32] in err.url:
                why = row.why_missing(url)
                return err if why is None else err.because(why)
        return err

    def _take_in(self, entry: Entry) -> None:
        """Note where a nested value lives: in one place, so one from elsewhere is copied."""
        if isinstance(entry.value, DataStore):
            entry.value = self._adopted(entry.value)
            entry.children = (entry.value,)

    def _adopted(self, child: DataStore) -> DataStore:
        if any(child is value for value in self._lineage()):
            return child  # a cycle, refused when it is saved
        if child._is_held():
            child = child.copy()
        child._outer = self
        return child

    def _is_held(self) -> bool:
        """Return whether another value or a row has it."""
        return self._outer is not None or self._row is not None or bool(self._held_by())

    def _release(self, entry: Entry) -> None:
        for child in entry.children:
            if child._outer is self:
                child._outer = None

    def _lineage(self) -> Iterator[DataStore]:
        """Yield the value and those it is nested in, innermost first."""
        seen = set()
        value: DataStore | None = self
        while value is not None and id(value) not in seen:
            seen.add(id(value))
            yield value
            value = value._outer

    def _begin_edit(self) -> None:
        for value in self._lineage():
            if value._row is not None:
                value._row.check_edit(value)
        self.changed()

    def _arm(self) -> None:
        """Tell the row that something editable was handed out."""
        if self._armed:
            return
        for value in self._lineage():
            value._armed = value._handed_out = True
            if value._row is not None:
                value._row.arm(value)

    def __del__(self) -> None:
        # first: most values are never touched, and each comes here
        if self._details is not NO_DETAILS and self._watch is not None:
            self._watch.going(self)

    def __repr__(self) -> str:
        from sqla_datastore.value.inspection import text_of

        return text_of(self)

    def _repr_html_(self) -> str:
        from sqla_datastore.value.inspection import html_of

        return html_of(self)

    def _ipython_key_completions_(self) -> list[str]:
        try:
            return list(self)
        except Exception:  # a key was pressed, and nobody waits for an error
            return []


def _refuse_subclass(value: DataStore, column: str | None) -> None:
    """Refuse what would come back as a plain `DataStore`."""
    if type(value) is not DataStore:
        raise UnsupportedTypeError(_SUBCLASS, column=column, type=type(value))


_SUBCLASS = "a subclass of DataStore comes back as DataStore; store DataStore(value)"
_STATE = frozenset(
    {*Nestable.__slots__, *(f"_{name}" for name in Details.__slots__), "_source", "_row"}
)


def _url_of(storage: Storage | str | None) -> str | None:
    """Return where a storage is, for another process; None for the default one."""
    return storage if storage is None or isinstance(storage, str) else storage.url


@inspects(DataStore)
def _inspected(value: DataStore) -> Inspection:
    """Answer ``sqlalchemy.inspect``."""
    from sqla_datastore.value.inspection import inspect

    return inspect(value)


class _DataStoreCodec:
    """Nested values: objects of their own, referred to by their number in the family."""

    name: ClassVar[str] = "datastore"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = True

    def types(self) -> tuple[type, ...]:
        return (DataStore,)

    def takes(self, value: object) -> bool:
        return isinstance(value, DataStore)

    def encode(self, value: DataStore, encoder: Encoder) -> JSON:
        if type(value) is not DataStore:
            raise encoder.unsupported(value, _SUBCLASS)
        return encoder.nested(value)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        return decoder.nested(node)

    def describe(self, node: Any) -> Description:  # noqa: ARG002
        # its entries are in an object of its own, which tells their sizes
        return Description("DataStore", nbytes=0)


register_codec(_DataStoreCodec())
