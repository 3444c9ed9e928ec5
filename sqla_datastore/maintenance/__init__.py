"""Maintenance of storages: `check`, `gc`, `usage`, `drain`, `rewrite`, `move`; removal triggers.

::

    from sqla_datastore.maintenance import check, gc

    report = check(engine, Base.metadata, deep=True)
    gc(engine, Base.metadata, apply=True)

The functions stream: memory stays flat however many objects and rows there are. They may run while
others write, and may be interrupted and run again. All but `rewrite` read URLs as raw text and
never load a value.
``docs/maintenance.md`` has the whole story.

`create_removal_triggers` and `drop_removal_triggers` are for databases without Alembic, see
``docs/removals.md``.
"""

from __future__ import annotations

# importing a module sets its name here first: "from … import" then makes the name mean the function
from sqla_datastore.maintenance.check import check
from sqla_datastore.maintenance.drain import drain
from sqla_datastore.maintenance.gc import gc
from sqla_datastore.maintenance.move import move
from sqla_datastore.maintenance.progress import Progress
from sqla_datastore.maintenance.reports import (
    CheckReport,
    ColumnUsage,
    DamagedObject,
    DanglingRow,
    DrainReport,
    Findings,
    ForeignName,
    GcReport,
    Leftover,
    MoveReport,
    Orphan,
    RewriteReport,
    TypeUsage,
    UsageReport,
)
from sqla_datastore.maintenance.rewrite import rewrite
from sqla_datastore.maintenance.usage import usage
from sqla_datastore.removals.triggers.statements import (
    create_removal_triggers,
    drop_removal_triggers,
)

__all__ = [
    "CheckReport",
    "ColumnUsage",
    "DamagedObject",
    "DanglingRow",
    "DrainReport",
    "Findings",
    "ForeignName",
    "GcReport",
    "Leftover",
    "MoveReport",
    "Orphan",
    "Progress",
    "RewriteReport",
    "TypeUsage",
    "UsageReport",
    "check",
    "create_removal_triggers",
    "drain",
    "drop_removal_triggers",
    "gc",
    "move",
    "rewrite",
    "usage",
]
