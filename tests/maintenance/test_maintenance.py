"""check, gc and usage: every finding, what is removed and what never is, while others write."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool
from support.databases import make_engine
from support.exactness import assert_exact, tables_of, urls_of
from support.folders import deep_folders
from support.models import Base, Counter, Experiment, Keyed, Project, Run, Texts

from sqla_datastore import DataStore, DataStoreIO, DataStoreType, bind_storage
from sqla_datastore.exceptions import ConfigurationError, StorageError
from sqla_datastore.maintenance import check, gc, usage
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.urls import ObjectURL, new_object_name

DAY = 86_400

pytestmark = pytest.mark.usefixtures("tables")


def add(engine, *rows):
    with Session(engine) as session:
        session.add_all(rows)
        session.commit()


def put(base: Path, path: str, data: bytes = b"orphan", age_seconds: float = 2 * DAY) -> Path:
    """Write a file behind the library's back, so long ago."""
    file = base / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    then = time.time() - age_seconds
    os.utime(file, (then, then))
    return file


def orphan_path(folder: str = "keyed/7") -> str:
    return f"{folder}/{new_object_name()}"


def file_of(stored, url: str) -> Path:
    return stored.base / ObjectURL.parse(url).path


def keyed(number=1, **entries):
    return Keyed(id=number, name=f"n{number}", data=DataStore(entries or {"a": np.arange(3)}))


def paths(findings):
    return [each.path for each in findings]


# -- check -----------------------------------------------------------------------------------------


def test_a_store_in_step_is_clean(engine, stored):
    nested = DataStore(inner=DataStore(a=1, deeper=DataStore(b=np.zeros(3))), c="x")
    add(engine, keyed(1), Counter(data=DataStore(a=1)), Experiment(data=nested, more=DataStore()))
    add(engine, Project(id=3, runs=[Run(data=DataStore(a=1)), Run(data=DataStore(a=2))]))
    for deep in (False, True):
        report = check(engine, Base.metadata, deep=deep)
        assert report.is_clean, report
        assert (report.references, report.objects) == (6, 8)
        assert report.foreign.count == 0
    assert report.size_bytes == sum((stored.base / f).stat().st_size for f in stored.files())
    assert gc(engine, Base.metadata, grace_seconds=0, apply=True).removed == 0
    assert_exact(engine, Base.metadata, stored, 6)


def test_an_empty_application_is_clean(engine, stored):
    assert check(engine, Base.metadata).is_clean
    assert gc(engine, Base.metadata, apply=True).is_clean


def test_dangling_rows_are_found_with_their_keys(engine, stored):
    key = uuid.uuid4()
    add(engine, keyed(1), keyed(2), Experiment(id=key, data=DataStore(a=1)))
    with Session(engine) as session:
        gone = session.get(Keyed, 2).data.url
        more = session.get(Experiment, key).data.url
    file_of(stored, gone).unlink()
    file_of(stored, more).unlink()
    report = check(engine, Base.metadata)
    found = {(each.table, each.column, each.url): each.key for each in report.dangling}
    assert found == {
        ("keyed", "data", gone): {"id": 2},
        ("experiments", "data", more): {"id": key},
    }
    assert not report.is_clean
    assert len(urls_of(engine, Base.metadata)) == 3
    assert str(key) in json.dumps(report.to_json())


def test_a_missing_nested_object_is_a_dangling_row(engine, stored):
    add(engine, keyed(1, inner=DataStore(a=1), other=DataStore(b=2)), keyed(2))
    with Session(engine) as session:
        url = ObjectURL.parse(session.get(Keyed, 1).data.url)
    (stored.base / url.nested(1).path).unlink()
    (found,) = check(engine, Base.metadata).dangling
    assert (found.url, found.key) == (str(url), {"id": 1})
    assert url.nested(1).path in found.reason


