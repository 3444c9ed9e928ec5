"""``DataStoreType(inline_bytes=N)``: small values lie in the row, and all promises hold."""

from __future__ import annotations

import base64
import io
import pickle
import random
import zipfile

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy import UniqueConstraint, event
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine
from support.forging import forged_blobs

from sqla_datastore import (
    ConfigurationError,
    DamagedObjectError,
    DataStore,
    DataStoreError,
    DataStoreIO,
    DataStoreType,
    RefusedStatementError,
    RefusedURLError,
    StorageError,
    bind_storage,
    inspect,
)
from sqla_datastore.maintenance import check
from sqla_datastore.storage.urls import HEAD_LENGTH

LIMIT = 3_000
LARGE = np.arange(2_000)


class Base(DeclarativeBase):
    """The tables of this module."""


class Run(Base):
    """Keeps values of up to 3,000 bytes in the row."""

    __tablename__ = "in_row_runs"
    __table_args__ = (UniqueConstraint("name"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=LIMIT))
    outside: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Auto(Base):
    """The database makes its keys."""

    __tablename__ = "in_row_autos"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=LIMIT))


@pytest.fixture(scope="module")
def model_metadata():
    """The tables that the fixtures are about."""
    return Base.metadata


def text_of(engine, key=1):
    """Return what the column holds, asked behind the library's back."""
    with engine.connect() as connection:
        return connection.scalar(sa.text(f"SELECT data FROM in_row_runs WHERE id = {key}"))


def held(engine, key=1):
    """Return all entries of a row's value, read in a Session of its own."""
    with Session(engine) as session:
        value = session.get(Run, key).data
        return None if value is None else value.to_dict()


# -- writing, replacing, deleting ------------------------------------------------------------------


def test_small_value_lies_in_the_row_and_is_readable_by_hand(engine, stored, exact):
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=DataStore(a=np.arange(3), n=7)))
    head, _, objects = text_of(engine).partition(";base64,")
    assert head.startswith("data:application/zip;id=")
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(objects))) as archive:
        assert archive.testzip() is None
        assert np.load(io.BytesIO(archive.read("a.npy"))).tolist() == [0, 1, 2]
    assert stored.files() == set()
    exact(1)
    assert held(engine)["n"] == 7


def test_value_moves_out_when_it_grows_and_in_when_it_shrinks(engine, stored, exact):
    with Session(engine) as session:
        row = Run(id=1, data=DataStore(a=1, inner=DataStore(b=[1])))
        session.add(row)
        session.commit()
        assert row.data.url.startswith("data:")
        row.data.a = LARGE
        session.commit()
        assert row.data.url.startswith("file:///in_row_runs/1/")
        exact(1)
        assert len(stored.files()) == 2
        row.data.a = 2
        session.commit()
        assert row.data.url.startswith("data:")
    exact(1)
    assert stored.files() == set()
    assert held(engine) == {"a": 2, "inner": {"b": [1]}}


@pytest.mark.parametrize("end", ["rollback", "savepoint"])
def test_rollback_brings_back_what_was_there(engine, exact, end):
    with Session(engine) as session:
        session.add_all([Run(id=1, data=DataStore(a=1)), Run(id=2, data=DataStore(a=LARGE))])
        session.commit()
        inner = session.begin_nested() if end == "savepoint" else session
        small, large = session.get(Run, 1), session.get(Run, 2)
        small.data, large.data = {"a": LARGE}, {"a": 1}
        session.flush()
        inner.rollback()
        assert small.data.a == 1
        assert large.data.a.size == LARGE.size
        session.commit()
    exact(2)
    assert held(engine) == {"a": 1}


def test_value_that_was_not_committed_can_be_stored_again(engine, exact):
    with Session(engine) as session:
        value = DataStore(l=[1])
        session.add(Run(id=1, data=value))
        session.flush()
        session.rollback()
        assert value.url is None
        value["l"].append(2)
        session.add(Run(id=2, data=value))
        session.commit()
    assert held(engine, 2) == {"l": [1, 2]}
    exact(1)


