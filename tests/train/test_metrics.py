"""What compression did to a model, in figures: against slow, obvious counts."""

from __future__ import annotations

import copy
import heapq
import math

import numpy as np
import pytest
import torch
from torch import nn

import dcompress
from dcompress.errors import DecodeError, EncodeError
from dcompress.train import measure, prune_channels
from dcompress.train.stage_bits import count_stages
from tests.train.loops import batch, two_layers


def huffman_bits(symbols):
    """Return what a Huffman code of these symbols takes: the weights of all inner nodes of the tree."""
    heap = [symbols.count(one) for one in set(symbols)]
    if len(heap) == 1:
        return len(symbols)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def slow_stages(weights, gap_bits):
    """Return bits of P, P+Q and P+Q+H, weight by weight."""
    flat = weights.reshape(-1).tolist()
    values = sorted({one for one in flat if one})
    labels, gaps = [], []
    run = 0
    for one in flat:
        if one:
            gaps.append(run)
            labels.append(values.index(one))
            run = 0
        elif run == 2**gap_bits - 1:  # this zero is a filler
            gaps.append(run)
            labels.append("filler")
            run = 0
        else:
            run += 1
    while labels and labels[-1] == "filler":  # nothing follows that would need it
        labels.pop()
        gaps.pop()
    n_labels = len(values) + ("filler" in labels)
    label_bits = max(1, math.ceil(math.log2(n_labels)))
    bits = 32 * sum(1 for one in flat if one)
    shared = 32 * len(values) + len(labels) * label_bits
    coded = 32 * len(values) + huffman_bits(labels)
    if 0 in flat:
        shared += len(gaps) * gap_bits
        coded += huffman_bits(gaps)
    return bits, shared, coded


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("shape", "gap_bits"), [((30, 40), 5), ((6, 5, 3, 7), 8)])
@pytest.mark.parametrize("density", [0.01, 0.1, 1.0])
def test_stages_are_those_of_a_slow_count(seed, shape, gap_bits, density):
    rng = np.random.default_rng(seed)
    weights = rng.choice(rng.normal(size=11).astype(np.float32), shape)
    weights[rng.random(shape) >= density] = 0
    weights.flat[[3, 7]] = 0.5, -0.0 if density < 1 else 0.5
    bits = count_stages(weights.view(np.uint32).reshape(-1), shape)
    slow = slow_stages(weights, gap_bits)
    assert bits.dense == 32 * weights.size
    assert bits.n_kept == np.count_nonzero(weights)
    if slow[1] < slow[0]:
        assert (bits.pruned, bits.shared, bits.coded) == slow
    else:
        assert (bits.pruned, bits.shared, bits.coded) == (slow[0],) * 3


def test_the_densities_of_the_paper_give_its_ratios():
    """LeNet-300-100 at 8, 9 and 26 %, 64 values: 12x by pruning, 32x with sharing, 40x with codes."""
    rng = np.random.default_rng(0)
    ratios = np.zeros(4)
    for shape, density in (((300, 784), 0.08), ((100, 300), 0.09), ((10, 100), 0.26)):
        n = math.prod(shape)
        values = np.sort(rng.normal(size=64)).astype(np.float32)
        weights = np.zeros(n, np.float32)
        places = rng.choice(n, int(density * n), replace=False)
        spread = np.clip(rng.normal(32, 9, places.size), 0, 63).astype(int)
        weights[places] = values[spread]
        bits = count_stages(weights.view(np.uint32), shape)
        ratios += bits.dense, bits.pruned, bits.shared, bits.coded
    assert ratios[0] / ratios[1:] == pytest.approx([12, 32, 40], rel=0.12)


def test_what_is_not_shared_keeps_its_bits():
    vector = np.ones(50, np.float32)
    vector[:10] = 0
    bits = count_stages(vector.view(np.uint32), (50,))
    assert (bits.pruned, bits.shared, bits.coded, bits.n_kept) == (1600, 1600, 1600, 40)
    weights = np.random.default_rng(0).normal(size=(80, 80)).astype(np.float16)
    bits = count_stages(weights.view(np.uint16).reshape(-1), (80, 80))
    assert (bits.dense, bits.label_bits) == (16 * 6400, bits.label_bits)
    empty = count_stages(np.zeros(0, np.uint32), (0, 4))
    assert empty.dense == empty.coded == 0
    zero = count_stages(np.zeros(64, np.uint32), (8, 8))
    assert (zero.pruned, zero.shared, zero.coded) == (0, 0, 0)


@pytest.fixture
def compressed(tmp_path):
    model = two_layers()
    path = tmp_path / "model.dcz"
    dcompress.save_model(
        model, path, recipe={"rule": [{"pattern": "*t.weight", "sparsity": 0.75, "bits": 3}]}
    )
    return model, path


