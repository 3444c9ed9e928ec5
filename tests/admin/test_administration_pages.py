"""SQLAdmin and starlette-admin list, show, make and edit rows with values."""

from __future__ import annotations

import dataclasses
import html
import io
import re

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import Stored, make_engine
from support.exactness import assert_exact, delete_rows

from sqla_datastore import DataStore, DataStoreType, File, bind_storage
from sqla_datastore.value.entry import Entry

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.testclient import TestClient

pytestmark = pytest.mark.libraries

HOSTILE = "<script>alert(1)</script>"


@dataclasses.dataclass
class Settings:
    lr: float


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "admin_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    data: Mapped[DataStore] = mapped_column(DataStoreType())
    more: Mapped[DataStore | None] = mapped_column(DataStoreType())
    typed: Mapped[DataStore[Settings] | None] = mapped_column(DataStoreType())


class SQLAdminClient(TestClient):
    """A browser of SQLAdmin's pages."""

    edit, details = "/admin/run/edit/1", "/admin/run/details/1"
    saved, refused = 302, 400

    @staticmethod
    def mount(app, engine):
        from sqladmin import Admin

        from sqla_datastore.admin.sqladmin import DataStoreView

        # a class for each site: the site enters its engine there
        class RunAdmin(DataStoreView, model=Run):
            save_as = True
            column_list = (Run.id, Run.title, Run.data)

        Admin(app, engine).add_view(RunAdmin)

    def hidden_fields(self, path):
        return {}


class StarletteAdminClient(TestClient):
    """A browser of starlette-admin's pages."""

    edit, details = "/admin/run/edit?pk=1", "/admin/run/detail?pk=1"
    saved, refused = 303, 422

    @staticmethod
    def mount(app, engine):
        from starlette_admin.contrib.sqla import Admin

        from sqla_datastore.admin.starlette_admin import DataStoreView

        class RunView(DataStoreView):
            fields = ("id", "title", "data", "more", "typed")

        admin = Admin(engine, secret_key="only for tests")
        admin.add_view(RunView(Run, key="run"))
        admin.mount_to(app)

    def hidden_fields(self, path):
        token = re.search(r'name="([^"]*csrf[^"]*)"[^>]*value="([^"]*)"', self.get(path).text)
        return {token[1]: token[2]}


CLIENTS = {"sqladmin": SQLAdminClient, "starlette_admin": StarletteAdminClient}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return Stored(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("site") / "runs.db"


@pytest.fixture(scope="module")
def sync_engine(database, stored):
    engine = make_engine(f"sqlite:///{database}", stored.base)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(sync_engine, stored):
    yield sync_engine
    delete_rows(sync_engine, Base.metadata)
    stored.put_back({})


@pytest.fixture(
    scope="module", params=[(name, kind) for name in CLIENTS for kind in ("sync", "async")]
)
def client(request, sync_engine, database, stored):
    """A client of a site of one package, with one kind of engine."""
    name, kind = request.param
    pytest.importorskip(name)
    engine = sync_engine
    if kind == "async":
        engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
        bind_storage(engine, stored.base)
    app = Starlette()
    CLIENTS[name].mount(app, engine)
    with CLIENTS[name](app, follow_redirects=False) as client:
        yield client
        if kind == "async":
            client.portal.call(engine.dispose)


def add(engine, **entries):
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, title="first", data=DataStore(entries)))


def value(engine, key=1):
    with Session(engine) as session:
        return session.get(Run, key).data.to_dict()


def form_text(client):
    page = client.get(client.edit)
    assert page.status_code == 200, page.text
    found = re.search(r'<textarea[^>]*name="data_?"[^>]*>(.*?)</textarea>', page.text, re.DOTALL)
    return html.unescape(found[1]).strip()


def save(client, text, path=None, **others):
    path = path or client.edit
    fields = {
        "title": "first",
        "data": text,
        "more": "",
        "typed": "",
        **client.hidden_fields(path),
        **others,
    }
    return client.post(path, data=fields)


def test_a_list_names_entries_and_loads_none(client, engine, monkeypatch):
    add(engine, weights=np.zeros(3), **{HOSTILE: HOSTILE})
    loaded = []
    monkeypatch.setattr(Entry, "load", lambda *arguments: loaded.append(arguments))
    page = client.get("/admin/run/list").text
    assert "2 entries: weights, &lt;script&gt;" in page
    assert HOSTILE not in page
    assert loaded == []


def test_details_show_types_and_escape_names(client, engine):
    add(engine, weights=np.zeros(3), **{HOSTILE: HOSTILE})
    page = client.get(client.details).text
    assert "<td>numpy.ndarray</td><td>float64</td><td>(3,)</td>" in page
    assert html.escape(HOSTILE) in page
    assert HOSTILE not in page


