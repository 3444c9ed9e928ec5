"""The ZIP archive of an object: members that are stored or deflated, and aligned.

The structures are those of PKWARE's APPNOTE 6.3 (sections 4.3 to 4.5). The last central record is
the manifest's, and its last extra field, the *anchor*, says where the manifest is, so that a reader
needs only the end of the object. See ``docs/format.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from typing_extensions import Buffer

from sqla_datastore.storage.protocol import TAIL_BYTES, ObjectReader, ObjectWriter

try:
    # both compute ZIP's CRC-32; on one machine isal did 9.6 GB a second, zlib 2.4
    from isal.isal_zlib import crc32 as crc32
except ImportError:
    from zlib import crc32 as crc32


# What Arrow recommends, and what NumPy pads its headers to. It divides the size of a page, so it
# holds in a memory map, too.
ALIGNMENT = 64
MANIFEST = "manifest.json"
PACKED = "small-blobs.bin"
BUFFER = 256 * 1024
# most objects are small, and `bytearray` clears all that it allocates
_FIRST_BUFFER = 4 * 1024
MAX_MANIFEST = 256 * 1024 * 1024
MAX_DIRECTORY = 256 * 1024 * 1024

# sizes, offsets and counts from these on go into ZIP64 fields; tests set them lower
# (in ZIP, a number with all bits set says that the real one is in a ZIP64 field)
ZIP64_SIZE = 0xFFFFFFFF
ZIP64_COUNT = 0xFFFF

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ANCHOR = struct.Struct("<4H2Q2I")
_PAIR = struct.Struct("<2H")
_DESCRIPTOR = struct.Struct("<4s3I")
_DESCRIPTOR64 = struct.Struct("<4sI2Q")
_ALIGN = struct.Struct("<3H")
_ZIP64 = struct.Struct("<2H2Q")

_LOCAL_SIGN, _CENTRAL_SIGN, _END_SIGN = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64_SIGN, _LOCATOR_SIGN = b"PK\6\6", b"PK\6\7"
_DESCRIPTOR_SIGN = b"PK\7\b"
# 0xD935 is the padding field of Android's signing tools; 0x5344 is "DS", ours
_ZIP64_ID, _ALIGN_ID, _ANCHOR_ID = 0x0001, 0xD935, 0x5344
# one date for all, so that equal entries give equal bytes
_DATE = 0x0021  # 1980-01-01, the first day that ZIP knows
_PLAIN_VERSION, _ZIP64_VERSION = 20, 45
# "made by Unix" makes the upper half of the attributes a file mode; without one, unzip writes files
# that nobody may read
_UNIX = 3 << 8
_FILE_MODE = 0o100644 << 16
_DEFLATE_METHOD = 8
# the third bit: checksum and sizes follow the data
_DESCRIPTOR_FLAG = 8


class MalformedError(ValueError):
    """The bytes are not an archive as this module writes it."""


class WrongSizeError(ValueError):
    """A member got more or fewer bytes than were announced."""


class Member(NamedTuple):
    """One member as listed by the central directory; offsets from the object's start, in bytes.

    Attributes:
        size: of its data, before it was deflated.
        crc: of the same.
        packed: what it takes in the object.
        is_deflated: whether its data are deflated.
        has_zip64: whether its local header has a ZIP64 field.
        has_descriptor: whether its checksum and sizes stand behind its data, not in that header.
    """

    name: str
    header_offset: int
    data_offset: int
    size: int
    crc: int
    packed: int
    is_deflated: bool = False
    has_zip64: bool = False
    has_descriptor: bool = False


class Anchor(NamedTuple):
    """Where the manifest is, and which version of the format wrote the object."""

    version: int
    offset: int
    size: int
    crc: int


def bytes_of(data: Buffer) -> memoryview:
    """Return a view of single bytes."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1:
        return view
    # `cast` refuses shapes with a zero
    return view.cast("B") if view.nbytes else memoryview(b"")


