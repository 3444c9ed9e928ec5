"""Configuring the mappers of a test's classes."""

from __future__ import annotations

from sqlalchemy import orm

from sqla_datastore.schema.declarations import check_registries


def configure_mappers() -> None:
    """Configure, and check also where a thread of another test has just configured all."""
    orm.configure_mappers()
    check_registries()
