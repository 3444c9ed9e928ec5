"""pyarrow: what becomes what.

=========================  ==========================================================
``Table``                  a stream, one batch per chunk where the columns' chunks agree
``RecordBatch``            a stream of one batch
``Array``                  a stream of one batch with one nameless column
``ChunkedArray``           the same, one batch per chunk
``Schema``, ``Field``      a stream without batches
``DataType``               the same, of one nameless field
``Scalar``                 an array of length 1
=========================  ==========================================================

Metadata, nested and dictionary types, and the extension types of pyarrow, of pandas and of classes
given to `register_arrow_type` are exact. Others are refused: reading them would run their code.
Where Arrow does not know an extension type, its values come back as their storage. Slices are
stored without what they hide.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from ._base import field
from ._extensions import has_unregistered_types
from ._stream import StreamPiece, add_stream, batches_of, read_stream, refused_as_damage
from .protocol import JSON, Codec, Decoder, Description, Encoder


class _ArrowCodec:
    """A kind of Arrow value that is the stream of a schema and batches."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False
    exact: ClassVar[tuple[type, ...]] = ()
    base: ClassVar[tuple[type, ...]] = ()
    described: ClassVar[str]

    def types(self) -> tuple[type, ...]:
        return self.exact

    def takes(self, value: object) -> bool:
        return isinstance(value, self.base)

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        try:
            schema, batches = self.split(value)
        except pa.ArrowException as err:
            raise encoder.unsupported(value, f"Arrow cannot write it: {err}") from err
        node: dict[str, JSON] = {"stream": add_stream(encoder, value, schema, batches)}
        return node | self.about(value)

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        schema, batches = read_stream(field(node, "stream", decoder), decoder)
        with refused_as_damage(decoder, self.described):
            value = self.join(schema, batches)
            # `describe` believes the node, so it has to agree with the stream
            found, told = self.about(value), {**node}
            del told["stream"]
            if "type" in told and has_unregistered_types(schema):
                # one that this program does not know has come back as its storage
                told["type"] = found.get("type")
            if found != told:
                raise decoder.damaged(f"a {self.described} is not of the stored type or length")
            return value

    def describe(self, node: Any) -> Description:
        dtype, shape = (node.get("type"), node.get("shape")) if isinstance(node, dict) else (0, 0)
        return Description(
            self.described,
            dtype if isinstance(dtype, str) else None,
            tuple(shape) if isinstance(shape, list) else None,
        )

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        """Return the schema and the batches of a value."""
        raise NotImplementedError

    def join(self, schema: Any, batches: list[Any]) -> Any:
        """Return the value of a schema and batches; any exception means damage."""
        raise NotImplementedError

    def about(self, value: Any) -> dict[str, JSON]:
        """Return what the node says besides the stream; the decoded value must say the same."""
        raise NotImplementedError


class _Table(_ArrowCodec):
    name = "arrow.table"
    exact: ClassVar[tuple[type, ...]] = (pa.Table,)
    described = "pyarrow.Table"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        return value.schema, batches_of(value)

    def join(self, schema: Any, batches: list[Any]) -> Any:
        return pa.Table.from_batches(batches, schema)

    def about(self, value: Any) -> dict[str, JSON]:
        return {"shape": [value.num_rows, value.num_columns]}

    def arrow_plan(self, node: Any, version: int) -> _TablePlan | None:  # noqa: ARG002
        """Return how tables of a node are read; see `format.joining`."""
        if {*node} != {"stream", "shape"}:
            return None
        rows, columns = node["shape"]
        return _TablePlan(node["stream"], rows, columns)


class _TablePlan(NamedTuple):
    stream: Any
    rows: Any
    columns: Any

    def piece(self, decoder: Decoder) -> StreamPiece | None:
        piece = StreamPiece.of(decoder.blob(self.stream), self.columns)
        return piece if piece is not None and piece.rows == self.rows else None


