"""What `calibrate` does to a model, to hard ones too, and what it says about them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import dcompress
from dcompress import Calibration, DcompressWarning, EncodeError, calibrate


def small_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))


def some_batches(n=6, width=3, size=8):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, width, generator=generator) for _ in range(n)]


def sums(batches):
    rows = torch.cat(list(batches)).double()
    return (rows.T @ rows).numpy()


def assert_same(one, other):
    assert list(one) == list(other)
    for attribute in ("ties", "skipped", "notes", "shapes", "n_parameters", "n_batches", "n_holdout_batches"):
        assert getattr(one, attribute) == getattr(other, attribute)
    for name, mine in one.items():
        theirs = other[name]
        assert (mine.kinds, mine.shape, mine.layout) == (theirs.kinds, theirs.shape, theirs.layout)
        pairs = [(mine.n_vectors, theirs.n_vectors), (mine.holdout_n_vectors, theirs.holdout_n_vectors)]
        pairs += [(mine.total, theirs.total), (mine.row_weights, theirs.row_weights)]
        pairs += [(mine.influence, theirs.influence)]
        pairs += list(zip(mine.second, theirs.second, strict=True))
        pairs += list(zip(mine.holdout, theirs.holdout, strict=True))
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)


def compiled(model):
    return torch.compile(model, backend="eager")


# What it returns.


def test_the_part_that_is_held_out():
    batches, done = some_batches(7), []
    calibration = calibrate(small_model(), batches, holdout=3, progress=lambda *counts: done.append(counts))
    one = calibration["0.weight"]
    held = [batches[2], batches[5]]
    np.testing.assert_allclose(one.holdout[0][0], sums(held), rtol=1e-6)
    np.testing.assert_allclose(one.second[0][0], sums(batches[n] for n in (0, 1, 3, 4, 6)), rtol=1e-6)
    assert (one.n_vectors.tolist(), one.holdout_n_vectors.tolist()) == ([40], [16])
    assert (calibration.n_batches, calibration.n_holdout_batches) == (7, 2)
    assert done == [(n, 7) for n in range(1, 8)]
    change = np.ones(one.shape)
    wanted = float(np.square(torch.cat(held).numpy() @ change.T).sum())
    assert one.output_error(change, holdout=True) == pytest.approx(wanted, rel=1e-5)


def test_nothing_is_held_out_if_there_are_few_batches():
    calibration = calibrate(small_model(), some_batches(4), holdout=5)
    assert calibration.n_holdout_batches == 0
    assert calibration["0.weight"].holdout == ()
    assert "no batch was held out" in calibration.notes


def test_a_layer_that_only_held_out_batches_call():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.seldom = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, seen):
            return self.seldom(seen) if len(seen) == 2 else self.always(seen)

    batches = [torch.ones(1, 3), torch.ones(2, 3)]
    one = calibrate(Model(), batches, holdout=2)["seldom.weight"]
    assert (one.n_vectors.tolist(), one.holdout_n_vectors.tolist()) == ([0], [2])
    assert not one.second[0].any()
    assert (one.holdout[0] == 2).all()


@pytest.mark.parametrize("max_columns", [1, 3, 4, 10, 11])
def test_wide_layers_get_blocks(max_columns):
    torch.manual_seed(1)
    batches = some_batches(width=10)
    whole = calibrate(nn.Linear(10, 2), batches)["weight"]
    one = calibrate(nn.Linear(10, 2), batches, max_columns=max_columns)["weight"]
    widths = [block.stop - block.start for block in one.blocks]
    assert sum(widths) == 10
    assert max(widths) <= max_columns
    assert len(widths) == -(-10 // max_columns)
    for blocks, wholes in ((one.second, whole.second), (one.holdout, whole.holdout)):
        for block, here in zip(blocks, one.blocks, strict=True):
            np.testing.assert_allclose(block[0], wholes[0][0, here, here], rtol=1e-6)
            np.testing.assert_array_equal(block, block.transpose(0, 2, 1))


def test_sums_of_wide_layers_are_float32_and_symmetric():
    batches = some_batches(3, width=1100, size=20)
    torch.manual_seed(1)
    one = calibrate(nn.Linear(1100, 2), batches, holdout=0)["weight"]
    np.testing.assert_allclose(one.second[0][0], sums(batches), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(one.second[0], one.second[0].transpose(0, 2, 1))


def test_the_same_again_gives_the_same_bits(tmp_path):
    for name in "ab":
        calibrate(small_model(), some_batches()).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_batches_of_any_kind():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, seen, scale=1.0):
            return self.layer(seen * scale)

    torch.manual_seed(1)
    model, batches = Model(), some_batches()
    labels = torch.zeros(8)
    wanted = calibrate(model, batches)
    for others in (
        [(one, labels) for one in batches],
        [[one, labels] for one in batches],
        [{"seen": one / 2, "scale": 2.0} for one in batches],
        (one for one in batches),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(batches)), 8),
    ):
        assert_same(calibrate(model, others), wanted)
    strange = calibrate(model, ["one", "two"], forward=lambda one, _: one(batches[0]))
    assert strange["layer.weight"].n_vectors.tolist() == [16]


def test_half_precision_and_autocast_do_not_spoil_the_sums():
    torch.manual_seed(1)
    model, batches = nn.Linear(3, 2), some_batches(1)

    def run(one, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            one(batch)

    wanted = calibrate(model, batches)["weight"].second[0]
    np.testing.assert_array_equal(calibrate(model, batches, forward=run)["weight"].second[0], wanted)
    halves = calibrate(model.bfloat16(), [batches[0].bfloat16()])["weight"].second[0]
    np.testing.assert_allclose(halves[0], sums([batches[0].bfloat16()]), rtol=1e-6)


def test_the_influence_of_outputs_on_a_loss():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up = nn.Conv1d(2, 3, 2), nn.ConvTranspose1d(3, 4, 2)
            self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)
            self.free = nn.Parameter(torch.ones(3, 2))
            self.seen = None

        def forward(self, images):
            conv = self.conv(images)
            up = self.up(self.relu(conv if self.seen is None else conv.clone()))
            head = self.head(up.mean(2))
            free = head @ self.free
            if self.seen is not None:
                self.seen += [conv, up, head, free]
            return free.square().sum()

    torch.manual_seed(1)
    model = Model().requires_grad_(False)
    batches = [torch.randn(3, 2, 5), torch.randn(2, 2, 4)]
    with no_trace(model):
        calibration = calibrate(model, batches, loss=lambda one, batch: one(batch))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    plain = calibrate(model, batches)["conv.weight"]
    assert plain.influence is None
    np.testing.assert_array_equal(plain.second[0], calibration["conv.weight"].second[0])
    model.requires_grad_(True)
    wanted = [0, 0, 0, 0]
    for batch in batches:
        model.seen = []
        loss = model(batch)
        for place, one in enumerate(torch.autograd.grad(loss, model.seen)):
            wanted[place] += one.square().sum([dim for dim in range(one.ndim) if dim != 1])
    for name, value in zip(("conv.weight", "up.weight", "head.weight", "free"), wanted, strict=True):
        np.testing.assert_allclose(calibration[name].influence, value, rtol=1e-5)


def test_losses_that_are_none():
    model, batches = small_model(), some_batches(2)
    for loss in (lambda *_: 3.0, lambda one, batch: one(batch), lambda one, batch: torch.zeros(())):
        with no_trace(model), pytest.raises(EncodeError, match="loss must return one number"):
            calibrate(model, batches, loss=loss)
    with no_trace(model), pytest.raises(EncodeError, match=r"'4\.weight', batch 0: the loss has a gradient"):
        calibrate(model, batches, loss=lambda one, batch: one(batch).sum() * torch.inf)
    with pytest.raises(EncodeError, match="leave forward out"):
        calibrate(model, batches, loss=max, forward=max)


# No trace.


class Counting(nn.Module):
    """A layer with a buffer that changes in evaluation too, one that is replaced, and a limited embedding."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(5, 3, max_norm=0.1)
        self.rest = small_model()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("nothing", None)

    def forward(self, seen):
        self.calls += 1
        self.last = seen[0] * 2
        self.nothing = torch.ones(1)
        return self.rest(self.rows(torch.tensor([1, 2])).sum(0) + seen + torch.rand(1))


