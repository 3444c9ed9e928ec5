"""Time zones of the standard library, pytz and dateutil come back as they were."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import zoneinfo

import pandas as pd
import pytest
from dateutil import tz
from hypothesis import given
from hypothesis import strategies as st

from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import (
    DamagedObjectError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

pytz = pytest.importorskip("pytz", reason="pytz is not installed")

BERLIN = pytz.timezone("Europe/Berlin")
SUMMER = BERLIN.localize(dt.datetime(2024, 7, 1)).tzinfo
ZONES = {
    "utc": dt.UTC,
    "fixed": dt.timezone(dt.timedelta(hours=1, microseconds=1)),
    "fixed with a name": dt.timezone(dt.timedelta(0), "UTC"),
    "zoneinfo": zoneinfo.ZoneInfo("Europe/Berlin"),
    "pytz": BERLIN,
    "pytz in summer": SUMMER,
    "pytz utc": pytz.utc,
    "pytz fixed": pytz.FixedOffset(-90),
    "pytz with one offset": pytz.timezone("Etc/GMT+5"),
    "dateutil": tz.gettz("Europe/Berlin"),
    "dateutil utc": tz.UTC,
    "dateutil offset": tz.tzoffset("X", 3600),
    "dateutil offset without a name": tz.tzoffset(None, -61),
}


def stored(value):
    return decode_value(*encode_value(value))


def assert_same(new, old):
    assert type(new) is type(old)
    assert repr(new) == repr(old)
    assert new == old
    for moment in (dt.datetime(2024, 1, 1), dt.datetime(2024, 7, 1), dt.datetime(1890, 1, 1)):
        assert moment.replace(tzinfo=new).utcoffset() == moment.replace(tzinfo=old).utcoffset()


@pytest.mark.parametrize("zone", ZONES.values(), ids=ZONES)
def test_zones_and_what_has_one_are_exact(zone):
    assert_same(stored(zone), zone)
    for value in (
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zone),
        dt.datetime(2024, 3, 31, 2, 30, tzinfo=zone),  # an hour that there is not
        dt.time(2, 30, tzinfo=zone),
    ):
        back = stored(value)
        assert back.replace(tzinfo=None) == value.replace(tzinfo=None)
        assert back.fold == value.fold
        assert_same(back.tzinfo, value.tzinfo)


@given(
    st.sampled_from(sorted(ZONES)), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1))
)
def test_any_moment_of_pytz_and_dateutil_is_exact(name, moment):
    zone = ZONES[name]
    value = zone.localize(moment) if hasattr(zone, "localize") else moment.replace(tzinfo=zone)
    back = stored(value)
    assert (back, repr(back)) == (value, repr(value))
    assert back.utcoffset() == value.utcoffset()


def zones_of_frames():
    for name, zone in ZONES.items():
        try:
            pd.Timestamp("2024", tz=zone)
        except (AttributeError, ValueError):
            # offsets of microseconds; pandas 2.2 does not know the zones of dateutil 4
            assert name in ("fixed", "dateutil")
        else:
            yield name


@pytest.mark.parametrize("name", [*zones_of_frames()])
def test_frames_take_the_same_zones(name):
    zone = ZONES[name]
    for series in (
        pd.Series(pd.date_range("2024", periods=3, tz=zone)),
        pd.Series([1, 2], index=pd.date_range("2024", periods=2, tz=zone)),
    ):
        back = stored(series)
        pd.testing.assert_series_equal(back, series, check_freq=True)
        found = (getattr(each.dtype, "tz", None) or each.index.tz for each in (back, series))
        assert len({repr(each) for each in found}) == 1
    stamp = pd.Timestamp("2024-07-01", tz=zone)
    assert (stored(stamp), repr(stored(stamp).tz)) == (stamp, repr(stamp.tz))


def of_a_file(key):
    with pathlib.Path(zoneinfo.TZPATH[0], "Europe/Berlin").open("rb") as file:
        return zoneinfo.ZoneInfo.from_file(file, key=key)


needs_a_database = pytest.mark.skipif(
    not any(pathlib.Path(folder, "Europe/Berlin").is_file() for folder in zoneinfo.TZPATH[:1]),
    reason="the system has no time zone database",
)


@needs_a_database
@pytest.mark.parametrize("key", [None, "my zone", "../x", "No/Where", "x" * 200])
def test_a_key_that_gives_no_zone_back_is_refused_when_it_is_stored(key):
    zone = of_a_file(key)
    for value in (
        zone,
        dt.datetime(2024, 1, 1, tzinfo=zone),
        dt.time(1, tzinfo=zone),
        pd.Timestamp("2024", tz=zone),
        pd.Series(pd.date_range("2024", periods=2, tz=zone)),
    ):
        with pytest.raises(UnsupportedTypeError, match="no name"):
            encode_value(value)


@pytest.mark.parametrize("zone", [tz.tzlocal(), tz.tzstr("EST5EDT"), tz.tzrange("A", 3600, "B")])
def test_zones_that_a_name_does_not_give_back_are_refused(zone):
    for value in (zone, dt.datetime(2024, 1, 1, tzinfo=zone)):
        with pytest.raises(UnsupportedTypeError, match="no name"):
            encode_value(value)


HOSTILE = [
    {"pytz": "../../etc/passwd"},
    {"pytz": "Europe"},
    {"pytz": "No/Where"},
    {"pytz": ["Europe/Berlin"]},
    {"pytz": "Europe/Berlin", "variant": [1, 0, "MINE"]},
    {"pytz": "Europe/Berlin", "variant": None},
    {"pytz": "Etc/GMT+5", "variant": [0, 0, "x"]},
    {"pytz_minutes": 24 * 60},
    {"pytz_minutes": 1.5},
    {"pytz_minutes": True},
    {"pytz_minutes": "90"},
    {"dateutil": "../../etc/passwd"},
    {"dateutil": "Europe"},
    {"dateutil": "tzdata.zi"},
    {"dateutil": "EST5EDT4"},
    {"dateutil": "x" * 10_000},
    {"dateutil": ""},
    {"dateutil_offset": [1, [0, 0, 0]]},
    {"dateutil_offset": [None, [1, 0, 0]]},
    {"dateutil_offset": [None, 60]},
    {"dateutil_offset": None},
    {"key": "x/" * 10_000 + "x"},
    {},
    [],
    None,
]


@pytest.mark.parametrize("node", HOSTILE, ids=[str(node)[:40] for node in HOSTILE])
def test_a_hostile_node_is_damage(node):
    moment = {"iso": "2024-01-01T00:00:00", "zone": node}
    for name, inner in (("plain.zone", node), ("plain.datetime", moment)):
        with pytest.raises((DamagedObjectError, UnsupportedFormatError)):
            decode_value(json.dumps([name, 1, inner]))


def test_no_offset_of_a_stranger_stays_in_a_zone_of_pytz():
    before = len(BERLIN._tzinfos)
    node = {"pytz": "Europe/Berlin", "variant": [60, 0, "MINE"]}
    with pytest.raises(UnsupportedFormatError, match="Europe/Berlin"):
        decode_value(json.dumps(["plain.zone", 1, node]))
    assert len(BERLIN._tzinfos) == before


@pytest.mark.parametrize("node", [{"pytz": "UTC"}, {"pytz_minutes": 1}, {"dateutil_utc": True}])
def test_a_missing_library_is_named(node, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("sqla_datastore.codecs._zones.importlib.import_module", missing)
    with pytest.raises(UnsupportedFormatError, match=r"needs (pytz|python-dateutil); install it"):
        decode_value(json.dumps(["plain.zone", 1, node]))


WRITTEN = {
    "utc": '{"offset":[0,0,0]}',
    "fixed with a name": '{"offset":[0,0,0],"name":"UTC"}',
    "zoneinfo": '{"key":"Europe/Berlin"}',
    "pytz": '{"pytz":"Europe/Berlin"}',
    "pytz in summer": '{"pytz":"Europe/Berlin","variant":[7200,3600,"CEST"]}',
    "pytz fixed": '{"pytz_minutes":-90}',
    "dateutil": '{"dateutil":"Europe/Berlin"}',
    "dateutil utc": '{"dateutil_utc":true}',
    "dateutil offset": '{"dateutil_offset":["X",[0,3600,0]]}',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_nodes_stay_what_they_are(name):
    assert encode_value(ZONES[name]) == (f'["plain.zone",1,{WRITTEN[name]}]', [])


class TestConformance(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("plain.zone")

    @pytest.fixture
    def values(self):
        return list(ZONES.values())

    def assert_same(self, back, value):
        assert_same(back, value)