@pytest.mark.parametrize(
    "url", ["s3:///keyed/1/x.zip", "file:///../x.zip", "nonsense", "", "file:///keyed/1/hand.zip"]
)
def test_a_row_with_a_url_of_another_kind_is_dangling(engine, stored, url):
    add(engine, keyed(1), keyed(2))
    with engine.begin() as connection:
        connection.execute(text("UPDATE keyed SET data = :url WHERE id = 2"), {"url": url})
    report = check(engine, Base.metadata)
    (found,) = report.dangling
    assert (found.key, found.url) == ({"id": 2}, url)
    assert found.reason
    assert usage(engine, Base.metadata).objects == 1


def test_a_row_may_refer_to_a_name_made_by_hand(engine, stored):
    add(engine, keyed(1), keyed(2))
    with Session(engine) as session:
        file = file_of(stored, session.get(Keyed, 2).data.url)
    file.rename(file.with_name("hand.zip"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE keyed SET data = 'file:///keyed/2/hand.zip' WHERE id = 2"))
    report = check(engine, Base.metadata, deep=True)
    assert report.is_clean
    assert paths(report.foreign) == ["keyed/2/hand.zip"]


def test_orphans_are_found_with_size_and_time(engine, stored):
    add(engine, keyed(1))
    path = orphan_path("keyed/1")
    file = put(stored.base, path, b"12345")
    report = check(engine, Base.metadata)
    (found,) = report.orphans
    assert (found.path, found.size_bytes) == (path, 5)
    assert found.modified == pytest.approx(file.stat().st_mtime)
    assert report.orphans.size_bytes == 5
    assert check(engine, Base.metadata, grace_seconds=3 * DAY).is_clean


@pytest.mark.parametrize("size", [0, 10, -1])
def test_an_object_that_was_cut_off_is_damaged(engine, stored, size):
    add(engine, keyed(1), keyed(2))
    with Session(engine) as session:
        url = session.get(Keyed, 2).data.url
    file = file_of(stored, url)
    data = file.read_bytes()
    file.write_bytes(data[:size])
    report = check(engine, Base.metadata)
    (found,) = report.damaged
    assert found.url == url
    assert found.problems
    assert report.dangling.count == 0


def test_a_changed_payload_is_found_by_deep_only(engine, stored):
    add(engine, keyed(1, a=np.zeros(1_000_000)))
    with Session(engine) as session:
        url = session.get(Keyed, 1).data.url
    with file_of(stored, url).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"x")
    assert check(engine, Base.metadata).is_clean
    (found,) = check(engine, Base.metadata, deep=True).damaged
    assert found.url == url
    assert "'a'" in found.problems[0]


def test_names_of_others_are_foreign_and_no_fault(engine, stored):
    add(engine, keyed(1))
    others = {
        "README.txt",
        "keyed/1/notes.txt",
        "keyed/notes/" + new_object_name(),
        "elsewhere/1/" + new_object_name(),
        "keyed/1/deeper/" + new_object_name(),
        new_object_name(),
        "keyed/1/" + new_object_name().replace(".zip", ".bin"),
        "keyed/1/" + new_object_name().upper(),
    }
    for path in others:
        put(stored.base, path)
    report = check(engine, Base.metadata)
    assert report.is_clean
    assert set(paths(report.foreign)) == others
    done = gc(engine, Base.metadata, apply=True, grace_seconds=0)
    assert (done.removed, set(paths(done.foreign))) == (0, others)
    assert others < stored.files()


def test_findings_beyond_those_kept_are_counted(engine, stored, monkeypatch):
    monkeypatch.setattr("sqla_datastore.maintenance.reports.MOST_KEPT", 3)
    add(engine, keyed(1))
    for _ in range(5):
        put(stored.base, orphan_path())
    report = check(engine, Base.metadata)
    assert (len(report.orphans.first), report.orphans.count) == (3, 5)
    assert report.to_json()["orphans"]["count"] == 5


def test_a_row_written_while_checking_is_no_finding(engine, stored):
    add(engine, keyed(1))

    def write(what, done, total):
        if what.startswith("comparing") and done == 0:
            add(engine, keyed(2))
            with Session(engine) as session:
                session.delete(session.get(Keyed, 1))
                session.commit()

    assert check(engine, Base.metadata, progress=write).is_clean
    assert_exact(engine, Base.metadata, stored, 1)


# -- gc --------------------------------------------------------------------------------------------


def test_a_dry_run_removes_nothing(engine, stored):
    add(engine, keyed(1))
    path = orphan_path()
    put(stored.base, path)
    before = stored.files()
    report = gc(engine, Base.metadata)
    assert paths(report.orphans) == [path]
    assert (report.applied, report.removed, report.is_clean) == (False, 0, False)
    assert stored.files() == before


A_UUID = uuid.UUID("2cb3b2e4-3d13-4c38-8779-d93b995bb8b9")  # the same in every process of a run


@pytest.mark.parametrize(
    "folder",
    ["keyed/7", f"counters/{A_UUID}", f"experiments/{A_UUID}", "projects/3", "texts/a"],
)
def test_orphans_go_with_their_empty_folders(engine, stored, folder):
    add(engine, keyed(1))
    put(stored.base, orphan_path(folder), b"12")
    put(stored.base, orphan_path(folder), b"345")
    report = gc(engine, Base.metadata, apply=True)
    assert (report.removed, report.removed_bytes, report.is_clean) == (2, 5, True)
    assert_exact(engine, Base.metadata, stored, 1)
    assert gc(engine, Base.metadata, apply=True).removed == 0


def test_orphans_go_from_beside_what_rows_refer_to(engine, stored):
    add(engine, keyed(1), keyed(2, inner=DataStore(a=1), other=DataStore(a=2)))
    for folder in ("keyed/1", "keyed/2", "keyed/1", "keyed/2"):
        put(stored.base, orphan_path(folder))
        put(stored.base, f"{folder}/{new_object_name(12)}")
    assert gc(engine, Base.metadata, apply=True).removed == 8
    assert_exact(engine, Base.metadata, stored, 2)
    assert check(engine, Base.metadata, deep=True).is_clean


def test_what_is_young_stays(engine, stored):
    add(engine, keyed(1))
    young, old = orphan_path(), orphan_path()
    put(stored.base, young, age_seconds=3600)
    put(stored.base, old, age_seconds=DAY + 60)
    report = gc(engine, Base.metadata, apply=True)
    assert (paths(report.orphans), report.young) == ([old], 1)
    assert young in stored.files()
    assert old not in stored.files()
    assert gc(engine, Base.metadata, apply=True, grace_seconds=1800).removed == 1
    assert_exact(engine, Base.metadata, stored, 1)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_grace_period_is_a_number_from_zero(engine, stored, seconds):
    with pytest.raises(ConfigurationError, match="grace_seconds"):
        gc(engine, Base.metadata, grace_seconds=seconds)


def test_a_nested_family_goes_or_stays_as_a_whole(engine, stored):
    add(engine, keyed(1))
    first = ObjectURL("file", f"keyed/7/{new_object_name(12)}")
    family = [url.path for url in first.family()]
    for path in family:
        put(stored.base, path)
    young = put(stored.base, first.nested(4).path, age_seconds=60)
    report = gc(engine, Base.metadata, apply=True)
    assert (report.removed, report.young) == (0, 13)
    os.utime(young, (0, 0))
    assert gc(engine, Base.metadata, apply=True).removed == 13
    assert_exact(engine, Base.metadata, stored, 1)


def test_rows_deleted_out_of_sight_leave_what_gc_removes(engine, stored):
    add(engine, keyed(1), keyed(2, inner=DataStore(a=1)), keyed(3))
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM keyed WHERE id = 2")
    assert check(engine, Base.metadata).orphans.count == 2
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 2
    assert_exact(engine, Base.metadata, stored, 2)


def test_leftovers_of_a_crash_go(engine, stored):
    add(engine, keyed(1))
    parts = [f"{f}/#{uuid.uuid4().hex}.part" for f in ("keyed/1", "keyed/9")]
    for path in parts:
        put(stored.base, path)
    for folder in (stored.base / "keyed" / "10", stored.base / "runs"):
        folder.mkdir()
        os.utime(folder, (0, 0))
    # these are not ours: the first and the last by their folders
    others = [f"elsewhere/#{uuid.uuid4().hex}.part", "keyed/1/#notes.part"]
    for path in others:
        put(stored.base, path)
    (stored.base / "mine").mkdir()
    os.utime(stored.base / "mine", (0, 0))
    young = f"keyed/1/#{uuid.uuid4().hex}.part"
    put(stored.base, young, age_seconds=60)

    expected = {*parts, "keyed/10/"}
    assert set(paths(check(engine, Base.metadata, grace_seconds=DAY).leftovers)) == expected
    assert set(paths(gc(engine, Base.metadata).leftovers)) == expected
    report = gc(engine, Base.metadata, apply=True)
    assert (set(paths(report.leftovers)), report.young, report.removed) == (expected, 1, 3)
    assert stored.files() > {*others, young}
    assert not stored.files() & expected
    assert {"mine", "keyed/1"} <= stored.folders()
    assert not {"keyed/9", "keyed/10"} & stored.folders()


def test_self_managed_objects_are_never_touched(engine, stored):
    add(engine, keyed(1))
    where = str(stored.base)
    kept = [
        DataStoreIO.serialize_write({"a": 1}, "models/7", storage=where),
        DataStoreIO.serialize_write(DataStore(a=DataStore()), "keyed/models", storage=where),
        DataStoreIO.write(b"bytes", "models", storage=where),
    ]
    put(stored.base, orphan_path())
    report = gc(engine, Base.metadata, apply=True, grace_seconds=0)
    assert report.removed == 1
    assert all(each.exists() for each in kept)


def test_folders_that_urls_remember_are_cleaned_too(engine, stored):
    add(engine, keyed(1))
    with Session(engine) as session:
        file = file_of(stored, session.get(Keyed, 1).data.url)
    moved = stored.base / "once" / "1" / file.name
    moved.parent.mkdir(parents=True)
    file.rename(moved)
    file.parent.rmdir()
    file.parent.parent.rmdir()
    with engine.begin() as connection:
        url = {"url": f"file:///once/1/{file.name}"}
        connection.execute(text("UPDATE keyed SET data = :url"), url)
    put(stored.base, orphan_path("once/1"))
    foreign = put(stored.base, orphan_path("once/2"))
    assert gc(engine, Base.metadata, apply=True).removed == 1
    foreign.unlink()
    foreign.parent.rmdir()
    assert_exact(engine, Base.metadata, stored, 1)


# -- gc among others that are at work --------------------------------------------------------------


def test_a_row_written_between_listing_and_removal_keeps_its_object(engine, stored):
    add(engine, keyed(1), keyed(2, inner=DataStore(a=1)))
    with Session(engine) as session:
        url = session.get(Keyed, 2).data.url
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE keyed SET data = NULL WHERE id = 2")
    put(stored.base, orphan_path())

    def write(what, done, total):
        if what == "removing" and done == 0:
            with engine.begin() as connection:
                connection.execute(text("UPDATE keyed SET data = :u WHERE id = 2"), {"u": url})

    report = gc(engine, Base.metadata, apply=True, grace_seconds=0, progress=write)
    assert (report.orphans.count, report.rescued, report.removed) == (3, 2, 1)
    assert_exact(engine, Base.metadata, stored, 2)
    assert check(engine, Base.metadata, deep=True).is_clean


def test_writers_at_work_lose_nothing(engine, stored):
    add(engine, *(keyed(number) for number in range(100, 105)))
    old = [put(stored.base, orphan_path(f"keyed/{number}")) for number in range(200, 220)]

    def write(first):
        for number in range(first, first + 8):
            add(engine, keyed(number, inner=DataStore(a=number)))
            with Session(engine) as session:
                row = session.get(Keyed, number)
                if number % 2:
                    session.delete(row)
                else:
                    row.data = DataStore(b=DataStore(c=1))
                session.commit()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, 0)
        while not writing.done():
            gc(engine, Base.metadata, apply=True, grace_seconds=3600)
            report = check(engine, Base.metadata, grace_seconds=3600)
            assert (report.dangling.count, report.damaged.count) == (0, 0)
        writing.result()
    assert not any(file.exists() for file in old)
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 0
    assert_exact(engine, Base.metadata, stored, 5 + 4)
    assert check(engine, Base.metadata, deep=True).is_clean


