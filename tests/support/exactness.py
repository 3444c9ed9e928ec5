"""What tests ask of rows and files together."""

from __future__ import annotations

import contextlib

from sqlalchemy import String, event, select, text, type_coerce

from sqla_datastore import DataStoreType
from sqla_datastore.storage.urls import ObjectURL
from support.databases import make_engine


def urls_of(engine, metadata):
    """Return the URLs that committed rows hold, as the column has them, in a list."""
    urls = []
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            for column in table.c:
                if isinstance(column.type, DataStoreType):
                    text = type_coerce(column, String())
                    urls += connection.scalars(select(text).where(column.is_not(None)))
    return urls


def assert_exact(engine, metadata, stored, count=None):
    """Assert that the storage holds what committed rows refer to and nothing else.

    Args:
        engine: where the rows are.
        metadata: their tables.
        stored: the storage, seen without the library.
        count: how many URLs there have to be, nested values not counted.
    """
    urls = urls_of(engine, metadata)
    assert len(set(urls)) == len(urls), "two rows share an object"
    paths = {member.path for url in urls for member in ObjectURL.parse(url).family()}
    assert stored.files() == paths
    parents = {
        "/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 1)
    }
    assert stored.folders() == parents, "empty folders are left"
    if count is not None:
        assert len(urls) == count


@contextlib.contextmanager
def statements(engine, *verbs):
    """Collect the statements that begin with one of these words."""
    found = []

    def note(_connection, _cursor, statement, *_):
        if statement.lstrip().upper().startswith(verbs):
            found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


@contextlib.contextmanager
def tables_of(metadata, database_url):
    """Have the tables in the database for as long as the block runs."""
    engine = make_engine(database_url)
    metadata.create_all(engine)
    try:
        yield
    finally:
        metadata.drop_all(engine)
        engine.dispose()


def delete_rows(engine, metadata):
    """Delete all rows behind the library's back."""
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DELETE FROM {table.fullname}"))
