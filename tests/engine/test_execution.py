"""Statements are seen where they run, and others pay nothing for it."""

from __future__ import annotations

import sqlite3
import sys
from subprocess import run

import pytest
from sqlalchemy import create_engine, event, insert, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from support.models import Keyed

from sqla_datastore import DataStore, bind_storage


def test_no_listener_of_engines_is_left_to_statements_elsewhere():
    program = (
        "import sqla_datastore\n"
        "from sqlalchemy import create_engine, text\n"
        "from sqlalchemy.engine import Connection, Engine\n"
        "engine = create_engine('sqlite://')\n"
        "with engine.begin() as connection:\n"
        "    connection.execute(text('SELECT 1'))\n"
        "    print(engine._has_events, connection._has_events, engine.dialect._has_events)\n"
    )
    ended = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"] * 3


def test_listeners_of_the_application_see_urls(engine, exact, stored):
    seen = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection, _cursor, _statement, parameters, _context, _many):
        seen.append(parameters)

    with Session(engine) as session, session.begin():
        session.add_all([Keyed(id=number, data=DataStore(n=number)) for number in (1, 2)])
    with engine.begin() as connection:
        connection.execute(insert(Keyed).values(id=3, data=DataStore(n=3)))
    exact(3)
    texts = repr(seen)
    assert all(f"'file:///{path}'" in texts for path in stored.files())


def test_an_engine_that_was_connected_before_the_import(tmp_path):
    program = f"""
import os
from sqlalchemy import create_engine, delete, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
engine = create_engine("sqlite:///{tmp_path}/old.db")
with engine.connect():
    pass
from sqla_datastore import DataStore, DataStoreType
class Base(DeclarativeBase): pass
class Row(Base):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[DataStore] = mapped_column(DataStoreType("{tmp_path}/objects"))
def files():
    return sum(len(names) for _, _, names in os.walk("{tmp_path}/objects"))
Base.metadata.create_all(engine)
with engine.begin() as connection:
    connection.execute(Row.__table__.insert().values(id=1, data=DataStore(n=1)))
print(files())
engine = create_engine("sqlite://", pool=engine.pool)
with Session(engine) as session, session.begin():
    session.execute(delete(Row))
print(files())
"""
    ended = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1", "0"]


@pytest.mark.parametrize("kind", [Session, Connection])
def test_a_locked_commit_under_the_recommended_begin(tmp_path, stored, caplog, kind):
    """The BEGIN that follows is no transaction control out of sight."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/locked.db", connect_args={"isolation_level": None, "timeout": 0}
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    bind_storage(engine, stored.base)
    Keyed.__table__.create(engine)
    reader = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM keyed").fetchone()
    with kind(engine) as first:
        first.execute(insert(Keyed).values(id=1, data=DataStore(n=1)))
        with pytest.raises(OperationalError, match="database is locked"):
            first.commit()
        # without it SQLAlchemy hands the connection to the next one as it is
        first.rollback()
    reader.execute("ROLLBACK")
    with kind(engine) as second:
        second.execute(insert(Keyed).values(id=2, data=DataStore(n=2)))
        second.commit()
        urls = set(second.scalars(text("SELECT data FROM keyed")))
    assert {f"file:///{path}" for path in stored.files()} == urls
    assert len(urls) == 1
    assert not caplog.records
    reader.close()
    engine.dispose()