def test_edits_in_place_are_saved(engine, exact):
    with Session(engine) as session:
        session.add(
            Run(id=1, data=DataStore(l=[1], d=DataStore(l=[1]), f=pd.DataFrame({"x": [1]})))
        )
        session.commit()
    with Session(engine) as session:
        data = session.get(Run, 1).data
        data["l"].append(2)
        data.d["l"].append(3)
        data.f["x"] = [9]
        session.commit()
    found = held(engine)
    assert (found["l"], found["d"], found["f"]["x"].tolist()) == ([1, 2], {"l": [1, 3]}, [9])
    exact(1)


def test_delete_of_a_row_removes_nothing_of_others(engine, exact, stored):
    with Session(engine) as session:
        session.add(Run(id=1, data=DataStore(a=1), outside=DataStore(a=1)))
        session.add(Run(id=2, data=DataStore(a=1), outside=DataStore(a=1)))
        session.commit()
        session.delete(session.get(Run, 1))
        session.commit()
        exact(2)
        session.execute(sa.delete(Run))
        session.commit()
    exact(0)
    assert stored.files() == set()


def test_two_rows_with_one_value_hold_urls_of_their_own(engine, exact):
    with Session(engine) as session:
        first = Run(id=1, data=DataStore(a=1))
        session.add(first)
        session.commit()
        session.add(Run(id=2, data=first.data))
        session.commit()
    assert text_of(engine, 1) != text_of(engine, 2)
    assert held(engine, 2) == {"a": 1}
    exact(2)


def test_value_of_a_row_is_taken_by_a_column_that_keeps_it_outside(engine, exact):
    with Session(engine) as session:
        row = Run(id=1, data=DataStore(a=[1], n=DataStore(b=2)))
        session.add(row)
        session.commit()
        row.outside = row.data
        session.commit()
        assert row.outside.url.startswith("file:")
        row.data = row.outside
        session.commit()
        assert row.data.url.startswith("data:")
    exact(2)
    assert held(engine) == {"a": [1], "n": {"b": 2}}


# -- statements ------------------------------------------------------------------------------------


def test_bulk_and_core_statements(engine, exact):
    with engine.begin() as connection:
        rows = [{"id": n, "data": {"a": n if n % 2 else LARGE}} for n in range(1, 7)]
        connection.execute(sa.insert(Run), rows)
    exact(6)
    with engine.begin() as connection:
        connection.execute(sa.update(Run).where(Run.id == 1).values(data=DataStore(a=LARGE)))
        connection.execute(sa.update(Run).where(Run.id == 2).values(data={"a": 2}))
        connection.execute(sa.update(Run).where(Run.id == 3).values(data=None))
    exact(5)
    assert [held(engine, 2), held(engine, 3), held(engine, 5)] == [{"a": 2}, None, {"a": 5}]
    with Session(engine) as session, session.begin():
        session.execute(
            sa.update(Run), [{"id": 4, "data": {"a": "four"}}, {"id": 5, "data": {"a": LARGE}}]
        )
    exact(5)
    assert held(engine, 4) == {"a": "four"}
    with engine.begin() as connection:
        connection.execute(sa.delete(Run).where(Run.id < 5))
    exact(2)


def test_keys_of_the_database(engine, exact):
    with Session(engine) as session, session.begin():
        session.add_all([Auto(data=DataStore(n=n)) for n in range(5)])
        session.add(Auto(data=DataStore(n=LARGE)))
    exact(6)
    with Session(engine) as session:
        values = session.scalars(sa.select(Auto.data).order_by(Auto.id)).all()
        assert [value.n for value in values[:5]] == [0, 1, 2, 3, 4]


