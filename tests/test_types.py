"""The column in every place that SQLAlchemy lets one declare, load, compare and compile it."""

from __future__ import annotations

import pickle
import re
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    create_engine,
    delete,
    func,
    insert,
    inspect,
    literal,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    column_property,
    configure_mappers,
    defer,
    deferred,
    joinedload,
    load_only,
    mapped_column,
    registry,
    relationship,
    selectinload,
    undefer,
)
from support.databases import make_engine
from support.exactness import assert_exact, statements, urls_of

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreType,
    DefaultStorageWarning,
    RefusedStatementError,
    bind_storage,
    options,
)
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.binding import storage_for

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def value(n=0):
    return DataStore(a=np.arange(n, n + 3), n=n)


class Place:
    """A fresh declarative base whose tables live for one test."""

    def __init__(self, engine, stored):
        self.engine = engine
        self.stored = stored
        self.metadatas = []

        class Base(DeclarativeBase):
            pass

        self.Base = Base
        self.use(Base.metadata)

    def use(self, metadata):
        self.metadatas.append(metadata)
        return metadata

    def create(self):
        configure_mappers()
        for metadata in self.metadatas:
            metadata.create_all(self.engine)

    def drop(self):
        for metadata in self.metadatas:
            metadata.drop_all(self.engine)

    def session(self, **kwargs):
        return Session(self.engine, **kwargs)

    def exact(self, count=None, metadata=None):
        assert_exact(self.engine, metadata or self.metadatas[-1], self.stored, count)


@pytest.fixture
def place(engine, stored):
    place = Place(engine, stored)
    yield place
    place.drop()


# -- declarations --------------------------------------------------------------------------------


def test_type_annotation_map(place):
    class Base(DeclarativeBase):
        type_annotation_map = {DataStore: DataStoreType()}

    class Row(Base):
        __tablename__ = "rows_annotated"
        id: Mapped[int] = mapped_column(primary_key=True)
        needed: Mapped[DataStore]
        maybe: Mapped[DataStore | None]
        third: Mapped[DataStore | None]

    place.use(Base.metadata)
    place.create()
    assert not Row.__table__.c.needed.nullable
    assert Row.__table__.c.maybe.nullable
    assert isinstance(Row.__table__.c.maybe.type, DataStoreType)
    with place.session() as session:
        session.add(Row(needed=value(1), maybe=value(2)))
        session.commit()
        place.exact(2)
        row = session.scalars(select(Row)).one()
        assert (row.needed.n, row.maybe.n, row.third) == (1, 2, None)
        row.third = value(3)
        row.maybe = None
        session.commit()
        place.exact(2)
        session.delete(row)
        session.commit()
    place.exact(0)


def test_a_required_column_refuses_none(place):
    from sqlalchemy.exc import IntegrityError

    class Row(place.Base):
        __tablename__ = "rows_required"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore] = mapped_column(DataStoreType())

    place.create()
    with place.session() as session:
        session.add(Row(data=value(1)))
        session.commit()
        row = session.scalars(select(Row)).one()
        row.data = None
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        assert row.data.n == 1
        session.add(Row())
        with pytest.raises(IntegrityError):
            session.commit()
    place.exact(1)


def test_a_core_table(place):
    metadata = place.use(MetaData())
    table = Table(
        "core_rows",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("data", DataStoreType()),
        Column("more", DataStoreType(folder="elsewhere/{id}")),
    )
    place.create()
    with place.engine.begin() as connection:
        connection.execute(
            insert(table), [{"id": n, "data": value(n), "more": value(-n)} for n in range(3)]
        )
    place.exact(6)
    assert any(url.startswith("file:///elsewhere/1/") for url in urls_of(place.engine, metadata))
    with place.engine.begin() as connection:
        found = connection.execute(select(table).order_by(table.c.id)).all()
        assert [(row.data.n, row.more.n) for row in found] == [(0, 0), (1, -1), (2, -2)]
        connection.execute(update(table).where(table.c.id == 1).values(data=None, more=value(9)))
        connection.execute(delete(table).where(table.c.id == 2))
    place.exact(3)


def test_an_imperative_mapping(place):
    metadata = place.use(MetaData())
    table = Table(
        "imperative_rows",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("payload", DataStoreType(folder="imperative/{key}")),
    )

    class Row:
        pass

    registry(metadata=metadata).map_imperatively(
        Row, table, properties={"key": table.c.id, "data": table.c.payload}
    )
    place.create()
    with place.session() as session:
        row = Row()
        row.key, row.data = 5, value(5)
        session.add(row)
        session.commit()
        assert row.data.url.startswith("file:///imperative/5/")
        row.data.n = 6
        session.commit()
        place.exact(1)
        assert session.scalars(select(Row)).one().data.n == 6


def test_mapped_as_dataclass(place):
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = "rows_dataclass"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        data: Mapped[DataStore] = mapped_column(DataStoreType())
        more: Mapped[DataStore | None] = mapped_column(DataStoreType(), default=None)

    place.use(Base.metadata)
    place.create()
    with place.session() as session:
        row = Row(data=value(1))
        session.add(row)
        session.commit()
        place.exact(1)
        assert "DataStore" in repr(row)
        assert row.more is None
        session.expire_all()
        assert row.data.n == 1


