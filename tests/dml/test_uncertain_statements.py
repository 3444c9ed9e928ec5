"""P1, P2 and P9 where it is not certain, until COMMIT, what a statement has done to rows."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import bindparam, delete, event, insert, null, tuple_, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from support.models import Counter, Keyed, Sorted

from sqla_datastore import DataStore, RefusedStatementError, StorageError
from sqla_datastore.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("tables")


def ignoring(engine, **values):
    """An INSERT that leaves a row alone that is there already."""
    if engine.dialect.name in ("mysql", "mariadb"):
        return mysql.insert(Keyed).prefix_with("IGNORE").values(**values)
    make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    return make(Keyed).values(**values).on_conflict_do_nothing()


def failing_update(session, key):
    """An UPDATE that fails, in a savepoint where the database wants one."""
    with pytest.raises(IntegrityError), session.begin_nested():
        session.execute(
            update(Counter).where(Counter.id == key).values(name="taken", data=DataStore(n=9)),
            execution_options={"synchronize_session": False},
        )


@pytest.fixture
def two_rows(engine):
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=DataStore(n=n)) for n in (1, 2)])
        session.commit()


def test_what_an_upsert_left_alone_is_copied_to_another_row(engine, exact, two_rows):
    with Session(engine) as session:
        session.execute(ignoring(engine, id=1, data=DataStore(n=9)))
        session.get(Keyed, 2).data = session.get(Keyed, 1).data
        session.commit()
        session.get(Keyed, 1).data = DataStore(n=3)
        session.commit()
    with Session(engine) as session:
        assert session.get(Keyed, 2).data.n == 1
    exact(2)


def test_what_a_failed_statement_left_alone_is_copied_to_another_row(engine, exact):
    with Session(engine) as session:
        session.add_all(
            [Counter(id=n, name=name, data=DataStore(n=n)) for n, name in ((1, "a"), (2, "taken"))]
        )
        session.commit()
        failing_update(session, 1)
        session.get(Counter, 2).data = session.get(Counter, 1).data
        session.commit()
        session.get(Counter, 1).data = DataStore(n=3)
        session.commit()
    with Session(engine) as session:
        assert session.get(Counter, 2).data.n == 1
    exact(2)


@pytest.mark.parametrize("kind", ["upsert", "failure"])
def test_what_an_uncertain_statement_left_alone_is_made_durable(engine, exact, monkeypatch, kind):
    durable = []
    make_durable = LocalStorage.make_durable

    def note(storage, paths):
        durable.extend(paths := list(paths))
        make_durable(storage, paths)

    monkeypatch.setattr(LocalStorage, "make_durable", note)
    with Session(engine) as session:
        if kind == "upsert":
            row = Keyed(id=1, data=DataStore(n=1))
            session.add(row)
            session.flush()
            session.execute(ignoring(engine, id=1, data=DataStore(n=9)))
        else:
            row = Counter(id=1, name="a", data=DataStore(n=1))
            session.add_all([row, Counter(id=2, name="taken")])
            session.flush()
            failing_update(session, 1)
        path = row.data.url.removeprefix("file:///")
        session.commit()
    assert path in durable
    exact(1)


def test_a_value_that_no_row_got_can_be_stored_in_the_same_transaction(engine, exact, two_rows):
    value = DataStore(items=[1])
    with Session(engine, expire_on_commit=False) as session:
        session.execute(ignoring(engine, id=1, data=value))
        row = Keyed(id=5, data=value)
        session.add(row)
        session.commit()
        assert row.data.url is not None
        row.data["items"].append(2)
        session.commit()
    with Session(engine) as session:
        assert session.get(Keyed, 5).data["items"] == [1, 2]
        assert session.get(Keyed, 1).data.n == 1
    exact(3)


def test_a_value_that_no_row_got_is_not_stored(engine, exact, two_rows):
    value = DataStore(n=9)
    with engine.begin() as connection:
        connection.execute(ignoring(engine, id=1, data=value))
        copy = value.copy()
    assert (value.url, value.n, copy.n) == (None, 9, 9)
    exact(2)


def test_an_ignored_insert_writes_no_object(engine, stored, two_rows):
    before = stored.files()
    with engine.begin() as connection:
        connection.execute(ignoring(engine, id=1, data=DataStore(n=9)))
        assert stored.files() == before


def test_an_update_with_returning_that_finds_a_row_late(engine, exact):
    """sqlite3 counts the rows of RETURNING while they are fetched."""
    if engine.dialect.name in ("mysql", "mariadb"):
        pytest.skip("its UPDATE has no RETURNING")
    with Session(engine) as session:
        session.add(Keyed(id=1, name="free"))
        session.commit()
    seen = []

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def hide(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("SELECT") and not seen:
            seen.append(statement)
            parameters = (
                tuple("nothing" if p == "free" else p for p in parameters)
                if isinstance(parameters, tuple)
                else {k: "nothing" if v == "free" else v for k, v in parameters.items()}
            )
        return statement, parameters

    statement = update(Keyed).where(Keyed.name == "free").values(data=DataStore(n=1))
    with engine.begin() as connection:
        assert connection.execute(statement.returning(Keyed.id)).scalars().all() == [1]
    assert seen
    exact(1)


def test_a_failed_statement_asks_nothing_of_the_storage(engine, two_rows, monkeypatch, caplog):
    def refuse(*_):
        raise StorageError("the storage is gone")

    for name in ("create", "remove", "list"):
        monkeypatch.setattr(LocalStorage, name, refuse)
    with caplog.at_level(logging.WARNING), Session(engine) as session:
        with pytest.raises(IntegrityError):
            session.execute(insert(Keyed).values(id=1, data=DataStore(n=9)))
        session.rollback()
    assert not caplog.records


def test_a_row_that_gets_another_key_after_its_value(engine, exact, two_rows):
    with Session(engine) as session:
        session.get(Keyed, 1).name = "a"
        session.commit()
        session.execute(update(Keyed).where(Keyed.name == "a").values(data=DataStore(n=9)))
        session.execute(update(Keyed).where(Keyed.id == 1).values(id=7))
        session.commit()
    with Session(engine) as session:
        assert session.get(Keyed, 7).data.n == 9
    exact(2)


def test_batches_of_an_insert_under_autocommit(engine, exact, caplog):
    autocommit = engine.execution_options(
        isolation_level="AUTOCOMMIT", insertmanyvalues_page_size=2
    )
    rows = [{"name": f"n{n}", "data": DataStore(n=n)} for n in range(5)]
    with caplog.at_level(logging.WARNING), autocommit.connect() as connection:
        found = connection.execute(insert(Counter).returning(Counter.id), rows).scalars().all()
        connection.commit()
    assert len(found) == 5
    assert not caplog.records
    exact(5)


def test_rows_by_a_parameter_that_is_written_into_the_statement_are_refused(
    engine, exact, two_rows
):
    key = Keyed.__table__.c.id
    one = bindparam("one", literal_execute=True)
    some = bindparam("some", expanding=True, literal_execute=True)
    for criterion, given in ((key == one, {"one": 1}), (key.in_(some), {"some": [1]})):
        for statement in (delete(Keyed.__table__), update(Keyed.__table__).values(data=null())):
            with (
                engine.begin() as connection,
                pytest.raises(RefusedStatementError, match="ordinary parameter"),
            ):
                connection.execute(statement.where(criterion), given)
    exact(2)


@pytest.mark.parametrize("keys", [[(1, "a")], [(1, "a"), (2, "b")], [(1, "b")], []])
def test_rows_by_tuples_that_are_given(engine, exact, keys):
    with Session(engine) as session:
        session.add_all(
            [Keyed(id=n, name=name, data=DataStore(n=n)) for n, name in ((1, "a"), (2, "b"))]
        )
        session.commit()
    table = Keyed.__table__
    given = bindparam("keys", expanding=True)
    with engine.begin() as connection:
        connection.execute(
            delete(table).where(tuple_(table.c.id, table.c.name).in_(given)), {"keys": keys}
        )
    exact(2 - len([key for key in keys if key in ((1, "a"), (2, "b"))]))


def test_one_value_of_a_conflict_clause_for_rows_that_meet_each_other_is_refused(engine, exact):
    rows = [{"id": key} for key in (7, 7, 8, 8)]
    if engine.dialect.name in ("mysql", "mariadb"):
        statement = mysql.insert(Keyed).values(rows).on_duplicate_key_update(data=DataStore(n=9))
    else:
        make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        statement = make(Keyed).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={"data": DataStore(n=9)}
        )
    with engine.connect() as connection, pytest.raises(RefusedStatementError, match="several rows"):
        connection.execute(statement)
    exact(0)


@pytest.mark.filterwarnings("ignore:.* cartesian product")
def test_the_key_of_another_table_is_not_the_rows_own(engine, exact, two_rows):
    with Session(engine) as session:
        session.add_all([Counter(id=n) for n in (1, 2)])
        session.commit()
    clear = update(Keyed.__table__).where(Counter.__table__.c.id == bindparam("other"))
    with engine.begin() as connection:
        # each of the two updates both rows, since nothing ties the tables
        connection.execute(clear.values(data=null()), [{"other": 1}, {"other": 2}])
    exact(0)


def upsert(engine, key, value, other):
    if engine.dialect.name in ("mysql", "mariadb"):
        return mysql.insert(Keyed).values(id=key, data=value).on_duplicate_key_update(data=other)
    make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    return (
        make(Keyed)
        .values(id=key, data=value)
        .on_conflict_do_update(index_elements=["id"], set_={"data": other})
    )


@pytest.mark.parametrize("kind", [dict, DataStore])
def test_an_upsert_with_a_value_for_each_branch(engine, exact, kind):
    with Session(engine) as session:
        session.execute(upsert(engine, 1, kind(n=1), kind(n=2)))
        session.commit()
        assert session.get(Keyed, 1).data.n == 1
        exact(1)
        session.execute(upsert(engine, 1, kind(n=3), kind(n=4)))
        session.commit()
        assert session.get(Keyed, 1).data.n == 4
    exact(1)


def setting(engine, clause):
    """An INSERT of row 1 whose conflict clause sets columns, in an order of its own on MySQL."""
    if engine.dialect.name in ("mysql", "mariadb"):
        return mysql.insert(Sorted).values(id=1).on_duplicate_key_update([*clause.items()])
    make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    return make(Sorted).values(id=1).on_conflict_do_update(index_elements=["id"], set_=clause)


@pytest.mark.parametrize("names", [("first", "second"), ("second", "first")])
@pytest.mark.parametrize("missing", ["first", "second", None])
def test_a_conflict_clause_that_sets_some_columns_to_none(engine, exact, names, missing):
    with Session(engine) as session:
        session.add(Sorted(id=1, first=DataStore(n="old"), second=DataStore(n="old")))
        session.commit()
        clause = {name: None if name == missing else DataStore(n=name) for name in names}
        session.execute(setting(engine, clause))
        session.commit()
        row = session.get(Sorted, 1)
        for name in names:
            found = getattr(row, name)
            if name == missing:
                assert found is None
            else:
                assert found.n == name
                assert found.url.startswith(f"file:///{name}/")
    exact(1 if missing else 2)


def test_a_conflict_clause_that_compares_with_a_value_is_refused(engine, exact):
    if engine.dialect.name in ("mysql", "mariadb"):
        pytest.skip("its conflict clause has no criteria")
    with Session(engine) as session:
        session.add(Sorted(id=1, first=DataStore(n=1)))
        session.commit()
        make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        statement = make(Sorted).values(id=1)
        for where, refused in ((Sorted.first == session.get(Sorted, 1).first, True), (None, False)):
            upserting = statement.on_conflict_do_update(
                index_elements=["id"], set_={"second": DataStore(n=2)}, where=where
            )
            if refused:
                with pytest.raises(RefusedStatementError, match="compare with a URL"):
                    session.execute(upserting)
            else:
                session.execute(upserting)
        session.commit()
    exact(2)


def test_one_value_of_a_conflict_clause_for_several_rows_is_refused(engine, exact, two_rows):
    if engine.dialect.name in ("mysql", "mariadb"):
        statement = mysql.insert(Keyed).values([{"id": 1}, {"id": 2}])
        statement = statement.on_duplicate_key_update(data=DataStore(n=9))
    else:
        make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        statement = make(Keyed).values([{"id": 1}, {"id": 2}])
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={"data": DataStore(n=9)}
        )
    with engine.connect() as connection, pytest.raises(RefusedStatementError, match="several rows"):
        connection.execute(statement)
    exact(2)