def upsert(engine, key, **values):
    """Return an upsert of the dialect, which puts another value into an existing row."""
    new = values.pop("new")
    if engine.dialect.name in ("mysql", "mariadb"):
        return mysql.insert(Run).values(id=key, **values).on_duplicate_key_update(data=new)
    module = postgresql if engine.dialect.name == "postgresql" else sqlite
    insert = module.insert(Run).values(id=key, **values)
    return insert.on_conflict_do_update(index_elements=["id"], set_={"data": new})


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("small", [0, 1, 2, 3])
def test_upsert_keeps_the_value_of_the_branch_that_ran(engine, exact, there, small):
    first, second = ({"a": 1} if small & bit else {"a": LARGE} for bit in (1, 2))
    with engine.begin() as connection:
        if there:
            connection.execute(sa.insert(Run).values(id=1, data={"a": 0}))
        connection.execute(upsert(engine, 1, data=first, new=second))
    found = held(engine)["a"]
    assert np.array_equal(found, (second if there else first)["a"])
    exact(1)


def test_statement_whose_outcome_is_not_certain(engine, exact):
    with Session(engine) as session, session.begin():
        session.add_all([Run(id=1, name="a", data={"a": 1}), Run(id=2, name="b", data={"a": 2})])
    # the criteria are not the key, so the database is asked which row got it
    with engine.begin() as connection:
        connection.execute(sa.update(Run).where(Run.name == "b").values(data={"a": 3}))
    assert [held(engine, 1), held(engine, 2)] == [{"a": 1}, {"a": 3}]
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.insert(Run), [{"id": 3, "data": {"a": 4}}, {"id": 1, "data": {}}])
    exact(2)


def test_value_of_a_failed_statement_is_as_before(engine, exact):
    value = DataStore(l=[1])
    with Session(engine) as session:
        session.add(Run(id=1, name="a", data={"a": 1}))
        session.commit()
        session.add(Run(id=2, name="a", data=value))
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()
        session.rollback()
        assert value.url is None
        session.add(Run(id=2, data=value))
        session.commit()
    exact(2)


def test_autocommit(engine, exact, stored):
    stock = sa.create_engine(engine.url, isolation_level="AUTOCOMMIT")
    bind_storage(stock, stored.base)
    with stock.connect() as connection:
        connection.execute(sa.insert(Run).values(id=1, data={"a": 1}))
        connection.execute(sa.update(Run).where(Run.id == 1).values(data={"a": LARGE}))
        connection.execute(sa.update(Run).where(Run.id == 1).values(data={"a": 2}))
    stock.dispose()
    exact(1)
    assert held(engine) == {"a": 2}


def test_comparison_is_refused_with_a_reason(engine, tables):
    with Session(engine) as session:
        row = Run(id=1, data=DataStore(a=1))
        session.add(row)
        session.commit()
        value = row.data
        with pytest.raises(RefusedStatementError, match=r"lies in its row.*primary key"):
            session.scalars(sa.select(Run).where(Run.data == value)).all()
        with pytest.raises(RefusedStatementError, match=r"lies in its row"):
            session.execute(sa.update(Run).where(Run.data == sa.bindparam("v")), {"v": value})
        session.rollback()
        assert session.scalars(sa.select(Run.id).where(Run.data.is_not(None))).all() == [1]
        assert session.scalars(sa.select(Run.id).where(Run.data.is_(None))).all() == []


# -- the value -------------------------------------------------------------------------------------


def test_listing_decodes_nothing(engine, tables, monkeypatch):
    with Session(engine) as session:
        session.add_all([Run(id=n, data=DataStore(a=n)) for n in range(20)])
        session.commit()
    from sqla_datastore.storage import urls

    decoded = []
    stock = urls.decoded
    monkeypatch.setattr(urls, "decoded", lambda piece: decoded.append(1) or stock(piece))
    with Session(engine) as session:
        rows = session.scalars(sa.select(Run).order_by(Run.id)).all()
        assert not decoded
        assert rows[3].data.a == 3
        assert len(decoded) == 1
        assert not session.dirty


