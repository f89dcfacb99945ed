from __future__ import annotations

import pickle

import pytest

from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import RecipeError
from dcompress.recipe import PruneRule, RateRule, Recipe, Rule, ShareRule, TensorRecipe

F32 = DTYPE_BY_NAME["float32"]
SPECS = {
    "conv1.weight": (F32, (20, 1, 5, 5)),
    "conv1.bias": (F32, (20,)),
    "conv2.weight": (F32, (50, 20, 5, 5)),
    "norm.num_batches_tracked": (DTYPE_BY_NAME["int64"], ()),
    "fc1.weight": (F32, (500, 800)),
    "fc1.bias": (F32, (500,)),
    "fc2.weight": (F32, (10, 500)),
    "token": (F32, (1, 4096)),
    "half.weight": (DTYPE_BY_NAME["bfloat16"], (64, 64)),
    "byte.weight": (DTYPE_BY_NAME["float8_e5m2"], (64, 64)),
}


def plan(*sets, preset="balanced", **options):
    return Recipe.from_options(preset, sets, **options).plan(SPECS)


def test_lossless_leaves_everything():
    assert set(plan(preset="lossless").values()) == {TensorRecipe()}


def test_balanced_shares_matrices_and_kernels_of_some_size():
    recipes = plan()
    shared = {name for name, recipe in recipes.items() if recipe.share}
    assert shared == {"conv2.weight", "fc1.weight", "fc2.weight", "half.weight"}
    assert recipes["fc1.weight"] == TensorRecipe(None, ShareRule(n_centroids=256))
    assert list(recipes) == list(SPECS)


def test_paper_has_the_densities_and_bits_of_the_paper():
    recipes = plan(preset="paper")
    found = {
        name: (recipe.prune.sparsity, recipe.share.n_centroids)
        for name, recipe in recipes.items()
        if recipe.prune and recipe.share
    }
    assert found == {
        "conv1.weight": (0.34, 32),  # 500 weights fill no more than 32 centroids
        "conv2.weight": (0.62, 256),
        "fc1.weight": (0.91, 32),
        "fc2.weight": (0.91, 32),
        "half.weight": (0.75, 32),
    }
    assert not any(recipe.explicit or recipe.explicit_prune for recipe in recipes.values())


def test_options_replace_the_presets_figures_for_weights_only():
    recipes = plan(preset="paper", sparsity=0.5, bits=3)
    assert recipes["conv2.weight"] == TensorRecipe(PruneRule(0.5), ShareRule(n_centroids=8), True, True)
    assert recipes["fc1.bias"] == TensorRecipe()
    assert plan(preset="lossless", sparsity=0.5)["fc1.weight"] == TensorRecipe(
        PruneRule(0.5), None, explicit_prune=True
    )


def test_options_reach_weights_that_are_too_small_for_the_preset():
    recipes = plan(sparsity=0.5, bits=6)
    assert recipes["conv1.weight"] == TensorRecipe(PruneRule(0.5), ShareRule(n_centroids=32), True, True)
    assert recipes["token"] == TensorRecipe()  # a vector
    tiny = Recipe(bits=4).plan({"a": (F32, (3, 2))})["a"]
    assert tiny.share == ShareRule(n_centroids=2)
    assert Recipe(preset="paper", sparsity=0.5).plan({"a": (F32, (3, 2))})["a"].share is None


def test_later_rules_override_setting_by_setting():
    recipe = plan("fc*:sparsity=0.9,bits=5,init=density", "*.weight:bits=4", "fc1*:threshold=0.1")[
        "fc1.weight"
    ]
    assert recipe.prune == PruneRule(threshold=0.1)
    assert recipe.share == ShareRule(n_centroids=16, init="density")
    assert recipe.explicit
    assert recipe.explicit_prune


def test_a_rule_reaches_what_the_preset_leaves():
    recipes = plan("*.bias:bits=6", "token:sparsity=0.5")
    assert recipes["conv1.bias"] == TensorRecipe(None, ShareRule(n_centroids=64), explicit=True)
    assert recipes["token"] == TensorRecipe(PruneRule(0.5), None, explicit_prune=True)