@contextlib.contextmanager
def no_trace(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {module: dict(vars(module)) for module in model.modules()}
    hooks = {
        module: {name: list(value) for name, value in vars(module).items() if name.endswith("_hooks")}
        for module in model.modules()
    }
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    random, settings = torch.get_rng_state(), _settings()
    yield
    assert torch.equal(torch.get_rng_state(), random)
    assert _settings() == settings
    assert [module.training for module in model.modules()] == modes
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for module, old in attributes.items():
        assert set(vars(module)) == set(old)
        assert {name: list(getattr(module, name)) for name in hooks[module]} == hooks[module]
        assert all(one is other for one, other in zip(vars(module).values(), old.values(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def _settings():
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        len(torch.overrides._get_current_function_mode_stack()),
    )


def test_no_trace_is_left():
    torch.manual_seed(1)
    model = Counting()
    model.rest[1].eval()
    hook = model.rest[0].register_forward_hook(lambda *_: None)
    with no_trace(model):
        calibrate(model, some_batches())
    hook.remove()
    with no_trace(model.eval()):
        calibrate(model, some_batches())


@pytest.mark.parametrize("where", ["batches", "forward", "inside", "progress"])
def test_no_trace_is_left_by_an_error(where):
    torch.manual_seed(1)
    model = Counting()

    def batches():
        yield from some_batches(2)
        if where == "batches":
            raise ZeroDivisionError
        yield "wrong" if where == "inside" else some_batches(1)[0]

    def forward(one, batch):
        one(batch)
        if where == "forward":
            raise ZeroDivisionError

    def progress(*_):
        if where == "progress":
            raise ZeroDivisionError

    with no_trace(model), pytest.raises((ZeroDivisionError, TypeError)):
        calibrate(model, batches(), forward=forward, progress=progress)


def test_the_model_runs_in_evaluation_mode_without_gradients():
    model, seen = small_model(), []
    model[0].register_forward_hook(lambda one, *_: seen.append((one.training, *_settings()[:3])))
    calibrate(model, some_batches(1))
    assert set(seen) == {(False, False, "highest", False)}  # nor by the fast path of attention


# Hard models.


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda one: compiled(nn.DataParallel(one))])
def test_wrapped_models_have_the_names_of_the_plain_one(wrap):
    model = small_model()
    assert_same(calibrate(wrap(model), some_batches()), calibrate(model, some_batches()))


def test_a_compiled_part_runs_plain():
    model = small_model()
    wanted = calibrate(model, some_batches())
    model[4] = compiled(model[4])
    found = calibrate(model, some_batches())
    assert list(found) == ["0.weight", "4._orig_mod.weight"]
    np.testing.assert_array_equal(found["4._orig_mod.weight"].second[0], wanted["4.weight"].second[0])


def test_sharded_models_are_refused():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(EncodeError, match="in pieces"):
        calibrate(FullyShardedDataParallel(), [])


def test_parametrized_and_pruned_weights_have_their_plain_names():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    wanted = calibrate(small_model(), some_batches())
    model = small_model()
    parametrize.register_parametrization(model[4], "weight", Double())
    found = calibrate(model, some_batches())
    assert found.shapes == wanted.shapes
    assert not found.skipped
    np.testing.assert_array_equal(found["4.weight"].second[0], wanted["4.weight"].second[0])
    model = small_model()
    prune.identity(model[0], "weight")
    parametrizations.weight_norm(model[4])
    found = calibrate(model, some_batches())
    assert (found.shapes, list(found), found.skipped) == (wanted.shapes, list(wanted), {})
    np.testing.assert_allclose(found["4.weight"].second[0], wanted["4.weight"].second[0], rtol=1e-5)


def test_layers_that_are_called_often_and_tied_weights_add_up():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.layer, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5)
            self.head.weight = self.rows.weight

        def forward(self, places):
            return self.head(self.layer(self.layer(self.rows(places))))

    torch.manual_seed(1)
    model, places = Tied(), torch.tensor([0, 3, 3])
    calibration = calibrate(model, [places])
    assert list(calibration) == ["rows.weight", "layer.weight"]
    assert calibration.ties == {"head.weight": "rows.weight"}
    assert calibration["head.weight"] is calibration["rows.weight"]
    assert any("head.weight is rows.weight" in note for note in calibration.notes)
    with torch.no_grad():
        first = model.rows(places)
        second = model.layer(first)
        third = model.layer(second)
    np.testing.assert_allclose(calibration["layer.weight"].second[0][0], sums([first, second]), rtol=1e-5)
    tied = calibration["rows.weight"]
    assert tied.kinds == ("embedding", "linear")
    assert tied.row_weights.tolist() == [1, 0, 0, 2, 0]
    np.testing.assert_allclose(tied.second[0][0], sums([third]), rtol=1e-5)
    change = np.arange(15).reshape(5, 3)
    wanted = np.square(change[places.numpy()]).sum() + np.square(third.numpy() @ change.T).sum()
    assert tied.output_error(change) == pytest.approx(wanted, rel=1e-5)


