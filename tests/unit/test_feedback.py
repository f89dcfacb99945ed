"""What error feedback makes of second moments, odd ones among them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dcompress.calibration import Calibration
from dcompress.compression import compress_checkpoint, compress_tensor
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import EncodeError
from dcompress.feedback import DAMPINGS, Feedback
from dcompress.floats import SHAREABLE, narrow, widen
from dcompress.recipe import Recipe
from dcompress.rules import PruneRule, RateRule, ShareRule, TensorRecipe
from dcompress.stages import Checkpoint, SharedTensor, TensorData
from tests.moments import correlated, damped, gptq, moments_of

RATE = TensorRecipe(None, RateRule(0.25), explicit=True)
KMEANS = TensorRecipe(None, ShareRule(n_centroids=8), explicit=True)
GIVEN = TensorRecipe(None, ShareRule("given", codebook=(-1.0, 0.5, 2.0)), explicit=True)
PRUNED = TensorRecipe(PruneRule(sparsity=0.5), explicit_prune=True)
RECIPES = {"rate": RATE, "kmeans": KMEANS, "given": GIVEN, "pruned": PRUNED}


def tensor_of(weights, dtype="float32"):
    kind = DTYPE_BY_NAME[dtype]
    return TensorData(kind, weights.shape, narrow(weights.reshape(-1).astype(np.float64), kind))


def floats(found):
    data = found.gather() if isinstance(found, SharedTensor) else found
    return widen(data.words, data.dtype).reshape(data.shape).astype(np.float64)


def same(one, other):
    return type(one) is type(other) and floats(one).tobytes() == floats(other).tobytes()


def case(n_outputs=24, n_columns=16, n_inputs=60, seed=0, **options):
    rng = np.random.default_rng(seed)
    inputs = correlated(n_inputs, n_columns, rng)
    return (
        rng.normal(size=(n_outputs, n_columns)),
        inputs,
        moments_of(inputs[None], (n_outputs, n_columns), **options),
    )


def test_factors_are_those_of_the_damped_moments():
    weights, inputs, moments = case()
    fed = Feedback.of("w", weights, weights != 0, None, moments)
    (factor,) = fed.factors
    np.testing.assert_allclose(
        (factor @ factor.transpose(0, 2, 1))[0], damped(moments.second[0][0], fed.damping)
    )
    np.testing.assert_allclose(moments.second[0][0], inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(fed.targets[0], weights)
    assert np.exp(np.log(fed.worth()).mean()) == pytest.approx(1)


def test_targets_make_up_for_inputs_that_have_changed():
    weights, before, _ = case(n_inputs=200)
    after = before + 0.3 * correlated(200, 16, np.random.default_rng(7))
    moments = moments_of(after[None], weights.shape, before=before[None])
    fed = Feedback.of("w", weights, weights != 0, None, moments)
    extra = np.sqrt(fed.damping * np.mean(np.square(after).sum(0)))
    # Least squares from inputs to wanted outputs, held to the weights by as much as the damping.
    wanted = np.vstack([before @ weights.T, extra * weights.T])
    expected, *_ = np.linalg.lstsq(np.vstack([after, extra * np.eye(16)]), wanted, rcond=None)
    np.testing.assert_allclose(fed.targets[0], expected.T, rtol=1e-3, atol=1e-3)
    errors = [np.square(before @ weights.T - after @ one.T).sum() for one in (fed.targets[0], weights)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("n_inputs", [20, 400])
def test_damping_is_the_one_that_serves_what_was_held_out(n_inputs, crossed):
    rng = np.random.default_rng(3)
    plane = rng.normal(size=(6, 40))
    inputs, held = (rng.normal(size=(n, 6)) @ plane + 0.3 * rng.normal(size=(n, 40)) for n in (n_inputs, 50))
    before = inputs + 0.1 * rng.normal(size=inputs.shape)
    weights = rng.normal(size=(64, 40))
    options = {"before": before[None]} if crossed else {}
    moments = moments_of(inputs[None], weights.shape, held=held[None], **options)
    fed = Feedback.of("w", weights, weights != 0, 0.3, moments)
    losses = []
    for damping in DAMPINGS:
        second = damped(moments.second[0][0], damping)
        targets = weights
        if crossed:
            extra = second - moments.second[0][0]
            targets = weights @ (moments.cross[0][0] + extra) @ np.linalg.inv(second)
        found = gptq(targets, second, lambda one, _: np.rint(one / 0.3) * 0.3, np.ones(weights.shape, bool))
        losses.append(np.square((found - weights) @ held.T).sum())
    assert fed.damping == DAMPINGS[int(np.argmin(losses))]
    assert losses[0] != losses[-1]
    plain = dataclasses.replace(moments, holdout=(), holdout_cross=())
    assert Feedback.of("w", weights, weights != 0, 0.3, plain).damping in DAMPINGS


@pytest.mark.parametrize("recipe", RECIPES)
def test_inputs_that_are_always_zero(recipe):
    rng = np.random.default_rng(1)
    weights, inputs, _ = case(24, 40, 100)
    dead = rng.random(40) < 0.5
    inputs[:, dead] = 0
    moments = moments_of(inputs[None], weights.shape)
    plain, fed = (
        compress_tensor("w", tensor_of(weights), RECIPES[recipe], moments=one) for one in (None, moments)
    )
    assert moments.output_error(floats(fed) - weights) < 0.8 * moments.output_error(floats(plain) - weights)
    living = Feedback.of("w", weights, weights != 0, None, moments).worth()[0, ~dead]
    assert np.exp(np.log(living).mean()) == pytest.approx(1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fewer_inputs_than_columns(recipe):
    weights, _, moments = case(12, 200, 30)
    plain, fed = (
        compress_tensor("w", tensor_of(weights), RECIPES[recipe], moments=one) for one in (None, moments)
    )
    assert moments.output_error(floats(fed) - weights) < 0.6 * moments.output_error(floats(plain) - weights)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_inputs_at_all_are_as_no_calibration(recipe, products):
    weights, inputs, _ = case()
    moments = moments_of(0 * inputs[None], weights.shape)
    if products:  # which cannot be without squares
        moments = changed(moments, put((3, 4), 0.5))
    plain, fed = (
        compress_tensor("w", tensor_of(weights), RECIPES[recipe], moments=one) for one in (None, moments)
    )
    assert same(plain, fed)


def test_a_group_without_inputs_takes_nearest_values():
    rng = np.random.default_rng(2)
    inputs = np.stack([correlated(50, 12, rng), np.zeros((50, 12))])
    weights, moments = rng.normal(size=(10, 12)), moments_of(inputs, (10, 12))
    found = floats(compress_tensor("w", tensor_of(weights), GIVEN, moments=moments))
    plain = floats(compress_tensor("w", tensor_of(weights), GIVEN))
    np.testing.assert_array_equal(found[5:], plain[5:])
    assert (found[:5] != plain[:5]).any()


def changed(moments, change):
    block = moments.second[0].copy()
    change(block[0])
    return dataclasses.replace(moments, second=(block,))


def put(place, value):
    def change(block):
        block[place] = block[place[::-1]] = value

    return change


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put((3, 4), np.nan), "NaN or infinite"),
        (put((3, 3), np.inf), "NaN or infinite"),
        (put((3, 3), -1.0), "squares below zero"),
        (put((3, 4), 1e9), "not positive definite"),
    ],
)
def test_moments_that_cannot_be(recipe, change, message):
    weights, _, moments = case()
    with pytest.raises(EncodeError, match=f"tensor 'conv.w'.*{message}"):
        compress_tensor("conv.w", tensor_of(weights), RECIPES[recipe], moments=changed(moments, change))
    lossless = compress_tensor("conv.w", tensor_of(weights), TensorRecipe(), moments=changed(moments, change))
    assert same(lossless, tensor_of(weights))


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_uses_of_rows_that_cannot_be(value):
    weights, _, moments = case()
    rows = np.ones(24)
    rows[5] = value
    looked_up = dataclasses.replace(moments, second=(), row_weights=rows)
    with pytest.raises(EncodeError, match=r"tensor .w.*row weights"):
        compress_tensor("w", tensor_of(weights), RATE, moments=looked_up)


@pytest.mark.parametrize("recipe", RECIPES)
def test_moments_of_another_shape(recipe):
    weights, _, moments = case()
    with pytest.raises(EncodeError, match=r"tensor 'w' is \(16, 24\), its calibration is of \(24, 16\)"):
        compress_tensor("w", tensor_of(weights.T.copy()), RECIPES[recipe], moments=moments)


@pytest.mark.parametrize("dtype", SHAREABLE)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_dtype(recipe, dtype):
    weights, _, moments = case()
    plain, fed = (
        compress_tensor("w", tensor_of(weights, dtype), RECIPES[recipe], moments=one)
        for one in (None, moments)
    )
    assert fed.dtype.name == dtype
    assert moments.output_error(floats(fed) - weights) < 0.8 * moments.output_error(floats(plain) - weights)


@pytest.mark.parametrize("scale", [1e-20, 1e25])
def test_moments_and_weights_of_any_size(scale):
    weights, inputs, moments = case()
    sized = moments_of(np.sqrt(scale) * inputs[None], weights.shape)
    recipe = TensorRecipe(None, RateRule(0.25 * scale), explicit=True)
    plain = compress_tensor("w", tensor_of(weights), RATE, moments=moments)
    fed = compress_tensor("w", tensor_of(weights * scale, "float64"), recipe, moments=sized)
    assert (floats(fed) / scale - floats(plain) != 0).mean() < 0.5
    assert moments.output_error(floats(fed) / scale - weights) < 1.3 * moments.output_error(
        floats(plain) - weights
    )


@pytest.mark.parametrize("shape", [(9, 1), (1, 9), (1, 1), (0, 5), (5, 0), (7,)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_small_and_empty_tensors(recipe, shape):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape)
    moments = None
    if len(shape) > 1:
        moments = moments_of(rng.normal(size=(1, 20, shape[1])), shape)
    found = compress_tensor("w", tensor_of(weights), RECIPES[recipe], moments=moments)
    assert found.shape == shape
    assert np.isfinite(floats(found)).all()


def test_steps_beyond_all_weights_and_steps_too_fine():
    weights, _, moments = case()
    coarse = compress_tensor("w", tensor_of(weights), TensorRecipe(None, RateRule(1e6)), moments=moments)
    assert not floats(coarse).any()
    fine = compress_tensor("w", tensor_of(weights), TensorRecipe(None, RateRule(1e-9)), moments=moments)
    assert same(fine, tensor_of(weights))


@pytest.mark.parametrize("states", [0, 8])
def test_tensors_of_a_single_value_or_none(states):
    _, _, moments = case()
    recipe = TensorRecipe(None, RateRule(0.25, states=states), explicit=True)
    for value in (0.0, 1.0, -1.0):
        found = compress_tensor("w", tensor_of(np.full((24, 16), value)), recipe, moments=moments)
        assert np.abs(floats(found) - value).max() <= 1.0
        assert value or not floats(found).any()


def calibration_of(moments, ties=None):
    shapes = {name: one.shape for name, one in moments.items()}
    return Calibration(moments, shapes, sum(np.prod(shape) for shape in shapes.values()), 1, ties=ties or {})


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("step", [0.04, 0.1, 3.0])
def test_small_devices_get_no_more_labels_than_they_can_have(step, states):
    weights, _, moments = case(60, 50, 40)
    weights[3] *= 4
    recipe = Recipe(step=step, states=states, profile="baseline")
    source = Checkpoint({"w": tensor_of(weights)})
    shared = compress_checkpoint(source, recipe, calibration=calibration_of({"w": moments}))["w"]
    if isinstance(shared, SharedTensor):
        assert shared.codebook.size + 1 <= 256
        assert int(shared.labels.max()) < 256
    else:
        assert step == 0.04


def test_a_tied_tensor_is_fed_once_whichever_name_was_calibrated():
    weights, _, moments = case(40, 40, 100)
    source = Checkpoint({"a": tensor_of(weights), "b": tensor_of(weights)}, {"b": "a"})
    found = []
    for calibration in (
        calibration_of({"a": moments}, {"b": "a"}),
        calibration_of({"b": moments}, {"a": "b"}),
    ):
        made = compress_checkpoint(source, Recipe(step=0.25), calibration=calibration)
        one, other = made["a"], made["b"]
        assert one is other
        found.append(one)
    assert same(*found)
    assert not same(found[0], compress_checkpoint(source, Recipe(step=0.25))["a"])


def test_what_is_excluded_stays_as_it_is():
    weights, _, moments = case(40, 40, 100)
    source = Checkpoint({"a": tensor_of(weights), "b": tensor_of(weights + 1)})
    calibration = calibration_of({"a": moments, "b": moments})
    made = compress_checkpoint(source, Recipe(step=0.25, excludes=("a",)), calibration=calibration)
    assert same(made["a"], tensor_of(weights))
    assert isinstance(made["b"], SharedTensor)


def test_statistics_of_another_model():
    weights, _, moments = case()
    with pytest.raises(EncodeError, match="another model: v 24x16 is not there"):
        compress_checkpoint(
            Checkpoint({"w": tensor_of(weights)}),
            Recipe(step=0.25),
            calibration=calibration_of({"v": moments}),
        )
