"""Removing from the source what was moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqla_datastore.dml.row_queries import held_urls
from sqla_datastore.exceptions import StorageError
from sqla_datastore.maintenance.move_bases import THREADS, OfColumn, Value, size_of
from sqla_datastore.maintenance.survey import problems_of
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.storage.protocol import is_there
from sqla_datastore.storage.urls import ObjectURL


class Remover(OfColumn):
    """Removes from the source what the target has, and no row refers to there."""

    doing = "removing from the source"

    def _do(self, values: Sequence[Value]) -> None:
        urls = (value.url for value in values if value.url is not None)
        sizes: dict[str, dict[str, int]] = {}

        def look(url: ObjectURL) -> None:
            found = dict(self._in_both(url))
            if found:
                sizes[url.path] = found

        for failure in call_for_each(look, filter(self._may_go, urls), threads=THREADS):
            raise failure
        self._remove({path: sizes[path] for path in self._unheld(sizes)})

    def _may_go(self, url: ObjectURL) -> bool:
        """Return whether a value is read from the target, and named as this library does."""
        return url.scheme == self._target.scheme and url.may_be_a_row_s

    def _in_both(self, url: ObjectURL) -> Iterator[tuple[str, int]]:
        """Yield the objects of a family in the source; none unless all are in the target."""
        sizes = {}
        for path in url.family_paths():
            there, size = size_of(self._target, path), size_of(self._source, path)
            if there is None or (size is not None and not self._is_copy(path, there, size)):
                return
            if size is not None:
                sizes[path] = size
        yield from sizes.items()

    def _is_copy(self, path: str, there: int, size: int) -> bool:
        # a dry run reads no payloads
        return there == size and not (self._apply and problems_of(self._target, path, deep=True))

    def _unheld(self, families: Iterable[str]) -> list[str]:
        """Return those families that no row refers to in the source, by any member's URL."""
        scheme = self._source.scheme
        urls = {path: [str(u) for u in ObjectURL(scheme, path).family()] for path in families}
        asked = [url for members in urls.values() for url in members]
        readers = self._bases.readers_of_source(self._catalog)
        with self._catalog.engine.connect() as connection:
            held = held_urls(connection, readers, asked)
        return [path for path, members in urls.items() if held.isdisjoint(members)]

    def _remove(self, families: dict[str, dict[str, int]]) -> None:
        sizes = {path: size for members in families.values() for path, size in members.items()}
        gone = list(sizes)
        try:
            if self._apply:
                self._source.remove(gone)
        except StorageError as err:
            self._counts.failures.append(err.message)
            gone = [path for path in gone if not is_there(self._source, path)]
        self._counts.removed += len(gone)
        self._counts.removed_bytes += sum(sizes[path] for path in gone)
