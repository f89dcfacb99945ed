"""Recurrent layers compute with a second list of their weights: it follows masks, codebooks and rounding."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import dcompress
import dcompress.numpy
from dcompress.errors import RecipeError
from dcompress.train import Compressor, PenaltyStage, PruneStage, QuantizeStage, ShareStage
from tests.train.loops import digits

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class Reader(nn.Module):
    """Reads the rows of an image, one after the other, there and back."""

    def __init__(self, kind="LSTM", **settings):
        super().__init__()
        self.rnn = KINDS[kind](8, 12, batch_first=True, bidirectional=True, **settings)
        self.head = nn.Linear(24, 10)

    def forward(self, images):
        return self.head(self.rnn(images.reshape(-1, 8, 8))[0].mean(1))


def reader(kind="LSTM", seed=0, **settings):
    torch.manual_seed(seed)
    return Reader(kind, **settings)


def plain_twin(model, kind, **settings):
    """Return a plain model with the weights that another uses now."""
    twin = Reader(kind, **settings)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            path, _, attribute = name.rpartition(".")
            parameter.copy_(getattr(model.get_submodule(path), attribute))
    return twin


def train(model, compressor, optimizer, first, last, forward=None):
    (x, y), _ = digits()
    for step in range(first, last):
        chosen = torch.randint(len(y), (32,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = cross_entropy((forward or model)(x[chosen]), y[chosen]) + compressor.regularizer()
        loss.backward()
        optimizer.step()
        compressor.step()


STAGES = [
    PruneStage(
        "rnn.weight_*", sparsity=0.75, importance="taylor", schedule="cubic", begin=2, end=10, every=4
    ),
    PruneStage("rnn.weight_ih_l0", granularity="4x1", n_pruned=3),
    PenaltyStage("rnn.weight_hh_*", l1=1e-4),
    ShareStage("rnn.weight_hh_*", bits=3, begin=12),
    QuantizeStage("rnn.weight_ih_*", bits=4, begin=12),
]


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bias": False}], ids=["one", "two"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_with_what_is_made_of_its_weights(kind, settings):
    (x, y), _ = digits()
    model = reader(kind, **settings)
    keys = list(model.state_dict())
    compressor = Compressor(model, STAGES)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in (0, 3, 11, 13):
        train(model, compressor, optimizer, compressor.n_steps, step)
        twin = plain_twin(model, kind, **settings)
        assert torch.equal(model(x[:20]), twin(x[:20])), step
        # The gradients are those of the plain layer where weights are kept, and none elsewhere.
        model.zero_grad()
        cross_entropy(model(x[:20]), y[:20]).backward()
        cross_entropy(twin(x[:20]), y[:20]).backward()
        for name, mask in compressor.masks().items():
            if step == 13:
                break  # gradients of codebooks and of rounded weights are sums, and cut
            attribute = name.removeprefix("rnn.")
            grad = model.rnn.parametrizations[attribute].original.grad
            assert torch.allclose(grad, twin.get_parameter(name).grad * mask, atol=1e-7)
            assert grad.any()
    masks = compressor.masks()
    outputs = model(x[:50])
    assert masks["rnn.weight_ih_l0"].float().mean() == pytest.approx(0.25, abs=0.01)
    assert compressor.finish() is model
    assert type(model.rnn) is KINDS[kind]
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x[:50]), outputs)
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert model.get_parameter(name).unique().numel() <= (9 if "hh" in name else 16)
    # Plain in every respect: its list is of its parameters again.
    listed = [id(weight) for weight in model.rnn._flat_weights]
    assert listed == [id(parameter) for parameter in model.rnn.parameters()]
    pickle.loads(pickle.dumps(model))
    before = model(x[:50])
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()
    assert not torch.equal(model(x[:50]), before)


def test_from_training_to_a_file_and_back(tmp_path):
    (x, _), (x_test, y_test) = digits()
    model = reader("GRU")
    compressor = Compressor(
        model,
        [
            PruneStage("rnn.weight_*", sparsity=0.6, schedule="cubic", begin=100, end=300, every=20),
            ShareStage("rnn.weight_*", bits=4, begin=350),
        ],
    )
    train(model, compressor, torch.optim.Adam(model.parameters(), 0.01), 0, 500)
    dcompress.save_model(compressor.finish(), tmp_path / "m.dcz", recipe=compressor.recipe.encode)
    other = reader("GRU", seed=5)
    dcompress.load_model(other, tmp_path / "m.dcz")
    assert torch.equal(other(x), model(x))
    arrays = dcompress.numpy.load_file(tmp_path / "m.dcz")
    assert (arrays["rnn.weight_hh_l0"] == 0).mean() == pytest.approx(0.6, abs=0.01)
    assert (other(x_test).argmax(1) != y_test).float().mean() < 0.15  # dense: 7 %


def test_a_copy_in_the_middle_of_training_is_a_model_of_its_own():
    (x, _), _ = digits()
    model = reader()
    compressor = Compressor(model, STAGES)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    train(model, compressor, optimizer, 0, 5)
    for moved in (False, True):
        twin = copy.deepcopy(model.double().float() if moved else model)
        before = twin(x[:9])
        assert torch.equal(before, model(x[:9]))
        train(model, compressor, optimizer, compressor.n_steps, compressor.n_steps + 2)
        assert torch.equal(twin(x[:9]), before)
        assert not torch.equal(model(x[:9]), before)


def test_a_resumed_run_changes_no_bit():
    def start(seed):
        model = reader("LSTM", seed, num_layers=2)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        return model, Compressor(model, STAGES, optimizer=optimizer), optimizer

    model, compressor, optimizer = start(0)
    train(model, compressor, optimizer, 0, 7)
    states = copy.deepcopy([one.state_dict() for one in (model, optimizer, compressor)])
    train(model, compressor, optimizer, 7, 14)
    whole = dcompress.save(compressor.finish().state_dict(), recipe="lossless")
    model, compressor, optimizer = start(1)
    for one, state in zip((model, optimizer, compressor), states, strict=True):
        one.load_state_dict(state)
    train(model, compressor, optimizer, 7, 14)
    assert dcompress.save(compressor.finish().state_dict(), recipe="lossless") == whole


def test_compiled_autocast_packed_and_functional():
    (x, _), _ = digits()
    model = reader()
    compressor = Compressor(model, PruneStage("rnn.weight_*", sparsity=0.5))
    plain = model(x[:6])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about graph breaks
        compiled = torch.compile(model, backend="aot_eager")
        assert torch.allclose(compiled(x[:6]), plain, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(x[:6]).float(), plain, atol=0.05)
    packed = nn.utils.rnn.pack_padded_sequence(x[:6].reshape(6, 8, 8), [8, 7, 7, 5, 2, 1], batch_first=True)
    twin = plain_twin(model, "LSTM")
    assert torch.equal(model.rnn(packed)[0].data, twin.rnn(packed)[0].data)
    swapped = {name: parameter * 2 for name, parameter in model.named_parameters()}
    doubled = {name: parameter * 2 for name, parameter in twin.named_parameters()}
    assert torch.equal(functional_call(model, swapped, (x[:6],)), functional_call(twin, doubled, (x[:6],)))
    assert torch.equal(model(x[:6]), plain)
    with pytest.raises(RuntimeError, match=r"input\.size"):
        model.rnn(torch.ones(2, 3, 9))
    copy.deepcopy(model)
    compressor.finish()


def test_a_penalty_alone_leaves_the_layer_as_it_is():
    model = reader()
    compressor = Compressor(model, PenaltyStage("rnn.weight_*", l1=1e-3))
    assert type(model.rnn) is nn.LSTM
    compressor.regularizer().backward()
    assert torch.equal(model.rnn.weight_ih_l0.grad, 1e-3 * model.rnn.weight_ih_l0.sign())
    compressor.finish()


@pytest.mark.parametrize("importance", ["apoz", "activation_mean"])
def test_gates_are_no_channels(importance):
    model = reader("GRU")
    stage = PruneStage("rnn.weight_hh_l0", sparsity=0.5, granularity="filter", importance=importance, begin=1)
    with pytest.raises(RecipeError, match=r"'rnn.weight_hh_l0'.*the rows of a GRU are gates"):
        Compressor(model, stage)
    assert type(model.rnn) is nn.GRU


def test_a_function_of_the_users_own_sees_gradients_but_no_channels():
    model = reader("GRU")
    seen = []

    def own(sample):
        seen.append(sample)
        return sample.grad.abs()

    compressor = Compressor(
        model, PruneStage("rnn.weight_hh_l0", sparsity=0.5, granularity="channel", importance=own, begin=2)
    )
    train(model, compressor, torch.optim.SGD(model.parameters(), 0.1), 0, 2)
    assert seen[0].grad.shape == (36, 12)
    assert seen[0].activation is None
    assert compressor.sparsity() == 0.5
    compressor.finish()


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells_have_no_second_list(kind):
    cell = kind(3, 4)
    compressor = Compressor(cell, PruneStage("weight_*", sparsity=0.5))
    out = cell(torch.ones(2, 3))
    compressor.finish()
    same = cell(torch.ones(2, 3))
    assert all(map(torch.equal, out, same)) if isinstance(out, tuple) else torch.equal(out, same)
    assert (cell.weight_ih == 0).float().mean() == 0.5


def test_a_recipe_that_fails_leaves_the_layer_as_it_was():
    model = reader()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    (x, _), _ = digits()
    before = model.rnn(x[:5].reshape(5, 8, 8))[0]
    with pytest.raises(RecipeError, match="NaN"):
        Compressor(model, [PruneStage("rnn.weight_*", sparsity=0.5), ShareStage("head.weight", bits=2)])
    assert type(model.rnn) is nn.LSTM
    assert torch.equal(model.rnn(x[:5].reshape(5, 8, 8))[0], before)
    assert [id(one) for one in model.rnn._flat_weights] == [id(one) for one in model.rnn.parameters()]


def test_a_layer_with_a_forward_of_its_own():
    class Doubling(nn.GRU):
        def forward(self, x):
            return super().forward(2 * x)[0]

    torch.manual_seed(0)
    layer, x = Doubling(3, 4), torch.ones(2, 1, 3)
    compressor = Compressor(layer, PruneStage("weight_*", sparsity=0.5))
    out = layer(x)
    twin = nn.GRU(3, 4)
    twin.load_state_dict({name: getattr(layer, name).detach() for name in twin.state_dict()})
    assert torch.equal(out, twin(2 * x)[0])
    assert type(compressor.finish()) is Doubling
    assert torch.equal(layer(x), out)
