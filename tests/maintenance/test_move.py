"""`move` copies objects to another base while others read and write, and can be resumed."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.databases import Stored, make_engine
from support.exactness import assert_exact, statements, urls_of
from support.memory import MemoryStorage
from support.processes import environment
from support.watched import Watched

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    MissingObjectError,
    RefusedURLError,
    StorageError,
    bind_storage,
    enable_removals,
)
from sqla_datastore.maintenance import check, create_removal_triggers, gc, move
from sqla_datastore.maintenance.move_copies import Mover
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.urls import ObjectURL, is_in_row, new_object_name


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "moved_items"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    part: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(inline_bytes=2_000))


class Other(Base):
    __tablename__ = "moved_others"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


ITEMS, OTHERS = Item.__tablename__, Other.__tablename__


def value(n):
    """Return a value of two objects, or one that lies in its row."""
    if n % 5 == 4:
        return DataStore(n=n)
    return DataStore(n=n, a=np.full(500, n), inner=DataStore(k=n))


def others(n):
    return DataStore(n=n, inner=DataStore(k=n))


@pytest.fixture
def engine(private_url, stored):
    """An engine with 10 items, of which 2 lie in their rows, and 5 others: 26 objects."""
    engine = make_engine(private_url, stored.base)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Item(id=n // 2, part="ab"[n % 2], data=value(n)) for n in range(10))
        session.add_all(Other(id=n, data=others(n)) for n in range(5))
        session.add(Other(id=9, data=None))
    yield engine
    engine.dispose()


@pytest.fixture
def target(tmp_path):
    return Stored(tmp_path / "target")


@pytest.fixture
def toy():
    return MemoryStorage()


def contents(stored):
    return {path: (stored.base / path).read_bytes() for path in stored.files()}


@pytest.fixture
def bound(engine):
    """Return an engine of its own on the same database, bound to a storage."""
    engines = []

    def make(storage):
        engines.append(make_engine(engine.url, storage))
        return engines[-1]

    yield make
    for each in engines:
        each.dispose()


def assert_reads(engine):
    """Assert that all rows can be read, and hold what was stored."""
    with Session(engine) as session:
        items = session.scalars(sa.select(Item)).all()
        rows = [(row.id * 2 + "ab".index(row.part), row.data) for row in items]
        rows += [(row.id, row.data) for row in session.scalars(sa.select(Other)) if row.data]
        assert len(rows) == 15
        for n, data in rows:
            assert data.n == n
            if "inner" in data:
                assert data.inner.k == n
            if "a" in data:
                assert data.a.tolist() == [n] * 500


def row_url(engine, table, **key):
    where = " AND ".join(f"{name} = :{name}" for name in key)
    with engine.connect() as connection:
        return connection.scalar(sa.text(f"SELECT data FROM {table} WHERE {where}"), key)


def set_url(engine, table, url, **key):
    where = " AND ".join(f"{name} = :{name}" for name in key)
    with engine.begin() as connection:
        query = sa.text(f"UPDATE {table} SET data = :url WHERE {where}")
        connection.execute(query, {"url": url, **key})


# -- one scheme ------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(engine, stored, target):
    before = contents(stored)
    with statements(engine, "UPDATE", "INSERT", "DELETE") as found:
        report = move(engine, Base.metadata, stored.base, target.base)
    assert (report.rows, report.copied, report.present, report.switched) == (13, 26, 0, 0)
    assert report.copied_bytes == sum(map(len, before.values()))
    assert not report.applied
    assert not report.is_clean
    assert found == []
    assert contents(stored) == before
    assert not target.base.exists()


def test_objects_are_copied_and_both_bindings_read_them(engine, bound, stored, target):
    before, rows = contents(stored), urls_of(engine, Base.metadata)
    report = move(engine, Base.metadata, stored.base, target.base, apply=True, batch_rows=3)
    assert (report.copied, report.is_clean) == (26, True)
    assert contents(target) == contents(stored) == before
    assert sorted(urls_of(engine, Base.metadata)) == sorted(rows)
    assert_reads(engine)
    there = bound(target.base)
    assert_reads(there)
    assert check(there, Base.metadata, deep=True).is_clean
    assert_exact(there, Base.metadata, target)


def test_what_is_there_is_passed_over(engine, stored, target):
    move(engine, Base.metadata, stored.base, target.base, apply=True)
    calls = []
    watched = Watched(LocalStorage(target.base), lambda name, when: calls.append(name))
    report = move(engine, Base.metadata, stored.base, watched, apply=True)
    assert (report.copied, report.present, report.is_clean) == (0, 26, True)
    assert "create" not in calls
    assert move(engine, Base.metadata, stored.base, target.base).is_clean


def test_what_was_written_meanwhile_comes_with_the_next_run(engine, stored, target):
    move(engine, Base.metadata, stored.base, target.base, apply=True)
    with Session(engine) as session, session.begin():
        session.get(Item, (0, "a")).data = value(0)
        session.delete(session.get(Other, 4))
        session.add(Other(id=10, data=others(10)))
    report = move(engine, Base.metadata, stored.base, target.base, apply=True)
    assert (report.copied, report.present) == (4, 22)
    assert set(contents(stored)) <= target.files()


def test_an_explicit_source_overrides_the_binding(engine, stored, target, tmp_path):
    bind_storage(engine, target.base)
    report = move(engine, Base.metadata, stored.base, target.base, apply=True)
    assert (report.copied, report.missing.count) == (26, 0)
    assert_reads(engine)


def test_what_a_writer_put_into_the_target_already_is_no_fault(engine, bound, stored, target):
    there = bound(target.base)
    with Session(there) as session, session.begin():
        session.add(Other(id=10, data=others(10)))
    report = move(engine, Base.metadata, stored.base, target.base, apply=True)
    assert (report.copied, report.present, report.missing.count) == (26, 2, 0)


def test_only_the_tables_that_are_named_take_part(engine, stored, target):
    report = move(engine, Base.metadata, stored.base, target.base, tables=[OTHERS], apply=True)
    assert (report.rows, report.copied) == (5, 10)
    assert {path.split("/")[0] for path in target.files()} == {OTHERS}


def test_columns_with_a_url_of_their_own_take_part_where_it_is_a_base(
    private_url, stored, target, tmp_path
):
    class Own(DeclarativeBase):
        pass

    class Here(Own):
        __tablename__ = "moved_here"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore] = mapped_column(DataStoreType(stored.base))
        elsewhere: Mapped[DataStore] = mapped_column(DataStoreType(tmp_path / "elsewhere"))

    engine = make_engine(private_url, tmp_path / "bound")
    Own.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Here(data=DataStore(a=1), elsewhere=DataStore(b=1)))
    report = move(engine, Own.metadata, stored.base, target.base, apply=True)
    assert (report.rows, report.copied) == (1, 1)
    assert contents(target) == contents(stored)
    with pytest.raises(ConfigurationError, match=r"moved_here\.data is read from"):
        move(engine, Own.metadata, stored.base, target.base, apply=True, remove_source=True)
    with pytest.raises(ConfigurationError, match="no column of the tables"):
        move(engine, Own.metadata, tmp_path, tmp_path.with_name("none"))
    engine.dispose()


# -- another scheme --------------------------------------------------------------------------------


def test_rows_get_the_other_scheme_and_come_back(engine, stored, target, toy):
    before = contents(stored)
    in_rows = [url for url in urls_of(engine, Base.metadata) if is_in_row(url)]
    report = move(engine, Base.metadata, stored.base, toy, apply=True, batch_rows=4)
    assert (report.copied, report.switched, report.is_clean) == (26, 13, True)
    assert toy.objects == before == contents(stored)
    urls = urls_of(engine, Base.metadata)
    assert {url.partition(":")[0] for url in urls} == {"toy", "data"}
    assert sorted(url for url in urls if is_in_row(url)) == sorted(in_rows)
    bind_storage(engine, toy)
    assert_reads(engine)
    assert check(engine, Base.metadata, deep=True).is_clean
    assert move(engine, Base.metadata, stored.base, toy).is_clean

    report = move(engine, Base.metadata, toy, target.base, apply=True)
    assert (report.copied, report.switched, report.is_clean) == (26, 13, True)
    bind_storage(engine, target.base)
    assert_reads(engine)
    assert_exact(engine, Base.metadata, target)


def test_who_reads_both_bases_reads_every_row_while_they_are_switched(engine, bound, stored, toy):
    before, after = LocalStorage(stored.base), toy
    readers = [bound(before), bound(after)]
    bind_storage(readers[0], before, also_read=after)
    bind_storage(readers[1], after, also_read=before)
    seen = []

    def progress(what, done, total):
        seen.append({url.partition(":")[0] for url in urls_of(engine, Base.metadata)})
        for reader in readers:
            assert_reads(reader)

    move(engine, Base.metadata, before, after, apply=True, batch_rows=4, progress=progress)
    assert {"file", "toy", "data"} in seen
    for reader in readers:
        assert_reads(reader)
    # where nothing else is said, the other scheme is refused as ever
    bind_storage(readers[0], before)
    with Session(readers[0]) as session, pytest.raises(RefusedURLError, match="serves file:"):
        _ = session.get(Other, 0).data.n


def test_what_is_replaced_while_rows_are_switched_goes_where_the_writer_is_bound_to(
    engine, bound, stored, toy
):
    move(engine, Base.metadata, stored.base, toy, tables=[OTHERS], apply=True)
    before, copied = contents(stored), dict(toy.objects)
    bind_storage(engine, stored.base, also_read=toy)
    with Session(engine) as session, session.begin():
        session.get(Other, 0).data["more"] = 7  # its other entries are copied from the other base
        session.delete(session.get(Other, 1))
    # nothing is removed from the other one; the deleted row's folder goes where it is bound to
    assert toy.objects == copied
    kept = {path: data for path, data in before.items() if f"{OTHERS}/1/" not in path}
    assert len(kept) == len(before) - 2
    added = contents(stored).keys() - before.keys()
    assert {path: data for path, data in contents(stored).items() if path not in added} == kept
    assert len(added) == 2
    assert row_url(engine, OTHERS, id=0).startswith("file:")
    with Session(engine) as session:
        data = session.get(Other, 0).data
        assert (data.n, data.more, data.inner.k) == (0, 7, 0)
    with pytest.raises(ConfigurationError, match="one scheme"):
        bind_storage(engine, stored.base, also_read=stored.base)
    assert move(engine, Base.metadata, stored.base, toy, apply=True).is_clean
    bind_storage(engine, toy)
    assert not check(engine, Base.metadata, deep=True).dangling


def test_a_dry_run_switches_nothing(engine, stored, toy):
    before = urls_of(engine, Base.metadata)
    report = move(engine, Base.metadata, stored.base, toy)
    assert (report.copied, report.switched, report.is_clean) == (26, 13, False)
    assert urls_of(engine, Base.metadata) == before
    assert toy.objects == {}


def test_objects_are_durable_before_rows_say_that_they_are_there(engine, stored, toy):
    seen = []

    def note(_connection, _cursor, statement, *_):
        if statement.lstrip().upper().startswith("UPDATE"):
            seen.append(len(toy.durable))

    sa.event.listen(engine, "before_cursor_execute", note)
    move(engine, Base.metadata, stored.base, toy, apply=True, batch_rows=100)
    # a batch for each table, of 8 rows and of 5
    assert seen == [16] * 8 + [26] * 5


def test_a_row_that_was_replaced_since_it_was_copied_is_left_for_the_next_run(
    engine, stored, toy, monkeypatch
):
    stock = Mover._switch_once

    def switch(self, values):
        monkeypatch.undo()
        with Session(engine) as session, session.begin():
            session.get(Item, (0, "a")).data = value(0)
            session.delete(session.get(Item, (0, "b")))
        return stock(self, values)

    monkeypatch.setattr(Mover, "_switch_once", switch)
    report = move(engine, Base.metadata, stored.base, toy, apply=True)
    assert (report.switched, report.changed_meanwhile, report.is_clean) == (11, 2, False)
    assert row_url(engine, ITEMS, id=0, part="a").startswith("file:")
    report = move(engine, Base.metadata, stored.base, toy, apply=True)
    assert (report.copied, report.switched, report.is_clean) == (2, 1, True)
    bind_storage(engine, toy)
    assert not check(engine, Base.metadata, deep=True).dangling


def test_a_switch_is_no_removal(private_url, stored, toy):
    """Triggers see that a row has lost a URL; its object stays until it is told to go."""

    class Kept(DeclarativeBase):
        pass

    class Photo(Kept):
        __tablename__ = "moved_photos"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        data: Mapped[DataStore] = mapped_column(DataStoreType())

    removals = enable_removals(Kept.metadata, keep_seconds=3600)
    engine = make_engine(private_url, stored.base)
    Kept.metadata.create_all(engine)
    with engine.begin() as connection:
        create_removal_triggers(connection, "moved_photos", "data")
    with Session(engine) as session, session.begin():
        session.add_all(Photo(id=n, data=DataStore(n=n)) for n in (1, 2))
    with Session(engine) as session, session.begin():
        session.get(Photo, 2).data = DataStore(n=3)
    move(engine, Kept.metadata, stored.base, toy, apply=True)
    with engine.connect() as connection:
        waiting = set(connection.scalars(sa.select(removals.c.url)))
    # what was replaced before waits on, and nothing else does
    assert len(waiting) == 1
    assert {ObjectURL.parse(url).path for url in waiting} == stored.files() - toy.objects.keys()
    engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_rows_of_the_schema_that_the_engine_translates_to_are_switched(engine, stored, toy):
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA tenant"))
    tenant = engine.execution_options(schema_translate_map={None: "tenant"})
    Base.metadata.create_all(tenant)
    with Session(tenant) as session, session.begin():
        session.add(Other(id=0, data=others(50)))
    before = urls_of(engine, Base.metadata)
    report = move(tenant, Base.metadata, stored.base, toy, apply=True)
    assert (report.rows, report.copied, report.switched) == (1, 2, 1)
    assert urls_of(engine, Base.metadata) == before
    (url,) = urls_of(tenant, Base.metadata)
    assert url.startswith("toy:///tenant.moved_others/0/")


# -- interruptions ---------------------------------------------------------------------------------


def interrupted_at(number):
    """Return a watcher that interrupts at the call of a number."""
    left = [number]

    def at(name, when):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return at


@pytest.mark.parametrize("switches", [False, True])
def test_it_can_be_interrupted_at_any_call_and_run_again(engine, stored, target, toy, switches):
    before, random_ = contents(stored), random.Random(1)
    place = toy if switches else LocalStorage(target.base)
    interrupted = 0
    for _ in range(12):
        at = interrupted_at(random_.randrange(150))
        source, there = Watched(LocalStorage(stored.base), at), Watched(place, at)
        try:
            move(engine, Base.metadata, source, there, apply=True, batch_rows=2)
        except KeyboardInterrupt:
            interrupted += 1
        copied = toy.objects if switches else contents(target)
        # whole objects alone, and rows are switched only to those
        assert copied.items() <= before.items()
        urls = [url for url in urls_of(engine, Base.metadata) if url.startswith("toy:")]
        assert {p for url in urls for p in ObjectURL.parse(url).family_paths()} <= copied.keys()
    assert interrupted > 3
    assert move(engine, Base.metadata, stored.base, place, apply=True).is_clean
    assert (toy.objects if switches else contents(target)) == before == contents(stored)
    bind_storage(engine, place)
    assert_reads(engine)


def test_it_can_be_interrupted_from_its_progress(engine, stored, toy):
    seen = []

    def progress(what, done, total):
        seen.append((what, done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(engine, Base.metadata, stored.base, toy, apply=True, batch_rows=2, progress=progress)
    assert [(done, total) for _, done, total in seen] == [(0, 8), (2, 8), (4, 8)]
    assert len([url for url in urls_of(engine, Base.metadata) if url.startswith("toy:")]) == 4
    report = move(engine, Base.metadata, stored.base, toy, apply=True)
    assert (report.switched, report.is_clean) == (9, True)


KILLED = """
import os, signal, sys
from sqlalchemy import create_engine
from support.watched import Watched
from sqla_datastore.maintenance import move
from sqla_datastore.storage import LocalStorage
from move_models import Base

