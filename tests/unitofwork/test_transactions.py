"""P1, P2 and P4: files follow the database transaction, whatever ends it."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, make_transient
from support.models import Counter, Defaulted, Experiment, Keyed, Project, Run

from sqla_datastore import DataStore

pytestmark = pytest.mark.usefixtures("tables")


def value(n=0):
    return DataStore(a=np.arange(n, n + 5), n=n, items=[n])


def add(session, n=0, cls=Experiment, **kwargs):
    row = cls(data=value(n), **kwargs)
    session.add(row)
    return row


# -- one session ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Experiment, Counter])
def test_commit_keeps_and_reads_back(engine, exact, cls):
    with Session(engine) as session:
        row = add(session, cls=cls)
        session.commit()
        key = row.id
    exact(1)
    with Session(engine) as session:
        loaded = session.get(cls, key)
        np.testing.assert_array_equal(loaded.data.a, np.arange(5))
        assert (loaded.data.n, loaded.data["items"]) == (0, [0])


def test_the_folder_bears_a_key_made_in_python(engine, stored):
    with Session(engine) as session:
        row = add(session)
        session.commit()
        assert row.data.url.startswith(f"file:///experiments/{row.id}/")


def test_rollback_leaves_nothing_and_the_value_is_usable_again(engine, exact):
    with Session(engine) as session:
        row = add(session, 3)
        session.flush()
        assert row.data.url is not None
        session.rollback()
        exact(0)
        assert row.data.url is None
        assert row.data.n == 3
        session.add(row)
        session.commit()
        exact(1)
        assert session.get(Experiment, row.id).data.n == 3


def test_closing_without_commit_leaves_nothing(engine, exact):
    with Session(engine) as session:
        add(session)
        session.flush()
    exact(0)


@pytest.mark.parametrize("commits", [True, False])
def test_replacing_a_value(engine, exact, commits):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        old = row.data.url
        row.data = value(2)
        session.flush()
        assert row.data.url != old
        session.commit() if commits else session.rollback()
        exact(1)
        assert row.data.n == (2 if commits else 1)
        assert (row.data.url == old) is not commits


def test_replacing_by_none(engine, exact):
    with Session(engine) as session:
        row = add(session)
        session.commit()
        row.data = None
        session.commit()
        exact(0)
        assert row.data is None


def test_two_columns_of_one_row_share_a_folder(engine, exact, stored):
    with Session(engine) as session:
        row = add(session, 1)
        row.more = value(2)
        session.commit()
        exact(2)
        assert len(stored.folders()) == 2
        row.more = None
        session.commit()
        exact(1)
        session.delete(row)
        session.commit()
    exact(0)


@pytest.mark.parametrize("commits", [True, False])
def test_delete_removes_the_folder(engine, exact, stored, commits):
    with Session(engine) as session:
        row = add(session)
        session.commit()
        session.delete(row)
        session.flush()
        assert len(stored.files()) == 1, "removed before COMMIT"
        session.commit() if commits else session.rollback()
    exact(0 if commits else 1)


def test_insert_wipes_what_lay_in_the_folder(engine, exact, stored):
    folder = stored.base / "keyed" / "7"
    folder.mkdir(parents=True)
    (folder / f"{uuid.uuid4().hex}.zip").write_bytes(b"from a crash")
    before = stored.files()
    with Session(engine) as session:
        session.add(Keyed(id=7, data=value()))
        session.flush()
        session.rollback()
        assert stored.files() == before
        session.add(Keyed(id=7))
        session.commit()
    exact(0)


def test_delete_and_insert_of_the_same_key(engine, exact):
    with Session(engine) as session:
        row = add(session, 1, Keyed, id=1)
        session.commit()
        session.delete(row)
        session.flush()
        add(session, 2, Keyed, id=1)
        session.commit()
        exact(1)
        session.expire_all()
        assert session.get(Keyed, 1).data.n == 2


@pytest.mark.parametrize("assigns", [True, False])
def test_row_switch(engine, exact, assigns):
    with Session(engine) as session:
        row = add(session, 1, Keyed, id=1)
        session.commit()
        session.delete(row)
        session.add(Keyed(id=1, name="new", **({"data": value(2)} if assigns else {})))
        session.commit()
        session.expire_all()
        found = session.get(Keyed, 1)
        if assigns:
            assert found.data.n == 2
            exact(1)
        elif found.data is not None:
            assert found.data.n == 1
            exact(1)
        else:
            exact(0)


def test_reassigning_the_old_value_keeps_its_object(engine, exact):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        old = row.data
        url = old.url
        row.data = value(2)
        session.flush()
        row.data = old
        session.commit()
        exact(1)
        assert row.data.url == url
        assert row.data.n == 1


def test_one_value_in_two_rows_is_stored_twice(engine, exact):
    with Session(engine) as session:
        shared = value(4)
        first, second = Experiment(data=shared), Experiment(data=shared)
        session.add_all([first, second])
        session.commit()
        exact(2)
        session.delete(first)
        session.commit()
        exact(1)
        assert second.data.n == 4


def test_a_stored_value_assigned_to_another_row_is_copied(engine, exact):
    with Session(engine) as session:
        first = add(session, 4)
        session.commit()
        second = Experiment(data=first.data)
        session.add(second)
        session.commit()
        exact(2)
        assert first.data.url != second.data.url
        session.delete(first)
        session.commit()
        session.expire_all()
        assert second.data.n == 4


def test_one_value_in_two_columns_is_stored_twice(engine, exact):
    with Session(engine) as session:
        row = add(session, 1)
        row.more = row.data
        session.commit()
        exact(2)
        row.data = None
        session.commit()
        exact(1)
        assert row.more.n == 1


def test_make_transient_and_add_again(engine, exact):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        assert row.data.n == 1
        make_transient(row)
        row.id = uuid.uuid4()
        session.add(row)
        session.commit()
        exact(2)
        assert row.data.n == 1


def test_a_copy_of_a_lost_object_fails_at_flush(engine, exact):
    from sqla_datastore import MissingObjectError

    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        assert row.data.url
        session.delete(row)
        session.commit()
        exact(0)
        make_transient(row)
        session.add(row)
        with pytest.raises(MissingObjectError):
            session.flush()
        session.rollback()
    exact(0)


def test_merge_of_a_stale_copy(engine, exact):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        key = row.id
        assert row.data.n == 1
        session.expunge(row)
        current = session.get(Experiment, key)
        current.data = value(2)
        session.commit()
        merged = session.merge(row)
        with pytest.raises(FileNotFoundError):
            session.commit()
        session.rollback()
        assert merged.data.n == 2
    exact(1)


def test_merge_of_an_unchanged_copy_writes_nothing(engine, exact, stored):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        assert row.data.n == 1
        session.expunge(row)
        files = stored.files()
        merged = session.merge(row)
        session.commit()
        assert stored.files() == files
        merged.data.n = 5
        session.commit()
        exact(1)
        session.expire_all()
        assert merged.data.n == 5


def test_expire_and_refresh_discard_edits(engine, exact):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        row.data.n = 7
        session.refresh(row)
        assert row.data.n == 1
        session.commit()
        assert row.data.n == 1
    exact(1)


def test_a_failing_flush_leaves_nothing(engine, exact):
    with Session(engine) as session:
        add(session, 1, Keyed, id=1)
        session.commit()
    with Session(engine) as session:
        add(session, 2, Keyed, id=2)
        add(session, 3, Keyed, id=1)
        with pytest.raises(IntegrityError):
            session.commit()
    exact(1)


def _kept(_session, _row):
    """Nothing has happened to the row."""


def _replaced_in_a_savepoint(session, row):
    nested = session.begin_nested()
    row.data = value(2)
    session.flush()
    nested.rollback()


def _replaced_and_put_back(session, row):
    old = row.data
    row.data = value(2)
    session.flush()
    row.data = DataStore.from_url(old.url)
    session.flush()


def _deleted_in_a_savepoint(session, row):
    nested = session.begin_nested()
    session.delete(row)
    session.flush()
    nested.rollback()


def _replaced_by_sql_and_put_back(session, row):
    table, old = Keyed.__table__, row.data.url
    for new in (value(2), DataStore.from_url(old)):
        session.execute(update(table).where(table.c.id == row.id).values(data=new))


@pytest.mark.parametrize(
    "had_lost",
    [
        _kept,
        _replaced_in_a_savepoint,
        _deleted_in_a_savepoint,
        _replaced_and_put_back,
        _replaced_by_sql_and_put_back,
    ],
)
def test_changing_the_key_keeps_the_object(engine, exact, had_lost):
    """Another row takes the old key, and with it the folder in which the object lies."""
    with Session(engine) as session:
        row = add(session, 5, Keyed, id=5)
        session.commit()
        had_lost(session, row)
        row.id = 7
        session.flush()
        add(session, 6, Keyed, id=5)
        session.commit()
        exact(2)
        session.expire_all()
        assert session.get(Keyed, 7).data.n == 5
        assert session.get(Keyed, 5).data.n == 6
        session.delete(session.get(Keyed, 7))
        session.commit()
        exact(1)
        assert session.get(Keyed, 5).data.n == 6


def test_nested_values_are_a_family_of_objects(engine, exact, stored):
    with Session(engine) as session:
        row = Keyed(id=1, data=DataStore(n=1, child=DataStore(m=2, deep=DataStore(k=[3]))))
        session.add(row)
        session.commit()
        exact(1)
        assert len(stored.files()) == 3
        session.expire_all()
        row.data.child.deep.k.append(4)
        session.commit()
        exact(1)
        assert len(stored.files()) == 3
        session.expire_all()
        assert row.data.child.deep.k == [3, 4]
        session.add(Keyed(id=2, data=row.data.child))
        session.commit()
        exact(2)
        assert len(stored.files()) == 5
        row.data = None
        session.flush()
        session.rollback()
        exact(2)
        assert len(stored.files()) == 5
        assert row.data.child.m == 2
        session.delete(row)
        session.commit()
        exact(1)
        assert len(stored.files()) == 2
        assert session.get(Keyed, 2).data.deep.k == [3, 4]


def test_values_of_a_column_default_are_each_rows_own(engine, exact):
    with Session(engine) as session:
        rows = [Defaulted(), Defaulted()]
        session.add_all(rows)
        session.commit()
        exact(4)
        first, second = rows
        assert len({v.url for row in rows for v in (row.data, row.made)}) == 4
        first.data["items"].append(2)
        first.made["items"].append(3)
        session.commit()
        exact(4)
        session.expire_all()
        assert (first.data["items"], second.data["items"]) == ([1, 2], [1])
        assert (first.made["items"], second.made["items"]) == ([3], [])


def test_a_default_is_saved_when_edited_before_the_commit(engine, exact):
    with Session(engine) as session:
        row = Defaulted()
        session.add(row)
        session.flush()
        row.made["items"].append(1)
        session.commit()
        assert row.made["items"] == [1]
    exact(2)


def test_an_update_that_joins_another_table(engine, exact):
    with Session(engine) as session:
        session.add(Project(id=1))
        session.add(Keyed(id=1, name="x", data=value(1)))
        session.add_all([Counter(name="x1"), Counter(name="x2")])
        session.flush()
        session.execute(
            update(Keyed)
            .where(Keyed.id == 1, Counter.name.startswith(Keyed.name))
            .values(data=value(5))
            .execution_options(synchronize_session=False)
        )
        session.commit()
        exact(1)
        session.expire_all()
        assert session.get(Keyed, 1).data.n == 5


# -- savepoints and joined sessions --------------------------------------------------------------


@pytest.mark.parametrize("outer", ["commit", "rollback"])
@pytest.mark.parametrize("inner", ["commit", "rollback"])
def test_a_savepoint(engine, exact, inner, outer):
    with Session(engine) as session:
        kept = add(session, 1)
        session.commit()
        nested = session.begin_nested()
        kept.data = value(2)
        add(session, 3)
        session.flush()
        getattr(nested, inner)()
        getattr(session, outer)()
        done = inner == outer == "commit"
        exact(2 if done else 1)
        assert kept.data.n == (2 if done else 1)


def test_deep_savepoints(engine, exact):
    with Session(engine) as session:
        row = add(session, 0)
        session.flush()
        for n in range(1, 5):
            nested = session.begin_nested()
            row.data = value(n)
            session.flush()
            if n % 2:
                nested.commit()
            else:
                nested.rollback()
        session.commit()
        exact(1)
        assert row.data.n == 3


def test_a_rolled_back_savepoint_then_commit(engine, exact):
    with Session(engine) as session:
        row = add(session, 1)
        session.flush()
        nested = session.begin_nested()
        session.delete(row)
        session.flush()
        nested.rollback()
        session.commit()
        exact(1)
        assert row.data.n == 1


def test_an_error_inside_a_savepoint(engine, exact):
    with Session(engine) as session:
        add(session, 1, Keyed, id=1)
        session.commit()
        add(session, 2, Keyed, id=2)
        session.flush()
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(insert(Keyed).values(id=1, data=value(9)))
        session.commit()
    exact(2)


@pytest.mark.parametrize("outer", ["commit", "rollback"])
def test_a_session_joined_to_an_outer_transaction(engine, exact, stored, outer):
    with Session(engine) as session:
        row = add(session, 1)
        session.commit()
        key = row.id
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            row = session.get(Experiment, key)
            row.data = value(2)
            add(session, 3)
            session.commit()
            session.delete(row)
            session.commit()
        assert len(stored.files()) == 3
        getattr(transaction, outer)()
    exact(1)
    with Session(engine) as session:
        assert session.scalars(select(Experiment)).one().data.n == (3 if outer == "commit" else 1)


# -- folders shared with a parent ----------------------------------------------------------------


def test_a_child_removes_its_own_objects_only(engine, exact):
    with Session(engine) as session:
        project = Project(id=1, runs=[Run(data=value(n)) for n in range(3)])
        session.add(project)
        session.commit()
        exact(3)
        session.delete(project.runs[0])
        session.commit()
    exact(2)


def test_deleting_the_parent_removes_what_the_database_cascades(engine, exact):
    with Session(engine) as session:
        session.add(Project(id=1, runs=[Run(data=value(n)) for n in range(3)]))
        session.commit()
        session.execute(delete(Project))
        session.commit()
    exact(0)


def test_a_reparented_child_keeps_its_object(engine, exact):
    with Session(engine) as session:
        session.add(Project(id=1, runs=[Run(data=value(1))]))
        session.add(Project(id=2))
        session.commit()
        run = session.scalars(select(Run)).one()
        run.id_project = 2
        session.flush()
        session.execute(delete(Project).where(Project.id == 1))
        session.commit()
        session.expire_all()
        assert run.data.n == 1
    exact(1)


# -- Core and bulk statements --------------------------------------------------------------------


def test_core_insert_update_delete(engine, exact):
    table = Keyed.__table__
    with engine.begin() as connection:
        connection.execute(insert(table).values(id=1, data=value(1)))
        connection.execute(insert(table), [{"id": n, "data": value(n)} for n in range(2, 5)])
    exact(4)
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.id == 1).values(data=value(10)))
        connection.execute(delete(table).where(table.c.id.in_([2, 3])))
    exact(2)
    with engine.connect() as connection:
        values = dict(connection.execute(select(table.c.id, table.c.data)).all())
        assert {key: v.n for key, v in values.items()} == {1: 10, 4: 4}
        connection.execute(delete(table))
        connection.rollback()
    exact(2)


def test_core_takes_plain_mappings(engine, exact):
    with engine.begin() as connection:
        connection.execute(insert(Keyed), [{"id": n, "data": {"n": n}} for n in range(2)])
        connection.execute(update(Keyed).where(Keyed.id == 0).values(data={"n": 7}))
    exact(2)
    with Session(engine) as session:
        assert session.get(Keyed, 0).data == {"n": 7}


def test_a_multi_row_insert(engine, exact):
    with engine.begin() as connection:
        connection.execute(
            insert(Keyed).values([{"id": n, "data": value(n) if n % 2 else None} for n in range(5)])
        )
    exact(2)
    with engine.connect() as connection:
        found = dict(connection.execute(select(Keyed.id, Keyed.data)).all())
        assert {k: v and v.n for k, v in found.items()} == {0: None, 1: 1, 2: None, 3: 3, 4: None}


def test_one_value_in_an_executemany_is_stored_for_each_row(engine, exact):
    shared = value(1)
    with engine.begin() as connection:
        connection.execute(insert(Keyed), [{"id": n, "data": shared} for n in range(3)])
    exact(3)


def test_executemany_update_with_own_parameter_names(engine, exact):
    from sqlalchemy import bindparam

    table = Keyed.__table__
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": n, "data": value(n)} for n in range(3)])
        connection.execute(
            update(table)
            .where(table.c.id == bindparam("b_id"))
            .values(data=bindparam("b_data", type_=table.c.data.type)),
            [{"b_id": n, "b_data": value(n + 10)} for n in range(2)],
        )
    exact(3)
    with engine.connect() as connection:
        found = dict(connection.execute(select(table.c.id, table.c.data)).all())
        assert {k: v.n for k, v in found.items()} == {0: 10, 1: 11, 2: 2}


def test_orm_bulk_statements(engine, exact):
    with Session(engine) as session:
        session.execute(insert(Keyed), [{"id": n, "data": value(n)} for n in range(4)])
        session.commit()
        exact(4)
        row = session.get(Keyed, 0)
        assert row.data.n == 0
        session.execute(update(Keyed).where(Keyed.id == 0).values(data=value(9)))
        assert row.data.n == 9
        row.data.n = 11
        session.execute(update(Keyed).where(Keyed.id > 2).values(data=None))
        session.execute(delete(Keyed).where(Keyed.id == 1))
        session.commit()
        exact(2)
        assert row.data.n == 11
        session.execute(update(Keyed), [{"id": 2, "data": value(22)}])
        session.commit()
        exact(2)
        assert session.get(Keyed, 2).data.n == 22


def test_insert_returning(engine, exact):
    if not engine.dialect.insert_executemany_returning:
        pytest.skip("the database cannot return inserted rows")
    with Session(engine) as session:
        found = session.scalars(
            insert(Counter).returning(Counter), [{"data": value(n)} for n in range(3)]
        ).all()
        assert sorted(row.data.n for row in found) == [0, 1, 2]
        session.commit()
    exact(3)


def test_an_update_that_matches_nothing_writes_nothing(engine, exact):
    with engine.begin() as connection:
        connection.execute(update(Keyed).where(Keyed.id == 99).values(data=value()))
    exact(0)


@pytest.mark.parametrize("updates", [True, False])
def test_upsert(engine, exact, updates):
    if engine.dialect.name in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import insert as upsert

        statement = upsert(Keyed)
        target = {"data": statement.inserted.data} if updates else {"name": "kept"}
        statement = statement.on_duplicate_key_update(**target)
    else:
        module = __import__(f"sqlalchemy.dialects.{engine.dialect.name}", fromlist=["insert"])
        statement = module.insert(Keyed)
        statement = (
            statement.on_conflict_do_update(
                index_elements=["id"], set_={"data": statement.excluded.data}
            )
            if updates
            else statement.on_conflict_do_nothing()
        )
    with Session(engine) as session:
        session.add_all([Keyed(id=n, data=value(n)) for n in (1, 2)])
        session.commit()
        rows = [{"id": n, "data": value(n + 10)} for n in (2, 3)]
        if engine.dialect.name in ("mysql", "mariadb"):
            # PyMySQL's executemany cannot take parameters in ON DUPLICATE KEY UPDATE
            for row in rows:
                session.execute(statement.values(row))
        else:
            session.execute(statement, rows)
        session.commit()
        exact(3)
        session.expire_all()
        found = {row.id: row.data.n for row in session.scalars(select(Keyed))}
        assert found == {1: 1, 2: 12 if updates else 2, 3: 13}