def test_url_repr_pickle_and_copies(engine, tables):
    with Session(engine) as session:
        session.add(Run(id=1, data=DataStore(a=[1], inner=DataStore(b=np.arange(3)))))
        session.commit()
        value = session.get(Run, 1).data
        assert value.url == text_of(engine)
        assert repr(value).startswith("<DataStore in the row, ")
        assert "base64" not in repr(value) + value._repr_html_()
        assert inspect(value).stored
        for twin in (
            pickle.loads(pickle.dumps(value)),
            DataStore.from_url(value.url),
            value.copy(),
        ):
            assert twin["a"] == [1]
            assert twin.inner.b.tolist() == [0, 1, 2]
        inner = pickle.loads(pickle.dumps(value.inner))
        assert inner.b.tolist() == [0, 1, 2]
        assert value == value.copy()


def test_row_queries_do_not_select_what_lies_in_rows(engine, tables):
    with Session(engine) as session:
        session.add(Run(id=1, data=DataStore(a=1)))
        session.commit()
        text = text_of(engine)
    from sqla_datastore.dml.row_queries import url_text

    with engine.connect() as connection:
        found = connection.scalar(sa.select(url_text(Run.__table__.c.data)))
    assert found == text[:HEAD_LENGTH]


# -- bad input -------------------------------------------------------------------------------------

_HEAD = f"data:application/zip;id={'0' * 32};base64,"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("data:", RefusedURLError),
        ("data:text/plain,hello", RefusedURLError),
        ("data:application/zip;base64,UEsFBg==", RefusedURLError),
        (f"{_HEAD}#1", RefusedURLError),
        (f"{_HEAD}AAAA#99999999999999999999", RefusedURLError),
        (_HEAD, DamagedObjectError),
        (f"{_HEAD}UEsFB", DamagedObjectError),
        (f"{_HEAD}UE*FBg==", DamagedObjectError),
        (f"{_HEAD}é", DamagedObjectError),
        (f"{_HEAD}AAAA", DamagedObjectError),
        (f"{_HEAD}{'AAAA' * 3000}", DamagedObjectError),
    ],
)
def test_text_that_is_no_value_is_told_and_can_be_replaced(engine, exact, text, error):
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO in_row_runs (id, data) VALUES (1, :t)"), {"t": text}
        )
    with Session(engine) as session:
        row = session.get(Run, 1)
        repr(row.data)
        with pytest.raises(error) as caught:
            row.data["a"]
        assert len(str(caught.value)) < 500
        row.data = {"a": 1}
        session.commit()
    assert held(engine) == {"a": 1}
    exact(1)


_FORGED = [
    ["plain.set", 1, {"items": {"json": [n * (2**61 - 1) for n in range(500)]}}],
    ["pandas.period", 1, {"ordinal": 1, "freq": "1" * 10_000}],
    ["plain.fraction", 1, {"numerator": "1" * 30_000, "denominator": "3"}],
    ["numpy.array", 1, {"dtype": "<f8", "order": "C", "start": 0, "blob": 0, "shape": [2**60]}],
    ["arrow.table", 1, {"blob": 0}],
    ["toy.unknown", 1, {}],
    '["plain.list",1,{"json":[' + "[" * 2_000,
]


def _hostile_objects():
    """Return forged objects with right checksums, and changed and shortened ones without."""
    whole = forged_blobs(["plain.list", 1, {"json": [1, 2]}], bytes(64))
    random_ = random.Random(5)
    changed = []
    for _ in range(60):
        data = bytearray(whole)
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        changed.append(bytes(data[: random_.choice([None, random_.randrange(len(data))])]))
    return [forged_blobs(node, bytes(64)) for node in _FORGED] + changed


