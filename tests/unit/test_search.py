from __future__ import annotations

import dataclasses
import math
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import dcompress.numpy as dnp
from dcompress.compare import compare_tensors
from dcompress.curve import spread, trace_curve
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.errors import DcompressWarning, RecipeError
from dcompress.inspection import read_receipt
from dcompress.model_file import read_checkpoint
from dcompress.presets import weights_of
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, tensor_specs
from dcompress.step_search import Search, encode_to_target
from dcompress.targets import TARGET_KINDS, Target

MODELS = Path(__file__).parents[2] / "fixtures" / "models"
FAST = {"effort": 1, "threads": 1}


def small_model(dtype=np.float32, seed=3, scale=0.1):
    """Two dense matrices, a small kernel, what stands beside them; 13,000 weights."""
    rng = np.random.default_rng(seed)
    tensors = {
        "conv.weight": rng.laplace(size=(8, 4, 3, 3)) * 3,
        "fc1.weight": rng.normal(size=(100, 90)),
        "fc1.bias": rng.normal(size=100) * 0.3,
        "fc2.weight": rng.normal(size=(45, 80)) * 0.4,
        "norm.running_var": rng.uniform(0.01, 3, size=90),
    }
    arrays = {name: (value * scale).astype(dtype) for name, value in tensors.items()}
    return {**arrays, "steps": np.array(7, np.int64)}


def checkpoint(arrays=None):
    arrays = small_model() if arrays is None else arrays
    return Checkpoint({name: dnp.data_from_array(name, value) for name, value in arrays.items()})


def measured(original, frame):
    """Return the figures of a frame, from what a decoder gives."""
    specs = tensor_specs(original.tensors)
    with open_frame(frame) as reader:
        decoded = reader.read_all()
    signal = noise = n_weights = n_bytes = 0
    for name, data in original.tensors.items():
        if name in original.ties:
            continue
        n_bytes += data.n_bytes
        if name in weights_of(specs):
            before = dnp.array_from_data(data).astype(np.float64)
            signal += np.square(before).sum()
            noise += np.square(before - dnp.array_from_data(decoded[name])).sum()
            n_weights += data.words.size
    return {
        "target_size": len(frame),
        "target_ratio": n_bytes / len(frame),
        "target_bpw": 8 * len(frame) / n_weights,
        "quality": 10 * math.log10(signal / noise),
    }


def assert_met(found, original):
    kind, asked = found.target.kind, found.target.value
    frame = found.frame.to_bytes()
    reached = measured(original, frame)
    assert found.met
    assert reached[kind] == pytest.approx(found.figures.of(kind), rel=1e-4)
    if kind in ("target_size", "target_bpw"):
        assert 0.99 * asked <= reached[kind] <= asked
    elif kind == "target_ratio":
        assert asked <= reached[kind] <= asked * 1.01
    else:
        assert asked - 1e-4 <= reached[kind] <= asked + min(0.1, 0.01 * asked) + 1e-4
    return frame


@pytest.mark.parametrize(
    ("model", "kind", "value"),
    [
        ("lenet_5", "target_size", 20_000),
        ("lenet_300_100", "target_ratio", 70),
        ("lenet_300_100", "target_bpw", 0.5),
        ("lenet_5", "quality", 18),
    ],
)
def test_targets_are_met_from_the_right_side_in_few_trials(model, kind, value):
    original = read_checkpoint(MODELS / f"{model}.safetensors")
    found = encode_to_target(original, Recipe(), Target(kind, value), **FAST)
    assert_met(found, original)
    assert found.n_trials <= 6


@pytest.mark.parametrize(
    ("effort", "dtype"), [(1, np.float64), (3, np.float16), (6, np.float32), (9, np.float32)]
)
def test_at_any_effort_and_dtype(effort, dtype):
    original = checkpoint(small_model(dtype))
    assert_met(encode_to_target(original, Recipe(), Target("quality", 20), effort=effort), original)
    assert_met(encode_to_target(original, Recipe(), Target("target_bpw", 4), effort=effort), original)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6])
