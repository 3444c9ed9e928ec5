"""A stored frame as an Arrow table, without the frame: for many small ones that are read together.

To make a frame and convert it takes five times as long as this for a hundred rows. It is done for
plain columns: numbers, bools, times without zone, and text. The table is the one that
``pyarrow.Table.from_pandas`` makes of the frame: NaN and NaT are null. An index comes first, as
``reset_index()`` puts it; one that only numbers the rows is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ._pandas_arrays import decode_index
from ._pandas_columns import MAX_EMPTY_COLUMNS, BlockLayout, ColumnReader, checked
from ._pandas_flat import decode_text
from .protocol import Decoder

_PLAIN_BLOCKS: Final = ("<i", "|i", "<u", "|u", "<f", "|b", "<m", "<M")
_TEXTS: Final = ("string", "object")


class FramePlan:
    """How frames of one node are read: with plain columns alone.

    Args:
        node: the node.

    Attributes:
        rows: how many such a frame has.

    Raises:
        Exception: the node is damaged.
    """

    def __init__(self, node: Any) -> None:
        start, stop, step = node["index"]["range"]
        self.rows = len(range(start, stop, step))
        self._physical = node["physical"]
        self._blocks = [BlockLayout.of(each) for each in self._physical["blocks"]]
        if not self.rows and sum(block.columns for block in self._blocks) > MAX_EMPTY_COLUMNS:
            raise ValueError("there are too many columns without rows")
        self._items = [*self._checked_items(node["data"])]
        self._texts = [item for item in self._items if type(item) is not tuple]
        self._count = sum(it[2] - it[1] if type(it) is tuple else 1 for it in self._items)
        self._columns = node["columns"]
        self._names = _listed_names(self._columns)
        # what takes part in making a table, but for the length of columns
        self._like = (
            *((block.dtype.str, block.columns, block.is_by_row) for block in self._blocks),
            *(item if type(item) is tuple else None for item in self._items),
        )

    @classmethod
    def of(cls, node: Any) -> FramePlan | None:
        """Return the plan of a node, None where its columns or its index are no plain ones.

        Raises:
            Exception: the node is damaged.
        """
        is_plain = (
            {*node["index"]} == {"range"}
            and all(each["dtype"].startswith(_PLAIN_BLOCKS) for each in node["physical"]["blocks"])
            and all(_is_plain_column(each) for each in node["data"])
        )
        return cls(node) if is_plain else None

    def _checked_items(self, nodes: list[Any]) -> Iterator[tuple[int, int, int] | dict[str, Any]]:
        """Yield of the columns the runs, as block, first row and last, and the nodes of texts."""
        taken: dict[int, list[tuple[int, int]]] = {}
        for node in nodes:
            if node["kind"] != "run":
                yield node["text"]
                continue
            number = checked(node["block"], len(self._blocks))
            block = self._blocks[number]
            first = checked(node["row"], block.columns)
            stop = first + checked(node["count"], block.columns + 1)
            if not first < stop <= block.columns:
                raise ValueError("columns are not in their block")
            if block.rows != self.rows:
                raise ValueError("columns are not as long as their index")
            taken.setdefault(number, []).append((first, stop))
            yield number, first, stop
        for runs in taken.values():
            if any(one[1] > other[0] for one, other in pairwise(sorted(runs))):
                raise ValueError("columns of a block are used twice")

    def piece(self, decoder: Decoder) -> FramePiece:
        """Return the columns of a frame.

        Raises:
            DamagedObjectError: it is another than its node says.
        """
        names, texts, like = self._names, [], self._like
        if self._texts or names is None:
            columns = ColumnReader(self._physical, decoder)
            texts = [decode_text(node, columns) for node in self._texts]
            if any(len(each) != self.rows for each in texts):
                raise decoder.damaged("columns are not as long as their index")
            if names is None:
                index = decode_index(self._columns, columns)
                if len(index) != self._count:  # of a range, it may be any number
                    raise decoder.damaged("a frame has not as many columns as names")
                names = (*map(str, index),)
            like = (*like, *(each.type for each in texts))
        blocks = [
            block.array(decoder.blob(block.blob, mapped=True), decoder) for block in self._blocks
        ]
        return FramePiece(self, (names, like), blocks, texts)

    def table(self, pieces: Sequence[FramePiece]) -> Any:
        """Return the table of frames whose nodes differ in their length alone."""
        blocks = [_below([piece.blocks[at] for piece in pieces]) for at in range(len(self._blocks))]
        texts = iter(zip(*(piece.texts for piece in pieces), strict=True))
        names, _ = pieces[0].like
        return pa.Table.from_arrays([*self._arrays(blocks, texts)], names)

    def _arrays(self, blocks: list[Any], texts: Iterator[Any]) -> Iterator[Any]:
        for item in self._items:
            if type(item) is tuple:
                block, first, stop = item
                for column in blocks[block][first:stop]:
                    yield pa.array(column, from_pandas=True)
            else:
                some = next(texts)
                chunks = [chunk for each in some for chunk in each.chunks]
                yield pa.chunked_array(chunks, some[0].type)


class FramePiece:
    """The columns of one frame, of which many like it become one table.

    Attributes:
        like: pieces for which it is equal can be joined.
        rows: how many it has.
        blocks: its columns of numbers.
        texts: its columns of texts.
    """

    __slots__ = ("_plan", "blocks", "like", "rows", "texts")

    def __init__(
        self, plan: FramePlan, like: tuple[Any, ...], blocks: list[Any], texts: list[Any]
    ) -> None:
        self._plan = plan
        self.like = like
        self.rows = plan.rows
        self.blocks = blocks
        self.texts = texts

    @staticmethod
    def joined(pieces: Sequence[FramePiece]) -> Any:
        """Return the table of all of them."""
        return pieces[0]._plan.table(pieces)


def _below(blocks: list[Any]) -> Any:
    """Return blocks of columns x rows one below the other; a single one is not copied."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def _is_plain_column(node: Any) -> bool:
    return node["kind"] == "run" or (node["kind"] in _TEXTS and "text" in node)


def _listed_names(node: Any) -> tuple[str, ...] | None:
    """Return the columns' names, as Arrow wants them, where their index lists them."""
    array = node.get("array", {})
    if {*node} == {"array"} and array["kind"] in _TEXTS and "list" in array.get("text", ()):
        return (*map(str, array["text"]["list"]),)
    return None