def test_objects_that_vanish_are_no_error(engine, stored):
    add(engine, keyed(1), keyed(2))
    for _ in range(3):
        put(stored.base, orphan_path())

    def vanish(what, done, total):
        if what == "removing" and done == 0:
            for file in (stored.base / "keyed" / "7").iterdir():
                file.unlink()

    report = gc(engine, Base.metadata, apply=True, progress=vanish)
    assert report.is_clean
    assert_exact(engine, Base.metadata, stored, 2)


class Failing(LocalStorage):
    """Cannot remove some of its objects."""

    stuck: tuple[str, ...] = ()

    def remove(self, paths):
        given = list(paths)
        super().remove(path for path in given if path not in self.stuck)
        if set(given) & set(self.stuck):
            raise StorageError("permission denied", url=self.stuck[0])


def test_what_cannot_be_removed_is_told_and_found_again(engine, stored):
    storage = Failing(stored.base)
    bind_storage(engine, storage)
    add(engine, keyed(1))
    storage.stuck = (orphan_path(),)
    put(stored.base, storage.stuck[0])
    put(stored.base, orphan_path())
    report = gc(engine, Base.metadata, apply=True)
    assert (report.removed, report.failures, report.is_clean) == (1, ("permission denied",), False)
    storage.stuck = ()
    assert gc(engine, Base.metadata, apply=True).removed == 1
    assert_exact(engine, Base.metadata, stored, 1)


