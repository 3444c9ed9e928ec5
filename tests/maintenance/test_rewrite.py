"""`rewrite` moves values to where their columns say now, while others write, and can be resumed."""

from __future__ import annotations

import contextlib
import random
import threading

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, declarative_base, mapped_column
from support.databases import make_engine
from support.exactness import assert_exact, statements

from sqla_datastore import ConfigurationError, DataStore, DataStoreType
from sqla_datastore.cli.main import main
from sqla_datastore.maintenance import check, rewrite
from sqla_datastore.storage.urls import ObjectURL

LARGE = np.arange(2_000)


def models(**options):
    """Return a base and a class with these options of the column, of the same two tables."""
    base = declarative_base()
    columns = {
        "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        "part": mapped_column(sa.String(10), primary_key=True),
        "data": mapped_column(DataStoreType(**options)),
    }
    item = type("Item", (base,), {"__tablename__": "rewritten", **columns})
    columns = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "data": mapped_column(DataStoreType(**options)),
    }
    auto = type("Auto", (base,), {"__tablename__": "rewritten_autos", **columns})
    return base, item, auto


# `Text` from the beginning, so that no migration is needed in between
IN, IN_ITEM, IN_AUTO = models(inline_bytes=3_000)
OUT, OUT_ITEM, _ = models(inline_bytes=1)
FOLDER, _, _ = models(inline_bytes=1, folder="elsewhere/{table}/{pk}")


def value(n):
    return DataStore(n=n, l=[n], a=LARGE if n % 5 == 0 else np.arange(n % 7), inner=DataStore(k=n))


@pytest.fixture
def engine(private_url, stored):
    engine = make_engine(private_url, stored.base)
    IN.metadata.create_all(engine)
    yield engine
    engine.dispose()


