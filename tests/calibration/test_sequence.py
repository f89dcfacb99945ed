from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import dcompress
from dcompress.errors import DcompressWarning, EncodeError
from dcompress.recipe import Recipe

RECIPE = Recipe(step=0.15)


class Residual(nn.Module):
    """Convolutions with a shortcut, a norm and a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Linear(8 * 16, 5)
        self.norm.running_mean += 0.1

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        return self.last(x[:, :, ::2, ::2].flatten(1))


def some_batches(n_batches=5, seed=0, shape=(2, 8, 8)):
    """Return inputs that are correlated, as those of real layers are."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(n_batches, 12, shape[0], *(size // 4 for size in shape[1:]), generator=generator)
    return [nn.functional.interpolate(one, scale_factor=4, mode="bilinear") for one in rough]


def loaded(model, frame):
    twin = copy.deepcopy(model)
    twin.load_state_dict(dcompress.load(frame))
    return twin.eval()


def output_error(model, frame, batches):
    model, twin = model.eval(), loaded(model, frame)
    with torch.no_grad():
        return sum(float((model(one) - twin(one)).square().sum()) for one in batches)


def seen(model, path, batches, numbers):
    """Return what a layer is given, as columns of a matrix product, of some batches."""
    rows = []
    layer = model.get_submodule(path)

    def hook(module, args):
        x = args[0]
        if isinstance(module, nn.Conv2d):
            x = nn.functional.unfold(x, module.kernel_size, padding=module.padding).transpose(1, 2)
        rows.append(x.reshape(-1, x.shape[-1]).double())

    handle = layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        for number in numbers:
            model(batches[number])
    handle.remove()
    return torch.cat(rows).numpy()


def test_moments_are_those_of_the_compressed_network():
    model, batches = Residual().eval(), some_batches()
    stats = dcompress.calibrate(model, batches, recipe=RECIPE)
    twin = loaded(model, dcompress.save(model.state_dict(), recipe=RECIPE, calibration=stats))
    for name, moments in stats.items():
        path = name.removesuffix(".weight")
        for numbers, second, cross in (
            ((0, 1, 2, 3), moments.second, moments.cross),
            ((4,), moments.holdout, moments.holdout_cross),
        ):
            before, after = (seen(one, path, batches, numbers) for one in (model, twin))
            width = second[0].shape[-1]
            for group in range(moments.n_groups):
                here = slice(group * width, (group + 1) * width)
                x, y = after[:, here], before[:, here]
                np.testing.assert_allclose(second[0][group], x.T @ x, rtol=1e-4, atol=1e-3)
                np.testing.assert_allclose(cross[0][group], y.T @ x, rtol=1e-4, atol=1e-3)
    assert not np.array_equal(stats["last.weight"].cross[0], stats["last.weight"].second[0])


def test_outputs_are_kept_better_than_with_plain_statistics_or_none():
    model, batches, recipe = Residual().eval(), some_batches(20), Recipe(step=0.05)
    alike = {"sensitivity": False}  # one step for all tensors, as without statistics
    known = [None, *(dcompress.calibrate(model, batches, recipe=one, **alike) for one in (None, recipe))]
    frames = [dcompress.save(model.state_dict(), recipe=recipe, calibration=one) for one in known]
    others = some_batches(seed=1)
    none, plain, by_layer = (output_error(model, frame, others) for frame in frames)
    assert by_layer < plain < none
    assert max(map(len, frames)) < 1.05 * min(map(len, frames))


def test_the_same_gives_the_same_bytes(tmp_path):
    model, batches = Residual(), some_batches()
    frames = set()
    for threads in (1, 2):
        stats = dcompress.calibrate(model, batches, recipe=RECIPE)
        stats.save(tmp_path / "stats")
        for calibration in (stats, tmp_path / "stats"):
            options = {"recipe": RECIPE, "calibration": calibration, "threads": threads}
            frames.add(dcompress.save(model.state_dict(), **options))
    assert len(frames) == 1