def test_settings_that_only_shape_a_codebook_share_nothing_by_themselves():
    recipes = plan("*:codebook_dtype=float16,groups=1,seed=7")
    assert recipes["fc1.bias"] == TensorRecipe()
    assert recipes["fc1.weight"].share == ShareRule(codebook_dtype="float16", seed=7)
    assert not recipes["fc1.weight"].explicit


def test_kinds_of_codebooks_replace_each_other():
    given = "fc1.weight:codebook=-1/0/1.5"
    fixed = "fc1.weight:fraction_bits=6,integer_bits=1"
    assert plan(given)["fc1.weight"].share == ShareRule("given", codebook=(-1, 0, 1.5))
    assert plan(given, fixed)["fc1.weight"].share == ShareRule("fixed_point", integer_bits=1, fraction_bits=6)
    assert plan(fixed, "fc1*:bits=3")["fc1.weight"].share == ShareRule(n_centroids=8)
    uniform = plan("fc1*:method=uniform", "fc1*:centroids=9")["fc1.weight"].share
    assert uniform == ShareRule("uniform", 9)
    assert plan("fc1*:method=uniform")["fc1.weight"].share == ShareRule("uniform", 256)
    assert plan("fc1*:bits=12")["fc1.weight"].share == ShareRule(n_centroids=4095)


def test_lossless_and_exclude():
    recipes = plan("*:sparsity=0.5", "fc1*:lossless", "fc1.bias:bits=3", excludes=["conv*"])
    assert recipes["fc1.weight"] == recipes["conv1.weight"] == TensorRecipe()
    assert recipes["fc1.bias"] == TensorRecipe(None, ShareRule(n_centroids=8), explicit=True)
    assert recipes["norm.num_batches_tracked"] == TensorRecipe()


def test_scope():
    recipe = plan("*:scope=global", preset="balanced", sparsity=0.8)["fc1.weight"]
    assert recipe.prune == PruneRule(0.8, scope="global")
    with pytest.raises(RecipeError, match=r"tensor 'fc1\.weight': scope 'global' needs a sparsity"):
        plan("fc1.weight:threshold=1,scope=global")


TOML = """
preset = "paper"
exclude = ["conv1.*"]

[[rule]]
pattern = "fc*.weight"
sparsity = 0.5

[[rule]]
pattern = "half*"
codebook = [-1, 0, 1]
"""


def test_n_of_m():
    recipes = plan(
        "fc*.weight:sparsity=0.5,bits=5", "fc1.weight:n_m=2:4", "conv2.weight: n_m=1:2,lossless=false"
    )
    assert recipes["fc1.weight"] == TensorRecipe(PruneRule(n_m="2:4"), ShareRule(n_centroids=32), True, True)
    assert recipes["fc2.weight"].prune == PruneRule(0.5)
    assert recipes["conv2.weight"].prune == PruneRule(n_m="1:2")
    toml = "[[rule]]\npattern = 'fc1.weight'\nn_m = '2:4'"
    recipe = Recipe.from_toml(toml)
    assert recipe.plan(SPECS)["fc1.weight"].prune == PruneRule(n_m="2:4")
    assert recipe.to_dict() == {"rule": [{"pattern": "fc1.weight", "n_m": "2:4"}]}
    with pytest.raises(RecipeError, match="n_m must be N:M"):
        Recipe.from_toml(toml.replace("'2:4'", "2.4"))
    later = plan("fc1.weight:n_m=2:4", "fc1.weight:sparsity=0.25")["fc1.weight"]
    assert later.prune == PruneRule(0.25)


def test_patterns_may_have_colons():
    specs = {"a:b": (F32, (8, 8)), "a": (F32, (8, 8))}
    recipes = Recipe.from_options(sets=["a:b:n_m=2:4", "a:bits=3"]).plan(specs)
    assert recipes["a:b"].prune == PruneRule(n_m="2:4")
    assert recipes["a"].share == ShareRule(n_centroids=8)


def test_toml(tmp_path):
    recipe = Recipe.from_toml(TOML)
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    assert Recipe.from_toml(path) == recipe
    recipes = recipe.plan(SPECS)
    assert recipes["fc1.weight"].prune == PruneRule(0.5)
    assert recipes["half.weight"].share == ShareRule("given", codebook=(-1, 0, 1))
    assert recipes["conv1.weight"] == TensorRecipe()


