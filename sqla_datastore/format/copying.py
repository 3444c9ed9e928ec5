"""Copy entries of one object into another: few reads, nothing decoded, all verified."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, repeat
from operator import add, sub

from sqla_datastore.codecs.strict_json import NotJSONError
from sqla_datastore.exceptions import DamagedObjectError
from sqla_datastore.format.archive import crc32
from sqla_datastore.format.blobs import StoredBlob
from sqla_datastore.format.compression import STORED
from sqla_datastore.format.reader import Container

_READ_AT_ONCE = 4 * 1024 * 1024
# between neighbours there is padding, or a header: a name, extra fields and padding
_LARGEST_GAP = 1024


class CopiedEntries:
    """Entries that follow one another in an object, and will in its copy, under the same names.

    None of them refers to nested objects.

    Args:
        container: the object that they lie in.
        name: the first one's name; KeyError where there is none of it.

    Attributes:
        start: the index of the first one.
        stop: the index behind the last one.
        nodes: their nodes, as they stand in their manifest; empty until `take_nodes`.
    """

    __slots__ = ("_manifest", "container", "nodes", "start", "stop")

    def __init__(self, container: Container, name: str) -> None:
        self.container = container
        self._manifest = container.manifest
        self.start = self.container.places[name]
        self.stop = self.start + 1
        self.nodes: list[str | bytes] = []

    def grow(self, name: str, container: Container) -> bool:
        """Take in another entry, and return True, if it is the next one."""
        is_next = container is self.container and self.container.places[name] == self.stop
        self.stop += is_next
        return is_next

    @property
    def names(self) -> list[str]:
        """Their names."""
        return self._manifest.names[self.start : self.stop]

    @property
    def counts(self) -> list[int]:
        """How many blobs each has."""
        return self._manifest.counts[self.start : self.stop]

    @property
    def blobs(self) -> range:
        """The numbers of their blobs, counted through all entries of the object."""
        starts = self._manifest.starts
        return range(starts[self.start], starts[self.stop])

    def sizes(self, blobs: range) -> list[int]:
        """Return the numbers of bytes of blobs."""
        return self._manifest.sizes[blobs.start : blobs.stop]

    def kinds(self, blobs: range) -> list[int]:
        """Return what blobs are to other tools."""
        return self._manifest.kinds[blobs.start : blobs.stop]

    @property
    def compression(self) -> str | None:
        """The level at which the object was compressed that they lie in."""
        return self._manifest.compression

    def methods(self, blobs: range) -> list[int]:
        """Return how blobs lie in their members."""
        return self._manifest.methods[blobs.start : blobs.stop] or [STORED] * len(blobs)

    def crcs(self, blobs: range) -> list[int]:
        """Return the checksums that were written of blobs."""
        return self._manifest.crcs[blobs.start : blobs.stop]

    def take_nodes(self) -> None:
        """Take their nodes, once all of them are known.

        Raises:
            DamagedObjectError: one is no text; names its entry.
        """
        assert self.container.with_nested.isdisjoint(self.names)
        try:
            self.nodes = self._manifest.nodes_to_copy(self.start, self.stop)
        except NotJSONError as err:
            for name in self.names:
                self.container.node_text(name)  # raises for the one
            raise DamagedObjectError(self.container.url, str(err)) from err

    def stretches(self, blobs: Sequence[int]) -> Iterator[range]:
        """Yield blobs by what one read can fetch: they lie one behind the other, in a few MiB.

        Args:
            blobs: the numbers of some of these entries' blobs, ascending.
        """
        offsets, sizes = self._manifest.offsets, self._manifest.stored_sizes
        for part in _without_holes(blobs):
            begins = offsets[part.start : part.stop]
            ends = [*map(add, begins, sizes[part.start : part.stop])]
            gaps = map(sub, islice(begins, 1, None), ends)
            breaks = [at for at, gap in enumerate(gaps, 1) if not 0 <= gap <= _LARGEST_GAP]
            for start, stop in pairwise([0, *breaks, len(part)]):
                while start < stop:
                    first, limit = start, begins[start] + _READ_AT_ONCE
                    start = max(first + 1, bisect_right(ends, limit, first, stop))
                    yield part[first:start]

    def read(self, stretch: range) -> list[tuple[StoredBlob, memoryview]]:
        """Read blobs by one call, as they lie there, unverified."""
        found = [*map(self.container.blob_at, stretch)]
        data, start = memoryview(self.container.read(stretch)), found[0].offset
        return [(b, data[b.offset - start : b.offset - start + b.stored_nbytes]) for b in found]

    def read_verified(self, stretch: range) -> list[bytes]:
        """Read stored blobs by one call, and verify each; no Python code runs for one of them.

        Raises:
            DamagedObjectError: one is not what was written; names its entry.
        """
        data, offsets = self.container.read(stretch), self._manifest.offsets
        begins = [*map(sub, offsets[stretch.start : stretch.stop], repeat(offsets[stretch[0]]))]
        cuts = map(slice, begins, map(add, begins, self.sizes(stretch)))
        pieces = [*map(data.__getitem__, cuts)]
        found, expected = [*map(crc32, pieces)], self.crcs(stretch)
        if found != expected:
            at = next(at for at, crc in enumerate(found) if crc != expected[at])
            self.container.blob_at(stretch[at]).refuse(found[at], expected[at])
        return pieces


def _without_holes(numbers: Sequence[int]) -> Iterator[range]:
    """Yield ascending numbers as ranges."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        yield range(numbers[0], numbers[-1] + 1)
    elif numbers:
        holes = [at for at, (one, next_) in enumerate(pairwise(numbers), 1) if next_ - one > 1]
        for start, stop in pairwise([0, *holes, len(numbers)]):
            yield range(numbers[start], numbers[stop - 1] + 1)
