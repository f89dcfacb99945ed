"""torch tensors and state dicts, to and from plain words."""

import math
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

torch = pytest.importorskip("torch")

from dcompress.checkpoint import (  # noqa: E402 - needs torch
    checkpoint_from_state_dict,
    data_to_tensor,
    state_dict_from_checkpoint,
    tensor_to_data,
)
from dcompress.constants import DTYPES  # noqa: E402
from dcompress.errors import EncodeError, UnsupportedTensorError  # noqa: E402
from dcompress.stages import TensorData  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


def raw(tensor):
    """Return the bytes of a contiguous tensor."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype, shape, seed=0):
    """Return a tensor of random bits: NaN payloads, infinities, subnormals and -0.0 are among them."""
    content = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * dtype.element_bytes, np.uint8)
    if dtype.name == "bool":
        content &= 1
    torch_dtype = getattr(torch, dtype.name)
    return (
        torch.from_numpy(content).view(torch_dtype).reshape(shape)
        if content.size
        else torch.empty(shape, dtype=torch_dtype)
    )


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_every_dtype_of_torch_is_known_or_refused():
    known = {getattr(torch, dtype.name) for dtype in DTYPES}
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)} - known:
        tensor = torch.empty(0, dtype=dtype)
        with pytest.raises(UnsupportedTensorError, match="tensor 'x'"):
            tensor_to_data("x", tensor)


@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 4), (0,), (2, 0, 3)])
def test_round_trip_of_every_dtype_and_shape(dtype, shape):
    tensor = random_tensor(dtype, shape)
    data = tensor_to_data("x", tensor)
    assert (data.dtype, data.shape) == (dtype, shape)
    assert data.words.tobytes() == raw(tensor)
    back = data_to_tensor(data)
    assert (back.dtype, back.shape, back.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert raw(back) == raw(tensor)


@dtypes
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.transpose(0, 2),
        lambda t: t[:, 1:, ::2],
        lambda t: t[1],
        lambda t: t[1, 2, 3],
        lambda t: t[:1].expand(3, 3, 4),
        lambda t: t.permute(2, 0, 1),
        lambda t: t[1:2, :1].squeeze(),
    ],
)
def test_views_give_their_logical_values_only(dtype, view):
    tensor = view(random_tensor(dtype, (2, 3, 4)))
    indices = view(torch.arange(24).reshape(2, 3, 4)).reshape(-1)
    elements = np.frombuffer(raw(random_tensor(dtype, (2, 3, 4))), f"V{dtype.element_bytes}")
    data = tensor_to_data("x", tensor)
    assert data.shape == tuple(tensor.shape)
    assert data.words.tobytes() == elements[indices.numpy()].tobytes()


def test_channels_last():
    tensor = torch.arange(120.0).reshape(2, 3, 4, 5)
    data = tensor_to_data("x", tensor.to(memory_format=torch.channels_last))
    assert data.words.tobytes() == raw(tensor)


@pytest.mark.parametrize("name", ["complex32", "complex64", "complex128"])
def test_conjugate_and_negative_bits_are_resolved(name):
    tensor = torch.view_as_complex(torch.arange(-6.0, 6.0, dtype=torch.float64).reshape(6, 2)).to(
        getattr(torch, name)
    )
    for lazy in (tensor.conj(), tensor.conj().imag, tensor.conj().reshape(2, 3).t()):
        assert lazy.is_conj() or lazy.is_neg()
        assert tensor_to_data("x", lazy).words.tobytes() == raw(
            lazy.resolve_conj().resolve_neg().contiguous()
        )


def test_no_copies_where_none_are_needed():
    tensor = torch.nn.Parameter(torch.zeros(3))
    data = tensor_to_data("x", tensor)
    data.words[0] = 0x3F800000
    assert tensor.tolist() == [1.0, 0.0, 0.0]
    fresh = TensorData(data.dtype, data.shape, data.words.copy())
    assert data_to_tensor(fresh).data_ptr() == fresh.words.ctypes.data


def test_no_two_models_share_memory():
    tensor = torch.nn.Parameter(torch.arange(4.0))
    for view in (tensor, tensor[1:3], tensor.view(2, 2).t()):
        back = data_to_tensor(tensor_to_data("x", view))
        back.zero_()
        assert not back.requires_grad
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_words_that_torch_cannot_share_are_copied():
    words = tensor_to_data("x", torch.arange(3.0)).words
    frozen = words.copy()
    frozen.flags.writeable = False
    crooked = np.frombuffer(bytearray(b"x" + words.tobytes()), np.uint8)[1:].view("<u4")
    strided = np.repeat(words, 2)[::2]
    for odd in (frozen, crooked, strided):
        tensor = data_to_tensor(TensorData(DTYPES[11], (3,), odd))
        assert tensor.tolist() == [0.0, 1.0, 2.0]
        tensor[0] = 5.0
        assert odd[0] == 0


class Sub(torch.Tensor):
    pass


def unsupported():
    yield "quantized", lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.quint8)
    yield "sparse_coo", lambda: torch.zeros(2, 2).to_sparse()
    yield "sparse_csr", lambda: torch.sparse_csr_tensor([0, 1, 1], [0], [1.0], size=(2, 2))
    yield "meta device", lambda: torch.zeros(2, device="meta")
    yield "Sub", lambda: torch.zeros(2).as_subclass(Sub)
    yield "UninitializedParameter", lambda: torch.nn.UninitializedParameter()
    yield "nested", lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    yield "without memory", lambda: freed(torch.zeros(2))
    yield "torch.bits8", lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8)


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about prototypes and deprecations
@pytest.mark.parametrize(
    ("kind", "make"), list(unsupported()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_other_kinds_of_tensors_are_refused_by_name(kind, make):
    tensor = make()
    with pytest.raises(UnsupportedTensorError, match=rf"tensor 'a.b' is .*{kind}.*: \w+") as caught:
        tensor_to_data("a.b", tensor)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedTensorError, match=r"tensor 'a.b'"):
        checkpoint_from_state_dict({"ok": torch.zeros(1), "a.b": tensor})
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_tensors_come_to_the_cpu():
    tensor = torch.arange(6.0, device="cuda").reshape(2, 3).t()
    assert tensor_to_data("x", tensor).words.tobytes() == raw(tensor.cpu().contiguous())


def test_module_comes_back_whole():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state_dict = module.state_dict()
    checkpoint = checkpoint_from_state_dict(state_dict, {"author": "me"})
    assert checkpoint.metadata == {"author": "me"}
    assert list(checkpoint.tensors) == list(state_dict)
    assert checkpoint.tensors.specs == {n: (d.dtype, d.shape) for n, d in checkpoint.tensors.items()}
    back = state_dict_from_checkpoint(checkpoint)
    assert list(back) == list(state_dict)
    assert all(torch.equal(back[name], state_dict[name]) for name in back)
    assert back._metadata == state_dict._metadata
    assert isinstance(back._metadata, OrderedDict)
    assert "_metadata" not in checkpoint_from_state_dict(dict(state_dict)).torch_extra
    assert not hasattr(state_dict_from_checkpoint(checkpoint_from_state_dict({})), "_metadata")
    module.load_state_dict(back)


def test_ties_are_found_and_tied_again():
    base = torch.arange(12.0).reshape(3, 4)
    state_dict = {
        "a": base,
        "same": base.detach(),
        "view": base.view(3, 4),
        "parameter": torch.nn.Parameter(base),
        "transposed": base.t(),
        "part": base[1:],
        "reshaped": base.view(4, 3),
        "other bits": base.view(torch.int32),
        "equal": base.clone(),
        "part again": base[1:],
        "empty": base[:0],
        "empty again": base[:0],
    }
    checkpoint = checkpoint_from_state_dict(state_dict)
    assert checkpoint.ties == {"same": "a", "view": "a", "parameter": "a", "part again": "part"}
    assert list(checkpoint.tensors) == list(state_dict)
    back = state_dict_from_checkpoint(checkpoint)
    assert list(back) == list(state_dict)
    assert all(torch.equal(back[name], state_dict[name]) for name in back)
    back["a"][0, 0] = 7.0
    assert back["parameter"][0, 0] == back["same"][0, 0] == 7.0
    assert back["equal"][0, 0] == back["reshaped"][0, 0] == 0.0
    assert checkpoint_from_state_dict(back).ties == checkpoint.ties


def test_conjugate_of_a_tensor_is_not_tied_to_it():
    tensor = torch.tensor([1 + 2j])
    assert checkpoint_from_state_dict({"a": tensor, "b": tensor.conj()}).ties == {}


def test_values_keep_their_places():
    value = {"list": [1, 2.5, None, True, "x"], "nested": {"deep": []}}
    state_dict = OrderedDict(
        first=1, a=torch.zeros(1), _extra_state=value, none=None, b=torch.ones(1), last="z"
    )
    checkpoint = checkpoint_from_state_dict(state_dict)
    assert checkpoint.torch_extra["values"] == {"first": 1, "_extra_state": value, "none": None, "last": "z"}
    assert list(checkpoint.tensors) == ["a", "b"]
    back = state_dict_from_checkpoint(checkpoint)
    assert list(back) == list(state_dict)
    assert back["_extra_state"] == value


def endless():
    value = []
    value.append(value)
    return value


def bomb():
    value = [1]
    for _ in range(30):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: 2},
        {"a": (1,)},
        [torch.zeros(1)],
        {"inner": torch.zeros(1)},
        b"bytes",
        1j,
        math.nan,
        [math.inf],
        1 << 63,
        "\ud800",
        {"\ud800": 1},
        {1, 2},
        np.float64(1.0),
        np.zeros(2),
        endless(),
        bomb(),
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_cannot_hold_are_refused_by_name(value):
    with pytest.raises(EncodeError, match=r"entry 'x.y'"):
        checkpoint_from_state_dict({"a": torch.zeros(1), "x.y": value})


def test_keys_and_metadata_that_cannot_be_held():
    for key in (1, None, ("a",), b"a", "\udc00"):
        with pytest.raises(EncodeError, match="state dict key"):
            checkpoint_from_state_dict({key: torch.zeros(1)})
    state_dict = torch.nn.Linear(1, 1).state_dict()
    state_dict._metadata[""]["odd"] = object()
    with pytest.raises(EncodeError, match="_metadata"):
        checkpoint_from_state_dict(state_dict)


@given(
    hnp.arrays(st.sampled_from(["f4", "f8", "i8", "u2", "c8"]), hnp.array_shapes(min_dims=0, min_side=0)),
    st.data(),
)
def test_any_array_in_any_layout(array, data):
    tensor = torch.from_numpy(array.copy())
    order = data.draw(st.permutations(range(array.ndim)))
    found = tensor_to_data("x", tensor.permute(order))
    expected = np.ascontiguousarray(array.transpose(order))
    assert found.words.tobytes() == expected.tobytes()
    assert raw(data_to_tensor(found)) == expected.tobytes()
