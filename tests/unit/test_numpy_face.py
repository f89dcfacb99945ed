from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dcompress.numpy as dnp
from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.encode import encode_checkpoint
from dcompress.errors import (
    DcompressWarning,
    EncodeError,
    LimitError,
    RecipeError,
    TruncatedError,
    UnsupportedError,
    UnsupportedTensorError,
)
from dcompress.limits import DecodeLimits
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, TensorData, word_dtype
from tests.checks import raises_rule
from tests.strategies import random_words, seeds

NATIVE = [dtype.name for dtype in DTYPES if hasattr(np, dtype.name) or dtype.name == "bool"]


def array_of(name, shape, seed=0):
    dtype = DTYPE_BY_NAME[name]
    n_words = int(np.prod(shape, dtype=np.int64)) * dtype.words_per_element
    words = random_words(np.random.default_rng(seed), n_words, dtype.word_bytes)
    words = words & 1 if name == "bool" else words
    return words.view(name).reshape(shape)


def assert_same(got, want):
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        assert got[name].tobytes() == np.ascontiguousarray(want[name]).tobytes()


# Four verbs.


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.tuples(st.sampled_from(NATIVE), st.lists(st.integers(0, 7), max_size=4), seeds),
        max_size=5,
    )
)
def test_arrays_come_back_bit_for_bit(specs):
    arrays = {name: array_of(*spec) for name, spec in specs.items()}
    assert_same(dnp.load(dnp.save(arrays, recipe="lossless")), arrays)


def test_files_and_frames_are_the_same(tmp_path):
    arrays = {"w": array_of("float32", (30, 4)), "step": np.array(7, np.int64)}
    path = tmp_path / "model.dcz"
    dnp.save_file(arrays, path, metadata={"a": "b"})
    assert path.read_bytes() == dnp.save(arrays, metadata={"a": "b"})
    assert_same(dnp.load_file(path), arrays)
    assert_same(dnp.load_file(str(path), threads=1), arrays)
    with dnp.safe_open(path) as file:
        assert file.metadata() == {"a": "b"}


@pytest.mark.parametrize("recipe", ["lossless", "balanced", "paper"])
def test_what_is_loaded_is_what_compression_makes(recipe):
    rng = np.random.default_rng(1)
    arrays = {
        "conv": rng.normal(0, 0.1, (8, 4, 10, 10)).astype(np.float32),
        "fc": rng.normal(0, 0.1, (64, 40)).astype(np.float32),
        "bias": rng.normal(0, 0.1, 64).astype(np.float32),
    }
    loaded = dnp.load(dnp.save(arrays, recipe=recipe))
    assert loaded["bias"].tobytes() == arrays["bias"].tobytes()
    if recipe == "lossless":
        assert_same(loaded, arrays)
        return
    assert np.unique(loaded["fc"]).size <= 257
    error = np.abs(loaded["fc"] - arrays["fc"])
    assert error.max() < (0.5 if recipe == "paper" else 0.05)
    # Compressing again changes nothing: the values are few already.
    assert_same(dnp.load(dnp.save(loaded, recipe=recipe)), loaded)


def test_frames_do_not_depend_on_threads():
    arrays = {"w": np.random.default_rng(0).normal(0, 1, 400_000).astype(np.float32).reshape(400, -1)}
    frames = {dnp.save(arrays, recipe="lossless", threads=threads) for threads in (1, 2, 5)}
    assert len(frames) == 1


def test_files_are_kept_if_they_may_not_be_replaced(tmp_path):
    path = tmp_path / "model.dcz"
    dnp.save_file({"w": np.zeros(3)}, path)
    before = path.read_bytes()
    with pytest.raises((OSError, EncodeError)):
        dnp.save_file({"w": np.ones(3)}, path, overwrite=False)
    assert path.read_bytes() == before
    dnp.save_file({"w": np.ones(3)}, path)
    assert dnp.load_file(path)["w"].tolist() == [1, 1, 1]


# Arrays of every make.


def test_logical_values_are_stored_whatever_the_strides():
    base = np.arange(60, dtype=np.int32).reshape(3, 4, 5)
    arrays = {
        "transposed": base.T,
        "strided": base[:, ::2, ::-1],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(np.float32(3), (4, 5)),
        "big endian": np.arange(5, dtype=">f8"),
        "read-only": np.frombuffer(b"abcdefgh", np.uint16),
        "matrix scalar": np.float64(2.5) * np.ones(()),
    }
    loaded = dnp.load(dnp.save(arrays, recipe="lossless"))
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)


def test_equal_memory_is_stored_once_and_comes_back_as_one_array():
    w = array_of("float32", (50, 50))
    arrays = {"a": w, "b": w, "view": w[:], "copy": w.copy(), "part": w[:10], "turned": w.T}
    frame = dnp.save(arrays, recipe="lossless")
    loaded = dnp.load(frame)
    assert_same(loaded, arrays)
    assert loaded["a"] is loaded["b"] is loaded["view"]
    assert loaded["copy"] is not loaded["a"]
    assert len(frame) < 4 * w.nbytes


