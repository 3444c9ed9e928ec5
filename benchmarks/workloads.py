"""What is measured. Each workload is a function; what its tables hold is made before."""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Engine, String, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.subject import Entries, Subject
from benchmarks.subjects import FLOOR


class Case:
    """One subject's tables, of which each workload makes what it needs.

    Attributes:
        count: how many rows or statements the workload is about.
        Row: a class with a column `data` of the subject's type.
        Plain: a class without, for statements that have nothing to do with values.
    """

    def __init__(self, subject: Subject, engine: Engine, count: int) -> None:
        self.subject = subject
        self.engine = engine
        self.count = count
        self.Row, self.Plain = declare(subject)
        subject.bind(engine)
        self.Row.metadata.create_all(engine)

    def insert_rows(self, entries_of: Callable[[int], Entries]) -> None:
        """Insert `count` rows in one commit; the keys count from 1."""
        with Session(self.engine) as session:
            for number in range(1, self.count + 1):
                session.add(self.Row(id=number, data=self.subject.value(entries_of(number))))
            self.subject.commit(session)


def declare(subject: Subject) -> tuple[type[Any], type[Any]]:
    class Base(DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = "rows"
        id: Mapped[int] = mapped_column(primary_key=True)
        data = mapped_column(subject.column_type())

    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))

    return Row, Plain


@dataclass(frozen=True)
class Workload:
    """What is done, and how its figures read.

    Attributes:
        key: the function's name, for the command line.
        title: for the table.
        count: of rows or statements; figures are per one of them.
        needs: kinds of work that a subject may not have, see `About.cannot`.
        base: the subject that ratios refer to.
        measure_memory: "held" for what the result holds, "peak" for how far the process grows.
        prepare: what is made once.
        before: what is made before every run, unmeasured.
        run: what is measured.
    """

    key: str
    title: str
    count: int
    needs: tuple[str, ...]
    base: str
    measure_memory: str
    prepare: Callable[[Case], None]
    before: Callable[[Case], None]
    run: Callable[[Case], object]


WORKLOADS: dict[str, Workload] = {}
# no row holds these: SQLAlchemy does not write a value that equals the old one
NEW = itertools.count(1_000)


def nothing(_case: Case) -> None:
    """Prepare nothing."""


def workload(
    title: str,
    count: int,
    *,
    needs: tuple[str, ...] = (),
    base: str = FLOOR,
    measure_memory: str = "",
    prepare: Callable[[Case], None] = nothing,
    before: Callable[[Case], None] = nothing,
) -> Callable[[Callable[[Case], object]], Callable[[Case], object]]:
    """Enter a function into `WORKLOADS`."""

    def enter(run: Callable[[Case], object]) -> Callable[[Case], object]:
        key = run.__name__
        WORKLOADS[key] = Workload(
            key, title, count, needs, base, measure_memory, prepare, before, run
        )
        return run

    return enter


# What rows hold.


def small(number: int) -> Entries:
    return {"n": number, "note": "converged", "weights": np.arange(10.0)}


def with_list(number: int) -> Entries:
    return {"n": number, "tags": ["good", "fast", number]}


def with_frame(number: int) -> Entries:
    import pandas as pd

    return {"n": number, "frame": pd.DataFrame(np.full((10_000, 3), float(number)))}


# What is made before.


def small_rows(case: Case) -> None:
    case.insert_rows(small)


def rows_with_lists(case: Case) -> None:
    case.insert_rows(with_list)


def rows_with_frames(case: Case) -> None:
    case.insert_rows(with_frame)


def many_rows_by_sql(case: Case) -> None:
    """Copy one row's column by SQL, with other random names: listing reads no file."""
    with Session(case.engine) as session:
        session.add(case.Row(id=1, data=case.subject.value(small(1))))
        case.subject.commit(session)
    with case.engine.begin() as connection:
        stored = connection.exec_driver_sql("SELECT data FROM rows").scalar_one()
        rows = [(number, renamed(stored)) for number in range(2, case.count + 1)]
        connection.exec_driver_sql("INSERT INTO rows (id, data) VALUES (?, ?)", rows)


def renamed(stored: Any) -> Any:
    """Return a stored value with another random name, where it has one."""
    if not isinstance(stored, str):
        return stored
    return re.sub("[0-9a-f]{32}", lambda _: uuid.uuid4().hex, stored)


def plain_rows(case: Case) -> None:
    with case.engine.begin() as connection:
        rows = [{"id": number, "name": f"row {number}"} for number in range(1, 1001)]
        connection.execute(insert(case.Plain), rows)


def no_rows(case: Case) -> None:
    with Session(case.engine) as session:
        for row in session.scalars(select(case.Row)):
            case.subject.delete(session, row)
        case.subject.commit(session)


def small_rows_anew(case: Case) -> None:
    no_rows(case)
    small_rows(case)


# Reading.


