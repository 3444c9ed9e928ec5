"""Values that lie in rows: they have no object, so nothing is listed for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import String, select, type_coerce

from sqla_datastore.exceptions import DamagedObjectError, DataStoreError
from sqla_datastore.format import Container
from sqla_datastore.maintenance.catalog import FETCHED_ROWS, Catalog
from sqla_datastore.maintenance.progress import Progress, StepCounter
from sqla_datastore.maintenance.survey import not_loaded
from sqla_datastore.storage.urls import DATA_PREFIX, DataURL, ObjectURL, head_of

_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class ValueInRow:
    """A value that lies in a row.

    Attributes:
        source: the number of its column.
        key: the row's primary key, by column.
        url: what the column holds.
    """

    source: int
    key: dict[str, Any]
    url: str

    @property
    def size_bytes(self) -> int:
        """How many characters it takes in the row, which are bytes there."""
        return len(self.url)

    def containers(self) -> Iterator[Container]:
        """Open its objects, the value's own first, and verify their indexes.

        Raises:
            DataStoreError: one is cut off, damaged, or needs a newer version.
        """
        url = ObjectURL.parse(self.url)
        assert isinstance(url, DataURL)
        nested = (url.nested(number) for number in range(url.nested_count))
        for each in (url, *nested):
            yield Container.open(each.reader(), url.head, nested=not_loaded)

    def problems(self, *, deep: bool) -> tuple[str, ...]:
        """Return what is wrong with it, in words; nothing when it is undamaged.

        Args:
            deep: compare headers, directory and the checksums of payloads too.
        """
        try:
            found = [p for c in self.containers() for p in (c.check(deep=True) if deep else ())]
        except DamagedObjectError as err:
            found = [err.reason]
        except DataStoreError as err:
            found = [str(err)]
        return tuple(islice(found, _MOST_PROBLEMS))

    @property
    def head(self) -> str:
        """What tells its URL from any other."""
        return head_of(self.url)


def values_in_rows(catalog: Catalog, progress: Progress | None) -> Iterator[ValueInRow]:
    """Yield the values of all declared columns that lie in rows, by a server-side cursor each."""
    count: StepCounter | None = None
    for value in _values_in_rows(catalog):
        # most databases have none, and nobody wants to read of it
        count = count or StepCounter(progress, "reading values in rows")
        yield value
        count()
    if count is not None:
        count.report()


def _values_in_rows(catalog: Catalog) -> Iterator[ValueInRow]:
    for number, declared in enumerate(catalog.columns):
        url = type_coerce(declared.column, String())
        keys = list(declared.column.table.primary_key)
        query = select(url, *keys).where(url.startswith(DATA_PREFIX))
        with catalog.engine.connect() as connection:
            found = connection.execution_options(yield_per=FETCHED_ROWS).execute(query)
            for text, *key in found:
                names = (column.name for column in keys)
                yield ValueInRow(number, dict(zip(names, key, strict=True)), text)
