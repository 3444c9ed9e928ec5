"""The models and the database that a command is given."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Engine, MetaData, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import configure_mappers

from sqla_datastore.exceptions import ConfigurationError
from sqla_datastore.storage.binding import bind_storage


def find_metadata(model: str) -> MetaData:
    """Import models and return their MetaData.

    Args:
        model: ``package.module:attribute``; modules in the working directory can be imported, too.

    Raises:
        ConfigurationError: the module cannot be imported, or has no such attribute, or that is no
            MetaData and has none.
    """
    module, _, attribute = model.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"{model!r} names no models; give 'package.module:Base'")
    found: Any = _imported(module)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(
                f"module {module!r} has no {attribute!r}; give the Base or MetaData of the models"
            )
        found = getattr(found, name)
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise ConfigurationError(f"{model!r} is neither a Base nor a MetaData; give one of them")
    return metadata


def _imported(module: str) -> ModuleType:
    here = str(Path.cwd())
    # an installed command has its own folder there, `python -m` the working directory
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        # what the module prints must not get into the report
        with contextlib.redirect_stdout(sys.stderr):
            found = importlib.import_module(module)
            # now, so that templates which contradict each other are told as the models' fault
            configure_mappers()
    except (Exception, SystemExit) as err:  # a module may raise anything
        reason = f"{type(err).__name__}: {_line(err)}"
        raise ConfigurationError(
            f"{module!r} cannot be imported from {here!r} ({reason}); give 'package.module:Base', "
            "and run in the folder that holds the package"
        ) from err
    return found


@contextlib.contextmanager
def open_engine(database: str, storage: str | None) -> Iterator[Engine]:
    """Give an engine with its storage, and dispose of it.

    Args:
        database: SQLAlchemy's URL.
        storage: the URL of the storage, or None for that of the models or the environment.

    Raises:
        ConfigurationError: the URL, the driver or the database cannot be used; also for every
            error of the database in the block.
    """
    url, engine = _engine(database)
    try:
        if storage is not None:
            bind_storage(engine, storage)
        yield engine
    except SQLAlchemyError as err:
        # ours is an ArgumentError of SQLAlchemy's, too, and says itself what to do
        if isinstance(err, ConfigurationError):
            raise
        reason = _line(getattr(err, "orig", None) or err)
        raise ConfigurationError(
            f"the database {url.render_as_string()!r} cannot be used: {reason}; see that it runs "
            "and that the URL is right"
        ) from err
    finally:
        engine.dispose()


def _engine(database: str) -> tuple[URL, Engine]:
    try:
        url = make_url(database)
        _refuse_missing_file(url)
        return url, create_engine(url)
    except ImportError as err:
        raise ConfigurationError(
            f"the driver of {database.partition(':')[0]!r} is not installed ({_line(err)}); "
            "install it with pip, or give the URL of a driver that is"
        ) from err
    except (ArgumentError, NoSuchModuleError) as err:
        if isinstance(err, ConfigurationError):
            raise
        raise ConfigurationError(
            f"--database is no URL that SQLAlchemy knows ({_line(err)}); give one like "
            "'postgresql+psycopg://user@host/name'"
        ) from err


def _line(err: BaseException) -> str:
    """Return a message on one line: that of a driver or module can have several."""
    return " ".join(str(err).split())


def _refuse_missing_file(url: URL) -> None:
    """Refuse an SQLite database that is not there: connecting would make an empty one."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return
    # a URI may name a database in memory, and may itself forbid to make one
    if not url.database.startswith("file:") and not Path(url.database).is_file():
        raise ConfigurationError(
            f"there is no database {url.database!r}; a relative path is taken from the working "
            "directory"
        )
