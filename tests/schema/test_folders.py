"""Folder templates of a table: the columns they need, what they render, which paths are theirs."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.orm import Mapped, mapped_column
from support.configuration import configure_mappers

from sqla_datastore import ConfigurationError, DataStore, DataStoreType
from sqla_datastore.schema.declarations import declared_table
from sqla_datastore.schema.folders import OwnedFolders

FRESH = str(uuid.uuid4())


@pytest.mark.parametrize(
    ("folder", "field"),
    [("{nothing}", "nothing"), ("runs/{id}/{absent}", "absent"), ("{metadata}", "metadata")],
)
def test_an_unknown_attribute_is_refused_when_mappers_are_configured(Base, folder, field):
    class Row(Base):
        __tablename__ = "rows"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder=folder))

    with pytest.raises(ConfigurationError, match=field):
        configure_mappers()


def test_an_attribute_may_be_named_otherwise_than_its_column(Base):
    class Row(Base):
        __tablename__ = "rows"
        key: Mapped[int] = mapped_column("id", primary_key=True)
        data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="r/{key}"))

    configure_mappers()
    folder = declared_table(Row.__table__).columns[0].folder
    assert folder.owns
    assert folder.render({Row.__table__.c.id: 5}) == "r/5"


def test_pk_needs_a_primary_key():
    table = Table("keyless", MetaData(), Column("data", DataStoreType()))
    with pytest.raises(ConfigurationError, match="primary key"):
        declared_table(table)


def test_a_template_over_a_column_of_a_core_table():
    table = Table(
        "core",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("data", DataStoreType(folder="c/{absent}")),
    )
    with pytest.raises(ConfigurationError, match="absent"):
        declared_table(table)


# -- rendering -------------------------------------------------------------------------------------


def test_rendering_is_injective():
    table = Table(
        "rows",
        MetaData(),
        Column("a", String, primary_key=True),
        Column("b", String, primary_key=True),
        Column("data", DataStoreType()),
        Column("more", DataStoreType(folder="more/{a}={b}")),
    )
    texts = ["", ".", "..", "a", "a,b", "b", ",", "%", "%00", "%2C", "=", "a=b", "/", "é", "%C3%A9"]
    for column in declared_table(table).columns:
        folders = {column.folder.render({table.c.a: a, table.c.b: b}) for a in texts for b in texts}
        assert None not in folders
        assert len(folders) == len(texts) ** 2


@pytest.mark.parametrize("missing", [{}, {"id": None}])
def test_a_folder_is_unknown_where_a_value_is_missing(missing):
    table = Table(
        "rows",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("data", DataStoreType()),
    )
    folder = declared_table(table).columns[0].folder
    assert folder.render({table.c[name]: value for name, value in missing.items()}) is None


# -- translated schemas ----------------------------------------------------------------------------


def declare(*folders, schema=None, key=Integer):
    """Return the templates of a table with a column for each folder."""
    columns = [Column(f"data{n}", DataStoreType(folder=f)) for n, f in enumerate(folders)]
    table = Table("rows", MetaData(), Column("id", key, primary_key=True), *columns, schema=schema)
    return list(declared_table(table).templates)


def key_of(template):
    return template.table.c.id


@pytest.mark.parametrize(
    ("folder", "schema", "schemas", "rendered"),
    [
        ("{table}/{pk}", None, {}, "rows/5"),
        ("{table}/{pk}", "lab", {}, "lab.rows/5"),
        ("{table}/{pk}", None, {None: "lab"}, "lab.rows/5"),
        ("{table}/{pk}", "lab", {"lab": "other"}, "other.rows/5"),
        ("{table}/{pk}", "lab", {"lab": None}, "rows/5"),
        ("{table}/{pk}", "lab", {None: "other"}, "lab.rows/5"),
        ("x/{id}", None, {}, "x/5"),
        ("x/{id}", "lab", {}, "x/5"),
        ("x/{id}", None, {None: "lab"}, "lab/x/5"),
        ("x/{id}", None, {None: "l b"}, "l%20b/x/5"),
        ("x/{id}", "lab", {"lab": None}, "x/5"),
        ("x/{id}", "lab", {"lab": "lab"}, "x/5"),
        ("x,{table}/{id}", None, {None: "lab"}, "x,lab.rows/5"),
    ],
)
def test_a_translated_schema_is_part_of_the_folder(folder, schema, schemas, rendered):
    (template,) = declare(folder, schema=schema)
    assert template.render({key_of(template): 5}, schemas) == rendered
    assert rendered in OwnedFolders([template], schemas)
    fresh = template.fresh({}, FRESH, schemas)
    assert fresh == rendered.replace("5", FRESH)
    assert template.is_fresh(fresh)
    assert not template.is_fresh(rendered)
    assert fresh in OwnedFolders([template], schemas)


# -- folders that belong to declared columns -------------------------------------------------------


@pytest.mark.parametrize("folder", ["{table}/{pk}", "x/{id}", "{id}", "a/b/run={id}", "{id}/data"])
def test_folders_are_told_from_their_paths(folder):
    (template,) = declare(folder)
    owned = OwnedFolders([template], {})
    rendered = template.render({key_of(template): 5})
    assert rendered in owned
    assert f"{rendered}/more" not in owned
    assert f"before/{rendered}" not in owned
    assert not owned.are_below(f"{rendered}/more")
    above = rendered
    while above:
        assert owned.are_below(above)
        above = above.rpartition("/")[0]
        assert above not in owned


def test_folders_of_another_schema_are_not_owned():
    (template,) = declare("x/{id}")
    assert "lab/x/5" not in OwnedFolders([template], {})
    assert "x/5" not in OwnedFolders([template], {None: "lab"})


def test_a_colon_without_a_format_changes_no_field():
    (template,) = declare("x/{id:}")
    assert template.render({key_of(template): 5}) == "x/5"
    assert "x/5" in OwnedFolders([template], {})


def test_remembered_folders_are_owned():
    owned = OwnedFolders(declare("x/{id}"), {})
    assert "older/5" not in owned
    owned.remember("older/5")
    assert "older/5" in owned
    assert not owned.are_below("older")
    owned.remember("")
    assert "" not in owned


def test_only_so_many_folders_are_remembered(monkeypatch):
    monkeypatch.setattr("sqla_datastore.schema.folders._MOST_REMEMBERED", 2)
    owned = OwnedFolders(declare("x/{id}"), {})
    for folder in ("x/1", "x/2", "older/1", "older/2", "older/3"):
        owned.remember(folder)
    assert "older/2" in owned
    assert "older/3" not in owned