def test_the_model_stays_as_it_was():
    model, batches = Residual(), some_batches()
    before = copy.deepcopy(model.state_dict())
    n_threads = threading.active_count()
    dcompress.calibrate(model, iter(batches), recipe={"step": 0.15})
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert threading.active_count() == n_threads


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(bits=3),
        Recipe(step=0.2, sparsity=0.5),
        Recipe(preset="lossless", sparsity=0.6),
        Recipe.from_options(sets=["second.weight:n_m=2:4,bits=3"]),
        Recipe(preset="lossless"),
    ],
    ids=["k-means", "pruned and rounded", "pruned", "n:m", "nothing"],
)
def test_what_is_gathered_for_a_recipe_serves_it(recipe):
    model, batches = Residual().eval(), some_batches()
    stats = dcompress.calibrate(model, batches, recipe=recipe)
    frames = [dcompress.save(model.state_dict(), recipe=recipe, calibration=one) for one in (None, stats)]
    plain, fed = (output_error(model, frame, some_batches(seed=1)) for frame in frames)
    assert fed < plain or fed == plain == 0
    twin = loaded(model, frames[1])
    for name in ("first.weight", "second.weight", "last.weight"):
        path = name.removesuffix(".weight")
        moments = stats[name]
        if not moments.cross:  # not compressed by this recipe
            continue
        x = seen(twin, path, batches, (0, 1, 2, 3))[:, : moments.n_columns]
        np.testing.assert_allclose(moments.second[0][0], x.T @ x, rtol=1e-4, atol=1e-3)


