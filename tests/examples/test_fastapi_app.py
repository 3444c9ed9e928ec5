"""The service of FastAPI: uploads, lists, streams, downloads, works in the background."""

from __future__ import annotations

import asyncio
import io
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.examples import load_example

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from sqla_datastore import DamagedObjectError
from sqla_datastore.storage import ObjectStorage
from sqla_datastore.value.entry import Entry

pytestmark = pytest.mark.libraries

CSV = b"step,loss\n0,0.9\n1,0.4\n"
FRAME = pd.DataFrame({"step": [0, 1], "loss": [0.9, 0.4]})


@pytest.fixture
def app(tmp_path, stored):
    database = f"sqlite+aiosqlite:///{tmp_path / 'runs.db'}"
    return load_example("fastapi_app").create_app(database, str(stored.base))


@pytest.fixture
def client(app):
    with TestClient(app) as client:
        yield client


def upload(client, content=CSV, title="first"):
    return client.post("/runs", data={"title": title}, files={"table": ("loss.csv", content)})


def test_an_upload_becomes_a_row_and_one_object(client, stored):
    response = upload(client)
    assert response.status_code == 201
    body = response.json()
    assert stored.files() == {body["data"]["url"].removeprefix("file:///")}
    table = body["data"]["entries"]["table"]
    assert (table["type"], table["shape"]) == ("pandas.DataFrame", [2, 2])


def upload_file(client, content=CSV, name="loss.csv", kind="text/csv"):
    response = client.post("/files", files={"file": (name, content, kind)})
    assert response.status_code == 201
    return response.json()


def test_a_file_comes_back_as_it_was_sent(client, stored):
    content = bytes(range(256)) * 10_000
    body = upload_file(client, content, "../\u20ac <b>.bin", "application/x-data; a=b")
    assert stored.files() == {body["data"]["url"].removeprefix("file:///")}
    assert body["title"] == "\u20ac <b>.bin"
    response = client.get("/runs/1/files/file")
    assert response.content == content
    headers = response.headers
    assert headers["content-type"] == "application/x-data; a=b"
    assert headers["content-length"] == str(len(content))
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''%E2%82%AC%20%3Cb%3E.bin"
    assert headers["x-content-type-options"] == "nosniff"


def test_a_content_type_that_is_none_is_left_out(client):
    body = upload_file(client, name="page.html", kind="nonsense")
    assert body["data"]["entries"]["file"]["dtype"] == "text/html"
    assert client.get("/runs/1/files/file").headers["content-type"] == "text/html"


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-3", 206, slice(0, 4)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-4", 206, slice(-4, None)),
        ("bytes=20-999", 206, slice(20, None)),
        ("bytes=-999", 206, slice(None)),
        ("bytes=999-", 416, slice(0)),
        ("bytes=-0", 416, slice(0)),
        # what a server may leave unheard
        ("bytes=3-1", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=" + "9" * 5_000 + "-", 200, slice(None)),
        ("lines=0-1", 200, slice(None)),
    ],
)
def test_a_range_of_a_file(client, wanted, status, part):
    upload_file(client)
    response = client.get("/runs/1/files/file", headers={"Range": wanted})
    assert response.status_code == status
    if status == 416:
        assert response.headers["content-range"] == f"bytes */{len(CSV)}"
        return
    assert response.content == CSV[part]
    if status == 206:
        start, stop, _ = part.indices(len(CSV))
        assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CSV)}"


@pytest.mark.parametrize("size", [24, 1_500_000])
def test_a_damaged_file_is_not_sent_to_its_end(client, stored, size):
    url = upload_file(client, b"\1" * size, "x", "x/y")["data"]["url"]
    path = stored.base / url.removeprefix("file:///")
    path.write_bytes(path.read_bytes().replace(b"\1" * 20, b"\2" * 20, 1))
    with (
        pytest.raises(DamagedObjectError),
        client.stream("GET", "/runs/1/files/file") as response,
    ):
        response.read()


def test_a_download_is_only_continued_where_the_file_is_the_same(client):
    upload_file(client)
    tag = client.get("/runs/1/files/file").headers["etag"]
    for given, status in ((tag, 206), ('"another"', 200)):
        headers = {"Range": "bytes=4-", "If-Range": given}
        assert client.get("/runs/1/files/file", headers=headers).status_code == status


