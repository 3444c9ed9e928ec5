"""Each internal of SQLAlchemy that is read is as it was when it was tried."""

from __future__ import annotations

import pytest
import sqlalchemy
from sqlalchemy import (
    Column,
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
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import Pool, QueuePool

from sqla_datastore.schema import sqlalchemy_compat as compat

metadata = MetaData()
table = Table(
    "things",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, key="title"),
    Column("made", String, default="made"),
)


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "mapped_things"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def contexts(engine):
    """The execution contexts of the statements that ran, in order."""
    found = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection, _cursor, _statement, _parameters, context, _executemany):
        found.append(context)

    return found


def run(engine, statement, *parameters):
    with engine.begin() as connection:
        connection.execute(statement, *parameters)


@pytest.mark.parametrize(
    ("statement", "assigned"),
    [
        (insert(table).values(id=1, title="a"), [{"id", "title"}]),
        (insert(table).values([{"id": 1}, {"id": 2, "title": "b"}]), [{"id"}, {"id", "title"}]),
        (update(table).values(title="b"), [{"title"}]),
        (update(table).values({table.c.title: "b"}), [{"title"}]),
        (insert(table), [set()]),
    ],
)
def test_what_a_statement_assigns(engine, contexts, statement, assigned):
    run(engine, statement, *([{"id": 3}] if not any(assigned) else []))
    found = compat.assigned(contexts[-1].compiled)
    assert [{getattr(key, "key", key) for key in group} for group in found] == assigned


@pytest.mark.parametrize(
    "statement", [insert(table).values(id=1), update(table).values(title="b"), delete(table)]
)
def test_the_statement_that_was_compiled(engine, contexts, statement):
    run(engine, statement)
    found = compat.statement_of(contexts[-1].compiled)
    assert type(found) is type(statement)
    assert found.table is table


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_how_parameters_are_named(engine, contexts, rows):
    values = [{"id": n, "title": f"t{n}"} for n in range(rows)]
    run(engine, insert(table).values(values if rows > 1 else values[0]))
    (given,) = contexts[-1].compiled_parameters
    for group in range(rows):
        names = compat.parameter_names(table.c.title, group, rows)
        assert [given[name] for name in names if name in given][:1] == [f"t{group}"]


def test_which_parameters_defaults_made(engine, contexts):
    run(engine, insert(table).values(id=1))
    assert compat.defaulted_keys(contexts[-1].compiled) == {"made"}
    run(engine, insert(table).values([{"id": 2}, {"id": 3}]))
    made = compat.defaulted_keys(contexts[-1].compiled)
    names = {name for n in (0, 1) for name in compat.parameter_names(table.c.made, n, 2)}
    assert made & names
    run(engine, insert(table).values(id=4, made="by hand"))
    assert compat.defaulted_keys(contexts[-1].compiled) == set()


def test_what_replaced_an_expanding_parameter(engine, contexts):
    run(engine, select(table).where(table.c.id.in_([1, 2, 3])))
    context = contexts[-1]
    (name,) = (n for n in context.compiled.bind_names.values() if n.startswith("id"))
    expanded = compat.expanded_parameters(context, name)
    assert [context.compiled_parameters[0][each] for each in expanded] == [1, 2, 3]
    assert compat.expanded_parameters(context, "nothing") is None


def test_literals_of_a_cached_statement(engine, contexts):
    for number in (1, 2):
        run(engine, update(table).where(table.c.id == number).values(title="x"))
        values = compat.constructed_parameters(contexts[-1])
        assert number in values.values()
    assert contexts[0].compiled is contexts[1].compiled, "the statement was not cached"


def test_a_required_parameter_is_left_alone(engine, contexts):
    run(engine, update(table).where(table.c.id == bindparam("key")).values(title="x"), {"key": 5})
    assert "key" in compat.constructed_parameters(contexts[-1])


def test_an_insert_that_may_meet_rows():
    plain = insert(table).values(id=1)
    ignoring = sqlite.insert(table).on_conflict_do_nothing()
    updating = postgresql.insert(table).on_conflict_do_update(
        index_elements=["id"], set_={"title": "x"}
    )
    assert not compat.may_meet_rows(plain)
    assert compat.may_meet_rows(plain.prefix_with("OR IGNORE"))
    assert compat.may_meet_rows(ignoring)
    assert compat.may_meet_rows(updating)
    assert compat.conflict_clause(plain) is None
    assert compat.conflict_clause(select(table)) is None
    assert compat.conflict_targets(updating) == ["id"]
    assert compat.conflict_targets(plain) == compat.conflict_targets(ignoring) == ()


def test_columns_that_an_insert_from_a_select_fills():
    statement = insert(table).from_select(["id", table.c.title], select(table.c.id, table.c.title))
    assert compat.selected_names(statement) == {"id", "title"}
    assert compat.selected_names(insert(table)) == set()


@pytest.mark.parametrize(
    "value", [table.c.id, table.c.id + 1, sqlalchemy.text("x"), sqlalchemy.null(), Thing.id]
)
def test_what_is_sql(value):
    assert compat.is_sql(value)


@pytest.mark.parametrize("value", [1, "x", None, {}, [], object()])
def test_what_is_no_sql(value):
    assert not compat.is_sql(value)


def test_variants_of_a_type():
    type_ = String().with_variant(Integer(), "sqlite")
    assert [type(each) for each in compat.variants(type_)] == [Integer]
    assert not list(compat.variants(String()))


def test_an_answer_to_inspect():
    class Odd:
        pass

    @compat.inspects(Odd)
    def answer(odd):
        return "it", odd

    odd = Odd()
    assert sqlalchemy.inspect(odd) == ("it", odd)


def test_the_dialect_of_a_pool():
    engine, found = create_engine("sqlite://"), []
    event.listen(Pool, "connect", _note := lambda _raw, record: found.append(record))
    try:
        with engine.connect():
            pass
        QueuePool(engine.raw_connection).connect()
    finally:
        event.remove(Pool, "connect", _note)
    assert compat.pool_dialect(found[0]) is engine.dialect
    assert compat.pool_dialect(found[-1]) is None, "its pool belongs to no engine"
    other = create_engine("sqlite://", pool=engine.pool)
    assert compat.pool_dialect(found[0]) is other.dialect
