from __future__ import annotations

import gc
import pickle
import warnings

import numpy as np
import pytest

from dcompress.compression import compress_checkpoint, compress_tensor, resolve_global_scopes
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import DcompressWarning, RecipeError
from dcompress.floats import narrow, widen
from dcompress.recipe import PruneRule, RateRule, Recipe, ShareRule, TensorRecipe
from dcompress.stages import Checkpoint, SharedTensor, TensorData

SHARE8 = TensorRecipe(None, ShareRule(n_centroids=8))
ASKED8 = TensorRecipe(None, ShareRule(n_centroids=8), explicit=True)


def tensor(values, dtype="float32"):
    values = np.asarray(values, np.float64)
    kind = DTYPE_BY_NAME[dtype]
    return TensorData(kind, values.shape, narrow(values.reshape(-1), kind))


def integers(n):
    return TensorData(DTYPE_BY_NAME["int64"], (n,), np.arange(n, dtype=np.uint64))


def random_tensor(*shape, seed=0, dtype="float32"):
    return tensor(np.random.default_rng(seed).laplace(size=shape), dtype)


def values_of(result):
    data = result.gather() if isinstance(result, SharedTensor) else result
    return widen(data.words, data.dtype)


def test_what_is_not_asked_for_or_has_no_weights_passes():
    for data in (random_tensor(9, 9), integers(500), tensor([]), tensor(np.zeros((0, 3)))):
        assert compress_tensor("x", data, TensorRecipe()) is data
    for data in (integers(500), tensor([]), TensorData(DTYPE_BY_NAME["bool"], (1,), np.ones(1, np.uint8))):
        assert compress_tensor("x", data, ASKED8) is data


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_tensor_is_pruned_and_shared(dtype):
    data = random_tensor(40, 50, dtype=dtype)
    recipe = TensorRecipe(PruneRule(0.9), ShareRule(n_centroids=8))
    result = compress_tensor("x", data, recipe)
    assert isinstance(result, SharedTensor)
    assert result.shape == (40, 50)
    assert result.dtype is data.dtype
    assert np.count_nonzero(result.labels == 0) == 1800
    assert result.n_centroids == 8
    assert np.unique(values_of(result)).size == 9


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_non_finite_values_pass_with_a_warning(bad, dtype):
    data = random_tensor(100, dtype=dtype)
    values = widen(data.words, data.dtype).copy()
    values[[3, 5]] = bad
    words = values.view(np.uint32) if dtype == "float32" else (values.view(np.uint32) >> 16).astype(np.uint16)
    data = TensorData(data.dtype, (100,), words)
    with pytest.warns(DcompressWarning, match="tensor 'fc' holds 2 NaN or infinite values"):
        assert compress_tensor("fc", data, ASKED8) is data
    with pytest.warns(DcompressWarning) as caught:
        dict(compress_checkpoint(Checkpoint({"fc": data}), Recipe.from_options(sets=["fc:bits=2"])))
    assert [one.filename for one in caught] == [__file__]


def test_few_distinct_values_pass_unless_sharing_was_asked_for():
    data = tensor(np.random.default_rng(0).integers(-20, 21, (40, 50)) / 8)
    assert compress_tensor("x", data, SHARE8) is data
    assert compress_tensor("x", data, TensorRecipe(PruneRule(0.9), ShareRule())) is data
    again = compress_tensor("x", data, ASKED8)
    assert isinstance(again, SharedTensor)
    assert again.n_centroids == 8
    exact = compress_tensor("x", data, TensorRecipe(None, ShareRule(n_centroids=64), explicit=True))
    assert isinstance(exact, SharedTensor)
    assert exact.gather().words.tolist() == data.words.tolist()


def test_few_distinct_values_are_pruned_exactly_if_pruning_was_asked_for():
    data = tensor(np.random.default_rng(0).integers(-20, 21, (40, 50)) / 8)
    recipe = TensorRecipe(PruneRule(threshold=1.0), ShareRule(n_centroids=8), explicit_prune=True)
    result = compress_tensor("x", data, recipe)
    assert isinstance(result, TensorData)
    before = values_of(data)
    assert values_of(result).tolist() == np.where(np.abs(before) >= 1, before, 0).tolist()