def test_deferred_and_the_options_that_defer(place):
    class Row(place.Base):
        __tablename__ = "rows_deferred"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(String(20))
        now: Mapped[DataStore | None] = mapped_column(DataStoreType())
        later: Mapped[DataStore | None] = deferred(mapped_column(DataStoreType()))

    place.create()
    with place.session() as session:
        session.add(Row(now=value(1), later=value(2)))
        session.commit()
    for option in ([], [undefer(Row.later)], [defer(Row.now)], [load_only(Row.name)]):
        with place.session() as session:
            row = session.scalars(select(Row).options(*option)).one()
            row.name = "touched"
            session.commit()
            row = session.scalars(select(Row).options(*option)).one()
            row.later.n += 1
            session.commit()
            place.exact(2)
            row = session.scalars(select(Row).options(*option)).one()
            assert row.now.n == 1
    with place.session() as session:
        assert session.scalars(select(Row)).one().later.n == 6


def test_replacing_a_deferred_value_that_was_never_loaded(place):
    class Row(place.Base):
        __tablename__ = "rows_unloaded"
        id: Mapped[int] = mapped_column(primary_key=True)
        later: Mapped[DataStore | None] = deferred(mapped_column(DataStoreType()))

    place.create()
    with place.session() as session:
        session.add(Row(later=value(1)))
        session.commit()
    with place.session() as session:
        row = session.scalars(select(Row)).one()
        row.later = value(2)
        session.commit()
        place.exact(1)
    with place.session() as session:
        session.delete(session.scalars(select(Row)).one())
        session.commit()
    place.exact(0)


# -- inheritance ---------------------------------------------------------------------------------


def test_joined_inheritance(place):
    class Parent(place.Base):
        __tablename__ = "joined_parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        id_experiment: Mapped[int]
        kind: Mapped[str] = mapped_column(String(20))
        base_data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}

    class Child(Parent):
        __tablename__ = "joined_children"
        id: Mapped[int] = mapped_column(ForeignKey("joined_parents.id"), primary_key=True)
        sub_data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        grouped: Mapped[DataStore | None] = mapped_column(
            DataStoreType(folder="grouped/{id_experiment}")
        )
        __mapper_args__ = {"polymorphic_identity": "child"}

    class Grandchild(Child):
        __tablename__ = "joined_grandchildren"
        id: Mapped[int] = mapped_column(ForeignKey("joined_children.id"), primary_key=True)
        deep: Mapped[DataStore | None] = mapped_column(
            DataStoreType(folder="deep/{id_experiment}/{kind}")
        )
        __mapper_args__ = {"polymorphic_identity": "grandchild"}

    place.create()
    with place.session() as session:
        row = Child(id_experiment=7, base_data=value(1), sub_data=value(2), grouped=value(3))
        deep = Grandchild(
            id_experiment=8,
            base_data=value(4),
            sub_data=value(5),
            grouped=value(6),
            deep=value(7),
        )
        session.add_all([row, deep, Parent(id_experiment=9, base_data=value(8))])
        session.commit()
        assert row.grouped.url.startswith("file:///grouped/7/")
        assert deep.deep.url.startswith("file:///deep/8/grandchild/")
        place.exact(8)
        row.grouped = value(10)
        deep.deep = value(11)
        deep.base_data.n = 12
        session.commit()
        assert row.grouped.url.startswith("file:///grouped/7/")
        place.exact(8)
    with place.session() as session:
        found = session.scalars(select(Parent).order_by(Parent.id)).all()
        assert sorted(type(row).__name__ for row in found) == ["Child", "Grandchild", "Parent"]
        for row in found:
            if isinstance(row, Grandchild):
                assert (row.base_data.n, row.deep.n) == (12, 11)
            session.delete(row)
        session.commit()
    place.exact(0)


def test_single_table_inheritance(place):
    class Parent(place.Base):
        __tablename__ = "single_parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(20))
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}

    class One(Parent):
        one: Mapped[DataStore | None] = mapped_column(DataStoreType())
        __mapper_args__ = {"polymorphic_identity": "one"}

    class Two(Parent):
        two: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="two/{id}"))
        __mapper_args__ = {"polymorphic_identity": "two"}

    place.create()
    with place.session() as session:
        session.add_all(
            [Parent(data=value(0)), One(data=value(1), one=value(2)), Two(two=value(3))]
        )
        session.commit()
        place.exact(4)
        one = session.scalars(select(One)).one()
        one.one.n = 5
        session.commit()
        place.exact(4)
        session.execute(delete(One))
        session.commit()
        place.exact(2)
        session.execute(update(Two).values(two=value(9)))
        session.commit()
        assert session.scalars(select(Two)).one().two.n == 9
        place.exact(2)
        session.execute(delete(Parent))
        session.commit()
    place.exact(0)


