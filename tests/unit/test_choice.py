from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from dcompress.choice import choose_plain, choose_shared, table_bytes
from dcompress.coding import Codebook, FixedWidth, Labels, Planes, Raw, SplitRun, ZeroRun
from dcompress.coding.range_coder import SideWriter
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import DTYPE_BY_NAME, SHARED_CODERS
from dcompress.stages import SharedTensor
from tests.checks import coded, varint
from tests.strategies import random_codebook, random_words, shared_tensors, tensors

F32 = DTYPE_BY_NAME["float32"]


def shared(n_words, density, n_centroids, skew=0.0, seed=0):
    """Labels whose counts fall off by ``skew``; every word is kept with the same chance."""
    rng = np.random.default_rng(seed)
    chances = np.exp(-skew * np.arange(n_centroids))
    labels = 1 + rng.choice(n_centroids, n_words, p=chances / chances.sum())
    has_zero = density < 1
    labels = np.where(rng.random(n_words) < density, labels, 0) if has_zero else labels - 1
    codebook = random_codebook(rng, F32, 1, n_centroids, has_zero)
    return SharedTensor(F32, (n_words,), codebook, labels.astype(np.uint16), has_zero)


def stored_bits(choice, tensor):
    return 8 * coded(tensor, choice.coder, choice.chunk_shift).stored_bytes


# What is estimated is what comes out.


@settings(max_examples=60)
@given(shared_tensors())
def test_costs_of_shared_tensors_are_those_of_the_stream(tensor):
    choice = choose_shared(tensor)
    # Lanes and chunks end with whole bytes and say how long they are; tables are whole bytes each.
    slack = 8 * 40
    assert choice.cost - 8 * 3 <= stored_bits(choice, tensor) <= choice.cost + slack


@settings(max_examples=60)
@given(tensors())
def test_costs_of_plain_tensors_are_those_of_the_stream(tensor):
    choice = choose_plain(tensor.dtype, tensor.words)
    lanes = tensor.dtype.word_bytes * 4 * 3 * 8
    assert choice.cost <= stored_bits(choice, tensor) <= choice.cost + lanes
    assert choice.cost <= 8 * tensor.words.nbytes


@pytest.mark.parametrize("density", [0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("n_centroids", [1, 4, 30, 300])
def test_no_simple_rival_is_smaller(density, n_centroids):
    tensor = shared(30_000, density, n_centroids, skew=0.05)
    choice = choose_shared(tensor)
    codebook = Codebook.of(tensor)
    best = stored_bits(choice, tensor)
    rivals = [FixedWidth(codebook), *(coder for coder, _ in Labels.fit(codebook, tensor.labels, 30_000))]
    if tensor.has_zero:
        statistics = RunStatistics(tensor.labels, tensor.n_labels, 30_000)
        cuts = [(8, 0), (32, 0), (4, 2), (16, 3)]
        fits = [kind.fit(codebook, statistics, *cut)[0] for kind in (ZeroRun, SplitRun) for cut in cuts]
        rivals += [
            c for c in fits if c.usable and (isinstance(c, SplitRun) or c.code.code_lengths.size <= 4096)
        ]
    for rival in rivals:
        assert best <= 8 * coded(tensor, rival).stored_bytes + 200, type(rival)


# Which coder for which tensor.


@pytest.mark.parametrize(
    ("tensor", "kinds"),
    [
        (shared(50_000, 0.05, 20, 0.1), {ZeroRun, SplitRun}),
        (shared(50_000, 0.02, 3000), {SplitRun}),
        (shared(50_000, 0.9, 30, 0.1), {Labels, ZeroRun}),
        (shared(50_000, 1.0, 30, 0.1), {Labels}),
        (shared(50_000, 1.0, 32), {FixedWidth, Labels}),
        (shared(50_000, 1.0, 1), {Labels, FixedWidth}),
    ],
)
def test_the_coder_fits_the_tensor(tensor, kinds):
    assert type(choose_shared(tensor).coder) in kinds


def test_few_skewed_labels_are_coded_in_blocks():
    # One label in ten: a bit each alone, less than half a bit in blocks.
    tensor = SharedTensor(
        F32,
        (50_000,),
        np.array([[5, 6]], np.uint32),
        (np.random.default_rng(0).random(50_000) < 0.1).astype(np.uint16),
        False,
    )
    choice = choose_shared(tensor)
    assert isinstance(choice.coder, Labels)
    assert choice.coder.block > 2
    assert choice.cost < 0.5 * 50_000


def test_noise_is_stored_raw_and_weights_in_planes():
    noise = random_words(np.random.default_rng(0), 5000, 4)
    assert isinstance(
        choose_plain(F32, np.random.default_rng(0).integers(0, 2**32, 5000, np.uint32)).coder, Raw
    )
    weights = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32).view(np.uint32)
    choice = choose_plain(F32, weights)
    assert isinstance(choice.coder, Planes)
    assert choice.cost < 0.9 * 8 * weights.nbytes
    assert noise.size


def test_all_pruned_costs_next_to_nothing():
    tensor = SharedTensor(F32, (100_000,), np.zeros((1, 0), np.uint32), np.zeros(100_000, np.uint16), True)
    assert stored_bits(choose_shared(tensor), tensor) < 8 * 20


# Chunks.


@pytest.mark.parametrize("n_words", [1, 1000, 90_000, 98_304, 98_305, 400_000])
def test_chunks_are_many_or_one(n_words):
    for choice in (
        choose_shared(shared(n_words, 0.2, 5)),
        choose_shared(shared(n_words, 1.0, 5)),
        choose_plain(F32, random_words(np.random.default_rng(0), n_words, 4)),
    ):
        if choice.chunk_shift:
            assert n_words > 1 << choice.chunk_shift
            assert choice.chunk_shift >= 16
        else:
            assert n_words <= 3 << 20


# Tables.


def test_tables_stand_behind_their_size():
    tensor = shared(500, 0.3, 5)
    coder = choose_shared(tensor).coder
    writer = SideWriter()
    coder.write_tables(writer)
    tables = writer.finish()
    assert table_bytes(coder) == varint(len(tables)) + tables


def test_raw_tensors_have_no_tables():
    assert table_bytes(Raw()) == b""


def test_coders_with_a_codebook_are_those_that_the_directory_knows():
    for density in (0.1, 1.0):
        assert choose_shared(shared(3000, density, 9)).coder.number in SHARED_CODERS
