"""P7 and what persisting may cost, measured in processes of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import pytest

SETUP = """
import json, os, resource, sys, threading, time
import numpy as np
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqla_datastore import DataStore, DataStoreType, bind_storage

class Base(DeclarativeBase):
    pass

class Result(Base):
    __tablename__ = "results"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())

base = sys.argv[1]
engine = create_engine(f"sqlite:///{base}/test.db")
bind_storage(engine, f"{base}/storage")
Base.metadata.create_all(engine)
MB = 1_000_000

def memory():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS", "RssAnon")}

def resident(folder):
    # the bytes of files below a folder that this process has mapped and touched
    total = inside = 0
    for line in open("/proc/self/smaps"):
        if "-" in line.split(" ", 1)[0]:
            inside = folder in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total

def bytes_read():
    fields = dict(line.split(":") for line in open("/proc/self/io"))
    return int(fields["rchar"])
"""


def run(script, tmp_path):
    """Run a script in a fresh interpreter and return what it printed as JSON."""
    code = SETUP + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.slow
def test_a_large_array_is_persisted_without_a_copy_and_mapped_when_touched(tmp_path):
    found = run(
        """
        with Session(engine) as session:
            session.add(Result(data=DataStore(warm=np.arange(10))))
            session.commit()
            before = memory()["VmRSS"]
            array = np.random.default_rng(0).random(50_000_000)
            size = array.nbytes
            session.add(Result(data=DataStore(a=array, n=1)))
            session.commit()
            peak = memory()["VmHWM"] - before
            del array
        with Session(engine) as session:
            row = session.get(Result, 2)
            # the first touch in a process also reads the library's own modules
            session.get(Result, 1).data.warm[0]
            import pyarrow
            start = bytes_read()
            value = row.data.a
            touched = float(value[25_000_000])
            read, mapped = bytes_read() - start, resident(f"{base}/storage")
        expected = float(np.random.default_rng(0).random(50_000_000)[25_000_000])
        print(json.dumps({
            "size": size, "peak": peak, "read": read, "mapped": mapped,
            "same": touched == expected,
        }))
        """,
        tmp_path,
    )
    assert found["size"] == 400_000_000
    assert found["peak"] < 1.2 * found["size"]
    assert found["read"] < 1_000_000
    assert 0 < found["mapped"] < 1_000_000
    assert found["same"]


def test_fetching_rows_opens_and_stats_nothing(tmp_path):
    found = run(
        """
        with Session(engine) as session:
            session.add_all([Result(data=DataStore(n=n)) for n in range(1000)])
            session.commit()
        with Session(engine) as session:
            session.scalars(select(Result).limit(1)).all()
        seen = []
        original = os.stat

        def stat(path, *args, **kwargs):
            seen.append(str(path))
            return original(path, *args, **kwargs)

        os.stat = stat
        sys.addaudithook(lambda name, args: seen.append(f"{name} {args[0]}")
            if name in ("open", "os.scandir", "os.listdir") else None)
        with Session(engine) as session:
            rows = session.scalars(select(Result)).all()
            urls = {row.data.url for row in rows}
            fetched = [s for s in seen if "storage" in s]
            sum(row.data.n for row in rows)
        opened = [s for s in seen if "storage" in s]
        print(json.dumps({
            "rows": len(rows), "urls": len(urls), "fetched": fetched[:3], "opened": len(opened),
        }))
        """,
        tmp_path,
    )
    assert (found["rows"], found["urls"]) == (1000, 1000)
    assert not found["fetched"]
    assert found["opened"] >= 1000, "the hook would not have seen a file being opened"


def test_many_rows_in_one_flush(tmp_path):
    found = run(
        """
        from sqlalchemy import event
        statements = []
        event.listen(engine, "before_cursor_execute",
            lambda c, cu, statement, *rest: statements.append(statement))
        with Session(engine) as session:
            rows = [Result(data=DataStore(n=n)) for n in range(300)]
            session.add_all(rows)
            session.commit()
            session.scalars(select(Result)).all()
            statements.clear()
            for row in rows:
                row.data = DataStore(n=-1)
            session.commit()
            asked = [s for s in statements if s.startswith("SELECT")]
        print(json.dumps({"asked": len(asked), "files": sum(
            len(files) for _, _, files in os.walk(f"{base}/storage"))}))
        """,
        tmp_path,
    )
    # the URLs that the rows had are asked for together; before COMMIT, whether they lost them, and
    # whether other rows have them: the database made the keys, so the folders do not tell
    assert found == {"asked": 3, "files": 300}


# Counts that no machine and no load changes. The bounds are what it takes now: lower them with it.

SMALL = """
from sqlalchemy import delete, event
from sqla_datastore.storage import LocalStorage

def small(n):
    return DataStore(n=n, note="converged", weights=np.arange(10.0))

def insert(count):
    with Session(engine) as session:
        session.add_all([Result(id=n, data=small(n)) for n in range(count)])
        session.commit()

def load():
    with Session(engine) as session:
        for row in session.scalars(select(Result)).all():
            row.data.weights

def replace():
    with Session(engine) as session:
        for row in session.scalars(select(Result)).all():
            row.data = small(-row.id)
        session.commit()

def delete_each():
    with Session(engine) as session:
        for row in session.scalars(select(Result)).all():
            session.delete(row)
        session.commit()

def delete_all():
    with Session(engine) as session:
        session.execute(delete(Result))
        session.commit()
