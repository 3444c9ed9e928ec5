"""The mapped classes of the state machine: one for each way to own a folder or to share one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_datastore import DataStore, DataStoreType

INLINE_BYTES = 900
"""Values that are smaller stay in the row: about half of them."""


class Base(DeclarativeBase):
    """The state machine's tables."""


class Item(Base):
    """Its key is chosen by the test, so its folder bears it."""

    __tablename__ = "machine_items"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    more: Mapped[DataStore | None] = mapped_column(
        DataStoreType(inline_bytes=INLINE_BYTES, compression="fast")
    )


class Auto(Base):
    """Its key is made by the database, so its first folder is a fresh UUID."""

    __tablename__ = "machine_autos"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(compression=True))


class Project(Base):
    """Owns a folder without a column."""

    __tablename__ = "machine_projects"
    __datastore_folder__ = "machine_projects/{id}"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(String(50))
    children: Mapped[list[Run]] = relationship(cascade="all", passive_deletes=True)


class Run(Base):
    """Writes into its project's folder; the database cascades its deletion."""

    __tablename__ = "machine_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id_parent: Mapped[int] = mapped_column(ForeignKey("machine_projects.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(
        DataStoreType(folder="machine_projects/{id_parent}", compression="small")
    )


class Parent(Base):
    """Owns no folder, so what the database cascades from it leaves orphans."""

    __tablename__ = "machine_parents"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(String(50))
    children: Mapped[list[Leaf]] = relationship(cascade="all", passive_deletes=True)


class Leaf(Base):
    """Owns its folder; the database cascades its deletion."""

    __tablename__ = "machine_leaves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id_parent: Mapped[int] = mapped_column(ForeignKey("machine_parents.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (Item, Auto, Project, Run, Parent, Leaf)}
COLUMNS = {"Item": ("data", "more"), "Auto": ("data",), "Run": ("data",), "Leaf": ("data",)}
"""Columns of values."""

OWNERS = {"Run": "Project", "Leaf": "Parent"}
CHILDREN = {owner: child for child, owner in OWNERS.items()}
FOLDERS = {"Project": "machine_projects", "Leaf": "machine_leaves"}
"""Folders of classes whose rows own one and whose deletion a database may cascade."""
