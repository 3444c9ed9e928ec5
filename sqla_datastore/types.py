"""The column type: it adapts between a `DataStore`, its URL and SQL.

Importing it installs the listeners of the other rooms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.types import String, Text, TypeDecorator, TypeEngine
from typing_extensions import override

from sqla_datastore.dml.insert_update_delete import IN_ROW_COMPARED
from sqla_datastore.dml.reservation import Reservation
from sqla_datastore.engine import dialect_observer
from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.options import check_compression
from sqla_datastore.orm import session_events
from sqla_datastore.schema.columns import DeclaredType
from sqla_datastore.schema.folder_templates import check_template
from sqla_datastore.schema.in_row_text import check_inline_bytes, text_for_values_in_rows
from sqla_datastore.storage.binding import check_storage, storage_for
from sqla_datastore.storage.urls import URL_LENGTH, is_in_row
from sqla_datastore.value.datastore import DataStore


class DataStoreType(DeclaredType):
    """A column that holds the URL of a `DataStore`; its objects follow the transaction.

    ::

        data: Mapped[DataStore] = mapped_column(DataStoreType())

    In the database it is a ``VARCHAR(1024)``, and with `inline_bytes` a ``TEXT``.

    Args:
        url: the storage of this column, for example ``"/data/results"``, a `pathlib.Path` or
            ``"file:///data/results"``; by default what `bind_storage`, `options.url`, the
            environment variable ``SQLA_DATASTORE_URL`` or the folder ``sqla.datastore`` say.
        folder: a template over the row's attributes for the folder that its objects go to;
            ``{table}`` is the table's name and ``{pk}`` the primary key. A row owns its folder,
            which is emptied when the row is inserted or deleted, when the template holds the whole
            primary key.
        inline_bytes: a value whose objects take at most so many bytes stays in the row, as a
            ``data:`` URL; 0, the default, keeps all of them outside. A value moves when it grows or
            shrinks. ``docs/small-values.md`` tells when it pays.
        compression: True compresses of new objects what shrinks by a tenth or more, ``"fast"`` with
            less effort and ``"small"`` with more; False does not, and None, the default, leaves it
            to `options.compression`. ``docs/compression.md`` tells when it pays.
        entries: a TypedDict, a dataclass or a pydantic model that lists them, so that they are
            checked when they are flushed; by default that of ``Mapped[DataStore[Schema]]``, and
            none for ``Mapped[DataStore]``. See ``docs/typed.md``.

    Raises:
        ConfigurationError: a template that cannot be rendered into a path below the base, a URL
            that no storage serves, `inline_bytes` is no number of bytes, or `compression` is none
            of these. More than a database can hold is refused when the column is created, or first
            used.
        TypeError: the storage is neither text nor a path.
    """

    impl = String
    cache_ok = True

    # values are compared by identity or URL, so `Result.unique()` must not hash them
    hashable = False

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        folder: str = "{table}/{pk}",
        inline_bytes: int = 0,
        compression: bool | Literal["fast", "small"] | None = None,
        entries: type | None = None,
    ) -> None:
        # all by name or position: SQLAlchemy's cache key and `adapt` leave out keyword-only ones
        super().__init__(URL_LENGTH)
        # refused now: the columns of all tables are compared before the first statement of any
        self.url = None if url is None else check_storage(url)
        self.folder = check_template(folder)
        self.inline_bytes = check_inline_bytes(inline_bytes)
        self.compression = None if compression is None else check_compression(compression)
        # `EntrySchema.of` would evaluate annotations that may name what is defined later
        self.entries = entries
        if inline_bytes:
            self.impl = Text()  # type: ignore[assignment] # an instance, as super().__init__ makes it

    def __repr__(self) -> str:
        arguments = [repr(self.url)] if self.url is not None else []
        if self.folder != "{table}/{pk}":
            arguments.append(f"folder={self.folder!r}")
        if self.inline_bytes:
            arguments.append(f"inline_bytes={self.inline_bytes}")
        if self.compression is not None:
            arguments.append(f"compression={self.compression!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"

    @override
    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        # before the first statement that it is compiled for; a connection may be older than that
        dialect_observer.observe(dialect)
        if self.inline_bytes:
            return text_for_values_in_rows(dialect, self.inline_bytes)
        return super().load_dialect_impl(dialect)

    @property
    @override
    def python_type(self) -> type[DataStore]:
        return DataStore

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if isinstance(value, Mapping):
            dialect_observer.refuse_replaced(dialect)
            return Reservation(value)
        return value  # type: ignore[no-any-return]

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> DataStore | None:
        if value is None:
            return None
        return DataStore._at(storage_for(self.url, dialect), value)

    @override
    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        impl, cls = self.impl_instance.result_processor(dialect, coltype), type(self)
        if impl or cls.process_result_value is not DataStoreType.process_result_value:
            return super().result_processor(dialect, coltype)
        url, at = self.url, DataStore._at

        def process(value: Any) -> DataStore | None:
            return None if value is None else at(storage_for(url, dialect), value)

        return process

    @override
    def process_literal_param(self, value: Any, dialect: Dialect) -> str:
        return str(_url_of(value))

    @override
    def compare_values(self, x: Any, y: Any) -> bool:
        if isinstance(x, DataStore) and isinstance(y, DataStore):
            # a merged copy may have been edited in place while it was detached
            return not (x is not y and (x._scan() or y._scan())) and x._same_as(y)
        return x is y

    class Comparator(TypeDecorator.Comparator[Any]):
        """Compares the column to URLs; a stored value stands for its URL."""

        @override
        def operate(self, op: operators.OperatorType, *other: Any, **kwargs: Any) -> Any:
            return super().operate(op, *(_url_of(item) for item in other), **kwargs)

    comparator_factory: Callable[..., Any] = Comparator


def _url_of(value: Any) -> Any:
    """Return the URL of a stored value, and anything else as it is."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_url_of(item) for item in value]
    if not isinstance(value, DataStore):
        return value
    url = value._unchanged_url()
    if url is None:
        raise RefusedStatementError(
            "a DataStore that is not stored, or was changed since, has no URL to compare with; "
            "flush its row first, or compare with a URL string"
        )
    if is_in_row(url):
        raise RefusedStatementError(IN_ROW_COMPARED)
    return url


dialect_observer.install()
session_events.install()
