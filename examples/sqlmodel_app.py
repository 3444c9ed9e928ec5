"""A web service of FastAPI and SQLModel: JSON goes in as a value, and out as what is known of it.

    uvicorn --factory examples.sqlmodel_app:create_app

Needs FastAPI and SQLModel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.requests import HTTPConnection
from sqlalchemy import Engine
from sqlmodel import Field, Session, SQLModel, create_engine, select

from sqla_datastore import DataStore, DataStoreType, bind_storage, enable_removals


class RunIn(SQLModel):
    title: str
    data: DataStore = Field(sa_type=DataStoreType)


class Run(RunIn, table=True):
    __tablename__ = "runs"

    id: int | None = Field(default=None, primary_key=True)


class RunOut(RunIn):
    id: int


enable_removals(SQLModel.metadata, keep_seconds=300)
router = APIRouter()


def a_session(connection: HTTPConnection) -> Iterator[Session]:
    with Session(connection.app.state.engine) as session:
        yield session


OneSession = Annotated[Session, Depends(a_session)]


@router.post("/runs", status_code=201, response_model=RunOut)
def add(given: RunIn, session: OneSession) -> Run:
    run = Run.model_validate(given)
    session.add(run)
    session.commit()
    session.refresh(run)
    return run


@router.get("/runs", response_model=list[RunOut])
def list_runs(session: OneSession) -> list[Run]:
    return list(session.exec(select(Run).order_by("id").limit(50)))


@router.put("/runs/{id_run}/note", response_model=RunOut)
def note(id_run: int, text: str, session: OneSession) -> Run:
    run = session.get(Run, id_run)
    if run is None:
        raise HTTPException(404, "There is no such run.")
    run.data.note = text
    session.commit()
    session.refresh(run)
    return run


def create_app(database: str = "sqlite:///runs.db", storage: str = "runs.storage") -> FastAPI:
    engine: Engine = create_engine(database)
    bind_storage(engine, storage)
    SQLModel.metadata.create_all(engine)
    app = FastAPI()
    app.state.engine = engine
    app.include_router(router)
    return app
