"""Where transactions of Sessions and Connections begin and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy.orm import Session

from sqla_datastore import DataStore, StaleValueError
from support.machine.base import MachineBase, in_session, numbers
from support.machine.models import CLASSES, OWNERS, Parent, Project
from support.machine.values import Plain, Shape

JoinMode = Literal["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]
Start = str | tuple[JoinMode, bool]
JOIN_MODES: tuple[JoinMode, ...] = get_args(JoinMode)
_FIRST: tuple[tuple[str, int, Shape], ...] = (
    ("Item", 1, "plain"),
    ("Item", 2, "nested"),
    ("Run", 1, "plain"),
    ("Leaf", 1, "frame"),
)

troubles = st.sampled_from([None, None, "Item", "Project", "remove"])
starts = st.sampled_from(["session", "session", "session that expires nothing", "connection"]) | (
    st.tuples(st.sampled_from(JOIN_MODES), st.booleans())
)


class Transactions(MachineBase):
    """Rules that begin and end transactions and savepoints."""

    @initialize(world=starts)
    def start(self, world: Start) -> None:
        """Commit a row of each class, so that every rule finds something to do."""
        self.open("session")
        self.session.add_all([Project(id=1), Parent(id=1)])
        self.put("Project", 1)
        self.put("Parent", 1)
        for name, key, shape in _FIRST:
            value, plain = self.fresh(shape)
            row, columns = self.new_row(name, key, plain, value)
            self.session.add(row)
            self.session.flush()
            self.put(name, row.id, **columns)
        self.session.commit()
        self.leave_session()
        self.settle()
        self.open(world)

    def open(self, world: Start) -> None:
        """Begin with a Session, or with a Connection that one may join."""
        if world in ("session", "session that expires nothing"):
            self._session = Session(self.world.engine, expire_on_commit=world == "session")
            self.step(f"open a {world}")
            return
        self._connection = self.world.engine.connect()
        self.outer = [self.connection.begin()]
        self.step("open a connection")
        if isinstance(world, tuple):
            mode, inside = world
            if inside:
                self.outer_savepoint()
            self.join(mode=mode, expire=True)

    @precondition(lambda self: self.has_connection and not self.has_session)
    @rule(mode=st.sampled_from(JOIN_MODES), expire=st.booleans())
    def join(self, mode: JoinMode, expire: bool) -> None:
        self._session = Session(
            bind=self.connection, join_transaction_mode=mode, expire_on_commit=expire
        )
        self.begin()
        inside = "savepoint" if len(self.outer) > 1 else "transaction"
        self.step(f"join {mode} in {inside}")

    @precondition(lambda self: self.has_connection and not self.has_session and len(self.outer) < 3)
    @rule()
    def outer_savepoint(self) -> None:
        self.begin()
        self.outer.append(self.connection.begin_nested())
        self.step("outer_savepoint")

    @precondition(lambda self: not self.has_session and len(self.outer) > 1)
    @rule(n=numbers, commits=st.booleans())
    def end_outer_savepoint(self, n: int, commits: bool) -> None:
        for savepoint in self.outer[: n % (len(self.outer) - 1) : -1]:
            # a Session that took control may have ended it already
            if savepoint.is_active:
                savepoint.commit() if commits else savepoint.rollback()
                self.step("end_outer_savepoint")
            self.outer.pop()
        self.settle()

    @precondition(lambda self: self.has_connection)
    @rule(commits=st.sampled_from([True, True, False]), trouble=troubles, world=starts)
    def end_connection(self, commits: bool, trouble: str | None, world: Start) -> None:
        """End the outer transaction, innermost savepoint first, or just close the connection."""
        self.trouble = trouble
        if self.has_session:
            self.flush()
            self.leave_session()
        self._end_outer(commits)
        self.connection.close()
        self._connection, self.outer = None, []
        self.settle()
        self.step("end_connection")
        self.open(world)

    def _end_outer(self, commits: bool) -> None:
        for transaction in reversed(self.outer):
            if transaction.is_active:
                transaction.commit() if commits else transaction.rollback()
                self.settle()
        # a Session that took control may have begun another one since
        if commits and self.connection.in_transaction():
            self.connection.commit()

    def leave_session(self) -> None:
        self.session.close()
        self._session = None
        self.let_go()

    def let_go(self) -> None:
        """Let go of what a rollback or a closed Session makes worthless."""
        self.nested.clear()
        self.holds.clear()
        self.late.clear()

    @in_session
    @rule(trouble=troubles, forget=st.booleans())
    def commit(self, trouble: str | None, forget: bool) -> None:
        self.trouble = trouble
        self.session.commit()
        if forget:
            self.pins.clear()
        self.nested.clear()
        self.late.clear()
        for hold in self.holds:
            hold.age += 1
        self.holds = [hold for hold in self.holds if hold.age < 2]
        self.settle()
        self.step("commit")

    @in_session
    @rule(trouble=troubles)
    def rollback(self, trouble: str | None) -> None:
        self.trouble = trouble
        self.begin()
        self.session.rollback()
        self.let_go()
        self.settle()
        self.step("rollback")

    @in_session
    @rule(trouble=troubles, world=starts)
    def close(self, trouble: str | None, world: Start) -> None:
        """Close the Session without a commit; a joined one may leave its changes behind."""
        self.trouble = trouble
        self.begin()
        if self.has_connection:
            self.flush()
        self.leave_session()
        self.settle()
        self.step("close")
        if not self.has_connection:
            self.open(world)

    @precondition(lambda self: self.has_session and len(self.nested) < 4)
    @rule(twice=st.booleans())
    def begin_nested(self, twice: bool) -> None:
        self._begin_nested()
        if twice and len(self.nested) < 4:
            self._begin_nested()

    def _begin_nested(self) -> None:
        self.begin()
        try:
            self.nested.append(self.session.begin_nested())
        except StaleValueError:
            if not self.late:
                raise
            self.flush()
            self.nested.append(self.session.begin_nested())
            self.step("begin_nested after a refusal")
        self.late.clear()
        self.step(f"begin_nested to depth {len(self.nested)}")

    @precondition(lambda self: self.nested)
    @rule(n=numbers, commits=st.booleans())
    def end_nested(self, n: int, commits: bool) -> None:
        """End any of the open savepoints; those inside it end with it."""
        level = n % len(self.nested)
        if commits:
            self.nested[level].commit()
        else:
            self.nested[level].rollback()
            if level < len(self.nested) - 1:
                # SQLAlchemy expires what changed in this savepoint, not in those inside it
                self.session.expire_all()
            self.holds.clear()
            self.late.clear()
        del self.nested[level:]
        self.settle()
        self.step("release" if commits else "rollback_to")

    def new_row(
        self, name: str, key: int | None, plain: Plain | None, value: DataStore | None
    ) -> tuple[Any, dict[str, Any]]:
        """Make a row, with its owner if there is none; return it and what the model has of it."""
        columns: dict[str, Any] = {"data": plain}
        row = CLASSES[name](data=value) if key is None else CLASSES[name](id=key, data=value)
        if name in OWNERS:
            owners = self.existing(OWNERS[name])
            row.id_parent = columns["id_parent"] = owners[0][1] if owners else 1
            if not owners:
                self.vacate(OWNERS[name], 1)
                self.session.add(CLASSES[OWNERS[name]](id=1))
                self.put(OWNERS[name], 1)
        return row, columns

    def fails(self, error: type[Exception], change: Callable[[], object]) -> None:
        """Have a change fail at flush, and roll back the innermost transaction."""
        with pytest.raises(error):  # noqa: PT012 - either may fail
            change()
            self.session.flush()
        if self.nested:
            self.nested.pop().rollback()
            self.holds.clear()
            self.late.clear()
        else:
            self.session.rollback()
            self.let_go()
        self.settle()