class _RecordBatch(_Table):
    name = "arrow.batch"
    exact = (pa.RecordBatch,)
    described = "pyarrow.RecordBatch"

    def arrow_plan(self, node: Any, version: int) -> None:
        """Return None: a batch is no table yet."""

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        return value.schema, [value]

    def join(self, schema: Any, batches: list[Any]) -> Any:  # noqa: ARG002
        (batch,) = batches
        return batch


class _Array(_ArrowCodec):
    name = "arrow.array"
    base: ClassVar[tuple[type, ...]] = (pa.Array,)
    described = "pyarrow.Array"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        schema = _nameless(value.type)
        return schema, [pa.RecordBatch.from_arrays([value], schema=schema)]

    def join(self, schema: Any, batches: list[Any]) -> Any:
        (_,), (batch,) = schema, batches
        return batch.column(0)

    def about(self, value: Any) -> dict[str, JSON]:
        return {"type": str(value.type), "shape": [len(value)]}


class _ChunkedArray(_Array):
    name = "arrow.chunked"
    exact = (pa.ChunkedArray,)
    base = ()
    described = "pyarrow.ChunkedArray"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        schema = _nameless(value.type)
        chunks = value.chunks
        return schema, [pa.RecordBatch.from_arrays([each], schema=schema) for each in chunks]

    def join(self, schema: Any, batches: list[Any]) -> Any:
        (only,) = schema
        return pa.chunked_array([batch.column(0) for batch in batches], only.type)


class _Scalar(_Array):
    name = "arrow.scalar"
    base = (pa.Scalar,)
    described = "pyarrow.Scalar"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        return super().split(_repeated(value))

    def join(self, schema: Any, batches: list[Any]) -> Any:
        (scalar,) = super().join(schema, batches)
        return scalar

    def about(self, value: Any) -> dict[str, JSON]:
        return {"type": str(value.type)}


class _Schema(_ArrowCodec):
    name = "arrow.schema"
    exact = (pa.Schema,)
    described = "pyarrow.Schema"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        return value, []

    def join(self, schema: Any, batches: list[Any]) -> Any:
        () = batches
        return schema

    def about(self, value: Any) -> dict[str, JSON]:
        return {"shape": [len(value)]}


class _Field(_ArrowCodec):
    name = "arrow.field"
    exact: ClassVar[tuple[type, ...]] = (pa.Field,)
    described = "pyarrow.Field"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        return pa.schema([value]), []

    def join(self, schema: Any, batches: list[Any]) -> Any:
        (only,), () = schema, batches
        return only

    def about(self, value: Any) -> dict[str, JSON]:
        return {"type": str(value.type)}


class _DataType(_Field):
    name = "arrow.type"
    exact = ()
    base = (pa.DataType,)
    described = "pyarrow.DataType"

    def split(self, value: Any) -> tuple[Any, list[Any]]:
        return _nameless(value), []

    def join(self, schema: Any, batches: list[Any]) -> Any:
        return super().join(schema, batches).type

    def about(self, value: Any) -> dict[str, JSON]:
        return {"type": str(value)}


def _nameless(arrow_type: Any) -> Any:
    return pa.schema([pa.field("", arrow_type)])


def _repeated(scalar: Any) -> Any:
    """Return an array of a scalar; Arrow cannot repeat extension scalars."""
    if not isinstance(scalar.type, pa.BaseExtensionType):
        return pa.repeat(scalar, 1)
    stored: Any = scalar.type.storage_type
    storage: Any = pa.repeat(scalar.value, 1) if scalar.is_valid else pa.nulls(1, stored)
    return pa.ExtensionArray.from_storage(scalar.type, storage)


CODECS: tuple[Codec, ...] = (
    _Table(),
    _RecordBatch(),
    _Array(),
    _ChunkedArray(),
    _Scalar(),
    _Schema(),
    _Field(),
    _DataType(),
)
