"""What people see of a loaded value: facts, first rows, text, plots. Bounded, whatever its size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from pprint import PrettyPrinter
from typing import Any, Final

from sqla_datastore.browsing.pictures import SMALL_FILE, file_type, is_picture_like
from sqla_datastore.browsing.plots import histogram, line_plot, number_text
from sqla_datastore.files.file import File
from sqla_datastore.printable import printable
from sqla_datastore.value.datastore import DataStore
from sqla_datastore.value.display import size_text

ROWS: Final = 50
"""How many rows of a frame are shown."""

_COLUMNS: Final = 30
_WIDEST_CELL: Final = 80
_MOST_LINES: Final = 500
_WIDEST_LINE: Final = 400
_MOST_CHARACTERS: Final = 100_000
_MOST_ITEMS: Final = 1_000
_SAMPLED: Final = 1_000_000
_RUN: Final = 4_096
_PLOTTED_COLUMNS: Final = 4


@dataclass
class View:
    """What is shown of one value; the parts that it does not have are empty.

    Attributes:
        facts: names and texts of what is known of it.
        columns: the titles of a table.
        dtypes: the types of its columns.
        rows: the cells of its first rows.
        lines: a text.
        plots: SVG, with titles.
        is_picture: whether `pictures.picture` shows it.
        notes: what is left out.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    plots: list[tuple[str, str]] = field(default_factory=list)
    is_picture: bool = False
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it for programs, without plots."""
        return {
            "facts": dict(self.facts),
            "columns": self.columns,
            "dtypes": self.dtypes,
            "rows": self.rows,
            "lines": self.lines,
            "notes": self.notes,
        }


def view_of(value: Any) -> View:
    """Return what is shown of a value; reads a bounded part of it.

    All text in it is `printable`; it is not escaped for HTML, apart from the plots.
    """
    view = View()
    show: Callable[[Any, View], None] = _other
    if isinstance(value, str):
        show = _text
    elif isinstance(value, (bytes, bytearray)):
        show = _bytes
    elif isinstance(value, File):
        show = _file
    else:
        library = type(value).__module__.partition(".")[0]
        show = _BY_LIBRARY.get(library, _other)
    show(value, view)
    return view


# -- text and collections --------------------------------------------------------------------------


def _text(value: str, view: View) -> None:
    view.facts.append(("characters", str(len(value))))
    _add_lines(value[:_MOST_CHARACTERS].splitlines(), view)
    if len(value) > _MOST_CHARACTERS:
        view.notes.append(f"the first {_MOST_CHARACTERS} of {len(value)} characters")


def _bytes(value: bytes | bytearray, view: View) -> None:
    view.facts.append(("bytes", str(len(value))))
    kind = file_type(value)
    if kind is not None:
        view.facts.append(("content", kind))
        view.is_picture = True
        return
    head = bytes(value[:512])
    view.lines = [
        f"{start:04x}  {head[start : start + 16].hex(' '):<47}  {_ascii(head[start : start + 16])}"
        for start in range(0, len(head), 16)
    ]
    if len(value) > len(head):
        view.notes.append(f"the first {len(head)} of {len(value)} bytes")


def _file(value: File, view: View) -> None:
    """Show what is known of a file, and a small one as picture, text or bytes.

    The content type is what somebody has said: the bytes decide, and text is never more than text.
    """
    view.facts += [
        ("name", value.name),
        ("content type", value.content_type),
        ("SHA-256", value.sha256 or "not known"),
    ]
    if (value.size_bytes or 0) > SMALL_FILE:
        view.notes.append(f"its contents are not shown: they are more than {size_text(SMALL_FILE)}")
        return
    data = value.read()
    text = None if file_type(data) else _decoded(data)
    if text is None:
        _bytes(data, view)
    else:
        _text(text, view)


def _decoded(data: bytes) -> str | None:
    """Return bytes as text, None where they are none."""
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def _ascii(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def _other(value: Any, view: View) -> None:
    if hasattr(value, "__len__"):
        view.facts.append(("items", str(len(value))))
    _add_lines(_Pretty(width=100).pformat(_cut(value, 6, [_MOST_ITEMS], view)).splitlines(), view)


class _Pretty(PrettyPrinter):
    """Prints collections over several lines, and marks as they are."""

    def __init__(self, width: int) -> None:
        super().__init__(width=width, sort_dicts=False)

    def format(
        self,
        object: Any,  # noqa: A002 - the base has it so
        context: dict[int, int],
        maxlevels: int,
        level: int,
    ) -> tuple[str, bool, bool]:
        if isinstance(object, _Mark):
            return object.text, True, False
        return super().format(object, context, maxlevels, level)


class _Mark:
    """Stands for what is not shown."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _cut(value: Any, depth: int, left: list[int], view: View) -> Any:
    """Return a copy of a collection that is small enough to print.

    Args:
        value: any value.
        depth: how many levels are shown.
        left: how many items may still be shown.
        view: gets a note where something is left out.
    """
    left[0] -= 1
    if isinstance(value, DataStore):
        return _Mark("<DataStore>")
    if isinstance(value, int) and value.bit_length() > 4_000:  # Python refuses to print some
        return _Mark(f"<int of {value.bit_length()} bits>")
    if isinstance(value, str):
        return value if len(value) <= _WIDEST_LINE else value[:_WIDEST_LINE] + "…"
    if isinstance(value, (bytes, bytearray)):
        return value if len(value) <= 64 else _Mark(f"{bytes(value[:64])!r}…")
    if not isinstance(value, (list, tuple, set, frozenset, dict)):
        kind = type(value)
        is_array = hasattr(kind, "shape") or hasattr(kind, "nbytes")
        return _Mark(f"<{kind.__name__} {_shape(value)}>") if is_array else value
    if depth == 0:
        return _Mark("…")
    items = value.items() if isinstance(value, dict) else value
    shown: list[Any] = []
    for item in items:
        if left[0] <= 0:
            view.notes.append(f"the first {_MOST_ITEMS} items")
            shown.append((_Mark("…"), _Mark("…")) if isinstance(value, dict) else _Mark("…"))
            break
        inner = item if isinstance(value, dict) else (item,)
        cut = tuple(_cut(each, depth - 1, left, view) for each in inner)
        shown.append(cut if isinstance(value, dict) else cut[0])
    if isinstance(value, dict):
        return {_Key(key): each for key, each in shown}
    kind = next(k for k in (list, tuple, set, frozenset) if isinstance(value, k))
    return kind(shown)


