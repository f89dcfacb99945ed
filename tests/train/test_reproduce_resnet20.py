"""The reproduction with ResNet-20: its parts, and a whole run on images of noise."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import dcompress
from dcompress.train import Compressor

ROOT = Path(__file__).parents[2]
N_TRAIN, N_HELD_OUT, N_TEST = 40, 8, 16
RECIPE = """
step = 0.05
slope = 0.1
n_samples = 8
n_copies = 2
n_mixed = 1
n_held_out = 8
effort = 1

[loop]
prices = [1.0, 30.0]
epochs = 3
batch = 16
"""

pytestmark = pytest.mark.usefixtures("tools_on_path")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images of noise, and a network of random weights."""
    made = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for split, count in (("train", N_TRAIN), ("test", N_TEST)):
        images = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
        np.savez(made / f"cifar10_{split}_x.npz", images=images, labels=rng.integers(0, 10, count))
    return made


@pytest.fixture
def network(folder):
    from resnet20 import ResNet20
    from resnet20_runs import FILE, floats

    torch.manual_seed(0)
    model = ResNet20()
    for value in model.buffers():
        if value.is_floating_point():
            value.copy_(value + 0.2 * torch.rand(value.shape))
    save_file(floats(model), folder / FILE)
    return model.eval()


def run(*arguments):
    import reproduce_resnet20

    return CliRunner().invoke(reproduce_resnet20.main, [str(argument) for argument in arguments])


def test_from_images_to_files(folder, network, tmp_path, monkeypatch):
    import resnet20_runs
    from resnet20 import ResNet20, fill
    from resnet20_data import load_split, logits_of
    from resnet20_runs import floats

    recipe, out = tmp_path / "tiny.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    monkeypatch.setattr(resnet20_runs, "TRIALS", 1)
    options = ["--models", folder, "--data", folder, "--work", tmp_path]
    done = run(*options, "--recipe", recipe, "--out", out)
    assert done.exit_code == 0, done.output
    test = load_split(folder, N_HELD_OUT).test
    for number in (1, 2):
        path = out / f"resnet20.{number}.dcz"
        weights = dcompress.load_file(path)
        assert list(weights) == list(floats(network))
        model = ResNet20().to(memory_format=torch.channels_last)
        fill(model, weights)
        right = 100 * float((logits_of(model, test.pixels).argmax(1) == test.labels).double().mean())
        (row,) = re.findall(
            rf"^ +resnet20\.{number}\.dcz +([\d,]+) .* ([\d.]+) +[\d.]+ +[\d.]+$", done.stdout, re.M
        )
        assert row == (f"{path.stat().st_size:,}", f"{right:.2f}")
        for name, value in weights.items():
            if value.ndim > 1:
                assert torch.equal(value, (value / 0.05).round() * 0.05 + 0.0), name
    assert len(re.findall(r"^ +calibrated, no training +[\d,]+ ", done.stdout, re.M)) == 2
    # The settings that a file came with make it again.
    again = run(*options, "--recipe", out / "resnet20.1.toml", "--out", tmp_path / "again", "--alone")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "resnet20.1.dcz").read_bytes() == (out / "resnet20.1.dcz").read_bytes()
    assert not (tmp_path / "again" / "resnet20.2.dcz").exists()


def test_folding_norms_changes_no_output(network):
    from resnet20 import ResNet20, fill
    from resnet20_norms import fold_norms, vector_steps
    from resnet20_runs import floats

    with torch.no_grad():
        network.layer2[0].conv1.weight[3] = 0
    folded = ResNet20().eval()
    fill(folded, floats(network))
    fold_norms(folded)
    images = torch.randn(5, 3, 32, 32)
    assert torch.allclose(network(images), folded(images), atol=1e-4)
    assert folded.layer2[0].bn1.weight[3] == 0
    for name, value in folded.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert (value == (1 if name.endswith("var") else 0)).all(), name
    for name, step in vector_steps(folded).items():
        sizes = folded.get_parameter(name).detach().abs()
        part = float(sizes[sizes > 0].median()) / (12 if name.endswith("weight") else 8)
        assert part / 2 < step <= part
        assert math.log2(step).is_integer()