left = [7]

def at(name, when):
    left[0] -= (name, when) == ("write", "amid")
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

url, source, target = sys.argv[1:]
move(create_engine(url), Base.metadata, source, Watched(LocalStorage(target), at), apply=True)
"""

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqla_datastore import DataStore, DataStoreType

class Base(DeclarativeBase):
    pass

class Other(Base):
    __tablename__ = "moved_others"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
"""


def test_a_copy_that_a_killed_process_left_half_is_no_object(
    engine, bound, stored, target, tmp_path
):
    (tmp_path / "move_models.py").write_text(MODELS)
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", KILLED, url, str(stored.base), str(target.base)]
    done = subprocess.run(
        command, env=environment(tmp_path), check=False, timeout=60, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    drafts = {path for path in target.files() if path.endswith(".part")}
    assert drafts
    whole = {path: data for path, data in contents(target).items() if path not in drafts}
    assert whole.items() <= contents(stored).items()
    report = move(engine, Base.metadata, stored.base, target.base, apply=True)
    assert (report.is_clean, report.present) == (True, len(whole))
    assert report.copied == 26 - len(whole)
    there = bound(target.base)
    assert_reads(there)
    assert gc(there, Base.metadata, apply=True, grace_seconds=0).removed == len(drafts)
    assert_exact(there, Base.metadata, target)


# -- writers and readers meanwhile -----------------------------------------------------------------


class Traffic:
    """A writer, and readers of both bindings, until they are told to stop."""

    def __init__(self, source, target):
        self.written, self.reads, self.failures = {}, [0, 0], []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(source,)),
            threading.Thread(target=self._read, args=(source, 0)),
            threading.Thread(target=self._read, args=(target, 1)),
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, engine):
        random_ = random.Random(2)
        while not self._stop.is_set():
            n, wanted = random_.randrange(5), random_.randrange(1_000)
            # a deadlock, or a lock of SQLite's: the application's to try again
            with contextlib.suppress(sa.exc.OperationalError), Session(engine) as session:
                session.get(Other, n).data = others(wanted)
                session.commit()
                self.written[n] = wanted

    def _read(self, engine, number):
        random_ = random.Random(number)
        while not self._stop.is_set():
            with contextlib.suppress(sa.exc.OperationalError), Session(engine) as session:
                row = session.get(Other, random_.randrange(5))
                try:
                    assert row.data.inner.k == row.data.n
                    self.reads[number] += 1
                except (OSError, ValueError) as err:
                    if not self._is_due(session, row, err, is_target=number == 1):
                        self.failures.append(err)

    def _is_due(self, session, row, err, *, is_target):
        """Return whether it was replaced meanwhile, or is in the other base alone."""
        url = row.data.url
        session.rollback()
        if row.data.url != url:
            return True
        # all of a value is there, or nothing yet
        return is_target and isinstance(err, MissingObjectError) and err.url == url


