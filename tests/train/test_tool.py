"""The example for readers runs, and what it prints is so; with few steps, to be quick."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import dcompress

TOOL = Path(__file__).parents[2] / "tools" / "train_digits.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_digits", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "N_STEPS", 250)
    return module


def test_the_example(tool, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[[train]]\npattern = '*.weight'\nsparsity = 0.75\nbegin = 150\n")
    file = tmp_path / "digits.dcz"
    done = CliRunner().invoke(tool.main, ["-o", str(file), "--recipe", str(recipe)])
    assert done.exit_code == 0, done.output
    sizes = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes", done.output)]
    assert sizes[1] == file.stat().st_size < sizes[0] / 3
    assert "75 % zeros" in done.output
    wrong = [float(text) for text in re.findall(r"([\d.]+) % wrong", done.output)]
    assert max(wrong) < 12
    images, labels = tool.digits()
    model = tool.network()
    dcompress.load_model(model, file)
    error = tool.error_rate(model, images[tool.N_TRAINING :], labels[tool.N_TRAINING :])
    assert f"{error:.1f} % wrong" in done.output
    assert tool.TrainRecipe.from_toml(tool.RECIPE).encode.preset == "lossless"
