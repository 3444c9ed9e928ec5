"""P7 and what persisting may cost, measured in processes of their own."""

from __future__ import annotations

import json
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
    # the URLs that the rows had are asked for together; before COMMIT, whether they lost them
    assert found == {"asked": 2, "files": 300}
