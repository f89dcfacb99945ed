from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune

from dcompress.errors import RecipeError
from dcompress.train import Compressor, PruneStage, from_torch_prune, to_torch_prune, zero_masks
from tests.train.loops import train, two_layers


def test_masks_of_torch_go_on_here_and_back_again():
    model, keys = two_layers(), sorted(two_layers().state_dict())
    dense = model.first.weight.detach().clone()
    prune.l1_unstructured(model.first, "weight", amount=0.5)
    prune.random_structured(model.second, "weight", amount=1, dim=0)
    expected = {name: getattr(model, name).weight_mask.bool() for name in ("first", "second")}
    with pytest.raises(RecipeError, match=r"'first\.weight' is pruned already.*from_torch_prune"):
        Compressor(model, PruneStage("first.weight", sparsity=0.8))

    masks = from_torch_prune(model)
    assert sorted(model.state_dict()) == keys
    assert list(masks) == ["first.weight", "second.weight"]
    assert torch.equal(model.first.weight, dense)
    compressor = Compressor(model, PruneStage("first.weight", sparsity=0.8), masks=masks)
    assert not compressor.masks()["first.weight"][~expected["first"]].any()
    assert compressor.sparsity("first.weight") == pytest.approx(0.8, abs=0.002)
    assert torch.equal(compressor.masks()["second.weight"], expected["second"])
    train(model, compressor, torch.optim.SGD(model.parameters(), 0.1), 0, 3)
    masks = compressor.masks()
    trained = compressor.finish()
    assert not trained.second.weight[~expected["second"]].any()

    used = {name: getattr(trained, name).weight.detach().clone() for name in ("first", "second")}
    to_torch_prune(trained, masks)
    for name, weight in used.items():
        layer = getattr(trained, name)
        assert prune.is_pruned(layer)
        assert torch.equal(layer.weight_mask.bool(), masks[f"{name}.weight"])
        assert torch.equal(layer.weight, weight)


def test_nothing_to_take_over():
    with pytest.raises(RecipeError, match="no parameter"):
        from_torch_prune(two_layers())


def test_masks_that_do_not_fit_torch():
    model = two_layers()
    with pytest.raises(RecipeError, match=r"no parameter 'third\.weight'"):
        to_torch_prune(model, {"third.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(
        RecipeError, match=r"mask of 'first\.weight' must be a bool tensor of shape \(24, 16\)"
    ):
        to_torch_prune(model, {"first.weight": torch.ones(24, 16)})
    assert not prune.is_pruned(model)


def test_a_model_that_was_pruned_before_keeps_its_zeros():
    model = two_layers()
    with torch.no_grad():
        model.first.weight[::2] = 0
    masks = zero_masks(model)
    assert list(masks) == ["first.weight"]
    compressor = Compressor(model, [], masks=masks)
    train(model, compressor, torch.optim.SGD(model.parameters(), 0.1), 0, 2)
    weight = compressor.finish().first.weight
    assert not weight[::2].any()
    assert weight[1::2].all()
