"""Statistics in the hands of all that encodes: faces, targets, the search by a metric."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dcompress
import dcompress.numpy
from dcompress.errors import EncodeError
from dcompress.recipe import Recipe
from dcompress.safetensors_file import read_safetensors
from tests.calibrated import N_COLUMNS, error, inputs, network, write_files


@pytest.fixture(scope="module")
def stats():
    return dcompress.calibrate(network(), inputs())


@pytest.fixture
def files(tmp_path, stats):
    return write_files(tmp_path, stats)


def test_every_face_takes_statistics_or_their_file(files, stats):
    state, recipe = network().state_dict(), Recipe(step=0.1)
    whole = dcompress.save(state, recipe=recipe, calibration=stats)
    path = files / "stats.safetensors"
    dcompress.save_file(state, files / "a.dcz", recipe=recipe, calibration=path)
    dcompress.save_model(network(), files / "b.dcz", recipe=recipe, calibration=str(path))
    arrays = {name: value.numpy() for name, value in state.items()}
    dcompress.numpy.save_file(arrays, files / "c.dcz", recipe=recipe, calibration=stats)
    assert dcompress.numpy.save(arrays, recipe=recipe, calibration=stats) == (files / "c.dcz").read_bytes()
    loaded = [dcompress.load(whole), *(dcompress.load_file(files / f"{name}.dcz") for name in "abc")]
    loaded.append(dcompress.compress(state, recipe, calibration=stats))
    for one in loaded:
        assert all(torch.equal(value, loaded[0][name]) for name, value in one.items())
    assert error(loaded[0]) < 0.5 * error(dcompress.compress(state, recipe))


@pytest.mark.filterwarnings("ignore:.*cannot be met within")  # a network of 1,024 weights has few qualities
@pytest.mark.parametrize(("target", "value"), [("target_size", 900), ("quality", 12.1)])
def test_targets_are_met(stats, target, value):
    state = network().state_dict()
    frames = [dcompress.save(state, calibration=one, **{target: value}) for one in (None, stats)]
    plain, fed = (error(dcompress.load(frame)) for frame in frames)
    assert fed < plain
    if target == "target_size":
        assert 0.97 * value <= len(frames[1]) <= value


def test_bits_and_sparsity_profit_too(stats):
    state = network().state_dict()
    for recipe in (Recipe(bits=3), Recipe(preset="lossless", sparsity=0.5), Recipe(sparsity=0.5, bits=4)):
        plain, fed = (dcompress.compress(state, recipe, calibration=one) for one in (None, stats))
        assert error(fed) < error(plain)
        zeros = [sum(int((value == 0).sum()) for value in one.values()) for one in (plain, fed)]
        assert zeros[1] >= 0.98 * zeros[0]


def test_the_search_by_a_metric_finds_a_smaller_file(stats):
    wanted = torch.cat([network()(one) for one in inputs(3)]).detach()

    def evaluate(model):
        with torch.no_grad():
            return -float((torch.cat([model(one) for one in inputs(3)]) - wanted).square().mean())

    sizes = []
    for known in (None, stats, inputs()):
        options = {"max_drop": 0.02, "max_evaluations": 6, "baseline": 0.0}
        found = dcompress.search(network(), evaluate, calibration=known, **options)
        assert found.metric >= -0.02
        sizes.append(found.figures.n_bytes)
    assert max(sizes[1:]) < 0.9 * sizes[0]


def test_wrong_statistics_are_refused_and_named(stats):
    other = nn.Sequential(nn.Linear(N_COLUMNS, 30), nn.ReLU(), nn.Linear(30, 8))
    with pytest.raises(EncodeError, match=r"of another model: 0.weight is 30x24, not 32x24"):
        dcompress.save(other.state_dict(), recipe=Recipe(step=0.1), calibration=stats)
    with pytest.raises(EncodeError, match="or its file, not int"):
        dcompress.save(network().state_dict(), calibration=3)


def test_a_file_of_statistics_is_an_ordinary_one(files):
    assert "0.weight/second.0" in read_safetensors(files / "stats.safetensors").tensors