class ZipWriter:
    """Write members one after the other through one small buffer, which grows up to `BUFFER`.

    So an object that is smaller than that is written by one call.

    Bytes are copied into the buffer, and checksums are taken of the copy, which is then written. So
    the two agree, even if another thread changes the caller's memory meanwhile.

    Nothing that was written is changed afterwards: an upload has sent it already. So the checksum
    of a member goes into its header only where that is in the buffer yet, else behind its data.
    """

    def __init__(self, out: ObjectWriter) -> None:
        self._out = out
        self._buffer = memoryview(bytearray(_FIRST_BUFFER))
        self._filled = 0
        self._flushed = 0
        self._members: list[Member] = []
        # the member that was begun, as its header has it
        self._begun = Member("", 0, 0, 0, 0, 0)
        self._size: int | None = 0
        self._crc = self._part_crc = 0
        self._parted = False

    @property
    def position(self) -> int:
        """How many bytes were written so far, buffered ones included."""
        return self._flushed + self._filled

    def add(self, name: str, data: bytes | bytearray) -> tuple[int, int]:
        """Write a member whose data are in memory, and nobody changes them meanwhile.

        Nothing stands behind the data, since their checksum is known before.

        Returns:
            Their offset and their checksum.
        """
        offset, size, crc = self.position, len(data), crc32(data)
        has_zip64 = size >= ZIP64_SIZE
        start = offset + _local_size(offset, name, has_zip64=has_zip64)
        member = Member(name, offset, start, size, crc, size, has_zip64=has_zip64)
        self._append_whole(_local_header(member))
        self._append_whole(data)
        self._members.append(member)
        return start, crc

    def begin(self, name: str, size: int) -> int:
        """Start a member of a known size and return the offset of its data.

        Args:
            name: the member's name.
            size: of its data, in bytes.
        """
        self._size = size
        return self._begin(name, has_zip64=size >= ZIP64_SIZE)

    def begin_compressed(self, name: str, nbytes: int | None, *, is_deflated: bool) -> int:
        """Start a member whose size is known at its end, and return the offset of its data.

        Args:
            name: the member's name.
            nbytes: what is compressed; deflated it may grow a little. None where its end will tell.
            is_deflated: whether ZIP has to know of it, and `end_deflated` will be called.
        """
        has_zip64 = nbytes is None or nbytes + nbytes // 64 + BUFFER >= ZIP64_SIZE
        self._size = None
        return self._begin(name, is_deflated=is_deflated, has_zip64=has_zip64)

    def _begin(self, name: str, *, has_zip64: bool, is_deflated: bool = False) -> int:
        offset = self.position
        start = offset + _local_size(offset, name, has_zip64=has_zip64)
        self._begun = Member(
            name, offset, start, 0, 0, 0, is_deflated, has_zip64, has_descriptor=True
        )
        header = _local_header(self._begun)
        self._make_room(len(header))
        if len(header) > len(self._buffer) - self._filled:
            self._flush()  # half of a header could not be completed any more
        self._append_whole(header)
        self._crc, self._parted = 0, False
        return start

    def write(self, data: Buffer) -> None:
        """Append bytes to the member; the buffer may be reused afterwards."""
        piece = bytes_of(data)
        end = self._flushed + self._filled + len(piece)
        if self._size is not None and end > self._begun.data_offset + self._size:
            raise WrongSizeError(f"more than the {self._size} bytes that were announced")
        self._append_whole(piece)

    def part(self) -> int:
        """Start a part of the member, aligned, with a checksum of its own; return its offset."""
        self._parted = True
        self.write(bytes(-self.position % ALIGNMENT))
        self._part_crc = 0
        return self.position

    @property
    def part_crc(self) -> int:
        """The checksum of what was written since `part`."""
        return self._part_crc

    def end(self) -> int:
        """Finish the member and return its checksum."""
        written = self.position - self._begun.data_offset
        if self._size is not None and written != self._size:
            raise WrongSizeError(f"{written} instead of the {self._size} bytes announced")
        return self._end(written, self._crc, written)

    def end_deflated(self, nbytes: int, crc: int) -> int:
        """Finish a member of deflated data, and return the checksum of what was written.

        Args:
            nbytes: how many bytes were deflated.
            crc: their checksum.
        """
        return self._end(nbytes, crc, self.position - self._begun.data_offset)

    def _end(self, size: int, crc: int, packed: int) -> int:
        """Say of which size the data are: only now the checksum is that of what was copied."""
        found, begun = self._crc, self._begun
        start = begun.header_offset - self._flushed
        has_descriptor = start < 0
        figures = (size, crc, packed)
        flags = begun.is_deflated, begun.has_zip64, has_descriptor
        member = Member(begun.name, begun.header_offset, begun.data_offset, *figures, *flags)
        if has_descriptor:
            self._append_whole(_descriptor(member))
        else:
            # the form with a descriptor is as long
            header = _local_header(member)
            self._buffer[start : start + len(header)] = header
        self._members.append(member)
        return found

    def close(self, version: int) -> None:
        """Write the central directory; the last member is the manifest."""
        start = self.position
        manifest = self._members[-1]
        anchor = _anchor(Anchor(version, manifest.data_offset, manifest.size, manifest.crc))
        records = [_central_record(member, b"") for member in self._members[:-1]]
        records.append(_central_record(manifest, anchor))
        end = start + sum(map(len, records))
        records.append(_end_records(len(self._members), start, end))
        self._append_whole(b"".join(records))
        self._flush()

    def _append_whole(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._append(rest) :]

    def _append(self, data: memoryview) -> int:
        """Copy what fits into the buffer and return how much that was."""
        size, start = len(data), self._filled
        end = start + size
        if end > len(self._buffer):
            self._make_room(size)
            size = min(size, len(self._buffer) - start)
            data, end = data[:size], start + size
        copy = self._buffer[start:end]
        copy[:] = data
        self._filled = end
        self._crc = crc32(copy, self._crc)
        if self._parted:
            self._part_crc = crc32(copy, self._part_crc)
        if end == BUFFER:
            self._flush()
        return size

    def _make_room(self, size: int) -> None:
        needed = self._filled + size
        if needed > len(self._buffer) and len(self._buffer) < BUFFER:
            larger = memoryview(bytearray(min(BUFFER, max(needed, 2 * len(self._buffer)))))
            larger[: self._filled] = self._buffer[: self._filled]
            self._buffer = larger

    def _flush(self) -> None:
        if self._filled:
            self._out.write(self._buffer[: self._filled])
            self._flushed += self._filled
            self._filled = 0


