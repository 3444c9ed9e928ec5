"""P1, P2, P4 and P9 where a statement leaves rows alone that it was about to change."""

from __future__ import annotations

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from support.exactness import assert_exact
from support.models import Counter, Keyed, Project, Run

from sqla_datastore import DataStore, DataStoreType, StorageError, bind_storage
from sqla_datastore.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("tables")

BY_KEY_AND_NAME = (Counter.id == bindparam("i"), Counter.name == bindparam("n"))
on_mariadb = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


@pytest.fixture
def three_rows(engine):
    with engine.begin() as connection:
        rows = [{"id": n, "name": f"n{n}", "data": DataStore(n=n)} for n in (1, 2, 3)]
        connection.execute(insert(Counter), rows)


def autocommitting(engine):
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def number_of(engine, key):
    with Session(engine) as session:
        return session.get(Counter, key).data.n


# -- an executemany that meets a row twice


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_later_execution_that_does_not_match_any_more(engine, exact, three_rows, autocommit):
    values = DataStore(n=11), DataStore(n=12, long="x" * 9000)
    statement = update(Counter).where(*BY_KEY_AND_NAME).values(name="new", data=bindparam("d"))
    with (autocommitting(engine) if autocommit else engine).connect() as connection:
        connection.execute(statement, [{"i": 1, "n": "n1", "d": value} for value in values])
        connection.commit()
    assert number_of(engine, 1) == 11
    assert (values[1].url, len(values[1].long)) == (None, 9000)
    exact(3)


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_later_execution_that_fails(engine, exact, three_rows, autocommit):
    statement = update(Counter).where(Counter.id == bindparam("i"))
    parameters = [
        {"i": 1, "name": "new", "data": DataStore(n=11)},
        {"i": 1, "name": "n2", "data": DataStore(n=12)},
    ]
    with (autocommitting(engine) if autocommit else engine).connect() as connection:
        with pytest.raises(IntegrityError):
            connection.execute(statement, parameters)
        try:
            connection.commit()
        except StorageError:
            # SQLite, which the fixture's engine begins by itself
            assert not autocommit or engine.dialect.name == "sqlite"
    assert number_of(engine, 1) in (1, 11)
    exact(3)


def test_two_executions_that_take_the_top_of_a_queue(engine, exact):
    with engine.begin() as connection:
        connection.execute(insert(Counter), [{"id": n, "name": f"n{n}"} for n in (1, 2)])
    first = select(Counter.id).where(Counter.name.like("n%")).order_by(Counter.id).limit(1)
    statement = (
        update(Counter)
        .where(Counter.id.in_(select(first.subquery().c.id)))
        .values(name=Counter.id, data=bindparam("d"))
    )
    with engine.begin() as connection:
        connection.execute(statement, [{"d": DataStore(n=11)}, {"d": DataStore(n=12)}])
    assert [number_of(engine, key) for key in (1, 2)] == [11, 12]
    exact(2)


def test_a_value_that_is_replaced_by_the_same_statement_leaves_no_object(engine, exact, three_rows):
    statement = update(Counter).where(Counter.id == bindparam("i"))
    with engine.begin() as connection:
        connection.execute(statement, [{"i": 1, "data": DataStore(n=n)} for n in (11, 12, 13)])
    assert number_of(engine, 1) == 13
    exact(3)


# -- a savepoint that a listener of a flush rolls back


def test_a_savepoint_that_is_rolled_back_inside_a_flush(engine, exact, three_rows):
    def audit(_mapper, connection, _row):
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(insert(Counter).values(id=9, name="n1", data=DataStore(n=9)))

    event.listen(Keyed, "after_insert", audit)
    try:
        with Session(engine) as session:
            session.add_all([Keyed(id=n, data=DataStore(n=n)) for n in (1, 2)])
            session.commit()
            assert [session.get(Keyed, n).data.n for n in (1, 2)] == [1, 2]
    finally:
        event.remove(Keyed, "after_insert", audit)
    exact(5)