class Twice(nn.Module):
    """One layer that is called twice, one that some batches pass by, and tied ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.again, self.rare, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight

    def forward(self, x):
        x = torch.relu(self.again(torch.relu(self.again(x))))
        if x.shape[0] % 2:
            x = self.rare(x)
        return self.last(self.other(torch.relu(self.one(x))))


def test_layers_that_cannot_wait_get_plain_statistics():
    torch.manual_seed(3)
    batches = [torch.randn(size, 6) for size in (20, 21, 22, 23)]
    model = Twice()
    stats = dcompress.calibrate(model, batches, recipe=RECIPE, holdout=0)
    plain = dcompress.calibrate(model, batches, holdout=0)
    assert {name for name, one in stats.items() if one.cross} == {"last.weight"}
    for name in ("again.weight", "rare.weight", "one.weight"):
        np.testing.assert_array_equal(stats[name].second[0], plain[name].second[0])
    assert stats.ties == {"other.weight": "one.weight"}
    dcompress.save(model.state_dict(), recipe=RECIPE, calibration=stats)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GRU(6, 5, num_layers=2, bidirectional=True),
        nn.LSTM(6, 5),
        nn.MultiheadAttention(6, 2),
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
        nn.Embedding(7, 6),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_several_weights(layer):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Identity() if isinstance(layer, nn.Embedding) else nn.Linear(4, 6)
            self.layer = layer

        def forward(self, x):
            if isinstance(layer, nn.Embedding):
                return self.layer((x[..., 0] > 0).long() + (x[..., 1] > 0).long())
            x = self.into(x)
            return self.layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else self.layer(x)

    torch.manual_seed(4)
    model = Around().eval()
    batches = [torch.randn(9, 3, 4) for _ in range(6)]
    stats = dcompress.calibrate(model, batches, recipe=RECIPE)
    own = [name for name in stats if name.startswith("layer.")]
    assert own
    if not isinstance(layer, nn.Embedding):
        assert all(bool(stats[name].cross) != isinstance(layer, nn.RNNBase) for name in own)
    dcompress.load(dcompress.save(model.state_dict(), recipe=RECIPE, calibration=stats))


def test_what_a_model_raises_is_raised_and_no_run_is_left_behind():
    class Fails(Residual):
        def forward(self, x):
            x = super().forward(x)
            if torch.is_grad_enabled() or float(self.first.weight.sum()) == self.total:
                return x
            raise ZeroDivisionError("the compressed copy only")

    model, n_threads = Fails(), threading.active_count()
    model.total = float(model.first.weight.detach().sum())
    with pytest.raises(ZeroDivisionError, match="copy only"):
        dcompress.calibrate(model, some_batches(), recipe=RECIPE)
    assert threading.active_count() == n_threads


def test_what_cannot_be_done_is_said():
    model, batches = Residual(), some_batches()
    with pytest.raises(EncodeError, match="have no use for a loss"):
        dcompress.calibrate(model, batches, recipe=RECIPE, loss=lambda *_: None)
    with pytest.raises(EncodeError, match="effort must be"):
        dcompress.calibrate(model, batches, recipe=RECIPE, effort=10)
    with pytest.raises(EncodeError, match="no batches"):
        dcompress.calibrate(model, [], recipe=RECIPE)
    with pytest.raises(EncodeError, match="unknown preset"):
        dcompress.calibrate(model, batches, recipe="small")
    model.locked = threading.Lock()
    with pytest.raises(EncodeError, match="needs a copy of the model"):
        dcompress.calibrate(model, batches, recipe=RECIPE)


def test_progress_counts_batches_then_layers():
    calls = []
    dcompress.calibrate(Residual(), some_batches(2), recipe=RECIPE, progress=lambda *one: calls.append(one))
    assert calls == [(1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]


def test_statistics_for_another_recipe_serve_as_plain_ones(tmp_path):
    model, batches = Residual().eval(), some_batches(20)
    stats = dcompress.calibrate(model, batches, recipe=Recipe(step=0.15))
    stats.save(tmp_path / "stats")
    for other, effort in (
        (Recipe(step=0.02), 6),
        (Recipe(step=0.15), 7),
        (Recipe(step=0.15, sparsity=0.1), 6),
    ):
        with pytest.warns(DcompressWarning, match=r"layer by layer for the recipe .*'step': 0.15.* effort 6"):
            frame = dcompress.save(
                model.state_dict(), recipe=other, effort=effort, calibration=tmp_path / "stats"
            )
        others = some_batches(seed=1)
        plain = dcompress.save(model.state_dict(), recipe=other, effort=effort)
        assert output_error(model, frame, others) < output_error(model, plain, others)
    with pytest.warns(DcompressWarning, match="layer by layer"):
        dcompress.save(model.state_dict(), target_size=900, calibration=stats)


def test_layers_with_plain_statistics_are_named():
    batches = [torch.randn(size, 6) for size in (20, 21, 22, 23)]
    stats = dcompress.calibrate(Twice(), batches, recipe=RECIPE)
    assert "again.weight, one.weight, rare.weight" in stats.notes[-1]
    model = Twice()
    with pytest.raises(EncodeError, match="forward must run the model that it is given"):
        dcompress.calibrate(model, batches, recipe=RECIPE, forward=lambda _, batch: model(batch))


def test_what_a_model_keeps_on_itself_is_not_mixed_up_among_batches():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            self.into, self.on, self.out = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, x):
            self.kept = self.into(x).relu()
            return self.out(self.on(self.kept).relu() + self.kept)

    batches = [torch.randn(30, 8) for _ in range(6)]
    model = Skip()
    stats, plain = dcompress.calibrate(model, batches, recipe=RECIPE), dcompress.calibrate(model, batches)
    assert {name for name, one in stats.items() if one.cross} == {"into.weight", "on.weight"}
    np.testing.assert_array_equal(stats["out.weight"].second[0], plain["out.weight"].second[0])
    assert "out.weight" in stats.notes[-1]


def test_inputs_may_be_changed_in_place():
    class Shifts(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(1.0))

    batches = [torch.randn(30, 8) for _ in range(6)]
    before = [one.clone() for one in batches]
    stats = dcompress.calibrate(Shifts(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), batches, recipe=RECIPE)
    assert all(torch.equal(one, other) for one, other in zip(batches, before, strict=True))
    assert float(stats["0.weight"].mean.mean()) == pytest.approx(-1.0, abs=0.2)
    assert all(one.cross for one in stats.values())


def test_odd_tensors_go_along():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    model.register_parameter("odd", nn.Parameter(torch.full((3, 3), float("nan"))))
    model.register_parameter("none", nn.Parameter(torch.zeros(0, 3)))
    with pytest.warns(DcompressWarning):
        stats = dcompress.calibrate(model, [torch.randn(30, 8) for _ in range(6)], recipe=RECIPE)
    assert set(stats) == {"0.weight", "2.weight"}


def test_what_torch_has_pruned_is_named():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    batches = [torch.randn(30, 8) for _ in range(6)]
    with pytest.raises(EncodeError, match=r"0.weight: pruned or parametrized by torch.*prune.remove"):
        dcompress.calibrate(model, batches, recipe=RECIPE)
    stats = dcompress.calibrate(model, batches)
    with pytest.raises(EncodeError, match=r"0.weight 6x8 is not there; what torch has pruned"):
        dcompress.save(model.state_dict(), recipe=RECIPE, calibration=stats)


def test_buffers_that_a_look_would_change_stay():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear(6, 4)).train()
    before = copy.deepcopy(model.state_dict())
    dcompress.calibrate(model, [torch.randn(30, 8)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
