"""The page: tables, rows, the entries of a row's values, and one entry at a time.

Each page loads what it shows and nothing else: a list of rows asks no storage, a row reads the
indexes of its values, an entry its own bytes. Names and keys are in the query part of an address,
where any text can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final
from urllib.parse import parse_qsl, quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from sqla_datastore.browsing.entries import EntryRef, entries_of, find_entry, nested_value
from sqla_datastore.browsing.pictures import picture
from sqla_datastore.browsing.rows import PAGE_ROWS, NotThereError, Row, Tables
from sqla_datastore.browsing.views import View, view_of
from sqla_datastore.exceptions import DataStoreError, MissingObjectError, StorageError
from sqla_datastore.files.file import File
from sqla_datastore.printable import printable
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.display import dtype_text, entry_size_text, place_text, size_text

_LONGEST: Final = 1_000
_LISTED_ENTRIES: Final = 1_000
_PIECE: Final = 1 << 20


def page_of(tables: Tables) -> Starlette:
    """Return the page of some tables, without a guard: see `guard.Guard`."""
    page = _Pages(tables)
    routes = [
        Route("/", page.answering(page.tables)),
        Route("/rows", page.answering(page.rows)),
        Route("/row", page.answering(page.row)),
        Route("/entry", page.answering(page.entry)),
        Route("/picture", page.answering(page.picture)),
        Route("/file", page.answering(page.file)),
        Route("/style.css", page.answering(page.style)),
    ]
    return Starlette(routes=routes, exception_handlers={404: page.no_page})


class _Query:
    """The query part of an address: which table, row, column and entry are asked for."""

    def __init__(self, request: Request) -> None:
        text = request.scope["query_string"].decode("latin-1")
        try:
            # names of entries can have lone surrogates, in files of hostile strangers
            self._pairs = parse_qsl(text, keep_blank_values=True, errors="surrogatepass")
        except UnicodeDecodeError:
            self._pairs = parse_qsl(text, keep_blank_values=True)

    def one(self, name: str, default: str = "") -> str:
        return next((value for key, value in self._pairs if key == name), default)

    @property
    def path(self) -> list[str]:
        return [value for key, value in self._pairs if key == "entry"]

    def number(self, name: str) -> int:
        text = self.one(name, "0")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


class _Pages:
    """Answers requests, in threads: each method takes a query and returns a response."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._templates = Environment(
            loader=PackageLoader("sqla_datastore.browsing"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["address"] = _address
        self._templates.filters["size"] = size_text
        self._templates.filters["entry_size"] = entry_size_text
        self._templates.filters["place"] = place_text
        self._templates.filters["dtype"] = dtype_text

    def answering(self, show: Callable[[_Query], Response]) -> Callable[[Request], Response]:
        """Return an endpoint that turns errors into pages."""

        def answer(request: Request) -> Response:
            try:
                return show(_Query(request))
            except NotThereError as err:
                return self._message(404, "Not there", err)
            except MissingObjectError as err:
                return self._message(404, "The object is missing", err)
            except StorageError as err:
                return self._message(503, "The storage cannot be read", err)
            except DataStoreError as err:
                return self._message(422, "It cannot be read", err)
            except SQLAlchemyError as err:
                reason = " ".join(str(getattr(err, "orig", None) or err).split())
                return self._message(503, "The database cannot be read", reason)

        return answer

    # -- pages

    def tables(self, _query: _Query) -> Response:
        return self._page("tables.html", tables=self._tables.summaries())

    def rows(self, query: _Query) -> Response:
        table, search, offset = query.one("table"), query.one("search"), query.number("offset")
        page = self._tables.page(table, search=search, offset=offset)
        return self._page(
            "rows.html",
            table=table,
            search=search,
            offset=offset,
            page=page,
            size=PAGE_ROWS,
            fields=list(page.rows[0].fields) if page.rows else [],
            columns=list(page.rows[0].values) if page.rows else [],
        )

    def row(self, query: _Query) -> Response:
        row = self._tables.row(query.one("table"), query.one("key"))
        values = [(name, value, *self._entries(value)) for name, value in row.values.items()]
        return self._page("row.html", row=row, values=values)

    def entry(self, query: _Query) -> Response:
        row, column, value = self._value(query)
        path = query.path
        if not path:
            raise NotThereError("the address names no entry; go to its row")
        ref = find_entry(value, *path)
        if ref.is_nested:
            return self._entry_page(row, column, path, ref, None, nested_value(value, path))
        if ref.is_large and not query.one("load"):
            return self._entry_page(row, column, path, ref, None)
        return self._entry_page(row, column, path, ref, self._view(ref))

    def picture(self, query: _Query) -> Response:
        _row, _column, value = self._value(query)
        path = query.path
        ref = find_entry(value, *path) if path else None
        if ref is None or ref.is_nested or (ref.is_large and not query.one("load")):
            raise NotThereError("there is no picture here")
        made = picture(ref.load())
        if made is None:
            raise NotThereError(f"entry {path[-1]!r} is no picture")
        data, kind = made
        return Response(data, media_type=kind)

    def file(self, query: _Query) -> Response:
        """Send a file for saving: what browsers would do with its type is not asked."""
        _row, _column, value = self._value(query)
        path = query.path
        ref = find_entry(value, *path) if path else None
        file = ref.load() if ref is not None and ref.is_file else None
        if not isinstance(file, File):
            raise NotThereError("there is no file here")
        headers = {
            "Content-Length": str(file.size_bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        }
        # opened here: what is missing becomes a page
        sent = _pieces(file.open())
        return StreamingResponse(sent, headers=headers, media_type="application/octet-stream")

    def style(self, _query: _Query) -> Response:
        return Response(self._templates.get_template("style.css").render(), media_type="text/css")

    def no_page(self, _request: Request, _err: Exception) -> Response:
        return self._message(404, "Not there", "there is no such page; go to the tables")

    # -- parts

    def _value(self, query: _Query) -> tuple[Row, str, DataStore]:
        row = self._tables.row(query.one("table"), query.one("key"))
        column, value = row.value(query.one("column") or None)
        return row, column, value

    def _entries(self, value: DataStore | None) -> tuple[dict[str, Any], int, str]:
        """Return the first entries of a value, how many it has, and why they cannot be told."""
        if value is None:
            return {}, 0, ""
        try:
            return entries_of(value, _LISTED_ENTRIES), len(value), ""
        except DataStoreError as err:
            return {}, 0, printable(err)

    def _view(self, ref: EntryRef) -> View:
        value = ref.load()
        try:
            return view_of(value)
        except Exception as err:  # of a library, about a value that it cannot show
            return View(notes=[printable(f"it cannot be shown: {type(err).__name__}: {err}")])

    def _entry_page(
        self,
        row: Row,
        column: str,
        path: list[str],
        ref: EntryRef,
        view: View | None,
        nested: DataStore | None = None,
    ) -> Response:
        entries, count, error = self._entries(nested)
        plots = [] if view is None else [(title, Markup(svg)) for title, svg in view.plots]  # noqa: S704 - numbers, and a title that is escaped
        return self._page(
            "entry.html",
            row=row,
            column=column,
            path=path,
            what=ref.description,
            view=view,
            plots=plots,
            nested=nested,
            entries=entries,
            count=count,
            error=error,
        )

    def _message(self, status: int, title: str, reason: object) -> Response:
        names = self._tables.names
        return self._page("message.html", status, title=title, reason=reason, names=names)

    def _page(self, template: str, status: int = 200, **shown: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(**shown), status)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(_PIECE):
            yield piece


def _shown(value: object) -> object:
    """Make what a template shows harmless; it is escaped after that."""
    return value if isinstance(value, Markup) else printable(value, _LONGEST)


def _address(page: str, path: Sequence[str] = (), **query: Any) -> Markup:
    """Return the address of a page about a table, a key, a column and a path of entries."""
    pairs = [(name, str(value)) for name, value in query.items() if value not in ("", None, 0)]
    pairs += [("entry", name) for name in path]
    text = urlencode(pairs, errors="surrogatepass")
    return Markup("{}?{}").format(page, text) if text else Markup("{}").format(page)
