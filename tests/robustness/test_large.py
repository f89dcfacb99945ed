"""More than 32 bits of everything. Takes minutes and up to 12 GB: ``pytest -m nightly``."""

from __future__ import annotations

import numpy as np
import pytest

import dcompress.numpy
from dcompress.decode import open_frame
from dcompress.limits import DecodeLimits

pytestmark = pytest.mark.nightly


def save(tmp_path, array):
    path = tmp_path / "large.dcz"
    dcompress.numpy.save_file({"w": array}, path, recipe="lossless", effort=1, threads=2)
    with open_frame(path) as reader:
        return path, reader.directory.tensors["w"]


def test_more_than_4_gib_of_mostly_zeros(tmp_path):
    """Places, offsets and sizes beyond 2**32 bytes, in a tensor of runs."""
    n_words = (1 << 30) + 5
    array = np.zeros(n_words, np.float32)
    places = np.random.default_rng(1).integers(0, n_words, 100_000)
    array[places] = np.tile(np.float32([0.5, -0.25, 3]), 33_334)[:100_000]
    array[-1] = 7
    path, record = save(tmp_path, array)
    assert record.decoded_bytes > 1 << 32
    limits = DecodeLimits(max_output_bytes=record.decoded_bytes)
    with dcompress.numpy.safe_open(path, limits=limits, threads=2) as file:
        rows = file.get_slice("w")
        np.testing.assert_array_equal(rows[n_words - 1000 : n_words], array[-1000:])
        np.testing.assert_array_equal(
            rows[(1 << 30) - 3 : (1 << 30) + 3], array[(1 << 30) - 3 : (1 << 30) + 3]
        )
        assert np.array_equal(file.get_tensor("w"), array)


def test_more_than_2_to_the_31_kept_words(tmp_path):
    """Counts beyond 2**31, and 2**31 + 7 words that are not zero."""
    n_words = (1 << 31) + 7
    array = np.ones(n_words, np.uint8)
    array[:: 1 << 20] = 2
    array[-1] = 3
    path, record = save(tmp_path, array)
    assert record.n_kept == n_words
    with dcompress.numpy.safe_open(path, threads=2) as file:
        decoded = file.get_tensor("w")
    assert np.array_equal(decoded, array)


def test_a_file_of_more_than_4_gib(tmp_path):
    """Offsets within the file beyond 2**32: noise, which nothing makes smaller."""
    block = np.random.default_rng(2).integers(0, 1 << 16, 1 << 21, np.uint16)
    array = np.empty((1 << 31) + (1 << 21), np.uint16).reshape(-1, block.size)
    for number, row in enumerate(array):
        np.add(block, number, out=row, dtype=np.uint16)
    path, record = save(tmp_path, array.reshape(-1))
    assert record.chunks[-1].offset > 1 << 32
    limits = DecodeLimits(max_output_bytes=record.decoded_bytes)
    with dcompress.numpy.safe_open(path, limits=limits, threads=2) as file:
        last = file.get_slice("w")[array.size - block.size : array.size]
    np.testing.assert_array_equal(last, array[-1])
