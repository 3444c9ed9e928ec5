"""How a value is saved: look for edits, plan its objects, switch to the stored form, and back.

`scan` runs before a flush and a COMMIT, `plan` before the statement that takes the value, `switch`
once its objects are written. What `switch` returns runs when they are removed again, because the
transaction was rolled back.
"""

from __future__ import annotations

import pickle
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sqla_datastore.codecs.protocol import FILE_SUFFIX
from sqla_datastore.format import EncodedEntry, ObjectPlan, Plan, matches
from sqla_datastore.format import plan as plan_objects
from sqla_datastore.storage.urls import ObjectURL
from sqla_datastore.value.entry import (
    UNLOADED,
    Entry,
    Nestable,
    ReadsLater,
    Source,
    fingerprint_of,
)
from sqla_datastore.value.mapping import EntryMapping

if TYPE_CHECKING:
    from sqla_datastore.options import Level
    from sqla_datastore.storage.protocol import Storage
    from sqla_datastore.value.fingerprint import Fingerprint, Layout

_CONTAINERS = (list, dict, set, tuple, bytearray, OrderedDict, defaultdict, Counter, deque)
_SCALARS = (type(None), bool, int, float, complex)
_SHORT = 4096
_WITHOUT_BUFFERS = {"geopandas", "PIL", "torch"}
"""Libraries whose pickles hold memory of arrays as bytes."""

Undo: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class _Taken:
    """The entries that went into a plan, with what those that stay in place looked like then."""

    entries: dict[str, Entry]
    fingerprints: dict[str, Fingerprint | Layout]


class ValuePlan(Plan):
    """A plan that knows which entries went into it.

    Attributes:
        taken: the entries of each value of the family, by its identity.
    """

    def __init__(self, family: Plan, taken: dict[int, _Taken]) -> None:
        super().__init__(family.objects, family.nested_values)
        self.taken = taken


# -- edits in place --------------------------------------------------------------------------------


def scan(value: EntryMapping) -> bool:
    """Look for edits in place in a value and in those nested in it; see `DataStore._scan`."""
    value._armed = False
    found = value._take_edited_defaults()
    # a copy of its own: another thread may assign entries
    for name, entry in dict(value._entries or {}).items():
        if entry.value is UNLOADED:
            continue
        if entry.source is not None and entry.look_again(name, _holds):
            found = True
        for child in entry.children:
            found = child._scan() or found
    if found and not value._changed:
        value.changed()
    return found


def _holds(entry: Entry, name: str) -> bool:
    """Return whether the source still holds what a loaded entry is: it is encoded again."""
    assert entry.source is not None
    stored = entry.source.entry(name)
    if not stored.has_nested:
        return matches(stored, entry.value, nested_entries=_no_entries)
    now, before = _encoded(name, entry.value), _encoded(name, entry.source.load(name)[0])
    # nodes first: a stream that is not stored yet can be read once, and its node is like no other
    if _nested_urls(now) != _nested_urls(before) or _nodes(now) != _nodes(before):
        return False
    return _digest(now) == _digest(before)


def _no_entries(_value: object) -> Mapping[str, object]:
    """Stand for the entries of a nested value, which looks for its own edits."""
    return {}


def _encoded(name: str, value: object) -> Plan:
    return plan_objects({name: value}, nested_entries=_no_entries)


def _nested_urls(family: Plan) -> list[str | None]:
    return [value.url for value in family.nested_values]  # type: ignore[attr-defined]


def _nodes(family: Plan) -> list[str]:
    return [part.node for part in family.objects[0].entries if isinstance(part, EncodedEntry)]


def _digest(family: Plan) -> bytes:
    from sqla_datastore.value.fingerprint import HashSink

    sink = HashSink()
    family.objects[0].write(sink)
    return sink.digest()


# -- planning --------------------------------------------------------------------------------------


def plan(value: EntryMapping, column: str | None, compression: Level | None = None) -> ValuePlan:
    """Encode a value with all that is nested in it; see `DataStore._plan`."""
    taken: dict[int, _Taken] = {}

    def parts(each: Any) -> Mapping[str, object]:
        entries = dict(each._index())
        taken[id(each)] = _Taken(entries, {})
        return _parts(entries, each)

    family = plan_objects(
        parts(value), nested_entries=parts, column=column, compression=compression
    )
    for item in taken.values():
        for name, entry in item.entries.items():
            fingerprint = None if entry.value is UNLOADED else _fingerprint_to_keep(entry)
            if fingerprint is not None:
                item.fingerprints[name] = fingerprint
    return ValuePlan(family, taken)


