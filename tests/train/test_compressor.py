from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dcompress
from dcompress.errors import DcompressWarning, EncodeError, RecipeError
from dcompress.train import Compressor, PenaltyStage, PruneStage, QuantizeStage, RateStage, ShareStage
from tests.train.loops import batch, train, two_layers

EVERYTHING = [
    PruneStage("first.weight", sparsity=0.8, importance="taylor", schedule="cubic", begin=2, end=12, every=3),
    PruneStage("second.weight", sparsity=0.5, schedule="regrow", begin=1, end=14, every=4),
    PruneStage("norm.weight", sparsity=0.25, importance="random", begin=3, rewind=True),
    PenaltyStage("first.weight", l1=1e-3, group_lasso=1e-3, end=9),
    ShareStage("first.weight", bits=3, begin=13, latent=True, reassign_every=2),
    QuantizeStage("second.weight", bits=4, per_channel=True, begin=10),
    RateStage("*.bias", step=0.02, price=0.1, begin=4),
    RateStage("*.bias", step=0.02, price=0.3, begin=11),
]


def started(stages, seed=1, kind=torch.optim.Adam):
    model = two_layers(seed)
    optimizer = kind(model.parameters(), 0.01)
    return model, Compressor(model, stages, optimizer=optimizer), optimizer


@pytest.mark.parametrize("stop", [0, 1, 5, 8, 11, 13, 16])
def test_resuming_in_mid_schedule_changes_no_bit(stop):
    model, compressor, optimizer = started(EVERYTHING)
    train(model, compressor, optimizer, 0, 18)
    whole = dcompress.save(compressor.finish().state_dict(), recipe="lossless")

    model, compressor, optimizer = started(EVERYTHING)
    train(model, compressor, optimizer, 0, stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), compressor.state_dict()], file)
    train(
        model, compressor, optimizer, stop, stop + 2
    )  # what comes after the checkpoint leaves no trace in it

    file.seek(0)
    states = torch.load(file, weights_only=True)
    model, compressor, optimizer = started(EVERYTHING, seed=2)
    for one, state in zip((model, optimizer, compressor), states, strict=True):
        one.load_state_dict(state)
    assert compressor.n_steps == stop
    train(model, compressor, optimizer, stop, 18)
    assert dcompress.save(compressor.finish().state_dict(), recipe="lossless") == whole


def test_a_checkpoint_of_another_recipe_is_refused():
    _, compressor, _ = started(EVERYTHING)
    _, other, _ = started(EVERYTHING[:2])
    with pytest.raises(RecipeError, match="another recipe"):
        other.load_state_dict(compressor.state_dict())


def test_the_model_is_plain_in_the_end():
    plain = two_layers()
    model, compressor, optimizer = started(EVERYTHING)
    assert type(model.first) is not nn.Linear
    train(model, compressor, optimizer, 0, 18)
    used = {name: getattr(model, name).weight.detach().clone() for name in ("first", "second")}
    assert compressor.finish() is model
    assert type(model) is type(plain)
    assert {name: type(one) for name, one in model.named_modules()} == {
        name: type(one) for name, one in plain.named_modules()
    }
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.first._forward_hooks
    for name, weight in used.items():
        assert torch.equal(getattr(model, name).weight, weight)
    copy.deepcopy(model).load_state_dict(plain.state_dict())
    with pytest.raises(EncodeError, match="finish"):
        compressor.step()


@pytest.mark.parametrize("stop", [0, 5, 18])
def test_the_plain_state_is_what_finish_would_leave_and_disturbs_nothing(stop):
    model, compressor, optimizer = started(EVERYTHING)
    train(model, compressor, optimizer, 0, stop)
    plain = compressor.plain_state_dict()
    plain["first.weight"] += 1
    train(model, compressor, optimizer, stop, 18)
    again, other, optimizer = started(EVERYTHING)
    train(again, other, optimizer, 0, stop)
    expected = other.plain_state_dict()
    train(again, other, optimizer, stop, 18)
    for one, same in zip(compressor.finish().parameters(), other.finish().parameters(), strict=True):
        assert torch.equal(one, same)
    model, compressor, optimizer = started(EVERYTHING)
    train(model, compressor, optimizer, 0, stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DcompressWarning)
        state = compressor.finish().state_dict()
    assert list(state) == list(expected)
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