def test_a_class_folder_that_names_an_inherited_attribute_is_emptied(place):
    class Parent(place.Base):
        __tablename__ = "lab_parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(20))
        kind: Mapped[str] = mapped_column(String(20))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}

    class Child(Parent):
        __tablename__ = "lab_children"
        __datastore_folder__ = "lab/{name}/{id}"
        id: Mapped[int] = mapped_column(ForeignKey("lab_parents.id"), primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="other/{id}"))
        __mapper_args__ = {"polymorphic_identity": "child"}

    place.create()
    with place.session() as session:
        session.add(Child(id=1, name="n", data=value(1)))
        session.commit()
        storage = storage_for(None, place.engine.dialect)
        with storage.create("lab/n/1/0123456789abcdef0123456789abcdef.zip") as writer:
            writer.write(b"of a row that the database deleted by a cascade")
        session.delete(session.get(Child, 1))
        session.commit()
    place.exact(0)


def test_concrete_inheritance(place):
    class Parent(place.Base):
        __tablename__ = "concrete_parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    class Child(Parent):
        __tablename__ = "concrete_children"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        __mapper_args__ = {"concrete": True}

    place.create()
    with place.session() as session:
        session.add_all([Parent(data=value(1)), Child(data=value(2))])
        session.commit()
        place.exact(2)
        session.delete(session.scalars(select(Child)).one())
        session.commit()
        place.exact(1)
        assert session.scalars(select(Parent)).one().data.n == 1


def test_a_mixin_gives_each_class_a_column_of_its_own(place):
    class HasData:
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    class One(HasData, place.Base):
        __tablename__ = "mixed_one"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Two(HasData, place.Base):
        __tablename__ = "mixed_two"
        id: Mapped[int] = mapped_column(primary_key=True)

    place.create()
    with place.session() as session:
        one, two = One(data=value(1)), Two(data=value(2))
        session.add_all([one, two])
        session.commit()
        assert one.data.url.split("/")[3] == "mixed_one"
        assert two.data.url.split("/")[3] == "mixed_two"
        session.delete(one)
        session.commit()
    place.exact(1)


# -- keys ----------------------------------------------------------------------------------------

KEYS = [
    "plain",
    "a/b",
    "a%2Fb",
    "a_b",
    "..",
    ".",
    "...",
    "%00%2E%2E",
    "",
    " ",
    "a,b",
    "ünïcode",
    "漢字",
    "x" * 250,
    "e" * 300,
    "%",
    "%00",
    "a\\b",
    "-",
    "a b",
    "a\nb",
    "?q#f",
    "~",
    "#part",
    "😀",
    "con",
    "file:///etc/passwd",
    "../../etc",
]


def test_string_keys_of_every_kind_have_folders_of_their_own(place):
    from sqlalchemy.dialects.mysql import VARCHAR

    kind = String(400).with_variant(
        VARCHAR(400, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mysql", "mariadb"
    )

    class Row(place.Base):
        __tablename__ = "rows_text"
        id: Mapped[str] = mapped_column(kind, primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    place.create()
    with place.session() as session:
        for n, key in enumerate(KEYS):
            session.add(Row(id=key, data=value(n)))
        session.commit()
        place.exact(len(KEYS))
        found = {row.id: row.data for row in session.scalars(select(Row))}
        assert {key: ds.n for key, ds in found.items()} == {k: n for n, k in enumerate(KEYS)}
        folders = {ds.url.rpartition("/")[0] for ds in found.values()}
        assert len(folders) == len(KEYS)
        assert all(a == b or not a.startswith(b + "/") for a in folders for b in folders)
        for n, key in enumerate(KEYS):
            session.delete(session.get(Row, key))
            session.commit()
            place.exact(len(KEYS) - n - 1)
    outside = {path.name for path in place.stored.base.parent.iterdir()}
    assert outside <= {"storage", "test.db"}


@on_sqlite
@pytest.mark.parametrize("length", [83, 84, 85, 255, 256, 300])
@pytest.mark.parametrize("character", ["x", "é", "漢", "/"])
def test_a_long_key_is_stored_or_refused(place, length, character):
    """A file name has 255 bytes at most, and percent-encoding multiplies them."""
    from sqla_datastore import DataStoreError

    class Row(place.Base):
        __tablename__ = "rows_long"
        id: Mapped[str] = mapped_column(String(400), primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    place.create()
    key = character * length
    with place.session() as session:
        session.add(Row(id=key, data=value(1)))
        try:
            session.commit()
        except DataStoreError:
            session.rollback()
            place.exact(0)
            return
        place.exact(1)
        assert session.get(Row, key).data.n == 1
        session.delete(session.get(Row, key))
        session.commit()
        place.exact(0)


def test_composite_keys_never_meet(place):
    class Row(place.Base):
        __tablename__ = "rows_composite"
        a: Mapped[str] = mapped_column(String(50), primary_key=True)
        b: Mapped[str] = mapped_column(String(50), primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        more: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="both/{b}/{a}"))

    place.create()
    keys = [("a,b", "c"), ("a", "b,c"), ("a%2Cb", "c"), ("", "a,b,c"), ("a,b,c", ""), ("a/b", "c")]
    with place.session() as session:
        session.add_all(
            [Row(a=a, b=b, data=value(n), more=value(-n)) for n, (a, b) in enumerate(keys)]
        )
        session.commit()
        place.exact(2 * len(keys))
        folders = {row.data.url.rpartition("/")[0] for row in session.scalars(select(Row))}
        assert len(folders) == len(keys)
        session.delete(session.get(Row, keys[1]))
        session.commit()
        place.exact(2 * len(keys) - 2)
        row = session.get(Row, keys[0])
        row.data.n = 99
        session.commit()
        place.exact(2 * len(keys) - 2)
        session.execute(delete(Row).where(Row.a == "a/b"))
        session.commit()
        place.exact(2 * len(keys) - 4)


def test_keys_made_by_the_server(place):
    class Row(place.Base):
        __tablename__ = "rows_identity"
        id: Mapped[int] = mapped_column(Identity(), primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    class Text(place.Base):
        __tablename__ = "rows_server_default"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(20), server_default="given")
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="named/{name}/{pk}"))

    place.create()
    with place.session() as session:
        session.add_all([Row(data=value(n)) for n in range(3)])
        session.add_all([Text(data=value(n)) for n in range(3)])
        session.commit()
        place.exact(6)
        assert sorted(row.data.n for row in session.scalars(select(Row))) == [0, 1, 2]
        session.execute(delete(Row))
        session.execute(delete(Text))
        session.commit()
    place.exact(0)


