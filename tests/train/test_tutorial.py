"""The code of the tutorial runs, in fewer steps, and prints what stands below it but for the figures."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.functional import cross_entropy

import dcompress
import dcompress.numpy
from dcompress.train import Compressor, PruneStage
from tests.train.loops import digits

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "tools" / "tutorial.md"
NO_TORCH = "import sys\nsys.modules |= dict.fromkeys(('torch', 'numba', 'sklearn', 'scipy', 'click'))\n"


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("run_tutorial", ROOT / "tools" / "run_tutorial.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_tutorial"] = module  # for its dataclass
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_tutorial"]


@pytest.fixture(scope="module")
def blocks(runner):
    return runner.blocks_of(TUTORIAL.read_text(encoding="utf-8"))


def fewer_steps(body):
    """Return code that trains for a fifth of the steps."""
    return re.sub(r"\b(1000|1500|2000|500)\b", lambda found: str(int(found[0]) // 5), body)


def shape(output):
    """Return what of an output does not depend on the figures: the first words of its lines."""
    return [re.sub(r"^[\d.]+$", "#", line.split()[0]) for line in output.splitlines()]


def test_the_tutorial(runner, blocks, tmp_path):
    needed = ("cc", "xxd")
    lacking = [name for name in needed if shutil.which(name) is None]
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"CI has no {lacking}")
    pairs = itertools.pairwise(blocks)
    below = {block.start: after.body for block, after in pairs if after.kind == "text"}
    assert len(below) == 7
    printed = {}
    namespace = {}
    wanted = [block for block in blocks if not (lacking and "xxd" in block.body and block.kind == "sh")]
    for block, output, names in runner.run_blocks(wanted, tmp_path, fewer_steps):
        namespace = names
        if block.start in below:
            printed[block.kind, len(printed)] = output
            if "step" not in output:
                assert shape(output) == shape(below[block.start])
            else:  # the loop says how it goes on
                assert re.sub(r"[\d.]+", "", output) == re.sub(r"[\d.]+", "", below[block.start])
        else:
            assert not output
    outputs = list(printed.values())
    assert float(outputs[0].removesuffix(" % wrong\n")) < 12
    sizes = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes", outputs[2])]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert sizes[2] == (tmp_path / "digits.dcz").stat().st_size < sizes[0] / 35
    assert "95 % zeros" in outputs[1]
    model = namespace["model"]
    assert type(model[0]) is nn.Linear
    arrays = dcompress.numpy.load_file(tmp_path / "digits.dcz")
    for name, tensor in model.state_dict().items():
        assert arrays[name].tobytes() == tensor.numpy().tobytes()
    assert all(np.unique(arrays[f"{n}.weight"]).size == 17 for n in (0, 2, 4))
    # NumPy and C see what torch sees.
    seen = model(namespace["x_test"]).detach()
    error = 100 * (seen.argmax(1) != namespace["y_test"]).float().mean().item()
    assert outputs[5].startswith(f"{error:.1f} % wrong\n")
    told = [re.search(r"a (\d), score (-?[\d.]+)", output) for output in outputs[5:]]
    assert len(told) == 2 - bool(lacking)
    for found in told:
        assert int(found[1]) == seen[0].argmax()
        assert float(found[2]) == pytest.approx(seen[0].max().item(), abs=0.002)
    # ... and NumPy does so where nothing else is installed.
    script = NO_TORCH + (tmp_path / "on_device.py").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == outputs[5]


def test_the_recipe_of_the_readme_and_of_the_example_are_that_of_the_tutorial(blocks):
    (recipe,) = [block.body for block in blocks if block.file == "recipe.toml"]
    tool = (ROOT / "tools" / "train_digits.py").read_text(encoding="utf-8")
    assert recipe in tool
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert recipe[recipe.index("[[train]]") :] in readme


@pytest.mark.parametrize("place", [0, 1], ids=["price", "stages"])
def test_the_loop_of_the_readme(runner, tmp_path, monkeypatch, place):
    readme = runner.blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))
    recipe = [block.body for block in readme if block.kind == "toml" and "[[train]]" in block.body][place]
    (loop,) = [block.body for block in readme if block.kind == "python" and "Compressor" in block.body]
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(recipe.replace("1000", "40").replace("1500", "50"))
    (x, y), _ = digits()
    loader = list(zip(x.split(20), y.split(20), strict=True))
    model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    keys = list(model.state_dict())
    names = {"model": model, "loader": loader, "cross_entropy": cross_entropy}
    exec(loop, {"torch": torch, "dcompress": dcompress, **names})
    arrays = dcompress.numpy.load_file("model.dcz")
    assert list(arrays) == list(model.state_dict()) == keys
    weights = [arrays["0.weight"], arrays["2.weight"]]
    assert all(np.unique(weight).size <= 17 for weight in weights)
    if "sparsity" in recipe:
        assert sum(np.count_nonzero(weight) for weight in weights) == round(0.05 * 2220)
    else:
        assert all(np.array_equal(weight, np.round(weight * 4) / 4) for weight in weights)


def test_the_callback(blocks, tmp_path, monkeypatch):
    """With a stub of the library: the callback counts steps, and its checkpoint resumes the run."""
    (body,) = [block.body for block in blocks if block.file == "trainer_callback.py"]
    stub = types.ModuleType("transformers")
    stub.TrainerCallback = type("TrainerCallback", (), {})
    monkeypatch.setitem(sys.modules, "transformers", stub)
    namespace = {}
    exec(body, namespace)

    def start():
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        stage = PruneStage("weight", sparsity=0.75, schedule="cubic", end=6, importance="gradient", begin=1)
        return model, Compressor(model, stage)

    def run(model, callback, first, last):
        state = types.SimpleNamespace(global_step=0)
        for step in range(first, last):
            model(torch.full((2, 8), step + 1.0)).sum().backward()
            state.global_step = step + 1
            callback.on_step_end(None, state, None, model=model, optimizer=None)
        return state

    model, compressor = start()
    callback = namespace["Compress"](compressor)
    assert isinstance(callback, stub.TrainerCallback)
    state = run(model, callback, 0, 3)
    (tmp_path / "checkpoint-3").mkdir()
    callback.on_save(types.SimpleNamespace(output_dir=str(tmp_path)), state, None, model=model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, callback, 3, 6)
    assert compressor.n_steps == 6
    assert compressor.sparsity() == 0.75

    model, again = start()
    model.load_state_dict(weights)
    again.load_state_dict(torch.load(tmp_path / "checkpoint-3" / "compressor.pt", weights_only=True))
    assert again.n_steps == 3
    run(model, namespace["Compress"](again), 3, 6)
    assert torch.equal(again.masks()["weight"], compressor.masks()["weight"])


def test_outputs_are_put_where_they_belong(runner, tmp_path):
    document = (
        "```python\nprint(6 * 7)\n```\n\n```text\nold\n```\n\n<!-- file: a.txt -->\n```toml\nb = 1\n```\n"
        "```sh\ncat a.txt\n```\n```text\n```\nend\n"
    )
    path = tmp_path / "document.md"
    path.write_text(document)
    done = CliRunner().invoke(runner.main, [str(path), "--write"])
    assert (done.exit_code, done.output) == (0, "42\nb = 1\n")
    assert path.read_text() == document.replace("old", "42").replace("```text\n```", "```text\nb = 1\n```")
    path.write_text("```sh\nfalse\n```\n")
    with pytest.raises(RuntimeError, match="ended with 1"):
        CliRunner().invoke(runner.main, [str(path)], catch_exceptions=False)