def test_at_any_scale(scale):
    original = checkpoint(small_model(scale=scale))
    found = encode_to_target(original, Recipe(), Target("quality", 22), **FAST)
    assert_met(found, original)
    assert found.n_trials <= 5


def test_the_recipe_found_reproduces_the_frame():
    original = checkpoint()
    found = encode_to_target(original, Recipe(), Target("quality", 22), **FAST)
    frame = found.frame.to_bytes()
    assert encode_checkpoint(original, found.recipe, **FAST).to_bytes() == frame
    with open_frame(frame) as reader:
        receipt = read_receipt(reader)
    again = Recipe.from_dict(receipt.recipe)
    assert again.step == found.figures.step
    assert encode_checkpoint(original, again, **FAST).to_bytes() == frame
    assert encode_to_target(original, Recipe(), Target("quality", 22), **FAST).frame.to_bytes() == frame


def test_the_model_is_read_once():
    class Counting(dict):
        n_reads = 0

        def __getitem__(self, name):
            Counting.n_reads += 1
            return super().__getitem__(name)

    tensors = Counting(checkpoint().tensors)
    Counting.n_reads = 0
    encode_to_target(Checkpoint(tensors), Recipe(), Target("target_bpw", 3), **FAST)
    assert Counting.n_reads == len(tensors)


def test_rules_exclusions_and_sparsity_stay_in_force():
    original = checkpoint()
    recipe = Recipe.from_options(
        sets=["conv*:bits=3", "fc2*:sparsity=0.5,step=0.01"], excludes=["norm*"], sparsity=0.25
    )
    found = encode_to_target(original, recipe, Target("target_bpw", 5), **FAST)
    frame = assert_met(found, original)
    arrays, before = dnp.load(frame), small_model()
    assert np.unique(arrays["conv.weight"]).size <= 9
    assert arrays["norm.running_var"].tobytes() == before["norm.running_var"].tobytes()
    assert np.count_nonzero(arrays["fc2.weight"] == 0) >= 1800
    grid = arrays["fc2.weight"] / np.float32(0.01)
    assert np.allclose(grid, np.rint(grid), atol=1e-3)
    assert np.count_nonzero(arrays["fc1.weight"] == 0) >= 2250
    assert arrays["steps"] == 7


def test_matrices_share_one_step_and_the_rest_is_finer():
    original = checkpoint()
    found = encode_to_target(original, Recipe(states=0), Target("quality", 15), **FAST)
    arrays, before = dnp.load(found.frame.to_bytes()), small_model()
    for name in ("conv.weight", "fc1.weight", "fc2.weight"):
        grid = arrays[name] / found.figures.step
        assert np.allclose(grid, np.rint(grid), atol=1e-2)
    for name in ("fc1.bias", "norm.running_var"):
        error = np.square(arrays[name] - before[name]).sum() / np.square(before[name]).sum()
        assert 0 < error < 1e-3


def test_what_holds_few_values_is_quantised_too():
    arrays = small_model()
    arrays["fc1.weight"] = np.rint(arrays["fc1.weight"] * 40).astype(np.float32) / 40
    original = checkpoint(arrays)
    assert_met(encode_to_target(original, Recipe(), Target("quality", 12), **FAST), original)


def test_bits_for_all_do_not_go_with_a_target():
    with pytest.raises(RecipeError, match="bits = 5 for all tensors and a target do not go together"):
        encode_to_target(checkpoint(), Recipe(bits=5), Target("quality", 20))


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("target_size", 300, r"300 bytes cannot be reached: with nothing left .* takes [\d,]+ bytes \(ratio"),
        ("target_ratio", 900, r"ratio 900 cannot be reached: .* \(ratio [\d.]+, [\d.]+ bits/weight\)"),
        ("target_bpw", 0.1, "0.1 bits per weight of matrices and kernels cannot be reached: with nothing"),
        (
            "quality",
            120,
            r"120 dB: the model comes to 4\d,\d{3} bytes without any loss .* use preset lossless",
        ),
        ("target_size", 60_000, r"60,000 bytes: the model comes to 4\d,\d{3} bytes without any loss \(ratio"),
        ("target_ratio", 1.01, "without any loss .* use preset lossless, no target"),
    ],
)
def test_what_is_out_of_reach_is_named(kind, value, says):
    with pytest.raises(RecipeError, match=says):
        encode_to_target(checkpoint(), Recipe(), Target(kind, value), **FAST)


