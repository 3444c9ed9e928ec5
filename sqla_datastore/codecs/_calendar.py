"""Codecs of dates, times, durations and time zones."""

from __future__ import annotations

import zoneinfo
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

from ._base import ExactCodec, field, text_in
from ._zones import duration_node, read_duration, read_zone, zone_node
from .protocol import JSON, Codec, Decoder, Encoder


class DatetimeCodec(ExactCodec):
    """Datetimes with fold; naive, with a fixed offset, or in a zone that has a name."""

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
        return duration_node(value)

    def decode(self, node: Any, version: int, decoder: Decoder) -> timedelta:  # noqa: ARG002
        return read_duration(node, decoder)


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
    zone = read_zone(node["zone"], decoder) if "zone" in node else None
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
    node = zone_node(zone)
    if node is None:
        reason = f"its time zone, a {type(zone).__qualname__!r}, has no name that gives it back"
        raise encoder.unsupported(value, f"{reason}; {_ADVICE[type(value)]}")
    return node


_ADVICE: dict[type, str] = {
    datetime: "store value.astimezone(datetime.timezone.utc)",
    time: "store value.replace(tzinfo=None), or give it a zoneinfo.ZoneInfo",
}


class ZoneCodec(ExactCodec):
    """Time zones as values."""

    name = "plain.zone"
    python_types = (timezone, zoneinfo.ZoneInfo)
    described = "tzinfo"

    def takes(self, value: object) -> bool:
        # whatever class pytz or dateutil made for it
        return isinstance(value, tzinfo)

    def encode(self, value: tzinfo, encoder: Encoder) -> JSON:
        node = zone_node(value)
        if node is None:
            reason = "it has no name that gives it back; store a zoneinfo.ZoneInfo or a timezone"
            raise encoder.unsupported(value, reason)
        return node

    def decode(self, node: Any, version: int, decoder: Decoder) -> tzinfo:  # noqa: ARG002
        return read_zone(node, decoder)


CALENDAR_CODECS: tuple[Codec, ...] = (
    DatetimeCodec(),
    TimeCodec(),
    DateCodec(),
    TimedeltaCodec(),
    ZoneCodec(),
)
