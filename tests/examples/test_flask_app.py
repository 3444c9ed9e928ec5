"""The service of Flask-SQLAlchemy: uploads, lists, downloads."""

from __future__ import annotations

import io

import pytest
from support.examples import load_example

pytest.importorskip("flask_sqlalchemy")
pytestmark = pytest.mark.libraries

CSV = b"step,loss\n0,0.9\n1,0.4\n"


@pytest.fixture(scope="module")
def example():
    return load_example("flask_app")


@pytest.fixture
def client(example, tmp_path, stored):
    app = example.create_app(f"sqlite:///{tmp_path / 'runs.db'}", str(stored.base))
    with app.app_context():
        yield app.test_client()
        for engine in example.db.engines.values():
            engine.dispose()


def upload(client, content=CSV):
    form = {"title": "<b>", "table": (io.BytesIO(content), "loss.csv")}
    return client.post("/runs", data=form)


def test_an_upload_becomes_a_row_and_one_object(client, stored):
    assert upload(client).status_code == 201
    (run,) = client.get("/runs").json
    assert run["title"] == "<b>"
    assert run["entries"]["table"][:2] == ["pandas.DataFrame", [2, 2]]
    assert len(stored.files()) == 1


def test_an_object_is_downloaded_as_it_lies_in_the_storage(client, stored):
    upload(client)
    with client.get("/runs/1/object") as response:
        assert [response.data] == [(stored.base / path).read_bytes() for path in stored.files()]
    assert client.get("/runs/2/object").status_code == 404


def test_what_is_no_csv_writes_nothing(client, stored):
    assert upload(client, b"").status_code == 422
    assert client.get("/runs").json == []
    assert stored.files() == set()
