from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.coding import CODERS
from dcompress.constants import CODER_PLANES, CODER_RAW, DTYPE_BY_NAME, DTYPES, MAX_LABELS, SHARED_CODERS
from dcompress.decibels import to_decibels
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint, encode_tensor, measure_error
from dcompress.errors import EncodeError, RecipeError
from dcompress.recipe import Recipe, Rule
from dcompress.recognition import recognise
from dcompress.stages import Checkpoint, SharedTensor, TensorData, word_dtype
from tests.checks import assert_same, frame_of, read_everything
from tests.strategies import random_codebook, random_words, tensors

F32 = DTYPE_BY_NAME["float32"]
LOSSLESS = Recipe(preset="lossless")
OVERHEAD = 96
OVERHEAD_OF_A_TENSOR = 24


def data_of(values, shape=None):
    values = np.asarray(values, np.float32)
    return TensorData(F32, shape or values.shape, values.reshape(-1).view(np.uint32))


def normal(shape, seed=0):
    return data_of(np.random.default_rng(seed).normal(0, 0.1, shape))


def encoded(tensors, recipe=LOSSLESS, **options):
    return encode_checkpoint(Checkpoint(tensors), recipe, **options)


# Tensors of few values are recognised.


@given(tensors())
def test_recognised_tensors_gather_to_the_same_words(tensor):
    forms = recognise(tensor)
    n_values = np.unique(tensor.words).size
    if n_values <= min(MAX_LABELS, tensor.words.size // 4 + 1):
        assert forms[0].n_labels == n_values
        assert forms[0].has_zero == bool((tensor.words == 0).any())
    for shared in forms:
        assert_same({"w": shared.gather()}, {"w": tensor})
        assert shared.n_labels >= n_values  # more if they are multiples of a step
        assert not (shared.has_zero and (shared.codebook == 0).any())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_is_encoded_in_every_way(dtype):
    rng = np.random.default_rng(dtype.code)
    n = 3000 * dtype.words_per_element
    many = random_words(rng, n, dtype.word_bytes)
    few = rng.choice(many[:5], n)
    sparse = np.where(rng.random(n) < 0.05, few, word_dtype(dtype.word_bytes).type(0))
    constant = np.full(n, many[0])
    named = {"many": many, "few": few, "sparse": sparse, "constant": constant, "zero": constant * 0}
    model = {name: TensorData(dtype, (3000,), words) for name, words in named.items()}
    model["scalar"] = TensorData(dtype, (), many[: dtype.words_per_element])
    model["empty"] = TensorData(dtype, (0, 2), many[:0])
    frame = encoded(model)
    assert_same(read_everything(frame.to_bytes()), model)
    coders = {report.name: report.coded.coder for report in frame.reports}
    assert coders["few"] in SHARED_CODERS
    assert coders["sparse"] in SHARED_CODERS
    assert dtype.word_bytes == 1 or coders["many"] not in SHARED_CODERS


@pytest.mark.parametrize("word", [0, 1, 0x80000000, 0x7FC00001, 0xFFFFFFFF])
def test_constant_tensors_cost_next_to_nothing(word):
    tensor = TensorData(F32, (1000, 1000), np.full(10**6, word, np.uint32))
    frame = encoded({"w": tensor})
    assert frame.n_bytes < 64
    assert_same(read_everything(frame.to_bytes()), {"w": tensor})


def test_more_values_than_labels_are_stored_without_a_codebook():
    words = np.random.default_rng(0).integers(0, MAX_LABELS + 1, 60_000).astype(np.uint32)
    words[: MAX_LABELS + 1] = np.arange(MAX_LABELS + 1)
    one = encode_tensor(TensorData(F32, (60_000,), words))
    assert one.coder in (CODER_RAW, CODER_PLANES)
    assert encode_tensor(TensorData(F32, (60_000,), words % MAX_LABELS)).coder in SHARED_CODERS


def test_codebooks_larger_than_the_format_holds_are_gathered():
    n_groups, n_centroids = 300, 256
    rng = np.random.default_rng(0)
    codebook = random_codebook(rng, F32, n_groups, n_centroids, has_zero=False)
    labels = rng.integers(0, n_centroids, n_groups * 300).astype(np.uint16)
    tensor = SharedTensor(F32, (n_groups, 300), codebook, labels, False)
    one = encode_tensor(tensor)
    assert one.coder in (CODER_RAW, CODER_PLANES)
    assert_same(read_everything(frame_of({"w": one})), {"w": tensor})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_nan_payloads_zeros_and_infinities_are_kept(dtype):
    dtype = DTYPE_BY_NAME[dtype]
    bits = 8 * dtype.word_bytes
    sign, one = 1 << (bits - 1), 1
    special = [0, sign, sign - 1, 2 * sign - 1, one, sign | one, sign >> 1, (sign >> 1) + 1]
    for n in (8, 4000):
        words = np.resize(np.array(special, np.uint64), n).astype(word_dtype(dtype.word_bytes))
        tensor = TensorData(dtype, (n,), words)
        assert_same(read_everything(encoded({"w": tensor}).to_bytes()), {"w": tensor})


def test_the_smallest_tensors_are_stored_as_they_are():
    model = {str(n): normal((n,), n) for n in range(1, 12)}
    frame = encoded(model)
    assert_same(read_everything(frame.to_bytes()), model)
    for report in frame.reports:
        assert report.coded.stored_bytes <= 4 * int(report.name)


# Sizes.


@pytest.mark.parametrize(("density", "n_centroids"), [(0.5, 16), (0.1, 32), (0.02, 64)])
def test_a_million_shared_weights_come_within_a_percent_of_their_entropy(
    reference_kernels, density, n_centroids
):
    n = 1_000_000
    rng = np.random.default_rng(n_centroids)
    values = np.sort(rng.normal(0, 0.05, n_centroids).astype(np.float32))
    chances = np.exp(-np.square(values / 0.05))
    labels = 1 + rng.choice(n_centroids, n, p=chances / chances.sum())
    labels[rng.random(n) >= density] = 0
    tensor = SharedTensor(F32, (1000, 1000), values.view(np.uint32)[None], labels.astype(np.uint16), True)
    counts = np.bincount(labels)
    entropy = -(counts / n * np.log2(counts / n)).sum() * n / 8
    size = len(frame_of({"w": encode_tensor(tensor)}))
    assert size <= 1.01 * (entropy + values.nbytes), size / (entropy + values.nbytes)


@pytest.mark.parametrize("n_tensors", [0, 1, 30])
def test_frames_of_noise_stay_within_the_overhead_budget(n_tensors):
    rng = np.random.default_rng(0)
    model = {
        f"layers.{k}.weight": data_of(rng.integers(0, 2**32, 50, np.uint32).view(np.float32), (5, 10))
        for k in range(n_tensors)
    }
    payload = sum(tensor.n_bytes for tensor in model.values())
    names = sum(len(name) for name in model)
    assert encoded(model).n_bytes <= payload + OVERHEAD + OVERHEAD_OF_A_TENSOR * n_tensors + names


def test_aliases_cost_their_names_only():
    model = {"w": normal((100, 100)), "tied": normal((100, 100))}
    alone = encoded({"w": model["w"]}).n_bytes
    tied = encode_checkpoint(Checkpoint(model, {"tied": "w"}), LOSSLESS).n_bytes
    assert tied <= alone + 4 + len("tied")


# Frames are a function of checkpoint and recipe alone.


@pytest.mark.parametrize("preset", ["lossless", "balanced", "paper"])
def test_threads_change_nothing(preset):
    rng = np.random.default_rng(0)
    model = {
        "dense": normal((300, 700)),
        "sparse": data_of(np.where(rng.random((500, 800)) < 0.05, rng.integers(1, 9, (500, 800)), 0)),
        "ints": TensorData(DTYPE_BY_NAME["int64"], (9,), np.arange(9, dtype=np.uint64)),
    }
    frames = {encoded(model, Recipe(preset=preset), threads=n).to_bytes() for n in (1, 2, 5, 1)}
    assert len(frames) == 1


@given(tensors(), st.integers(1, 4))
def test_a_pool_changes_nothing(tensor, threads):
    with ThreadPoolExecutor(threads) as pool:
        assert frame_of({"w": encode_tensor(tensor, pool)}) == frame_of({"w": encode_tensor(tensor)})


def test_memory_layout_changes_nothing():
    words = random_words(np.random.default_rng(0), 2000, 4)
    read_only = words.copy()
    read_only.flags.writeable = False
    shifted = np.zeros(8003, np.uint8)[3:].view(np.uint32)
    shifted[:] = words
    frames = {encoded({"w": TensorData(F32, (2000,), one)}).to_bytes() for one in (words, read_only, shifted)}
    assert len(frames) == 1


# What surrounds the tensors.


def test_parts_bytes_and_streams_are_the_same_frame():
    frame = encoded({"a": normal((40, 40)), "b": normal((3,))}, Recipe(), threads=2)
    stream = io.BytesIO()
    frame.write(stream)
    assert stream.getvalue() == frame.to_bytes() == b"".join(frame.parts())
    assert len(stream.getvalue()) == frame.n_bytes


def test_ties_are_stored_once_and_reported_once():
    model = {"a": normal((30, 30)), "b": normal((30, 30)), "c": normal((5,))}
    frame = encode_checkpoint(Checkpoint(model, {"b": "a"}), Recipe())
    assert [report.name for report in frame.reports] == ["a", "c"]
    got = read_everything(frame.to_bytes())
    assert list(got) == ["a", "b", "c"]
    assert got["a"] is got["b"]


def test_metadata_is_kept_in_order():
    metadata = {"b": "1", "a": "ü", "": ""}
    frame = encode_checkpoint(Checkpoint({}, metadata=metadata), LOSSLESS)
    with open_frame(frame.to_bytes()) as reader:
        assert list(reader.directory.metadata.items()) == list(metadata.items())


def test_progress_counts_the_bytes_of_every_stored_tensor():
    seen = []
    model = {"a": normal((30, 30)), "b": normal((30, 30)), "c": normal((5,))}
    encode_checkpoint(Checkpoint(model, {"b": "a"}), Recipe(), progress=seen.append)
    assert seen == [3600, 20]


@pytest.mark.parametrize("name", ["__metadata__", "a\ud800b", 1])
def test_names_that_no_file_can_hold_are_refused(name):
    with pytest.raises(EncodeError, match="rename"):
        encoded({name: normal((3,))})


@pytest.mark.parametrize("name", ["", "../x", "a\x00b", "a b", "ü" * 100])
def test_all_other_names_are_opaque(name):
    assert list(read_everything(encoded({name: normal((3,))}).to_bytes())) == [name]


def test_a_name_longer_than_readers_allow_is_refused():
    with pytest.raises(EncodeError, match="rename"):
        encoded({"x" * 70_000: normal((3,))})


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {1: "a"}, {"a": "\ud800"}, {"\ud800": "a"}, {"x" * 70_000: ""}]
)
def test_metadata_that_no_file_can_hold_is_refused(metadata):
    with pytest.raises(EncodeError, match="metadata"):
        encode_checkpoint(Checkpoint({}, metadata=metadata))


