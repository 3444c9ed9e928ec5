"""What a statement may not do to values, and P6 and P7: reading costs and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sqlalchemy import String as SQLString
from sqlalchemy import (
    bindparam,
    case,
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, aliased
from support.exactness import statements
from support.models import Base, Counter, Experiment, Keyed, Texts

from sqla_datastore import (
    DataStore,
    DataStoreError,
    RefusedStatementError,
    RefusedURLError,
    UnsupportedTypeError,
)
from sqla_datastore.storage import LocalStorage

table = Keyed.__table__
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
pytestmark = pytest.mark.usefixtures("tables")


def value(n=0):
    return DataStore(a=np.arange(n, n + 5), n=n, items=[n])


@pytest.fixture
def rows(engine, stored):
    """Three committed rows, and what they and the storage were."""
    with Session(engine) as session:
        session.add_all([Keyed(id=n, name=f"row {n}", data=value(n)) for n in range(3)])
        session.commit()
    return dump(engine), stored.files()


def dump(engine):
    """Every row of the tables as the database has it."""
    found = {}
    with engine.connect() as connection:
        for each in Base.metadata.sorted_tables:
            columns = [type_coerce(c, SQLString()) for c in each.c]
            found[each.name] = sorted(map(str, connection.execute(select(*columns))))
    return found


# -- bad input: refused before anything ran ------------------------------------------------------


def _one_value_for_many_rows():
    return update(Keyed).values(data=value())


def _one_value_for_some_rows():
    return update(table).where(table.c.id < 2).values(data=value())


def _insert_from_select():
    return insert(table).from_select(["id", "data"], select(table.c.id + 10, table.c.data))


def _insert_from_select_of_values():
    return insert(table).from_select(
        ["id", "data"], select(literal(9), literal(value(), table.c.data.type))
    )


def _column_to_column():
    return update(Experiment).values(more=Experiment.data)


def _column_to_column_one_row():
    return update(table).where(table.c.id == 1).values(data=table.c.data)


def _subquery():
    other = aliased(Keyed)
    inner = select(other.data).where(other.id == 0).scalar_subquery()
    return update(Keyed).where(Keyed.id == 1).values(data=inner)


def _expression():
    return update(Keyed).where(Keyed.id == 1).values(data=func.lower("X"))


def _case_expression():
    return (
        update(Keyed)
        .where(Keyed.id == 1)
        .values(data=case((Keyed.id == 1, literal("file:///x/y.zip")), else_=None))
    )


def _text_expression():
    return update(table).where(table.c.id == 1).values(data=text("'file:///x/y.zip'"))


def _literal_column():
    return update(table).where(table.c.id == 1).values(data=literal_column("'file:///x/y.zip'"))


def _plain_url():
    return update(Keyed).where(Keyed.id == 1).values(data="file:///keyed/1/x.zip")


def _plain_url_in_insert():
    return insert(table).values(id=9, data="file:///keyed/1/x.zip")


def _expression_in_insert():
    return insert(table).values(id=9, data=func.lower("X"))


def _number():
    return update(Keyed).where(Keyed.id == 1).values(data=5)


def _ordered_values():
    return update(table).ordered_values((table.c.name, "x"), (table.c.data, value()))


def _values_by_column():
    return update(table).values({table.c.data: value()})


def _unsaved_in_where():
    return update(table).where(table.c.data == literal(value(), table.c.data.type)).values(name="x")


def _unsaved_in_delete():
    return delete(table).where(table.c.data == literal(value(), table.c.data.type))


def _unsaved_in_select():
    return select(table.c.id).where(table.c.data == literal(value(), table.c.data.type))


def _unsaved_selected():
    return select(literal(value(), table.c.data.type))


def _unsaved_parameter():
    given = bindparam("v", value(), type_=table.c.data.type)
    return select(table.c.id).where(column("data") == given)


def _unsaved_in_and_set():
    return (
        update(table)
        .where(table.c.data != literal(value(1), table.c.data.type))
        .values(data=value(2))
    )


def _unsaved_in_in():
    return select(table.c.id).where(table.c.data.in_([literal(value(), table.c.data.type)]))


def _changed_in_where():
    changed = DataStore.from_url("file:///keyed/1/" + "0" * 32 + ".zip")
    changed._entries = {}
    changed.n = 1
    return select(table.c.id).where(table.c.data == literal(changed, table.c.data.type))


REFUSED = [
    _one_value_for_many_rows,
    _one_value_for_some_rows,
    _insert_from_select,
    _insert_from_select_of_values,
    _column_to_column,
    _column_to_column_one_row,
    _subquery,
    _expression,
    _case_expression,
    _text_expression,
    _literal_column,
    _plain_url,
    _plain_url_in_insert,
    _expression_in_insert,
    _number,
    _ordered_values,
    _values_by_column,
    _unsaved_in_where,
    _unsaved_in_delete,
    _unsaved_in_select,
    _unsaved_selected,
    _unsaved_parameter,
    _unsaved_in_and_set,
    _unsaved_in_in,
    _changed_in_where,
]


@pytest.mark.parametrize("statement", REFUSED, ids=lambda f: f.__name__.strip("_"))
def test_a_statement_that_cannot_be_followed_is_refused_before_it_runs(
    engine, stored, exact, rows, statement
):
    with Session(engine) as session:
        session.add(Experiment(name="one", data=value(7)))
        session.add(Experiment(name="two"))
        session.commit()
    before, files = dump(engine), stored.files()
    with Session(engine) as session:
        kept = session.get(Keyed, 0)
        kept.data = value(50)
        session.flush()
        with pytest.raises((RefusedStatementError, UnsupportedTypeError)):
            session.execute(statement())
        session.rollback()
        assert dump(engine) == before
        assert stored.files() == files
        session.get(Keyed, 1).data = value(20)
        session.commit()
    exact(4)


@pytest.mark.parametrize("statement", REFUSED, ids=lambda f: f.__name__.strip("_"))
@on_sqlite
def test_a_refused_statement_does_not_spoil_what_else_is_committed(
    engine, stored, exact, rows, statement
):
    """Nothing ran, so on every database the transaction may go on."""
    with engine.connect() as connection:
        connection.execute(
            insert(Experiment), [{"name": "a", "data": value()}, {"name": "b", "data": value()}]
        )
        with pytest.raises((RefusedStatementError, UnsupportedTypeError)):
            connection.execute(statement())
        connection.execute(update(table).where(table.c.id == 2).values(data=value(22)))
        connection.commit()
        found = dict(connection.execute(select(table.c.id, table.c.data)).all())
        assert {key: each.n for key, each in found.items()} == {0: 0, 1: 1, 2: 22}
    exact(5)


def _dml_in_a_cte(kind):
    if kind == "insert":
        inner = insert(table).values(id=9, data=value()).returning(table.c.id)
    elif kind == "update":
        inner = update(table).where(table.c.id == 1).values(data=value()).returning(table.c.id)
    elif kind == "update name":
        inner = update(table).where(table.c.id == 1).values(data=None).returning(table.c.id)
    else:
        inner = delete(table).where(table.c.id == 1).returning(table.c.id)
    return select(inner.cte("changed").c.id)


@pytest.mark.parametrize("kind", ["insert", "update", "update name", "delete"])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_cte_that_changes_rows_is_refused(engine, stored, exact, rows, kind):
    before, files = rows
    with engine.connect() as connection:
        with pytest.raises(RefusedStatementError, match="keyed"):
            connection.execute(_dml_in_a_cte(kind))
        connection.commit()
    assert dump(engine) == before
    assert stored.files() == files


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_cte_around_another_statement_is_refused(engine, stored, exact, rows):
    """The CTE of an INSERT is seen as well."""
    before, files = rows
    inner = delete(table).where(table.c.id == 1).returning(table.c.id).cte("gone")
    outer = insert(Counter).from_select(["id"], select(inner.c.id))
    with engine.connect() as connection, pytest.raises(RefusedStatementError):
        connection.execute(outer)
    assert dump(engine) == before
    assert stored.files() == files


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_cte_inside_a_subquery_is_refused(engine, stored, exact, rows):
    before, _ = rows
    inner = delete(table).where(table.c.id == 1).returning(table.c.id).cte("gone")
    outer = update(Counter).where(Counter.id.in_(select(inner.c.id))).values(name="x")
    with engine.connect() as connection:
        with pytest.raises(RefusedStatementError):
            connection.execute(outer)
        connection.rollback()
    assert dump(engine) == before


# -- bad values ----------------------------------------------------------------------------------


class Strange:
    """Nothing stores it."""


def _cycle():
    ds = DataStore()
    ds.inner = DataStore(n=1)
    ds.inner.back = ds
    return ds, "inner"


def _self_cycle():
    ds = DataStore()
    ds.me = ds
    return ds, "me"


def _list_cycle():
    items = []
    items.append(items)
    return DataStore(items_=items), "items_"


BAD = {
    "class": lambda: (DataStore(n=1, x=Strange()), "x"),
    "in_a_list": lambda: (DataStore(n=1, x=[1, {"k": Strange()}]), "x"),
    "nested": lambda: (DataStore(n=1, inner=DataStore(x=Strange())), "inner"),
    "object_array": lambda: (DataStore(x=np.array([1, "a", None], dtype=object)), "x"),
    "lambda": lambda: (DataStore(x=lambda: 1), "x"),
    "module": lambda: (DataStore(x=os), "x"),
    "cycle": _cycle,
    "self_cycle": _self_cycle,
    "list_cycle": _list_cycle,
    "surrogate": lambda: (DataStore({"a\ud800": 1}), "a\\ud800"),
}
bad = pytest.mark.parametrize("make", BAD.values(), ids=BAD)


def _store(session, given, how):
    if how == "orm insert":
        session.add(Keyed(id=9, data=given))
        session.flush()
    elif how == "orm update":
        row = session.get(Keyed, 1)
        row.data = given
        session.flush()
    elif how == "core insert":
        session.execute(insert(table).values(id=9, data=given))
    elif how == "core update":
        session.execute(update(table).where(table.c.id == 1).values(data=given))
    else:
        session.execute(insert(table), [{"id": 8, "data": value()}, {"id": 9, "data": given}])


@bad
@pytest.mark.parametrize("how", ["orm insert", "orm update", "core insert", "core update", "many"])
@on_sqlite
def test_a_value_that_cannot_be_stored_is_refused(engine, stored, exact, rows, make, how):
    before, files = rows
    given, entry = make()
    with Session(engine) as session, statements(engine, "INSERT", "UPDATE") as ran:
        with pytest.raises(UnsupportedTypeError) as caught:
            _store(session, given, how)
        assert caught.value.column == "keyed.data"
        assert entry in str(caught.value)
        assert "keyed.data" in str(caught.value)
        assert stored.files() == files
        session.rollback()
        assert dump(engine) == before
        session.add(Keyed(id=10, data=value()))
        session.commit()
    assert len(ran) >= 1
    exact(4)


def test_a_value_that_cannot_be_stored_beside_good_rows(engine, stored, exact, rows):
    before, files = rows
    with Session(engine) as session:
        good = Keyed(id=8, data=value(8))
        session.add_all([good, Keyed(id=9, data=DataStore(x=Strange()))])
        with pytest.raises(UnsupportedTypeError, match="'x'"):
            session.commit()
        session.rollback()
        assert dump(engine) == before
        assert stored.files() == files
        assert good.data.url is None
        session.add(good)
        session.commit()
    exact(4)


def test_what_is_no_value_is_refused_on_assignment(engine):
    for given in ("file:///x", 5, [1], b"x", object()):
        with pytest.raises(UnsupportedTypeError, match="'data'"):
            Keyed(id=1, data=given)


def test_a_dict_is_taken_on_assignment(engine, exact):
    with Session(engine) as session:
        session.add(Keyed(id=1, data={"a": 1}))
        session.commit()
    with Session(engine) as session:
        assert session.get(Keyed, 1).data == {"a": 1}
    exact(1)


def test_a_dict_in_a_core_statement_is_taken_or_refused(engine, exact):
    with engine.connect() as connection:
        try:
            connection.execute(insert(table).values(id=1, data={"a": 1}))
        except DataStoreError:
            connection.rollback()
            taken = 0
        else:
            connection.commit()
            taken = 1
    exact(taken)


# -- RETURNING -----------------------------------------------------------------------------------


def _insert_returning(session):
    return insert(Keyed).returning(Keyed.id).values(id=10, data=value(10))


def _insert_returning_many(session):
    session.add_all([Counter(data=value(n)) for n in range(3)])
    return select(Counter.id)


def _delete_returning(session):
    return delete(Keyed).where(Keyed.id < 2).returning(Keyed.id)


def _update_returning(session):
    return update(Keyed).where(Keyed.id == 1).values(data=value(20)).returning(Keyed.id)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize(
    ("statement", "count"),
    [
        (_insert_returning, 4),
        (_insert_returning_many, 6),
        (_delete_returning, 1),
        (_update_returning, 3),
    ],
    ids=["insert", "insert_many", "delete", "update"],
)
def test_a_statement_that_returns_rows_follows_its_transaction(
    engine, stored, exact, rows, statement, count, end
):
    """The first statement of its transaction: drivers learn from others that one is open."""
    if statement is _update_returning and not engine.dialect.update_returning:
        pytest.skip("the database cannot return updated rows")
    before, files = rows
    with Session(engine) as session:
        assert session.execute(statement(session)).all()
        assert files <= stored.files(), "removed before COMMIT"
        getattr(session, end)()
    if end == "rollback":
        assert dump(engine) == before
        assert stored.files() == files
    exact(count if end == "commit" else 3)


# -- P6: reads don't write -----------------------------------------------------------------------


@pytest.fixture
def no_storage(monkeypatch):
    """Fail every test that touches a storage from now on."""

    def refuse(name):
        def touched(*args, **_kwargs):
            raise AssertionError(f"the storage was touched: {name}{args[1:]}")

        return touched

    def start():
        for name in ("create", "open", "size_bytes", "list", "remove", "make_durable"):
            monkeypatch.setattr(LocalStorage, name, refuse(name))

    return start


def test_select_and_comparison_touch_no_storage(engine, rows, no_storage):
    no_storage()
    with Session(engine) as session:
        found = session.scalars(select(Keyed).order_by(Keyed.id)).all()
        urls = [row.data.url for row in found]
        stored_value = found[1].data
        for criterion, expected in (
            (Keyed.data.is_(None), []),
            (Keyed.data.is_not(None), [0, 1, 2]),
            (Keyed.data == None, []),  # noqa: E711
            (Keyed.data != None, [0, 1, 2]),  # noqa: E711
            (Keyed.data == urls[1], [1]),
            (Keyed.data != urls[1], [0, 2]),
            (Keyed.data == stored_value, [1]),
            (Keyed.data.in_([urls[0], urls[2]]), [0, 2]),
            (Keyed.data.in_([stored_value]), [1]),
            (Keyed.data.not_in([stored_value]), [0, 2]),
            (Keyed.data == literal(stored_value, table.c.data.type), [1]),
            (Keyed.data.like("file:///keyed/1/%"), [1]),
            (Keyed.data.startswith("file:///keyed/2/"), [2]),
        ):
            query = select(Keyed.id).where(criterion).order_by(Keyed.id)
            assert session.scalars(query).all() == expected, str(criterion)
        session.commit()


def test_literal_rendering_touches_no_storage(engine, rows, no_storage):
    with Session(engine) as session:
        data = session.get(Keyed, 1).data
    no_storage()
    compiled = (
        select(Keyed.id)
        .where(Keyed.data == data)
        .compile(engine, compile_kwargs={"literal_binds": True})
    )
    assert data.url in str(compiled)
    with engine.connect() as connection:
        assert connection.scalars(text(str(compiled).replace(":", "\\:"))).all() == [1]
    with pytest.raises(RefusedStatementError):
        select(Keyed.id).where(Keyed.data == value())
    with pytest.raises((RefusedStatementError, SQLAlchemyError)):
        str(
            insert(table)
            .values(id=1, data=value())
            .compile(engine, compile_kwargs={"literal_binds": True})
        )


def test_rendering_a_statement_for_a_log_touches_no_storage(engine, rows, no_storage):
    no_storage()
    statement = insert(table).values(id=9, data=value())
    assert "INSERT" in str(statement)
    assert "INSERT" in str(statement.compile(engine))
    assert repr(statement.compile(engine).params)


def test_a_failing_statement_touches_no_storage(engine, rows, no_storage):
    no_storage()
    with Session(engine) as session:
        with pytest.raises(IntegrityError):
            session.execute(insert(table).values(id=1, data=value()))
        session.rollback()
        session.add(Keyed(id=1, data=value()))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
    with engine.connect() as connection:
        with pytest.raises(SQLAlchemyError):
            connection.execute(
                insert(table).values(id=11, data=value(), name=literal_column("no_such_column"))
            )
        connection.rollback()


def test_a_refused_statement_touches_no_storage(engine, rows, no_storage):
    with Session(engine) as session:
        session.add_all([Experiment(), Experiment()])
        session.commit()
    no_storage()
    for statement in REFUSED:
        with Session(engine) as session, pytest.raises(DataStoreError):
            session.execute(statement())


def test_an_update_that_matches_no_row_touches_no_storage(engine, rows, no_storage):
    no_storage()
    with engine.connect() as connection:
        connection.execute(update(table).where(table.c.id == 99).values(data=value()))
        connection.execute(update(table).values(name="x"))
        connection.commit()


def test_an_update_of_other_columns_touches_no_storage(engine, rows, no_storage):
    no_storage()
    with Session(engine) as session:
        session.get(Keyed, 1).name = "x"
        session.commit()
        session.execute(update(Keyed).values(name="y"))
        session.commit()


def test_inserting_rows_without_values_writes_nothing(engine, stored, exact):
    with Session(engine) as session:
        session.add_all([Counter(), Keyed(id=1), Experiment()])
        session.commit()
    exact(0)
    assert stored.folders() == set()


# -- P7: lazy ------------------------------------------------------------------------------------

AUDIT = """
import sys
sys.path.insert(0, {tests!r})
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from support.models import Keyed
from sqla_datastore import bind_storage

