"""Time zones, frequencies and scalars of pandas."""

from __future__ import annotations

import datetime
import importlib
import zoneinfo
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ._base import MAX_PARSED, field, int_node, read_int, short_text_in
from ._stream import refused_as_damage
from ._zones import is_known_key, name_in, read_zone, zone_node
from .protocol import JSON, Codec, Decoder, Description, Encoder

_ZONE = "its time zone has no name that gives it back; convert it with .tz_convert('UTC')"
_FREQ = "its frequency has no text that gives it back"
_QUICK = (
    *(pd.offsets.Tick, pd.offsets.Day, pd.offsets.Week),
    *(pd.offsets.BusinessDay, pd.offsets.CustomBusinessDay),
)
_MOST_ADDED: dict[type, int] = {pd.offsets.BusinessHour: 30_000}
_UNITS = ("s", "ms", "us", "ns")


def encode_zone(zone: datetime.tzinfo | None) -> JSON:
    """Return the node of a time zone.

    Raises:
        ValueError: the zone has no name that gives it back.
    """
    if zone is None:
        return None
    if isinstance(zone, zoneinfo.ZoneInfo) and is_known_key(zone.key):
        return {"zoneinfo": zone.key}
    if type(zone) is datetime.timezone:
        return _encode_fixed(zone)
    if not isinstance(zone, zoneinfo.ZoneInfo) and isinstance(node := zone_node(zone), dict):
        # ticks count in UTC, so that they tell which offset of a zone of pytz it is
        return {kind: value for kind, value in node.items() if kind != "variant"}
    raise ValueError(_ZONE)


def _encode_fixed(zone: datetime.timezone) -> JSON:
    if zone is datetime.UTC:
        return {"utc": True}
    # the only way to tell a given name from a derived one
    offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
    seconds = {"seconds": offset.days * 86400 + offset.seconds, "micros": offset.microseconds}
    return {"fixed": seconds | ({"name": name[0]} if name else {})}


def decode_zone(node: Any, decoder: Decoder) -> datetime.tzinfo | None:
    """Return the time zone of a node; zones of pytz become zoneinfo's where it is missing."""
    if node is None:
        return None
    with refused_as_damage(decoder, "a time zone"):
        ((kind, value),) = node.items()
        if kind == "utc":
            return datetime.UTC
        if kind == "zoneinfo":
            return zoneinfo.ZoneInfo(name_in(value, decoder))
        if kind == "fixed":
            return _decode_fixed(value)
        if kind.startswith("dateutil"):
            return read_zone(node, decoder)
        return _decode_pytz(kind, value if kind != "pytz" else name_in(value, decoder))


def _decode_fixed(node: Any) -> datetime.timezone:
    offset = datetime.timedelta(seconds=node["seconds"], microseconds=node["micros"])
    return datetime.timezone(offset, node["name"]) if "name" in node else datetime.timezone(offset)


def _decode_pytz(kind: str, value: Any) -> datetime.tzinfo:
    try:
        pytz: Any = importlib.import_module("pytz")
    except ImportError:
        if kind == "pytz":
            return zoneinfo.ZoneInfo(value)
        return datetime.timezone(datetime.timedelta(minutes=value))
    zone: datetime.tzinfo = {"pytz": pytz.timezone, "pytz_minutes": pytz.FixedOffset}[kind](value)
    return zone


def freq_text(freq: Any) -> str | None:
    """Return the text of a frequency.

    Raises:
        ValueError: no text gives it back, for example holidays of one's own.
    """
    if freq is None:
        return None
    try:
        text = str(freq.freqstr)
        if len(text) <= MAX_PARSED and pd.tseries.frequencies.to_offset(text) == freq:
            return text
    except ValueError:
        pass
    raise ValueError(_FREQ)


def offset_of(text: Any, decoder: Decoder) -> Any:
    """Return the frequency of a text."""
    if text is None:
        return None
    with refused_as_damage(decoder, "a frequency"):
        return pd.tseries.frequencies.to_offset(short_text_in(text, decoder))


def takes_long(freq: Any, count: int) -> bool:
    """Return whether pandas would take more than a second to check an index against a frequency.

    It adds most offsets one by one, in up to 0.3 ms; those that it multiplies are quick.
    """
    return not isinstance(freq, _QUICK) and count > _MOST_ADDED.get(type(freq), 3_000)


def period_text(dtype: Any) -> str:
    """Return the frequency of a period dtype, for example ``Q-DEC``.

    Raises:
        ValueError: no text gives it back.
    """
    # not `dtype.freq.freqstr`: for months that is an offset's "ME", which periods refuse
    text = str(dtype).removeprefix("period[").removesuffix("]")
    if len(text) > MAX_PARSED or pd.PeriodDtype(text) != dtype:
        raise ValueError(_FREQ)
    return text


