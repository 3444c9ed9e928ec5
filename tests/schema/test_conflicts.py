"""When two classes may share a folder, and which prefixes rows own."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Integer, MetaData, String, Table
from sqlalchemy.orm import Mapped, mapped_column
from support.configuration import configure_mappers

from sqla_datastore import (
    ConfigurationError,
    DataStore,
    DataStoreIO,
    DataStoreType,
    RefusedURLError,
)
from sqla_datastore.schema.declarations import declared_table, refuse_owned_prefix

# -- templates of two classes ----------------------------------------------------------------------


def two_classes(base, one, two, key=Integer):
    class One(base):
        __tablename__ = "ones"
        id: Mapped[object] = mapped_column(key, primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder=one))

    class Two(base):
        __tablename__ = "twos"
        id: Mapped[object] = mapped_column(key, primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder=two))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("{id}", "{id}"),
        ("same/{id}", "same/{id}"),
        ("same/{pk}", "same/{id}"),
        ("{id}", "{id}/runs"),
        ("a/{id}", "a/{id}/b/{pk}"),
        ("{table}/{id}", "ones/{id}"),
        ("{id}", "5"),
        ("x/{id}", "x/5"),
        ("x/{id}", "x/5/more"),
    ],
)
def test_templates_that_can_meet_are_refused(Base, one, two):
    two_classes(Base, one, two)
    with pytest.raises(ConfigurationError, match="can be the same"):
        configure_mappers()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("{table}/{pk}", "{table}/{pk}"),
        ("a/{id}", "b/{id}"),
        ("a/{id}", "a/x/{id}"),
        ("a/{id}/data", "a/{id}/more"),
        ("a/{id}", "a"),
        ("{id}", "word"),
        ("a/{id}", "a/word/more"),
        ("{id}/ones", "{id}/twos"),
    ],
)
def test_templates_that_cannot_meet_are_accepted(Base, one, two):
    two_classes(Base, one, two)
    configure_mappers()


@pytest.mark.parametrize("folder", ["{id}", "{table},{id}", "x={id}"])
def test_text_keys_meet_more(Base, folder):
    two_classes(Base, "{id}", folder, key=String(20))
    with pytest.raises(ConfigurationError, match="can be the same"):
        configure_mappers()


def test_templates_of_two_storages_do_not_meet(Base):
    class One(Base):
        __tablename__ = "ones"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType("/one", folder="{id}"))

    class Two(Base):
        __tablename__ = "twos"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType("/two", folder="{id}"))

    configure_mappers()


def test_two_names_of_one_storage_are_one(Base):
    class One(Base):
        __tablename__ = "ones"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType("/one", folder="{id}"))

    class Two(Base):
        __tablename__ = "twos"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType("file:///one", folder="{id}"))

    with pytest.raises(ConfigurationError, match="can be the same"):
        configure_mappers()


def test_two_columns_of_one_class_may_share_a_folder(Base):
    class Row(Base):
        __tablename__ = "rows"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="r/{id}"))
        more: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="r/{id}"))

    configure_mappers()


def test_a_class_added_later_is_looked_at_too(Base):
    class One(Base):
        __tablename__ = "ones"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="same/{id}"))

    configure_mappers()

    class Two(Base):
        __tablename__ = "twos"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="same/{id}"))

    with pytest.raises(ConfigurationError, match="can be the same"):
        configure_mappers()


# -- parents and children --------------------------------------------------------------------------


def family(Base, *, owner="{id}", child="{id_parent}", key=None):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = owner
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):
        __tablename__ = "children"
        id: Mapped[int] = mapped_column(primary_key=True)
        id_parent: Mapped[int] = mapped_column(*([key] if key is not None else []))
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder=child))

    return Parent, Child


def test_a_child_with_a_foreign_key_may_write_into_its_parents_folder(Base):
    parent, child = family(Base, key=ForeignKey("parents.id"))
    configure_mappers()
    assert declared_table(parent.__table__).class_folder.owns
    assert not declared_table(child.__table__).columns[0].folder.owns


def test_a_child_may_write_below_its_parents_folder(Base):
    family(Base, child="{id_parent}/runs/{pk}", key=ForeignKey("parents.id"))
    configure_mappers()


def test_a_child_without_a_foreign_key_is_refused(Base):
    family(Base)
    with pytest.raises(ConfigurationError, match="foreign key"):
        configure_mappers()


def test_a_foreign_key_to_another_column_is_refused(Base):
    class Other(Base):
        __tablename__ = "others"
        id: Mapped[int] = mapped_column(primary_key=True)

    family(Base, key=ForeignKey("others.id"))
    with pytest.raises(ConfigurationError, match="foreign key"):
        configure_mappers()


def test_the_foreign_key_has_to_be_what_the_template_names(Base):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = "p/{id}"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):
        __tablename__ = "children"
        id: Mapped[int] = mapped_column(primary_key=True)
        id_parent: Mapped[int] = mapped_column(ForeignKey("parents.id"))
        number: Mapped[int]
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="p/{number}"))

    with pytest.raises(ConfigurationError, match="foreign key"):
        configure_mappers()


def test_the_fields_have_to_stand_in_the_same_places(Base):
    """The second row owns `p/<b>/<a>`: the key of one is the other's only by accident."""

    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = "p/{a}/{b}"
        a: Mapped[int] = mapped_column(primary_key=True)
        b: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):
        __tablename__ = "children"
        __table_args__ = (ForeignKeyConstraint(["a", "b"], ["parents.a", "parents.b"]),)
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[int]
        b: Mapped[int]
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="p/{b}/{a}"))

    with pytest.raises(ConfigurationError):
        configure_mappers()


