"""The service of SQLModel: JSON goes in as a value, and out as metadata."""

from __future__ import annotations

import pytest
from support.examples import load_example

pytest.importorskip("fastapi")
pytest.importorskip("sqlmodel")
from fastapi.testclient import TestClient

pytestmark = pytest.mark.libraries


@pytest.fixture
def client(tmp_path, stored):
    create_app = load_example("sqlmodel_app").create_app
    app = create_app(f"sqlite:///{tmp_path / 'runs.db'}", str(stored.base))
    with TestClient(app) as client:
        yield client
    app.state.engine.dispose()


def test_json_is_stored_and_comes_back_as_metadata(client, stored):
    given = {"title": "first", "data": {"loss": [0.9, 0.4], "epochs": 2}}
    run = client.post("/runs", json=given).json()
    assert list(run["data"]["entries"]) == ["loss", "epochs"]
    assert stored.files() == {run["data"]["url"].removeprefix("file:///")}
    assert client.get("/runs").json() == [run]


def test_an_entry_is_set(client):
    client.post("/runs", json={"title": "first", "data": {}})
    run = client.put("/runs/1/note", params={"text": "<script>"}).json()
    assert run["data"]["entries"]["note"]["nbytes"] == len("<script>")


@pytest.mark.parametrize("data", [None, [1], "text", 5])
def test_what_is_no_object_is_refused(client, stored, data):
    response = client.post("/runs", json={"title": "first", "data": data})
    assert response.status_code == 422
    assert stored.files() == set()


def test_the_api_describes_both_sides(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["RunIn"]["properties"]["data"]["type"] == "object"
    assert schemas["RunOut"]["properties"]["data"]["$ref"].endswith("/DataStoreMetadata")
