from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcompress.compression import compress_checkpoint
from dcompress.constants import CODER_CONTEXT, DTYPE_BY_NAME
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.errors import EncodeError, RecipeError
from dcompress.model_file import read_checkpoint
from dcompress.profiles import BASELINE, FULL
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, SharedTensor, TensorData
from tests.vectors import check_spec, pseudo_code

MODELS = Path(__file__).parents[2] / "fixtures" / "models"
FLOAT32 = DTYPE_BY_NAME["float32"]


def floats(shape, seed=0, scale=1.0):
    values = np.random.default_rng(seed).laplace(scale=scale, size=shape).astype(np.float32)
    return TensorData(FLOAT32, shape, values.reshape(-1).view(np.uint32))


def check_baseline(frame):
    """Check a frame as the spec does, and decode it."""
    assert check_spec.beyond_baseline(pseudo_code(), frame) == ""
    with open_frame(frame) as reader:
        return dict(reader.read_all())


RECIPES = [
    {"preset": "lossless"},
    {"preset": "balanced"},
    {"preset": "paper"},
    {"step": 0.01},
    {"step": 0.0005, "states": 8},
]


@pytest.mark.filterwarnings("ignore::dcompress.DcompressWarning")
@pytest.mark.parametrize("effort", [2, 6, 8])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_baseline_file_asks_little_and_decodes_to_the_same(recipe, effort):
    checkpoint = read_checkpoint(MODELS / "lenet_300_100.safetensors")
    recipe = Recipe.from_dict({**recipe, "profile": "baseline"})
    frame = encode_checkpoint(checkpoint, recipe, effort=effort).to_bytes()
    decoded = check_baseline(frame)
    for name, tensor in compress_checkpoint(checkpoint, recipe, effort=effort).items():
        words = tensor.gather().words if isinstance(tensor, SharedTensor) else tensor.words
        np.testing.assert_array_equal(decoded[name].words, words)


def test_long_rows_and_many_values_are_coded_by_others():
    rng = np.random.default_rng(3)
    long_rows = TensorData(FLOAT32, (12, 5000), rng.integers(0, 9, 60000).astype(np.float32).view(np.uint32))
    many = TensorData(FLOAT32, (64, 256), rng.integers(0, 3000, 16384).astype(np.float32).view(np.uint32))
    sparse = np.where(rng.random(400_000) < 0.02, rng.integers(1, 9, 400_000), 0).astype(np.float32)
    checkpoint = Checkpoint(
        {"long": long_rows, "many": many, "sparse": TensorData(FLOAT32, (400_000,), sparse.view(np.uint32))}
    )
    frame = encode_checkpoint(checkpoint, Recipe("lossless", profile="baseline"), effort=9).to_bytes()
    decoded = check_baseline(frame)
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(decoded[name].words, tensor.words)
    with open_frame(frame) as reader:
        coders = {name: record.coder for name, record in reader.directory.tensors.items()}
        assert coders["long"] != CODER_CONTEXT
        assert reader.directory.tensors["many"].n_labels == 0


@pytest.mark.parametrize(
    ("tensors", "metadata", "what"),
    [
        ({"x" * 256: floats((4,))}, {}, "bytes of the name"),
        ({"x": floats((1,) * 9)}, {}, "dimensions of tensor 'x'"),
        ({"x": floats((4,))}, {"k" * 256: ""}, "bytes of the metadata key"),
        ({f"{n}": floats((0,)) for n in range((1 << 14) + 1)}, {}, "tensors"),
        ({"x": floats((4,))}, {"k": "v" * (1 << 20)}, "bytes of the directory"),
    ],
    ids=["name", "rank", "key", "tensors", "directory"],
)
def test_models_that_a_small_reader_refuses_are_refused(tensors, metadata, what):
    checkpoint = Checkpoint(tensors, metadata=metadata)
    encode_checkpoint(checkpoint, Recipe("lossless"))
    with pytest.raises(EncodeError, match=what):
        encode_checkpoint(checkpoint, Recipe("lossless", profile="baseline"))


@pytest.mark.parametrize("shape", [(2, 20000), (7, 12000), (3, 9000), (20, 30000), (17, 4096), (5, 4000)])
def test_long_rows_by_rate(shape):
    checkpoint = Checkpoint({"w": floats(shape, scale=0.1), "v": floats((64, 64), scale=0.1)})
    recipe = Recipe(step=0.1, profile="baseline")
    decoded = check_baseline(encode_checkpoint(checkpoint, recipe, effort=5).to_bytes())
    for name, tensor in compress_checkpoint(checkpoint, recipe, effort=5).items():
        np.testing.assert_array_equal(decoded[name].words, tensor.gather().words)


def test_profiles_in_recipes():
    recipe = Recipe.from_toml('profile = "baseline"')
    assert recipe.profile == "baseline"
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert "profile" not in Recipe().to_dict()
    assert Recipe().extended(recipe).profile == "baseline"
    assert recipe.extended(Recipe()).profile == "baseline"
    with pytest.raises(RecipeError, match="did you mean 'baseline'"):
        Recipe.from_dict({"profile": "baselin"})
    with pytest.raises(RecipeError, match="unknown profile 'tiny'"):
        Recipe(profile="tiny")


def test_a_profile_bounds_shifts():
    assert (FULL.shift(19), BASELINE.shift(19), BASELINE.shift(9)) == (19, 14, 9)
