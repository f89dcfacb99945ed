from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dcompress.errors import RecipeError
from dcompress.recipe import Recipe
from dcompress.train import (
    Compressor,
    PenaltyStage,
    PruneStage,
    QuantizeStage,
    RateStage,
    ShareStage,
    TrainRecipe,
)
from tests.train.loops import two_layers

TOML = """
exclude = ["norm.*"]

[[train]]
pattern = "*.weight"
l1 = 1e-4
end = 300

[[train]]
pattern = "first.weight"
sparsity = 0.9
schedule = "cubic"
begin = 100
end = 500
every = 20
granularity = "4x1"
importance = "l2"

[[train]]
pattern = "second.weight"
granularity = "2:4"
scope = "tensor"

[[train]]
pattern = "second.weight"
bits = 5
begin = 600

[[train]]
pattern = "first.weight"
method = "uniform"
bits = 6
per_channel = true

[[train]]
pattern = "second.bias"
step = 0.01
price = 0.5
begin = 700

[[rule]]
pattern = "second.bias"
bits = 2
"""


def test_one_file_says_how_to_train_and_how_to_encode():
    recipe = TrainRecipe.from_toml(TOML)
    assert recipe.stages == (
        PenaltyStage("*.weight", l1=1e-4, end=300),
        PruneStage(
            "first.weight", sparsity=0.9, schedule="cubic", begin=100, end=500, every=20,
            granularity="4x1", importance="l2",
        ),
        PruneStage("second.weight", granularity="2:4"),
        ShareStage("second.weight", bits=5, begin=600),
        QuantizeStage("first.weight", method="uniform", bits=6, per_channel=True),
        RateStage("second.bias", step=0.01, price=0.5, begin=700),
    )  # fmt: skip
    assert recipe.encode.preset == "lossless"
    assert recipe.encode.excludes == ("norm.*",)
    assert [rule.pattern for rule in recipe.encode.rules] == ["second.bias"]
    # `dcz encode --recipe` reads the same file.
    assert Recipe.from_toml(TOML).rules == recipe.encode.rules
    assert Recipe.from_toml(TOML).preset == "lossless"
    assert (
        Recipe.from_toml(f"preset = 'paper'\n{TOML}")
        == TrainRecipe.from_toml(f"preset = 'paper'\n{TOML}").encode
    )