@pytest.mark.parametrize("options", [{"sets": ["fc1.weight:bits=3"]}, {"sparsity": 0.8}])
def test_a_quality_that_rules_or_pruning_keep_out_of_reach(options):
    with pytest.raises(
        RecipeError, match=r"30 dB cannot be reached: pruning, and what rules say .* \d+\.\d\d dB"
    ):
        encode_to_target(checkpoint(), Recipe.from_options(**options), Target("quality", 30), **FAST)


def one_matrix():
    """A model between whose finest grid, of 12 bits, and lossless planes there is nothing."""
    return {"fc.weight": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}


def test_what_can_only_be_met_from_afar():
    found = encode_to_target(checkpoint(one_matrix()), Recipe(), Target("target_bpw", 20), **FAST)
    assert not found.met
    assert 10 < found.figures.bits_per_weight < 14
    assert 50 < found.figures.sqnr < 80


def test_without_matrices_there_is_nothing_to_search():
    for recipe, arrays in (
        (Recipe(), {"bias": np.arange(9.0)}),
        (Recipe(), {}),
        (Recipe(excludes=("*",)), small_model()),
        (Recipe.from_options(sets=["*:step=0.01"]), small_model()),
        (Recipe(), {"weight": np.zeros((30, 30))}),
    ):
        with pytest.raises(RecipeError, match="no matrix or kernel that is free to be quantised"):
            encode_to_target(checkpoint(arrays), recipe, Target("quality", 20))


def test_values_that_are_not_finite_are_kept_with_one_warning():
    arrays = small_model()
    arrays["fc2.weight"][3, 4] = np.nan
    with pytest.warns(DcompressWarning, match="tensor 'fc2.weight' holds 1 NaN") as caught:
        found = encode_to_target(checkpoint(arrays), Recipe(), Target("quality", 20), **FAST)
    assert len(caught) == 1
    assert found.met
    assert found.n_trials > 1
    decoded = dnp.load(found.frame.to_bytes())
    assert decoded["fc2.weight"].tobytes() == arrays["fc2.weight"].tobytes()


def test_tied_matrices_count_once():
    arrays = small_model()
    data = checkpoint(arrays).tensors
    tied = Checkpoint({**data, "tied.weight": data["fc1.weight"]}, {"tied.weight": "fc1.weight"})
    found = encode_to_target(tied, Recipe(), Target("target_bpw", 4), **FAST)
    assert_met(found, tied)


def test_each_trial_is_watched():
    numbers = []

    def watch(number):
        numbers.append(number)
        return nullcontext()

    found = encode_to_target(checkpoint(), Recipe(), Target("quality", 20), watch=watch, **FAST)
    assert numbers == list(range(1, found.n_trials + 1))


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_a_second_target_profits_from_the_first(kind):
    search = Search(checkpoint(), Recipe(), **FAST)
    first = search.find(Target("quality", 20))
    again = search.find(Target(kind, first.figures.of(kind)))
    assert again.figures == first.figures
    assert again.n_trials == 1
    assert again.frame.to_bytes() == first.frame.to_bytes()


def test_a_curve():
    search = Search(checkpoint(), Recipe(), **FAST)
    curve = trace_curve(search, spread(10, 30, 5), 0.35)
    assert [point.sqnr for point in curve.points] == pytest.approx([10, 15, 20, 25, 30], abs=0.36)
    sizes = [point.n_bytes for point in curve.points]
    assert sizes == sorted(sizes)
    assert search.n_trials <= 12
    assert sizes[-1] < curve.balanced.n_bytes * 1.2 < curve.lossless.n_bytes
    assert curve.lossless.sqnr == math.inf
    assert curve.balanced.n_bytes == encode_checkpoint(checkpoint(), Recipe(), **FAST).n_bytes
    assert curve.missed == ()
    assert trace_curve(search, [20, 300], 0.35).missed == (300,)