def test_a_file_is_measured(compressed):
    model, path = compressed
    x, _ = batch(0)
    report = measure(model, x, file=path, n_timed=3)
    after = copy.deepcopy(model)
    dcompress.load_model(after, path)
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    zeros = sum(int((tensor == 0).sum()) for tensor in after.state_dict().values())
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert report.n_parameters == report.n_parameters_before == total
    assert report.sparsity == pytest.approx(zeros / total)
    assert report.parameter_reduction == pytest.approx(zeros / total)
    assert report.n_bytes_before == n_bytes
    assert report.file_bytes == path.stat().st_size
    assert report.ratio == n_bytes / path.stat().st_size
    assert report.size_reduction == 1 - path.stat().st_size / n_bytes
    with dcompress.safe_open(path) as opened:
        assert [one.name for one in report.tensors] == list(opened.keys())
    assert report.flops == report.flops_before == 2 * 16 * (16 * 24 + 24 * 4)
    first, second = (one for one in report.tensors if one.flops)
    assert (first.name, second.name) == ("first.weight", "second.weight")
    assert (first.density, first.flops) == (0.25, 2 * 16 * 16 * 24)
    assert report.effective_flops == report.flops - round(0.75 * first.flops)
    model.eval()
    with torch.no_grad():
        y, z = model(x), after.eval()(x)
    assert report.output_error == pytest.approx(float(((y - z) ** 2).sum() / (y**2).sum()))
    assert report.output_sqnr == pytest.approx(-10 * math.log10(report.output_error))
    assert report.largest_error == pytest.approx(float((y - z).abs().max()), rel=1e-6)
    assert report.seconds > 0
    assert report.seconds_before > 0
    assert measure(model, x, file=path.read_bytes(), after=after).output_error == report.output_error


def test_ratios_by_stage_are_sums_over_tensors(compressed):
    model, path = compressed
    report = measure(model, batch(0)[0], file=path)
    assert report.seconds is None
    for stage, ratio in zip(
        ("pruned", "shared", "coded"),
        (report.ratio_pruned, report.ratio_shared, report.ratio_coded),
        strict=True,
    ):
        assert ratio == 8 * report.n_bytes_before / sum(getattr(one.bits, stage) for one in report.tensors)
    assert 1 < report.ratio_pruned < report.ratio_shared < report.ratio_coded


def test_it_prints_a_table(compressed):
    model, path = compressed
    lines = str(measure(model, batch(0)[0], file=path, n_timed=1)).splitlines()
    assert lines[0].split() == [
        "tensor",
        "shape",
        "density",
        "bits",
        "bytes",
        "P",
        "P+Q",
        "P+Q+H",
        "in",
        "file",
    ]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["scale", "4", "100.0", "%"],
        ["first.weight", "24x16", "25.0", "%"],
    ]
    assert any(line.startswith("ratio P ") and "file" in line for line in lines)
    assert any(" ms -> " in line for line in lines)
    assert lines[-1].startswith("outputs ")


def test_a_model_with_fewer_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(2, 1, 8, 8)
    smaller = prune_channels(model, x, {"0": 0.5}, method="l1").model
    report = measure(model, x, smaller)
    assert report.file_bytes is report.ratio is report.size_reduction is None
    assert report.sparsity == 0
    removed = 4 * 10 + 4 * 4 * 9
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report.parameter_reduction == pytest.approx(removed / total)
    work = [36 * 8 * 9, 16 * 4 * 8 * 9, 64 * 5]
    assert report.flops_before == 2 * 2 * sum(work)
    assert report.flops == report.effective_flops == 2 * 2 * (work[0] // 2 + work[1] // 2 + work[2])
    assert report.flop_reduction == pytest.approx(1 - report.flops / report.flops_before)
    assert report.effective_flop_reduction == report.flop_reduction


def test_ties_integers_and_attention():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 16)
    report = measure(model, x, model)
    assert (report.output_error, report.output_sqnr) == (0, math.inf)
    flops = {one.name: one.flops for one in report.tensors if one.flops}
    assert flops["linear1.weight"] == flops["linear2.weight"] == 2 * 10 * 16 * 32
    assert flops["self_attn.in_proj_weight"] >= 2 * 10 * 16 * 48
    assert torch.backends.mha.get_fastpath_enabled()
    tied = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 20, bias=False))
    tied[1].weight = tied[0].weight
    assert measure(tied, torch.arange(4), tied).n_parameters == 120
    norm = nn.BatchNorm1d(16)  # with a count of batches, an integer
    assert measure(norm, torch.randn(4, 16), norm).n_parameters == 65


def test_the_model_is_left_as_it_was(compressed):
    model, path = compressed
    model.train()
    before = copy.deepcopy(model.state_dict())
    measure(model, batch(0)[0], file=path, n_timed=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_wrong_use(compressed, tmp_path):
    model, path = compressed
    x, _ = batch(0)
    with pytest.raises(EncodeError, match="give the compressed model, its file, or both"):
        measure(model, x)
    with pytest.raises(EncodeError, match="n_timed must be a whole number"):
        measure(model, x, model, n_timed=-1)
    with pytest.raises(EncodeError, match="the outputs of the two models differ in number or shape"):
        measure(model, x, nn.Linear(16, 3))
    with pytest.raises(EncodeError, match="the file is that of another model"):
        measure(nn.Linear(16, 4), x, file=path)
    with pytest.raises(
        EncodeError, match=r"the file is that of another model: tensor '.*' is in one of them"
    ):
        measure(nn.Linear(16, 4), x, nn.Linear(16, 4), file=path)
    (tmp_path / "bad.dcz").write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DecodeError):
        measure(model, x, file=tmp_path / "bad.dcz")