def test_recipes_come_as_files_dicts_and_stages(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(TOML)
    from_file = TrainRecipe.of(path)
    assert from_file == TrainRecipe.of(str(path)) == TrainRecipe.from_toml(path)
    assert from_file.stages[1].origin == "recipe.toml: train 2 ('first.weight')"
    stage = PruneStage("first.weight", sparsity=0.5)
    table = {"train": [{"pattern": "first.weight", "sparsity": 0.5}]}
    assert TrainRecipe.of(stage) == TrainRecipe.of([stage]) == TrainRecipe.of(table)
    assert TrainRecipe.of(from_file) is from_file
    Compressor(two_layers(), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"recipe: train must be a list of tables \(\[\[train\]\]\), at least one"),
        ("train = 3", "train must be a list of tables"),
        ("[[train]]\nsparsity = 0.5", "train 1: pattern must be given"),
        (
            "[[train]]\npattern = 'a'\nsparsty = 0.5",
            r"train 1 \('a'\): unknown setting 'sparsty'.*'sparsity'",
        ),
        ("[[train]]\npattern = 'a'\nbits = 3\nevery = 2", "unknown setting 'every' of a ShareStage"),
        ("[[train]]\npattern = 'a'\nsparsity = 1.2", "sparsity must be a fraction from 0 to 1, not 1.2$"),
        ("[[train]]\npattern = 'a'\nsparsity = 90", "from 0 to 1, not 90; 90 % is 0.9$"),
        (
            "[[train]]\npattern = 'a'\nsparsity = 0.9\nbits = 5",
            r"'sparsity' of a ShareStage; it is one of a PruneStage: give that a \[\[train\]\] table",
        ),
        ("nonsense", "not valid TOML"),
        ("rules = 1\n[[train]]\npattern = 'a'\nsparsity = 0.5", "unknown key 'rules'"),
    ],
)
def test_bad_files(text, message):
    with pytest.raises(RecipeError, match=message):
        TrainRecipe.from_toml(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruneStage("w", sparsity=1.2), "'w': sparsity must be a fraction from 0 to 1, not 1.2"),
        (lambda: PruneStage("w", sparsity=True), "sparsity must be a fraction"),
        (lambda: PruneStage("w", sparsity=float("nan")), "sparsity must be a fraction"),
        (lambda: PruneStage("w"), "give exactly one of sparsity, n_pruned, quality, threshold"),
        (lambda: PruneStage("w", sparsity=0.5, quality=1.0), "give exactly one of"),
        (lambda: PruneStage("w", n_pruned=0.5), "n_pruned must be a whole number at least 0, not 0.5"),
        (lambda: PruneStage("w", quality=-1), "quality must be a number, at least 0, not -1"),
        (lambda: PruneStage("w", sparsity=0.5, granularity="row"), "granularity must be one of element"),
        (lambda: PruneStage("w", sparsity=0.5, granularity="filtre"), "did you mean 'filter'"),
        (lambda: PruneStage("w", sparsity=0.5, granularity="0x4"), "at least one row and one column"),
        (lambda: PruneStage("w", granularity="4:2"), "0 < N < M"),
        (lambda: PruneStage("w", sparsity=0.5, granularity="2:4"), "leave sparsity out"),
        (lambda: PruneStage("w", sparsity=0.5, importance="l3"), "importance must be one of"),
        (lambda: PruneStage("w", sparsity=0.5, importance="taylor"), "begin must be at least 1"),
        (lambda: PruneStage("w", sparsity=0.5, schedule="cubic"), "schedule 'cubic' needs an end"),
        (lambda: PruneStage("w", sparsity=0.5, end=9), "end needs a schedule"),
        (lambda: PruneStage("w", sparsity=0.5, schedule="cubic", begin=5, end=5), "end must be .* least 6"),
        (lambda: PruneStage("w", sparsity=0.5, every=0), "every must be a whole number at least 1"),
        (lambda: PruneStage("w", sparsity=0.5, begin=-1), "begin must be a whole number at least 0"),
        (lambda: PruneStage("w", sparsity=0.5, initial_sparsity=0.6), "initial_sparsity needs a sparsity"),
        (lambda: PruneStage("w", quality=1.0, importance="random"), "quality needs a magnitude"),
        (lambda: PruneStage("w", quality=1.0, scope="global"), "quality goes by each tensor"),
        (lambda: PruneStage("w", sparsity=0.5, scope=""), "scope must be"),
        (lambda: PruneStage("w", sparsity=0.5, rewind=1), "rewind must be true or false"),
        (lambda: PruneStage("w", sparsity=0.5, observe="relu"), "observe is for"),
        (lambda: PruneStage("w", sparsity=0.5, schedule="regrow", end=4, scope="a"), "leave the scope out"),
        (lambda: ShareStage("w"), "give one of bits and centroids"),
        (lambda: ShareStage("w", bits=13), "bits must be a whole number from 1 to 12"),
        (lambda: ShareStage("w", centroids=4096), "centroids must be a whole number from 1 to 4095"),
        (lambda: ShareStage("w", bits=2, init="middle"), "init must be one of"),
        (lambda: ShareStage("w", bits=2, reassign_every=2), "reassign_every needs latent = true"),
        (lambda: ShareStage("w", bits=2, latent="yes"), "latent must be true or false"),
        (lambda: QuantizeStage("w", method="round"), "method must be one of uniform, fixed_point"),
        (lambda: QuantizeStage("w", bits=1), "bits must be a whole number from 2 to 12"),
        (lambda: QuantizeStage("w", method="fixed_point", per_channel=True), "per_channel is for"),
        (lambda: QuantizeStage("w", method="fixed_point", fraction_bits=12), "must add up to"),
        (lambda: RateStage("w", price=1.0), "step must be given"),
        (lambda: RateStage("w", step=-0.1), "step must be a number, at least 0"),
        (lambda: RateStage("w", step=0.1, price=float("inf")), "price must be a number, at least 0"),
        (lambda: PenaltyStage("w", l1=-1.0), "l1 must be a number, at least 0"),
        (lambda: PenaltyStage("w", group_lasso=1.0, granularity="2:4"), "no groups for a lasso"),
        (lambda: PruneStage(3, sparsity=0.5), "pattern must be given, as a string"),
        (lambda: TrainRecipe.of([3]), "a stage is wanted, such as PruneStage, not int"),
        (lambda: TrainRecipe.of(None), "a recipe is wanted: stages, .*, not NoneType"),
        (lambda: TrainRecipe.of({"pattern": "a"}), r"in a dict: \{'train': \[\{'pattern'"),
        (lambda: TrainRecipe.of("[[train]]"), r"the text of a recipe: use TrainRecipe\.from_toml"),
    ],
)  # fmt: skip
def test_settings_out_of_range(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_numbers_of_numpy_become_plain():
    stage = PruneStage("w", sparsity=np.float64(0.5), schedule="cubic", end=np.int32(9), every=np.int64(3))
    assert stage == PruneStage("w", sparsity=0.5, schedule="cubic", end=9, every=3)
    assert repr(stage.sparsity) + repr(stage.end) == "0.59"
    with pytest.raises(RecipeError, match=r"end must be a whole number at least 1, not 9\.0"):
        PruneStage("w", sparsity=0.5, schedule="cubic", end=np.float32(9))


def tied():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False))
    model[1].weight = model[0].weight
    return model


def embedded_integers():
    model = two_layers()
    model.register_parameter("table", nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False))
    return model


