"""URLs from which others can download a value."""

from __future__ import annotations

from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage.protocol import signed
from sqla_datastore.storage.urls import ObjectURL, head_of, is_in_row
from sqla_datastore.value.datastore import DataStore


def sign(value: DataStore, expires_seconds: float) -> str:
    """Return a URL from which anybody can download a stored value for a time; no request is made.

    What comes is its object, a ZIP archive, without those of the values nested in it. When the row
    gets another value, the object goes, and the URL with it; see `enable_removals` for a grace
    period.

    Args:
        value: as it was loaded or saved.
        expires_seconds: how long, at most a week.

    Raises:
        StorageError: the value is not stored, was changed since, or lies in its row; or its storage
            has no such URLs (S3, Google Cloud Storage and Azure have), or lacks the key for them.
    """
    source, url = value._source, value._unchanged_url()
    if source is None or url is None:
        raise StorageError(
            "a value that is not stored, or was changed since, has no object; flush its row first",
            url=value.url,
        )
    if is_in_row(url):
        raise StorageError(f"{head_of(url)!r} lies in its row, so that it has no object", url=url)
    return signed(source.storage, ObjectURL.parse(url).path, expires_seconds)