# -- rows that get another key after a statement left them alone


def failing_update(connection):
    with pytest.raises(IntegrityError), connection.begin_nested():
        connection.execute(
            update(Counter).where(Counter.id == 1).values(name="n2", data=DataStore(n=9))
        )


def failing_update_without_savepoint(connection):
    if connection.dialect.name == "postgresql":
        pytest.skip("PostgreSQL only rolls back after a failed statement")
    with pytest.raises(IntegrityError):
        connection.execute(
            update(Counter).where(Counter.id == 1).values(name="n2", data=DataStore(n=9))
        )


def delete_of_other_names(connection):
    parameters = [{"i": key, "n": "other"} for key in (1, 9)]
    connection.execute(delete(Counter).where(*BY_KEY_AND_NAME), parameters)


def update_of_other_names(connection):
    parameters = [{"i": key, "n": "other", "d": DataStore(n=9)} for key in (1, 9)]
    statement = update(Counter).where(*BY_KEY_AND_NAME).values(data=bindparam("d"))
    connection.execute(statement, parameters)


@pytest.mark.parametrize(
    "leave_alone",
    [
        failing_update,
        failing_update_without_savepoint,
        delete_of_other_names,
        update_of_other_names,
    ],
)
def test_a_row_that_gets_another_key_after_it_was_left_alone(
    engine, exact, three_rows, leave_alone
):
    with engine.begin() as connection:
        leave_alone(connection)
        connection.execute(update(Counter).where(Counter.id == 1).values(id=50))
    assert number_of(engine, 50) == 1
    exact(3)


def test_what_a_delete_left_alone_is_copied_to_another_row(engine, exact):
    with Session(engine) as session:
        session.add(Project(id=1))
        session.flush()
        session.add_all([Run(id=n, id_project=1, data=DataStore(n=n)) for n in (1, 2)])
        session.commit()
    statement = delete(Run).where(Run.id == bindparam("i"), Run.id_project == bindparam("p"))
    with engine.begin() as connection:
        value = connection.scalar(select(Run.data).where(Run.id == 1))
        connection.execute(statement, [{"i": key, "p": 7} for key in (1, 9)])
        connection.execute(update(Run).where(Run.id == 2).values(data=value))
    exact(2)
    with engine.begin() as connection:
        connection.execute(delete(Run).where(Run.id == 1))
    with Session(engine) as session:
        assert session.get(Run, 2).data.n == 1
    exact(1)


# -- MariaDB


@on_mariadb
@pytest.mark.parametrize("kind", ["update", "delete"])
def test_a_row_that_another_transaction_changed_after_the_snapshot(engine, exact, kind):
    with Session(engine) as session:
        session.add(Project(id=1))
        session.add_all([Counter(id=n, name=f"n{n}", data=DataStore(n=n)) for n in (1, 2)])
        session.commit()
    with engine.connect() as connection:
        connection.execute(select(Counter.id)).all()
        with engine.begin() as other:
            other.execute(update(Counter).where(Counter.id == 1).values(data=DataStore(n=77)))
        if kind == "update":
            failing_update_without_savepoint(connection)
        else:
            delete_of_other_names(connection)
        connection.commit()
    assert number_of(engine, 1) == 77
    exact(2)


@on_mariadb
def test_a_statement_under_autocommit_after_a_select(database_url, stored, exact, monkeypatch):
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    bind_storage(engine, stored.base)
    with engine.connect() as connection:
        rows = [{"id": n, "name": f"n{n}", "data": DataStore(n=n)} for n in (1, 2, 3)]
        connection.execute(insert(Counter), rows)
        connection.execute(select(Counter.id)).all()
        statement = update(Counter).where(Counter.id == bindparam("i"))
        parameters = [
            {"i": 1, "name": "new", "data": DataStore(n=11)},
            {"i": 2, "name": "n3", "data": DataStore(n=12)},
        ]
        with pytest.raises(IntegrityError):
            connection.execute(statement, parameters)
        exact(3)

        def full(_self, _path):
            raise StorageError("no space left")

        monkeypatch.setattr(LocalStorage, "create", full)
        connection.execute(select(Counter.id)).all()
        with pytest.raises(StorageError, match="no space"):
            connection.execute(insert(Counter).values(id=9, name="n9", data=DataStore(n=9)))
    assert number_of(engine, 1) == 11
    exact(3)
    engine.dispose()