FIRST, HALF = "first.weight", {"sparsity": 0.5}
MISFITS = [
    (
        two_layers,
        PruneStage("frist.weight", **HALF),
        "'frist.weight' matches no parameter; .* 'first.weight'",
    ),
    (two_layers, PruneStage("fc9*", **HALF), "'fc9.' matches no parameter; the parameters are 'scale'"),
    (tied, PruneStage("1.weight", **HALF), "'1.weight' is shared: it is also '0.weight'; leave it out"),
    (
        two_layers,
        PruneStage("scale", **HALF, granularity="channel"),
        "'scale': .*needs at least 2 dimensions",
    ),
    (two_layers, PruneStage(FIRST, granularity="2:5"), "'first.weight': .*second dimension that 5 divides"),
    (two_layers, PruneStage("scale", n_pruned=5), "n_pruned is 5, but 'scale' has only 4 units"),
    (
        two_layers,
        [ShareStage("first.*", bits=2), QuantizeStage(FIRST)],
        "'first.weight' is shared or quantised",
    ),
    (
        two_layers,
        [ShareStage(FIRST, bits=2), RateStage("first.*", step=0.1)],
        "shared or quantised by another",
    ),
    (
        two_layers,
        [RateStage(FIRST, step=0.2), RateStage("first.*", step=0.1, begin=3)],
        "'first.weight' has the step 0.2 by another stage",
    ),
    (lambda: nn.ParameterList([torch.empty(0, 3)]), QuantizeStage("0"), "'0' is empty: leave it out"),
    (lambda: nn.Linear(2, 3, device="meta"), PruneStage("weight", **HALF), "'weight' is on the meta device"),
    (lambda: nn.LazyLinear(3), PruneStage("bias", **HALF), "'weight' has no shape yet: run the model once"),
    (embedded_integers, PruneStage("table", **HALF), "'table' is of torch.int32: only floats"),
    (two_layers, PruneStage(FIRST, **HALF, importance="apoz", observe="relu", begin=1), "no module 'relu'"),
]


@pytest.mark.parametrize(("model", "stages", "message"), MISFITS)
def test_recipes_that_do_not_fit_the_model_change_nothing(model, stages, message):
    model = model()
    keys, kinds = list(model.state_dict()), [type(one) for one in model.modules()]
    with pytest.raises(RecipeError, match=message):
        Compressor(model, stages)
    assert list(model.state_dict()) == keys
    assert [type(one) for one in model.modules()] == kinds
    assert not any(one._forward_hooks for one in model.modules())


@pytest.mark.parametrize(
    "last",
    [
        PruneStage("second.weight", sparsity=0.5, importance=lambda sample: sample.weight[0]),
        ShareStage("second.weight", bits=2),
        QuantizeStage("first.weight"),
        RateStage("second.weight", step=0.1),
    ],
)
def test_a_stage_that_fails_at_once_leaves_the_model_as_it_was(last):
    model = two_layers()
    with torch.no_grad():
        model.second.weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stages = [
        PruneStage("first.weight", sparsity=0.5),
        ShareStage("first.weight", bits=2),
        PruneStage("first.weight", sparsity=0.6, importance="apoz", begin=3),
        last,
    ]
    with pytest.raises(RecipeError):
        Compressor(model, stages, optimizer=optimizer)
    assert list(model.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())
    assert type(model.first) is nn.Linear
    assert not model.first._forward_hooks
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"third.weight": torch.ones(2) > 0}, "masks: the model has no parameter 'third.weight'"),
        ({"first.wieght": torch.ones(2) > 0}, "no parameter 'first.wieght'; did you mean 'first.weight'"),
        ({"first.weight": torch.ones(16, 24) > 0}, r"must be a bool .*\(24, 16\), not .*\(16, 24\)"),
        ({"first.weight": torch.ones(24, 16)}, "must be a bool tensor"),
        ({"first.weight": [True]}, "must be a bool tensor of shape .*, not list"),
    ],
)  # fmt: skip
def test_given_masks_that_do_not_fit(masks, message):
    with pytest.raises(RecipeError, match=message):
        Compressor(two_layers(), [], masks=masks)


def test_a_model_under_another_compressor():
    model = two_layers()
    first = Compressor(model, PruneStage("first.weight", sparsity=0.5))
    with pytest.raises(RecipeError, match=r"'first.weight' is parametrized already: call finish\(\)"):
        Compressor(model, PruneStage("first.weight", sparsity=0.5))
    first.finish()
    Compressor(model, PruneStage("first.weight", sparsity=0.5))


def test_statistics_that_were_not_seen_and_functions_that_do_not_fit():
    model = two_layers()
    compressor = Compressor(model, PruneStage("first.weight", sparsity=0.5, importance="taylor", begin=1))
    with pytest.raises(RecipeError, match=r"'first.weight'.*call Compressor.step\(\) after"):
        compressor.step()
    with pytest.raises(RecipeError, match=r"must return a tensor of shape \(24, 16\), not float"):
        Compressor(two_layers(), PruneStage("first.weight", sparsity=0.5, importance=lambda sample: 1.0))
    model = two_layers()
    stage = PruneStage("first.weight", sparsity=0.5, importance="apoz", begin=1, observe="second")
    compressor = Compressor(model, stage)
    model(torch.randn(4, 16))
    with pytest.raises(RecipeError, match=r"what is watched has 4 channels, dimension 0 of the weight 24"):
        compressor.step()
