"""Alembic renders and compares the column, and migrations move data into it and back."""

from __future__ import annotations

import io
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import uuid
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import alembic
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.ddl.impl import DefaultImpl
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session
from support.databases import make_engine

from sqla_datastore import ConfigurationError, DataStoreType, UnsupportedTypeError
from sqla_datastore.alembic import convert_column, reflected_table, render_item
from sqla_datastore.alembic.conversion_operations import _Conversion

ROOT = Path(__file__).parents[2]
IS_PLUGIN = tuple(map(int, alembic.__version__.split(".")[:2])) >= (1, 18)
BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


@pytest.fixture
def url(private_url):
    """A database of this test alone: autogenerate sees all its tables."""
    return private_url


@pytest.fixture
def storage(stored, monkeypatch):
    """The storage of migrations, named as an operator would."""
    monkeypatch.setenv("SQLA_DATASTORE_URL", str(stored.base))
    return stored


@pytest.fixture
def engine(url, storage):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def run_python(source, cwd, **kwargs):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        cwd=cwd,
        capture_output=True,
        text=True,
        **kwargs,
    )


# -- autogenerate --------------------------------------------------------------------------------

SHOP = """
    import uuid
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    from sqla_datastore import DataStore, DataStoreType

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "items"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
        data: Mapped[DataStore] = mapped_column(DataStoreType())
        more: Mapped[DataStore | None] = mapped_column(DataStoreType("/srv/more", folder="m/{id}"))
"""

AUTOGENERATE = """
    import importlib.metadata, sys
    if sys.argv[-1] == "without plugin":
        importlib.metadata.entry_points = lambda **_: ()
    from alembic import command
    from alembic.config import Config

    config = Config("alembic.ini")
    command.revision(config, "items", autogenerate=True)
    command.upgrade(config, "head")
    command.check(config)
    command.downgrade(config, "base")
"""


def init(tmp_path, url, *, env):
    """Write what ``alembic init`` writes, with the edits that every user makes."""
    config = Config(tmp_path / "alembic.ini", stdout=io.StringIO())
    command.init(config, str(tmp_path / "versions_of_shop"))
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))
    path = tmp_path / "versions_of_shop" / "env.py"
    before = "target_metadata = None"
    text = path.read_text()
    assert before in text
    text = text.replace(before, "import shop\ntarget_metadata = shop.Base.metadata")
    path.write_text(env(text))
    lines = (tmp_path / "alembic.ini").read_text().splitlines()
    replaced = [
        f"sqlalchemy.url = {url.replace('%', '%%')}" if line.startswith("sqlalchemy.url") else line
        for line in lines
    ]
    (tmp_path / "alembic.ini").write_text("\n".join(replaced))


def with_render_item(env):
    before = "target_metadata=target_metadata"
    assert env.count(before) == 2
    return "from sqla_datastore.alembic import render_item\n" + env.replace(
        before, f"{before}, render_item=render_item"
    )


@pytest.mark.parametrize(
    ("env", "argument"),
    [
        pytest.param(
            str,
            "with plugin",
            id="stock env",
            marks=pytest.mark.skipif(not IS_PLUGIN, reason="plugins came with Alembic 1.18"),
        ),
        pytest.param(with_render_item, "without plugin", id="render_item"),
    ],
)
def test_autogenerate_renders_the_column_and_check_stays_quiet(env, argument, url, tmp_path):
    init(tmp_path, url, env=env)
    source = textwrap.dedent(AUTOGENERATE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, argument],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / "versions_of_shop" / "versions").glob("*_items.py")
    text = script.read_text()
    assert "\nimport sqla_datastore\n" in text
    assert "sa.Column('data', sqla_datastore.DataStoreType(), nullable=False)" in text
    assert "sqla_datastore.DataStoreType('/srv/more', folder='m/{id}'), nullable=True)" in text


def test_render_item_leaves_everything_else_to_others():
    context = SimpleNamespace(imports=set())
    assert render_item("type", sa.String(1024), context) is False
    assert render_item("column", sa.Column("data", DataStoreType()), context) is False
    assert context.imports == set()
    assert render_item("type", DataStoreType(), context) == "sqla_datastore.DataStoreType()"
    assert context.imports == {"import sqla_datastore"}


