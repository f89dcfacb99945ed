"""dcompress.search: the smallest file that keeps a user's metric."""

from __future__ import annotations

import copy
import importlib
import math
import random
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dcompress
from dcompress.crossing import falling_fit, find_crossing
from dcompress.errors import EncodeError, RecipeError
from dcompress.evaluation import Evaluator
from tests.train.loops import digits, two_layers


@cache
def _trained():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixture of a module comes before that of conftest
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))
    (x, y), _ = digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(120):
        chosen = torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    torch.set_num_threads(n_threads)
    return model


def trained():
    return copy.deepcopy(_trained())


def accuracy(model):
    model.eval()
    _, (x, y) = digits()
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).float().mean()


def loss(model):
    model.eval()
    _, (x, y) = digits()
    return cross_entropy(model(x), y)  # with its graph: people forget no_grad


@pytest.fixture(scope="module")
def found():
    model = trained().train()
    before = copy.deepcopy(model.state_dict())
    seen = []
    result = dcompress.search(
        model, accuracy, max_drop=0.5, metadata={"by": "search"}, watch=seen.append, effort=2, threads=1
    )
    return model, before, result, seen


def test_the_file_keeps_the_metric(found, tmp_path):
    model, _, result, _ = found
    result.save(tmp_path / "model.dcz")
    other = copy.deepcopy(model)
    dcompress.load_model(other, tmp_path / "model.dcz")
    assert float(accuracy(other)) == result.metric
    assert result.metric >= result.baseline - 0.5
    assert result.baseline == float(accuracy(copy.deepcopy(model)))
    assert (tmp_path / "model.dcz").stat().st_size == result.figures.n_bytes == result.frame.n_bytes
    with dcompress.safe_open(tmp_path / "model.dcz") as opened:
        assert opened.metadata() == {"by": "search"}


def test_it_is_small_and_at_the_border(found):
    model, _, result, _ = found
    assert result.figures.n_bytes < 0.5 * len(dcompress.save(model.state_dict()))
    lost = [one for one in result.history if not one.kept and one.step > result.figures.step]
    assert min(one.n_bytes for one in lost) > 0
    nearest = min(lost, key=lambda one: one.step)
    assert nearest.step < 1.2 * result.figures.step
    assert all(one.n_bytes >= result.figures.n_bytes for one in result.history if one.kept)


def test_it_takes_few_evaluations(found):
    _, _, result, seen = found
    assert tuple(seen) == result.history
    assert result.n_evaluations == len(result.history) + 2 <= 12


def test_the_model_is_left_as_it_was(found):
    model, before, _, _ = found
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training for module in model.modules())


def test_the_recipe_makes_the_same_file(found):
    model, _, result, _ = found
    again = dcompress.save(model.state_dict(), recipe=result.recipe, metadata={"by": "search"}, effort=2)
    assert again == result.to_bytes()
    assert dcompress.Recipe.from_dict(result.recipe.to_dict()) == result.recipe


def test_it_prints(found):
    _, _, result, _ = found
    lines = str(result).splitlines()
    assert len(lines) == 2 + len(result.history)
    assert sum(line.endswith("<- chosen") for line in lines) == 1
    assert f"{result.figures.n_bytes:,} bytes" in lines[-1]


def test_the_metric_is_that_of_decoded_weights():
    model = trained()
    seen = []

    def evaluate(given):
        assert given is model
        seen.append({name: tensor.clone() for name, tensor in given.state_dict().items()})
        for module in given.modules():  # a careless user
            module.train(not module.training)
        with torch.no_grad():
            given[0].weight.zero_()
        return -len(seen)

    result = dcompress.search(model, evaluate, max_drop=1e6, max_evaluations=5, effort=1)
    assert result.n_evaluations == len(seen)
    last = [one.step for one in result.history].index(result.figures.step)
    decoded = dcompress.load(result.to_bytes())
    assert all(torch.equal(seen[2 + last][name], decoded[name]) for name in decoded)
    assert all(torch.equal(tensor, _trained().state_dict()[name]) for name, tensor in seen[0].items())
    assert all(
        torch.equal(tensor, _trained().state_dict()[name]) for name, tensor in model.state_dict().items()
    )


