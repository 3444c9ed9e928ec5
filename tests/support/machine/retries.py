"""Failures and retries."""

from __future__ import annotations

import copy

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy.exc import IntegrityError

from sqla_datastore import StorageError
from support.machine.base import in_session, numbers, shapes
from support.machine.models import Item
from support.machine.transactions import Transactions
from support.machine.values import Shape, assign_entry


class Retries(Transactions):
    """Rules that fail at a flush or a COMMIT, and try again."""

    @in_session
    @rule(n=numbers, shape=shapes, why=st.sampled_from(["database", "storage"]))
    def retry_an_insert(self, n: int, shape: Shape, why: str) -> None:
        keys = self.can_be_expunged()
        if not self.missing("Item") or not keys:
            return
        self.begin()
        self.flush()
        new = self.missing("Item")[n % len(self.missing("Item"))]
        self.vacate("Item", new)
        value, plain = self.fresh(shape)
        row = Item(id=new, data=value)
        self.session.add(row)
        if why == "database":
            taken = keys[n % len(keys)]
            self.session.expunge(self.row(taken))
            self.drop_holds(taken)
            bad = Item(id=taken[1], data=self.fresh()[0])
            self.fails(IntegrityError, lambda: self.session.add(bad))
        else:
            self.storage.failing = "create"
            self.fails(StorageError, lambda: None)
            self.storage.failing = None
        if ("Item", new) in self.rows:
            return
        self.begin()
        self.session.add(row)
        self.session.flush()
        self.put("Item", new, data=plain)
        self.step(f"retry_an_insert that the {why} refused")

    @in_session
    @rule(n=numbers, edits=st.booleans())
    def retry_an_update(self, n: int, edits: bool) -> None:
        found = self.any_value(n)
        # a small value of `more` stays in the row: no storage is asked
        if found is None or found[1] == "more":
            return
        self.begin()
        self.flush()
        key, column = found
        row = self.row(key)
        value, plain = self.fresh()
        if edits:
            value = getattr(row, column)
            assign_entry(value, self.rows[key][column], self.number())
        else:
            setattr(row, column, value)
        self.olds = [old for old in self.olds if old[2] is not value]
        self.storage.failing = "create"
        self.fails(StorageError, lambda: None)
        self.storage.failing = None
        if key not in self.rows:
            return
        self.begin()
        if edits:
            if self.rows[key][column] is None:
                return
            plain = copy.deepcopy(self.rows[key][column])
            plain["n"] = self.number()
            value = getattr(self.row(key), column)
            value.n = plain["n"]
        else:
            setattr(self.row(key), column, value)
        self.session.flush()
        self.note(key, column, plain, but=value)
        self.step("retry_an_update")

    @precondition(lambda self: self.has_session and not self.has_connection)
    @rule(n=numbers)
    def retry_a_commit(self, n: int) -> None:
        """Have the objects' durability fail: COMMIT is not sent."""
        missing = self.missing("Item")
        if not missing:
            return
        self.begin()
        key = missing[n % len(missing)]
        self.vacate("Item", key)
        value, plain = self.fresh()
        row = Item(id=key, data=value)
        self.session.add(row)
        self.storage.failing = "make_durable"
        with pytest.raises(StorageError):
            self.session.commit()
        self.storage.failing = None
        self.model.commit_failed()
        self.session.rollback()
        self.let_go()
        self.settle()
        if ("Item", key) in self.rows:
            return
        self.begin()
        self.session.add(row)
        self.session.flush()
        self.put("Item", key, data=plain)
        self.step("retry_a_commit")
