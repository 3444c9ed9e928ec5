"""What is known of a value, and how it is shown: as aligned text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import Final

from sqla_datastore.codecs import Description
from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.printable import printable
from sqla_datastore.storage.urls import DataURL, ObjectURL, is_in_row

SHOWN: Final = 20
_SHOWN_BY_INSPECT: Final = 200
_WIDEST: Final = 40
_WIDEST_TYPE: Final = 120
_TITLES: Final = ("entry", "type", "dtype", "shape", "size", "")

# Colours are the page's own, so that dark pages stay dark: JupyterLab's and VS Code's variables
# where they are set, what surrounds the table where not. Lines and stripes are grey that lets
# through what is behind it. The class is named twice to prevail over JupyterLab's rule for cells.
_STYLE: Final = (
    ".sqla-ds{color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));"
    "font-size:var(--jp-content-font-size1,.9em);border-collapse:collapse;background:none}"
    ".sqla-ds caption{caption-side:top;text-align:left;padding:.3em 0;white-space:nowrap}"
    ".sqla-ds caption,.sqla-ds .p{color:var(--jp-content-font-color2,#666)}"
    ".sqla-ds.sqla-ds td,.sqla-ds.sqla-ds th{text-align:left;padding:.2em .8em .2em 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.3);background:none;vertical-align:top}"
    ".sqla-ds.sqla-ds tr>.n{text-align:right;white-space:nowrap}"
    ".sqla-ds code{color:inherit;background:none}"
    "@media (prefers-color-scheme:dark){.sqla-ds caption,.sqla-ds .p"
    "{color:var(--jp-content-font-color2,#aaa)}}"
)


@dataclass(frozen=True, slots=True, repr=False)
class Inspection:
    """The state of a value; prints as a table.

    Attributes:
        url: the object that holds it, or None until it is stored.
        stored: whether an object holds it, or held it before it was changed.
        changed: whether saving it would write something new. Entries edited in place count; one
            that only looks edited may count too until the next flush has compared it.
        loaded: the names of the entries whose values are in memory, in order.
        entries: type, dtype, shape and ``nbytes`` by name, in order. That is the payload's own size
            in bytes: ``nbytes`` for NumPy arrays and scalars, the length of bytes, the UTF-8 length
            of text, the same before and after the value is stored. For frames, tables and
            collections it is what their columns or items take, in memory before and in the object
            after (headers included). For a nested `DataStore` it is the sum of its entries, once
            its index was read. It is 0 where nobody can tell.
    """

    url: str | None
    stored: bool
    changed: bool
    loaded: tuple[str, ...]
    entries: dict[str, Description]

    def __repr__(self) -> str:
        rows = rows_of(self, _SHOWN_BY_INSPECT)
        head = f"<Inspection {summary(self.url, self, changed=self.changed)}>"
        titles = [list(_TITLES)] if rows else []
        more = lines_of_rest(self, _SHOWN_BY_INSPECT)
        return "\n".join([head, *aligned([*titles, *rows]), *more])

    def _repr_html_(self) -> str:
        caption = f"Inspection {summary(self.url, self, changed=self.changed)}"
        rows = rows_of(self, _SHOWN_BY_INSPECT)
        return html_table(caption, rows, [], lines_of_rest(self, _SHOWN_BY_INSPECT))


def size_text(nbytes: int) -> str:
    """Return a size for people: ``12 B``, ``1.5 MiB``.

    Examples:
        >>> size_text(1536)
        '1.5 KiB'
    """
    size, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def place_text(url: str | None) -> str:
    """Return where a value is: the URL, unless that is the value itself."""
    if url is None:
        return "not stored"
    if not is_in_row(url):
        return url
    try:
        parsed = ObjectURL.parse(url)
    except RefusedURLError:
        return "in the row, damaged"
    return f"in the row, {size_text(parsed.size_bytes)}" if isinstance(parsed, DataURL) else url


def dtype_text(what: Description) -> str:
    """Return an entry's dtype, of a file its name and content type, "" where it has none.

    Examples:
        >>> dtype_text(Description("File", "text/csv", file_name="loss.csv"))
        'loss.csv, text/csv'
    """
    return ", ".join(filter(None, (what.file_name, what.dtype)))


def name_text(name: str) -> str:
    """Return an entry's name, short and harmless; as ``repr`` shows it where it is unusual."""
    # a cut before `repr`, which would take ten times as much for a name of controls alone
    text = name if name.isprintable() and name else repr(name[:_WIDEST])
    return text if max(len(text), len(name)) <= _WIDEST else text[: _WIDEST - 1] + "…"


