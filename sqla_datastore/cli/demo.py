"""The demonstration that ``sqla-datastore demo`` runs.

The functions that it prints are the ones that it runs; what it claims is checked.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreIO, DataStoreType, bind_storage
from sqla_datastore.exceptions import StorageError
from sqla_datastore.storage import KeepsLeftovers, Storage
from sqla_datastore.storage.binding import open_storage

Tree = dict[str, int]
"""Sizes in bytes by path."""


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs"

    name: Mapped[str] = mapped_column(primary_key=True)
    inputs: Mapped[DataStore] = mapped_column(DataStoreType())
    results: Mapped[DataStore] = mapped_column(DataStoreType())
    url_a: Mapped[str | None]
    url_b: Mapped[str | None]


class BrokenPromise(Exception):  # noqa: N818 - what it says is no error of the library's users
    """What the demonstration claims did not hold."""


# -- what a user would write; printed, then run ----------------------------------------------------


def new_run(name: str) -> Run:
    return Run(
        name=name,
        inputs=DataStore(pixels=np.eye(3, dtype="uint8"), seed=42),
        results=DataStore(
            history=pd.DataFrame({"loss": [0.9, 0.4], "score": [0.7, 0.9]}),
            labels=pd.Series(["cat", "dog", "cat"], dtype="category"),
            notes=["fast", ("stable", 3)],
        ),
    )


def store(session: Session) -> None:
    session.add_all([new_run("adam-1"), new_run("adam-2")])
    session.commit()


def write_without_commit(session: Session) -> None:
    run = session.get_one(Run, "adam-1")
    run.inputs.seed = 43
    session.add(new_run("sgd-1"))
    session.flush()


def roll_back(session: Session) -> None:
    session.rollback()


def delete(session: Session) -> None:
    session.delete(session.get_one(Run, "adam-1"))
    session.commit()


def write_pair(session: Session, storage: Storage) -> None:
    run = session.get_one(Run, "adam-2")
    weights = {"layer": np.arange(4.0), "bias": 0.5}
    a = DataStoreIO.serialize_write(weights, "weights/adam-2", storage)
    b = DataStoreIO.write(b"a plain report", "reports", storage)
    run.url_a, run.url_b = a.url, b.url
    session.commit()


# -- the demonstration -----------------------------------------------------------------------------


def run(folder: Path | None = None, *, storage_url: str | None = None, keep: bool = False) -> None:
    """Run the demonstration and print what it does.

    Args:
        folder: where the database goes, and the storage; new or empty. By default a temporary one.
        storage_url: another storage, for example ``s3://bucket/prefix``; empty.
        keep: whether to leave them there.

    Raises:
        BrokenPromise: something that it claims did not hold.
        StorageError: the folder or the storage holds something already, or the storage failed.
        ConfigurationError: no storage serves the URL.
    """
    with (
        _workplace(folder, keep=keep) as place,
        _emptied(storage_url or place / "storage", keep=keep) as storage,
    ):
        engine = create_engine(f"sqlite:///{place / 'demo.db'}")
        bind_storage(engine, storage)
        Base.metadata.create_all(engine)
        where = f"{place}, the storage is {storage_url}" if storage_url else place
        print(f"Database and storage are in {where}\n\n{_source(Run)}")
        try:
            with closing(Session(engine)) as session:
                _two_values(session, storage)
                _a_rollback(session, storage)
                _a_delete(session, storage)
                _a_pair(session, storage)
        finally:
            engine.dispose()
        kept = f"{place} is kept; unzip -l and numpy.load read the objects."
        print(f"\nAll of it was checked. {kept if keep else 'The files are removed again.'}")


def _two_values(session: Session, storage: Storage) -> None:
    _step(1, "two values on one row", new_run, store)
    store(session)
    with Session(session.get_bind()) as another:
        run = another.get_one(Run, "adam-1")
        print("Reloaded in another session:\n")
        for name, ds in (("inputs", run.inputs), ("results", run.results)):
            print(f"  {name} is at {ds.url}")
            for entry, value in ds.items():
                _print_value(entry, value)
        expected = new_run("adam-1")
        _promise(run.inputs == expected.inputs, "the reloaded inputs equal what was stored")
        _promise(run.results == expected.results, "so do the results")
        _promise(
            [type(value) for value in run.results.values()] == [pd.DataFrame, pd.Series, list],
            "the types are those that were stored",
        )
    print("\nThe storage: one folder for each row, one object for each value.\n")
    _print_tree(storage)


def _a_rollback(session: Session, storage: Storage) -> None:
    _step(2, "a rollback leaves nothing behind", write_without_commit)
    before = _tree(storage)
    write_without_commit(session)
    print("Flushed, not committed:\n")
    _print_tree(storage)
    _promise(len(_tree(storage)) > len(before), "the flush has written objects")
    print(f"\n{_source(roll_back)}")
    roll_back(session)
    _print_tree(storage)
    _promise(_tree(storage) == before, "the storage is as it was before")
    _promise(session.get_one(Run, "adam-1").inputs.seed == 42, "and so are the rows")


def _a_delete(session: Session, storage: Storage) -> None:
    _step(3, "a delete removes the row's folder", delete)
    before = _tree(storage)
    delete(session)
    _print_tree(storage)
    after = _tree(storage)
    left = list(storage.leftovers()) if isinstance(storage, KeepsLeftovers) else []
    _promise(not left and not any(map(_is_of_deleted, after)), "the folder of adam-1 is gone")
    _promise(
        after == {path: size for path, size in before.items() if not _is_of_deleted(path)},
        "everything else is still there",
    )


def _is_of_deleted(path: str) -> bool:
    return path.startswith("runs/adam-1/")


def _a_pair(session: Session, storage: Storage) -> None:
    _step(4, "objects that you manage yourself", write_pair)
    write_pair(session, storage)
    run = session.get_one(Run, "adam-2")
    assert run.url_a is not None
    assert run.url_b is not None
    print(f"  url_a = {run.url_a}\n  url_b = {run.url_b}\n\nRead back:\n")
    weights = DataStoreIO(run.url_a, storage=storage).read_deserialize(dict)
    report = DataStoreIO(run.url_b, storage=storage).read()
    _print_value("url_a", weights)
    _print_value("url_b", report)
    _promise(
        np.array_equal(weights["layer"], np.arange(4.0)) and weights["bias"] == 0.5,
        "the weights are those that were written",
    )
    _promise(report == b"a plain report", "and so is the report")
    print()
    _print_tree(storage)


# -- printing and checking -------------------------------------------------------------------------


def _step(number: int, title: str, *functions: Callable[..., object]) -> None:
    print(f"\n{f'-- {number}. {title} ':-<78}\n")
    for function in functions:
        print(_source(function))


def _source(thing: Callable[..., object]) -> str:
    return textwrap.indent(inspect.getsource(thing), "    ")


def _promise(kept: bool, claim: str) -> None:
    if not kept:
        raise BrokenPromise(claim)
    print(f"  [ok] {claim}")


def _print_value(name: str, value: object) -> None:
    described = f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    details = [str(detail) for detail in (dtype, shape) if detail is not None]
    print(f"    {name:<8} {' '.join([described.removeprefix('builtins.'), *details])}")
    print(textwrap.indent(str(value), " " * 13))


def _tree(storage: Storage) -> Tree:
    return {found.path: found.size_bytes for found in storage.list("")}


def _print_tree(storage: Storage) -> None:
    print(f"  {storage.url.rstrip('/').rpartition('/')[2]}/")
    for line in _branches(_tree(storage), "  "):
        print(line)


def _branches(tree: Tree, margin: str) -> Iterator[str]:
    """Yield the lines of what lies in a folder, by its path there."""
    names = sorted({path.partition("/")[0] for path in tree})
    for name in names:
        corner, below = ("`-- ", "    ") if name == names[-1] else ("|-- ", "|   ")
        if name in tree:
            yield f"{margin}{corner}{name}  {tree[name]:,} bytes"
            continue
        yield f"{margin}{corner}{name}/"
        inner = f"{name}/"
        yield from _branches(
            {path[len(inner) :]: size for path, size in tree.items() if path.startswith(inner)},
            margin + below,
        )


@contextmanager
def _emptied(base: str | Path, *, keep: bool) -> Iterator[Storage]:
    """Open a storage that is empty, and empty it again afterwards."""
    storage = open_storage(base)
    if next(storage.list(""), None) is not None:
        raise StorageError(f"{storage.url!r} is not empty; give another prefix", url=storage.url)
    try:
        yield storage
    finally:
        if not keep:
            storage.remove([found.path for found in storage.list("")])


@contextmanager
def _workplace(folder: Path | None, *, keep: bool) -> Iterator[Path]:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{str(folder)!r} is not an empty folder; give a new or an empty one")
    if folder is None:
        place = Path(tempfile.mkdtemp(prefix="sqla-datastore-demo-"))
        created = True
    else:
        # an empty folder that was there stays
        place, created = folder.resolve(), not folder.exists()
        place.mkdir(parents=True, exist_ok=True)
    try:
        yield place
    finally:
        if not keep:
            _remove(place, itself=created)


def _remove(place: Path, *, itself: bool) -> None:
    # only what it made: somebody may have put a file of theirs beside it
    shutil.rmtree(place / "storage", ignore_errors=True)
    (place / "demo.db").unlink(missing_ok=True)
    if itself:
        place.rmdir()