def _local_size(offset: int, name: str, *, has_zip64: bool) -> int:
    size = _LOCAL.size + len(name) + _ALIGN.size + (_ZIP64.size if has_zip64 else 0)
    return size + -(offset + size) % ALIGNMENT


def _local_header(member: Member) -> bytes:
    name, offset, _, size, crc, packed, _, has_zip64, has_descriptor = member
    if has_descriptor:
        # APPNOTE 4.4.4: zeros where the figures are in a descriptor
        size = crc = packed = 0
    version, zip64 = _PLAIN_VERSION, b""
    if has_zip64:
        # APPNOTE 4.5.3: in a local header the ZIP64 field has to hold both sizes
        version, zip64 = _ZIP64_VERSION, _ZIP64.pack(_ZIP64_ID, 16, size, packed)
        size = packed = 0xFFFFFFFF
    raw = name.encode("ascii")
    extra = _local_size(offset, name, has_zip64=has_zip64) - _LOCAL.size - len(raw)
    padding = extra - len(zip64) - _ALIGN.size
    flags, method = _flags_and_method(member)
    return b"".join(
        (
            _LOCAL.pack(
                *(_LOCAL_SIGN, version, flags, method, 0, _DATE),
                *(crc, packed, size, len(raw), extra),
            ),
            raw,
            zip64,
            _ALIGN.pack(_ALIGN_ID, 2 + padding, ALIGNMENT),
            bytes(padding),
        )
    )


def _flags_and_method(member: Member) -> tuple[int, int]:
    flags = _DESCRIPTOR_FLAG if member.has_descriptor else 0
    return flags, _DEFLATE_METHOD if member.is_deflated else 0


def _descriptor(member: Member) -> bytes:
    # APPNOTE 4.3.9.2: its sizes have eight bytes where the header has a ZIP64 field
    form = _DESCRIPTOR64 if member.has_zip64 else _DESCRIPTOR
    return form.pack(_DESCRIPTOR_SIGN, member.crc, member.packed, member.size)


def _central_record(member: Member, extra: bytes) -> bytes:
    # APPNOTE 4.5.3: here the ZIP64 field holds only the numbers that do not fit, in this order
    large = b""
    size, packed, offset = member.size, member.packed, member.header_offset
    if size >= ZIP64_SIZE:
        large += struct.pack("<Q", size)
        size = 0xFFFFFFFF
    if packed >= ZIP64_SIZE:
        large += struct.pack("<Q", packed)
        packed = 0xFFFFFFFF
    if offset >= ZIP64_SIZE:
        large += struct.pack("<Q", offset)
        offset = 0xFFFFFFFF
    if large:
        extra = _PAIR.pack(_ZIP64_ID, len(large)) + large + extra
    raw = member.name.encode("ascii")
    version = _ZIP64_VERSION if large else _PLAIN_VERSION
    return (
        _CENTRAL.pack(
            *(_CENTRAL_SIGN, _UNIX | version, version, *_flags_and_method(member), 0, _DATE),
            *(member.crc, packed, size, len(raw), len(extra), 0, 0, 0, _FILE_MODE, offset),
        )
        + raw
        + extra
    )