@on_postgresql
def test_sequence_and_uuid_keys(place):
    sequence = Sequence("rows_sequence_key", metadata=place.Base.metadata)

    class Row(place.Base):
        __tablename__ = "rows_sequence"
        id: Mapped[int] = mapped_column(sequence, primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    class Made(place.Base):
        __tablename__ = "rows_server_uuid"
        id: Mapped[uuid.UUID] = mapped_column(
            primary_key=True, server_default=func.gen_random_uuid()
        )
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    place.create()
    with place.session() as session:
        rows = [Row(data=value(n)) for n in range(3)]
        session.add_all([*rows, *(Made(data=value(n)) for n in range(3))])
        session.commit()
        place.exact(6)
        session.execute(insert(Row), [{"data": value(n)} for n in range(3)])
        session.commit()
        place.exact(9)
        session.execute(delete(Made))
        for row in rows:
            session.delete(row)
        session.commit()
        place.exact(3)


def test_a_callable_default_is_evaluated_once(place):
    calls = []

    def make():
        calls.append(len(calls) + 1)
        return f"key-{len(calls)}"

    class Row(place.Base):
        __tablename__ = "rows_callable"
        id: Mapped[str] = mapped_column(String(20), primary_key=True, default=make)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    place.create()
    with place.session() as session:
        row = Row(data=value(1))
        session.add(row)
        session.commit()
        assert calls == [1]
        assert row.data.url.startswith(f"file:///rows_callable/{row.id}/")
    with place.engine.begin() as connection:
        connection.execute(insert(Row), [{"data": value(2)}, {"data": value(3)}])
    assert calls == [1, 2, 3]
    with place.session() as session:
        for row in session.scalars(select(Row)):
            assert row.data.url.startswith(f"file:///rows_callable/{row.id}/")
    place.exact(3)


def test_a_table_without_a_primary_key(place):
    metadata = place.use(MetaData())
    table = Table(
        "rows_keyless",
        metadata,
        Column("n", Integer),
        Column("data", DataStoreType(folder="keyless/{n}")),
    )
    place.create()
    with place.engine.begin() as connection:
        connection.execute(insert(table), [{"n": n, "data": value(n)} for n in (1, 1, 2)])
    place.exact(3)
    with place.engine.begin() as connection:
        connection.execute(delete(table).where(table.c.n == 1))
    place.exact(1)


# -- loading -------------------------------------------------------------------------------------


@pytest.fixture
def family(place):
    class Parent(place.Base):
        __tablename__ = "family_parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        children: Mapped[list[Child]] = relationship(
            back_populates="parent", cascade="all, delete-orphan"
        )

    class Child(place.Base):
        __tablename__ = "family_children"
        id: Mapped[int] = mapped_column(primary_key=True)
        id_parent: Mapped[int] = mapped_column(ForeignKey("family_parents.id"))
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        parent: Mapped[Parent] = relationship(back_populates="children")

    globals()["Child"], globals()["Parent"] = Child, Parent
    try:
        place.create()
    finally:
        del globals()["Child"], globals()["Parent"]
    with place.session() as session:
        session.add_all(
            [
                Parent(data=value(n), children=[Child(data=value(n)) for _ in range(2)])
                for n in range(3)
            ]
        )
        session.commit()
    place.exact(9)
    return Parent, Child


@pytest.mark.parametrize("load", [None, selectinload, joinedload])
def test_relationships(place, family, load):
    Parent, Child = family
    query = select(Parent).order_by(Parent.id)
    if load:
        query = query.options(load(Parent.children))
    with place.session() as session:
        parents = session.scalars(query).unique().all()
        assert [[c.data.n for c in p.children] for p in parents] == [[0, 0], [1, 1], [2, 2]]
        parents[0].children[0].data.n = 10
        del parents[1].children[0]
        session.delete(parents[2])
        session.commit()
        place.exact(5)
        assert sorted(child.data.n for child in session.scalars(select(Child))) == [0, 1, 10]


