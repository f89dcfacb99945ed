"""Nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dcompress.encode import encode_checkpoint
from dcompress.model_file import read_checkpoint
from dcompress.recipe import Recipe

LENET = Path(__file__).parents[2] / "fixtures" / "models" / "lenet_300_100.safetensors"
HEAVY = ("torch", "sklearn", "scipy", "numba", "llvmlite", "rich")


def loaded_after(code, *args):
    """Return which heavy modules a fresh interpreter has loaded after some code."""
    script = (
        "import sys\n"
        f"{code}\n"
        f"print('loaded:', *(name for name in {(*HEAVY, 'numpy', 'click')!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, check=True)
    return done.stdout.decode().splitlines()[-1].split()[1:]


def after_command(*args):
    code = "from dcompress.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code"
    return loaded_after(code, *args)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    path = tmp_path_factory.mktemp("startup") / "lenet.dcz"
    # A low effort, and so no coder for which the compiled kernels are worth the wait.
    path.write_bytes(encode_checkpoint(read_checkpoint(LENET), Recipe("paper"), effort=1).to_bytes())
    return path


def test_import():
    assert loaded_after("import dcompress") == []


@pytest.mark.parametrize("command", ["", "encode", "decode", "info", "verify", "compare", "tune"])
def test_help(command):
    assert after_command(*command.split(), "--help") == ["click"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_info(frame, options):
    assert after_command("info", frame, *options) == ["numpy", "click"]


def test_verify_and_compare(frame):
    assert after_command("verify", frame) == ["numpy", "click"]
    assert after_command("compare", frame, frame) == ["numpy", "click"]


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_decode(frame, tmp_path, suffix):
    assert after_command("decode", frame, "-o", tmp_path / f"out.{suffix}") == ["numpy", "click"]


def test_numpy_face(frame):
    assert loaded_after("import dcompress.numpy as d; d.load_file(sys.argv[1])", frame) == ["numpy"]
