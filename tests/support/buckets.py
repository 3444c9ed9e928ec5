"""Empty buckets on the servers, and the options by which the library reaches them."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from sqla_datastore import options
from sqla_datastore.storage import FsspecStorage
from sqla_datastore.storage.binding import open_storage
from sqla_datastore.storage.protocol import Storage
from support.databases import Stored
from support.object_stores import StoredInBucket, request, s3_options, stored_on_s3
from support.servers import ACCOUNT, SECRET

SERVICE_ACCOUNT = f"{ACCOUNT}@example.iam.gserviceaccount.com"
"""Who signs URLs of Google Cloud Storage."""
WRONG_SECRET = base64.b64encode(b"another secret").decode()


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server, and nothing in it.

    Attributes:
        base: the URL of a storage in it, which has a prefix.
        storage_options: what the library needs to reach it.
        wrong_options: the same with a secret that is wrong; none where the server does not look.
        client: a client of the whole bucket, for looks without the library.
        unfinished: gives the keys of uploads that were neither completed nor aborted.
    """

    base: str
    storage_options: dict[str, Any]
    wrong_options: dict[str, Any] | None
    client: Any
    unfinished: Callable[[], set[str]]


def on_seaweedfs(endpoint: str) -> Bucket:
    """Make a bucket on SeaweedFS, which checks signatures."""
    import boto3
    from obstore.store import S3Store

    name = _name()
    options = s3_options(endpoint, access_key_id=ACCOUNT, secret_access_key=SECRET)
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCOUNT,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    s3.create_bucket(Bucket=name)

    def unfinished() -> set[str]:
        uploads = s3.list_multipart_uploads(Bucket=name).get("Uploads", [])
        return {each["Key"] for each in uploads}

    wrong = {**options, "secret_access_key": WRONG_SECRET}
    return Bucket(f"s3://{name}/base", options, wrong, S3Store(name, **options), unfinished)


def on_moto_as_gcs(endpoint: str) -> Bucket:
    """Make a bucket on moto; the library takes it for one of Google's, the look at it for S3's."""
    from obstore.store import S3Store

    name = _name()
    request(endpoint, "PUT", f"/{name}")
    options = {
        "base_url": endpoint,
        "service_account_key": service_account_key()[0],
        "client_options": {"allow_http": True},
    }

    def unfinished() -> set[str]:
        listed = request(endpoint, "GET", f"/{name}?uploads").decode()
        return set(re.findall("<Key>(.*?)</Key>", listed))

    client = S3Store(name, **s3_options(endpoint))
    return Bucket(f"gs://{name}/base", options, None, client, unfinished)


@functools.cache
def service_account_key() -> tuple[str, Any]:
    """Return a key of a service account as Google gives it out, and its private key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    account = {"client_email": SERVICE_ACCOUNT, "private_key_id": "1", "private_key": text}
    return json.dumps({"type": "service_account", **account}), key


def on_azurite(endpoint: str) -> Bucket:
    """Make a container on Azurite."""
    from obstore.store import AzureStore

    name = _name()
    _ask_azure(endpoint, "PUT", f"/{name}?restype=container")
    options = {
        "account_name": ACCOUNT,
        "account_key": SECRET,
        "endpoint": endpoint,
        "client_options": {"allow_http": True},
    }

    wrong = {**options, "account_key": WRONG_SECRET}
    client = AzureStore(name, **options)
    # Azure knows no such uploads: blocks that belong to no blob go after a week
    return Bucket(f"az://{name}/base", options, wrong, client, unfinished=set)


def _ask_azure(endpoint: str, method: str, target: str) -> None:
    """Ask Azure without the library, by a request that the account's key signs.

    See "Authorize with Shared Key" in the reference of Azure Storage's REST API.
    """
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    parts = urlsplit(endpoint + target)
    signed = [method, *[""] * 11]  # headers that are not sent
    signed += [f"{name}:{value}" for name, value in headers.items()]
    signed += [f"/{ACCOUNT}{parts.path}"]
    signed += [f"{name}:{value}" for name, value in sorted(parse_qsl(parts.query))]
    digest = hmac.digest(base64.b64decode(SECRET), "\n".join(signed).encode(), hashlib.sha256)
    headers["authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    request(f"http://{parts.netloc}", method, f"{parts.path}?{parts.query}", headers)


BUCKETS = {
    "seaweedfs": ("seaweedfs_endpoint", on_seaweedfs),
    "azurite": ("azurite_endpoint", on_azurite),
    "gcs": ("s3_endpoint", on_moto_as_gcs),
}
"""How a bucket is made, and the fixture that gives its server."""


STORES = ("memory", "fsspec", "s3", *BUCKETS)


def those_marked(names: Iterable[str], *, prefix: str = "") -> list[Any]:
    """Return stores as parameters of tests, with a mark where these are run once.

    Args:
        names: some of `STORES`.
        prefix: what is put in front of each name.
    """
    return [
        pytest.param(prefix + name, marks=[pytest.mark.servers] if name in BUCKETS else [])
        for name in names
    ]


@contextmanager
def object_store(
    kind: str, fixtures: pytest.FixtureRequest, folder: Path
) -> Iterator[tuple[Stored | StoredInBucket, Storage]]:
    """Make an empty storage for a while; give it as seen without the library, and as it is.

    Args:
        kind: one of `STORES`.
        fixtures: the request of a fixture or test, to ask for the server.
        folder: for a storage that needs one.
    """
    if kind == "fsspec":
        stored = Stored(folder / "storage")
        yield stored, FsspecStorage.at(f"file://{stored.base}")
    elif kind == "s3":
        with stored_on_s3(fixtures.getfixturevalue("s3_endpoint")) as on_s3:
            yield on_s3, open_storage(on_s3.base)
    elif kind == "memory":
        storage: Any = open_storage(f"memory://{_name()}/base")
        yield StoredInBucket(storage.url, storage._store), storage
    else:
        bucket = fixtures.getfixturevalue("new_bucket")(kind)
        with options.using(storage_options=bucket.storage_options):
            yield StoredInBucket(bucket.base, bucket.client), open_storage(bucket.base)


def _name() -> str:
    return f"b-{uuid.uuid4().hex}"
