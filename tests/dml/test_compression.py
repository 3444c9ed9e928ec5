"""``DataStoreType(compression=…)``: what is stored is smaller, and nothing else differs."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    inspect,
    options,
)
from sqla_datastore.maintenance import check, rewrite, usage

RNG = np.random.default_rng(0)
WORDS = np.array(["one", "two", "three"])


class Base(DeclarativeBase):
    """The tables of this module."""


class Run(Base):
    """Compresses one column, leaves one as it is, and one to the process."""

    __tablename__ = "compressed_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(compression=True))
    plain: Mapped[DataStore | None] = mapped_column(DataStoreType(compression=False))
    asked: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Later(DeclarativeBase):
    """The same tables, with other options."""


class Changed(Later):
    __tablename__ = "compressed_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    plain: Mapped[DataStore | None] = mapped_column(DataStoreType(compression="small"))
    asked: Mapped[DataStore | None] = mapped_column(DataStoreType())


@pytest.fixture(scope="module")
def model_metadata():
    """The tables that the fixtures are about."""
    return Base.metadata


@pytest.fixture(autouse=True)
def nothing_is_asked_of_the_process():
    yield
    options.compression = False


def value(n=0, rows=5_000):
    frame = pd.DataFrame({"text": WORDS[RNG.integers(0, 3, rows)], "n": RNG.integers(0, 9, rows)})
    return DataStore(n=n, zeros=np.zeros(rows), frame=frame, random=RNG.random(rows))


def sizes(stored):
    """Return the size of each file."""
    return [(stored.base / path).stat().st_size for path in stored.files()]


def methods(stored, path):
    with zipfile.ZipFile(stored.base / path) as found:
        assert found.testzip() is None
        return {each.filename: each.compress_type for each in found.infolist()}


def test_values_come_back_and_take_less(engine, stored, exact):
    made = value()
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=DataStore(made), plain=DataStore(made)))
    exact(2)
    with Session(engine) as session:
        row = session.get(Run, 1)
        for found in (row.data, row.plain):
            assert np.array_equal(found.zeros, made.zeros)
            assert np.array_equal(found.random, made.random)
            pd.testing.assert_frame_equal(found.frame, made.frame)
        compressed, plain = (stored.base / _path(each) for each in (row.data, row.plain))
        assert not session.dirty
    assert compressed.stat().st_size < plain.stat().st_size - 50_000
    with zipfile.ZipFile(compressed) as found:
        kinds = {each.filename: each.compress_type for each in found.infolist()}
    assert kinds["zeros.npy"] == zipfile.ZIP_DEFLATED
    assert kinds["random.npy"] == zipfile.ZIP_STORED


@pytest.mark.usefixtures("copy_on_write")
def test_edits_in_place_follow_the_transaction(engine, stored, exact):
    with Session(engine) as session:
        row = Run(id=1, data=value())
        session.add(row)
        session.commit()
        before = row.data.url
        row.data.frame.loc[0, "n"] = 77
        session.commit()
        assert row.data.url != before
        exact(1)
        row.data.frame.loc[0, "n"] = 88
        row.data.inner = DataStore(zeros=np.zeros(9_000))
        session.flush()
        session.rollback()
        assert row.data.frame.loc[0, "n"] == 77
        exact(1)
        with session.begin_nested() as savepoint:
            row.data.more = "x" * 10_000
            session.flush()
            savepoint.rollback()
        assert "more" not in row.data
        session.commit()
        before = row.data.url
        assert row.data.zeros.sum() == 0
        session.commit()
        assert row.data.url == before  # reading is no edit
    exact(1)
    assert check(engine, Base.metadata, deep=True).is_clean


def test_core_bulk_copies_and_pickles(engine, stored, exact):
    with engine.begin() as connection:
        connection.execute(sa.insert(Run), [{"id": n, "data": value(n)} for n in range(3)])
        connection.execute(sa.update(Run).where(Run.id == 1).values(data=value(10)))
    with Session(engine) as session, session.begin():
        rows = session.scalars(sa.select(Run).order_by(Run.id)).all()
        assert [row.data.n for row in rows] == [0, 10, 2]
        rows[2].plain = rows[0].data.copy()
        assert pickle.loads(pickle.dumps(rows[0].data)).zeros.shape == (5_000,)
    exact(4)
    with Session(engine) as session:
        row = session.get(Run, 2)
        # copied as it is
        assert set(methods(stored, _path(row.plain)).values()) == {0, 8}
        assert row.plain.n == 0


def _path(found):
    return found.url.removeprefix("file:///")


@pytest.mark.usefixtures("tables")
def test_the_process_may_say(engine, stored):
    options.compression = "fast"
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, plain=value(), asked=value()))
    managed = DataStoreIO.serialize_write(np.zeros(10_000), "arrays", storage=stored.base)
    with Session(engine) as session:
        row = session.get(Run, 1)
        assert set(methods(stored, _path(row.plain)).values()) == {0}
        assert set(methods(stored, _path(row.asked)).values()) == {0, 8}
    assert managed.read_deserialize().sum() == 0
    assert managed.size_bytes < 5_000


@pytest.mark.usefixtures("tables")
def test_sizes_are_those_of_the_values_and_of_the_files(engine):
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, data=DataStore(zeros=np.zeros(100_000))))
    with Session(engine) as session:
        found = inspect(session.get(Run, 1).data)
        assert found.entries["zeros"].nbytes == 800_000
    assert usage(engine, Base.metadata).size_bytes < 10_000


@pytest.mark.parametrize("asked", ["best", 9, 1, "", b"fast", 0])
def test_what_is_no_compression_is_refused(asked):
    with pytest.raises(ConfigurationError, match="True, False, 'fast' or 'small'"):
        DataStoreType(compression=asked)
    with pytest.raises(ConfigurationError, match="True, False, 'fast' or 'small'"):
        options.compression = asked


def test_the_type_shows_and_keeps_it():
    type_ = DataStoreType(compression="small")
    assert repr(type_) == "DataStoreType(compression='small')"
    assert type_.copy().compression == "small"
    assert type_._static_cache_key != DataStoreType()._static_cache_key


def test_rewrite_compresses_and_expands(engine, stored, exact):
    with Session(engine) as session, session.begin():
        made = value()
        made.inner = DataStore(zeros=np.zeros(20_000), deep=DataStore(z=np.zeros(20_000)))
        session.add_all([Run(id=n, data=value(n), plain=DataStore(made)) for n in range(5)])
    exact(10)
    before = sum(sizes(stored))
    assert rewrite(engine, Base.metadata).moved == 0
    report = rewrite(engine, Later.metadata)
    assert (report.recompressed, report.applied, report.is_clean) == (10, False, False)
    report = rewrite(engine, Later.metadata, apply=True, batch_rows=2)
    assert (report.recompressed, report.is_clean) == (10, True)
    exact(10)
    assert rewrite(engine, Later.metadata).moved == 0
    with Session(engine) as session:
        row = session.get(Run, 3)
        assert set(methods(stored, _path(row.data)).values()) == {0}
        assert set(methods(stored, _path(row.plain)).values()) == {0, 8}
        assert row.data.n == 3
        assert row.plain.inner.deep.z.sum() == 0
        deep = row.plain.inner.deep.url.removeprefix("file:///")
        assert methods(stored, deep)["z.npy"] == zipfile.ZIP_DEFLATED
    assert check(engine, Base.metadata, deep=True).is_clean
    assert before != sum(sizes(stored))


def test_an_edited_value_is_completed_by_rewrite(engine, stored, exact):
    with Session(engine) as session, session.begin():
        session.add(Run(id=1, plain=value()))
    with Session(engine) as session, session.begin():
        session.get(Changed, 1).plain.n = 5  # the other entries are copied as they are
    with Session(engine) as session:
        assert set(methods(stored, _path(session.get(Run, 1).plain)).values()) == {0}
    assert rewrite(engine, Later.metadata, apply=True).recompressed == 1
    exact(1)
    with Session(engine) as session:
        row = session.get(Run, 1)
        assert set(methods(stored, _path(row.plain)).values()) == {0, 8}
        assert row.plain.n == 5