def test_an_empty_tensor_of_impossible_shape_is_refused():
    with pytest.raises(EncodeError):
        encoded({"w": TensorData(F32, (0, 1 << 62), np.zeros(0, np.uint32))})


def test_recipes_that_fit_nothing_are_refused():
    with pytest.raises(RecipeError):
        encoded({"w": normal((3,))}, Recipe(rules=(Rule("nobody", {"bits": 3}),)))


# Errors are measured.


def test_what_was_not_touched_has_no_error():
    tensor = normal((30, 30))
    assert measure_error(tensor, tensor) == (0.0, 0.0)
    assert all(report.sqnr == math.inf for report in encoded({"w": tensor}).reports)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_errors_are_sums_of_squares(name):
    dtype = DTYPE_BY_NAME[name]
    values = np.random.default_rng(0).normal(0, 1, 4000)
    if name == "bfloat16":
        words = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        values = (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        values = values.astype(name)
        words = values.view(word_dtype(dtype.word_bytes))
    original = TensorData(dtype, (4000,), words)
    halved = TensorData(dtype, (4000,), np.where(np.arange(4000) % 2, words, words * 0))
    signal, noise = measure_error(original, halved)
    squares = np.square(values.astype(np.float64))
    assert signal == pytest.approx(squares.sum())
    assert noise == pytest.approx(squares[::2].sum())


@pytest.mark.parametrize(
    ("signal", "noise", "decibels"),
    [
        (1, 0, math.inf),
        (0, 0, math.inf),
        (0, 1, -math.inf),
        (100, 1, 20.0),
        (1, 1, 0.0),
        (1e-200, 1e200, pytest.approx(-4000)),
        (1, math.inf, pytest.approx(math.nan, nan_ok=True)),
        (math.inf, math.inf, pytest.approx(math.nan, nan_ok=True)),
    ],
)
def test_decibels(signal, noise, decibels):
    assert to_decibels(signal, noise) == decibels


def test_every_coder_is_used_by_some_tensor():
    rng = np.random.default_rng(0)
    n = 20_000

    def labels(density, n_values):
        return data_of(np.where(rng.random(n) < density, rng.integers(1, n_values + 1, n), 0))

    model = {
        "raw": data_of(rng.integers(0, 2**32, n, np.uint32).view(np.float32)),
        "planes": normal((n,)),
        "labels": data_of(rng.geometric(0.4, n)),
        "zero_run": labels(0.1, 2),
        "split_run": labels(0.2, 2000),
        "fixed": data_of(rng.permutation(np.arange(n) % 256)),
    }
    used = set()
    for effort in (1, 9):
        frame = encode_checkpoint(Checkpoint(model), LOSSLESS, effort=effort)
        assert_same(read_everything(frame.to_bytes()), model)
        used |= {report.coded.coder for report in frame.reports}
    assert used >= set(CODERS) - {2}
