"""P4 and P2 where statements race, repeat a row, or fail half-way."""

from __future__ import annotations

import threading

import pandas as pd
import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    bindparam,
    column,
    delete,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy import table as table_clause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from support.databases import make_engine
from support.models import Counter, Keyed, Project, Run, Texts, Touched

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreType,
    RefusedStatementError,
    StaleValueError,
    StorageError,
)

pytestmark = pytest.mark.usefixtures("tables")


def value(n=0):
    return DataStore(n=n, items=[n])


def upsert(engine, table):
    if engine.dialect.name in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import insert as dialect_insert
    elif engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as dialect_insert
    else:
        from sqlalchemy.dialects.sqlite import insert as dialect_insert
    return dialect_insert(table)


def on_conflict_update(statement, **values):
    if hasattr(statement, "on_duplicate_key_update"):
        values = {"data": statement.inserted.data, **values}
        return statement.on_duplicate_key_update(**values)
    return statement.on_conflict_do_update(
        index_elements=["name"], set_={"data": statement.excluded.data, **values}
    )


# -- other transactions --------------------------------------------------------------------------


def concurrently(engine, stored, first, second):
    """Run one transaction up to its COMMIT, another against it, and see both end."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    other = make_engine(engine.url, stored.base)
    outcomes = []

    def run():
        with Session(other) as session:
            try:
                second(session)
                session.commit()
                outcomes.append("committed")
            except DBAPIError:
                session.rollback()
                outcomes.append("rolled back")

    with Session(engine) as session:
        first(session)
        session.flush()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(0.5)
        session.commit()
    thread.join(30)
    assert not thread.is_alive()
    other.dispose()
    return outcomes


def test_a_row_whose_old_folder_another_row_takes(engine, stored, exact):
    with Session(engine) as session:
        session.add(Keyed(id=5, data=value(1)))
        session.commit()
        session.get(Keyed, 5).id = 7
        session.commit()
    concurrently(
        engine,
        stored,
        lambda session: setattr(session.get(Keyed, 7), "data", value(2)),
        lambda session: session.add(Keyed(id=5, data=value(3))),
    )
    exact()
    with Session(engine) as session:
        assert session.get(Keyed, 7).data.n == 2


def test_a_child_that_left_while_its_old_parent_is_deleted(engine, stored, exact):
    with Session(engine) as session:
        session.add_all([Project(id=1), Project(id=2)])
        session.flush()
        session.add(Run(id=1, id_project=1, data=value(1)))
        session.commit()
        session.get(Run, 1).id_project = 2
        session.commit()
    concurrently(
        engine,
        stored,
        lambda session: setattr(session.get(Run, 1), "data", value(2)),
        lambda session: session.delete(session.get(Project, 1)),
    )
    exact(1)
    with Session(engine) as session:
        assert session.get(Run, 1).data.n == 2


def test_a_second_column_of_a_child_that_left(engine, stored, exact):
    """The column that is set was NULL, so no URL in the old folder tells of its row."""
    with Session(engine) as session:
        session.add_all([Project(id=1), Project(id=2)])
        session.flush()
        session.add(Run(id=1, id_project=1, data=value(1)))
        session.commit()
        session.get(Run, 1).id_project = 2
        session.commit()
    concurrently(
        engine,
        stored,
        lambda session: setattr(session.get(Run, 1), "more", value(2)),
        lambda session: session.delete(session.get(Project, 1)),
    )
    exact(2)
    with Session(engine) as session:
        assert session.get(Run, 1).more.n == 2


def test_a_child_that_is_committed_while_its_parent_is_deleted(engine, stored, exact):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    with Session(engine) as session:
        session.add(Project(id=1))
        session.commit()
    other = make_engine(engine.url, stored.base)
    with Session(engine.execution_options(isolation_level="READ COMMITTED")) as session:
        project = session.get(Project, 1)
        with Session(other) as second:
            second.add(Run(id_project=1, data=value(1)))
            second.commit()
        session.delete(project)
        session.commit()
    other.dispose()
    exact(0)


def test_a_row_that_appears_during_an_update_is_refused(engine, stored, exact):
    if engine.dialect.name != "postgresql":
        pytest.skip("only READ COMMITTED without gap locks lets a row appear")
    other = make_engine(engine.url, stored.base)
    with Session(engine) as session:
        session.add(Keyed(id=1, name="x", data=value(1)))
        session.commit()

        appeared = []

        @event.listens_for(engine, "before_cursor_execute")
        def appear(_connection, _cursor, statement, *_):
            if statement.startswith("UPDATE") and not appeared:
                appeared.append(statement)
                with Session(other) as second:
                    second.add(Keyed(id=2, name="x", data=value(2)))
                    second.commit()

        statement = update(Keyed).where(Keyed.name == "x").values(data=value(3))
        with pytest.raises(RefusedStatementError, match="appeared"):
            session.execute(statement.execution_options(synchronize_session=False))
        with pytest.raises(StorageError):
            session.commit()
        session.rollback()
    other.dispose()
    exact(2)


# -- upserts -------------------------------------------------------------------------------------


def test_an_upsert_of_rows_with_and_without_known_keys(engine, exact):
    statement = upsert(engine, Counter.__table__).values(
        [{"name": "x", "data": value(1)}, {"name": None, "data": value(2)}]
    )
    with engine.begin() as connection:
        connection.execute(on_conflict_update(statement))
    exact(2)


def test_an_upsert_that_changes_the_key_it_met_by(engine, exact):
    with Session(engine) as session:
        session.add(Counter(name="x", data=value(1)))
        session.commit()
    statement = upsert(engine, Counter.__table__).values(name="x", data=value(2))
    with engine.begin() as connection:
        connection.execute(on_conflict_update(statement, name="y"))
    exact(1)
    with Session(engine) as session:
        assert session.query(Counter).one().data.n == 2


def test_an_upsert_on_an_expression_is_refused(engine, exact):
    if engine.dialect.name in ("mysql", "mariadb"):
        pytest.skip("ON DUPLICATE KEY names no target")
    statement = upsert(engine, Counter.__table__).values(name="x", data=value(2))
    statement = statement.on_conflict_do_update(
        index_elements=[text("lower(name)")], set_={"data": statement.excluded.data}
    )
    with engine.connect() as connection, pytest.raises(RefusedStatementError, match="expression"):
        connection.execute(statement)
    exact(0)


# -- executemany ---------------------------------------------------------------------------------


def test_an_executemany_that_updates_a_row_twice(engine, exact):
    table = Keyed.__table__
    by_key = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(data=bindparam("new", type_=table.c.data.type))
    )
    with engine.begin() as connection:
        connection.execute(insert(table).values(id=1, data=value(1)))
        connection.execute(by_key, [{"key": 1, "new": value(n)} for n in (2, 3, 4)])
    exact(1)
    with Session(engine) as session:
        assert session.get(Keyed, 1).data.n == 4


def test_keys_that_only_the_database_finds_equal(engine, exact):
    table = Texts.__table__
    folded = engine.dialect.name in ("mysql", "mariadb")
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": key, "data": value()} for key in ("a", "b")])
        connection.execute(
            delete(table).where(table.c.id == bindparam("key")),
            [{"key": key.upper() if folded else key} for key in ("a", "b")],
        )
    exact(0)


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_failure_half_way_cannot_be_committed(engine, exact, savepoint):
    """SQLite and MariaDB keep the rows before the failing one."""
    if engine.dialect.name == "postgresql":
        pytest.skip("PostgreSQL fails the whole transaction")
    with engine.connect() as connection:
        connection.execute(insert(Keyed).values(id=3, data=value(3)))
        with pytest.raises(DBAPIError):
            connection.execute(insert(Keyed), [{"id": n, "data": value(n)} for n in (1, 2, 3, 4)])
        if savepoint:
            connection.begin_nested().rollback()
        try:
            connection.commit()
        except StorageError:
            connection.rollback()
    exact()


@pytest.mark.parametrize("kind", ["insert", "update"])
def test_an_executemany_that_fails_half_way_under_autocommit(engine, exact, kind):
    with Session(engine) as session:
        session.add_all([Counter(id=n, name=f"n{n}", data=value(n)) for n in (1, 2, 3)])
        session.commit()
    table = Counter.__table__
    rows = [{"id": n, "name": f"n{n}", "data": value(n)} for n in (4, 5, 1, 6)]
    statement = insert(table)
    if kind == "update":
        statement = (
            update(table)
            .where(table.c.id == bindparam("key"))
            .values(name=bindparam("new"), data=bindparam("put", type_=table.c.data.type))
        )
        rows = [
            {"key": n, "new": name, "put": value(n + 10)}
            for n, name in ((1, "other"), (2, "other"), (3, "third"))
        ]
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(statement, rows)
    exact()


@pytest.mark.parametrize("edit", ["list", "nested"])
def test_core_reads_edits_in_place_and_writes(engine, exact, edit):
    table = Keyed.__table__
    with engine.begin() as connection:
        connection.execute(insert(table).values(id=1, data=DataStore(l=[1], c=DataStore(l=[1]))))
    with engine.begin() as connection:
        found = connection.execute(select(table.c.data)).scalar_one()
        (found.l if edit == "list" else found.c.l).append(2)
        connection.execute(update(table).where(table.c.id == 1).values(data=found))
    exact(1)
    with Session(engine) as session:
        data = session.get(Keyed, 1).data
        assert (data.l if edit == "list" else data.c.l) == [1, 2]


@pytest.mark.parametrize("ending", ["commit", "rollback", "expire"])
@pytest.mark.parametrize("what", ["list", "frame", "child", "value"])
def test_what_is_held_over_the_end_of_a_transaction_is_saved(engine, exact, ending, what):
    with Session(engine) as session:
        frame = pd.DataFrame({"a": [1]})
        session.add(Keyed(id=1, data=DataStore(l=[1], f=frame, c=DataStore(n=1))))
        session.commit()
    with Session(engine) as session:
        row = session.get(Keyed, 1)
        data = row.data
        held = {"list": data.l, "frame": data.f, "child": data.c, "value": data}[what]
        if ending == "expire":
            session.expire(row)
        else:
            getattr(session, ending)()
        try:
            if what == "list":
                held.append(2)
            elif what == "frame":
                held["b"] = 2
            else:
                held.n = 2
        except StaleValueError:
            return
        session.commit()
    exact(1)
    with Session(engine) as session:
        data = session.get(Keyed, 1).data
        assert data.l == [1, 2] or list(data.f) == ["a", "b"] or 2 in (data.c.n, data.get("n"))


def test_a_value_that_a_listener_of_the_flush_inserts_elsewhere(engine, exact):
    """As an audit trail does: within the flush, by a statement of its own."""

    @event.listens_for(Keyed, "after_insert")
    def audit(_mapper, connection, target):
        connection.execute(insert(Counter).values(name="audit", data=target.data))

    try:
        with Session(engine) as session:
            row = Keyed(id=1, data=value(1))
            session.add(row)
            session.commit()
            row.data["items"].append(2)
            session.commit()
            audited = session.query(Counter).one()
            assert row.data.url != audited.data.url
            assert (row.data["items"], audited.data["items"]) == ([1, 2], [1])
    finally:
        event.remove(Keyed, "after_insert", audit)
    exact(2)


def test_an_edit_where_only_the_state_of_a_row_is_left(engine, exact):
    with Session(engine) as session:
        session.add(Keyed(id=1, data=value(1)))
        session.commit()
    with Session(engine) as session:
        row = session.get(Keyed, 1)
        state, data = inspect(row), row.data
        del row
        data.n = 5
        session.commit()
        assert state.obj() is None
    exact(1)
    with Session(engine) as session:
        assert session.get(Keyed, 1).data.n == 5


def test_a_cascade_takes_what_the_same_transaction_wrote(engine, exact):
    with engine.begin() as connection:
        connection.execute(insert(Project).values(id=1))
        connection.execute(insert(Run).values(id_project=1, data=value(1)))
        connection.execute(delete(Project).where(Project.id == 1))
    exact(0)


def test_a_delete_whose_listener_fails_and_is_caught(engine, exact):
    with engine.begin() as connection:
        connection.execute(insert(Keyed).values(id=1, data=value(1)))

    @event.listens_for(engine, "after_cursor_execute")
    def fail(_connection, _cursor, statement, *_):
        if statement.startswith("DELETE"):
            raise RuntimeError("listener")

    try:
        with engine.connect() as connection:
            with pytest.raises(RuntimeError, match="listener"):
                connection.execute(delete(Keyed))
            connection.commit()
    finally:
        event.remove(engine, "after_cursor_execute", fail)
    exact()


def test_a_column_default_for_updates(engine, exact):
    with Session(engine) as session:
        row = Touched(id=1, name="a")
        session.add(row)
        session.commit()
        assert row.data is None
        row.name = "b"
        session.commit()
        assert row.data.n == 1
        row.name = "c"
        session.commit()
    exact(1)


# -- where values cannot be followed ---------------------------------------------------------------


def test_a_value_in_text_is_refused(engine, exact):
    statement = text("INSERT INTO keyed (id, data) VALUES (1, :data)").bindparams(
        bindparam("data", type_=DataStoreType())
    )
    with engine.connect() as connection, pytest.raises(RefusedStatementError):
        connection.execute(statement, {"data": value()})
    exact(0)


def test_lightweight_tables_are_none_of_our_business(engine, exact):
    light = table_clause("keyed", column("id", Integer), column("name", String))
    with engine.begin() as connection:
        connection.execute(light.insert().values(id=1, name="a"))
        connection.execute(light.update().where(light.c.id == 1).values(name="b"))
        assert connection.execute(select(light.c.name)).scalar_one() == "b"
        connection.execute(light.delete())
    typed = table_clause("keyed", column("id", Integer), column("data", DataStoreType()))
    with engine.connect() as connection, pytest.raises(RefusedStatementError):
        connection.execute(typed.insert().values(id=1, data=value()))
    exact(0)


def test_schemas_translated_for_one_statement_are_refused(engine, exact):
    """The rows asked about beforehand would be those of another schema."""
    with Session(engine) as session:
        session.add(Keyed(id=1, data=value(1)))
        session.commit()
        options = {"schema_translate_map": {None: "elsewhere"}}
        for statement in (delete(Keyed), update(Keyed).values(data=None)):
            with pytest.raises(RefusedStatementError, match="schema_translate_map"):
                session.execute(statement, execution_options=options)
            session.rollback()
    exact(1)


def test_a_column_type_inside_another_is_refused():
    class Wrapped(TypeDecorator):
        impl = DataStoreType
        cache_ok = True

    for type_ in (Wrapped(), String().with_variant(DataStoreType(), "sqlite")):
        with pytest.raises(ConfigurationError, match="wraps DataStoreType"):
            Table("wrapped", MetaData(), Column("data", type_))


# -- bulk statements and the rows of a Session -----------------------------------------------------


@pytest.mark.parametrize("touches", ["name", "data"])
def test_a_bulk_update_leaves_the_edits_of_other_rows(engine, exact, touches):
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2, 3)])
        session.commit()
    with Session(engine, autoflush=False) as session:
        edited, assigned = session.get(Keyed, 1), session.get(Keyed, 2)
        edited.data["items"].append(9)
        assigned.data = value(20)
        new = {"name": "z"} if touches == "name" else {"data": value(30)}
        session.execute(update(Keyed).where(Keyed.id == 3).values(**new))
        session.commit()
    exact(3)
    with Session(engine) as session:
        assert session.get(Keyed, 1).data["items"] == [1, 9]
        assert session.get(Keyed, 2).data.n == 20
        assert session.get(Keyed, 3).data.n == (3 if touches == "name" else 30)


def test_a_stored_value_given_to_a_bulk_update_is_copied(engine, exact):
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2)])
        session.commit()
        first, second = session.get(Keyed, 1), session.get(Keyed, 2)
        assert second.data.n == 2
        session.execute(update(Keyed).where(Keyed.id == 2).values(data=first.data))
        assert second.data.url != first.data.url
        second.data.n = 5
        session.commit()
        assert (first.data.n, second.data.n) == (1, 5)
    exact(2)


def test_two_names_of_one_storage_are_one_storage(tmp_path):
    """One row, two columns, one folder: through a symbolic link it is the same one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    metadata = MetaData()
    table = Table(
        "linked",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("one", DataStoreType(str(tmp_path / "real"))),
        Column("two", DataStoreType(str(tmp_path / "link"))),
    )
    engine = make_engine("sqlite://")
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(table).values(id=1, one=value(1), two=value(2)))
    with engine.connect() as connection:
        row = connection.execute(select(table)).one()
        assert (row.one.n, row.two.n) == (1, 2)
    assert len(list((tmp_path / "real").rglob("*.zip"))) == 2
    engine.dispose()
