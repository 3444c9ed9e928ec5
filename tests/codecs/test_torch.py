"""Tensors come back to the bit, and editable."""

from __future__ import annotations

import io
import json
from collections import OrderedDict

import numpy as np
import pytest
from support.values import reloaded, store

from sqla_datastore import DataStore
from sqla_datastore.codecs import codec_named
from sqla_datastore.exceptions import DamagedObjectError, UnsupportedTypeError
from sqla_datastore.testing import CodecSuite, decode_value, encode_value

torch = pytest.importorskip("torch", reason="PyTorch is not installed; `tox -e torch` has it")
pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore:ComplexHalf support"),
]

from sqla_datastore.codecs.torch import _DTYPES  # noqa: E402

DTYPES = sorted(name for name in _DTYPES if hasattr(torch, name))


def stored(value):
    return decode_value(*encode_value(value))


def bits(tensor):
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def assert_same(new, old):
    assert type(new) is type(old)
    assert (new.dtype, new.shape, new.requires_grad) == (old.dtype, old.shape, old.requires_grad)
    assert bits(new) == bits(old)


def random(dtype, *shape):
    data = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 256, 16 * 16, "u1")
    raw = torch.from_numpy(data).view(getattr(torch, dtype))
    return raw[: int(np.prod(shape))].reshape(shape)


class TestTensorCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("torch.tensor")

    @pytest.fixture
    def values(self):
        large = torch.arange(300_000.0)
        return [torch.ones(3), torch.zeros(0, 2), random("bfloat16", 4, 4), torch.tensor(5), large]

    def assert_same(self, back, value):
        assert_same(back, value)


class TestParameterCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return codec_named("torch.parameter")

    @pytest.fixture
    def values(self):
        fixed = torch.nn.Parameter(torch.arange(3), requires_grad=False)
        return [torch.nn.Parameter(torch.ones(2)), fixed]

    def assert_same(self, back, value):
        assert_same(back, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (4, 0, 2)])
def test_every_dtype_is_exact(dtype, shape):
    value = random(dtype, *shape)
    assert_same(stored(value), value)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.T,
        lambda t: t[::2, 1:],
        lambda t: t.expand(2, 4, 6),
        lambda t: t.to(torch.complex64).conj(),
        lambda t: torch.complex(t, t).conj().imag,
        lambda t: t.requires_grad_(),
        lambda t: t[None, :, :, None].to(memory_format=torch.channels_last),
    ],
)
def test_every_layout_is_exact(make):
    value = make(torch.arange(24.0).reshape(4, 6))
    assert_same(stored(value), value)


def test_numbers_of_numpy_are_read_by_numpy():
    _, (blob,) = encode_value(torch.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(np.load(io.BytesIO(blob)), np.arange(6).reshape(2, 3))


def model():
    torch.manual_seed(1)
    layers = [torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)]
    return torch.nn.Sequential(OrderedDict(zip(["first", "norm", "last"], layers, strict=True)))


def trained(module):
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_dict_is_exact(storage, dtype):
    module = model().to(getattr(torch, dtype))
    state = module.state_dict()
    ds = DataStore(checkpoint={"model": state, "epoch": 3})
    store(ds, storage)
    back = reloaded(ds, storage).checkpoint["model"]
    assert type(back) is type(state)
    assert [*back] == [*state]
    for name in state:
        assert_same(back[name], state[name])
    assert back._metadata == state._metadata
    assert type(back._metadata) is type(state._metadata)
    other = model().to(getattr(torch, dtype))
    other.load_state_dict(back)
    assert bits(other(torch.ones(2, 3, dtype=getattr(torch, dtype)))) == bits(
        module(torch.ones(2, 3, dtype=getattr(torch, dtype)))
    )


def test_the_state_of_an_optimizer_is_exact():
    module = model()
    state = trained(module).state_dict()
    back = stored(state)
    assert back["param_groups"] == state["param_groups"]
    for key, parts in state["state"].items():
        for name in parts:
            assert_same(back["state"][key][name], parts[name])
    torch.optim.Adam(module.parameters()).load_state_dict(back)


