"""What torch calls a state dict: kinds of tensors, ties, extra state, through the bytes of a file."""

from __future__ import annotations

import copy

import pytest
import torch

import dcompress
from dcompress.constants import DTYPES
from dcompress.errors import EncodeError, UnsupportedTensorError
from tests.checks import flipped


class Counting(torch.nn.Module):
    """A module with everything that a state dict can hold beside parameters."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.second = torch.nn.Linear(6, 4)
        self.second.weight = self.first.weight
        self.steps = 0

    def get_extra_state(self):
        return {"steps": self.steps, "names": ["a", None, 1.5]}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def test_extra_state_and_metadata_come_back(tmp_path):
    model, other = Counting(), Counting()
    model.steps = 77
    dcompress.save_model(model, tmp_path / "m.dcz", recipe="lossless")
    assert dcompress.load_model(other, tmp_path / "m.dcz") == ([], [])
    assert other.steps == 77
    state, want = dcompress.load_file(tmp_path / "m.dcz"), model.state_dict()
    assert list(state) == list(want)
    assert state._metadata == want._metadata
    assert state._metadata["norm"] == {"version": 2}
    assert state["_extra_state"] == want["_extra_state"]
    assert state["first.weight"].data_ptr() == state["second.weight"].data_ptr()
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(state[name], value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_extra_state_that_only_pickle_can_hold_is_refused_by_name(tmp_path):
    model = Counting()
    model.get_extra_state = lambda: {"schedule": (1, 2)}
    with pytest.raises(EncodeError, match=r"'_extra_state'.*neither a tensor nor plain JSON"):
        dcompress.save_model(model, tmp_path / "m.dcz")
    assert list(tmp_path.iterdir()) == []


def test_every_dtype_that_torch_has_is_kept_or_refused_by_name():
    known = {getattr(torch, dtype.name) for dtype in DTYPES}
    others = 0
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        if dtype in known:
            words = torch.arange(160, dtype=torch.uint8)
            tensor = words.view(torch.bool).logical_not() if dtype is torch.bool else words.view(dtype)
            state = dcompress.load(dcompress.save({"w": tensor}, recipe="lossless"))
            assert state["w"].dtype is dtype
            assert torch.equal(state["w"].view(torch.uint8), tensor.view(torch.uint8))
            continue
        others += 1
        try:
            tensor = torch.empty(4, dtype=torch.uint8).view(dtype)
        except (RuntimeError, TypeError):
            continue
        with pytest.raises(UnsupportedTensorError, match="tensor 'odd'"):
            dcompress.save({"odd": tensor})
    assert len(known) == 22
    assert others > 0


@pytest.mark.parametrize("bits", [0x7FC00001, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0x00000001, 0x7F800000])
@pytest.mark.filterwarnings("ignore::dcompress.DcompressWarning")
@pytest.mark.parametrize("recipe", ["lossless", "balanced", "paper"])
def test_payloads_of_nans_and_signs_of_zeros_are_kept(bits, recipe):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weight.view(torch.int32)[3, 5] = bits - (1 << 32) if bits >> 31 else bits
    bias = weight[3].clone()
    state = dcompress.load(dcompress.save({"fc.weight": weight, "fc.bias": bias}, recipe=recipe))
    assert torch.equal(state["fc.bias"].view(torch.int32), bias.view(torch.int32))
    if not bool(torch.isfinite(weight).all()):
        assert torch.equal(state["fc.weight"].view(torch.int32), weight.view(torch.int32))


def layouts():
    base = torch.arange(240, dtype=torch.float32).reshape(2, 3, 5, 8)
    yield "strided", base[:, ::2, 1:4, ::3]
    yield "transposed", base.permute(3, 1, 0, 2)
    yield "channels last", base.contiguous(memory_format=torch.channels_last)
    yield "expanded", base[:, :1].expand(2, 4, 5, 8)
    yield "a view of a large storage", torch.arange(1 << 20, dtype=torch.float32)[-3:]
    yield "conjugated", torch.complex(base, base + 1).conj()
    yield "negated", torch.complex(base, base + 1).conj().imag
    yield "0-d", torch.tensor(-0.0)
    yield "empty", torch.empty(0, 3)
    yield "a parameter", torch.nn.Parameter(base)
    yield "requires grad", base.clone().requires_grad_() * 2


def signs(tensor):
    return torch.signbit(torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor)


@pytest.mark.parametrize(
    ("kind", "tensor"), list(layouts()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_logical_values_are_stored_and_no_more(kind, tensor):
    frame = dcompress.save({"w": tensor}, recipe="lossless")
    loaded = dcompress.load(frame)["w"]
    assert torch.equal(loaded, tensor)
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(signs(loaded), signs(tensor))
    assert len(frame) < 4 * tensor.numel() * tensor.element_size() + 400


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors_are_refused_by_name():
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs torch.distributed of its own")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        tensor = distribute_tensor(torch.randn(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(UnsupportedTensorError, match=r"tensor 'sharded' is a .*DTensor.*full_tensor"):
            dcompress.save({"plain": torch.ones(2), "sharded": tensor})
        state = dcompress.load(dcompress.save({"whole": tensor.full_tensor()}, recipe="lossless"))
        assert torch.equal(state["whole"], tensor.full_tensor())
    finally:
        distributed.destroy_process_group()


def test_fake_tensors_are_refused_by_name():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(3)
    with pytest.raises(UnsupportedTensorError, match="tensor 'fake'"):
        dcompress.save({"fake": fake})


def test_a_damaged_file_changes_nothing_in_a_model(tmp_path):
    model = Counting()
    frame = dcompress.save(model.state_dict(), recipe="lossless")
    before = copy.deepcopy(model.state_dict())
    del before["_extra_state"]
    for bit in range(0, 8 * len(frame), 131):
        (tmp_path / "bad.dcz").write_bytes(flipped(frame, bit))
        with pytest.raises(dcompress.DecodeError):
            dcompress.load_model(model, tmp_path / "bad.dcz")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