def test_pruning_alone_keeps_the_other_words_exactly():
    data = random_tensor(30, 30, dtype="float64")
    result = compress_tensor("x", data, TensorRecipe(PruneRule(quality=1.0), None, explicit_prune=True))
    assert isinstance(result, TensorData)
    kept = result.words != 0
    assert (result.words[kept] == data.words[kept]).all()
    assert (np.abs(values_of(data)[~kept]) < np.std(values_of(data))).all()


def test_a_preset_does_not_prune_what_came_pruned():
    values = np.random.default_rng(0).normal(size=4000)
    values[:2000] = 0
    preset = TensorRecipe(PruneRule(0.9), ShareRule(n_centroids=8))
    asked = TensorRecipe(PruneRule(0.9), ShareRule(n_centroids=8), explicit_prune=True)
    assert np.count_nonzero(values_of(compress_tensor("x", tensor(values), preset))) == 2000
    assert np.count_nonzero(values_of(compress_tensor("x", tensor(values), asked))) == 400


def test_errors_name_the_tensor():
    recipe = TensorRecipe(None, ShareRule(n_centroids=8, groups=7))
    with pytest.raises(RecipeError, match="tensor 'fc': 7 groups do not divide"):
        compress_tensor("fc", random_tensor(10, 10), recipe)


def test_compress_tensor_pickles():
    function, recipe = pickle.loads(pickle.dumps((compress_tensor, SHARE8)))
    data = pickle.loads(pickle.dumps(random_tensor(20, 20)))
    assert isinstance(function("x", data, recipe), SharedTensor)


def above(value):
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def checkpoint():
    weights = {f"fc{k}.weight": random_tensor(64, 64, seed=k) for k in range(3)}
    weights["fc0.bias"] = random_tensor(64)
    weights["steps"] = integers(3)
    weights["tied.weight"] = weights["fc1.weight"]
    return Checkpoint(weights, {"tied.weight": "fc1.weight"})


def test_a_checkpoint_is_compressed_lazily_in_order_and_ties_once(monkeypatch):
    calls = []

    def spy(name, data, recipe, **options):
        calls.append(name)
        return compress_tensor(name, data, recipe, **options)

    monkeypatch.setattr("dcompress.compression.compress_tensor", spy)
    source = checkpoint()
    tensors = compress_checkpoint(source, Recipe())
    assert not calls
    assert list(tensors) == list(source.tensors)
    assert len(tensors) == 6
    found = dict(tensors)
    assert found["tied.weight"] is found["fc1.weight"]
    assert calls == ["fc0.weight", "fc1.weight", "fc2.weight", "fc0.bias", "steps"]
    assert isinstance(found["fc0.weight"], SharedTensor)
    assert found["fc0.bias"] is source.tensors["fc0.bias"]


def test_nothing_is_kept_that_the_caller_drops():
    tensors = compress_checkpoint(checkpoint(), Recipe())
    first = tensors["fc0.weight"]
    assert tensors["fc0.weight"] is first
    del first
    gc.collect()
    assert len(tensors._made) == 0


def test_compressing_twice_changes_nothing():
    for preset in ("balanced", "paper"):
        once = {
            name: values_of(found) for name, found in compress_checkpoint(small_net(), Recipe(preset)).items()
        }
        again = Checkpoint({name: tensor(values.reshape(64, -1)) for name, values in once.items()})
        for name, result in compress_checkpoint(again, Recipe(preset)).items():
            assert values_of(result).tolist() == once[name].tolist()


def small_net():
    return Checkpoint({f"fc{k}.weight": random_tensor(64, 100, seed=k) for k in range(3)})


def test_rules_for_a_tied_name_hold_for_both():
    tensors = compress_checkpoint(checkpoint(), Recipe.from_options(sets=["tied*:bits=2"]))
    assert tensors["fc1.weight"].n_centroids == 4
    tensors = compress_checkpoint(checkpoint(), Recipe.from_options(excludes=["tied*"]))
    assert isinstance(tensors["fc1.weight"], TensorData)
    with pytest.raises(RecipeError, match=r"'fc1\.weight' and 'tied\.weight' are one tied tensor"):
        compress_checkpoint(checkpoint(), Recipe.from_options(sets=["tied*:bits=2", "fc1.weight:bits=3"]))


