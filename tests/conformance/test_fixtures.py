"""The models in fixtures/ pass through the codec unchanged, whichever kernels and however many threads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dcompress.compression import compress_checkpoint
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.model_file import read_checkpoint
from dcompress.recipe import PRESETS, Recipe
from dcompress.stages import SharedTensor

ROOT = Path(__file__).parents[2]
MODELS = sorted(
    path for path in (ROOT / "fixtures" / "models").iterdir() if path.suffix in (".safetensors", ".npz")
)


@pytest.mark.filterwarnings("ignore::dcompress.DcompressWarning")
@pytest.mark.parametrize("effort", [1, 6, 9])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_decoding_gives_what_compression_made(path, preset, effort, monkeypatch):
    checkpoint = read_checkpoint(path)
    frame = encode_checkpoint(checkpoint, Recipe(preset), effort=effort).to_bytes()
    assert encode_checkpoint(checkpoint, Recipe(preset), effort=effort, threads=2).to_bytes() == frame
    compressed = compress_checkpoint(checkpoint, Recipe(preset), effort=effort)
    for kernels, threads in [("numpy", 1), ("numpy", 2), ("numba", 1), ("numba", 2)]:
        monkeypatch.setenv("DCOMPRESS_KERNELS", kernels)
        decoded = open_frame(frame, threads=threads).read_all()
        assert list(decoded) == list(checkpoint.tensors)
        for name, tensor in decoded.items():
            expected = compressed[name]
            expected = expected.gather() if isinstance(expected, SharedTensor) else expected
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(tensor.words, expected.words)


def test_synthetic_models_are_what_the_tool_makes():
    subprocess.run([sys.executable, ROOT / "tools" / "make_fixtures.py", "--check"], check=True)