def test_a_form_that_is_saved_as_it_was_made_writes_nothing(client, engine, stored):
    add(engine, weights=np.zeros(3), note=HOSTILE, tags=["ä\u2028\udc80", 1.0, None, float("nan")])
    before = stored.files()
    text = form_text(client)
    assert '"weights" numpy.ndarray' in text
    assert save(client, text, title="second").status_code == client.saved
    assert stored.files() == before
    with Session(engine) as session:
        assert session.get(Run, 1).title == "second"


def test_a_form_edits_plain_entries_and_keeps_the_others(client, engine, stored):
    add(engine, weights=np.arange(3), note="old", gone=1)
    text = form_text(client).replace('"old"', '"new"').replace('"gone": 1', '"tags": [1]')
    assert save(client, text).status_code == client.saved
    found = value(engine)
    assert np.array_equal(found.pop("weights"), np.arange(3))
    assert found == {"note": "new", "tags": [1]}
    assert_exact(engine, Base.metadata, stored, 1)


def test_a_file_is_named_and_kept(client, engine, stored):
    add(engine, report=File(io.BytesIO(b"a,b"), "<i>.csv"), note="old")
    page = client.get(client.details).text
    assert "<td>File</td><td>&lt;i&gt;.csv, text/csv</td>" in page
    text = form_text(client)
    assert '"report" File' in text
    assert save(client, text.replace('"old"', '"new"')).status_code == client.saved
    with Session(engine) as session:
        data = session.get(Run, 1).data
        assert (data.report.name, data.report.read(), data.note) == ("<i>.csv", b"a,b", "new")
    assert_exact(engine, Base.metadata, stored, 1)


def test_a_form_makes_a_row(client, engine, stored):
    assert save(client, '{"n": 1}', "/admin/run/create").status_code == client.saved
    assert value(engine) == {"n": 1}
    assert_exact(engine, Base.metadata, stored, 1)


@pytest.mark.parametrize("client", [("sqladmin", "sync"), ("sqladmin", "async")], indirect=True)
def test_a_row_that_is_saved_as_a_new_one_has_a_copy_of_all(client, engine, stored):
    add(engine, weights=np.arange(3), note="old")
    text = form_text(client).replace('"old"', '"new"')
    assert save(client, text, save="Save as new").status_code == client.saved
    assert value(engine)["note"] == "old"
    assert np.array_equal(value(engine, 2)["weights"], np.arange(3))
    assert value(engine, 2)["note"] == "new"
    assert_exact(engine, Base.metadata, stored, 2)


def test_a_form_of_an_earlier_value_is_refused(client, engine):
    add(engine, n=1)
    text = form_text(client)
    with Session(engine) as session, session.begin():
        session.get(Run, 1).data.n = 2
    response = save(client, text.replace("1", "3"))
    assert response.status_code == client.refused
    assert "the value was changed since this form was made" in response.text
    assert value(engine) == {"n": 2}


@pytest.mark.parametrize("client", [(name, "sync") for name in CLIENTS], indirect=True)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is no JSON"),
        ("[1]", "a JSON object is needed here"),
        ('{"n": 1, "n": 2}', "a name is there twice"),
        ("[" * 100_000, "this is no JSON"),
        ('{"\\ud800": 1}', "rename the entry"),
        (HOSTILE, "this is no JSON"),
    ],
)
def test_what_cannot_be_stored_is_shown_again_with_a_reason(client, engine, stored, text, message):
    response = save(client, text, "/admin/run/create")
    assert response.status_code == client.refused
    assert message in html.unescape(response.text)
    assert HOSTILE not in response.text
    assert stored.files() == set()


def test_what_the_schema_of_the_column_does_not_allow_is_shown_with_a_reason(
    client, engine, stored
):
    add(engine, n=1)
    before = stored.files()
    for text in ('{"lr": "high"}', '{"n": 1}'):
        response = save(client, form_text(client), typed=text)
        assert response.status_code == client.refused
        assert "Settings" in response.text
    assert stored.files() == before
    assert save(client, form_text(client), typed='{"lr": 0.5}').status_code == client.saved
    with Session(engine) as session:
        assert session.get(Run, 1).typed == {"lr": 0.5}


def test_a_name_that_is_kept_cannot_be_taken(client, engine):
    add(engine, weights=np.zeros(3))
    text = form_text(client).replace("{}", '{"weights": 1}')
    response = save(client, text)
    assert response.status_code == client.refused
    assert "is an entry that is not shown here" in response.text
    assert isinstance(value(engine)["weights"], np.ndarray)


def test_a_row_whose_object_is_gone_can_be_seen_and_saved(client, engine, stored):
    add(engine, n=1)
    (path,) = stored.files()
    (stored.base / path).unlink()
    assert "MissingObjectError" in client.get("/admin/run/list").text
    assert "MissingObjectError" in client.get(client.details).text
    assert save(client, form_text(client), title="second").status_code == client.saved
    with Session(engine) as session:
        assert session.get(Run, 1).title == "second"