"""


def run_small(script, tmp_path):
    return run(SMALL + textwrap.dedent(script), tmp_path)


@pytest.mark.parametrize("rows", [1, 10, 300])
def test_the_statements_of_a_commit_do_not_grow_with_its_rows(tmp_path, rows):
    found = run_small(
        f"""
        statements = []
        event.listen(engine, "before_cursor_execute",
            lambda c, cu, statement, *rest: statements.append(statement))

        def counted(do, *args):
            statements.clear()
            do(*args)
            return len(statements)

        first = {{
            "insert": counted(insert, {rows}),
            "replace": counted(replace),
            "delete": counted(delete_each),
        }}
        insert({rows})
        print(json.dumps({{**first, "delete all": counted(delete_all)}}))
        """,
        tmp_path,
    )
    # BEGIN, the statement, and before COMMIT which rows hold what would go; what was there is
    # selected first; replace and delete begin with the test's own SELECT
    bounds = {"insert": 2, "replace": 5, "delete": 5, "delete all": 4}
    assert {name: found[name] for name in bounds if found[name] > bounds[name]} == {}


def test_other_tables_cost_no_further_statement(tmp_path):
    found = run_small(
        """
        class Plain(Base):
            __tablename__ = "plain"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        Base.metadata.create_all(engine)
        statements = []
        event.listen(engine, "before_cursor_execute",
            lambda c, cu, statement, *rest: statements.append(statement.split()[0]))
        with Session(engine) as session:
            session.add(Plain(id=1, name="row"))
            session.commit()
            session.get(Plain, 1).name
            session.commit()
            session.get(Plain, 1).name = "edited"
            session.commit()
            session.execute(delete(Plain))
            session.commit()
        print(json.dumps(statements))
        """,
        tmp_path,
    )
    assert found == ["INSERT", "SELECT", "SELECT", "UPDATE", "DELETE"]


def test_no_event_of_others_is_listened_to(tmp_path):
    found = run_small(
        """
        from sqlalchemy import inspect

        class Plain(Base):
            __tablename__ = "plain"
            id: Mapped[int] = mapped_column(primary_key=True)

        with Session(engine) as session:
            session.get(Result, 1)
            listens = bool(session.dispatch.do_orm_execute)
        mappers = ("before_insert", "before_update", "before_delete", "load", "refresh", "expire")
        listened = {
            cls.__name__: [name for name in mappers if getattr(inspect(cls).dispatch, name, None)]
            + [name for name in mappers if getattr(inspect(cls).class_manager.dispatch, name, None)]
            for cls in (Plain, Result)
        }
        listened["Session"] = listens
        print(json.dumps(listened))
        """,
        tmp_path,
    )
    assert found["Plain"] == []
    assert not found["Session"]
    assert "before_insert" in found["Result"]


def test_a_value_is_opened_once_for_all_its_small_entries(tmp_path):
    found = run_small(
        """
        class Counted(LocalStorage):
            opened = 0

            def open(self, path):
                Counted.opened += 1
                return super().open(path)

        files = []
        bind_storage(engine, Counted(f"{base}/storage"))
        insert(20)
        with Session(engine) as session:
            session.scalars(select(Result)).first().data.weights  # what is imported once
        sys.addaudithook(lambda name, args: files.append(args[0])
            if name == "open" and str(args[0]).endswith(".zip") else None)
        with Session(engine) as session:
            Counted.opened = 0
            rows = session.scalars(select(Result)).all()
            listed = Counted.opened + len(files)
            rows[7].data.weights
            one = Counted.opened, len(files)
            rows[7].data.n, rows[7].data.note, list(rows[7].data)
            all_entries = Counted.opened
        print(json.dumps({"listed": listed, "one": one, "all": all_entries}))
        """,
        tmp_path,
    )
    assert found["listed"] == 0
    objects, files = found["one"]
    assert objects == 1
    assert 1 <= files <= 3, "its size, its index and its bytes"
    assert found["all"] == 1


def test_a_small_value_takes_few_bytes(tmp_path):
    found = run_small(
        """
        insert(100)
        print(json.dumps([os.path.getsize(os.path.join(folder, file))
            for folder, _, files in os.walk(f"{base}/storage") for file in files]))
        """,
        tmp_path,
    )
    assert len(found) == 100
    assert sum(found) <= 900 * len(found)


# of memory and of threads that wait: these depend on the moment
UNCOUNTED = {"brk", "mmap", "munmap", "mprotect", "madvise", "mremap", "futex", "sched_yield"}


def system_calls(script, folder):
    """Count the system calls of a script, in all its threads."""
    folder.mkdir()
    code = SETUP + SMALL + textwrap.dedent(script)
    summary = folder / "calls"
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", summary, sys.executable, "-c", code]
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    if "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in summary.read_text().splitlines()]
    calls = {line[1]: int(line[0]) for line in lines if len(line) == 2 and line[0].isdigit()}
    return calls.pop("total") - sum(calls.get(name, 0) for name in UNCOUNTED)


@linux
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("script", "most"),
    [
        pytest.param("insert({rows})", 45, id="insert"),
        pytest.param("insert({rows}); load()", 52, id="insert and load one entry"),
        pytest.param("insert({rows}); replace()", 75, id="insert and replace"),
        pytest.param("insert({rows}); delete_each()", 67, id="insert and delete"),
    ],
)
def test_system_calls_a_row(tmp_path, script, most):
    few, many = 20, 120
    calls = [system_calls(script.format(rows=n), tmp_path / str(n)) for n in (few, many)]
    assert (calls[1] - calls[0]) / (many - few) <= most