def test_rows_of_columns(place, family):
    Parent, Child = family
    with place.session() as session:
        rows = session.execute(
            select(Parent.id, Parent.data, Child.data).join(Child).order_by(Child.id)
        ).all()
        assert [(a.n, b.n) for _, a, b in rows] == [(n, n) for n in (0, 0, 1, 1, 2, 2)]
        assert len(session.scalars(select(Parent).join(Child)).unique().all()) == 3
        mappings = session.execute(select(Parent.data.label("d"))).mappings().all()
        assert sorted(row["d"].n for row in mappings) == [0, 1, 2]


def test_get_from_the_identity_map_gives_the_same_value(place, family):
    Parent, _ = family
    with place.session() as session:
        row = session.get(Parent, 1)
        data = row.data
        with statements(place.engine, "SELECT") as selects:
            assert session.get(Parent, 1).data is data
        assert selects == []
        session.scalars(select(Parent)).all()
        assert row.data is data


def test_union_distinct_group_and_aliases(place, family):
    Parent, Child = family
    with place.session() as session:
        both = select(Parent.data).union_all(select(Child.data)).subquery()
        assert len(session.scalars(select(both.c.data)).all()) == 9
        distinct = select(Parent.data).distinct()
        assert len(session.scalars(distinct).all()) == 3
        counted = select(Parent.data, func.count(Child.id)).join(Child).group_by(Parent.data)
        assert sorted((ds.n, count) for ds, count in session.execute(counted)) == [
            (0, 2),
            (1, 2),
            (2, 2),
        ]
        highest = session.scalar(select(func.max(Parent.data)))
        assert isinstance(highest, DataStore)


# -- comparison ----------------------------------------------------------------------------------


def test_comparison(place, family):
    Parent, _ = family
    with place.session() as session:
        session.add(Parent())
        session.commit()
        row = session.scalars(select(Parent).where(Parent.data.is_not(None)).limit(1)).one()

        def ids(criterion):
            return set(session.scalars(select(Parent.id).where(criterion)))

        everyone = set(session.scalars(select(Parent.id)))
        assert ids(Parent.data.is_(None)) == ids(Parent.data == None)  # noqa: E711
        assert len(ids(Parent.data.is_(None))) == 1
        assert ids(Parent.data == row.data.url) == {row.id}
        assert ids(Parent.data == row.data) == {row.id}
        assert ids(row.data == Parent.data) == {row.id}
        assert ids(Parent.data.in_([row.data, "file:///none"])) == {row.id}
        assert ids(Parent.data.in_([])) == set()
        assert ids(Parent.data.not_in([row.data])) == everyone - {row.id} - ids(
            Parent.data.is_(None)
        )
        for compare in (
            Parent.data.__eq__,
            Parent.data.__ne__,
            Parent.data.is_distinct_from,
            lambda unsaved: Parent.data.in_([row.data, unsaved]),
        ):
            with pytest.raises(RefusedStatementError):
                ids(compare(value()))
        row.data.n = 77
        with pytest.raises(RefusedStatementError):
            ids(Parent.data == row.data)
        session.commit()
        assert ids(Parent.data == row.data) == {row.id}


def test_a_statement_is_compiled_once_for_all_values(place, family):
    Parent, _ = family
    compiled = []

    def note(_connection, _cursor, _statement, _parameters, context, _many):
        compiled.append(context.cache_hit.name)

    with place.session() as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = session.scalars(select(Parent).order_by(Parent.id)).all()
        urls = {row.id: row.data.url for row in rows}
        sqlalchemy_event.listen(place.engine, "before_cursor_execute", note)
        try:
            for key, url in urls.items():
                assert session.scalars(select(Parent.id).where(Parent.data == url)).all() == [key]
        finally:
            sqlalchemy_event.remove(place.engine, "before_cursor_execute", note)
    assert compiled[1:] == ["CACHE_HIT"] * 2


def test_a_cached_insert_and_update_store_each_value(place, family):
    Parent, _ = family
    with place.engine.begin() as connection:
        for n in range(10, 13):
            connection.execute(insert(Parent).values(id=n, data=value(n)))
        for n in range(10, 13):
            connection.execute(update(Parent).where(Parent.id == n).values(data=value(n * 2)))
    with place.session() as session:
        query = select(Parent).where(Parent.id >= 10)
        assert {row.id: row.data.n for row in session.scalars(query)} == {10: 20, 11: 22, 12: 24}
    place.exact(12)


# -- the type itself -----------------------------------------------------------------------------

TYPES = [
    DataStoreType(),
    DataStoreType("/data/x"),
    DataStoreType("file:///data/x", folder="runs/{id}"),
    DataStoreType(folder="{table}/{pk}"),
    DataStoreType(folder="a/{b},{c}"),
    DataStoreType(Path("/data/path")),
    DataStoreType("s3://bucket/prefix"),
]