def test_hostile_objects_in_rows(engine, exact, stored):
    """Each raises only what is ours, and its row can be replaced and deleted."""
    objects = _hostile_objects()
    rows = [
        {"id": n, "t": _HEAD.replace("0" * 32, f"{n:032x}") + base64.b64encode(each).decode()}
        for n, each in enumerate(objects, 1)
    ]
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO in_row_runs (id, data) VALUES (:id, :t)"), rows)
    refused = []
    with Session(engine) as session:
        for row in session.scalars(sa.select(Run)).all():
            try:
                row.data.to_dict()
            except DataStoreError as err:
                refused.append(str(err))
    assert len(refused) > len(_FORGED)
    assert max(map(len, refused)) < 1_000
    found = check(engine, Base.metadata, deep=True)
    assert len(found.damaged) > len(_FORGED)
    with Session(engine) as session, session.begin():
        for row in session.scalars(sa.select(Run)).all():
            if row.id % 2:
                row.data = {"a": row.id}
            else:
                session.delete(row)
    exact(len(objects) // 2 + len(objects) % 2)
    assert held(engine) == {"a": 1}
    assert stored.files() == set()


def test_value_that_was_cut_off_names_the_option(engine, tables):
    with Session(engine) as session:
        session.add(Run(id=1, data=DataStore(a=np.arange(100))))
        session.commit()
    text = text_of(engine)[:1001]
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE in_row_runs SET data = :t"), {"t": text})
    with Session(engine) as session, pytest.raises(DamagedObjectError, match="inline_bytes"):
        session.get(Run, 1).data["a"]


def test_column_without_the_option_reads_what_lies_in_rows(engine, exact, stored):
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=DataStore(a=[1])))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE in_row_runs SET outside = data, data = NULL"))
    with Session(engine) as session:
        row = session.get(Run, 1)
        assert row.outside["a"] == [1]
        row.outside["a"].append(2)
        session.commit()
        assert row.outside.url.startswith("file:")
    exact(1)
    assert len(stored.files()) == 1


def test_io_refuses_what_lies_in_a_row():
    with pytest.raises(RefusedURLError, match="from_url"):
        DataStoreIO(f"{_HEAD}AAAA")


@pytest.mark.parametrize("number", [-1, 1.5, "10", True, None])
def test_option_is_a_number_of_bytes(number):
    with pytest.raises(ConfigurationError, match="number of bytes"):
        DataStoreType(inline_bytes=number)


def test_more_than_the_database_can_hold_is_refused_when_the_column_is_created(private_url):
    table = sa.Table("t", sa.MetaData(), sa.Column("d", DataStoreType(inline_bytes=2**30)))
    engine = make_engine(private_url)
    with pytest.raises(ConfigurationError, match=r"more than .* can hold in a row"):
        table.create(engine)
    assert not sa.inspect(engine).has_table("t")
    engine.dispose()


def test_column_is_long_enough(engine, tables):
    """Values at the limit, of which nested ones take the longest text."""
    with Session(engine) as session, session.begin():
        for key, size in enumerate(range(LIMIT - 900, LIMIT, 60)):
            session.add(Run(id=key, data=DataStore(a=b"x" * size)))
        for key, count in enumerate(range(1, 9), 100):
            inner = {f"n{n}": DataStore(a=n) for n in range(count)}
            session.add(Run(id=key, data=DataStore(inner)))
    with engine.connect() as connection:
        texts = connection.scalars(sa.text("SELECT data FROM in_row_runs")).all()
    in_rows = [text for text in texts if text.startswith("data:")]
    assert 0 < len(in_rows) < len(texts)
    type_ = sa.inspect(engine).get_columns("in_row_runs")[2]["type"]
    assert isinstance(type_, sa.Text)


@pytest.mark.mariadb
def test_value_that_the_database_cuts_off_is_noticed_before_commit(mariadb_url, stored, server_url):
    """Outside its strict mode MariaDB shortens what is too long, and only warns."""
    from support.databases import private_database

    with private_database(server_url("mariadb")) as url:
        engine = make_engine(url, stored.base)

        @event.listens_for(engine, "connect")
        def lenient(raw, _record):
            with raw.cursor() as cursor:
                cursor.execute("SET SESSION sql_mode = ''")

        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE in_row_runs MODIFY data VARCHAR(1024)"))
        with Session(engine) as session:
            session.add(Run(id=1, data=DataStore(a=np.arange(150))))
            with pytest.raises(StorageError, match=r"cut a value off at 1024 of \d+ characters"):
                session.commit()
            session.rollback()
            session.add(Run(id=2, data=DataStore(a=1)))
            session.commit()
            assert session.scalars(sa.select(Run.id)).all() == [2]
        engine.dispose()