def test_a_composite_foreign_key(Base):
    class Parent(Base):
        __tablename__ = "parents"
        __datastore_folder__ = "p/{a}/{b}"
        a: Mapped[int] = mapped_column(primary_key=True)
        b: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):
        __tablename__ = "children"
        __table_args__ = (ForeignKeyConstraint(["a", "b"], ["parents.a", "parents.b"]),)
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[int]
        b: Mapped[int]
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="p/{a}/{b}"))

    configure_mappers()


@pytest.mark.parametrize("options", [{"deferrable": True}, {"initially": "DEFERRED"}])
def test_a_child_whose_foreign_key_is_deferrable_may_not_share_its_parents_folder(Base, options):
    class Owner(Base):
        __tablename__ = "owners"
        __datastore_folder__ = "shared/{id}"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):
        __tablename__ = "children"
        id: Mapped[int] = mapped_column(primary_key=True)
        id_owner: Mapped[int] = mapped_column(ForeignKey("owners.id", **options))
        data: Mapped[DataStore] = mapped_column(DataStoreType(folder="shared/{id_owner}"))

    with pytest.raises(ConfigurationError, match="no deferrable one"):
        configure_mappers()


# -- prefixes of self-managed objects --------------------------------------------------------------


@pytest.fixture
def owned(Base):
    class Experiment(Base):
        __tablename__ = "owned_experiments"
        __datastore_folder__ = "lab/{id}"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Run(Base):
        __tablename__ = "owned_runs"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType())

    configure_mappers()
    return Base


@pytest.mark.parametrize(
    "prefix",
    [
        "lab",
        "lab/5",
        "lab/5/deep",
        "lab/-5",
        f"lab/{uuid.UUID(int=1)}/a row whose key the database made",
        "owned_runs",
        f"owned_runs/{uuid.UUID(int=1)}",
        f"owned_runs/{uuid.UUID(int=1)}/deep/er",
    ],
)
def test_a_prefix_in_an_owned_folder_is_refused(owned, prefix, tmp_path):
    with pytest.raises(RefusedURLError, match="owned_"):
        refuse_owned_prefix(prefix, [owned.metadata])
    with pytest.raises(RefusedURLError):
        DataStoreIO.write(b"x", relative_path_prefix=prefix, storage=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("prefix", ["reports", "lab/word", "labs/5", "owned_runs_2/x", "x/lab/5"])
def test_a_prefix_of_its_own_is_accepted(owned, prefix, tmp_path):
    refuse_owned_prefix(prefix, [owned.metadata])


def test_deleting_a_prefix_in_an_owned_folder_is_refused(owned, tmp_path):
    folder = tmp_path / "s" / "lab" / "5"
    folder.mkdir(parents=True)
    (folder / f"{uuid.uuid4().hex}.zip").write_bytes(b"a row's")
    with pytest.raises(RefusedURLError):
        DataStoreIO.delete("lab/5", storage=tmp_path / "s")
    with pytest.raises(RefusedURLError):
        DataStoreIO.delete("lab", storage=tmp_path / "s")
    assert len(list(folder.iterdir())) == 1


def test_a_prefix_is_refused_before_any_statement_ran():
    metadata = MetaData()
    Table(
        "never_used",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("data", DataStoreType(folder="kept/{id}")),
    )
    with pytest.raises(RefusedURLError, match="never_used"):
        refuse_owned_prefix("kept")
    with pytest.raises(RefusedURLError, match="never_used"):
        refuse_owned_prefix("kept/5/more")
    refuse_owned_prefix("others")


def test_a_table_that_is_not_mapped_yet_refuses_no_prefix():
    metadata = MetaData()
    Table(
        "unmapped",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("data", DataStoreType(folder="imperative/{key}")),
    )
    refuse_owned_prefix("weights/a")


def test_a_table_that_is_not_mapped_yet_gives_no_other_table_away(owned):
    Table(
        "unmapped",
        owned.metadata,
        Column("id", Integer, primary_key=True),
        Column("data", DataStoreType(folder="imperative/{key}")),
    )
    for prefix in ("lab/5", "owned_runs"):
        with pytest.raises(RefusedURLError, match="owned_"):
            refuse_owned_prefix(prefix, [owned.metadata])
    refuse_owned_prefix("imperative/5", [owned.metadata])
