"""Tensors of PyTorch.

=================  ========================================================
``Tensor``         dtype, ``requires_grad``, and an array of NumPy
``Parameter``      the same
=================  ========================================================

A ``state_dict`` is an `OrderedDict` of these, with attributes. Dtypes that NumPy lacks, such as
``bfloat16``, are arrays of unsigned integers of the same bits. A tensor is read into memory of its
own, so that it can be edited: PyTorch knows no read-only memory. C and Fortran order survive, other
strides become C order; storage that tensors share does not stay shared.

Refused, with what to store instead: tensors that are not on the CPU, sparse and quantized ones,
subclasses, and what belongs to a graph of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import numpy as np
import torch

from ..exceptions import UnsupportedFormatError
from ._base import ExactCodec, field, lacks, text_in
from ._npy import Array, array_node, read_array
from .numpy import array_description
from .protocol import JSON, Codec, Decoder, Description, Encoder

_LIKE_NUMPY: Final = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
# the carrier that torch can view them as, too: it has had signed integers longer than unsigned
_BITS_IN_NUMPY: Final = {
    "bfloat16": "<i2",
    "complex32": "<i4",
    "float8_e4m3fn": "|u1",
    "float8_e4m3fnuz": "|u1",
    "float8_e5m2": "|u1",
    "float8_e5m2fnuz": "|u1",
    "float8_e8m0fnu": "|u1",
    "float4_e2m1fn_x2": "|u1",
}
_DTYPES: Final = _LIKE_NUMPY | _BITS_IN_NUMPY
_CARRIERS: Final = {"<i2": torch.int16, "<i4": torch.int32, "|u1": torch.uint8}


class _TensorCodec(ExactCodec):
    """Tensors in memory, strided."""

    name = "torch.tensor"
    mutable = True
    python_types: ClassVar[tuple[type, ...]] = (torch.Tensor,)
    described = "torch.Tensor"
    make: ClassVar[Callable[[Any, bool], Any]] = torch.Tensor.requires_grad_

    def encode(self, value: Any, encoder: Encoder) -> JSON:
        if reason := _refusal(value):
            raise encoder.unsupported(value, reason)
        name = str(value.dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise encoder.unsupported(
                value, f"its dtype {name} has no rule; store value.view(torch.uint8)"
            )
        return {
            "dtype": name,
            "array": array_node(_array_of(value, name), encoder),
            "requires_grad": value.requires_grad,
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> Any:  # noqa: ARG002
        name = text_in(field(node, "dtype", decoder), decoder)
        if name not in _DTYPES:
            raise decoder.damaged(f"no tensor has the dtype {name[:40]!r}")
        # all of it is copied, so it is verified
        array = read_array(field(node, "array", decoder), decoder, mapped=False)
        if array.dtype.newbyteorder("<") != np.dtype(_DTYPES[name]):
            raise decoder.damaged(f"a tensor of {name} is an array of {array.dtype}")
        return type(self).make(_tensor_of(array, name, decoder), _requires_grad(node, decoder))

    def describe(self, node: Any) -> Description:
        about = node if isinstance(node, dict) else {}
        array, name = array_description(self.described, about.get("array")), about.get("dtype")
        dtype = name if isinstance(name, str) and name in _DTYPES else None
        return Description(self.described, dtype, array.shape, array.nbytes)


class _ParameterCodec(_TensorCodec):
    """Tensors that a module learns."""

    name = "torch.parameter"
    python_types: ClassVar[tuple[type, ...]] = (torch.nn.Parameter,)
    described = "torch.nn.Parameter"
    make = torch.nn.Parameter


def _refusal(value: Any) -> str | None:
    """Return why a tensor is refused and what to store instead, or None."""
    if value.layout != torch.strided:
        return "it is sparse; store value.to_dense()"
    if value.is_quantized:
        return "it is quantized; store value.dequantize(), or value.int_repr() and the scale"
    if value.is_nested:
        return "it is nested; store [*value.unbind()]"
    if value.device.type == "meta":
        return "it is on the device 'meta', where it has no numbers; store its shape and dtype"
    if value.device.type != "cpu":
        return f"it is on the device {str(value.device)!r}; store value.cpu()"
    if value.grad_fn is not None:
        return "it belongs to a graph of gradients; store value.detach()"
    if value.grad is not None:
        return "its gradient would be lost; store value.detach(), and value.grad beside it"
    if vars(value):
        return "its attributes would be lost; store value.detach(), and them beside it"
    return None


def _array_of(value: Any, name: str) -> Array:
    """Return a tensor's memory as an array, or a copy where a flag says that it is changed."""
    plain = value.detach().resolve_conj().resolve_neg()
    if name in _BITS_IN_NUMPY:
        plain = plain.view(_CARRIERS[_DTYPES[name]])
    array: Array = plain.numpy()
    return array


def _tensor_of(array: Array, name: str, decoder: Decoder) -> Any:
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise _lacks_dtype(name, decoder)
    # torch takes neither foreign byte order nor read-only memory
    tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="K", copy=True))
    return tensor.view(dtype) if name in _BITS_IN_NUMPY else tensor


def _lacks_dtype(name: str, decoder: Decoder) -> UnsupportedFormatError:
    return lacks(f"a newer PyTorch, which has the dtype {name}", decoder)


def _requires_grad(node: Any, decoder: Decoder) -> bool:
    requires_grad = field(node, "requires_grad", decoder)
    differentiable = str(node["dtype"]).startswith(("float", "complex", "bfloat"))
    if requires_grad is False or (requires_grad is True and differentiable):
        return requires_grad is True
    raise decoder.damaged("only tensors of floats have gradients")


CODECS: tuple[Codec, ...] = (_TensorCodec(), _ParameterCodec())
