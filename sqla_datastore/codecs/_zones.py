"""Time zones: those of the standard library, of pytz and of dateutil.

==========================  =====================================================================
node                        zone
==========================  =====================================================================
``{"offset", "name"?}``     ``datetime.timezone``: days, seconds and microseconds
``{"key"}``                 ``zoneinfo.ZoneInfo``
``{"pytz", "variant"?}``    a zone of pytz, and which of its offsets where it is not the first:
                            seconds from UTC, seconds of summer time, its name
``{"pytz_minutes"}``        ``pytz.FixedOffset``
``{"dateutil"}``            ``dateutil.tz.gettz`` of the name
``{"dateutil_utc"}``        ``dateutil.tz.UTC``
``{"dateutil_offset"}``     ``dateutil.tz.tzoffset``: its name or null, and the offset
==========================  =====================================================================
"""

from __future__ import annotations

import importlib
import re
import zoneinfo
from datetime import timedelta, timezone, tzinfo
from typing import Any, Final

from ._base import field, lacks, text_in
from .protocol import JSON, Decoder

# the names of the IANA database: the key becomes a path, so nothing else may stand in it
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_MAX_NAME: Final = 100


def zone_node(zone: tzinfo) -> JSON:
    """Return the node of a time zone, None for one that no node gives back."""
    library = type(zone).__module__.partition(".")[0]
    if type(zone) is timezone:
        # the only way to tell a given name from a derived one
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        return {"offset": duration_node(offset), **({"name": name[0]} if name else {})}
    if type(zone) is zoneinfo.ZoneInfo:
        return {"key": zone.key} if is_known_key(zone.key) else None
    if library == "pytz":
        return _pytz_node(zone)
    return _dateutil_node(zone) if library == "dateutil" else None


def is_known_key(key: Any) -> bool:
    """Return whether a key gives a zone back; one that was read from a file may have any."""
    try:
        return isinstance(key, str) and _is_name(key) and zoneinfo.ZoneInfo(key) is not None
    except (ValueError, OSError, KeyError):
        return False


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_NAME and _ZONE.fullmatch(text) is not None


def read_zone(node: Any, decoder: Decoder) -> tzinfo:
    """Return the time zone of a node that `zone_node` made."""
    if isinstance(node, dict):
        for kind, rule in _READ_RULES.items():
            if kind in node:
                return rule(node, decoder)
    return _read_key(node, decoder)


def _read_offset(node: Any, decoder: Decoder) -> tzinfo:
    names = [text_in(node["name"], decoder)] if "name" in node else []
    try:
        return timezone(read_duration(node["offset"], decoder), *names)
    except ValueError:
        raise decoder.damaged("an offset from UTC is a day or more") from None


def _read_key(node: Any, decoder: Decoder) -> tzinfo:
    key = name_in(field(node, "key", decoder), decoder)
    try:
        return zoneinfo.ZoneInfo(key)
    except (ValueError, OSError, KeyError):  # also: a folder or file of the database, but no zone
        raise lacks(f"time zone {key!r}; install or update tzdata", decoder) from None


def name_in(node: Any, decoder: Decoder) -> str:
    """Return a node that must be the name of a zone: of a file, so nothing else may stand in it."""
    name = text_in(node, decoder)
    if _is_name(name):
        return name
    raise decoder.damaged(f"{name[:_MAX_NAME]!r} is no time zone")


# -- pytz ------------------------------------------------------------------------------------------


