"""The reproduction of the paper's LeNets: its parts, whole runs, and the files in fixtures."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import dcompress
from dcompress.train import Compressor

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "fixtures" / "models"
NAMES = ("lenet_300_100", "lenet_5")
N_TRAIN, N_TEST, N_HELD_OUT = 400, 100, 100

RECIPES = {
    "lenet_300_100": """
        effort = 1
        [images]
        copies = 1
        [loop]
        epochs = 6
        batch = 30
        [[train]]
        pattern = "*.weight"
        sparsity = 0.9
        scope = "global"
        begin = 20
        [[train]]
        pattern = "*.weight"
        bits = 2
        begin = 40
    """,
    "lenet_5": """
        effort = 1
        tidy = true
        [images]
        copies = 1
        degrees = 5
        elastic = 0.5
        [teacher]
        epochs = 1
        batch = 30
        [dense]
        epochs = 4
        batch = 30
        soft = 0.5
        [channels]
        conv1 = 0.7
        conv2 = 0.8
        fc1 = 0.9
        [loop]
        epochs = 3
        batch = 30
        soft = 0.5
        [[train]]
        pattern = "fc1.weight"
        sparsity = 0.5
        [[train]]
        pattern = "*.weight"
        bits = 4
        begin = 20
    """,
}

pytestmark = pytest.mark.usefixtures("tools_on_path")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder of images like MNIST's: ten patterns, shifted and noisy."""
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, (10, 7, 7)).repeat(3, 1).repeat(3, 2) * 150.0
    for split, count in (("train", N_TRAIN), ("t10k", N_TEST)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 90, (count, 28, 28)).astype(np.uint8)
        for image, label, (row, column) in zip(images, labels, rng.integers(2, 5, (count, 2)), strict=True):
            image[row : row + 21, column : column + 21] += patterns[label].astype(np.uint8)
        head = struct.pack(">4I", 0x803, count, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">2I", 0x801, count)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


