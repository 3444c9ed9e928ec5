"""Count the way of one array through the package: calls, modules, and changes of module.

    python benchmarks/walk.py

One row with one array is added and flushed, then its value is replaced and committed. Only
functions of the package count, without comprehensions. A change of module is a call in another
module than the call before it. The counts depend on neither the machine nor its load.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_datastore
from sqla_datastore import DataStore, DataStoreType, bind_storage

PACKAGE = str(Path(sqla_datastore.__file__).parent)


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType())


class Walk:
    """What was called since it began."""

    def __init__(self) -> None:
        self.calls = 0
        self.changes = 0
        self.modules: set[str] = set()
        self._last = ""

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGE) or frame.f_code.co_name.startswith("<"):
            return
        self.calls += 1
        self.modules.add(file)
        self.changes += bool(self._last) and file != self._last
        self._last = file


@contextmanager
def walked(what: str) -> Iterator[None]:
    walk = Walk()
    sys.setprofile(walk)
    try:
        yield
    finally:
        sys.setprofile(None)
    print(
        f"{what}: {walk.calls} calls in {len(walk.modules)} modules, "
        f"{walk.changes} changes of module"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/walk.db")
        bind_storage(engine, f"{folder}/storage")
        Base.metadata.create_all(engine)
        with Session(engine) as session:  # what is imported or cached only once does not count
            session.add(Row(id=1, data=DataStore(a=np.zeros(10))))
            session.flush()
            session.get_one(Row, 1).data = DataStore(a=np.ones(10))
            session.commit()
        with Session(engine) as session:
            row = Row(id=2)
            with walked("one flush"):
                row.data = DataStore(a=np.zeros(10))
                session.add(row)
                session.flush()
            session.commit()
            row = session.get_one(Row, 2)
            with walked("a replacement with its commit"):
                row.data = DataStore(a=np.ones(10))
                session.commit()
        engine.dispose()


if __name__ == "__main__":
    main()
