"""Rows by the ORM."""

from __future__ import annotations

import weakref
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sqla_datastore import MissingObjectError
from support.machine.base import KEYS, Hold, in_session, numbers, shapes, valued
from support.machine.models import CLASSES, COLUMNS, OWNERS, Item
from support.machine.transactions import Transactions
from support.machine.values import Shape, assign_entry, edit_entry, editable


class RowsByTheOrm(Transactions):
    """Rules that add, change and delete rows by the ORM."""

    @in_session
    @rule(
        name=valued, n=numbers, shape=shapes, flush=st.booleans(), null=st.sampled_from([0, 0, 1])
    )
    def insert(self, name: str, n: int, shape: Shape, flush: bool, null: int) -> None:
        self.begin()
        missing = self.missing(name)
        if name == "Auto":
            if len(self.existing("Auto")) >= len(KEYS):
                return
            key = None
        elif not missing:
            return
        else:
            key = missing[n % len(missing)]
        if key is not None:
            self.vacate(name, key)
        value, plain = (None, None) if null else self.fresh(shape)
        row, columns = self.new_row(name, key, plain, value)
        self.session.add(row)
        self.pins.append(row)
        if flush or key is None:
            self.session.flush()
        self.put(name, row.id, **columns)
        self.step("insert")

    @in_session
    @rule(name=st.sampled_from(["Project", "Parent"]))
    def insert_owner(self, name: str) -> None:
        missing = [key for key in (1, 2) if (name, key) not in self.rows]
        if not missing:
            return
        self.begin()
        self.vacate(name, missing[0])
        self.session.add(CLASSES[name](id=missing[0]))
        self.session.flush()
        self.put(name, missing[0])
        self.step("insert_owner")

    @in_session
    @rule(
        n=numbers,
        shape=shapes,
        flush=st.booleans(),
        null=st.sampled_from([0, 0, 0, 1]),
        restore=st.sampled_from([0, 0, 1]),
    )
    def replace(self, n: int, shape: Shape, flush: bool, null: int, restore: int) -> None:
        keys = self.existing()
        if not keys:
            return
        self.begin()
        key = keys[n % len(keys)]
        column = COLUMNS[key[0]][n % len(COLUMNS[key[0]])]
        row = self.row(key)
        old = getattr(row, column)
        if old is not None and self.rows[key][column] is not None:
            self.olds = [*self.olds[-3:], (key, column, old, self.rows[key][column])]
        value, plain = (None, None) if null else self.fresh(shape)
        setattr(row, column, value)
        self.note(key, column, plain)
        if flush:
            self.session.flush()
        self.step("replace")
        if restore and self.olds:
            self.assign_old_value(n=len(self.olds) - 1)

    @precondition(lambda self: self.has_session and self.olds)
    @rule(n=numbers)
    def assign_old_value(self, n: int) -> None:
        """Assign what a row had before; its object may be superseded, never written, or gone."""
        key, column, value, plain = self.olds.pop(n % len(self.olds))
        if key not in self.rows:
            return
        self.begin()
        self.flush()
        row = self.row(key)
        if getattr(row, column) is value:
            return
        # the end of a small object holds its entries, and is read when it is opened
        is_opened = value._opened is not None and value._opened._container is not None
        if self.is_gone(value) and not is_opened:
            self.fails(MissingObjectError, lambda: setattr(row, column, value))
            self.step("assign_lost_value")
            return
        setattr(row, column, value)
        self.session.flush()
        self.note(key, column, plain)
        self.step("assign_old_value")

    @in_session
    @rule(n=numbers, flushes=st.integers(0, 3), again=st.booleans())
    def edit_in_place(self, n: int, flushes: int, again: bool) -> None:
        found = self.any_value(n)
        if found is None:
            return
        self.begin()
        key, column = found
        value = getattr(self.row(key), column)
        plain = self.rows[key][column]
        names = editable(plain)
        if n % 3 == 0 or not names:
            plain = assign_entry(value, plain, self.number())
        else:
            name = names[n % len(names)]
            if name == "f":
                # one that was assigned is its user's again after the flush
                self.session.flush()
            entry = value[name]
            if flushes & 1:
                self.session.flush()
            plain = edit_entry(entry, name, plain, self.number())
            if again:
                self.session.flush()
                plain = edit_entry(entry, name, plain, self.number())
        self.note(key, column, plain, but=value)
        if flushes & 1 or again:
            self.late.add(found)
        if n % 3 == 0:
            # an entry that was replaced is its user's
            self.holds = [h for h in self.holds if (h.key, h.column) != (key, column)]
        self.olds = [old for old in self.olds if old[2] is not value]
        if flushes & 2:
            self.session.flush()
        self.step("edit_in_place")

    @in_session
    @rule(n=numbers, forget=st.booleans())
    def hold_entry(self, n: int, forget: bool) -> None:
        """Get an entry from a row and keep it, to edit it later; perhaps without the row."""
        found = self.any_value(n)
        if found is None:
            return
        key, column = found
        names = editable(self.rows[key][column])
        if not names:
            return
        self.begin()
        self.flush()
        value = getattr(self.row(key), column)
        name = names[n % len(names)]
        self.holds.append(Hold(key, column, name, value[name], weakref.ref(value)))
        if forget:
            self.pins.clear()
        self.step("hold_entry")

    @precondition(lambda self: self.has_session and self.holds)
    @rule(n=numbers, flush=st.booleans())
    def edit_held_entry(self, n: int, flush: bool) -> None:
        hold = self.holds[n % len(self.holds)]
        self.begin()
        value = hold.value()
        plain = edit_entry(hold.entry, hold.name, self.rows[hold.key][hold.column], self.number())
        self.note(hold.key, hold.column, plain, but=value)
        self.late.add((hold.key, hold.column))
        hold.value = weakref.ref(value) if value is not None else hold.value
        self.olds = [old for old in self.olds if old[:2] != (hold.key, hold.column)]
        if flush:
            self.session.flush()
        self.step(f"edit_held_entry after {hold.age} commits")

    @in_session
    @rule(n=numbers)
    def delete(self, n: int) -> None:
        keys = self.existing()
        if not keys:
            return
        self.begin()
        key = keys[n % len(keys)]
        self.session.delete(self.row(key))
        self.session.flush()
        self.remove(*key)
        self.step("delete")

    @in_session
    @rule(n=numbers, shape=shapes, kind=st.sampled_from(["new", "old", "stored"]))
    def assign_one_value_to_two_rows(self, n: int, shape: Shape, kind: str) -> None:
        keys = self.existing("Item", "Auto")
        self.begin()
        self.flush()
        if kind == "new" and len(self.missing("Item")) > 1:
            value, plain = self.fresh(shape)
            for new in self.missing("Item")[:2]:
                self.vacate("Item", new)
                self.session.add(Item(id=new, data=value, more=value if n % 2 else None))
                self.put("Item", new, data=plain, more=plain if n % 2 else None)
        elif kind == "old" and len(keys) > 1:
            value, plain = self.fresh(shape)
            for key in (keys[n % len(keys)], keys[(n + 1) % len(keys)]):
                self.row(key).data = value
                self.note(key, "data", plain)
        elif kind == "stored" and len(keys) > 1 and self.rows[keys[n % len(keys)]]["data"]:
            first, second = keys[n % len(keys)], keys[(n + 1) % len(keys)]
            self.row(second).data = self.row(first).data
            self.note(second, "data", self.rows[first]["data"])
        else:
            return
        self.session.flush()
        # until then the two share the lists that were assigned
        self.session.expire_all()
        self.holds.clear()
        self.step("assign_one_value_to_two_rows")

    @in_session
    @rule(n=numbers, assigns=st.booleans())
    def row_switch(self, n: int, assigns: bool) -> None:
        keys = self.existing("Item")
        if not keys:
            return
        self.begin()
        self.flush()
        key = keys[n % len(keys)]
        self.session.delete(self.row(key))
        row = Item(id=key[1], name="switched")
        columns: dict[str, Any] = {"name": "switched"}
        if assigns:
            row.data, columns["data"] = self.fresh()
        self.session.add(row)
        self.session.flush()
        # SQLAlchemy takes what was not assigned for None, and leaves it alone in the database
        self.session.expire(row)
        self.drop_holds(key)
        self.rows[key] |= columns
        self.step("row_switch")

    @in_session
    @rule(n=numbers, refill=st.booleans())
    def change_key(self, n: int, refill: bool) -> None:
        """Change a row's key; perhaps another row takes the old one, and with it the folder."""
        keys, missing = self.existing("Item"), self.missing("Item")
        if not keys or not missing:
            return
        self.begin()
        self.flush()
        old, new = keys[n % len(keys)], ("Item", missing[n % len(missing)])
        self.vacate(*new)
        self.row(old).id = new[1]
        self.session.flush()
        self.rows[new] = self.rows.pop(old)
        self.switched |= {old, new}
        self.drop_holds(old)
        if refill:
            value, plain = self.fresh()
            self.session.add(Item(id=old[1], data=value))
            self.session.flush()
            self.put("Item", old[1], data=plain)
        self.step("change_key")

    @in_session
    @rule(n=numbers, replace=st.booleans())
    def change_owner(self, n: int, replace: bool) -> None:
        keys = self.existing("Run", "Leaf")
        if not keys:
            return
        key = keys[n % len(keys)]
        others = [
            k[1] for k in self.existing(OWNERS[key[0]]) if k[1] != self.rows[key]["id_parent"]
        ]
        if not others:
            return
        self.begin()
        row = self.row(key)
        row.id_parent = self.rows[key]["id_parent"] = others[0]
        if replace:
            row.data, plain = self.fresh()
            self.note(key, "data", plain)
        self.session.flush()
        self.step("change_owner")
