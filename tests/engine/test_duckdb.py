"""The plain matrix on DuckDB, which has neither row locks nor savepoints: nothing ever dangles."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    create_engine,
    delete,
    exc,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.exactness import assert_exact

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreType,
    bind_storage,
    enable_removals,
)
from sqla_datastore.dml.dialects import (
    locked_for_reading,
    refuse_without_transactions,
    rows_at_once,
)
from sqla_datastore.dml.row_queries import rows_query
from sqla_datastore.maintenance import check, gc, usage
from sqla_datastore.schema.declarations import declared_table

pytest.importorskip("duckdb_engine", reason="it is tested with the newest versions")


class Base(DeclarativeBase):
    """The tables of this module."""


class Run(Base):
    """Its key is chosen by the test: DuckDB makes none without a sequence."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(index=True)
    note: Mapped[str | None]
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    small: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=2_000))


class Project(Base):
    """Owns a folder into which its parts write."""

    __tablename__ = "projects"
    __datastore_folder__ = "projects/{id}"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Part(Base):
    """Writes into the folder of its parent."""

    __tablename__ = "parts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="projects/{project_id}"))


def value(n):
    return DataStore(n=n, l=[n], a=np.arange(n), inner=DataStore(n=n))


@pytest.fixture
def engine(tmp_path, stored):
    engine = create_engine(f"duckdb:///{tmp_path / 'test.duckdb'}")
    bind_storage(engine, stored.base)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Run(id=n, name=f"r{n}", data=value(n)) for n in (1, 2, 3)])
    yield engine
    engine.dispose()


@pytest.fixture
def exact(engine, stored):
    """Assert that storage and rows agree."""
    yield lambda count: assert_exact(engine, Base.metadata, stored, count)
    assert check(engine, Base.metadata, deep=True).is_clean


def held(engine, key):
    with Session(engine) as session:
        row = session.get(Run, key)
        return row and row.data.n


def test_insert_replace_edit_and_delete(engine, exact):
    exact(3)
    with Session(engine) as session:
        session.get(Run, 1).data = value(11)
        session.get(Run, 2).data["l"].append(5)
        session.get(Run, 2).data.inner.n = 22
        session.delete(session.get(Run, 3))
        session.add(Run(id=4, data=value(4), small=DataStore(x=1)))
        session.commit()
    exact(4)
    assert [held(engine, key) for key in (1, 2, 3, 4)] == [11, 2, None, 4]
    with Session(engine) as session:
        assert session.get(Run, 2).data["l"] == [2, 5]
        assert session.get(Run, 2).data.inner.n == 22
        assert session.get(Run, 4).small.url.startswith("data:")


def test_rollback_brings_back_what_was_there(engine, exact):
    with Session(engine) as session:
        session.get(Run, 1).data = value(11)
        session.delete(session.get(Run, 2))
        session.add(Run(id=4, data=value(4)))
        session.flush()
        session.rollback()
        assert session.get(Run, 1).data.n == 1
    exact(3)


def test_bulk_and_core_statements(engine, exact):
    with engine.begin() as connection:
        connection.execute(insert(Run), [{"id": n, "data": value(n)} for n in (4, 5, 6)])
        connection.execute(update(Run).where(Run.id == 4).values(data=value(44)))
        connection.execute(update(Run).where(Run.name == "r1").values(data=value(11)))
        connection.execute(delete(Run).where(Run.id.in_([2, 5])))
    exact(4)
    assert [held(engine, key) for key in (1, 3, 4, 6)] == [11, 3, 44, 6]
    with Session(engine) as session, session.begin():
        session.execute(update(Run), [{"id": 1, "data": value(12)}, {"id": 3, "data": value(13)}])
    exact(4)
    assert [held(engine, 1), held(engine, 3)] == [12, 13]


def test_a_statement_that_fails_is_rolled_back(engine, exact):
    with Session(engine) as session:
        session.get(Run, 1).data = value(11)
        session.add(Run(id=2, data=value(22)))
        with pytest.raises(exc.DBAPIError):
            session.commit()
        session.rollback()
    exact(3)
    assert [held(engine, 1), held(engine, 2)] == [1, 2]


