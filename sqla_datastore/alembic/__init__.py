"""Alembic: how autogenerate renders the column, operations that convert columns, and triggers.

From Alembic 1.18 on this module is a plugin that Alembic loads by itself (entry point
``alembic.plugins``): a stock ``env.py`` renders `DataStoreType` with its import and its arguments.
For older versions `render_item` goes into ``context.configure(render_item=...)``.

Importing it, which the plugin does too, adds four operations to ``op``::

    op.convert_to_datastore("runs", "results", loads=pickle.loads)
    op.convert_from_datastore("runs", "results", dumps=pickle.dumps, type_=sa.PickleType())
    op.create_removal_triggers("runs", "results")
    op.drop_removal_triggers("runs", "results")
"""

from __future__ import annotations

import sys

from sqla_datastore.alembic.conversion import convert_column, reflected_table
from sqla_datastore.alembic.plugin import PluginModule, render_item, setup

__all__ = ["convert_column", "reflected_table", "render_item", "setup"]

sys.modules[__name__].__class__ = PluginModule

# last, since these import Alembic, which then calls setup() of this module
import sqla_datastore.alembic.conversion_operations  # noqa: E402
import sqla_datastore.alembic.trigger_operations  # noqa: E402, F401
