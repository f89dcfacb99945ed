"""Channel pruning: choices and fits against slow, obvious computations; residual nets; files."""

from __future__ import annotations

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dcompress
from dcompress.errors import RecipeError
from dcompress.train import Compressor, PruneStage, cut_channels, prune_channels
from dcompress.train.channel_choice import feature_error, keep_by_features, keep_by_lasso
from dcompress.train.channel_graph import ChannelGraph
from dcompress.train.channel_moments import gather_moments, input_columns
from dcompress.train.channels import _products
from tests.train.loops import digits

METHODS = ("l1", "l2", "features", "lasso")


class Plain(nn.Sequential):
    """Convolutions one after the other, and a linear layer behind a flattening."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 16, 12),
            nn.Tanh(),
            nn.Linear(12, 10),
        )


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(n_out)
        same = n_in == n_out and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x):
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.short(x))


class Residual(nn.Module):
    """A tiny ResNet: two blocks, the second with a shortcut of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.one = Block(8, 8, 1)
        self.two = Block(8, 12, 2)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.two(self.one(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Concatenating(nn.Module):
    """One layer reads the channels of two others; one of these is depthwise."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(1, 5, 3, padding=1)
        self.right = nn.Conv2d(1, 7, 3, padding=1)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.join = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        right = self.depthwise(torch.relu(self.right(x)))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(right)], 1)
        return self.head(torch.relu(self.join(x)).mean((2, 3)))


def images(n=120):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def settled(kind, seed=0):
    """Return a model whose norms have seen data."""
    torch.manual_seed(seed)
    model = kind()
    with torch.no_grad():
        for _ in range(20):
            model(images())
    return model.eval()


def distance(model, other):
    with torch.no_grad():
        a, b = model(images()), other.eval()(images())
    return float(((a - b) ** 2).sum() / (a**2).sum())


def problem(seed, n_channels=7, n_rows=60):
    """Return contributions (rows, channels) that hang together, and wanted outputs a little off their sum."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(n_rows, n_channels)) @ rng.normal(size=(n_channels, n_channels))
    parts *= rng.uniform(0.2, 2, n_channels)
    return parts, parts.sum(1) + 0.1 * rng.normal(size=n_rows)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_kept", [1, 3, 6])
def test_greedy_choice_is_the_slow_one(seed, n_kept):
    parts, wanted = problem(seed)
    kept = list(range(parts.shape[1]))
    while len(kept) > n_kept:
        errors = [((wanted - parts[:, [k for k in kept if k != one]].sum(1)) ** 2).sum() for one in kept]
        kept.remove(kept[int(np.argmin(errors))])
    gram, target = parts.T @ parts, parts.T @ wanted
    assert keep_by_features(gram, target, n_kept) == kept
    slow = ((wanted - parts[:, kept].sum(1)) ** 2).sum()
    assert feature_error(gram, target, wanted @ wanted, kept) == pytest.approx(slow)


@pytest.mark.parametrize("seed", range(2))
def test_lasso_choice_is_one_of_a_fine_path(seed):
    from sklearn.linear_model import Lasso

    parts, wanted = problem(seed)
    most = np.abs(parts.T @ wanted).max() / len(wanted)
    choices = {n_kept: [] for n_kept in range(8)}  # a path may come back to a number of channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for alpha in np.geomspace(most, most * 1e-4, 250):
            lasso = Lasso(alpha, fit_intercept=False, max_iter=10_000, tol=1e-6).fit(parts, wanted)
            used = np.flatnonzero(lasso.coef_).tolist()
            choices[len(used)].append(used)
    seen = [n_kept for n_kept in range(1, 7) if choices[n_kept]]  # a grid may step over a short stretch
    assert len(seen) >= 4
    for n_kept in seen:
        assert keep_by_lasso(parts.T @ parts, parts.T @ wanted, n_kept) in choices[n_kept]


def test_lasso_of_channels_that_do_nothing_or_the_same():
    assert keep_by_lasso(np.zeros((4, 4)), np.zeros(4), 2) == [0, 1]
    parts = np.random.default_rng(0).normal(size=(50, 3))
    parts = np.concatenate([parts, parts, np.zeros((50, 2))], 1)
    wanted = parts.sum(1)
    for n_kept in range(1, 8):
        kept = keep_by_lasso(parts.T @ parts, parts.T @ wanted, n_kept)
        assert len(kept) == len(set(kept)) == n_kept
        assert n_kept > 6 or not {6, 7} & set(kept)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(5, 4), (3, 5)),
        (nn.Linear(5, 4), (3, 2, 5)),
        (nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
        (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1)), (2, 3, 9, 6)),
        (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 7, 6)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 6)),
        (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (2, 3, 11)),
    ],
    ids=str,
)
def test_inputs_as_columns_give_the_outputs(module, shape):
    x = torch.randn(shape)
    rows = input_columns(module, x)
    made = rows @ module.weight.double().flatten(1).T + module.bias.double()
    wanted = module(x)
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        wanted = wanted.flatten(2).transpose(1, 2)
    torch.testing.assert_close(made, wanted.double().reshape(made.shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"), [(Plain, "0"), (Plain, "3"), (Plain, "6"), (Concatenating, "right")]
)
def test_products_are_those_of_single_contributions(kind, name):
    model = settled(kind)
    graph = ChannelGraph(copy.deepcopy(model), (images(1),))
    coupled = next(one for one in graph.groups.values() if name in one.producers)
    (consumer,) = coupled.consumers
    layer = model.get_submodule(consumer)
    caught = []
    hook = layer.register_forward_hook(lambda _module, seen, output: caught.append((seen[0], output)))
    with torch.no_grad():
        model(images())
        hook.remove()
        ((seen, output),) = caught
        bias = layer.bias.reshape([-1] + [1] * (output.ndim - 2))
        places = coupled.consumers[consumer]
        parts = []
        for channels in [*places, sorted(set(range(seen.shape[1])) - {p for each in places for p in each})]:
            alone = torch.zeros_like(seen)
            alone[:, channels] = seen[:, channels]
            parts.append((layer(alone) - bias).double().flatten())
        *parts, others = parts
        wanted = (output - bias).double().flatten()
    moments = gather_moments(graph.model, model, [consumer], {}, [(images(),)])
    gram, target, energy = _products(graph.model, coupled, moments)
    matrix, whole = torch.stack(parts), float(wanted @ wanted)
    np.testing.assert_allclose(gram, (matrix @ matrix.T).numpy() / whole, atol=1e-5)
    np.testing.assert_allclose(target, (matrix @ (wanted - others)).numpy() / whole, atol=1e-5)
    assert energy == pytest.approx(float((wanted - others).square().sum()) / whole, abs=1e-5)


@pytest.mark.parametrize("method", ["l1", "l2"])
def test_norms_choose_the_largest_filters(method):
    model = settled(Plain)
    pruning = prune_channels(model, images(1), 0.5, method=method)
    inputs = [0]
    for name, n_kept in (("0", 4), ("3", 3), ("6", 6)):
        filters = model.get_submodule(name).weight[:, inputs].flatten(1)  # what is still read
        norms = [float(one.detach().norm(1 if method == "l1" else 2)) for one in filters]
        kept = sorted(sorted(range(len(norms)), key=lambda place: -norms[place])[:n_kept])
        assert pruning.kept[name] == kept
        inputs = kept if name != "3" else [channel * 16 + place for channel in kept for place in range(16)]


@pytest.mark.parametrize("kind", [Plain, Residual, Concatenating])
def test_cutting_is_zeroing(kind):
    """What is left computes what the whole model does when nothing comes from the channels that are gone."""
    model = settled(kind)
    pruning = prune_channels(model, images(1), 0.4, method="l2")
    zeroed = copy.deepcopy(model)
    graph = ChannelGraph(copy.deepcopy(model), (images(1),))
    assert [group.name for group in pruning.groups] == list(graph.groups)
    with torch.no_grad():
        for group in pruning.groups:
            for name, inputs in graph.groups[group.name].consumers.items():
                for channel in set(range(group.n_channels)) - set(group.kept):
                    zeroed.get_submodule(name).weight[:, list(inputs[channel])] = 0
    assert distance(zeroed, pruning.model) < 1e-10
    assert distance(model, pruning.model) > 1e-3


def test_fewer_channels_are_smaller_tensors():
    pruning = prune_channels(settled(Residual), images(1), 0.5, method="l1")
    shapes = {name: tuple(tensor.shape) for name, tensor in pruning.model.state_dict().items()}
    assert shapes["stem.weight"] == (4, 1, 3, 3)
    assert shapes["one.first.weight"] == shapes["one.second.weight"] == (4, 4, 3, 3)
    assert shapes["one.first_norm.running_mean"] == (4,)
    assert shapes["two.short.weight"] == (6, 4, 1, 1)
    assert shapes["head.weight"] == (10, 6)
    together = {frozenset(group.producers) for group in pruning.groups}
    assert together == {
        frozenset({"stem", "one.second"}),
        frozenset({"one.first"}),
        frozenset({"two.first"}),
        frozenset({"two.second", "two.short"}),
    }
    assert pruning.skipped == {"head": "nothing reads it: the model's output"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Plain, Residual, Concatenating])
