"""States of rows in the Session."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy.orm import make_transient

from sqla_datastore import MissingObjectError
from support.machine.base import in_session, numbers
from support.machine.transactions import Transactions
from support.machine.values import assign_entry, edit_entry, editable


class StatesOfObjects(Transactions):
    """Rules that expire, refresh, expunge, merge and make transient."""

    @in_session
    @rule(n=numbers, all_rows=st.booleans())
    def expire(self, n: int, all_rows: bool) -> None:
        keys = self.existing()
        if not keys:
            return
        self.begin()
        self.flush()
        if all_rows:
            self.session.expire_all()
            self.holds.clear()
        else:
            self.session.expire(self.row(keys[n % len(keys)]))
            self.drop_holds(keys[n % len(keys)])
        self.step("expire")

    @in_session
    @rule(n=numbers, how=st.sampled_from(["refresh", "expire", "expire one"]))
    def discard_an_edit(self, n: int, how: str) -> None:
        """Edit in place, then have the row read again: the edit is discarded, as meant."""
        found = self.any_value(n)
        if found is None:
            return
        self.begin()
        self.flush()
        key, column = found
        row = self.row(key)
        value = getattr(row, column)
        names = editable(self.rows[key][column])
        if names:
            edit_entry(value[names[0]], names[0], self.rows[key][column], self.number())
        else:
            value.n = self.number()
        if how == "refresh":
            self.session.refresh(row)
        else:
            self.session.expire(row, [column] if how == "expire one" else None)
        self.drop_holds(key)
        self.olds = [old for old in self.olds if old[2] is not value]
        self.step("discard_an_edit")

    @in_session
    @rule(n=numbers)
    def expunge(self, n: int) -> None:
        """Detach a row, to merge it later."""
        keys = self.can_be_expunged()
        if not keys:
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)]
        row = self.row(key)
        self.session.refresh(row)
        self.session.expunge(row)
        self.drop_holds(key)
        self.detached = [*self.detached[-2:], (key, row, dict(self.rows[key]))]
        self.step("expunge")

    @precondition(lambda self: self.has_session and self.detached)
    @rule(n=numbers, change=st.sampled_from(["nothing", "edit", "replace"]))
    def merge(self, n: int, change: str) -> None:
        """Merge a detached row: what it says counts, if its objects are still there."""
        key, row, columns = self.detached.pop(n % len(self.detached))
        if not {"data", "more"} <= row.__dict__.keys():
            # a rollback has expired it
            return
        self.begin()
        self.flush()
        if change == "replace":
            row.data, columns["data"] = self.fresh()
        elif change == "edit" and columns["data"] is not None and not self.is_gone(row.data):
            columns["data"] = assign_entry(row.data, columns["data"], self.number())
        lost = [v for v in (row.data, row.more) if v is not None and self.is_gone(v)]
        if lost:
            self.fails(MissingObjectError, lambda: self.session.merge(row))
            self.step("merge_lost_value")
            return
        if key not in self.rows:
            self.vacate(*key)
        self.pins.append(self.session.merge(row))
        self.session.flush()
        self.drop_holds(key)
        if key in self.rows:
            self.rows[key] |= columns
        else:
            self.put("Item", key[1], **columns)
        self.step("merge")

    @in_session
    @rule(n=numbers, how=st.sampled_from(["other key", "deleted"]))
    def make_transient(self, n: int, how: str) -> None:
        keys, missing = self.can_be_expunged(), self.missing("Item")
        if not keys or (how == "other key" and not missing):
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)]
        row, columns = self.row(key), dict(self.rows[key])
        self.session.refresh(row)
        self.drop_holds(key)
        if how == "deleted":
            self.session.delete(row)
            self.session.flush()
            self.remove(*key)
        make_transient(row)
        if how == "other key":
            self.vacate("Item", missing[n % len(missing)])
            row.id = missing[n % len(missing)]
        self.session.add(row)
        self.session.flush()
        self.put("Item", row.id, **columns)
        self.step(f"make_transient with {how}")
