"""The commands check, gc, drain, usage and move: output, exit statuses, what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqla_datastore import DataStore, bind_storage
from sqla_datastore.cli import main as cli
from sqla_datastore.cli import progress
from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.urls import new_object_name

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqla_datastore import DataStore, DataStoreType, enable_removals

class Base(DeclarativeBase):
    pass

class Shot(Base):
    __tablename__ = "shots"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())

class Kept(DeclarativeBase):
    pass

class Photo(Kept):
    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())

enable_removals(Kept.metadata, keep_seconds=3600)

class Namespace:
    Base = Base

metadata = Base.metadata
nothing = 1
"""
COUNTER = iter(range(1000))


class Application:
    """Models in a package of their own, a database and a storage with two rows."""

    def __init__(self, folder: Path) -> None:
        self.package = f"shop{next(COUNTER)}"
        (folder / self.package).mkdir()
        (folder / self.package / "__init__.py").write_text("")
        (folder / self.package / "models.py").write_text(MODELS)
        self.model = f"{self.package}.models:Base"
        self.database = f"sqlite:///{folder / 'shop.db'}"
        self.storage = folder / "store"
        self.models = import_module(f"{self.package}.models")
        engine = create_engine(self.database)
        bind_storage(engine, self.storage)
        self.models.Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all(self.models.Shot(id=n, data=DataStore(a=n)) for n in (1, 2))
            session.commit()
        engine.dispose()

    def run(self, command, *more, model=None, database=None, storage=None):
        given = [model or self.model, "--database", database or self.database]
        given += ["--storage", str(storage or self.storage)]
        return cli.main([command, *given, *more])

    def put(self, folder="shots/9", age_seconds=100_000.0):
        file = self.storage / folder / new_object_name()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"orphan")
        os.utime(file, (time.time() - age_seconds,) * 2)
        return file

    def files(self):
        return {path for path in self.storage.rglob("*") if path.is_file()}


