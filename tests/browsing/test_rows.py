"""Tables and rows: a page at a time, searched by key, nothing loaded and nothing written."""

from __future__ import annotations

import pickle
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from support import lab as lab_module
from support.lab import FIRST, HOSTILE, LAST, ROWS, Lab
from support.models import Base, Experiment

from sqla_datastore import ConfigurationError, DataStore, DataStoreType, bind_storage
from sqla_datastore.browsing.rows import NotThereError, Tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    return Tables(lab.engine(), lab_module.Base.metadata)


def test_tables_and_their_rows_are_counted(tables):
    found = [(each.name, each.columns, each.rows) for each in tables.summaries()]
    assert found == [("experiments", ("data",), ROWS), ("runs", ("data", "extra"), 3)]


def test_pages_hold_all_rows_once_in_order(tables):
    found, offset = [], 0
    while True:
        page = tables.page("experiments", offset=offset, limit=50)
        found += page.rows
        offset += 50
        if not page.has_more:
            break
    assert [row.key for row in found] == [str(uuid.UUID(int=n)) for n in range(1, ROWS + 1)]
    assert found[0].fields == {"title": "first"}
    assert [row.key for row in tables.page("runs").rows] == ["a%2Cb,0", "a%2Cb,1", "a%2Cb,2"]


def test_a_row_by_its_key(tables):
    assert tables.row("experiments", str(FIRST)).fields == {"title": "first"}
    row = tables.row("runs", "a%2Cb,2")
    assert row.value("data")[1].n == 2
    assert tables.row("experiments", str(LAST)).fields == {"title": HOSTILE}


@pytest.mark.parametrize(
    ("look", "told"),
    [
        (lambda t: t.page("nonsense"), "'experiments', 'runs'"),
        (lambda t: t.row("nonsense", "1"), "'experiments', 'runs'"),
        (lambda t: t.row("experiments", "nonsense"), "is no UUID.*first keys are '0000"),
        (lambda t: t.row("experiments", str(uuid.UUID(int=999))), "first keys are '0000"),
        (lambda t: t.row("experiments", "\ud800"), "first keys are '0000"),
        (lambda t: t.row("runs", "a,1" + "0" * 30), "first keys are 'a%2Cb,0'"),
        (lambda t: t.row("runs", "\0,1"), "first keys are 'a%2Cb,0'"),
        (lambda t: t.row("runs", "a,b"), "first keys are 'a%2Cb,0'"),
        (lambda t: t.row("runs", "a%2Cb,1").value(None), "'data', 'extra'"),
        (lambda t: t.row("runs", "a%2Cb,1").value("other"), "'data', 'extra'"),
        (lambda t: t.row("runs", "a%2Cb,1").value("extra"), "NULL"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(tables, look, told):
    with pytest.raises(NotThereError, match=told):
        look(tables)


def test_rows_are_found_by_a_part_of_their_key(tmp_path, engine, tables, request):
    # the fixture `tables` of this module hides the one that makes those of the models
    request.getfixturevalue("schema")
    keys = [uuid.UUID(f"abcdef01-2345-6789-abcd-00000000000{n}") for n in range(3)]
    with Session(engine) as session:
        session.add_all(Experiment(id=key, data=DataStore(n=1)) for key in keys)
        session.commit()
    other = create_engine(engine.url)
    bind_storage(other, tmp_path)
    found = Tables(other, Base.metadata)

    def search(text):
        return [row.key for row in found.page("experiments", search=text).rows]

    assert search("ABCDEF01-2345") == [str(key) for key in keys]
    assert search("000000001") == [str(keys[1])]
    assert search("%") == search("_") == search("zz") == search("\0") == search("\ud800") == []
    with found._engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(sa.text("UPDATE experiments SET name = 'x'"))
    other.dispose()
    with Session(engine) as session:
        for key in keys:
            session.delete(session.get(Experiment, key))
        session.commit()


class Trap:
    """Tells when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung = True


def test_columns_of_pickles_and_blobs_are_not_read(tmp_path):
    metadata = sa.MetaData()
    table = sa.Table(
        "things",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("trap", sa.PickleType),
        sa.Column("blob", sa.LargeBinary),
        sa.Column("text", sa.Text),
        sa.Column("data", DataStoreType()),
    )
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    bind_storage(engine, tmp_path / "storage")
    metadata.create_all(engine)
    with engine.begin() as connection:
        value = DataStore(a=1)
        row = {"id": 1, "trap": Trap(), "blob": b"1", "text": "x" * 10_000, "data": value}
        connection.execute(table.insert(), [row])
    tables = Tables(engine, metadata)
    row = tables.row("things", "1")
    assert row.fields == {"text": "x" * 200}
    assert not Trap.sprung
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.sprung


def test_a_database_without_the_tables(tmp_path):
    with pytest.raises(ConfigurationError, match="lacks the declared tables"):
        Tables(create_engine(f"sqlite:///{tmp_path / 'empty.db'}"), lab_module.Base.metadata)