def test_global_scope_prunes_the_group_by_one_threshold():
    scaled = {"a": random_tensor(50, 50), "b": tensor(np.random.default_rng(1).laplace(size=(50, 50)) * 10)}
    recipe = Recipe.from_options("lossless", ["*:sparsity=0.6,scope=global"])
    found = compress_checkpoint(Checkpoint(scaled), recipe)
    zeros = {name: np.count_nonzero(values_of(found[name]) == 0) for name in found}
    assert sum(zeros.values()) == 3000
    assert zeros["a"] > zeros["b"]
    kept = np.concatenate([np.abs(values_of(found[name])) for name in found])
    pruned = np.concatenate([np.abs(values_of(scaled[name]))[values_of(found[name]) == 0] for name in found])
    assert pruned.max() < kept[kept > 0].min()


def test_named_groups_have_thresholds_of_their_own():
    tensors = {name: random_tensor(100, seed=k) for k, name in enumerate("abcd")}
    tensors["c"] = tensor([float(k) for k in range(100)])
    scopes = {"a": "x", "b": "x", "c": "y", "d": "z"}
    plan = {name: TensorRecipe(PruneRule(0.5, scope=scope)) for name, scope in scopes.items()}
    resolved = resolve_global_scopes(plan, tensors.__getitem__)
    assert resolved["a"] == resolved["b"] != resolved["d"]
    assert resolved["c"] == TensorRecipe(PruneRule(threshold=above(49)))
    plan["b"] = TensorRecipe(PruneRule(0.4, scope="x"))
    with pytest.raises(RecipeError, match="tensors of scope 'x' are given different sparsities"):
        resolve_global_scopes(plan, tensors.__getitem__)


def test_tensors_that_cannot_be_pruned_do_not_count_in_a_group():
    tensors = {"a": tensor([1.0, 2.0, 3.0, 4.0]), "n": tensor([0.1] * 9), "i": integers(9)}
    words = tensors["n"].words.copy()
    words[0] = 0x7FC00000
    tensors["n"] = TensorData(tensors["n"].dtype, (9,), words)
    plan = dict.fromkeys(tensors, TensorRecipe(PruneRule(0.5, scope="global")))
    resolved = resolve_global_scopes(plan, tensors.__getitem__)
    assert resolved["a"].prune == PruneRule(threshold=above(2))


def test_no_warning_without_cause():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dict(compress_checkpoint(checkpoint(), Recipe("paper")))


def test_who_excludes_a_tied_name_excludes_both():
    tensors = compress_checkpoint(checkpoint(), Recipe(bits=3, excludes=("tied*",)))
    assert tensors["fc1.weight"] is tensors.checkpoint.tensors["fc1.weight"]
    assert isinstance(tensors["fc2.weight"], SharedTensor)


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_tensor_shared_by_rate_lies_on_a_grid(dtype, states):
    data = random_tensor(30, 40, dtype=dtype)
    rule = RateRule(0.1, states=states)
    result = compress_tensor("x", data, TensorRecipe(PruneRule(0.25), rule, True, True))
    assert isinstance(result, SharedTensor)
    values = values_of(result).astype(np.float64)
    step = float(widen(narrow(np.array([0.1]), data.dtype), data.dtype)[0])
    grid = widen(narrow(np.rint(values / step) * step, data.dtype), data.dtype)
    assert values_of(result).tolist() == grid.tolist()
    assert np.count_nonzero(values == 0) >= 300
    assert 0.01 < np.square(values - values_of(data)).mean() ** 0.5 < 0.2


def test_tensors_are_shared_by_rate_in_groups_of_neighbours(monkeypatch):
    from dcompress import rate_groups

    groups = []
    original = rate_groups.RatePlan

    def spy(tensors, dtypes, steps, **options):
        groups.append((len(tensors), options["states"]))
        return original(tensors, dtypes, steps, **options)

    monkeypatch.setattr(rate_groups, "RatePlan", spy)
    monkeypatch.setattr(rate_groups, "_GROUP_WEIGHTS", 10_000)
    source = checkpoint()
    recipe = Recipe.from_options(sets=["fc0.bias:states=4"]).extended(Recipe(step=0.1, states=0))
    found = dict(compress_checkpoint(source, recipe))
    assert groups == [(2, 0), (1, 0), (1, 4)]  # 4,096 weights a matrix
    assert found["tied.weight"] is found["fc1.weight"]
    assert found["steps"] is source.tensors["steps"]
    again = compress_checkpoint(source, recipe)
    for name in reversed(list(found)):  # in any order, the same
        result = again.compress(name, source.tensors[name]) if name not in source.ties else again[name]
        assert values_of(result).tolist() == values_of(found[name]).tolist()