import sqla_datastore.format, sqla_datastore.value.inspection, numpy
engine = create_engine({url!r})
bind_storage(engine, {base!r})
seen = []
watching = False
sys.addaudithook(lambda *event: seen.append(event) if watching else None)

def files(work):
    global watching
    seen.clear()
    watching = True
    try:
        work()
    finally:
        watching = False
    return [
        (name, args)
        for name, args in seen
        if name in ("open", "os.listdir", "os.scandir", "mmap.__new__")
        and not str(args[0]).endswith((".db", "-journal", ".py", ".pyc"))
        and not (name == "open" and isinstance(args[0], int))
    ]

import os
stats = []

def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        stats.append((name, args))
        return real(*args, **kwargs)
    return call

for name in ("stat", "lstat", "fstat", "open"):
    setattr(os, name, counted(name))

with Session(engine) as session:
    session.scalars(select(Keyed.id)).all()
    rows = []
    stats.clear()
    found = files(lambda: rows.extend(session.scalars(select(Keyed))))
    assert len(rows) == {count}, len(rows)
    assert all(row.data.url for row in rows)
    assert found == [], found[:5]
    assert stats == [], stats[:5]

    data = rows[0].data
    found = files(lambda: list(data))
    objects = [str(args[0]) for name, args in found if str(args[0]).endswith(".zip")]
    assert set(objects) == {{data.url.rpartition("/")[2]}}, found
    found = files(lambda: (list(data), len(data), "n" in data, data.keys()))
    assert found == [], found
