"""keep the data and results of runs in the storage

Revision ID: 0002
Revises: 0001
"""

import pickle
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

import sqla_datastore
import sqla_datastore.alembic  # the operations, for Alembic before 1.18

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
STORE = sqla_datastore.DataStoreType(folder="{id_experiment}")
TYPES = {"id_experiment": sa.Uuid()}


def upgrade() -> None:
    # unpickling runs code that the bytes name: these are the application's own
    for column in ("data", "results"):
        op.convert_to_datastore("runs", column, loads=pickle.loads, type_=STORE, column_types=TYPES)


def downgrade() -> None:
    for column in ("results", "data"):
        op.convert_from_datastore(
            "runs",
            column,
            dumps=pickle.dumps,
            type_=BYTES,
            existing_type=STORE,
            column_types=TYPES,
        )
