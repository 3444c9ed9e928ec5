"""A state machine over real Sessions, Connections, a database and a storage.

Its model is plain Python: rows as dictionaries, and copies of them for the open savepoints. What
the database is told (SAVEPOINT, COMMIT and so on) reaches the model by SQLAlchemy's own events, so
it follows every mode of joining a transaction without knowing one. Whether the events told the
truth is found out in the end: after each outermost one, all rows are read back and compared.
"""

from __future__ import annotations

import contextlib
import sys

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from sqlalchemy.orm import Session

from support.machine.base import KEYS, numbers
from support.machine.checks import Violation, check_dangling, urls_in
from support.machine.model import Rows
from support.machine.models import CLASSES, Item, Project, Run
from support.machine.orm import RowsByTheOrm
from support.machine.retries import Retries
from support.machine.statements import Statements
from support.machine.states import StatesOfObjects


class SessionMachine(RowsByTheOrm, StatesOfObjects, Statements, Retries):
    """Rules do something to rows by one of many ways, and say so to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.storage.before_remove = self._before_remove

    @precondition(lambda self: self.has_session and len(self.nested) < 4)
    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from(["replace", "edit", "delete", "insert", "bulk"]), numbers),
            min_size=1,
            max_size=4,
        ),
        ends=st.lists(st.tuples(numbers, st.booleans()), max_size=4),
    )
    def change_in_savepoints(
        self, changes: list[tuple[str, int]], ends: list[tuple[int, bool]]
    ) -> None:
        """Change something in each of some savepoints, then end them in any order."""
        for what, n in changes:
            if len(self.nested) < 4:
                self._begin_nested()
            if what == "replace":
                self.replace(n=n, shape="plain", flush=True, null=0, restore=n % 2)
            elif what == "edit":
                self.edit_in_place(n=n, flushes=n % 4, again=False)
            elif what == "delete":
                self.delete(n=n)
            elif what == "insert":
                self.insert(name="Item", n=n, shape="plain", flush=n % 2, null=0)
            else:
                self.bulk_update(n=n, shape="plain", sync="auto")
        for n, commits in ends:
            if self.nested:
                self.end_nested(n=n, commits=commits)

    def _before_remove(self, paths: list[str]) -> None:
        """Make the trouble that a rule wants; errors are kept, as the library only logs them."""
        if not self.model.ended:
            return
        try:
            if self.trouble == "remove":
                self.unremoved |= set(paths) & self.world.stored.files()
                self.storage.failing = "remove"
                self.step("a removal that fails")
            elif self.trouble in CLASSES:
                self.interlope(self.trouble)
        except BaseException as err:
            self.errors.append(err)
        self.trouble = None

    def interlope(self, name: str) -> None:
        model = self.model
        gone = [k for k in model.previous.rows if k[0] == name and k not in model.committed.rows]
        if not gone:
            return
        key = gone[0][1]
        value, plain = self.fresh()
        new: Rows = {(name, key): {"name": "interloper"}}
        with self.world.unobserved(), Session(self.world.other) as session:
            if name == "Item":
                session.add(Item(id=key, name="interloper", data=value))
                new[name, key] |= {"data": plain, "more": None}
            else:
                session.add(Project(id=key, name="interloper"))
                run = next((k for k in KEYS if ("Run", k) not in model.committed.rows), None)
                if run is not None:
                    session.add(Run(id=run, id_parent=key, data=value))
                    new["Run", run] = {"name": None, "data": plain, "id_parent": key}
            session.commit()
        model.committed.rows |= new
        model.state = model.committed.copy()
        self.step(f"interlope {name}")

    @invariant()
    def nothing_is_lost_meanwhile(self) -> None:
        self.settle()
        files = self.world.stored.files()
        if not self.kept <= files:
            raise Violation(f"dangling: removed before COMMIT: {sorted(self.kept - files)}")
        connection = self._connection
        if self.has_session:
            connection = self.session.connection() if self.session.in_transaction() else None
        if connection is not None and connection.in_transaction():
            check_dangling(urls_in(connection), files)

    def teardown(self) -> None:
        """Commit what is open and look once more, unless something failed."""
        failed = sys.exc_info()[0] is not None
        self.storage.failing = self.trouble = None
        with contextlib.ExitStack() as stack:
            if failed:
                stack.enter_context(contextlib.suppress(Exception))
                stack.enter_context(self.world.unobserved())
            if self.has_connection:
                stack.callback(self.connection.close)
            if self.has_session:
                stack.callback(self.session.close)
            if not failed:
                self._commit_all()
        if not failed:
            self.settle()

    def _commit_all(self) -> None:
        if self.has_session:
            self.commit(trouble=None, forget=True)
            self.leave_session()
        if self.has_connection:
            self._end_outer(commits=True)
