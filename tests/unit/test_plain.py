from __future__ import annotations

import numpy as np
import pytest

from dcompress.coding import Planes, Raw, TensorLayout
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.range_coder import SideReader, SideWriter
from dcompress.coding.tables import write_code
from dcompress.constants import DTYPE_BY_NAME, DTYPES, PLANE_CONSTANT, PLANE_HUFFMAN, PLANE_RAW
from dcompress.errors import CorruptError, TruncatedError
from dcompress.stages import TensorData
from tests.checks import check_coder, check_damage, decode, raises_rule
from tests.strategies import random_words

F32 = DTYPE_BY_NAME["float32"]
U16 = DTYPE_BY_NAME["uint16"]


def tensor_of(dtype, n_elements, seed=0):
    rng = np.random.default_rng(seed)
    return TensorData(
        dtype, (n_elements,), random_words(rng, n_elements * dtype.words_per_element, dtype.word_bytes)
    )


def weights(n, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.05, n).astype(np.float32)
    return TensorData(F32, (n,), values.view(np.uint32))


# The contract.


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_raw_keeps_every_dtype(kernel, dtype):
    check_coder(Raw(), tensor_of(dtype, 50), 16, kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("n_elements", [1, 1000, 1500])
def test_planes_keep_every_dtype(kernel, dtype, n_elements):
    tensor = tensor_of(dtype, n_elements)
    coder, _ = Planes.fit(dtype, tensor.words)
    check_coder(coder, tensor, 1024, kernel)


@pytest.mark.parametrize("n", [1023, 1024, 1025])
def test_planes_of_weights_around_the_lane_threshold(kernel, n):
    tensor = weights(n)
    coder, _ = Planes.fit(F32, tensor.words)
    assert any(code is not None for code in coder.codes)
    check_coder(coder, tensor, n, kernel)


@pytest.mark.parametrize("chunk_words", [7, 40])
def test_damaged_raw_chunks(kernel, chunk_words):
    tensor = tensor_of(F32, chunk_words)
    (chunk,) = check_coder(Raw(), tensor, chunk_words, kernel)
    check_damage(Raw(), chunk, 0, chunk_words, 4)


@pytest.mark.parametrize("n", [300, 1030])
def test_damaged_planes_chunks(kernel, n):
    # Words whose bytes are of every kind: constant, raw and coded.
    rng = np.random.default_rng(n)
    high = np.minimum(rng.geometric(0.3, n), 12).astype(np.uint32)
    words = high << np.uint32(24) | rng.integers(0, 2, n).astype(np.uint32) << np.uint32(8)
    tensor = TensorData(DTYPE_BY_NAME["uint32"], (n,), words | np.uint32(7 << 16))
    coder = Planes(
        tensor.dtype,
        (0, None, 7, None),
        (None, None, None, HuffmanCode.from_counts(np.bincount(high, minlength=256))),
    )
    (chunk,) = check_coder(coder, tensor, n, kernel)
    assert check_damage(coder, chunk, 0, n, 4)


# How planes are chosen and laid out.


def test_the_exponent_of_weights_is_coded_and_their_mantissa_is_not():
    tensor = weights(20_000)
    coder, cost = Planes.fit(F32, tensor.words)
    assert [code is not None for code in coder.codes] == [False, False, False, True]
    assert cost < 8 * tensor.n_bytes * 0.86
    chunk = coder.encode_chunk(tensor.words)
    assert abs(8 * len(chunk) - cost) < 100


def test_constant_planes_take_no_bytes():
    tensor = TensorData(F32, (1000,), np.full(1000, 0x40490FDB, np.uint32))
    coder, cost = Planes.fit(F32, tensor.words)
    assert cost == 0
    assert coder.encode_chunk(tensor.words) == b""
    assert decode(coder, b"", 0, 1000, 4).tolist() == tensor.words.tolist()


def test_floats_are_turned_left_so_that_the_sign_joins_the_mantissa():
    words = np.array([0x80000001, 0x7F800000], np.uint32)
    coder = Planes(F32, (None,) * 4, (None,) * 4)
    assert coder.encode_chunk(words).hex(" ", 2) == "0300 0000 0000 00ff"


def test_integers_are_not_turned():
    coder = Planes(U16, (None, None), (None, None))
    assert coder.encode_chunk(np.array([0x0102, 0x0304], np.uint16)).hex() == "02040103"


# What a reader refuses.


@pytest.mark.parametrize("n_bytes", [0, 11, 13])
def test_raw_chunks_must_have_the_length_of_their_words(n_bytes):
    with raises_rule(CorruptError, "RAW-01"):
        decode(Raw(), bytes(n_bytes), 0, 3, 4)


def planes_tables(*planes):
    writer = SideWriter()
    for mode, content in planes:
        writer.raw(mode, 2)
        if mode == PLANE_CONSTANT:
            writer.raw(content, 8)
        elif mode == PLANE_HUFFMAN:
            write_code(writer, HuffmanCode(np.array(content, np.uint8)), 16)
    return SideReader(writer.finish())


def test_an_unknown_plane_mode_is_refused():
    with raises_rule(CorruptError, "PLN-01"):
        Planes.read_tables(planes_tables((3, None), (PLANE_RAW, None)), TensorLayout(U16, 5))


def test_a_code_for_one_value_is_refused():
    lone = [0] * 255 + [1]
    with raises_rule(CorruptError, "PLN-02"):
        Planes.read_tables(planes_tables((PLANE_RAW, None), (PLANE_HUFFMAN, lone)), TensorLayout(U16, 5))


def test_an_incomplete_code_is_refused():
    with raises_rule(CorruptError, "HUF-02"):
        Planes.read_tables(planes_tables((PLANE_HUFFMAN, [1, 2] + [0] * 254)), TensorLayout(U16, 5))


def test_planes_must_fill_their_chunk():
    coder = Planes(U16, (None, 9), (None, None))
    assert decode(coder, b"\x01\x02\x03", 0, 3, 2).tolist() == [0x0901, 0x0902, 0x0903]
    with raises_rule(CorruptError, "PLN-03"):
        decode(coder, b"\x01\x02\x03\x04", 0, 3, 2)
    with raises_rule(TruncatedError, "FRM-01"):
        decode(coder, b"\x01\x02", 0, 3, 2)