def test_fitted_outputs_are_nearer(kind, method):
    model = settled(kind)
    without = prune_channels(model, images(1), 0.4, method=method, samples=[images()], reconstruct=False)
    fitted = prune_channels(model, images(1), 0.4, method=method, samples=images().split(50))
    assert distance(model, fitted.model) < 0.7 * distance(model, without.model)
    for group in fitted.groups:
        assert 0 <= group.fitted_error <= group.error + 1e-9
    again = prune_channels(model, images(1), 0.4, method=method, samples=images().split(50))
    assert again.kept == fitted.kept
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, fitted.model.state_dict()[name])


def test_the_fit_is_that_of_least_squares():
    model = settled(Plain).double()
    x = images(300).double()
    pruning = prune_channels(model, x[:1], {"3": 0.5}, method="features", samples=[x])
    (group,) = pruning.groups
    columns = [channel * 16 + place for channel in group.kept for place in range(16)]
    with torch.no_grad():
        inputs = nn.Sequential(*list(model)[:6])(x)
        design = torch.cat([inputs[:, columns], torch.ones(300, 1, dtype=torch.float64)], 1)
        wanted = model[6](inputs)
        # Held near the old weights: as if there were more samples that say just that.
        old = torch.cat([model[6].weight[:, columns], model[6].bias[:, None]], 1)
        hold = float((1e-3 * (design**2).sum(0).mean()).sqrt()) * torch.eye(
            design.shape[1], dtype=design.dtype
        )
        slow = torch.linalg.lstsq(torch.cat([design, hold]), torch.cat([wanted, hold @ old.T])).solution
        error = float((design @ slow - wanted).square().sum() / (wanted - model[6].bias).square().sum())
    torch.testing.assert_close(pruning.model[6].weight, slow[:-1].T)
    torch.testing.assert_close(pruning.model[6].bias, slow[-1])
    assert group.fitted_error == pytest.approx(error)