def test_it_can_be_interrupted_and_run_again(engine, stored, monkeypatch):
    monkeypatch.setattr("sqla_datastore.dml.dialects._BATCHES", {})
    monkeypatch.setattr("sqla_datastore.dml.dialects.CHUNK", 2)
    monkeypatch.setattr("sqla_datastore.maintenance.progress._STEPS_PER_CALL", 1)
    add(engine, *(keyed(number) for number in range(10, 15)))
    for number in range(7):
        put(stored.base, orphan_path(f"keyed/{number}"))

    def interrupt(what, done, total):
        if what == "removing" and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gc(engine, Base.metadata, apply=True, progress=interrupt)
    assert len(stored.files()) == 5 + 3
    assert gc(engine, Base.metadata, apply=True).removed == 3
    assert_exact(engine, Base.metadata, stored, 5)


# -- what is refused -------------------------------------------------------------------------------


def test_gc_refuses_when_no_row_has_a_url(engine, stored):
    put(stored.base, orphan_path())
    with pytest.raises(ConfigurationError, match="no row has a URL"):
        gc(engine, Base.metadata, apply=True)
    assert len(stored.files()) == 1
    assert gc(engine, Base.metadata, apply=True, force=True).removed == 1
    assert_exact(engine, Base.metadata, stored, 0)


