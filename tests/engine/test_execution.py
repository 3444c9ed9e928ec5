"""Statements are seen where they run, and others pay nothing for it."""

from __future__ import annotations

import sys
from subprocess import run

from sqlalchemy import event, insert
from sqlalchemy.orm import Session
from support.models import Keyed

from sqla_datastore import DataStore


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
