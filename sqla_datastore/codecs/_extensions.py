"""Extension types in Arrow streams: which may be stored, and whose code may read them.

A stream holds a type's name and metadata beside its storage. Arrow gives the metadata to the class
that the process has registered for the name, and believes it. So a stream is looked through first:
no code reads it but that of pyarrow, of pandas' periods and intervals, and of the classes that were
given to `register_arrow_type`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ._base import lacks
from ._messages import EXTENSION_NAME, extensions
from ._registered import ARROW_TYPES
from .protocol import TellsDamage

_UNKNOWN = "pyarrow does not know its extension type; store its storage"
_NOT_BACK = "its extension type does not come back from its own metadata; store its storage"
_NAMED = (
    "the metadata of a field make it an extension type when it is read; store it without them "
    "(Field.remove_metadata)"
)
# of types that lie in the stream as a pickle
_PICKLED = b"arrow.py_extension_type"
_PANDAS_MODULE = "pandas.core.arrays.arrow.extension_types"
_PANDAS_TYPES = {b"pandas.period": "ArrowPeriodType", b"pandas.interval": "ArrowIntervalType"}
_MAX_PANDAS_METADATA = 300
"""Bytes; pandas parses a frequency in them."""


def schema_refusal(schema: Any) -> str | None:
    """Return why a schema cannot be stored, or None."""
    for field in schema:
        if reason := refusal(field.type):
            return f"{reason} ({field.name!r} is {field.type})"
    return _NAMED if has_unregistered_types(schema) and not _reads_as_it_is(schema) else None


def refusal(arrow_type: Any) -> str | None:
    """Return why a type cannot be stored, or None."""
    return next(filter(None, map(_refusal, _extension_types(arrow_type))), None)


def _refusal(extension_type: Any) -> str | None:
    cls = type(extension_type)
    # The class of such a type lies in the stream as a pickle (CVE-2023-47248). pyarrow reads it
    # as unknown since 14.0.1, unless a program allows it again.
    if cls.__name__ in {"UnknownExtensionType", "PyExtensionType"} and _is_of_pyarrow(cls):
        return _UNKNOWN
    if _is_of_pyarrow(cls):
        return None
    if not _is_allowed(cls):
        register = f"call register_arrow_type({cls.__qualname__})"
        return f"its extension type is not one of pyarrow's own; {register}, or store its storage"
    return None if _comes_back(extension_type) else _NOT_BACK


def _is_allowed(cls: type[Any]) -> bool:
    """Return whether the code of a class of extension types may read objects."""
    is_of_pandas = cls.__module__ == _PANDAS_MODULE and cls.__name__ in _PANDAS_TYPES.values()
    return _is_of_pyarrow(cls) or is_of_pandas or cls in ARROW_TYPES


def _is_of_pyarrow(cls: type[Any]) -> bool:
    return cls.__module__.partition(".")[0] == "pyarrow"


def _comes_back(extension_type: Any) -> bool:
    """Return whether a type is the one that its own metadata make, as pandas' not always are."""
    metadata = extension_type.__arrow_ext_serialize__()
    try:
        back = type(extension_type).__arrow_ext_deserialize__(extension_type.storage_type, metadata)
        # by default, two of them are equal whatever their parameters
        is_same = back == extension_type and back.__arrow_ext_serialize__() == metadata
    except Exception:  # whatever its own code raises
        return False
    return bool(is_same) and back.storage_type.equals(extension_type.storage_type)


def _children(arrow_type: Any) -> list[Any]:
    if isinstance(arrow_type, pa.BaseExtensionType):
        return [arrow_type.storage_type]
    if pa.types.is_dictionary(arrow_type):
        return [arrow_type.value_type]
    if pa.types.is_run_end_encoded(arrow_type):
        return [arrow_type.value_type]
    return [arrow_type.field(each).type for each in range(arrow_type.num_fields)]


def _reads_as_it_is(schema: Any) -> bool:
    """Return whether Arrow takes no metadata of a schema for an extension type."""
    message = pa.ipc.read_message(schema.serialize())
    try:
        for _, name in extensions(message.metadata):
            cls = _registered_as(name)
            if name == _PICKLED or (cls is not None and not _is_allowed(cls)):
                return False
        return bool(pa.ipc.read_schema(message).equals(schema, check_metadata=True))
    except Exception:  # whatever the code of a type raises about other metadata than its own
        return False


def refuse_foreign(name: bytes, decoder: TellsDamage) -> None:
    """Refuse an extension type whose code nobody has allowed to read objects.

    A name that the program has not registered is metadata of a column that is read as it is stored.
    """
    if name == _PICKLED:
        raise decoder.damaged(f"an Arrow stream has types that are a pickle: {name!r}")
    cls = _registered_as(name)
    if cls is not None and not _is_allowed(cls):
        what = f"the extension type {name.decode(errors='replace')!r}"
        raise lacks(f"{what}; call register_arrow_type({cls.__qualname__}) first", decoder)


class _Unknown:
    """Stands for the class of a name where nobody can tell whether there is one."""


def _registered_as(name: bytes) -> type[Any] | None:
    """Return the Python class that Arrow would make for an extension type of a name."""
    if name in _PANDAS_TYPES:
        # to import it registers them, and fails where the name is taken
        return getattr(importlib.import_module(_PANDAS_MODULE), _PANDAS_TYPES[name])  # type: ignore[no-any-return]
    # only a private list tells without reading or registering a type
    registered = getattr(pa.lib, "_python_extension_types_registry", None)
    if registered is None:
        return None if name.startswith(b"arrow.") else _Unknown
    named = (type(each) for each in registered if each.extension_name.encode() == name)
    return next(named, None)


def check_extensions(schema: Any, storage: Any, decoder: TellsDamage) -> None:
    """Refuse extension types that are over another storage than the stored one.

    Those of Python say themselves what their storage is, and Arrow believes them.
    """
    for column, stored in zip(schema, storage, strict=True):
        if not _is_stored_as(column.type, stored.type):
            raise decoder.damaged(f"an extension type in {column.name!r} has another storage")
        for each in _extension_types(column.type):
            if type(each).__module__ == _PANDAS_MODULE:
                if len(each.__arrow_ext_serialize__()) > _MAX_PANDAS_METADATA:
                    raise decoder.damaged(
                        "the metadata of an extension type of pandas are too long"
                    )
                each.to_pandas_dtype()


def _is_stored_as(arrow_type: Any, stored: Any) -> bool:
    if isinstance(arrow_type, pa.BaseExtensionType):
        return _is_stored_as(arrow_type.storage_type, stored)
    inner, inner_stored = _children(arrow_type), _children(stored)
    if not inner:
        return bool(arrow_type.equals(stored))
    is_alike = arrow_type.id == stored.id and len(inner) == len(inner_stored)
    return is_alike and all(map(_is_stored_as, inner, inner_stored))


def _extension_types(arrow_type: Any) -> Iterator[Any]:
    if isinstance(arrow_type, pa.BaseExtensionType):
        yield arrow_type
    for child in _children(arrow_type):
        yield from _extension_types(child)


def has_unregistered_types(schema: Any) -> bool:
    """Return whether columns of a schema are read as the storage of types that Arrow does not know.

    It takes name and metadata of an extension type out of the field's metadata if it knows it.
    """
    todo = [*schema]
    while todo:
        each = todo.pop()
        if each.metadata and EXTENSION_NAME in each.metadata:
            return True
        if not isinstance(each.type, pa.BaseExtensionType):
            todo += [each.type.field(at) for at in range(each.type.num_fields)]
    return False
