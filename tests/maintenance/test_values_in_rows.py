"""What operators do with values that lie in rows: check, count, collect, write down, migrate."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import make_engine
from support.exactness import assert_exact

from sqla_datastore import DataStore, DataStoreType, enable_removals
from sqla_datastore.alembic import render_item
from sqla_datastore.cli.printing import print_report
from sqla_datastore.maintenance import check, create_removal_triggers, drain, gc, usage

LARGE = np.arange(2_000)


class Base(DeclarativeBase):
    """The table of this module, whose removals are written down."""


class Item(Base):
    """Keeps values of up to 3,000 bytes in the row."""

    __tablename__ = "in_row_items"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=3_000))


enable_removals(Base.metadata)


@pytest.fixture
def engine(private_url, stored):
    """A database of this test alone, with two values in rows and one outside."""
    engine = make_engine(private_url, stored.base)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Item(id=1, data=DataStore(a=1, inner=DataStore(b=[1]))))
        session.add(Item(id=2, data=DataStore(a=np.arange(5))))
        session.add(Item(id=3, data=DataStore(a=LARGE)))
    yield engine
    engine.dispose()


def execute(engine, statement, **parameters):
    with engine.begin() as connection:
        return connection.execute(sa.text(statement), parameters)


def test_check_looks_into_rows(engine, capsys):
    report = check(engine, Base.metadata, deep=True)
    assert report.is_clean
    assert (report.references, report.objects, report.in_rows) == (1, 1, 2)
    assert print_report(report, as_json=False) == 0
    assert f"2 values in rows, {report.in_row_bytes} bytes there" in capsys.readouterr().out


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("damage", ["cut off", "no base64", "no head", "inner cut off"])
def test_check_finds_damage_in_rows(engine, damage, deep):
    with engine.connect() as connection:
        text = connection.scalar(sa.text("SELECT data FROM in_row_items WHERE id = 1"))
    damaged = {
        "cut off": text[:200],
        "no base64": text.replace(";base64,", ";base64,*"),
        "no head": "data:,x",
        "inner cut off": text[:-8],
    }[damage]
    execute(engine, "UPDATE in_row_items SET data = :t WHERE id = 1", t=damaged)
    report = check(engine, Base.metadata, deep=deep)
    (found,) = report.damaged
    assert "{'id': 1} of in_row_items.data" in str(found)
    assert len(str(found)) < 400
    assert not report.dangling
    assert not report.orphans


def test_a_wrong_checksum_in_a_row_is_found_by_the_deep_check(engine):
    with engine.connect() as connection:
        text = connection.scalar(sa.text("SELECT data FROM in_row_items WHERE id = 2"))
    head, _, objects = text.partition(";base64,")
    raw = bytearray(base64.b64decode(objects))
    raw[raw.index((3).to_bytes(8, "little"))] ^= 1
    forged = f"{head};base64,{base64.b64encode(raw).decode()}"
    execute(engine, "UPDATE in_row_items SET data = :t WHERE id = 2", t=forged)
    assert check(engine, Base.metadata).is_clean
    (found,) = check(engine, Base.metadata, deep=True).damaged
    assert "{'id': 2}" in str(found)


def test_usage_tells_rows_and_objects_apart(engine, capsys):
    report = usage(engine, Base.metadata)
    (column,) = report.columns
    assert (column.rows, column.objects, column.in_rows) == (1, 1, 2)
    with engine.connect() as connection:
        texts = connection.scalars(
            sa.text("SELECT data FROM in_row_items WHERE data LIKE 'data:%'")
        ).all()
    assert report.in_row_bytes == column.in_row_bytes == sum(map(len, texts))
    assert {each.type: each.entries for each in column.types}["numpy.ndarray"] == 2
    assert print_report(report, as_json=False) == 0
    assert "2 values in rows" in capsys.readouterr().out


def test_gc_leaves_rows_alone_and_takes_what_became_an_orphan(engine, stored):
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 0
    text = DataStore(a=1)
    with Session(engine) as session, session.begin():
        session.add(Item(id=4, data=text))
        session.add(Item(id=5, data=DataStore(a=LARGE)))
    # raw SQL moves a value into the row, so that the object has no row any more
    execute(engine, "UPDATE in_row_items SET data = :t WHERE id = 3", t=text.url)
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 1
    assert len(stored.files()) == 1
    assert check(engine, Base.metadata, deep=True).is_clean


def test_triggers_and_removals_pass_over_values_in_rows(engine, stored):
    with engine.begin() as connection:
        create_removal_triggers(connection, "in_row_items", "data")
    execute(engine, "UPDATE in_row_items SET data = NULL WHERE id IN (1, 3)")
    execute(engine, "DELETE FROM in_row_items WHERE id = 2")
    with engine.connect() as connection:
        (noted,) = connection.scalars(sa.text("SELECT url FROM sqla_datastore_removals")).all()
    assert noted.startswith("file:///in_row_items/3/")
    drain(engine, Base.metadata)
    assert stored.files() == set()
    # a commit of the library's writes down the object, and not the value that lay in the row
    with Session(engine) as session:
        session.add(Item(id=7, data=DataStore(a=1)))
        session.commit()
        session.get(Item, 7).data = DataStore(a=LARGE)
        session.commit()
        session.get(Item, 7).data = DataStore(a=1)
        session.commit()
    assert stored.files() == set()
    assert check(engine, Base.metadata).is_clean


def test_autogenerate_renders_the_option_and_sees_the_change_of_type(engine):
    item = Base.metadata.tables["in_row_items"]

    def differences(type_):
        metadata = sa.MetaData()
        for table in Base.metadata.sorted_tables:
            table.to_metadata(metadata)
        metadata.tables["in_row_items"].c.data.type = type_
        with engine.connect() as connection:
            return compare_metadata(MigrationContext.configure(connection), metadata)

    assert differences(item.c.data.type) == []
    ((change,),) = differences(DataStoreType())
    assert change[0] == "modify_type"

    class Context:
        imports: set[str] = set()

    rendered = render_item("type", DataStoreType(inline_bytes=4_000), Context)
    assert rendered == "sqla_datastore.DataStoreType(inline_bytes=4000)"


def test_a_column_is_converted_into_rows_and_back(private_url, stored, monkeypatch):
    monkeypatch.setenv("SQLA_DATASTORE_URL", str(stored.base))
    engine = sa.create_engine(private_url, poolclass=sa.NullPool)
    table = sa.Table(
        "old", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("t", sa.Text)
    )
    table.create(engine)
    with engine.begin() as connection:
        rows = [{"id": 1, "t": "short"}, {"id": 2, "t": "long" * 2_000}, {"id": 3, "t": None}]
        connection.execute(sa.insert(table), rows)
    type_ = DataStoreType(inline_bytes=2_000)

    def migrate(change):
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            per_migration = not context.impl.transactional_ddl
            with context.begin_transaction(_per_migration=per_migration):
                change(Operations(context))

    def loads(text):
        return {"text": text}

    for _ in range(2):  # the second finds it done
        migrate(lambda op: op.convert_to_datastore("old", "t", loads=loads, type_=type_))
    new = sa.Table("old", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("t", type_))
    with engine.connect() as connection:
        values = connection.scalars(sa.select(new.c.t).order_by(new.c.id)).all()
        assert [v and v.text[:5] for v in values] == ["short", "longl", None]
        assert [v and v.url[:5] for v in values] == ["data:", "file:", None]
    assert_exact(engine, new.metadata, stored, 2)

    def back(op):
        op.convert_from_datastore(
            "old", "t", dumps=lambda entries: entries["text"], type_=sa.Text(), existing_type=type_
        )

    migrate(back)
    with engine.connect() as connection:
        texts = connection.scalars(sa.text("SELECT t FROM old ORDER BY id")).all()
    assert texts == ["short", "long" * 2_000, None]
    assert stored.files() == set()
    engine.dispose()
