"""One value as one object: a plain ZIP archive with a manifest.

`plan` encodes a value without I/O, `ObjectPlan.write` writes it in one pass, `Container` reads it:
the index when it is opened, an entry when it is asked for. ``docs/format.md`` specifies the bytes.

Each module imports only those before it: `archive` (the bytes of the ZIP), `manifest` (the index),
`blobs`, `decoder`, `check`, `reader`, `joining`, `copying`, `writer`, `encoder`.
"""

from __future__ import annotations

from sqla_datastore.format.archive import crc32 as crc32
from sqla_datastore.format.blobs import StoredBlob as StoredBlob
from sqla_datastore.format.encoder import Plan as Plan
from sqla_datastore.format.encoder import matches as matches
from sqla_datastore.format.encoder import plan as plan
from sqla_datastore.format.manifest import MAX_NESTED_DEPTH as MAX_NESTED_DEPTH
from sqla_datastore.format.reader import Container as Container
from sqla_datastore.format.reader import StoredEntry as StoredEntry
from sqla_datastore.format.writer import EncodedEntry as EncodedEntry
from sqla_datastore.format.writer import ObjectPlan as ObjectPlan
