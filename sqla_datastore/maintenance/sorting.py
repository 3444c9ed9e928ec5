"""A storage's objects in the order of their paths.

SeaweedFS and S3's directory buckets list folder by folder, all of ``a/`` before ``a-b/``; others
list by name. Streams that are merged have to agree, so each listing is sorted here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing

from sqla_datastore.storage.protocol import StoredObject


def by_path(objects: Iterable[StoredObject]) -> Iterator[StoredObject]:
    """Yield objects in the order of their paths, sorted in a temporary file.

    So the memory that it takes does not depend on how many there are. All are listed before the
    first one comes.
    """
    # an empty name is a database of SQLite's in a temporary file, removed when it is closed
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as spool:
        spool.execute("CREATE TABLE objects (path TEXT, size INTEGER, modified REAL)")
        spool.execute("PRAGMA journal_mode = OFF")
        spool.execute("BEGIN")
        spool.executemany("INSERT INTO objects VALUES (?, ?, ?)", map(_fields, objects))
        # SQLite compares texts byte by byte in UTF-8, which is the order of Python's texts
        for found in spool.execute("SELECT path, size, modified FROM objects ORDER BY path"):
            yield StoredObject(*found)


def _fields(found: StoredObject) -> tuple[str, int, float]:
    return found.path, found.size_bytes, found.modified