def run(*arguments):
    import reproduce_lenet

    return CliRunner().invoke(reproduce_lenet.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", NAMES)
def test_from_images_to_a_file(name, mnist, tmp_path):
    from lenet_data import load_split
    from lenet_networks import NETWORKS
    from train_lenet import error_rate

    recipe, out = tmp_path / "tiny.toml", tmp_path / "out"
    recipe.write_text(RECIPES[name])
    options = ["--mnist", mnist, "--model", name, "--held-out", N_HELD_OUT]
    seeds = ("--seed", 1, "--seed", 2) if name == "lenet_300_100" else ()
    done = run(*options, "--recipe", recipe, "--out", out, "--work", out, *seeds)
    assert done.exit_code == 0, done.output
    path = out / f"{name}.tiny.dcz"
    model = NETWORKS[name].build()
    dcompress.load_model(model, path)
    split = load_split(mnist, N_HELD_OUT)
    error = error_rate(model, split.test)
    assert error < 30
    assert f"read back from the file: {error:.2f} %" in done.stdout
    n_bytes = [int(text.replace(",", "")) for text in re.findall(r"-> ([\d,]+) bytes", done.stdout)]
    files = [path, out / f"{name}.tiny.2.dcz"][: len(n_bytes)]
    assert n_bytes == [file.stat().st_size for file in files]
    assert bool(seeds) == (f"({min(n_bytes):,} to {max(n_bytes):,})" in done.stdout)
    assert (out / "teacher.dcz").exists() == (name == "lenet_5")


def test_files_are_measured_without_training(mnist, tmp_path):
    from lenet_networks import NETWORKS

    torch.manual_seed(3)
    dcompress.save_model(NETWORKS["lenet_5"].build(), tmp_path / "lenet_5.best.dcz", recipe="paper")
    options = ["--mnist", mnist, "--held-out", N_HELD_OUT, "--model", "lenet_5"]
    done = run(*options, "--check", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    size = (tmp_path / "lenet_5.best.dcz").stat().st_size
    assert f"1,724,320 -> {size:,} bytes, {1724320 / size:.1f}x (1720 -> 44 kB, 39x)" in done.stdout
    assert re.search(r"fc1 +400,000 +9\.00 % \(8 %\) +6\+5 \(5\+5\)", done.stdout)


def sparse_state(name, seed=0):
    """Random weights, most of them zero, some units dead at one side or the other."""
    from lenet_networks import NETWORKS

    torch.manual_seed(seed)
    state = NETWORKS[name].build().state_dict()
    for link in NETWORKS[name].links:
        weight = state[f"{link.producer}.weight"]
        weight *= torch.rand(weight.shape) < 0.05
        weight[3:9] = 0
        state[f"{link.producer}.bias"][5:9] = 0
        fan = state[f"{link.consumer}.weight"].shape[1] // len(weight)
        state[f"{link.consumer}.weight"][:, : 3 * fan] = 0
    return state


@pytest.mark.parametrize("name", NAMES)
def test_tidy_changes_no_output(name):
    from lenet_networks import NETWORKS, tidy

    network = NETWORKS[name]
    before, after = network.build(), network.build()
    before.load_state_dict(sparse_state(name))
    tidied = tidy(before.state_dict(), network)
    after.load_state_dict(tidied)
    images = torch.rand(20, 1, 28, 28)
    assert torch.allclose(before(images), after(images), atol=1e-5)
    for link in network.links:
        weight = tidied[f"{link.producer}.weight"].flatten(1)
        reader = tidied[f"{link.consumer}.weight"]
        read = reader.reshape(len(reader), len(weight), -1).ne(0).any(2).any(0)
        counts = weight.ne(0).sum(1)
        assert (counts.diff() <= 0).all()
        assert not counts[~read].any()
        assert not tidied[f"{link.producer}.bias"][~read].any()
        assert counts[3] > 0 == counts[-3]  # what was dead is at the end


@pytest.mark.parametrize("name", NAMES)
def test_widen_changes_no_output(name):
    from lenet_networks import NETWORKS, widen

    network = NETWORKS[name]
    state = network.build().state_dict()
    for link in network.links:
        weight, reader = state[f"{link.producer}.weight"], state[f"{link.consumer}.weight"]
        fan, half = reader.shape[1] // len(weight), len(weight) // 2
        state[f"{link.producer}.weight"], state[f"{link.consumer}.weight"] = (
            weight[:half],
            reader[:, : half * fan],
        )
        state[f"{link.producer}.bias"] = state[f"{link.producer}.bias"][:half]
    wide = network.build()
    wide.load_state_dict(widen(state, network))
    hidden = torch.rand(5, 1, 28, 28)
    images = hidden
    for layer in network.layers:  # the narrow network, layer by layer
        weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
        if weight.ndim == 4:
            hidden = torch.max_pool2d(torch.conv2d(hidden, weight, bias), 2)
        else:
            hidden = torch.nn.functional.linear(hidden.flatten(1), weight, bias)
            hidden = hidden if layer == network.layers[-1] else hidden.relu()
    assert torch.allclose(wide(images), hidden, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[loop]\nepochs = 1\nbatchsize = 3", "unknown setting 'batchsize'; the settings are epochs, batch"),
        ("[images]\ncopies = 1", "there is no table [loop]"),
        ("[loop]\nbatch = 3", "loop: "),
        ("loop = 3", "loop must be a table"),
        ("[loop", "not valid TOML"),
        ("[loop]\nepochs = 1\n[[train]]\npattern = 'fc9.*'\nsparsity = 0.5", "'fc9.*' matches no parameter"),
        (
            "[loop]\nepochs = 1\n[[train]]\npattern = '*'\nl1 = 1\nbegin = 99",
            "begins at step 99, after the last",
        ),
        ("[loop]\nepochs = 1\n[channels]\nfc1 = 2\n[[train]]\npattern = '*'\nl1 = 1", "sparsity"),
    ],
)
def test_a_wrong_recipe_is_refused(text, message, mnist, tmp_path):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    done = run("--mnist", mnist, "--model", "lenet_300_100", "--recipe", recipe, "--held-out", N_HELD_OUT)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_images_is_an_error(tmp_path):
    done = run("--mnist", tmp_path, "--recipe", "paper")
    assert done.exit_code == 2
    assert "no train-images-idx3-ubyte" in done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["paper", "best"])
def test_recipes_fit_their_networks(name, which):
    from lenet_data import Changes
    from lenet_networks import NETWORKS
    from lenet_recipes import find_recipe

    recipe = find_recipe(which, name)
    assert isinstance(recipe.images, Changes)
    assert recipe.compress.encode.preset == "lossless"
    model = NETWORKS[name].build()
    assert Compressor(model, recipe.compress).finish


@pytest.mark.parametrize(("name", "least_ratio"), [("lenet_300_100", 150), ("lenet_5", 300)])
def test_the_best_files(name, least_ratio):
    dense = load_file(MODELS / f"{name}.safetensors")
    path = MODELS / f"{name}.best.dcz"
    small = dcompress.load_file(path)
    shapes = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in small.items()}
    assert shapes == {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in dense.items()}
    n_bytes = sum(4 * tensor.numel() for tensor in small.values())
    assert n_bytes / path.stat().st_size >= least_ratio
    for key, tensor in small.items():
        assert tensor.isfinite().all(), key
        assert tensor.any() or key.endswith("bias"), key
