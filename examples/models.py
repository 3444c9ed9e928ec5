"""The reference models: experiments own a folder, and their runs keep arrays and frames in it."""

from __future__ import annotations

import datetime
import uuid

from sqlalchemy import ForeignKey, MetaData, String, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_datastore import DataStore, DataStoreType


class Base(DeclarativeBase):
    """Names its constraints, so that migrations can refer to them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Experiment(Base):
    """Owns the folder of its runs: it is removed with the experiment, cascades included."""

    __tablename__ = "experiments"
    __datastore_folder__ = "{id}"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())

    runs: Mapped[list[Run]] = relationship(
        back_populates="experiment", cascade="all, delete-orphan", passive_deletes=True
    )


class Run(Base):
    """One run: what went in, and what came out once it is done."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    id_experiment: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("experiments.id", ondelete="CASCADE"), index=True
    )
    data: Mapped[DataStore] = mapped_column(DataStoreType(folder="{id_experiment}"))
    results: Mapped[DataStore | None] = mapped_column(DataStoreType(folder="{id_experiment}"))

    experiment: Mapped[Experiment] = relationship(back_populates="runs")
