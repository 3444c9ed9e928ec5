"""Triggers: rows that go by a cascade or raw SQL leave no orphan either."""

from __future__ import annotations

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from conftest import make_engine
from exactness import assert_exact, tables_of
from sqlalchemy import ForeignKey, ForeignKeyConstraint, String, func, select, text
from sqlalchemy.dialects import mssql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_datastore.alembic  # noqa: F401 - adds the operations
from sqla_datastore import ConfigurationError, DataStore, DataStoreType, enable_removals
from sqla_datastore.maintenance import check, drain
from sqla_datastore.triggers import (
    create_removal_triggers,
    drop_removal_triggers,
    removal_triggers,
)


class Base(DeclarativeBase):
    pass


class Lab(Base):
    __tablename__ = "labs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Project(Base):
    """Its key has two columns, and projects have projects below them."""

    __tablename__ = "projects"
    lab: Mapped[int] = mapped_column(ForeignKey("labs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    above: Mapped[int | None] = mapped_column()
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    __table_args__ = (
        ForeignKeyConstraint(
            ["lab", "above"], ["projects.lab", "projects.number"], ondelete="CASCADE"
        ),
    )


class Run(Base):
    __tablename__ = "runs of projects"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lab: Mapped[int] = mapped_column()
    project: Mapped[int] = mapped_column()
    name: Mapped[str | None] = mapped_column(String(20))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    more: Mapped[DataStore | None] = mapped_column("more data", DataStoreType())
    __table_args__ = (
        ForeignKeyConstraint(
            ["lab", "project"], ["projects.lab", "projects.number"], ondelete="CASCADE"
        ),
    )


removals = enable_removals(Base.metadata)


COLUMNS = {"projects": ["data"], "runs of projects": ["data", "more data"]}


def create_triggers(engine):
    with engine.begin() as connection:
        for table, columns in COLUMNS.items():
            create_removal_triggers(connection, table, *columns)


@pytest.fixture(scope="module", autouse=True)
def schema(database_url):
    with tables_of(Base.metadata, database_url):
        engine = make_engine(database_url)
        create_triggers(engine)
        engine.dispose()
        yield


@pytest.fixture(autouse=True)
def rows(engine, schema):
    """Have 14 values: in each of two labs three projects of one value and two runs of two."""
    with Session(engine) as session:
        for lab in (1, 2):
            session.add(Lab(id=lab))
            for number, above in ((1, None), (2, 1), (3, 2)):
                session.flush()
                value = DataStore(n=number)
                session.add(Project(lab=lab, number=number, above=above, data=value))
            session.flush()
            for number in (1, 3):
                run = 10 * lab + number
                values = {"data": DataStore(n=run), "more": DataStore(inner=DataStore(n=run))}
                session.add(Run(id=run, lab=lab, project=number, name="run", **values))
        session.commit()
    yield
    run_sql(engine, "DELETE FROM labs", f"DELETE FROM {removals.name}")


@pytest.fixture
def exact(engine, stored):
    def exact(count):
        with engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(removals)) == 0
        assert_exact(engine, Base.metadata, stored, count)

    return exact


def run_sql(engine, *statements):
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def quoted(engine, name):
    return engine.dialect.identifier_preparer.quote(name)


def test_raw_sql(engine, exact):
    runs, more = quoted(engine, "runs of projects"), quoted(engine, "more data")
    run_sql(
        engine,
        f"DELETE FROM {runs} WHERE id = 11",
        f"UPDATE {runs} SET data = NULL WHERE id = 13",
        f"UPDATE {runs} SET {more} = NULL, data = NULL, name = 'x' WHERE id = 23",
        f"UPDATE {runs} SET name = 'y'",
    )
    drain(engine, Base.metadata)
    exact(14 - 2 - 1 - 2)


def test_a_database_cascade(engine, exact):
    run_sql(engine, "DELETE FROM labs WHERE id = 1")
    assert drain(engine, Base.metadata).carried_out >= 7
    exact(7)


def test_a_cascade_within_a_table_and_from_it(engine, exact):
    run_sql(engine, "DELETE FROM projects WHERE lab = 2 AND number = 2")
    drain(engine, Base.metadata)
    exact(14 - 2 - 2)


def test_a_cascade_that_the_orm_sets_off(engine, exact):
    with Session(engine) as session:
        session.delete(session.get(Lab, 1))
        session.commit()
    drain(engine, Base.metadata)
    exact(7)


def test_what_a_rollback_takes_back(engine, exact):
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM labs"))
        connection.rollback()
    assert drain(engine, Base.metadata).carried_out == 0
    exact(14)


def test_what_the_ledger_removes_is_struck_off_with_the_triggers_note(engine, exact):
    with Session(engine) as session:
        session.delete(session.get(Run, 11))
        session.get(Run, 13).data = DataStore(n=5)
        session.commit()
    exact(12)


def test_a_value_that_leaves_its_row_and_comes_back(engine, exact):
    with Session(engine) as session:
        run = session.get(Run, 11)
        before = run.data
        run.data = DataStore(n=5)
        session.flush()
        run.data = before
        session.commit()
    report = drain(engine, Base.metadata)
    assert (report.carried_out, report.referenced) == (0, 1)
    exact(14)


def test_a_row_that_raw_sql_moves_elsewhere(engine, exact):
    runs = quoted(engine, "runs of projects")
    run_sql(
        engine,
        "UPDATE projects SET data = NULL WHERE lab = 1 AND number = 1",
        f"UPDATE projects SET data = (SELECT data FROM {runs} WHERE id = 11) "
        "WHERE lab = 1 AND number = 1",
        f"UPDATE {runs} SET data = NULL WHERE id = 11",
    )
    drain(engine, Base.metadata)
    exact(13)


def test_truncate_on_postgresql(engine, exact):
    if engine.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL has triggers on TRUNCATE")
    run_sql(engine, "TRUNCATE labs CASCADE")
    assert drain(engine, Base.metadata).carried_out == 14
    exact(0)


def test_dropped_triggers_note_nothing(engine, exact):
    with engine.begin() as connection:
        for table, columns in [*COLUMNS.items(), *COLUMNS.items()]:
            drop_removal_triggers(connection, table, *columns)
    run_sql(engine, "DELETE FROM labs WHERE id = 1")
    assert drain(engine, Base.metadata).carried_out == 0
    assert check(engine, Base.metadata).orphans.count == 3 + 2 * 3
    create_triggers(engine)


def test_creating_again_renews(engine, exact):
    create_triggers(engine)
    run_sql(engine, "DELETE FROM labs WHERE id = 1")
    drain(engine, Base.metadata)
    exact(7)


# -- Alembic ---------------------------------------------------------------------------------------


def migrate(engine, migration, **opts):
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts=opts)
        migration(Operations(context))


def test_the_operations(engine, exact):
    def upgrade(op):
        for table, columns in COLUMNS.items():
            op.drop_removal_triggers(table, *columns)
        for table, columns in COLUMNS.items():
            op.create_removal_triggers(table, *columns)

    migrate(engine, upgrade)
    run_sql(engine, "DELETE FROM labs WHERE id = 1")
    drain(engine, Base.metadata)
    exact(7)


def test_offline_where_no_connection_is_needed(engine, capsys):
    def create(op):
        op.create_removal_triggers("projects", "data")

    if engine.dialect.name not in ("sqlite", "postgresql"):
        with pytest.raises(CommandError, match="online"):
            migrate(engine, create, as_sql=True)
        return
    migrate(engine, create, as_sql=True)
    assert "CREATE TRIGGER" in capsys.readouterr().out


def test_columns_have_to_be_named(engine):
    with pytest.raises(CommandError, match="name the DataStoreType columns"):
        migrate(engine, lambda op: op.create_removal_triggers("projects"))


def test_other_databases_have_none():
    with pytest.raises(ConfigurationError, match="mssql"):
        removal_triggers(mssql.dialect(), "runs", "data")
