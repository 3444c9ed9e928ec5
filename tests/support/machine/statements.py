"""Bulk and Core statements."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from sqlalchemy import Executable, bindparam, delete, insert, update
from sqlalchemy.exc import IntegrityError

from support.machine.base import KEYS, in_session, in_session_or_connection, numbers, shapes, valued
from support.machine.models import CHILDREN, CLASSES, Base, Item
from support.machine.transactions import Transactions
from support.machine.values import Shape

ITEMS = Base.metadata.tables[Item.__tablename__]


class Statements(Transactions):
    """Rules that execute bulk ORM and Core statements, and what the database cascades."""

    def execute(
        self,
        statement: Executable,
        parameters: list[dict[str, Any]] | None = None,
        *,
        orm: bool = False,
    ) -> None:
        """Execute by the Session, or by its connection behind the Session's back."""
        if orm and self.has_session:
            self.session.execute(statement, parameters)
        else:
            self.begin().execute(statement, parameters)

    @in_session
    @rule(n=numbers, shape=shapes, sync=st.sampled_from(["auto", "fetch", False]))
    def bulk_update(self, n: int, shape: Shape, sync: Literal["auto", "fetch", False]) -> None:
        keys = self.existing()
        if not keys:
            return
        self.begin()
        self.flush_late_edits()
        cls, key = CLASSES[keys[n % len(keys)][0]], keys[n % len(keys)]
        value, plain = self.fresh(shape)
        statement = update(cls).where(cls.id == key[1]).values(data=value)
        self.session.execute(statement.execution_options(synchronize_session=sync))
        self.note(key, "data", plain)
        if sync is False:
            self.stale(key)
        self.step("bulk_update")

    @in_session
    @rule(n=numbers)
    def bulk_update_by_key(self, n: int) -> None:
        keys = self.existing("Item")[: 1 + n % 3]
        if not keys:
            return
        self.begin()
        self.flush()
        given = [(key, *self.fresh()) for key in keys]
        self.session.execute(
            update(Item), [{"id": key[1], "data": value} for key, value, _ in given]
        )
        for key, _, plain in given:
            self.note(key, "data", plain)
        self.stale(*keys)
        self.step("bulk_update_by_key")

    @in_session
    @rule(n=numbers, column=st.sampled_from(["data", "more"]))
    def bulk_update_to_null(self, n: int, column: str) -> None:
        keys = self.existing("Item")[: 1 + n % 4]
        if not keys:
            return
        self.begin()
        self.flush_late_edits()
        ids = [key[1] for key in keys]
        self.session.execute(update(Item).where(Item.id.in_(ids)).values({column: None}))
        for key in keys:
            self.note(key, column, None)
        self.step("bulk_update_to_null")

    @in_session
    @rule(n=numbers, name=valued, sync=st.sampled_from(["auto", "fetch", False]))
    def bulk_delete(self, n: int, name: str, sync: Literal["auto", "fetch", False]) -> None:
        keys = self.existing(name)[: 1 + n % 2]
        if not keys:
            return
        self.begin()
        self.flush_late_edits()
        cls, ids = CLASSES[name], [key[1] for key in keys]
        statement = delete(cls).where(cls.id.in_(ids))
        self.session.execute(statement.execution_options(synchronize_session=sync))
        for key in keys:
            self.remove(*key)
        if sync is False:
            self.stale(*keys)
        self.step("bulk_delete")

    @in_session_or_connection
    @rule(n=numbers, how=st.sampled_from(["one", "many", "rows", "orm", "shared"]), shape=shapes)
    def core_insert(self, n: int, how: str, shape: Shape) -> None:
        keys = self.missing("Item")[: 1 if how == "one" else 1 + n % 3]
        if not keys:
            return
        self.begin()
        self.flush()
        shared = self.fresh(shape)
        given = [(key, *(shared if how == "shared" else self.fresh(shape))) for key in keys]
        rows = [{"id": key, "data": value} for key, value, _ in given]
        if how == "one":
            self.execute(insert(ITEMS).values(rows[0]))
        elif how == "rows":
            self.execute(insert(ITEMS).values(rows))
        else:
            self.execute(insert(Item), rows, orm=how == "orm")
        for key, _, plain in given:
            self.put("Item", key, data=plain)
        self.step(f"core_insert {how}")

    @in_session_or_connection
    @rule(n=numbers, how=st.sampled_from(["one", "many", "twice"]), shape=shapes)
    def core_update(self, n: int, how: str, shape: Shape) -> None:
        keys = self.existing("Item")[: 1 if how == "one" else 1 + n % 3]
        if not keys:
            return
        self.begin()
        self.flush()
        given = [(key, *self.fresh(shape)) for key in keys * (1 + (how == "twice"))]
        if how == "one":
            statement = update(ITEMS).where(ITEMS.c.id == keys[0][1])
            self.execute(statement.values(data=given[0][1]))
        else:
            statement = update(ITEMS).where(ITEMS.c.id == bindparam("key"))
            new = bindparam("new", type_=ITEMS.c.data.type)
            self.execute(
                statement.values(data=new), [{"key": key[1], "new": v} for key, v, _ in given]
            )
        for key, _, plain in given:
            self.note(key, "data", plain)
        self.stale(*keys)
        self.step(f"core_update {how}")

    @in_session_or_connection
    @rule(n=numbers, name=valued)
    def core_delete(self, n: int, name: str) -> None:
        keys = self.existing(name)[: 1 + n % 2]
        if not keys:
            return
        self.begin()
        self.flush()
        table = CLASSES[name].__table__
        self.execute(delete(table).where(table.c.id.in_([key[1] for key in keys])))
        self.stale(*keys)
        for key in keys:
            self.remove(*key)
        self.step("core_delete")

    @in_session_or_connection
    @rule(n=numbers, updates=st.booleans())
    def upsert(self, n: int, updates: bool) -> None:
        """Insert two rows that may be there already."""
        self.begin()
        self.flush()
        keys = [KEYS[n % 4], KEYS[(n + 1) % 4]]
        given = [(key, *self.fresh()) for key in keys]
        statement = _upsert(self.world.engine.dialect.name, updates)
        for key, value, plain in given:
            self.execute(statement.values(id=key, data=value))
            if ("Item", key) not in self.rows:
                self.put("Item", key, data=plain)
            elif updates:
                self.note(("Item", key), "data", plain)
        self.stale(*(("Item", key) for key in keys))
        self.step("upsert")

    @in_session_or_connection
    @rule(n=numbers, owner=st.sampled_from(["Project", "Parent"]), by=st.sampled_from("adcb"))
    def delete_owner(self, n: int, owner: str, by: str) -> None:
        """Delete an owner of rows: the ORM or the database deletes these."""
        keys = self.existing(owner)
        if not keys or (not self.has_session and by != "c"):
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)][1]
        cls = CLASSES[owner]
        paths = self.child_paths(owner, key)
        if by == "a":
            row = self.row((owner, key))
            self.session.expire(row, ["children"])
            for child in row.children:
                self.drop_holds((CHILDREN[owner], child.id))
            self.session.delete(row)
            self.session.flush()
            paths = set()
        elif by == "d":
            row = self.row((owner, key))
            self.session.expire(row, ["children"])
            self.session.delete(row)
            self.session.flush()
        elif by == "b":
            self.session.execute(delete(cls).where(cls.id == key))
        else:
            self.execute(delete(cls.__table__).where(cls.__table__.c.id == key))
            self.stale((owner, key))
        if owner == "Project":
            paths = {p for p in paths if not p.startswith(f"machine_projects/{key}/")}
        self.cascade(owner, key, paths)
        self.step({"a": "cascade by the ORM"}.get(by, "cascade by the database"))

    @in_session_or_connection
    @rule(n=numbers, commits=st.booleans())
    def core_savepoint(self, n: int, commits: bool) -> None:
        """Put a savepoint of the Connection around Core statements."""
        self.begin()
        self.flush()
        nested = self.begin().begin_nested()
        self.core_insert(n=n, how="one", shape="plain")
        self.core_update(n=n, how="many", shape="plain")
        nested.commit() if commits else nested.rollback()
        self.stale(*self.existing("Item"), *(("Item", key) for key in KEYS))
        self.settle()
        self.step("core_savepoint")

    @in_session_or_connection
    @rule(n=numbers)
    def a_failing_statement_in_a_savepoint(self, n: int) -> None:
        keys, missing = self.existing("Item"), self.missing("Item")
        if not keys or not missing:
            return
        self.begin()
        self.flush()
        ids = [missing[n % len(missing)], keys[n % len(keys)][1]]
        nested = self.begin().begin_nested()
        with pytest.raises(IntegrityError):
            self.execute(insert(Item), [{"id": key, "data": self.fresh()[0]} for key in ids])
        nested.rollback()
        self.settle()
        self.step("a_failing_statement_in_a_savepoint")


def _upsert(dialect: str, updates: bool) -> Any:
    module = {"mariadb": "mysql"}.get(dialect, dialect)
    new = import_module(f"sqlalchemy.dialects.{module}").insert(ITEMS)
    if module == "mysql":
        taken = {"data": new.inserted.data} if updates else {"id": new.inserted.id}
        return new.on_duplicate_key_update(**taken)
    if not updates:
        return new.on_conflict_do_nothing()
    return new.on_conflict_do_update(index_elements=["id"], set_={"data": new.excluded.data})
