"""Every kind of layer compressed with and without its calibration at one step, and run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dcompress.calibration.collect import calibrate
from dcompress.checkpoint import checkpoint_from_state_dict, data_to_tensor
from dcompress.compression import compress_checkpoint
from dcompress.recipe import Recipe
from dcompress.stages import SharedTensor

STEP = 0.6  # in standard deviations of the weights


def inputs(*shape, axis=-1, seed=2):
    """Return inputs of a few directions and a little noise, smooth along the dimensions of an image."""
    generator = torch.Generator().manual_seed(seed)
    n = shape[axis]
    latent = torch.randn(*shape[:axis], max(2, n // 5), *shape[axis:][1:], generator=generator).double()
    for dimension in range(2, len(shape)) if axis == 1 else ():
        for _ in range(2):
            latent = latent + latent.roll(1, dimension)
    mixed = latent.movedim(axis, -1) @ torch.randn(latent.shape[axis], n, generator=generator).double()
    noise = torch.randn(*shape, generator=generator)
    return (mixed / mixed.std()).movedim(-1, axis) + 0.1 * noise


class Product(nn.Module):
    """A weight that is used without a layer."""

    def __init__(self, n_in, n_out, *, turned=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*((n_out, n_in) if turned else (n_in, n_out))))
        self.turned = turned

    def forward(self, seen):
        return functional.linear(seen, self.weight) if self.turned else seen @ self.weight


class Self(nn.Module):
    """Attention of a sequence to itself, or to another one."""

    def __init__(self, *args, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(*args, batch_first=True, **options)

    def forward(self, query, key=None, value=None):
        key = query if key is None else key
        return self.inner(query, key, key if value is None else value)[0]


class Outputs(nn.Module):
    """The outputs of a recurrent layer without its last state."""

    def __init__(self, kind, *args, **options):
        super().__init__()
        self.inner = kind(*args, batch_first=True, **options)

    def forward(self, seen):
        return self.inner(seen)[0]


class Steps(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, kind, *args):
        super().__init__()
        self.inner = kind(*args)

    def forward(self, seen):
        state, outputs = None, []
        for step in seen.unbind(1):
            state = self.inner(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


# What is made, how, and the shapes of what it is called with.
LINEAR = {
    "linear": (nn.Linear, (40, 30), {}, [(160, 40)]),
    "linear, long rows": (nn.Linear, (300, 12), {}, [(400, 300)]),
    "bilinear": (nn.Bilinear, (8, 7, 20), {}, [(120, 8), (120, 7)]),
    "linear function": (Product, (40, 30), {"turned": True}, [(160, 40)]),
    "product": (Product, (40, 30), {}, [(160, 40)]),
    "1d": (nn.Conv1d, (8, 12, 5), {"padding": 2}, [(24, 8, 12)]),
    "1d strided, dilated, groups": (
        nn.Conv1d,
        (8, 24, 5),
        {"stride": 2, "dilation": 2, "groups": 2},
        [(40, 8, 20)],
    ),
    "2d": (nn.Conv2d, (6, 16, 3), {"padding": 1}, [(16, 6, 6, 6)]),
    "2d groups, strided": (nn.Conv2d, (8, 24, 3), {"groups": 2, "stride": 2}, [(24, 8, 9, 9)]),
    "2d depthwise": (nn.Conv2d, (16, 32, 3), {"groups": 16}, [(24, 16, 8, 8)]),
    "3d": (nn.Conv3d, (3, 12, 2), {"stride": (1, 2, 1)}, [(12, 3, 4, 5, 4)]),
    "3d groups": (nn.Conv3d, (4, 16, (1, 2, 3)), {"groups": 2, "padding": 1}, [(12, 4, 4, 4, 4)]),
    "transposed 1d": (nn.ConvTranspose1d, (10, 8, 4), {"stride": 2}, [(24, 10, 9)]),
    "transposed 1d groups": (
        nn.ConvTranspose1d,
        (12, 8, 3),
        {"groups": 2, "dilation": 2, "padding": 1},
        [(24, 12, 9)],
    ),
    "transposed 2d": (
        nn.ConvTranspose2d,
        (8, 6, 3),
        {"stride": 2, "padding": 1, "output_padding": 1},
        [(16, 8, 5, 5)],
    ),
    "transposed 2d groups": (nn.ConvTranspose2d, (12, 6, 3), {"groups": 3}, [(16, 12, 5, 5)]),
    "transposed 3d": (nn.ConvTranspose3d, (6, 5, 2), {"stride": (1, 2, 1)}, [(12, 6, 3, 3, 3)]),
}
RECURRENT = {
    kind.__name__: (Outputs, (kind, 16, 20), options, [(30, 12, 16)])
    for kind, options in ((nn.RNN, {}), (nn.LSTM, {"num_layers": 2}), (nn.GRU, {"bidirectional": True}))
} | {
    kind.__name__: (Steps, (kind, 16, 20), {}, [(30, 8, 16)])
    for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
}
ATTENTION = {
    "to itself": (Self, (24, 4), {}, [(20, 8, 24)]),
    "to another": (Self, (24, 4), {}, [(20, 8, 24), (20, 6, 24)]),
    "other widths": (Self, (24, 4), {"kdim": 20, "vdim": 28}, [(20, 8, 24), (20, 6, 20), (20, 6, 28)]),
}


def made(case):
    kind, args, options, shapes = case
    torch.manual_seed(3)
    module = kind(*args, **options).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape))
    axis = 1 if kind.__name__.startswith("Conv") else -1
    return module, [inputs(*shape, axis=axis, seed=2 + number) for number, shape in enumerate(shapes)]


def compressed(module, calibration, *, states=8, step=STEP):
    """Return the module with its matrices compressed, and the entropy of their labels in bits."""
    result, n_bits = copy.deepcopy(module), 0.0
    state = {name: one for name, one in module.state_dict().items() if one.ndim > 1}
    sizes = {name: step * float(one.std()) for name, one in state.items()}
    # The same price of bits with and without feedback, so that sizes can be compared.
    sets = [f"{name}:step={size},states={states},slope=0.3" for name, size in sizes.items()]
    recipe = Recipe.from_options(sets=sets)
    tensors = compress_checkpoint(checkpoint_from_state_dict(state), recipe, calibration=calibration)
    for name in state:
        shared = tensors[name]
        assert isinstance(shared, SharedTensor)
        with torch.no_grad():
            result.get_parameter(name).copy_(data_to_tensor(shared.gather()))
        counts = np.bincount(shared.labels)
        counts = counts[counts > 0]
        n_bits -= float(counts @ np.log2(counts / shared.labels.size))
    return result, n_bits


def run_error(one, other, seen):
    with torch.no_grad():
        return float((one(*seen) - other(*seen)).square().sum())


@pytest.mark.parametrize("case", LINEAR)
def test_outputs_are_kept_and_their_error_is_known(case):
    module, seen = made(LINEAR[case])
    calibration = calibrate(module, [seen], forward=lambda one, batch: one(*batch), holdout=0)
    assert list(calibration) == ["weight"]
    (fed, fed_bits), (plain, plain_bits) = (compressed(module, one) for one in (calibration, None))
    errors = [run_error(module, one, seen) for one in (fed, plain)]
    assert errors[0] < 0.6 * errors[1]
    assert fed_bits < 1.05 * plain_bits
    for one, error in zip((fed, plain), errors, strict=True):
        change = (one.weight - module.weight).detach().numpy()
        assert calibration["weight"].output_error(change) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("case", RECURRENT | ATTENTION)
def test_outputs_of_layers_of_several_weights_are_kept(case):
    module, seen = made((RECURRENT | ATTENTION)[case])
    calibration = calibrate(module, [seen], forward=lambda one, batch: one(*batch), holdout=0)
    assert set(calibration) == {name for name, one in module.named_parameters() if one.ndim > 1}
    (fed, fed_bits), (plain, plain_bits) = (compressed(module, one) for one in (calibration, None))
    assert run_error(module, fed, seen) < 0.5 * run_error(module, plain, seen)
    assert fed_bits < 1.05 * plain_bits


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_are_looked_up_often_are_kept(kind):
    torch.manual_seed(3)
    module = kind(64, 24, **({"mode": "sum"} if kind is nn.EmbeddingBag else {})).double()
    shares = torch.arange(1, 65).double() ** -1.5  # as of words
    places = torch.multinomial(shares, 1200, replacement=True, generator=torch.Generator().manual_seed(1))
    places = places.reshape(-1, 1)
    calibration = calibrate(module, [places], holdout=0)
    (fed, fed_bits), (plain, plain_bits) = (compressed(module, one) for one in (calibration, None))
    errors = [run_error(module, one, [places]) for one in (fed, plain)]
    assert errors[0] < 0.9 * errors[1]
    assert fed_bits < 1.05 * plain_bits
    change = (fed.weight - module.weight).detach().numpy()
    assert calibration["weight"].output_error(change) == pytest.approx(errors[0], rel=1e-4)


@pytest.mark.parametrize("case", ["linear", "2d groups, strided", "transposed 2d groups", "product"])
@pytest.mark.parametrize("setting", ["bits=3", "method=uniform,bits=3", "integer_bits=0,fraction_bits=3"])
def test_codebooks_of_any_kind_profit(case, setting):
    module, seen = made(LINEAR[case])
    calibration = calibrate(module, [seen], holdout=0)
    state = {"weight": module.weight.detach()}
    errors = []
    for known in (calibration, None):
        recipe = Recipe.from_options(sets=[f"weight:{setting}"])
        tensors = compress_checkpoint(checkpoint_from_state_dict(state), recipe, calibration=known)
        other = copy.deepcopy(module)
        with torch.no_grad():
            other.weight.copy_(data_to_tensor(tensors["weight"].gather()))
        errors.append(run_error(module, other, seen))
    assert errors[0] < 0.6 * errors[1]