def test_from_training_through_a_file(tmp_path):
    """A CNN on digits: fewer channels, fitted, coded, and read back into a model that is cut likewise."""
    torch.manual_seed(0)
    (x, y), (test_x, test_y) = digits()
    x, test_x = x.reshape(-1, 1, 8, 8), test_x.reshape(-1, 1, 8, 8)
    model = Plain()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(150):
        chosen = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()

    def accuracy(given):
        with torch.no_grad():
            return float((given.eval()(test_x).argmax(1) == test_y).float().mean())

    before = accuracy(model)
    pruning = prune_channels(model, x[:1], 0.4, method="lasso", samples=[x[:400]])
    bare = prune_channels(model, x[:1], 0.4, method="l1")
    assert accuracy(pruning.model) > max(before - 0.1, accuracy(bare.model) + 0.02)
    dcompress.save_model(pruning.model, tmp_path / "small.dcz", recipe={"bits": 6})
    dcompress.save_model(model, tmp_path / "whole.dcz", recipe={"bits": 6})
    assert (tmp_path / "small.dcz").stat().st_size < 0.7 * (tmp_path / "whole.dcz").stat().st_size
    fresh = cut_channels(Plain(), x[:1], pruning.kept)
    assert dcompress.load_model(fresh, tmp_path / "small.dcz") == ([], [])
    assert accuracy(fresh) > before - 0.1
    exact = dcompress.load(dcompress.save(pruning.model.state_dict(), recipe="lossless"))
    fresh.load_state_dict(exact)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(test_x), pruning.model.eval()(test_x))


def test_the_original_is_left_alone_and_the_copy_is_like_it():
    model = settled(Plain)
    model.train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    pruning = prune_channels(model, images(2), 0.5, samples=[images()])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(pruning.model) is Plain
    assert [m.training for m in pruning.model.modules()] == [m.training for m in model.modules()]
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in pruning.model.named_parameters()} == trained
    pruning.model(images()).sum().backward()  # and it learns


def test_sparsity_by_pattern_and_the_last_channel():
    model = settled(Plain)
    kept = prune_channels(model, images(1), {"3": 0.99}, method="l1").kept
    assert {name: len(channels) for name, channels in kept.items()} == {"3": 1}
    assert prune_channels(model, images(1), 0.0, method="l1").groups == ()


def test_it_prints():
    pruning = prune_channels(settled(Plain), images(1), {"0": 0.5}, samples=[images()])
    heading, line = str(pruning).splitlines()
    assert heading.split() == ["layer", "channels", "error", "fitted"]
    assert line.split()[:4] == ["0", "8", "->", "4"]