def _pytz_node(zone: Any) -> JSON:
    name = getattr(zone, "zone", None)
    if isinstance(name, str):
        # what its pickle holds besides the name, None where the zone has one offset only
        _, *variant = zone.__reduce__()[1] or (name,)
        is_first = importlib.import_module("pytz").timezone(name) is zone
        return {"pytz": name} if is_first else {"pytz": name, "variant": [*variant]}
    offset = zone.utcoffset(None)
    return None if offset is None else {"pytz_minutes": offset // timedelta(minutes=1)}


def _read_pytz(node: Any, decoder: Decoder) -> tzinfo:
    pytz = _library("pytz", decoder)
    name = name_in(node["pytz"], decoder)
    try:
        zone: tzinfo = pytz.timezone(name)
    except pytz.UnknownTimeZoneError:
        raise lacks(f"time zone {name!r} of pytz; update pytz", decoder) from None
    return _variant(zone, name, node["variant"], decoder) if "variant" in node else zone


def _variant(zone: Any, name: str, variant: Any, decoder: Decoder) -> tzinfo:
    # looked up among those that are there: pytz would make any other and keep it in the zone
    for each in getattr(zone, "_tzinfos", {}).values():
        if [name, *each.__reduce__()[1][1:]] == [name, *_as_list(variant)]:
            return each  # type: ignore[no-any-return]
    raise lacks(f"an offset {str(variant)[:80]} of time zone {name!r}; update pytz", decoder)


def _as_list(node: Any) -> list[Any]:
    return node if isinstance(node, list) else [node]


def _read_pytz_minutes(node: Any, decoder: Decoder) -> tzinfo:
    pytz = _library("pytz", decoder)
    minutes = node["pytz_minutes"]
    if type(minutes) is not int or abs(minutes) >= 24 * 60:
        raise decoder.damaged("an offset of pytz is not minutes of less than a day")
    zone: tzinfo = pytz.FixedOffset(minutes)
    return zone


# -- dateutil --------------------------------------------------------------------------------------


def _dateutil_node(zone: Any) -> JSON:
    tz: Any = importlib.import_module("dateutil.tz")
    if type(zone) is tz.tzutc:
        return {"dateutil_utc": True}
    if type(zone) is tz.tzoffset:
        return {"dateutil_offset": [zone.tzname(None), duration_node(zone.utcoffset(None))]}
    if type(zone) is not tz.tzfile:
        return None
    # it knows the path of its file only, and that ends with the name
    name = str(getattr(zone, "_filename", "")).rpartition("zoneinfo/")[2]
    return {"dateutil": name} if _is_name(name) and tz.gettz(name) == zone else None


def _read_dateutil(node: Any, decoder: Decoder) -> tzinfo:
    tz = _library("dateutil.tz", decoder)
    name = name_in(node["dateutil"], decoder)
    zone: Any = tz.gettz(name)
    # rules that are written out, like "EST5EDT4", are another class
    if type(zone) is tz.tzfile:
        return zone  # type: ignore[no-any-return]
    raise lacks(f"time zone {name!r} of dateutil; update python-dateutil", decoder)


def _read_dateutil_utc(node: Any, decoder: Decoder) -> tzinfo:  # noqa: ARG001
    zone: tzinfo = _library("dateutil.tz", decoder).UTC
    return zone


def _read_dateutil_offset(node: Any, decoder: Decoder) -> tzinfo:
    tz = _library("dateutil.tz", decoder)
    match node["dateutil_offset"]:
        case [str() | None as name, list() as offset]:
            zone: tzinfo = tz.tzoffset(
                name, _read_offset({"offset": offset}, decoder).utcoffset(None)
            )
            return zone
    raise decoder.damaged("an offset of dateutil is not a name and a duration")


def _library(module: str, decoder: Decoder) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = "pytz" if module == "pytz" else "python-dateutil"
        raise lacks(f"{package}; install it", decoder) from None


_READ_RULES: Final = {
    "offset": _read_offset,
    "pytz": _read_pytz,
    "pytz_minutes": _read_pytz_minutes,
    "dateutil": _read_dateutil,
    "dateutil_utc": _read_dateutil_utc,
    "dateutil_offset": _read_dateutil_offset,
}


# -- durations -------------------------------------------------------------------------------------


def duration_node(value: timedelta) -> JSON:
    """Return days, seconds and microseconds."""
    return [value.days, value.seconds, value.microseconds]


def read_duration(node: Any, decoder: Decoder) -> timedelta:
    """Return the duration of a node that `duration_node` made."""
    if not (isinstance(node, list) and len(node) == 3 and all(type(n) is int for n in node)):
        raise decoder.damaged("a duration is not days, seconds and microseconds")
    days, seconds, microseconds = node
    try:
        return timedelta(days, seconds, microseconds)
    except OverflowError:
        raise decoder.damaged("a duration is out of range") from None