@pytest.mark.parametrize("switches", [False, True])
def test_writers_and_readers_go_on_meanwhile(engine, bound, stored, target, toy, switches):
    place = toy if switches else LocalStorage(target.base)
    there = bound(place)
    if switches:
        bind_storage(engine, stored.base, also_read=place)
        bind_storage(there, place, also_read=stored.base)
    with Traffic(engine, there) as traffic:
        for _ in range(4):
            move(engine, Base.metadata, stored.base, place, apply=True, batch_rows=2)
    assert not traffic.failures
    assert all(traffic.reads)
    assert traffic.written
    assert move(engine, Base.metadata, stored.base, place, apply=True).is_clean
    with Session(there) as session:
        for n, expected in traffic.written.items():
            data = session.get(Other, n).data
            assert (data.n, data.inner.k) == (expected, expected)
    assert not check(there, Base.metadata, deep=True).dangling


# -- removing the source ---------------------------------------------------------------------------


def strangers(stored):
    """Put what no row refers to into a storage, and return its files."""
    paths = ["notes.txt", f"{ITEMS}/77-a/{new_object_name()}"]
    for path in paths:
        (stored.base / path).parent.mkdir(parents=True, exist_ok=True)
        (stored.base / path).write_bytes(b"not to be removed")
    io = DataStoreIO.write(b"mine", "models", stored.base)
    return {*paths, ObjectURL.parse(io.url).path}


