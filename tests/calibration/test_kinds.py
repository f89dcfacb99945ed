"""Every kind of layer against loops, and against what its outputs really do when its weights change."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from dcompress.calibration.collect import calibrate
from tests.calibration.naive import hidden_states, outer_sum, patches

# torch says these once, of its own kernels.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]


def make(kind, *args, seed=1, **options):
    torch.manual_seed(seed)
    return kind(*args, **options).double()


def normal(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3


def check_sums(moments, vectors_by_group):
    """Compare statistics with those of vectors."""
    assert moments.n_groups == len(vectors_by_group)
    assert len(moments.second) == 1
    for group, vectors in enumerate(vectors_by_group):
        second, total, count = outer_sum(vectors)
        np.testing.assert_allclose(moments.second[0][group], second, rtol=2e-6, atol=1e-5)
        np.testing.assert_allclose(moments.total[group], total, rtol=2e-6, atol=1e-5)
        np.testing.assert_allclose(moments.mean[group], total / count, rtol=2e-6, atol=1e-5)
        assert moments.n_vectors[group] == count


def check_error(module, moments, name, run):
    """Compare the predicted error of outputs with the real one, for a random change of a weight."""
    changed = copy.deepcopy(module)
    weight = changed.get_parameter(name)
    change = 0.1 * normal(*weight.shape, seed=3)
    with torch.no_grad():
        weight += change
        real = float((run(changed) - run(module)).square().sum())
    assert moments.output_error(change.numpy()) == pytest.approx(real, rel=1e-5)
    cut = moments.matrices(change.numpy())
    np.testing.assert_array_equal(moments.weight(cut), change.numpy())


CONVOLUTIONS = {
    "1d": (nn.Conv1d, (4, 6, 3), {}, (2, 4, 8)),
    "1d strided, dilated, groups": (
        nn.Conv1d,
        (4, 6, 3),
        {"stride": 2, "dilation": 2, "padding": 3, "groups": 2},
        (2, 4, 9),
    ),
    "1d same, even kernel": (nn.Conv1d, (2, 3, 4), {"padding": "same"}, (2, 2, 7)),
    "2d": (nn.Conv2d, (3, 4, (2, 3)), {"padding": (1, 0), "stride": (2, 1)}, (2, 3, 5, 6)),
    "2d valid": (nn.Conv2d, (3, 4, 2), {"padding": "valid", "dilation": (1, 2)}, (2, 3, 5, 6)),
    "2d depthwise": (nn.Conv2d, (4, 8, 3), {"groups": 4, "padding": 1}, (2, 4, 5, 4)),
    "2d same, dilated": (nn.Conv2d, (2, 4, (2, 3)), {"padding": "same", "dilation": (3, 2)}, (2, 2, 6, 7)),
    "3d": (nn.Conv3d, (2, 4, (1, 2, 3)), {"stride": (1, 2, 1), "padding": (0, 1, 1)}, (2, 2, 3, 4, 4)),
    "3d groups": (nn.Conv3d, (4, 4, 2), {"groups": 2, "dilation": (1, 1, 2)}, (1, 4, 3, 3, 4)),
    "no output at all": (nn.Conv1d, (2, 2, 1), {}, (0, 2, 3)),
} | {
    f"2d {mode}": (nn.Conv2d, (2, 3, 3), {"padding": 1, "padding_mode": mode}, (2, 2, 4, 5))
    for mode in ("reflect", "replicate", "circular")
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(case):
    kind, args, options, shape = CONVOLUTIONS[case]
    module, seen = make(kind, *args, **options), normal(*shape)
    moments = calibrate(module, [seen], holdout=0)["weight"]
    assert moments.kinds == ("convolution",)
    if seen.numel():
        check_sums(moments, patches(module, seen))
    else:
        assert moments.n_vectors.tolist() == [0]
    check_error(module, moments, "weight", lambda one: one(seen))


@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_same_padding_by_copies(mode):
    module, seen = make(nn.Conv1d, 2, 3, 4, padding="same", padding_mode=mode), normal(2, 2, 7)
    check_error(module, calibrate(module, [seen])["weight"], "weight", lambda one: one(seen))


@pytest.mark.parametrize("case", ["2d", "2d depthwise", "1d strided, dilated, groups", "transposed"])
def test_means_and_variances_of_outputs(case):
    kind, args, options, shape = (CONVOLUTIONS | {"transposed": TRANSPOSED["2d groups"]})[case]
    module, seen = make(kind, *args, bias=False, **options), normal(*shape)
    moments = calibrate(module, [seen])["weight"]
    weight = module.weight.detach().numpy()
    outputs = module(seen).detach().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(moments.output_mean(weight), outputs.mean(1), rtol=1e-5)
    np.testing.assert_allclose(moments.output_variance(weight), outputs.var(1, correction=0), rtol=1e-4)


def test_an_image_without_a_batch():
    module, seen = make(nn.Conv2d, 2, 3, 3), normal(2, 5, 5)
    check_sums(calibrate(module, [seen])["weight"], patches(module, seen[None]))


def test_large_inputs_are_unfolded_piece_by_piece(monkeypatch):
    module, seen = make(nn.Conv2d, 2, 3, 3), normal(7, 2, 5, 5)
    monkeypatch.setattr("dcompress.calibration.columns._MOST_VALUES", 2 * 9 * 9 * 2)
    check_sums(calibrate(module, [seen])["weight"], patches(module, seen))


TRANSPOSED = {
    "1d": (nn.ConvTranspose1d, (3, 4, 3), {}, (2, 3, 5)),
    "1d all": (
        nn.ConvTranspose1d,
        (4, 6, 3),
        {"stride": 3, "padding": 2, "output_padding": 2, "dilation": 2, "groups": 2},
        (2, 4, 5),
    ),
    "2d": (nn.ConvTranspose2d, (2, 3, (2, 3)), {"stride": 2, "padding": (0, 1)}, (2, 2, 3, 4)),
    "2d groups": (nn.ConvTranspose2d, (4, 2, 3), {"groups": 2, "stride": (1, 2)}, (2, 4, 3, 3)),
    "2d, much padding": (nn.ConvTranspose2d, (2, 2, 2), {"padding": 3}, (2, 2, 8, 8)),
    "3d": (nn.ConvTranspose3d, (2, 2, 2), {"stride": (1, 2, 1), "padding": 1}, (1, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions(case):
    kind, args, options, shape = TRANSPOSED[case]
    module, seen = make(kind, *args, **options), normal(*shape)
    moments = calibrate(module, [seen])["weight"]
    assert moments.layout == "transposed"
    check_error(module, moments, "weight", lambda one: one(seen))


def test_a_transposed_convolution_that_is_told_its_size():
    module, seen = make(nn.ConvTranspose2d, 2, 3, 3, stride=2), normal(1, 2, 4, 4)

    def run(one, *_):
        return one(seen, output_size=[10, 9])

    check_error(module, calibrate(module, [None], forward=run)["weight"], "weight", run)


def test_linear_of_any_number_of_dimensions():
    module, seen = make(nn.Linear, 3, 4), normal(2, 5, 3)
    moments = calibrate(module, [seen])["weight"]
    check_sums(moments, [seen.reshape(-1, 3).numpy()])
    check_error(module, moments, "weight", lambda one: one(seen))
    check_sums(calibrate(module, [seen[0, 0]])["weight"], [seen[0, :1].numpy()])


def test_linear_of_nested_tensors():
    module = make(nn.Linear, 3, 4)
    parts = [normal(2, 3), normal(4, 3, seed=5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    check_sums(calibrate(module, [nested])["weight"], [torch.cat(parts).numpy()])


def test_bilinear():
    module, pair = make(nn.Bilinear, 3, 2, 4), (normal(5, 3), normal(5, 2, seed=4))

    def run(one, *_):
        return one(*pair)

    moments = calibrate(module, [None], forward=run)["weight"]
    check_sums(moments, [[np.outer(a, b).ravel() for a, b in zip(*map(np.asarray, pair), strict=True)]])
    check_error(module, moments, "weight", run)


def test_embedding():
    module, seen = make(nn.Embedding, 7, 3, padding_idx=0), torch.tensor([[1, 2, 2], [6, 0, 1]])
    moments = calibrate(module, [seen])["weight"]
    assert moments.row_weights.tolist() == [1, 2, 2, 0, 0, 0, 1]
    assert moments.second == ()
    check_error(module, moments, "weight", lambda one: one(seen))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("shaped", [False, True])
def test_embedding_bags(mode, shaped):
    module = make(nn.EmbeddingBag, 9, 3, mode=mode, padding_idx=8)
    places = torch.tensor([1, 2, 8, 3, 4, 5])  # nothing twice in a bag: there the rows do not mix
    offsets = None if shaped else torch.tensor([0, 4])
    places = places.reshape(2, 3) if shaped else places
    moments = calibrate(module, [None], forward=lambda one, _: one(places, offsets))["weight"]
    sizes = [2, 3] if shaped else [3, 2]
    bags = [[1, 2], [3, 4, 5]] if shaped else [[1, 2, 3], [4, 5]]
    wanted = np.zeros(9)
    for size, bag in zip(sizes, bags, strict=True):
        wanted[bag] = 1 / size**2 if mode == "mean" else 1
    np.testing.assert_allclose(moments.row_weights, wanted)


def test_an_embedding_bag_with_weights_and_a_last_offset():
    module = make(nn.EmbeddingBag, 5, 2, mode="sum", include_last_offset=True)
    places, offsets, weights = torch.tensor([0, 1, 1, 4]), torch.tensor([0, 1, 4]), normal(4)

    def run(one, _):
        return one(places, offsets, per_sample_weights=weights)

    moments = calibrate(module, [None], forward=run)["weight"]
    squares = weights.square().tolist()
    np.testing.assert_allclose(moments.row_weights, [squares[0], squares[1] + squares[2], 0, 0, squares[3]])


RECURRENT = {
    f"{kind.__name__} {options}": (kind, options)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for options in ({}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, {"bias": False})
} | {"relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True})}


def check_recurrent(module, calibration, sequences, states=None):
    vectors = {}
    outputs = []
    for number, sequence in enumerate(sequences):
        state = None if states is None else [one[:, number] for one in states]
        found, output = hidden_states(module, sequence, state)
        outputs.append(output)
        for name, some in found.items():
            vectors.setdefault(name, []).extend(some)
    assert set(calibration) == set(vectors)
    for name, some in vectors.items():
        check_sums(calibration[name], [some])
    return outputs


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_layers(case, batch_first):
    kind, options = RECURRENT[case]
    module, seen = make(kind, 3, 4, batch_first=batch_first, **options), normal(5, 2, 3)
    calibration = calibrate(module, [seen.transpose(0, 1) if batch_first else seen])
    check_recurrent(module, calibration, seen.unbind(1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("sorted_by_length", [False, True])
def test_packed_sequences_with_states(kind, sorted_by_length):
    module = make(kind, 3, 4, num_layers=2, bidirectional=True)
    lengths = [5, 3, 2] if sorted_by_length else [2, 5, 3]
    sequences = [normal(n, 3, seed=n) for n in lengths]
    states = [normal(4, 3, 4, seed=9), normal(4, 3, 4, seed=8)]
    given = tuple(states) if kind is nn.LSTM else states[0]
    packed = pack_sequence(sequences, enforce_sorted=sorted_by_length)
    calibration = calibrate(module, [packed], forward=lambda one, batch: one(batch, given))
    outputs = check_recurrent(module, calibration, sequences, states)
    real = module(packed, given)[0]
    again = pack_sequence([torch.stack(one) for one in outputs], enforce_sorted=sorted_by_length)
    torch.testing.assert_close(real.data.detach(), again.data)


def test_a_sequence_without_a_batch_and_padding_that_is_packed_away():
    module = make(nn.GRU, 3, 4)
    seen = normal(5, 3)
    check_recurrent(module, calibrate(module, [seen]), [seen])
    state = normal(1, 4, seed=5)
    calibration = calibrate(module, [seen], forward=lambda one, batch: one(batch, state))
    check_recurrent(module, calibration, [seen], [state[:, None]] * 2)
    padded = normal(4, 2, 3)
    packed = pack_padded_sequence(padded, [4, 2])
    check_recurrent(module, calibrate(module, [packed]), [padded[:, 0], padded[:2, 1]])


def test_an_lstm_with_projection():
    module, seen = make(nn.LSTM, 3, 5, num_layers=2, proj_size=2), normal(4, 1, 3)
    calibration = calibrate(module, [seen])
    vectors = {name: [] for name in module.state_dict() if name.startswith("weight")}
    state = dict(module.named_parameters())
    steps = list(seen[:, 0])
    with torch.no_grad():
        for layer in range(2):
            hidden, memory, outputs = torch.zeros(2).double(), torch.zeros(5).double(), []
            for step in steps:
                vectors[f"weight_ih_l{layer}"].append(step.numpy())
                vectors[f"weight_hh_l{layer}"].append(hidden.numpy())
                gates = state[f"weight_ih_l{layer}"] @ step + state[f"bias_ih_l{layer}"]
                gates = gates + state[f"weight_hh_l{layer}"] @ hidden + state[f"bias_hh_l{layer}"]
                i, f, g, o = gates.reshape(4, 5)
                memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
                whole = o.sigmoid() * memory.tanh()
                vectors[f"weight_hr_l{layer}"].append(whole.numpy())
                hidden = state[f"weight_hr_l{layer}"] @ whole
                outputs.append(hidden)
            steps = outputs
    for name, some in vectors.items():
        check_sums(calibration[name], [some])
    torch.testing.assert_close(torch.stack(steps)[:, None], module(seen)[0].detach())


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind):
    module, seen, hidden = make(kind, 3, 4), normal(2, 3), normal(2, 4, seed=6)
    state = (hidden, hidden + 1) if kind is nn.LSTMCell else hidden
    calibration = calibrate(module, [0, 1], forward=lambda one, n: one(seen, state) if n else one(seen))
    check_sums(calibration["weight_ih"], [[*seen.numpy(), *seen.numpy()]])
    check_sums(calibration["weight_hh"], [[*np.zeros((2, 4)), *hidden.numpy()]])


def attention_outputs(module, query, key, value, mask=None):
    """Return what the output projection sees, head by head, for one sample."""
    size = module.embed_dim // module.num_heads
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        weights = module.in_proj_weight.chunk(3)
    biases = module.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    heads = []
    for head in range(module.num_heads):
        here = slice(head * size, (head + 1) * size)
        scores = q[:, here] @ k[:, here].T / size**0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, here])
    return torch.cat(heads, 1).detach().numpy()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention(batch_first, cross, need_weights):
    module = make(nn.MultiheadAttention, 8, 2, batch_first=batch_first)
    nn.init.normal_(module.in_proj_bias)
    query = normal(2, 5, 8)
    key, value = (normal(2, 4, 8, seed=4), normal(2, 4, 8, seed=5)) if cross else (query, query)

    def run(one, _=None):
        some = {id(x): x if batch_first else x.transpose(0, 1) for x in (query, key, value)}
        return one(*(some[id(x)] for x in (query, key, value)), need_weights=need_weights)[0]

    calibration = calibrate(module, [None], forward=run)
    shares = [x.reshape(-1, 8).numpy() for x in (query, key, value)]
    check_sums(calibration["in_proj_weight"], shares if cross else shares[:1])
    vectors = [attention_outputs(module, query[n], key[n], value[n]) for n in range(2)]
    check_sums(calibration["out_proj.weight"], [np.concatenate(vectors)])
    check_error(module, calibration["out_proj.weight"], "out_proj.weight", run)


def test_attention_to_itself_and_to_another():
    module = make(nn.MultiheadAttention, 4, 2)
    one, other = normal(3, 2, 4), normal(5, 2, 4, seed=5)
    calls = [(one, one, one), (one, other, other)]
    moments = calibrate(module, calls, forward=lambda model, batch: model(*batch))["in_proj_weight"]
    one, other = one.reshape(-1, 4).numpy(), other.reshape(-1, 4).numpy()
    check_sums(moments, [[*one, *one], [*one, *other], [*one, *other]])


def test_attention_with_other_widths_and_a_mask():
    module = make(nn.MultiheadAttention, 4, 2, kdim=3, vdim=5, batch_first=True)
    query, key, value = normal(1, 4, 4), normal(1, 4, 3), normal(1, 4, 5)
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)

    def run(one, _=None):
        return one(query, key, value, attn_mask=mask)[0]

    calibration = calibrate(module, [None], forward=run)
    for name, seen in (("q", query), ("k", key), ("v", value)):
        check_sums(calibration[f"{name}_proj_weight"], [seen[0].numpy()])
    vectors = attention_outputs(module, query[0], key[0], value[0], mask)
    check_sums(calibration["out_proj.weight"], [vectors])


def test_no_fast_path_hides_the_layers_of_a_transformer():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with torch.no_grad():
        model = nn.TransformerEncoder(layer, 2)
        seen, padding = torch.randn(2, 5, 8), torch.arange(5).expand(2, 5) > 2
        calibration = calibrate(
            model.eval(), [seen], forward=lambda one, x: one(x, src_key_padding_mask=padding)
        )
    assert not calibration.skipped
    assert all(one.n_vectors.tolist() == [10] for one in calibration.values())
    assert len(calibration) == 8


def test_functions_that_use_a_weight_without_a_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Parameter(normal(4, 3))
            self.product = nn.Parameter(normal(3, 4))
            self.turned = nn.Parameter(normal(4, 3, seed=7))
            self.added = nn.Parameter(normal(3, 4, seed=8))
            self.kernel = nn.Parameter(normal(2, 1, 3))
            self.rows = nn.Parameter(normal(6, 3))
            self.other = nn.Parameter(normal(3, 3))

        def forward(self, seen):
            functional = nn.functional
            image = functional.conv1d(seen[:, None], self.kernel, padding="same")
            return (
                functional.linear(seen.float(), self.linear.float()),
                seen @ self.product,
                torch.matmul(seen, self.turned.T),
                torch.addmm(torch.zeros(4).double(), seen, self.added),
                image,
                functional.embedding(torch.tensor([1, 1, 5]), self.rows),
                self.other * seen.sum(),
            )

    model, seen = Model(), normal(2, 3)
    with pytest.warns(UserWarning, match=r"other \(used by mul, which is not read\)"):
        calibration = calibrate(model, [seen])
    assert calibration["rows"].row_weights.tolist() == [0, 2, 0, 0, 0, 1]
    for place, name in enumerate(("linear", "product", "turned", "added", "kernel", "rows")):
        check_error(model, calibration[name], name, lambda one, place=place: one(seen)[place].double())
