"""SQLAdmin: a view whose lists, details and forms know values.

::

    class RunAdmin(DataStoreView, model=Run):
        column_list = [Run.id, Run.title, Run.data]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, ClassVar

from markupsafe import Markup
from sqladmin import ModelView
from sqladmin.fields import TextAreaField
from sqladmin.formatters import BASE_FORMATTERS
from sqladmin.forms import WTFORMS_ATTRS, ModelConverter, converts
from sqladmin.pagination import Pagination
from starlette.requests import Request

from sqla_datastore.admin.plain_entries import checked, revised, summary_of, text_of
from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.unitofwork.values_of_rows import declared_attributes
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.inspection import html_of
from sqla_datastore.value.prefetching import aprefetch

__all__ = ["DataStoreConverter", "DataStoreField", "DataStoreView"]


class DataStoreField(TextAreaField):
    """A text area with the plain entries of a value as JSON."""

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        return self.data or "{}"

    def process_formdata(self, valuelist: list[str]) -> None:  # noqa: D102
        self.data = valuelist[0].strip() or None if valuelist else None
        if self.data:
            checked(self.data)


class DataStoreConverter(ModelConverter):
    """Makes a `DataStoreField` of each attribute that holds values."""

    @converts("sqla_datastore.types.DataStoreType")  # type: ignore[untyped-decorator]
    def conv_datastore(  # noqa: D102
        self,
        model: type,  # noqa: ARG002
        prop: Any,  # noqa: ARG002
        kwargs: dict[str, Any],
    ) -> Any:
        kwargs["render_kw"] = {"rows": 12, **kwargs.get("render_kw", {})}
        return DataStoreField(**kwargs)


class DataStoreView(ModelView):
    """A view of a class with attributes that hold values.

    Lists and details read indexes alone, of all rows of a page at the same time. A form that is
    saved as it was made writes nothing; one that was made before others have changed the value is
    refused. What overrides a method here calls `super()`.
    """

    form_converter = DataStoreConverter
    column_type_formatters: ClassVar[dict[type, Any]] = {**BASE_FORMATTERS, DataStore: summary_of}
    column_type_formatters_detail: ClassVar[dict[type, Any]] = {
        **BASE_FORMATTERS,
        # which escapes what it shows
        DataStore: lambda value: Markup(html_of(value)),  # noqa: S704
    }

    async def list(self, request: Request) -> Pagination:  # noqa: D102
        page = await super().list(request)
        await self._prefetch(page.rows)
        return page

    async def get_object_for_details(self, request: Request) -> Any:  # noqa: D102
        row = await super().get_object_for_details(request)
        await self._prefetch([row] if row is not None else [])
        return row

    async def get_prop_value(self, obj: Any, prop: str) -> Any:  # noqa: D102
        # the other one asks whether the value is true, which reads its index
        if prop in self._value_keys():
            return getattr(obj, prop)
        return await super().get_prop_value(obj, prop)

    async def get_form_data_for_edit(self, obj: Any) -> dict[str, Any]:  # noqa: D102
        fields = await super().get_form_data_for_edit(obj)
        for key in self._value_keys():
            field = WTFORMS_ATTRS.get(key, key)
            if fields.get(field) is not None:
                fields[field] = await text_of(fields[field])
        return fields

    async def insert_model(self, request: Request, data: dict[str, Any]) -> Any:  # noqa: D102
        # "save as new" has the key of the row whose value is copied
        before = await self._values_before(request) if "pk" in request.path_params else {}
        return await super().insert_model(request, data | await self._revised(before, data))

    async def update_model(  # noqa: D102
        self, request: Request, pk: str, data: dict[str, Any]
    ) -> Any:
        before = await self._values_before(request)
        values = await self._revised(before, data)
        # what was not edited is not assigned: the row that is saved has a value of its own
        unedited = {key for key, value in values.items() if value is before.get(key)}
        kept = {key: value for key, value in (data | values).items() if key not in unedited}
        return await super().update_model(request, pk, kept)

    async def _values_before(self, request: Request) -> dict[str, DataStore | None]:
        row = await self.get_object_for_edit(request)
        return {key: getattr(row, key, None) for key in self._value_keys()}

    async def _revised(
        self, before: dict[str, DataStore | None], data: dict[str, Any]
    ) -> dict[str, DataStore]:
        """Return the values that the texts of a form's data make of earlier ones."""
        texts = {key: data[key] for key in self._value_keys() if data.get(key) is not None}
        return {key: await revised(before.get(key), text) for key, text in texts.items()}

    async def _prefetch(self, rows: Iterable[Any]) -> None:
        for key in self._value_keys():
            # what cannot be read is shown in its place
            with contextlib.suppress(DataStoreError):
                await aprefetch(rows, key, [])

    def _value_keys(self) -> tuple[str, ...]:
        return declared_attributes(self._mapper)
