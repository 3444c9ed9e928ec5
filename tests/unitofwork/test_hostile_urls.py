"""P2 and P4: a URL is text that anybody may have written; it removes nothing of others."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session
from support.models import Counter, Keyed

from sqla_datastore import DataStore, DataStoreIO

ANYBODY = "0" * 32
FILES = {
    "a report": "other/folder/report.pdf",
    "at the base": "report.pdf",
    "in the row's folder": "keyed/1/report.pdf",
    "self-managed": f"keyed/1/{ANYBODY}.io.zip",
    "a file of DataStoreIO": f"other/{ANYBODY}.bin",
    "nested in another": f"keyed/2/{ANYBODY}-2.1.zip",
    "like an object": f"other/{ANYBODY}.zip.txt",
}


def replace(engine):
    with Session(engine) as session, session.begin():
        session.get_one(Keyed, 1).data = DataStore(n=9)


def replace_by_core(engine):
    with engine.begin() as connection:
        connection.execute(update(Keyed).where(Keyed.id == 1).values(data=DataStore(n=9)))


def replace_twice(engine):
    with Session(engine) as session, session.begin():
        row = session.get_one(Keyed, 1)
        row.data = None
        session.flush()
        with session.begin_nested():
            row.data = DataStore(n=9)


def clear_in_bulk(engine):
    with Session(engine) as session, session.begin():
        session.execute(update(Keyed).where(Keyed.id < 2).values(data=None))


def delete_row(engine):
    with Session(engine) as session, session.begin():
        session.delete(session.get_one(Keyed, 1))


def delete_by_core(engine):
    with engine.begin() as connection:
        connection.execute(delete(Keyed).where(Keyed.id == 1))


def replace_under_autocommit(engine):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(update(Keyed).where(Keyed.id == 1).values(data=DataStore(n=9)))


ACTS = [
    replace,
    replace_by_core,
    replace_twice,
    clear_in_bulk,
    delete_row,
    delete_by_core,
    replace_under_autocommit,
]


@pytest.fixture
def rows(tables, engine):
    """Two rows of a table and one of another, and the URLs of the other two."""
    with Session(engine) as session, session.begin():
        kept = [
            Keyed(id=2, data=DataStore(n=2, inner=DataStore(m=1))),
            Counter(data=DataStore()),
        ]
        session.add_all([Keyed(id=1, data=DataStore(n=1)), *kept])
        session.flush()
        return [row.data.url for row in kept]


def write(engine, url):
    with engine.begin() as connection:
        connection.execute(text("UPDATE keyed SET data = :url WHERE id = 1"), {"url": url})


@pytest.mark.parametrize("act", [replace, clear_in_bulk, delete_row])
@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_a_file_of_others_stays(rows, engine, stored, act, path):
    file = stored.base / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("not ours")
    write(engine, f"file:///{path}")
    act(engine)
    # but a row's folder goes with the row, whatever somebody has put into it
    assert file.exists() or (act in (delete_row, delete_by_core) and path.startswith("keyed/1/"))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("other", [0, 1], ids=["of the same table", "of another table"])
def test_the_object_of_another_row_stays(rows, engine, exact, stored, act, other):
    write(engine, rows[other])
    act(engine)
    files = {f"file:///{path}" for path in stored.files()}
    assert set(rows) <= files
    with Session(engine) as session:
        assert session.get_one(Keyed, 2).data.inner.m == 1


def test_what_nobody_else_holds_goes(rows, engine, stored):
    """As where the folder's template, or a part of the key, was another one when it was written."""
    moved = stored.base / "older" / "1" / f"{ANYBODY}.zip"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(b"")
    write(engine, f"file:///older/1/{ANYBODY}.zip")
    replace_by_core(engine)
    assert not moved.exists()


def test_a_self_managed_object_is_not_a_row_s(rows, engine, stored):
    io = DataStoreIO.write(b"mine", "shared", storage=str(stored.base))
    write(engine, io.url)
    replace(engine)
    assert io.read() == b"mine"


@pytest.mark.parametrize("gone", [0, 1], ids=["the owner", "the copy"])
def test_a_row_that_was_copied_by_sql_keeps_the_object(rows, engine, exact, gone):
    """The database makes the keys, so that a folder does not tell whose it is."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO counters (data) SELECT data FROM counters"))
    with Session(engine) as session, session.begin():
        session.delete(session.scalars(select(Counter).order_by(Counter.id)).all()[gone])
    with Session(engine) as session:
        left = session.scalars(select(Counter)).one()
        assert dict(left.data) == {}
        session.delete(left)
        session.commit()
    exact(2)