def _parts(entries: dict[str, Entry], outer: EntryMapping) -> dict[str, object]:
    """Return what goes into the plan: objects, or what those that are stored lie in.

    Loads entries that refer to nested objects, and replaces them in `entries`.
    """
    parts: dict[str, object] = {}
    container = resting = None
    for name, entry in entries.items():
        if entry is not resting:
            if entry.source is None or entry.may_be_edited() or _holds_files(entry, name):
                parts[name] = entry.value
                continue
            # the next ones are often the same, not loaded as well
            container, resting = entry.source.container_to_copy(), entry
        assert container is not None
        if name in container.with_nested:
            entries[name] = loaded = outer._loaded(name)
            parts[name] = loaded.value
        else:
            parts[name] = container
    return parts


def _holds_files(entry: Entry, name: str) -> bool:
    """Return whether what was handed out reads from its object, so that it has to follow it."""
    if entry.value is UNLOADED or not entry.handed_out:
        return False
    assert entry.source is not None
    return any(blob.suffix == FILE_SUFFIX for blob in entry.source.container().blobs(name))


def _fingerprint_to_keep(entry: Entry) -> Fingerprint | Layout | None:
    """Return the fingerprint of an object that stays in place once it is stored."""
    if entry.source is None:
        return fingerprint_of(entry.value) if _is_plain(entry.value) else None
    if entry.may_be_edited():
        return fingerprint_of(entry.value)
    return entry.fingerprint if entry.handed_out else None


def _is_plain(value: object) -> bool:
    """Return whether it is a container of Python's own that holds no memory of arrays."""
    # the only other tuples that can be stored are registered namedtuples
    if type(value) not in _CONTAINERS and not isinstance(value, tuple):
        return False
    buffers: list[pickle.PickleBuffer] = []
    try:
        _Probe(buffers).dump(value)
    except Exception:  # foreign reducers may raise anything
        return False
    return not buffers


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any, /) -> None:
        """Take what is written."""


class _Probe(pickle.Pickler):
    """Pickles to nowhere, to see which memory is handed over; passes over nested values.

    What reads later counts as memory, too: it must not stay in place.
    """

    def __init__(self, buffers: list[pickle.PickleBuffer]) -> None:
        # not to itself: a cycle would hold what was pickled until garbage is collected
        super().__init__(_Nowhere(), 5, buffer_callback=buffers.append)
        self._buffers = buffers

    def reducer_override(self, obj: Any) -> Any:
        """Stand for a nested value, which looks after its own memory, and for large ones."""
        library = type(obj).__module__.partition(".")[0]
        if library in _WITHOUT_BUFFERS or isinstance(obj, ReadsLater):
            self._buffers.append(pickle.PickleBuffer(b""))
            return tuple, ()
        return (tuple, ()) if isinstance(obj, Nestable) else NotImplemented


# -- switching to the stored form, and back --------------------------------------------------------


def switch(value: EntryMapping, storage: Storage, url: ObjectURL, planned: ValuePlan) -> Undo:
    """Switch a value and those nested in it to what was written; see `DataStore._stored`."""
    numbers = {id(child): number for number, child in enumerate(planned.nested_values)}
    undos: list[Undo] = []

    def one(each: EntryMapping, its_url: ObjectURL) -> None:
        written = planned.taken.pop(id(each))
        with_nested = planned.objects[numbers.get(id(each), -1) + 1].names_with_nested
        source = each._source_at(storage, str(its_url))
        undos.append(_switched(each, source, written, with_nested))
        undos.extend(_with_files(each, source, planned.objects[numbers.get(id(each), -1) + 1]))
        for child in list(_children(each)):
            if id(child) in numbers and id(child) in planned.taken:
                one(child, url.nested(numbers[id(child)]))
            value._changed |= child._changed

    one(value, url)

    def undo() -> None:
        for each in reversed(undos):
            each()

    return undo


def _with_files(value: EntryMapping, source: Source, written: ObjectPlan) -> Iterator[Undo]:
    """Have what reads later read from the object that it was written to."""
    for part in written.entries:
        if not isinstance(part, EncodedEntry):
            continue
        for payload in part.payloads:
            if (belongs_to := getattr(payload, "belongs_to", None)) is not None:
                blocks = value._is_async() and not value._is_near()
                yield belongs_to(source, part.name, blocks_a_loop=blocks)


def _children(value: EntryMapping) -> Iterator[Any]:
    for entry in (value._entries or {}).values():
        yield from entry.children