def test_the_start_leans_towards_the_dense_network():
    from resnet20_runs import lean

    weight = torch.tensor([9.0, -0.32, -9.0, 0.3])
    lean(weight, torch.tensor([0.1, -0.3, 0.0, 0.3]), 0.04)
    assert torch.allclose(weight, torch.tensor([0.14, -0.32, -0.04, 0.3]))


class Compiled:
    """What torch.compile returns has no length, and so cannot be asked whether it is true."""

    def __init__(self, model):
        self.model = model

    def __call__(self, images):
        return self.model(images)

    def __len__(self):
        raise TypeError("no length")


def test_training_comes_nearer_and_a_price_makes_bits_fewer():
    from resnet20_data import Bank, Photos
    from resnet20_loop import Loop, fit, stages_of

    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    bank = Bank(Photos(pixels, torch.zeros(32).long()), 2, 0, 5)
    teacher = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
    bank.ask(teacher)
    steps = {"2.weight": 0.05, "2.bias": 0.01}
    bits = []  # a weight
    for prices, compiled in (((0.0, 0.0), False), ((0.0, 0.0), True), ((0.0, 30.0), False)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
        with torch.no_grad():
            model[2].weight.copy_(teacher[2].weight + 0.1 * torch.randn(10, 48))
            model[2].bias.zero_()
        loop = Loop(prices, epochs=12, batch=8, rate=1e-2)
        compressor = Compressor(model, stages_of(steps, ["2.weight"], loop, len(bank)))
        losses = []
        for _ in prices:
            fit(
                *(model, compressor, bank, loop, torch.Generator().manual_seed(1)),
                run=Compiled(model) if compiled else None,
                after_epoch=lambda epoch, lost, losses=losses: losses.append((epoch, lost)),
            )
        assert [epoch for epoch, _ in losses] == list(range(1, 13)) * 2
        assert losses[11][1] < 0.5 * losses[0][1]
        state = compressor.finish().state_dict()
        for name, step in steps.items():
            levels = state[name] / step
            assert torch.allclose(levels, levels.round(), atol=1e-3)
        _, counts = state["2.weight"].unique(return_counts=True)
        bits.append(float((counts / 480 * (480 / counts).log2()).sum()))
    assert bits[0] == bits[1]
    assert bits[2] < 0.9 * bits[0]


def test_changed_images():
    from resnet20_data import REACH, Bank, Photos

    rng = np.random.default_rng(3)
    pixels = torch.from_numpy(rng.integers(0, 256, (6, 3, 32, 32)).astype(np.uint8))
    photos = Photos(pixels, torch.arange(6))
    bank = Bank(photos, 3, 1, 5)
    again = Bank(photos, 3, 1, 5)
    assert torch.equal(bank.pixels, again.pixels)
    for copy in bank.pixels[:2]:
        for image, original in zip(copy.numpy(), pixels.numpy(), strict=True):
            wide = np.zeros((3, 40, 40), np.uint8)
            wide[:] = np.array([124, 116, 104], np.uint8)[:, None, None]
            wide[:, 4:-4, 4:-4] = original
            places = range(2 * REACH + 1)
            views = [wide[:, row : row + 32, column : column + 32] for row in places for column in places]
            assert any((image == view).all() or (image == view[..., ::-1]).all() for view in views)
    mixed = bank.pixels[2].float()
    assert not any((image == pixels).all() for image in mixed)
    assert mixed.std() < bank.pixels[0].float().std()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3\n[loop]\nprices = [1]", "unexpected keyword argument 'steps'"),
        ("[loop]\nepochs = 3", "'prices'"),
        ("[loop", "Expected"),
        ("n_held_out = 40\n[loop]\nprices = [1]", "of 40 training images 40 cannot be held out"),
    ],
)
def test_wrong_settings_are_refused(text, message, folder, network, tmp_path):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    done = run("--models", folder, "--data", folder, "--out", tmp_path / "out", "--recipe", recipe)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_images_is_an_error(tmp_path):
    done = run("--models", tmp_path, "--data", tmp_path, "--out", tmp_path)
    assert done.exit_code == 2
    assert "no cifar10_train*.npz" in done.stderr
