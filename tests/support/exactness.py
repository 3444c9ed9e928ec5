"""What tests ask of rows and files together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import Engine, MetaData, String, event, select, text, type_coerce

from sqla_datastore import DataStoreType
from sqla_datastore.storage.urls import ObjectURL, is_in_row
from support.databases import Stored, make_engine
from support.object_stores import StoredInBucket


def urls_of(engine: Engine, metadata: MetaData) -> list[str]:
    """Return the URLs that committed rows hold, as the column has them, in a list."""
    urls: list[str] = []
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            for column in table.c:
                if isinstance(column.type, DataStoreType):
                    text = type_coerce(column, String())
                    urls += connection.scalars(select(text).where(column.is_not(None)))
    return urls


def assert_exact(
    engine: Engine, metadata: MetaData, stored: Stored | StoredInBucket, count: int | None = None
) -> None:
    """Assert that the storage holds what committed rows refer to and nothing else.

    Args:
        engine: where the rows are.
        metadata: their tables.
        stored: the storage, seen without the library.
        count: how many URLs there have to be, nested values not counted.
    """
    urls = urls_of(engine, metadata)
    assert len(set(urls)) == len(urls), "two rows share an object"
    outside = (url for url in urls if not is_in_row(url))
    paths = {member.path for url in outside for member in ObjectURL.parse(url).family()}
    assert stored.files() == paths
    parents = {
        "/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 1)
    }
    assert stored.folders() == parents, "empty folders are left"
    if count is not None:
        assert len(urls) == count


@contextlib.contextmanager
def statements(engine: Engine, *verbs: str) -> Iterator[list[str]]:
    """Collect the statements that begin with one of these words."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(verbs):
            found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


@contextlib.contextmanager
def tables_of(metadata: MetaData, database_url: str) -> Iterator[None]:
    """Have the tables in the database for as long as the block runs."""
    engine = make_engine(database_url)
    metadata.create_all(engine)
    try:
        yield
    finally:
        metadata.drop_all(engine)
        engine.dispose()


def delete_rows(engine: Engine, metadata: MetaData) -> None:
    """Delete all rows behind the library's back."""
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DELETE FROM {table.fullname}"))
