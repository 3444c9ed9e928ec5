"""A schema: the entries of a value as a TypedDict, a dataclass or a pydantic model lists them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any, ClassVar

import typing_extensions

from sqla_datastore.exceptions import ConfigurationError, SchemaMismatchError
from sqla_datastore.typed.checks import problem_of

_MISSING = dataclasses.MISSING
_OPTIONAL = {typing.NotRequired, typing_extensions.NotRequired}
_MARKS = {
    *_OPTIONAL,
    *(typing.Required, typing_extensions.Required, typing_extensions.ReadOnly),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One entry that a schema lists.

    Attributes:
        annotation: its type, with what `typing.Annotated` says.
        is_required: whether a value has to have it.
        default: gives what `DataStore.typed` hands out where it is missing, None without such.
    """

    annotation: Any
    is_required: bool
    default: typing.Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class EntrySchema:
    """Which entries a value has.

    Attributes:
        name: of the class.
        fields: by the names of the entries.
        is_open: whether other entries are allowed.
    """

    name: str
    fields: Mapping[str, Field]
    is_open: bool = False

    FORMS: ClassVar[str] = "a TypedDict, a dataclass or a pydantic model"

    @staticmethod
    def of(cls: type) -> EntrySchema:
        """Return the schema that a class stands for; read once.

        Raises:
            ConfigurationError: it is no such class, or an annotation cannot be evaluated.
        """
        return _schema_of(cls)

    def check_names(
        self, names: Iterable[str], *, column: str | None = None, row: str = "the value"
    ) -> None:
        """Refuse entries that are missing, and those that the schema does not list.

        Args:
            names: all of a value.
            column: ``table.column``, for the message.
            row: whose value it is, for the message.

        Raises:
            SchemaMismatchError: says which.
        """
        given = set(names)
        for name, field in self.fields.items():
            if field.is_required and name not in given:
                problem = f"{self.name} wants the entry {name!r}, which {row} does not have"
                raise SchemaMismatchError(problem, column=column, entry=name)
        for name in sorted(given - set(self.fields)):
            self._check_listed(name, column)

    def _check_listed(self, name: str, column: str | None) -> None:
        if name not in self.fields and not self.is_open:
            listed = ", ".join(self.fields)
            problem = f"{self.name} has no entry {name!r}, but {listed}"
            raise SchemaMismatchError(problem, column=column, entry=name)

    def check(
        self, name: str, value: Any, *, column: str | None = None, row: str = "the value"
    ) -> None:
        """Refuse a value that an entry cannot have.

        Raises:
            SchemaMismatchError: says what is wrong; also for an entry that is not listed.
        """
        self._check_listed(name, column)
        field = self.fields.get(name)
        fault = None if field is None else problem_of(value, field.annotation)
        if fault:
            problem = f"entry {name!r} of {row} is not what {self.name} says: {fault}"
            raise SchemaMismatchError(problem, column=column, entry=name)


def entries_of(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a dataclass's or model's instance by name, None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    fields = getattr(type(value), "model_fields", None)
    if not isinstance(fields, Mapping):
        return None
    more = getattr(value, "model_extra", None) or {}
    return {**{name: getattr(value, name) for name in fields}, **more}


@cache
def _schema_of(cls: Any) -> EntrySchema:
    if not isinstance(cls, type):
        raise ConfigurationError(f"{cls!r} is no schema of entries; give {EntrySchema.FORMS}")
    if typing_extensions.is_typeddict(cls):
        return EntrySchema(cls.__name__, _typed_dict_fields(cls))
    if dataclasses.is_dataclass(cls):
        return EntrySchema(cls.__name__, _dataclass_fields(cls))
    if isinstance(getattr(cls, "model_fields", None), Mapping):
        is_open = getattr(cls, "model_config", {}).get("extra") == "allow"
        return EntrySchema(cls.__name__, _model_fields(cls), is_open)
    raise ConfigurationError(
        f"{cls.__module__}.{cls.__qualname__} is no schema of entries; give {EntrySchema.FORMS}"
    )


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing_extensions.get_type_hints(cls, include_extras=True)
    except NameError as err:
        raise ConfigurationError(
            f"the annotations of {cls.__qualname__} need {err.name!r}, which its module does not "
            "have when it runs; import it outside of `if TYPE_CHECKING:`"
        ) from err


def _typed_dict_fields(cls: Any) -> dict[str, Field]:
    fields = {}
    for name, hint in _hints(cls).items():
        is_required = name in cls.__required_keys__
        while typing.get_origin(hint) in _MARKS:
            # `__required_keys__` does not see these in annotations that are text
            is_required = typing.get_origin(hint) not in _OPTIONAL
            hint = typing.get_args(hint)[0]
        fields[name] = Field(hint, is_required)
    return fields


def _dataclass_fields(cls: Any) -> dict[str, Field]:
    hints = _hints(cls)
    return {
        field.name: Field(hints[field.name], *_default(field.default, field.default_factory))
        for field in dataclasses.fields(cls)
    }


def _default(value: Any, factory: Any) -> tuple[bool, typing.Callable[[], Any] | None]:
    if factory is not _MISSING:
        return False, factory
    return value is _MISSING, None if value is _MISSING else lambda: value


def _model_fields(cls: Any) -> dict[str, Field]:
    hints = _hints(cls)
    return {name: _model_field(hints[name], info) for name, info in cls.model_fields.items()}


def _model_field(annotation: Any, info: Any) -> Field:
    if info.is_required():
        return Field(annotation, is_required=True)
    default = partial(info.get_default, call_default_factory=True)
    return Field(annotation, is_required=False, default=default)