# -- a statement under AUTOCOMMIT, whose objects are written before it runs


@pytest.mark.parametrize("kind", ["update", "insert", "batches"])
def test_a_value_that_no_row_got_under_autocommit(engine, exact, three_rows, kind):
    values = [DataStore(n=n, long="x" * 9000) for n in (1, 2)]
    statement = update(Counter).where(Counter.id == 77).values(data=values[0])
    parameters = None
    if kind != "update":
        name = engine.dialect.name
        if name in ("mysql", "mariadb"):
            statement = insert(Counter).prefix_with("IGNORE")
        else:
            make = postgresql.insert if name == "postgresql" else sqlite.insert
            statement = make(Counter).on_conflict_do_nothing()
        parameters = [{"id": n, "data": v} for n, v in zip((1, 2), values, strict=True)]
        statement = statement.returning(Counter.id) if kind == "batches" else statement
    autocommit = autocommitting(engine).execution_options(insertmanyvalues_page_size=1)
    with autocommit.connect() as connection:
        connection.execute(statement, parameters)
    assert [(value.url, len(value.long)) for value in values] == [(None, 9000)] * 2
    assert number_of(engine, 1) == 1
    exact(3)


# -- a table without a primary key


def test_an_upsert_of_several_rows_without_a_primary_key(engine, stored):
    metadata = MetaData()
    table = Table(
        "keyless",
        metadata,
        Column("number", Integer),
        Column("name", String(9), unique=True),
        Column("data", DataStoreType(folder="keyless/{number}")),
    )
    rows = [{"number": n, "name": f"n{n}", "data": DataStore(n=n)} for n in (1, 2, 3)]
    if engine.dialect.name in ("mysql", "mariadb"):
        statement = mysql.insert(table)
        statement = statement.on_duplicate_key_update(data=statement.inserted.data)
    else:
        make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        statement = make(table)
        statement = statement.on_conflict_do_update(
            index_elements=["name"], set_={"data": statement.excluded.data}
        )
    metadata.create_all(engine)
    try:
        for count in (1, 3):
            with engine.begin() as connection:
                connection.execute(
                    statement, [row | {"data": DataStore(n=count)} for row in rows[:count]]
                )
            assert_exact(engine, metadata, stored, count)
    finally:
        metadata.drop_all(engine)


# -- SQLite, whose drivers begin late


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_refused_release_of_the_savepoint_that_began_the_transaction(tmp_path, stored, caplog):
    metadata = MetaData()
    Table("parents", metadata, Column("id", Integer, primary_key=True))
    table = Table(
        "children",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("parent", ForeignKey("parents.id", deferrable=True, initially="DEFERRED")),
        Column("data", DataStoreType()),
    )
    # without `enable_sqlite_transactions`, as `sqlite3` is by itself
    engine = create_engine(f"sqlite:///{tmp_path / 'stock.db'}")
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
    bind_storage(engine, stored.base)
    metadata.create_all(engine)
    value = DataStore(n=1)
    with engine.connect() as connection:
        savepoint = connection.begin_nested()
        connection.execute(insert(table).values(id=1, parent=9, data=value))
        with pytest.raises(IntegrityError):
            savepoint.commit()
        connection.rollback()
    assert (value.url, value.n) == (None, 1)
    assert not caplog.records
    assert_exact(engine, metadata, stored, 0)
    engine.dispose()