def test_a_path_names_the_storage_of_a_column():
    assert DataStoreType(Path("/data/x")).url == DataStoreType("/data/x").url == "/data/x"
    assert DataStoreType(Path("/data/x"))._static_cache_key == TYPES[1]._static_cache_key


@pytest.mark.parametrize(
    ("url", "error", "reason"),
    [
        ("what://host", ConfigurationError, "supported are a path, 'file:///absolute/path', and"),
        ("s3://user:pw@bucket", ConfigurationError, "'s3://…@bucket' names no bucket"),
        ("file://host/x", ConfigurationError, "a local folder is 'file:///absolute/path'"),
        ("file:///x?y", ConfigurationError, "has a query"),
        ("", ConfigurationError, "None stands for the default"),
        ("\0", ConfigurationError, "give a path or 'file:///path'"),
        (b"/x", TypeError, "a storage is a URL or a path, not 'bytes'"),
        (5, TypeError, "PathLike object, not int"),
    ],
)
def test_what_no_storage_serves_is_refused_when_the_type_is_made(url, error, reason):
    """Later it would break statements on other tables: the columns of all are compared."""
    with pytest.raises(error, match=re.escape(reason)):
        DataStoreType(url)


@pytest.mark.parametrize("type_", TYPES, ids=repr)
def test_repr_evaluates_to_the_same_type(type_):
    twin = eval(repr(type_))
    assert (twin.url, twin.folder) == (type_.url, type_.folder)
    assert repr(twin) == repr(type_)
    assert twin.length == type_.length


@pytest.mark.parametrize("type_", TYPES, ids=repr)
def test_copies_and_pickles_keep_every_option(type_):
    for twin in (type_.copy(), pickle.loads(pickle.dumps(type_)), type_.adapt(DataStoreType)):
        assert (twin.url, twin.folder) == (type_.url, type_.folder)


def test_options_are_part_of_the_cache_key():
    keys = [type_._static_cache_key for type_ in TYPES]
    assert keys[0] == keys[3]
    assert len(set(keys)) == len(TYPES) - 1
    hash(tuple(keys))


def test_no_cache_warning(place, family):
    Parent, _ = family
    with place.session() as session, warnings.catch_warnings():
        warnings.simplefilter("error", SAWarning)
        session.scalars(select(Parent).where(Parent.data.is_not(None))).all()
        session.execute(select(type_coerce(literal("file:///x/y.zip"), DataStoreType()))).all()


def test_ddl(engine):
    from sqlalchemy.schema import CreateTable

    table = Table("t", MetaData(), Column("data", DataStoreType()))
    assert "VARCHAR(1024)" in str(CreateTable(table).compile(engine))


def test_metadata_can_be_pickled(place, family):
    metadata = pickle.loads(pickle.dumps(place.Base.metadata))
    table = metadata.tables["family_parents"]
    assert isinstance(table.c.data.type, DataStoreType)
    with place.engine.begin() as connection:
        connection.execute(insert(table).values(id=50, data=value(50)))
        found = connection.scalar(select(table.c.data).where(table.c.id == 50))
        assert found.n == 50
    place.exact(10)


def test_reflection_gives_a_plain_string(place, family):
    found = inspect(place.engine).get_columns("family_parents")
    kinds = {column["name"]: column["type"] for column in found}
    assert isinstance(kinds["data"], String)
    assert kinds["data"].length == 1024


def test_metadata_can_be_copied_to_another(place, family, stored):
    Parent, _ = family
    metadata = MetaData()
    table = Parent.__table__.to_metadata(metadata, name="family_copies")
    place.use(metadata)
    metadata.create_all(place.engine)
    with place.engine.begin() as connection:
        connection.execute(insert(table).values(id=1, data=value(5)))
    assert urls_of(place.engine, metadata)[0].startswith("file:///family_copies/1/")
    assert len(stored.files()) == 10


# -- rows through the session --------------------------------------------------------------------


@pytest.fixture
def Versioned(place):
    class Versioned(place.Base):
        __tablename__ = "rows_versioned"
        id: Mapped[int] = mapped_column(primary_key=True)
        version: Mapped[int] = mapped_column()
        size: Mapped[int] = mapped_column(server_default="5")
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())
        __mapper_args__ = {"version_id_col": version, "eager_defaults": True}

        @hybrid_property
        def is_stored(self):
            return self.data is not None

        @is_stored.inplace.expression
        @classmethod
        def _is_stored(cls):
            return cls.data.is_not(None)

    Versioned.length = column_property(func.length(Versioned.__table__.c.data))
    place.create()
    return Versioned


def test_versions_defaults_hybrids_and_column_properties(place, Versioned):
    with place.session() as session:
        row = Versioned(data=value(1))
        session.add(row)
        session.flush()
        assert (row.size, row.version) == (5, 1)
        row.data = value(2)
        session.flush()
        assert row.version == 2
        session.add(Versioned())
        session.commit()
        place.exact(1)
        assert session.scalars(select(Versioned.data).where(Versioned.is_stored)).one().n == 2
        assert row.is_stored
        assert row.length == len(row.data.url)
        row.data.n = 3
        session.commit()
        assert row.length == len(row.data.url)
    place.exact(1)


