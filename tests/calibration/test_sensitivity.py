"""What the outputs of a model feel of its tensors, beside a slow and obvious computation; what it is for."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

import dcompress
from dcompress.calibration import Calibration
from dcompress.recipe import Recipe, Rule
from tests.calibrated import inputs, network

STEP = 0.1


def felt(model, batches, name):
    """Return the sensitivity of one tensor: encode it alone, decode, run, compare."""
    stats = dcompress.calibrate(model, batches, sensitivity=False)
    rule = Rule(name, {"method": "rate", "step": STEP})
    recipe = Recipe(preset="lossless", rules=(rule,))
    other = copy.deepcopy(model)
    other.load_state_dict(dcompress.compress(model.state_dict(), recipe, effort=1, calibration=stats))
    ratios = []
    with torch.no_grad():
        for batch in batches[:4]:
            dense, now = model(batch).double(), other(batch).double()
            ratios.append(float(((now - dense) ** 2).mean() / dense.var(correction=0)))
    return sum(ratios) / len(ratios) / STEP**2


def test_sensitivity_is_what_one_gets_by_hand():
    model, batches = network(), inputs()
    found = dcompress.calibrate(model, batches, recipe=Recipe(step=STEP), effort=1).sensitivity
    assert list(found) == ["0.weight", "2.weight"]
    for name, one in found.items():
        # Labels that are priced together are not quite those of a tensor alone.
        assert one == pytest.approx(felt(model, batches, name), rel=0.2)


def test_errors_add_up_only_where_they_are_small():
    """A step at which nothing is left of the model would say nothing of its tensors."""
    model, batches = network(), inputs()
    coarse = dcompress.calibrate(model, batches, recipe=Recipe(step=3.0)).sensitivity
    fine = dcompress.calibrate(model, batches, recipe=Recipe(step=STEP)).sensitivity
    for name in fine:
        assert coarse[name] == pytest.approx(fine[name], rel=0.7)


class Uneven(nn.Module):
    """A large layer whose outputs count for little, beside a small one whose outputs are the model's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.large, self.middle, self.small = nn.Linear(24, 96), nn.Linear(96, 96), nn.Linear(96, 8)
        with torch.no_grad():
            self.small.weight *= 0.3

    def forward(self, x):
        return self.small(x[:, :1] + torch.relu(self.middle(torch.relu(self.large(x)))))


def output_error(model, frame):
    other = Uneven()
    other.load_state_dict(dcompress.load(frame))
    with torch.no_grad():
        return sum(float((model(one) - other(one)).square().sum()) for one in inputs(3))


def test_outputs_are_kept_better_by_no_larger_file():
    model, batches = Uneven().eval(), inputs()
    without, weighed = (dcompress.calibrate(model, batches, sensitivity=one) for one in (False, True))
    one = dcompress.save(model.state_dict(), recipe=Recipe(step=0.1), calibration=without)
    other = dcompress.save(model.state_dict(), calibration=weighed, target_size=len(one))
    assert len(other) <= len(one)
    assert output_error(model, other) < 0.75 * output_error(model, one)


def test_the_model_is_left_as_it_was_also_if_it_fails():
    model = network().train()
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.state_dict().items()}
    n_calls = 0

    def fails_late(module, *_):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 9:  # 6 batches, then one of a probe as it is, then one with a tensor rounded
            raise RuntimeError("out of memory")

    handle = model[2].register_forward_hook(fails_late)
    for _ in range(2):  # it fails; then it runs through
        if n_calls == 0:
            with pytest.raises(RuntimeError, match="out of memory"):
                dcompress.calibrate(model, inputs())
        else:
            assert dcompress.calibrate(model, inputs()).sensitivity
        assert model.training
        assert not model._forward_hooks
        for name, one in model.state_dict().items():
            assert one.data_ptr() == before[name][0]
            assert torch.equal(one, before[name][1])
    handle.remove()


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = network(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "n": 3},
        lambda y: (y, [y[:, :2]], None),
        lambda y: y + 1000.0,
        lambda y: y.to(torch.bfloat16),
    ],
    ids=["mapping", "nested", "shifted", "bfloat16"],
)
def test_outputs_of_any_structure(wrap):
    plain = dcompress.calibrate(Wrapped(lambda y: y), inputs()).sensitivity
    found = dcompress.calibrate(Wrapped(wrap), inputs()).sensitivity
    assert found == pytest.approx(plain, rel=0.3)


@pytest.mark.parametrize(
    ("wrap", "forward"),
    [
        (lambda y: y.argmax(1), None),
        (lambda y: None, None),
        (lambda y: y * math.nan, None),
        (lambda y: y[: int(torch.randint(1, 30, ()))], None),
        (lambda y: y, lambda model, batch: model.inner(batch)),
    ],
    ids=["labels", "nothing", "nan", "another size each time", "the model itself is not called"],
)
def test_outputs_that_say_nothing_give_one_step_for_all(wrap, forward):
    stats = dcompress.calibrate(Wrapped(wrap), inputs(), forward=forward)
    assert stats.sensitivity == {}
    state = Wrapped(wrap).state_dict()
    assert (
        dcompress.load(dcompress.save(state, recipe=Recipe(step=0.1), calibration=stats)).keys()
        == state.keys()
    )


def test_it_is_saved_and_files_without_it_are_read(tmp_path):
    stats = dcompress.calibrate(network(), inputs())
    stats.save(tmp_path / "stats.safetensors")
    assert Calibration.load(tmp_path / "stats.safetensors").sensitivity == stats.sensitivity != {}
    with safe_open(tmp_path / "stats.safetensors", "np") as file:
        content = json.loads(file.metadata()["calibration"])
    assert set(content["sensitivity"]) == {"0.weight", "2.weight"}
    dcompress.calibrate(network(), inputs(), sensitivity=False).save(tmp_path / "none.safetensors")
    assert Calibration.load(tmp_path / "none.safetensors").sensitivity == {}


def test_few_runs_are_made_of_deep_models():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(70)])
    n_calls = 0

    def count(*_):
        nonlocal n_calls
        n_calls += 1

    model.register_forward_hook(count)
    batches = [torch.randn(20, 8) for _ in range(6)]
    assert len(dcompress.calibrate(model, batches).sensitivity) == 70
    assert n_calls in (
        6 + 3 * 71,
        6 + 2 * 3 * 71,
    )  # batches; 3 of them with each tensor; the step may be halved
