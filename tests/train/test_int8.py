from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import dcompress
from dcompress.errors import EncodeError, RecipeError
from dcompress.train import Compressor, PruneStage
from dcompress.train.int8 import int8_from_plain, int8_to_plain, quantize_int8

pytest.importorskip("torchao", reason="int8 after training is torchao's")


def two_linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))


def inputs():
    return torch.randn(40, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", ["weight", "dynamic", "static"])
def test_int8_models_come_back_from_a_file_exactly(mode, per_channel, affine, tmp_path):
    model, x = two_linear(), inputs()
    dense, weight = model(x).detach(), model[0].weight.detach().clone()
    batches = [x[:20], x[20:]] if mode == "static" else None
    names = quantize_int8(model, mode, per_channel=per_channel, affine=affine, calibration=batches)
    assert names == ("0", "2")
    out = model(x)
    error = (out - dense).abs().max()
    assert 0 < error < 0.05 * dense.abs().max()
    dcompress.save_file(int8_to_plain(model.state_dict()), tmp_path / "m.dcz", recipe="lossless")
    loaded = dcompress.load_file(tmp_path / "m.dcz")
    assert loaded["0.weight"].dtype == torch.int8
    # The numbers and their scales stand for the weights, to half a step.
    scale = loaded["0.weight.scale"]
    assert scale.numel() == (24 if per_channel else 1)
    assert ((loaded["0.weight"] * scale - weight).abs() <= scale * 0.501).all()
    other = two_linear(seed=1)
    other.load_state_dict(int8_from_plain(loaded), assign=True)
    assert torch.equal(other(x), out)
    if mode == "static":  # the scale is that of the batches: what is far beyond them is cut off
        step = loaded["0.weight.act_quant_scale"].item()
        span = (x.max() - x.min()) / 255 if affine else x.abs().max() / 127.5
        assert step == pytest.approx(span.item(), rel=1e-5)


def test_zeros_of_a_pruned_model_stay_zero():
    model = two_linear()
    compressor = Compressor(model, PruneStage("0.weight", sparsity=0.8))
    with pytest.raises(RecipeError, match="'0' is parametrized"):
        quantize_int8(model)
    mask = compressor.masks()["0.weight"]
    quantize_int8(compressor.finish(), "weight", pattern="0")
    plain = int8_to_plain(model.state_dict())
    assert not plain["0.weight"][~mask].any()
    assert plain["2.weight"].dtype == torch.float32


def test_wrong_use():
    model = two_linear()
    with pytest.raises(RecipeError, match="mode must be one of"):
        quantize_int8(model, "sometimes")
    with pytest.raises(RecipeError, match="calibration"):
        quantize_int8(model, "static")
    with pytest.raises(RecipeError, match="calibration"):
        quantize_int8(model, "weight", calibration=[inputs()])
    with pytest.raises(RecipeError, match="'fc' matches no linear layer"):
        quantize_int8(model, pattern="fc")
    with pytest.raises(RecipeError, match="layer '0' saw no input"):
        quantize_int8(model, "static", calibration=[])
    assert type(model[0].weight) is nn.Parameter


def test_state_dicts_that_do_not_fit():
    model = two_linear()
    quantize_int8(model, "weight")
    state = model.state_dict()
    with pytest.raises(EncodeError, match=r"has a '0\.weight\.scale' already"):
        int8_to_plain({**state, "0.weight.scale": torch.ones(1)})
    plain = int8_to_plain(state)
    del plain["2.weight"]
    with pytest.raises(EncodeError, match=r"details of '2\.weight', but not its weights"):
        int8_from_plain(plain)
    plain = int8_to_plain(state)
    del plain["0.weight.int8"]["dtype"]
    with pytest.raises(EncodeError, match=r"parts of the int8 tensor '0\.weight'"):
        int8_from_plain(plain)


def test_without_torchao(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match="pip install 'torchao"):
        quantize_int8(two_linear())
