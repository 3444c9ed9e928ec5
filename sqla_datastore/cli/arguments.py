"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import os


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the models, the database and the storage."""
    parser.add_argument(
        "model", metavar="MODEL", help="the models, as 'package.module:Base' or ':metadata'"
    )
    database = os.environ.get("SQLA_DATASTORE_DATABASE_URL")
    parser.add_argument(
        "--database",
        metavar="URL",
        default=database,
        required=database is None,
        help="SQLAlchemy's URL of it (default: SQLA_DATASTORE_DATABASE_URL)",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="the storage (default: as the models or environment say)"
    )
