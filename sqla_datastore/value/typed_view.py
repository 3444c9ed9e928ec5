"""A value seen through its schema: each entry is checked as it comes and goes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from typing import Any

from sqla_datastore.typed.entry_schema import EntrySchema
from sqla_datastore.value.mapping import EntryMapping

_SLOTS = ("_label", "_schema", "_value")


class TypedView(MutableMapping[str, Any]):
    """What `DataStore.typed` gives: items and attributes, which are the value's own.

    Args:
        value: the `DataStore`.
        schema: that of its column.
        label: its row, for messages.
    """

    __slots__ = _SLOTS

    _label: str
    _schema: EntrySchema
    _value: EntryMapping

    def __init__(self, value: EntryMapping, schema: EntrySchema, label: str) -> None:
        for name, given in zip(_SLOTS, (label, schema, value), strict=True):
            object.__setattr__(self, name, given)

    def __getitem__(self, name: str) -> Any:
        if name in self._value:
            value = self._value[name]
            self._schema.check(name, value, row=self._label)
            return value
        field = self._schema.fields.get(name)
        if field is not None and field.default is not None:
            return self._value._default(name, field.default)
        if field is not None and field.is_required:
            self._schema.check_names(self._value, row=self._label)
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._schema.check(name, value, row=self._label)
        self._value[name] = value

    def __delitem__(self, name: str) -> None:
        del self._value[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for such names before there is a value
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{self._schema.name} has no entry {name!r}", name=name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            # it would be read as something else
            raise AttributeError(f"{name!r} cannot be set as an attribute; use typed[{name!r}]")
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"the value has no entry {name!r}", name=name) from None

    def __copy__(self) -> EntryMapping:
        """Return a copy of the value: one that belongs to no row has no column to check it."""
        return copy.copy(self._value)

    def __deepcopy__(self, memo: dict[int, Any]) -> EntryMapping:
        return copy.deepcopy(self._value, memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return copy.copy, (self._value,)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._schema.fields})

    def __repr__(self) -> str:
        return f"<{self._schema.name} of {self._label}: {self._value!r}>"