def test_savepoints_are_refused_by_the_database_and_nothing_is_lost(engine, exact):
    with Session(engine) as session:
        session.get(Run, 1).data = value(11)
        session.begin_nested()
        with pytest.raises(exc.DBAPIError, match="SAVEPOINT"):
            session.scalars(select(Run.id)).all()
        session.rollback()
    exact(3)
    assert held(engine, 1) == 1


WORK = ("replaces", "replaces and names", "deletes", "names", "notes", "moves", "names by text")
"""What transactions do to a row; `name` and the key have an index, `note` has none."""


def work(connection, how, key=1):
    if how == "names by text":
        connection.execute(text("UPDATE runs SET name = 'renamed' WHERE id = :id"), {"id": key})
    elif how == "deletes":
        connection.execute(delete(Run).where(Run.id == key))
    else:
        values = {
            "replaces": {"data": value(10)},
            "replaces and names": {"data": value(10), "name": "renamed"},
            "names": {"name": "renamed"},
            "notes": {"note": "noted"},
            "moves": {"id": key + 1_000},
        }
        connection.execute(update(Run).where(Run.id == key).values(values[how]))


def end(connection):
    try:
        connection.commit()
    except exc.DBAPIError:
        connection.rollback()


def assert_whole(engine, stored):
    """Assert that every row can be read, and that gc makes storage and rows agree."""
    report = check(engine, Base.metadata, deep=True)
    assert not report.dangling
    assert not report.damaged
    gc(engine, Base.metadata, apply=True, grace_seconds=0)
    assert_exact(engine, Base.metadata, stored)


@pytest.mark.parametrize("first", WORK)
@pytest.mark.parametrize("order", ["the first commits before", "both are open", "it ends last"])
def test_two_transactions_on_one_row(engine, stored, first, order):
    """One of them may fail, or leave an orphan; no row dangles, and gc makes it exact.

    DuckDB lets an UPDATE in place pass beside a DELETE, and an UPDATE of an indexed column is a
    DELETE and an INSERT, which brings back what the row held in the snapshot.
    """
    with engine.begin() as connection:
        rows = [{"id": n, "data": value(1)} for n in range(100, 100 + len(WORK))]
        connection.execute(insert(Run), rows)
    for key, second in enumerate(WORK, 100):
        with engine.connect() as one, engine.connect() as other:
            for connection in (one, other):
                connection.execute(select(Run.id)).all()  # its snapshot begins
            work(one, first, key)
            if order == "the first commits before":
                end(one)
            with contextlib.suppress(exc.DBAPIError):
                work(other, second, key)
            for connection in (other, one) if order == "it ends last" else (one, other):
                end(connection)
    assert_whole(engine, stored)


@pytest.mark.parametrize("order", [["child", "parent"], ["parent", "child"]], ids=str)
@pytest.mark.parametrize("ends", [["child", "parent"], ["parent", "child"]], ids=str)
def test_a_child_of_a_parent_that_another_transaction_deletes(engine, stored, order, ends):
    """DuckDB lets both commit, whatever the foreign key says; the child keeps its object."""
    with engine.begin() as connection:
        connection.execute(insert(Project).values(id=1))
    with engine.connect() as child, engine.connect() as parent:
        for connection in (child, parent):
            connection.execute(select(Project.id)).all()
        for name in order:
            if name == "child":
                child.execute(insert(Part).values(id=1, project_id=1, data=value(1)))
            else:
                parent.execute(delete(Project))
        for name in ends:
            end({"child": child, "parent": parent}[name])
    assert_whole(engine, stored)
    assert held_part(engine) == 1


def held_part(engine):
    with Session(engine) as session:
        return session.get(Part, 1).data.n


def test_gc_waits_for_an_open_transaction(engine, stored):
    """An old object that no committed row holds may be what an open transaction brings back."""
    with engine.connect() as one, engine.connect() as other:
        other.execute(select(Run.id)).all()
        work(one, "replaces")
        one.commit()
        work(other, "names")
        report = gc(engine, Base.metadata, apply=True, grace_seconds=0)
        assert report.removed == 0
        assert "open" in report.failures[0]
        other.commit()
    assert_whole(engine, stored)
    assert held(engine, 1) == 1


