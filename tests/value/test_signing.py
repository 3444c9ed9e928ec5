"""Signed URLs: others download an object without this library and without credentials."""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.request
import uuid
import zipfile
from urllib.parse import parse_qsl, urlsplit

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.buckets import SERVICE_ACCOUNT, service_account_key
from support.object_stores import request, s3_options

from sqla_datastore import (
    DataStore,
    DataStoreIO,
    DataStoreType,
    StorageError,
    bind_storage,
    options,
    sign,
)
from sqla_datastore.storage import ObjectStorage

obstore = pytest.importorskip("obstore")


class Base(DeclarativeBase):
    """The table of this module."""


class Run(Base):
    """A row with a value."""

    __tablename__ = "signed_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())
    small: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=3_000))


@pytest.fixture
def bucket_url(s3_endpoint, monkeypatch):
    """The URL of an empty bucket."""
    name = f"b-{uuid.uuid4().hex}"
    request(s3_endpoint, "PUT", f"/{name}")
    monkeypatch.setattr(options, "storage_options", s3_options(s3_endpoint))
    return f"s3://{name}/base"


@pytest.fixture
def session_on(tmp_path):
    """Return a Session whose values are kept in a storage."""
    engine = create_engine(f"sqlite:///{tmp_path / 'runs.db'}")
    Base.metadata.create_all(engine)

    def session_on(storage):
        bind_storage(engine, storage)
        return Session(engine)

    yield session_on
    engine.dispose()


def download(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read()


def test_a_managed_object_is_downloaded(bucket_url):
    managed = DataStoreIO.write(b"abc", "reports", bucket_url)
    assert download(managed.sign(60)) == b"abc"


def test_a_value_is_downloaded(bucket_url, session_on):
    with session_on(bucket_url) as session:
        run = Run(data=DataStore(a=[1, 2]))
        session.add(run)
        session.commit()
        with zipfile.ZipFile(io.BytesIO(download(sign(run.data, 3600)))) as archive:
            assert archive.testzip() is None
        run.data.a.append(3)
        with pytest.raises(StorageError, match=r"changed since.*flush its row first"):
            sign(run.data, 60)
        session.flush()
        assert download(sign(run.data, 60))


def test_what_has_no_object(bucket_url, session_on):
    with pytest.raises(StorageError, match="not stored"):
        sign(DataStore(a=1), 60)
    with session_on(bucket_url) as session:
        run = Run(data=DataStore(), small=DataStore(a=1))
        session.add(run)
        session.commit()
        with pytest.raises(StorageError, match="lies in its row"):
            sign(run.small, 60)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 8 * 24 * 3600])
def test_times_that_no_store_takes(bucket_url, seconds):
    managed = DataStoreIO.write(b"abc", "reports", bucket_url)
    with pytest.raises(ValueError, match="at most 604800"):
        managed.sign(seconds)


def test_storages_without_signed_urls(tmp_path, session_on):
    managed = DataStoreIO.write(b"abc", "reports", tmp_path / "store")
    with pytest.raises(StorageError, match=r"has no signed URLs.*DataStoreIO.open"):
        managed.sign(60)
    assert managed.open().read() == b"abc"  # what the message says to do
    with pytest.raises(StorageError, match="this process's memory"):
        DataStoreIO.write(b"abc", "reports", f"memory://{uuid.uuid4().hex}").sign(60)
    with session_on(tmp_path / "store") as session:
        run = Run(data=DataStore(a=1))
        session.add(run)
        session.commit()
        with pytest.raises(StorageError, match="has no signed URLs"):
            sign(run.data, 60)


@pytest.mark.servers
def test_what_google_signs(new_bucket, monkeypatch):
    """A V4 signature: https://cloud.google.com/storage/docs/authentication/signatures."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    bucket = new_bucket("gcs")
    monkeypatch.setattr(options, "storage_options", bucket.storage_options)
    managed = DataStoreIO.write(b"abc", "reports", bucket.base)
    url = managed.sign(300)
    endpoint, path = bucket.storage_options["base_url"], managed.url.removeprefix("gs:///")
    assert url.startswith(f"{endpoint}/{bucket.base.removeprefix('gs://')}/{path}?")
    assert "PRIVATE KEY" not in url
    assert download(url) == b"abc"  # moto does not look at signatures

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    signature = bytes.fromhex(query.pop("X-Goog-Signature"))
    date = query["X-Goog-Date"]
    scope = f"{date[:8]}/auto/storage/goog4_request"
    assert query == {
        "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
        "X-Goog-Credential": f"{SERVICE_ACCOUNT}/{scope}",
        "X-Goog-Date": date,
        "X-Goog-Expires": "300",
        "X-Goog-SignedHeaders": "host",
    }
    signed = parts.query.rpartition("&")[0]
    request = ["GET", parts.path, signed, "host:storage.googleapis.com", "", "host"]
    digest = hashlib.sha256("\n".join([*request, "UNSIGNED-PAYLOAD"]).encode()).hexdigest()
    text = "\n".join(["GOOG4-RSA-SHA256", date, scope, digest]).encode()
    public = service_account_key()[1].public_key()
    public.verify(signature, text, padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.servers
def test_azure_lets_anybody_download(new_bucket, session_on, monkeypatch):
    bucket = new_bucket("azurite")
    monkeypatch.setattr(options, "storage_options", bucket.storage_options)
    managed = DataStoreIO.write(b"abc", "reports", bucket.base)
    url = managed.sign(60)
    assert download(url) == b"abc"
    with session_on(bucket.base) as session:
        run = Run(data=DataStore(a=[1, 2]))
        session.add(run)
        session.commit()
        with zipfile.ZipFile(io.BytesIO(download(sign(run.data, 3600)))) as archive:
            assert archive.testzip() is None
    # it is for this object only, and nobody gets it without the signature
    other = DataStoreIO.write(b"def", "reports", bucket.base)
    plain, _, query = url.partition("?")
    stranger = f"{plain.rpartition('/')[0]}/{other.url.rpartition('/')[2]}?{query}"
    for refused in (plain, stranger, url.replace("sp=r", "sp=rw")):
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            download(refused)


def test_azure_signs_with_a_key():
    client = obstore.store.AzureStore("box", account_name="lab", account_key="a2V5")
    managed = DataStoreIO("az:///reports/abc.bin", storage=ObjectStorage(client))
    url = managed.sign(60)
    assert url.startswith("https://lab.blob.core.windows.net/box/reports/abc.bin?")
    assert "sig=" in url


def test_without_a_key_it_says_so():
    client = obstore.store.S3Store("box", skip_signature=True, region="us-east-1")
    managed = DataStoreIO("s3:///reports/abc.bin", storage=ObjectStorage(client))
    with pytest.raises(StorageError, match="box"):
        managed.sign(60)