def test_less_can_be_better_and_the_baseline_known():
    model = trained()
    own = float(loss(copy.deepcopy(model)).detach())
    result = dcompress.search(model, loss, max_drop=0.02, lower_is_better=True, baseline=own, effort=1)
    assert result.metric <= own + 0.02
    assert any(one.metric > own + 0.02 for one in result.history)
    assert result.n_evaluations == len(result.history)


def test_rules_stay_in_force():
    recipe = {"exclude": ["3.*"], "rule": [{"pattern": "0.weight", "sparsity": 0.2}]}
    model = trained()
    result = dcompress.search(model, accuracy, max_drop=3.0, recipe=recipe, effort=1)
    decoded = dcompress.load(result.to_bytes())
    assert torch.equal(decoded["3.weight"], model[3].weight)
    assert (decoded["0.weight"] == 0).float().mean() >= 0.2


def test_ties_and_their_memory_survive():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    model[2].weight = model[0].weight
    x = torch.randn(50, 32)
    y = model(x).detach()
    address = model[0].weight.data_ptr()

    def error(given):
        return ((given(x) - y).square().mean() / y.square().mean()).item()

    result = dcompress.search(model, error, max_drop=0.01, lower_is_better=True, effort=1)
    assert model[2].weight is model[0].weight
    assert model[0].weight.data_ptr() == address
    assert torch.equal(model(x), y)
    decoded = dcompress.load(result.to_bytes())
    assert decoded["0.weight"].data_ptr() == decoded["2.weight"].data_ptr()
    assert result.metric <= 0.01


def test_a_noisy_metric():
    generator = torch.Generator().manual_seed(0)
    model = trained()

    def noisy(given):
        return float(accuracy(given)) + 0.2 * float(torch.randn((), generator=generator))

    result = dcompress.search(model, noisy, max_drop=1.0, effort=1)
    metrics = [one.metric for one in result.history if one.step == result.figures.step]
    assert len(metrics) >= 2
    assert result.metric == sum(metrics) / len(metrics) >= result.baseline - 1.0
    assert result.n_evaluations <= 12
    model.load_state_dict(dcompress.load(result.to_bytes()))
    assert float(accuracy(model)) > float(accuracy(trained())) - 2.0


def test_when_even_the_finest_misses():
    model = trained()
    with pytest.raises(RecipeError, match=r"no file keeps the metric within 0.5 of 9.*finest .* dB"):
        dcompress.search(model, accuracy, max_drop=0.5, recipe={"sparsity": 0.98}, effort=1)
    assert all(
        torch.equal(tensor, _trained().state_dict()[name]) for name, tensor in model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("evaluate", "options", "message"),
    [
        (lambda _: "good", {}, "must return a number, not str"),
        (lambda _: torch.zeros(2), {}, "must return a number, not Tensor"),
        (lambda _: math.nan, {}, "gives nan for the model as it is"),
        (3, {}, "must be a function of the model, not int"),
        (accuracy, {"max_drop": -1}, "max_drop must be a number, at least 0, not -1"),
        (accuracy, {"max_drop": math.nan}, "max_drop must be"),
        (accuracy, {"max_evaluations": 2}, "max_evaluations must be a whole number, at least 5"),
        (accuracy, {"baseline": math.inf}, "baseline must be a finite number"),
        (accuracy, {"recipe": "lossless"}, "preset lossless changes nothing"),
        (accuracy, {"recipe": {"bits": 4}}, "bits = 4 for all tensors and a target do not go together"),
        (accuracy, {"effort": 11}, "effort must be"),
    ],
)
def test_wrong_use(evaluate, options, message):
    with pytest.raises(EncodeError, match=message):
        dcompress.search(trained(), evaluate, **options)