@pytest.mark.skipif(not IS_PLUGIN, reason="plugins came with Alembic 1.18")
def test_implementations_that_render_types_themselves_render_the_column():
    class ThirdPartyImpl(DefaultImpl):
        def render_type(self, type_obj, autogen_context):
            return "third_party()"

    context = SimpleNamespace(imports=set())
    render = ThirdPartyImpl.__new__(ThirdPartyImpl).render_type
    assert render(sa.String(), context) == "third_party()"
    assert render(DataStoreType("/a"), context) == "sqla_datastore.DataStoreType('/a')"


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(
            "alembic",
            marks=pytest.mark.skipif(not IS_PLUGIN, reason="plugins came with Alembic 1.18"),
        ),
        "sqla_datastore.alembic",
        "sqla_datastore.alembic.conversion_operations",
    ],
)
def test_modules_can_be_imported_in_any_order(first, tmp_path):
    done = run_python(
        f"""
        import {first}
        import sqla_datastore.alembic
        from alembic import op
        assert op.convert_to_datastore and op.convert_from_datastore
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


# -- the reference models ------------------------------------------------------------------------


def reference(url):
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.set_main_option("prepend_sys_path", str(ROOT))
    config.set_main_option("path_separator", "os")
    config.cmd_opts = Namespace(x=[f"url={url}"])
    return config


def tables_of_0001():
    metadata = sa.MetaData()
    experiments = sa.Table(
        "experiments",
        metadata,
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.String(100)),
    )
    runs = sa.Table(
        "runs",
        metadata,
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("id_experiment", sa.Uuid()),
        sa.Column("data", sa.PickleType()),
        sa.Column("results", sa.LargeBinary()),
    )
    return experiments, runs


def test_reference_models_upgrade_with_their_data_and_back(url, storage, engine):
    config = reference(url)
    command.upgrade(config, "0001")
    experiments, runs = tables_of_0001()
    first, second = sorted((uuid.uuid4(), uuid.uuid4()), key=str)
    with engine.begin() as connection:
        connection.execute(
            experiments.insert(), [{"id": first, "name": "a"}, {"id": second, "name": "b"}]
        )
        for i in range(5):
            connection.execute(
                runs.insert().values(
                    id_experiment=second if i % 2 else first,
                    data={"a": np.arange(i), "i": i},
                    results=pickle.dumps({"s": pd.Series([i])}) if i % 2 else None,
                )
            )

    command.upgrade(config, "head")

    from examples.models import Base, Run

    with Session(engine) as session:
        rows = session.scalars(sa.select(Run).order_by(Run.id)).all()
        urls = {value.url for row in rows for value in (row.data, row.results) if value}
        assert [row.data.i for row in rows] == [0, 1, 2, 3, 4]
        assert all(np.array_equal(row.data.a, np.arange(row.data.i)) for row in rows)
        assert [row.results and row.results.s.tolist() for row in rows] == [
            None,
            [1],
            None,
            [3],
            None,
        ]
    assert urls == {f"file:///{path}" for path in storage.files()}
    assert storage.folders() == {str(first), str(second)}

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    command.check(config)

    command.downgrade(config, "0001")
    with engine.connect() as connection:
        rows = connection.execute(sa.select(runs).order_by(runs.c.id)).all()
        found = sa.inspect(connection).get_columns("runs")
    assert [row.data["i"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(np.array_equal(row.data["a"], np.arange(row.data["i"])) for row in rows)
    loaded = [row.results and pickle.loads(row.results)["s"].tolist() for row in rows]
    assert loaded == [None, [1], None, [3], None]
    assert {c["name"]: c["nullable"] for c in found} == {
        "id": False,
        "id_experiment": False,
        "data": False,
        "results": True,
    }
    assert storage.files() == storage.folders() == set()

    command.upgrade(config, "head")
    assert len(storage.files()) == 7
    command.downgrade(config, "base")
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    assert storage.files() == set()


def test_the_command_line_migrates_and_reports_rows(tmp_path, storage):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    arguments = ["-c", str(ROOT / "migrations" / "alembic.ini"), "-x", f"url={url}", "upgrade"]

    def run(revision):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments, revision],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    run("0001")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    experiments, runs = tables_of_0001()
    with engine.begin() as connection:
        owner = uuid.uuid4()
        connection.execute(experiments.insert().values(id=owner, name="a"))
        connection.execute(runs.insert().values(id_experiment=owner, data={"a": 1}))
    assert "runs.data: 1 of 1 rows converted" in run("head")
    assert len(storage.files()) == 1


def test_a_conversion_needs_a_connection(url, storage):
    with pytest.raises(CommandError, match="online, without --sql"):
        command.upgrade(reference(url), "0001:0002", sql=True)


# -- operations ----------------------------------------------------------------------------------


def migrate(engine, change):
    """Run operations in the transaction that a migration has on this database."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        per_migration = not context.impl.transactional_ddl
        with context.begin_transaction(_per_migration=per_migration):
            change(Operations(context))


def rolls_ddl_back(engine):
    return engine.dialect.name == "postgresql"


def create_samples(engine, count=7, *, nullable=True, **kwargs):
    """Create a table with a composite key whose parts repeat, and pickles."""
    table = sa.Table(
        "samples",
        sa.MetaData(),
        sa.Column("plate", sa.String(10), primary_key=True),
        sa.Column("well", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("data", BYTES, nullable=nullable),
        **kwargs,
    )
    with engine.begin() as connection:
        table.create(connection)
        for i in range(count):
            raw = pickle.dumps({"i": i, "a": np.arange(i)})
            connection.execute(table.insert().values(plate="ab"[i % 2], well=i, data=raw))
    return table


def stored_rows(engine, column="data", schema=None):
    """Return the values of all rows by key, loaded, and their URLs."""
    with engine.connect() as connection:
        table = reflected_table(connection, "samples", {column: DataStoreType()}, schema=schema)
        rows = connection.execute(sa.select(table)).mappings().all()
        values = {
            (row["plate"], row["well"]): row[column] for row in rows if row[column] is not None
        }
        return {key: value["i"] for key, value in values.items()}, {v.url for v in values.values()}


def column_names(engine):
    with engine.connect() as connection:
        return {column["name"] for column in sa.inspect(connection).get_columns("samples")}


def paths(urls):
    return {url.removeprefix("file:///") for url in urls}


EXPECTED = {("ab"[i % 2], i): i for i in range(7)}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_every_row_of_a_composite_key_is_converted_once(batch_size, engine, storage):
    create_samples(engine)
    seen = []

    def loads(raw):
        seen.append(pickle.loads(raw))
        return seen[-1]

    migrate(
        engine,
        lambda op: op.convert_to_datastore("samples", "data", loads=loads, batch_size=batch_size),
    )
    values, urls = stored_rows(engine)
    assert values == EXPECTED
    assert sorted(value["i"] for value in seen) == list(range(7))
    assert storage.files() == paths(urls)
    assert storage.folders() == {"samples"} | {f"samples/{p},{w}" for p, w in EXPECTED}
    assert column_names(engine) == {"plate", "well", "data"}


def test_objects_follow_the_transaction_of_the_connection(engine, storage):
    create_samples(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE samples ADD COLUMN new VARCHAR(1024)"))

    def convert(connection):
        table = reflected_table(connection, "samples", {"new": DataStoreType()})
        return convert_column(connection, table, "data", "new", pickle.loads, batch_size=3)

    with engine.connect() as connection:
        assert convert(connection) == 7
        assert len(storage.files()) == 7
        connection.rollback()
        assert storage.files() == storage.folders() == set()
        assert convert(connection) == 7
        connection.commit()
        assert convert(connection) == 0
        connection.commit()
    values, urls = stored_rows(engine, "new")
    assert values == EXPECTED
    assert storage.files() == paths(urls)


def test_a_failure_in_the_middle_loses_nothing_and_is_resumed(engine, storage):
    create_samples(engine, nullable=False)
    loaded = []

    def failing(raw):
        if len(loaded) == 5:
            raise ValueError("cannot read this one")
        loaded.append(raw)
        return pickle.loads(raw)

    with pytest.raises(ValueError, match="cannot read") as info:
        migrate(
            engine,
            lambda op: op.convert_to_datastore("samples", "data", loads=failing, batch_size=2),
        )
    assert "while converting samples.data of the row with the key ('b', 3)" in info.value.__notes__
    with engine.connect() as connection:
        table = sa.Table("samples", sa.MetaData(), autoload_with=connection)
        assert connection.scalar(sa.select(sa.func.count(table.c.data))) == 7
    if rolls_ddl_back(engine):
        assert column_names(engine) == {"plate", "well", "data"}
        assert storage.files() == storage.folders() == set()
    else:
        values, urls = stored_rows(engine, "data_converted")
        assert values.items() <= EXPECTED.items()
        assert len(values) == 4
        assert storage.files() == paths(urls)

    before = storage.files()
    migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    values, urls = stored_rows(engine)
    assert values == EXPECTED
    assert before <= storage.files() == paths(urls)
    with engine.connect() as connection:
        columns = sa.inspect(connection).get_columns("samples")
    assert {c["name"]: c["nullable"] for c in columns}["data"] is False


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("direction", ["to", "from"])
def test_a_failure_before_the_last_rename_is_resumed(
    direction, nullable, engine, storage, monkeypatch
):
    create_samples(engine, nullable=nullable)

    def up(op):
        op.convert_to_datastore("samples", "data", loads=pickle.loads)

    def down(op):
        op.convert_from_datastore("samples", "data", dumps=pickle.dumps, type_=BYTES)

    change = up
    if direction == "from":
        migrate(engine, up)
        change = down
    alter = _Conversion._alter

    def failing(self, column, *, nullable, name=None):
        if name is not None:
            raise ConnectionError("the server went away")
        alter(self, column, nullable=nullable)

    with monkeypatch.context() as patch:
        patch.setattr(_Conversion, "_alter", failing)
        with pytest.raises(ConnectionError, match="went away"):
            migrate(engine, change)
    name = "data" if rolls_ddl_back(engine) else "data_converted"
    assert column_names(engine) == {"plate", "well", name}

    migrate(engine, change)
    with engine.connect() as connection:
        table = sa.Table("samples", sa.MetaData(), autoload_with=connection)
        rows = connection.execute(sa.select(table)).mappings().all()
    assert table.c.data.nullable is nullable
    if direction == "to":
        values, urls = stored_rows(engine)
        assert values == EXPECTED
        assert storage.files() == paths(urls)
    else:
        assert {(r["plate"], r["well"]): pickle.loads(r["data"])["i"] for r in rows} == EXPECTED
        assert storage.files() == storage.folders() == set()


def test_converting_again_changes_nothing(engine, storage):
    create_samples(engine)

    def up(op):
        op.convert_to_datastore("samples", "data", loads=pickle.loads)

    def down(op):
        op.convert_from_datastore("samples", "data", dumps=pickle.dumps, type_=BYTES)

    migrate(engine, up)
    before = storage.files()
    migrate(engine, up)
    assert storage.files() == before
    assert stored_rows(engine)[0] == EXPECTED
    migrate(engine, down)
    migrate(engine, down)
    assert storage.files() == storage.folders() == set()


def test_a_failure_on_the_way_back_removes_no_object(engine, storage):
    create_samples(engine, nullable=False)
    migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    before = storage.files()
    dumped = []

    def failing(entries):
        if len(dumped) == 5:
            raise ValueError("cannot write this one")
        dumped.append(entries)
        return pickle.dumps(entries)

    def down(op, dumps=pickle.dumps):
        op.convert_from_datastore("samples", "data", dumps=dumps, type_=BYTES, batch_size=2)

    with pytest.raises(ValueError, match="cannot write"):
        migrate(engine, lambda op: down(op, failing))
    assert storage.files() == before
    values, urls = stored_rows(engine)
    assert values == EXPECTED
    assert paths(urls) == before

    migrate(engine, down)
    assert storage.files() == storage.folders() == set()
    with engine.connect() as connection:
        table = sa.Table("samples", sa.MetaData(), autoload_with=connection)
        assert not table.c.data.nullable
        rows = connection.execute(sa.select(table)).mappings().all()
    assert {(r["plate"], r["well"]): pickle.loads(r["data"])["i"] for r in rows} == EXPECTED


def test_the_way_back_takes_a_pickle_type(engine, storage):
    table = create_samples(engine)
    table.c.data.type = sa.PickleType()

    def down(op):
        op.convert_from_datastore(
            "samples", "data", dumps=pickle.dumps, type_=sa.PickleType(), nullable=True
        )

    migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    migrate(engine, down)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(table)).all()
    assert {(row.plate, row.well): row.data["i"] for row in rows} == EXPECTED
    assert storage.files() == set()


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_objects_follow_the_transaction_that_the_caller_began(url, storage):
    engine = make_engine(url)
    create_samples(engine)
    with engine.connect() as connection:
        transaction = connection.begin()
        op = Operations(MigrationContext.configure(connection))
        op.convert_to_datastore("samples", "data", loads=pickle.loads)
        assert len(storage.files()) == 7
        transaction.rollback()
    assert storage.files() == storage.folders() == set()
    with engine.connect() as connection:
        table = sa.Table("samples", sa.MetaData(), autoload_with=connection)
        rows = connection.execute(sa.select(table)).mappings().all()
    assert {(r["plate"], r["well"]): pickle.loads(r["data"])["i"] for r in rows} == EXPECTED
    engine.dispose()


def test_what_is_no_mapping_is_refused_with_its_row(engine, storage):
    create_samples(engine, count=1)
    with pytest.raises(UnsupportedTypeError, match="DataStore\\(data=") as info:
        migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=len))
    assert "('a', 0)" in info.value.__notes__[0]
    assert storage.files() == storage.folders() == set()


