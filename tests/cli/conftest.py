from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from dcompress.cli import cli

LENET = Path(__file__).parents[2] / "fixtures" / "models" / "lenet_300_100.safetensors"


@pytest.fixture
def dcz():
    """Run a command in this process; an error must be lines that begin with ``dcz: ``, never a traceback."""

    def run(*args, code=0, stdin=None):
        result = CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        for line in result.stderr.splitlines():
            assert "--help" in args or "-" in args or line.startswith("dcz: "), result.stderr
        return result

    return run


@pytest.fixture
def fails(dcz):
    """Run a command that must end with an error: one line on stderr, nothing on stdout."""

    def run(*args, code, says="", stdin=None):
        result = dcz(*args, code=code, stdin=stdin)
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
        assert re.search(says, result.stderr), result.stderr
        return result.stderr

    return run


@pytest.fixture(scope="session")
def lenet_frame(tmp_path_factory):
    """LeNet-300-100 after ``--preset paper``."""
    target = tmp_path_factory.mktemp("lenet") / "lenet.dcz"
    result = CliRunner().invoke(cli, ["encode", str(LENET), "--preset", "paper", "-o", str(target)])
    assert result.exit_code == 0, result.output
    return target


@pytest.fixture
def folder(tmp_path, lenet_frame):
    """A folder with a LeNet, its frame, and a tiny model of a few dtypes."""
    shutil.copy(LENET, tmp_path / "lenet.safetensors")
    shutil.copy(lenet_frame, tmp_path / "lenet.dcz")
    rng = np.random.default_rng(7)
    tiny = {
        "fc.weight": rng.normal(size=(64, 40)).astype(np.float32),
        "fc.bias": rng.normal(size=64).astype(np.float32),
        "steps": np.array(12, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    save_file(tiny, tmp_path / "tiny.safetensors", {"author": "nobody"})
    return tmp_path


@pytest.fixture
def listing(folder):
    """Check that a command adds no file to the folder, not even a temporary one, and changes none."""

    def snapshot():
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    before = snapshot()
    yield snapshot
    assert snapshot() == before