def test_a_weight_that_is_used_both_ways_round_is_skipped():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.warns(DcompressWarning, match=r"0\.weight .*other way round"):
        calibration = calibrate(model, some_batches(), forward=lambda one, seen: one(seen @ one[0].weight))
    assert list(calibration) == ["1.weight"]


def test_what_is_not_read_is_named_with_its_reason():
    class Own(nn.Linear):
        def forward(self, seen):
            return super().forward(seen * 2)

    class Scaled(nn.Linear):
        def forward(self, seen):
            return nn.functional.linear(seen, self.weight / self.weight.norm())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.scaled, self.never = Own(3, 3), Scaled(3, 3), nn.Linear(3, 3)
            self.norm, self.free = nn.LayerNorm((2, 3)), nn.Parameter(torch.ones(3, 3))

        def forward(self, seen):
            return self.scaled(self.norm(self.own(seen).reshape(-1, 2, 3)))

    torch.manual_seed(1)
    with pytest.warns(DcompressWarning) as caught:
        calibration = calibrate(Model(), some_batches())
    assert calibration.skipped == {
        "free": "Model is not read",
        "scaled.weight": "used by norm, div, which is not read",
        "never.weight": "its layer was never called",
        "norm.weight": "used by layer_norm, which is not read",
        "norm.bias": "used by layer_norm, which is not read",
    }
    message = str(caught[0].message)
    assert "\n" not in message
    assert all(name in message for name in calibration.skipped)
    seen = [2 * one for n, one in enumerate(some_batches()) if n != 4]
    np.testing.assert_allclose(calibration["own.weight"].second[0][0], sums(seen), rtol=1e-5)