def test_a_row_without_a_value_holds_null_and_is_looked_at_once(engine, storage):
    create_samples(engine, count=5)
    seen = []

    def loads(raw):
        value = pickle.loads(raw)
        assert value["i"] not in seen
        seen.append(value["i"])
        return value if value["i"] not in (1, 2) else None

    migrate(
        engine,
        lambda op: op.convert_to_datastore("samples", "data", loads=loads, batch_size=1),
    )
    values, urls = stored_rows(engine)
    assert values == {("a", 0): 0, ("b", 3): 3, ("a", 4): 4}
    assert storage.files() == paths(urls)


def test_a_table_without_a_primary_key_is_refused(engine, storage):
    with engine.begin() as connection:
        table = sa.Table("samples", sa.MetaData(), sa.Column("data", BYTES))
        table.create(connection)
        connection.execute(table.insert().values(data=pickle.dumps({})))
    with pytest.raises(ConfigurationError, match="primary key"):
        migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    assert storage.files() == set()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_table_of_another_schema_is_converted(engine, storage):
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA lab"))
    create_samples(engine, schema="lab")
    migrate(
        engine,
        lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads, schema="lab"),
    )
    values, urls = stored_rows(engine, schema="lab")
    assert values == EXPECTED
    assert storage.files() == paths(urls)
    assert {path.split("/")[0] for path in storage.files()} == {"lab.samples"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_does_not_cascade_into_other_tables(url, storage):
    engine = make_engine(url)
    create_samples(engine)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE notes (plate TEXT, well INTEGER, FOREIGN KEY (plate, well) "
                "REFERENCES samples (plate, well) ON DELETE CASCADE)"
            )
        )
        connection.execute(sa.text("INSERT INTO notes VALUES ('a', 0)"))
    with pytest.raises(ConfigurationError, match="reaches the rows of 'notes'"):
        migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM notes")) == 1
    assert storage.files() == set()
    engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_folder_by_uuid_needs_its_type(engine, storage):
    table = sa.Table(
        "samples",
        sa.MetaData(),
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("data", BYTES),
    )
    key = uuid.uuid4()
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert().values(id=key, data=pickle.dumps({"i": 1})))

    def convert(column_types):
        migrate(
            engine,
            lambda op: op.convert_to_datastore(
                "samples", "data", loads=pickle.loads, column_types=column_types
            ),
        )

    with pytest.raises(ConfigurationError, match=r"column_types=\{'id': sa.Uuid\(\)\}"):
        convert({})
    convert({"id": sa.Uuid()})
    assert storage.folders() == {"samples", f"samples/{key}"}


# -- progress ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_progress_is_a_bar_on_a_terminal(engine, storage, monkeypatch):
    pytest.importorskip("tqdm")
    create_samples(engine)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    assert "samples.data: 100%" in terminal.getvalue()
    assert "7/7" in terminal.getvalue()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
def test_progress_is_lines_elsewhere(stderr, engine, storage, monkeypatch, caplog):
    create_samples(engine)
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with caplog.at_level(logging.INFO, "alembic.runtime.sqla_datastore"):
        migrate(engine, lambda op: op.convert_to_datastore("samples", "data", loads=pickle.loads))
    assert caplog.messages == ["samples.data: 7 of 7 rows converted"]
