"""Triggers: rows that go by a cascade or raw SQL leave no orphan either."""

from __future__ import annotations

import hashlib
import pickle
import uuid

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import mssql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine
from support.drivers import SQLALCHEMY
from support.exactness import statements

import sqla_datastore.alembic
from sqla_datastore import ConfigurationError, DataStore, DataStoreType, enable_removals
from sqla_datastore.maintenance import (
    check,
    create_removal_triggers,
    drain,
    drop_removal_triggers,
)
from sqla_datastore.removals.triggers.base import RemovalTriggers
from sqla_datastore.removals.triggers.statements import removal_triggers


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


ALL = ["projects.data", "runs of projects.data", "runs of projects.more data"]


def create_triggers(engine):
    with engine.begin() as connection:
        for table, columns in COLUMNS.items():
            create_removal_triggers(connection, table, *columns)


@pytest.fixture(scope="module")
def model_metadata():
    return Base.metadata


@pytest.fixture(scope="module")
def triggers(schema, database_url):
    engine = make_engine(database_url)
    create_triggers(engine)
    engine.dispose()


@pytest.fixture
def tables(triggers, engine):
    """Have the tables, and empty that of removals last: the triggers fill it."""
    yield
    run_sql(engine, "DELETE FROM labs", f"DELETE FROM {removals.name}")


@pytest.fixture(autouse=True)
def rows(engine, tables):
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


@pytest.fixture
def exact(exact, engine):
    """Assert also that no removal waits."""

    def exact_and_none_waiting(count):
        with engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(removals)) == 0
        exact(count)

    return exact_and_none_waiting


def run_sql(engine, *statements):
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def sources(engine, schema=None):
    """Return where the removals come from that the triggers have written down."""
    table = removals.to_metadata(sa.MetaData(), schema=schema)
    with engine.connect() as connection:
        return sorted(connection.scalars(select(table.c.source)))


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


def test_the_column_that_lost_a_url_is_written_down(engine):
    run_sql(engine, "DELETE FROM labs WHERE id = 1", "UPDATE projects SET data = NULL")
    assert set(sources(engine)) == set(ALL)


def test_truncate_writes_the_columns_down(engine):
    if engine.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL has triggers on TRUNCATE")
    run_sql(engine, "TRUNCATE labs CASCADE")
    assert sources(engine) == sorted(6 * ALL[:1] + 4 * ALL[1:])


def test_a_restore_without_a_search_path(engine):
    if engine.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL has a search_path")
    run_sql(engine, "SET LOCAL search_path = ''", "DELETE FROM public.labs WHERE id = 1")
    assert sources(engine) == sorted(3 * ALL[:1] + 2 * ALL[1:])


# -- databases of their own ------------------------------------------------------------------------

metadata = sa.MetaData()
enable_removals(metadata)
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("data", DataStoreType()),
)


@pytest.fixture
def empty(private_url, stored):
    """An engine on a database of this test alone."""
    engine = make_engine(private_url, stored.base)
    yield engine
    engine.dispose()


@pytest.fixture
def own(empty):
    """An engine on a database of this test alone, with the table of samples."""
    metadata.create_all(empty)
    return empty


def add_sample(engine, table=samples):
    with engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "data": DataStore(n=1)})


def files_of_samples(stored):
    return {file for file in stored.files() if file.startswith("samples/")}


def add_triggers(engine, *names, **schemas):
    with engine.begin() as connection:
        create_removal_triggers(connection, *names, **schemas)


SIGNS = {
    "quotes": ("it's 100% \" \\", "a:b %s 'c' :d \"\\"),
    "dollar quotes": ("$$ $body1$", "$body$; DROP TABLE samples; --"),
    "the end of a statement": ("t; END; --", "c'); END; DROP TABLE samples; --"),
    "comments": ("t -- /* */ #", "c */ -- /*! x */ #"),
    # only the table's: SQLAlchemy cannot reflect such columns of MariaDB, so that they are refused
    "backquotes": ("t` ``", "c FOR EACH ROW SET @a = 1; --"),
    "colons": ("t::x:", ":a\\:b::c \\:"),
    "percent": ("%(a)s %%", "%%s {x} %"),
    "the end in a backslash": ("t\\", "c\\"),
    "text of any script": ("таблица", "☃ 数据"),
}