class Tied(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self[2].weight = self[0].weight


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 2)

    def forward(self, x):
        return self.second(self.first(x).reshape(-1, 4 * 36))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.again(torch.relu(self.again(self.first(x)))))


class Showing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        inner = self.first(x)
        return {"inner": inner, "last": self.last(inner)}


def compressed():
    model = Plain()
    Compressor(model, PruneStage("0.weight", sparsity=0.5))
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Plain, {"sparsity": 1.0}, r"sparsity of '\*' must be a fraction from 0 to below 1, not 1.0"),
        (Plain, {"sparsity": {"9*": 0.5}}, r"pattern '9\*' matches no layer whose channels can be cut"),
        (Plain, {"sparsity": {"8": 0.5}}, "'8': nothing reads it: the model's output"),
        (Plain, {"method": "lass"}, "method must be one of .*did you mean 'lasso'"),
        (Plain, {"method": "lasso"}, "samples are needed"),
        (Plain, {"reconstruct": True}, "reconstruct = True: samples are needed"),
        (Plain, {"samples": []}, "there are no samples"),
        (Plain, {"samples": [torch.full((2, 1, 8, 8), torch.nan)]}, "NaN or infinite values at layer '3'"),
        (Residual, {"sparsity": {"stem": 0.5, "one.second": 0.2}}, "stem, one.second hang together"),
        (Tied, {}, "parameters '0.weight' and '2.weight' are one"),
        (compressed, {}, r"layer '0' is parametrized: call finish\(\)"),
        (Showing, {}, "the outputs change their shapes without some channels of 'first'"),
        (lambda: Plain().state_dict(), {}, "a torch module is wanted, not OrderedDict"),
    ],
)
def test_wrong_use(model, options, message):
    made = model()
    wide = isinstance(made, (Tied, Showing))
    x = torch.randn(1, 4 if isinstance(made, Tied) else 8) if wide else images(1)
    with pytest.raises(RecipeError, match=message):
        prune_channels(made, x, **{"sparsity": 0.5, "method": "l1", **options})


def test_a_size_in_the_code_is_named():
    with pytest.raises(RecipeError, match="does not run without some channels of 'first'"):
        prune_channels(Fixed(), images(1), 0.5, method="l1")


def test_a_layer_that_is_used_twice_is_left_alone():
    with pytest.raises(
        RecipeError, match=r"no channels that can be cut: .*layer 'again' is used more than once"
    ):
        prune_channels(Twice(), torch.randn(3, 8), 0.5, method="l1")


def test_channels_that_are_not_there():
    with pytest.raises(RecipeError, match="channels of '3' must be some of 0 to 5, each once"):
        cut_channels(Plain(), images(1), {"3": [2, 6]})
    with pytest.raises(RecipeError, match="layer '8' has no channels that can be cut: nothing reads it"):
        cut_channels(Plain(), images(1), {"8": [0]})


def test_without_torch_pruning(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install 'dcompress\[channels\]'"):
        prune_channels(Plain(), images(1), 0.5, method="l1")


class Padded(nn.Module):
    """A shortcut that pads with channels of zeros ("option A" of He et al.): no graph tells of that."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.second(torch.relu(self.first(x)))
        missing = y.shape[1] - x.shape[1]
        padded = nn.functional.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))
        return self.head(torch.relu(y + padded).mean((2, 3)))


def test_channels_that_torch_pruning_loses_sight_of_are_left_alone():
    pruning = prune_channels(settled(Padded), images(4), 0.5, method="l2")
    assert [group.name for group in pruning.groups] == ["first"]  # what is inside of the block is fine
    assert "torch-pruning does not follow" in pruning.skipped["stem"]


def test_channels_that_change_places():
    class Flipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 3)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)).flip(1))

    with pytest.raises(RecipeError, match="does not follow how the channels of 'first' flow"):
        prune_channels(settled(Flipping), images(2), 0.5, method="l1")


def test_transposed_convolutions_are_cut_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    pruning = prune_channels(model, images(2), 0.4, method="l2")
    assert [tuple(p.shape) for p in pruning.model.parameters() if p.ndim > 1] == [
        (4, 1, 3, 3),
        (4, 3, 3, 3),
        (2, 3, 1, 1),
    ]
    fitted = prune_channels(model, images(2), 0.4, method="lasso", samples=[images()])
    assert [group.name for group in fitted.groups] == ["2"]
    assert fitted.skipped["0"] == "no convolution and no linear layer reads it"