def test_what_nobody_else_could_see_goes_at_once(engine, exact):
    """A transaction that has ended, or a connection that is closed, is waited for no more."""
    for finish in ("commit", "rollback", "close"):
        with engine.connect() as other:
            other.execute(select(Run.id)).all()
            getattr(other, finish)()
            with engine.connect() as one:
                work(one, "replaces")
                one.commit()
        exact(3)


def test_a_process_that_dies_leaves_the_rows_whole(engine, stored, tmp_path, exact):
    url = engine.url.render_as_string()
    engine.dispose()
    program = f"""
        import os, sys
        sys.path[:0] = {sys.path!r}
        from engine.test_duckdb import Base, Run, bind_storage, create_engine, Session, value
        engine = create_engine({url!r})
        bind_storage(engine, {str(stored.base)!r})
        session = Session(engine)
        session.get(Run, 1).data = value(11)
        session.delete(session.get(Run, 2))
        session.flush()
        os._exit(7)
    """
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False).returncode
    assert code == 7
    assert not check(engine, Base.metadata).dangling
    assert len(gc(engine, Base.metadata, apply=True, grace_seconds=0).orphans) == 2
    exact(3)
    assert [held(engine, 1), held(engine, 2)] == [1, 2]


def test_maintenance(engine, exact):
    assert usage(engine, Base.metadata).objects == 6
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 0
    with engine.connect() as connection:
        assert connection.scalar(select(Run.data.is_not(None)).limit(1))
    exact(3)


def test_durable_removals_are_refused(tmp_path, stored):
    metadata = MetaData()
    table = Table(
        "kept",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("data", DataStoreType()),
    )
    enable_removals(metadata)
    engine = create_engine(f"duckdb:///{tmp_path / 'kept.duckdb'}")
    bind_storage(engine, stored.base)
    table.create(engine)
    with engine.connect() as connection:
        connection.execute(insert(table).values(id=1, data=value(1)))
        with pytest.raises(ConfigurationError, match="leave enable_removals"):
            connection.commit()
    with engine.connect() as connection:
        assert not connection.scalars(select(table.c.id)).all()
    assert not stored.files()
    engine.dispose()


def test_a_database_without_transactions_is_refused():
    class Dialect:
        name = "clickhouse"

    with pytest.raises(ConfigurationError, match="has no transactions"):
        refuse_without_transactions(Dialect())


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (mssql.dialect(), "WITH (UPDLOCK, ROWLOCK)"),
        (oracle.dialect(), "FOR UPDATE OF runs.id"),
        (postgresql.dialect(), "FOR UPDATE OF runs"),
        (mysql.dialect(), "FOR UPDATE"),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_rows_are_locked_as_each_database_has_it(dialect, expected):
    declared = declared_table(Run.__table__)
    query = rows_query(declared, declared.columns, [Run.id == 1], dialect)
    assert expected in str(query.compile(dialect=dialect))


def test_names_are_asked_for_with_a_lock_where_a_select_would_not_wait():
    query = locked_for_reading(select(Run.id), Run.__table__)
    assert "WITH (READCOMMITTEDLOCK)" in str(query.compile(dialect=mssql.dialect()))
    assert "LOCK IN SHARE MODE" in str(query.compile(dialect=mysql.dialect()))


@pytest.mark.parametrize(("columns", "rows"), [(1, 500), (2, 499), (5, 199), (2000, 1)])
def test_keys_of_several_columns_make_no_statement_too_large(columns, rows):
    assert rows_at_once(columns) == rows


@pytest.mark.parametrize("dialect", [mssql.dialect(), oracle.dialect()], ids=lambda d: d.name)
def test_values_in_rows_are_refused_where_they_cannot_be_compared(dialect):
    with pytest.raises(ConfigurationError, match=f"not for {dialect.name}"):
        DataStoreType(inline_bytes=100).dialect_impl(dialect)