@pytest.fixture
def application(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Application(tmp_path)


def error_of(capsys):
    """Return the one line on stderr, and see that nothing else was printed."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sqla-datastore: error: ")
    assert err.count("\n") == 1
    return err


# -- drain -----------------------------------------------------------------------------------------


@pytest.fixture
def photos(application):
    """Have two removals wait for an hour; return the model's name."""
    engine = create_engine(application.database)
    bind_storage(engine, application.storage)
    photo = application.models.Photo
    application.models.Kept.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(photo(id=n, data=DataStore(a=n)) for n in (1, 2, 3))
        session.commit()
        session.delete(session.get(photo, 1))
        session.get(photo, 2).data = DataStore(a=5)
        session.commit()
    engine.dispose()
    return f"{application.package}.models:Kept"


def test_drain_carries_out_what_is_due(application, photos, capsys):
    before = application.files()
    assert application.run("check", model=photos) == 0
    assert application.run("gc", "--apply", "--grace-seconds", "0", model=photos) == 0
    assert capsys.readouterr().out.count("2 objects wait for their removal") == 2
    assert application.run("drain", model=photos) == 0
    assert application.files() == before
    assert application.run("drain", "--keep-seconds", "0", model=photos) == 0
    out = capsys.readouterr().out
    assert "0 removals carried out; 2 younger than 3600 s wait" in out
    assert "2 removals carried out; 0 younger than 0 s wait" in out
    assert len(application.files()) == len(before) - 2
    assert application.run("drain", "--json", model=photos) == 0
    assert json.loads(capsys.readouterr().out)["is_clean"] is True


def test_drain_tells_what_the_storage_refused(application, photos, capsys, monkeypatch):
    def refuse(_self, paths):
        raise StorageError("read-only file system", url=next(iter(paths)))

    before = application.files()
    monkeypatch.setattr(LocalStorage, "remove", refuse)
    assert application.run("drain", "--keep-seconds", "0", model=photos) == 2
    assert "read-only file system" in capsys.readouterr().err
    assert application.files() == before


def test_drain_is_for_models_with_removals(application, capsys):
    assert application.run("drain") == 2
    assert "enable_removals" in error_of(capsys)


# -- move ------------------------------------------------------------------------------------------


def test_move_copies_and_then_removes_the_source(application, tmp_path, capsys):
    target = tmp_path / "target"
    bases = ["--from", str(application.storage), "--to", str(target)]
    assert application.run("move", *bases) == 1
    out = capsys.readouterr().out
    assert "2 URLs in rows; 2 objects would be copied" in out
    assert "run it with --apply to do so" in out
    assert not target.exists()
    before = {path.relative_to(application.storage) for path in application.files()}
    assert application.run("move", *bases, "--apply", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["is_clean"], report["copied"], report["removed"]) == (True, 2, 0)
    assert {path.relative_to(target) for path in target.rglob("*.zip")} == before
    assert application.run("move", *bases, "--apply", "--remove-source") == 2
    assert "bind the engine to the target" in error_of(capsys)
    assert {path.relative_to(application.storage) for path in application.files()} == before
    remove = [*bases, "--apply", "--remove-source", "--tables", "shots"]
    assert application.run("move", *remove, storage=target) == 0
    out = capsys.readouterr().out
    assert "0 objects copied (0 bytes), 2 were there; 0 rows switched" in out
    assert "2 objects removed from the source" in out
    assert application.files() == set()
    assert application.run("check", "--deep", storage=target) == 0


def test_move_names_what_it_could_not_copy(application, tmp_path, capsys):
    bases = ["--from", str(application.storage), "--to", str(tmp_path / "target")]
    damaged, gone = sorted(application.files())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    gone.unlink()
    assert application.run("move", *bases, "--apply") == 1
    out = capsys.readouterr().out
    assert "rows without object: 1\n  shots(id=2).data: file:///shots/2/" in out
    assert "objects that were not copied: 1\n  file:///shots/1/" in out
    for more, words in ((["--tables", "none"], "no table 'none'"), (["--to", "x://y"], "'x://'")):
        assert application.run("move", *bases, *more) == 2
        assert words in error_of(capsys)


# -- statuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["Base", "metadata", "Namespace.Base"])
def test_a_clean_store_is_status_0(application, capsys, attribute):
    model = f"{application.package}.models:{attribute}"
    for command in (["check"], ["check", "--deep"], ["gc"], ["gc", "--apply"], ["usage"]):
        assert application.run(*command, model=model) == 0
    out, err = capsys.readouterr()
    assert "clean" in out
    assert "nothing to remove" in out
    assert "shots.data: 2 rows, 2 objects" in out
    assert err == ""


def test_findings_are_status_1(application, capsys):
    orphan = application.put()
    assert application.run("check") == 1
    out = capsys.readouterr().out
    assert f"objects without row: 1\n  shots/9/{orphan.name} (6 bytes)" in out
    assert "found: 0 dangling, 0 damaged, 1 orphans, 0 leftovers" in out
    next((application.storage / "shots" / "1").iterdir()).unlink()
    assert application.run("check", "--grace-seconds", "200000") == 1
    out = capsys.readouterr().out
    assert "shots(id=1).data: file:///shots/1/" in out
    assert orphan.name not in out


def test_gc_is_a_dry_run_unless_told(application, capsys):
    orphan = application.put()
    young = application.put(age_seconds=60)
    assert application.run("gc") == 1
    assert "would remove 1 (6 bytes); run it with --apply" in capsys.readouterr().out
    assert {orphan, young} < application.files()
    assert application.run("gc", "--apply") == 0
    assert "removed 1 (6 bytes)" in capsys.readouterr().out
    assert orphan not in application.files()
    assert application.run("gc", "--apply", "--grace-seconds", "1") == 0
    assert len(application.files()) == 2
    assert application.run("check") == 0


def test_reports_as_json(application, capsys):
    application.put()
    for command, status in (("check", 1), ("gc", 1), ("usage", 0)):
        assert application.run(command, "--json") == status
        report = json.loads(capsys.readouterr().out)
        if status:
            assert report["is_clean"] is False
            assert report["orphans"]["count"] == 1
            assert report["orphans"]["first"][0]["path"].startswith("shots/9/")
        else:
            assert report["columns"][0]["objects"] == 2


def test_long_lists_are_cut(application, capsys):
    for _ in range(105):
        application.put()
    assert application.run("check") == 1
    assert "  … and 5 more\n" in capsys.readouterr().out


def test_damage_is_listed(application, capsys):
    file = next((application.storage / "shots" / "1").iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    assert application.run("check") == 1
    assert f"damaged objects: 1\n  file:///shots/1/{file.name}: " in capsys.readouterr().out
    assert application.run("usage") == 0
    assert "1 objects cannot be read; run check" in capsys.readouterr().out


def test_what_cannot_be_removed_is_status_2(application, capsys, monkeypatch):
    application.put()

    def remove(self, paths):
        raise StorageError("permission denied")

    monkeypatch.setattr(LocalStorage, "remove", remove)
    assert application.run("gc", "--apply") == 2
    assert "error: not all was removed: permission denied; run it again" in capsys.readouterr().err


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere.models:Base", "cannot be imported"),
        ("{}.nothing:Base", "cannot be imported"),
        ("{}.models:Missing", "has no 'Missing'"),
        ("{}.models:nothing", "neither a Base nor a MetaData"),
        ("{}.models", "package.module:Base"),
        (":Base", "package.module:Base"),
    ],
)
@pytest.mark.parametrize("command", ["check", "gc", "usage"])
def test_a_wrong_model_is_refused(application, capsys, command, model, words):
    application.put()
    before = application.files()
    assert application.run(command, model=model.format(application.package)) == 2
    assert words in error_of(capsys)
    assert application.files() == before


def test_a_module_that_raises_is_one_line(application, capsys, tmp_path):
    (tmp_path / application.package / "broken.py").write_text("raise RuntimeError('a\\nb')")
    assert application.run("check", model=f"{application.package}.broken:Base") == 2
    assert "RuntimeError: a b" in error_of(capsys)


