"""Weights on a grid, where every bit has a price."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dcompress
from dcompress.errors import DcompressWarning, RecipeError
from dcompress.train import Compressor, PruneStage, RateStage
from dcompress.train.rate import MOST, bit_costs, code_bits, frequencies_of
from tests.train.loops import train, two_layers


def test_multiples_are_counted_one_by_one():
    levels = torch.tensor([[0.0, -2, 5], [0, MOST + 1, -900]])
    counts = 6 * frequencies_of(levels)
    assert {place - MOST: round(n) for place, n in enumerate(counts.tolist()) if n} == {
        0: 2,
        -2: 1,
        5: 1,
        MOST: 1,
        -MOST: 1,
    }


def test_what_is_frequent_costs_what_its_entropy_says_and_what_never_occurs_is_dear():
    frequencies = torch.zeros(2 * MOST + 1)
    frequencies[MOST], frequencies[MOST + 1], frequencies[MOST - 1] = 0.5, 0.25, 0.25
    costs = bit_costs(frequencies)
    assert costs[MOST].item() == pytest.approx(1, abs=0.02)
    assert costs[MOST + 1].item() == pytest.approx(2, abs=0.02)
    assert 12 < costs[0].item() < 14


def test_bits_lie_on_lines_between_multiples():
    torch.manual_seed(0)
    costs = torch.rand(2 * MOST + 1) * 9
    step = 0.3
    weight = (torch.randn(200) * 4).requires_grad_()
    bits = code_bits(weight, step, costs)
    bits.backward()
    total = 0.0
    for value, slope in zip(weight.tolist(), weight.grad.tolist(), strict=True):
        place = min(max(value / step, -MOST), MOST)
        low = min(math.floor(place), MOST - 1)
        a, b = costs[low + MOST].item(), costs[low + 1 + MOST].item()
        total += a + (b - a) * (place - low)
        inside = abs(value / step) < MOST
        assert slope == pytest.approx((b - a) / step if inside else 0, abs=1e-4)
    assert bits.item() == pytest.approx(total, rel=1e-5)


def test_weights_are_multiples_and_code_as_such():
    model = two_layers()
    compressor = Compressor(model, RateStage("*.weight", step=0.11, price=0.5, begin=2))
    before = model.first.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    train(model, compressor, optimizer, 0, 1)
    assert compressor.regularizer() == 0
    assert (model.first.weight != before).any()
    train(model, compressor, optimizer, 1, 20)
    assert compressor.regularizer() > 0
    assert compressor.steps()["first.weight"] == torch.tensor(0.11)
    state = compressor.finish().state_dict()
    for name in ("first.weight", "second.weight"):
        levels = (state[name] / 0.11).round()
        assert torch.equal(state[name], levels * torch.tensor(0.11))
        assert not (state[name] == 0).logical_and(state[name].signbit()).any()
    assert (state["norm.weight"] / 0.11).frac().any()  # the scale of a norm is no weight
    frame = dcompress.save(state, recipe="lossless")
    for name, value in dcompress.load(frame).items():
        assert torch.equal(value, state[name])


def file_size(price):
    model = two_layers()
    compressor = Compressor(model, RateStage("*.weight", step=0.1, price=price))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    train(model, compressor, optimizer, 0, 60)
    return len(dcompress.save(compressor.finish().state_dict(), recipe="lossless"))


def test_the_price_makes_files_smaller():
    free, cheap, dear = (file_size(price) for price in (0.0, 0.3, 3.0))
    assert free > cheap > dear


def test_gradients_are_those_of_the_mean_bits():
    layer = nn.Linear(30, 20)
    compressor = Compressor(layer, RateStage("weight", step=0.1, price=2.0))
    compressor.regularizer().backward()
    weight = layer.parametrizations.weight.original
    costs = bit_costs(frequencies_of((layer.weight.detach() / 0.1).round()))
    again = weight.detach().clone().requires_grad_()
    (2.0 * code_bits(again, 0.1, costs) / again.numel()).backward()
    assert torch.allclose(weight.grad, again.grad)
    assert weight.grad.any()


def test_what_is_pruned_has_no_price():
    layer = nn.Linear(30, 20)
    stages = [PruneStage("weight", sparsity=0.5), RateStage("weight", step=0.1, price=2.0)]
    compressor = Compressor(layer, stages)
    compressor.regularizer().backward()
    kept = compressor.masks()["weight"]
    assert not layer.parametrizations.weight.original.grad[~kept].any()
    assert layer.parametrizations.weight.original.grad[kept].any()


def test_a_later_stage_has_another_price():
    model = two_layers()
    stages = [
        RateStage("*.weight", step=0.1, price=9.0, begin=3),
        RateStage("first.weight", step=0.1, price=1.0),
    ]
    compressor = Compressor(model, stages)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    early = compressor.regularizer()
    train(model, compressor, optimizer, 0, 3)
    first, second = (
        code_bits(beneath, 0.1, bit_costs(frequencies_of((beneath / 0.1).round())))
        for beneath in (one.parametrizations.weight.original for one in (model.first, model.second))
    )
    n_first, n_second = model.first.weight.numel(), model.second.weight.numel()
    assert early.item() == pytest.approx(first.item() / n_first, rel=1e-3)
    expected = 9 * (first + second).item() / (n_first + n_second)
    assert compressor.regularizer().item() == pytest.approx(expected, rel=1e-3)


def test_a_new_price_counts_afresh():
    layer = nn.Linear(30, 20)
    stages = [RateStage("weight", step=0.1), RateStage("weight", step=0.1, price=1.0, begin=3)]
    compressor = Compressor(layer, stages)
    nn.init.constant_(layer.parametrizations.weight.original, 0.5)
    for _ in range(3):
        compressor.step()
    assert compressor.regularizer().item() == pytest.approx(0, abs=0.02)


def test_a_weight_that_becomes_nan_is_seen_in_the_loss():
    layer = nn.Linear(3, 2)
    compressor = Compressor(layer, RateStage("weight", step=0.1, price=1.0))
    layer.parametrizations.weight.original.data[0, 0] = float("nan")
    assert compressor.regularizer().isnan()
    for _ in range(4):
        compressor.step()


def test_a_model_that_becomes_float16_keeps_its_prices():
    layer = nn.Linear(512, 512)
    nn.init.normal_(layer.weight, std=0.01)
    compressor = Compressor(layer, RateStage("weight", step=1.0, price=1.0))
    layer.half()
    for _ in range(4):
        compressor.step()
    assert compressor.regularizer().isfinite()


@pytest.mark.parametrize(
    ("dtype", "step", "message"),
    [
        (torch.float16, 1e-9, "'weight': torch.float16 cannot hold a step of 1e-09"),
        (torch.float16, 1e6, "cannot hold a step"),
        (torch.float32, 1e-46, "cannot hold a step"),
        (
            torch.float32,
            1e-5,
            r"'weight': a weight of .* is more than 2,047 steps of 1e-05: take a step of at",
        ),
    ],
)
def test_steps_that_no_weight_can_be_a_multiple_of(dtype, step, message):
    with pytest.raises(RecipeError, match=message):
        Compressor(nn.Linear(16, 12).to(dtype), RateStage("weight", step=step))


def run(n_steps, every):
    """Train and ask for the price in some of the steps; return how often that was complained of."""
    model = two_layers()
    compressor = Compressor(model, RateStage("*.weight", step=0.1, price=1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DcompressWarning)
        for step in range(n_steps):
            loss = cross_entropy(model(torch.randn(8, 16)), torch.randint(4, (8,)))
            if every and step % every == 0:
                loss = loss + every * compressor.regularizer()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            compressor.step()
        compressor.finish()
    assert all("regularizer()" in str(one.message) for one in found)
    return len(found)


@pytest.mark.parametrize(
    ("n_steps", "every", "n_warnings"),
    [(30, 1, 0), (45, 20, 0), (30, 0, 1), (4, 0, 1), (4, 1, 0), (0, 0, 0)],
)
def test_a_price_that_is_never_paid_is_no_secret(n_steps, every, n_warnings):
    assert run(n_steps, every) == n_warnings
