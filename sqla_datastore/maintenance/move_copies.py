"""Copying objects from base to base, and the switch of rows to another scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, String, Table, update

from sqla_datastore.exceptions import DamagedObjectError, MissingObjectError, StorageError
from sqla_datastore.maintenance.batches import in_attempts
from sqla_datastore.maintenance.move_bases import THREADS, OfColumn, Value, size_of
from sqla_datastore.maintenance.reports import DamagedObject, DanglingRow
from sqla_datastore.maintenance.survey import problems_of
from sqla_datastore.storage.parallel import call_for_each
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import ObjectURL

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_PIECE = 1024 * 1024
_NOWHERE = "{!r} is in neither base"


class Mover(OfColumn):
    """Copies objects, and switches rows where the scheme changes."""

    doing = "moving"

    def _do(self, values: Sequence[Value]) -> None:
        readable = [value for value in values if value.url is not None]
        for failure in call_for_each(self._transfer, readable, threads=THREADS):
            raise failure
        self._counts.rows += len(values)
        for value in values:
            self._counts.copied += len(value.copied)
            self._counts.copied_bytes += sum(value.copied.values())
            self._counts.present += len(value.present)
            if not value.is_whole:
                self._note_failed(value)
        if self._apply:
            # those that are there already, too: who copied them may have died before this
            self._make_durable([p for value in values for p in (*value.copied, *value.present)])
        if self._bases.switches:
            self._switch([value for value in values if value.is_whole])

    def _transfer(self, value: Value) -> None:
        """Copy what the target lacks of a value; blocks, and is called by several threads."""
        assert value.url is not None
        first, paths = value.url.path, value.url.family_paths()
        if size_of(self._source, first) is None and size_of(self._target, first) is None:
            # the others are not looked for: a name may claim a million
            value.missing = _NOWHERE.format(first)
            return
        next(paths)
        # last, so that who is bound to the target finds all of a value, or nothing
        for path in (*paths, first):
            self._transfer_object(value, path)

    def _transfer_object(self, value: Value, path: str) -> None:
        # what the source lacks may be the target's: its writer knows that already, or it was moved
        size, there = size_of(self._source, path), size_of(self._target, path)
        if there is not None and size in (there, None):
            value.present.append(path)
        elif size is None:
            value.missing = _NOWHERE.format(path)
        elif there is not None:
            reason = f"it has {there} bytes, and {size} in {self._source.url!r}"
            value.damaged.append(self._damaged(self._target, path, (reason,)))
        elif not self._apply:
            value.copied[path] = size
        else:
            self._copy(value, path, size)

    def _copy(self, value: Value, path: str, size: int) -> None:
        """Copy an object that is undamaged, and verify the copy."""
        try:
            if problems := problems_of(self._source, path, deep=True):
                value.damaged.append(self._damaged(self._source, path, problems))
                return
            self._write(path, size)
        except MissingObjectError:
            value.missing = _NOWHERE.format(path)
            return
        except DamagedObjectError as err:
            value.damaged.append(self._damaged(self._source, path, (err.reason,)))
            return
        except StorageError:
            # another run may have been faster
            if size_of(self._target, path) != size:
                raise
            value.present.append(path)
            return
        if problems := problems_of(self._target, path, deep=True):
            self._target.remove([path])
            value.damaged.append(self._damaged(self._target, path, problems))
        else:
            value.copied[path] = size

    def _write(self, path: str, size: int) -> None:
        reader = self._source.open(path)
        with self._target.create(path) as writer:
            for offset in range(0, size, _PIECE):
                piece = reader.read(offset, min(_PIECE, size - offset))
                writer.write(piece)
                if len(piece) < min(_PIECE, size - offset):
                    url = str(ObjectURL(self._source.scheme, path))
                    raise DamagedObjectError(url, "it was cut off while it was copied")

    def _damaged(self, storage: Storage, path: str, problems: tuple[str, ...]) -> DamagedObject:
        return DamagedObject(str(ObjectURL(storage.scheme, path)), problems, storage.url)

    def _note_failed(self, value: Value) -> None:
        """Count a value that could not be copied, unless its row has another one by now."""
        if not self._rows.holds(value.key, value.text):
            self._counts.changed_meanwhile += 1
            return
        for damaged in value.damaged:
            self._counts.damaged.add(damaged)
        if value.missing:
            table = self._column.column.table
            names = (column.name for column in self._rows.keys)
            key = dict(zip(names, value.key, strict=True))
            name, where = self._column.column.name, self._source.url
            self._counts.missing.add(
                DanglingRow(table.fullname, key, name, value.text, where, value.missing)
            )

    def _make_durable(self, paths: list[str]) -> None:
        while paths:
            try:
                return self._target.make_durable(paths)
            except MissingObjectError:
                # a writer that is bound to the target has replaced a value
                left = [path for path in paths if size_of(self._target, path) is not None]
                if len(left) == len(paths):
                    raise
                paths = left
        return None

    def _switch(self, values: Sequence[Value]) -> None:
        """Have rows hold the target's scheme, where they still hold what was copied."""
        source = self._source.scheme
        left = [each for each in values if each.url is not None and each.url.scheme == source]
        switched = len(left)
        if self._apply and left:
            switched = in_attempts(lambda: self._switch_once(left))
        self._counts.switched += switched
        self._counts.changed_meanwhile += len(left) - switched

    def _switch_once(self, values: Sequence[Value]) -> int:
        table, column = _plain(self._column.column)
        keys, texts = list(table.primary_key), []
        with self._catalog.engine.begin() as connection:
            for value in values:
                assert value.url is not None
                statement = (
                    update(table)
                    .where(*(k == part for k, part in zip(keys, value.key, strict=True)))
                    # it locks the row, and whoever was faster has put another URL there
                    .where(column == value.text)
                    .values({column: str(ObjectURL(self._target.scheme, value.url.path))})
                )
                if connection.execute(statement).rowcount:
                    texts.append(value.text)
            self._strike(connection, texts)
        return len(texts)

    def _strike(self, connection: Connection, texts: Sequence[str]) -> None:
        """Strike off what triggers have written down: the objects stay for now."""
        if self._catalog.removals is not None and texts:
            self._catalog.removals.strike(connection, texts, self._catalog.schemas)


def _plain(column: Column[Any]) -> tuple[Table, Column[str]]:
    """Return a table, with its key and one column as text: its type would take only a value."""
    table = column.table
    keys = [Column(key.name, key.type, primary_key=True) for key in table.primary_key]
    text: Column[str] = Column(column.name, String())
    return Table(table.name, MetaData(), *keys, text, schema=table.schema), text