def _anchor(anchor: Anchor) -> bytes:
    head = (_ANCHOR_ID, _ANCHOR.size - _PAIR.size, anchor.version, 0)
    # a checksum of its own, because it is believed before anything else was verified
    body = _ANCHOR.pack(*head, anchor.offset, anchor.size, anchor.crc, 0)[:-4]
    return body + crc32(body).to_bytes(4, "little")


def _end_records(count: int, start: int, end: int) -> bytes:
    size, records = end - start, b""
    if count >= ZIP64_COUNT or size >= ZIP64_SIZE or start >= ZIP64_SIZE:
        version = _ZIP64_VERSION
        head = (_END64_SIGN, _END64.size - 12, _UNIX | version, version, 0, 0)
        records = _END64.pack(*head, count, count, size, start)
        records += _LOCATOR.pack(_LOCATOR_SIGN, 0, end, 1)
        count, size, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    return records + _END.pack(_END_SIGN, 0, 0, count, count, size, start, 0)


def read_exactly(reader: ObjectReader, offset: int, size: int) -> bytes:
    """Read a range that must lie in the object."""
    if offset < 0 or size < 0 or offset + size > reader.size_bytes:
        raise MalformedError(f"bytes {offset} to {offset + size} are outside of it")
    data = reader.read(offset, size)
    if len(data) != size:
        raise MalformedError(f"it became shorter than {offset + size} bytes")
    return data


class _Directory(NamedTuple):
    """Where the central directory is, and how many members it lists."""

    members: int
    offset: int
    end: int


def _directory(suffix: bytes, total: int) -> _Directory:
    """Find the central directory by the records behind it, the last bytes of the object."""
    if len(suffix) < _END.size:
        raise MalformedError(f"{total} bytes are too few for an object")
    end = total - _END.size
    sign, *numbers = _END.unpack(suffix[-_END.size :])
    disk, disk2, count, count2, size, offset, comment = numbers
    # Without a comment the end record is the last 22 bytes, and nobody has to search for it. Tools
    # that search could be shown another one.
    if sign != _END_SIGN or comment or disk or disk2 or count != count2:
        raise MalformedError("it does not end as an object does; it is cut off or something else")
    if count == 0xFFFF or size == 0xFFFFFFFF or offset == 0xFFFFFFFF:
        end -= _END64.size + _LOCATOR.size
        count, size, offset = _directory64(suffix[-_END.size - _END64.size - _LOCATOR.size :], end)
    if offset + size != end:
        raise MalformedError("its central directory is not where its end says")
    return _Directory(count, offset, end)


def _directory64(records: bytes, end: int) -> tuple[int, int, int]:
    if len(records) < _END64.size + _LOCATOR.size + _END.size:
        raise MalformedError("its ZIP64 records are cut off")
    sign, *numbers, count, size, offset = _END64.unpack_from(records)
    locator, disk, at, disks = _LOCATOR.unpack_from(records, _END64.size)
    version = _UNIX | _ZIP64_VERSION
    if (
        (sign, locator, disk, at, disks) != (_END64_SIGN, _LOCATOR_SIGN, 0, end, 1)
        or numbers[:-1] != [_END64.size - 12, version, _ZIP64_VERSION, 0, 0]
        or numbers[-1] != count
    ):
        raise MalformedError("its ZIP64 records are damaged")
    return count, size, offset


def read_anchor(reader: ObjectReader) -> tuple[Anchor, bytes]:
    """Return the anchor and the object's last bytes, which often hold the manifest too.

    Raises:
        MalformedError: this is not the end of an object.
    """
    total = reader.size_bytes
    size = min(total, TAIL_BYTES)
    suffix = read_exactly(reader, total - size, size)
    directory = _directory(suffix, total)
    # the last central record has no comment, so its extra field comes right before the end records
    end = len(suffix) - (total - directory.end)
    raw = suffix[max(0, end - _ANCHOR.size) : max(0, end)]
    if len(raw) < _ANCHOR.size:
        raise MalformedError("it is a ZIP archive, but none of this library")
    kind, size, version, _, offset, manifest_size, crc, own_crc = _ANCHOR.unpack(raw)
    if (kind, size) != (_ANCHOR_ID, _ANCHOR.size - _PAIR.size) or own_crc != crc32(raw[:-4]):
        raise MalformedError("it is a ZIP archive without this library's anchor, or it is damaged")
    if offset + manifest_size != directory.offset or manifest_size > MAX_MANIFEST:
        raise MalformedError("its manifest is not where its anchor says")
    return Anchor(version, offset, manifest_size, crc), suffix


