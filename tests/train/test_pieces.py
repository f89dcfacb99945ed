"""Units, masks, schedules, penalties and regrowth by themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dcompress import prune as one_shot
from dcompress.errors import RecipeError
from dcompress.train import Compressor, PruneStage
from dcompress.train.granularity import Granularity
from dcompress.train.importance import Sample, unit_scores
from dcompress.train.masks import keep_n_of_m, kept_above, kept_units, standard_deviation
from dcompress.train.regrow import regrown_units
from dcompress.train.regularizers import group_lasso, l1_norm
from dcompress.train.schedules import is_due, level, regrow_fraction
from dcompress.train.units import check_shape, from_units, n_units, to_units, unit_sizes
from tests.train import naive

SHAPES = [(6,), (5, 7), (4, 4, 3), (6, 4, 3, 2)]
GRANULARITIES = ["element", "kernel", "filter", "channel", "2x3", "4x5", "9x99", "1x1", "1:2", "2:4"]


def fits(shape, granularity):
    try:
        check_shape(shape, Granularity.parse(granularity))
    except RecipeError:
        return False
    return True


PAIRS = [
    (shape, granularity) for shape in SHAPES for granularity in GRANULARITIES if fits(shape, granularity)
]


def test_most_shapes_fit_most_units():
    assert len(PAIRS) == 29


@pytest.mark.parametrize(("shape", "granularity"), PAIRS)
def test_units_hold_what_loops_find(shape, granularity):
    grains = Granularity.parse(granularity)
    assert str(grains) == granularity
    tensor = torch.arange(1.0, math.prod(shape) + 1).reshape(shape)
    expected = naive.units_of(shape, granularity)
    rows = to_units(tensor, grains)
    assert rows.shape[0] == n_units(shape, grains) == len(expected)
    for row, unit in zip(rows.tolist(), expected, strict=True):
        assert [value for value in row if value] == [float(tensor[place]) for place in unit]
    assert unit_sizes(shape, grains).tolist() == [len(unit) for unit in expected]
    assert torch.equal(from_units(rows, shape, grains), tensor)
    numbers = torch.arange(len(expected))
    spread = from_units(numbers, shape, grains)
    for number, unit in enumerate(expected):
        assert {int(spread[place]) for place in unit} == {number}


@pytest.mark.parametrize("importance", ["l1", "l2", "linf"])
def test_blocks_at_the_edge_are_judged_by_the_weights_they_have(importance):
    weight = torch.randn(5, 7)
    scores = unit_scores(Sample(weight), importance, Granularity.parse("2x3"))
    expected = naive.scores_of(naive.Seen(weight, [], [], [], 0), importance, "2x3")
    assert scores.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.333, 0.5, 0.9, 1])
def test_masks_of_elements_are_those_of_one_shot_pruning(sparsity):
    weight = torch.randn(37, 11)
    scores = unit_scores(Sample(weight), "l1", Granularity("element"))
    (kept,) = kept_units([scores], [torch.ones(407, dtype=torch.int64)], float(sparsity))
    expected = one_shot.sparsity_mask(weight.numpy(), sparsity)
    assert np.array_equal(kept.reshape(37, 11).numpy(), expected)


def test_the_papers_quality_is_that_of_one_shot_pruning():
    weight = torch.randn(300, 41) * 0.3 + 0.1
    threshold = 1.3 * standard_deviation(weight)
    assert threshold == pytest.approx(one_shot.quality_threshold(weight.numpy(), 1.3), rel=1e-12)
    kept = kept_above(weight.abs().double(), threshold)
    assert np.array_equal(kept.numpy(), one_shot.threshold_mask(weight.double().numpy(), threshold))
    assert standard_deviation(torch.empty(0)) == 0


def test_units_of_different_sizes_come_as_near_to_the_sparsity_as_they_can():
    sizes = torch.tensor([4, 1, 1, 2])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for sparsity, n_pruned in [(0, 0), (0.24, 0), (0.26, 1), (0.5, 1), (0.6, 2), (0.75, 3), (0.9, 4), (1, 4)]:
        (kept,) = kept_units([scores], [sizes], float(sparsity))
        assert int((~kept).sum()) == n_pruned
        assert kept.tolist() == sorted(kept.tolist())


def test_quality_and_thresholds_rise_with_the_schedule():
    weight = torch.randn(30, 20)
    settings = {"schedule": "iterative", "end": 2, "every": 1, "granularity": "filter"}
    for amount, unit in [("quality", float(weight.double().std(correction=0))), ("threshold", 1.0)]:
        layer = torch.nn.Linear(20, 30)
        with torch.no_grad():
            layer.weight.copy_(weight)
        compressor = Compressor(layer, PruneStage("weight", **{amount: 1 / unit}, **settings))
        kept = torch.ones(30, dtype=torch.bool)
        for done in (1 / 3, 2 / 3, 1.0):
            left = (weight * kept[:, None]).double()
            deviation = float(left.std(correction=0)) if amount == "quality" else 1.0
            kept &= weight.abs().mean(1) >= done / unit * deviation
            assert torch.equal(compressor.masks()["weight"], kept[:, None].expand(30, 20))
            if done < 1:
                compressor.step()
        assert 0 < kept.sum() < 10


def test_activations_of_a_transposed_convolution_are_those_of_its_own_channels():
    layer = torch.nn.ConvTranspose2d(3, 6, 2)
    x = torch.randn(4, 3, 5, 5)
    for granularity, seen in [("filter", x), ("channel", layer(x).detach())]:
        stage = PruneStage(
            "weight", n_pruned=1, importance="activation_mean", granularity=granularity, begin=1, n_observed=1
        )
        compressor = Compressor(layer, stage)
        layer(x)
        compressor.step()
        least = int(seen.abs().mean((0, 2, 3)).argmin())
        dim = 0 if granularity == "filter" else 1
        assert not compressor.masks()["weight"].select(dim, least).any()
        assert compressor.sparsity() == pytest.approx(1 / layer.weight.shape[dim])
        with torch.no_grad():
            compressor.finish().reset_parameters()


def test_gradients_that_overflowed_do_not_count():
    layer = torch.nn.Linear(4, 2, bias=False)
    compressor = Compressor(layer, PruneStage("weight", sparsity=0.5, importance="gradient", begin=3))
    for scale in (1.0, math.inf, 1.0):
        (layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])) * scale).sum().backward()
        compressor.step()
    assert compressor.masks()["weight"].tolist() == [[False, False, True, True]] * 2


def test_many_ties_go_by_position():
    scores = torch.arange(300) % 3 / 4.0
    order = sorted(range(300), key=lambda n: (float(scores[n]), n))
    (kept,) = kept_units([scores], [torch.ones(300, dtype=torch.int64)], 130)
    assert [n for n in range(300) if not kept[n]] == sorted(order[:130])
    assert [n for n in range(300) if not keep_n_of_m(scores[None], 170)[0, n]] == sorted(order[:130])
    before = torch.arange(300) < 200
    gradients = torch.where(before, 0.0, torch.arange(300) % 2)
    after = regrown_units(before, scores, gradients, 0.5)
    dropped = set([n for n in order if n < 200][:100])
    staying = [n for n in range(200) if n not in dropped]
    growing = sorted(set(range(300)) - set(staying), key=lambda n: (-float(gradients[n]), n))[:100]
    assert [n for n in range(300) if after[n]] == sorted(staying + growing)


def test_ties_go_by_position_and_nan_goes_last():
    scores = torch.tensor([1.0, math.nan, 1.0, 1.0, 0.5])
    (kept,) = kept_units([scores], [torch.ones(5, dtype=torch.int64)], 2)
    assert kept.tolist() == [False, True, True, True, False]
    (kept,) = kept_units([scores], [torch.ones(5, dtype=torch.int64)], 4)
    assert kept.tolist() == [False, True, False, False, False]
    assert keep_n_of_m(torch.tensor([[1.0, 1.0, 2.0, 1.0]]), 2).tolist() == [[False, False, True, True]]
    assert kept_above(scores, 1.0).tolist() == [True, True, True, True, False]


def test_cubic_levels_are_those_of_the_formula():
    stage = PruneStage("w", sparsity=0.9, initial_sparsity=0.3, schedule="cubic", begin=10, end=50, every=7)
    due = [step for step in range(60) if is_due(stage, step)]
    assert due == [10, 17, 24, 31, 38, 45, 50]
    for step in due:
        assert level(stage, step) == pytest.approx(0.9 + (0.3 - 0.9) * (1 - (step - 10) / 40) ** 3)
    assert level(stage, 50) == 0.9


def test_iterative_rounds_prune_the_same_fraction_of_what_is_left():
    stage = PruneStage("w", sparsity=0.9, schedule="iterative", begin=2, end=17, every=5)
    left = [1 - level(stage, step) for step in (2, 7, 12, 17)]
    assert [right / before for before, right in zip([1, *left], left, strict=False)] == pytest.approx(
        [0.1**0.25] * 4
    )
    assert level(stage, 17) == 0.9
    for settings, expected in [({"n_pruned": 10}, [5, 10]), ({"threshold": 3.0}, [1.5, 3.0])]:
        stage = PruneStage("w", schedule="iterative", begin=0, end=4, every=4, **settings)
        assert [level(stage, step) for step in (0, 4)] == expected
    assert level(PruneStage("w", sparsity=1.0, schedule="iterative", end=4, every=2), 0) == pytest.approx(
        1 / 3
    )


def test_one_shot_is_due_once():
    assert [step for step in range(9) if is_due(PruneStage("w", sparsity=0.5, begin=3), step)] == [3]


def test_regrowth_fades_by_half_a_cosine():
    stage = PruneStage("w", sparsity=0.9, schedule="regrow", regrow=0.4, begin=0, end=100, every=25)
    found = [regrow_fraction(stage, step) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx([0, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5)), 0])
    assert regrow_fraction(PruneStage("w", sparsity=0.9), 0) == 0


def test_regrowth_swaps_the_weakest_for_the_steepest():
    kept = torch.tensor([True, True, True, True, False, False, False])
    scores = torch.tensor([0.3, 0.1, 0.2, 0.4, 9.0, 9.0, 9.0])
    gradients = torch.tensor([9.0, 0.5, 0.0, 9.0, 0.1, 0.7, 0.7])
    assert regrown_units(kept, scores, gradients, 0.5).tolist() == [
        True,
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    assert regrown_units(kept, scores, gradients, 0.0).tolist() == kept.tolist()
    gradients[1] = 8.0  # what was just dropped may come back
    assert regrown_units(kept, scores, gradients, 0.5).tolist() == [
        True,
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_penalties_and_their_gradients():
    weight = torch.tensor([[3.0, -4.0], [0.0, 0.0]], requires_grad=True)
    l1_norm(weight).backward()
    assert weight.grad.tolist() == [[1, -1], [0, 0]]
    weight.grad = None
    total = group_lasso(weight, Granularity("filter"))
    assert total.item() == pytest.approx(5 * math.sqrt(2))
    total.backward()
    expected = torch.tensor([[0.6, -0.8], [0.0, 0.0]]) * math.sqrt(2)
    assert torch.allclose(weight.grad, expected)
    assert group_lasso(weight, Granularity("channel")).item() == pytest.approx(7 * math.sqrt(2))
    assert group_lasso(weight, Granularity("element")).item() == pytest.approx(7)