class Odd(nn.Module):
    """Ties, a buffer that comes later, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.first.weight
        self.other = nn.Linear(8, 8)

    def get_extra_state(self):
        return {"epoch": 3}


def test_the_plain_state_of_ties_and_of_what_is_no_tensor():
    model = Odd()
    compressor = Compressor(model, RateStage("other.weight", step=0.1))
    model.register_buffer("late", torch.ones(2))
    model.register_buffer("none", None)
    plain = compressor.plain_state_dict()
    assert plain["first.weight"] is plain["again.weight"]
    assert plain["first.weight"] is not model.first.weight
    assert plain["_extra_state"] == {"epoch": 3}
    state = compressor.finish().state_dict()
    assert set(plain) == set(state)
    for key, value in state.items():
        assert key == "_extra_state" or torch.equal(value, plain[key])


def test_a_model_is_not_saved_before_it_is_finished(tmp_path):
    model, _, _ = started(EVERYTHING)
    with pytest.raises(EncodeError, match=r"'first.* is still in a Compressor.*finish"):
        dcompress.save_model(model, tmp_path / "x.dcz")
    assert not list(tmp_path.iterdir())


def test_finish_before_the_end_warns():
    _, compressor, _ = started(EVERYTHING)
    with pytest.warns(DcompressWarning, match="after 0 steps, but the recipe goes on to step 14"):
        compressor.finish()


@pytest.mark.parametrize("given_first", [True, False])
def test_an_optimizer_learns_codebooks_whether_made_before_or_after(given_first):
    model = two_layers()
    stages = [ShareStage("first.weight", centroids=4)]
    if given_first:
        optimizer = torch.optim.SGD([{"params": model.parameters(), "weight_decay": 0.5}], 0.1)
        compressor = Compressor(model, stages, optimizer=optimizer)
        assert optimizer.param_groups[-1]["weight_decay"] == 0.5
    else:
        compressor = Compressor(model, stages)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.first.weight.detach().clone()
    train(model, compressor, optimizer, 0, 3)
    after = model.first.weight.detach()
    assert before.unique().numel() == after.unique().numel() == 4
    assert not torch.isin(after, before).any()


@pytest.mark.parametrize("knows", [True, False])
def test_a_codebook_that_is_not_trained_is_no_secret(knows):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stage = ShareStage("first.weight", bits=2, begin=1)
    compressor = Compressor(model, stage, optimizer=optimizer if knows else None)
    train(model, compressor, optimizer, 0, 10)
    if knows:
        train(model, compressor, optimizer, 10, 30)
        return
    with pytest.warns(DcompressWarning, match=r"'first\.weight' is not trained: make the Compressor before"):
        train(model, compressor, optimizer, 10, 11)


def test_what_is_no_model_no_optimizer_of_it_and_no_checkpoint():
    stage = PruneStage("first.weight", sparsity=0.5)
    with pytest.raises(RecipeError, match=r"a model \(torch\.nn\.Module\) is wanted, not OrderedDict"):
        Compressor(two_layers().state_dict(), stage)
    other = torch.optim.SGD(two_layers().parameters(), 0.1)
    with pytest.raises(RecipeError, match="the optimizer has no parameter of this model"):
        Compressor(two_layers(), stage, optimizer=other)
    with pytest.raises(RecipeError, match="no checkpoint of a Compressor"):
        Compressor(two_layers(), stage).load_state_dict(two_layers().state_dict())


def test_autocast_changes_no_mask_dtype_or_key():
    model, compressor, optimizer = started(EVERYTHING)
    for step in range(18):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
            loss = cross_entropy(out, y)
        assert out.dtype == torch.bfloat16 or out.dtype == torch.float32
        (loss + compressor.regularizer()).backward()
        optimizer.step()
        compressor.step()
    compressor.finish()
    assert model.first.weight.dtype == torch.float32
    assert (model.first.weight == 0).float().mean() == pytest.approx(0.8, abs=0.002)
    assert model.first.weight.unique().numel() <= 9


def test_a_compiled_model_gets_the_same_masks():
    stages = [
        PruneStage(
            "first.weight", sparsity=0.8, importance="taylor", schedule="cubic", begin=2, end=8, every=3
        ),
        PruneStage("second.weight", sparsity=0.5, importance="apoz", granularity="channel", begin=3),
        ShareStage("first.weight", bits=3, begin=9),
    ]
    found = []
    for backend in (None, "aot_eager"):
        model, compressor, optimizer = started(stages, kind=torch.optim.SGD)
        forward = model if backend is None else torch.compile(model, backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about hooks and graph breaks
            train(model, compressor, optimizer, 0, 12, forward)
        found.append((compressor.masks(), compressor.finish().state_dict()))
    (masks, state), (other_masks, other_state) = found
    for name, mask in masks.items():
        assert torch.equal(mask, other_masks[name])
    for name, value in state.items():
        assert torch.allclose(value, other_state[name], atol=1e-5)


def test_a_compiled_model_is_refused_if_it_is_compiled_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, when its compiler is imported
        compiled = torch.compile(two_layers(), backend="aot_eager")
    with pytest.raises(RecipeError, match=r"then call torch\.compile"):
        Compressor(compiled, PruneStage("*first.weight", sparsity=0.5))


@pytest.mark.parametrize(
    "stages",
    [
        [PruneStage("[fs]*.weight", sparsity=0.6, scope="global")],
        [PruneStage(f"{name}.weight", sparsity=0.6, scope="mine") for name in ("first", "second")],
    ],
)
def test_tensors_of_one_scope_compete(stages):
    model = two_layers()
    with torch.no_grad():
        model.second.weight *= 3
    weights = {name: getattr(model, name).weight.detach().clone() for name in ("first", "second")}
    masks = Compressor(model, stages).masks()
    magnitudes = sorted(value for one in weights.values() for value in one.abs().flatten().tolist())
    cut = magnitudes[round(0.6 * len(magnitudes))]
    for name, weight in weights.items():
        assert torch.equal(masks[f"{name}.weight"], weight.abs() >= cut)
    assert masks["second.weight"].float().mean() > 0.6 > 0.4 > masks["first.weight"].float().mean()


def test_evaluations_and_penalties_do_not_count_as_passes():
    stages = [
        PruneStage("first.weight", sparsity=0.5, importance="activation_mean", granularity="filter", begin=3),
        PruneStage("second.weight", sparsity=0.5, importance="gradient", begin=3),
        PenaltyStage("second.weight", l1=1e-9),
    ]
    found = []
    for evaluates in (False, True):
        model, compressor, optimizer = started(stages, kind=torch.optim.SGD)
        for step in range(3):
            train(model, compressor, optimizer, step, step + 1)
            if evaluates:
                with torch.no_grad():
                    model.norm.eval()
                    model(torch.full((64, 16), 1e3))
                    model.norm.train()
                (1e9 * compressor.regularizer()).backward()
        found.append(compressor.masks())
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())
    assert [int(mask.sum()) for mask in found[0].values()] == [192, 48]


def test_stages_of_one_scope_must_agree():
    stages = [
        PruneStage("first.weight", sparsity=0.6, scope="a"),
        PruneStage("second.weight", sparsity=0.5, scope="a"),
    ]
    with pytest.raises(RecipeError, match="scope 'a' has other settings in the stage for"):
        Compressor(two_layers(), stages)


def test_rewinding_goes_back_to_the_saved_weights_under_the_mask():
    stages = [
        PruneStage("*t.weight", sparsity=0.75, schedule="iterative", begin=3, end=9, every=3, rewind=True)
    ]
    model, compressor, optimizer = started(stages)
    start = {name: value.clone() for name, value in two_layers().named_parameters()}
    train(model, compressor, optimizer, 0, 2)
    assert not torch.equal(model.second.bias, start["second.bias"])
    train(model, compressor, optimizer, 2, 9)
    mask = compressor.masks()["first.weight"]
    assert torch.equal(model.first.weight, torch.where(mask, start["first.weight"], 0.0))
    assert torch.equal(model.second.bias, start["second.bias"])
    assert not optimizer.state
    # Rewinding to a later step.
    model, compressor, optimizer = started(stages)
    train(model, compressor, optimizer, 0, 1)
    saved = model.second.bias.detach().clone()
    compressor.save_weights()
    train(model, compressor, optimizer, 1, 9)
    assert torch.equal(model.second.bias, saved)
    assert not torch.equal(saved, start["second.bias"])


def test_what_grows_again_starts_from_zero_without_momentum():
    stage = PruneStage("first.weight", sparsity=0.5, schedule="regrow", regrow=0.8, begin=3, end=13, every=5)
    model, compressor, optimizer = started([stage])
    train(model, compressor, optimizer, 0, 3)
    before = compressor.masks()["first.weight"]
    momentum = optimizer.state[model.first.parametrizations.weight.original]["exp_avg"]
    assert momentum[~before].all()
    train(model, compressor, optimizer, 3, 8)
    after = compressor.masks()["first.weight"]
    grown = after & ~before
    assert grown.sum() > 10
    assert before.sum() == after.sum() == 192
    assert not model.first.weight[grown].any()
    assert not momentum[grown].any()
    assert momentum[after & before].all()
    train(model, compressor, optimizer, 8, 10)
    assert model.first.weight[grown].all()


def test_pruned_weights_stay_zero_and_what_is_pruned_stays_pruned():
    model, compressor, optimizer = started(
        [PruneStage("first.weight", sparsity=0.9, schedule="iterative", begin=1, end=9, every=2)]
    )
    pruned = torch.zeros(24, 16, dtype=torch.bool)
    for step in range(10):
        train(model, compressor, optimizer, step, step + 1)
        now = ~compressor.masks()["first.weight"]
        assert (now | ~pruned).all()
        assert not model.first.weight[now].any()
        pruned = now
    assert compressor.sparsity("first.weight") == pytest.approx(round(0.9 * 384) / 384)


def test_stages_for_one_tensor_add_up():
    model = two_layers()
    stages = [
        PruneStage("first.weight", sparsity=0.25, granularity="filter"),
        PruneStage("first.weight", sparsity=0.75),
    ]
    given = torch.rand(24, 16) > 0.1
    compressor = Compressor(model, stages, masks={"first.weight": given})
    mask = compressor.masks()["first.weight"]
    assert (~mask).sum() == 288
    assert (~mask).all(1).sum() >= 6
    assert not mask[~given].any()