def test_gc_refuses_the_storage_of_another_database(engine, stored, tmp_path):
    add(engine, keyed(1))
    other = tmp_path / "other"
    put(other, orphan_path())
    bind_storage(engine, other)
    for apply in (False, True):
        with pytest.raises(ConfigurationError, match="one of the 1 rows refers to"):
            gc(engine, Base.metadata, apply=apply)
    assert len(list(other.rglob("*.zip"))) == 1
    assert gc(engine, Base.metadata, apply=True, force=True).removed == 1
    bind_storage(engine, stored.base)
    assert_exact(engine, Base.metadata, stored, 1)


@pytest.mark.parametrize("maintain", [check, gc, usage])
def test_the_storage_of_another_application_is_refused(engine, stored, tmp_path, maintain):
    add(engine, keyed(1))
    other = tmp_path / "other"
    file = put(other, orphan_path("pictures/7"))
    bind_storage(engine, other)
    with pytest.raises(ConfigurationError, match="another application"):
        maintain(engine, Base.metadata)
    assert file.exists()


@pytest.mark.parametrize("maintain", [check, gc, usage])
def test_a_folder_of_foreign_files_is_refused(engine, stored, maintain):
    file = put(stored.base, "thesis/chapter1.txt")
    with pytest.raises(ConfigurationError, match="no object of this library"):
        maintain(engine, Base.metadata)
    assert file.exists()