class _Key:
    """A key of a dict that is printed; by identity, since what was cut may be equal."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def __repr__(self) -> str:
        return repr(self._key)


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return printable(shape if isinstance(shape, tuple) else "", _WIDEST_CELL)


def _add_lines(lines: list[str], view: View) -> None:
    view.lines = [printable(line, _WIDEST_LINE) for line in lines[:_MOST_LINES]]
    if len(lines) > _MOST_LINES:
        view.notes.append(f"the first {_MOST_LINES} of {len(lines)} lines")


# -- arrays ----------------------------------------------------------------------------------------


def _numpy(value: Any, view: View) -> None:
    import numpy as np

    if not isinstance(value, np.ndarray):
        _other(value, view)
    elif value.dtype.names:
        _structured(value, view)
    elif value.dtype.kind in "biufc":
        _numbers(value, view)
    else:
        view.facts += [("dtype", printable(value.dtype)), ("shape", str(value.shape))]
        _first_values(value, view)


def _structured(value: Any, view: View) -> None:
    view.facts += [("records", str(value.size)), ("shape", str(value.shape))]
    names = value.dtype.names[:_COLUMNS]
    view.columns = [_cell(name) for name in names]
    view.dtypes = [_cell(value.dtype[name]) for name in names]
    first = value.reshape(-1)[:ROWS]
    view.rows = [[_cell(record[name]) for name in names] for record in first]
    _note_rows(value.size, len(value.dtype.names), view)


def _numbers(value: Any, view: View) -> None:
    import numpy as np

    view.facts += [("dtype", str(value.dtype)), ("shape", str(value.shape))]
    sample = _sample(value, view)
    if sample.dtype.kind == "c":
        view.facts.append(("of", "the absolute values"))
        sample = np.abs(sample)
    if sample.size:
        view.facts += _statistics(sample)
        numbers = sample.astype(float)
        if value.ndim == 1 and value.size <= _SAMPLED:
            _add_plot("values by position", line_plot, numbers, view)
        _add_plot("distribution", histogram, numbers, view)
    view.is_picture = is_picture_like(value)
    _first_values(value, view)


def _statistics(sample: Any) -> list[tuple[str, str]]:
    import numpy as np

    numbers = sample.astype(float)
    finite = numbers[np.isfinite(numbers)]
    facts = []
    if finite.size:
        with np.errstate(over="ignore", invalid="ignore"):
            found = {
                "min": finite.min(),
                "max": finite.max(),
                "mean": finite.mean(),
                "standard deviation": finite.std(),
            }
        facts = [(name, number_text(float(number))) for name, number in found.items()]
    missing = int(np.isnan(numbers).sum())
    infinite = numbers.size - finite.size - missing
    facts += [(name, str(n)) for name, n in (("NaN", missing), ("infinite", infinite)) if n]
    return facts


def _sample(value: Any, view: View) -> Any:
    """Return all numbers of an array, or some of many."""
    import numpy as np

    if isinstance(value, np.ma.MaskedArray):
        view.facts.append(("masked", str(value.size - len(value.compressed()))))
        return value.compressed()[:_SAMPLED]
    # in the order of memory, so that nothing is copied
    flat = value.ravel(order="K")
    if flat.size <= _SAMPLED:
        return flat
    # runs of neighbours: of a map of a large file only their pages are fetched
    starts = np.linspace(0, flat.size - _RUN, _SAMPLED // _RUN).astype(int)
    view.notes.append(f"statistics of a sample of {len(starts) * _RUN} of {flat.size} numbers")
    return np.concatenate([flat[start : start + _RUN] for start in starts.tolist()])


def _first_values(value: Any, view: View) -> None:
    import numpy as np

    if value.ndim == 0:
        view.lines = [printable(value[()], _WIDEST_LINE)]
        return
    first = value[tuple(slice(0, 8) for _ in range(value.ndim))]
    if first.ndim > 2:
        first = first[(0,) * (first.ndim - 2)]
    with np.printoptions(precision=5, threshold=200, linewidth=110):
        _add_lines(str(first).splitlines(), view)
    if first.size < value.size:
        view.notes.append(f"values: {first.size} of {value.size}")


def _add_plot(title: str, plot: Callable[[Any, str], str], numbers: Any, view: View) -> None:
    svg = plot(numbers, escape(title))
    if svg:
        view.plots.append((title, svg))


# -- frames and tables -----------------------------------------------------------------------------


def _pandas(value: Any, view: View) -> None:
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        _frame(value, view)
    elif isinstance(value, (pd.Series, pd.Index)):
        _frame(value.to_frame(), view)
    else:
        _add_lines(str(value).splitlines(), view)


def _frame(frame: Any, view: View) -> None:
    view.facts += [("rows", str(len(frame))), ("columns", str(len(frame.columns)))]
    head = frame.iloc[:ROWS, :_COLUMNS]
    view.columns = ["", *(_cell(name) for name in head.columns)]
    view.dtypes = ["", *(_cell(dtype) for dtype in head.dtypes)]
    columns = [head.index.tolist(), *(head.iloc[:, n].tolist() for n in range(head.shape[1]))]
    view.rows = [list(map(_cell, row)) for row in zip(*columns, strict=True)]
    _note_rows(len(frame), len(frame.columns), view)
    names = [n for n, dtype in enumerate(frame.dtypes) if _is_real(dtype)]
    for n in names[:_PLOTTED_COLUMNS]:
        column = frame.iloc[:_SAMPLED, n]
        numbers = column.to_numpy(dtype=float, na_value=float("nan"))
        _add_plot(_cell(frame.columns[n]), line_plot, numbers, view)


def _is_real(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") in "iuf" and "complex" not in str(dtype)


def _arrow(value: Any, view: View) -> None:
    import pyarrow as pa

    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        value = pa.table({"": value})
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        _table(value, view)
    else:
        _add_lines(str(value).splitlines(), view)


def _table(table: Any, view: View) -> None:
    view.facts += [("rows", str(table.num_rows)), ("columns", str(table.num_columns))]
    shown = range(min(table.num_columns, _COLUMNS))
    view.columns = [_cell(table.schema.field(n).name) for n in shown]
    view.dtypes = [_cell(table.schema.field(n).type) for n in shown]
    columns = [table.column(n).slice(0, ROWS).to_pylist() for n in shown]
    view.rows = [list(map(_cell, row)) for row in zip(*columns, strict=True)]
    _note_rows(table.num_rows, table.num_columns, view)


def _polars(value: Any, view: View) -> None:
    _arrow((value if hasattr(value, "columns") else value.to_frame()).head(ROWS).to_arrow(), view)
    view.facts[0] = ("rows", str(len(value)))
    _note_rows(len(value), 0, view)


def _note_rows(rows: int, columns: int, view: View) -> None:
    if rows > ROWS:
        view.notes.append(f"the first {ROWS} of {rows} rows")
    if columns > _COLUMNS:
        view.notes.append(f"the first {_COLUMNS} of {columns} columns")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number_text(float(value))
    if isinstance(value, (list, tuple)):
        value = list(islice(value, 10))
    elif isinstance(value, (str, bytes)):
        value = value[: _WIDEST_CELL * 2]
    return printable(value, _WIDEST_CELL)


# -- other libraries -------------------------------------------------------------------------------


def _pillow(value: Any, view: View) -> None:
    view.facts += [("mode", value.mode), ("size", "{} x {}".format(*value.size))]
    view.is_picture = True


def _torch(value: Any, view: View) -> None:
    if getattr(value, "is_sparse", False) or not hasattr(value, "detach"):
        _described(value, view)
    else:
        _numpy(value.detach().to("cpu").numpy(), view)


def _described(value: Any, view: View) -> None:
    """Show what the library's own ``repr`` says, which is short with those that are known."""
    _add_lines(_first(str(value).splitlines(), _MOST_LINES + 1), view)


def _first(lines: Iterable[str], count: int) -> list[str]:
    return list(islice(lines, count))


_BY_LIBRARY: Final[dict[str, Callable[[Any, View], None]]] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "geopandas": _pandas,
    "pyarrow": _arrow,
    "polars": _polars,
    "PIL": _pillow,
    "torch": _torch,
    "scipy": _described,
    "xarray": _described,
}
