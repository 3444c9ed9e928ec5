"""What pydantic makes of a value: it takes mappings, and its JSON is metadata, never a payload.

Imported when pydantic asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NotRequired

from pydantic_core import PydanticCustomError, core_schema

# pydantic refuses typing.TypedDict on Python 3.11
from typing_extensions import TypedDict

from sqla_datastore.codecs import Description
from sqla_datastore.exceptions import UnsupportedTypeError
from sqla_datastore.storage.urls import is_in_row
from sqla_datastore.value.inspection import inspect
from sqla_datastore.value.mapping import EntryMapping
from sqla_datastore.value.saving import plan

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler


class EntryMetadata(TypedDict):
    """What is known of an entry without its payload; of a file, `dtype` is the content type."""

    type: str
    dtype: str | None
    shape: list[int] | None
    nbytes: int
    file_name: NotRequired[str]


class DataStoreMetadata(TypedDict):
    """What is known of a value without its payload; `url` is null where no object holds it."""

    url: str | None
    entries: dict[str, EntryMetadata]


def core_schema_of(
    coerce: Callable[[Mapping[str, Any]], EntryMapping], handler: GetCoreSchemaHandler
) -> core_schema.JsonOrPythonSchema:
    """Return the schema of a field: a value or a mapping goes in, metadata comes out as JSON.

    Args:
        coerce: makes a value of a mapping, and returns a value as it is.
        handler: makes schemas of other types.
    """
    function = core_schema.no_info_plain_validator_function(partial(_validated, coerce))
    return core_schema.json_or_python_schema(
        # the same as for Python; it only adds that JSON has an object here
        json_schema=core_schema.chain_schema(
            [core_schema.dict_schema(core_schema.str_schema()), function]
        ),
        python_schema=function,
        serialization=core_schema.plain_serializer_function_ser_schema(
            metadata_of,
            return_schema=handler.generate_schema(DataStoreMetadata),
            when_used="json",
        ),
    )


def metadata_of(value: EntryMapping) -> DataStoreMetadata:
    """Return what is known of a value as JSON has words for it; reads its index at most.

    The URL of a value in the row is left out: it is the value.

    Raises:
        MissingObjectError: its object is gone.
        DamagedObjectError: the index is not what was written.
        StorageError: to read the index would block the event loop; see `aprefetch`.
    """
    known = inspect(value)
    return {
        "url": None if known.url is None or is_in_row(known.url) else known.url,
        "entries": {_as_json(name): _of_entry(what) for name, what in known.entries.items()},
    }


def _of_entry(what: Description) -> EntryMetadata:
    found: EntryMetadata = {
        "type": what.type,
        "dtype": what.dtype,
        "shape": None if what.shape is None else list(what.shape),
        "nbytes": what.nbytes,
    }
    return found if what.file_name is None else {**found, "file_name": what.file_name}


def _as_json(name: str) -> str:
    """Return a name as UTF-8 has it: lone surrogates become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _validated(coerce: Callable[[Mapping[str, Any]], EntryMapping], value: Any) -> EntryMapping:
    """Return the value of a field.

    A mapping is encoded once, without I/O, so that what cannot be stored is refused here and not
    at the flush.
    """
    if not isinstance(value, Mapping):
        needed = "a DataStore or a mapping is needed here, not '{type}'; give it a name: {example}"
        facts = {"type": type(value).__name__, "example": "{'data': ...}"}
        raise PydanticCustomError("datastore", needed, facts)
    try:
        coerced = coerce(value)
        if coerced is not value:
            plan(coerced, None)
    except UnsupportedTypeError as err:
        # as a template's argument, since a message may have braces
        raise PydanticCustomError("datastore", "{reason}", {"reason": str(err)}) from err
    return coerced
