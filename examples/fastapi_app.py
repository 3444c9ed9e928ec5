"""A web service of FastAPI whose rows own frames, with an asynchronous engine.

    uvicorn --factory examples.fastapi_app:create_app

A CSV that is uploaded becomes a frame of a new row, a file of any size a `File`. Rows are listed
without loading a frame, one frame is streamed as Arrow or Parquet, and one file as it was uploaded,
or a range of it. A value's object is downloaded as it lies in the storage, from a signed URL where
the storage has such. Needs FastAPI, python-multipart and aiosqlite.
"""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Form,
    Header,
    HTTPException,
    UploadFile,
)
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
    File,
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
    stream = await run_in_threadpool(stored.open)
    return StreamingResponse(
        pieces(stream, 0, size_bytes), media_type="application/zip", headers=headers
    )


def pieces(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield a part of a stream; called by a thread, piece by piece as the client takes them."""
    with stream:
        stream.seek(start)
        while start < end and (piece := stream.read(min(PIECE, end - start))):
            start += len(piece)
            yield piece


PIECE = 1_000_000


@router.post("/files", status_code=201)
async def upload_file(file: UploadFile, session: OneSession) -> RunOut:
    """Store a file of any size; it is never in memory as a whole.

    Starlette has spooled it to the disk by now. One that broke off does not come here.
    """
    try:
        stored = File(file.file, file.filename, file.content_type)
    except ValueError:  # the client's content type is none
        stored = File(file.file, file.filename)
    run = Run(title=stored.name, data=DataStore(file=stored))
    session.add(run)
    await session.commit()
    return RunOut.model_validate(run)


@router.get("/runs/{id_run}/files/{name}")
async def download_file(
    run: OneRun,
    name: str,
    wanted: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream a file, or the range of it that is asked for, as after a download that broke off."""
    try:
        file = (await aload(run.data, name))[name]
    except KeyError as err:
        raise HTTPException(404, "The run has no such entry.") from err
    if not isinstance(file, File):
        raise HTTPException(422, "The entry is no file.")
    size, tag = file.size_bytes or 0, f'"{file.sha256}"'
    part = range_of(wanted, size) if if_range in (None, tag) else None
    if part is not None and not part:
        raise HTTPException(
            416, "The range is not in the file.", {"Content-Range": f"bytes */{size}"}
        )
    sent = range(size) if part is None else part
    headers = {
        # as it is: a media type of text would get a charset that nobody knows
        "Content-Type": file.content_type,
        "Content-Length": str(len(sent)),
        "Accept-Ranges": "bytes",
        # a stranger's HTML or SVG must not run as a page of this service
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "ETag": tag,
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    stream = await run_in_threadpool(file.open)
    status = 200 if part is None else 206
    return StreamingResponse(pieces(stream, sent.start, sent.stop), status, headers)


def range_of(header: str | None, size: int) -> range | None:
    """Return the bytes that a header asks for; None for all, as of several ranges at once."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header or "", re.ASCII)
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1 if last else size))


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