EDITS = {
    "item": lambda t: t.__setitem__((0, 0), 9),
    "all": lambda t: t.add_(1),
    "view": lambda t: t[1].zero_(),
    "memory": lambda t: t.numpy().__setitem__((0, 0), 9),
    "data": lambda t: t.data.mul_(2),
    "shape": lambda t: t.resize_(3, 2),
    "gradients": lambda t: t.requires_grad_(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("inside", [False, True])
def test_an_edit_is_noticed(storage, edit, inside):
    tensor = torch.arange(6.0).reshape(2, 3)
    ds = DataStore(v=OrderedDict(t=tensor) if inside else tensor)
    store(ds, storage)
    fresh = reloaded(ds, storage)
    got = fresh.v["t"] if inside else fresh.v
    assert not (float(got.sum()) and fresh._scan())
    edit(got)
    assert fresh._scan()
    store(fresh, storage)
    again = reloaded(fresh, storage).v
    assert_same(again["t"] if inside else again, got)


def test_an_edit_leaves_the_blob_alone():
    text, blobs = encode_value(torch.zeros(3))
    decode_value(text, blobs).add_(1)
    assert bits(decode_value(text, blobs)) == bits(torch.zeros(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equality_is_that_of_content(dtype):
    make = lambda: random(dtype, 2, 3)  # noqa: E731
    assert DataStore(v=make()) == DataStore(v=make())
    assert DataStore(v=make()) != DataStore(v=make()[:1])
    assert DataStore(v=make()) != DataStore(v=1)
    changed = make()
    changed.view(torch.uint8)[0, 0] ^= 1
    assert DataStore(v=make()) != DataStore(v=changed)


def test_equality_of_nan():
    value = torch.tensor([1.0, float("nan")])
    assert DataStore(v=value) == DataStore(v=value.clone())
    assert DataStore(v=value) != DataStore(v=value.double())


class Special(torch.Tensor):
    pass


def with_gradient():
    value = torch.ones(2, requires_grad=True)
    value.sum().backward()
    return value


def with_attribute():
    value = torch.ones(2)
    value.unit = "m"
    return value


REFUSED = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "value.to_dense()"),
    "compressed": (lambda: torch.eye(2).to_sparse_coo(), "value.to_dense()"),
    "meta": (lambda: torch.ones(2, device="meta"), None),
    "graph": (lambda: torch.ones(2, requires_grad=True) * 2, "value.detach()"),
    "gradient": (with_gradient, "value.detach()"),
    "attribute": (with_attribute, "value.detach()"),
    "bits": (
        lambda: torch.zeros(2, dtype=torch.uint8).view(torch.uint4),
        "value.view(torch.uint8)",
    ),
    "module": (model, "value.state_dict()"),
    "subclass": (
        lambda: torch.ones(2).as_subclass(Special),
        "value.detach().as_subclass(torch.Tensor)",
    ),
}


@pytest.mark.parametrize(("make", "instead"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_what_to_do_and_that_works(make, instead):
    value = make()
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value(value)
    if instead is not None:
        assert instead in str(caught.value)
        stored(eval(instead, {"value": value, "torch": torch}))


def changed(value, **parts):
    text, blobs = encode_value(value)
    name, version, node = json.loads(text)
    return json.dumps([name, version, {**node, **parts}]), blobs


HOSTILE = {
    "unknown dtype": {"dtype": "load"},
    "another dtype": {"dtype": "int32"},
    "wider": {"dtype": "float64"},
    "bits": {"dtype": "bfloat16"},
    "gradient of nothing": {"requires_grad": None},
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_fit_is_damage(parts):
    with pytest.raises(DamagedObjectError):
        decode_value(*changed(torch.ones(2), **parts))


@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter])
def test_integers_have_no_gradients(kind):
    value = torch.arange(3) if kind is torch.Tensor else torch.nn.Parameter(torch.arange(3), False)
    with pytest.raises(DamagedObjectError):
        decode_value(*changed(value, requires_grad=True))


def test_a_shape_that_nothing_backs_takes_no_memory():
    text, blobs = encode_value(torch.ones(2))
    name, version, node = json.loads(text)
    node["array"]["shape"] = [2**40]
    with pytest.raises(DamagedObjectError):
        decode_value(json.dumps([name, version, node]), blobs)


def test_description():
    node = json.loads(encode_value(random("bfloat16", 2, 3))[0])[2]
    about = codec_named("torch.tensor").describe(node)
    assert (about.type, about.dtype, about.shape, about.nbytes) == (
        "torch.Tensor",
        "bfloat16",
        (2, 3),
        12,
    )


def test_what_was_assigned_is_not_hoarded(storage):
    state = model().state_dict()
    ds = DataStore(v={"model": state})
    store(ds, storage)
    assert ds["v"]["model"] is not state
