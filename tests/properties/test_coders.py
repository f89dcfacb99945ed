"""Every coder gives back every tensor that it can hold, in chunks of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dcompress.coding import (
    CODERS,
    Codebook,
    FixedWidth,
    Labels,
    Planes,
    Raw,
    SplitRun,
    TableSet,
    TensorLayout,
    ZeroRun,
)
from dcompress.coding.range_coder import SideReader
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import DTYPE_BY_NAME, RUN_CODERS, SHARED_CODERS
from dcompress.errors import CorruptError, TruncatedError
from tests.checks import check_coder, decode, error_of
from tests.strategies import dtypes, shared_tensors, tensors

chunk_sizes = st.integers(0, 13).map(lambda shift: 1 << shift)


@settings(max_examples=40)
@given(tensors(), chunk_sizes)
def test_plain_coders(kernel, tensor, chunk_words):
    assume(tensor.words.size // chunk_words < 500)
    check_coder(Raw(), tensor, chunk_words, kernel)
    check_coder(Planes.fit(tensor.dtype, tensor.words)[0], tensor, chunk_words, kernel)


@settings(max_examples=40)
@given(shared_tensors(), chunk_sizes)
def test_dense_coders(kernel, tensor, chunk_words):
    assume(tensor.labels.size // chunk_words < 500)
    codebook = Codebook.of(tensor)
    check_coder(FixedWidth(codebook), tensor, chunk_words, kernel)
    for coder, _ in Labels.fit(codebook, tensor.labels, chunk_words):
        check_coder(coder, tensor, chunk_words, kernel)


@settings(max_examples=60)
@given(
    shared_tensors(has_zero=True),
    chunk_sizes,
    st.sampled_from([ZeroRun, SplitRun]),
    st.integers(1, 40),
    st.integers(0, 12),
)
def test_run_coders(kernel, tensor, chunk_words, kind, n_buckets, raw_bits):
    assume(tensor.labels.size // chunk_words < 500)
    assume(tensor.labels.any())
    statistics = RunStatistics(tensor.labels, tensor.n_labels, chunk_words)
    coder, _ = kind.fit(Codebook.of(tensor), statistics, n_buckets, raw_bits)
    assume(coder.usable)
    check_coder(coder, tensor, chunk_words, kernel)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(CODERS)),
    dtypes,
    st.integers(1, 60) | st.just(1030),
    st.integers(1, 6),
    st.binary(max_size=60),
    st.binary(max_size=200),
    st.binary(max_size=60),
)
def test_any_bytes_are_words_or_corrupt(kernel, number, dtype, n_words, n_labels, table_bytes, chunk, shared):
    layout = TensorLayout(
        dtype,
        n_words,
        n_labels if number in SHARED_CODERS else 0,
        (n_words,),
        len(table_bytes) + len(chunk),
        2,
        lambda _: TableSet.from_bytes(shared),
    )

    def read_both():
        coder = CODERS[number].read_tables(SideReader(table_bytes), layout)
        decode(coder, chunk, 0, n_words, dtype.word_bytes)

    error = error_of(read_both)
    assert error is None or (isinstance(error, (CorruptError, TruncatedError)) and error.rule)


@pytest.mark.parametrize("number", RUN_CODERS)
def test_run_coders_need_no_more_than_their_chunk(kernel, number):
    # An empty chunk of a sparse tensor is two bytes: no entries, in a lane of no bytes.
    codebook = Codebook(DTYPE_BY_NAME["float32"], np.array([[5]], np.uint32), True, 50)
    kind = CODERS[number]
    labels = np.zeros(50, np.uint16)
    labels[::3] = 1
    coder, _ = kind.fit(codebook, RunStatistics(labels, 2, 50), 4, 1)
    assert coder.encode_chunk(np.zeros(50, np.uint16)) == b"\x00\x00"
    assert not decode(coder, b"\x00\x00", 0, 50, 4).any()
