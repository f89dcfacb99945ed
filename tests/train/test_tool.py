"""The example for readers runs, and what it prints is so; with few steps, to be quick."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import dcompress
import dcompress.numpy

TOOL = Path(__file__).parents[2] / "tools" / "train_digits.py"
RECIPE = """
[[train]]
pattern = "*.weight"
sparsity = 0.75
begin = 50
[[train]]
pattern = "*.weight"
bits = 4
begin = 100
"""


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_digits", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "N_DENSE_STEPS", 200)
    monkeypatch.setattr(module, "N_STEPS", 200)
    return module


def row(output, stage):
    """Return the figures of a stage: zeros, values, error, bytes of torch.save, bytes of .dcz, ratio."""
    (line,) = [line for line in output.splitlines() if line.startswith(stage)]
    return [float(text.replace(",", "")) for text in re.findall(r"[\d.,]+", line)]


def test_the_example(tool, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    file, picture = tmp_path / "digits.dcz", tmp_path / "weights.png"
    arguments = ["-o", str(file), "--recipe", str(tmp_path / "recipe.toml"), "--plot", str(picture)]
    done = CliRunner().invoke(tool.main, arguments)
    assert done.exit_code == 0, done.output
    dense, pruned, shared = (row(done.output, stage) for stage in ("dense", "pruned", "shared"))
    assert [dense[0], pruned[0], shared[0]] == [0, 75, 75]
    assert dense[1] > 49_000 > 12_550 >= pruned[1] > 12_000
    assert shared[1] == 48
    assert max(dense[2], pruned[2], shared[2]) < 12
    assert dense[3] == pytest.approx(pruned[3], rel=0.01) == pytest.approx(shared[3], rel=0.01)
    assert dense[4] > pruned[4] > shared[4]
    assert shared[5] == pytest.approx(shared[3] / shared[4], abs=0.051)

    # The file: what was printed of it, by torch and by NumPy.
    assert f"the file, {file.stat().st_size:,} bytes" in done.output
    images, labels = (part[tool.N_TRAINING :] for part in tool.digits())
    model = tool.network()
    dcompress.load_model(model, file)
    error = tool.error_rate(model, images, labels)
    assert f"NumPy alone: {error:.1f} % wrong" in done.output
    assert error == pytest.approx(shared[2], abs=0.051)
    arrays = dcompress.numpy.load_file(file)
    assert sum(np.unique(array[array != 0]).size for array in arrays.values() if array.ndim > 1) == 48
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert tool.TrainRecipe.from_toml(tool.STAGES).encode.profile == "baseline"


def test_a_recipe_that_only_prunes(tool, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE[: RECIPE.index("[[train]]", 5)])
    done = CliRunner().invoke(tool.main, ["--recipe", str(tmp_path / "recipe.toml")])
    assert done.exit_code == 0, done.output
    assert row(done.output, "trained")[0] == 75


def test_the_recipe_of_prices(tool, tmp_path):
    file = tmp_path / "digits.dcz"
    done = CliRunner().invoke(tool.main, ["--recipe", "price", "-o", str(file)])
    assert done.exit_code == 0, done.output
    zeros, _, error, _, n_bytes, _ = row(done.output, "trained")
    assert zeros > 60
    assert error < 12
    assert n_bytes < row(done.output, "dense")[4] / 20
    arrays = dcompress.numpy.load_file(file)
    for name, array in arrays.items():
        levels = array / (0.25 if array.ndim > 1 else 0.05)
        assert np.allclose(levels, np.round(levels), atol=1e-4), name


def test_a_recipe_that_is_not_there(tool):
    done = CliRunner().invoke(tool.main, ["--recipe", "prize"])
    assert done.exit_code == 2
    assert "prize" in done.output