def test_a_storage_of_self_managed_objects_alone_is_clean(engine, stored):
    kept = DataStoreIO.write(b"bytes", "models", storage=str(stored.base))
    assert check(engine, Base.metadata).is_clean
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 0
    assert kept.exists()


@pytest.mark.parametrize("maintain", [check, gc, usage])
def test_a_base_that_does_not_exist_is_refused(engine, tmp_path, maintain):
    bind_storage(engine, tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="does not exist"):
        maintain(engine, Base.metadata)
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_table_is_refused(engine, stored):
    add(engine, keyed(1))
    file = put(stored.base, orphan_path("absent/7"))
    metadata = MetaData()
    for table in Base.metadata.tables.values():
        table.to_metadata(metadata)
    Table(
        "absent", metadata, Column("id", Integer, primary_key=True), Column("data", DataStoreType())
    )
    for maintain in (check, gc, usage):
        with pytest.raises(ConfigurationError, match="'absent'"):
            maintain(engine, metadata)
    assert file.exists()
    assert gc(engine, metadata, apply=True, force=True).removed == 1
    assert_exact(engine, Base.metadata, stored, 1)


def test_metadata_without_declared_columns_is_refused(engine):
    with pytest.raises(ConfigurationError, match="DataStoreType"):
        check(engine, MetaData())


def test_an_asynchronous_engine_is_refused():
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=NullPool)
    for given in (engine, engine.sync_engine):
        with pytest.raises(ConfigurationError, match="run_sync"):
            check(given, Base.metadata)
    with pytest.raises(TypeError, match="takes an Engine"):
        check("sqlite://", Base.metadata)


def test_an_asynchronous_engine_works_from_run_sync(database_url, engine, stored):
    if make_url(database_url).get_backend_name() != "sqlite":
        pytest.skip("its driver is the test's business only once")
    add(engine, keyed(1))

    async def run():
        asynchronous = create_async_engine(
            make_url(database_url).set(drivername="sqlite+aiosqlite"), poolclass=NullPool
        )
        bind_storage(asynchronous, stored.base)
        async with asynchronous.connect() as connection:
            report = await connection.run_sync(lambda _: check(asynchronous, Base.metadata))
        await asynchronous.dispose()
        return report

    report = asyncio.run(run())
    assert report.is_clean
    assert report.objects == 1


# -- several storages ------------------------------------------------------------------------------


def two_storages(first, second):
    class Root(DeclarativeBase):
        pass

    class Both(Root):
        __tablename__ = "both_storages"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        here: Mapped[DataStore | None] = mapped_column(DataStoreType(url=first))
        there: Mapped[DataStore | None] = mapped_column(DataStoreType(url=second))
        bound: Mapped[DataStore | None] = mapped_column(DataStoreType())

    return Root, Both


