from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import dcompress
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import EncodeError, RecipeError
from dcompress.share import share
from dcompress.train import (
    Compressor,
    PruneStage,
    QuantizeStage,
    ShareStage,
    from_integers,
    to_integers,
)
from dcompress.train.sharing import first_codebook, nearest_labels
from tests.train.loops import train, two_layers


def test_the_first_codebook_is_that_of_one_shot_sharing():
    weight = torch.randn(40, 30)
    weight[torch.rand(40, 30) < 0.6] = 0
    codebook = first_codebook(weight, 16)
    labels = nearest_labels(weight, codebook)
    expected = share(weight.numpy(), DTYPE_BY_NAME["float32"], n_centroids=16)
    assert np.array_equal(codebook.numpy().view("u4"), expected.codebook[0])
    assert np.array_equal(labels.numpy().reshape(-1), expected.labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codebooks_of_other_dtypes(dtype):
    weight = torch.randn(20, 10).to(dtype)
    codebook = first_codebook(weight, 8)
    assert codebook.dtype == dtype
    labels = nearest_labels(weight, codebook)
    distances = (weight.double()[..., None] - codebook.double()).abs()
    assert torch.equal(distances.gather(-1, labels.long()[..., None] - 1)[..., 0], distances.amin(-1))


def test_few_values_and_no_values():
    weight = torch.tensor([[0.0, 2.0, -1.0, 2.0]])
    assert first_codebook(weight, 4).tolist() == [-1, 2, 2, 2]
    assert nearest_labels(weight, first_codebook(weight, 4)).tolist() == [[0, 2, 1, 2]]
    zeros = torch.zeros(3)
    assert nearest_labels(zeros, first_codebook(zeros, 4)).tolist() == [0, 0, 0]
    with pytest.raises(RecipeError, match="NaN"):
        first_codebook(torch.tensor([1.0, float("nan")]), 2)


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights():
    layer = nn.Linear(12, 5)
    compressor = Compressor(layer, [PruneStage("weight", sparsity=0.4), ShareStage("weight", centroids=3)])
    codebook = layer.parametrizations.weight[0].codebook
    labels = layer.parametrizations.weight[0].labels
    dense = layer.weight.detach().clone().requires_grad_()
    x, target = torch.randn(8, 12), torch.randn(8, 5)
    ((layer(x) - target) ** 2).sum().backward()
    ((nn.functional.linear(x, dense, layer.bias.detach()) - target) ** 2).sum().backward()
    for label in (1, 2, 3):
        assert codebook.grad[label - 1].item() == pytest.approx(
            dense.grad[labels == label].sum().item(), rel=1e-5
        )
    assert layer.parametrizations.weight.original.grad is None
    assert torch.equal(labels == 0, ~compressor.masks()["weight"])


def test_labels_stay_and_zeros_stay_zero_while_centroids_move():
    model = two_layers()
    compressor = Compressor(
        model, [PruneStage("first.weight", sparsity=0.7), ShareStage("first.weight", bits=2, begin=1)]
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    train(model, compressor, optimizer, 0, 1)
    first = model.first.weight.detach().clone()
    train(model, compressor, optimizer, 1, 6)
    last = model.first.weight.detach()
    assert first.unique().numel() == last.unique().numel() == 5
    for value in first.unique():
        assert last[first == value].unique().numel() == 1
    assert torch.equal(first == 0, last == 0)
    assert not torch.isin(last[last != 0], first).any()
    with pytest.raises(RecipeError, match=r"'first.weight' has no latent weights.*latent = true"):
        compressor.reassign()


def test_labels_are_assigned_anew_on_request():
    model = two_layers()
    stages = [
        PruneStage("first.weight", sparsity=0.5),
        ShareStage("first.weight", bits=2, latent=True),
        ShareStage("second.weight", bits=2, latent=True, reassign_every=2),
    ]
    compressor = Compressor(model, stages)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    share_of_first, share_of_second = (one.parametrizations.weight[0] for one in (model.first, model.second))
    before = share_of_first.labels.clone()
    of_second = share_of_second.labels.clone()
    train(model, compressor, optimizer, 0, 1)
    assert torch.equal(of_second, share_of_second.labels)
    train(model, compressor, optimizer, 1, 6)
    assert torch.equal(before, share_of_first.labels)
    assert not torch.equal(of_second, share_of_second.labels)
    assert compressor.reassign("first.*") == ("first.weight",)
    after = share_of_first.labels
    assert not torch.equal(before, after)
    latent = model.first.parametrizations.weight.original.detach()
    kept = compressor.masks()["first.weight"]
    distances = (latent[..., None] - share_of_first.codebook.detach()).abs()
    assert torch.equal(after[kept].long() - 1, distances.argmin(-1)[kept])
    assert torch.equal(after == 0, ~kept)
    with pytest.raises(RecipeError, match="'nope' matches no parameter that is shared"):
        compressor.reassign("nope")


@pytest.mark.parametrize(
    ("settings", "low", "high", "step"),
    [
        ({"bits": 4}, -7, 7, None),
        ({"bits": 2, "per_channel": True}, -1, 1, None),
        ({"method": "fixed_point", "integer_bits": 0, "fraction_bits": 3}, -8, 7, 0.125),
        ({"method": "fixed_point", "integer_bits": -2, "fraction_bits": 5}, -8, 7, 1 / 32),
    ],
)
def test_rounded_weights_are_multiples_of_their_step(settings, low, high, step):
    layer = nn.Linear(10, 6)
    weight = layer.weight.detach().clone()
    compressor = Compressor(layer, [QuantizeStage("weight", **settings), PruneStage("weight", sparsity=0.5)])
    mask = compressor.masks()["weight"]
    rows = weight if settings.get("per_channel") else weight.reshape(1, -1)
    for row, kept, used in zip(
        rows, mask.reshape(rows.shape), layer.weight.detach().reshape(rows.shape), strict=True
    ):
        unit = step or float(row.abs().max()) / high
        for value, keep, found in zip(row.tolist(), kept.tolist(), used.tolist(), strict=True):
            expected = min(max(round(value / unit), low), high) * unit if keep else 0
            assert found == pytest.approx(expected, abs=1e-7)
    plain = compressor.finish()
    again = dcompress.load(dcompress.save(plain.state_dict(), recipe="lossless"))
    assert torch.equal(again["weight"].view(torch.int32), plain.weight.detach().view(torch.int32))
    assert not (plain.weight == 0).logical_and(plain.weight.signbit()).any()


@pytest.mark.parametrize(("bits", "dtype"), [(3, torch.int8), (8, torch.int8), (9, torch.int16)])
def test_steps_of_channels_are_stored_beside_integers(bits, dtype):
    torch.manual_seed(4)
    layer = nn.Linear(200, 30)
    stages = [PruneStage("weight", sparsity=0.5), QuantizeStage("weight", bits=bits, per_channel=True)]
    compressor = Compressor(layer, stages)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(torch.rand(30, 1) * 9)
    trained = compressor.finish().state_dict()
    integers = to_integers(trained, compressor.steps())
    assert {name: value.dtype for name, value in integers.items()} == {
        "weight": dtype, "weight.step": torch.float32, "bias": torch.float32
    }  # fmt: skip
    frame = dcompress.save(integers, recipe="lossless")
    assert len(frame) < len(dcompress.save(trained, recipe="lossless"))
    loaded = from_integers(dcompress.load(frame))
    assert list(loaded) == list(trained)
    for name, value in trained.items():
        assert torch.equal(loaded[name].view(torch.int32), value.view(torch.int32))
    layer.load_state_dict(loaded)


def test_what_is_no_multiple_of_its_steps_is_refused():
    state = {"weight": torch.tensor([0.5, 0.75])}
    assert to_integers(state, {"weight": torch.tensor(0.25)})["weight"].tolist() == [2, 3]
    for weight in ([0.5, 0.7], [0.5, -0.0]):
        with pytest.raises(EncodeError, match="'weight' does not hold multiples"):
            to_integers({"weight": torch.tensor(weight)}, {"weight": torch.tensor(0.25)})
    with pytest.raises(EncodeError, match="has no 'bias'"):
        to_integers(state, {"bias": torch.tensor(1.0)})
    with pytest.raises(EncodeError, match=r"has a 'weight\.step' already"):
        to_integers({**state, "weight.step": torch.tensor(1.0)}, {"weight": torch.tensor(1.0)})


def test_rounding_passes_gradients_straight_through_within_its_range():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, 5.0, -0.1]]))
    Compressor(layer, QuantizeStage("weight", method="fixed_point", integer_bits=0, fraction_bits=2))
    assert layer.weight.tolist() == [[0.25, 0.75, 0.0]]
    assert not layer.weight.signbit().any()
    layer(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert layer.parametrizations.weight.original.grad.tolist() == [[1, 0, 3]]


def test_weights_that_are_not_finite_are_named():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    with pytest.raises(RecipeError, match="parameter 'weight': a weight is NaN or infinite"):
        Compressor(layer, ShareStage("weight", bits=2))


def test_frozen_weights_have_a_frozen_codebook():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    Compressor(layer, [PruneStage("weight", sparsity=0.5), ShareStage("weight", bits=1)])
    assert [name for name, one in layer.named_parameters() if one.requires_grad] == ["bias"]
    layer(torch.ones(1, 3)).sum().backward()


def test_zeros_alone_have_a_step_too():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    compressor = Compressor(layer, QuantizeStage("weight", per_channel=True))
    assert not compressor.finish().weight.any()