@pytest.mark.parametrize(("table_name", "column_name"), SIGNS.values(), ids=SIGNS)
def test_names_with_signs_that_sql_knows(empty, stored, table_name, column_name):
    if SQLALCHEMY < (2, 0, 40) and "%(" in table_name:
        pytest.skip("this SQLAlchemy takes such a name for a parameter")
    signs = sa.MetaData()
    enable_removals(signs)
    data = sa.Column(column_name, DataStoreType(), key="data")
    table = sa.Table(table_name, signs, sa.Column("id", sa.Integer, primary_key=True), data)
    signs.create_all(empty)
    metadata.create_all(empty)
    add_triggers(empty, table_name, column_name)
    values = [{"id": 1, "data": DataStore(n=1)}, {"id": 2, "data": DataStore(n=2)}]
    with empty.begin() as connection:
        connection.execute(table.insert(), values)
    with empty.begin() as connection:
        if empty.dialect.name == "postgresql":
            # an application of old may have it so; the body of the function is read by its rules
            connection.exec_driver_sql("SET standard_conforming_strings = off")
        delete_raw(connection, table, 1)
        connection.execute(text("SELECT * FROM samples"))
    assert sources(empty) == [f"{table_name}.{column_name}"]
    with empty.begin() as connection:
        drop_removal_triggers(connection, table_name, column_name)
        delete_raw(connection, table, 2)
    assert sources(empty) == [f"{table_name}.{column_name}"]


def delete_raw(connection, table, number):
    """Delete a row past the library."""
    quoted = str(table.delete().compile(connection.engine))
    connection.exec_driver_sql(f"{quoted} WHERE id = {number}")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
@pytest.mark.parametrize("place", ["table", "column", "schema"])
def test_a_name_that_no_database_takes_is_refused(own, name, place):
    names = {"table": (name, "data"), "column": ("samples", name), "schema": ("samples", "data")}
    with own.begin() as connection, pytest.raises(ConfigurationError, match="NUL or a lone"):
        create_removal_triggers(
            connection, *names[place], schema=name if place == "schema" else None
        )


@pytest.fixture
def lab(own):
    """Another schema, with a table of samples and one of removals; gone afterwards."""
    name = f"lab_{uuid.uuid4().hex[:8]}"
    if own.dialect.name == "sqlite":
        sa.event.listen(own, "connect", lambda c, _: c.execute(f"ATTACH ':memory:' AS {name}"))
        own.dispose()
    else:
        run_sql(own, f"CREATE SCHEMA {name}")
    other = sa.MetaData(schema=name)
    enable_removals(other)
    samples.to_metadata(other, schema=name)
    other.create_all(own)
    yield other
    if own.dialect.name != "sqlite":
        run_sql(own, f"DROP SCHEMA {name}{' CASCADE' * (own.dialect.name == 'postgresql')}")


def test_a_table_of_another_schema(own, lab):
    if own.dialect.name == "sqlite":
        pytest.skip("an attached database is one connection's")
    add_triggers(own, "samples", "data", schema=lab.schema, removals_schema=lab.schema)
    add_sample(own, lab.tables[f"{lab.schema}.samples"])
    run_sql(own, f"DELETE FROM {lab.schema}.samples")
    assert sources(own, lab.schema) == ["samples.data"]
    assert sources(own) == []


def test_where_the_table_of_removals_is_looked_for(own, lab):
    """On PostgreSQL where the search_path leads, elsewhere in the schema of the table."""
    run_sql(own, f"DROP TABLE {removals.name}")
    if own.dialect.name == "postgresql":
        with pytest.raises(ConfigurationError, match=f"{removals.name}.*removals_schema="):
            add_triggers(own, "samples", "data", schema=lab.schema)
    else:
        add_triggers(own, "samples", "data", schema=lab.schema)
    with pytest.raises(ConfigurationError, match=f"lacks table '{removals.name}'"):
        add_triggers(own, "samples", "data")


def test_a_cascade_from_another_database(own, lab):
    if own.dialect.name not in ("mysql", "mariadb"):
        pytest.skip("cascades fire triggers")
    run_sql(
        own,
        "CREATE TABLE rows_of_labs (id INTEGER PRIMARY KEY, data VARCHAR(1024), "
        "CONSTRAINT fk_of_labs FOREIGN KEY (id) "
        f"REFERENCES {lab.schema}.samples (id) ON DELETE CASCADE)",
    )
    with (
        statements(own, "DROP", "CREATE TRIGGER") as ran,
        pytest.raises(ConfigurationError, match=rf"fk_of_labs.*{lab.schema}\.samples"),
    ):
        add_triggers(own, "rows_of_labs", "data")
    assert ran == []
    add_triggers(own, "samples", "data")
    run_sql(own, "DROP TABLE rows_of_labs")


