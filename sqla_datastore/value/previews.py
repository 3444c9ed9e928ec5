"""A few characters of what is in memory already, for tables of entries. Loads nothing.

Only types that are known are shown: a stranger's ``repr`` may be long, slow, or do anything.
"""

from __future__ import annotations

import datetime
import decimal
import reprlib
import uuid
from itertools import islice
from typing import Any, Final

from sqla_datastore.printable import printable
from sqla_datastore.value.entry import Nestable

WIDEST: Final = 60
"""How many characters a preview has at most."""

_ITEMS: Final = 6
_SCALARS: Final = (
    *(bool, int, float, complex, type(None), decimal.Decimal, uuid.UUID),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
)
_COLLECTIONS: Final = (list, tuple, set, frozenset, dict)


class _Repr(reprlib.Repr):
    """A bounded ``repr`` that asks only what it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = _ITEMS
        self.maxstring = self.maxother = self.maxlong = WIDEST

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{…}"
        # the base sorts
        items = islice(x.items(), self.maxdict)
        shown = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in items]
        return "{" + _listed(shown, len(x)) + "}"

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002
        if type(x) in _SCALARS or isinstance(x, (bytes, bytearray)):
            return repr(x[:WIDEST]) if isinstance(x, (bytes, bytearray)) else repr(x)
        return f"<{type(x).__name__}>"


def preview(value: Any) -> str:
    """Return a short line that shows what a value is like, or "" where it has none; never raises.

    Args:
        value: what is in memory; of an array the first numbers are read.
    """
    try:
        text = printable(_preview(value))
        return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
    except Exception:  # a glimpse is not worth an error
        return ""


def _preview(value: Any) -> str:
    kind = type(value)
    if isinstance(value, Nestable):
        # of a nested value: its names, as far as they are known
        return _listed(list(value._entries or ()))
    if kind is str:
        return str(value[: WIDEST + 1])
    if kind in (bytes, bytearray):
        return f"{bytes(value[:16]).hex(' ')} …" if len(value) > 16 else bytes(value).hex(" ")
    if kind in _SCALARS or kind in _COLLECTIONS:
        return _Repr().repr(value)
    library = kind.__module__.partition(".")[0]
    shown = {"numpy": _of_numpy, "pandas": _of_columns, "pyarrow": _of_columns}.get(library)
    return "" if shown is None else shown(value)


def _of_numpy(value: Any) -> str:
    if not hasattr(value, "flat"):
        return ""
    if value.dtype.names:
        return _listed(value.dtype.names)
    return _listed([_number(each) for each in islice(value.flat, _ITEMS)], value.size)


def _of_columns(value: Any) -> str:
    names = getattr(value, "column_names", None)  # of Arrow
    if names is None and value.ndim == 2:
        names = value.columns[: _ITEMS + 1]
    if names is not None:
        return "columns " + _listed([str(name) for name in names])
    return _listed([_number(each) for each in value.array[:_ITEMS]], len(value))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _listed(texts: Any, count: int = 0) -> str:
    shown = [str(text) for text in islice(texts, _ITEMS)]
    more = max(count, len(texts)) > len(shown)
    return ", ".join([*shown, "…"] if more else shown)
