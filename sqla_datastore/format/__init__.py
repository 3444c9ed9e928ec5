"""One value as one object: a plain ZIP archive with a manifest.

`plan` encodes a value without I/O, `ObjectPlan.write` writes it in one pass, `Container` reads it:
the index when it is opened, an entry when it is asked for. ``docs/format.md`` specifies the bytes.
"""

from __future__ import annotations

from sqla_datastore.format.encoder import Plan, matches, plan
from sqla_datastore.format.reader import MAX_NESTED_DEPTH, Container, StoredEntry
from sqla_datastore.format.writer import ObjectPlan

__all__ = ["MAX_NESTED_DEPTH", "Container", "ObjectPlan", "Plan", "StoredEntry", "matches", "plan"]
