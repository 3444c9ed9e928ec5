"""starlette-admin: a view whose lists, details and forms know values.

::

    class RunView(DataStoreView):
        fields = ["id", "title", "data"]


    admin.add_view(RunView(Run))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from sqlalchemy.orm import class_mapper
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette_admin import RequestAction
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.contrib.sqla.converters import BaseSQLAModelConverter, ModelConverter
from starlette_admin.converters import converts
from starlette_admin.exceptions import FormValidationError
from starlette_admin.fields import BaseField, TextAreaField

from sqla_datastore.admin.plain_entries import checked, revised, summary_of, text_of
from sqla_datastore.exceptions import DataStoreError, UnsupportedTypeError
from sqla_datastore.storage.off_loop import in_thread
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.inspection import html_of

__all__ = ["DataStoreConverter", "DataStoreField", "DataStoreView"]


@dataclass
class DataStoreField(TextAreaField):
    """A text area with the plain entries of a value as JSON; tables elsewhere."""

    rows: int = 12
    searchable: bool | None = False
    orderable: bool | None = False
    detail_template: str = "fields/detail/text.html"

    async def serialize_value(self, request: Request, value: Any) -> Any:  # noqa: D102
        if not isinstance(value, DataStore):
            return value
        action = request.state.action
        if action in (RequestAction.EDIT, RequestAction.INLINE_EDIT):
            return await text_of(value)
        if action == RequestAction.DETAIL:
            # escapes what it shows
            return Markup(await in_thread(lambda: html_of(value)))  # noqa: S704
        return await in_thread(lambda: summary_of(value))

    async def parse_form_data(self, request: Request, form_data: FormData) -> Any:  # noqa: ARG002, D102
        return str(form_data.get(self.id) or "").strip() or None

    async def validate(  # noqa: D102
        self, request: Request, value: Any, form_values: dict[str, Any]
    ) -> None:
        await super().validate(request, value, form_values)
        if value is not None:
            checked(value)


class DataStoreConverter(ModelConverter):
    """Makes a `DataStoreField` of each attribute that holds values."""

    @converts("sqla_datastore.types.DataStoreType")
    def conv_datastore(self, *args: Any, **kwargs: Any) -> BaseField:  # noqa: D102
        common = self._field_common(*args, **kwargs)
        empty = "{}" if common.get("required") else None
        return DataStoreField(**{**common, "default": empty})


class DataStoreView(ModelView):
    """A view of a class with attributes that hold values.

    Lists and details read indexes alone. A form that is saved as it was made writes nothing; one
    that was made before others have changed the value is refused. What overrides `create` or `edit`
    calls `super()`.
    """

    def __init__(
        self, model: type[Any], *, converter: BaseSQLAModelConverter | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, converter=converter or DataStoreConverter(), **kwargs)

    async def create(self, request: Request, data: dict[str, Any]) -> Any:  # noqa: D102
        return await super().create(request, await self._with_values(request, data, None))

    async def edit(self, request: Request, pk: Any, data: dict[str, Any]) -> Any:  # noqa: D102
        row = await self.find_by_pk(request, pk)
        return await super().edit(request, pk, await self._with_values(request, data, row))

    async def handle_exception(self, request: Request, exc: Exception) -> None:
        """Show at its field why a value cannot be stored, such as what its schema says."""
        if isinstance(exc, UnsupportedTypeError) and exc.column is not None:
            columns = {
                each.key: str(each.columns[0]) for each in class_mapper(self.model).column_attrs
            }
            for field in self.get_fields_list(request):
                if isinstance(field, DataStoreField) and columns.get(field.name) == exc.column:
                    raise FormValidationError({field.name: str(exc)}) from exc
        await super().handle_exception(request, exc)

    async def _with_values(
        self, request: Request, data: dict[str, Any], row: Any
    ) -> dict[str, Any]:
        """Return a form's data with values in place of their texts."""
        values: dict[str, Any] = {}
        for field in self.get_fields_list(request):
            text = data.get(field.name)
            if isinstance(field, DataStoreField) and isinstance(text, str):
                try:
                    values[field.name] = await revised(getattr(row, field.name, None), text)
                except (ValueError, DataStoreError) as err:
                    raise FormValidationError({field.name: str(err)}) from err
        return data | values