@pytest.mark.parametrize(
    ("database", "words"),
    [
        ("nonsense", "is no URL"),
        ("nosuch://host/name", "is no URL"),
        ("sqlite:///missing.db", "there is no database"),
        ("sqlite+aiosqlite:///shop.db", "asynchronous"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=2", "see that it runs"),
        ("mysql+pymysql://nobody@127.0.0.1:1/none", "see that it runs"),
    ],
)
def test_a_database_that_cannot_be_reached_is_refused(application, capsys, database, words):
    application.put()
    before = application.files()
    assert application.run("gc", "--apply", "--force", database=database) == 2
    assert words in error_of(capsys)
    assert application.files() == before
    assert not Path("missing.db").exists()


def test_a_password_is_not_shown(application, capsys):
    database = "mysql+pymysql://nobody:secret@127.0.0.1:1/none"
    assert application.run("check", database=database) == 2
    assert "secret" not in error_of(capsys)


def test_a_missing_table_is_refused(application, capsys):
    engine = create_engine("sqlite:///empty.db")
    engine.connect().close()
    engine.dispose()
    Path("empty.db").touch()
    before = application.files()
    for command in ("check", "gc", "usage"):
        assert application.run(command, database="sqlite:///empty.db") == 2
        assert "lacks the declared tables 'shots'" in error_of(capsys)
    assert application.files() == before


def test_other_storages_are_refused(application, capsys, tmp_path):
    strange, foreign = tmp_path / "strange", tmp_path / "foreign"
    (strange / "pictures").mkdir(parents=True)
    (strange / "pictures" / new_object_name()).write_bytes(b"x")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    for storage, words in (
        (tmp_path / "nowhere", "does not exist"),
        (strange, "another application"),
        (foreign, "no object of this library"),
        ("gopher://host", "no storage serves"),
    ):
        for command in (["check"], ["gc", "--apply", "--grace-seconds", "0"], ["usage"]):
            assert application.run(*command, storage=storage) == 2
            assert words in error_of(capsys)
    assert len(list(strange.rglob("*.zip"))) == len(list(foreign.iterdir())) == 1


def test_an_empty_database_removes_nothing_unless_forced(application, capsys):
    engine = create_engine(application.database)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM shots")
    engine.dispose()
    before = application.files()
    assert application.run("gc", "--apply", "--grace-seconds", "0") == 2
    assert "no row has a URL" in error_of(capsys)
    assert application.files() == before
    assert application.run("gc", "--apply", "--grace-seconds", "0", "--force") == 0
    assert application.files() == set()


def test_models_are_found_in_the_working_directory(application, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sqla_datastore.cli", "check", application.model),
            *("--database", application.database, "--storage", str(application.storage)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("clean\n")


# -- progress --------------------------------------------------------------------------------------


def test_progress_in_plain_lines_tells_rate_and_remaining_time(capsys, monkeypatch):
    seconds = iter([0.0, 0.0, 5.0, 20.0, 31.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    with progress.shown_progress() as show:
        show("removing", 0, 4000)
        show("removing", 500, 4000)
        show("removing", 2000, 4000)
        show("removing", 3000, None)
    assert capsys.readouterr().err == (
        "removing: 2000 of 4000, 100/s, 20 s left\nremoving: 3000, 97/s\n"
    )


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown_progress() as show:
        show("reading", 0, None)
        show("removing", 0, 4000)
        show("removing", 3000, 4000)
    err = capsys.readouterr().err
    assert "removing" in err
    assert "/s" in err


# -- what models' modules do -----------------------------------------------------------------------


def test_what_a_module_prints_is_not_the_report(application, tmp_path, capsys):
    models = tmp_path / application.package / "models.py"
    (tmp_path / application.package / "loud.py").write_text(
        models.read_text() + "\nprint('imported')\n"
    )
    model = f"{application.package}.loud:Base"
    assert application.run("usage", "--json", model=model) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["objects"] == 2
    assert "imported" in err


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit('give arguments')",
        """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
class Base(DeclarativeBase): pass
class Shot(Base):
    __tablename__ = "shots"
    id: Mapped[int] = mapped_column(primary_key=True)
    other: Mapped["Missing"] = relationship()
""",
    ],
)
def test_a_module_that_cannot_be_used_is_status_2(application, tmp_path, capsys, source):
    (tmp_path / application.package / "broken.py").write_text(source)
    try:
        assert application.run("check", model=f"{application.package}.broken:Base") == 2
        assert "cannot be imported" in error_of(capsys)
    finally:
        # mappers that cannot be configured would fail every later test
        broken = sys.modules.get(f"{application.package}.broken")
        if broken is not None:
            broken.Base.registry.dispose()


def test_the_database_may_be_named_by_the_environment(application, capsys, monkeypatch):
    monkeypatch.setenv("SQLA_DATASTORE_DATABASE_URL", application.database)
    assert cli.main(["check", application.model, "--storage", str(application.storage)]) == 0
    assert "clean" in capsys.readouterr().out