def test_effort_chooses_the_trellis_unless_the_recipe_does(monkeypatch):
    from dcompress import rate_groups

    seen = []
    original = rate_groups.RatePlan

    def spy(*arguments, states, **options):
        seen.append(states)
        return original(*arguments, states=states, **options)

    monkeypatch.setattr(rate_groups, "RatePlan", spy)
    for effort in range(1, 10):
        compress_tensor("x", random_tensor(9, 9), TensorRecipe(None, RateRule(0.1)), effort=effort)
    compress_tensor("x", random_tensor(9, 9), TensorRecipe(None, RateRule(0.1, states=32)), effort=1)
    assert seen == [0, 0, 0, 4, 8, 8, 8, 32, 64, 32]


@pytest.mark.parametrize(
    ("dtype", "most"), [("float64", 2045), ("float32", 2045), ("float16", 1024), ("bfloat16", 128)]
)
def test_a_step_is_hardly_finer_than_the_format_can_hold(dtype, most):
    data = random_tensor(20, 20, dtype=dtype)
    largest = float(np.abs(values_of(data)).max())
    for part in (1.05, 0.6):  # a little too fine is coarsened
        result = compress_tensor("x", data, TensorRecipe(None, RateRule(part * largest / most, states=0)))
        assert isinstance(result, SharedTensor)
        assert most / 3 < result.n_labels <= 4096
    result = compress_tensor("x", data, TensorRecipe(None, RateRule(0.2 * largest / most)))
    assert isinstance(result, TensorData)
    assert values_of(result).tolist() == values_of(data).tolist()


def test_a_tensor_with_one_huge_weight_stays_as_it_is():
    values = np.random.default_rng(0).normal(size=(100, 100))
    values[0, 0] = 1e9
    data = tensor(values)
    both = Checkpoint({"bad.weight": data, "fc.weight": random_tensor(20, 20)})
    found = compress_checkpoint(both, Recipe(step=0.1))
    assert values_of(found["bad.weight"]).tolist() == values_of(data).tolist()
    assert isinstance(found["fc.weight"], SharedTensor)


def test_what_is_no_matrix_takes_a_finer_step():
    data = random_tensor(200)
    coarse = compress_tensor("x", data, TensorRecipe(None, RateRule(1.0)))
    fine = compress_tensor("x", data, TensorRecipe(None, RateRule(1.0, fine=True)))
    errors = [np.abs(values_of(result) - values_of(data)).max() for result in (coarse, fine)]
    assert errors[1] < 0.1 < errors[0]


def test_zeros_and_tensors_without_weights_are_shared_by_rate():
    for shape in ((3, 4), (5,), (), (0, 3), (2, 1)):
        data = tensor(np.zeros(shape))
        result = compress_tensor("x", data, TensorRecipe(None, RateRule(0.1)))
        assert values_of(result).tolist() == values_of(data).tolist()


def test_of_a_group_non_finite_values_pass_with_one_warning():
    source = checkpoint()
    words = source.tensors["fc1.weight"].words.copy()
    words[5] = 0x7F800000
    bad = TensorData(source.tensors["fc1.weight"].dtype, (64, 64), words)
    tensors = {**source.tensors, "fc1.weight": bad, "tied.weight": bad}
    with pytest.warns(DcompressWarning, match="tensor 'fc1.weight' holds 1 NaN") as caught:
        found = dict(compress_checkpoint(Checkpoint(tensors, source.ties), Recipe(step=0.1)))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found["fc1.weight"] is bad
    assert isinstance(found["fc2.weight"], SharedTensor)


def test_settings_know_the_trellises_that_there_are():
    from dcompress.kernels import trellis
    from dcompress.settings import EFFORT_STATES, MAX_EFFORT, STATES

    assert STATES == trellis.STATES
    assert set(EFFORT_STATES) == set(range(1, MAX_EFFORT + 1))
    assert set(EFFORT_STATES.values()) <= set(STATES)
