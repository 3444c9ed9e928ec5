"""JSON in objects: one strict reader, one writer, and the values that JSON itself gives back."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, Final, NoReturn

_BARE_INT: Final = 2**53
"""Any JSON reader keeps integers below this one; many turn larger ones into floats."""

_TEXT_PIECE: Final = 256 * 1024


class NotJSONError(ValueError):
    """A text is not JSON, or is JSON that two readers may understand differently."""


def _refuse_constant(text: str) -> NoReturn:
    raise NotJSONError(f"{text} is no JSON")


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotJSONError("a key of its JSON occurs twice")
    return found


_decode = json.JSONDecoder(object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant).decode
dump_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def parse_json(text: str) -> Any:
    """Parse JSON, strictly: no NaN, no duplicate keys, no nesting that Python cannot follow.

    Raises:
        NotJSONError: it is anything else.
    """
    try:
        return _decode(text)
    except NotJSONError:
        raise
    except RecursionError as err:
        raise NotJSONError("its JSON nests too deeply") from err
    except ValueError as err:
        raise NotJSONError(f"its JSON is broken ({err})") from err


def is_text(value: str) -> bool:
    """Return whether UTF-8 can express a text, that is, whether it has no surrogates."""
    if value.isascii():
        return True
    try:
        for start in range(0, len(value), _TEXT_PIECE):  # so that long text is never encoded whole
            value[start : start + _TEXT_PIECE].encode()
    except UnicodeEncodeError:
        return False
    return True


def is_bare(value: object) -> bool:
    """Return whether a value is stored as JSON itself, without a codec.

    These are None, bool, finite float, int between -2**53 and 2**53, and str without surrogates.
    """
    rule = BARE_RULES.get(type(value))
    return rule is not None and rule(value)


def _always(_value: object) -> bool:
    return True


def _is_bare_int(value: int) -> bool:
    return -_BARE_INT < value < _BARE_INT


BARE_RULES: dict[type, Callable[[Any], bool]] = {
    type(None): _always,
    bool: _always,
    int: _is_bare_int,
    float: isfinite,
    # JSON joins two escaped surrogates to one character, so a text with surrogates is not bare
    str: is_text,
}
