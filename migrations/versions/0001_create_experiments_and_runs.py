"""create experiments and runs, whose data are pickled into the rows

Revision ID: 0001
Revises:
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("id_experiment", sa.Uuid(), nullable=False),
        sa.Column("data", sa.PickleType(impl=BYTES), nullable=False),
        sa.Column("results", BYTES, nullable=True),
        sa.ForeignKeyConstraint(
            ["id_experiment"],
            ["experiments.id"],
            name=op.f("fk_runs_id_experiment_experiments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_id_experiment"), "runs", ["id_experiment"])


def downgrade() -> None:
    op.drop_table("runs")
    op.drop_table("experiments")
