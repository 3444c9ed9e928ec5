"""SQLAdmin lists, shows, makes and edits rows with values."""

from __future__ import annotations

import contextlib
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

pytest.importorskip("sqladmin")
from sqladmin import Admin
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sqla_datastore.admin.sqladmin import DataStoreView

pytestmark = pytest.mark.libraries

HOSTILE = "<script>alert(1)</script>"


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "sqladmin_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    data: Mapped[DataStore] = mapped_column(DataStoreType())
    more: Mapped[DataStore | None] = mapped_column(DataStoreType())


def view() -> type[DataStoreView]:
    """Return a view of its own for each site: the site enters its engine there."""

    class RunAdmin(DataStoreView, model=Run):
        save_as = True
        column_list = (Run.id, Run.title, Run.data)

    return RunAdmin


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return Stored(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def site(tmp_path_factory, stored):
    """An engine, and by its kind a client of a site of it."""
    database = tmp_path_factory.mktemp("site") / "runs.db"
    engines = {
        "sync": make_engine(f"sqlite:///{database}", stored.base),
        "async": create_async_engine(f"sqlite+aiosqlite:///{database}"),
    }
    bind_storage(engines["async"], stored.base)
    Base.metadata.create_all(engines["sync"])
    with contextlib.ExitStack() as stack:
        clients = {}
        for kind, engine in engines.items():
            app = Starlette()
            Admin(app, engine).add_view(view())
            clients[kind] = stack.enter_context(TestClient(app, follow_redirects=False))
        yield engines["sync"], clients
        clients["async"].portal.call(engines["async"].dispose)
    engines["sync"].dispose()


@pytest.fixture
def engine(site, stored):
    engine, _ = site
    yield engine
    delete_rows(engine, Base.metadata)
    stored.put_back({})


@pytest.fixture(params=["sync", "async"])
def client(request, site):
    return site[1][request.param]


def add(engine, **entries):
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, title="first", data=DataStore(entries)))


def value(engine, key=1):
    with Session(engine) as session:
        return session.get(Run, key).data.to_dict()


def form_text(client, path="/admin/run/edit/1", name="data"):
    page = client.get(path)
    assert page.status_code == 200, page.text
    found = re.search(rf'<textarea[^>]*name="{name}_?"[^>]*>(.*?)</textarea>', page.text, re.DOTALL)
    return html.unescape(found[1]).strip()


def save(client, text, path="/admin/run/edit/1", **others):
    return client.post(path, data={"title": "first", "data": text, "more": "", **others})


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
    page = client.get("/admin/run/details/1").text
    assert "<td>numpy.ndarray</td><td>float64</td><td>(3,)</td>" in page
    assert html.escape(HOSTILE) in page
    assert HOSTILE not in page


def test_a_form_that_is_saved_as_it_was_made_writes_nothing(client, engine, stored):
    add(engine, weights=np.zeros(3), note=HOSTILE, tags=["ä\u2028\udc80", 1.0, None, float("nan")])
    before = stored.files()
    text = form_text(client)
    assert '"weights" numpy.ndarray' in text
    assert save(client, text, title="second").status_code == 302
    assert stored.files() == before
    with Session(engine) as session:
        assert session.get(Run, 1).title == "second"


def test_a_form_edits_plain_entries_and_keeps_the_others(client, engine, stored):
    add(engine, weights=np.arange(3), note="old", gone=1)
    text = form_text(client).replace('"old"', '"new"').replace('"gone": 1', '"tags": [1]')
    assert save(client, text).status_code == 302
    found = value(engine)
    assert np.array_equal(found.pop("weights"), np.arange(3))
    assert found == {"note": "new", "tags": [1]}
    assert_exact(engine, Base.metadata, stored, 1)


def test_a_file_is_named_and_kept(client, engine, stored):
    add(engine, report=File(io.BytesIO(b"a,b"), "<i>.csv"), note="old")
    page = client.get("/admin/run/details/1").text
    assert "<td>File</td><td>&lt;i&gt;.csv, text/csv</td>" in page
    text = form_text(client)
    assert '"report" File' in text
    assert save(client, text.replace('"old"', '"new"')).status_code == 302
    with Session(engine) as session:
        data = session.get(Run, 1).data
        assert (data.report.name, data.report.read(), data.note) == ("<i>.csv", b"a,b", "new")
    assert_exact(engine, Base.metadata, stored, 1)


def test_a_form_makes_a_row(client, engine, stored):
    assert save(client, '{"n": 1}', "/admin/run/create").status_code == 302
    assert value(engine) == {"n": 1}
    assert_exact(engine, Base.metadata, stored, 1)


def test_a_row_that_is_saved_as_a_new_one_has_a_copy_of_all(client, engine, stored):
    add(engine, weights=np.arange(3), note="old")
    text = form_text(client).replace('"old"', '"new"')
    assert save(client, text, save="Save as new").status_code == 302
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
    assert response.status_code == 400
    assert "the value was changed since this form was made" in response.text
    assert value(engine) == {"n": 2}


@pytest.mark.parametrize("client", ["sync"], indirect=True)
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
    assert response.status_code == 400
    assert message in html.unescape(response.text)
    assert HOSTILE not in response.text
    assert stored.files() == set()


def test_a_name_that_is_kept_cannot_be_taken(client, engine):
    add(engine, weights=np.zeros(3))
    text = form_text(client).replace("{}", '{"weights": 1}')
    response = save(client, text)
    assert response.status_code == 400
    assert "is an entry that is not shown here" in response.text
    assert isinstance(value(engine)["weights"], np.ndarray)


def test_a_row_whose_object_is_gone_can_be_seen_and_saved(client, engine, stored):
    add(engine, n=1)
    (path,) = stored.files()
    (stored.base / path).unlink()
    assert "MissingObjectError" in client.get("/admin/run/list").text
    assert "MissingObjectError" in client.get("/admin/run/details/1").text
    assert save(client, form_text(client), title="second").status_code == 302
    with Session(engine) as session:
        assert session.get(Run, 1).title == "second"
