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


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise NotJSONError(f"{text[:40]} is out of range")
    return value


def _bare_int(text: str) -> int:
    value = int(text) if len(text) <= _MOST_DIGITS else _BARE_INT
    if not _is_bare_int(value):
        raise NotJSONError(f"{text[:40]} is beyond what any JSON reader keeps")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant)
# Calls Python for each number, so it is for texts that may hold one that is out of range
_careful_decoder = json.JSONDecoder(
    object_pairs_hook=_distinct_keys,
    parse_constant=_refuse_constant,
    parse_float=_finite,
    parse_int=_bare_int,
)
_MOST_DIGITS: Final = 17
# With all digits alike, three searches for a text find those: a tenth of the time of
# ``[0-9]{16}|[0-9][eE]\+?[0-9]{3}``
_ALIKE: Final = bytes.maketrans(b"123456789E", b"000000000e")
_DIGITS, _EXPONENT, _SIGNED_EXPONENT = b"0" * 16, b"0e000", b"0e+000"
_BRACKETS: Final = ("[", "{")
_BRACKET_BYTES: Final = 96
_LIST_ROOM: Final = 16
_OBJECT_ROOM: Final = 24
_FREE_BYTES: Final = 64 * 1024**2
dump_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def parse_json(text: str, *, any_number: bool = False) -> Any:
    """Parse JSON, strictly.

    No NaN, no number that overflows or that other readers round, no duplicate keys, no nesting that
    Python cannot follow, and no more memory than ten times the text and 64 MiB.

    Args:
        text: the JSON.
        any_number: leave it to the caller to look at numbers.

    Raises:
        NotJSONError: it is anything else.
    """
    if has_too_many_brackets(text):
        raise NotJSONError("its JSON holds more lists and objects than its text has room for")
    try:
        # a text that seems to hold such a number, in a string perhaps, is only read more slowly
        is_harmless = any_number or not _may_be_out_of_range(text)
        decoder = _decoder if is_harmless else _careful_decoder
        if text[:1] in _BRACKETS:
            value, end = decoder.raw_decode(text)
            if end == len(text):  # as it is written here: no space around it to look for
                return value
        return decoder.decode(text)
    except NotJSONError:
        raise
    except RecursionError as err:
        raise NotJSONError("its JSON nests too deeply") from err
    except ValueError as err:
        raise NotJSONError(f"its JSON is broken ({err})") from err


def _may_be_out_of_range(text: str) -> bool:
    alike = text.encode("utf-8", "surrogatepass").translate(_ALIKE)
    return _DIGITS in alike or _EXPONENT in alike or _SIGNED_EXPONENT in alike


def check_readable(text: str) -> None:
    """Refuse JSON of one's own that `parse_json` would refuse.

    Raises:
        NotJSONError: a number is out of range, or it has too many lists and objects.
    """
    if has_too_many_brackets(text) or _may_be_out_of_range(text):
        parse_json(text)


def bytes_for_brackets(text: str) -> int:
    """Return how long a text must be at least for the lists and objects in it.

    A list of one to eight items takes 112 to 144 bytes, an object of one 208, and may be written in
    four or seven characters. So that a text takes no more than ten times its own length, spaces are
    put behind it.
    """
    return _LIST_ROOM * text.count("[") + _OBJECT_ROOM * text.count("{")


def has_too_many_brackets(text: str) -> bool:
    """Return whether lists and objects in a text would take far more memory than the text.

    An empty one takes some 60 bytes, and may be written in three characters.
    """
    if len(text) * _BRACKET_BYTES < _FREE_BYTES:
        return False
    brackets = text.count("[") + text.count("{")
    return brackets * _BRACKET_BYTES > _FREE_BYTES + 10 * len(text)


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
