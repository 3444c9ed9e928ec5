"""A web service of Flask-SQLAlchemy whose rows own frames.

    flask --app examples.flask_app run

A CSV that is uploaded becomes a frame of a new row, rows are listed without loading a frame, and a
value's object is downloaded as it lies in the storage. Needs Flask-SQLAlchemy.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from flask import Blueprint, Flask, abort, redirect, request, send_file
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_datastore import (
    DataStore,
    DataStoreIO,
    DataStoreType,
    StorageError,
    bind_storage,
    enable_removals,
    inspect,
    prefetch,
    sign,
)


class Base(DeclarativeBase):
    pass


enable_removals(Base.metadata, keep_seconds=300)


class Run(Base):
    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    data: Mapped[DataStore] = mapped_column(DataStoreType())


db = SQLAlchemy(model_class=Base)
pages = Blueprint("pages", __name__)


def as_json(run: Run) -> dict[str, Any]:
    entries = inspect(run.data).entries
    shapes = {name: [what.type, what.shape, what.nbytes] for name, what in entries.items()}
    return {"id": run.id, "title": run.title, "entries": shapes}


@pages.post("/runs")
def upload() -> ResponseReturnValue:
    file = request.files["table"]
    try:
        frame = pd.read_csv(file.stream)
    except ValueError as err:
        abort(422, f"This is no CSV: {err}")
    run = Run(title=request.form["title"], data=DataStore(table=frame, source=file.filename))
    db.session.add(run)
    db.session.commit()
    return as_json(run), 201


@pages.get("/runs")
def list_runs() -> ResponseReturnValue:
    runs = db.session.scalars(select(Run).order_by(Run.id).limit(50)).all()
    prefetch(runs, Run.data, [])  # names, types and sizes of all, at the same time
    return [as_json(run) for run in runs]


@pages.get("/runs/<int:id_run>/object")
def download(id_run: int) -> ResponseReturnValue:
    run = db.get_or_404(Run, id_run)
    try:
        return redirect(sign(run.data, expires_seconds=300))
    except StorageError:
        stored = DataStoreIO(str(run.data.url), storage=db.session())
    return send_file(stored.open(), mimetype="application/zip", download_name=f"run-{run.id}.zip")


def create_app(database: str = "sqlite:///runs.db", storage: str = "runs.storage") -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database
    db.init_app(app)
    app.register_blueprint(pages)
    with app.app_context():
        bind_storage(db.engine, storage)
        Base.metadata.create_all(db.engine)
    return app