@pytest.mark.parametrize("verb", ["save", "save_file"])
def test_the_numpy_face(verb, tmp_path):
    arrays = small_model()

    def save(**options):
        if verb == "save":
            return dnp.save(arrays, **options)
        dnp.save_file(arrays, tmp_path / "m.dcz", **options)
        return (tmp_path / "m.dcz").read_bytes()

    frame = save(quality=20, effort=1)
    found = encode_to_target(checkpoint(arrays), Recipe(), Target("quality", 20), effort=1)
    assert frame == found.frame.to_bytes()
    assert 9_900 <= len(save(target_size="10kB", effort=1)) <= 10_000
    assert save(recipe={"step": 0.01, "states": 0}, effort=1) != save(recipe={"step": 0.01}, effort=9)
    with pytest.raises(RecipeError, match="give only one of target_size, quality"):
        save(target_size=3, quality=2)
    with pytest.raises(RecipeError, match="effort must be a whole number from 1, fast, to 9, not 10"):
        save(effort=10)


def test_a_face_warns_of_a_target_that_is_missed():
    with pytest.warns(DcompressWarning, match="20 bits .* cannot be met within 1%: .* the nearest") as caught:
        dnp.save(one_matrix(), target_bpw=20, effort=1)
    assert caught[0].filename == __file__


def test_compress_is_what_save_and_load_give():
    torch = pytest.importorskip("torch")
    import dcompress

    state = {name: torch.from_numpy(value) for name, value in small_model().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = dcompress.load(dcompress.save(state, recipe={"step": 0.02}, effort=2))
    compressed = dcompress.compress(state, {"step": 0.02}, effort=2)
    assert all(torch.equal(loaded[name], compressed[name]) for name in state)
    original, again = checkpoint(), dcompress.load(dcompress.save(state, quality=25, effort=1))
    difference = compare_tensors(
        original.tensors["fc1.weight"], dnp.data_from_array("", again["fc1.weight"].numpy())
    )
    assert 20 < difference.sqnr < 30


def test_figures_know_every_kind():
    figures = Search(checkpoint(), Recipe(), **FAST).lossless()
    assert {kind: figures.of(kind) for kind in TARGET_KINDS}.keys() == TARGET_KINDS.keys()
    assert dataclasses.asdict(figures)["step"] == math.inf


def test_steps_beyond_what_a_dtype_holds():
    arrays = {
        "large": (np.random.default_rng(0).normal(size=(60, 60)) * 1e30).astype(np.float32),
        "small": np.random.default_rng(1).normal(size=(60, 60)).astype(np.float16),
        "empty": np.zeros((0, 5, 5), np.float32),
    }
    found = encode_to_target(checkpoint(arrays), Recipe(), Target("target_size", 4000), **FAST)
    assert found.frame.n_bytes <= 4000


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_weights_whose_squares_no_number_holds(scale):
    model = checkpoint(small_model(np.float64, scale=scale))
    with pytest.raises(
        RecipeError, match=r"in 'conv.weight' are beyond what can be squared and summed; exclude it"
    ):
        Search(model, Recipe(), **FAST)
    left = Search(model, Recipe(excludes=("*",)), **FAST)
    with pytest.raises(RecipeError, match="no matrix or kernel that is free"):
        left.find(Target("quality", 20))


def test_a_target_never_takes_more_than_no_loss_at_all():
    rng = np.random.default_rng(5)
    shared = checkpoint({"w": rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0], (200, 300)).astype(np.float32)})
    with pytest.raises(RecipeError, match="without any loss"):
        encode_to_target(shared, Recipe(), Target("target_bpw", 4), **FAST)
    with pytest.raises(RecipeError, match="without any loss"):
        encode_to_target(shared, Recipe(), Target("quality", 30), **FAST)
