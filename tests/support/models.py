"""The mapped classes of the transaction tests."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_datastore import DataStore, DataStoreType


class Base(DeclarativeBase):
    """The tables of most tests."""


class Experiment(Base):
    """Its key is made in Python, so its folder bears it."""

    __tablename__ = "experiments"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())
    more: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Counter(Base):
    """Its key is made by the database, so its folder is a fresh UUID."""

    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(50), unique=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Defaulted(Base):
    """Its value comes from the column's default."""

    __tablename__ = "defaulted"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore] = mapped_column(DataStoreType(), default=DataStore(items=[1]))
    made: Mapped[DataStore] = mapped_column(DataStoreType(), default=lambda: DataStore(items=[]))


class Keyed(Base):
    """Its key is chosen by the test."""

    __tablename__ = "keyed"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Sorted(Base):
    """Its columns have folders of their own."""

    __tablename__ = "sorted"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="first/{id}"))
    second: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="second/{id}"))


class Project(Base):
    """Owns a folder without a column."""

    __tablename__ = "projects"
    __datastore_folder__ = "projects/{id}"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    runs: Mapped[list[Run]] = relationship(back_populates="project", passive_deletes=True)


class Run(Base):
    """Writes into its project's folder; the database cascades its deletion."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    id_project: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="projects/{id_project}"))
    more: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="projects/{id_project}"))
    project: Mapped[Project] = relationship(back_populates="runs")


class Texts(Base):
    """Its key is text, which MariaDB compares without regard to case."""

    __tablename__ = "texts"
    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


class Compact(Base):
    """Keeps small values in the row, and compresses all of them."""

    __tablename__ = "compacts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[DataStore | None] = mapped_column(
        DataStoreType(inline_bytes=10_000, compression=True)
    )


class Touched(Base):
    """Gets a new value with every UPDATE."""

    __tablename__ = "touched"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(50))
    data: Mapped[DataStore | None] = mapped_column(DataStoreType(), onupdate=lambda: DataStore(n=1))
