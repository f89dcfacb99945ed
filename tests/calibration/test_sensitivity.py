"""What the outputs of a model feel of its tensors, beside a slow and obvious computation; what it is for."""

from __future__ import annotations

import copy
import itertools
import json
import math
import zlib
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

import dcompress
from dcompress.calibration import Calibration
from dcompress.errors import EncodeError
from dcompress.recipe import Recipe, Rule
from dcompress.safetensors_file import read_safetensors, write_safetensors
from tests.calibrated import inputs, network

STEP = 0.1
CALLS = itertools.count(1)


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


@pytest.mark.parametrize("problem", [None, RuntimeError("out of memory"), KeyboardInterrupt()])
def test_the_model_is_left_as_it_was_also_if_it_fails(problem):
    model = network().train()
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.state_dict().items()}
    n_calls = 0

    def fails_late(module, *_):
        nonlocal n_calls
        n_calls += 1
        if problem is not None and n_calls == 9:  # 6 batches, then the first as it is, twice, and rounded
            assert not torch.equal(model[0].weight, before["0.weight"][1])
            raise problem

    handle = model[2].register_forward_hook(fails_late)
    if isinstance(problem, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            dcompress.calibrate(model, inputs())
    else:
        stats = dcompress.calibrate(model, inputs())
        assert bool(stats.sensitivity) == (problem is None)
        assert stats.notes == (
            () if problem is None else ("sensitivity is not known: RuntimeError: out of memory",)
        )
    handle.remove()
    assert model.training
    assert not model._forward_hooks
    for name, one in model.state_dict().items():
        assert one.data_ptr() == before[name][0]
        assert torch.equal(one, before[name][1])


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
        (lambda y: y[: next(CALLS)], None),
        (lambda y: y + next(CALLS), None),
        (lambda y: y, lambda model, batch: model.inner(batch)),
    ],
    ids=[
        "labels",
        "nothing",
        "nan",
        "another size each time",
        "others each time",
        "the model itself is not called",
    ],
)
def test_outputs_that_say_nothing_give_one_step_for_all(wrap, forward):
    stats = dcompress.calibrate(Wrapped(wrap), inputs(), forward=forward)
    assert stats.sensitivity == {}
    state = Wrapped(wrap).state_dict()
    assert (
        dcompress.load(dcompress.save(state, recipe=Recipe(step=0.1), calibration=stats)).keys()
        == state.keys()
    )


def with_content(path, change):
    """Change the description in a file of statistics."""
    file = read_safetensors(path)
    content = json.loads(file.metadata["calibration"])
    change(content)
    text = json.dumps(content, separators=(",", ":"))
    metadata = file.metadata | {"calibration": text, "crc32": str(zlib.crc32(text.encode()))}
    tensors = {name: file.tensors[name] for name in file.tensors}
    with path.open("wb") as stream:
        specs = {name: (one.dtype, one.shape) for name, one in tensors.items()}
        write_safetensors(stream, specs, tensors, metadata=metadata)


def test_it_is_saved_and_files_without_it_are_read(tmp_path):
    stats, path = dcompress.calibrate(network(), inputs()), tmp_path / "stats.safetensors"
    stats.save(path)
    assert Calibration.load(path).sensitivity == stats.sensitivity != {}
    with_content(path, lambda content: content.pop("sensitivity"))
    assert Calibration.load(path).sensitivity == {}


@pytest.mark.parametrize("value", [-1.0, 10**400, "1", None, True, [1.0], math.nan])
def test_what_is_no_sensitivity_is_refused(tmp_path, value):
    path = tmp_path / "stats.safetensors"
    dcompress.calibrate(network(), inputs(), sensitivity=False).save(path)
    with_content(path, lambda content: content["sensitivity"].update({"0.weight": value}))
    with pytest.raises(EncodeError, match="is damaged"):
        Calibration.load(path)


def test_few_runs_are_made_of_deep_models():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(70)])
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    n_calls = 0

    def count(*_):
        nonlocal n_calls
        n_calls += 1

    model.register_forward_hook(count)
    batches = [torch.randn(20, 8) for _ in range(6)]
    assert len(dcompress.calibrate(model, batches).sensitivity) == 70
    n_probes = n_calls - 6
    assert n_probes % 3 == 0  # batches of 6; each with the model as it is, twice, and with each tensor
    assert 72 <= n_probes // 3 <= 2 * 72


# What a measurement must not mistake for the error of rounding.


def test_pruning_and_grids_and_chance_are_not_taken_for_it():
    model, batches = network(), inputs()
    plain = dcompress.calibrate(model, batches, recipe=Recipe(step=STEP)).sensitivity
    for options in ({"sparsity": 0.5}, {"rules": (Rule("0.weight", {"n_m": "2:4"}),)}):
        found = dcompress.calibrate(model, batches, recipe=Recipe(step=STEP, **options)).sensitivity
        assert found == pytest.approx(plain, rel=0.3)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.sign() / 8)  # rounding to its root mean square changes nothing
    assert list(dcompress.calibrate(model, batches).sensitivity) == ["2.weight"]

    class Noisy(Wrapped):
        def forward(self, x):
            y = self.inner(x)
            return y + torch.randn_like(y)

    found, quiet = (
        dcompress.calibrate(one, batches).sensitivity for one in (Noisy(None), Wrapped(lambda y: y))
    )
    assert found == pytest.approx(quiet, rel=0.9)  # the outputs vary more; their errors are the same
    assert found.keys() == quiet.keys()


def test_a_small_tensor_is_not_measured_by_what_is_left_of_it_at_the_step_of_others():
    class TwoScales(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(24, 8), nn.Linear(24, 8)
            with torch.no_grad():
                self.b.weight *= 0.01

        def forward(self, x):
            return self.a(x) + 40 * self.b(x)

    found = dcompress.calibrate(TwoScales(), inputs()).sensitivity
    assert found["b.weight"] == pytest.approx(1600 * found["a.weight"], rel=0.5)


def test_weights_that_share_memory_are_changed_together():
    def model():
        one = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))
        torch.manual_seed(0)
        for parameter in one.parameters():
            nn.init.normal_(parameter, std=0.2)
        return one

    tied, shared = model(), model()
    tied[2].weight = tied[0].weight
    shared[2].weight.data = shared[0].weight.data
    found = [
        dcompress.calibrate(one, inputs(), recipe=Recipe(step=0.05)).sensitivity for one in (tied, shared)
    ]
    assert found[0] == pytest.approx(found[1])


class Bag(UserDict):
    """A batch of a class of its own."""

    @property
    def x(self):
        return self["x"]


def test_batches_and_losses_of_all_kinds_go_on_working():
    plain = dcompress.calibrate(network(), inputs()).sensitivity
    point = namedtuple("point", "x label")
    for batches, options in (
        ([Bag(x=one) for one in inputs()], {"forward": lambda model, batch: model(batch.x)}),
        ([point(one, 3) for one in inputs()], {"forward": lambda model, batch: model(batch.x)}),
        (inputs(), {"loss": penalty}),
    ):
        assert dcompress.calibrate(network(), batches, **options).sensitivity == plain


def penalty(model, batch):
    """Return a loss that differentiates on its own."""
    x = batch.clone().requires_grad_(True)
    y = model(x).square().sum()
    return y + torch.autograd.grad(y, x, create_graph=True)[0].square().sum()
