"""How a database transaction ends, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Committed:
    """COMMIT has certainly succeeded."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The database has certainly undone it, or will."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can tell, so the objects of both ends are kept.

    Attributes:
        reason: why, in words, for the log.
    """

    reason: str


Outcome: TypeAlias = Committed | RolledBack | Unknown

COMMITTED = Committed()
ROLLED_BACK = RolledBack()


class Phase(Enum):
    """How far a transaction has come; `sqla_datastore.unitofwork` tells what is called when."""

    OPEN = "statements run"
    PREPARED = "PREPARE was sent, so only the second phase decides"
    REFUSED = "the database has refused COMMIT, so a rollback follows"
    ENDED = "its end was told"
