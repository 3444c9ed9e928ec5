"""A value is what its schema says: checked when it is flushed, and as it comes and goes."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import re
from typing import Annotated, Any, Generic, Literal, NotRequired, Optional, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel, ConfigDict
from pydantic import Field as ModelField
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, func, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, declared_attr, mapped_column

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreType,
    SchemaMismatchError,
    UnsupportedTypeError,
    bind_storage,
)
from sqla_datastore.maintenance import rewrite
from sqla_datastore.typed import Columns, Dtype, MaxBytes, Shape
from sqla_datastore.typed.checks import problem_of
from sqla_datastore.value.entry import UNLOADED

T = TypeVar("T")


@dataclasses.dataclass
class Inner:
    k: int


@dataclasses.dataclass
class Features:
    metrics: Annotated[pd.DataFrame, Columns("loss", epoch="int64")]
    weights: Annotated[npt.NDArray[np.float64], Shape(None, 3)]
    n: int = 7
    tags: list[str] = dataclasses.field(default_factory=lambda: ["none"])
    inner: DataStore[Inner] | None = None


@dataclasses.dataclass
class Boxed(Generic[T]):
    k: int


class Declaring:
    @declared_attr
    def data(cls) -> Mapped[DataStore[Inner]]:
        return mapped_column(DataStoreType())


class Generically:
    data: Mapped[DataStore[Boxed[int]]] = mapped_column(DataStoreType())


class Scores(TypedDict):
    loss: float
    notes: NotRequired[list[str]]


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    kind: Literal["cnn", "rnn"]
    size: int = ModelField(default=3)


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "typed_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    features: Mapped[DataStore[Features] | None] = mapped_column(DataStoreType())
    scores: Mapped[Optional[DataStore[Scores]]] = mapped_column(DataStoreType())  # noqa: UP045
    model: Mapped["DataStore[Model] | None"] = mapped_column(DataStoreType())  # noqa: UP037
    free: Mapped[DataStore | None] = mapped_column(DataStoreType())


FRAME = pd.DataFrame({"loss": [0.5, 0.25], "epoch": [1, 2]})
WEIGHTS = np.arange(6.0).reshape(2, 3)


def features(**others: Any) -> DataStore:
    return DataStore({"metrics": FRAME, "weights": WEIGHTS, **others})


def table_of(**options):
    """Return a table without a class, whose column of values has these options."""
    key = Column("id", Integer, primary_key=True)
    return Table("typed_core", MetaData(), key, Column("data", DataStoreType(**options)))


@pytest.fixture
def engine(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    bind_storage(engine, tmp_path / "storage")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session


def stored_files(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "storage").rglob("*") if path.is_file()}


class TestFlush:
    WRONG = [
        ({"features": DataStore(metrics=FRAME)}, "weights", "wants the entry 'weights'"),
        ({"features": features(weights=WEIGHTS[0])}, "weights", "shape is (3,), not (None, 3)"),
        ({"features": features(weights=WEIGHTS.astype("f4"))}, "weights", "float32, not float64"),
        ({"features": features(weights=[1.0])}, "weights", "of type list, not numpy.ndarray"),
        ({"features": features(metrics=FRAME[["loss"]])}, "metrics", "no column 'epoch'"),
        ({"features": features(metrics=FRAME.astype("f4"))}, "metrics", "'epoch' is of float32"),
        ({"features": features(tagz=[])}, "tagz", "no entry 'tagz', but metrics, weights, n"),
        ({"features": features(tags=["a", 1])}, "tags", "item 1 of list"),
        ({"features": features(n=None)}, "n", "of type NoneType, not int"),
        ({"features": features(inner=DataStore(k="a"))}, "inner", "entry 'k' of the value"),
        ({"scores": {"loss": "low"}}, "loss", "of type str, not float"),
        ({"scores": {"loss": 1.0, "notes": [1]}}, "notes", "item 0"),
        ({"scores": {}}, "loss", "wants the entry 'loss'"),
        ({"model": {"kind": "gan"}}, "kind", "not any of ('cnn', 'rnn')"),
    ]

    @pytest.mark.parametrize(("values", "entry", "text"), WRONG, ids=lambda v: str(v)[:20])
    def test_what_does_not_fit_is_refused_and_nothing_is_written(
        self, session, tmp_path, values, entry, text
    ):
        session.add(Run(free={"a": 1}, **values))
        with pytest.raises(SchemaMismatchError, match=re.escape(text)) as caught:
            session.flush()
        session.rollback()
        assert caught.value.entry == entry
        assert caught.value.column == f"typed_runs.{next(iter(values))}"
        assert session.scalar(select(func.count()).select_from(Run)) == 0
        assert stored_files(tmp_path) == set()

    def test_what_fits_is_stored(self, session, tmp_path):
        session.add(
            Run(
                features=DataStore(Features(FRAME, WEIGHTS, inner=DataStore(Inner(k=1)))),
                scores={"loss": 1},
                model=DataStore(Model(kind="cnn", other=5)),
                free={"anything": b"goes"},
            )
        )
        session.commit()
        run = session.scalars(select(Run)).one()
        assert run.features is not None
        assert dict(run.features.inner) == {"k": 1}
        assert run.features == features(n=7, tags=["none"], inner=DataStore(k=1))
        assert run.model == DataStore(kind="cnn", size=3, other=5)
        # the nested value has a file of its own
        assert len(stored_files(tmp_path)) == 5

    @pytest.mark.parametrize("bulk", [False, True])
    def test_core_and_bulk_statements_are_checked(self, session, tmp_path, bulk):
        rows = [{"scores": DataStore(loss=1.0)}, {"scores": DataStore(loss="low")}]
        statement = insert(Run) if bulk else insert(Run.__table__)
        with pytest.raises(SchemaMismatchError):
            session.execute(statement, rows)
        session.rollback()
        assert stored_files(tmp_path) == set()

    def test_an_update_is_checked(self, session, tmp_path):
        session.add(Run(scores={"loss": 1.0}))
        session.commit()
        before = stored_files(tmp_path)
        with pytest.raises(SchemaMismatchError):
            session.execute(update(Run).values(scores=DataStore(loss=None)))
        session.rollback()
        run = session.scalars(select(Run)).one()
        run.scores.loss = "low"
        with pytest.raises(SchemaMismatchError):
            session.commit()
        session.rollback()
        assert session.scalars(select(Run.scores)).one() == {"loss": 1.0}
        assert stored_files(tmp_path) == before

    def test_an_edit_in_place_is_checked(self, session):
        session.add(Run(scores={"loss": 1.0, "notes": ["a"]}))
        session.commit()
        session.scalars(select(Run)).one().scores["notes"].append(1)
        with pytest.raises(SchemaMismatchError, match="notes"):
            session.commit()
        session.rollback()

    def test_a_table_without_a_class_has_a_schema_too(self, engine, tmp_path):
        table = table_of(entries=Scores)
        table.create(engine)
        with engine.begin() as connection, pytest.raises(SchemaMismatchError, match="'loss'"):
            connection.execute(table.insert(), {"data": DataStore(lost=1)})
        assert stored_files(tmp_path) == set()
        with engine.begin() as connection:
            connection.execute(table.insert(), {"data": DataStore(loss=1)})
        assert len(stored_files(tmp_path)) == 1

    @pytest.mark.parametrize("mixin", [Declaring, Generically])
    def test_what_a_mixin_declares_is_checked(self, engine, tmp_path, mixin):
        class Own(DeclarativeBase):
            pass

        class Mixed(mixin, Own):
            __tablename__ = "typed_mixed"
            id: Mapped[int] = mapped_column(primary_key=True)

        Own.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Mixed(data=DataStore(k="a")))
            with pytest.raises(SchemaMismatchError, match="type str, not int"):
                session.commit()
            session.rollback()
            session.add(row := Mixed(data=DataStore(k=1)))
            session.commit()
            assert (row.data.typed.k, len(stored_files(tmp_path))) == (1, 1)

    def test_a_nested_value_may_be_free(self):
        assert problem_of(DataStore(k="a"), DataStore[Any]) is None
        assert "type str, not int" in problem_of(DataStore(k="a"), DataStore[Boxed[int]])

    def test_entries_that_are_not_loaded_are_not_read_for_it(self, session):
        session.add(Run(features=features()))
        session.commit()
        run = session.scalars(select(Run)).one()
        run.features.n = 8
        session.flush()
        entries = run.features._entries
        assert entries["metrics"].value is UNLOADED
        assert entries["weights"].value is UNLOADED
        session.commit()
        assert run.features == features(n=8)


class TestTyped:
    @pytest.fixture
    def run(self, session):
        session.add(Run(features=features(), scores={"loss": 0.5}, free={"a": 1}))
        session.commit()
        return session.scalars(select(Run)).one()

    def test_it_gives_entries_as_attributes_and_items_and_defaults(self, run):
        typed = run.features.typed
        assert (typed.weights == WEIGHTS).all()
        assert (typed.n, typed["n"], typed.tags, typed.inner) == (7, 7, ["none"], None)
        assert run.scores.typed["loss"] == 0.5
        assert sorted(typed) == ["metrics", "weights"]
        assert len(typed) == 2
        assert {"n", "weights"} < set(dir(typed))

    @pytest.mark.parametrize("holds", ["the row", "the default", "nothing", "an old one"])
    def test_a_default_that_is_edited_in_place_is_saved(self, engine, run, session, holds):
        session.expunge_all()
        row = session.get(Run, run.id)
        tags = row.features.typed.tags
        assert row.features.typed.tags is tags
        if holds == "an old one":
            session.expire(row)
        elif holds != "the row":
            del row
            gc.collect()
        tags.append("late")
        if holds == "nothing":
            del tags
            gc.collect()
        session.commit()
        with Session(engine) as other:
            assert other.get(Run, run.id).features["tags"] == ["none", "late"]

    def test_a_default_that_is_read_or_replaced_is_not_stored(self, run, session, tmp_path):
        before = stored_files(tmp_path)
        assert run.features.typed.tags == ["none"]
        session.commit()
        assert stored_files(tmp_path) == before
        tags = run.features.typed.tags
        run.features.typed.tags = ["mine"]
        tags.append("lost")
        session.commit()
        assert run.features["tags"] == ["mine"]

    def test_an_edited_default_is_checked_and_rolled_back(self, run, session, tmp_path):
        before = stored_files(tmp_path)
        run.features.typed.tags.append(3)
        with pytest.raises(SchemaMismatchError, match="item 1 of list"):
            session.commit()
        session.rollback()
        assert run.features.typed.tags == ["none"]
        run.features.typed.tags.append("late")
        session.flush()
        assert run.features["tags"] == ["none", "late"]
        session.rollback()
        assert "tags" not in run.features
        assert stored_files(tmp_path) == before

    def test_an_edited_default_is_saved_with_what_else_was_assigned(self, run, session):
        run.features.typed.tags.append("late")
        run.features.typed.n = 8
        session.commit()
        assert (run.features["tags"], run.features.n) == (["none", "late"], 8)

    def test_what_is_assigned_is_checked_at_once(self, run, session):
        with pytest.raises(SchemaMismatchError, match="'n' of 'features' of Run 1"):
            run.features.typed.n = "three"
        with pytest.raises(SchemaMismatchError, match="no entry 'm'"):
            run.features.typed.m = 3
        assert "n" not in run.features
        run.features.typed.n = 3
        del run.scores.typed["loss"]
        run.scores.typed["loss"] = 0.25
        session.commit()
        assert (run.features.n, run.scores.loss) == (3, 0.25)

    def test_unknown_names_are_told(self, run):
        with pytest.raises(AttributeError, match="Features has no entry 'wieghts'"):
            _ = run.features.typed.wieghts
        with pytest.raises(KeyError):
            run.scores.typed["lost"]
        assert not hasattr(run.features.typed, "other")

    @pytest.mark.parametrize(
        "copied",
        [copy.copy, copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))],
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_a_copy_of_the_view_is_one_of_the_value(self, run, copied):
        twin = copied(run.features.typed)
        assert (type(twin), twin) == (DataStore, run.features)
        assert twin is not run.features

    def test_names_that_are_read_as_something_else_cannot_be_set(self, run, session):
        session.add(other := Run(model={"kind": "cnn", "items": 1}))
        session.commit()
        for name in ("items", "_own"):
            with pytest.raises(AttributeError, match=rf"typed\['{name}'\]"):
                setattr(other.model.typed, name, 2)
        assert other.model.typed["items"] == 1

    def test_a_value_that_was_stored_before_the_schema_is_told_when_it_is_read(
        self, engine, tmp_path
    ):
        with engine.begin() as connection:
            free = Table(
                "typed_runs",
                MetaData(),
                Column("id", Integer, primary_key=True),
                Column("features", DataStoreType()),
            )
            connection.execute(free.insert(), {"features": DataStore(n="old", metrics=FRAME)})
        with Session(engine) as session:
            run = session.scalars(select(Run)).one()
            with pytest.raises(SchemaMismatchError, match="entry 'n' of 'features' of Run 1"):
                _ = run.features.typed.n
            with pytest.raises(SchemaMismatchError, match="'weights', which 'features' of Run 1"):
                _ = run.features.typed.weights
            assert run.features.n == "old"

    def test_operators_may_write_anew_what_was_stored_before_the_schema(self, engine, tmp_path):
        old = table_of()
        old.create(engine)
        with engine.begin() as connection:
            connection.execute(old.insert(), {"data": DataStore(lost="old", zeros=np.zeros(10**5))})
        before = stored_files(tmp_path)
        new = table_of(compression=True, entries=Scores)
        report = rewrite(engine, new.metadata, apply=True)
        after = stored_files(tmp_path)
        assert (len(before), len(after), before & after) == (1, 1, set()), report
        with engine.connect() as connection:
            ds = connection.scalars(select(new.c.data)).one()
            assert (ds.lost, ds.zeros.shape) == ("old", (10**5,))

    def test_without_a_schema_it_is_the_value(self, run):
        assert run.free.typed is run.free
        ds: DataStore[Features] = DataStore[Features](weights=WEIGHTS)
        assert ds.typed is ds
        assert type(ds) is DataStore

    def test_a_copy_pickles_and_compares_as_ever(self, run):
        ds = pickle.loads(pickle.dumps(run.features))
        assert ds == run.features
        assert ds.typed is ds


class TestDeclaration:
    @pytest.mark.parametrize("wrong", [dict, int, DataStore])
    def test_what_is_no_schema_is_refused(self, engine, wrong):
        table = table_of(entries=wrong)
        table.create(engine)
        with engine.begin() as connection, pytest.raises(ConfigurationError, match="a TypedDict"):
            connection.execute(table.insert(), {"data": DataStore(a=1)})

    def test_a_name_that_is_not_there_at_run_time_is_told(self, engine):
        Late = dataclasses.make_dataclass("Late", [("a", "NotThere")])
        table = table_of(entries=Late)
        table.create(engine)
        with engine.begin() as connection, pytest.raises(ConfigurationError, match="TYPE_CHECKING"):
            connection.execute(table.insert(), {"data": DataStore(a=1)})

    def test_the_type_in_migrations_does_not_name_it(self):
        assert repr(DataStoreType(entries=Scores)) == "DataStoreType()"


class TestConstraints:
    TABLE = pa.table({"x": pa.array([1, 2], pa.int32()), "y": ["a", "b"]})

    @pytest.mark.parametrize(
        ("constraint", "value", "problem"),
        [
            (Dtype("float64", "float32"), WEIGHTS, None),
            (Dtype(np.floating), WEIGHTS, None),
            (Dtype(np.integer), WEIGHTS, "float64"),
            (Dtype("category"), pd.Series(["a"], dtype="category"), None),
            (Dtype("category"), pd.Series([1]), "int64, not 'category'"),
            (Dtype("int64"), 5, "None"),
            (Dtype("no such name"), WEIGHTS, "no such name"),
            (Shape(2, 3), WEIGHTS, None),
            (Shape(2), WEIGHTS, "(2, 3), not (2,)"),
            (Shape(), 5, "None"),
            (Columns("x", y="string"), TABLE, None),
            (Columns(x="int64"), TABLE, "of int32, not int64"),
            (Columns("z"), TABLE, "'z', but 'x', 'y'"),
            (Columns("x", x=pl.Int64), pl.DataFrame({"x": [1]}), None),
            (Columns("x"), 5, "no column"),
            (MaxBytes(48), WEIGHTS, None),
            (MaxBytes(47), WEIGHTS, "48 bytes, not at most 47"),
            (MaxBytes(2), "abc", "3 bytes"),
            (MaxBytes(10_000), FRAME, None),
            (MaxBytes(10), FRAME, "not at most 10"),
            (MaxBytes(10_000), pl.DataFrame({"x": [1]}), None),
            (MaxBytes(1), 5, "does not tell"),
        ],
        ids=lambda value: repr(value)[:24].partition("\n")[0],
    )
    def test_they_tell_what_is_wrong(self, constraint, value, problem):
        found = constraint.problem_of(value)
        assert (found is None) == (problem is None), found
        assert problem is None or problem in found


def test_an_object_with_fields_stands_for_its_entries():
    assert DataStore(Inner(k=2), extra=1) == {"k": 2, "extra": 1}
    assert DataStore(Model(kind="rnn")) == {"kind": "rnn", "size": 3}
    with pytest.raises((TypeError, UnsupportedTypeError)):
        DataStore(5)


def test_any_between_the_brackets_is_no_schema():
    class Loose(DeclarativeBase):
        pass

    class Row(Loose):
        __tablename__ = "loose_rows"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore[Any]] = mapped_column(DataStoreType())

    Loose.registry.configure()
    assert Row(data={"x": 1}).data == {"x": 1}