def test_arrays_that_are_made_when_looked_up_are_not_tied(tmp_path):
    arrays = {name: np.full(3000, number, np.float32) for number, name in enumerate("abcd")}
    np.savez(tmp_path / "m.npz", **arrays)
    with np.load(tmp_path / "m.npz") as lazy:
        assert_same(dnp.load(dnp.save(lazy, recipe="lossless")), arrays)


def test_numpy_scalars_are_not_tied():
    scalars = {name: np.float32(number) for number, name in enumerate("abcd")}
    loaded = dnp.load(dnp.save(scalars))
    assert {name: float(value) for name, value in loaded.items()} == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_empty_arrays_are_never_tied():
    empty = np.zeros((0, 3), np.float32)
    loaded = dnp.load(dnp.save({"a": empty, "b": empty, "c": np.zeros((0, 4), np.int8)}))
    assert [one.shape for one in loaded.values()] == [(0, 3), (0, 3), (0, 4)]


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([object()]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, np.longdouble) if np.longdouble(0).nbytes > 8 else np.array(["x"]),
    ],
)
def test_dtypes_that_torch_lacks_are_refused_by_name(array):
    with pytest.raises(UnsupportedTensorError, match="'odd'"):
        dnp.save({"odd": array})


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_can_be_read(dtype):
    shape = (3, 2)
    words = random_words(np.random.default_rng(0), 6 * dtype.words_per_element, dtype.word_bytes)
    words = words & 1 if dtype.name == "bool" else words
    frame = encode_checkpoint(Checkpoint({"w": TensorData(dtype, shape, words)}), Recipe(preset="lossless"))
    array = dnp.load(frame.to_bytes())["w"]
    assert array.tobytes() == words.tobytes()
    if dtype.name in NATIVE:
        assert (array.dtype, array.shape) == (np.dtype(dtype.name), shape)
    else:
        assert array.dtype == word_dtype(dtype.word_bytes)
        assert array.shape == (shape if dtype.words_per_element == 1 else (*shape, 2))
    with dnp.safe_open(frame.to_bytes()) as file:
        assert file.dtype("w") == dtype.name


def test_a_rank_that_numpy_lacks_is_unsupported():
    data = TensorData(DTYPE_BY_NAME["complex32"], (1,) * 64, np.zeros(2, np.uint16))
    frame = encode_checkpoint(Checkpoint({"w": data})).to_bytes()
    with pytest.raises(UnsupportedError, match="rank 64"):
        dnp.load(frame)


def test_nan_payloads_zeros_and_infinities_survive_every_recipe():
    words = np.array(
        [0x7FC00001, 0xFFC12345, 0x80000000, 0, 0x7F800000, 0xFF800000, 1, 0x80000001], np.uint32
    )
    tensor = np.tile(words, 1000).view(np.float32).reshape(80, 100)
    for recipe in ("lossless", "balanced", "paper"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DcompressWarning)
            assert_same(dnp.load(dnp.save({"w": tensor}, recipe=recipe)), {"w": tensor})


def test_nan_in_a_tensor_that_would_be_shared_is_told():
    w = np.random.default_rng(0).normal(0, 1, (100, 100)).astype(np.float32)
    w[3, 4] = np.nan
    with pytest.warns(DcompressWarning, match=r"'w' holds 1 NaN"):
        frame = dnp.save({"w": w})
    assert_same(dnp.load(frame), {"w": w})


def test_loaded_arrays_can_be_written_to():
    loaded = dnp.load(dnp.save({"raw": array_of("int16", (9,)), "few": np.ones(5000), "one": np.zeros(1)}))
    for array in loaded.values():
        array[...] = 1
        assert array.flags.c_contiguous


# What is refused.


def test_reserved_and_broken_names_are_refused():
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(EncodeError):
            dnp.save({name: np.zeros(1)})


def test_unknown_presets_are_refused():
    with pytest.raises(RecipeError, match="preset"):
        dnp.save({"w": np.zeros(1)}, recipe="blanced")


def test_limits_and_damage_are_reported():
    frame = dnp.save({"w": np.zeros((1000, 1000))})
    with raises_rule(LimitError, "LIM-05"):
        dnp.load(frame, limits=DecodeLimits(max_output_bytes=1000))
    with raises_rule(TruncatedError, "FRM-01"):
        dnp.load(frame[:-1])


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_counted_from_one(threads):
    frame = dnp.save({})
    with pytest.raises(ValueError, match="threads"):
        dnp.load(frame, threads=threads)
    with pytest.raises(ValueError, match="threads"):
        dnp.save({}, threads=threads)


def test_the_codebook_gives_the_tensor():
    weights = np.where(np.arange(5000) % 7 == 0, np.arange(5000) % 4 - 1.5, 0).astype(np.float32)
    with dnp.safe_open(dnp.save({"w": weights}, recipe="lossless")) as file:
        codebook = file.get_codebook("w")
        np.testing.assert_array_equal(codebook[0][file.get_shared("w").labels], weights)
        assert codebook.dtype == np.float32
    with dnp.safe_open(dnp.save({"w": np.random.default_rng(0).random(300)})) as file:
        assert file.get_codebook("w") is None
