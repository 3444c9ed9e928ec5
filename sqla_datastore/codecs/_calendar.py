"""Codecs of dates, times and durations."""

from __future__ import annotations

import re
import zoneinfo
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

from ._base import ExactCodec, field, lacks, text_in
from .protocol import JSON, Codec, Decoder, Encoder

# the names of the IANA database: the key becomes a path, so nothing else may stand in it
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


class DatetimeCodec(ExactCodec):
    """Datetimes with fold; naive, with a fixed offset, or in a zone of the IANA database."""

    name = "plain.datetime"
    python_types = (datetime,)

    def encode(self, value: datetime, encoder: Encoder) -> JSON:
        return _moment_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        return _read_moment(datetime, node, decoder)


class TimeCodec(ExactCodec):
    """Times of day with fold and zone."""

    name = "plain.time"
    python_types = (time,)

    def encode(self, value: time, encoder: Encoder) -> JSON:
        return _moment_node(value, encoder)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        return _read_moment(time, node, decoder)


class DateCodec(ExactCodec):
    """Dates."""

    name = "plain.date"
    python_types = (date,)

    def encode(self, value: date, encoder: Encoder) -> JSON:  # noqa: ARG002
        return value.isoformat()

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        return _from_iso(date, node, decoder)


class TimedeltaCodec(ExactCodec):
    """Durations by days, seconds and microseconds."""

    name = "plain.timedelta"
    python_types = (timedelta,)

    def encode(self, value: timedelta, encoder: Encoder) -> JSON:  # noqa: ARG002
        return _duration_node(value)

    def decode(self, node: Any, version: int, decoder: Decoder) -> timedelta:  # noqa: ARG002
        return _read_duration(node, decoder)


def _moment_node(value: datetime | time, encoder: Encoder) -> JSON:
    # ISO text knows neither fold nor the name of a zone, so both stand beside it
    node: dict[str, JSON] = {"iso": value.replace(tzinfo=None).isoformat()}
    if value.fold:
        node["fold"] = 1
    if value.tzinfo is not None:
        node["zone"] = _zone_node(value.tzinfo, value, encoder)
    return node


def _read_moment(cls: type[datetime | time], node: Any, decoder: Decoder) -> Any:
    naive = _from_iso(cls, field(node, "iso", decoder), decoder)
    zone = _read_zone(node["zone"], decoder) if "zone" in node else None
    return naive.replace(fold=1 if node.get("fold") == 1 else 0, tzinfo=zone)


def _from_iso(cls: Any, node: Any, decoder: Decoder) -> Any:
    """Read only what `isoformat` writes; `fromisoformat` alone takes zones and week dates too."""
    try:
        value = cls.fromisoformat(text_in(node, decoder))
    except ValueError:
        value = None
    if value is None or value.isoformat() != node or getattr(value, "tzinfo", None):
        raise decoder.damaged(f"{node!r} is no {cls.__name__}")
    return value


def _zone_node(zone: tzinfo, value: object, encoder: Encoder) -> JSON:
    if type(zone) is timezone:
        # the only way to tell a given name from a derived one
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        return {"offset": _duration_node(offset), **({"name": name[0]} if name else {})}
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return {"key": zone.key}
    reason = f"time zone of type {type(zone).__qualname__!r}; use zoneinfo.ZoneInfo or timezone"
    raise encoder.unsupported(value, reason)


def _read_zone(node: Any, decoder: Decoder) -> tzinfo:
    if isinstance(node, dict) and "offset" in node:
        return _read_offset(node, decoder)
    return _read_key(text_in(field(node, "key", decoder), decoder), decoder)


def _read_offset(node: Any, decoder: Decoder) -> timezone:
    names = [text_in(node["name"], decoder)] if "name" in node else []
    try:
        return timezone(_read_duration(node["offset"], decoder), *names)
    except ValueError:
        raise decoder.damaged("an offset from UTC is a day or more") from None


def _read_key(key: str, decoder: Decoder) -> zoneinfo.ZoneInfo:
    if not _ZONE.fullmatch(key):
        raise decoder.damaged(f"{key!r} is no time zone")
    try:
        return zoneinfo.ZoneInfo(key)
    except (ValueError, OSError, KeyError):  # also: a folder or file of the database, but no zone
        raise lacks(f"time zone {key!r}; install or update tzdata", decoder) from None


def _duration_node(value: timedelta) -> JSON:
    return [value.days, value.seconds, value.microseconds]


def _read_duration(node: Any, decoder: Decoder) -> timedelta:
    if not (isinstance(node, list) and len(node) == 3 and all(type(n) is int for n in node)):
        raise decoder.damaged("a duration is not days, seconds and microseconds")
    days, seconds, microseconds = node
    try:
        return timedelta(days, seconds, microseconds)
    except OverflowError:
        raise decoder.damaged("a duration is out of range") from None


CALENDAR_CODECS: tuple[Codec, ...] = (
    DatetimeCodec(),
    TimeCodec(),
    DateCodec(),
    TimedeltaCodec(),
)