def add(engine, item, count=20, auto=None):
    with Session(engine) as session, session.begin():
        session.add_all([item(id=n // 2, part="ab"[n % 2], data=value(n)) for n in range(count)])
        if auto is not None:
            session.add_all([auto(data=value(n)) for n in range(3)])


def assert_whole(engine, stored, base, item, count=20):
    assert_exact(engine, base.metadata, stored)
    assert check(engine, base.metadata, deep=True).is_clean
    with Session(engine) as session:
        rows = session.scalars(sa.select(item)).all()
        assert {(row.id, row.part): row.data.n for row in rows} == {
            (n // 2, "ab"[n % 2]): n for n in range(count)
        }
        for row in rows:
            n = row.data.n
            assert row.data["l"] == [n]
            assert row.data.inner.k == n
            assert np.array_equal(row.data.a, value(n).a)


def test_values_move_into_rows_and_out_of_them(engine, stored):
    add(engine, OUT_ITEM)
    report = rewrite(engine, IN.metadata, apply=True, batch_rows=3)
    assert (report.rows, report.moved_in, report.moved_out, report.moved_folder) == (20, 16, 0, 0)
    assert_whole(engine, stored, IN, IN_ITEM)
    assert len(stored.files()) == 8  # four large ones, each with a nested one
    report = rewrite(engine, OUT.metadata, apply=True)
    assert (report.moved_in, report.moved_out) == (0, 16)
    assert_whole(engine, stored, OUT, OUT_ITEM)
    assert len(stored.files()) == 40


def test_what_is_right_is_passed_over(engine, stored):
    add(engine, IN_ITEM, auto=IN_AUTO)
    before = stored.files()
    with statements(engine, "UPDATE") as found:
        report = rewrite(engine, IN.metadata, apply=True)
    assert report.is_clean
    assert (report.rows, report.moved, found) == (23, 0, [])
    assert stored.files() == before


def test_a_dry_run_writes_nothing(engine, stored):
    add(engine, OUT_ITEM)
    before = stored.files()
    with statements(engine, "UPDATE") as found:
        report = rewrite(engine, IN.metadata)
    assert (report.moved_in, report.applied, report.is_clean, found) == (16, False, False, [])
    assert stored.files() == before


def test_values_move_to_the_folder_of_the_template(engine, stored):
    add(engine, OUT_ITEM)
    report = rewrite(engine, FOLDER.metadata, apply=True)
    assert (report.moved_in, report.moved_out, report.moved_folder) == (0, 0, 20)
    assert {path.split("/")[0] for path in stored.files()} == {"elsewhere"}
    assert rewrite(engine, FOLDER.metadata).moved == 0
    assert rewrite(engine, OUT.metadata, apply=True).moved_folder == 20
    assert_whole(engine, stored, OUT, OUT_ITEM)


def test_a_missing_object_is_counted_and_the_rest_is_written(engine, stored):
    add(engine, OUT_ITEM)
    with engine.connect() as connection:
        url = connection.scalar(sa.text("SELECT data FROM rewritten WHERE id = 1 AND part = 'b'"))
    (stored.base / ObjectURL.parse(url).path).unlink()
    report = rewrite(engine, IN.metadata, apply=True)
    assert (report.missing, report.moved_in, report.is_clean) == (1, 15, False)
    assert len(check(engine, IN.metadata).dangling) == 1


def test_a_row_that_has_changed_meanwhile_is_left_alone(engine, stored, monkeypatch):
    from sqla_datastore.maintenance.rewrite import _Rewriter

    add(engine, OUT_ITEM)
    stock = _Rewriter._write_once

    def write(self, misplaced):
        with Session(engine) as session, session.begin():
            session.get(OUT_ITEM, (1, "a")).data = DataStore(n=2, l=[2], a=value(2).a)
            session.delete(session.get(OUT_ITEM, (2, "a")))
        monkeypatch.undo()
        return stock(self, misplaced)

    monkeypatch.setattr(_Rewriter, "_write_once", write)
    report = rewrite(engine, IN.metadata, apply=True)
    assert (report.changed_meanwhile, report.moved_in) == (2, 14)
    assert_exact(engine, IN.metadata, stored)
    with Session(engine) as session:
        assert list(session.get(IN_ITEM, (1, "a")).data) == ["n", "l", "a"]
        assert session.get(IN_ITEM, (2, "a")) is None


def test_what_is_replaced_meanwhile_is_not_called_missing(engine, stored, monkeypatch):
    add(engine, OUT_ITEM, 4)
    from sqla_datastore.maintenance.rewrite import _Rewriter

    real = _Rewriter._move_of

    def replaced(self, url, values):
        monkeypatch.undo()
        with Session(engine) as session, session.begin():
            for row in session.scalars(sa.select(OUT_ITEM)):
                row.data = DataStore(n=7)
        return real(self, url, values)

    monkeypatch.setattr(_Rewriter, "_move_of", replaced)
    report = rewrite(engine, IN.metadata, apply=True)
    assert (report.missing, report.changed_meanwhile, report.moved) == (0, 4, 0)
    assert rewrite(engine, IN.metadata, apply=True).moved_in == 4
    assert_exact(engine, IN.metadata, stored, 4)


def _interrupted_at(random_, count):
    left = [random_.randrange(count)]

    def progress(*_):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return progress


def test_it_can_be_interrupted_and_run_again(engine, stored):
    add(engine, OUT_ITEM, 40)
    random_ = random.Random(1)
    for _ in range(4):
        with contextlib.suppress(KeyboardInterrupt):
            stop = _interrupted_at(random_, 3)
            rewrite(engine, IN.metadata, apply=True, batch_rows=2, progress=stop)
        assert not check(engine, IN.metadata).dangling
    rewrite(engine, IN.metadata, apply=True)
    assert rewrite(engine, IN.metadata).is_clean
    assert_whole(engine, stored, IN, IN_ITEM, 40)


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_writers_go_on_meanwhile(engine, stored):
    """Nothing dangles, and what writers wrote last is what rows hold."""
    count, stop = 600, threading.Event()
    add(engine, OUT_ITEM, count)
    written, failures = {}, []

    def writer(seed):
        random_ = random.Random(seed)
        try:
            while not stop.is_set():
                n = random_.randrange(0, count)
                key = (n // 2, "ab"[n % 2])
                if n % 3 != seed:
                    continue
                with Session(engine) as session, session.begin():
                    row = session.get(OUT_ITEM, key, with_for_update=True)
                    row.data = DataStore(n=n, again=random_.random())
                    written[key] = row.data.again
        except sa.exc.OperationalError as err:  # a deadlock: the application's to try again
            failures.append(err)

    threads = [threading.Thread(target=writer, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            rewrite(engine, IN.metadata, apply=True, batch_rows=20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    rewrite(engine, IN.metadata, apply=True)
    assert rewrite(engine, IN.metadata).is_clean
    assert written
    assert check(engine, IN.metadata, deep=True).is_clean
    assert_exact(engine, IN.metadata, stored, count)
    with Session(engine) as session:
        for key, again in list(written.items())[:50]:
            assert failures or session.get(IN_ITEM, key).data.again == again


@pytest.mark.parametrize(("size", "in_row"), [(4_000, True), (100_000, False)])
def test_what_is_compressed_into_a_row_stays_there(engine, stored, size, in_row):
    """Its size in the object counts; what is far larger before is not tried."""
    base, item, _ = models(inline_bytes=3_000, compression="fast")
    with Session(engine) as session, session.begin():
        session.add(OUT_ITEM(id=0, part="a", data=DataStore(n=0, a=np.zeros(size))))
        session.add(OUT_ITEM(id=0, part="b", data=DataStore(n=1, a=np.zeros(size))))
    assert rewrite(engine, base.metadata, apply=True).recompressed == 2
    assert rewrite(engine, base.metadata).is_clean
    assert_exact(engine, base.metadata, stored)
    with Session(engine) as session:
        row = session.get(item, (0, "a"))
        assert row.data.url.startswith("data:") is in_row
        assert np.array_equal(row.data.a, np.zeros(size))
    # and back: the same objects, in columns that do not compress
    assert rewrite(engine, IN.metadata, apply=True).recompressed == 2
    assert rewrite(engine, IN.metadata).is_clean
    assert_exact(engine, IN.metadata, stored)


def test_a_table_without_a_key_is_refused(engine):
    metadata = sa.MetaData()
    type_ = DataStoreType(inline_bytes=10, folder="keyless")
    sa.Table("keyless", metadata, sa.Column("data", type_))
    metadata.create_all(engine)
    with pytest.raises(ConfigurationError, match="no primary key"):
        rewrite(engine, metadata)


def test_the_command(private_url, engine, stored, tmp_path, monkeypatch, capsys):
    (tmp_path / "rewritten_models.py").write_text(
        "from sqlalchemy import Integer, String\n"
        "from sqlalchemy.orm import declarative_base, mapped_column\n"
        "from sqla_datastore import DataStoreType\n"
        "Base = declarative_base()\n"
        "class Item(Base):\n"
        "    __tablename__ = 'rewritten'\n"
        "    id = mapped_column(Integer, primary_key=True, autoincrement=False)\n"
        "    part = mapped_column(String(10), primary_key=True)\n"
        "    data = mapped_column(DataStoreType(inline_bytes=3_000))\n"
    )
    monkeypatch.chdir(tmp_path)
    add(engine, OUT_ITEM)
    arguments = ["rewrite", "rewritten_models:Base", "--database", private_url]
    arguments += ["--storage", str(stored.base)]
    assert main(arguments) == 1
    assert "would move 16 into their rows" in capsys.readouterr().out
    assert main([*arguments, "--apply", "--batch-rows", "7"]) == 0
    assert "moved 16 into their rows, 0 out of them" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert '"moved_in": 0' in capsys.readouterr().out