# -- parts -----------------------------------------------------------------------------------------


def count_text(number: int) -> str:
    """Return how many entries there are.

    Examples:
        >>> count_text(1), count_text(2)
        ('1 entry', '2 entries')
    """
    return f"{number} {'entry' if number == 1 else 'entries'}"


def summary(url: str | None, known: Inspection | None, *, changed: bool) -> str:
    """Return where a value is, whether it was changed, and how many entries it has."""
    count = [] if known is None else [count_text(len(known.entries))]
    edited = ["changed"] if changed and url is not None else []
    return printable(", ".join([place_text(url), *edited, *count]))


def rows_of(known: Inspection, shown: int) -> list[list[str]]:
    """Return the cells of the first entries: name, type, dtype, shape, size, state."""
    loaded = set(known.loaded)
    return [
        [
            name_text(name),
            *facts_of(what),
            "loaded" if name in loaded and known.stored else "",
        ]
        for name, what in islice(known.entries.items(), shown)
    ]


def facts_of(what: Description) -> list[str]:
    """Return the cells of an entry's type, dtype, shape and size; harmless on a terminal."""
    shape = "" if what.shape is None else printable(what.shape, _WIDEST_TYPE)
    names = [printable(what.type, _WIDEST_TYPE), printable(dtype_text(what), _WIDEST_TYPE)]
    return [*names, shape, entry_size_text(what)]


def entry_size_text(what: Description) -> str:
    """Return an entry's size; "" of a nested value whose index was not read: nobody knows it."""
    return "" if what.type == "DataStore" and not what.nbytes else size_text(what.nbytes)


def lines_of_rest(known: Inspection, shown: int) -> list[str]:
    """Return a line that counts the entries that are not shown, if there are any."""
    more = len(known.entries) - shown
    return [f"  … and {more} more"] if more > 0 else []


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def html_table(
    caption: str, rows: list[list[str]], previews: list[str], rest: Iterable[str]
) -> str:
    """Return rows as HTML in the colours of the page around it; everything is escaped.

    Args:
        caption: the line above the table.
        rows: as `rows_of` returns them.
        previews: one for each row; without any the column is left out.
        rest: lines below the table.
    """
    has_previews = any(previews)
    titles = [*_TITLES[:-1], "", "preview"] if has_previews else list(_TITLES)
    head = "".join(map(_html_title, titles))
    previewed = previews if has_previews else [None] * len(rows)
    body = "".join(map(_html_row, rows, previewed))
    more = "".join(f"<p>{escape(line.strip())}</p>" for line in rest)
    return (
        f'<div><style>{_STYLE}</style><table class="sqla-ds"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )


def _html_title(title: str) -> str:
    aligned_as = ' class="n"' if title == "size" else ""
    return f'<th scope="col"{aligned_as}>{title}</th>'


def _html_row(row: list[str], shown: str | None) -> str:
    name, *middle, size, state = map(escape, row)
    cells = "".join(f"<td>{cell}</td>" for cell in middle)
    last = "" if shown is None else f'<td class="p"><code>{escape(shown)}</code></td>'
    return (
        f'<tr><td><b>{name}</b></td>{cells}<td class="n">{size}</td>'
        f'<td class="p">{state}</td>{last}</tr>'
    )