def test_the_source_goes_once_the_engine_reads_from_the_target(engine, stored, target):
    kept = strangers(stored)
    move(engine, Base.metadata, stored.base, target.base, apply=True)
    with pytest.raises(ConfigurationError, match="bind the engine to the target"):
        move(engine, Base.metadata, stored.base, target.base, apply=True, remove_source=True)
    assert len(stored.files()) == 26 + len(kept)
    bind_storage(engine, target.base)
    size = sum(len(data) for path, data in contents(stored).items() if path not in kept)
    report = move(engine, Base.metadata, stored.base, target.base, remove_source=True)
    assert (report.removed, report.removed_bytes, report.is_clean) == (26, size, False)
    assert len(stored.files()) == 26 + len(kept)
    report = move(engine, Base.metadata, stored.base, target.base, apply=True, remove_source=True)
    assert (report.removed, report.removed_bytes, report.is_clean) == (26, size, True)
    assert stored.files() == kept
    assert_reads(engine)
    assert_exact(engine, Base.metadata, target)
    assert move(
        engine, Base.metadata, stored.base, target.base, apply=True, remove_source=True
    ).is_clean


def test_the_source_of_another_scheme_goes_and_nothing_else(engine, stored, toy):
    kept = strangers(stored)
    report = move(
        engine, Base.metadata, stored.base, toy, tables=[ITEMS], apply=True, remove_source=True
    )
    assert (report.copied, report.switched, report.removed, report.is_clean) == (16, 8, 16, True)
    left = stored.files() - kept
    assert {path.split("/")[0] for path in left} == {OTHERS}
    assert len(left) == 10