def test_merge_of_new_and_known_rows(place, family):
    Parent, _ = family
    with place.session() as session:
        session.merge(Parent(id=1, data=value(100)))
        session.merge(Parent(id=90, data=value(90)))
        session.commit()
        assert session.get(Parent, 1).data.n == 100
        assert session.get(Parent, 90).data.n == 90
    place.exact(10)


def test_merge_without_loading(place, family):
    Parent, _ = family
    with place.session() as session:
        row = session.get(Parent, 1)
        assert row.data.n == 0
    with place.session() as session:
        merged = session.merge(row, load=False)
        assert merged.data.n == 0
        merged.data.n = 5
        session.commit()
        place.exact(9)
        assert session.get(Parent, 1).data.n == 5


def test_pickled_rows_are_merged(place, Versioned):
    globals()["Versioned"] = Versioned
    Versioned.__module__, Versioned.__qualname__ = __name__, "Versioned"
    import sys

    module = sys.modules.setdefault(__name__, sys.modules[Place.__module__])
    module.Versioned = Versioned
    try:
        with place.session() as session:
            row = Versioned(data=value(1))
            session.add(row)
            session.commit()
            assert row.data.n == 1
            text_ = pickle.dumps(row)
        files = place.stored.files()
        row = pickle.loads(text_)
        assert row.data.n == 1
        with place.session() as session:
            session.merge(row)
            session.commit()
            assert place.stored.files() == files
        row.data.n = 2
        again = pickle.loads(pickle.dumps(row))
        with place.session() as session:
            session.merge(again)
            session.commit()
            assert session.scalars(select(Versioned)).one().data.n == 2
        place.exact(1)
    finally:
        del globals()["Versioned"]


def test_bulk_save_objects(place, family):
    Parent, _ = family
    with place.session() as session:
        session.bulk_save_objects([Parent(data=value(n)) for n in range(10, 13)])
        session.commit()
        place.exact(12)
        rows = session.scalars(select(Parent).where(Parent.id <= 2)).all()
        for row in rows:
            row.data.n = 99
        session.bulk_save_objects(rows)
        session.commit()
        place.exact(12)
        assert [row.data.n for row in rows] == [99, 99]


def test_bulk_insert_and_update_mappings(place, family):
    Parent, _ = family
    with place.session() as session:
        session.bulk_insert_mappings(Parent, [{"id": n, "data": value(n)} for n in range(10, 13)])
        session.commit()
        place.exact(12)
        session.bulk_update_mappings(Parent, [{"id": n, "data": value(-n)} for n in range(10, 12)])
        session.commit()
        place.exact(12)
        found = {
            row.id: row.data.n for row in session.scalars(select(Parent).where(Parent.id >= 10))
        }
        assert found == {10: -10, 11: -11, 12: 12}


@on_postgresql
def test_many_rows_in_batches(place, family):
    Parent, _ = family
    count = 1_100
    with place.session() as session:
        session.add_all([Parent(data=DataStore(n=n)) for n in range(count)])
        session.commit()
        assert len(place.stored.files()) == 9 + count
        assert len(set(urls_of(place.engine, place.Base.metadata))) == 9 + count
    with place.session() as session:
        found = session.scalars(select(Parent).where(Parent.id > 3).order_by(Parent.id)).all()
        assert [row.data.n for row in found] == list(range(count))
        session.execute(delete(Parent).where(Parent.id > 3))
        session.commit()
    place.exact(9)


def test_returning_matches_values_to_rows(place, family):
    Parent, _ = family
    if not place.engine.dialect.insert_executemany_returning:
        pytest.skip("the database cannot return inserted rows")
    count = 1_050
    with place.session() as session:
        rows = session.scalars(
            insert(Parent).returning(Parent, sort_by_parameter_order=True),
            [{"data": DataStore(n=n)} for n in range(count)],
        ).all()
        assert [row.data.n for row in rows[::50]] == list(range(0, count, 50))
        session.rollback()
    place.exact(9)


# -- schemas -------------------------------------------------------------------------------------


@pytest.fixture
def schemas(place):
    with place.engine.begin() as connection:
        for name in ("one", "two"):
            connection.execute(text(f"CREATE SCHEMA {name}"))
    yield
    with place.engine.begin() as connection:
        for name in ("one", "two"):
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))