def read_directory(reader: ObjectReader) -> Iterator[Member | str]:
    """Yield the members that other tools see, and texts about headers that contradict them.

    Raises:
        MalformedError: the directory cannot be read on.
    """
    total = reader.size_bytes
    tail = min(total, _END.size + _END64.size + _LOCATOR.size)
    directory = _directory(read_exactly(reader, total - tail, tail), total)
    if directory.end - directory.offset > MAX_DIRECTORY:
        raise MalformedError("its central directory is too large")
    records = read_exactly(reader, directory.offset, directory.end - directory.offset)
    at = count = 0
    while at < len(records):
        start = at
        member, at = _central_member(records, at)
        anchor = records[-_ANCHOR.size :] if at == len(records) else b""
        # What was written follows from the member alone, so it is compared whole: that finds more
        # than a look at single fields.
        if records[start:at] != _central_record(member, anchor):
            yield f"member {member.name!r}: its central record is not what was written"
        data_offset, problem = _check_local(reader, member)
        if problem:
            yield f"member {member.name!r}: {problem}"
        yield member._replace(data_offset=data_offset)
        count += 1
    ends = read_exactly(reader, directory.end, total - directory.end)
    if ends != _end_records(count, directory.offset, directory.end):
        yield "the records behind its central directory are not what was written"


def _central_member(records: bytes, at: int) -> tuple[Member, int]:
    if len(records) - at < _CENTRAL.size:
        raise MalformedError("its central directory is cut off")
    sign, *numbers = _CENTRAL.unpack_from(records, at)
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size, *rest = numbers
    is_known = method in (0, _DEFLATE_METHOD) and flags in (0, _DESCRIPTOR_FLAG)
    if sign != _CENTRAL_SIGN or not is_known or rest[0]:
        raise MalformedError(f"record {at} of its central directory is damaged")
    name_at = at + _CENTRAL.size
    extra = records[name_at + name_size : name_at + name_size + extra_size]
    name = records[name_at : name_at + name_size]
    if not name.isascii():
        raise MalformedError(f"a member's name {name[:100]!r} is not ASCII")
    offset = rest[-1]
    large = _zip64_numbers(extra)
    # what is wrong about these is found when the caller compares the whole record
    if size == 0xFFFFFFFF:
        size = next(large, size)
    if packed == 0xFFFFFFFF:
        packed = next(large, packed)
    if offset == 0xFFFFFFFF:
        offset = next(large, offset)
    member = Member(name.decode(), offset, 0, size, crc, packed, method == _DEFLATE_METHOD)
    member = member._replace(has_descriptor=flags == _DESCRIPTOR_FLAG)
    return member, name_at + name_size + extra_size


def _zip64_numbers(extra: bytes) -> Iterator[int]:
    if len(extra) >= _PAIR.size:
        kind, size = _PAIR.unpack_from(extra)
        if kind == _ZIP64_ID and size % 8 == 0 and len(extra) >= _PAIR.size + size:
            yield from struct.unpack_from(f"<{size // 8}Q", extra, _PAIR.size)


def _check_local(reader: ObjectReader, member: Member) -> tuple[int, str]:
    """Return the offset of a member's data, and a text if what stands around them is wrong."""
    is_large = member.size >= ZIP64_SIZE or member.packed >= ZIP64_SIZE
    # the size of what was compressed was not known when its header was written
    forms = [member._replace(has_zip64=each) for each in (is_large, True)]
    headers = [*map(_local_header, forms)]
    try:
        for form, header in zip(forms, headers, strict=True):
            if read_exactly(reader, member.header_offset, len(header)) == header:
                data_offset = member.header_offset + len(header)
                return data_offset, _check_descriptor(reader, form, data_offset)
    except MalformedError as err:
        return -1, str(err)
    problem = "its local header contradicts the central directory"
    return member.header_offset + len(headers[0]), problem


def _check_descriptor(reader: ObjectReader, member: Member, data_offset: int) -> str:
    """Return a text if what stands behind a member's data is wrong."""
    if not member.has_descriptor:
        return ""
    expected = _descriptor(member)
    if read_exactly(reader, data_offset + member.packed, len(expected)) == expected:
        return ""
    return "its data descriptor contradicts the central directory"