def test_what_another_row_refers_to_in_the_source_stays(engine, stored, toy):
    url = row_url(engine, ITEMS, id=0, part="a")
    set_url(engine, OTHERS, url, id=0)
    report = move(
        engine, Base.metadata, stored.base, toy, tables=[ITEMS], apply=True, remove_source=True
    )
    assert (report.switched, report.removed) == (8, 14)
    family = set(ObjectURL.parse(url).family_paths())
    assert family <= stored.files()
    assert {path for path in stored.files() if path.startswith(ITEMS)} == family


def test_a_source_whose_copy_is_damaged_or_gone_stays(engine, stored, target):
    move(engine, Base.metadata, stored.base, target.base, apply=True)
    bind_storage(engine, target.base)
    damaged = ObjectURL.parse(row_url(engine, ITEMS, id=0, part="a"))
    data = bytearray((target.base / damaged.path).read_bytes())
    data[len(data) // 2] ^= 1
    (target.base / damaged.path).write_bytes(data)
    shorter = ObjectURL.parse(row_url(engine, OTHERS, id=0))
    (target.base / shorter.nested(0).path).write_bytes(b"short")
    report = move(engine, Base.metadata, stored.base, target.base, apply=True, remove_source=True)
    assert (report.removed, report.damaged.count, report.is_clean) == (22, 1, False)
    assert stored.files() == {*damaged.family_paths(), *shorter.family_paths()}


def test_removing_can_be_interrupted_and_run_again(engine, stored, toy):
    before = contents(stored)
    move(engine, Base.metadata, stored.base, toy, apply=True)
    bind_storage(engine, toy)
    for number in range(6):  # before, amid and after the first removals, and the second ones
        interrupt = interrupted_at(number)
        source = Watched(
            LocalStorage(stored.base),
            lambda name, when, at=interrupt: at(name, when) if name == "remove" else None,
        )
        options = {"apply": True, "remove_source": True, "batch_rows": 2}
        with pytest.raises(KeyboardInterrupt):
            move(engine, Base.metadata, source, toy, **options)
        assert toy.objects == before
        assert_reads(engine)
    assert 0 < len(stored.files()) < 26
    assert move(engine, Base.metadata, stored.base, toy, apply=True, remove_source=True).is_clean
    assert stored.files() == set()
    assert toy.objects == before
    assert_reads(engine)


def test_what_the_source_does_not_remove_is_told(engine, stored, toy):
    class Stubborn(Watched):
        def remove(self, paths):
            super().remove([*paths][1:])
            raise StorageError("read-only", url=self.url)

    source = Stubborn(LocalStorage(stored.base), lambda name, when: None)
    report = move(engine, Base.metadata, source, toy, apply=True, remove_source=True)
    assert (report.removed, report.failures, report.is_clean) == (24, ("read-only",) * 2, False)
    assert len(stored.files()) == 2
    assert move(engine, Base.metadata, stored.base, toy, apply=True, remove_source=True).is_clean
    assert stored.files() == set()


def test_one_folder_under_two_schemes_is_one_base(engine, stored):
    """Removing the source would remove the copy."""

    class Twin(LocalStorage):
        scheme = "twin"

    with pytest.raises(ConfigurationError, match="are one base"):
        move(engine, Base.metadata, stored.base, Twin(stored.base), apply=True, remove_source=True)
    assert len(stored.files()) == 26
    assert_reads(engine)


def test_nothing_is_removed_where_another_column_is_read_from_around_the_source(
    private_url, tmp_path, toy
):
    class Near(DeclarativeBase):
        pass

    class Around(Near):
        __tablename__ = "moved_around"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore] = mapped_column(DataStoreType())
        around: Mapped[DataStore | None] = mapped_column(DataStoreType(tmp_path / "all"))

    source = Stored(tmp_path / "all" / "part")
    engine = make_engine(private_url, source.base)
    Near.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Around(data=DataStore(a=1)))
    before = source.files()
    with pytest.raises(ConfigurationError, match="around or within"):
        move(engine, Near.metadata, source.base, toy, apply=True, remove_source=True)
    assert source.files() == before
    assert toy.objects == {}
    engine.dispose()


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [False, True])
def test_damaged_and_missing_objects_are_named_and_the_rest_is_copied(
    engine, stored, target, toy, switches
):
    damaged = ObjectURL.parse(row_url(engine, ITEMS, id=0, part="a"))
    data = bytearray((stored.base / damaged.path).read_bytes())
    data[len(data) // 2] ^= 1
    (stored.base / damaged.path).write_bytes(data)
    gone = ObjectURL.parse(row_url(engine, OTHERS, id=1))
    (stored.base / gone.path).unlink()
    half = ObjectURL.parse(row_url(engine, OTHERS, id=2))
    (stored.base / half.nested(0).path).unlink()
    set_url(engine, OTHERS, "s3:///elsewhere/1.zip", id=3)
    set_url(engine, OTHERS, "nonsense", id=4)
    before = sorted(urls_of(engine, Base.metadata))
    place = toy if switches else target.base
    report = move(engine, Base.metadata, stored.base, place, apply=True)
    assert [(each.url, each.storage) for each in report.damaged] == [
        (str(damaged), LocalStorage(stored.base).url)
    ]
    assert [(each.table, each.key["id"]) for each in report.missing] == [
        (OTHERS, 1),
        (OTHERS, 2),
        (OTHERS, 3),
        (OTHERS, 4),
    ]
    assert [each.reason for each in report.missing][:2] == [
        f"{gone.path!r} is in neither base",
        f"{half.nested(0).path!r} is in neither base",
    ]
    assert not report.is_clean
    # the nested object of the damaged one, the first of the half family, 7 items and 1 other
    assert report.copied == 1 + 1 + 14 + 2
    copied = toy.objects if switches else contents(target)
    assert len(copied) == report.copied
    assert damaged.path not in copied
    assert report.switched == (8 if switches else 0)
    kept = {str(damaged), str(gone), str(half), "s3:///elsewhere/1.zip", "nonsense"}
    assert kept <= set(urls_of(engine, Base.metadata))
    assert switches or sorted(urls_of(engine, Base.metadata)) == before


def test_a_copy_that_arrives_damaged_is_removed_again(engine, stored):
    class Careless(MemoryStorage):
        @contextlib.contextmanager
        def create(self, path):
            with super().create(path) as writer:
                yield writer
                if len(writer.data) > 4_000:
                    writer.data[len(writer.data) // 2] ^= 1

    careless = Careless()
    report = move(engine, Base.metadata, stored.base, careless, apply=True)
    assert report.damaged.count == 8
    assert {each.storage for each in report.damaged} == {careless.url}
    assert report.copied == len(careless.objects) == 18
    assert report.switched == 5
    assert len(stored.files()) == 26


def test_another_object_of_the_same_name_is_never_overwritten(engine, stored, target):
    url = ObjectURL.parse(row_url(engine, OTHERS, id=0))
    (target.base / url.path).parent.mkdir(parents=True)
    (target.base / url.path).write_bytes(b"half a copy by another tool")
    report = move(engine, Base.metadata, stored.base, target.base, apply=True)
    (found,) = report.damaged
    assert "it has 27 bytes" in str(found)
    assert (target.base / url.path).read_bytes() == b"half a copy by another tool"


def test_what_cannot_be_is_refused_before_anything_is_written(engine, stored, target, tmp_path):
    within = stored.base / "within"
    link = tmp_path / "link"
    link.symlink_to(stored.base)
    for source, place, words in (
        (stored.base, stored.base, "are one base"),
        (stored.base, link, "are one base"),
        (stored.base, within, "lies within"),
        (within, stored.base, "lies within"),
        (tmp_path / "nowhere", target.base, "does not exist"),
        ("gopher://host/x", target.base, "no storage serves"),
        (stored.base, "gopher://host/x", "no storage serves"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            move(engine, Base.metadata, source, place, apply=True)
    for options, words in (({"tables": ["nosuch"]}, "no table 'nosuch'"), ({"batch_rows": 0}, "0")):
        with pytest.raises(ConfigurationError, match=words):
            move(engine, Base.metadata, stored.base, target.base, apply=True, **options)
    assert not target.base.exists()
    assert not within.exists()


def test_a_target_that_takes_no_objects_fails(engine, stored, tmp_path):
    (tmp_path / "file").write_text("no folder")
    before = sorted(urls_of(engine, Base.metadata))
    with pytest.raises(StorageError, match="file"):
        move(engine, Base.metadata, stored.base, tmp_path / "file" / "x", apply=True)

    class Full(MemoryStorage):
        @contextlib.contextmanager
        def create(self, path):
            raise StorageError("no space left", url=path)
            yield

    full = Full()
    with pytest.raises(StorageError, match="no space left"):
        move(engine, Base.metadata, stored.base, full, apply=True)
    assert sorted(urls_of(engine, Base.metadata)) == before
    assert full.objects == {}
    assert_reads(engine)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_large_object_is_copied_in_pieces(engine, stored, target):
    with Session(engine) as session, session.begin():
        session.add(Other(id=20, data=DataStore(a=np.zeros(8_000_000))))
    tracemalloc.start()
    try:
        report = move(engine, Base.metadata, stored.base, target.base, apply=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.copied_bytes > 64_000_000
    assert peak < 16_000_000
