"""Codecs of Python's own types.

=================================  ===========================================================
what                               becomes
=================================  ===========================================================
int, Fraction                      hexadecimal text, of any size
float, complex                     the bits of IEEE 754 binary64 as hexadecimal text
str                                UTF-8 with surrogates passed through, as a blob or hexadecimal
bytes, bytearray                   hexadecimal text, or a blob when large
datetime, date, time, timedelta    ISO text with fold and zone; days, seconds and microseconds
timezone and other zones           an offset, or the library and the zone's name
Decimal, UUID                      their text
paths                              the class's name and the text
Enum                               the registered name and the member's name or value
tuple, list, set, frozenset        items; JSON-like or numeric ones as JSON or packed numbers
dict                               keys and values as items, so that ``1`` and ``True`` stay apart
OrderedDict                        as a dict, and its attributes
Counter                            as dict
defaultdict                        as dict, with the name of its factory
deque                              items, with the length that it may have
namedtuple                         the registered name, fields and items
range, slice                       start, stop and step
=================================  ===========================================================

None, bool, finite float, int within 53 bits and short str need no codec: they are stored as JSON
itself (`strict_json.is_bare`).
"""

from __future__ import annotations

from ._calendar import CALENDAR_CODECS
from ._collections import COLLECTION_CODECS
from ._containers import CONTAINER_CODECS
from ._enums import EnumCodec
from ._scalars import SCALAR_CODECS
from .protocol import Codec

CODECS: tuple[Codec, ...] = (
    *SCALAR_CODECS,
    *CALENDAR_CODECS,
    *COLLECTION_CODECS,
    *CONTAINER_CODECS,
    EnumCodec(),
)
