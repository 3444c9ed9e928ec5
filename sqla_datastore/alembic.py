"""Alembic: how autogenerate renders the column, and operations that convert columns with data.

From Alembic 1.18 on this module is a plugin that Alembic loads by itself (entry point
``alembic.plugins``): a stock ``env.py`` renders `DataStoreType` with its import and its arguments.
For older versions `render_item` goes into ``context.configure(render_item=...)``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.ddl.impl import DefaultImpl
    from alembic.runtime.plugins import Plugin

__all__ = ["render_item", "setup"]


def setup(plugin: Plugin) -> None:  # noqa: ARG001 - the protocol's argument
    """Have the dialects' implementations render `DataStoreType`. Alembic calls this.

    A plugin's own comparators run only where ``autogenerate_plugins`` names it, and rendering has
    no hook but `DefaultImpl.render_type`; so that one is extended, for a stock ``env.py``.
    """
    from alembic.ddl.impl import DefaultImpl

    for impl in {DefaultImpl, *_subclasses(DefaultImpl)}:
        if "render_type" in vars(impl):
            _extend(impl)


def _subclasses(impl: type[DefaultImpl]) -> Iterator[type[DefaultImpl]]:
    for subclass in impl.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _extend(impl: type[DefaultImpl]) -> None:
    stock = impl.render_type

    @functools.wraps(stock)
    def render_type(
        self: DefaultImpl, type_obj: Any, autogen_context: AutogenContext
    ) -> str | Literal[False]:
        rendered = render_item("type", type_obj, autogen_context)
        return rendered if rendered is not False else stock(self, type_obj, autogen_context)

    impl.render_type = render_type  # type: ignore[method-assign]


def render_item(type_: str, obj: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Render `DataStoreType` into a migration script, and add the import that it needs.

    For ``context.configure(render_item=render_item)`` with Alembic before 1.18. To combine it with
    one of your own, call it first and go on where it returns False.

    Args:
        type_: what `obj` is, ``"type"`` for a column's type.
        obj: the object to be rendered.
        autogen_context: takes the import.

    Returns:
        Python source, or False for anything but a `DataStoreType`.
    """
    from sqla_datastore.types import DataStoreType

    if type_ != "type" or not isinstance(obj, DataStoreType):
        return False
    cls = type(obj)
    module = "sqla_datastore" if cls is DataStoreType else cls.__module__
    autogen_context.imports.add(f"import {module}")
    return f"{module}.{obj!r}"