def test_only_modules_are_searched():
    with pytest.raises(EncodeError, match="a torch module is wanted, not OrderedDict"):
        dcompress.search(trained().state_dict(), accuracy)


def test_an_error_in_the_metric_leaves_the_model_alone():
    model = trained().train()
    calls = []

    def fails(given):
        calls.append(given.eval())
        if len(calls) == 4:
            raise KeyError("no such batch")
        return 1.0

    with pytest.raises(KeyError, match="no such batch"):
        dcompress.search(model, fails, effort=1)
    assert all(
        torch.equal(tensor, _trained().state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    assert all(module.training for module in model.modules())


def test_nan_of_a_compressed_model_is_a_miss():
    with Evaluator(two_layers(), lambda _: math.nan) as evaluator:
        assert evaluator.margin(evaluator.measure(), 1.0, 0.5) == -math.inf


def test_search_is_a_function_whatever_was_imported():
    for name in ("step_search", "metric_search", "frame_file"):
        importlib.import_module(f"dcompress.{name}")
    assert callable(dcompress.search)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("dcompress.search")


@pytest.mark.parametrize("seed", range(20))
def test_the_falling_fit_is_that_of_the_textbook(seed):
    rng = random.Random(seed)
    values = [rng.gauss(0, 1) for _ in range(7)]
    counts = [rng.randint(1, 3) for _ in values]

    def mean(first, last):
        weights = counts[first : last + 1]
        pairs = zip(values[first : last + 1], weights, strict=True)
        return sum(value * weight for value, weight in pairs) / sum(weights)

    places = range(7)
    slow = [min(max(mean(a, b) for b in places if b >= i) for a in places if a <= i) for i in places]
    assert falling_fit(values, counts) == pytest.approx(slow)


@pytest.mark.parametrize("seed", range(20))
def test_the_crossing_of_a_smooth_function(seed):
    true = random.Random(seed).uniform(-6, 6)
    calls = []

    def measure(place):
        calls.append(place)
        return math.tanh(true - place)

    place = find_crossing(measure, 0.0, (-20, 10), scale=0.5, max_calls=12, noisy=False)
    assert place <= true < place + 0.15
    assert len(calls) == len(set(calls)) <= 12


def test_a_crossing_at_the_bounds():
    ask = {"scale": 1.0, "max_calls": 12, "noisy": False}
    assert find_crossing(lambda _: 1.0, 0.0, (-9.0, 3.0), **ask) == 3.0
    assert find_crossing(lambda _: -1.0, 0.0, (-9.0, 3.0), **ask) is None
    assert find_crossing(lambda place: -place - 9.0, 0.0, (-9.0, 3.0), **ask) == -9.0


def test_a_stray_narrow_miss_does_not_hold_the_search_back():
    def measure(place):
        return -0.05 if place == 1.0 else 1.0 if place < 2.5 else -1.0

    place = find_crossing(measure, 0.0, (-9, 9), scale=0.5, max_calls=14, noisy=False)
    assert 2.0 < place < 2.5


def test_noise_is_averaged():
    errors = []
    for seed in range(30):
        rng = random.Random(seed)
        true = rng.uniform(0, 3)
        calls = []

        def measure(place, true=true, rng=rng, calls=calls):
            calls.append(place)
            return 0.5 - 10 / (1 + math.exp(-3 * (place - true))) + rng.gauss(0, 0.1)

        found = find_crossing(measure, 0.0, (-9, 9), scale=0.5, max_calls=10, noisy=True)
        assert calls.count(found) >= 2
        assert len(calls) <= 10
        # where the margin is truly zero
        errors.append(found - (true - math.log(19) / 3))
    errors.sort()
    assert -0.5 < errors[15] < 0.1
    assert errors[0] > -2.5
    assert errors[-1] < 0.5
