"""What one table declares: its columns, what they need, and the folder of its class."""

from __future__ import annotations

import gc
import weakref

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table
from sqlalchemy.orm import Mapped, mapped_column
from support.configuration import configure_mappers

from sqla_datastore import ConfigurationError, DataStore, DataStoreType
from sqla_datastore.schema.declarations import declared_table, declared_tables


def test_a_folder_of_a_class_has_to_hold_its_primary_key(Base):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = "p/{name}"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    with pytest.raises(ConfigurationError, match="primary key"):
        configure_mappers()


def test_part_of_a_composite_key_owns_nothing(Base):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = "p/{a}"
        a: Mapped[int] = mapped_column(primary_key=True)
        b: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError, match="primary key"):
        configure_mappers()


@pytest.mark.parametrize("folder", ["..", "{id", "p/{absent}", "/{id}"])
def test_a_bad_folder_of_a_class_is_refused(Base, folder):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = folder
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError):
        configure_mappers()


def test_two_classes_of_one_table_cannot_both_have_a_folder(Base):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = "p/{id}"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Special(Parent):
        __datastore_folder__ = "special/{id}"

    with pytest.raises(ConfigurationError, match="several __datastore_folder__"):
        configure_mappers()


def test_a_template_may_name_what_a_joined_table_inherits(Base):
    class Parent(Base):
        __tablename__ = "parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Child(Parent):
        __tablename__ = "children"
        id_child: Mapped[int] = mapped_column(ForeignKey("parents.id"), primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="{name}/{id}/{pk}"))

    configure_mappers()
    declared = declared_table(Child.__table__)
    assert declared.columns[0].label == "children.data"
    assert declared.columns[0].folder.owns
    assert declared.needs == [Child.__table__.c.id_child]
    assert declared.inherited_needs == [Parent.__table__.c.name]


def test_a_table_without_declared_columns_has_nothing_to_do_with_storages(Base):
    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    configure_mappers()
    assert declared_table(Plain.__table__) is None
    assert declared_table(Plain) is None
    assert list(declared_tables(Base.metadata)) == []


def test_a_table_without_declared_columns_is_not_kept_alive():
    table = Table("plain", MetaData(), Column("id", Integer, primary_key=True))
    assert declared_table(table) is None
    gone = weakref.ref(table)
    del table
    gc.collect()
    assert gone() is None