def test_rows_are_listed_without_loading_a_frame(client, stored, monkeypatch):
    for number in range(3):
        upload(client, title=f"<b>{number}")
    loaded = []
    monkeypatch.setattr(Entry, "load", lambda *arguments: loaded.append(arguments))
    runs = client.get("/runs", params={"limit": 2}).json()
    assert [run["title"] for run in runs] == ["<b>0", "<b>1"]
    assert [list(run["data"]["entries"]) for run in runs] == [["table", "source"]] * 2
    assert loaded == []


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_an_entry_is_streamed(client, form):
    upload(client)
    response = client.get("/runs/1/entries/table", params={"form": form})
    read = pq.read_table if form == "parquet" else lambda file: pa.ipc.open_stream(file).read_all()
    table = read(io.BytesIO(response.content))
    pd.testing.assert_frame_equal(table.to_pandas(), FRAME)


def test_an_object_is_downloaded_as_it_lies_in_the_storage(client, stored):
    url = upload(client).json()["data"]["url"]
    response = client.get("/runs/1/object")
    assert response.content == (stored.base / url.removeprefix("file:///")).read_bytes()
    assert zipfile.ZipFile(io.BytesIO(response.content)).testzip() is None


def test_a_storage_that_signs_sends_the_bytes_itself(client, monkeypatch):
    upload(client)
    monkeypatch.setattr(
        load_example("fastapi_app"), "sign", lambda *_, **__: "https://bucket.example/signed"
    )
    response = client.get("/runs/1/object", follow_redirects=False)
    assert response.status_code == 307
    assert response.headers["location"] == "https://bucket.example/signed"


def test_work_in_the_background_is_saved(client, stored):
    upload(client)
    assert client.post("/runs/1/summary").status_code == 202
    (run,) = client.get("/runs").json()
    assert run["data"]["entries"]["summary"]["shape"] == [8, 2]


def test_a_bucket_is_read_in_threads(tmp_path, monkeypatch):
    """Where the event loop stood still for a request, reading would be an error."""
    monkeypatch.setattr(ObjectStorage, "is_local", False)
    create_app = load_example("fastapi_app").create_app
    app = create_app(f"sqlite+aiosqlite:///{tmp_path / 'runs.db'}", "memory://fastapi_app")
    with TestClient(app) as client:
        uploaded = upload(client).json()
        assert client.get("/runs").json() == [uploaded]
        assert client.get("/runs/1/entries/table").status_code == 200
        assert client.post("/runs/1/summary").status_code == 202
        assert "summary" in client.get("/runs").json()[0]["data"]["entries"]
        response = client.get("/runs/1/object")
        upload_file(client)
        assert client.get("/runs/2/files/file").content == CSV
        assert "manifest.json" in zipfile.ZipFile(io.BytesIO(response.content)).namelist()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/runs/2/entries/table", 404),
        ("/runs/1/entries/nonsense", 404),
        ("/runs/1/entries/source", 422),
        ("/runs/1/entries/table?form=pickle", 422),
        ("/runs/2/object", 404),
        ("/runs/2/files/file", 404),
        ("/runs/1/files/nonsense", 404),
        ("/runs/1/files/source", 422),
    ],
)
def test_what_is_not_there_is_said(client, path, status):
    upload(client)
    assert client.get(path).status_code == status


@pytest.mark.parametrize("content", [b"", b'a\n"b', b"\xff\xfe\x00"])
def test_what_is_no_csv_writes_nothing(client, stored, content):
    assert upload(client, content).status_code == 422
    assert client.get("/runs").json() == []
    assert stored.files() == set()


@pytest.mark.parametrize(("path", "field"), [("/runs", "table"), ("/files", "file")])
def test_an_upload_that_breaks_off_writes_nothing(app, client, stored, path, field):
    head = b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nfirst\r\n'
    part = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a"\r\n\r\n'.encode()
    messages = [
        {"type": "http.request", "body": head + part + CSV * 100_000, "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] >= 400
    assert client.get("/runs").json() == []
    assert stored.files() == set()
