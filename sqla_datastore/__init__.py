"""DataStore columns for SQLAlchemy: arrays, frames and tables outside the database, in step.

::

    class Experiment(Base):
        __tablename__ = "experiments"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
        data: Mapped[DataStore] = mapped_column(DataStoreType())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqla_datastore.codecs import (
    announce_codecs,
    register_arrow_type,
    register_codec,
    register_enum,
    register_namedtuple,
)
from sqla_datastore.exceptions import (
    CollectError,
    ConfigurationError,
    DamagedObjectError,
    DataStoreError,
    DefaultStorageWarning,
    MissingObjectError,
    RefusedStatementError,
    RefusedURLError,
    SchemaMismatchError,
    StaleValueError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.options import options
from sqla_datastore.storage.binding import bind_storage
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqla_datastore.files.file import File
    from sqla_datastore.removals.table import enable_removals
    from sqla_datastore.storage.schemes import register_storage
    from sqla_datastore.tables.collecting import (
        acollect,
        acollect_array,
        acollect_batches,
        collect,
        collect_array,
        collect_batches,
    )
    from sqla_datastore.types import DataStoreType
    from sqla_datastore.value.inspection import inspect
    from sqla_datastore.value.io import DataStoreIO
    from sqla_datastore.value.prefetching import aload, aprefetch, prefetch
    from sqla_datastore.value.signing import sign

    __version__: str

__all__ = [
    "CollectError",
    "ConfigurationError",
    "DamagedObjectError",
    "DataStore",
    "DataStoreError",
    "DataStoreIO",
    "DataStoreType",
    "DefaultStorageWarning",
    "File",
    "MissingObjectError",
    "RefusedStatementError",
    "RefusedURLError",
    "SchemaMismatchError",
    "StaleValueError",
    "StorageError",
    "UnsupportedFormatError",
    "UnsupportedTypeError",
    "acollect",
    "acollect_array",
    "acollect_batches",
    "aload",
    "aprefetch",
    "bind_storage",
    "collect",
    "collect_array",
    "collect_batches",
    "enable_removals",
    "inspect",
    "options",
    "prefetch",
    "register_arrow_type",
    "register_codec",
    "register_enum",
    "register_namedtuple",
    "register_storage",
    "sign",
]

# imported when first asked for, so that importing the package stays cheap
_MODULES = {
    "DataStoreIO": "sqla_datastore.value.io",
    "DataStoreType": "sqla_datastore.types",
    "File": "sqla_datastore.files.file",
    "acollect": "sqla_datastore.tables.collecting",
    "acollect_array": "sqla_datastore.tables.collecting",
    "acollect_batches": "sqla_datastore.tables.collecting",
    "aload": "sqla_datastore.value.prefetching",
    "aprefetch": "sqla_datastore.value.prefetching",
    "collect": "sqla_datastore.tables.collecting",
    "collect_array": "sqla_datastore.tables.collecting",
    "collect_batches": "sqla_datastore.tables.collecting",
    "enable_removals": "sqla_datastore.removals.table",
    "inspect": "sqla_datastore.value.inspection",
    "register_storage": "sqla_datastore.storage.schemes",
    "prefetch": "sqla_datastore.value.prefetching",
    "sign": "sqla_datastore.value.signing",
}
announce_codecs("files", "sqla_datastore", "sqla_datastore.files.codec")


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("sqla_datastore")
    if name in _MODULES:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