def period_dtype_of(text: Any, decoder: Decoder) -> Any:
    """Return the period dtype of a frequency that `period_text` returned."""
    return pd.PeriodDtype(short_text_in(text, decoder))


class _Scalar:
    """A codec of one scalar type."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False
    kind: ClassVar[type]

    def types(self) -> tuple[type, ...]:
        return (self.kind,)

    def takes(self, value: object) -> bool:  # noqa: ARG002
        return False

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        try:
            return self.node(value, encoder)
        except ValueError as err:
            raise encoder.unsupported(value, str(err)) from err

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        with refused_as_damage(decoder, f"a {self.name}"):
            value = self.value(node, decoder)
        # the smallest tick of a Timestamp or Timedelta makes NaT, which has a codec of its own
        if type(value) is not self.kind:
            raise decoder.damaged(f"a {self.name} is {value!r}")
        return value

    def describe(self, node: Any) -> Description:  # noqa: ARG002
        return Description(f"pandas.{self.kind.__name__.removesuffix('Type')}")

    def node(self, value: Any, encoder: Encoder) -> JSON:
        """Return the node; ValueError says why it cannot."""
        raise NotImplementedError

    def value(self, node: Any, decoder: Decoder) -> Any:
        """Return the value; any exception means damage."""
        raise NotImplementedError


class _Timestamp(_Scalar):
    name = "pandas.timestamp"
    kind = pd.Timestamp

    def node(self, value: Any, encoder: Encoder) -> JSON:  # noqa: ARG002
        ticks = int_node(int(value.to_datetime64().view("i8")))
        return {
            "ticks": ticks,
            "unit": value.unit,
            "zone": encode_zone(value.tz),
            "fold": value.fold,
        }

    def value(self, node: Any, decoder: Decoder) -> Any:
        unit = _unit(node, decoder)
        stamp: Any = pd.Timestamp(np.datetime64(_ticks(node, decoder), unit))
        zone = decode_zone(field(node, "zone", decoder), decoder)
        if zone is not None:
            # ticks count from the epoch in UTC, whatever the zone
            stamp = stamp.tz_localize("UTC").tz_convert(zone)
        # the zone has set the fold of an hour that occurs twice; other stamps can have one as well
        fold = int(field(node, "fold", decoder) == 1)
        return stamp if stamp.fold == fold else stamp.replace(fold=fold)


class _Timedelta(_Scalar):
    name = "pandas.timedelta"
    kind = pd.Timedelta

    def node(self, value: Any, encoder: Encoder) -> JSON:  # noqa: ARG002
        return {"ticks": int_node(int(value.to_timedelta64().view("i8"))), "unit": value.unit}

    def value(self, node: Any, decoder: Decoder) -> Any:
        return pd.Timedelta(np.timedelta64(_ticks(node, decoder), _unit(node, decoder)))


class _Period(_Scalar):
    name = "pandas.period"
    kind = pd.Period

    def node(self, value: Any, encoder: Encoder) -> JSON:  # noqa: ARG002
        freq = period_text(pd.PeriodDtype(value.freq))
        return {"ordinal": int_node(value.ordinal), "freq": freq}

    def value(self, node: Any, decoder: Decoder) -> Any:
        ordinal = read_int(field(node, "ordinal", decoder), decoder)
        freq: Any = short_text_in(field(node, "freq", decoder), decoder)
        return pd.Period(ordinal=ordinal, freq=freq)


class _Interval(_Scalar):
    name = "pandas.interval"
    kind = pd.Interval

    def node(self, value: Any, encoder: Encoder) -> JSON:
        left, right = encoder.encode(value.left, ".left"), encoder.encode(value.right, ".right")
        return {"left": left, "right": right, "closed": value.closed}

    def value(self, node: Any, decoder: Decoder) -> Any:
        left, right = decoder.decode(node["left"]), decoder.decode(node["right"])
        return pd.Interval(left, right, node["closed"])


class _NaT(_Scalar):
    name = "pandas.nat"
    kind: ClassVar[type] = type(pd.NaT)

    def node(self, value: Any, encoder: Encoder) -> JSON:  # noqa: ARG002
        return None

    def value(self, node: Any, decoder: Decoder) -> Any:  # noqa: ARG002
        return pd.NaT


class _NA(_NaT):
    name = "pandas.na"
    kind = type(pd.NA)

    def value(self, node: Any, decoder: Decoder) -> Any:  # noqa: ARG002
        return pd.NA


def _unit(node: Any, decoder: Decoder) -> Any:
    unit = field(node, "unit", decoder)
    if unit in _UNITS:
        return unit
    raise decoder.damaged(f"a unit of time is {unit!r}")


def _ticks(node: Any, decoder: Decoder) -> int:
    return read_int(field(node, "ticks", decoder), decoder)


SCALARS: tuple[Codec, ...] = (
    _Timestamp(),
    _Timedelta(),
    _Period(),
    _Interval(),
    _NaT(),
    _NA(),
)