def test_dictionary_form_is_compact_and_comes_back():
    assert Recipe().to_dict() == {}
    recipe = Recipe.from_toml(TOML)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict() == {
        "preset": "paper",
        "exclude": ["conv1.*"],
        "rule": [{"pattern": "fc*.weight", "sparsity": 0.5}, {"pattern": "half*", "codebook": [-1, 0, 1]}],
    }
    options = Recipe.from_options("lossless", ["fc*:codebook=0/1.5"], ["a"], 0.5, 4)
    assert Recipe.from_dict(options.to_dict()) == options
    assert pickle.loads(pickle.dumps(options)) == options


def test_extended_puts_the_other_on_top():
    recipe = Recipe.from_toml(TOML).extended(Recipe.from_options(sets=["fc*:sparsity=0.7"], bits=2))
    assert recipe.preset == "paper"
    assert recipe.plan(SPECS)["fc1.weight"] == TensorRecipe(
        PruneRule(0.7), ShareRule(n_centroids=4), True, True
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fc9*:bits=5", "pattern 'fc9*' matches no tensor; the tensors are 'conv1.weight', 'conv1.bias', "),
        ("fc1.wieght:bits=5", "did you mean 'fc1.weight'"),
        ("FC1*:bits=5", "matches no tensor"),
        ("norm*:bits=5", "matches only tensors that cannot be pruned or shared, such as 'norm.num_ba"),
        ("fc1*", "write it as PATTERN:setting=value"),
        ("fc1*:", "write it as PATTERN:setting=value"),
        ("fc1*:bits", "'bits' has no value; write bits=value"),
        ("fc1*:bits=5,bits=6", "bits is given twice"),
        ("fc1*:spasity=0.9", "unknown setting 'spasity'; did you mean 'sparsity'?"),
        ("fc1*:zzz=1", "unknown setting 'zzz'; the settings are sparsity, threshold, quality, step, slope, "),
        ("fc1*:sparsity=1.5", "sparsity must be a fraction from 0 to 1, not 1.5"),
        ("fc1*:sparsity=nan", "sparsity must be a fraction from 0 to 1, not nan"),
        ("fc1*:threshold=inf", "threshold must be a number, at least 0"),
        ("fc1*:bits=13", "bits must be a whole number from 1 to 12, not 13"),
        ("fc1*:bits=5.5", "bits must be a whole number from 1 to 12, not '5.5'"),
        ("fc1*:centroids=4096", "centroids must be a whole number from 1 to 4095"),
        ("fc1*:method=magic", "method must be one of kmeans, uniform, fixed_point, given, rate, not 'magic'"),
        ("fc1*:codebook=1/x", "codebook must be a list of 1 to 4095 finite numbers"),
        ("fc1*:lossless=maybe", "lossless must be true or false, not 'maybe'"),
        ("fc1*:lossless,bits=3", "lossless excludes every other setting"),
        ("fc1*:bits=5,centroids=9", "give only one of bits, centroids"),
        ("fc1*:sparsity=0.5,quality=1", "give only one of sparsity, quality"),
        ("fc1*:sparsity=0.5,n_m=2:4", "give only one of sparsity, n_m"),
        ("fc1*:n_m=4:2", "n_m must be N:M, as in 2:4: of every M weights N are kept, not '4:2'"),
        ("fc1*:n_m=0:2", "n_m must be N:M"),
        ("fc1*:n_m=2:2", "n_m must be N:M"),
        ("fc1*:n_m=2", "n_m must be N:M"),
        ("fc1*:n_m=2:4:8", "n_m must be N:M"),
        ("fc1*:n_m=-2:4", "n_m must be N:M"),
        ("fc1*:n_m=", "n_m must be N:M"),
        ("fc1*:n_m", "'n_m' has no value; write n_m=value"),
        (
            "fc1*:n_m=1:3",
            "tensor 'fc1.weight': n_m = 1:3: 3 does not divide the second dimension of (500, 800)",
        ),
        (
            "fc1.bias:n_m=2:4",
            "tensor 'fc1.bias': n_m = 2:4: 4 does not divide the second dimension of (500,)",
        ),
        ("fc1*:n_m=2:4,scope=all", "scope 'all' needs a sparsity"),
        ("fc1*:bits=5,codebook=1", "bits, codebook do not go together"),
        ("fc1*:method=uniform,fraction_bits=1", "method, fraction_bits do not go together"),
        ("fc1*:method=given", "tensor 'fc1.weight': method 'given' needs a codebook"),
        ("fc1*:integer_bits=1", "fixed point needs fraction_bits"),
        ("fc1*:integer_bits=6,fraction_bits=6", "must add up to 0 to 11"),
        ("fc1*:bits=3,groups=3", "tensor 'fc1.weight': groups = 3 does not divide the first dimension"),
    ],
)
def test_bad_rules_are_named(text, message):
    with pytest.raises(RecipeError) as caught:
        plan(text)
    assert message in str(caught.value)
    assert f"--set {text!r}: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = 'papr'", "mine.toml: unknown preset 'papr'; did you mean 'paper'?"),
        ("preset = 5", "mine.toml: unknown preset 5"),
        ("bits = 5.0", "mine.toml: bits must be a whole number from 1 to 12, not 5.0"),
        ("bits = true", "mine.toml: bits must be a whole number from 1 to 12, not True"),
        ("sparsity = 'x'", "mine.toml: sparsity must be a fraction"),
        ("rules = 1", "mine.toml: unknown key 'rules'; did you mean 'rule'?"),
        ("rule = 1", "mine.toml: rule must be a list of tables"),
        ("exclude = [1]", "mine.toml: exclude must be a list of patterns"),
        ("[[rule]]\nbits = 5", "mine.toml: rule 1: pattern must be given"),
        ("[[rule]]\npattern = 'a'\n[[rule]]\npattern = 'b'\nbit = 5", "mine.toml: rule 2 ('b'): unknown set"),
        ("preset =", "mine.toml: not valid TOML"),
    ],
)
def test_bad_toml_names_file_rule_and_key(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(path)
    assert message in str(caught.value)


def test_patterns_that_match_nothing_are_named_by_where_they_stand(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("exclude = ['x']")
    recipe = Recipe.from_toml(path)
    for one in (recipe, recipe.extended(Recipe()), Recipe().extended(recipe)):
        with pytest.raises(RecipeError, match=r"^mine\.toml: exclude: pattern 'x' matches no tensor"):
            one.plan(SPECS)
    with pytest.raises(RecipeError, match=r"^--exclude: pattern 'y'"):
        Recipe(excludes=("conv*",)).extended(Recipe.from_options(excludes=["y"])).plan(SPECS)
    path.write_text("[[rule]]\npattern = 'fc9'\nbits = 3")
    with pytest.raises(RecipeError, match=r"^mine\.toml: rule 1 \('fc9'\): pattern 'fc9'"):
        Recipe.from_toml(path).plan(SPECS)


def test_other_errors():
    with pytest.raises(RecipeError, match=r"^--sparsity must be a fraction"):
        plan(sparsity=1.5)
    with pytest.raises(RecipeError, match="exclude: pattern 'x' matches no tensor"):
        plan(excludes=["x"])
    with pytest.raises(RecipeError, match="unknown preset 'best'"):
        Recipe("best")
    with pytest.raises(RecipeError, match="bits must be a whole number"):
        Recipe(bits=0)
    with pytest.raises(RecipeError, match=r"rule 'a\*': unknown setting 'b'"):
        Recipe(rules=(Rule("a*", {"b": 1}),))


def test_a_step_shares_every_float_by_rate():
    recipes = Recipe(step=0.02).plan(SPECS)
    assert recipes["fc1.weight"] == TensorRecipe(None, RateRule(0.02), explicit=True)
    assert recipes["conv1.weight"].share == recipes["half.weight"].share == RateRule(0.02)
    for name in ("conv1.bias", "fc1.bias", "token"):
        assert recipes[name] == TensorRecipe(None, RateRule(0.02, fine=True), explicit=True)
    assert recipes["norm.num_batches_tracked"] == recipes["byte.weight"] == TensorRecipe()


def test_a_step_replaces_the_bits_of_a_preset_not_its_pruning():
    recipes = Recipe("paper", step=0.02).plan(SPECS)
    assert recipes["fc1.weight"].prune == PruneRule(0.91)
    assert recipes["fc1.weight"].share == RateRule(0.02)
    assert recipes["fc1.bias"].prune is None
    assert Recipe("lossless", step=0.02).plan(SPECS) == Recipe(step=0.02).plan(SPECS)


def test_rules_override_the_step_of_the_model():
    rules = [
        *("conv1*:bits=3", "fc1.weight:step=0.5", "fc1.bias:step=0.25,states=0", "half*:slope=0.3,states=4"),
        *("fc2*:lossless", "token:sparsity=0.5"),
    ]
    recipe = Recipe.from_options("balanced", rules, ["conv2*"]).extended(Recipe(step=0.02, states=8))
    recipes = recipe.plan(SPECS)
    assert recipes["conv1.weight"].share == ShareRule(n_centroids=8)
    assert recipes["fc1.weight"].share == RateRule(0.5, None, 8, own=True)
    assert recipes["fc1.bias"].share == RateRule(0.25, None, 0, own=True)
    assert recipes["half.weight"].share == RateRule(0.02, 0.3, 4)
    assert recipes["fc2.weight"] == recipes["conv2.weight"] == TensorRecipe()
    assert recipes["token"] == TensorRecipe(PruneRule(0.5), RateRule(0.02, None, 8, fine=True), True, True)


def test_rate_for_some_tensors_needs_a_step():
    recipes = Recipe.from_options(sets=["fc*:method=rate,step=0.1"]).plan(SPECS)
    assert recipes["fc1.weight"].share == recipes["fc1.bias"].share == RateRule(0.1, own=True)
    assert recipes["conv2.weight"].share == ShareRule()
    with pytest.raises(RecipeError, match=r"'fc1\.weight': method 'rate' needs a step: give step, for the"):
        Recipe.from_options(sets=["fc*:method=rate"]).plan(SPECS)
    again = Recipe.from_options(sets=["fc*:lossless", "fc*:method=rate"]).extended(Recipe(step=0.1))
    assert again.plan(SPECS)["fc1.weight"].share == RateRule(0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step": 0}, "step must be a number above 0, not 0"),
        ({"step": float("inf")}, "step must be a number above 0"),
        ({"step": "0.1"}, "step must be a number above 0, not '0.1'"),
        ({"slope": -1}, "slope must be a number, at least 0"),
        ({"states": 5}, "states must be one of 0, 4, 8, 16, 32, 64, 128, 256, not 5"),
        ({"states": 8.0}, "states must be one of"),
        ({"step": 0.1, "bits": 4}, "bits, step do not go together"),
    ],
)
def test_bad_options_of_rate_are_named(options, says):
    with pytest.raises(RecipeError, match=f"recipe: {says}"):
        Recipe(**options)
    with pytest.raises(RecipeError, match=f"r.toml: {says}"):
        Recipe.from_dict(options, origin="r.toml")


def test_rate_does_not_go_with_groups_or_rounded_codebooks():
    for setting in ("groups=2", "codebook_dtype=float16"):
        with pytest.raises(RecipeError, match="does not go with method 'rate'"):
            Recipe.from_options(sets=[f"fc1.weight:{setting}"]).extended(Recipe(step=0.1)).plan(SPECS)
    with pytest.raises(RecipeError, match="do not go together"):
        Recipe.from_options(sets=["fc1.weight:method=rate,bits=3"])


def test_of_step_and_bits_the_later_one_holds():
    file, line = Recipe(step=0.1, states=0, sparsity=0.5), Recipe(bits=3)
    assert file.extended(line) == Recipe(bits=3, sparsity=0.5)
    assert line.extended(file) == file
    assert file.extended(Recipe(step=0.2)) == Recipe(step=0.2, states=0, sparsity=0.5)


def test_a_step_survives_the_way_through_toml_and_a_dict():
    recipe = Recipe.from_toml("step = 1\nslope = 0.25\nstates = 16\n")
    assert recipe == Recipe(step=1, slope=0.25, states=16)
    assert recipe.to_dict() == {"step": 1, "slope": 0.25, "states": 16}
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_what_is_excluded_is_marked():
    recipes = plan(excludes=["fc1*"])
    assert {name for name, recipe in recipes.items() if recipe.excluded} == {"fc1.weight", "fc1.bias"}
