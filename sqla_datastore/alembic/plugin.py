"""What Alembic loads: the plugin, and how autogenerate renders the column.

Imports no Alembic by itself: Alembic imports this in the middle of its own import.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.ddl.impl import DefaultImpl
    from alembic.runtime.plugins import Plugin


class PluginModule(ModuleType):
    """A module that Alembic takes as a plugin.

    An entry point may name a module. But Alembic 1.18.0 to 1.20.0 iterate over what they loaded, as
    over a list of modules; so this one yields itself.
    """

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


def setup(plugin: Plugin) -> None:  # noqa: ARG001 - the protocol's argument
    """Have the dialects' implementations render `DataStoreType`. Alembic calls this.

    `DefaultImpl.render_type` is extended, so that a stock ``env.py`` is enough. Alembic has no
    other hook for rendering: the comparators of a plugin run only where ``autogenerate_plugins``
    names it, and they do not render.
    """
    from alembic.ddl.impl import DefaultImpl

    def init_subclass(cls: type[DefaultImpl], /, **kwargs: Any) -> None:
        super(DefaultImpl, cls).__init_subclass__(**kwargs)
        _extend(cls)

    # Alembic calls in the middle of its own import: most dialects' implementations come later
    DefaultImpl.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment]
    for impl in _with_subclasses(DefaultImpl):
        _extend(impl)


def _with_subclasses(impl: type[DefaultImpl]) -> Iterator[type[DefaultImpl]]:
    yield impl
    for subclass in impl.__subclasses__():
        yield from _with_subclasses(subclass)


def _extend(impl: type[DefaultImpl]) -> None:
    """Have an implementation that renders types by itself render `DataStoreType` first."""
    # one that inherits the method has the extended one already
    if "render_type" not in vars(impl):
        return
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
    # by its public path: where the class lies may change, and migrations stay
    module = "sqla_datastore" if cls is DataStoreType else cls.__module__
    autogen_context.imports.add(f"import {module}")
    return f"{module}.{obj!r}"
