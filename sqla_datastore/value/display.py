"""How a value shows itself: the ``repr``, a table, and HTML for notebooks. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import islice
from typing import Final

from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.printable import printable
from sqla_datastore.storage.urls import DataURL, ObjectURL, is_in_row
from sqla_datastore.value.entry import UNLOADED
from sqla_datastore.value.inspection import Inspection, inspect
from sqla_datastore.value.mapping import EntryMapping
from sqla_datastore.value.previews import preview

_SHOWN: Final = 20
_SHOWN_BY_INSPECT: Final = 200
_WIDEST: Final = 40
_WIDEST_TYPE: Final = 120
_TITLES: Final = ("entry", "type", "dtype", "shape", "size", "")

# Colours are the page's own, so that dark pages stay dark: JupyterLab's and VS Code's variables
# where they are set, what surrounds the table where not. Lines and stripes are grey that lets
# through what is behind it.
_STYLE: Final = (
    ".sqla-ds{color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));"
    "font-size:var(--jp-content-font-size1,.9em);border-collapse:collapse;background:none}"
    ".sqla-ds caption{caption-side:top;text-align:left;padding:.3em 0}"
    ".sqla-ds caption,.sqla-ds .p{color:var(--jp-content-font-color2,#666)}"
    ".sqla-ds td,.sqla-ds th{text-align:left;padding:.2em .8em .2em 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.3);background:none;vertical-align:top}"
    ".sqla-ds .n{text-align:right;white-space:nowrap}"
    ".sqla-ds code{color:inherit;background:none}"
    "@media (prefers-color-scheme:dark){.sqla-ds caption,.sqla-ds .p"
    "{color:var(--jp-content-font-color2,#aaa)}}"
)


def text_of(ds: EntryMapping) -> str:
    """Return the ``repr``: a line for the value and one for each entry; never raises."""
    try:
        known = inspect(ds)
        rows = _rows(known, _SHOWN)
    except Exception as err:  # a repr that raises hides what a debugger wants to show
        return f"<{_headline(ds)}; {_error(err)}>"
    return "\n".join([f"<{_headline(ds, known)}>", *_aligned(rows), *_rest(known, _SHOWN)])


def table_of(known: Inspection) -> str:
    """Return what is known of a value as a table with titles."""
    rows = _rows(known, _SHOWN_BY_INSPECT)
    head = f"<Inspection {_summary(known.url, known, changed=known.changed)}>"
    titles = [list(_TITLES)] if rows else []
    return "\n".join([head, *_aligned([*titles, *rows]), *_rest(known, _SHOWN_BY_INSPECT)])


def html_of(ds: EntryMapping) -> str:
    """Return a value as an HTML table with previews of what is in memory; never raises."""
    try:
        known = inspect(ds)
        rows = _rows(known, _SHOWN)
        previews = [_preview_of(ds, name) for name in islice(known.entries, _SHOWN)]
    except Exception as err:
        return f"<pre>{escape(f'<{_headline(ds)}; {_error(err)}>')}</pre>"
    return _html_table(_headline(ds, known), rows, previews, _rest(known, _SHOWN))


def html_table_of(known: Inspection) -> str:
    """Return what is known of a value as an HTML table."""
    rows = _rows(known, _SHOWN_BY_INSPECT)
    caption = f"Inspection {_summary(known.url, known, changed=known.changed)}"
    return _html_table(caption, rows, [], _rest(known, _SHOWN_BY_INSPECT))


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


def name_text(name: str) -> str:
    """Return an entry's name, short and harmless; as ``repr`` shows it where it is unusual."""
    # a cut before `repr`, which would take ten times as much for a name of controls alone
    text = name if name.isprintable() and name else repr(name[:_WIDEST])
    return text if max(len(text), len(name)) <= _WIDEST else text[: _WIDEST - 1] + "…"


# -- parts -----------------------------------------------------------------------------------------


def _headline(ds: EntryMapping, known: Inspection | None = None) -> str:
    changed = ds._changed if known is None else known.changed
    return printable(f"{type(ds).__name__} {_summary(ds.url, known, changed=changed)}")


def _summary(url: str | None, known: Inspection | None, *, changed: bool) -> str:
    number = 0 if known is None else len(known.entries)
    count = [] if known is None else [f"{number} {'entry' if number == 1 else 'entries'}"]
    edited = ["changed"] if changed and url is not None else []
    return printable(", ".join([place_text(url), *edited, *count]))


def _error(err: Exception) -> str:
    return printable(f"{type(err).__name__}: {err}")


def _rows(known: Inspection, shown: int) -> list[list[str]]:
    loaded = set(known.loaded)
    return [
        [
            name_text(name),
            printable(what.type, _WIDEST_TYPE),
            printable(what.dtype or "", _WIDEST_TYPE),
            "" if what.shape is None else printable(what.shape, _WIDEST_TYPE),
            # of a nested value whose index was not read nobody knows
            "" if what.type == "DataStore" and not what.nbytes else size_text(what.nbytes),
            "loaded" if name in loaded and known.stored else "",
        ]
        for name, what in islice(known.entries.items(), shown)
    ]


def _rest(known: Inspection, shown: int) -> list[str]:
    more = len(known.entries) - shown
    return [f"  … and {more} more"] if more > 0 else []


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _preview_of(ds: EntryMapping, name: str) -> str:
    # not `ds[name]`: that would load, and hand out what may then be edited
    entry = (ds._entries or {}).get(name)
    return "" if entry is None or entry.value is UNLOADED else preview(entry.value)


def _html_table(
    caption: str, rows: list[list[str]], previews: list[str], rest: Iterable[str]
) -> str:
    has_previews = any(previews)
    titles = [*_TITLES[:-1], "", "preview"] if has_previews else list(_TITLES)
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    previewed = previews if has_previews else [None] * len(rows)
    body = "".join(map(_html_row, rows, previewed))
    more = "".join(f"<p>{escape(line.strip())}</p>" for line in rest)
    return (
        f'<div><style>{_STYLE}</style><table class="sqla-ds"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )


def _html_row(row: list[str], shown: str | None) -> str:
    name, *middle, size, state = map(escape, row)
    cells = "".join(f"<td>{cell}</td>" for cell in middle)
    last = "" if shown is None else f'<td class="p"><code>{escape(shown)}</code></td>'
    return (
        f'<tr><td><b>{name}</b></td>{cells}<td class="n">{size}</td>'
        f'<td class="p">{state}</td>{last}</tr>'
    )
