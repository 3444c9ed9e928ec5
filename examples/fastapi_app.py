"""A web service of FastAPI whose rows own frames, with an asynchronous engine.

    uvicorn --factory examples.fastapi_app:create_app

A CSV that is uploaded becomes a frame of a new row. Rows are listed without loading a frame, one
frame is streamed as Arrow or Parquet, and a value's object is downloaded as it lies in the storage,
from a signed URL where the storage has such. Needs FastAPI, python-multipart and aiosqlite.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Form, HTTPException, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.requests import HTTPConnection
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_datastore import (
    DataStore,
    DataStoreIO,
    DataStoreType,
    StorageError,
    aload,
    aprefetch,
    bind_storage,
    enable_removals,
    sign,
)


class Base(DeclarativeBase):
    pass


# a request that has fetched a row can load its entries, though another one replaces them meanwhile
enable_removals(Base.metadata, keep_seconds=300)


class Run(Base):
    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    data: Mapped[DataStore] = mapped_column(DataStoreType())


class RunOut(BaseModel):
    """A row as JSON: of its value names, types, shapes and sizes."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    data: DataStore


router = APIRouter()


def sessions_of(connection: HTTPConnection) -> async_sessionmaker[AsyncSession]:
    return connection.app.state.sessions  # type: ignore[no-any-return]


Sessions = Annotated[async_sessionmaker[AsyncSession], Depends(sessions_of)]


async def a_session(sessions: Sessions) -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


OneSession = Annotated[AsyncSession, Depends(a_session)]


async def a_run(id_run: int, session: OneSession) -> Run:
    run = await session.get(Run, id_run)
    if run is None:
        raise HTTPException(404, "There is no such run.")
    return run


OneRun = Annotated[Run, Depends(a_run)]


@router.post("/runs", status_code=201)
async def upload(title: Annotated[str, Form()], table: UploadFile, session: OneSession) -> RunOut:
    # what is larger than a megabyte lies on the disk by now, and pandas reads it from there
    try:
        frame = await run_in_threadpool(pd.read_csv, table.file)
    except ValueError as err:
        raise HTTPException(422, f"This is no CSV: {err}") from err
    run = Run(title=title, data=DataStore(table=frame, source=table.filename))
    session.add(run)
    await session.commit()
    return RunOut.model_validate(run)


@router.get("/runs")
async def list_runs(session: OneSession, after: int = 0, limit: int = 50) -> list[RunOut]:
    page = select(Run).where(Run.id > after).order_by(Run.id).limit(min(limit, 200))
    runs = (await session.scalars(page)).all()
    # names, types and sizes alone, of all rows at the same time and in threads
    await aprefetch(runs, Run.data, [])
    return [RunOut.model_validate(run) for run in runs]


@router.get("/runs/{id_run}/entries/{name}")
async def entry(run: OneRun, name: str, form: str = "arrow") -> Response:
    """Stream a frame as an Arrow IPC stream, or as Parquet."""
    if form not in STREAMS:
        raise HTTPException(422, f"form is one of {', '.join(STREAMS)}.")
    try:
        frame = (await aload(run.data, name))[name]
    except KeyError as err:
        raise HTTPException(404, "The run has no such entry.") from err
    if not isinstance(frame, pd.DataFrame):
        raise HTTPException(422, "The entry is no frame.")
    media_type, writer = STREAMS[form]
    return StreamingResponse(streamed(pa.Table.from_pandas(frame), writer), media_type=media_type)


Writer = Callable[[io.RawIOBase, pa.Schema], Any]
STREAMS: dict[str, tuple[str, Writer]] = {
    "arrow": ("application/vnd.apache.arrow.stream", pa.ipc.new_stream),
    "parquet": ("application/vnd.apache.parquet", pq.ParquetWriter),
}


def streamed(table: pa.Table, writer: Writer) -> Iterator[bytes]:
    """Yield a table's bytes piece by piece, so that a client's pace bounds what is held."""
    sink = Drained()
    with writer(sink, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=10_000):
            stream.write_batch(batch)
            yield sink.drain()
    yield sink.drain()


class Drained(io.RawIOBase):
    """A stream to write to, from which others take what was written since they last did."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(self._pieces[-1])

    def drain(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


@router.get("/runs/{id_run}/object")
async def download(run: OneRun, session: OneSession) -> Response:
    """Send the value's object, a ZIP; where the storage signs URLs, the bytes come from there."""
    try:
        return RedirectResponse(sign(run.data, expires_seconds=300))
    except StorageError:
        stored = DataStoreIO(str(run.data.url), storage=session)
    size_bytes = await run_in_threadpool(lambda: stored.size_bytes)
    headers = {
        "Content-Length": str(size_bytes),
        "Content-Disposition": f'attachment; filename="run-{run.id}.zip"',
    }
    return StreamingResponse(pieces(stored), media_type="application/zip", headers=headers)


def pieces(stored: DataStoreIO) -> Iterator[bytes]:
    with stored.open() as stream:
        while piece := stream.read(1_000_000):
            yield piece


@router.post("/runs/{id_run}/summary", status_code=202)
async def summary(run: OneRun, tasks: BackgroundTasks, sessions: Sessions) -> None:
    """Describe the frame later. The task gets a key: the session of the row is closed by then."""
    tasks.add_task(summarize, sessions, run.id)


async def summarize(sessions: async_sessionmaker[AsyncSession], id_run: int) -> None:
    """Work in the background with a session of its own."""
    async with sessions() as session:
        run = await session.get(Run, id_run)
        if run is None:
            return
        table = (await aload(run.data, "table"))["table"]
        run.data.summary = await run_in_threadpool(table.describe)
        await session.commit()


def create_app(
    database: str = "sqlite+aiosqlite:///runs.db", storage: str = "runs.storage"
) -> FastAPI:
    engine = create_async_engine(database)
    bind_storage(engine, storage)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.include_router(router)
    return app
