"""The scan of layers, its proposals and its picture."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import dcompress
from dcompress import Recipe
from dcompress.errors import EncodeError, RecipeError
from dcompress.recipe import Rule
from dcompress.train import (
    Compressor,
    PenaltyStage,
    PruneStage,
    QuantizeStage,
    Sensitivity,
    SensitivityPoint,
    ShareStage,
    TrainRecipe,
    scan_sensitivity,
    to_toml,
)
from tests.train.loops import batch, train, two_layers


def fidelity(reference):
    """Return a metric: how near the outputs are to those of a model; 0 is best."""
    reference = copy.deepcopy(reference).eval()
    x, _ = batch(0, 64)
    with torch.no_grad():
        wanted = reference(x)

    def evaluate(model):
        model.eval()
        with torch.no_grad():
            return -float((model(x) - wanted).square().mean() / wanted.square().mean())

    return evaluate


@pytest.fixture(scope="module")
def scanned():
    model = two_layers().train()
    before = copy.deepcopy(model.state_dict())
    seen = []
    scan = scan_sensitivity(
        model, fidelity(model), sparsities=(0.9, 0.25, 0.5), bits=(1, 4, 2), watch=seen.append
    )
    return model, before, scan, seen


def test_each_point_is_one_tensor_compressed(scanned):
    model, before, scan, seen = scanned
    evaluate = fidelity(model)
    assert scan.names == ("first.weight", "second.weight")
    assert tuple(seen) == scan.points
    assert [(p.kind, p.amount) for p in scan.points if p.name == "first.weight"] == [
        *(("sparsity", amount) for amount in (0.25, 0.5, 0.9)),
        *(("bits", amount) for amount in (1, 2, 4)),
    ]
    other = copy.deepcopy(model)
    for point in scan.points:
        rule = {"pattern": point.name, point.kind: point.amount}
        other.load_state_dict(dcompress.compress(before, {"preset": "lossless", "rule": [rule]}))
        assert evaluate(other) == point.metric
        assert point.drop == scan.baseline - point.metric
    assert scan.baseline == 0


def test_the_model_is_left_as_it_was(scanned):
    model, before, _, _ = scanned
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_limits_are_the_last_before_the_first_loss():
    amounts = {"sparsity": [(0.2, 0.1), (0.4, 0.6), (0.6, 0.3)], "bits": [(2, 3.0), (3, 0.4), (4, 0.0)]}
    points = tuple(
        SensitivityPoint("a", kind, amount, -drop, drop)
        for kind, pairs in amounts.items()
        for amount, drop in pairs
    )
    scan = Sensitivity(0.0, points)
    assert scan.limits(0.5) == {"a": (0.2, 3)}
    assert scan.limits(0.5, 1) == {"a": (None, 4)}
    assert scan.limits(0.7) == {"a": (0.6, 3)}
    assert scan.limits(5.0) == {"a": (0.6, 2)}
    assert scan.limits(0.05) == {"a": (None, 4)}
    assert Sensitivity(0.0, points[:3]).limits(0.01) == {"a": (None, None)}
    assert Sensitivity(0.0, points[:3]).propose(0.01) == Recipe("lossless")


def test_a_proposal_loads_and_encodes(scanned, tmp_path):
    _, before, scan, _ = scanned
    recipe = scan.propose(0.05)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    limits = scan.limits(0.05)
    assert {rule.pattern for rule in recipe.rules} == {name for name in limits if any(limits[name])}
    made = dcompress.load(dcompress.save(before, recipe=tmp_path / "recipe.toml"))
    for name, (sparsity, bits) in limits.items():
        if sparsity is not None:
            assert (made[name] == 0).float().mean() >= sparsity - 0.01
        if bits is not None:
            assert made[name].unique().numel() <= 2**bits + 1


def test_what_fits_keeps_the_metric_together(scanned):
    model, before, scan, _ = scanned
    evaluate = fidelity(model)
    recipe, metric = scan.fit(model, evaluate, max_drop=0.05)
    other = copy.deepcopy(model)
    other.load_state_dict(dcompress.compress(before, recipe))
    assert evaluate(other) == metric >= -0.05
    assert recipe.rules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RecipeError, match="no proposal keeps the metric within 1e-09 of"):
        scan.fit(model, evaluate, max_drop=1e-9)
    with pytest.raises(RecipeError, match="max_drop must be a number"):
        scan.fit(model, evaluate, max_drop=-1)


def test_a_training_recipe_loads_and_trains(scanned):
    model, _, scan, _ = scanned
    recipe = scan.propose_training(0.3, begin=2, end=10, every=2)
    assert TrainRecipe.from_toml(to_toml(recipe)) == recipe
    learning = copy.deepcopy(model)
    compressor = Compressor(learning, recipe)
    optimizer = torch.optim.SGD(learning.parameters(), 0.01)
    train(learning, compressor, optimizer, 0, 12)
    done = compressor.finish()
    for name, (sparsity, bits) in scan.limits(0.3).items():
        weight = done.get_parameter(name)
        assert sparsity is None or float((weight == 0).float().mean()) == pytest.approx(sparsity, abs=0.01)
        assert bits is None or weight.unique().numel() <= 2**bits + 1
    with pytest.raises(RecipeError, match="no tensor bears anything within 0"):
        scan.propose_training(0, begin=1, end=2)


def test_less_can_be_better_and_nan_is_a_loss():
    model = two_layers()
    losses = iter([1.0, 0.5, math.nan])
    scan = scan_sensitivity(
        model, lambda _: next(losses), sparsities=(0.1, 0.2), bits=(), pattern="second*", lower_is_better=True
    )
    assert [point.drop for point in scan.points] == [-0.5, math.inf]
    assert scan.limits(0) == {"second.weight": (0.1, None)}


def test_tied_tensors_are_compressed_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    model[1].weight = model[0].weight
    zeros = []

    def evaluate(given):
        zeros.append([int((one.weight == 0).sum()) for one in given])
        return 0.0

    scan = scan_sensitivity(model, evaluate, sparsities=(0.5,), bits=())
    assert scan.names == ("0.weight",)
    assert zeros == [[0, 0], [80, 80]]


def test_it_prints(scanned):
    _, _, scan, _ = scanned
    lines = str(scan).splitlines()
    assert lines[1].split() == [
        "tensor",
        "25",
        "%",
        "50",
        "%",
        "90",
        "%",
        "1",
        "bits",
        "2",
        "bits",
        "4",
        "bits",
    ]
    assert len(lines) == 4
    assert len(lines[2].split()) == 7


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture(scanned, tmp_path, suffix):
    _, _, scan, _ = scanned
    scan.plot(tmp_path / f"one.{suffix}", title="two layers")
    scan.plot(tmp_path / f"two.{suffix}", title="two layers")
    picture = (tmp_path / f"one.{suffix}").read_bytes()
    assert picture == (tmp_path / f"two.{suffix}").read_bytes()
    assert picture.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        assert b"second.weight" in picture
        assert b"two layers" in picture


def test_pictures_that_cannot_be(scanned, tmp_path, monkeypatch):
    _, _, scan, _ = scanned
    with pytest.raises(EncodeError, match=r"must end with \.png, \.svg, \.pdf"):
        scan.plot(tmp_path / "one.jpg")
    monkeypatch.setattr("dcompress.train.sensitivity_plot.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'dcompress\[plot\]'"):
        scan.plot(tmp_path / "one.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": (1.2,)}, "sparsities must be fractions from 0 to 1, not 1.2"),
        ({"bits": (0,)}, "bits must be whole numbers from 1 to 12, not 0"),
        ({"sparsities": (), "bits": ()}, "give sparsities, bits, or both"),
        (
            {"pattern": "frist*"},
            r"pattern 'frist\*' matches no matrix and no kernel; they are 'first.weight', 'second.weight'",
        ),
    ],
)
def test_wrong_use(options, message):
    with pytest.raises(RecipeError, match=message):
        scan_sensitivity(two_layers(), lambda _: 0.0, **options)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(
            "paper", (Rule('a"\\\x7f[*]é', {"codebook": [0.5, -1e-7]}),), ("x*",), bits=4, profile="baseline"
        ),
        Recipe(step=1e-5, states=8),
        TrainRecipe(
            (
                PruneStage("a", 1, sparsity=0.5, importance="taylor", granularity="4x1", rewind=True),
                PruneStage("b", granularity="2:4"),
                ShareStage("c", bits=5, latent=True, reassign_every=3),
                ShareStage("c", centroids=7),
                QuantizeStage("d"),
                QuantizeStage("d", 4, "fixed_point", integer_bits=1),
                PenaltyStage("e", group_lasso=1e-4, end=9),
                PenaltyStage("e"),
            ),
            Recipe("balanced", sparsity=0.5),
        ),
    ],
    ids=["rules", "step", "train"],
)
def test_recipes_as_text(recipe):
    assert type(recipe).from_toml(to_toml(recipe)) == recipe


def test_a_function_is_no_text():
    recipe = TrainRecipe((PruneStage("a", sparsity=0.5, importance=lambda sample: sample.weight),))
    with pytest.raises(RecipeError, match="importance is a function: a text cannot hold it"):
        to_toml(recipe)
