"""What the state machine says that rows and objects have to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, int]
"""A class by its name, and the key of a row."""

Rows = dict[Key, dict[str, Any]]


@dataclass
class State:
    """What a transaction sees: rows by class and key, and objects that no row refers to.

    Attributes:
        rows: their columns; values as plain Python.
        orphans: paths of objects whose rows a cascade of the database has deleted.
        listed: paths that lay in folders when these were to be emptied.
    """

    rows: Rows = field(default_factory=dict)
    orphans: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()

    def copy(self) -> State:
        return State({k: dict(row) for k, row in self.rows.items()}, self.orphans, self.listed)


class Model:
    """The committed state, the transaction's, and copies for its savepoints."""

    def __init__(self) -> None:
        self.committed = State()
        self.previous = State()
        self.state = State()
        self.savepoints: list[tuple[str, State]] = []
        self.root_savepoint: str | None = None
        self.ended = False

    def savepoint(self, name: str) -> None:
        self.savepoints.append((name, self.state.copy()))

    def _level(self, name: str) -> int:
        return [known for known, _ in self.savepoints].index(name)

    def release(self, name: str) -> None:
        del self.savepoints[self._level(name) :]
        if name == self.root_savepoint:
            self.commit()

    def rollback_to(self, name: str) -> None:
        level = self._level(name)
        self.state = self.savepoints[level][1].copy()
        del self.savepoints[level + 1 :]

    def commit(self) -> None:
        self.previous, self.committed = self.committed, self.state.copy()
        self._end()

    def commit_failed(self) -> None:
        self.committed = self.previous
        self._end()

    def rollback(self) -> None:
        self.previous = self.committed
        self._end()

    def _end(self) -> None:
        self.state = self.committed.copy()
        self.savepoints.clear()
        self.root_savepoint = None
        self.ended = True