@on_postgresql
def test_tables_of_one_name_in_two_schemas(place, schemas, stored):
    class One(place.Base):
        __tablename__ = "same"
        __table_args__ = {"schema": "one"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    class Two(place.Base):
        __tablename__ = "same"
        __table_args__ = {"schema": "two"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    place.create()
    with place.session() as session:
        session.add_all([One(id=1, data=value(1)), Two(id=1, data=value(2))])
        session.commit()
        place.exact(2)
        session.delete(session.get(One, 1))
        session.commit()
        place.exact(1)
        assert session.get(Two, 1).data.n == 2
    place.drop()


@on_postgresql
def test_schema_translate_map(place, schemas, stored):
    """The rows of two tenants have one key; neither may lose its objects to the other."""

    class Row(place.Base):
        __tablename__ = "tenants"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    engines = {
        name: place.engine.execution_options(schema_translate_map={None: name})
        for name in ("one", "two")
    }
    configure_mappers()
    for engine in engines.values():
        place.Base.metadata.create_all(engine)
    for n, engine in enumerate(engines.values()):
        with Session(engine) as session:
            session.add(Row(id=1, data=value(n)))
            session.commit()
    urls = {name: urls_of(engine, place.Base.metadata) for name, engine in engines.items()}
    assert {f"file:///{path}" for path in stored.files()} == {*urls["one"], *urls["two"]}
    for n, engine in enumerate(engines.values()):
        with Session(engine) as session:
            row = session.get(Row, 1)
            assert row.data.n == n
            row.data.n = n + 10
            session.commit()
    with Session(engines["one"]) as session:
        session.delete(session.get(Row, 1))
        session.commit()
    with Session(engines["two"]) as session:
        assert session.get(Row, 1).data.n == 11
    assert len(stored.files()) == 1


# -- where values live ---------------------------------------------------------------------------


def test_a_column_with_a_storage_of_its_own(place, tmp_path):
    class Row(place.Base):
        __tablename__ = "rows_own_storage"
        id: Mapped[int] = mapped_column(primary_key=True)
        here: Mapped[DataStore | None] = mapped_column(DataStoreType())
        there: Mapped[DataStore | None] = mapped_column(DataStoreType(str(tmp_path / "own")))

    place.create()
    own = LocalStorage(tmp_path / "own")
    with place.session() as session:
        row = Row(here=value(1), there=value(2))
        session.add(row)
        session.commit()
        assert len(place.stored.files()) == 1
        assert [found.path for found in own.list("")] == [row.there.url.removeprefix("file:///")]
        row.there, row.here = row.here, row.there
        session.commit()
        session.expire_all()
        assert (row.here.n, row.there.n) == (2, 1)
        assert len(place.stored.files()) == 1
        assert len(list(own.list(""))) == 1
        session.delete(row)
        session.commit()
    assert place.stored.files() == set()
    assert list(own.list("")) == []


@on_sqlite
def test_two_engines_with_the_same_models(place, family, tmp_path):
    Parent, _ = family
    other = make_engine(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "other")
    place.Base.metadata.create_all(other)
    with Session(other) as session:
        session.add(Parent(id=1, data=value(77)))
        session.commit()
    with Session(other) as session, place.session() as here:
        assert session.get(Parent, 1).data.n == 77
        assert here.get(Parent, 1).data.n == 0
        moved = here.get(Parent, 2)
        here.expunge(moved)
        assert moved.data.n == 1
        session.add(Parent(id=2, data=moved.data))
        session.commit()
        assert session.get(Parent, 2).data.n == 1
        session.execute(delete(Parent))
        session.commit()
    other.dispose()
    assert list(LocalStorage(tmp_path / "other").list("")) == []
    place.exact(9)


@on_sqlite
def test_the_order_in_which_a_storage_is_found(place, family, tmp_path, monkeypatch):
    Parent, _ = family
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "url", None)
    monkeypatch.delenv("SQLA_DATASTORE_URL", raising=False)

    def where(key):
        engine = make_engine(f"sqlite:///{tmp_path / 'found.db'}")
        if bound:
            bind_storage(engine, tmp_path / "bound")
        Parent.__table__.create(engine, checkfirst=True)
        with Session(engine) as session:
            session.add(Parent(id=key, data=value()))
            session.commit()
            path = session.get(Parent, key).data.url.removeprefix("file:///")
        engine.dispose()
        return {
            name
            for name in ("bound", "option", "variable", "sqla.datastore")
            if (tmp_path / name / path).exists()
        }

    bound = False
    with pytest.warns(DefaultStorageWarning):
        assert where(1) == {"sqla.datastore"}
    monkeypatch.setenv("SQLA_DATASTORE_URL", str(tmp_path / "variable"))
    assert where(2) == {"variable"}
    monkeypatch.setattr(options, "url", (tmp_path / "option").as_uri())
    assert where(3) == {"option"}
    bound = True
    assert where(4) == {"bound"}


@on_sqlite
def test_option_engines_share_the_binding(place, family):
    Parent, _ = family
    engine = place.engine.execution_options(isolation_level="SERIALIZABLE")
    with Session(engine) as session:
        session.add(Parent(data=value()))
        session.commit()
    place.exact(10)


@on_sqlite
def test_a_result_of_an_unbound_engine_fails_only_when_it_is_read(place, family, tmp_path):
    Parent, _ = family
    engine = create_engine(place.engine.url)
    bind_storage(engine, tmp_path / "wrong")
    with Session(engine) as session:
        row = session.get(Parent, 1)
        assert row.data.url
        with pytest.raises(FileNotFoundError, match="file:///"):
            _ = row.data.n
    engine.dispose()
