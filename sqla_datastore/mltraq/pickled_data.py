"""Pickles of plain data, read by a machine that can make nothing else.

What MLtraq writes is protocol 5 with numbers, text, bytes and containers. `pickle.Unpickler` would
do more: it calls what a pickle names, it reserves a memo of the length that a pickle claims, and
its C code crashes at the hash of a tuple that nests a million times. So `pickletools`, which only
takes a pickle apart, gives the opcodes, and `_Machine` follows those of plain data.

Source: the opcodes' documentation in `pickletools`; PEP 574 for protocol 5.
"""

from __future__ import annotations

import pickletools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from sqla_datastore.mltraq.reading import Reading

_UNCOMPRESSED, _ZLIB = b"C00", b"C01"
_PROTOCOL: Final = 5
# of a mark or a place in the memo
_OPCODE_BYTES: Final = 8
# of an object, with its place in a container
_OBJECT_BYTES: Final = 64
_CONTAINER_BYTES: Final = 256
_TRUST = (
    "nothing of it was run. If you trust whoever wrote it, load it with MLtraq and store what you "
    "need of it"
)


class Pairs(list[Any]):
    """The keys and values of a dict, one after the other; nothing of it is hashed yet."""


class Members(list[Any]):
    """The members of a set; nothing of it is hashed yet."""


class FrozenMembers(list[Any]):
    """The members of a frozenset."""


def uncompressed(data: bytes, reading: Reading) -> bytes:
    """Return the pickle in an object, which MLtraq may have compressed.

    A prefix of three bytes tells, which no pickle of protocol 5 begins with. (MLtraq itself
    compares two bytes with it when it reads, so it finds no compressed object.)

    Raises:
        DamagedObjectError: what was compressed is damaged or cut off.
        UnsupportedFormatError: it takes more memory than it may.
    """
    prefix, rest = data[:3], memoryview(data)[3:]
    if prefix == _UNCOMPRESSED:
        return bytes(rest)
    if prefix != _ZLIB:
        return data
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(rest, max(1, reading.allowance.left))
    except zlib.error as err:
        raise reading.damaged(f"it cannot be decompressed ({err})") from err
    reading.take(len(inflated))
    if not inflater.eof:
        # either it could go on, or it could not
        reading.take(reading.allowance.left + 1 if inflater.unconsumed_tail else 0)
        raise reading.damaged("its compressed bytes are cut off")
    return inflated


def read_pickle(data: bytes, reading: Reading) -> Any:
    """Return what a pickle of plain data describes; nothing is imported and nothing called.

    Returns:
        Plain data. Dicts and sets are `Pairs`, `Members` and `FrozenMembers` still, for hashing a
        key may take more than there is: that is for who has looked at it. Lists may contain
        themselves.

    Raises:
        UnsupportedFormatError: it asks for more than plain data, or for more memory than it may.
        DamagedObjectError: it is cut off, or no pickle.
    """
    machine = _Machine(reading)
    for opcode, argument in _opcodes(data, reading):
        if opcode == "STOP":
            break
        reading.take(_OPCODE_BYTES)
        try:
            machine.follow(opcode, argument)
        except (IndexError, TypeError, AttributeError) as err:
            # too few things on the stack, or none of the kind that the opcode works on
            raise reading.damaged(f"its opcode {opcode} has nothing to work on") from err
    return machine.result()


def _opcodes(data: bytes, reading: Reading) -> Iterator[tuple[str, Any]]:
    opcodes = pickletools.genops(data)
    while True:
        try:
            opcode, argument, _ = next(opcodes)
        except StopIteration:
            return
        except ValueError as err:  # of all that is wrong with the bytes
            raise reading.damaged(f"it is cut off, or no pickle ({err})") from err
        yield opcode.name, argument


