"""Accidents on disk and in transfer, beyond single bits: pairs of bits, bursts, lost and swapped blocks."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.errors import DecodeError
from dcompress.numpy import data_from_array
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint
from tests.checks import error_of, flipped, read_everything
from tests.properties.test_frames import small_model

SMALL, _ = small_model()


def large_model():
    """A frame of some 4 KiB blocks that several coders wrote."""
    rng = np.random.default_rng(11)
    weights = rng.normal(size=(120, 100)).astype(np.float32)
    sparse = np.where(rng.random((200, 150)) < 0.1, rng.normal(size=(200, 150)), 0).astype(np.float32)
    arrays = {"dense": weights, "sparse": sparse, "exact": rng.normal(size=3000).astype(np.float32)}
    arrays["noise"] = rng.integers(0, 1 << 16, 5000).astype(np.uint16)
    tensors = {name: data_from_array(name, array) for name, array in arrays.items()}
    recipe = Recipe.from_dict({"preset": "balanced", "exclude": ["exact"]})
    return encode_checkpoint(Checkpoint(tensors), recipe).to_bytes()


LARGE = large_model()


def check_refused(bad, frame):
    """A damaged frame is refused with an error that tells the rule and survives its pickle."""
    if bad == frame:
        return 0
    error = error_of(read_everything, bad)
    assert error is not None, "damage went unnoticed"
    assert error.rule
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.rule, again.offset, again.tensor) == (
        str(error),
        error.rule,
        error.offset,
        error.tensor,
    )
    return 1


def test_pairs_of_flipped_bits(kernel):
    n_bits = 8 * len(SMALL)
    rng = np.random.default_rng(2)
    pairs = [(bit, bit + gap) for gap in (1, 7, 8, 31, 32, 33, 64) for bit in range(0, n_bits - gap, 53)]
    pairs += rng.integers(0, n_bits, (1500, 2)).tolist()
    n_refused = sum(check_refused(flipped(flipped(SMALL, a), b), SMALL) for a, b in pairs)
    assert n_refused > 0.99 * len(pairs)


@pytest.mark.parametrize("length", [512, 4096])
@pytest.mark.parametrize("fill", [b"\x00", b"\xff"])
def test_blocks_that_were_never_written(kernel, length, fill):
    """What is left after a crash: blocks of zeros, aligned or not, anywhere, to the end of the file too."""
    assert len(LARGE) > 6 * 4096
    n_refused = 0
    for start in (*range(0, len(LARGE), max(length, 2048)), *range(100, len(LARGE), 5003)):
        end = min(start + length, len(LARGE))
        n_refused += check_refused(LARGE[:start] + fill * (end - start) + LARGE[end:], LARGE)
        n_refused += check_refused(LARGE[:start] + fill * (len(LARGE) - start), LARGE)
    assert n_refused > 20
    assert check_refused(fill * len(LARGE), LARGE) == 1


def test_blocks_that_are_lost_doubled_or_swapped(kernel):
    rng = np.random.default_rng(4)
    for frame, sizes, n in ((SMALL, (1, 2, 4, 5, 33), 400), (LARGE, (1, 4, 512, 4096), 60)):
        for _ in range(n):
            size = int(rng.choice(sizes))
            a, b = sorted(rng.integers(0, len(frame) - size, 2).tolist())
            check_refused(frame[:a] + frame[a + size :], frame)
            check_refused(frame[:a] + frame[a : a + size] + frame[a:], frame)
            if b >= a + size:
                swapped = bytearray(frame)
                swapped[a : a + size], swapped[b : b + size] = frame[b : b + size], frame[a : a + size]
                check_refused(bytes(swapped), frame)


def test_chunks_of_one_size_that_are_swapped(kernel):
    """Whole chunks in each other's places: their checksums are right, but stand elsewhere."""
    n = 0
    with open_frame(LARGE) as reader:
        records = list(reader.directory.tensors.values())
    for first, second in itertools.combinations([c for r in records for c in r.chunks], 2):
        size = min(first.n_bytes, second.n_bytes)
        frame = bytearray(LARGE)
        frame[first.offset : first.offset + size] = LARGE[second.offset : second.offset + size]
        frame[second.offset : second.offset + size] = LARGE[first.offset : first.offset + size]
        n += check_refused(bytes(frame), LARGE)
    assert n >= 3


def test_line_ends_and_character_sets_of_transfers():
    """What FTP in text mode, mail and editors do to a binary file."""
    for frame in (SMALL, LARGE):
        for bad in (
            frame.replace(b"\r\n", b"\n"),
            frame.replace(b"\n", b"\r\n"),
            bytes(byte & 0x7F for byte in frame),
            frame.decode("latin-1").encode("utf-8"),
            frame.rstrip(b"\x00"),
            b"\xef\xbb\xbf" + frame,
            b"\n" + frame,
            b"PK\x03\x04" + frame,
        ):
            check_refused(bad, frame)


@pytest.mark.parametrize("threads", [1, 3])
def test_large_frames_at_random_places(threads):
    rng = np.random.default_rng(9)
    for bit in rng.integers(0, 8 * len(LARGE), 150).tolist():
        with pytest.raises(DecodeError):
            read_everything(flipped(LARGE, bit), threads)
    for length in rng.integers(0, len(LARGE), 100).tolist():
        with pytest.raises(DecodeError) as caught:
            read_everything(LARGE[:length], threads)
        assert caught.value.rule in ("FRM-01", "FRM-02")
