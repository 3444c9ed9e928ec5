"""A stored frame as an Arrow table, without the frame: for many small ones that are read together.

To make a frame and convert it takes five times as long as this for a hundred rows. It is done for
plain columns: numbers, bools, times without zone, and text. The table is the one that
``pyarrow.Table.from_pandas`` makes of the frame: NaN and NaT are null. An index comes first, as
``reset_index()`` puts it; one that only numbers the rows is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from ._pandas_arrays import decode_index
from ._pandas_columns import ColumnReader
from ._pandas_flat import decode_text

_PLAIN_BLOCKS: Final = ("<i", "|i", "<u", "|u", "<f", "|b", "<m", "<M")
_TEXTS: Final = ("string", "object")


def is_plain(node: Any) -> bool:
    """Return whether the node of a frame has plain columns alone."""
    index = node["index"]
    return (
        {*index} == {"range"}
        and all(each["dtype"].startswith(_PLAIN_BLOCKS) for each in node["physical"]["blocks"])
        and all(_is_plain_column(each) for each in node["data"])
    )


def _is_plain_column(node: Any) -> bool:
    return node["kind"] == "run" or (node["kind"] in _TEXTS and "text" in node)


def plain_table(node: Any, columns: ColumnReader) -> Any:
    """Return the table of such a node; any exception means damage."""
    names, arrays = _names(node["columns"], columns), [*_arrays(node["data"], columns)]
    rows = len(range(*node["index"]["range"]))
    if any(len(each) != rows for each in arrays):
        raise columns.decoder.damaged("columns are not as long as their index")
    return pa.Table.from_arrays(arrays, names)


def _names(node: Any, columns: ColumnReader) -> list[str]:
    """Return the columns' names as text, as Arrow wants them."""
    array = node.get("array", {})
    if {*node} == {"array"} and array["kind"] in _TEXTS and "list" in array.get("text", ()):
        return [str(name) for name in array["text"]["list"]]
    return [str(name) for name in decode_index(node, columns)]


def _arrays(nodes: list[Any], columns: ColumnReader) -> Iterator[Any]:
    for node in nodes:
        if node["kind"] == "run":
            block, first, count = node["block"], node["row"], node["count"]
            columns.take_rows(block, first, count)
            for column in columns.block(block)[first : first + count]:
                yield pa.array(column, from_pandas=True)
        else:
            yield decode_text(node["text"], columns)
