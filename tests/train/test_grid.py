"""Every granularity, importance and schedule in a real loop, beside loops over single weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from dcompress.errors import RecipeError
from dcompress.train import Compressor, PruneStage
from dcompress.train.settings import IMPORTANCES, SCHEDULES
from tests.train import naive

GRANULARITIES = ("element", "kernel", "filter", "channel", "2x6", "2:4")
NAME = "0.weight"


def own_function(sample):
    return sample.weight + 2 * sample.grad


def tiny_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))


# What each schedule asks for, written out: step -> sparsity, and N of 2:4.
ITERATIVE = {2: 1 - 0.5 ** (1 / 3), 4: 1 - 0.5 ** (2 / 3), 6: 0.5}
CUBIC = {2: 0.0, 4: 0.4375, 6: 0.5}
LEVELS = {
    "one_shot": ({2: 0.5}, {2: 2}),
    "iterative": (ITERATIVE, {2: 3, 4: 3, 6: 2}),
    "cubic": (CUBIC, {2: 4, 4: 2, 6: 2}),
    "regrow": ({2: 0.5}, {}),
}
REGROWN = {4: 0.15 * (1 + math.cos(math.pi / 3)), 6: 0.15 * (1 + math.cos(2 * math.pi / 3)), 8: 0.0}


def stage_of(granularity, importance, schedule):
    settings = {"granularity": granularity, "importance": importance, "schedule": schedule, "begin": 2}
    if granularity != "2:4":
        settings["sparsity"] = 0.5
    if schedule != "one_shot":
        settings |= {"end": 8 if schedule == "regrow" else 6, "every": 2}
    return PruneStage(NAME, n_observed=2, seed=7, **settings)


def impossible(granularity, importance, schedule):
    if importance == "geometric_median" and granularity not in ("filter", "channel"):
        return "filters and channels"
    return "does not go with" if granularity == "2:4" and schedule == "regrow" else ""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("importance", [*IMPORTANCES, own_function], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_are_those_of_loops_over_single_weights(granularity, importance, schedule):
    if reason := impossible(granularity, importance, schedule):
        with pytest.raises(RecipeError, match=reason):
            stage_of(granularity, importance, schedule)
        return
    model, plain = tiny_model(), tiny_model()
    compressor = Compressor(model, stage_of(granularity, importance, schedule))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    mask = torch.ones(8, 4, 3, 3, dtype=torch.bool)
    levels = LEVELS[schedule][granularity == "2:4"]
    grads, outputs, inputs = [], [], []
    n_changes = 0
    for step in range(1, 10):
        images, labels = torch.randn(4, 4, 6, 6), torch.randint(3, (4,))
        # The same pass through a plain model: the gradient of every weight, pruned or not, and activations.
        leaves = {
            "0.weight": model[0].weight.detach().clone().requires_grad_(),
            "0.bias": model[0].bias.detach(),
            "3.weight": model[3].weight.detach(),
            "3.bias": model[3].bias.detach(),
        }
        cross_entropy(functional_call(plain, leaves, (images,)), labels).backward()
        grads.append(leaves["0.weight"].grad)
        inputs.append(images)
        outputs.append(nn.functional.conv2d(images, leaves["0.weight"].detach(), leaves["0.bias"]))
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        weight = model[0].weight.detach().clone()
        seen = naive.Seen(weight, grads[-2:], outputs[-2:], inputs[-2:], naive.seed_of(7, NAME, step))
        if step in levels:
            mask = naive.prune(mask, seen, importance, granularity, levels[step])
        elif schedule == "regrow" and step in REGROWN:
            mask = naive.regrow(mask, seen, importance, granularity, REGROWN[step])
        report = compressor.step()
        changed = step in levels or (schedule == "regrow" and step in REGROWN)
        assert report.pruned == ((NAME,) if changed else ())
        n_changes += changed
        assert torch.equal(compressor.masks()[NAME], mask), f"step {step}"
        assert not model[0].weight[~mask].any()
    assert n_changes == {"one_shot": 1, "iterative": 3, "cubic": 3, "regrow": 4}[schedule]
    assert (~mask).float().mean() == 0.5
