"""P4 where a statement did something else than it said, or somebody acted out of sight."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from support.databases import make_engine
from support.exactness import assert_exact, urls_of
from support.models import Base, Counter, Experiment, Keyed, Project, Run

from sqla_datastore import DataStore, RefusedStatementError
from sqla_datastore.engine import observed_transaction
from sqla_datastore.maintenance import check, gc
from sqla_datastore.storage.urls import ObjectURL


@pytest.fixture(autouse=True)
def rows(engine, tables):
    """Have three rows."""
    with Session(engine) as session:
        session.add_all(Keyed(id=n, name=f"row {n}", data=DataStore(n=n)) for n in range(3))
        session.commit()


def assert_whole(engine, stored):
    """No row may be dangling; what is left over, a collection removes."""
    paths = {ObjectURL.parse(url).path for url in urls_of(engine, Base.metadata)}
    assert paths <= stored.files(), "a committed row is dangling"
    gc(engine, Base.metadata, apply=True, grace_seconds=0, force=True)
    assert_exact(engine, Base.metadata, stored)


# -- statements that did something else ------------------------------------------------------------


@pytest.mark.parametrize("verb", ["delete", "set to None", "replace"])
def test_criteria_that_find_another_row_the_second_time(engine, stored, verb):
    random = func.rand if engine.dialect.name in ("mysql", "mariadb") else func.random
    picked = select(Keyed.id).order_by(random()).limit(1).subquery()
    chosen = Keyed.id.in_(select(picked.c.id))
    statements = {
        "delete": delete(Keyed).where(chosen),
        "set to None": update(Keyed).where(chosen).values(data=None),
        "replace": update(Keyed).where(chosen),
    }
    for _ in range(3):
        # a value of its own each time: an earlier one may have lost its row, and so its object
        statement = statements[verb]
        if verb == "replace":
            statement = statement.values(data=DataStore(n=9))
        # the value is refused where it would get into another row than its own
        with suppress(RefusedStatementError), engine.begin() as connection:
            connection.execute(statement)
        assert_whole(engine, stored)


def test_an_update_that_the_database_ignores(engine, stored):
    if engine.dialect.name not in ("mysql", "mariadb"):
        pytest.skip("only MySQL and MariaDB count a row that they ignored")
    with Session(engine) as session:
        session.add_all(Counter(id=n, name=f"{n}", data=DataStore(n=n)) for n in (1, 2))
        session.commit()
        ignored = update(Counter).where(Counter.id == 1).prefix_with("IGNORE")
        session.execute(ignored.values(name="2", data=DataStore(n=9)))
        session.commit()
    assert_whole(engine, stored)


TRIGGERS = {
    "postgresql": [
        """CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN NEW.data = OLD.data; RETURN NEW; END $$""",
        "CREATE TRIGGER keeps BEFORE UPDATE ON keyed FOR EACH ROW EXECUTE FUNCTION keep()",
    ],
    "mysql": ["CREATE TRIGGER keeps BEFORE UPDATE ON keyed FOR EACH ROW SET NEW.data = OLD.data"],
}


def test_a_trigger_that_keeps_the_old_value(engine, stored):
    if engine.dialect.name == "sqlite":
        pytest.skip("its triggers cannot change what is written")
    postgresql = engine.dialect.name == "postgresql"
    with engine.begin() as connection:
        for statement in TRIGGERS["postgresql" if postgresql else "mysql"]:
            connection.execute(text(statement))
    try:
        with Session(engine) as session:
            session.get(Keyed, 1).data = DataStore(n=9)
            session.commit()
        assert_whole(engine, stored)
    finally:
        with engine.begin() as connection:
            table = " ON keyed" if postgresql else ""
            connection.execute(text(f"DROP TRIGGER keeps{table}"))
            if postgresql:
                connection.execute(text("DROP FUNCTION keep()"))


# -- transaction control out of sight --------------------------------------------------------------


def by_text(statement):
    return lambda session: session.execute(text(statement))


def by_driver(method):
    return lambda session: getattr(session.connection().connection, method)()


def by_cursor(statement):
    def act(session):
        cursor = session.connection().connection.cursor()
        cursor.execute(statement)
        cursor.close()

    return act


HIDDEN = {
    "a comment before ROLLBACK": by_text("/* app */ ROLLBACK"),
    "a comment before COMMIT": by_text("-- app\nCOMMIT"),
    "the driver's rollback": by_driver("rollback"),
    "the driver's commit": by_driver("commit"),
    "a cursor's ROLLBACK": by_cursor("ROLLBACK"),
    "a cursor's COMMIT": by_cursor("COMMIT"),
}


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_control_that_nobody_announced(engine, stored, hidden, ending):
    with Session(engine) as session:
        session.execute(update(Keyed).where(Keyed.id == 0).values(data=DataStore(n=7)))
        session.execute(insert(Keyed).values(id=5, data=DataStore(n=5)))
        HIDDEN[hidden](session)
        try:
            session.execute(update(Keyed).where(Keyed.id == 1).values(data=DataStore(n=8)))
            getattr(session, ending)()
        except DBAPIError:
            # some drivers notice that their transaction has gone
            session.rollback()
    assert_whole(engine, stored)


@pytest.mark.parametrize("what", ["delete", "update"])
def test_a_savepoint_that_only_the_driver_knows(engine, stored, what):
    with Session(engine) as session:
        session.connection()
        session.execute(update(Keyed).where(Keyed.id == 0).values(name="begun"))
        by_cursor("SAVEPOINT mine")(session)
        if what == "delete":
            session.execute(delete(Keyed).where(Keyed.id == 1))
        else:
            session.execute(update(Keyed).where(Keyed.id == 1).values(data=DataStore(n=8)))
        by_cursor("ROLLBACK TO SAVEPOINT mine")(session)
        session.commit()
        assert session.get(Keyed, 1).data.n == 1
    assert_whole(engine, stored)


@pytest.mark.parametrize("moment", ["SAVEPOINT", "RELEASE", "ROLLBACK TO"])
def test_a_connection_lost_at_a_savepoint(engine, exact, moment):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no connection to lose")
    mine = DataStore(n=9)
    with Session(engine) as session:
        session.add(Keyed(id=9, data=mine))
        session.flush()
        savepoint = None if moment == "SAVEPOINT" else session.begin_nested()
        lose(engine, session.connection())
        end = {
            "SAVEPOINT": lambda: session.begin_nested().session.connection(),
            "RELEASE": lambda: savepoint.commit(),
            "ROLLBACK TO": lambda: savepoint.rollback(),
        }
        with pytest.raises(OperationalError):
            end[moment]()
    assert not observed_transaction.open_transactions
    assert mine.url is None
    exact(3)
    with Session(engine) as session:
        session.add(Keyed(id=9, data=mine))
        session.commit()
    exact(4)


def lose(engine, connection):
    """Have the server end a connection."""
    postgresql = engine.dialect.name == "postgresql"
    ask = "SELECT pg_backend_pid()" if postgresql else "SELECT CONNECTION_ID()"
    number = connection.scalar(text(ask))
    kill = f"SELECT pg_terminate_backend({number}, 10000)" if postgresql else f"KILL {number}"
    with engine.connect() as other:
        other.execute(text(kill))


# -- rows that are not where they seem to be -------------------------------------------------------


def test_a_row_whose_old_key_is_being_inserted_while_it_is_deleted(engine, stored, exact):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    with Session(engine) as session:
        session.get(Keyed, 1).id = 7
        session.commit()
    other = make_engine(engine.url, stored.base)
    with Session(engine) as inserting, Session(other) as deleting:
        inserting.add(Keyed(id=1, data=DataStore(n=11)))
        inserting.flush()
        deleting.delete(deleting.get(Keyed, 7))
        deleting.commit()
        inserting.commit()
    other.dispose()
    exact(3)


@pytest.mark.parametrize("moment", ["after_update", "before_update", "after_insert"])
def test_a_listener_that_writes_a_history(engine, exact, moment):
    def note(_mapper, connection, row):
        connection.execute(insert(Counter).values(data=row.data))

    event.listen(Experiment, moment, note)
    try:
        with Session(engine, expire_on_commit=False) as session:
            row = Experiment(name="a", data=DataStore(n=1, items=[1]))
            session.add(row)
            session.commit()
            row.name = "b"
            session.commit()
            stored_url = select(func.count()).where(Experiment.data == row.data.url)
            assert session.scalar(stored_url) == 1
            session.execute(delete(Counter))
            session.commit()
            row.data["items"].append(2)
            session.commit()
            assert row.data.to_dict() == {"n": 1, "items": [1, 2]}
    finally:
        event.remove(Experiment, moment, note)
    exact()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("moves", ["to another parent", "to another key"])
def test_a_row_that_a_snapshot_does_not_show(engine, stored, exact, level, moves):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one level")
    with Session(engine) as session:
        session.add_all([Project(id=1), Project(id=2)])
        session.commit()
    other = make_engine(engine.url, stored.base, isolation_level=level)
    with Session(other) as snapshot, Session(engine) as session:
        snapshot.scalars(select(Project)).all()
        if moves == "to another parent":
            row = Run(id_project=1, data=DataStore(n=1))
            session.add(row)
            session.commit()
            row.id_project = 2
            session.commit()
            snapshot.execute(delete(Project).where(Project.id == 1))
        else:
            session.add(Keyed(id=5, data=DataStore(n=5)))
            session.commit()
            session.get(Keyed, 5).id = 7
            session.commit()
            snapshot.add(Keyed(id=5, data=DataStore(n=55)))
        try:
            snapshot.commit()
        except DBAPIError:
            snapshot.rollback()
    other.dispose()
    exact()


@pytest.mark.parametrize("count", [1_000_000, 9_999_999])
def test_a_text_that_claims_a_million_objects_costs_little(engine, stored, count):
    """Whoever can write into a row cannot fill the memory of whoever changes or deletes it."""
    with engine.begin() as connection:
        for number in range(3):
            text_of_row = f"file:///{'0' * 31}{number}-{count}.zip"
            held = text("UPDATE keyed SET data = :url WHERE id = :id")
            connection.execute(held, {"url": text_of_row, "id": number})
    tracemalloc.start()
    with Session(engine) as session:
        found = session.scalars(select(Keyed).order_by(Keyed.id)).all()
        found[0].data = DataStore(n=1)
        session.delete(found[1])
        session.commit()
        session.execute(delete(Keyed).where(Keyed.id == 2))
        session.commit()
    check(engine, Base.metadata)
    gc(engine, Base.metadata, apply=True, grace_seconds=0, force=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert_exact(engine, Base.metadata, stored)
