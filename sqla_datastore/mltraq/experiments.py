"""MLtraq's tables: one of experiments, and one of runs for each experiment."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Engine,
    LargeBinary,
    Row,
    String,
    Uuid,
    column,
    inspect,
    select,
    table,
)
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.types import TypeEngine

from sqla_datastore.exceptions import DamagedObjectError, DataStoreError, UnsupportedFormatError
from sqla_datastore.mltraq.objects import ObjectReader, PathLike
from sqla_datastore.mltraq.reading import LIMIT_BYTES, Allowance

_KEYS: Final = ("id_experiment", "id_run")


@dataclass(frozen=True, slots=True)
class MLtraqRun:
    """One run of an experiment.

    Attributes:
        id: its ``id_run``.
        fields: its fields by name. A `DataStore` among them is not stored yet. Where the database
            has NULL, a field is None.
    """

    id: uuid.UUID
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MLtraqExperiment:
    """One experiment.

    Attributes:
        id: its ``id_experiment``, which names its folder, too.
        name: its name.
        fields: its own fields, as those of a run.
    """

    id: uuid.UUID
    name: str
    fields: dict[str, Any]
    _runs: _Runs = field(repr=False)

    def runs(self) -> Iterator[MLtraqRun]:
        """Yield its runs; the objects of one run are read at a time.

        Raises:
            UnsupportedFormatError: the table of its runs is not there, or as for `read_object`.
            DataStoreError: as for `read_object`.
        """
        return self._runs.of(self)


def read_experiments(
    engine: Engine,
    datastore: PathLike,
    *,
    table_name: str = "experiments",
    limit_bytes: int = LIMIT_BYTES,
) -> Iterator[MLtraqExperiment]:
    """Yield the experiments of a database of MLtraq; blocks, and writes nothing.

    No connection is open while you work with what is yielded, so your rows may go to the same
    database. The column ``unsafe_pickle`` is not fetched.

    Args:
        engine: of the database.
        datastore: the folder that MLtraq's option ``datastore.url`` names.
        table_name: what the option ``database.experiments_tablename`` says.
        limit_bytes: as for `read_object`, for all fields of an experiment, or of a run.

    Yields:
        Each experiment, in the order of their names.

    Raises:
        DataStoreError: as for `read_object`; a note names the experiment, the run and the field.
    """
    experiments = table(
        table_name,
        column("id_experiment", Uuid),
        column("name", String),
        column("meta", LargeBinary),
        column("fields", LargeBinary),
    )
    key = experiments.c.id_experiment
    with engine.connect() as connection:
        ids = connection.scalars(select(key).order_by(experiments.c.name)).all()
    for id_experiment in ids:
        with engine.connect() as connection:
            row = connection.execute(select(experiments).where(key == id_experiment)).one()
        read = _Fields(datastore, limit_bytes, f"experiment {row.name!r}")
        runs = _Runs(engine, datastore, limit_bytes, read.value("meta", row.meta))
        yield MLtraqExperiment(id_experiment, row.name, read.mapping("fields", row.fields), runs)


class _Fields:
    """Reads what is serialized in one row.

    Args:
        datastore: the folder.
        limit_bytes: what all of it may take.
        where: the row, for errors.
    """

    def __init__(self, datastore: PathLike, limit_bytes: int, where: str) -> None:
        self._reader = ObjectReader(datastore, Allowance(limit_bytes))
        self._where = where

    def value(self, name: str, data: bytes | None) -> Any:
        """Return the value of a column; None for NULL."""
        where = f"{name!r} of {self._where}"
        try:
            return None if data is None else self._reader.value_of(data, where)
        except DataStoreError as err:
            err.add_note(f"in {where}")
            raise

    def mapping(self, name: str, data: bytes) -> dict[str, Any]:
        """Return the fields that are the value of a column.

        Raises:
            DamagedObjectError: it is something else.
        """
        found = self.value(name, data)
        if isinstance(found, dict) and all(isinstance(each, str) for each in found):
            return found
        raise DamagedObjectError(f"{name!r} of {self._where}", "they are no fields by name")


class _Runs:
    """Reads the runs of one experiment.

    Args:
        engine: of the database.
        datastore: the folder.
        limit_bytes: what the fields of a run may take.
        meta: what the experiment's row says of its runs: their table, and which of its columns hold
            serialized values.
    """

    def __init__(self, engine: Engine, datastore: PathLike, limit_bytes: int, meta: Any) -> None:
        self._engine = engine
        self._datastore = datastore
        self._limit_bytes = limit_bytes
        self._meta = meta

    def of(self, experiment: MLtraqExperiment) -> Iterator[MLtraqRun]:
        """Yield the runs of the experiment."""
        serialized, rows = self._fetched(experiment)
        for row in rows:
            id_run: uuid.UUID = row[0]
            values: tuple[Any, ...] = row[1:]
            where = f"run {id_run} of experiment {experiment.name!r}"
            fields = _Fields(self._datastore, self._limit_bytes, where)
            yield MLtraqRun(
                id_run,
                {
                    name: fields.value(name, value) if name in serialized else value
                    for name, value in zip(row._fields[1:], values, strict=True)
                },
            )

    def _fetched(self, experiment: MLtraqExperiment) -> tuple[set[str], list[Row[Any]]]:
        """Return which columns are serialized, and the rows as they are: small, but for blobs."""
        try:
            about = self._meta["runs"]
            name, columns = str(about["table_name"]), about["columns"]
            serialized, native = {*columns["serialized"]}, {*columns["non_serialized"]}
        except (TypeError, KeyError) as err:
            raise self._refused(experiment, "its metadata do not tell of its runs") from err
        with self._engine.connect() as connection:
            types = self._types(connection, name, experiment)
            if not types.keys() >= serialized | native | {*_KEYS}:
                raise self._refused(experiment, f"its table {name!r} lacks columns")
            # SQLite and MySQL keep a Uuid as text, and reflection says so
            keys = [column(key, Uuid) for key in _KEYS]
            fields = [column(each, types[each]) for each in types if each in serialized | native]
            runs = table(name, *keys, *fields)
            statement = select(runs.c.id_run, *fields).where(runs.c.id_experiment == experiment.id)
            return serialized, list(connection.execute(statement))

    def _types(
        self, connection: Connection, name: str, experiment: MLtraqExperiment
    ) -> dict[str, TypeEngine[Any]]:
        """Return the columns of the table of runs and their types, in its order."""
        try:
            return {each["name"]: each["type"] for each in inspect(connection).get_columns(name)}
        except NoSuchTableError as err:
            raise self._refused(experiment, f"its table {name!r} is missing") from err

    def _refused(self, experiment: MLtraqExperiment, reason: str) -> UnsupportedFormatError:
        return UnsupportedFormatError(
            f"the runs of experiment {experiment.name!r} cannot be read: {reason}; is the database "
            "complete, and was it written by MLtraq?"
        )