def _switched(
    value: EntryMapping, source: Source, written: _Taken, with_nested: frozenset[str]
) -> Undo:
    """Switch one value; entries that were replaced since they were planned stay unsaved."""
    before = dict(value._index())
    after: dict[str, Entry] = {}
    stored, taken = Entry(source=source), written.entries
    changed = list(before) != list(taken)
    for name, entry in before.items():
        was = taken.get(name)
        if was is None or not (entry is was or _has_become(entry, was)):
            after[name], changed = entry, True
        elif entry.value is UNLOADED:
            after[name] = stored
        else:
            looked = _fingerprint_of_written(name, entry, written)
            after[name] = _stored_form(entry, looked, stored, value, nested=name in with_nested)
    undo = _Undo(value, source, before, after)
    value._entries, value._source = dict(after), source
    value._changed, value._armed = changed, False
    if any(entry.fingerprint for entry in after.values()):
        for each in value._lineage():
            each._handed_out = True
    return undo


def _has_become(entry: Entry, taken: Entry) -> bool:
    """Return whether an entry is what went into the plan, loaded since by another thread."""
    return entry.is_from(taken) and not entry.edited


def _fingerprint_of_written(
    name: str, entry: Entry, written: _Taken
) -> Fingerprint | Layout | None:
    """Return what an entry that was written looked like; None where it need not stay in place."""
    if entry is written.entries[name]:
        return written.fingerprints.get(name)
    # loaded since, by another thread
    return entry.fingerprint if entry.handed_out else None


class _Undo:
    """Puts a value back as it was before it was stored, and keeps what was edited since.

    Args:
        value: the value, about to be switched.
        stored: the object that holds it then.
        before: its entries.
        after: what they will be.
    """

    __slots__ = ("_after", "_before", "_changed", "_source", "_stored", "_value")

    def __init__(
        self,
        value: EntryMapping,
        stored: Source,
        before: dict[str, Entry],
        after: dict[str, Entry],
    ) -> None:
        self._stored, self._before, self._after = stored, before, after
        self._source, self._changed = value._source, value._changed

        def clear(_: object) -> None:
            before.clear()
            after.clear()

        # a value that nobody holds needs no restoring: its originals must not stay until COMMIT
        self._value = weakref.ref(value, clear)

    def __call__(self) -> None:
        value, before, after = self._value(), self._before, self._after
        if value is None or value._source is not self._stored:
            # stored anew since: this storing is over
            return
        now = value._entries or {}
        edited = list(now) != list(after) or not all(
            entry.is_from(stored)
            for entry, stored in zip(now.values(), after.values(), strict=True)
        )
        names = now if edited else before
        entries = {name: _restored(now[name], after.get(name), before.get(name)) for name in names}
        value._entries, value._source = entries, self._source
        if edited or any(entry is not before.get(name) for name, entry in entries.items()):
            for each in value._lineage():
                each._changed = True
        else:
            value._changed = self._changed
        if value._row is not None:
            value._row.restored(value)


def _stored_form(
    entry: Entry,
    fingerprint: Fingerprint | Layout | None,
    stored: Entry,
    outer: EntryMapping,
    *,
    nested: bool,
) -> Entry:
    """Return what a written entry is from now on: an own one where its object stays in place."""
    if not _stays(entry, fingerprint):
        return stored
    children = entry.children
    if nested and not children:
        children = tuple(_nested_in(entry.value))
    if not _can_live_in(outer, children):
        return stored
    for child in children:
        child._outer = outer
    own = Entry(entry.value, stored.source)
    own.children = children
    own.fingerprint, own.handed_out = fingerprint, fingerprint is not None
    return own


def _stays(entry: Entry, fingerprint: Fingerprint | Layout | None) -> bool:
    """Return whether an object stays in place: what is editable and what takes no memory."""
    value = entry.value
    if fingerprint is not None or type(value) in _SCALARS:
        return True
    if isinstance(value, (str, bytes)):
        return len(value) <= _SHORT
    return any(child is value for child in entry.children)


def _can_live_in(outer: EntryMapping, children: tuple[Nestable, ...]) -> bool:
    """Return whether nested values are this one's, or nobody's; each may occur once."""
    free = (child._outer is outer or not child._is_held() for child in children)
    return all(free) and len({*map(id, children)}) == len(children)


def _nested_in(value: object) -> Iterator[EntryMapping]:
    """Yield the nested values in plain containers, each as often as it occurs."""
    if isinstance(value, EntryMapping):
        yield value
    elif isinstance(value, (list, tuple, deque)):
        for item in value:
            yield from _nested_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _nested_in(item)


def _restored(now: Entry, stored: Entry | None, before: Entry | None) -> Entry:
    """Return an entry as it was before it was stored, unless it was edited or handed out since."""
    if before is None or stored is None or not now.is_from(stored):
        return now
    if now.handed_out and now.value is not before.value:
        kept = Entry(now.value)
        # a frame of read-only memory can be edited only while the fingerprint has its twin
        kept.fingerprint = now.fingerprint
        return kept
    return before