def test_every_storage_is_looked_at(engine, stored, tmp_path, database_url):
    bases = [tmp_path / "first", tmp_path / "second", stored.base]
    Root, Both = two_storages(str(bases[0]), bases[1].as_uri())
    with tables_of(Root.metadata, database_url):
        add(engine, Both(id=1, here=DataStore(a=1), there=DataStore(b=2), bound=DataStore(c="3")))
        orphans = {str(base): orphan_path("both_storages/1") for base in bases}
        for base, path in orphans.items():
            put(Path(base), path)
        report = check(engine, Root.metadata)
        assert sorted(paths(report.orphans)) == sorted(orphans.values())
        assert (report.references, report.objects) == (3, 3)
        assert gc(engine, Root.metadata, apply=True).removed == 3
        assert [len(list(base.rglob("*.zip"))) for base in bases] == [1, 1, 1]
        assert check(engine, Root.metadata, deep=True).is_clean


def test_two_names_of_one_storage_are_one(engine, stored, tmp_path, database_url):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    Root, _ = two_storages(str(real), str(link))
    add(engine, keyed(1))
    with Session(engine) as session:
        whole = file_of(stored, session.get(Keyed, 1).data.url).read_bytes()
    here, there = orphan_path("both_storages/1"), orphan_path("both_storages/1")
    put(real, here, whole)
    put(link, there, whole)
    with tables_of(Root.metadata, database_url):
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO both_storages (id, here, there) VALUES (1, :here, :there)"),
                {"here": f"file:///{here}", "there": f"file:///{there}"},
            )
        assert check(engine, Root.metadata).is_clean
        assert gc(engine, Root.metadata, apply=True, grace_seconds=0).removed == 0
        assert len(list(real.rglob("*.zip"))) == 2


def test_a_storage_in_a_storage_keeps_its_objects(engine, stored, tmp_path, database_url):
    outer = tmp_path / "outer"

    class Root(DeclarativeBase):
        pass

    class Outer(Root):
        __tablename__ = "inner"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        data: Mapped[DataStore] = mapped_column(DataStoreType(url=str(outer)))

    class Inner(Root):
        __tablename__ = "others"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        data: Mapped[DataStore] = mapped_column(
            DataStoreType(url=str(outer / "inner"), folder="{pk}")
        )

    with tables_of(Root.metadata, database_url):
        nested = DataStore(b=DataStore())
        add(engine, Outer(id=5, data=DataStore(a=1)), Inner(id=7, data=nested))
        report = check(engine, Root.metadata)
        assert report.is_clean
        assert gc(engine, Root.metadata, apply=True, grace_seconds=0).removed == 0
        assert len(list(outer.rglob("*.zip"))) == 3


# -- the order of both sides -----------------------------------------------------------------------


def test_keys_that_collations_sort_otherwise_are_no_findings(engine, stored):
    # no two are one key in the eyes of MariaDB's collation
    names = ["B", "a", "a b", "a-b", "a.b", "_", "~", "é", "É z", "Z", "0", "a,b", "a%b", "aB b"]
    add(engine, *(Texts(id=name, data=DataStore(a=DataStore(b=1))) for name in names))
    report = check(engine, Base.metadata)
    assert report.is_clean, report
    assert report.objects == 2 * len(names)
    put(stored.base, orphan_path("texts/a"))
    assert gc(engine, Base.metadata, apply=True).removed == 1
    assert_exact(engine, Base.metadata, stored, len(names))


def _by_folder(path):
    """Sort as SeaweedFS lists: all of ``a/`` before ``a-b/``."""
    return path.split("/")


def _backwards(path):
    return [-ord(letter) for letter in path]


@pytest.mark.parametrize("order", [_by_folder, _backwards])
def test_a_storage_may_list_in_any_order(engine, stored, order):
    class Unordered(LocalStorage):
        def list(self, folder):
            return iter(sorted(super().list(folder), key=lambda found: order(found.path)))

    bind_storage(engine, Unordered(stored.base))
    names = ["a", "a-b", "a.b", "a0", "a%b", "é"]
    add(engine, *(Texts(id=name, data=DataStore(a=DataStore(b=1))) for name in names))
    report = check(engine, Base.metadata)
    assert report.is_clean, report
    assert report.objects == usage(engine, Base.metadata).objects == 2 * len(names)
    put(stored.base, orphan_path("texts/a"))
    assert gc(engine, Base.metadata, apply=True, grace_seconds=0).removed == 1
    assert_exact(engine, Base.metadata, stored, len(names))