def test_a_weight_that_is_read_and_used_otherwise_too_is_noted():
    model = small_model()
    calibration = calibrate(model, some_batches(), forward=lambda one, x: one(x).sum() + one[0].weight.sum())
    assert any(note == "0.weight is also used by sum, which is not read" for note in calibration.notes)
    assert not calibration.skipped


def test_inputs_of_an_unknown_kind_are_no_reason_to_stop():
    torch.manual_seed(1)
    model = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(3, 2)})

    def forward(one, seen):
        one["second"](seen)
        return one["first"](seen.to_sparse())

    with pytest.warns(DcompressWarning, match=r"first\.weight \(its inputs cannot be read: "):
        calibration = calibrate(model, some_batches(), forward=forward)
    assert list(calibration) == ["second.weight"]


def test_inference_mode_now_and_then():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2), nn.Embedding(2, 2))

    def forward(one, seen):
        places = torch.zeros(1, dtype=torch.long)
        with torch.inference_mode(len(seen) == 2):
            return one[0](seen), one[1](places)

    calibration = calibrate(model, [torch.ones(n, 3) for n in (2, 3, 2, 1)], forward=forward)
    assert calibration["0.weight"].n_vectors.tolist() == [8]
    assert calibration["1.weight"].row_weights.tolist() == [4, 0]


def test_weights_that_share_memory_are_tied():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    calibration = calibrate(model, some_batches(1))
    assert list(calibration) == ["0.weight"]
    assert calibration.ties == {"1.weight": "0.weight"}
    assert calibration["1.weight"].n_vectors.tolist() == [16]


# Errors.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite(value):
    model, batches = small_model(), some_batches()
    batches[3][2, 1] = value
    with no_trace(model), pytest.raises(EncodeError, match=r"'0\.weight', batch 3: .*NaN or infinite"):
        calibrate(model, batches)


def test_inputs_whose_squares_are_too_large():
    torch.manual_seed(1)
    for value, wide in ((1e30, 3), (3e38, 3), (1e30, 1100)):
        model = nn.Linear(wide, 2)
        with pytest.raises(EncodeError, match="'weight' are too large"):
            calibrate(model, [torch.full((5, wide), value)])


def test_wrong_arguments():
    model = small_model()
    for batches, message in (
        ([], "no batches"),
        (iter(()), "no batches"),
        (torch.zeros(5, 3), "not Tensor"),
        ({"seen": 1}, "not dict"),
        (7, "not int"),
        ([()], "empty tuple"),
    ):
        with pytest.raises(EncodeError, match=message):
            calibrate(model, batches)
    for options in (
        {"max_columns": 0},
        {"max_columns": 2.5},
        {"holdout": -1},
        {"holdout": 1},
        {"holdout": True},
    ):
        with pytest.raises(EncodeError, match=next(iter(options))):
            calibrate(model, some_batches(), **options)
    with pytest.raises(EncodeError, match="torch module"):
        calibrate(model.state_dict(), some_batches())
    with pytest.raises(EncodeError, match="no shape yet"):
        calibrate(nn.LazyLinear(3), some_batches())
    with pytest.raises(EncodeError, match="no layer of the model could be read: it has no matrices"):
        calibrate(nn.ReLU(), some_batches())


def test_the_package_has_it():
    assert dcompress.Calibration is Calibration
    assert {"Calibration", "calibrate"} <= set(dcompress.__all__)