@pytest.mark.parametrize(
    ("dropped", "names", "message"),
    [
        ([], ["samplez", "data"], "lacks table 'samplez'; name"),
        ([], ["samples", "data", "date"], "table 'samples' lacks 'date'; name"),
        ([removals.name], ["samples", "data"], f"lacks table '{removals.name}'.*create it"),
        ([], ["samples"], "name the DataStoreType columns of table 'samples'"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_changed(dropped, names, message, own):
    run_sql(own, *(f"DROP TABLE {name}" for name in dropped))
    with statements(own, "DROP", "CREATE") as ran:
        with pytest.raises(ConfigurationError, match=message):
            add_triggers(own, *names)
        with pytest.raises(ConfigurationError, match=message):
            migrate(own, lambda op: op.create_removal_triggers(*names))
    assert ran == []


def test_a_table_of_removals_from_before_has_no_source(own):
    run_sql(own, f"ALTER TABLE {removals.name} DROP COLUMN source")
    with pytest.raises(ConfigurationError, match=f"'{removals.name}' lacks 'source'"):
        add_triggers(own, "samples", "data")


def test_columns_to_drop_have_to_be_named(own):
    with (
        own.begin() as connection,
        pytest.raises(ConfigurationError, match="name the DataStoreType columns"),
    ):
        drop_removal_triggers(connection, "samples")
    with pytest.raises(ConfigurationError, match="name the DataStoreType columns"):
        migrate(own, lambda op: op.drop_removal_triggers("samples"))


def test_triggers_of_what_is_gone_are_dropped(own):
    add_triggers(own, "samples", "data")
    run_sql(own, "DROP TABLE samples")
    with own.begin() as connection:
        drop_removal_triggers(connection, "samples", "data")
    metadata.create_all(own)
    add_triggers(own, "samples", "data")


def test_a_column_is_converted_with_its_triggers(own, stored):
    add_triggers(own, "samples", "data")
    add_sample(own)
    column = {"dumps": pickle.dumps, "type_": sa.LargeBinary()}
    migrate(own, lambda op: op.convert_from_datastore("samples", "data", **column))
    assert files_of_samples(stored) == set()
    run_sql(own, "UPDATE samples SET data = NULL", "DELETE FROM samples")
    assert sources(own) == []
    migrate(own, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    add_triggers(own, "samples", "data")
    add_sample(own)
    run_sql(own, "DELETE FROM samples")
    assert drain(own, metadata).carried_out == 1
    assert files_of_samples(stored) == set()


# -- names -----------------------------------------------------------------------------------------

LONG = "measurements_of_the_third_laboratory"
WHATS = ["delete", "update", "truncate", "note", *(f"cascade_{n}" for n in (0, 9, 10, 123))]


def triggers_of(table, column="data"):
    return removal_triggers(sqlite.dialect(), table, column)


@pytest.mark.parametrize(
    "table",
    ["runs", LONG, 2 * LONG, "ü" * 40, "x" + "ü" * 40],
    ids=["short", "long", "longer", "two bytes a letter", "two bytes a letter, but one"],
)
def test_names_have_63_bytes_at_most_and_differ(table):
    names = [
        triggers_of(each, column).name(what)
        for each in (table, f"{table}s")
        for column in ("data", "data2")
        for what in WHATS
    ]
    assert len(set(names)) == len(names)
    assert max(len(name.encode()) for name in names) <= 63


def test_short_names_are_those_of_earlier_versions():
    assert triggers_of("runs").names("delete") == ["datastore_runs_data_1ac09d5d_delete"]
    longest = triggers_of("x" * 29)  # with the column 34 bytes, of which nothing is cut off
    assert longest.names("cascade_0") == [longest.name("cascade_0")]


@pytest.fixture
def long_table(empty):
    """A table with a long name, whose rows go with those of eleven others."""
    metadata = MetaData()
    enable_removals(metadata)
    key = {"primary_key": True, "autoincrement": False}
    parents = [Table(f"parent_{n}", metadata, Column("id", Integer, **key)) for n in range(11)]
    references = [
        Column(f"id_{n}", ForeignKey(parent.c.id, ondelete="CASCADE"))
        for n, parent in enumerate(parents)
    ]
    own = Column("id", Integer, **key)
    table = Table(LONG, metadata, own, *references, Column("data", String(1024)))
    metadata.create_all(empty)
    with empty.begin() as connection:
        for number, parent in enumerate(parents):
            connection.execute(insert(parent), {"id": 1})
            row = {"id": number, f"id_{number}": 1, "data": f"file:///{number}"}
            connection.execute(insert(table), row)
    return table


def test_triggers_of_a_table_with_a_long_name(empty, long_table):
    add_triggers(empty, LONG, "data")
    run_sql(
        empty,
        f"DELETE FROM {LONG} WHERE id = 0",
        f"UPDATE {LONG} SET data = NULL WHERE id = 1",
        *(f"DELETE FROM parent_{number}" for number in range(11)),
    )
    assert sources(empty) == 11 * [f"{LONG}.data"]


def test_triggers_of_earlier_versions_are_renewed_and_dropped(empty, long_table, monkeypatch):
    """Their names were longer; PostgreSQL cut them off."""
    if empty.dialect.name in ("mysql", "mariadb"):
        # which refused names of triggers for cascades
        run_sql(empty, f"ALTER TABLE {LONG} RENAME TO {LONG}_before")
        run_sql(empty, f"CREATE TABLE {LONG} (id INTEGER PRIMARY KEY, data VARCHAR(1024))")
        run_sql(empty, f"INSERT INTO {LONG} SELECT id, data FROM {LONG}_before")

    def name(self, what):
        digest = hashlib.sha256(f"{self.table}.{self.column}".encode()).hexdigest()[:8]
        return f"datastore_{f'{self.table}_{self.column}'[:38]}_{digest}_{what}"

    def create_as_before():
        with monkeypatch.context() as patched:
            patched.setattr(RemovalTriggers, "name", name)
            add_triggers(empty, LONG, "data")

    assert name(triggers_of(LONG), "delete") != triggers_of(LONG).name("delete")
    create_as_before()
    add_triggers(empty, LONG, "data")
    run_sql(empty, f"DELETE FROM {LONG} WHERE id < 2")
    assert sources(empty) == 2 * [f"{LONG}.data"], "noted once a row"
    with empty.begin() as connection:
        drop_removal_triggers(connection, LONG, "data")
    create_as_before()
    with empty.begin() as connection:
        drop_removal_triggers(connection, LONG, "data")
    run_sql(empty, f"DELETE FROM {LONG}")
    assert len(sources(empty)) == 2


# -- rights ----------------------------------------------------------------------------------------


def grants(role):
    """Return what gives a role the rights on the table of removals that triggers need."""
    return [
        f"GRANT INSERT ON {removals.name} TO {role}",
        f"GRANT USAGE ON SEQUENCE {removals.name}_id_seq TO {role}",
    ]


def test_a_role_needs_insert_on_the_table_of_removals_on_postgresql(own):
    if own.dialect.name != "postgresql":
        pytest.skip("triggers have the rights of who created them, or there are none")
    role = f"job_{uuid.uuid4().hex[:8]}"
    add_triggers(own, "samples", "data")
    add_sample(own)
    run_sql(own, f"CREATE ROLE {role}", f"GRANT DELETE ON samples TO {role}")
    try:
        with pytest.raises(sa.exc.ProgrammingError, match=f"denied for table {removals.name}"):
            run_sql(own, f"SET LOCAL ROLE {role}", "DELETE FROM samples")
        run_sql(own, *grants(role))
        run_sql(own, f"SET LOCAL ROLE {role}", "DELETE FROM samples")
    finally:
        run_sql(own, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    assert sources(own) == ["samples.data"]


def test_a_role_with_a_schema_of_its_own_on_postgresql(empty):
    """The search_path names "$user", who is another one when rows are deleted."""
    if empty.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL has a search_path")
    role = f"job_{uuid.uuid4().hex[:8]}"
    run_sql(empty, "CREATE SCHEMA AUTHORIZATION CURRENT_USER")
    metadata.create_all(empty)
    add_triggers(empty, "samples", "data")
    add_sample(empty)
    with empty.connect() as connection:
        schema = connection.scalar(text("SELECT current_schema()"))
    run_sql(
        empty,
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        *grants(role),
        f"GRANT DELETE ON samples TO {role}",
    )
    try:
        run_sql(empty, f"SET LOCAL ROLE {role}", f"DELETE FROM {schema}.samples")
    finally:
        run_sql(empty, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    assert sources(empty) == ["samples.data"]


def test_an_account_needs_no_right_to_the_table_of_removals_on_mysql(own):
    if own.dialect.name not in ("mysql", "mariadb"):
        pytest.skip("triggers have the rights of who sets them off, or there are none")
    name = f"job_{uuid.uuid4().hex[:8]}"
    with own.connect() as connection:
        account = f"{name}@'{connection.scalar(text('SELECT USER()')).rpartition('@')[2]}'"
    add_triggers(own, "samples", "data")
    add_sample(own)
    run_sql(
        own,
        f"CREATE USER {account} IDENTIFIED BY '{name}'",
        f"GRANT DELETE ON {own.url.database}.samples TO {account}",
    )
    job = sa.create_engine(own.url.set(username=name, password=name))
    try:
        run_sql(job, "DELETE FROM samples")
    finally:
        job.dispose()
        run_sql(own, f"DROP USER {account}")
    assert sources(own) == ["samples.data"]


# -- Alembic ---------------------------------------------------------------------------------------


def migrate(engine, migration, **opts):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=opts)
        with context.begin_transaction(_per_migration=not context.impl.transactional_ddl):
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
        with pytest.raises(ConfigurationError, match="online"):
            migrate(engine, create, as_sql=True)
        return
    migrate(engine, create, as_sql=True)
    assert "CREATE TRIGGER" in capsys.readouterr().out


def test_the_plugin_says_what_it_adds():
    for name in ("create_removal_triggers", "drop_removal_triggers"):
        assert hasattr(Operations, name)
        assert f"op.{name}(" in sqla_datastore.alembic.__doc__


def test_other_databases_have_none():
    with pytest.raises(ConfigurationError, match="mssql"):
        removal_triggers(mssql.dialect(), "runs", "data")


def test_a_cascade_that_goes_round_in_a_circle_is_refused_where_it_cannot_be_followed(engine):
    if engine.dialect.name not in ("mysql", "mariadb"):
        pytest.skip("cascades fire triggers")
    metadata = MetaData()
    for name, other in (("first", "second"), ("second", "first")):
        key = ForeignKey(f"circle_{other}.id", ondelete="CASCADE", name=f"fk_{name}")
        own = Column("id", Integer, primary_key=True, autoincrement=False)
        Table(f"circle_{name}", metadata, own, Column("other", key), Column("data", String(1024)))
    metadata.create_all(engine)
    try:
        with (
            engine.begin() as connection,
            pytest.raises(ConfigurationError, match="round in a circle"),
        ):
            create_removal_triggers(connection, "circle_first", "data")
    finally:
        metadata.drop_all(engine)


def test_two_ways_from_one_table(engine):
    """A grandchild goes with its grandparent by either of two parents."""
    metadata = MetaData()

    def table(name, *parents):
        columns = [
            Column(parent, ForeignKey(f"ways_{parent}.id", ondelete="CASCADE"))
            for parent in parents
        ]
        own = Column("id", Integer, primary_key=True, autoincrement=False)
        return Table(f"ways_{name}", metadata, own, *columns, Column("data", String(1024)))

    tables = [table("top"), table("left", "top"), table("right", "top")]
    tables.append(table("bottom", "left", "right"))
    metadata.create_all(engine)
    try:
        with engine.begin() as connection:
            create_removal_triggers(connection, "ways_bottom", "data")
            rows = [
                {"id": 1},
                {"id": 1, "top": 1},
                {"id": 1, "top": 1},
                {"id": 1, "left": 1, "right": None, "data": "file:///a"},
            ]
            for each, row in zip(tables, rows, strict=True):
                connection.execute(insert(each).values(row))
            connection.execute(insert(tables[3]).values(id=2, left=None, right=1, data="file:///b"))
            connection.execute(delete(tables[0]))
        with engine.connect() as connection:
            query = select(removals.c.url).where(removals.c.source == "ways_bottom.data")
            assert set(connection.scalars(query)) == {"file:///a", "file:///b"}
    finally:
        metadata.drop_all(engine)


def test_a_column_that_holds_no_urls_is_refused(engine):
    with (
        engine.begin() as connection,
        pytest.raises(ConfigurationError, match="can be no DataStoreType column"),
    ):
        create_removal_triggers(connection, "runs of projects", "name")
