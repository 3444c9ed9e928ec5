"""Compare what an object's manifest says with what other tools see in it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import repeat

from sqla_datastore.format.archive import (
    MANIFEST,
    PACKED,
    MalformedError,
    Member,
    crc32,
    read_directory,
)
from sqla_datastore.format.compression import DEFLATED, STORED
from sqla_datastore.format.manifest import Manifest
from sqla_datastore.storage.protocol import ObjectReader

_PIECE = 8 * 1024 * 1024


def check_archive(reader: ObjectReader, manifest: Manifest, *, deep: bool) -> Iterator[str]:
    """Yield, in words, where headers, central directory and manifest contradict each other.

    Args:
        reader: the object.
        manifest: its manifest, verified.
        deep: also compare the checksum of the packed blobs' member, which no entry has.
    """
    try:
        members = yield from _check_members(reader)
        yield from _check_blobs(manifest, members)
        for member in members:
            if member.name == MANIFEST or (deep and member.name == PACKED):
                yield from _check_crc(reader, member)
    except MalformedError as err:
        yield str(err)


def _check_members(reader: ObjectReader) -> Generator[str, None, list[Member]]:
    members: list[Member] = []
    for found in read_directory(reader):
        if isinstance(found, str):
            yield found
        else:
            members.append(found)
    names = [member.name.casefold() for member in members]
    if len(set(names)) != len(names):
        yield "two members have the same name"
    if not names or names[-1] != MANIFEST:
        yield f"its last member is not {MANIFEST!r}"
    return members


def _check_blobs(manifest: Manifest, members: list[Member]) -> Iterator[str]:
    """Yield blobs without a member, and members without a blob."""
    unused = {member.data_offset: member for member in members if member.name != MANIFEST}
    packed = next((member for member in members if member.name == PACKED), None)
    if packed is not None:
        unused.pop(packed.data_offset, None)
    for offset, *figures in _figures(manifest):
        member = unused.pop(offset, None)
        if member is None and packed is not None and _lies_in(packed, offset, figures[-1]):
            continue
        if member is None:
            yield f"no member begins at byte {offset}, where the manifest has a blob"
        elif [member.is_deflated, member.size, member.crc, member.packed] != figures:
            yield f"member {member.name!r} has another size or checksum than the manifest says"
    for member in unused.values():
        yield f"no entry refers to member {member.name!r}"


def _figures(manifest: Manifest) -> Iterator[tuple[int, bool, int, int, int]]:
    """Yield for each blob its offset, and what its member must be."""
    methods = manifest.methods or repeat(STORED, len(manifest.offsets))
    rows = zip(
        *(manifest.offsets, methods, manifest.sizes, manifest.crcs),
        *(manifest.stored_sizes, manifest.stored_crcs),
        strict=True,
    )
    for offset, method, size, crc, stored, stored_crc in rows:
        # a stream that Arrow compressed is a stored member to ZIP
        is_deflated = method == DEFLATED
        shown = (size, crc) if is_deflated else (stored, stored_crc)
        yield offset, is_deflated, *shown, stored


def _lies_in(packed: Member, offset: int, size: int) -> bool:
    end = packed.data_offset + packed.size
    return packed.data_offset <= offset and offset + size <= end


def _check_crc(reader: ObjectReader, member: Member) -> Iterator[str]:
    crc, offset = 0, member.data_offset
    end = min(offset + member.packed, reader.size_bytes)
    # an offset of -1 stands for a header outside of the object
    while 0 <= offset < end:
        piece = reader.read(offset, min(_PIECE, end - offset))
        if not piece:
            break
        crc, offset = crc32(piece, crc), offset + len(piece)
    if crc != member.crc:
        yield f"member {member.name!r}: CRC-32 {member.crc:08x} expected, {crc:08x} found"