@workload(
    "list 20,000 rows by the ORM, untouched",
    20_000,
    needs=("arrays",),
    measure_memory="held",
    prepare=many_rows_by_sql,
)
def list_rows(case: Case) -> object:
    session = Session(case.engine)
    return session, session.scalars(select(case.Row)).all()


@workload(
    "load one array of a small row, in a Session of its own",
    300,
    needs=("arrays",),
    prepare=small_rows,
)
def load_one_key(case: Case) -> None:
    for number in range(1, case.count + 1):
        with Session(case.engine) as session:
            case.subject.entry(session.get_one(case.Row, number).data, "weights")


@workload(
    "read one frame of each of 1,500 rows, yield_per=20",
    1_500,
    needs=("frames",),
    measure_memory="peak",
    prepare=rows_with_frames,
)
def frames_by_yield_per(case: Case) -> None:
    with Session(case.engine) as session:
        for row in session.scalars(select(case.Row).execution_options(yield_per=20)):
            case.subject.entry(row.data, "frame")
        case.subject.commit(session)


# The loops. Both are done at two sizes: the cost of a row should be the same.


def read_a_list_run_a_query(case: Case) -> None:
    with Session(case.engine) as session:
        for row in session.scalars(select(case.Row)).all():
            case.subject.entry(row.data, "tags")
            session.execute(select(case.Plain.id).where(case.Plain.id == 1)).all()


def read_all_commit_assign_one_entry(case: Case) -> None:
    with Session(case.engine) as session:
        rows = session.scalars(select(case.Row)).all()
        for row in rows:
            case.subject.entry(row.data, "tags")
        session.commit()
        for row in rows:
            row.data["b"] = 1
        session.rollback()


def loop(title: str, count: int) -> Callable[[Callable[[Case], object]], object]:
    return workload(
        title, count, needs=("edits",), base="MutableDict(JSON)", prepare=rows_with_lists
    )


@loop("read a list, run a query, for each of 250 rows", 250)
def query_loop_250(case: Case) -> None:
    read_a_list_run_a_query(case)


@loop("read a list, run a query, for each of 1,000 rows", 1_000)
def query_loop_1000(case: Case) -> None:
    read_a_list_run_a_query(case)


@loop("read all, commit, assign one entry of each of 250 rows", 250)
def assign_loop_250(case: Case) -> None:
    read_all_commit_assign_one_entry(case)


@loop("read all, commit, assign one entry of each of 1,000 rows", 1_000)
def assign_loop_1000(case: Case) -> None:
    read_all_commit_assign_one_entry(case)


# Writing.


@workload("insert 300 small rows in one commit", 300, needs=("arrays",), before=no_rows)
def insert_in_one_commit(case: Case) -> None:
    small_rows(case)


@workload("insert 20 small rows, one commit each", 20, needs=("arrays",), before=no_rows)
def insert_one_per_commit(case: Case) -> None:
    with Session(case.engine) as session:
        for number in range(1, case.count + 1):
            session.add(case.Row(id=number, data=case.subject.value(small(number))))
            case.subject.commit(session)


@workload("replace 300 small values in one commit", 300, needs=("arrays",), prepare=small_rows)
def replace(case: Case) -> None:
    with Session(case.engine) as session:
        for row in session.scalars(select(case.Row)).all():
            case.subject.replace(row, small(next(NEW)))
        case.subject.commit(session)


@workload("delete 300 small rows in one commit", 300, needs=("arrays",), before=small_rows_anew)
def delete(case: Case) -> None:
    with Session(case.engine) as session:
        for row in session.scalars(select(case.Row)).all():
            case.subject.delete(session, row)
        case.subject.commit(session)


@workload(
    "delete 2,000 small rows by one statement",
    2_000,
    needs=("arrays", "bulk deletes"),
    before=small_rows_anew,
)
def bulk_delete(case: Case) -> None:
    with Session(case.engine) as session:
        case.subject.delete_all(session, case.Row)
        case.subject.commit(session)


# Statements that have nothing to do with values, while a model elsewhere has the subject's type.


@workload("elsewhere: select one row", 500, prepare=plain_rows)
def elsewhere_select(case: Case) -> None:
    with Session(case.engine) as session:
        for number in range(1, case.count + 1):
            session.scalars(select(case.Plain).where(case.Plain.id == number)).one()


@workload("elsewhere: insert one row and commit", 20)
def elsewhere_insert(case: Case) -> None:
    with Session(case.engine) as session:
        for _ in range(case.count):
            session.add(case.Plain(name="row"))
            session.commit()


@workload("elsewhere: flush 1,000 rows at once", 1_000)
def elsewhere_bulk_flush(case: Case) -> None:
    with Session(case.engine) as session:
        session.add_all([case.Plain(name="row") for _ in range(case.count)])
        session.flush()
        session.rollback()


@workload("elsewhere: a statement as text", 500, prepare=plain_rows)
def elsewhere_text(case: Case) -> None:
    with Session(case.engine) as session:
        for number in range(1, case.count + 1):
            session.execute(text("SELECT name FROM plain WHERE id = :id"), {"id": number}).one()