def test_urls_are_never_loaded_as_values(engine, stored, monkeypatch):
    add(engine, keyed(1))
    put(stored.base, orphan_path())
    monkeypatch.setattr(DataStore, "_at", lambda *_, **__: pytest.fail("a value was loaded"))
    check(engine, Base.metadata)
    assert gc(engine, Base.metadata, apply=True).removed == 1


# -- usage -----------------------------------------------------------------------------------------


def test_usage_tells_columns_and_types(engine, stored):
    add(
        engine,
        Experiment(data=DataStore(a=np.zeros(10), b=1), more=DataStore(a=np.zeros(5))),
        Experiment(data=DataStore(inner=DataStore(a=np.ones(3)))),
        keyed(1, text="x"),
    )
    put(stored.base, orphan_path())
    report = usage(engine, Base.metadata)
    by_column = {(each.table, each.column): each for each in report.columns}
    data, more = by_column["experiments", "data"], by_column["experiments", "more"]
    assert (data.rows, data.objects, more.rows, more.objects) == (2, 3, 1, 1)
    arrays = next(each for each in data.types if "ndarray" in each.type)
    assert arrays.entries == 2
    assert 104 <= arrays.size_bytes < data.size_bytes
    assert sum(each.objects for each in report.columns) == report.objects == 5
    assert sum(each.size_bytes for each in report.columns) == report.size_bytes
    assert next(t for t in report.types if "ndarray" in t.type).entries == 3
    assert by_column["runs", "data"].rows == 0
    assert json.loads(json.dumps(report.to_json()))["objects"] == 5


def test_usage_counts_what_cannot_be_read(engine, stored):
    add(engine, keyed(1), keyed(2))
    with Session(engine) as session:
        file_of(stored, session.get(Keyed, 2).data.url).write_bytes(b"junk")
    report = usage(engine, Base.metadata)
    (column,) = [each for each in report.columns if each.table == "keyed"]
    assert (column.objects, column.unreadable) == (2, 1)


# -- tenants ---------------------------------------------------------------------------------------


def test_other_schemas_are_foreign(engine, stored):
    """The folders of another tenant's rows are none of this one's business."""
    add(engine, keyed(1))
    put(stored.base, orphan_path("tenant.keyed/1"))
    put(stored.base, orphan_path("tenant/projects/1"))
    report = gc(engine, Base.metadata, apply=True, grace_seconds=0)
    assert (report.removed, report.foreign.count) == (0, 2)


def test_a_translated_schema_is_looked_up(database_url, stored):
    engine = make_engine(database_url, stored.base)
    if engine.dialect.name != "sqlite":
        engine.dispose()
        pytest.skip("schemas are attached on SQLite")
    tenant = engine.execution_options(schema_translate_map={None: "main"})
    with tenant.begin() as connection:
        connection.execute(insert(Keyed).values(id=1, data=DataStore(a=1)))
    assert stored.folders() == {"main.keyed", "main.keyed/1"}
    put(stored.base, orphan_path("main.keyed/1"))
    put(stored.base, orphan_path("keyed/1"))
    report = gc(tenant, Base.metadata, apply=True)
    assert (report.removed, report.foreign.count) == (1, 1)
    engine.dispose()


def test_folders_nested_deeper_than_python_calls(engine, stored):
    add(engine, keyed())
    folder = stored.base / "keyed"
    with deep_folders(folder, ["d"] * 990, "x.zip"):
        assert check(engine, Base.metadata).is_clean
        assert gc(engine, Base.metadata, grace_seconds=0, apply=True).removed == 0
        assert usage(engine, Base.metadata).objects == 1
        with Session(engine) as session:
            session.delete(session.get(Keyed, 1))
            session.commit()
        assert os.listdir(folder) == ["d"]