class _Machine:
    """The stack, the marks on it and the memo of one pickle."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []

    def result(self) -> Any:
        """Return the one thing that is left on the stack."""
        if len(self._stack) != 1 or self._marks:
            raise self._reading.damaged("its pickle ends too early")
        return self._stack.pop()

    def follow(self, opcode: str, argument: Any) -> None:
        """Do what one opcode says."""
        step = _STEPS.get(opcode)
        if step is None:
            raise self._more_than_data(opcode, argument)
        step(self, argument)

    def _more_than_data(self, opcode: str, argument: Any) -> Exception:
        name = ""
        if opcode == "STACK_GLOBAL":
            # not str() of anything: that may take more than there is
            name = ".".join(each for each in self._stack[-2:] if isinstance(each, str))
        elif opcode in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
        named = f"names {name!r} ({opcode})" if name else f"has the opcode {opcode}"
        return self._reading.refused(f"its pickle {named}, which is more than plain data; {_TRUST}")

    # -- steps ---------------------------------------------------------------------------------

    def check_protocol(self, protocol: int) -> None:
        if protocol != _PROTOCOL:
            raise self._reading.refused(
                f"it is a pickle of protocol {protocol}, and MLtraq writes {_PROTOCOL}"
            )

    def push(self, value: Any) -> None:
        self._push(value, len(value) if isinstance(value, str | bytes | bytearray) else 0)

    def mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def memoize(self, _: None) -> None:
        self._memo.append(self._stack[-1])

    def push_memo(self, number: int) -> None:
        self._push(self._memo[number])

    def make_tuple(self, _: None) -> None:
        self._push(tuple(self._marked()))

    def make_frozenset(self, _: None) -> None:
        self._push(FrozenMembers(self._marked()), _CONTAINER_BYTES)

    def append(self, _: None) -> None:
        self._extend(list, self._popped(1))

    def append_marked(self, _: None) -> None:
        self._extend(list, self._marked())

    def set_item(self, _: None) -> None:
        self._extend(Pairs, self._popped(2))

    def set_marked(self, _: None) -> None:
        items = self._marked()
        if len(items) % 2:
            raise IndexError(len(items))
        self._extend(Pairs, items)

    def add_marked(self, _: None) -> None:
        self._extend(Members, self._marked())

    # -- the stack -----------------------------------------------------------------------------

    def _push(self, value: Any, size_bytes: int = 0) -> None:
        self._reading.take(_OBJECT_BYTES + size_bytes)
        self._stack.append(value)

    def _extend(self, kind: type[list[Any]], items: list[Any]) -> None:
        into = self._stack[-1]
        if type(into) is not kind:
            raise TypeError(kind)
        into += items

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _popped(self, count: int) -> list[Any]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise IndexError(count)
        items = self._stack[-count:]
        del self._stack[-count:]
        return items


def _pushes(value: Any) -> _Step:
    return lambda machine, _: machine.push(value)


def _pushes_empty(make: Callable[[], Any]) -> _Step:
    return lambda machine, _: machine._push(make(), _CONTAINER_BYTES)


def _makes_tuple(count: int) -> _Step:
    return lambda machine, _: machine.push(tuple(machine._popped(count)))


_Step: TypeAlias = Callable[[_Machine, Any], None]

_STEPS: Final[dict[str, _Step]] = {
    "PROTO": _Machine.check_protocol,
    "FRAME": lambda _machine, _size: None,  # for readers of streams
    "NONE": _pushes(None),
    "NEWTRUE": _pushes(True),
    "NEWFALSE": _pushes(False),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINFLOAT": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "BINUNICODE": _Machine.push,
    "BINUNICODE8": _Machine.push,
    "SHORT_BINBYTES": _Machine.push,
    "BINBYTES": _Machine.push,
    "BINBYTES8": _Machine.push,
    "BYTEARRAY8": _Machine.push,
    "EMPTY_LIST": _pushes_empty(list),
    "EMPTY_DICT": _pushes_empty(Pairs),
    "EMPTY_TUPLE": _pushes(()),
    "EMPTY_SET": _pushes_empty(Members),
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.push_memo,
    "LONG_BINGET": _Machine.push_memo,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": _makes_tuple(1),
    "TUPLE2": _makes_tuple(2),
    "TUPLE3": _makes_tuple(3),
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_marked,
    "ADDITEMS": _Machine.add_marked,
}
"""What plain data need, by the opcodes' names; all others are refused."""