print("fine")
"""


@on_sqlite
def test_1000_fetched_rows_open_no_file_and_ask_for_no_size(engine, stored, database_url):
    count = 1000
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": n, "data": DataStore(n=n)} for n in range(count)])
    code = AUDIT.format(
        tests=os.path.dirname(os.path.dirname(__file__)),
        url=database_url,
        base=str(stored.base),
        count=count,
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "fine", done.stderr


class Counted:
    """Counts what is read of objects."""

    def __init__(self, monkeypatch):
        self.opened = []
        self.reads = []
        opened, reads = self.opened, self.reads
        real = LocalStorage.open

        def open_(storage, path):
            opened.append(path)
            return Reader(real(storage, path))

        class Reader:
            def __init__(self, inner):
                self.inner = inner
                self.size_bytes = inner.size_bytes
                self.maps = inner.maps

            def read(self, offset, size_bytes):
                reads.append(size_bytes)
                return self.inner.read(offset, size_bytes)

            def view(self, offset, size_bytes):
                reads.append(size_bytes)
                return self.inner.view(offset, size_bytes)

        monkeypatch.setattr(LocalStorage, "open", open_)


@pytest.fixture
def big(engine):
    """A row with a payload of 8 MB beside small entries."""
    with Session(engine) as session:
        data = DataStore(big=np.zeros(1_000_000), small=np.arange(3), n=1, inner=DataStore(n=2))
        session.add(Keyed(id=1, data=data))
        session.commit()


@on_sqlite
def test_keys_cost_one_open_and_the_index_only(engine, big, monkeypatch):
    counted = Counted(monkeypatch)
    with Session(engine) as session:
        data = session.get(Keyed, 1).data
        assert counted.opened == []
        assert list(data) == ["big", "small", "n", "inner"]
        assert len(counted.opened) == 1
        assert len(data) == 4
        assert "big" in data
        assert len(counted.opened) == 1
        assert sum(counted.reads) < 200_000


@on_sqlite
def test_repr_costs_the_index_only(engine, big, monkeypatch):
    counted = Counted(monkeypatch)
    with Session(engine) as session:
        data = session.get(Keyed, 1).data
        shown = repr(data)
        assert "float64" in shown
        assert "(1000000,)" in shown
        assert data._repr_html_()
        assert len(counted.opened) == 1
        assert sum(counted.reads) < 200_000


@on_sqlite
def test_one_entry_costs_its_own_bytes(engine, big, monkeypatch):
    counted = Counted(monkeypatch)
    with Session(engine) as session:
        data = session.get(Keyed, 1).data
        np.testing.assert_array_equal(data.small, np.arange(3))
        assert data.n == 1
        assert len(counted.opened) == 1
        assert sum(counted.reads) < 200_000
        opened = len(counted.opened)
        assert data.inner.n == 2
        assert len(counted.opened) == opened + 1


@on_sqlite
def test_another_row_of_the_result_is_not_opened(engine, rows, monkeypatch):
    counted = Counted(monkeypatch)
    with Session(engine) as session:
        found = session.scalars(select(Keyed).order_by(Keyed.id)).all()
        assert found[1].data.n == 1
        assert counted.opened == [found[1].data.url.removeprefix("file:///")]


@on_sqlite
def test_a_commit_after_reading_opens_nothing_more(engine, rows, monkeypatch):
    with Session(engine) as session:
        row = session.get(Keyed, 1)
        assert row.data["items"] == [1]
        counted = Counted(monkeypatch)
        session.commit()
        assert counted.opened == []


@pytest.mark.parametrize("how", ["orm", "core", "many"])
def test_a_surrogate_in_a_key_that_a_folder_shows_is_refused_with_its_column(engine, stored, how):
    def store(session, key):
        data = DataStore(n=1)
        if how == "orm":
            session.add(Texts(id=key, data=data))
            session.flush()
        elif how == "core":
            session.execute(insert(Texts.__table__).values(id=key, data=data))
        else:
            session.execute(insert(Texts.__table__), [{"id": key, "data": data}])

    with Session(engine) as session:
        with pytest.raises(RefusedURLError) as caught:
            store(session, "a\ud800")
        session.rollback()
        assert session.scalars(select(Texts)).all() == []
    assert "'a\\ud800'" in str(caught.value)
    assert "its 'id'" in str(caught.value)
    assert stored.files() == set()
