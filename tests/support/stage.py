"""Where scenarios run: a database and a storage that are put back for each of them."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    Engine,
    MetaData,
    ScalarResult,
    String,
    Table,
    create_engine,
    delete,
    insert,
    select,
)
from sqlalchemy.orm import Session

from sqla_datastore import DataStoreType, bind_storage
from sqla_datastore.maintenance import CheckReport, DrainReport, GcReport, check, drain, gc
from support.databases import Stored, make_engine
from support.exactness import assert_exact
from support.models import Base, Compact, Counter, Experiment, Keyed, Project, Run
from support.object_stores import StoredInBucket
from support.scenarios import BEFORE, A, B, Row, Scenario, number_of, value

T = TypeVar("T")


class Stage:
    """A database and a storage that are put back to `BEFORE` for every scenario.

    Args:
        url: an empty database.
        stored: the empty storage, seen without the library.
    """

    def __init__(self, url: str, stored: Stored | StoredInBucket) -> None:
        self.url = url
        self.stored = stored
        self.engine = make_engine(url, stored.base)
        Base.metadata.create_all(self.engine)
        self._raw = [_raw(table) for table in Base.metadata.sorted_tables]
        with Session(self.engine) as session:
            session.add_all(_rows_before())
            session.commit()
        self._rows_before = self._raw_rows()
        self._tree_before = self.stored.tree()
        assert self.rows() == BEFORE
        self.assert_exact()

    def close(self) -> None:
        """Drop the tables."""
        Base.metadata.drop_all(self.engine)
        self.engine.dispose()

    def can(self, scenario: Scenario) -> bool:
        """Whether this database can do the scenario."""
        return {"mysql": "mariadb"}.get(name := self.engine.dialect.name, name) in (
            scenario.databases
        )

    def engine_for(self, scenario: Scenario, storage: Any, **kwargs: Any) -> Engine:
        """Return an engine that does the scenario with this storage."""
        make = create_engine if scenario.stock else make_engine
        engine = make(self.url, **kwargs)
        bind_storage(engine, storage)
        return engine

    def reset(self) -> None:
        """Put rows and objects back, behind the library's back."""
        if self._raw_rows() != self._rows_before:
            self._reset_rows()
        if self.stored.tree() != self._tree_before:
            self.stored.put_back(self._tree_before)

    def _reset_rows(self) -> None:
        with self.engine.begin() as connection:
            for table in reversed(self._raw):
                connection.execute(delete(table))
            for table, rows in zip(self._raw, self._rows_before, strict=True):
                if rows:
                    connection.execute(insert(table), rows)

    def _raw_rows(self) -> list[list[dict[str, Any]]]:
        with self.engine.connect() as connection:
            return [
                [dict(row) for row in connection.execute(query).mappings()]
                for query in (select(table).order_by(table.c.id) for table in self._raw)
            ]

    def is_untouched(self) -> bool:
        """Whether every row is as before and the storage holds the same bytes, nothing else."""
        return self.holds_rows_before() and self.stored.tree() == self._tree_before

    def holds_rows_before(self) -> bool:
        """Whether every row is as before, and so are the bytes of its objects."""
        if self._raw_rows() != self._rows_before:
            return False
        tree = self.stored.tree()
        assert self._tree_before.items() <= tree.items(), "a committed row is dangling"
        return True

    def rows(self) -> frozenset[Row]:
        """Return the committed rows; fails where a value is not readable or not whole."""
        with Session(self.engine) as session:

            def all_of(cls: type[T]) -> ScalarResult[T]:
                return session.scalars(select(cls))

            rows: list[Row] = [
                *(("keyed", r.id, r.name, number_of(r.data)) for r in all_of(Keyed)),
                *(
                    ("experiments", r.name, number_of(r.data), number_of(r.more))
                    for r in all_of(Experiment)
                ),
                *(("counters", r.name, number_of(r.data)) for r in all_of(Counter)),
                *(("compacts", r.id, number_of(r.data)) for r in all_of(Compact)),
                *(("projects", r.id) for r in all_of(Project)),
                *(
                    ("runs", r.id_project, number_of(r.data), number_of(r.more))
                    for r in all_of(Run)
                ),
            ]
        assert len(set(rows)) == len(rows)
        return frozenset(rows)

    def assert_does(self, scenario: Scenario) -> None:
        """Put all back and run a scenario; assert its rows, and that the storage is exact."""
        self.reset()
        engine = self.engine_for(scenario, self.stored.base)
        scenario.run(engine, scenario.make())
        engine.dispose()
        assert self.rows() == scenario.after
        self.assert_exact()
        assert self.check().is_clean

    def assert_exact(self) -> None:
        """Assert that the storage holds what the rows refer to and nothing else."""
        assert_exact(self.engine, Base.metadata, self.stored)

    def is_exact(self) -> bool:
        """Whether the storage holds what the rows refer to and nothing else."""
        try:
            self.assert_exact()
        except AssertionError:
            return False
        return True

    def check(self) -> CheckReport:
        """Compare rows and objects, and read all of these."""
        return check(self.engine, Base.metadata, deep=True)

    def collect(self) -> GcReport:
        """Remove what no row refers to."""
        return gc(self.engine, Base.metadata, apply=True, grace_seconds=0)

    def drain(self) -> DrainReport:
        """Carry out the removals that were written down."""
        return drain(self.engine, Base.metadata)


def _raw(table: Table) -> Table:
    columns = [
        Column(c.name, String() if isinstance(c.type, DataStoreType) else c.type)
        for c in table.columns
    ]
    return Table(table.name, MetaData(), *columns)


def _rows_before() -> list[Base]:
    return [
        *(Keyed(id=number, name=f"k{number}", data=value(number)) for number in (1, 2, 3, 4)),
        Experiment(id=A, name="a", data=value(10), more=value(11)),
        Experiment(id=B, name="b", data=value(12)),
        Counter(name="c", data=value(20)),
        Counter(name="d", data=value(21)),
        *(Compact(id=number, data=value(number)) for number in (40, 1041, 42)),
        Project(id=1, runs=[Run(data=value(30), more=value(31)), Run(data=value(32))]),
        Project(id=2, runs=[Run(data=value(33))]),
    ]
